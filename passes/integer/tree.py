"""Elementwise arithmetic between dequantize and quantize, in integers.

`quantize(f(dequantize(x), dequantize(y)))` becomes i32 fixed point in steps of the result's scale, with up to 16
bits behind the point, rounded once at the end. Functions of one small integer become tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Op, Value
from secateur.ir.types import DType
from secateur.passes.integer.bounds import bounds, largest
from secateur.passes.integer.fixed_point import FRACTION, ROOM, compact, factor, integer, rescale, widened
from secateur.passes.integer.leaves import SMALL, Leaf, known, leaf
from secateur.passes.integer.tables import NoTable, evaluate, interpolated, reals, sources

LEAST = 2  # bits behind the point of a sum, below which it is not precise enough


class Stays(Exception):
    """Why a value has no integer form."""


@dataclass
class Tree:
    """Builds integer values of real expressions: `build(x, gain)` is about x * gain, as i32."""

    b: Builder
    built: dict[tuple[Value, bytes], Value] = field(default_factory=dict)

    def build(self, value: Value, gain: np.ndarray) -> Value:
        key = (value, gain.tobytes())
        if key not in self.built:
            self.built[key] = self._build(value, gain)
        return self.built[key]

    def _build(self, value: Value, gain: np.ndarray) -> Value:
        constant = known(value)
        if constant is not None:
            return integer(self.b, np.rint(compact(constant.astype(np.float64) * gain)))
        if (found := leaf(value)) is not None:
            return self.leaf(found, gain)
        op = value.op
        if op is None:
            raise Stays("an operand is not quantised")
        if op.name in _LINEAR:
            return _LINEAR[op.name](self, op, gain)
        if op.name in ("mul", "div", "square"):
            return self.product(op, gain)
        return self.table(value, gain)

    def leaf(self, x: Leaf, gain: np.ndarray) -> Value:
        """(x - zero) * (scale * gain): one multiplication for what is small, the rounding product for the rest."""
        ratio = used(x, x.scale * gain)
        if x.value.type.dtype.bytes == 1:
            wide = widened(self.b, x.value, compact(x.zero))
            return self.b.mul(wide, integer(self.b, np.rint(ratio)))
        return rescale(self.b, widened(self.b, x.value, compact(x.zero)), ratio, 0, DType.I32)

    def product(self, op: Op, gain: np.ndarray) -> Value:
        """A constant factor goes into the gain; two quantised factors are multiplied as integers."""
        first, second = op.operands * 2 if op.name == "square" else op.operands
        if (number := factor_of(op)) is not None:
            return self.build(op.operands[number[0]], gain * number[1])
        if op.name == "div":
            raise Stays("a division has no integer form")
        try:
            if len(sources(op.result)) == 1:
                return self.table(op.result, gain)
        except NoTable:
            pass
        x, y = self.small(first), self.small(second)
        whole = self.b.mul(*(widened(self.b, side.value, side.point) for side in (x, y)))
        return rescale(self.b, whole, compact(x.step * y.step * gain), 0, DType.I32)

    def small(self, value: Value) -> Leaf:
        """A factor as 16 bits or less."""
        found = leaf(value)
        if found is not None and found.plain and found.value.type.dtype in SMALL:
            return found
        raise Stays("a factor is wider than 16 bits or has a scale for each channel")

    def table(self, value: Value, gain: np.ndarray) -> Value:
        """A function of one small integer."""
        if gain.size != 1:
            raise Stays("a function has a scale for each channel")
        source, x = only_source(value)
        wanted = function_values(value, source, x) * float(gain.reshape(()))
        if not np.all(np.isfinite(wanted)) or np.abs(wanted).max() >= ROOM:
            raise Stays("a function's values leave 32 bits")
        if x.value.type.dtype.bytes == 1:
            return self.b.lookup(x.value, table=np.rint(wanted).astype(int).tolist(), dtype=DType.I32)
        entries, bits = interpolated(wanted, float(wanted.min()), float(wanted.max()))
        raw = self.b.lookup(x.value, table=entries.tolist(), dtype=DType.I32)
        return rescale(self.b, raw, np.asarray(2.0**-bits), 0, DType.I32) if bits else raw


def function_values(value: Value, source: Value, x: Leaf) -> np.ndarray:
    """A function of one small integer for every number of its type, f64."""
    return evaluate(value, source, reals(x.value.type.dtype, x.step, x.point)).astype(np.float64)


def factor_of(op: Op) -> tuple[int, np.ndarray] | None:
    """(which operand is the variable, the constant factor) of a product or quotient by a constant."""
    if op.name == "square":
        return None
    for position in (0, 1) if op.name == "mul" else (0,):
        number = known(op.operands[1 - position])
        if number is not None and np.all(np.isfinite(number)) and (op.name == "mul" or np.all(number != 0)):
            wide = number.astype(np.float64)
            return position, wide if op.name == "mul" else 1 / wide
    return None


def only_source(value: Value, *, small: bool = True) -> tuple[Value, Leaf]:
    """The one dequantised tensor that a function is of. Raises `Stays` or `NoTable` where it is not so."""
    found = sources(value)
    if len(found) != 1:
        assert value.op is not None
        raise Stays(f"{value.op.name} of several quantised tensors has no integer form")
    (source,) = found
    x = leaf(source)
    if x is None or (small and not x.plain):
        raise Stays("a function of a tensor with a scale for each channel")
    if small and x.value.type.dtype not in SMALL:
        raise Stays(f"a function of {x.value.type.dtype}: quantise its input to 8 or 16 bits")
    if source.shape != value.shape:
        raise Stays("a function that broadcasts")
    return source, x


# Linear and piecewise linear operations ------------------------------------------------------------


def _sum(tree: Tree, op: Op, gain: np.ndarray) -> Value:
    x, y = (tree.build(value, gain) for value in op.operands)
    return tree.b.add(x, y) if op.name == "add" else tree.b.sub(x, y)


def _negative(tree: Tree, op: Op, gain: np.ndarray) -> Value:
    return tree.build(op.operands[0], -gain)


def _larger(tree: Tree, op: Op, gain: np.ndarray) -> Value:
    _check_sign(gain)
    x, y = (tree.build(value, gain) for value in op.operands)
    return tree.b.op(op.name, [x, y], {}).result


def _relu(tree: Tree, op: Op, gain: np.ndarray) -> Value:
    _check_sign(gain)
    return tree.b.maximum(tree.build(op.operands[0], gain), integer(tree.b, 0))


def _leaky(tree: Tree, op: Op, gain: np.ndarray) -> Value:
    """max(x, slope x) for a slope up to 1, min above."""
    _check_sign(gain)
    slope = float(op.attrs["slope"])
    x, y = tree.build(op.operands[0], gain), tree.build(op.operands[0], gain * slope)
    return tree.b.maximum(x, y) if slope <= 1 else tree.b.minimum(x, y)


def _clamp(tree: Tree, op: Op, gain: np.ndarray) -> Value:
    _check_sign(gain)
    result = tree.build(op.operands[0], gain)
    for key, name in (("low", "maximum"), ("high", "minimum")):
        if math.isfinite(op.attrs[key]):
            limit = np.clip(np.rint(compact(op.attrs[key] * gain)), -ROOM, ROOM)
            result = tree.b.op(name, [result, integer(tree.b, limit)], {}).result
    return result


def _check_sign(gain: np.ndarray) -> None:
    if np.any(gain < 0):
        raise Stays("a maximum is multiplied by a negative number")


_LINEAR: dict[str, Callable[[Tree, Op, np.ndarray], Value]] = {
    "add": _sum,
    "sub": _sum,
    "neg": _negative,
    "maximum": _larger,
    "minimum": _larger,
    "relu": _relu,
    "leaky_relu": _leaky,
    "clamp": _clamp,
}


# How large the numbers on the way can be -----------------------------------------------------------


def reach(value: Value, gain: np.ndarray | float = 1.0) -> float:
    """The largest magnitude of value * gain, and of what is computed on the way to it."""
    constant = known(value)
    if constant is not None:
        return float(np.abs(constant * gain).max(initial=0.0))
    if (found := leaf(value)) is not None:
        return _reach_of_leaf(found, gain)
    op = value.op
    if op is None:
        raise Stays("an operand is not quantised")
    if op.name in ("add", "sub"):
        return sum(reach(operand, gain) for operand in op.operands)
    if op.name in ("maximum", "minimum"):
        return max(reach(operand, gain) for operand in op.operands)
    if op.name == "leaky_relu":
        return reach(op.operands[0], gain * max(1.0, abs(op.attrs["slope"])))
    if op.name in ("relu", "clamp", "neg"):
        return reach(op.operands[0], gain)
    if op.name in ("mul", "div") and (number := factor_of(op)) is not None:
        return reach(op.operands[number[0]], gain * number[1])
    if op.name in ("mul", "square") and len(sources(value)) > 1:
        return math.prod(reach(operand) for operand in op.operands) * float(np.abs(gain).max())
    source, x = only_source(value)
    return float(np.nanmax(np.abs(function_values(value, source, x)), initial=0.0) * np.abs(gain).max())


def _reach_of_leaf(found: Leaf, gain: np.ndarray | float) -> float:
    low, high = bounds(found.value)
    step = np.abs(found.scale * gain)
    far = np.maximum(np.abs(low - found.zero), np.abs(high - found.zero))
    return float(np.max(far * step))


def fraction(value: Value, scale: np.ndarray) -> int:
    """Bits behind the point with which `value / scale` fits i32 all the way; `Stays` where that are too few."""
    most = reach(value, 1 / scale)
    bits = min(FRACTION, math.floor(math.log2(ROOM / max(most, 1.0))))
    if bits < LEAST:
        raise Stays(f"values may reach {most:.3g} steps of the result")
    return bits


def used(x: Leaf, ratio: np.ndarray) -> np.ndarray:
    """The ratio, but 0 for channels that hold nothing but their zero point: these must not cost the others bits."""
    low, high = bounds(x.value)
    return compact(np.where((low == x.zero) & (high == x.zero), 0.0, ratio))


def fits(x: Leaf, ratio: np.ndarray) -> bool:
    """Whether (x - zero) * ratio stays in i32, and the ratio has a multiplier."""
    most = largest(x.value) + float(np.abs(x.zero).max())
    return factor(ratio) is not None and most * float(np.abs(ratio).max(initial=0.0)) < ROOM
