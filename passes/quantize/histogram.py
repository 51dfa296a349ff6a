"""Histograms of streams: bounded memory whatever comes, by bins that double in width as the range grows."""

from __future__ import annotations

import math

import numpy as np

BINS = 4096


class Histogram:
    """Counts of a stream of values, and exact figures of each of its channels.

    Bins are of one width, a power of two, and lie at its multiples, so that zero is an edge and two
    neighbours merge into one of twice the width without loss.

    Args:
        channels: number of channels; 1 where they are of no interest.
        bins: number of bins.

    Attributes:
        counts: i64 [bins], of all channels together.
        low, high: the least and greatest value of each channel, f64 [channels]; exact, not those of bins.
        squares: sums of squares, f64 [channels].
        number: of values seen in each channel.
        unusual: how many values were NaN or infinite; they are counted here, and as 0.
    """

    def __init__(self, channels: int = 1, bins: int = BINS) -> None:
        self.counts = np.zeros(bins, np.int64)
        self.low = np.full(channels, np.inf)
        self.high = np.full(channels, -np.inf)
        self.squares = np.zeros(channels)
        self.number = 0
        self.unusual = 0
        self._exponent: int | None = None  # log2 of the width
        self._first = 0  # the first bin begins at this multiple of the width

    def add(self, x: np.ndarray, axis: int = 0) -> None:
        """Count an array; its dimension `axis` is the channels where there are several."""
        channels, bins = len(self.low), len(self.counts)
        rows = np.moveaxis(x, axis, 0).reshape(channels, -1) if channels > 1 else x.reshape(1, -1)
        finite = np.isfinite(rows)
        if not finite.all():
            self.unusual += int(finite.size - finite.sum())
            rows = np.where(finite, rows, 0)
        if not rows.size:
            return
        rows = rows.astype(np.float64)
        self.low = np.minimum(self.low, rows.min(1))
        self.high = np.maximum(self.high, rows.max(1))
        self.squares += np.einsum("cn,cn->c", rows, rows)
        self.number += rows.shape[1]
        exponent = self._cover(float(self.low.min()), float(self.high.max()))
        index = np.floor(np.ldexp(rows, -exponent)).astype(np.int64) - self._first
        self.counts += np.bincount(index.ravel(), minlength=bins)

    def _cover(self, low: float, high: float) -> int:
        """Widen and shift the bins until all of low..high, and zero, lies in them; log2 of the width."""
        bins = len(self.counts)
        low, high = min(low, 0.0), max(high, 0.0)

        def place(value: float, exponent: int) -> int:
            return math.floor(math.ldexp(value, -exponent))

        if self._exponent is None:
            self._exponent = max(math.frexp(max(high - low, 1e-30))[1] - int(math.log2(bins)), -900)
            self._first = place(low, self._exponent)
        exponent = self._exponent
        if self._first <= place(low, exponent) and place(high, exponent) < self._first + bins:
            return exponent
        while place(high, exponent) - place(low, exponent) >= bins:
            exponent += 1
        first = place(low, exponent)
        used = np.flatnonzero(self.counts)
        counts = np.zeros(bins, np.int64)
        np.add.at(counts, ((used + self._first) >> (exponent - self._exponent)) - first, self.counts[used])
        self.counts, self._exponent, self._first = counts, exponent, first
        return exponent

    def edges(self) -> np.ndarray:
        """The edges of the bins, f64 [bins + 1]."""
        exponent = 0 if self._exponent is None else self._exponent
        return np.ldexp(np.arange(self._first, self._first + len(self.counts) + 1, dtype=np.float64), exponent)

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """(centres f64 [n], counts f64 [n]) of the bins that are not empty."""
        edges, used = self.edges(), self.counts > 0
        return ((edges[:-1] + edges[1:]) / 2)[used], self.counts[used].astype(np.float64)

    def range(self) -> tuple[float, float]:
        """The least and greatest value of all; (0, 0) where nothing came."""
        return (float(self.low.min()), float(self.high.max())) if self.number else (0.0, 0.0)

    def largest(self) -> np.ndarray:
        """The largest magnitude of each channel, f64 [channels]."""
        return np.maximum(np.abs(self.low), np.abs(self.high)) if self.number else np.zeros(len(self.low))

    def mean_squares(self) -> np.ndarray:
        """The mean square of each channel, f64 [channels]."""
        return self.squares / max(self.number, 1)
