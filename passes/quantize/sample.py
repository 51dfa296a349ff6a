"""Operations on a part of their operands, so that many tries cost little, and the inputs of products as rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.ir.graph import Op
from secateur.ir.interpret import run_op
from secateur.ir.opdef import lookup
from secateur.ir.ops._window import pad_spatial, window_counts, windows

ROWS = 512  # of linear layers and the like, from one batch
EDGE = 24  # of the piece that a convolution is tried on
ELEMENTS = 1 << 16  # of elementwise operations


def part(op: Op, arrays: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Smaller operands on which an operation works as it does on the whole ones: random rows or a piece of an image."""
    arrays = list(arrays)
    x = arrays[0]
    if op.name in ("linear", "layer_norm", "rms_norm") or (op.name == "softmax" and op.attrs["axis"] == x.ndim - 1):
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) > ROWS:
            rows = rows[np.sort(rng.choice(len(rows), ROWS, replace=False))]
        arrays[0] = rows
    elif op.name == "conv" and not op.attrs["channels_last"]:
        arrays[0] = _piece(op, x, arrays[1].shape[2:], rng)
    elif lookup(op.name).elementwise and x.size > ELEMENTS and all(a.shape == x.shape for a in arrays):
        chosen = rng.integers(0, x.size, ELEMENTS)
        arrays = [array.reshape(-1)[chosen] for array in arrays]
    return arrays


def _piece(op: Op, x: np.ndarray, kernel: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A random piece of x [N, C, *spatial], large enough for a few windows."""
    place: list[slice] = [slice(None), slice(None)]
    for size, k, dilation in zip(x.shape[2:], kernel, op.attrs["dilation"], strict=True):
        edge = max(EDGE, 2 * dilation * (k - 1) + 1)
        start = int(rng.integers(0, max(size - edge, 0) + 1))
        place.append(slice(start, start + edge))
    return x[tuple(place)]


def compute(op: Op, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The (only) result of an operation on arrays, f64."""
    return run_op(op, arrays)[0].astype(np.float64)


def by_channel(op: Op, x: np.ndarray) -> np.ndarray:
    """Sums of squares of each output channel of a product's result, f64 [channels]; of other results, of everything."""
    squares = np.square(x)
    if op.name not in ("conv", "linear") or x.ndim < 2:
        return squares.sum().reshape(1)
    axis = 1 if op.name == "conv" else x.ndim - 1
    return squares.sum(tuple(dim for dim in range(x.ndim) if dim != axis))


def relative(noise: np.ndarray, signal: np.ndarray) -> float:
    """Mean over channels of noise over signal: each counts alike, whatever its size, for what follows may be a norm
    or weights that make up for it. Channels far below the mean count by that."""
    return float((noise / np.maximum(signal, max(1e-3 * float(signal.mean()), 1e-30))).mean())


def interpolated(op: Op, x: np.ndarray, scale: float) -> np.ndarray:
    """An elementwise function as a table of an i16 gives it: straight lines between 129 points (the op `lookup`)."""
    points = ((np.arange(129) * 512.0 - 32768) * scale).astype(np.float32)
    return np.interp(x.astype(np.float64), points.astype(np.float64), compute(op, [points]))


def input_rows(op: Op, x: np.ndarray, kernel: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """What the weights of a product meet: f32 [groups, rows, K], K the weights of one output channel.

    Args:
        kernel: spatial sizes of the weights of a convolution.
    """
    if op.name == "linear":
        return part(op, [x], rng)[0][None]
    attrs, n = op.attrs, len(kernel)
    counts = window_counts(x.shape[2:], kernel, attrs["stride"], attrs["padding"], attrs["dilation"])
    padded = pad_spatial(x, attrs["padding"][:n], attrs["padding"][n:], 0)
    view = windows(padded, kernel, attrs["stride"], attrs["dilation"], counts)  # [N, C, *counts, *kernel]
    places = np.stack(np.unravel_index(rng.integers(0, len(x) * int(np.prod(counts)), ROWS), (len(x), *counts)))
    rows = view[(places[0], slice(None), *places[1:])]  # [ROWS, C, *kernel]
    rows = rows.reshape(len(rows), attrs["groups"], -1)
    return np.ascontiguousarray(rows.swapaxes(0, 1))
