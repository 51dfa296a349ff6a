"""Transposes sink towards the outputs, so that they meet others and cancel.

Throughout, `y = transpose(x, perm)`: axis i of y is axis perm[i] of x.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.formula import inverse
from secateur.ir.graph import Value
from secateur.ir.opdef import all_ops
from secateur.ir.ops.constant import constant_value
from secateur.ir.rewrite import Match, Outcome, Refusal, rule

SMALL = 1 << 16  # bytes of a constant that may exist twice, once for each order
CHEAP = 8  # another operand this much smaller than the result may be transposed the other way


def perm_of(value: Value) -> tuple[int, ...] | None:
    """The permutation that makes a value, if a transpose does."""
    return tuple(value.op.attrs["perm"]) if value.op is not None and value.op.name == "transpose" else None


def moves_ones_only(shape: Sequence[int], perm: Sequence[int]) -> bool:
    """Whether a transpose leaves the elements in their order in memory."""
    kept = [axis for axis in perm if shape[axis] != 1]
    return kept == sorted(kept)


def undo(b: Builder, value: Value, perm: tuple[int, ...], room: int, *, broadcasts: bool) -> Value | None:
    """The value that transposed by `perm` gives `value` (or broadcasts alike), or None where that costs a copy.

    A copy of at most an eighth of `room` elements is worth it.
    """
    if perm_of(value) == perm:  # also for one element: sinking must take the transpose away, or it never ends
        assert value.op is not None
        return value.op.operands[0]
    if broadcasts and value.type.numel == 1:
        return value
    rank = len(perm)
    shape = (1,) * (rank - value.type.rank) + value.shape
    back = inverse(perm)
    if (array := constant_value(value)) is not None:
        assert value.op is not None
        if array.size * CHEAP > room and array.nbytes > SMALL and len(value.users) > 1:
            return None
        moved = np.ascontiguousarray(array.reshape(shape).transpose(back))
        if broadcasts:
            moved = moved.reshape(moved.shape[next((at for at, size in enumerate(moved.shape) if size != 1), rank) :])
        if moved.shape == array.shape and moves_ones_only(shape, back):
            return value
        return b.constant(moved, name=value.op.attrs["name"])
    if moves_ones_only(shape, back):
        return b.reshape(value, shape=[shape[axis] for axis in back])
    if max(value.type.numel, 1) * CHEAP > room:
        return None
    full = value if value.shape == shape else b.reshape(value, shape=shape)
    return b.transpose(full, perm=back)


def _sink(m: Match, b: Builder, rank: int) -> Outcome:
    """op(transpose(x), transpose(y), c) == transpose(op(x, y, transpose(c)))"""
    op = m.root
    moved = [value for value in op.operands if (perm := perm_of(value)) is not None and len(perm) == rank]
    if not moved:
        return None
    largest = max(moved, key=lambda value: value.type.numel)
    perm = perm_of(largest)
    assert perm is not None
    attrs = dict(op.attrs)
    if op.name == "concat":
        attrs["axis"] = perm[attrs["axis"]]
    # Measured by what was transposed before: what is transposed instead gets smaller each time, so this ends.
    room, broadcasts = largest.type.numel, op.name != "concat"
    operands = [undo(b, value, perm, room, broadcasts=broadcasts) for value in op.operands]
    if any(value is None for value in operands):
        return Refusal("another operand would have to be transposed instead")
    result = b.op(op.name, [value for value in operands if value is not None], attrs).result
    return b.transpose(result, perm=perm)


ELEMENTWISE = "|".join(name for name, op in all_ops().items() if op.elementwise)


@rule(
    f"({ELEMENTWISE})(_, ...)",
    draws=[
        "relu(transpose(x))",
        "sub(transpose(x), y)",
        "mul(transpose(x), transpose(x))",
        "add(transpose(x), c: number)",
    ],
)
def sink_elementwise(m: Match, b: Builder) -> Outcome:
    """add(transpose(x), transpose(y)) == transpose(add(x, y)), and so for each elementwise operation"""
    return _sink(m, b, m.root.result.type.rank)


@rule("concat(x, ...)", draws=["concat(transpose(x), transpose(x))", "concat(transpose(x), c: const)"])
def sink_concat(m: Match, b: Builder) -> Outcome:
    """concat(transpose(x), transpose(y)) == transpose(concat(x, y)) with the axis followed"""
    return _sink(m, b, m.root.result.type.rank)


@rule("reshape(transpose(x))")
def sink_reshape(m: Match, b: Builder) -> Outcome:
    """reshape(transpose(x)) == transpose(reshape(x)) where it splits or merges only what lies together in x"""
    x, perm = m["x"], m.op(0).attrs["perm"]
    groups = reshape_groups(m.op(0).result.shape, m.root.result.shape)
    if groups is None:
        return None
    order = [axis for axis in range(len(perm)) if x.shape[axis] != 1]
    placed = []
    for ins, outs in groups:
        places = [order.index(perm[axis]) for axis in ins if x.shape[perm[axis]] != 1]
        if places != list(range(places[0], places[0] + len(places)) if places else []):
            return None
        placed.append((places[0] if places else -1, outs))
    in_source = [axis for _, outs in sorted(placed, key=lambda item: item[0]) for axis in outs]
    shape = m.root.result.shape
    flat = b.reshape(x, shape=[shape[axis] for axis in in_source])
    return b.transpose(flat, perm=inverse(in_source))


def reshape_groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]] | None:
    """The finest split of both shapes into runs of equal product, as axes; None for empty tensors."""
    if 0 in before or 0 in after:
        return None
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        ins, outs = [i], [j]
        left, right = before[i], after[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left *= before[i]
                ins.append(i)
                i += 1
            else:
                right *= after[j]
                outs.append(j)
                j += 1
        groups.append((ins, outs))
    rest = (list(range(i, len(before))), list(range(j, len(after))))  # trailing ones
    if rest != ([], []):
        groups.append(rest)
    return groups


RULES = [sink_elementwise, sink_concat, sink_reshape]
