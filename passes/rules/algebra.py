"""Identities of arithmetic that need code."""

from __future__ import annotations

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.ops.constant import constant_value
from secateur.ir.rewrite import Match, Outcome, rule


@rule("(mul|add)((mul|add)(x, c), d)", tolerance=1e-6)
def merge_constants(m: Match, b: Builder) -> Outcome:
    """(x * c) * d == x * (c * d) and (x + c) + d == x + (c + d) for constants, where they merge into one no larger"""
    inner = m.op(0)
    if inner.name != m.root.name or not m.root.result.type.dtype.is_float or not m.only_use(0):
        return None
    c, d = constant_value(m["c"]), constant_value(m["d"])
    if c is None or d is None or m["x"].type != m.root.result.type:
        return None
    wide = [array.astype(np.float64) for array in (c, d)]
    if np.broadcast(*wide).size > max(c.size, d.size):
        return None
    merged = np.asarray(wide[0] * wide[1] if inner.name == "mul" else wide[0] + wide[1]).astype(c.dtype)
    safe = np.isfinite(merged) if inner.name == "add" else np.abs(merged) >= np.finfo(np.float32).tiny
    if not np.all(safe & np.isfinite(merged)):
        return None
    largest = max((m["c"], m["d"]), key=lambda value: value.type.numel).op
    return b.op(inner.name, [m["x"], b.constant(merged, name=largest.attrs["name"] if largest else "")], {}).result


RULES = [merge_constants]
