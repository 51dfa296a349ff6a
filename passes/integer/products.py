"""Products of quantised operands: 8-bit conv, linear and matmul that give i32."""

from __future__ import annotations

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Op, Value
from secateur.ir.ops.pooling import window_sizes
from secateur.ir.rewrite import Match, Outcome, Refusal, rule
from secateur.ir.types import DType
from secateur.passes.integer.bounds import largest
from secateur.passes.integer.fixed_point import MOST, ROOM, compact, integer, widened
from secateur.passes.integer.leaves import BYTES, Leaf, Weights, known, leaf, weights


def dequantized(b: Builder, x: Value, scale: np.ndarray | float, zero: int = 0) -> Value:
    """The real numbers that i32 integers stand for; `scale` broadcasts to x."""
    return b.dequantize(x, b.constant(compact(np.asarray(scale, np.float64)), DType.F32), integer(b, zero))


def narrow(value: Value) -> Leaf | str:
    """The leaf behind an operand of a product, or why it cannot be one."""
    found = leaf(value)
    if found is None:
        return "an operand is not quantised"
    if found.value.type.dtype not in BYTES:
        return f"an operand is {found.value.type.dtype}, a product takes 8 bits"
    return found if found.plain else "an operand has more than one scale"


@rule("(conv|linear)(dequantize(_, _, _), _, ...)")
def product(m: Match, b: Builder) -> Outcome:
    """sum((x - z) sx * w sw) + bias == (sum(x * w) + round(bias / (sx sw)) - z sum(w)) * sx sw"""
    op = m.root
    x = narrow(op.operands[0])
    if isinstance(x, str):
        return Refusal(x)
    w = weights(op.operands[1])
    if isinstance(w, str):
        return Refusal(w)
    bias = known(op.operands[2]) if len(op.operands) > 2 else np.zeros(w.scale.shape)
    if bias is None:
        return Refusal("the bias is not constant")
    if not np.all(np.isfinite(bias)):
        return Refusal("a bias is not finite")
    w, start = _start(x, w, bias)
    if isinstance(start, str):
        return Refusal(start)
    attrs = {**op.attrs, "pad_value": x.point} if op.name == "conv" else op.attrs
    name = _name(op.operands[1])
    first = b.constant(start, name=f"{name}.start" if name else "")
    operands = [x.value, b.constant(w.integers, name=name), first]
    total = b.op(op.name, operands, attrs).result
    return dequantized(b, total, _spread(op, w.scale * x.step))


def _name(value: Value) -> str:
    """The parameter's name behind a dequantised constant."""
    made = value.op.operands[0].op if value.op is not None and value.op.operands else None
    return str(made.attrs["name"]) if made is not None and made.name == "constant" else ""


def _start(x: Leaf, w: Weights, bias: np.ndarray) -> tuple[Weights, np.ndarray | str]:
    """The weights, and what the sums start from: bias minus the zero point's share; or why they would not fit i32.

    A channel whose bias is more than 2^30 of its steps (weights of zero have no scale of their own) gets
    larger steps: what its weights lose is less than 2^-30 of its result.
    """
    bias = bias.astype(np.float64)
    scale = np.maximum(w.scale, np.abs(bias) / (ROOM * x.step))
    shape = (-1, *[1] * (w.integers.ndim - 1))
    integers = np.rint(w.integers * (w.scale / scale).reshape(shape)).astype(np.int8)
    axes = tuple(range(1, integers.ndim))
    offset = np.rint(bias / (scale * x.step)).astype(np.int64)
    low, high = (end - x.point for end in _ends(x.value.type.dtype))
    most = np.abs(integers.astype(np.int64)).sum(axes) * max(-low, high) + np.abs(offset)
    if most.size and most.max() > MOST:
        return w, f"sums of {integers[0].size} products may leave 32 bits"
    start = offset - x.point * integers.astype(np.int64).sum(axes)
    # Sums are modulo 2^32, so a start that leaves 32 bits may wrap as they do.
    return Weights(integers, scale), start.astype(np.int32)


def _ends(dtype: DType) -> tuple[int, int]:
    limits = np.iinfo(dtype.numpy)
    return int(limits.min), int(limits.max)


def _spread(op: Op, scale: np.ndarray) -> np.ndarray:
    """One number for each output channel in a shape that broadcasts to the result."""
    if op.name == "linear" or op.attrs["channels_last"]:
        return scale
    return scale.reshape(-1, *[1] * (op.result.type.rank - 2))


