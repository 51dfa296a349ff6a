"""Activations recognised from their pieces. Pieces arrive in the forms that `algebra` leaves."""

from __future__ import annotations

import math

from secateur.ir.builder import Builder
from secateur.ir.rewrite import Match, Outcome, Rewrite, Rule, is_number, pattern, rule
from secateur.passes.rules.algebra import same, written

INF = math.inf
ROUNDING = 1e-5


@rule("maximum(x, 0)")
def max_zero(m: Match, b: Builder) -> Outcome:
    """max(x, 0) == relu(x)"""
    return b.relu(m["x"]) if same(m, "x") else None


@rule("minimum(maximum(x, low), high)")
def min_max(m: Match, b: Builder) -> Outcome:
    """min(max(x, low), high) == clamp(x, low, high)"""
    return _clamp(m, b)


@rule("maximum(minimum(x, high), low)")
def max_min(m: Match, b: Builder) -> Outcome:
    """max(min(x, high), low) == clamp(x, low, high) for low <= high"""
    return _clamp(m, b)


def _clamp(m: Match, b: Builder) -> Outcome:
    low, high = written(m["low"]), written(m["high"])
    if low is None or high is None or not low <= high or not same(m, "x") or not m["x"].type.dtype.is_float:
        return None
    return b.clamp(m["x"], low=low, high=high)


@rule("minimum(relu(x), high)")
def min_relu(m: Match, b: Builder) -> Outcome:
    """min(relu(x), high) == clamp(x, 0, high) for 0 <= high"""
    high = written(m["high"])
    if high is None or not high >= 0 or not same(m, "x") or not m["x"].type.dtype.is_float:
        return None
    return b.clamp(m["x"], low=0.0, high=high)


@rule("relu(minimum(x, high))")
def relu_min(m: Match, b: Builder) -> Outcome:
    """relu(min(x, high)) == clamp(x, 0, high) for 0 <= high"""
    return min_relu.rewrite(m, b)


@rule("clamp(relu(x))")
def clamp_relu(m: Match, b: Builder) -> Outcome:
    """clamp(relu(x), low, high) == clamp(x, max(low, 0), high) for 0 <= high"""
    low, high = m.root.attrs["low"], m.root.attrs["high"]
    return b.clamp(m["x"], low=max(low, 0.0), high=high) if max(low, 0.0) <= high else None


@rule("clamp(clamp(x))")
def double_clamp(m: Match, b: Builder) -> Outcome:
    """clamp(clamp(x, a, b), c, d) == clamp(x, max(a, c), min(b, d)) where that is not empty"""
    outer, inner = m.root.attrs, m.op(0).attrs
    low, high = max(outer["low"], inner["low"]), min(outer["high"], inner["high"])
    return b.clamp(m["x"], low=low, high=high) if low <= high else None


@rule("clamp(x)")
def open_clamp(m: Match, b: Builder) -> Outcome:
    """clamp(x, 0, inf) == relu(x); clamp(x, -inf, inf) == x"""
    low, high = m.root.attrs["low"], m.root.attrs["high"]
    if high != INF or low not in (0.0, -INF):
        return None
    return m["x"] if low == -INF else b.relu(m["x"])


@rule("where(gt(x, 0), x, mul(x, slope))")
def leaky(m: Match, b: Builder) -> Outcome:
    """where(x > 0, x, x * slope) == leaky_relu(x, slope)"""
    slope = written(m["slope"])
    return b.leaky_relu(m["x"], slope=slope) if slope is not None and same(m, "x") else None


def _named(name: str, op: str, text: str, doc: str, tolerance: float = ROUNDING, **attrs: float) -> Rule:
    """A rule that replaces what it matches by one operation on x."""

    def rewrite(m: Match, b: Builder) -> Outcome:
        return b.op(op, [m["x"]], attrs).result if same(m, "x") and m["x"].type.dtype.is_float else None

    function: Rewrite = rewrite
    return Rule(name, pattern(text), function, doc, tolerance)


