"""Views, movement of data, and tensors made from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from secateur.frontends.aten.base import Context, Number, Unsupported, array_of, aten, axes_of, axis_of, spread
from secateur.ir.graph import Value
from secateur.ir.types import DType

# Views --------------------------------------------------------------------------------------------


@aten("view", "reshape", "_unsafe_view", "_reshape_alias", "view_copy", "view_as", "reshape_as")
@aten("unsqueeze", "unsqueeze_copy", "squeeze", "squeeze.dim", "squeeze.dims", "squeeze_copy.dims")
@aten("flatten.using_ints", "unflatten.int", "ravel", "atleast_1d", "atleast_2d")
def view(cx: Context, x: Value, *_: Any) -> Any:
    return cx.reshape(x, cx.shape)


@aten("expand", "expand_as", "expand_copy", "broadcast_to")
def expand(cx: Context, x: Value, *_: Any) -> Any:
    return cx.broadcast(x, cx.shape)


@aten("permute", "permute_copy")
def permute(cx: Context, x: Value, dims: Sequence[int]) -> Any:
    return cx.transpose(x, [axis_of(dim, x.type.rank) for dim in dims])


@aten("transpose.int", "transpose_copy.int", "swapaxes", "swapdims")
def transpose(cx: Context, x: Value, first: int, second: int) -> Any:
    if x.type.rank == 0:
        return x
    perm = list(range(x.type.rank))
    perm[first], perm[second] = perm[second], perm[first]
    return cx.transpose(x, perm)


@aten("t", "numpy_T", "mT", "t_copy")
def reverse_dims(cx: Context, x: Value) -> Any:
    rank = x.type.rank
    if cx.overload.startswith("mT"):
        return transpose(cx, x, -2, -1)
    return cx.transpose(x, list(range(rank))[::-1])


# Cutting and joining ------------------------------------------------------------------------------


def _bounds(start: int | None, stop: int | None, size: int) -> tuple[int, int]:
    first, last, _ = slice(start, stop).indices(size)
    return first, max(first, last)


@aten("slice.Tensor", "slice_copy.Tensor")
def slice_tensor(
    cx: Context, x: Value, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1
) -> Any:
    axis = axis_of(dim, x.type.rank)
    return cx.slice(x, axis, *_bounds(start, stop, x.shape[axis]), step)


@aten("narrow")
def narrow(cx: Context, x: Value, dim: int, start: int, length: int) -> Any:
    axis = axis_of(dim, x.type.rank)
    return cx.slice(x, axis, start % max(x.shape[axis], 1), start % max(x.shape[axis], 1) + length)


@aten("select.int", "select_copy.int")
def select(cx: Context, x: Value, dim: int, index: int) -> Any:
    axis = axis_of(dim, x.type.rank)
    index %= x.shape[axis]
    return cx.reshape(cx.slice(x, axis, index, index + 1), cx.shape)


@aten("slice_scatter")
def slice_scatter(
    cx: Context, x: Value, source: Value, dim: int, start: int | None, stop: int | None, step: int
) -> Any:
    axis = axis_of(dim, x.type.rank)
    first, last = _bounds(start, stop, x.shape[axis])
    if step == 1:
        pieces = [cx.slice(x, axis, 0, first), source, cx.slice(x, axis, last, x.shape[axis])]
        return cx.concat(pieces, axis)
    rows = np.arange(first, last, step).reshape([-1 if d == axis else 1 for d in range(x.type.rank)])
    index = cx.broadcast(cx.b.constant(rows), source.shape)
    return cx.b.scatter_elements(x, index, source, axis=axis, reduction="none")


@aten("select_scatter")
def select_scatter(cx: Context, x: Value, source: Value, dim: int, index: int) -> Any:
    axis = axis_of(dim, x.type.rank)
    index %= x.shape[axis]
    one = cx.reshape(source, [1 if d == axis else size for d, size in enumerate(x.shape)])
    return slice_scatter(cx, x, one, axis, index, index + 1, 1)


@aten("cat", "concat", "concatenate")
def cat(cx: Context, parts: Sequence[Value], dim: int = 0) -> Any:
    rank = len(cx.shape)
    # PyTorch lets a tensor of shape [0] join anything.
    kept = [cx.cast(part, cx.dtype) for part in parts if part.type.rank == rank]
    return cx.concat(kept, axis_of(dim, rank))


@aten("stack")
def stack(cx: Context, parts: Sequence[Value], dim: int = 0) -> Any:
    axis = axis_of(dim, len(cx.shape))
    one = [1 if d == axis else size for d, size in enumerate(cx.shape)]
    return cx.concat([cx.reshape(cx.cast(part, cx.dtype), one) for part in parts], axis)


@aten("split.Tensor", "split.sizes", "split_with_sizes", "split_with_sizes_copy", "chunk", "unsafe_chunk")
@aten("unsafe_split.Tensor", "split_copy.Tensor", "tensor_split.sections", "tensor_split.indices")
def split(cx: Context, x: Value, _: Any, dim: int = 0) -> Any:
    axis, start, parts = axis_of(dim, x.type.rank), 0, []
    for part in cx.out:
        parts.append(cx.slice(x, axis, start, start + part.shape[axis]))
        start += part.shape[axis]
    return parts


@aten("unbind.int", "unbind_copy.int")
def unbind(cx: Context, x: Value, dim: int = 0) -> Any:
    axis = axis_of(dim, x.type.rank)
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    return [cx.reshape(cx.slice(x, axis, i, i + 1), shape) for i in range(x.shape[axis])]


@aten("flip")
def flip(cx: Context, x: Value, dims: Sequence[int]) -> Any:
    return cx.b.flip(x, axes=axes_of(dims, x.type.rank)) if dims else x


@aten("roll")
def roll(cx: Context, x: Value, shifts: int | Sequence[int], dims: int | Sequence[int] = ()) -> Any:
    if not isinstance(dims, int) and len(dims) == 0:
        flat = cx.reshape(x, (x.type.numel,))
        return cx.reshape(roll(cx, flat, shifts, 0), x.shape)
    amounts, axes = spread(shifts, 1), spread(dims, 1)
    for amount, dim in zip(amounts, axes, strict=True):
        axis = axis_of(dim, x.type.rank)
        size = x.shape[axis]
        cut = -amount % size if size else 0
        if cut:
            x = cx.concat([cx.slice(x, axis, cut, size), cx.slice(x, axis, 0, cut)], axis)
    return x


@aten("repeat", "tile")
def repeat(cx: Context, x: Value, repeats: Sequence[int]) -> Any:
    rank = max(len(repeats), x.type.rank)
    shape = (1,) * (rank - x.type.rank) + x.shape
    times = (1,) * (rank - len(repeats)) + tuple(repeats)
    # [a, b] repeated (m, n) times is [1, a, 1, b] stretched to [m, a, n, b].
    wide = cx.reshape(x, [size for dim in shape for size in (1, dim)])
    wide = cx.broadcast(wide, [size for pair in zip(times, shape, strict=True) for size in pair])
    return cx.reshape(wide, cx.shape)


@aten("repeat_interleave.self_int")
def repeat_interleave(cx: Context, x: Value, times: int, dim: int | None, _: Any = None) -> Any:
    if dim is None:
        x, dim = cx.reshape(x, (x.type.numel,)), 0
    axis = axis_of(dim, x.type.rank)
    before, after = x.shape[: axis + 1], x.shape[axis + 1 :]
    wide = cx.broadcast(cx.reshape(x, (*before, 1, *after)), (*before, times, *after))
    return cx.reshape(wide, cx.shape)


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@aten("pad")
def pad(cx: Context, x: Value, amounts: Sequence[int], mode: str = "constant", value: Number | None = None) -> Any:
    """`amounts` goes from the last dimension backwards, (low, high) each; negative ones crop."""
    rank = x.type.rank
    low, high = [0] * rank, [0] * rank
    for i in range(len(amounts) // 2):
        low[rank - 1 - i], high[rank - 1 - i] = amounts[2 * i], amounts[2 * i + 1]
    for axis in range(rank):
        x = cx.slice(x, axis, max(0, -low[axis]), x.shape[axis] - max(0, -high[axis]))
    low, high = [max(0, n) for n in low], [max(0, n) for n in high]
    if not any(low) and not any(high):
        return x
    settings: dict[str, Any] = {"low": tuple(low), "high": tuple(high), "interior": (0,) * rank}
    return cx.b.pad(x, **settings, mode=_PAD_MODES[mode], value=float(value or 0))


@aten("constant_pad_nd")
def constant_pad(cx: Context, x: Value, amounts: Sequence[int], value: Number = 0) -> Any:
    return pad(cx, x, amounts, "constant", value)


@aten("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
def reflection_pad(cx: Context, x: Value, amounts: Sequence[int]) -> Any:
    return pad(cx, x, amounts, "reflect")


@aten("replication_pad1d", "replication_pad2d", "replication_pad3d")
def replication_pad(cx: Context, x: Value, amounts: Sequence[int]) -> Any:
    return pad(cx, x, amounts, "replicate")


@aten("pixel_shuffle")
def pixel_shuffle(cx: Context, x: Value, factor: int) -> Any:
    *lead, channels, height, width = x.shape
    n = len(lead)
    x = cx.reshape(x, (*lead, channels // factor**2, factor, factor, height, width))
    x = cx.transpose(x, (*range(n), n, n + 3, n + 1, n + 4, n + 2))
    return cx.reshape(x, cx.shape)


@aten("pixel_unshuffle")
def pixel_unshuffle(cx: Context, x: Value, factor: int) -> Any:
    *lead, channels, height, width = x.shape
    n = len(lead)
    x = cx.reshape(x, (*lead, channels, height // factor, factor, width // factor, factor))
    x = cx.transpose(x, (*range(n), n, n + 2, n + 4, n + 1, n + 3))
    return cx.reshape(x, cx.shape)


@aten("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(cx: Context, x: Value, groups: int) -> Any:
    batch, channels, *space = x.shape
    x = cx.reshape(x, (batch, groups, channels // groups, *space))
    return cx.reshape(cx.transpose(x, (0, 2, 1, *range(3, x.type.rank))), cx.shape)


@aten("unfold")
def unfold(cx: Context, x: Value, dim: int, size: int, step: int) -> Any:
    """Windows along `dim`; the window itself becomes the last dimension."""
    axis = axis_of(dim, x.type.rank)
    count = cx.shape[axis]
    index = np.arange(count)[:, None] * step + np.arange(size)
    windows = cx.b.gather(x, cx.b.constant(index), axis=axis)
    order = [d for d in range(windows.type.rank) if d != axis + 1]
    return cx.transpose(windows, [*order, axis + 1])


@aten("diagonal", "diagonal_copy")
def diagonal(cx: Context, x: Value, offset: int = 0, first: int = 0, second: int = 1) -> Any:
    rank = x.type.rank
    pair = (axis_of(first, rank), axis_of(second, rank))
    rest = [dim for dim in range(rank) if dim not in pair]
    steps = np.arange(cx.shape[-1])
    index = np.stack([steps + max(0, -offset), steps + max(0, offset)], axis=-1)
    picked = cx.b.gather_nd(cx.transpose(x, [*pair, *rest]), cx.b.constant(index), batch_dims=0)
    return cx.transpose(picked, [*range(1, rank - 1), 0])


@aten("tril", "triu")
def triangle(cx: Context, x: Value, diagonal: int = 0) -> Any:
    keep = np.tri(
        x.shape[-2], x.shape[-1], k=diagonal if cx.overload.startswith("tril") else diagonal - 1, dtype=np.bool_
    )
    if cx.overload.startswith("triu"):
        keep = ~keep
    return cx.b.where(cx.b.constant(keep), x, cx.value(0, x.type.dtype))


# Tensors made from nothing ------------------------------------------------------------------------


def _filled(cx: Context, value: Number) -> Value:
    """One element, stretched: the weights file need not carry it."""
    return cx.broadcast(cx.b.constant(value, cx.dtype), cx.shape)


@aten("zeros", "zeros_like", "new_zeros", "zero")
def zeros(cx: Context, *_: Any) -> Any:
    return _filled(cx, 0)


@aten("ones", "ones_like", "new_ones")
def ones(cx: Context, *_: Any) -> Any:
    return _filled(cx, 1)


@aten("empty.memory_format", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted")
def empty(cx: Context, *_: Any) -> Any:
    return _filled(cx, 0)


@aten("full", "full_like", "new_full")
def full(cx: Context, _: Any, *rest: Any) -> Any:
    value = rest[1] if cx.overload.startswith("new") else rest[0]
    return _filled(cx, value)


@aten("fill.Scalar", "fill.Tensor")
def fill(cx: Context, x: Value, value: Value | Number) -> Any:
    return cx.broadcast(cx.value(value, x.type.dtype), x.shape)


@aten("scalar_tensor")
def scalar_tensor(cx: Context, value: Number, *_: Any) -> Any:
    return _filled(cx, value)


@aten("arange", "arange.start", "arange.start_step")
def arange(cx: Context, *args: Any) -> Any:
    count = {"default": 1, "start": 2, "start_step": 3}[cx.overload.split(".")[1]]
    return _computed(cx, lambda: torch.arange(*args[:count], dtype=cx.out.dtype))


@aten("linspace")
def linspace(cx: Context, start: Number, end: Number, steps: int, *_: Any) -> Any:
    return _computed(cx, lambda: torch.linspace(start, end, steps, dtype=cx.out.dtype))


@aten("eye", "eye.m")
def eye(cx: Context, *_: Any) -> Any:
    return cx.b.constant(np.eye(cx.shape[0], cx.shape[1]), cx.dtype)


@aten("tril_indices", "triu_indices")
def triangle_indices(cx: Context, rows: int, columns: int, offset: int = 0, *_: Any) -> Any:
    function = torch.tril_indices if cx.overload.startswith("tril") else torch.triu_indices
    return _computed(cx, lambda: function(rows, columns, offset, dtype=cx.out.dtype))


def _computed(cx: Context, compute: Any) -> Value:
    """A constant as PyTorch itself computes it, to the last bit."""
    with torch.no_grad():
        return cx.b.constant(array_of(compute()))


@aten("one_hot")
def one_hot(cx: Context, x: Value, classes: int = -1) -> Any:
    if classes < 0:
        raise Unsupported("without num_classes: the shape would depend on data")
    hot = cx.b.eq(cx.reshape(x, (*x.shape, 1)), cx.b.constant(np.arange(classes), x.type.dtype))
    return cx.cast(hot, DType.I64)
