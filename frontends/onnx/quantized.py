"""Quantised ops, spelt out in integer and float arithmetic."""

from __future__ import annotations

from secateur.frontends.onnx.convolution import window
from secateur.frontends.onnx.linear import product
from secateur.frontends.onnx.load import element_type
from secateur.frontends.onnx.node import Node, row
from secateur.ir.graph import Value
from secateur.ir.types import DType


def _spread(n: Node, param: Value, x: Value, axis: int) -> Value:
    """A scale or zero point made to broadcast against x: per tensor, per axis, or per block along the axis."""
    if param.type.numel == 1 and param.type.rank <= 1:
        return n.reshape(param, ())
    if param.type.rank == 1:
        return n.reshape(param, [param.shape[0] if dim == axis else 1 for dim in range(x.type.rank)])
    if param.shape == x.shape:
        return param
    blocks, size = param.shape[axis], x.shape[axis]
    each = n.attr("block_size", 0) or -(-size // blocks)
    lead, rest = param.shape[:axis], param.shape[axis + 1 :]
    wide = n.expand(n.reshape(param, (*lead, blocks, 1, *rest)), (*lead, blocks, each, *rest))
    return n.cut(n.reshape(wide, (*lead, blocks * each, *rest)), axis, 0, size)


def _axis(n: Node, x: Value, default: int = 1) -> int:
    axis = n.attr("axis", default)
    return n.axis(axis, x.type.rank) if -x.type.rank <= axis < x.type.rank else 0


@row("DequantizeLinear")
def dequantize_linear(n: Node) -> Value:
    """(x - zero point) * scale."""
    x, scale = n.x(0), n.x(1)
    axis = _axis(n, x)
    dtype = element_type(n.attrs["output_dtype"], n.span) if n.attr("output_dtype", 0) else scale.type.dtype
    whole = n.cast(x, DType.I32)
    if n.has(2):
        whole = n.b.sub(whole, n.cast(_spread(n, n.x(2), x, axis), DType.I32))
    made = n.b.mul(n.cast(whole, DType.F32), n.cast(_spread(n, scale, x, axis), DType.F32))
    return n.cast(made, dtype)


@row("QuantizeLinear")
def quantize_linear(n: Node) -> Value:
    """round(x / scale) + zero point, saturated."""
    x, scale = n.x(0), n.x(1)
    axis = _axis(n, x)
    dtype = DType.U8
    if n.has(2):
        dtype = n.x(2).type.dtype
    elif n.attr("output_dtype", 0):
        dtype = element_type(n.attrs["output_dtype"], n.span)
    zero = n.cast(_spread(n, n.x(2), x, axis), DType.F32) if n.has(2) else None
    ratio = n.b.div(n.cast(x, DType.F32), n.cast(_spread(n, scale, x, axis), DType.F32))
    return _saturate(n, ratio, zero, dtype)


def _saturate(n: Node, x: Value, zero: Value | None, dtype: DType) -> Value:
    whole = n.b.round(x)
    return n.cast(whole if zero is None else n.b.add(whole, zero), dtype)


def _centred(n: Node, index: int, zero: int, dtype: DType, *, column: bool = False) -> Value:
    """Input minus its zero point, in a type that holds the difference."""
    x = n.cast(n.x(index), dtype)
    if not n.has(zero):
        return x
    point = n.x(zero)
    if point.type.numel == 1:
        point = n.reshape(point, ())
    elif point.type.rank == 1 and column:
        point = n.reshape(point, (point.shape[0], *[1] * (1 if dtype is DType.I32 else x.type.rank - 1)))
    return n.b.sub(x, n.cast(point, dtype))


@row("MatMulInteger")
def matmul_integer(n: Node) -> Value:
    return product(n, _centred(n, 0, 2, DType.I32, column=True), _centred(n, 1, 3, DType.I32))


@row("ConvInteger")
def conv_integer(n: Node) -> Value:
    """In f64, which holds the integer sums exactly."""
    x, w = _centred(n, 0, 2, DType.F64), _centred(n, 1, 3, DType.F64, column=True)
    made = n.b.conv(x, w, groups=n.attr("group", 1), **window(n, x, w.shape[2:]))
    return n.cast(made, DType.I32)


@row("QLinearMatMul")
def qlinear_matmul(n: Node) -> Value:
    total = product(n, _centred(n, 0, 2, DType.I32, column=True), _centred(n, 3, 5, DType.I32))
    scale_a, scale_b, scale_y = (n.cast(n.x(index), DType.F32) for index in (1, 4, 6))
    if scale_a.type.rank == 1 and scale_a.type.numel > 1:
        scale_a = n.reshape(scale_a, (scale_a.shape[0], 1))
    real = n.b.mul(n.cast(total, DType.F32), n.b.div(n.b.mul(scale_a, scale_b), scale_y))
    return _saturate(n, n.reshape(real, total.shape), n.cast(n.x(7), DType.F32), n.x(7).type.dtype)


@row("QLinearConv")
def qlinear_conv(n: Node) -> Value:
    x, w = _centred(n, 0, 2, DType.F64), _centred(n, 3, 5, DType.F64, column=True)
    bias = [n.cast(n.x(8), DType.F64)] if n.has(8) else []
    total = n.b.conv(x, w, *bias, groups=n.attr("group", 1), **window(n, x, w.shape[2:]))
    scale_x, scale_w, scale_y = (n.cast(n.x(index), DType.F32) for index in (1, 4, 6))
    ratio = n.b.div(n.b.mul(scale_x, scale_w), scale_y)
    ratio = n.reshape(ratio, (ratio.type.numel, *[1] * (x.type.rank - 2)))
    zero = n.reshape(n.cast(n.x(7), DType.F32), ())
    return _saturate(n, n.b.mul(n.cast(total, DType.F32), ratio), zero, n.x(7).type.dtype)
