"""softmax(q k^T * scale + mask) v, in the ways that models write it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Op, Value
from secateur.ir.ops.constant import constant_value
from secateur.ir.rewrite import Match, Outcome, Refusal, is_number, rule
from secateur.ir.types import DType


def scalar(value: Value) -> float | None:
    """The number behind a value, where it is a constant of one element."""
    array = constant_value(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


HIDDEN = -1e30  # a score that low takes no part in a softmax next to any real one


@dataclass
class Scores:
    """What a softmax is over: q @ kt * scale, plus masks."""

    q: Value
    kt: Value
    scale: float
    masks: list[Value]


def read_scores(b: Builder, value: Value) -> Scores | Refusal | None:
    """Follow additions and selections (masks), then factors (scale), down to a product."""
    masks: list[Value] = []
    while (op := value.op) is not None and op.name in ("add", "where") and len(value.users) <= 2:
        if op.name == "where":
            hidden = scalar(op.operands[2])
            if hidden is None or hidden > HIDDEN or op.operands[1].type != value.type:
                return None
            masks.append(_additive(b, op))
            value = op.operands[1]
            continue
        main = [side for side in op.operands if side.type == value.type and _leads_to_product(side)]
        if len(main) != 1:
            return None
        masks += [side for side in op.operands if side is not main[0]]
        value = main[0]
    scale = 1.0
    while (op := value.op) is not None and op.name == "mul":
        number = next((n for side in op.operands if (n := scalar(side)) is not None), None)
        wide = next((side for side in op.operands if side.type == value.type), None)
        if number is None or wide is None:
            return None
        scale, value = scale * number, wide
    if value.op is None or value.op.name != "matmul":
        return None
    if not np.isfinite(scale):
        return Refusal("the scale is not finite")
    q, kt = value.op.operands
    return Scores(q, kt, scale, masks)


def _leads_to_product(value: Value) -> bool:
    while value.op is not None and value.op.name in ("mul", "add", "where"):
        value = max(
            (side for side in value.op.operands[value.op.name == "where" :]),
            key=lambda side: (side.type.numel, side.op is not None and side.op.name in ("matmul", "mul", "add")),
        )
    return value.op is not None and value.op.name == "matmul"


def _additive(b: Builder, op: Op) -> Value:
    """where(mask, s, hidden) as what is added to s: 0 or the number that hides."""
    condition, _, hidden = op.operands
    dtype = op.result.type.dtype
    known, number = constant_value(condition), scalar(hidden)
    if known is not None and number is not None:
        return b.constant(np.where(known, 0, number).astype(dtype.numpy))
    return b.where(condition, b.constant(0.0, dtype), hidden)


@rule(
    "matmul(p, v)",
    tolerance=1e-5,
    finite=True,
    defined=True,
    draws=[
        "matmul(softmax(mul(matmul(q, transpose(k) {perm = [0, 2, 1]}), c: number)) {axis = 2}, v)",
        "matmul(softmax(add(matmul(q, transpose(k) {perm = [0, 2, 1]}), mask)) {axis = 2}, v)",
        "matmul(softmax(where(c, matmul(q, transpose(k) {perm = [0, 2, 1]}), -inf)) {axis = 2}, v)",
    ],
)
def attention_parts(m: Match, b: Builder) -> Outcome:
    """softmax(q @ transpose(k) * scale + mask) @ v == attention(q, k, v, mask, scale)

    For scores that are finite: a mask that selects hides a NaN, one that is added does not.
    """
    weights, v = m.root.operands
    softmax = _softmax_of(weights)
    if softmax is None or softmax.attrs["axis"] != weights.type.rank - 1 or weights.type.rank < 3:
        return None
    scores = read_scores(b, softmax.operands[0])
    if scores is None or isinstance(scores, Refusal):
        return scores or Refusal("what the softmax is over is not a scaled and masked product")
    q, kt = scores.q, scores.kt
    rank = q.type.rank
    if not q.shape[:-2] == kt.shape[:-2] == v.shape[:-2] or not rank == kt.type.rank == v.type.rank:
        return Refusal("the heads of q, k and v are broadcast against each other")
    if 0 in (*q.shape, *kt.shape):
        return Refusal("there are no queries or no keys")
    turned = _turned(b, kt)
    if turned is None:
        return Refusal("k would have to be transposed")
    k, factor = turned
    mask = scores.masks[:1]
    for other in scores.masks[1:]:
        mask = [b.add(mask[0], other)]
    return b.attention(q, k, v, *mask, scale=scores.scale * factor)


def _turned(b: Builder, kt: Value) -> tuple[Value, float] | None:
    """k and a factor with kt == transpose(k) * factor, where a transpose is there to be undone."""
    op, rank = kt.op, kt.type.rank
    if op is None:
        return None
    if op.name == "transpose":
        return b.transpose(kt, perm=[*range(rank - 2), rank - 1, rank - 2]), 1.0
    if op.name == "mul":
        number = next((n for side in op.operands if (n := scalar(side)) is not None), None)
        wide = next((side for side in op.operands if side.type == kt.type), None)
        inner = _turned(b, wide) if number is not None and wide is not None else None
        return (inner[0], inner[1] * number) if inner is not None and number is not None else None
    if op.name == "reshape" and op.operands[0].shape[-2:] == kt.shape[-2:]:
        inner = _turned(b, op.operands[0])
        return (b.reshape(inner[0], shape=(*kt.shape[:-2], kt.shape[-1], kt.shape[-2])), inner[1]) if inner else None
    return None


def _softmax_of(value: Value) -> Op | None:
    """The softmax behind a value: itself, or with rows of nothing but -inf set to 0, as attention has them."""
    op = value.op
    if op is not None and op.name == "where" and is_number(op.operands[1], 0):
        test, inner = op.operands[0].op, op.operands[2].op
        if test is None or inner is None or inner.name != "softmax":
            return None
        # The row is empty where its largest score is -inf, or, as one often writes, where its softmax is NaN.
        top = test.operands[0].op if test.name == "eq" else None
        empty = top is not None and top.name == "reduce_max" and top.operands == inner.operands
        op = inner if empty or (test.name == "isnan" and test.operands[0] is inner.result) else None
    return op if op is not None and op.name == "softmax" else None


def _repeated_heads(b: Builder, value: Value) -> Value | None:
    """The value whose heads (third dimension from the end) `value` repeats one after another, if it does."""
    shape = value.shape
    wide = value.op.operands[0] if value.op is not None and value.op.name == "reshape" else None
    if wide is None or wide.op is None or wide.op.name != "broadcast_to" or wide.type.rank != len(shape) + 1:
        return None
    narrow = wide.op.operands[0]
    heads, repeat = wide.shape[-4:-2]
    grouped = (*shape[:-3], heads, repeat, *shape[-2:])
    if wide.shape != grouped or narrow.shape != (*shape[:-3], heads, 1, *shape[-2:]):
        return None
    return b.reshape(narrow, shape=(*shape[:-3], heads, *shape[-2:]))


@rule(
    "attention(q, k, v, ...)",
    draws=[
        "attention(q: f32[1, 4, 3, 2], reshape(broadcast_to(k: f32[1, 2, 1, 5, 2]) {shape = [1, 2, 2, 5, 2]})"
        " {shape = [1, 4, 5, 2]}, reshape(broadcast_to(v: f32[1, 2, 1, 5, 3]) {shape = [1, 2, 2, 5, 3]})"
        " {shape = [1, 4, 5, 3]})"
    ],
)
def repeated_heads(m: Match, b: Builder) -> Outcome:
    """attention(q, repeat(k), repeat(v)) == attention(q, k, v): grouped queries need no copies of keys and values"""
    k, v = _repeated_heads(b, m["k"]), _repeated_heads(b, m["v"])
    if k is None or v is None or k.shape[-3] != v.shape[-3]:
        return None
    return b.attention(m["q"], k, v, *m.root.operands[3:], **m.root.attrs)


@rule("attention(q, k, v, mask)", tolerance=1e-6)
def known_mask(m: Match, b: Builder) -> Outcome:
    """A constant mask that hides nothing goes; one that hides exactly the future becomes `causal`"""
    mask = m["mask"]
    array = constant_value(mask)
    if array is None:
        return None
    if mask.type.dtype is not DType.BOOL:
        wide = array.astype(np.float64)
        if not np.all((wide == 0) | (wide <= HIDDEN)):
            return None
        array = wide == 0
    if array.all():
        return b.attention(m["q"], m["k"], m["v"], **m.root.attrs)
    length, keys = m["q"].shape[-2], m["k"].shape[-2]
    future = np.broadcast_to(np.tril(np.ones((length, keys), bool)), np.broadcast_shapes(array.shape, (length, keys)))
    if not np.array_equal(np.broadcast_to(array, future.shape), future):
        return None
    return b.attention(m["q"], m["k"], m["v"], **{**m.root.attrs, "causal": True})


RULES = [attention_parts, repeated_heads, known_mask]