@rule("matmul(x, dequantize(_, _, _))")
def matmul_of_weights(m: Match, b: Builder) -> Outcome:
    """x @ w == linear(x, transpose(w)) for quantised constant weights"""
    w = m.op(0)
    stored = known(w.operands[0])
    if stored is None or stored.ndim != 2:
        return None
    turned = []
    for value in w.operands:
        array = known(value)
        if array is None:
            return None
        full = array.reshape((1,) * (2 - array.ndim) + array.shape) if array.ndim else array
        turned.append(np.ascontiguousarray(full.T).reshape(full.T.shape))
    integers = b.constant(turned[0], name=_name(w.result))
    return b.linear(m["x"], b.dequantize(integers, b.constant(turned[1]), b.constant(turned[2])))


@rule("matmul(dequantize(_, _, _), dequantize(_, _, _))")
def matmul_of_activations(m: Match, b: Builder) -> Outcome:
    """sum((x - zx) (y - zy)) == sum(x y) - zx sum(y) - zy sum(x) + K zx zy, times both scales"""
    x, y = (narrow(value) for value in m.root.operands)
    if isinstance(x, str) or isinstance(y, str):
        return Refusal(x if isinstance(x, str) else str(y))
    size = x.value.shape[-1]
    if size * 2 * 255 * 255 > MOST:
        return Refusal(f"sums of {size} products may leave 32 bits")
    total = b.matmul(x.value, y.value)
    if x.point:
        total = b.sub(total, _times(b, _sums(b, y.value, -2), x.point))
    if y.point:
        total = b.sub(total, _times(b, _sums(b, x.value, -1), y.point))
    if x.point and y.point:
        total = b.add(total, integer(b, size * x.point * y.point))
    return dequantized(b, total, x.step * y.step)


def _sums(b: Builder, x: Value, axis: int) -> Value:
    return b.reduce_sum(widened(b, x), axes=[x.type.rank + axis], keepdims=True)


def _times(b: Builder, x: Value, number: int) -> Value:
    return x if number == 1 else b.mul(x, integer(b, number))


@rule("avg_pool(dequantize(_, _, _)) {kernel, stride, padding, channels_last}")
def average(m: Match, b: Builder) -> Outcome:
    """mean of windows == a depthwise convolution with weights 1, divided by the number of elements"""
    op, x = m.root, narrow(m.root.operands[0])
    if isinstance(x, str):
        return Refusal(x)
    attrs = op.attrs
    n = len(attrs["kernel"])
    spatial = slice(1, 1 + n) if attrs["channels_last"] else slice(2, 2 + n)
    sizes, counts = x.value.shape[spatial], op.result.shape[spatial]
    channels = x.value.shape[-1 if attrs["channels_last"] else 1]
    # What `ceil_mode` lets hang over the end is padding to a convolution, with the zero point in it.
    behind = [
        (c - 1) * s + k - size - low
        for c, s, k, size, low in zip(counts, attrs["stride"], attrs["kernel"], sizes, attrs["padding"], strict=False)
    ]
    ones = np.ones((channels, 1, *attrs["kernel"]), np.int8)
    elements = int(np.prod(attrs["kernel"]))
    total = b.conv(
        x.value,
        b.constant(ones),
        integer(b, np.full(channels, -x.point * elements)),
        stride=attrs["stride"],
        padding=[*attrs["padding"][:n], *(max(size, 0) for size in behind)],
        dilation=[1] * n,
        groups=channels,
        channels_last=attrs["channels_last"],
        pad_value=x.point,
    )
    divisor = window_sizes(
        sizes, attrs["kernel"], attrs["stride"], attrs["padding"], counts, attrs["count_include_pad"]
    )
    scale = x.step / compact(divisor).astype(np.float64)
    return dequantized(b, total, scale[..., None] if scale.ndim and attrs["channels_last"] else scale)


@rule("(reduce_mean|reduce_sum)(dequantize(_, _, _)) {axes, keepdims}")
def reduction(m: Match, b: Builder) -> Outcome:
    """sum((x - z) s) == (sum(x) - n z) s"""
    op, x = m.root, leaf(m.root.operands[0])
    if x is None or not x.plain:
        return Refusal("it has more than one scale")
    count = int(np.prod([x.value.shape[axis] for axis in op.attrs["axes"]], dtype=np.int64))
    if not count or count * max(largest(x.value), abs(x.point)) > MOST:
        return Refusal(f"a sum of {count} integers may leave 32 bits")
    total = b.reduce_sum(widened(b, x.value), axes=op.attrs["axes"], keepdims=op.attrs["keepdims"])
    return dequantized(b, total, x.step / (count if op.name == "reduce_mean" else 1), count * x.point)


RULES = [matmul_of_weights, product, matmul_of_activations, average, reduction]
