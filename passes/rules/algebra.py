"""Identities of arithmetic, casts and logic. NaN and infinity come out as they went in: x * 0 is not 0."""

from __future__ import annotations

import math

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Value
from secateur.ir.ops.constant import constant_value
from secateur.ir.rewrite import Match, Outcome, Rule, pattern, rule
from secateur.ir.types import DType


def scalar(value: Value) -> float | None:
    """The number behind a value, where it is a constant of one element."""
    array = constant_value(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def written(value: Value) -> float | None:
    """`scalar` by the shortest digits that give it back in its type: 0.1 where f32 holds 0.100000001490116."""
    array = constant_value(value)
    return float(str(array.reshape(-1)[0])) if array is not None and array.size == 1 else None


def same(m: Match, name: str) -> Value | None:
    """A captured value where it has the root's type (an operand may have been broadcast)."""
    return m[name] if m[name].type == m.root.result.type else None


def _is_its_operand(name: str, text: str, doc: str) -> Rule:
    def rewrite(m: Match, b: Builder) -> Outcome:
        # The neutral element may have given the result its shape.
        return same(m, "x") or b.broadcast_to(m["x"], shape=m.root.result.shape)

    return Rule(name, pattern(text), rewrite, doc)


NEUTRAL = [
    _is_its_operand("add_zero", "add(x, 0)", "x + 0 == x"),
    _is_its_operand("sub_zero", "sub(x, 0)", "x - 0 == x"),
    _is_its_operand("mul_one", "mul(x, 1)", "x * 1 == x"),
    _is_its_operand("div_one", "div(x, 1)", "x / 1 == x"),
    _is_its_operand("pow_one", "pow(x, 1)", "x ** 1 == x"),
    _is_its_operand("double_neg", "neg(neg(x))", "-(-x) == x"),
    _is_its_operand("double_not", "bit_not(bit_not(x))", "~(~x) == x"),
    _is_its_operand("where_same", "where(_, x, x)", "where(c, x, x) == x"),
    _is_its_operand("and_true", "bit_and(x, true)", "x & true == x"),
    _is_its_operand("or_false", "bit_or(x, false)", "x | false == x"),
    _is_its_operand("max_same", "maximum(x, x)", "max(x, x) == x"),
    _is_its_operand("min_same", "minimum(x, x)", "min(x, x) == x"),
]


def _idempotent(op: str) -> Rule:
    return Rule(f"double_{op}", pattern(f"{op}({op}(x))"), lambda m, b: m.op(0).result, f"{op}({op}(x)) == {op}(x)")


IDEMPOTENT = [_idempotent(op) for op in ("abs", "relu", "floor", "ceil", "round", "trunc", "sign")]


@rule("mul(x, -1)")
def times_minus_one(m: Match, b: Builder) -> Outcome:
    """x * -1 == -x"""
    return b.neg(m["x"]) if same(m, "x") else None


@rule("sub(0, x)")
def zero_minus(m: Match, b: Builder) -> Outcome:
    """0 - x == -x"""
    return b.neg(m["x"]) if same(m, "x") else None


@rule("add(x, neg(y))")
def add_negative(m: Match, b: Builder) -> Outcome:
    """x + -y == x - y"""
    return b.sub(m["x"], m["y"])


@rule("sub(x, neg(y))")
def sub_negative(m: Match, b: Builder) -> Outcome:
    """x - -y == x + y"""
    return b.add(m["x"], m["y"])


@rule("mul(x, x)")
def times_itself(m: Match, b: Builder) -> Outcome:
    """x * x == square(x)"""
    return b.square(m["x"])


@rule("pow(x, 2)")
def second_power(m: Match, b: Builder) -> Outcome:
    """x ** 2 == square(x)"""
    return b.square(m["x"]) if same(m, "x") else None


@rule("pow(x, 3)", tolerance=1e-6)
def third_power(m: Match, b: Builder) -> Outcome:
    """x ** 3 == square(x) * x"""
    return b.mul(b.square(m["x"]), m["x"]) if same(m, "x") else None


@rule("pow(x, -1)", tolerance=1e-6)
def minus_first_power(m: Match, b: Builder) -> Outcome:
    """x ** -1 == 1 / x"""
    return b.reciprocal(m["x"]) if same(m, "x") else None


@rule("div(1, x)")
def one_over(m: Match, b: Builder) -> Outcome:
    """1 / x == reciprocal(x)"""
    return b.reciprocal(m["x"]) if same(m, "x") else None


@rule("reciprocal(sqrt(x))")
def one_over_root(m: Match, b: Builder) -> Outcome:
    """1 / sqrt(x) == rsqrt(x)"""
    return b.rsqrt(m["x"])


@rule("mul(x, reciprocal(y))", tolerance=1e-6)
def times_reciprocal(m: Match, b: Builder) -> Outcome:
    """x * (1 / y) == x / y, where nothing else needs 1 / y and it is not smaller than the product"""
    alone = m.only_use(0) and m["y"].shape == m.root.result.shape
    return b.div(m["x"], m["y"]) if alone else None


@rule("div(x, c)", tolerance=1e-6)
def divide_by_number(m: Match, b: Builder) -> Outcome:
    """x / c == x * (1 / c) for a number c that is not 0 and whose reciprocal is a normal number"""
    number = scalar(m["c"])
    if number is None or not math.isfinite(number) or number == 0:
        return None
    dtype = m["c"].type.dtype.numpy
    factor = np.full(m["c"].shape, 1 / number).astype(dtype)
    if not np.all(np.isfinite(factor)) or np.any(np.abs(factor) < np.finfo(np.float32).tiny):
        return None
    return b.mul(m["x"], b.constant(factor))


@rule("(mul|add)((mul|add)(x, c), d)", tolerance=1e-6)
def merge_constants(m: Match, b: Builder) -> Outcome:
    """(x * c) * d == x * (c * d) and (x + c) + d == x + (c + d) for constants, where they merge into one no larger"""
    inner = m.op(0)
    if inner.name != m.root.name or not m.root.result.type.dtype.is_float or not m.only_use(0):
        return None
    c, d = constant_value(m["c"]), constant_value(m["d"])
    if c is None or d is None or m["x"].type != m.root.result.type:
        return None
    wide = [array.astype(np.float64) for array in (c, d)]
    if np.broadcast(*wide).size > max(c.size, d.size):
        return None
    merged = np.asarray(wide[0] * wide[1] if inner.name == "mul" else wide[0] + wide[1]).astype(c.dtype)
    safe = np.isfinite(merged) if inner.name == "add" else np.abs(merged) >= np.finfo(np.float32).tiny
    if not np.all(safe & np.isfinite(merged)):
        return None
    largest = max((m["c"], m["d"]), key=lambda value: value.type.numel).op
    return b.op(inner.name, [m["x"], b.constant(merged, name=largest.attrs["name"] if largest else "")], {}).result


@rule("where(bit_not(c), x, y)")
def where_not(m: Match, b: Builder) -> Outcome:
    """where(~c, x, y) == where(c, y, x)"""
    return b.where(m["c"], m["y"], m["x"])


@rule("cast(x)")
def same_cast(m: Match, b: Builder) -> Outcome:
    """cast(x, its own type) == x"""
    return same(m, "x")


# What holds every value of the type that keys it.
_F16 = {DType.F32, DType.F64}
_LOSSLESS = {
    DType.BOOL: set(DType),
    DType.I8: {DType.I16, DType.I32, DType.I64, DType.F16, DType.BF16, DType.F32, DType.F64},
    DType.U8: {DType.I16, DType.I32, DType.I64, DType.F16, DType.BF16, DType.F32, DType.F64},
    DType.I16: {DType.I32, DType.I64, DType.F32, DType.F64},
    DType.I32: {DType.I64, DType.F64},
    DType.F16: _F16,
    DType.BF16: _F16,
    DType.F32: {DType.F64},
}


@rule("cast(cast(x))")
def double_cast(m: Match, b: Builder) -> Outcome:
    """cast(cast(x, wider), t) == cast(x, t)"""
    lossless = m.op(0).attrs["dtype"] in _LOSSLESS.get(m["x"].type.dtype, set())
    return b.cast(m["x"], dtype=m.root.attrs["dtype"]) if lossless else None


RULES = [
    *NEUTRAL,
    *IDEMPOTENT,
    times_minus_one,
    zero_minus,
    add_negative,
    sub_negative,
    times_itself,
    second_power,
    third_power,
    minus_first_power,
    one_over,
    one_over_root,
    times_reciprocal,
    divide_by_number,
    merge_constants,
    where_not,
    same_cast,
    double_cast,
]
