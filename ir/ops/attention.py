"""Scaled dot-product attention, with masks and grouped heads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from secateur.ir.draw import Draw, Sample
from secateur.ir.graph import Op, Value
from secateur.ir.opdef import Attr, DimLink, OpDef, define, operands
from secateur.ir.ops._common import check_same_dtype, in_f32, scalar, wide
from secateur.ir.ops.elementwise import broadcast
from secateur.ir.types import ALL, FLOATS, DType, TensorType, numel

if TYPE_CHECKING:
    from secateur.ir.builder import Builder


def check_attention(q: TensorType, k: TensorType, v: TensorType, mask: TensorType | None = None) -> TensorType:
    """[..., H, S, Dv] of q's element type; raises `ValueError` where shapes or element types do not fit."""
    check_same_dtype([q, k, v])
    if min(q.rank, k.rank, v.rank) < 3 or not q.rank == k.rank == v.rank:
        raise ValueError("q, k and v need the same rank of at least 3: [..., heads, length, size]")
    if not q.shape[:-3] == k.shape[:-3] == v.shape[:-3]:
        raise ValueError("the batch dimensions of q, k and v must agree")
    h, d, (hkv, t, dk) = q.shape[-3], q.shape[-1], k.shape[-3:]
    if d != dk or v.shape[-3:-1] != (hkv, t):
        raise ValueError("q [..., H, S, D] needs k [..., Hkv, T, D] and v [..., Hkv, T, Dv]")
    if hkv == 0 or h % hkv or t == 0:
        raise ValueError(
            f"{h} query heads over {hkv} heads of {t} keys: the heads must divide, and a key must be there"
        )
    result = q.with_shape([*q.shape[:-1], v.shape[-1]])
    if mask:
        if mask.dtype not in (DType.BOOL, q.dtype):
            raise ValueError(f"mask must be bool or {q.dtype}")
        if broadcast(mask.shape, (*q.shape[:-1], t)) != (*q.shape[:-1], t):
            raise ValueError(f"mask does not broadcast to {[*q.shape[:-1], t]}")
    return result


def _infer_attention(*types: TensorType, scale: float, causal: bool) -> TensorType:
    return check_attention(*types)


def causal_mask(s: int, t: int) -> np.ndarray:
    """[S, T], true where query i may attend to key j <= i."""
    return np.tri(s, t, dtype=np.bool_)


def _attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None = None, *, scale: float, causal: bool
) -> np.ndarray:
    repeat = q.shape[-3] // k.shape[-3]
    wq, wk, wv = wide(q), np.repeat(wide(k), repeat, -3), np.repeat(wide(v), repeat, -3)
    scores = np.matmul(wq, np.swapaxes(wk, -1, -2)) * wq.dtype.type(scale)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == np.bool_ else scores + wide(mask)
    if causal:
        scores = np.where(causal_mask(q.shape[-2], k.shape[-2]), scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(top == -np.inf, 0, top))
    total = weights.sum(-1, keepdims=True)
    return np.matmul(weights / np.where(total == 0, 1, total), wv).astype(q.dtype)


def links(op: Op) -> list[DimLink]:
    """Batch; heads where each has its own keys; queries unless `causal` ties them to their place; Dv."""
    q, k, _, *masks = op.operands
    rank, causal = q.type.rank, op.attrs["causal"]
    shared = [*range(rank - 3)] + ([rank - 3] if q.shape[-3] == k.shape[-3] else [])
    found = [DimLink(position, dim, dim) for position in range(3) for dim in shared]
    queries = [] if causal else [rank - 2]
    found += [DimLink(0, dim, dim) for dim in queries]
    for mask in masks:
        offset = rank - mask.type.rank
        dims = [dim for dim in range(mask.type.rank - 1) if dim + offset in (*shared, *queries)]
        found += [DimLink(3, dim, dim + offset) for dim in dims if mask.shape[dim] == q.shape[dim + offset]]
    return [*found, DimLink(2, rank - 1, rank - 1)]


