"""`quantize` of what hangs on quantised tensors: one rescaling, one table, or fixed-point sums."""

from __future__ import annotations

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Op, Value
from secateur.ir.rewrite import Match, Outcome, Refusal, rule
from secateur.ir.types import DType
from secateur.passes.integer.fixed_point import compact, integer, narrowed, offset, rescale, round_off, widened
from secateur.passes.integer.leaves import SMALL, Leaf, known, leaf, parameters
from secateur.passes.integer.tables import (
    NoTable,
    evaluate,
    interpolated,
    quantised,
    range_of_change,
    reals,
    sources,
    worst,
)
from secateur.passes.integer.tree import Stays, Tree, factor_of, fits, fraction, only_source, used

PIECEWISE = frozenset({"add", "sub", "neg", "maximum", "minimum", "relu", "leaky_relu", "clamp"})
SLACK = 1  # steps by which an interpolated table may miss


@rule("quantize(_, _, _)")
def requantize(m: Match, b: Builder) -> Outcome:
    """quantize(f(dequantize(x), ...)) == the same in integers, rounded once"""
    op = m.root
    given = parameters(op)
    if given is None:
        return Refusal("its scale is not constant")
    scale, zero = given[0], compact(given[1])
    value, low, high = _inside_clamps(op, scale, zero)
    if not _hangs_on_leaves(value):
        return None
    try:
        result = _lowered(b, op, value, scale, zero)
    except (Stays, NoTable) as why:
        return Refusal(str(why))
    limits = np.iinfo(result.type.dtype.numpy)
    if np.any(low > limits.min):
        result = b.maximum(result, integer(b, compact(low), result.type.dtype))
    if np.any(high < limits.max):
        result = b.minimum(result, integer(b, compact(high), result.type.dtype))
    if result.shape != op.result.shape:
        result = b.broadcast_to(result, shape=op.result.shape)
    return result


def _inside_clamps(op: Op, scale: np.ndarray, zero: np.ndarray) -> tuple[Value, np.ndarray, np.ndarray]:
    """What is inside the outermost clamps, and their limits as integers: rounding is monotone, so it may go first."""
    limits = np.iinfo(op.result.type.dtype.numpy)
    low, high = np.asarray(limits.min), np.asarray(limits.max)
    value = op.operands[0]
    while (inner := _clamp(value)) is not None:
        value, ends = inner
        steps = [np.clip(np.rint(end / scale) + zero, limits.min, limits.max).astype(np.int64) for end in ends]
        low, high = np.clip(steps[0], low, high), np.clip(steps[1], low, high)
    return value, low, high


def _clamp(value: Value) -> tuple[Value, tuple[float, float]] | None:
    """(operand, (low, high)) of an operation that only limits its operand."""
    op = value.op
    if op is None:
        return None
    if op.name == "relu":
        return op.operands[0], (0.0, np.inf)
    if op.name == "clamp":
        return op.operands[0], (op.attrs["low"], op.attrs["high"])
    if op.name in ("maximum", "minimum"):
        for position in (0, 1):
            number = known(op.operands[1 - position])
            if number is not None and number.size == 1 and op.operands[position].shape == value.shape:
                end = float(number.reshape(()))
                return op.operands[position], (end, np.inf) if op.name == "maximum" else (-np.inf, end)
    return None


def _hangs_on_leaves(value: Value) -> bool:
    """Whether a dequantised tensor is behind a value or among the operands of what makes it."""
    if value.op is None:
        return False
    near = [value, *value.op.operands]
    return any(item.op is not None and (leaf(item) is not None or _nested(item)) for item in near)


def _nested(value: Value) -> bool:
    try:
        return bool(sources(value))
    except NoTable:
        return False


def _lowered(b: Builder, op: Op, value: Value, scale: np.ndarray, zero: np.ndarray) -> Value:
    dtype = op.result.type.dtype
    if (x := leaf(value)) is not None:
        return of_leaf(b, x, scale, zero, dtype)
    if not _piecewise_linear(value) and scale.size == 1 and zero.size == 1 and len(sources(value)) == 1:
        return _of_function(b, op, value, int(zero.reshape(())))
    if (product := _of_product(b, value, scale, zero, dtype)) is not None:
        return product
    bits = fraction(value, scale)
    whole = Tree(b).build(value, np.ldexp(1 / scale, bits))
    return round_off(b, whole, bits, zero, dtype)


