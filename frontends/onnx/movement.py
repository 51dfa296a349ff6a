"""Ops that move elements."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from secateur.frontends.onnx.node import Node, row
from secateur.ir.graph import Value
from secateur.ir.ops.constant import constant_value
from secateur.ir.types import DType, numel


@row("Reshape")
def reshape(n: Node) -> Value:
    """0 takes over the dimension (unless `allowzero`), one -1 is what remains."""
    x, wanted = n.x(0), list(n.ints(1))
    if not n.attr("allowzero", 0):
        if any(size == 0 and position >= x.type.rank for position, size in enumerate(wanted)):
            raise n.fail(f"shape {wanted} takes over a dimension that the operand {x.type} does not have")
        wanted = [x.shape[position] if size == 0 else size for position, size in enumerate(wanted)]
    if wanted.count(-1) > 1 or any(size < -1 for size in wanted):
        raise n.fail(f"{wanted} is no shape")
    if -1 in wanted:
        rest = numel(tuple(size for size in wanted if size != -1))
        if rest == 0 or x.type.numel % rest:
            raise n.fail(f"{x.type} does not reshape to {wanted}")
        wanted[wanted.index(-1)] = x.type.numel // rest
    return n.reshape(x, wanted)


@row("Flatten")
def flatten(n: Node) -> Value:
    x = n.x()
    axis = n.attr("axis", 1)
    axis = x.type.rank if axis == x.type.rank else n.axis(axis, x.type.rank)
    return n.reshape(x, (numel(x.shape[:axis]), numel(x.shape[axis:])))


def _axes(n: Node) -> tuple[int, ...] | None:
    """Axes, an attribute up to opset 12 and an input after."""
    return n.ints(1) if n.has(1) else n.attrs.get("axes")


@row("Squeeze")
def squeeze(n: Node) -> Value:
    x, given = n.x(), _axes(n)
    axes = n.axes(given, x.type.rank) if given is not None else [d for d, size in enumerate(x.shape) if size == 1]
    if any(x.shape[axis] != 1 for axis in axes):
        raise n.fail(f"axes {list(axes)} of {x.type} are not all of size 1")
    return n.reshape(x, [size for dim, size in enumerate(x.shape) if dim not in axes])


@row("Unsqueeze")
def unsqueeze(n: Node) -> Value:
    x, given = n.x(), _axes(n)
    if given is None:
        raise n.fail("no axes are given")
    axes = n.axes(given, x.type.rank + len(given))
    rest = iter(x.shape)
    return n.reshape(x, [1 if dim in axes else next(rest) for dim in range(x.type.rank + len(axes))])


@row("Transpose")
def transpose(n: Node) -> Value:
    x = n.x()
    return n.transpose(x, n.attr("perm", tuple(reversed(range(x.type.rank)))))


@row("Concat")
def concat(n: Node) -> Value:
    values = n.all()
    axis = n.axis(n.need("axis"), n.x().type.rank)
    # Exporters concatenate rank-1 nothings; a one-operand concat is no work.
    return values[0] if len(values) == 1 else n.b.concat(*values, axis=axis)


def split_sizes(n: Node, size: int, parts: int) -> list[int]:
    """Equal parts, the last one smaller where they do not divide."""
    each = -(-size // n.bound(parts))
    sizes = [min(each, max(0, size - index * each)) for index in range(parts)]
    if n.version < 18 and len(set(sizes)) > 1:
        raise n.fail(f"size {size} does not split into {parts} equal parts")
    return sizes


@row("Split")
def split(n: Node) -> list[Value]:
    x = n.x()
    axis = n.axis(n.attr("axis", 0), x.type.rank)
    sizes: Sequence[int] = n.ints(1) if n.has(1) else n.attr("split", ())
    sizes = sizes or split_sizes(n, x.shape[axis], n.attr("num_outputs", n.outputs))
    return cut_up(n, x, axis, sizes)


def cut_up(n: Node, x: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
    """Consecutive pieces of an axis."""
    if sum(sizes) != x.shape[axis] or any(size < 0 for size in sizes):
        raise n.fail(f"sizes {list(sizes)} do not add up to {x.shape[axis]}, dimension {axis} of {x.type}")
    n.bound(len(sizes))
    ends = np.cumsum([0, *sizes]).tolist()
    return [n.cut(x, axis, start, stop) for start, stop in itertools.pairwise(ends)]


@row("Slice")
def slice_(n: Node) -> Value:
    """Bounds are clamped as Python's; a negative step is a flip and a positive one."""
    x = n.x()
    if n.version < 10:
        starts, ends = n.need("starts"), n.need("ends")
        axes, steps = n.attr("axes", tuple(range(len(starts)))), (1,) * len(starts)
    else:
        starts, ends = n.ints(1), n.ints(2)
        axes = n.ints(3) if n.has(3) else tuple(range(len(starts)))
        steps = n.ints(4) if n.has(4) else (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise n.fail(f"starts {starts}, ends {ends}, axes {axes} and steps {steps} do not fit together")
    low, high, stride, flipped = [0] * x.type.rank, list(x.shape), [1] * x.type.rank, []
    for axis, start, end, step in zip(n.axes(axes, x.type.rank), starts, ends, steps, strict=True):
        taken = range(x.shape[axis])[slice(start, end, step)]
        first = min(taken, default=0)
        low[axis], high[axis], stride[axis] = first, max(taken, default=-1) + 1 if taken else first, abs(step)
        flipped += [axis] * (step < 0 and len(taken) > 1)
    if low != [0] * x.type.rank or high != list(x.shape) or set(stride) - {1}:
        x = n.b.slice(x, starts=low, stops=high, steps=stride)
    return n.b.flip(x, axes=flipped) if flipped else x


@row("Expand")
def expand(n: Node) -> Value:
    x = n.x()
    return n.expand(x, np.broadcast_shapes(x.shape, n.ints(1)))


@row("Tile")
def tile(n: Node) -> Value:
    """A new dimension in front of each repeated one, broadcast, and merged again."""
    x, repeats = n.x(), n.ints(1)
    if len(repeats) != x.type.rank:
        raise n.fail(f"{len(repeats)} repeats for rank {x.type.rank}")
    pairs = [(1, size) if times != 1 else (size,) for size, times in zip(x.shape, repeats, strict=True)]
    wide = [(times, size) if times != 1 else (size,) for size, times in zip(x.shape, repeats, strict=True)]
    split_up = n.reshape(x, [size for pair in pairs for size in pair])
    repeated = n.expand(split_up, [size for pair in wide for size in pair])
    return n.reshape(repeated, [size * times for size, times in zip(x.shape, repeats, strict=True)])


@row("Pad")
def pad(n: Node) -> Value:
    """Pads are attributes up to opset 10; negative ones cut. `axes` came with opset 18."""
    x, mode = n.x(), n.attr("mode", "constant")
    rank = x.type.rank
    pads = n.ints(1) if n.version >= 11 else n.need("pads")
    axes = n.axes(n.ints(3), rank) if n.has(3) else tuple(range(rank))
    if len(pads) != 2 * len(axes) or mode not in ("constant", "reflect", "edge", "wrap"):
        raise n.fail(f"mode {mode!r} with pads {list(pads)} does not fit rank {rank}")
    low, high = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        low[axis], high[axis] = pads[position], pads[position + len(axes)]
    if mode == "constant" and n.version >= 11 and n.has(2) and constant_value(n.x(2)) is None:
        return _pad_with(n, x, low, high)
    value = n.attr("value", 0.0) if n.version < 11 else float(n.scalar(2)) if n.has(2) else 0.0
    return pad_by(n, x, low, high, mode, value)


def pad_by(n: Node, x: Value, low: list[int], high: list[int], mode: str = "constant", value: float = 0.0) -> Value:
    """Pad where the amounts are positive, cut where they are negative."""
    starts = [max(0, -amount) for amount in low]
    stops = [size - max(0, -amount) for size, amount in zip(x.shape, high, strict=True)]
    if any(starts) or stops != list(x.shape):
        x = n.b.slice(x, starts=starts, stops=stops, steps=[1] * x.type.rank)
    low, high = [max(0, amount) for amount in low], [max(0, amount) for amount in high]
    if not any(low) and not any(high):
        return x
    return n.b.pad(x, low=low, high=high, interior=[0] * x.type.rank, mode=mode, value=value)


def _pad_with(n: Node, x: Value, low: list[int], high: list[int]) -> Value:
    """The padding value is computed at run time: choose between it and zero-padded data."""
    padded = pad_by(n, x, low, high)
    inside = pad_by(n, n.expand(n.b.constant(np.asarray(True)), x.shape), low, high)
    return n.b.where(inside, padded, n.reshape(n.x(2), ()))


@row("DepthToSpace")
def depth_to_space(n: Node) -> Value:
    n.refuse("mode", "DCR", "CRD")
    x, block = n.x(), n.need("blocksize")
    batch, channels, height, width = x.shape
    deep = channels // block**2
    if n.attr("mode", "DCR") == "DCR":
        split_up = n.transpose(n.reshape(x, (batch, block, block, deep, height, width)), (0, 3, 4, 1, 5, 2))
    else:
        split_up = n.transpose(n.reshape(x, (batch, deep, block, block, height, width)), (0, 1, 4, 2, 5, 3))
    return n.reshape(split_up, (batch, deep, height * block, width * block))


@row("SpaceToDepth")
def space_to_depth(n: Node) -> Value:
    n.refuse("mode", "DCR", "CRD")
    x, block = n.x(), n.need("blocksize")
    batch, channels, height, width = x.shape
    split_up = n.reshape(x, (batch, channels, height // block, block, width // block, block))
    order = (0, 3, 5, 1, 2, 4) if n.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return n.reshape(n.transpose(split_up, order), (batch, channels * block**2, height // block, width // block))


@row("ReverseSequence")
def reverse_sequence(n: Node) -> Value:
    """Of each batch entry the first `sequence_lens` steps, backwards: a gather by computed positions."""
    x, lengths = n.x(0), n.x(1)
    time, batch = n.axis(n.attr("time_axis", 0), x.type.rank), n.axis(n.attr("batch_axis", 1), x.type.rank)
    at = n.counting(x.shape[time], time, x.type.rank)
    length = n.reshape(n.cast(lengths, DType.I64), [x.shape[batch] if d == batch else 1 for d in range(x.type.rank)])
    back = n.b.sub(n.b.sub(length, n.scalar_like(1, at)), at)
    position = n.b.where(n.b.lt(at, length), back, at)
    return n.b.gather_elements(x, n.expand(position, x.shape), axis=time)
