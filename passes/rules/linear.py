"""Matrix products, convolutions and what surrounds them, in one form: `linear` and `conv` with a bias."""

from __future__ import annotations

from secateur.ir.builder import Builder
from secateur.ir.opdef import all_ops
from secateur.ir.ops.constant import constant_value
from secateur.ir.rewrite import Match, Outcome, rule
from secateur.ir.types import numel
from secateur.passes.rules.scale_shift import channel_axis, per_channel


@rule("matmul(x, w)", tolerance=1e-6)
def matmul_constant(m: Match, b: Builder) -> Outcome:
    """x @ w == linear(x, transpose(w)) for a constant matrix w"""
    w = m["w"]
    if w.type.rank != 2 or w is not m.root.operands[1]:
        return None
    made = w.op
    if made is not None and made.name == "transpose" and constant_value(made.operands[0]) is not None:
        return b.linear(m["x"], made.operands[0])
    return b.linear(m["x"], b.transpose(w, perm=(1, 0))) if constant_value(w) is not None else None


@rule("add((linear|conv|conv_transpose)(x, w), t)", tolerance=1e-6)
def add_bias(m: Match, b: Builder) -> Outcome:
    """conv(x, w) + t == conv(x, w, t) for one number per output channel"""
    op, t = m.op(0), m["t"]
    if not m.only_use(0) or op.result.type != m.root.result.type:
        return None
    channels = op.result.shape[channel_axis(op)]
    if op.name == "linear" and t.shape == (channels,):
        return b.linear(m["x"], m["w"], t)
    array = per_channel(t, op.result.shape, channel_axis(op))
    if array is None or t.op is None:
        return None
    bias = b.constant(array.astype(t.type.dtype.numpy), name=t.op.attrs["name"])
    return b.op(op.name, [m["x"], m["w"], bias], op.attrs).result


@rule("linear(reshape(x), ...)")
def linear_of_reshape(m: Match, b: Builder) -> Outcome:
    """linear(reshape(x)) == reshape(linear(x)) where the reshape keeps the last dimension"""
    x = m["x"]
    if x.type.rank < 2 or x.shape[-1] != m.op(0).result.shape[-1] or x.type.numel == 0:
        return None
    result = b.linear(x, *m.root.operands[1:])
    return b.reshape(result, shape=m.root.result.shape)


@rule("reshape(linear(reshape(x), ...))")
def linear_in_place(m: Match, b: Builder) -> Outcome:
    """reshape(linear(reshape(x))) == linear(reshape(x)) where the outer one keeps the last dimension"""
    inner, shape = m.op(0), m.root.result.shape
    if len(shape) < 2 or shape[-1] != inner.result.shape[-1] or not m.only_use(0) or 0 in shape:
        return None
    x = b.reshape(m["x"], shape=(*shape[:-1], inner.operands[0].shape[-1]))
    return b.linear(x, *inner.operands[1:])


@rule("conv(pad(x), ...)")
def conv_of_pad(m: Match, b: Builder) -> Outcome:
    """conv(pad(x)) == conv(x) with more padding, for zeros around the spatial dimensions"""
    return _padded(m, b, 0.0)


@rule("max_pool(pad(x))")
def max_pool_of_pad(m: Match, b: Builder) -> Outcome:
    """max_pool(pad(x)) == max_pool(x) with more padding, for -inf around the spatial dimensions"""
    # The window must still begin inside what max_pool may pad: at most half a kernel.
    kernel, pad = m.root.attrs["kernel"], m.op(0).attrs
    spatial = len(kernel)
    first = 1 if m.root.attrs["channels_last"] else 2
    sizes = [*pad["low"][first : first + spatial], *pad["high"][first : first + spatial]]
    total = [a + b for a, b in zip(m.root.attrs["padding"], sizes)]
    if any(2 * size > edge for size, edge in zip(total, (*kernel, *kernel))) or m.root.attrs["ceil_mode"]:
        return None
    return _padded(m, b, float("-inf"))


