"""Quantised ops: QDQ pairs as they are, the QLinear forms as QDQ around a float op, integer products directly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np

from secateur.frontends.onnx.convolution import window
from secateur.frontends.onnx.linear import product
from secateur.frontends.onnx.load import element_type
from secateur.frontends.onnx.node import TABLE, Node, row
from secateur.ir.graph import Value
from secateur.ir.ops.constant import constant_value
from secateur.ir.ops.quantized import STORED
from secateur.ir.types import DType

CONTRIB = "com.microsoft"
BYTES = (DType.I8, DType.U8)


# Scales and zero points ---------------------------------------------------------------------------


def _check_scale(n: Node, scale: Value) -> Value:
    """The scale as f32; raises `CompileError` where it is known and no size of a step."""
    array = constant_value(scale)
    if array is not None:
        wide = array.astype(np.float64).reshape(-1)
        bad = wide[~(np.isfinite(wide) & (wide > 0))]
        if bad.size:
            raise n.fail(f"a scale is {bad[0]:g}", hint="a scale is the positive, finite size of one step")
    if not scale.type.dtype.is_float:
        raise n.fail(f"a scale must be a float, got {scale.type.dtype}")
    return n.cast(scale, DType.F32)


def _axis(n: Node, x: Value, default: int = 1) -> int:
    axis = n.attr("axis", default)
    return n.axis(axis, x.type.rank) if -x.type.rank <= axis < x.type.rank else 0


def _blocks(n: Node, param: Value, x: Value, axis: int) -> int:
    """The length of the blocks that have a scale of their own; 0 where scales are not blocked."""
    if param.type.rank != x.type.rank or param.type.rank < 2 or param.shape == x.shape or param.type.numel == 1:
        return 0
    return n.attr("block_size", 0) or -(-x.shape[axis] // param.shape[axis])


def _spread(n: Node, param: Value, x: Value, axis: int) -> Value:
    """A scale or zero point made to broadcast against x: per tensor, per axis, or each block's at each element."""
    if param.type.numel == 1 and param.type.rank <= 1:
        return n.reshape(param, ())
    if param.type.rank == 1:
        return n.reshape(param, [param.shape[0] if dim == axis else 1 for dim in range(x.type.rank)])
    each = _blocks(n, param, x, axis)
    if not each:
        return param
    lead, rest = param.shape[:axis], param.shape[axis + 1 :]
    wide = n.expand(n.reshape(param, (*lead, param.shape[axis], 1, *rest)), (*lead, param.shape[axis], each, *rest))
    return n.cut(n.reshape(wide, (*lead, param.shape[axis] * each, *rest)), axis, 0, x.shape[axis])


def _zero(n: Node, zero: Value | None, dtype: DType) -> Value:
    """A zero point, as a scalar where all are the same."""
    if zero is None:
        return n.b.constant(np.zeros((), dtype.numpy))
    array = constant_value(zero)
    if array is not None and array.size and np.all(array == array.flat[0]):
        return n.b.constant(np.array(array.flat[0], dtype.numpy))
    return n.cast(zero, dtype)


def _check_stored(n: Node, dtype: DType) -> None:
    if dtype not in STORED:
        raise n.fail(f"quantised {dtype} is not supported", hint=f"{', '.join(map(str, STORED))} are")


def _dequantize(n: Node, x: Value, scale: Value, zero: Value | None, axis: int) -> Value:
    """(x - zero) * scale as f32, of the shape of x."""
    _check_stored(n, x.type.dtype)
    scale, zero, shape = _check_scale(n, scale), _zero(n, zero, x.type.dtype), x.shape
    each = _blocks(n, scale, x, axis)
    if not each or shape[axis] != each * scale.shape[axis]:
        return n.b.dequantize(x, _spread(n, scale, x, axis), _spread(n, zero, x, axis))
    grouped = n.reshape(x, (*shape[:axis], scale.shape[axis], each, *shape[axis + 1 :]))
    beside = (*scale.shape[: axis + 1], 1, *scale.shape[axis + 1 :])
    zero = n.reshape(zero, beside) if zero.type.rank else zero
    return n.reshape(n.b.dequantize(grouped, n.reshape(scale, beside), zero), shape)


def _quantize(n: Node, x: Value, scale: Value, zero: Value | None, axis: int, dtype: DType) -> Value:
    """x / scale, rounded, plus zero, saturated to dtype."""
    _check_stored(n, dtype)
    scale, zero = _check_scale(n, scale), _zero(n, zero, dtype)
    return n.b.quantize(n.cast(x, DType.F32), _spread(n, scale, x, axis), _spread(n, zero, x, axis))


