"""Embedding, gathering and scattering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from secateur.frontends.aten.base import Context, Number, Unsupported, aten, axis_of
from secateur.ir.graph import Value
from secateur.ir.types import DType


@aten("embedding")
def embedding(cx: Context, weight: Value, indices: Value, *_: Any) -> Any:
    return cx.b.gather(weight, indices, axis=0)


@aten("index_select")
def index_select(cx: Context, x: Value, dim: int, index: Value) -> Any:
    if x.type.rank == 0:
        return x
    return cx.b.gather(x, cx.reshape(index, (index.type.numel,)), axis=axis_of(dim, x.type.rank))


@aten("gather")
def gather(cx: Context, x: Value, dim: int, index: Value, _: bool = False) -> Any:
    """PyTorch lets `index` be smaller than `x` in the other dimensions; the op of the IR does not need to."""
    if x.type.rank == 0:
        return x
    axis = axis_of(dim, x.type.rank)
    for other in range(x.type.rank):
        if other != axis:
            x = cx.slice(x, other, 0, min(index.shape[other], x.shape[other]))
    return cx.b.gather_elements(x, index, axis=axis)


@aten("take")
def take(cx: Context, x: Value, index: Value) -> Any:
    return cx.b.gather(cx.reshape(x, (x.type.numel,)), index, axis=0)


def _placed(indices: Sequence[Value | None]) -> list[tuple[int, Value]]:
    """(dimension, index tensor) of every index that is given."""
    placed = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if any(index.type.dtype in (DType.BOOL, DType.U8) for _, index in placed):
        raise Unsupported("with a mask: the shape of the result depends on data")
    return placed


def _stacked(cx: Context, placed: Sequence[tuple[int, Value]]) -> tuple[Value, tuple[int, ...]]:
    """The index tensors broadcast and stacked along a new last dimension, and their common shape."""
    common = tuple(np.broadcast_shapes(*(index.shape for _, index in placed)))
    parts = [cx.reshape(cx.broadcast(cx.cast(index, DType.I64), common), (*common, 1)) for _, index in placed]
    return cx.concat(parts, len(common)), common


@aten("index.Tensor", "_unsafe_index.Tensor")
def index(cx: Context, x: Value, indices: Sequence[Value | None]) -> Any:
    placed = _placed(indices)
    dims = [dim for dim, _ in placed]
    if len(placed) == 1:
        return cx.b.gather(x, placed[0][1], axis=dims[0])
    rest = [dim for dim in range(x.type.rank) if dim not in dims]
    index, common = _stacked(cx, placed)
    result = cx.b.gather_nd(cx.transpose(x, [*dims, *rest]), index, batch_dims=0)
    # Neighbouring index tensors put their dimensions in their own place, others in front.
    if dims == list(range(dims[0], dims[-1] + 1)):
        n, before = len(common), dims[0]
        result = cx.transpose(result, [*range(n, n + before), *range(n), *range(n + before, result.type.rank)])
    return result


@aten("index_put", "_unsafe_index_put")
def index_put(cx: Context, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False) -> Any:
    if len(indices) == 1 and indices[0] is not None and indices[0].type.dtype is DType.BOOL:
        return _masked_put(cx, x, indices[0], values, accumulate)
    placed = _placed(indices)
    dims = [dim for dim, _ in placed]
    rest = [dim for dim in range(x.type.rank) if dim not in dims]
    if dims != list(range(len(dims))):
        raise Unsupported("with a full slice before an index tensor")
    index, common = _stacked(cx, placed)
    updates = cx.broadcast(cx.cast(values, x.type.dtype), (*common, *(x.shape[dim] for dim in rest)))
    return cx.b.scatter_nd(x, index, updates, reduction="add" if accumulate else "none")


def _masked_put(cx: Context, x: Value, mask: Value, values: Value, accumulate: bool) -> Value:
    """x[mask] = number."""
    if values.type.numel != 1 or accumulate:
        raise Unsupported("with a mask and more than one value")
    wide = cx.reshape(mask, mask.shape + (1,) * (x.type.rank - mask.type.rank))
    result: Value = cx.b.where(wide, cx.cast(cx.reshape(values, ()), x.type.dtype), x)
    return result


@aten("scatter.src", "scatter.value", "scatter_add", "scatter.reduce")
def scatter(cx: Context, x: Value, dim: int, index: Value, source: Value | Number, reduce: str = "none") -> Any:
    axis = axis_of(dim, x.type.rank)
    if cx.overload.startswith("scatter_add"):
        reduce = "add"
    updates = _updates(cx, x, index, source)
    reduction = {"none": "none", "add": "add", "multiply": "mul"}[reduce]
    return cx.b.scatter_elements(x, index, updates, axis=axis, reduction=reduction)


@aten("scatter_reduce.two")
def scatter_reduce(
    cx: Context, x: Value, dim: int, index: Value, source: Value, reduce: str, include_self: bool = True
) -> Any:
    names = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min"}
    if reduce not in names or not include_self:
        raise Unsupported("mean, or without the tensor itself")
    updates = _updates(cx, x, index, source)
    return cx.b.scatter_elements(x, index, updates, axis=axis_of(dim, x.type.rank), reduction=names[reduce])


def _updates(cx: Context, x: Value, index: Value, source: Value | Number) -> Value:
    """The updates in the shape of `index`; PyTorch ignores what lies beyond it."""
    updates = cx.value(source, x.type.dtype)
    if not isinstance(source, Value):
        return cx.broadcast(updates, index.shape)
    for dim, size in enumerate(index.shape):
        updates = cx.slice(updates, dim, 0, size)
    return updates


@aten("_local_scalar_dense", "item", "nonzero", "nonzero_numpy", "masked_select", "_unique2", "unique_dim")
@aten("nonzero_static", "unique_consecutive", "repeat_interleave.Tensor")
def data_dependent(cx: Context, *_: Any) -> Any:
    raise Unsupported("a shape or a Python number would depend on data")
