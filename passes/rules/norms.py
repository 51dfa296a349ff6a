"""Softmax and normalisations recognised from their pieces, and their affine parameters taken in."""

from __future__ import annotations

from secateur.ir.builder import Builder
from secateur.ir.graph import Op, Value
from secateur.ir.ops.constant import constant_value
from secateur.ir.rewrite import Match, Outcome, Refusal, Rule, pattern, rule
from secateur.passes.rules.algebra import written

ROUNDING = 1e-5


def _trailing(op: Op) -> int:
    """How many trailing dimensions a reduction with keepdims reduces; 0 where it is not of that kind."""
    rank, axes = op.operands[0].type.rank, op.attrs["axes"]
    fits = axes and op.attrs["keepdims"] and tuple(sorted(axes)) == tuple(range(rank - len(axes), rank))
    return len(axes) if fits else 0


def _inner(m: Match, name: str) -> list[Op]:
    return [op for op in m.ops if op.name == name]


def _softmax(m: Match, b: Builder) -> Outcome:
    """exp(x - max(x)) / sum(exp(x - max(x))) == softmax(x)"""
    reductions = [*_inner(m, "reduce_max"), *_inner(m, "reduce_sum")]
    if {op.attrs["axes"] for op in reductions} != {reductions[0].attrs["axes"]}:
        return None
    if len(reductions[0].attrs["axes"]) != 1 or not all(op.attrs["keepdims"] for op in reductions):
        return Refusal("it is over several axes or drops them")
    return b.softmax(m["x"], axis=reductions[0].attrs["axes"][0])


_EXP = "exp(sub(x, reduce_max(x)))"
_SOFTMAX = [f"div({_EXP}, reduce_sum({_EXP}))", f"mul({_EXP}, reciprocal(reduce_sum({_EXP})))"]


def _layer_norm(m: Match, b: Builder) -> Outcome:
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) == layer_norm(x)"""
    dims = {_trailing(op) for op in _inner(m, "reduce_mean")}
    eps = written(m["eps"])
    if dims == {0} or len(dims) != 1 or eps is None or not eps >= 0:
        return Refusal("the mean is not over trailing dimensions, or epsilon is not a number")
    return b.layer_norm(m["x"], dims=dims.pop(), eps=eps)


_CENTRED = "sub(x, reduce_mean(x))"
_VARIANCE = f"add(reduce_mean(square({_CENTRED})), eps)"
_LAYER_NORM = [
    f"mul({_CENTRED}, rsqrt({_VARIANCE}))",
    f"div({_CENTRED}, sqrt({_VARIANCE}))",
    f"div({_CENTRED}, pow({_VARIANCE}, 0.5))",
]


def _rms_norm(m: Match, b: Builder) -> Outcome:
    """x / sqrt(mean(x^2) + eps) == rms_norm(x)"""
    dims = _trailing(_inner(m, "reduce_mean")[0])
    eps = written(m["eps"])
    if not dims or eps is None or not eps >= 0:
        return Refusal("the mean is not over trailing dimensions, or epsilon is not a number")
    return b.rms_norm(m["x"], dims=dims, eps=eps)


_SQUARES = "add(reduce_mean(square(x)), eps)"
_RMS_NORM = [f"mul(x, rsqrt({_SQUARES}))", f"div(x, sqrt({_SQUARES}))", f"div(x, pow({_SQUARES}, 0.5))"]


def _affine(op: Op, value: Value) -> Value | None:
    """A constant as weight or bias of a normalisation: its shape must be the normalised dimensions."""
    dims = op.attrs["dims"]
    wanted = op.result.shape[op.result.type.rank - dims :]
    array = constant_value(value)
    if value.shape == wanted:
        return value
    full = (1,) * (op.result.type.rank - value.type.rank) + value.shape
    fits = array is not None and full[: len(full) - dims] == (1,) * (len(full) - dims) and full[-dims:] == wanted
    return value if fits else None


@rule("mul((layer_norm|rms_norm)(x), w)", tolerance=1e-6)
def norm_weight(m: Match, b: Builder) -> Outcome:
    """layer_norm(x) * w == layer_norm(x, w)"""
    op, w = m.op(0), _affine(m.op(0), m["w"])
    if w is None or not m.only_use(0):
        return None
    return b.op(op.name, [m["x"], _flat(b, op, w)], op.attrs).result


@rule("add(layer_norm(x, w), t)", tolerance=1e-6)
def norm_bias(m: Match, b: Builder) -> Outcome:
    """layer_norm(x, w) + t == layer_norm(x, w, t)"""
    op, t = m.op(0), _affine(m.op(0), m["t"])
    if t is None or not m.only_use(0):
        return None
    return b.op(op.name, [m["x"], m["w"], _flat(b, op, t)], op.attrs).result


def _flat(b: Builder, op: Op, value: Value) -> Value:
    wanted = op.result.shape[op.result.type.rank - op.attrs["dims"] :]
    return value if value.shape == wanted else b.reshape(value, shape=wanted)


RULES = [
    *(Rule(f"softmax_{i}", pattern(text), _softmax, text, ROUNDING) for i, text in enumerate(_SOFTMAX)),
    *(Rule(f"layer_norm_{i}", pattern(text), _layer_norm, text, ROUNDING) for i, text in enumerate(_LAYER_NORM)),
    *(Rule(f"rms_norm_{i}", pattern(text), _rms_norm, text, ROUNDING) for i, text in enumerate(_RMS_NORM)),
    norm_weight,
    norm_bias,
]
