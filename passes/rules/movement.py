"""Movements that cancel, merge or do nothing. All exact: no element changes, only its place."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.ir.builder import Builder
from secateur.ir.rewrite import Match, Outcome, rule


def inverse(perm: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes `perm`."""
    back = [0] * len(perm)
    for position, axis in enumerate(perm):
        back[axis] = position
    return tuple(back)


@rule("reshape(x)")
def same_shape_reshape(m: Match, b: Builder) -> Outcome:
    """reshape(x, x.shape) == x"""
    return m["x"] if m["x"].shape == m.root.result.shape else None


@rule("reshape(reshape(x))")
def double_reshape(m: Match, b: Builder) -> Outcome:
    """reshape(reshape(x, s), t) == reshape(x, t)"""
    return b.reshape(m["x"], shape=m.root.result.shape)


@rule("transpose(x)")
def identity_transpose(m: Match, b: Builder) -> Outcome:
    """transpose(x, 0 1 2 ...) == x"""
    perm = m.root.attrs["perm"]
    return m["x"] if tuple(perm) == tuple(range(len(perm))) else None


@rule("transpose(transpose(x))")
def double_transpose(m: Match, b: Builder) -> Outcome:
    """transpose(transpose(x, p), q) == transpose(x, p[q])"""
    inner = m.op(0).attrs["perm"]
    return b.transpose(m["x"], perm=[inner[axis] for axis in m.root.attrs["perm"]])


@rule("transpose(x)")
def transpose_of_ones(m: Match, b: Builder) -> Outcome:
    """A transpose that only moves dimensions of size 1 is a reshape."""
    shape = m["x"].shape
    kept = [axis for axis in m.root.attrs["perm"] if shape[axis] != 1]
    return b.reshape(m["x"], shape=m.root.result.shape) if kept == sorted(kept) else None


@rule("broadcast_to(x)")
def same_shape_broadcast(m: Match, b: Builder) -> Outcome:
    """broadcast_to(x, x.shape) == x"""
    return m["x"] if m["x"].shape == m.root.result.shape else None


@rule("broadcast_to(broadcast_to(x))")
def double_broadcast(m: Match, b: Builder) -> Outcome:
    """broadcast_to(broadcast_to(x, s), t) == broadcast_to(x, t)"""
    return b.broadcast_to(m["x"], shape=m.root.result.shape)


@rule("broadcast_to(x)")
def broadcast_of_ones(m: Match, b: Builder) -> Outcome:
    """A broadcast that only adds dimensions of size 1 is a reshape."""
    return b.reshape(m["x"], shape=m.root.result.shape) if m["x"].type.numel == m.root.result.type.numel else None


@rule("slice(x)")
def whole_slice(m: Match, b: Builder) -> Outcome:
    """A slice of everything, step 1, is its operand."""
    return m["x"] if m["x"].shape == m.root.result.shape and set(m.root.attrs["steps"]) <= {1} else None


@rule("slice(slice(x))")
def double_slice(m: Match, b: Builder) -> Outcome:
    """x[a:b:s][c:d:t] == x[a + c*s : ... : s*t]"""
    inner, outer = m.op(0).attrs, m.root.attrs
    starts, stops, steps = [], [], []
    for axis, size in enumerate(m.root.result.shape):
        step = inner["steps"][axis] * outer["steps"][axis]
        start = inner["starts"][axis] + outer["starts"][axis] * inner["steps"][axis]
        start = min(start, m["x"].shape[axis])  # an empty slice may start past the end
        starts.append(start)
        steps.append(step)
        stops.append(start + (size - 1) * step + 1 if size else start)
    return b.slice(m["x"], starts=starts, stops=stops, steps=steps)


@rule("pad(x)")
def empty_pad(m: Match, b: Builder) -> Outcome:
    """A pad by nothing is its operand."""
    attrs = m.root.attrs
    return m["x"] if not any((*attrs["low"], *attrs["high"], *attrs["interior"])) else None


@rule("flip(x)")
def flip_of_ones(m: Match, b: Builder) -> Outcome:
    """A flip of dimensions of size 1, or of none, is its operand."""
    return m["x"] if all(m["x"].shape[axis] == 1 for axis in m.root.attrs["axes"]) else None


@rule("concat(x)")
def concat_of_one(m: Match, b: Builder) -> Outcome:
    """concat(x) == x"""
    return m["x"]


RULES = [
    same_shape_reshape,
    double_reshape,
    identity_transpose,
    double_transpose,
    transpose_of_ones,
    same_shape_broadcast,
    double_broadcast,
    broadcast_of_ones,
    whole_slice,
    double_slice,
    empty_pad,
    flip_of_ones,
    concat_of_one,
]
