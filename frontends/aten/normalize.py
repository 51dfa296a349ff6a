"""Normalisation, pooling and resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from secateur.frontends.aten.base import Context, Number, Unsupported, aten, spread
from secateur.ir.graph import Value

# Normalisation ------------------------------------------------------------------------------------


@aten("layer_norm", "native_layer_norm")
def layer_norm(
    cx: Context, x: Value, shape: Sequence[int], weight: Value | None, bias: Value | None, eps: float, _: Any = None
) -> Any:
    if bias is not None and weight is None:
        weight = cx.broadcast(cx.value(1.0, x.type.dtype), tuple(shape))
    operands = [item for item in (x, weight, bias) if item is not None]
    result = cx.b.layer_norm(*operands, dims=len(shape), eps=eps)
    return (result, None, None) if cx.overload.startswith("native") else result


@aten("rms_norm", "_fused_rms_norm")
def rms_norm(
    cx: Context, x: Value, shape: Sequence[int], weight: Value | None = None, eps: Number | None = None
) -> Any:
    operands = [item for item in (x, weight) if item is not None]
    eps = float(np.finfo(np.float32).eps) if eps is None else eps
    result = cx.b.rms_norm(*operands, dims=len(shape), eps=eps)
    return (result, None) if cx.overload.startswith("_fused") else result


def _group_norm(cx: Context, x: Value, weight: Value | None, bias: Value | None, groups: int, eps: float) -> Value:
    if bias is not None and weight is None:
        weight = cx.broadcast(cx.value(1.0, x.type.dtype), bias.shape)
    operands = [item for item in (x, weight, bias) if item is not None]
    result: Value = cx.b.group_norm(*operands, groups=groups, eps=eps)
    return result


@aten("group_norm")
def group_norm(
    cx: Context,
    x: Value,
    groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    _: Any = None,
) -> Any:
    return _group_norm(cx, x, weight, bias, groups, eps)


@aten("native_group_norm")
def native_group_norm(
    cx: Context, x: Value, weight: Value | None, bias: Value | None, n: int, c: int, hw: int, groups: int, eps: float
) -> Any:
    return _group_norm(cx, x, weight, bias, groups, eps), None, None


def _batch_norm(cx: Context, x: Value, moments: tuple[Value | None, ...], eps: float) -> Value:
    """`moments` is (weight, bias, mean, variance), each [C] or missing."""
    channels, dtype = x.shape[1], x.type.dtype
    full = [
        cx.b.constant(np.full(channels, default), dtype) if item is None else cx.cast(item, dtype)
        for item, default in zip(moments, (1.0, 0.0, 0.0, 1.0), strict=True)
    ]
    result: Value = cx.b.batch_norm(x, *full, eps=eps, axis=1)
    return result


@aten("_native_batch_norm_legit_no_training")
def batch_norm_inference(
    cx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    var: Value,
    _: float,
    eps: float,
) -> Any:
    return _batch_norm(cx, x, (weight, bias, mean, var), eps), None, None


@aten("batch_norm", "cudnn_batch_norm", "native_batch_norm", "_native_batch_norm_legit")
@aten("_native_batch_norm_legit_functional")
def batch_norm(
    cx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    var: Value | None,
    training: bool,
    _: float,
    eps: float,
    *__: Any,
) -> Any:
    if training or mean is None:
        raise Unsupported("in training mode; call model.eval() before the export")
    result = _batch_norm(cx, x, (weight, bias, mean, var), eps)
    return result if cx.overload.startswith("batch_norm") else (result, *[None] * (len(cx.out) - 1))


@aten("_native_batch_norm_legit.no_stats")
def batch_norm_of_batch(
    cx: Context, x: Value, weight: Value | None, bias: Value | None, training: bool, _: float, eps: float
) -> Any:
    """Batch norm by the batch's own statistics; with one image, instance norm."""
    if x.shape[0] != 1:
        raise Unsupported("by the statistics of a batch of several")
    return _group_norm(cx, x, weight, bias, x.shape[1], eps), None, None


@aten("instance_norm")
def instance_norm(
    cx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    var: Value | None,
    use_input: bool,
    _: float,
    eps: float,
    __: bool,
) -> Any:
    if not use_input:
        return _batch_norm(cx, x, (weight, bias, mean, var), eps)
    return _group_norm(cx, x, weight, bias, x.shape[1], eps)


# Pooling ------------------------------------------------------------------------------------------

Ints = int | Sequence[int]