@row("DequantizeLinear")
@row("DequantizeLinear", domain=CONTRIB)
def dequantize_linear(n: Node) -> Value:
    """(x - zero point) * scale."""
    x, scale = n.x(0), n.x(1)
    dtype = element_type(n.attrs["output_dtype"], n.span) if n.attr("output_dtype", 0) else scale.type.dtype
    return n.cast(_dequantize(n, x, scale, n.opt(2), _axis(n, x)), dtype)


@row("QuantizeLinear")
@row("QuantizeLinear", domain=CONTRIB)
def quantize_linear(n: Node) -> Value:
    """round(x / scale) + zero point, saturated."""
    x = n.x(0)
    dtype = DType.U8
    if n.has(2):
        dtype = n.x(2).type.dtype
    elif n.attr("output_dtype", 0):
        dtype = element_type(n.attrs["output_dtype"], n.span)
    return _quantize(n, x, n.x(1), n.opt(2), _axis(n, x), dtype)


# QLinear: dequantize, compute, quantize -----------------------------------------------------------


def _real(n: Node, at: int, axis: int = 0) -> Value:
    """Inputs at, at + 1 and at + 2 (tensor, scale, zero point) as the real numbers they stand for."""
    return _dequantize(n, n.x(at), n.x(at + 1), n.opt(at + 2), axis)


def _back(n: Node, x: Value, at: int, dtype: DType | None = None) -> Value:
    """A real result by the scale and the zero point that are inputs at and at + 1."""
    zero = n.opt(at + 1)
    return _quantize(n, x, n.x(at), zero, 0, zero.type.dtype if zero is not None else dtype or DType.U8)


@row("QLinearConv")
def qlinear_conv(n: Node) -> Value:
    x, w = _real(n, 0), _real(n, 3)
    values = [x, w]
    if n.has(8):
        scale = n.b.mul(_check_scale(n, n.x(1)), _check_scale(n, n.x(4)))
        values.append(n.b.dequantize(n.x(8), n.reshape(scale, (scale.type.numel,)), _zero(n, None, DType.I32)))
    made = n.b.conv(*values, groups=n.attr("group", 1), **window(n, x, w.shape[2:]))
    return _back(n, made, 6)


@row("QLinearMatMul")
def qlinear_matmul(n: Node) -> Value:
    """A scale for each row of the left side, or each column of the right one, may be a vector."""
    return _back(n, product(n, _real(n, 0, max(n.x(0).type.rank - 2, 0)), _real(n, 3, n.x(3).type.rank - 1)), 6)


@row("QGemm", domain=CONTRIB)
def qgemm(n: Node) -> Value:
    """alpha * A B + C; C is in steps of alpha * both scales. Without a scale of the result, that is real."""
    a, b = _real(n, 0), _real(n, 3, 0 if n.attr("transB", 0) else 1)
    inputs = [a, b]
    if n.has(6):
        scale = n.b.mul(_check_scale(n, n.x(1)), _check_scale(n, n.x(4)))
        scale = n.b.mul(scale, n.scalar_like(n.attr("alpha", 1.0), scale))
        inputs.append(
            n.b.dequantize(n.x(6), _spread(n, scale, n.x(6), n.x(6).type.rank - 1), _zero(n, None, DType.I32))
        )
    made = _float_op(n, "Gemm", inputs)
    return _back(n, made, 7, n.x(0).type.dtype) if n.has(7) else made


def _float_op(n: Node, name: str, inputs: Sequence[Value]) -> Value:
    """The standard op `name` on other inputs, with this node's attributes."""
    inner = copy.copy(n)
    inner.name, inner.inputs = name, list(inputs)
    made = TABLE["", name](inner)
    assert isinstance(made, Value)
    return made


@row("QLinearAdd", "QLinearMul", domain=CONTRIB)
def qlinear_pair(n: Node) -> Value:
    return _back(n, _float_op(n, n.name.removeprefix("QLinear"), [_real(n, 0), _real(n, 3)]), 6)


@row("QLinearSigmoid", "QLinearLeakyRelu", "QLinearGlobalAveragePool", "QLinearAveragePool", domain=CONTRIB)
def qlinear_single(n: Node) -> Value:
    n.refuse("channels_last", 0)
    made = _float_op(n, n.name.removeprefix("QLinear"), [_real(n, 0)])
    return _back(n, made, 3, n.x(0).type.dtype)


@row("QLinearConcat", domain=CONTRIB)
def qlinear_concat(n: Node) -> Value:
    """The result's scale and zero point come first, then each tensor with its own."""
    if len(n.inputs) < 5 or len(n.inputs) % 3 != 2:
        raise n.fail(f"takes 2 inputs and 3 more for each tensor, got {len(n.inputs)}")
    return _back(n, _float_op(n, "Concat", [_real(n, at) for at in range(2, len(n.inputs), 3)]), 0)


# Integer products ---------------------------------------------------------------------------------


