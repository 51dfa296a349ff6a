"""Gathers by known indices that are slices or reshapes. All exact."""

from __future__ import annotations

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.ops.constant import constant_value
from secateur.ir.rewrite import Match, Outcome, rule
from secateur.ir.types import numel

MOST = 1 << 20  # indices looked at


def in_range(indices: np.ndarray, size: int) -> np.ndarray | None:
    """Indices with the negative ones counted from the end; None where one is out of range (it is clamped then)."""
    wide = indices.astype(np.int64)
    wide = np.where(wide < 0, wide + size, wide)
    return wide if np.all((wide >= 0) & (wide < size)) else None


@rule("gather(x, indices)")
def gather_of_run(m: Match, b: Builder) -> Outcome:
    """gather(x, [a, a + s, ...]) == slice(x, a : : s) for s >= 1; one index alone drops or keeps its dimension"""
    x, axis, given = m["x"], m.root.attrs["axis"], constant_value(m["indices"])
    if given is None or not 0 < given.size <= MOST:
        return None
    indices = in_range(given, x.shape[axis])
    if indices is None:
        return None
    flat = indices.reshape(-1)
    steps = set(np.diff(flat).tolist()) if flat.size > 1 else {1}
    if len(steps) != 1 or (step := steps.pop()) < 1:
        return None
    starts, stops, strides = [0] * x.type.rank, list(x.shape), [1] * x.type.rank
    starts[axis], stops[axis], strides[axis] = int(flat[0]), int(flat[-1]) + 1, step
    part = b.slice(x, starts=starts, stops=stops, steps=strides)
    return b.reshape(part, shape=m.root.result.shape)


@rule("gather_nd(x, indices)")
def gather_nd_of_all(m: Match, b: Builder) -> Outcome:
    """gather_nd that takes every part of x in order == reshape(x)"""
    x, given = m["x"], constant_value(m["indices"])
    if given is None or not 0 < given.size <= MOST or m.root.attrs["batch_dims"]:
        return None
    depth = given.shape[-1]
    columns = [in_range(given[..., axis], x.shape[axis]) for axis in range(depth)]
    known = [column for column in columns if column is not None]
    if len(known) != depth or not depth or given.size // depth != numel(x.shape[:depth]):
        return None
    places = np.ravel_multi_index(known, x.shape[:depth]).reshape(-1)
    return b.reshape(x, shape=m.root.result.shape) if np.array_equal(places, np.arange(places.size)) else None


RULES = [gather_of_run, gather_nd_of_all]
