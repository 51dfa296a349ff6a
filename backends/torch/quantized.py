"""Quantisation and its integer operations in torch: the same numbers as the references, to the last bit."""

from __future__ import annotations

import torch
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


for _function in (quantize, dequantize, saturate, rescale, lookup, decay):
    enter(_function.__name__, _function, exact=True)