def _wide(n: Node, x: Value) -> Value:
    return n.cast(x, DType.I32)


def _less(n: Node, total: Value, zero: Value | None, other: Callable[[], Value]) -> Value:
    """total - zero * other(); `total` itself where zero is left out or known to be 0."""
    known = None if zero is None else constant_value(zero)
    if zero is None or (known is not None and not known.any()):
        return total
    return n.b.sub(total, n.b.mul(_wide(n, zero), other()))


def _point(n: Node, index: int, shape: Sequence[int]) -> Value | None:
    """A zero point: a scalar, or a vector brought to `shape`; None where there is none."""
    point = n.opt(index)
    if point is None or point.type.rank > 1:
        return point
    return n.reshape(point, () if point.type.numel == 1 else shape)


def _bytes(n: Node) -> tuple[Value, Value]:
    for value in (n.x(0), n.x(1)):
        if value.type.dtype not in BYTES:
            raise n.fail(f"takes 8-bit integers, got {value.type}")
    return n.x(0), n.x(1)


@row("MatMulInteger")
def matmul_integer(n: Node) -> Value:
    """sum((a - za) (b - zb)) == sum(a b) - za sum(b - zb) - zb sum(a)."""
    a, b = _bytes(n)
    vectors = a.type.rank == 1, b.type.rank == 1
    a = n.reshape(a, (1, *a.shape)) if vectors[0] else a
    b = n.reshape(b, (*b.shape, 1)) if vectors[1] else b
    za, zb = _point(n, 2, (a.shape[-2], 1)), _point(n, 3, (1, b.shape[-1]))
    size = n.b.constant(np.array(a.shape[-1], np.int32))

    def columns() -> Value:
        sums = n.b.reduce_sum(_wide(n, b), axes=[b.type.rank - 2], keepdims=True)
        return _less(n, sums, zb, lambda: size)

    total = _less(n, n.b.matmul(a, b), za, columns)
    total = _less(n, total, zb, lambda: n.b.reduce_sum(_wide(n, a), axes=[a.type.rank - 1], keepdims=True))
    lead, (rows, width) = total.shape[:-2], total.shape[-2:]
    return n.reshape(total, (*lead, *([] if vectors[0] else [rows]), *([] if vectors[1] else [width])))


@row("ConvInteger")
def conv_integer(n: Node) -> Value:
    """sum((x - zx) (w - zw)) == sum(x w) - zx sum(w - zw) - zw sum(x), over what lies inside the image.

    A known zx is what padding holds instead, and its share is what sums start from.
    """
    x, w = _bytes(n)
    w, zw = _signed(n, w)
    zx = _point(n, 2, ())
    attrs = {"groups": n.attr("group", 1), **window(n, x, w.shape[2:])}
    ones = n.b.constant(np.ones(w.shape, np.int8))

    def sums(image: Value, start: Sequence[Value] = ()) -> Value:
        return _less(n, n.b.conv(image, w, *start, **attrs), zw, lambda: n.b.conv(image, ones, **attrs))

    known = constant_value(zx) if zx is not None else np.zeros((), np.int32)
    if known is None:
        inside = n.b.constant(np.ones((1, *x.shape[1:]), np.int8))
        return _less(n, sums(x), zx, lambda: sums(inside))
    attrs["pad_value"] = int(known)
    size = n.b.constant(np.array(w.type.numel // w.shape[0], np.int32))
    counts = n.b.reduce_sum(_wide(n, w), axes=list(range(1, w.type.rank)), keepdims=False)
    flat = n.reshape(zw, (w.shape[0],) if zw.type.rank else ())
    return sums(x, [n.b.mul(_less(n, counts, flat, lambda: size), n.b.constant(np.array(-int(known), np.int32)))])


def _signed(n: Node, w: Value) -> tuple[Value, Value]:
    """Weights [O, ...] as i8, and their zero point as an i32 scalar or [O, 1, ...] without a batch."""
    zero = n.opt(3)
    point = n.b.constant(np.zeros((), np.int32)) if zero is None else _wide(n, zero)
    beside = (w.shape[0], *[1] * (w.type.rank - 1))
    point = n.reshape(point, beside if point.type.numel > 1 else ())
    array, shift = constant_value(w), constant_value(point)
    if array is not None and shift is not None:
        apart = array.astype(np.int64) - shift
        if apart.size and apart.min() >= -128 and apart.max() <= 127:
            return n.b.constant(apart.astype(np.int8)), n.b.constant(np.zeros((), np.int32))
    if w.type.dtype is DType.U8:
        half = n.b.constant(np.array(128, np.int32))
        w, point = n.b.saturate(n.b.sub(_wide(n, w), half), dtype=DType.I8), n.b.sub(point, half)
    return w, n.reshape(point, beside[:-1] if point.type.rank else ())
