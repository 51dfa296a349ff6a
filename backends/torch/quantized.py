"""Quantisation and its integer operations in torch: the same numbers as the references, to the last bit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.backends.torch.elementwise import cast
from secateur.backends.torch.table import enter

Ints = tuple[int, ...]
_TABLE_STEP = 512  # an i16 table has an entry every 512 steps


def quantize(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return cast(torch.round(x / scale) + zero.float(), zero.dtype)


def dequantize(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return (x.float() - zero.float()) * scale


def saturate(x: Tensor, dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype)
    return x.long().clamp(limits.min, limits.max).to(dtype)


def mulshift(x: Tensor, multiplier: Tensor, shift: int) -> Tensor:
    """i32: the product of two i32 over 2^shift, rounded half up; exact in i64."""
    return ((x.long() * multiplier.long() + (1 << (shift - 1))) >> shift).int()


def rescale(x: Tensor, multiplier: Tensor, zero: Tensor, shift: int) -> Tensor:
    return saturate(mulshift(x, multiplier, shift) + zero.int(), zero.dtype)


def lookup(x: Tensor, table: Ints, dtype: torch.dtype) -> Tensor:
    entries = torch.tensor(table, dtype=torch.int32)
    place = x.int() - torch.iinfo(x.dtype).min
    if x.element_size() == 1:
        return saturate(entries[place], dtype)
    low, part = place // _TABLE_STEP, place % _TABLE_STEP
    rise = (entries[low + 1] - entries[low]) * part
    return saturate(entries[low] + ((rise + _TABLE_STEP // 2) >> 9), dtype)


def decay(x: Tensor, multiplier: Tensor, shift: int) -> Tensor:
    """32767 * 2^(-y/256): a cubic over one octave by Horner's rule in integers, shifted right by the octaves."""
    y = mulshift(x, multiplier, shift)
    part, octaves = y & 255, y >> 8
    value = torch.full_like(y, 1325)
    for coefficient in (7607, 22670, 32767):
        value = coefficient - ((part * value + 128) >> 8)
    return torch.where(y > 3839, 0, value >> (octaves & 31))  # counts are modulo 32, as everywhere


def linear_grouped(x: Tensor, w: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, (w.float() * scale).reshape(w.shape[0], x.shape[-1]), bias)


def _isqrt(x: Tensor) -> Tensor:
    """The largest r with r * r <= x for i64 below 2^62, bit by bit from the top."""
    root = torch.zeros_like(x)
    for bit in reversed(range(31)):
        tried = root | (1 << bit)
        root = torch.where(tried * tried <= x, tried, root)
    return root


def standardize(x: Tensor, epsilon: int, centre: bool) -> Tensor:
    size = max(x.shape[-1], 1)
    wide = x.long() * 64
    apart = wide - (wide.sum(-1, keepdim=True) + x.shape[-1] // 2) // size if centre else wide
    variance = apart.square().sum(-1, keepdim=True) // size + epsilon
    root = _isqrt(variance << 16).clamp(min=1)
    bits = sum((root >> bit > 0).long() for bit in range(31))
    inverse = (1 << (29 + bits)) // root
    return ((apart * inverse + (1 << bits)) >> (bits + 1)).int()


def attention_integer(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, multiplier: int, shift: int, causal: bool
) -> Tensor:
    """Scores far below every other stand for hidden keys, whose weights are then 0."""
    repeat = q.shape[-3] // k.shape[-3]
    k, v = k.repeat_interleave(repeat, -3).long(), v.repeat_interleave(repeat, -3).long()
    scores = torch.matmul(q.long(), k.transpose(-1, -2))
    seen = torch.ones_like(scores, dtype=torch.bool)
    if causal:
        seen = seen.tril()
    if mask is not None:
        seen = seen & mask
    scores = scores.masked_fill(~seen, -(1 << 30)).int()
    powers = decay(scores.amax(-1, keepdim=True) - scores, torch.tensor(multiplier, dtype=torch.int32), shift)
    weights = ((powers.long() * 255 + (1 << 14)) >> 15).masked_fill(~seen, 0)
    total = weights.sum(-1, keepdim=True)
    inverse = torch.where(total > 0, (1 << 38) // total.clamp(min=1), 0)
    return mulshift(torch.matmul(weights, v).int(), inverse, 32)


_EXACT = (quantize, dequantize, saturate, rescale, lookup, decay, linear_grouped, standardize, attention_integer)
for _function in _EXACT:
    enter(_function.__name__, _function, exact=True)
