"""Reductions, scans and order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from secateur.frontends.aten.base import Context, Number, aten, axes_of, axis_of
from secateur.ir.graph import Value
from secateur.ir.types import DType

Dims = int | Sequence[int] | None


def _reduce(cx: Context, name: str, x: Value, dims: Dims, keepdim: bool) -> Value:
    result: Value = x
    axes = axes_of(dims, x.type.rank)
    if axes:
        result = getattr(cx.b, f"reduce_{name}")(x, axes=axes, keepdims=keepdim)
    return result


@aten("sum", "mean")
def reduce_all(cx: Context, x: Value, _: Any = None) -> Any:
    return _reduce(cx, cx.overload.split(".")[0], cx.cast(x, cx.dtype), None, False)


@aten("sum.dim_IntList", "mean.dim")
def reduce_dims(cx: Context, x: Value, dims: Dims, keepdim: bool = False, _: Any = None) -> Any:
    return _reduce(cx, cx.overload.split(".")[0], cx.cast(x, cx.dtype), dims, keepdim)


@aten("prod")
def prod_all(cx: Context, x: Value, _: Any = None) -> Any:
    return _reduce(cx, "prod", cx.cast(x, cx.dtype), None, False)


@aten("prod.dim_int")
def prod(cx: Context, x: Value, dim: int, keepdim: bool = False, _: Any = None) -> Any:
    return _reduce(cx, "prod", cx.cast(x, cx.dtype), dim, keepdim)


@aten("amax", "amin", "max", "min")
def extreme(cx: Context, x: Value, dims: Dims = None, keepdim: bool = False) -> Any:
    name = "max" if "max" in cx.overload else "min"
    if x.type.dtype is DType.BOOL:
        return _reduce(cx, "any" if name == "max" else "all", x, dims, keepdim)
    return _reduce(cx, name, x, dims, keepdim)


@aten("max.dim", "min.dim")
def extreme_and_index(cx: Context, x: Value, dim: int, keepdim: bool = False) -> Any:
    name, axis = cx.overload.split(".")[0], axis_of(dim, x.type.rank)
    if x.type.rank == 0:
        return x, cx.b.constant(0, DType.I64)
    index = getattr(cx.b, f"arg{name}")(x, axis=axis, keepdims=keepdim)
    return _reduce(cx, name, x, axis, keepdim), index


@aten("argmax", "argmin")
def arg_extreme(cx: Context, x: Value, dim: int | None = None, keepdim: bool = False) -> Any:
    if dim is None or x.type.rank == 0:
        x, axis = cx.reshape(x, (x.type.numel,)), 0
    else:
        axis = axis_of(dim, x.type.rank)
    index = getattr(cx.b, cx.overload.split(".")[0])(x, axis=axis, keepdims=False)
    return cx.reshape(index, cx.shape)


@aten("any", "all", "any.dim", "all.dim", "any.dims", "all.dims")
def truth(cx: Context, x: Value, dims: Dims = None, keepdim: bool = False) -> Any:
    return _reduce(cx, cx.overload.split(".")[0], cx.cast(x, DType.BOOL), dims, keepdim)


@aten("count_nonzero", "count_nonzero.dim_IntList")
def count_nonzero(cx: Context, x: Value, dims: Dims = None) -> Any:
    return _reduce(cx, "sum", cx.cast(cx.cast(x, DType.BOOL), DType.I64), dims, False)


# Spread and norms ---------------------------------------------------------------------------------


def _variance(cx: Context, x: Value, dims: Dims, correction: Number, keepdim: bool) -> tuple[Value, Value]:
    """(variance, mean) by the two-pass formula."""
    axes = axes_of(dims, x.type.rank)
    mean = _reduce(cx, "mean", x, axes, True)
    total = _reduce(cx, "sum", cx.b.square(cx.b.sub(x, mean)), axes, keepdim)
    count = math.prod(x.shape[axis] for axis in axes)
    freedom = max(0.0, count - correction)
    variance = cx.b.div(total, cx.value(float(freedom), x.type.dtype))
    return variance, mean if keepdim else cx.reshape(mean, variance.shape)


def _moments(cx: Context, x: Value, dims: Dims, correction: Number, keepdim: bool) -> Any:
    variance, mean = _variance(cx, x, dims, correction, keepdim)
    result = cx.b.sqrt(variance) if cx.overload.startswith("std") else variance
    return (result, mean) if "_mean" in cx.overload else result


@aten("var", "std", "var_mean", "std_mean")
def spread_all(cx: Context, x: Value, unbiased: bool = True) -> Any:
    return _moments(cx, x, None, int(unbiased), False)


@aten("var.dim", "std.dim", "var_mean.dim", "std_mean.dim")
def spread_dims(cx: Context, x: Value, dims: Dims, unbiased: bool = True, keepdim: bool = False) -> Any:
    return _moments(cx, x, dims, int(unbiased), keepdim)


@aten("var.correction", "std.correction", "var_mean.correction", "std_mean.correction")
def spread_corrected(cx: Context, x: Value, dims: Dims, correction: Number | None, keepdim: bool = False) -> Any:
    return _moments(cx, x, dims, 1 if correction is None else correction, keepdim)


@aten("linalg_vector_norm")
def vector_norm(cx: Context, x: Value, order: Number, dims: Dims = None, keepdim: bool = False, _: Any = None) -> Any:
    x = cx.cast(x, cx.dtype)
    dtype = x.type.dtype
    if order == 2:
        return cx.b.sqrt(_reduce(cx, "sum", cx.b.square(x), dims, keepdim))
    if order == 0:
        return _reduce(cx, "sum", cx.cast(cx.b.ne(x, cx.value(0.0, dtype)), dtype), dims, keepdim)
    if math.isinf(order):
        return _reduce(cx, "max" if order > 0 else "min", cx.b.abs(x), dims, keepdim)
    if order == 1:
        return _reduce(cx, "sum", cx.b.abs(x), dims, keepdim)
    powers = cx.b.pow(cx.b.abs(x), cx.value(float(order), dtype))
    return cx.b.pow(_reduce(cx, "sum", powers, dims, keepdim), cx.value(1 / order, dtype))


@aten("norm.ScalarOpt_dim", "norm.ScalarOpt_dim_dtype")
def norm_dims(cx: Context, x: Value, order: Number | None, dims: Dims, keepdim: bool = False, _: Any = None) -> Any:
    return vector_norm(cx, x, 2 if order is None else order, dims, keepdim)


@aten("norm.Scalar")
def norm_all(cx: Context, x: Value, order: Number = 2) -> Any:
    return vector_norm(cx, x, order)


@aten("logsumexp")
def logsumexp(cx: Context, x: Value, dims: Dims, keepdim: bool = False) -> Any:
    x = cx.real(x)
    axes = axes_of(dims, x.type.rank)
    top = _reduce(cx, "max", x, axes, True)
    # An infinite maximum would turn into inf - inf.
    finite = cx.b.lt(cx.b.abs(top), cx.value(math.inf, x.type.dtype))
    top = cx.b.where(finite, top, cx.value(0.0, x.type.dtype))
    total = _reduce(cx, "sum", cx.b.exp(cx.b.sub(x, top)), axes, True)
    return cx.reshape(cx.b.add(cx.b.log(total), top), cx.shape)


# Scans and order ----------------------------------------------------------------------------------


@aten("cumsum", "cumprod")
def scan(cx: Context, x: Value, dim: int, _: Any = None) -> Any:
    x = cx.cast(x, cx.dtype)
    if x.type.rank == 0:
        return x
    return getattr(cx.b, cx.overload.split(".")[0])(x, axis=axis_of(dim, x.type.rank))


@aten("topk")
def topk(cx: Context, x: Value, k: int, dim: int = -1, largest: bool = True, _: bool = True) -> Any:
    if x.type.rank == 0:
        return x, cx.b.constant(0, DType.I64)
    return cx.b.topk(x, k=k, axis=axis_of(dim, x.type.rank), largest=largest)


@aten("sort", "sort.stable", "argsort", "argsort.stable")
def sort(cx: Context, x: Value, *args: Any) -> Any:
    rest = args[1:] if cx.overload.endswith("stable") else args
    dim, descending = (*rest, -1, False)[:2] if rest else (-1, False)
    if x.type.rank == 0:
        values, index = x, cx.b.constant(0, DType.I64)
    else:
        values, index = cx.b.sort(x, axis=axis_of(dim, x.type.rank), descending=descending)
    return index if cx.overload.startswith("argsort") else (values, index)


@aten("median")
def median(cx: Context, x: Value) -> Any:
    """The lower of the two middle values; NaN sorts last, so one anywhere must be put in by hand."""
    flat = cx.reshape(x, (x.type.numel,))
    values = cx.b.sort(flat, axis=0, descending=False)[0]
    middle = (x.type.numel - 1) // 2
    result = cx.reshape(cx.slice(values, 0, middle, middle + 1), ())
    if not x.type.dtype.is_float:
        return result
    nan = cx.b.reduce_any(cx.b.isnan(flat), axes=(0,), keepdims=False)
    return cx.b.where(nan, cx.value(math.nan, x.type.dtype), result)
