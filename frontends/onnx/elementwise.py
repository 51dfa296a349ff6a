"""Arithmetic, logic, comparison, casts."""

from __future__ import annotations

import numpy as np

from secateur.frontends.onnx.load import element_type
from secateur.frontends.onnx.node import Node, row
from secateur.ir.graph import Value
from secateur.ir.ops.constant import constant_value
from secateur.ir.types import DType

# ONNX op type -> our op, operands and meaning being the same.
SAME = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "And": "bit_and",
    "Or": "bit_or",
    "Xor": "bit_xor",
    "Not": "bit_not",
    "BitwiseAnd": "bit_and",
    "BitwiseOr": "bit_or",
    "BitwiseXor": "bit_xor",
    "BitwiseNot": "bit_not",
    "Equal": "eq",
    "Greater": "gt",
    "GreaterOrEqual": "ge",
    "Less": "lt",
    "LessOrEqual": "le",
    "Where": "where",
    "IsNaN": "isnan",
    "Abs": "abs",
    "Neg": "neg",
    "Sign": "sign",
    "Reciprocal": "reciprocal",
    "Sqrt": "sqrt",
    "Exp": "exp",
    "Log": "log",
    "Erf": "erf",
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "round",
    "Sin": "sin",
    "Cos": "cos",
    "Tan": "tan",
    "Asin": "asin",
    "Acos": "acos",
    "Atan": "atan",
    "Sinh": "sinh",
    "Cosh": "cosh",
    "Tanh": "tanh",
    "Asinh": "asinh",
    "Acosh": "acosh",
    "Atanh": "atanh",
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "HardSwish": "hard_swish",
    "Mish": "mish",
    "Softplus": "softplus",
}

for _name, _ours in SAME.items():
    row(_name)(lambda n, ours=_ours: n.b.op(ours, n.all(), {}).result)  # type: ignore[misc]


@row("Div")
def div(n: Node) -> Value:
    a, b = n.x(0), n.x(1)
    return n.b.trunc_div(a, b) if a.type.dtype.is_int else n.b.div(a, b)


@row("Mod")
def mod(n: Node) -> Value:
    return n.b.fmod(n.x(0), n.x(1)) if n.attr("fmod", 0) else n.b.mod(n.x(0), n.x(1))


@row("Pow")
def pow_(n: Node) -> Value:
    """The result has the base's type; integer powers go through f64, exact up to 2**53."""
    base, exponent = n.x(0), n.x(1)
    dtype = base.type.dtype
    if (dtype.is_float and exponent.type.dtype.is_int) or (dtype is exponent.type.dtype and dtype.is_float):
        exponent = n.cast(exponent, dtype)
        known = constant_value(exponent)
        if known is not None and known.size == 1 and float(known.reshape(())) == 2.0 and known.ndim <= base.type.rank:
            return n.b.square(base)
        return n.b.pow(base, exponent)
    wide = n.b.pow(n.cast(base, DType.F64), n.cast(exponent, DType.F64))
    return n.cast(wide, dtype)


@row("Max", "Min", "Sum", "Mean")
def variadic(n: Node) -> Value:
    ours = {"Max": "maximum", "Min": "minimum", "Sum": "add", "Mean": "add"}[n.name]
    values = n.all()
    total = n.x(0)
    for value in values[1:]:
        total = n.b.op(ours, (total, value), {}).result
    return n.b.div(total, n.scalar_like(len(values), total)) if n.name == "Mean" else total


@row("BitShift")
def bit_shift(n: Node) -> Value:
    """A count that is negative or at least the width shifts everything out, where the machine would wrap it."""
    x, count = n.x(0), n.x(1)
    n.refuse("direction", "LEFT", "RIGHT")
    left = n.need("direction") == "LEFT"
    last = n.scalar_like(8 * count.type.dtype.bytes - 1, count)
    inside = n.b.bit_and(n.b.ge(count, n.scalar_like(0, count)), n.b.le(count, last))
    if left or x.type.dtype is DType.U8:
        shifted = n.b.shift_left(x, count) if left else n.b.shift_right(x, count)
        return n.b.where(inside, shifted, n.scalar_like(0, x))
    return n.b.shift_right(x, n.b.where(inside, count, last))  # a signed type keeps its sign


@row("IsInf")
def is_inf(n: Node) -> Value:
    x = n.x()
    positive, negative = n.attr("detect_positive", 1), n.attr("detect_negative", 1)
    if positive and negative:
        return n.b.isinf(x)
    if not positive and not negative:
        return n.expand(n.b.constant(np.asarray(False)), x.shape)
    return n.b.eq(x, n.scalar_like(np.inf if positive else -np.inf, x))


@row("Cast")
def cast(n: Node) -> Value:
    return n.cast(n.x(), element_type(n.need("to"), n.span))


@row("CastLike")
def cast_like(n: Node) -> Value:
    return n.cast(n.x(), n.x(1).type.dtype)


@row("BitCast")
def bit_cast(n: Node) -> Value:
    """Between types of one width the IR has no op: only what is known at import can be reread."""
    to = element_type(n.need("to"), n.span)
    if to.bytes != n.x().type.dtype.bytes:
        raise n.fail("only types of the same width are supported")
    return n.b.constant(np.array(n.const(0), order="C").view(to.numpy))


@row("Clip")
def clip(n: Node) -> Value:
    """Bounds are attributes up to opset 10 and optional inputs after; low > high gives high."""
    x = n.x()
    if n.version < 11:
        return n.b.clamp(x, low=n.attr("min", float("-inf")), high=n.attr("max", float("inf")))
    low, high = n.opt(1), n.opt(2)
    bounds = [None if value is None else constant_value(value) for value in (low, high)]
    known = all(value is None or bound is not None for value, bound in zip((low, high), bounds, strict=True))
    if x.type.dtype.is_float and known:
        names = ("low", "high")
        return n.b.clamp(x, **{k: float(v.reshape(())) for k, v in zip(names, bounds, strict=True) if v is not None})
    x = x if low is None else n.b.maximum(x, low)
    return x if high is None else n.b.minimum(x, high)
