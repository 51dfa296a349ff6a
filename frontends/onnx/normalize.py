"""Normalisation layers, in inference."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.frontends.onnx.node import Item, Node, row
from secateur.ir.graph import Value
from secateur.ir.types import DType


@row("BatchNormalization")
def batch_norm(n: Node) -> Value:
    if n.attr("training_mode", 0) or not n.attr("spatial", 1):
        raise n.fail("only the inference form over channels is supported", hint="export the model for inference")
    n.refuse_outputs(1)
    x = n.x(0)
    params = [n.cast(n.x(index), x.type.dtype) for index in range(1, 5)]
    return n.b.batch_norm(x, *params, eps=n.attr("epsilon", 1e-5))


@row("InstanceNormalization")
def instance_norm(n: Node) -> Value:
    x = n.x(0)
    return n.b.group_norm(x, n.x(1), n.x(2), groups=x.shape[1], eps=n.attr("epsilon", 1e-5))


@row("GroupNormalization")
def group_norm(n: Node) -> Value:
    """Scale and bias are per group in opset 18 and per channel from 21 on."""
    x, groups = n.x(0), n.need("num_groups")
    channels = x.shape[1]
    params = [n.cast(n.x(index), x.type.dtype) for index in (1, 2)]
    if n.version < 21:
        each = (groups, channels // groups)
        params = [n.reshape(n.expand(n.reshape(p, (groups, 1)), each), (channels,)) for p in params]
    return n.b.group_norm(x, *params, groups=groups, eps=n.attr("epsilon", 1e-5))


def _params(n: Node, x: Value, dims: int, count: int) -> list[Value] | None:
    """Weight and bias in exactly the normalised shape, or None where they vary over other dimensions."""
    shape = x.shape[x.type.rank - dims :]
    params = []
    for index in range(1, 1 + count):
        if not n.has(index):
            continue
        value = n.cast(n.x(index), x.type.dtype)
        lead = value.type.rank - dims
        if lead > 0 and set(value.shape[:lead]) == {1}:
            value = n.reshape(value, value.shape[lead:])
        if value.type.rank > dims:
            return None
        params.append(n.expand(value, shape))
    return params


@row("LayerNormalization")
def layer_norm(n: Node) -> Item | list[Item]:
    x = n.x(0)
    axis = n.axis(n.attr("axis", -1), x.type.rank)
    params = _params(n, x, x.type.rank - axis, 2)
    if params is None:
        return n.by_function()
    eps = n.attr("epsilon", 1e-5)
    made: list[Item] = [n.b.layer_norm(x, *params, dims=x.type.rank - axis, eps=eps)]
    if any(n.wanted[1:]):
        axes = tuple(range(axis, x.type.rank))
        wide = n.cast(x, DType.F32)
        mean = n.b.reduce_mean(wide, axes=axes, keepdims=True)
        variance = n.b.reduce_mean(n.b.square(n.b.sub(wide, mean)), axes=axes, keepdims=True)
        made += [mean, n.b.rsqrt(n.b.add(variance, n.scalar_like(eps, wide)))]
    return made


@row("RMSNormalization")
def rms_norm(n: Node) -> Item | list[Item]:
    x = n.x(0)
    axis = n.axis(n.attr("axis", -1), x.type.rank)
    params = _params(n, x, x.type.rank - axis, 1)
    if params is None:
        return n.by_function()
    return n.b.rms_norm(x, *params, dims=x.type.rank - axis, eps=n.attr("epsilon", 1e-5))


@row("LRN")
def lrn(n: Node) -> Value:
    """x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ** beta."""
    x, size = n.x(), n.need("size")
    low, rank = (size - 1) // 2, x.type.rank
    padding = [[0, amount, *[0] * (rank - 2)] for amount in (low, size - 1 - low)]
    squares = n.b.pad(n.b.square(x), low=padding[0], high=padding[1], interior=[0] * rank)
    total = n.cut(squares, 1, 0, x.shape[1])
    for shift in range(1, size):
        total = n.b.add(total, n.cut(squares, 1, shift, shift + x.shape[1]))
    scaled = n.b.mul(total, n.scalar_like(n.attr("alpha", 1e-4) / size, x))
    base = n.b.add(scaled, n.scalar_like(n.attr("bias", 1.0), x))
    return n.b.div(x, n.b.pow(base, n.scalar_like(n.attr("beta", 0.75), x)))


def norm(n: Node, x: Value, p: int, axes: Sequence[int]) -> Value:
    """The p-norm along axes, kept as dimensions of size 1."""
    if p == 1:
        return n.b.reduce_sum(n.b.abs(x), axes=axes, keepdims=True)
    if p == 2:
        return n.b.sqrt(n.b.reduce_sum(n.b.square(x), axes=axes, keepdims=True))
    total = n.b.reduce_sum(n.b.pow(n.b.abs(x), n.scalar_like(p, x)), axes=axes, keepdims=True)
    return n.b.pow(total, n.scalar_like(1 / p, x))


@row("LpNormalization")
def lp_normalization(n: Node) -> Value:
    """A norm of 0 gives 0."""
    n.refuse("p", 2, 1)
    x = n.x()
    length = norm(n, x, n.attr("p", 2), (n.axis(n.attr("axis", -1), x.type.rank),))
    zero = n.scalar_like(0, x)
    return n.b.where(n.b.eq(length, zero), zero, n.b.div(x, length))


@row("GlobalLpPool")
def global_lp_pool(n: Node) -> Value:
    x = n.x()
    return norm(n, x, n.attr("p", 2), tuple(range(2, x.type.rank)))