@aten("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices")
def max_pool(
    cx: Context,
    x: Value,
    kernel: Ints,
    stride: Ints = (),
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> Any:
    n = int(cx.overload.split("pool")[1][0])
    kernel = spread(kernel, n)
    result = cx.b.max_pool(
        _batched(cx, x, n),
        kernel=kernel,
        stride=spread(stride, n) or kernel,
        padding=spread(padding, n) * 2,
        dilation=spread(dilation, n),
        ceil_mode=ceil_mode,
    )
    if "with_indices" in cx.overload:
        return cx.reshape(result, cx.out[0].shape), None
    return cx.reshape(result, cx.shape)


def _batched(cx: Context, x: Value, n: int) -> Value:
    return x if x.type.rank == n + 2 else cx.reshape(x, (1, *x.shape))


@aten("avg_pool1d", "avg_pool2d", "avg_pool3d")
def avg_pool(
    cx: Context,
    x: Value,
    kernel: Ints,
    stride: Ints = (),
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Any:
    n = int(cx.overload.split("pool")[1][0])
    kernel, padded = spread(kernel, n), any(spread(padding, n))
    if divisor is None and not padded and all(k >= size for k, size in zip(kernel, x.shape[-n:])):
        # In ceil mode a window may be larger than the image; it is averaged over what there is.
        return cx.b.reduce_mean(x, axes=tuple(range(x.type.rank - n, x.type.rank)), keepdims=True)
    if divisor is not None and (ceil_mode or (padded and not count_include_pad)):
        raise Unsupported("divisor_override with windows of different sizes")
    result = cx.b.avg_pool(
        _batched(cx, x, n),
        kernel=kernel,
        stride=spread(stride, n) or kernel,
        padding=spread(padding, n) * 2,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
    )
    if divisor is not None:
        result = cx.b.mul(result, cx.value(math.prod(kernel) / divisor, x.type.dtype))
    return cx.reshape(result, cx.shape)


@aten("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d")
def adaptive_avg_pool(cx: Context, x: Value, size: Sequence[int]) -> Any:
    n = len(size)
    before, target = x.shape[-n:], cx.shape[-n:]
    axes = tuple(range(x.type.rank - n, x.type.rank))
    if all(t == 1 for t in target):
        return cx.b.reduce_mean(x, axes=axes, keepdims=True)
    if all(b % t == 0 for b, t in zip(before, target)):
        kernel = tuple(b // t for b, t in zip(before, target))
        pooled = cx.b.avg_pool(_batched(cx, x, n), kernel=kernel, stride=kernel, padding=(0,) * 2 * n)
        return cx.reshape(pooled, cx.shape)
    for axis, count in zip(axes, target):
        x = _average_windows(cx, x, axis, count)
    return x


def _average_windows(cx: Context, x: Value, axis: int, count: int) -> Value:
    """Averages of `count` windows that may differ in length, one axis at a time: a product with their weights."""
    size = x.shape[axis]
    weights = np.zeros((count, size), np.float32)
    for i in range(count):
        start, stop = i * size // count, -(-(i + 1) * size // count)
        weights[i, start:stop] = 1 / (stop - start)
    order = [d for d in range(x.type.rank) if d != axis] + [axis]
    back = list(np.argsort(order))
    last = cx.b.linear(cx.transpose(x, order), cx.b.constant(weights, x.type.dtype))
    return cx.transpose(last, [int(d) for d in back])


@aten("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_max_pool(cx: Context, x: Value, size: Sequence[int]) -> Any:
    n = len(size)
    target = cx.out[0].shape
    kernel = tuple(b // t for b, t in zip(x.shape[-n:], target[-n:]))
    if any(b % t for b, t in zip(x.shape[-n:], target[-n:])):
        raise Unsupported("windows of different sizes")
    settings: dict[str, Any] = {"kernel": kernel, "stride": kernel, "padding": (0,) * 2 * n, "dilation": (1,) * n}
    return cx.reshape(cx.b.max_pool(_batched(cx, x, n), **settings), target), None


# Resizing -----------------------------------------------------------------------------------------


def _resize(cx: Context, x: Value, scales: Sequence[float | None] | None, **settings: Any) -> Value:
    """`scales` are those given by the user (PyTorch then uses them instead of the ratio of the sizes)."""
    n = x.type.rank - 2
    factors = [0.0] * n if scales is None else [float(s or 0.0) for s in scales]
    result: Value = cx.b.resize(x, size=cx.shape, scales=(0.0, 0.0, *factors), **settings)
    return result


def _nearest(mode: str) -> dict[str, Any]:
    """PyTorch's `nearest` takes floor(i / scale); `nearest-exact` takes the pixel under the centre."""
    if mode == "exact":
        return {"mode": "nearest", "coordinates": "half_pixel", "nearest": "round_prefer_ceil"}
    return {"mode": "nearest", "coordinates": "asymmetric", "nearest": "floor"}


@aten("upsample_nearest1d.vec", "upsample_nearest2d.vec", "upsample_nearest3d.vec")
@aten("_upsample_nearest_exact1d.vec", "_upsample_nearest_exact2d.vec", "_upsample_nearest_exact3d.vec")
def nearest_vec(cx: Context, x: Value, size: Any, factors: Sequence[float] | None) -> Any:
    return _resize(cx, x, factors, **_nearest("exact" if "exact" in cx.overload else ""))


@aten("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
@aten("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d")
def nearest(cx: Context, x: Value, size: Any, *factors: float | None) -> Any:
    return _resize(cx, x, factors, **_nearest("exact" if "exact" in cx.overload else ""))


def _smooth(cx: Context, corners: bool) -> dict[str, Any]:
    mode = "cubic" if "cubic" in cx.overload else "linear"
    return {"mode": mode, "coordinates": "align_corners" if corners else "half_pixel", "nearest": "floor"}


@aten("upsample_linear1d.vec", "upsample_bilinear2d.vec", "upsample_trilinear3d.vec", "upsample_bicubic2d.vec")
def smooth_vec(cx: Context, x: Value, size: Any, corners: bool, factors: Sequence[float] | None) -> Any:
    return _resize(cx, x, factors, **_smooth(cx, corners))


@aten("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d")
def smooth(cx: Context, x: Value, size: Any, corners: bool, *factors: float | None) -> Any:
    return _resize(cx, x, factors, **_smooth(cx, corners))
