"""What stands around matrix products and convolutions, where it needs code."""

from __future__ import annotations

from secateur.ir.builder import Builder
from secateur.ir.opdef import all_ops
from secateur.ir.rewrite import Match, Outcome, rule
from secateur.passes.rules.scale_shift import channel_axis, per_channel


@rule("add((linear|conv|conv_transpose)(x, w), t)", tolerance=1e-6)
def add_bias(m: Match, b: Builder) -> Outcome:
    """conv(x, w) + t == conv(x, w, t) for one number per output channel"""
    op, t = m.op(0), m["t"]
    if not m.only_use(0) or op.result.type != m.root.result.type:
        return None
    array = per_channel(t, op.result.shape, channel_axis(op))
    if array is None or t.op is None:
        return None
    bias = b.constant(array.astype(t.type.dtype.numpy), name=t.op.attrs["name"])
    return b.op(op.name, [m["x"], m["w"], bias], op.attrs).result


ELEMENTWISE = "|".join(name for name, op in all_ops().items() if op.elementwise)


@rule(
    f"({ELEMENTWISE})(_, ...)",
    draws=["relu(reshape(x))", "add(reshape(x), reshape(x))", "mul(reshape(x), c: number)", "sub(reshape(x), t: [_])"],
)
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


@rule(
    f"({ELEMENTWISE})(_, ...)",
    draws=["relu(broadcast_to(x))", "sub(broadcast_to(x), y)", "where(c, y, broadcast_to(x))"],
)
def implicit_broadcast(m: Match, b: Builder) -> Outcome:
    """f(broadcast_to(x), y) == f(x, y), broadcast only where y does not give the shape"""
    op = m.root
    operands = [v.op.operands[0] if v.op is not None and v.op.name == "broadcast_to" else v for v in op.operands]
    if operands == list(op.operands):
        return None
    result = b.op(op.name, operands, op.attrs).result
    return result if result.shape == op.result.shape else b.broadcast_to(result, shape=op.result.shape)


RULES = [add_bias, reshape_behind, implicit_broadcast]
