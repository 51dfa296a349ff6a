"""Activation functions and the softmax family."""

from __future__ import annotations

from secateur.frontends.onnx.node import Node, row
from secateur.ir.graph import Value
from secateur.ir.types import numel


@row("LeakyRelu")
def leaky_relu(n: Node) -> Value:
    return n.b.leaky_relu(n.x(), slope=n.attr("alpha", 0.01))


@row("PRelu")
def prelu(n: Node) -> Value:
    x, slope = n.x(0), n.x(1)
    return n.b.where(n.b.lt(x, n.scalar_like(0, x)), n.b.mul(x, slope), x)


@row("Elu")
def elu(n: Node) -> Value:
    return n.b.elu(n.x(), alpha=n.attr("alpha", 1.0))


@row("Selu")
def selu(n: Node) -> Value:
    alpha, gamma = n.attr("alpha", 1.67326319217681884765625), n.attr("gamma", 1.05070102214813232421875)
    return n.b.elu(n.x(), alpha=alpha, scale=gamma)


@row("Celu")
def celu(n: Node) -> Value:
    alpha = n.attr("alpha", 1.0)
    return n.b.elu(n.x(), alpha=alpha, input_scale=1 / alpha)


@row("HardSigmoid")
def hard_sigmoid(n: Node) -> Value:
    return n.b.hard_sigmoid(n.x(), alpha=n.attr("alpha", 0.2), beta=n.attr("beta", 0.5))


@row("Gelu")
def gelu(n: Node) -> Value:
    n.refuse("approximate", "none", "tanh")
    return n.b.gelu_tanh(n.x()) if n.attr("approximate", "none") == "tanh" else n.b.gelu(n.x())


@row("Swish")
def swish(n: Node) -> Value:
    x, alpha = n.x(), n.attr("alpha", 1.0)
    return n.b.silu(x) if alpha == 1 else n.b.mul(x, n.b.sigmoid(n.b.mul(x, n.scalar_like(alpha, x))))


@row("Softsign")
def softsign(n: Node) -> Value:
    x = n.x()
    return n.b.div(x, n.b.add(n.b.abs(x), n.scalar_like(1, x)))


@row("ThresholdedRelu")
def thresholded_relu(n: Node) -> Value:
    x = n.x()
    return n.b.where(n.b.gt(x, n.scalar_like(n.attr("alpha", 1.0), x)), x, n.scalar_like(0, x))


@row("Shrink")
def shrink(n: Node) -> Value:
    """x + bias below -lambd, x - bias above lambd, 0 between."""
    x = n.x()
    bias, lambd = (n.scalar_like(n.attr(name, default), x) for name, default in (("bias", 0.0), ("lambd", 0.5)))
    high = n.b.where(n.b.gt(x, lambd), n.b.sub(x, bias), n.scalar_like(0, x))
    return n.b.where(n.b.lt(x, n.b.neg(lambd)), n.b.add(x, bias), high)


@row("Softmax", "LogSoftmax", "Hardmax")
def softmax(n: Node) -> Value:
    """Up to opset 12 the trailing dimensions from `axis` on count as one."""
    x = n.x()
    axis = n.axis(n.attr("axis", 1 if n.version < 13 else -1), x.type.rank)
    if n.version >= 13 or axis == x.type.rank - 1:
        return _along(n, x, axis)
    flat = n.reshape(x, (numel(x.shape[:axis]), numel(x.shape[axis:])))
    return n.reshape(_along(n, flat, 1), x.shape)


def _along(n: Node, x: Value, axis: int) -> Value:
    if n.name != "Hardmax":
        return n.b.softmax(x, axis=axis) if n.name == "Softmax" else n.b.log_softmax(x, axis=axis)
    best = n.b.argmax(x, axis=axis, keepdims=True)
    return n.cast(n.b.eq(best, n.counting(x.shape[axis], axis, x.type.rank)), x.type.dtype)