def repeat_heads(b: Builder, x: Value, repeat: int) -> Value:
    """[..., Hkv, T, D] -> [..., Hkv * repeat, T, D], each head `repeat` times in a row."""
    if repeat == 1:
        return x
    *lead, heads, length, size = x.shape
    x = b.reshape(x, shape=[*lead, heads, 1, length, size])
    x = b.broadcast_to(x, shape=[*lead, heads, repeat, length, size])
    return b.reshape(x, shape=[*lead, heads * repeat, length, size])


def _decompose_attention(b: Builder, op: Op) -> list[Value]:
    """softmax(q k^T * scale + mask) v; rows that a mask leaves empty are set to 0."""
    causal, scale = op.attrs["causal"], op.attrs["scale"]

    def build(q: Value, k: Value, v: Value, mask: Value | None = None) -> Value:
        dtype, rank = q.type.dtype, q.type.rank
        repeat = q.shape[-3] // k.shape[-3]
        k, v = repeat_heads(b, k, repeat), repeat_heads(b, v, repeat)
        turned = b.transpose(k, perm=[*range(rank - 2), rank - 1, rank - 2])
        scores = b.mul(b.matmul(q, turned), scalar(b, scale, dtype))
        never = scalar(b, -math.inf, dtype)
        if mask is not None:
            scores = b.where(mask, scores, never) if mask.type.dtype is DType.BOOL else b.add(scores, mask)
        if causal:
            scores = b.where(b.constant(causal_mask(q.shape[-2], k.shape[-2])), scores, never)
        weights = b.softmax(scores, axis=rank - 1)
        if mask is not None:
            empty = b.eq(b.reduce_max(scores, axes=[rank - 1], keepdims=True), never)
            weights = b.where(empty, scalar(b, 0.0, dtype), weights)
        return b.matmul(weights, v)

    return in_f32(b, op, build)


def _sample_attention(draw: Draw) -> Sample:
    dtype, batch = draw.choice(FLOATS), draw.shape(0, 2, numel=4)
    hkv, repeat = draw.choice([1, 2, 3]), draw.choice([1, 1, 2])
    s, t, d, dv = draw.size(9), draw.size(17), draw.size(9), draw.size(9)
    h = hkv * repeat
    shapes = (*batch, h, s, d), (*batch, hkv, t, d), (*batch, hkv, t, dv)
    arrays = [draw.tensor(dtype, shape, specials=False) for shape in shapes]
    if draw.bool():
        mask_type = draw.choice([DType.BOOL, dtype])
        mask = draw.tensor(mask_type, draw.broadcastable((*batch, h, s, t)), specials=False)
        if mask_type.is_float and draw.bool():
            mask[mask < 0] = -np.inf
        arrays.append(mask)
    return Sample(tuple(arrays), {"scale": draw.float(0.1, 1.0), "causal": draw.bool()})


define(
    OpDef(
        name="attention",
        doc="softmax(q k^T * scale + mask) v for q [..., H, S, D], k [..., Hkv, T, D], v [..., Hkv, T, Dv]. Query head "
        "h reads head h // (H / Hkv). A bool mask is true where to attend, a float one is added; causal lets query i "
        "see keys 0..i. A row that may attend to nothing gives 0.",
        operands=operands("q k v mask?", q=FLOATS, k=FLOATS, v=FLOATS, mask=ALL),
        attrs={"scale": Attr("float"), "causal": Attr("bool", False)},
        infer=_infer_attention,
        reference=_attention,
        sample=_sample_attention,
        flops=lambda op: (
            2
            * numel(op.operands[0].shape[:-1])
            * op.operands[1].shape[-2]
            * (op.operands[0].shape[-1] + op.operands[2].shape[-1] + 3)
        ),
        dim_links=links,
        decompose=_decompose_attention,
    )
)
