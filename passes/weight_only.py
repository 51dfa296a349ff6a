"""Linear layers over dequantised weights, as operations that read the weights as they are stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.ops.constant import constant_value
from secateur.ir.rewrite import erase_dead
from secateur.ir.types import DType
from secateur.passes.base import Pass


@dataclass(frozen=True)
class WeightOnly(Pass):
    """Lets a linear layer read quantised weights itself, in groups along K that have a scale each.

    before:  %d = dequantize(%w, %s, %zero);  %r = reshape(%d) {shape = [N, K]};  %0 = linear(%x, %r, %b)
    after:   %0 = linear_grouped(%x, %w, %s, %b)

    For f32 activations beside constant i8 weights [N, G, K/G] (or [N, K], one group) whose zero points are 0. Exact:
    the definition of `linear_grouped` is what stood there.
    """

    def run(self, graph: Graph) -> None:
        for op in list(graph.find("linear")):
            source = _source(op)
            found = _grouped(op, source) if source else None
            if found is None or source is None:
                continue
            b = Builder(graph, op, op.span)
            x, weight, *bias = op.operands
            stored = [b.constant(a, name=_name(v)) for a, v in zip(found, source.operands, strict=False)]
            graph.replace(op, [b.linear_grouped(x, *stored, *bias)])
            if weight.op:
                erase_dead(graph, [weight.op])


def _source(op: Op) -> Op | None:
    """The dequantize behind the weights of a layer over f32."""
    source = op.operands[1].op
    if source is not None and source.name == "reshape":
        source = source.operands[0].op
    if source is None or source.name != "dequantize" or op.operands[0].type.dtype is not DType.F32:
        return None
    shape = source.operands[0].shape
    return source if len(shape) == 3 or shape == op.operands[1].shape else None


def _grouped(op: Op, source: Op) -> tuple[np.ndarray, np.ndarray] | None:
    """The weights i8 [N, G, K/G] and scales f32 [N, G, 1] of a layer, or None where it has none such."""
    arrays = [constant_value(value) for value in source.operands]
    if any(array is None for array in arrays):
        return None
    integers, scale, zero = (np.asarray(array) for array in arrays)
    rows, depth = op.operands[1].shape
    fits = scale.ndim <= integers.ndim and integers.size and len(integers) == rows
    if integers.dtype != np.int8 or zero.any() or not fits:
        return None
    parts = integers if integers.ndim == 3 else integers.reshape(rows, 1, depth)
    full = scale.reshape((1,) * (integers.ndim - scale.ndim) + scale.shape)
    full = full if integers.ndim == 3 else full[:, None, :]
    if full.shape[2] != 1:
        return None
    return parts, np.array(np.broadcast_to(full, (*parts.shape[:2], 1)))


def _name(value: Value) -> str:
    return str(value.op.attrs["name"]) if value.op else ""