SIGMOID = [
    _named("sigmoid_parts", "sigmoid", "reciprocal(add(exp(neg(x)), 1))", "1 / (1 + exp(-x)) == sigmoid(x)"),
    _named("silu_parts", "silu", "div(x, add(exp(neg(x)), 1))", "x / (1 + exp(-x)) == silu(x)"),
    _named("silu", "silu", "mul(x, sigmoid(x))", "x * sigmoid(x) == silu(x)"),
    _named("softplus", "softplus", "log1p(exp(x))", "log(1 + exp(x)) == softplus(x), which does not overflow"),
    _named("softplus_log", "softplus", "log(add(exp(x), 1))", "log(1 + exp(x)) == softplus(x)"),
]

_ERF = "add(erf(mul(x, 0.7071067811865476)), 1)"
_CUBE = "mul(mul(square(x), x), 0.044715)"
_TANH_ARGUMENTS = {
    "cube": f"mul(add(x, {_CUBE}), 0.7978845608028654)",
    "cube_parts": "mul(add(x, mul(mul(x, 0.044715), square(x))), 0.7978845608028654)",
    "cube_nested": "mul(add(x, mul(mul(mul(x, 0.044715), x), x)), 0.7978845608028654)",
    "factored": "mul(mul(x, 0.7978845608028654), add(mul(square(x), 0.044715), 1))",
}


def _gelu_rules() -> list[Rule]:
    """x * 0.5 * (1 + s) in every order of the products, s being erf or tanh of the known arguments."""
    inner = {"gelu": [_ERF], "gelu_tanh": [f"add(tanh({argument}), 1)" for argument in _TANH_ARGUMENTS.values()]}
    orders = ["mul(mul(x, 0.5), {e})", "mul(mul(x, {e}), 0.5)", "mul(x, mul({e}, 0.5))"]
    return [
        _named(f"{op}_{i}_{j}", op, order.format(e=e), f"{order.format(e=e)} == {op}(x)")
        for op, variants in inner.items()
        for i, e in enumerate(variants)
        for j, order in enumerate(orders)
    ]


@rule("mul(x, tanh(softplus(x)))", tolerance=ROUNDING)
def mish(m: Match, b: Builder) -> Outcome:
    """x * tanh(softplus(x)) == mish(x)"""
    return b.mish(m["x"]) if m.op(1).attrs["beta"] == 1.0 else None


@rule("mul(clamp(add(x, 3)), c)", tolerance=ROUNDING)
def hard_sigmoid(m: Match, b: Builder) -> Outcome:
    """clamp(x + 3, 0, 6) / 6 == hard_sigmoid(x)"""
    attrs = m.op(0).attrs
    fits = (attrs["low"], attrs["high"]) == (0.0, 6.0) and is_number(m["c"], 1 / 6) and same(m, "x")
    return b.hard_sigmoid(m["x"], alpha=1 / 6, beta=0.5) if fits else None


@rule("mul(x, hard_sigmoid(x))", tolerance=ROUNDING)
def hard_swish(m: Match, b: Builder) -> Outcome:
    """x * hard_sigmoid(x) == hard_swish(x)"""
    attrs = m.op(0).attrs
    return b.hard_swish(m["x"]) if abs(attrs["alpha"] - 1 / 6) < 1e-6 and attrs["beta"] == 0.5 else None


@rule("mul(mul(x, clamp(add(x, 3))), c)", tolerance=ROUNDING)
def hard_swish_late(m: Match, b: Builder) -> Outcome:
    """x * clamp(x + 3, 0, 6) / 6 == hard_swish(x)"""
    attrs = m.op(1).attrs
    fits = (attrs["low"], attrs["high"]) == (0.0, 6.0) and is_number(m["c"], 1 / 6) and same(m, "x")
    return b.hard_swish(m["x"]) if fits else None


RULES = [
    max_zero,
    min_max,
    max_min,
    min_relu,
    relu_min,
    clamp_relu,
    double_clamp,
    open_clamp,
    leaky,
    *SIGMOID,
    *_gelu_rules(),
    mish,
    hard_sigmoid,
    hard_swish,
    hard_swish_late,
]
