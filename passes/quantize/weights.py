"""Weights as integers: scales by channel, by group or for all, and the rounding to nearest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.passes.quantize.forms import TINY, W4, W8, Form
from secateur.passes.quantize.recipe import Scheme
from secateur.passes.quantize.table import LARGEST_BIAS

FORMS = {"int8": W8, "int4": W4}
BLOCK = 1 << 16  # weights looked at together, so that they stay in the cache while scales are tried


@dataclass(frozen=True, slots=True)
class Packed:
    """Quantised weights: `integers * scale`, reshaped to `shape`, is what they stand for.

    Attributes:
        integers: i8, [O, ...] as the weights are, or [N, K/g, g] where groups of g share a scale.
        scale: f32, broadcasts to the integers.
        shape: of the weights.
        form: which integers are used.
    """

    integers: np.ndarray
    scale: np.ndarray
    shape: tuple[int, ...]
    form: Form

    def real(self) -> np.ndarray:
        """The weights that these stand for, f32, as the op `dequantize` has them."""
        return (self.integers.astype(np.float32) * self.scale).reshape(self.shape)


def group_of(shape: tuple[int, ...], scheme: Scheme) -> int:
    """How many inputs share a scale: the scheme's group where the rows divide into such, else whole rows."""
    inputs = int(np.prod(shape[1:]))
    return scheme.group if scheme.group and len(shape) == 2 and inputs % scheme.group == 0 else inputs


def find_scales(
    weights: np.ndarray, scheme: Scheme, importance: np.ndarray | None = None, least: np.ndarray | None = None
) -> np.ndarray:
    """Scales f32 [O, G] for weights [O, ...] in G groups a row; all equal without `per_channel`.

    Of the largest magnitude and a grid of smaller ranges that one is taken whose rounding errs least, each error
    squared and counted by `importance`: the mean square of the input that the weight meets, which makes
    it the error of the product as far as the inputs are uncorrelated.

    Args:
        importance: f64 [K] or [O, K], K the weights of an output channel.
        least: f32 [O], scales must not be below.
    """
    form = FORMS[scheme.weights]
    rows = weights.reshape(len(weights), -1).astype(np.float32)
    if not rows.size:
        return np.ones((len(weights), 1), np.float32)
    parts = rows.reshape(len(rows), -1, group_of(weights.shape, scheme))
    weight = np.ones(1) if importance is None else importance / max(float(np.max(importance)), 1e-30)
    counted = np.broadcast_to(weight.astype(np.float32), rows.shape).reshape(parts.shape)
    full = np.abs(parts).max(2).astype(np.float64) / form.high
    if not scheme.per_channel:
        full = np.full_like(full, full.max())
    full = np.where(full == 0, 1.0, full)
    shares = np.linspace(1.0, 0.8, 21) if form is W8 else np.linspace(1.0, 0.2, 65)
    errors = _errors(parts, counted, np.maximum(full, TINY), shares, form)
    if not scheme.per_channel:
        errors = np.broadcast_to(errors.sum((1, 2), keepdims=True), errors.shape)
    best = full * shares[errors.argmin(0)]
    if least is not None:
        best = np.maximum(best, least[:, None])
    return np.maximum(best, TINY).astype(np.float32)


def _errors(parts: np.ndarray, counted: np.ndarray, full: np.ndarray, shares: np.ndarray, form: Form) -> np.ndarray:
    """Sum of counted squared errors f64 [shares, O, G] of parts f32 [O, G, g] for scales that are shares of `full`."""
    found = np.empty((len(shares), *full.shape))
    rows = max(1, BLOCK // parts[0].size)
    for start in range(0, len(parts), rows):
        x, weight = parts[start : start + rows], counted[start : start + rows]
        for number, share in enumerate(shares):
            scale = (full[start : start + rows, :, None] * share).astype(np.float32)
            off = np.rint(x / scale)
            np.clip(off, form.low, form.high, out=off)
            off *= scale
            off -= x
            found[number, start : start + rows] = np.einsum("ogk,ogk,ogk->og", off, off, weight)
    return found


def nearest(weights: np.ndarray, scales: np.ndarray, form: Form) -> np.ndarray:
    """Integers i8 [O, K] of weights [O, ...] for scales [O, G], each the nearest there is."""
    rows = weights.reshape(len(weights), -1).astype(np.float32)
    if not rows.size:
        return rows.astype(np.int8)
    parts = rows.reshape(len(rows), scales.shape[1], -1)
    return np.clip(np.rint(parts / scales[:, :, None]), form.low, form.high).astype(np.int8).reshape(rows.shape)


def pack(integers: np.ndarray, scales: np.ndarray, shape: tuple[int, ...], scheme: Scheme) -> Packed:
    """Put integers [O, K] and scales [O, G] into the shapes that a graph holds."""
    form = FORMS[scheme.weights]
    if scales.shape[1] > 1:
        return Packed(integers.reshape(len(integers), scales.shape[1], -1), scales[:, :, None], shape, form)
    if not scheme.per_channel:
        return Packed(integers.reshape(shape), scales.reshape(-1)[:1].reshape(()), shape, form)
    return Packed(integers.reshape(shape), scales.reshape(-1, *[1] * (len(shape) - 1)), shape, form)


def least_scales(bias: np.ndarray | None, input_scale: float) -> np.ndarray | None:
    """The scales below which a bias, counted in steps of the accumulator, would leave too little of its 32 bits."""
    if bias is None:
        return None
    return (np.abs(bias.astype(np.float64)) / (input_scale * LARGEST_BIAS)).astype(np.float32)
