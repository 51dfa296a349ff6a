"""Observers: from the histogram of a tensor to the range that its integers shall cover.

Each is one function of a histogram and a number format; the table at the end gives them their names.
Which one serves a tensor best is not decided here but by the error of the operation that reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from secateur.ir.diagnostics import CompileError, nearest
from secateur.passes.quantize.forms import Form, parameters
from secateur.passes.quantize.histogram import Histogram

Range = tuple[float, float]
Observer: TypeAlias = Callable[[Histogram, Form], Range]


def minmax(seen: Histogram, form: Form) -> Range:
    """Everything that was seen."""
    return seen.range()


def percentile(share: float) -> Observer:
    """The range that leaves `1 - share` of all values outside, half of it at each end (all at one, if there is one)."""

    def observe(seen: Histogram, form: Form) -> Range:
        low, high = seen.range()
        centres, counts = seen.weights()
        if not counts.size:
            return low, high
        outside = (1 - share) * counts.sum()
        if low < 0 < high:
            outside /= 2
        below = np.cumsum(counts) <= outside
        above = np.cumsum(counts[::-1])[::-1] <= outside
        kept = centres[~below & ~above]
        if not kept.size:
            return low, high
        width = float(np.diff(seen.edges()[:2])[0]) / 2
        return (
            max(low, float(kept[0]) - width) if low < 0 else low,
            min(high, float(kept[-1]) + width) if high > 0 else high,
        )

    return observe


def mse(seen: Histogram, form: Form) -> Range:
    """The range of least squared error of the values: both ends scaled together, then each by itself."""
    low, high = seen.range()
    centres, counts = seen.weights()
    if not counts.size:
        return low, high

    def error(a: float, b: float) -> float:
        return squared_error(centres, counts, form, low * a, high * b)

    both = min(np.linspace(1.0, 0.02, 50), key=lambda share: error(share, share))
    near = [both * step for step in np.linspace(0.7, 1.3, 25) if both * step <= 1]
    a, b = both, both
    if not form.symmetric and low < 0 < high:
        b = min([both, 1.0, *near], key=lambda share: error(both, share))
        a = min([both, 1.0, *near], key=lambda share: error(share, b))
    else:
        a = b = min([both, *near], key=lambda share: error(share, share))
    return low * float(a), high * float(b)


def squared_error(centres: np.ndarray, counts: np.ndarray, form: Form, low: float, high: float) -> float:
    """Sum over a histogram of the squared difference that a format of range low..high makes."""
    scale, zero = parameters(form, low, high)
    step, offset = float(scale), float(zero)
    integers = np.clip(np.rint(centres / step) + offset, form.low, form.high)
    return float(counts @ np.square((integers - offset) * step - centres))


def entropy(seen: Histogram, form: Form) -> Range:
    """The range of least Kullback-Leibler divergence between the values and what their integers say of them.

    Migacz, "8-bit inference with TensorRT", 2017: values outside count at the edge of the range on the
    one side, and are missing from the integers on the other.
    """
    low, high = seen.range()
    edges, counts = seen.edges(), seen.counts.astype(np.float64)
    if not seen.number or form.levels > counts.size:
        return low, high
    if form.symmetric:
        low, high = -max(-low, high, 0.0), max(-low, high, 0.0)
    centres = (edges[:-1] + edges[1:]) / 2
    best = min(np.linspace(1.0, 0.05, 64), key=lambda a: _divergence(centres, counts, form, low * a, high * a))
    seen_low, seen_high = seen.range()
    return max(low * float(best), seen_low), min(high * float(best), seen_high)


def _divergence(centres: np.ndarray, counts: np.ndarray, form: Form, low: float, high: float) -> float:
    inside = (centres >= low) & (centres <= high)
    if inside.sum() < 2 or not counts[inside].any():
        return np.inf
    kept = counts[inside]
    wanted = kept.copy()
    wanted[0] += counts[centres < low].sum()
    wanted[-1] += counts[centres > high].sum()
    scale, zero = parameters(form, low, high)
    levels = np.rint(centres[inside] / float(scale) + float(zero)).astype(np.int64)
    levels = np.clip(levels, form.low, form.high) - form.low
    filled = kept > 0
    sums = np.bincount(levels, kept, form.levels)
    places = np.bincount(levels, filled, form.levels)
    said = np.where(filled, (sums / np.maximum(places, 1))[levels], 0.0)
    p, q = wanted / wanted.sum(), said / said.sum()
    smooth = 1e-9  # an outlier's mass where no value lay: dear, but not infinitely so
    used = p > 0
    return float((p[used] * np.log(p[used] / np.maximum(q[used], smooth))).sum())


OBSERVERS: dict[str, Observer] = {
    "minmax": minmax,
    "p99.9": percentile(0.999),
    "p99.99": percentile(0.9999),
    "p99.999": percentile(0.99999),
    "mse": mse,
    "entropy": entropy,
}


def candidates(seen: Histogram, form: Form, names: tuple[str, ...]) -> dict[str, Range]:
    """The range each observer proposes; of several that mean the same integers only the first."""
    found: dict[str, Range] = {}
    known = set()
    for name in names:
        low, high = observer(name)(seen, form)
        scale, zero = parameters(form, low, high)
        if (float(scale), int(zero)) not in known:
            known.add((float(scale), int(zero)))
            found[name] = (low, high)
    return found


def observer(name: str) -> Observer:
    """The observer called `name`; raises `CompileError` naming the nearest one."""
    if name not in OBSERVERS:
        raise CompileError(
            f"unknown observer {name!r}", hint=nearest(name, OBSERVERS) or f"there are {', '.join(OBSERVERS)}"
        )
    return OBSERVERS[name]
