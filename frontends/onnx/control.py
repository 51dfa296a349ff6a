"""Branches and loops, which a straight-line program can only have unrolled."""

from __future__ import annotations

import numpy as np

from secateur.frontends.onnx.node import Item, Node, row
from secateur.ir.graph import Value
from secateur.ir.ops.constant import constant_value


@row("If")
def if_(n: Node) -> list[Item]:
    """A known condition picks its branch; otherwise both run and `where` picks, which needs equal types."""
    condition = n.x()
    known = constant_value(condition)
    if known is not None:
        name = "then_branch" if bool(known.reshape(())) else "else_branch"
        return n.importer.branch(n.need(name), n.scope, name)
    then, other = (n.importer.branch(n.need(name), n.scope, name) for name in ("then_branch", "else_branch"))
    condition = n.reshape(condition, ())
    chosen: list[Item] = []
    for a, b in zip(then, other, strict=True):
        if not isinstance(a, Value) or not isinstance(b, Value) or a.type != b.type:
            raise n.fail("a condition that is not constant needs branches with results of equal types")
        chosen.append(n.b.where(condition, a, b))
    return chosen


@row("Loop")
def loop(n: Node) -> list[Item]:
    """Unrolled: the trip count, and the condition after each turn, must be known."""
    body = n.need("body")
    trips = int(n.scalar(0)) if n.has(0) else None
    going = bool(n.scalar(1)) if n.has(1) else True
    state = list(n.inputs[2:])
    names = [item.name for item in body.input]
    scanned: list[list[Value]] = [[] for _ in body.output[1 + len(state) :]]
    turn = 0
    while going and (trips is None or turn < trips):
        count = n.b.constant(np.asarray(turn, dtype=np.int64))
        given = dict(zip(names, [count, n.b.constant(np.asarray(True)), *state], strict=True))
        condition, *results = n.importer.branch(body, n.scope, f"turn{turn}", given)
        known = constant_value(condition) if isinstance(condition, Value) else None
        if known is None:
            raise n.fail("the condition of a loop must be known at import")
        going, turn = bool(known.reshape(())), turn + 1
        state = results[: len(state)]
        for collected, value in zip(scanned, results[len(state) :], strict=True):
            collected.append(tensor(n, value))
    return [*state, *(stack(n, values, 0) for values in scanned)]


def tensor(n: Node, value: Item) -> Value:
    if not isinstance(value, Value):
        raise n.fail("a sequence cannot be collected over a loop")
    return value


def stack(n: Node, values: list[Value], axis: int) -> Value:
    """Tensors of one shape along a new dimension."""
    if not values:
        raise n.fail("a loop without a single turn has no shapes for what it collects")
    wide = [n.reshape(value, (*value.shape[:axis], 1, *value.shape[axis:])) for value in values]
    return wide[0] if len(wide) == 1 else n.b.concat(*wide, axis=axis)


@row("Scan")
def scan(n: Node) -> list[Item]:
    """Unrolled over the scanned dimension."""
    if n.version < 9:
        raise n.fail("the batched form of opset 8 is not supported", hint="convert the model to opset 9 or newer")
    body, count = n.need("body"), n.need("num_scan_inputs")
    states = len(n.inputs) - count
    state, scanned = list(n.inputs[:states]), [n.x(index) for index in range(states, len(n.inputs))]
    collected: list[list[Value]] = [[] for _ in body.output[states:]]
    axes = n.attr("scan_input_axes", (0,) * count)
    axes = [n.axis(axis, x.type.rank) for axis, x in zip(axes, scanned, strict=True)]
    backwards = n.attr("scan_input_directions", (0,) * count)
    out_backwards = n.attr("scan_output_directions", (0,) * len(collected))
    out_axes = n.attr("scan_output_axes", (0,) * len(collected))
    names = [item.name for item in body.input]
    steps = scanned[0].shape[axes[0]]
    for turn in range(steps):
        taken = []
        for x, axis, back in zip(scanned, axes, backwards, strict=True):
            at = steps - 1 - turn if back else turn
            taken.append(n.reshape(n.cut(x, axis, at, at + 1), (*x.shape[:axis], *x.shape[axis + 1 :])))
        given = dict(zip(names, [*state, *taken], strict=True))
        results = n.importer.branch(body, n.scope, f"turn{turn}", given)
        state = results[:states]
        for values, value in zip(collected, results[states:], strict=True):
            values.append(tensor(n, value))
    made: list[Item] = []
    for values, axis, back in zip(collected, out_axes, out_backwards, strict=True):
        rank = values[0].type.rank + 1 if values else 1
        made.append(stack(n, values[::-1] if back else values, n.axis(axis, rank)))
    return [*state, *made]
