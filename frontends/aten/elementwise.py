"""Arithmetic, comparison, logic and activations."""

from __future__ import annotations

import math
from typing import Any

from secateur.frontends.aten.base import DTYPES, Context, Number, Unsupported, aten
from secateur.ir.graph import Value
from secateur.ir.types import DType

# Arithmetic ---------------------------------------------------------------------------------------


@aten("add.Tensor", "add.Scalar")
def add(cx: Context, a: Value, b: Value | Number, alpha: Number = 1) -> Any:
    return _scaled(cx, "add", a, b, alpha)


@aten("sub.Tensor", "sub.Scalar")
def sub(cx: Context, a: Value, b: Value | Number, alpha: Number = 1) -> Any:
    return _scaled(cx, "sub", a, b, alpha)


@aten("rsub.Scalar", "rsub.Tensor")
def rsub(cx: Context, a: Value, b: Value | Number, alpha: Number = 1) -> Any:
    return _scaled(cx, "sub", b, a, alpha)


def _scaled(cx: Context, name: str, a: Value | Number, b: Value | Number, alpha: Number) -> Any:
    left, right = cx.promote(a, b)
    if left.type.dtype is DType.BOOL:
        return cx.b.bit_or(left, right)  # PyTorch defines only the sum of two bool tensors
    if alpha != 1:
        right = cx.b.mul(right, cx.value(alpha, right.type.dtype))
    return getattr(cx.b, name)(left, right)


@aten("mul.Tensor", "mul.Scalar")
def mul(cx: Context, a: Value, b: Value | Number) -> Any:
    left, right = cx.promote(a, b)
    return cx.b.bit_and(left, right) if left.type.dtype is DType.BOOL else cx.b.mul(left, right)


@aten("div.Tensor", "div.Scalar", "true_divide.Tensor")
def div(cx: Context, a: Value, b: Value | Number) -> Any:
    return cx.b.div(*cx.promote(a, b, real=True))


@aten("div.Tensor_mode", "div.Scalar_mode")
def div_mode(cx: Context, a: Value, b: Value | Number, mode: str | None) -> Any:
    if mode is None:
        return div(cx, a, b)
    left, right = cx.promote(a, b)
    if mode == "floor":
        return cx.b.floor_div(left, right)
    return cx.b.trunc(cx.b.div(left, right)) if left.type.dtype.is_float else cx.b.trunc_div(left, right)


@aten("floor_divide", "floor_divide.Scalar")
def floor_divide(cx: Context, a: Value, b: Value | Number) -> Any:
    return cx.b.floor_div(*cx.promote(a, b))


@aten("pow.Tensor_Scalar")
def pow_scalar(cx: Context, x: Value, exponent: Number) -> Any:
    base = cx.promote(x, exponent)[0]
    if isinstance(exponent, float) and exponent.is_integer():
        exponent = int(exponent)
    short = {0.5: cx.b.sqrt, -0.5: cx.b.rsqrt, -1: cx.b.reciprocal}
    if base.type.dtype.is_float and exponent in short:
        return short[exponent](base)
    if isinstance(exponent, int) and (1 <= exponent <= 4 or (exponent > 0 and base.type.dtype.is_int)):
        return _power(cx, base, exponent)
    if not base.type.dtype.is_float:
        raise Unsupported(f"integer base with exponent {exponent}")
    return cx.b.pow(base, cx.value(exponent, base.type.dtype))


