"""Number formats: which integers stand for a range of real numbers, and rounding to them in NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.ir.types import DType

TINY = float(np.finfo(np.float32).tiny)
HUGE = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Form:
    """Integers `low..high` of `dtype`. A symmetric form has zero point 0; another places zero where it fits."""

    name: str
    dtype: DType
    low: int
    high: int
    symmetric: bool

    @property
    def levels(self) -> int:
        return self.high - self.low + 1

    def __str__(self) -> str:
        return self.name


U8 = Form("u8", DType.U8, 0, 255, False)
P8 = Form("u8 from zero", DType.U8, 0, 255, True)  # for what is never negative, where zero points are not wanted
S8 = Form("i8", DType.I8, -127, 127, True)
S16 = Form("i16", DType.I16, -32767, 32767, True)
W8 = S8
W4 = Form("i4", DType.I8, -8, 7, True)  # an i8 holds each; a kernel packs two into a byte


def parameters(form: Form, low: np.ndarray | float, high: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Scale (f32, never 0 nor infinite) and zero point (the form's type) that cover low..high and zero itself.

    An empty range, as a channel of zeros has, gets scale 1.
    """
    low = np.minimum(np.asarray(low, np.float64), 0)
    high = np.maximum(np.asarray(high, np.float64), 0)
    if form.symmetric:
        scale = np.maximum(-low / min(-form.low, form.high) if form.low else 0 * low, high / form.high)
    else:
        scale = (high - low) / (form.high - form.low)
    scale = np.where(scale == 0, 1.0, np.clip(scale, TINY, HUGE)).astype(np.float32)
    zero = np.zeros(scale.shape) if form.symmetric else np.clip(np.rint(form.low - low / scale), form.low, form.high)
    return np.asarray(scale), np.asarray(zero).astype(form.dtype.numpy)


def to_integers(x: np.ndarray, form: Form, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """The integers of x as the op `quantize` has them, within low..high of the form; NaN gives 0."""
    steps = np.rint(np.asarray(x, np.float32) / scale) + zero.astype(np.float32)
    return np.nan_to_num(np.clip(steps, form.low, form.high), nan=0.0).astype(form.dtype.numpy)


def rounded(x: np.ndarray, form: Form, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """x after going through the integers and back (f32), as `dequantize(quantize(x))` gives it."""
    integers = to_integers(x, form, scale, zero).astype(np.float32)
    return ((integers - zero.astype(np.float32)) * scale).astype(np.float32)


def decibels(signal: float, noise: float) -> float:
    """Signal to noise power ratio in dB; 200 where there is no noise to speak of, -200 where there is nothing else."""
    if not np.isfinite(noise):
        return -200.0
    if noise <= 0 or signal / max(noise, 1e-300) > 1e20:
        return 200.0
    return float(10 * np.log10(max(signal, 1e-300) / noise))
