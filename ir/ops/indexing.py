"""Reading and writing at computed positions.

Everywhere a negative index counts from the end, and what is then still outside is clamped into the
dimension, so that no index reads or writes foreign memory. Where several updates of a scatter meet
at one place, reduction "none" keeps the last of them in row-major order of the indices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.ir.draw import Draw, Sample
from secateur.ir.graph import Op, Value
from secateur.ir.opdef import Attr, DimLink, OpDef, define, operands
from secateur.ir.ops._common import (
    INDEX,
    build_wrap_clamp,
    check_axis,
    check_same_dtype,
    draw_axis,
    draw_indices,
    scalar,
    wide,
    wrap_clamp,
)
from secateur.ir.types import ALL, NUMERIC, DType, TensorType, numel

if TYPE_CHECKING:
    from secateur.ir.builder import Builder

Ints = tuple[int, ...]
REDUCTIONS = ("none", "add", "mul", "max", "min")


def no_flops(op: Op) -> int:
    return 0


def _gathered(op: Op) -> int:
    """Bytes a gather moves: of its data only what it picks."""
    return 2 * op.results[0].type.bytes + op.operands[1].type.bytes


def _check_not_empty(size: int, result: Ints) -> None:
    if size == 0 and numel(result) > 0:
        raise ValueError("cannot index into a dimension of size 0")


# gather -------------------------------------------------------------------------------------------


def _infer_gather(x: TensorType, indices: TensorType, *, axis: int) -> TensorType:
    check_axis(axis, x.rank)
    shape = x.shape[:axis] + indices.shape + x.shape[axis + 1 :]
    _check_not_empty(x.shape[axis], shape)
    return x.with_shape(shape)


def _gather(x: np.ndarray, indices: np.ndarray, *, axis: int) -> np.ndarray:
    if x.shape[axis] == 0:
        return np.empty(x.shape[:axis] + indices.shape + x.shape[axis + 1 :], x.dtype)
    return np.take(x, wrap_clamp(indices, x.shape[axis]), axis)


def _gather_links(op: Op) -> list[DimLink]:
    axis, (x, indices) = op.attrs["axis"], op.operands
    links = [DimLink(0, dim, dim) for dim in range(axis)]
    links += [DimLink(1, dim, dim + axis) for dim in range(indices.type.rank)]
    return links + [DimLink(0, dim, dim - 1 + indices.type.rank) for dim in range(axis + 1, x.type.rank)]


def _sample_gather(draw: Draw) -> Sample:
    shape = draw.shape(1, 3, numel=256, empty=False)
    axis = draw_axis(draw, len(shape))
    indices = draw_indices(draw, draw.shape(0, 2, numel=16), shape[axis])
    return Sample((draw.tensor(draw.choice(ALL), shape), indices), {"axis": axis})


define(
    OpDef(
        name="gather",
        doc="Slices of x along `axis` at `indices`: x.shape[:axis] + indices.shape + x.shape[axis + 1:].",
        operands=operands("x indices", indices=INDEX),
        attrs={"axis": Attr("int")},
        infer=_infer_gather,
        reference=_gather,
        sample=_sample_gather,
        flops=no_flops,
        moved=_gathered,
        dim_links=_gather_links,
    )
)


# gather_elements ----------------------------------------------------------------------------------


def _check_elements(x: TensorType, indices: TensorType, axis: int) -> None:
    check_axis(axis, x.rank)
    if indices.rank != x.rank:
        raise ValueError(f"indices have rank {indices.rank}, x has rank {x.rank}")
    for dim, (size, most) in enumerate(zip(indices.shape, x.shape, strict=True)):
        if dim != axis and size > most:
            raise ValueError(f"indices have {size} entries in dimension {dim}, x has {most}")
    _check_not_empty(x.shape[axis], indices.shape)


def _infer_gather_elements(x: TensorType, indices: TensorType, *, axis: int) -> TensorType:
    _check_elements(x, indices, axis)
    return x.with_shape(indices.shape)


def _element_places(indices: np.ndarray, shape: Ints, axis: int) -> tuple[np.ndarray, ...]:
    """The index tuple of the element that every entry of `indices` points at."""
    places = list(np.ogrid[tuple(slice(size) for size in indices.shape)])
    places[axis] = wrap_clamp(indices, shape[axis])
    return tuple(places)


def _gather_elements(x: np.ndarray, indices: np.ndarray, *, axis: int) -> np.ndarray:
    if indices.size == 0:
        return np.empty(indices.shape, x.dtype)
    return np.asarray(x[_element_places(indices, x.shape, axis)])


def _aligned_dims(op: Op) -> list[int]:
    """Dimensions besides the axis in which index i only ever meets element i of x, and all of them."""
    pairs = enumerate(zip(op.operands[0].shape, op.operands[1].shape, strict=True))
    return [dim for dim, (size, count) in pairs if dim != op.attrs["axis"] and size == count]


def _elements_links(op: Op) -> list[DimLink]:
    axis = op.attrs["axis"]
    return [DimLink(1, axis, axis)] + [DimLink(p, dim, dim) for p in (0, 1) for dim in _aligned_dims(op)]


def _decompose_gather_elements(b: Builder, op: Op) -> list[Value]:
    """A gather from x laid flat, at the row-major offsets of the wanted elements."""
    (x, indices), axis = op.operands, op.attrs["axis"]
    offset = b.mul(build_wrap_clamp(b, indices, x.shape[axis]), scalar(b, numel(x.shape[axis + 1 :]), DType.I64))
    for dim, size in enumerate(indices.shape):
        if dim != axis and size > 1:
            steps = np.arange(size) * numel(x.shape[dim + 1 :])
            own = [size if d == dim else 1 for d in range(x.type.rank)]
            offset = b.add(offset, b.constant(steps.reshape(own), DType.I64))
    return [b.gather(b.reshape(x, shape=[x.type.numel]), offset, axis=0)]


def _draw_elements(draw: Draw) -> tuple[Ints, int, np.ndarray]:
    """A shape of x, an axis, and indices that fit."""
    shape = draw.shape(1, 3, numel=256, empty=False)
    axis = draw_axis(draw, len(shape))
    sizes = [draw.size(7) if d == axis else draw.choice([n, n, draw.int(0, n)]) for d, n in enumerate(shape)]
    return shape, axis, draw_indices(draw, sizes, shape[axis])


def _sample_gather_elements(draw: Draw) -> Sample:
    shape, axis, indices = _draw_elements(draw)
    return Sample((draw.tensor(draw.choice(ALL), shape), indices), {"axis": axis})


define(
    OpDef(
        name="gather_elements",
        doc="result[i, j] = x[indices[i, j], j] for axis 0, and so on: one index for each element.",
        operands=operands("x indices", indices=INDEX),
        attrs={"axis": Attr("int")},
        infer=_infer_gather_elements,
        reference=_gather_elements,
        sample=_sample_gather_elements,
        flops=no_flops,
        moved=_gathered,
        dim_links=_elements_links,
        decompose=_decompose_gather_elements,
    )
)


# gather_nd ----------------------------------------------------------------------------------------


def _infer_gather_nd(x: TensorType, indices: TensorType, *, batch_dims: int) -> TensorType:
    if not 0 <= batch_dims < max(indices.rank, 1) or indices.rank == 0:
        raise ValueError(f"batch_dims {batch_dims} must be below the rank of indices, {indices.rank}")
    depth = indices.shape[-1]
    if batch_dims + depth > x.rank:
        raise ValueError(f"{batch_dims} batch dimensions and indices of length {depth} exceed the rank of x, {x.rank}")
    if x.shape[:batch_dims] != indices.shape[:batch_dims]:
        raise ValueError(f"the first {batch_dims} dimensions must agree")
    shape = indices.shape[:-1] + x.shape[batch_dims + depth :]
    _check_not_empty(numel(x.shape[batch_dims : batch_dims + depth]), shape)
    return x.with_shape(shape)


def _nd_places(indices: np.ndarray, shape: Ints, batch_dims: int) -> tuple[np.ndarray, ...]:
    """The index tuple for the batch dimensions and the indexed ones."""
    lead = indices.shape[:-1]
    places = list(np.ogrid[tuple(slice(size) for size in lead)])[:batch_dims]
    places += [wrap_clamp(indices[..., j], shape[batch_dims + j]) for j in range(indices.shape[-1])]
    return tuple(np.broadcast_to(place, lead) for place in places)


def _gather_nd(x: np.ndarray, indices: np.ndarray, *, batch_dims: int) -> np.ndarray:
    places = _nd_places(indices, x.shape, batch_dims)
    shape = indices.shape[:-1] + x.shape[len(places) :]
    if numel(shape) == 0:
        return np.empty(shape, x.dtype)
    return np.asarray(x[places]) if places else np.broadcast_to(x, shape)


def _gather_nd_links(op: Op) -> list[DimLink]:
    (x, indices), batch = op.operands, op.attrs["batch_dims"]
    lead, used = indices.type.rank - 1, batch + indices.shape[-1]
    links = [DimLink(0, dim, dim) for dim in range(batch)] + [DimLink(1, dim, dim) for dim in range(lead)]
    return links + [DimLink(0, dim, dim - used + lead) for dim in range(used, x.type.rank)]


def nd_offset(b: Builder, indices: Value, shape: Ints, batch_dims: int) -> Value:
    """Row-major offsets of what `indices` [..., depth] point at, among the leading dimensions of `shape`: i64 [...]."""
    *lead, depth = indices.shape
    used = batch_dims + depth
    offset = b.constant(np.zeros(lead, np.int64) if 0 in lead else np.zeros([1] * len(lead), np.int64))
    for dim in range(batch_dims):
        steps = np.arange(shape[dim]) * numel(shape[dim + 1 : used])
        own = [shape[dim] if d == dim else 1 for d in range(len(lead))]
        offset = b.add(offset, b.constant(steps.reshape(own), DType.I64))
    for j in range(depth):
        starts, stops = [0] * len(lead) + [j], [*lead, j + 1]
        at = b.reshape(b.slice(indices, starts=starts, stops=stops, steps=[1] * len(stops)), shape=lead)
        step = numel(shape[batch_dims + j + 1 : used])
        at = b.mul(build_wrap_clamp(b, at, shape[batch_dims + j]), scalar(b, step, DType.I64))
        offset = b.add(offset, at)
    return b.broadcast_to(offset, shape=lead)


def _decompose_gather_nd(b: Builder, op: Op) -> list[Value]:
    """A gather from x with its indexed dimensions merged into one."""
    (x, indices), batch = op.operands, op.attrs["batch_dims"]
    used = batch + indices.shape[-1]
    flat = b.reshape(x, shape=[numel(x.shape[:used]), *x.shape[used:]])
    return [b.gather(flat, nd_offset(b, indices, x.shape, batch), axis=0)]


def _draw_nd(draw: Draw, batch: int) -> tuple[Ints, np.ndarray]:
    """A shape of x and indices into it."""
    shape = draw.shape(max(batch, 1), 4, numel=256, empty=False)
    depth = draw.int(0 if draw.bool(0.1) else min(1, len(shape) - batch), len(shape) - batch)
    lead = shape[:batch] + draw.shape(0, 2, numel=9)
    dtype = draw.choice(INDEX)
    columns = [draw_indices(draw, lead, shape[batch + j]).astype(dtype.numpy) for j in range(depth)]
    return shape, np.stack(columns, -1) if depth else np.zeros((*lead, 0), dtype.numpy)


def _sample_gather_nd(draw: Draw) -> Sample:
    batch = draw.choice([0, 0, 1, 2])
    shape, indices = _draw_nd(draw, batch)
    return Sample((draw.tensor(draw.choice(ALL), shape), indices), {"batch_dims": batch})


define(
    OpDef(
        name="gather_nd",
        doc="x at index vectors: the last dimension of indices, of size d, indexes the d dimensions of x "
        "behind `batch_dims` shared ones.",
        operands=operands("x indices", indices=INDEX),
        attrs={"batch_dims": Attr("int", 0)},
        infer=_infer_gather_nd,
        reference=_gather_nd,
        sample=_sample_gather_nd,
        flops=no_flops,
        moved=_gathered,
        dim_links=_gather_nd_links,
        decompose=_decompose_gather_nd,
    )
)


# scatter ------------------------------------------------------------------------------------------

_UFUNCS: dict[str, np.ufunc] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scatter(x: np.ndarray, places: tuple[Any, ...], updates: np.ndarray, reduction: str) -> np.ndarray:
    if updates.size == 0:
        return x
    result = wide(x).copy()
    if not places:
        places = (...,)
    if reduction == "none":
        result[places] = wide(updates)
    else:
        _UFUNCS[reduction].at(result, places, wide(updates))
    return result.astype(x.dtype)


def _check_reduction(x: TensorType, reduction: str) -> None:
    if x.dtype is DType.BOOL and reduction != "none":
        raise ValueError(f"reduction {reduction!r} of bool; cast to an integer type")


def _infer_scatter_elements(
    x: TensorType, indices: TensorType, updates: TensorType, *, axis: int, reduction: str
) -> TensorType:
    check_same_dtype([x, updates])
    _check_elements(x, indices, axis)
    _check_reduction(x, reduction)
    if updates.shape != indices.shape:
        raise ValueError(f"updates have shape {list(updates.shape)}, indices {list(indices.shape)}")
    return x


def _scatter_elements(
    x: np.ndarray, indices: np.ndarray, updates: np.ndarray, *, axis: int, reduction: str
) -> np.ndarray:
    return _scatter(x, _element_places(indices, x.shape, axis), updates, reduction)


def _scatter_elements_links(op: Op) -> list[DimLink]:
    return [DimLink(position, dim, dim) for position in range(3) for dim in _aligned_dims(op)]


def _sample_scatter_elements(draw: Draw) -> Sample:
    shape, axis, indices = _draw_elements(draw)
    reduction = draw.choice(REDUCTIONS)
    if reduction == "none":  # which of several updates stays is our rule only: draw none that meet
        sizes = [min(n, shape[axis]) if d == axis else n for d, n in enumerate(indices.shape)]
        order = np.argsort(draw.rng.random([n if d != axis else shape[axis] for d, n in enumerate(sizes)]), axis)
        indices = np.take(order, range(sizes[axis]), axis).astype(indices.dtype)
    dtype = draw.choice(ALL if reduction == "none" else NUMERIC)
    arrays = draw.tensor(dtype, shape), indices, draw.tensor(dtype, indices.shape)
    return Sample(arrays, {"axis": axis, "reduction": reduction})


define(
    OpDef(
        name="scatter_elements",
        doc="x with x[indices[i, j], j] replaced by, or reduced with, updates[i, j] for axis 0, and so on.",
        operands=operands("x indices updates", indices=INDEX),
        attrs={"axis": Attr("int"), "reduction": Attr("str", "none", REDUCTIONS)},
        infer=_infer_scatter_elements,
        reference=_scatter_elements,
        sample=_sample_scatter_elements,
        flops=lambda op: op.operands[2].type.numel if op.attrs["reduction"] != "none" else 0,
        dim_links=_scatter_elements_links,
    )
)


def _infer_scatter_nd(x: TensorType, indices: TensorType, updates: TensorType, *, reduction: str) -> TensorType:
    check_same_dtype([x, updates])
    _check_reduction(x, reduction)
    wanted = _infer_gather_nd(x, indices, batch_dims=0).shape
    if updates.shape != wanted:
        raise ValueError(f"updates have shape {list(updates.shape)}, x at the indices {list(wanted)}")
    return x


def _scatter_nd(x: np.ndarray, indices: np.ndarray, updates: np.ndarray, *, reduction: str) -> np.ndarray:
    if indices.shape[-1] == 0:  # every index vector means all of x
        for update in updates.reshape(-1, *x.shape):
            x = _scatter(x, (), update, reduction)
        return x
    return _scatter(x, _nd_places(indices, x.shape, 0), updates, reduction)


def _scatter_nd_links(op: Op) -> list[DimLink]:
    x, indices, updates = op.operands
    used, shift = indices.shape[-1], updates.type.rank - x.type.rank
    links = [DimLink(0, dim, dim) for dim in range(used, x.type.rank)]
    return links + [DimLink(2, dim + shift, dim) for dim in range(used, x.type.rank)]


def _sample_scatter_nd(draw: Draw) -> Sample:
    shape, indices = _draw_nd(draw, 0)
    reduction = draw.choice(REDUCTIONS)
    depth = indices.shape[-1]
    if reduction == "none":
        count = draw.int(0, min(numel(shape[:depth]), 5))
        flat = draw.rng.permutation(numel(shape[:depth]))[:count]
        columns = np.unravel_index(flat, shape[:depth]) if depth else []
        indices = np.stack(columns, -1).astype(indices.dtype) if depth else np.zeros((count, 0), indices.dtype)
    dtype = draw.choice(ALL if reduction == "none" else NUMERIC)
    updates = draw.tensor(dtype, indices.shape[:-1] + shape[depth:])
    return Sample((draw.tensor(dtype, shape), indices, updates), {"reduction": reduction})


define(
    OpDef(
        name="scatter_nd",
        doc="x with what gather_nd would read at `indices` replaced by, or reduced with, `updates`.",
        operands=operands("x indices updates", indices=INDEX),
        attrs={"reduction": Attr("str", "none", REDUCTIONS)},
        infer=_infer_scatter_nd,
        reference=_scatter_nd,
        sample=_sample_scatter_nd,
        flops=lambda op: op.operands[2].type.numel if op.attrs["reduction"] != "none" else 0,
        dim_links=_scatter_nd_links,
    )
)