def _power(cx: Context, x: Value, exponent: int) -> Value:
    """Square and multiply; `exponent >= 1`."""
    half = cx.b.square(_power(cx, x, exponent // 2)) if exponent > 1 else x
    return cx.b.mul(half, x) if exponent > 1 and exponent % 2 else half


@aten("pow.Tensor_Tensor", "pow.Scalar")
def pow_tensor(cx: Context, a: Value | Number, b: Value) -> Any:
    left, right = cx.promote(a, b)
    if not left.type.dtype.is_float:
        raise Unsupported("integer base with a tensor of exponents")
    return cx.b.pow(left, right)


def _binary(overloads: str, name: str, *, real: bool = False) -> None:
    """Rows for operations that promote two operands and apply one op of the IR."""

    def row(cx: Context, a: Value | Number, b: Value | Number) -> Any:
        return getattr(cx.b, name)(*cx.promote(a, b, real=real))

    aten(*overloads.split())(row)


_binary("maximum max.other clamp_min.Tensor", "maximum")
_binary("minimum min.other clamp_max.Tensor", "minimum")
_binary("remainder.Tensor remainder.Scalar remainder.Scalar_Tensor", "mod")
_binary("fmod.Tensor fmod.Scalar", "fmod")
_binary("atan2", "atan2", real=True)
_binary("eq.Tensor eq.Scalar", "eq")
_binary("ne.Tensor ne.Scalar", "ne")
_binary("lt.Tensor lt.Scalar", "lt")
_binary("le.Tensor le.Scalar", "le")
_binary("gt.Tensor gt.Scalar", "gt")
_binary("ge.Tensor ge.Scalar", "ge")
_binary("bitwise_and.Tensor bitwise_and.Scalar __and__.Tensor __and__.Scalar", "bit_and")
_binary("bitwise_or.Tensor bitwise_or.Scalar __or__.Tensor __or__.Scalar", "bit_or")
_binary("bitwise_xor.Tensor bitwise_xor.Scalar __xor__.Tensor __xor__.Scalar", "bit_xor")
_binary("bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar __lshift__.Scalar", "shift_left")
_binary("bitwise_right_shift.Tensor bitwise_right_shift.Tensor_Scalar __rshift__.Scalar", "shift_right")


@aten("addcmul")
def addcmul(cx: Context, x: Value, a: Value, b: Value, value: Number = 1) -> Any:
    return add(cx, x, mul(cx, a, b), value)


@aten("addcdiv")
def addcdiv(cx: Context, x: Value, a: Value, b: Value, value: Number = 1) -> Any:
    return add(cx, x, div(cx, a, b), value)


@aten("lerp.Scalar", "lerp.Tensor")
def lerp(cx: Context, start: Value, end: Value, weight: Value | Number) -> Any:
    return add(cx, start, mul(cx, sub(cx, end, start), weight))


# One operand --------------------------------------------------------------------------------------


def _unary(names: str, *, real: bool = True, integers_stay: bool = False) -> None:
    """Rows `name(x)`; `real` computes integers in f32, `integers_stay` returns them as they are."""
    for word in names.split():
        overload, _, op = word.partition("=")

        def row(cx: Context, x: Value, name: str = op or overload) -> Any:
            if integers_stay and not x.type.dtype.is_float:
                return x
            return getattr(cx.b, name)(cx.real(x) if real else x)

        aten(overload)(row)


_unary("exp expm1 log log1p sqrt rsqrt reciprocal erf sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh")
_unary("sigmoid special_erf=erf special_expm1=expm1")
_unary("neg relu bitwise_not=bit_not silu mish hardswish=hard_swish", real=False)
_unary("floor ceil trunc round", real=False, integers_stay=True)


@aten("abs")
def absolute(cx: Context, x: Value) -> Any:
    return x if x.type.dtype in (DType.BOOL, DType.U8) else cx.b.abs(x)


@aten("sign", "sgn")
def sign(cx: Context, x: Value) -> Any:
    """-1, 0 or 1; PyTorch's sign of NaN is 0, unlike that of the IR."""
    if not x.type.dtype.is_float:
        return x if x.type.dtype is DType.BOOL else cx.b.sign(x)
    zero = cx.value(0.0, x.type.dtype)
    return cx.b.sub(cx.cast(cx.b.gt(x, zero), x.type.dtype), cx.cast(cx.b.lt(x, zero), x.type.dtype))


@aten("square")
def square(cx: Context, x: Value) -> Any:
    return cx.b.square(x)


@aten("exp2")
def exp2(cx: Context, x: Value) -> Any:
    real = cx.real(x)
    return cx.b.pow(cx.value(2.0, real.type.dtype), real)


@aten("log2")
def log2(cx: Context, x: Value) -> Any:
    return mul(cx, cx.b.log(cx.real(x)), 1 / math.log(2))


@aten("log10")
def log10(cx: Context, x: Value) -> Any:
    return mul(cx, cx.b.log(cx.real(x)), 1 / math.log(10))


@aten("erfc")
def erfc(cx: Context, x: Value) -> Any:
    return rsub(cx, cx.b.erf(cx.real(x)), 1.0)


@aten("frac")
def frac(cx: Context, x: Value) -> Any:
    return cx.b.sub(x, cx.b.trunc(x))


@aten("round.decimals")
def round_decimals(cx: Context, x: Value, decimals: int) -> Any:
    scale = cx.value(10.0**decimals, x.type.dtype)
    return cx.b.div(cx.b.round(cx.b.mul(x, scale)), scale)


@aten("isnan", "isinf", "isfinite")
def float_class(cx: Context, x: Value) -> Any:
    name = cx.overload.split(".")[0]
    if not x.type.dtype.is_float:
        return cx.broadcast(cx.b.constant(name == "isfinite", DType.BOOL), x.shape)
    if name == "isfinite":
        return cx.b.lt(cx.b.abs(x), cx.value(math.inf, x.type.dtype))
    return getattr(cx.b, name)(x)


@aten("logical_not")
def logical_not(cx: Context, x: Value) -> Any:
    return cx.b.bit_not(cx.cast(x, DType.BOOL))


def _logical(name: str, op: str) -> None:
    def row(cx: Context, a: Value, b: Value) -> Any:
        return getattr(cx.b, op)(cx.cast(a, DType.BOOL), cx.cast(b, DType.BOOL))

    aten(name)(row)


_logical("logical_and", "bit_and")
_logical("logical_or", "bit_or")
_logical("logical_xor", "bit_xor")


# Selection and limits -----------------------------------------------------------------------------


@aten("where.self", "where.Scalar", "where.ScalarSelf", "where.ScalarOther")
def where(cx: Context, cond: Value, a: Value | Number, b: Value | Number) -> Any:
    return cx.b.where(cx.cast(cond, DType.BOOL), *cx.promote(a, b))


@aten("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(cx: Context, x: Value, mask: Value, value: Value | Number) -> Any:
    return cx.b.where(cx.cast(mask, DType.BOOL), cx.value(value, x.type.dtype), x)


@aten("clamp", "clamp.Tensor", "hardtanh", "clip")
def clamp(cx: Context, x: Value, low: Value | Number | None = None, high: Value | Number | None = None) -> Any:
    given = [item for item in (low, high) if item is not None]
    x = cx.promote(x, *given)[0]
    if x.type.dtype.is_float and not any(isinstance(item, Value) for item in given):
        low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
        return cx.b.clamp(x, low=float(low), high=float(high))  # type: ignore[arg-type]
    if low is not None:
        x = cx.b.maximum(x, cx.value(low, x.type.dtype))
    return x if high is None else cx.b.minimum(x, cx.value(high, x.type.dtype))


@aten("clamp_min")
def clamp_min(cx: Context, x: Value, low: Number) -> Any:
    return clamp(cx, x, low, None)


@aten("clamp_max")
def clamp_max(cx: Context, x: Value, high: Number) -> Any:
    return clamp(cx, x, None, high)


@aten("relu6")
def relu6(cx: Context, x: Value) -> Any:
    return clamp(cx, x, 0, 6)


@aten("threshold")
def threshold(cx: Context, x: Value, limit: Number, value: Number) -> Any:
    dtype = x.type.dtype
    return cx.b.where(cx.b.le(x, cx.value(limit, dtype)), cx.value(value, dtype), x)


# Activations with settings ------------------------------------------------------------------------


@aten("gelu")
def gelu(cx: Context, x: Value, approximate: str) -> Any:
    return cx.b.gelu_tanh(x) if approximate == "tanh" else cx.b.gelu(x)


@aten("elu")
def elu(cx: Context, x: Value, alpha: Number, scale: Number, input_scale: Number) -> Any:
    return cx.b.elu(x, alpha=alpha, scale=scale, input_scale=input_scale)


@aten("selu")
def selu(cx: Context, x: Value) -> Any:
    return cx.b.elu(x, alpha=1.6732632423543772, scale=1.0507009873554805)


@aten("celu")
def celu(cx: Context, x: Value, alpha: Number) -> Any:
    return cx.b.elu(x, alpha=alpha, input_scale=1 / alpha)


@aten("leaky_relu")
def leaky_relu(cx: Context, x: Value, slope: Number) -> Any:
    return cx.b.leaky_relu(x, slope=slope)


@aten("prelu", "_prelu_kernel")
def prelu(cx: Context, x: Value, weight: Value) -> Any:
    if weight.type.rank < x.type.rank:
        channels = (1, weight.type.numel) + (1,) * (x.type.rank - 2) if x.type.rank > 1 else (weight.type.numel,)
        weight = cx.reshape(weight, channels)
    zero = cx.value(0.0, x.type.dtype)
    return cx.b.where(cx.b.le(x, zero), cx.b.mul(x, weight), x)


@aten("softplus")
def softplus(cx: Context, x: Value, beta: Number, threshold: Number) -> Any:
    return cx.b.softplus(x, beta=beta, threshold=threshold)


@aten("log_sigmoid")
def log_sigmoid(cx: Context, x: Value) -> Any:
    return cx.b.neg(cx.b.softplus(cx.b.neg(x), threshold=88.0))


@aten("hardsigmoid")
def hardsigmoid(cx: Context, x: Value) -> Any:
    return cx.b.hard_sigmoid(x)


@aten("softmax.int", "_softmax", "log_softmax.int", "_log_softmax")
def softmax(cx: Context, x: Value, dim: int, dtype: Any) -> Any:
    name = "log_softmax" if "log_softmax" in cx.overload else "softmax"
    x = cx.cast(x, cx.dtype)
    if x.type.rank == 0:
        return cx.reshape(getattr(cx.b, name)(cx.reshape(x, (1,)), axis=0), ())
    return getattr(cx.b, name)(x, axis=dim % x.type.rank)


# Casts and copies ---------------------------------------------------------------------------------


@aten("to.dtype", "to.dtype_layout", "to.device", "to.other", "_to_copy", "type_as")
def to(cx: Context, x: Value, *_: Any) -> Any:
    return cx.cast(x, cx.dtype)


@aten("clone", "contiguous", "alias", "detach", "detach_", "lift_fresh_copy", "lift_fresh", "dropout", "alpha_dropout")
@aten("feature_dropout", "native_dropout", "view.dtype", "copy")
def same(cx: Context, x: Value, *rest: Any) -> Any:
    name = cx.overload
    if "dropout" in name and rest[-1]:
        raise Unsupported("in training mode; call model.eval() before the export")
    if name == "view.dtype" and DTYPES[rest[0]] is not x.type.dtype:
        raise Unsupported("reinterprets bits")
    if name == "copy.default":
        return cx.broadcast(cx.cast(rest[0], x.type.dtype), x.shape)
    return (x, None) if name.startswith("native") else x
