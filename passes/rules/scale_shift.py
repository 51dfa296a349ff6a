"""y = x * s + t with constants per channel, in front of and behind contractions.

`conv`, `conv_transpose` and `linear` are linear in their weights, so that a factor per output
channel or per input channel is a factor on the weights, and a shift is a bias. New weights are
computed in f64 and rounded once.
"""

from __future__ import annotations

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Op, Value
from secateur.ir.ops.constant import constant_value
from secateur.ir.rewrite import Match, Outcome, Refusal, rule

CONTRACTION = "conv|conv_transpose|linear"


def channel_axis(op: Op) -> int:
    """The axis of a contraction's result (and first operand) that holds its channels."""
    last = op.result.type.rank - 1
    return last if op.name == "linear" or op.attrs.get("channels_last") else 1


def per_channel(value: Value, shape: tuple[int, ...], axis: int) -> np.ndarray | None:
    """A constant that broadcasts to `shape` and varies along `axis` alone, as f64[channels]; else None."""
    array = constant_value(value)
    if array is None or not value.type.dtype.is_float or len(array.shape) > len(shape):
        return None
    if not np.all(np.isfinite(array)):
        return None
    full = (1,) * (len(shape) - array.ndim) + array.shape
    if any(size not in (1, wanted) or (size != 1 and at != axis) for at, (size, wanted) in enumerate(zip(full, shape))):
        return None
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (shape[axis],))


