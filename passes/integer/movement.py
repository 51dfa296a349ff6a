"""Movements of quantised tensors that the rules of `passes/rules/quantized.rules` cannot say."""

from __future__ import annotations

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Value
from secateur.ir.rewrite import Match, Outcome, Refusal, rule
from secateur.passes.integer.leaves import Leaf, known, leaf, parameters


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


RULES = [concat_of_one_scale, quantize_parts, transpose_of_channels, quantize_inside_padding, pad_of_dequantized]
