"""Layer normalisation and attention in integers: what a quantised transformer is made of besides products.

Both are defined to the last bit by exact integer arithmetic, so that every backend gives the same result.
The scheme follows I-BERT (Kim et al. 2021), with wider intermediate values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from secateur.ir.draw import Draw, Sample
from secateur.ir.expr import mulshift
from secateur.ir.graph import Op, Value
from secateur.ir.opdef import Attr, OpDef, define, lookup, operands
from secateur.ir.ops._common import identity_links, multiply
from secateur.ir.ops.attention import causal_mask, check_attention, links, repeat_heads
from secateur.ir.types import DType, TensorType, numel

if TYPE_CHECKING:
    from secateur.ir.builder import Builder

# standardize --------------------------------------------------------------------------------------

FRACTION = 6  # bits that a difference from the mean keeps behind the point


def _isqrt(x: np.ndarray) -> np.ndarray:
    """Largest r with r * r <= x, for 0 <= x < 2^62: from the float root, which is off by one at most."""
    root = np.sqrt(x.astype(np.float64)).astype(np.int64)
    root -= root * root > x
    return root + ((root + 1) * (root + 1) <= x)


def _standardize(x: np.ndarray, *, epsilon: int, centre: bool) -> np.ndarray:
    size = x.shape[-1]
    wide = x.astype(np.int64) << FRACTION
    mean = (wide.sum(-1, keepdims=True) + size // 2) // max(size, 1) if centre else 0
    apart = wide - mean
    variance = (apart * apart).sum(-1, keepdims=True) // max(size, 1) + epsilon
    root = np.maximum(_isqrt(variance << 16), 1)  # 256 times the standard deviation
    bits = np.frexp(root.astype(np.float64))[1].astype(np.int64)  # 2^(bits-1) <= root < 2^bits
    inverse = (np.int64(1) << (29 + bits)) // root
    return mulshift(apart, inverse, bits + 1)


def _infer_standardize(x: TensorType, *, epsilon: int, centre: bool) -> TensorType:
    if x.rank < 1 or x.shape[-1] > 1 << 16:
        raise ValueError("x must be [..., D] with D up to 65536")
    if not 0 <= epsilon < 1 << 44:
        raise ValueError(f"epsilon {epsilon} is not in 0..2^44")
    return x.with_dtype(DType.I32)


def _sample_standardize(draw: Draw) -> Sample:
    x = draw.tensor(DType.I16, draw.shape(1)) * np.int16(draw.choice([1, 7, 300]))
    if draw.bool(0.2):
        x[...] = x.reshape(-1)[:1] if x.size else x  # no variance at all
    return Sample((np.asarray(x),), {"epsilon": draw.choice([0, 1, 5000, (1 << 44) - 1]), "centre": draw.bool(0.8)})


define(
    OpDef(
        name="standardize",
        doc="(x - mean) / sqrt(variance + epsilon) over the last axis of x [..., D], i16, in fixed point with 20 bits "
        "behind the point: layer norm without its weights; without `centre` the mean is left out (RMS norm). In "
        "integers: c = (x << 6) - (sum(x << 6) + D / 2) / D, v = sum(c * c) / D + epsilon, r = max(isqrt(v << 16), 1), "
        "n = bits of r, result = (c * ((1 << 29 + n) / r) + (1 << n)) >> n + 1, divisions rounding down.",
        operands=operands("x", x=(DType.I16,)),
        attrs={"epsilon": Attr("int", 0), "centre": Attr("bool", True)},
        infer=_infer_standardize,
        reference=_standardize,
        sample=_sample_standardize,
        flops=lambda op: 6 * op.results[0].type.numel,
        dim_links=identity_links,
    )
)


# attention_integer --------------------------------------------------------------------------------

HIDDEN = -(1 << 30)  # below every score: 128 * 128 * D for D < 2^16
WEIGHT = 255  # the largest exponential as u8
GAIN = 6  # bits behind the point of the result


def _infer_attention(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    mask: TensorType | None = None,
    *,
    multiplier: int,
    shift: int,
    causal: bool,
) -> TensorType:
    if not 0 <= multiplier < 1 << 31 or not 1 <= shift <= 62:
        raise ValueError(f"multiplier {multiplier} must be in 0..2^31 and shift {shift} in 1..62")
    if mask and mask.dtype is not DType.BOOL:
        raise ValueError(f"mask must be bool, got {mask.dtype}")
    if k.shape[-2] > 1 << 15 or k.shape[-1] >= 1 << 16:
        raise ValueError("up to 32768 keys of up to 65535 elements")
    return check_attention(q, k, v, mask).with_dtype(DType.I32)


def _attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    multiplier: int,
    shift: int,
    causal: bool,
) -> np.ndarray:
    repeat = q.shape[-3] // k.shape[-3]
    k, v = np.repeat(k, repeat, -3), np.repeat(v, repeat, -3)
    seen = np.ones((*q.shape[:-1], k.shape[-2]), np.bool_)
    seen = seen if mask is None else seen & mask
    seen = seen & causal_mask(q.shape[-2], k.shape[-2]) if causal else seen
    scores = np.where(seen, multiply(q, np.swapaxes(k, -1, -2)), np.int32(HIDDEN))
    powers = lookup("decay").reference(scores.max(-1, keepdims=True) - scores, np.int32(multiplier), shift=shift)
    assert isinstance(powers, np.ndarray)
    weights = np.where(seen, (powers * WEIGHT + (1 << 14)) >> 15, 0).astype(np.uint8)
    total = weights.sum(-1, keepdims=True, dtype=np.int64)
    inverse = (1 << 32 + GAIN) // np.maximum(total, 1) * (total > 0)
    return mulshift(multiply(weights, v), inverse, 32)


def _decompose_attention(b: Builder, op: Op) -> list[Value]:
    """The same in matrix products, reductions and elementwise operations."""
    q, k, v, *masks = op.operands
    attrs, rank = op.attrs, q.type.rank
    repeat, (s, t) = q.shape[-3] // k.shape[-3], (q.shape[-2], k.shape[-2])
    k, v = repeat_heads(b, k, repeat), repeat_heads(b, v, repeat)
    seen = masks + ([b.constant(causal_mask(s, t))] if attrs["causal"] else [])

    def number(value: int, dtype: DType = DType.I32) -> Value:
        return b.constant(np.asarray(value, dtype.numpy))

    scores = b.matmul(q, b.transpose(k, perm=[*range(rank - 2), rank - 1, rank - 2]))
    for mask in seen:
        scores = b.where(mask, scores, number(HIDDEN))
    below = b.sub(b.reduce_max(scores, axes=[rank - 1], keepdims=True), scores)
    powers = b.decay(below, number(attrs["multiplier"]), shift=attrs["shift"])
    weights = b.shift_right(b.add(b.mul(powers, number(WEIGHT)), number(1 << 14)), number(15))
    for mask in seen:
        weights = b.where(mask, weights, number(0))
    total = b.cast(b.reduce_sum(weights, axes=[rank - 1], keepdims=True), dtype=DType.I64)
    inverse = b.cast(b.trunc_div(number(1 << 32 + GAIN, DType.I64), total), dtype=DType.I32)
    summed = b.matmul(b.cast(weights, dtype=DType.U8), v)
    return [b.rescale(summed, inverse, number(0), shift=32)]


def _sample_attention(draw: Draw) -> Sample:
    batch, hkv, repeat = draw.shape(0, 2, numel=4), draw.choice([1, 2, 3]), draw.choice([1, 1, 2])
    s, t, d, dv = draw.size(9), draw.size(33), draw.size(17), draw.size(9)
    h = hkv * repeat
    arrays = [draw.tensor(DType.I8, (*batch, *shape)) for shape in ((h, s, d), (hkv, t, d), (hkv, t, dv))]
    if draw.bool():
        arrays.append(draw.tensor(DType.BOOL, draw.broadcastable((*batch, h, s, t))))
    attrs = {"multiplier": draw.int(1 << 28, (1 << 31) - 1), "shift": draw.int(26, 34), "causal": draw.bool()}
    return Sample(tuple(arrays), attrs)


define(
    OpDef(
        name="attention_integer",
        doc="Attention of i8 queries, keys and values, shapes as those of `attention`, with an optional bool mask. "
        "Keys weigh w = (255 * decay(max(q k^T) - q k^T, multiplier, shift) + 2^14) >> 15, 0 where hidden; the result "
        "is sum(w v) / sum(w) as i32 with 6 bits behind the point: mulshift(sum(w v), 2^38 / sum(w), 32). A row that "
        "may attend to nothing gives 0.",
        operands=operands("q k v mask?", q=(DType.I8,), k=(DType.I8,), v=(DType.I8,), mask=(DType.BOOL,)),
        attrs={"multiplier": Attr("int"), "shift": Attr("int"), "causal": Attr("bool", False)},
        infer=_infer_attention,
        reference=_attention,
        sample=_sample_attention,
        flops=lambda op: (
            2
            * numel(op.operands[0].shape[:-1])
            * op.operands[1].shape[-2]
            * (op.operands[0].shape[-1] + op.operands[2].shape[-1] + 5)
        ),
        dim_links=links,
        decompose=_decompose_attention,
    )
)
