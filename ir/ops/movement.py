"""Operations that move elements and compute nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from secateur.ir.draw import Draw, Sample
from secateur.ir.graph import Op, Value
from secateur.ir.opdef import Attr, DimLink, OpDef, define, operands
from secateur.ir.ops._common import check_axes, check_axis, check_least, check_length, check_same_dtype, identity_links
from secateur.ir.types import ALL, DType, TensorType, numel

if TYPE_CHECKING:
    from secateur.ir.builder import Builder

Ints = tuple[int, ...]


def no_flops(op: Op) -> int:
    return 0


# reshape ------------------------------------------------------------------------------------------


def _infer_reshape(x: TensorType, *, shape: Ints) -> TensorType:
    check_least("shape", shape, 0)
    if numel(shape) != x.numel:
        raise ValueError(f"shape {list(shape)} has {numel(shape)} elements, the operand has {x.numel}")
    return x.with_shape(shape)


def _reshape_links(op: Op) -> list[DimLink]:
    """Dimensions that survive alone: the sizes before them multiply to the same number on both sides."""
    before, after = op.operands[0].shape, op.results[0].shape
    if 0 in before:
        return []
    ends = {}
    for dim, size in enumerate(before):
        if size > 1:
            ends[numel(before[:dim]), size] = dim
    links = []
    for dim, size in enumerate(after):
        key = (numel(after[:dim]), size)
        if key in ends:
            links.append(DimLink(0, ends[key], dim))
    return links


def _sample_reshape(draw: Draw) -> Sample:
    shape = draw.shape()
    new = list(shape)
    for _ in range(draw.int(0, 3)):
        kind = draw.choice(["merge", "split", "unit"])
        if kind == "merge" and len(new) > 1:
            at = draw.int(0, len(new) - 2)
            new[at : at + 2] = [new[at] * new[at + 1]]
        elif kind == "split" and new:
            at = draw.int(0, len(new) - 1)
            factor = draw.choice([f for f in (1, 2, 3, 4) if new[at] % f == 0])
            new[at : at + 1] = [factor, new[at] // factor]
        elif kind == "unit":
            new.insert(draw.int(0, len(new)), 1)
    return Sample((draw.tensor(draw.choice(ALL), shape),), {"shape": tuple(new)})


define(
    OpDef(
        name="reshape",
        doc="The elements of x in row-major order under another shape of as many elements.",
        operands=operands("x"),
        attrs={"shape": Attr("ints")},
        infer=_infer_reshape,
        reference=lambda x, *, shape: x.reshape(shape),
        sample=_sample_reshape,
        flops=no_flops,
        dim_links=_reshape_links,
    )
)


# transpose, broadcast_to, flip ---------------------------------------------------------------------


def _infer_transpose(x: TensorType, *, perm: Ints) -> TensorType:
    if sorted(perm) != list(range(x.rank)):
        raise ValueError(f"perm {list(perm)} is not a permutation of 0..{x.rank - 1}")
    return x.with_shape([x.shape[axis] for axis in perm])


def _sample_transpose(draw: Draw) -> Sample:
    shape = draw.shape()
    return Sample((draw.tensor(draw.choice(ALL), shape),), {"perm": draw.permutation(len(shape))})


define(
    OpDef(
        name="transpose",
        doc="Result dimension i is dimension perm[i] of x.",
        operands=operands("x"),
        attrs={"perm": Attr("ints")},
        infer=_infer_transpose,
        reference=lambda x, *, perm: x.transpose(perm),
        sample=_sample_transpose,
        flops=no_flops,
        dim_links=lambda op: [DimLink(0, axis, place) for place, axis in enumerate(op.attrs["perm"])],
    )
)


def _infer_broadcast_to(x: TensorType, *, shape: Ints) -> TensorType:
    offset = len(shape) - x.rank
    if offset < 0 or any(size not in (1, shape[dim + offset]) for dim, size in enumerate(x.shape)):
        raise ValueError(f"does not broadcast to {list(shape)}")
    check_least("shape", shape, 0)
    return x.with_shape(shape)


def _broadcast_to_links(op: Op) -> list[DimLink]:
    shape = op.results[0].shape
    offset = len(shape) - op.operands[0].type.rank
    return [
        DimLink(0, dim, dim + offset) for dim, size in enumerate(op.operands[0].shape) if size == shape[dim + offset]
    ]


def _sample_broadcast_to(draw: Draw) -> Sample:
    shape = draw.shape()
    return Sample((draw.tensor(draw.choice(ALL), draw.broadcastable(shape)),), {"shape": shape})


define(
    OpDef(
        name="broadcast_to",
        doc="x repeated along dimensions of size 1 and along new leading dimensions.",
        operands=operands("x"),
        attrs={"shape": Attr("ints")},
        infer=_infer_broadcast_to,
        reference=lambda x, *, shape: np.broadcast_to(x, shape),
        sample=_sample_broadcast_to,
        flops=no_flops,
        dim_links=_broadcast_to_links,
    )
)


def _infer_flip(x: TensorType, *, axes: Ints) -> TensorType:
    check_axes(axes, x.rank)
    return x


def _sample_flip(draw: Draw) -> Sample:
    shape = draw.shape()
    axes = draw.permutation(len(shape))[: draw.int(0, len(shape))]
    return Sample((draw.tensor(draw.choice(ALL), shape),), {"axes": axes})


define(
    OpDef(
        name="flip",
        doc="x with the order of its elements reversed along `axes`.",
        operands=operands("x"),
        attrs={"axes": Attr("ints")},
        infer=_infer_flip,
        reference=lambda x, *, axes: np.flip(x, axes),
        sample=_sample_flip,
        flops=no_flops,
        dim_links=lambda op: identity_links(op, without=op.attrs["axes"]),
    )
)


# slice, concat ------------------------------------------------------------------------------------


def _infer_slice(x: TensorType, *, starts: Ints, stops: Ints, steps: Ints) -> TensorType:
    for what, values in (("starts", starts), ("stops", stops), ("steps", steps)):
        check_length(what, values, x.rank)
    check_least("steps", steps, 1)
    for dim, (start, stop, size) in enumerate(zip(starts, stops, x.shape, strict=True)):
        if not 0 <= start <= stop <= size:
            raise ValueError(f"{start}:{stop} is not a range in dimension {dim} of size {size}")
    return x.with_shape([-((start - stop) // step) for start, stop, step in zip(starts, stops, steps, strict=True)])


def _slice_links(op: Op) -> list[DimLink]:
    sizes = op.operands[0].shape
    return [DimLink(0, dim, dim) for dim, size in enumerate(op.results[0].shape) if size == sizes[dim]]


def _sample_slice(draw: Draw) -> Sample:
    shape = draw.shape()
    starts = tuple(0 if draw.bool(0.4) else draw.int(0, size) for size in shape)
    stops = tuple(size if draw.bool(0.4) else draw.int(start, size) for start, size in zip(starts, shape, strict=True))
    steps = tuple(1 if draw.bool(0.6) else draw.int(1, 5) for _ in shape)
    return Sample((draw.tensor(draw.choice(ALL), shape),), {"starts": starts, "stops": stops, "steps": steps})


define(
    OpDef(
        name="slice",
        doc="Elements start, start + step, ... below stop of every dimension; 0 <= start <= stop <= size.",
        operands=operands("x"),
        attrs={"starts": Attr("ints"), "stops": Attr("ints"), "steps": Attr("ints")},
        infer=_infer_slice,
        reference=lambda x, *, starts, stops, steps: x[tuple(map(slice, starts, stops, steps))],
        sample=_sample_slice,
        flops=no_flops,
        dim_links=_slice_links,
    )
)


def _infer_concat(*types: TensorType, axis: int) -> TensorType:
    if not types:
        raise ValueError("nothing to concatenate")
    check_same_dtype(types)
    first = types[0]
    check_axis(axis, first.rank)
    for type in types:
        if type.rank != first.rank or any(
            a != b for dim, (a, b) in enumerate(zip(type.shape, first.shape, strict=True)) if dim != axis
        ):
            raise ValueError(f"shapes must agree in every dimension but {axis}")
    shape = list(first.shape)
    shape[axis] = sum(type.shape[axis] for type in types)
    return first.with_shape(shape)


def _sample_concat(draw: Draw) -> Sample:
    dtype, shape = draw.choice(ALL), draw.shape(1)
    axis = draw.int(0, len(shape) - 1)
    parts = []
    for _ in range(draw.int(1, 4)):
        own = list(shape)
        own[axis] = draw.choice([shape[axis], 0, 1, draw.size(9)])
        parts.append(draw.tensor(dtype, own))
    return Sample(tuple(parts), {"axis": axis})


def _concat_links(op: Op) -> list[DimLink]:
    rank, axis = op.results[0].type.rank, op.attrs["axis"]
    return [DimLink(i, dim, dim) for i in range(len(op.operands)) for dim in range(rank) if dim != axis]


define(
    OpDef(
        name="concat",
        doc="The operands one after another along `axis`.",
        operands=operands("xs*"),
        attrs={"axis": Attr("int")},
        infer=_infer_concat,
        reference=lambda *xs, axis: np.concatenate(xs, axis),
        sample=_sample_concat,
        flops=no_flops,
        dim_links=_concat_links,
    )
)


# pad ----------------------------------------------------------------------------------------------


def _infer_pad(x: TensorType, *, low: Ints, high: Ints, interior: Ints, mode: str, value: float) -> TensorType:
    for what, values in (("low", low), ("high", high), ("interior", interior)):
        check_length(what, values, x.rank)
        check_least(what, values, 0)
    if mode != "constant":
        if any(interior):
            raise ValueError("interior padding needs mode 'constant'")
        for dim, size in enumerate(x.shape):
            most = {"reflect": size - 1, "wrap": size, "edge": max(low[dim], high[dim]) if size else 0}[mode]
            if max(low[dim], high[dim]) > max(most, 0):
                raise ValueError(f"mode {mode!r} can add at most {max(most, 0)} to dimension {dim} of size {size}")
    elif not x.dtype.is_float and value != np.asarray(value).astype(x.dtype.numpy):
        raise ValueError(f"value {value} is not representable in {x.dtype}")
    spread = [size + max(size - 1, 0) * gap for size, gap in zip(x.shape, interior, strict=True)]
    return x.with_shape([a + size + b for a, size, b in zip(low, spread, high, strict=True)])


def pad_indices(size: int, low: int, high: int, mode: str) -> np.ndarray:
    """Which element each position of a padded dimension shows, for the modes other than constant."""
    at = np.arange(-low, size + high)
    if mode == "reflect":
        at = np.abs(at)
        return np.asarray(np.where(at >= size, 2 * (size - 1) - at, at))
    return np.asarray(at % size if mode == "wrap" and size else np.clip(at, 0, max(size - 1, 0)))


def _pad(x: np.ndarray, *, low: Ints, high: Ints, interior: Ints, mode: str, value: float) -> np.ndarray:
    if mode != "constant":
        for axis, size in enumerate(x.shape):
            x = np.take(x, pad_indices(size, low[axis], high[axis], mode), axis)
        return x
    shape = _infer_pad(TensorType.of(x), low=low, high=high, interior=interior, mode=mode, value=value).shape
    result = np.full(shape, value, x.dtype)
    place = tuple(
        slice(a, a + size + max(size - 1, 0) * gap, gap + 1)
        for a, size, gap in zip(low, x.shape, interior, strict=True)
    )
    result[place] = x
    return result


def _pad_links(op: Op) -> list[DimLink]:
    attrs = op.attrs
    touched = [
        d for d, entry in enumerate(zip(attrs["low"], attrs["high"], attrs["interior"], strict=True)) if any(entry)
    ]
    return identity_links(op, without=touched)


def _decompose_pad(b: Builder, op: Op) -> list[Value] | None:
    """A mode other than constant is a gather by fixed indices along each padded axis."""
    x, attrs = op.operands[0], op.attrs
    if attrs["mode"] == "constant":
        return None
    for axis, size in enumerate(x.shape):
        if attrs["low"][axis] or attrs["high"][axis]:
            at = pad_indices(size, attrs["low"][axis], attrs["high"][axis], attrs["mode"])
            x = b.gather(x, b.constant(at, DType.I64), axis=axis)
    return [x]


def _sample_pad(draw: Draw) -> Sample:
    dtype, shape = draw.choice(ALL), draw.shape(numel=512)
    mode = draw.choice(["constant", "constant", "reflect", "edge", "wrap"])
    most = [{"reflect": size - 1, "wrap": size, "edge": 3 if size else 0, "constant": 3}[mode] for size in shape]
    low, high = (tuple(draw.int(0, max(0, min(m, 4))) if draw.bool(0.6) else 0 for m in most) for _ in range(2))
    interior = tuple(draw.int(0, 2) if mode == "constant" and draw.bool(0.3) else 0 for _ in shape)
    value = float(draw.int(0, 1)) if dtype is DType.BOOL else draw.choice([0.0, 0.0, 3.0, 1.0])
    if dtype.is_float and draw.bool(0.3):
        value = draw.choice([float("-inf"), float("inf"), 0.1])
    attrs = {"low": low, "high": high, "interior": interior, "mode": mode, "value": value}
    return Sample((draw.tensor(dtype, shape),), attrs)


define(
    OpDef(
        name="pad",
        doc="x with `low` elements in front, `high` behind and `interior` between neighbours, for every dimension. "
        "Mode constant fills with `value`; reflect, edge and wrap continue the dimension and know no interior.",
        operands=operands("x"),
        attrs={
            "low": Attr("ints"),
            "high": Attr("ints"),
            "interior": Attr("ints"),
            "mode": Attr("str", "constant", ("constant", "reflect", "edge", "wrap")),
            "value": Attr("float", 0.0),
        },
        infer=_infer_pad,
        reference=_pad,
        sample=_sample_pad,
        flops=no_flops,
        dim_links=_pad_links,
        decompose=_decompose_pad,
    )
)
