"""Linear layers that read the same value, computed as one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph, Op
from secateur.ir.opdef import lookup
from secateur.ir.ops.constant import constant_value
from secateur.passes.base import Pass


@dataclass(frozen=True)
class MergeLinear(Pass):
    """Stacks the weights of linear layers over one value, as those of query, key and value are.

    before:  %q = linear(%x, %wq, %bq);  %k = linear(%x, %wk, %bk)
    after:   %0 = linear(%x, %wqk, %bqk);  %q = slice(%0);  %k = slice(%0)

    Layers whose result an elementwise operation takes stay alone: they fuse with it. Weights must be
    constants that nothing else uses. Not exact: a larger product may be added up in another order.
    """

    exact: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-5

    def run(self, graph: Graph) -> None:
        groups: defaultdict[object, list[Op]] = defaultdict(list)
        for op in graph.find("linear"):
            if _mergeable(op):
                groups[op.operands[0]].append(op)
        for ops in groups.values():
            if len(ops) > 1:
                _merge(graph, ops)
        for op in graph.find("constant"):
            if not op.result.uses:
                graph.erase(op)


def _mergeable(op: Op) -> bool:
    constant = all(constant_value(value) is not None for value in op.operands[1:])
    users = [user for user in op.result.users if user is not op.graph.terminator] if op.graph else []
    fuses = any(lookup(user.name).elementwise for user in users)
    return constant and not fuses and bool(users) and len(op.operands[1].users) == 1


def _merge(graph: Graph, ops: list[Op]) -> None:
    """Compute the layers where the first of them stands; each result becomes a slice of the common one."""
    b = Builder(graph, ops[0], ops[0].span)
    x = ops[0].operands[0]
    sizes = [op.result.shape[-1] for op in ops]
    weights = [_array(op, 1) for op in ops]
    operands = [x, b.constant(np.concatenate(weights), name=_name(ops[0], 1))]
    if any(len(op.operands) > 2 for op in ops):
        operands.append(b.constant(np.concatenate([_array(op, 2) for op in ops]), name=_name(ops[0], 2)))
    merged = b.linear(*operands)
    parts = []
    for size, stop in zip(sizes, np.cumsum(sizes), strict=True):
        starts, stops = [0] * merged.type.rank, list(merged.shape)
        starts[-1], stops[-1] = int(stop) - size, int(stop)
        parts.append(b.slice(merged, starts=starts, stops=stops, steps=[1] * merged.type.rank))
    for op, part in zip(ops, parts, strict=True):
        graph.replace(op, [part])


def _array(op: Op, position: int) -> np.ndarray:
    """Weights or bias; a layer without a bias has zeros."""
    if position < len(op.operands):
        array = constant_value(op.operands[position])
        assert array is not None
        return array
    return np.zeros(op.result.shape[-1], op.result.type.dtype.numpy)


def _name(op: Op, position: int) -> str:
    made = op.operands[position].op if position < len(op.operands) else None
    return f"{made.attrs['name']}.merged" if made is not None and made.attrs["name"] else ""
