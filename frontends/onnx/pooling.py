"""Pooling."""

from __future__ import annotations

import numpy as np

from secateur.frontends.onnx.convolution import window
from secateur.frontends.onnx.node import Node, row
from secateur.ir.graph import Value
from secateur.ir.types import DType


def _window(n: Node, x: Value) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]], bool]:
    """(kernel, stride/dilation/padding, whether a last window may hang over the end)."""
    kernel = tuple(n.need("kernel_shape"))
    ceil = bool(n.attr("ceil_mode", 0)) and n.attr("auto_pad", "NOTSET") == "NOTSET"
    attrs = window(n, x, kernel)
    if ceil and set(attrs["dilation"]) == {1}:
        # A window larger than all there is (a global pool, as some models state it) reads just that.
        low, high = attrs["padding"][: len(kernel)], attrs["padding"][len(kernel) :]
        kernel = tuple(min(k, d + a + b) for k, d, a, b in zip(kernel, x.shape[2:], low, high, strict=True))
    return kernel, attrs, ceil


@row("MaxPool")
def max_pool(n: Node) -> Value:
    n.refuse_outputs(1)
    x = n.x()
    kernel, attrs, ceil = _window(n, x)
    return n.b.max_pool(x, kernel=kernel, ceil_mode=ceil, **attrs)


@row("AveragePool")
def average_pool(n: Node) -> Value:
    x = n.x()
    kernel, attrs, ceil = _window(n, x)
    include = bool(n.attr("count_include_pad", 0))
    if set(attrs["dilation"]) != {1}:
        return _dilated_average(n, x, kernel, attrs, ceil, include)
    del attrs["dilation"]
    return n.b.avg_pool(x, kernel=kernel, ceil_mode=ceil, count_include_pad=include, **attrs)


def _dilated_average(
    n: Node, x: Value, kernel: tuple[int, ...], attrs: dict[str, tuple[int, ...]], ceil: bool, include: bool
) -> Value:
    """Sums by a convolution with ones on each channel, over the number of elements that count."""
    stride, dilation, pads = attrs["stride"], attrs["dilation"], attrs["padding"]
    count = len(kernel)
    low, high = list(pads[:count]), list(pads[count:])
    inside = np.ones((1, 1, *x.shape[2:]), x.type.dtype.numpy)
    if include:
        inside = np.pad(inside, [(0, 0), (0, 0), *zip(low, high, strict=True)], constant_values=1)
    over = [0] * count
    for d in range(count):
        room = x.shape[2 + d] + low[d] + high[d] - dilation[d] * (kernel[d] - 1) - 1
        if ceil and room % stride[d] and (room // stride[d] + 1) * stride[d] < x.shape[2 + d] + low[d]:
            over[d] = stride[d] - room % stride[d]
    padding = (*low, *(a + b for a, b in zip(high, over, strict=True)))
    weight = n.b.constant(np.ones((1, 1, *kernel), x.type.dtype.numpy))
    flat = n.reshape(x, (x.shape[0] * x.shape[1], 1, *x.shape[2:]))
    window = {"stride": stride, "dilation": dilation}
    total = n.b.conv(flat, weight, padding=padding, **window)
    divisor = n.b.conv(n.b.constant(inside), weight, padding=(*[0] * count, *over) if include else padding, **window)
    return n.reshape(n.b.div(total, divisor), (*x.shape[:2], *total.shape[2:]))


@row("LpPool")
def lp_pool(n: Node) -> Value:
    """The p-norm of each window: an average that counts the padding's zeros, times the window's size."""
    x, p = n.x(), n.attr("p", 2)
    kernel, attrs, ceil = _window(n, x)
    if ceil or set(attrs["dilation"]) != {1}:
        raise n.fail("ceil_mode and dilations are not supported")
    del attrs["dilation"]
    powers = n.b.pow(n.b.abs(x), n.scalar_like(p, x))
    mean = n.b.avg_pool(powers, kernel=kernel, count_include_pad=True, **attrs)
    return n.b.pow(n.b.mul(mean, n.scalar_like(int(np.prod(kernel)), x)), n.scalar_like(1 / p, x))


@row("GlobalAveragePool", "GlobalMaxPool")
def global_pool(n: Node) -> Value:
    x = n.x()
    ours = "reduce_mean" if n.name == "GlobalAveragePool" else "reduce_max"
    return n.b.op(ours, (x,), {"axes": tuple(range(2, x.type.rank)), "keepdims": True}).result


@row("MaxUnpool")
def max_unpool(n: Node) -> Value:
    """Each value goes to its flat position in the whole result, which is 0 elsewhere."""
    x, positions = n.x(0), n.x(1)
    kernel, attrs, _ = _window(n, x)
    count = len(kernel)
    pads = attrs["padding"]
    sizes = zip(x.shape[2:], attrs["stride"], kernel, pads[:count], pads[count:], strict=True)
    shape = (*x.shape[:2], *((size - 1) * s + k - low - high for size, s, k, low, high in sizes))
    if n.has(2) and n.ints(2) != shape:
        raise n.fail(f"output_shape other than {list(shape)} is not supported")
    flat = n.expand(n.scalar_like(0, x), (int(np.prod(shape)),))
    at = n.cast(n.reshape(positions, (positions.type.numel,)), DType.I64)
    return n.reshape(n.b.scatter_elements(flat, at, n.reshape(x, (x.type.numel,)), axis=0, reduction="none"), shape)
