"""Sequences and optionals. They exist only while importing: a graph holds tensors."""

from __future__ import annotations

import numpy as np

from secateur.frontends.onnx.control import stack
from secateur.frontends.onnx.movement import cut_up
from secateur.frontends.onnx.node import Item, Node, row
from secateur.ir.graph import Value


@row("SequenceConstruct")
def sequence_construct(n: Node) -> Item:
    return tuple(n.all())


@row("SequenceEmpty")
def sequence_empty(n: Node) -> Item:
    return ()


def _position(n: Node, index: int, length: int) -> int:
    at = int(n.scalar(index))
    if not -length <= at < length:
        raise n.fail(f"position {at} is outside a sequence of {length}")
    return at % length


@row("SequenceAt")
def sequence_at(n: Node) -> Item:
    items = n.sequence(0)
    return items[_position(n, 1, len(items))]


@row("SequenceErase")
def sequence_erase(n: Node) -> Item:
    items = list(n.sequence(0))
    del items[_position(n, 1, len(items)) if n.has(1) else -1]
    return tuple(items)


@row("SequenceInsert")
def sequence_insert(n: Node) -> Item:
    items = list(n.sequence(0))
    at = _position(n, 2, len(items) + 1) if n.has(2) and n.scalar(2) >= 0 else len(items)
    at = len(items) + int(n.scalar(2)) if n.has(2) and n.scalar(2) < 0 else at
    items.insert(at, n.x(1))
    return tuple(items)


@row("SequenceLength")
def sequence_length(n: Node) -> Item:
    return n.b.constant(np.asarray(len(n.sequence(0)), dtype=np.int64))


@row("SplitToSequence")
def split_to_sequence(n: Node) -> Item:
    """Pieces of 1 without their dimension (unless `keepdims`), of one size, or of given sizes."""
    x = n.x(0)
    axis = n.axis(n.attr("axis", 0), x.type.rank)
    size = x.shape[axis]
    if not n.has(1):
        pieces = cut_up(n, x, axis, [1] * n.bound(size))
        if n.attr("keepdims", 1):
            return tuple(pieces)
        return tuple(n.reshape(piece, (*x.shape[:axis], *x.shape[axis + 1 :])) for piece in pieces)
    given = n.const(1)
    if given.ndim:
        return tuple(cut_up(n, x, axis, n.ints(1)))
    each = int(n.scalar(1))
    if each < 1:
        raise n.fail(f"pieces of {each} are not possible")
    n.bound(size // each)
    return tuple(cut_up(n, x, axis, [min(each, size - start) for start in range(0, size, each)]))


@row("ConcatFromSequence")
def concat_from_sequence(n: Node) -> Value:
    items = list(n.sequence(0))
    if not items:
        raise n.fail("the sequence is empty")
    if n.attr("new_axis", 0):
        return stack(n, items, n.axis(n.need("axis"), items[0].type.rank + 1))
    return n.b.concat(*items, axis=n.axis(n.need("axis"), items[0].type.rank))


@row("Optional", "OptionalGetElement")
def optional(n: Node) -> Item:
    return n.inputs[0] if n.inputs else None


@row("OptionalHasElement")
def optional_has_element(n: Node) -> Value:
    return n.b.constant(np.asarray(bool(n.inputs) and n.inputs[0] is not None))