def along(op: Op, factors: np.ndarray, *, output: bool) -> np.ndarray:
    """Factors for each output (or input) channel of a contraction, shaped to multiply its weights."""
    shape = op.operands[1].shape
    groups = op.attrs.get("groups", 1)
    transposed = op.name == "conv_transpose"
    if output != transposed:  # the weights' first dimension is this one, all groups one after another
        return factors.reshape(-1, *[1] * (len(shape) - 1))
    per_group = factors.reshape(groups, 1, -1)  # the second is, once for each group
    repeated = np.broadcast_to(per_group, (groups, shape[0] // groups, shape[1]))
    return repeated.reshape(shape[0], shape[1], *[1] * (len(shape) - 2))


def rebuild(b: Builder, op: Op, weight: np.ndarray, bias: np.ndarray | None) -> Value:
    """The contraction with new weights and bias (f64) under the old parameters' names."""
    dtype = op.result.type.dtype
    assert op.operands[1].op is not None
    name = op.operands[1].op.attrs["name"]
    operands = [op.operands[0], b.constant(weight.astype(dtype.numpy), name=name)]
    if bias is not None:
        old = op.operands[2].op if len(op.operands) > 2 else None
        operands.append(b.constant(bias.astype(dtype.numpy), name=old.attrs["name"] if old else _bias_name(name)))
    return b.op(op.name, operands, op.attrs).result


def _bias_name(weight: str) -> str:
    return weight.removesuffix("weight") + "bias" if weight.endswith("weight") else weight and f"{weight}.bias"


def parameters(op: Op) -> tuple[np.ndarray, np.ndarray | None] | Refusal:
    """Weights and bias as f64, or why they cannot be changed."""
    arrays = [constant_value(value) for value in op.operands[1:]]
    if any(array is None for array in arrays):
        return Refusal("its weights are not constant")
    if len(op.operands[1].users) > 1:
        return Refusal("its weights are used elsewhere too")
    wide = [array.astype(np.float64) for array in arrays if array is not None]
    if not all(np.all(np.isfinite(array)) for array in wide):
        return Refusal("its weights are not finite")
    return wide[0], wide[1] if len(wide) > 1 else None


def _is_finite(array: np.ndarray) -> bool:
    return bool(np.all(np.isfinite(array.astype(np.float64))))


@rule("batch_norm(x, weight, bias, mean, var)", tolerance=1e-5)
def split_batch_norm(m: Match, b: Builder) -> Outcome:
    """batch_norm(x) == x * s + t with s = weight / sqrt(var + eps) and t = bias - mean * s"""
    arrays = [constant_value(m[key]) for key in ("weight", "bias", "mean", "var")]
    if any(array is None for array in arrays):
        return Refusal("its statistics are not constant")
    weight, bias, mean, var = (array.astype(np.float64) for array in arrays if array is not None)
    scale = weight / np.sqrt(var + m.root.attrs["eps"])
    shift = bias - mean * scale
    x, axis = m["x"], m.root.attrs["axis"]
    dtype = x.type.dtype.numpy
    with np.errstate(over="ignore"):
        scale, shift = scale.astype(dtype), shift.astype(dtype)
    if not (_is_finite(scale) and _is_finite(shift)):
        return Refusal("its scale or shift is not finite")
    shape = (-1, *[1] * (x.type.rank - 1 - axis))
    name = m.root.operands[1].op.attrs["name"] if m.root.operands[1].op else ""
    scaled = b.mul(x, b.constant(scale.reshape(shape), name=name))
    return b.add(scaled, b.constant(shift.reshape(shape), name=_bias_name(name)))


@rule(f"mul(({CONTRACTION})(x, ...), s)", tolerance=1e-5, finite=True)
def scale_behind(m: Match, b: Builder) -> Outcome:
    """conv(x, w, b) * s == conv(x, w * s, b * s) for s per output channel"""
    op = m.op(0)
    factors = per_channel(m["s"], op.result.shape, channel_axis(op))
    return _scaled(m, b, op, factors)


@rule(f"div(({CONTRACTION})(x, ...), s)", tolerance=1e-5, finite=True)
def divide_behind(m: Match, b: Builder) -> Outcome:
    """conv(x, w, b) / s == conv(x, w / s, b / s) for s per output channel"""
    op = m.op(0)
    divisors = per_channel(m["s"], op.result.shape, channel_axis(op))
    if divisors is None or not np.all(divisors):
        return None
    return _scaled(m, b, op, 1 / divisors)


def _scaled(m: Match, b: Builder, op: Op, factors: np.ndarray | None) -> Outcome:
    if factors is None or op.result.shape != m.root.result.shape:
        return None
    if not m.only_use(0):
        return Refusal("its result is used elsewhere too")
    old = parameters(op)
    if isinstance(old, Refusal):
        return old
    weight, bias = old
    return rebuild(b, op, weight * along(op, factors, output=True), None if bias is None else bias * factors)


@rule(f"(add|sub)(({CONTRACTION})(x, ...), t)", tolerance=1e-5, finite=True)
def shift_behind(m: Match, b: Builder) -> Outcome:
    """conv(x, w, b) + t == conv(x, w, b + t) for t per output channel"""
    op = m.op(0)
    shift = per_channel(m["t"], op.result.shape, channel_axis(op))
    if shift is None or op.result.shape != m.root.result.shape:
        return None
    if not m.only_use(0):
        return Refusal("its result is used elsewhere too")
    if m.root.name == "sub":
        shift = -shift
    old = constant_value(op.operands[2]) if len(op.operands) > 2 else np.zeros(1)
    if old is None:
        return Refusal("its bias is not constant")
    t = m["t"].op
    had = op.operands[2].op if len(op.operands) > 2 else None
    name = had.attrs["name"] if had else t.attrs["name"] if t else ""
    bias = b.constant((old + shift).astype(op.result.type.dtype.numpy), name=name)
    return b.op(op.name, [*op.operands[:2], bias], op.attrs).result


@rule(f"({CONTRACTION})(mul(x, s), ...)", tolerance=1e-5, finite=True)
def scale_in_front(m: Match, b: Builder) -> Outcome:
    """conv(x * s, w, b) == conv(x, w * s, b) for s per input channel; zeros of the padding stay zeros"""
    op = m.root
    factors = per_channel(m["s"], op.operands[0].shape, channel_axis(op))
    if factors is None or m["x"].shape != op.operands[0].shape:
        return None
    if not m.only_use(0):
        return Refusal("its operand is used elsewhere too")
    old = parameters(op)
    if isinstance(old, Refusal):
        return old
    weight, bias = old
    new = rebuild(b, op, weight * along(op, factors, output=False), bias)
    assert new.op is not None
    new.op.set_operand(0, m["x"])
    return new


@rule("(conv|linear)(add(x, t), ...)", tolerance=1e-5)
def shift_in_front(m: Match, b: Builder) -> Outcome:
    """conv(x + t, w, b) == conv(x, w, b + sum of w * t) for t per input channel, where nothing is padded"""
    op = m.root
    shift = per_channel(m["t"], op.operands[0].shape, channel_axis(op))
    if shift is None or m["x"].shape != op.operands[0].shape:
        return None
    if any(op.attrs.get("padding", ())):
        return Refusal("the padding would have to be shifted too")
    if not m.only_use(0):
        return Refusal("its operand is used elsewhere too")
    old = parameters(op)
    if isinstance(old, Refusal):
        return old
    weight, bias = old
    added = np.sum(weight * along(op, shift, output=False), axis=tuple(range(1, weight.ndim)))
    new = rebuild(b, op, weight, added if bias is None else bias + added)
    assert new.op is not None
    new.op.set_operand(0, m["x"])
    return new


RULES = [split_batch_norm, scale_behind, divide_behind, shift_behind, scale_in_front, shift_in_front]
