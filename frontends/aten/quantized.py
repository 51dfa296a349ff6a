"""Quantised programs of PyTorch: the `quantized_decomposed` operations of PT2E, and fake quantisation of QAT.

They become `quantize` and `dequantize`, whose zero points have the element type of the integers. What differs:

- PyTorch multiplies by 1 / scale where `quantize` divides, and some of its operations add the zero point
  before they round. Codes are the same but where x / scale lies within rounding error of a half, or exactly
  on one: there they may differ by one, as they do between PyTorch's own backends.
- A range that is narrower than the element type becomes a clamp of the real numbers in front, which gives
  the same codes and which lowering folds into the saturation.
- Scales in f64 become f32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # registers the operations, in .pt2 files too

from secateur.frontends.aten.base import DTYPES, Context, Number, Unsupported, aten
from secateur.ir.graph import Value
from secateur.ir.ops.constant import constant_value
from secateur.ir.types import DType

_STORED = (DType.I8, DType.U8, DType.I16, DType.I32)


def _names(name: str, *overloads: str) -> list[str]:
    return [f"quantized_decomposed.{name}.{overload}" for overload in overloads or ("default",)]


# One scale and zero point, for a tensor, a channel, a group or a row --------------------------------


@aten(*_names("quantize_per_tensor", "default", "tensor", "tensor2"))
def quantize_per_tensor(
    cx: Context, x: Value, scale: Value | float, zero: Value | int, low: Any, high: Any, dtype: torch.dtype
) -> Any:
    return _quantize(cx, x, scale, zero, (), _number(low), _number(high), dtype)


@aten(*_names("dequantize_per_tensor", "default", "tensor", "tensor2"))
def dequantize_per_tensor(
    cx: Context,
    x: Value,
    scale: Value | float,
    zero: Value | int,
    low: Any,
    high: Any,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None = None,
) -> Any:
    return _dequantize(cx, x, scale, zero, ())


@aten(*_names("quantize_per_channel"))
def quantize_per_channel(
    cx: Context, x: Value, scales: Value, zeros: Value, axis: int, low: int, high: int, dtype: torch.dtype
) -> Any:
    return _quantize(cx, x, scales, zeros, _channels(x, axis), low, high, dtype)


@aten(*_names("dequantize_per_channel"))
def dequantize_per_channel(
    cx: Context,
    x: Value,
    scales: Value,
    zeros: Value | None,
    axis: int,
    low: int,
    high: int,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None = None,
) -> Any:
    return _dequantize(cx, x, scales, 0 if zeros is None else zeros, _channels(x, axis))


@aten(*_names("quantize_per_token"))
def quantize_per_token(
    cx: Context, x: Value, scales: Value, zeros: Value, low: int, high: int, dtype: torch.dtype
) -> Any:
    return _quantize(cx, x, scales, zeros, scales.shape, low, high, dtype)


@aten(*_names("dequantize_per_token"))
def dequantize_per_token(
    cx: Context, x: Value, scales: Value, zeros: Value, low: int, high: int, dtype: torch.dtype, out: torch.dtype
) -> Any:
    return _dequantize(cx, x, scales, zeros, scales.shape)


@aten(*_names("quantize_per_channel_group"))
def quantize_per_channel_group(
    cx: Context, x: Value, scales: Value, zeros: Value, low: int, high: int, dtype: torch.dtype, size: int
) -> Any:
    grouped, shape = _grouped(cx, x, size)
    return cx.reshape(_quantize(cx, grouped, scales, zeros, shape, low, high, dtype), x.shape)


@aten(*_names("dequantize_per_channel_group"))
def dequantize_per_channel_group(
    cx: Context,
    x: Value,
    scales: Value,
    zeros: Value | None,
    low: int,
    high: int,
    dtype: torch.dtype,
    size: int,
    out: torch.dtype,
) -> Any:
    grouped, shape = _grouped(cx, x, size)
    return cx.reshape(_dequantize(cx, grouped, scales, 0 if zeros is None else zeros, shape), x.shape)


# Fake quantisation: models of QAT that were not converted ------------------------------------------


@aten("fake_quantize_per_tensor_affine", "fake_quantize_per_tensor_affine.tensor_qparams")
def fake_quantize_per_tensor(
    cx: Context, x: Value, scale: Value | float, zero: Value | int, low: int, high: int
) -> Any:
    return _fake(cx, x, scale, zero, (), low, high)


@aten("fake_quantize_per_channel_affine")
def fake_quantize_per_channel(cx: Context, x: Value, scale: Value, zero: Value, axis: int, low: int, high: int) -> Any:
    return _fake(cx, x, scale, zero, _channels(x, axis), low, high)


def _fake(
    cx: Context, x: Value, scale: Value | float, zero: Value | int, shape: Sequence[int], low: int, high: int
) -> Value:
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        limits = torch.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return _dequantize(cx, _quantize(cx, x, scale, zero, shape, low, high, dtype), scale, zero, shape)
    raise Unsupported(f"codes from {low} to {high}")


# Scales chosen while the model runs ----------------------------------------------------------------


@aten(*_names("choose_qparams", "tensor"))
def choose_qparams(cx: Context, x: Value, low: int, high: int, eps: float, dtype: torch.dtype) -> Any:
    return _chosen(cx, x, low, high, eps, symmetric=False)


@aten(*_names("choose_qparams_symmetric", "tensor"))
def choose_qparams_symmetric(cx: Context, x: Value, low: int, high: int, eps: float, dtype: torch.dtype) -> Any:
    return _chosen(cx, x, low, high, eps, symmetric=True, zero=128 if dtype == torch.uint8 else 0)


@aten(*_names("choose_qparams_per_token_asymmetric"))
def choose_qparams_per_token(cx: Context, x: Value, dtype: torch.dtype) -> Any:
    """Scales f64[..., 1] and zero points i64[..., 1] from each row: of the two zero points that map one end of the
    range exactly, the one whose error is less."""
    b, low, high = cx.b, cx.value(-128.0, DType.F32), cx.value(127.0, DType.F32)
    least, most = _range(cx, x, (x.type.rank - 1,))
    scale = b.div(b.sub(most, least), cx.value(255.0, DType.F32))
    scale = b.maximum(scale, cx.value(float(np.finfo(np.float32).eps), DType.F32))
    below, above = b.div(least, scale), b.div(most, scale)
    from_low = b.gt(b.add(b.add(low, below), b.add(high, above)), cx.value(0.0, DType.F32))
    point = b.where(from_low, b.sub(low, below), b.sub(high, above))
    point = b.round(b.clamp(point, low=-128.0, high=127.0))
    return cx.cast(scale, DType.F64), cx.cast(point, DType.I64)


def _range(cx: Context, x: Value, axes: tuple[int, ...]) -> tuple[Value, Value]:
    """Least and largest number along axes, and 0 where that is beyond."""
    nothing, real = cx.value(0.0, DType.F32), cx.real(x)
    keep = len(axes) < x.type.rank
    least = cx.b.minimum(cx.b.reduce_min(real, axes=axes, keepdims=keep), nothing)
    return least, cx.b.maximum(cx.b.reduce_max(real, axes=axes, keepdims=keep), nothing)


def _chosen(
    cx: Context, x: Value, low: int, high: int, eps: float, *, symmetric: bool, zero: int = 0
) -> tuple[Value, Value]:
    """Scale f64[1] and zero point i64[1] from the range of a tensor, which is made to hold 0."""
    b = cx.b
    least, most = _range(cx, x, tuple(range(x.type.rank)))
    if symmetric:
        scale = b.div(b.maximum(b.neg(least), most), cx.value((high - low) / 2, DType.F32))
    else:
        scale = b.div(b.sub(most, least), cx.value(float(high - low), DType.F32))
    scale = b.maximum(scale, cx.value(eps, DType.F32))
    if symmetric:
        point = b.constant(np.full(1, zero, np.int64))
    else:
        shifted = b.sub(cx.value(float(low), DType.F32), b.round(b.div(least, scale)))
        point = cx.reshape(cx.cast(b.clamp(shifted, low=float(low), high=float(high)), DType.I64), (1,))
    return cx.reshape(cx.cast(scale, DType.F64), (1,)), point


# What they are made of -----------------------------------------------------------------------------


def _quantize(
    cx: Context,
    x: Value,
    scale: Value | float,
    zero: Value | int,
    shape: Sequence[int],
    low: int,
    high: int,
    dtype: torch.dtype,
) -> Value:
    """Codes of `x`; scale and zero point have `shape`, which broadcasts with it."""
    stored = _stored(dtype)
    s, z = _scale(cx, scale, shape), _zero(cx, zero, shape, stored)
    limits = torch.iinfo(dtype)
    if low > high or low < limits.min or high > limits.max:
        raise Unsupported(f"codes from {low} to {high} in {stored}")
    x = cx.cast(x, DType.F32)
    if low > limits.min:
        x = cx.b.maximum(x, _bound(cx, low, s, z))
    if high < limits.max:
        x = cx.b.minimum(x, _bound(cx, high, s, z))
    return cx.b.quantize(x, s, z)


def _dequantize(cx: Context, x: Value, scale: Value | float, zero: Value | int, shape: Sequence[int]) -> Value:
    if x.type.dtype not in _STORED:
        raise Unsupported(f"integers in {x.type.dtype}")
    result = cx.b.dequantize(x, _scale(cx, scale, shape), _zero(cx, zero, shape, x.type.dtype))
    return cx.cast(result, cx.dtype if cx.dtype.is_float else DType.F32)


def _bound(cx: Context, code: int, scale: Value, zero: Value) -> Value:
    """The real number that a code stands for; computed now where scale and zero point are constant."""
    s, z = constant_value(scale), constant_value(zero)
    if s is not None and z is not None:
        return cx.b.constant(np.asarray((np.float32(code) - z.astype(np.float32)) * s))
    return cx.b.mul(cx.b.sub(cx.value(float(code), DType.F32), cx.cast(zero, DType.F32)), scale)


def _stored(dtype: torch.dtype) -> DType:
    if DTYPES.get(dtype) not in _STORED:
        raise Unsupported(f"integers in {str(dtype).removeprefix('torch.')}")
    return DTYPES[dtype]


def _scale(cx: Context, scale: Value | Number, shape: Sequence[int]) -> Value:
    if isinstance(scale, Value) and constant_value(scale) is None:
        return cx.reshape(cx.cast(scale, DType.F32), shape)
    array = np.asarray(scale if not isinstance(scale, Value) else constant_value(scale)).astype(np.float32)
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise Unsupported(f"a scale of {array[~(array > 0) | ~np.isfinite(array)].flat[0]}")
    return cx.b.constant(array.reshape(tuple(shape)))


def _zero(cx: Context, zero: Value | Number, shape: Sequence[int], stored: DType) -> Value:
    """A zero point in the type of the integers; one that is the same everywhere is a scalar."""
    if isinstance(zero, Value) and constant_value(zero) is None:
        return cx.reshape(cx.b.saturate(cx.cast(zero, DType.I64), dtype=stored), shape)
    array = np.asarray(zero if not isinstance(zero, Value) else constant_value(zero))
    limits = np.iinfo(stored.numpy)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise Unsupported(f"a zero point of {array.flat[np.abs(array).argmax()]} for {stored}")
    if array.size and (array == array.flat[0]).all():
        return cx.b.constant(np.asarray(array.flat[0]).astype(stored.numpy))
    return cx.b.constant(array.astype(stored.numpy).reshape(tuple(shape)))


def _number(item: Value | int) -> int:
    array = constant_value(item) if isinstance(item, Value) else np.asarray(item)
    if array is None:
        raise Unsupported("a range of codes that is computed")
    return int(array)


def _channels(x: Value, axis: int) -> tuple[int, ...]:
    return tuple(size if at == axis % max(x.type.rank, 1) else 1 for at, size in enumerate(x.shape))


def _grouped(cx: Context, x: Value, size: int) -> tuple[Value, tuple[int, ...]]:
    """Weights [N, K] as [N, K/size, size], a constant anew, and the shape of their scales."""
    n, k = x.shape
    size = min(size, k)
    if math.prod(x.shape) == 0 or k % size:
        raise Unsupported(f"groups of {size} along {k}")
    array, shape = constant_value(x), (n, k // size, size)
    if array is None:
        return cx.reshape(x, shape), (n, k // size, 1)
    assert x.op is not None
    return cx.b.constant(array.reshape(shape), name=x.op.attrs["name"]), (n, k // size, 1)
