"""Movements of quantised tensors that the rules of `passes/rules/quantized.rules` cannot say."""

from __future__ import annotations

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Value
from secateur.ir.rewrite import Match, Outcome, Refusal, rule
from secateur.ir.types import DType
from secateur.passes.integer.leaves import Leaf, known, leaf, parameters

FINER = 32  # 16-bit steps in an 8-bit one, from which on rounding twice rarely matters


@rule("concat(dequantize(_, _, _), ...)")
def concat_of_one_scale(m: Match, b: Builder) -> Outcome:
    """concat(dequantize(x), dequantize(y)) == dequantize(concat(x, y)) for one scale"""
    first = m.root.operands[0].op
    assert first is not None
    leaves: list[Leaf] = []
    for value in m.root.operands:
        found = leaf(value)
        if found is None or not found.plain:
            return Refusal("not every part is quantised with one scale")
        leaves.append(found)
    if len({(x.step, x.point, x.value.type.dtype) for x in leaves}) > 1:
        return Refusal("the parts have different scales: they are rescaled where the result is quantised")
    whole = b.concat(*(x.value for x in leaves), axis=m.root.attrs["axis"])
    return b.dequantize(whole, *first.operands[1:])


@rule("quantize(once concat(...), s: [], z: [])")
def quantize_parts(m: Match, b: Builder) -> Outcome:
    """quantize(concat(x, y)) == concat(quantize(x), quantize(y))"""
    op = m.op(0)
    parts = [b.quantize(value, m["s"], m["z"]) for value in op.operands]
    return b.concat(*parts, axis=op.attrs["axis"])


@rule("transpose(dequantize(x, s, z)) {perm}")
def transpose_of_channels(m: Match, b: Builder) -> Outcome:
    """transpose(dequantize(x, s, z)) == dequantize(transpose(x), transpose(s), transpose(z)) for constant scales"""
    perm, x = m.root.attrs["perm"], m["x"]
    turned = []
    for value in (m["s"], m["z"]):
        array = known(value)
        if array is None or array.ndim > x.type.rank:
            return None
        full = array.reshape((1,) * (x.type.rank - array.ndim) + array.shape)
        turned.append(value if array.size == 1 else b.constant(np.ascontiguousarray(full.transpose(perm))))
    return b.dequantize(b.transpose(x, perm=perm), *turned)


@rule("slice(dequantize(x, s, z)) {starts, stops, steps}")
def slice_of_channels(m: Match, b: Builder) -> Outcome:
    """slice(dequantize(x, s, z)) == dequantize(slice(x), slice(s), slice(z)) for constant scales"""
    attrs, x = m.root.attrs, m["x"]
    cut = []
    for value in (m["s"], m["z"]):
        array = known(value)
        if array is None or array.ndim > x.type.rank:
            return None
        lead = x.type.rank - array.ndim
        ranges = list(zip(attrs["starts"], attrs["stops"], attrs["steps"], strict=True))[lead:]
        place = tuple(slice(None) if n == 1 else slice(*r) for n, r in zip(array.shape, ranges, strict=True))
        cut.append(value if array.size == 1 else b.constant(np.ascontiguousarray(array[place])))
    return b.dequantize(b.slice(x, **attrs), *cut)


@rule('quantize(once pad(x) {low, high, interior, mode = "constant", value = number}, s: [], z: [])')
def quantize_inside_padding(m: Match, b: Builder) -> Outcome:
    """quantize(pad(x, v)) == pad(quantize(x), quantize(v))"""
    given = parameters(m.root)
    if given is None:
        return None
    limits = np.iinfo(m.root.result.type.dtype.numpy)
    value = np.clip(np.rint(m.data["number"] / given[0]) + given[1], limits.min, limits.max)
    attrs = {**m.op(0).attrs, "value": float(value)}
    return b.op("pad", [b.quantize(m["x"], m["s"], m["z"])], attrs).result


@rule('pad(dequantize(x, s: [], z: [])) {mode = "constant", value = 0}')
def pad_of_dequantized(m: Match, b: Builder) -> Outcome:
    """pad(dequantize(x)) == dequantize(pad(x, z)): the zero point stands for 0"""
    zero = known(m["z"])
    if zero is None:
        return None
    inner: Value = b.op("pad", [m["x"]], {**m.root.attrs, "value": float(zero)}).result
    return b.dequantize(inner, m["s"], m["z"])


@rule("quantize(x, s: number, z: (i8|u8)[])")
def quantize_from_wider(m: Match, b: Builder) -> Outcome:
    """quantize(x) to 8 bits == quantize(dequantize(quantize(x))) by way of the 16 bits that x is quantised to anyway"""
    x = m["x"]
    if x.op is None or leaf(x) is not None:
        return None
    given = parameters(m.root)
    for other in x.users:
        if other is m.root or other.name != "quantize" or other.result.type.dtype is not DType.I16:
            continue
        wide = parameters(other)
        if given is None or wide is None or wide[0].size != 1 or not _covers(wide, given, m.root.result.type.dtype):
            continue
        # The other one may come later; what is written twice here is found again as a common subexpression.
        scale = b.constant(wide[0].astype(np.float32).reshape(()))
        zero = b.constant(wide[1].astype(np.int16).reshape(()))
        return b.quantize(b.dequantize(b.quantize(x, scale, zero), scale, zero), m["s"], m["z"])
    return None


def _covers(wide: tuple[np.ndarray, np.ndarray], given: tuple[np.ndarray, np.ndarray], dtype: DType) -> bool:
    """Whether 16-bit steps are much smaller than 8-bit ones, and reach as far."""
    limits = np.iinfo(dtype.numpy)
    low, high = ((end - given[1]) * given[0] for end in (limits.min, limits.max))
    ends = [float(((end - wide[1]) * wide[0]).reshape(())) for end in (-32768, 32767)]
    return bool(FINER * wide[0] <= given[0] and ends[0] <= 0.99 * low and ends[1] >= 0.99 * high)


RULES = [
    concat_of_one_scale,
    quantize_parts,
    transpose_of_channels,
    slice_of_channels,
    quantize_inside_padding,
    pad_of_dequantized,
    quantize_from_wider,
]
