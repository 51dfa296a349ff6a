"""Sliding windows: result sizes and the NumPy views that convolutions and pooling share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from secateur.ir.draw import Draw
from secateur.ir.ops._common import check_least, check_length
from secateur.ir.types import TensorType

Ints = tuple[int, ...]


def check_window(x: TensorType, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> int:
    """The number n of spatial dimensions; raises `ValueError` where an attribute does not fit it."""
    n = x.rank - 2
    if n not in (1, 2, 3):
        raise ValueError(f"x has rank {x.rank}; one to three spatial dimensions and N, C make 3 to 5")
    for what, values, least, count in (
        ("kernel", kernel, 1, n),
        ("stride", stride, 1, n),
        ("padding", padding, 0, 2 * n),
        ("dilation", dilation, 1, n),
    ):
        check_length(what, values, count)
        check_least(what, values, least)
    return n


def spatial(x: TensorType, channels_last: bool) -> Ints:
    return x.shape[1:-1] if channels_last else x.shape[2:]


def window_counts(
    sizes: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool = False
) -> Ints:
    """Number of windows in each dimension; raises `ValueError` where not even one fits.

    With `ceil_mode` a last window may hang over the end, if it starts inside the input or the
    padding in front of it.
    """
    n, counts = len(sizes), []
    for d, size in enumerate(sizes):
        low, high = padding[d], padding[n + d]
        room = size + low + high - dilation[d] * (kernel[d] - 1) - 1
        if room < 0 or size == 0:
            raise ValueError(f"a window of {kernel[d]} does not fit spatial dimension {d} of size {size} with padding")
        count = room // stride[d] + 1
        if ceil_mode and room % stride[d] and count * stride[d] < size + low:
            count += 1
        counts.append(count)
    return tuple(counts)


def pad_spatial(x: np.ndarray, low: Ints, high: Ints, value: Any) -> np.ndarray:
    """Pad the trailing dimensions of x with a value."""
    if not any(low) and not any(high):
        return x
    width = [(0, 0)] * (x.ndim - len(low)) + list(zip(low, high, strict=True))
    return np.pad(x, width, constant_values=value)


def windows(x: np.ndarray, kernel: Ints, stride: Ints, dilation: Ints, counts: Ints) -> np.ndarray:
    """A view [N, C, *counts, *kernel] of x [N, C, *padded sizes]."""
    n = len(kernel)
    reach = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    view = sliding_window_view(x, reach, tuple(range(2, 2 + n)))
    starts = tuple(slice(0, (c - 1) * s + 1, s) for c, s in zip(counts, stride, strict=True))
    taps = tuple(slice(None, None, d) for d in dilation)
    return view[(slice(None), slice(None), *starts, *taps)]


def overhang(sizes: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, counts: Ints) -> Ints:
    """How much must lie behind each dimension so that the last window fits."""
    n = len(sizes)
    ends = ((c - 1) * s + d * (k - 1) + 1 for c, s, d, k in zip(counts, stride, dilation, kernel, strict=True))
    return tuple(
        max(0, end - size - padding[d]) for d, (end, size) in zip(range(n), zip(ends, sizes, strict=True), strict=True)
    )


def to_channels_first(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -1, 1)


def to_channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


def result_shape(x: TensorType, channels: int, counts: Ints, channels_last: bool) -> Ints:
    return (x.shape[0], *counts, channels) if channels_last else (x.shape[0], channels, *counts)


def draw_window(draw: Draw, n: int, *, dilated: bool = True) -> dict[str, Ints]:
    """Kernel, stride, padding (each below the kernel's reach) and dilation for n dimensions."""
    kernel = tuple(draw.choice([1, 2, 3, 3, 5] if n < 3 else [1, 2, 3]) for _ in range(n))
    dilation = tuple(draw.choice([1, 1, 2, 3]) if dilated else 1 for _ in range(n))
    stride = tuple(draw.choice([1, 1, 2, 3]) for _ in range(n))
    most = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    low = tuple(draw.int(0, m) for m in most)
    high = low if draw.bool(0.6) else tuple(draw.int(0, m) for m in most)
    if draw.bool(0.3):
        low = high = (0,) * n
    return {"kernel": kernel, "stride": stride, "padding": (*low, *high), "dilation": dilation}


def draw_sizes(draw: Draw, window: dict[str, Ints]) -> Ints:
    """Spatial sizes into which at least one window fits."""
    n, sizes = len(window["kernel"]), []
    for d in range(n):
        reach = window["dilation"][d] * (window["kernel"][d] - 1) + 1
        least = max(1, reach - window["padding"][d] - window["padding"][n + d])
        sizes.append(least + draw.int(0, (20, 10, 4)[n - 1]))
    return tuple(sizes)


def volume(sizes: Ints) -> int:
    return math.prod(sizes)
