"""Linear layers whose weights are small integers with a scale for each group of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from secateur.ir.draw import Draw, Sample
from secateur.ir.graph import Op, Value
from secateur.ir.opdef import DimLink, OpDef, define, operands
from secateur.ir.types import DType, TensorType

if TYPE_CHECKING:
    from secateur.ir.builder import Builder


def _infer(x: TensorType, w: TensorType, scale: TensorType, bias: TensorType | None = None) -> TensorType:
    if w.rank != 3 or x.rank < 1 or x.shape[-1] != w.shape[1] * w.shape[2]:
        raise ValueError("x must be [..., K] and w [N, G, K/G]")
    if scale.shape != (*w.shape[:2], 1):
        raise ValueError(f"scale must be {[*w.shape[:2], 1]}, got {list(scale.shape)}")
    if bias and bias.shape != w.shape[:1]:
        raise ValueError(f"bias must be [{w.shape[0]}]")
    return x.with_shape([*x.shape[:-1], w.shape[0]])


def _linear_grouped(x: np.ndarray, w: np.ndarray, scale: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    weight = (w.astype(np.float32) * scale).reshape(len(w), x.shape[-1])
    result = np.matmul(x, weight.T)
    return result if bias is None else result + bias


def _links(op: Op) -> list[DimLink]:
    last = op.results[0].type.rank - 1
    links = [DimLink(0, dim, dim) for dim in range(last)]
    return links + [DimLink(position, 0, last) for position in range(1, len(op.operands))]


def _decompose(b: Builder, op: Op) -> list[Value]:
    """A linear layer over the dequantised weights."""
    x, w, scale, *bias = op.operands
    weight = b.reshape(b.dequantize(w, scale, np.zeros((), np.int8)), shape=[w.shape[0], x.shape[-1]])
    return [b.linear(x, weight, *bias)]


def _sample(draw: Draw) -> Sample:
    n, groups, size = draw.size(), draw.size(5), draw.size()
    most = draw.choice([7, 127])
    arrays = [
        draw.tensor(DType.F32, (*draw.shape(0, 2, numel=32), groups * size)),
        draw.tensor(DType.I8, (n, groups, size), -most - 1, most),
        np.asarray(np.exp2(draw.rng.uniform(-6, 1, (n, groups, 1))), np.float32),
    ]
    return Sample((*arrays, draw.tensor(DType.F32, (n,))) if draw.bool() else tuple(arrays))


define(
    OpDef(
        name="linear_grouped",
        doc="x [..., K] f32, w [N, G, K/G] i8, scale [N, G, 1] f32, bias [N] -> x @ (w * scale).T + bias, [..., N]. "
        "Weights within -8..7 take half a byte each where a kernel packs them.",
        operands=operands("x w scale bias?", x=(DType.F32,), w=(DType.I8,), scale=(DType.F32,), bias=(DType.F32,)),
        infer=_infer,
        reference=_linear_grouped,
        sample=_sample,
        flops=lambda op: op.results[0].type.numel * (2 * op.operands[0].shape[-1] + len(op.operands) - 3),
        dim_links=_links,
        decompose=_decompose,
    )
)
