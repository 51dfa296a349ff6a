"""Softmax, normalisation and attention of quantised operands in fixed point."""

from __future__ import annotations

import math

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Value
from secateur.ir.ops.fixed_point import FRACTION, GAIN
from secateur.ir.rewrite import Match, Outcome, Refusal, rule
from secateur.ir.types import DType
from secateur.passes.integer.fixed_point import HALF, factor, integer, widened
from secateur.passes.integer.leaves import SMALL, Leaf, known, leaf
from secateur.passes.integer.products import dequantized, narrow

OCTAVE = 256 / math.log(2)  # `decay` halves every 256 steps of its exponent
STANDARD = 20  # bits behind the point of `standardize`
PROBABILITY = 15  # bits behind the point of a softmax
INVERSE = (
    45  # a sum of exponentials in Q15 is inverted as 2^45 / sum, which fits i32 because the sum is at least 2^15 - 1
)
HIDDEN = -1e4  # what a float mask adds at least where it hides


def _small(value: Value) -> Leaf | str:
    found = leaf(value)
    if found is None or not found.plain:
        return "its operand is not quantised with one scale"
    return found if found.value.type.dtype in SMALL else f"its operand is {found.value.type.dtype}, not 8 or 16 bits"


@rule("(layer_norm|rms_norm)(dequantize(_, _, _), ...) {dims}")
def norm(m: Match, b: Builder) -> Outcome:
    """layer_norm(x, w, t) == standardize(x) * w + t, without the scale of x; epsilon is in units of its steps"""
    op, x = m.root, _small(m.root.operands[0])
    if isinstance(x, str):
        return Refusal(x)
    if op.attrs["dims"] != 1:
        return Refusal("it is over more than one dimension")
    centre = op.name == "layer_norm"
    epsilon = round(op.attrs["eps"] / x.step**2 * 4**FRACTION)
    if epsilon >= 1 << 44 or x.value.shape[-1] > 1 << 16:
        return Refusal("its epsilon is large beside the steps of its operand")
    value = x.value if x.value.type.dtype is DType.I16 else b.cast(x.value, dtype=DType.I16)
    if not centre and x.point:
        if x.value.type.dtype is DType.I16:
            return Refusal("its operand has 16 bits and a zero point")
        value = b.sub(value, integer(b, x.point, DType.I16))
    result = dequantized(b, b.standardize(value, epsilon=epsilon, centre=centre), 2.0**-STANDARD)
    if len(op.operands) > 1:
        result = b.mul(result, op.operands[1])
    return b.add(result, op.operands[2]) if len(op.operands) > 2 else result


@rule("softmax(dequantize(_, _, _)) {axis}")
def softmax(m: Match, b: Builder) -> Outcome:
    """softmax(x) == e / sum(e) with e = 2^-((max(x) - x) c), c the steps of x in octaves"""
    op, x = m.root, leaf(m.root.operands[0])
    if x is None or not x.plain:
        return Refusal("its operand is not quantised with one scale")
    axes = [op.attrs["axis"]]
    size = x.value.shape[op.attrs["axis"]]
    parts = factor(np.asarray(x.step * OCTAVE))
    if parts is None or size > 1 << 15 or not size:
        return Refusal("it is over too many elements, or its operand's steps are too large")
    wide = widened(b, x.value)
    below = b.sub(b.reduce_max(wide, axes=axes, keepdims=True), wide)
    powers = b.decay(below, integer(b, parts[0]), shift=parts[1])
    total = b.cast(b.reduce_sum(powers, axes=axes, keepdims=True), dtype=DType.I64)
    inverse = b.cast(b.trunc_div(integer(b, 1 << INVERSE, DType.I64), total), dtype=DType.I32)
    result = b.rescale(powers, inverse, integer(b, 0), shift=INVERSE - PROBABILITY)
    return dequantized(b, result, 2.0**-PROBABILITY)


@rule("attention(dequantize(_, _, _), dequantize(_, _, _), dequantize(_, _, _), ...)")
def attention(m: Match, b: Builder) -> Outcome:
    """attention(q sq, k sk, v sv) == attention_integer(q, k, v) * sv"""
    op = m.root
    leaves = []
    for value in op.operands[:3]:
        found = narrow(value)
        if isinstance(found, str):
            return Refusal(found)
        signed = _signed(b, found)
        if signed is None:
            return Refusal(f"an operand has the zero point {found.point}: it must be symmetric")
        leaves.append(signed)
    q, k, v = leaves
    exponent = q.step * k.step * op.attrs["scale"] * OCTAVE
    parts = factor(np.asarray(exponent))
    if parts is None or exponent < 0:
        return Refusal("its scale is negative or very large")
    masks = [_mask(b, value) for value in op.operands[3:]]
    if any(mask is None for mask in masks):
        return Refusal("its mask adds other numbers than 0 and -inf")
    result = b.attention_integer(
        *(x.value for x in leaves),
        *(mask for mask in masks if mask is not None),
        multiplier=int(parts[0]),
        shift=parts[1],
        causal=op.attrs["causal"],
    )
    return dequantized(b, result, v.step * 2.0**-GAIN)


def _signed(b: Builder, x: Leaf) -> Leaf | None:
    """The leaf as i8 with zero point 0, where that changes nothing."""
    if x.value.type.dtype is DType.I8:
        return x if not x.point else None
    if x.point != HALF:
        return None
    moved = b.saturate(b.sub(widened(b, x.value), integer(b, HALF)), dtype=DType.I8)
    return Leaf(moved, x.scale, np.zeros((), np.int64))


def _mask(b: Builder, value: Value) -> Value | None:
    """A mask as bool: a float one only where it is known and hides or adds nothing."""
    if value.type.dtype is DType.BOOL:
        return value
    added = known(value)
    if added is None or not np.all((added == 0) | (added <= HIDDEN)):
        return None
    return b.constant(added == 0)


RULES = [norm, softmax, attention]