def of_leaf(b: Builder, x: Leaf, scale: np.ndarray, zero: np.ndarray, dtype: DType) -> Value:
    """From one scale to another: nothing, another zero point, or one rescaling."""
    if np.array_equal(compact(x.scale), compact(scale)) and x.plain:
        apart = compact(zero - x.zero)
        if not np.any(apart) and x.value.type.dtype is dtype:
            return x.value
        wide = b.add(widened(b, x.value), integer(b, apart)) if np.any(apart) else widened(b, x.value)
        return wide if dtype is DType.I32 else b.saturate(wide, dtype=dtype)
    ratio = used(x, x.scale / scale)
    if not fits(x, ratio):
        raise Stays("sums may reach 2^30 steps of the result")
    return rescale(b, widened(b, x.value, compact(x.zero)), ratio, zero, dtype)


def _piecewise_linear(value: Value) -> bool:
    """Whether it is made of sums, maxima and constant factors."""
    if known(value) is not None or leaf(value) is not None:
        return True
    op = value.op
    if op is None:
        return False
    if op.name in PIECEWISE:
        return all(_piecewise_linear(operand) for operand in op.operands)
    number = factor_of(op) if op.name in ("mul", "div") else None
    return number is not None and _piecewise_linear(op.operands[number[0]])


def _of_function(b: Builder, op: Op, value: Value, zero: int) -> Value:
    """A table of the whole way from one integer to another; what is wider than 8 bits comes to 16 first."""
    source, x = only_source(value, small=False)
    dtype, limits = op.result.type.dtype, np.iinfo(op.result.type.dtype.numpy)

    def wanted(real: np.ndarray) -> np.ndarray:
        return quantised(op, evaluate(value, source, real))

    if x.value.type.dtype.bytes == 1 and x.plain:
        return b.lookup(x.value, table=wanted(reals(x.value.type.dtype, x.step, x.point)).tolist(), dtype=dtype)
    low, high = int(limits.min) - zero, int(limits.max) - zero
    scale = float(np.asarray(known(op.operands[1]), np.float64).reshape(()))

    def table(near: Leaf) -> tuple[np.ndarray, int, int]:
        real = reals(DType.I16, near.step, near.point)
        entries, bits = interpolated(evaluate(value, source, real).astype(np.float64) / scale, low, high)
        return entries, bits, worst(entries, bits, wanted(real).astype(np.int64) - zero, low, high)

    near = x if x.plain and x.value.type.dtype is DType.I16 else None
    entries, bits, off = table(near) if near else (None, 0, SLACK + 1)
    if off > SLACK:  # its numbers reach further than the function changes: spend the 16 bits where it does
        reach = range_of_change(wanted, *(float(end) for end in x.real()))
        near = Leaf(x.value, np.asarray(reach / 32767), np.zeros((), np.int64))
        entries, bits, off = table(near)
        if off > SLACK:
            raise Stays(f"a table of {entries.size} entries misses {op.operands[0].op.name} by {off} steps")  # type: ignore[union-attr]
        near = Leaf(of_leaf(b, x, near.scale, near.zero, DType.I16), near.scale, near.zero)
    assert near is not None and entries is not None
    first = offset(bits, zero)
    assert first is not None, "a point of 12 bits behind 16 leaves room"
    raw = b.lookup(near.value, table=(entries + first).tolist(), dtype=DType.I32)
    return narrowed(b, raw, bits, dtype)


def _of_product(b: Builder, value: Value, scale: np.ndarray, zero: np.ndarray, dtype: DType) -> Value | None:
    """Two quantised factors, multiplied as integers and rescaled once."""
    if value.op is None or value.op.name not in ("mul", "square"):
        return None
    first, second = value.op.operands * 2 if value.op.name == "square" else value.op.operands
    x, y = leaf(first), leaf(second)
    if x is None or y is None or not all(side.plain and side.value.type.dtype in SMALL for side in (x, y)):
        return None
    whole = b.mul(*(widened(b, side.value, side.point) for side in (x, y)))
    ratio = x.step * y.step / scale
    if not fits(Leaf(whole, ratio, np.zeros((), np.int64)), ratio):
        raise Stays("products may reach 2^30 steps of the result")
    return rescale(b, whole, ratio, zero, dtype)


RULES = [requantize]
