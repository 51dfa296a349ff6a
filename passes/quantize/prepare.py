"""What makes a graph easier to quantise without changing what it computes."""

from __future__ import annotations

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph, Op
from secateur.ir.ops.constant import constant_value
from secateur.passes.dce import DeadCode


def split_linears(graph: Graph) -> None:
    """Write a linear layer of which only parts are used as one layer for each part, in place.

    before:  %0 = linear(%x, %w);  %q = slice(%0);  %k = slice(%0);  %v = slice(%0)
    after:   %q = linear(%x, %wq);  %k = linear(%x, %wk);  %v = linear(%x, %wv)

    Query, key and value have ranges of their own, which one scale would have to cover together.
    """
    for op in graph.find("linear"):
        parameters = [constant_value(value) for value in op.operands[1:]]
        users = op.result.users
        if len(users) < 2 or any(array is None for array in parameters) or not all(map(_is_part, users)):
            continue
        for user in users:
            rows = slice(user.attrs["starts"][-1], user.attrs["stops"][-1])
            b = Builder(graph, user, op.span)
            arrays = [array[rows] for array in parameters if array is not None]
            names = [value.op.attrs["name"] if value.op else "" for value in op.operands[1:]]
            constants = [b.constant(array, name=name) for array, name in zip(arrays, names, strict=True)]
            graph.replace(user, [b.linear(op.operands[0], *constants)])
    DeadCode().run(graph)


def _is_part(op: Op) -> bool:
    """Whether an operation takes neighbouring features of its operand and everything along the other dimensions."""
    if op.name != "slice":
        return False
    whole = op.operands[0].shape[:-1]
    starts, stops, steps = op.attrs["starts"], op.attrs["stops"], op.attrs["steps"]
    return not any(starts[:-1]) and tuple(stops[:-1]) == whole and all(step == 1 for step in steps)