def _padded(m: Match, b: Builder, value: float) -> Outcome:
    op, pad = m.root, m.op(0).attrs
    spatial = op.result.type.rank - 2
    first = 1 if op.attrs["channels_last"] else 2
    around = range(first, first + spatial)
    outside = [pad[key][axis] for key in ("low", "high") for axis in range(spatial + 2) if axis not in around]
    if pad["mode"] != "constant" or pad["value"] != value or any(pad["interior"]) or any(outside):
        return None
    added = [pad[key][axis] for key in ("low", "high") for axis in around]
    padding = tuple(old + new for old, new in zip(op.attrs["padding"], added, strict=True))
    return b.op(op.name, [m["x"], *op.operands[1:]], {**op.attrs, "padding": padding}).result


ELEMENTWISE = "|".join(name for name, op in all_ops().items() if op.elementwise)


@rule(f"({ELEMENTWISE})(_, ...)")
def reshape_behind(m: Match, b: Builder) -> Outcome:
    """f(reshape(x), reshape(y), c) == reshape(f(x, y, c)) for x and y of one shape and numbers c

    So an elementwise operation comes to stand right behind what computes x, and can join its box.
    """
    op = m.root
    moved = [value.op for value in op.operands if value.op is not None and value.op.name == "reshape"]
    if not moved:
        return None
    shape = moved[0].operands[0].shape
    operands = []
    for value in op.operands:
        if value.op in moved and value.op is not None:
            if value.op.operands[0].shape != shape or value.shape != op.result.shape:
                return None
            operands.append(value.op.operands[0])
            continue
        number = value.type.numel == 1 and value.type.rank <= len(shape)
        row = value.type.rank == 1 and shape and value.shape[0] == shape[-1] == op.result.shape[-1]
        if not number and not row:
            return None
        operands.append(value)
    result = b.op(op.name, operands, op.attrs).result
    return b.reshape(result, shape=op.result.shape) if result.shape == shape else None


@rule(f"({ELEMENTWISE})(_, ...)")
def implicit_broadcast(m: Match, b: Builder) -> Outcome:
    """f(broadcast_to(x), y) == f(x, y), broadcast only where y does not give the shape"""
    op = m.root
    operands = [v.op.operands[0] if v.op is not None and v.op.name == "broadcast_to" else v for v in op.operands]
    if operands == list(op.operands):
        return None
    result = b.op(op.name, operands, op.attrs).result
    return result if result.shape == op.result.shape else b.broadcast_to(result, shape=op.result.shape)


@rule("(reduce_mean|reduce_sum|reduce_max|reduce_min|reduce_prod|reduce_any|reduce_all)(x)")
def reduce_ones(m: Match, b: Builder) -> Outcome:
    """A reduction over dimensions of size 1 alone is a reshape."""
    shape = m["x"].shape
    return b.reshape(m["x"], shape=m.root.result.shape) if all(shape[at] == 1 for at in m.root.attrs["axes"]) else None


@rule("mul(reduce_sum(x), c)", tolerance=1e-6)
def mean_parts(m: Match, b: Builder) -> Outcome:
    """sum(x) * (1 / n) == mean(x)"""
    inner = m.op(0)
    count = numel(tuple(m["x"].shape[axis] for axis in inner.attrs["axes"]))
    c = constant_value(m["c"])
    fits = c is not None and c.size == 1 and count and abs(float(c.reshape(-1)[0]) * count - 1) < 1e-6
    if not fits or not m["x"].type.dtype.is_float or inner.result.type != m.root.result.type or not m.only_use(0):
        return None
    return b.reduce_mean(m["x"], **inner.attrs)


@rule("avg_pool(x)", tolerance=1e-6)
def global_pool(m: Match, b: Builder) -> Outcome:
    """avg_pool over the whole of every channel == reduce_mean"""
    x, attrs = m["x"], m.root.attrs
    axes = tuple(range(1, x.type.rank - 1) if attrs["channels_last"] else range(2, x.type.rank))
    whole = tuple(x.shape[axis] for axis in axes) == attrs["kernel"] and not any(attrs["padding"])
    return b.reduce_mean(x, axes=axes, keepdims=True) if whole else None


RULES = [
    matmul_constant,
    add_bias,
    linear_of_reshape,
    linear_in_place,
    conv_of_pad,
    max_pool_of_pad,
    reshape_behind,
    implicit_broadcast,
    reduce_ones,
    mean_parts,
    global_pool,
]
