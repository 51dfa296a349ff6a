"""Real factors as integers: multiplier and shift, and the values of requantisation.

The form is that of Jacob et al. (2018), section 2.2, with one shift for all channels of an operation.
"""

from __future__ import annotations

import math

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Value
from secateur.ir.types import DType

MOST = (1 << 31) - 1  # of an i32
ROOM = 1 << 30  # no sum of two numbers below it leaves an i32
FRACTION = 16  # bits behind the point of values between two roundings, where their bounds leave room
SHIFTS = range(1, 63)
HALF = 128  # between the zero points of u8 and i8


def factor(ratio: np.ndarray) -> tuple[np.ndarray, int] | None:
    """(multipliers i32, shift) with multiplier / 2^shift next to each ratio: 31 bits for the largest of them.

    None where the largest is 2^30 or more.
    """
    top = float(np.abs(ratio).max(initial=0.0))
    if not top:
        return np.zeros(ratio.shape, np.int32), 1
    shift = min(31 - math.frexp(top)[1], SHIFTS[-1])
    if round(math.ldexp(top, shift)) > MOST:
        shift -= 1
    if shift not in SHIFTS:
        return None
    return np.rint(np.ldexp(np.asarray(ratio, np.float64), shift)).astype(np.int32), shift


def compact(array: np.ndarray) -> np.ndarray:
    """One number where all are the same, else the array without leading dimensions of size 1."""
    if array.size and bool(np.all(array == array.flat[0])):
        return array.flat[0:1].reshape(())
    lead = next((at for at, size in enumerate(array.shape) if size != 1), array.ndim)
    return np.asarray(array.reshape(array.shape[lead:]))


def integer(b: Builder, array: np.ndarray | int, dtype: DType = DType.I32) -> Value:
    """A constant of integers."""
    return b.constant(np.asarray(array).astype(dtype.numpy))


def rescale(b: Builder, x: Value, ratio: np.ndarray, zero: np.ndarray | int, dtype: DType) -> Value:
    """x * ratio + zero, rounded once and saturated; x is i32 and the product must fit i32 (see `bounds`)."""
    parts = factor(compact(ratio))
    assert parts is not None, "the caller has looked at the bounds"
    multiplier, shift = parts
    return b.rescale(x, integer(b, multiplier), integer(b, zero, dtype), shift=shift)


def offset(bits: int, zero: np.ndarray | int) -> np.ndarray | None:
    """What added before `narrowed` rounds half up and moves the zero point; None where i32 has no room for it."""
    half = 1 << bits >> 1
    whole = (np.asarray(zero, np.int64) << bits) + half
    return whole if np.abs(whole).max() < ROOM else None


def narrowed(b: Builder, x: Value, bits: int, dtype: DType) -> Value:
    """x >> bits, saturated."""
    whole = b.shift_right(x, integer(b, bits)) if bits else x
    return whole if dtype is DType.I32 else b.saturate(whole, dtype=dtype)


def round_off(b: Builder, x: Value, bits: int, zero: np.ndarray | int, dtype: DType) -> Value:
    """x / 2^bits + zero for |x| < 2^30, rounded half up and saturated."""
    first = offset(bits, zero)
    if first is None:
        return b.rescale(x, integer(b, 1), integer(b, zero, dtype), shift=bits)
    return narrowed(b, b.add(x, integer(b, first)) if np.any(first) else x, bits, dtype)


def widened(b: Builder, x: Value, zero: np.ndarray | int = 0) -> Value:
    """x - zero as i32."""
    wide = x if x.type.dtype is DType.I32 else b.cast(x, dtype=DType.I32)
    return b.sub(wide, integer(b, zero)) if np.any(zero) else wide
