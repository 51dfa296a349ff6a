"""Convolution and its transpose, over one to three spatial dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.ir.draw import Draw, Sample
from secateur.ir.graph import Op, Value
from secateur.ir.opdef import Attr, DimLink, OpDef, define, operands
from secateur.ir.ops._common import (
    BYTES,
    check_least,
    check_length,
    check_same_dtype,
    in_f32,
    multiply,
    product_type,
    wide,
)
from secateur.ir.ops._window import (
    check_window,
    draw_sizes,
    draw_window,
    pad_spatial,
    result_shape,
    spatial,
    to_channels_first,
    to_channels_last,
    volume,
    window_counts,
    windows,
)
from secateur.ir.types import FLOATS, DType, TensorType

if TYPE_CHECKING:
    from secateur.ir.builder import Builder

Ints = tuple[int, ...]


def _check_weights(types: tuple[TensorType, ...], outputs: int, groups: int) -> None:
    x, w, *bias = types
    if w.rank != x.rank:
        raise ValueError(f"w has rank {w.rank}, x has rank {x.rank}")
    if groups < 1 or w.shape[0] % groups:
        raise ValueError(f"the {w.shape[0]} leading channels of w do not divide into {groups} groups")
    if bias and bias[0].shape != (outputs,):
        raise ValueError(f"bias must be [{outputs}], got {list(bias[0].shape)}")


# conv ---------------------------------------------------------------------------------------------


def _infer_conv(
    x: TensorType,
    w: TensorType,
    *bias: TensorType,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    channels_last: bool,
    pad_value: int,
) -> TensorType:
    dtype = product_type((x, w, *bias))
    if x.dtype in BYTES and w.dtype is not DType.I8:
        raise ValueError(f"the weights of an 8-bit convolution are i8, got {w.dtype}")
    if pad_value and (
        x.dtype not in BYTES or not np.iinfo(x.dtype.numpy).min <= pad_value <= np.iinfo(x.dtype.numpy).max
    ):
        raise ValueError(f"pad_value {pad_value} is no value of {x.dtype}" if x.dtype in BYTES else "floats pad with 0")
    _check_weights((x, w, *bias), w.shape[0] if w.rank else 0, groups)
    kernel = w.shape[2:]
    check_window(x, kernel, stride, padding, dilation)
    channels = x.shape[-1 if channels_last else 1]
    if channels != w.shape[1] * groups:
        raise ValueError(f"x has {channels} channels, w takes {w.shape[1]} in each of {groups} groups")
    counts = window_counts(spatial(x, channels_last), kernel, stride, padding, dilation)
    return TensorType(dtype, result_shape(x, w.shape[0], counts, channels_last))


def _conv(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    channels_last: bool,
    pad_value: int,
) -> np.ndarray:
    """Every window laid out as a column, then one matrix product for each image and group."""
    dtype, kernel, n = x.dtype, w.shape[2:], w.ndim - 2
    work, weight = wide(to_channels_first(x) if channels_last else x), wide(w)
    counts = window_counts(work.shape[2:], kernel, stride, padding, dilation)
    work = pad_spatial(work, padding[:n], padding[n:], pad_value)
    view = windows(work, kernel, stride, dilation, counts)
    columns = np.moveaxis(view, range(2, 2 + n), range(-n, 0))  # [N, C, *kernel, *counts]
    inner = w.shape[1] * volume(kernel)
    columns = columns.reshape(x.shape[0], groups, inner, volume(counts))
    each = None if bias is None else bias.reshape(groups, w.shape[0] // groups, 1)
    result = multiply(weight.reshape(groups, w.shape[0] // groups, inner), columns, each)
    result = result.reshape(x.shape[0], w.shape[0], *counts)
    return (to_channels_last(result) if channels_last else result).astype(np.int32 if dtype.itemsize == 1 else dtype)


def _conv_links(op: Op) -> list[DimLink]:
    """Batch; output channels of w and bias. With one channel in and out of every group those of x too.

    With larger groups an output channel is tied to its group's place, and nothing links.
    """
    x, w = op.operands[:2]
    groups, place = op.attrs["groups"], (x.type.rank - 1 if op.attrs["channels_last"] else 1)
    depthwise = groups == w.shape[0] and w.shape[1] == 1 and groups > 1
    links = [DimLink(0, 0, 0)]
    if groups == 1 or depthwise:
        links += [DimLink(position, 0, place) for position in range(1, len(op.operands))]
    return [*links, DimLink(0, place, place)] if depthwise else links


def _conv_flops(op: Op) -> int:
    """An FMA for each element of one filter: per result element, or per input element of the transpose."""
    x, w, result = op.operands[0], op.operands[1], op.results[0]
    filters = result.type.numel if op.name == "conv" else x.type.numel
    return 2 * filters * volume(w.shape[1:]) + (result.type.numel if len(op.operands) > 2 else 0)


def _sample_conv(draw: Draw) -> Sample:
    n, dtype = draw.choice([1, 2, 2, 2, 3]), draw.choice((*FLOATS, *FLOATS[:1] * 2, *BYTES * 2))
    window = draw_window(draw, n)
    kernel = window.pop("kernel")
    sizes = draw_sizes(draw, {**window, "kernel": kernel})
    groups, inputs, outputs = draw.choice(
        [(1, draw.size(17), draw.size(17)), (2, 4, 6), (3, 3, 6), (draw.size(9),) * 3, (4, 8, 4)]
    )
    channels_last, batch = draw.bool(0.3), 0 if draw.bool(0.03) else draw.int(1, 2)
    shape = (batch, *sizes, inputs) if channels_last else (batch, inputs, *sizes)
    narrow = dtype in BYTES
    weight, into = (DType.I8, DType.I32) if narrow else (dtype, dtype)
    arrays = [draw.tensor(dtype, shape), draw.tensor(weight, (outputs, inputs // groups, *kernel), specials=narrow)]
    if draw.bool():
        arrays.append(draw.tensor(into, (outputs,), specials=narrow))
    attrs = {**window, "groups": groups, "channels_last": channels_last}
    return Sample(tuple(arrays), {**attrs, "pad_value": draw.int(0, 127)} if narrow else attrs)


define(
    OpDef(
        name="conv",
        doc="Cross-correlation of x [N, C, *spatial] (channels_last: [N, *spatial, C]) with w [O, C/groups, *kernel], "
        "plus bias [O]. `padding` is all lows, then all highs. 8-bit x, i8 w and i32 bias give i32, modulo 2^32; "
        "padding then holds `pad_value`, the zero point.",
        operands=operands("x w bias?", x=(*FLOATS, *BYTES), w=(*FLOATS, DType.I8), bias=(*FLOATS, DType.I32)),
        attrs={
            "stride": Attr("ints"),
            "padding": Attr("ints"),
            "dilation": Attr("ints"),
            "groups": Attr("int", 1),
            "channels_last": Attr("bool", False),
            "pad_value": Attr("int", 0),
        },
        infer=_infer_conv,
        reference=_conv,
        sample=_sample_conv,
        flops=_conv_flops,
        dim_links=_conv_links,
    )
)


# conv_transpose -----------------------------------------------------------------------------------


def _infer_conv_transpose(
    x: TensorType,
    w: TensorType,
    *bias: TensorType,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    dilation: Ints,
    groups: int,
) -> TensorType:
    outputs = w.shape[1] * groups if w.rank > 1 else 0
    check_same_dtype((x, w, *bias))
    _check_weights((x, w, *bias), outputs, groups)
    kernel = w.shape[2:]
    n = check_window(x, kernel, stride, padding, dilation)
    check_length("output_padding", output_padding, n)
    check_least("output_padding", output_padding, 0)
    if x.shape[1] != w.shape[0]:
        raise ValueError(f"x has {x.shape[1]} channels, w takes {w.shape[0]}")
    sizes = []
    for d, size in enumerate(x.shape[2:]):
        full = (size - 1) * stride[d] + dilation[d] * (kernel[d] - 1) + output_padding[d] + 1
        sizes.append(full - padding[d] - padding[n + d])
        if size == 0 or sizes[-1] < 1:
            raise ValueError(f"spatial dimension {d} of size {size} gives no result")
    return x.with_shape([x.shape[0], outputs, *sizes])


def _conv_transpose(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    dilation: Ints,
    groups: int,
) -> np.ndarray:
    """Every input pixel times the kernel, added up where the taps fall, then cropped by the padding."""
    n, kernel, sizes = w.ndim - 2, w.shape[2:], x.shape[2:]
    work, weight = wide(x), wide(w)
    outputs, inputs = w.shape[1], w.shape[0] // groups
    left = weight.reshape(groups, inputs, outputs * volume(kernel)).transpose(0, 2, 1)
    products = left @ work.reshape(x.shape[0], groups, inputs, volume(sizes))
    products = products.reshape(x.shape[0], groups * outputs, *kernel, *sizes)
    reach = [
        (s - 1) * st + d * (k - 1) + 1 + o
        for s, st, d, k, o in zip(sizes, stride, dilation, kernel, output_padding, strict=True)
    ]
    full = np.zeros((x.shape[0], groups * outputs, *reach), work.dtype)
    for tap in np.ndindex(*kernel):
        starts = [t * d for t, d in zip(tap, dilation, strict=True)]
        place: tuple[Any, ...] = tuple(
            slice(a, a + (s - 1) * st + 1, st) for a, s, st in zip(starts, sizes, stride, strict=True)
        )
        full[(slice(None), slice(None), *place)] += products[(slice(None), slice(None), *tap)]
    crop: tuple[Any, ...] = tuple(slice(padding[d], reach[d] - padding[n + d]) for d in range(n))
    result = full[(slice(None), slice(None), *crop)]
    if bias is not None:
        result = result + wide(bias).reshape(-1, *[1] * n)
    return result.astype(x.dtype)


def _conv_transpose_links(op: Op) -> list[DimLink]:
    """Batch; output channels, which lie in dimension 1 of w as long as there is one group."""
    links = [DimLink(0, 0, 0)]
    if op.attrs["groups"] == 1:
        links += [DimLink(1, 1, 1), *(DimLink(2, 0, 1) for _ in op.operands[2:])]
    return links


def _turned_weight(b: Builder, w: Value, groups: int) -> Value:
    """[I, O/groups, *k] -> [O, I/groups, *k] with the kernel reversed: what a plain convolution takes."""
    inputs, outputs, *kernel = w.shape
    n = len(kernel)
    w = b.reshape(w, shape=[groups, inputs // groups, outputs, *kernel])
    w = b.transpose(w, perm=[0, 2, 1, *range(3, 3 + n)])
    w = b.reshape(w, shape=[groups * outputs, inputs // groups, *kernel])
    return b.flip(w, axes=list(range(2, 2 + n)))


def _decompose_conv_transpose(b: Builder, op: Op) -> list[Value]:
    """The input spread out by `stride` and framed by the kernel's reach, under a plain convolution."""
    attrs, n = op.attrs, op.results[0].type.rank - 2

    def build(x: Value, w: Value, *bias: Value) -> Value:
        reach = [d * (k - 1) for d, k in zip(attrs["dilation"], w.shape[2:], strict=True)]
        low = [r - p for r, p in zip(reach, attrs["padding"][:n], strict=True)]
        high = [r - p + o for r, p, o in zip(reach, attrs["padding"][n:], attrs["output_padding"], strict=True)]
        x = b.pad(
            x,
            low=[0, 0, *(max(a, 0) for a in low)],
            high=[0, 0, *(max(a, 0) for a in high)],
            interior=[0, 0, *(s - 1 for s in attrs["stride"])],
        )
        if min(low + high) < 0:  # more padding than the kernel reaches: crop
            stops = [size + min(a, 0) for size, a in zip(x.shape[2:], high, strict=True)]
            starts = [0, 0, *(max(-a, 0) for a in low)]
            x = b.slice(x, starts=starts, stops=[*x.shape[:2], *stops], steps=[1] * (n + 2))
        ones, none = (1,) * n, (0,) * (2 * n)
        weight = _turned_weight(b, w, attrs["groups"])
        return b.conv(x, weight, *bias, stride=ones, padding=none, dilation=attrs["dilation"], groups=attrs["groups"])

    return in_f32(b, op, build)


def _sample_conv_transpose(draw: Draw) -> Sample:
    n, dtype = draw.choice([1, 2, 2, 3]), draw.choice(FLOATS)
    window = draw_window(draw, n)
    kernel = window.pop("kernel")
    extra = tuple(
        draw.int(0, max(s, d) - 1) if draw.bool(0.4) else 0
        for s, d in zip(window["stride"], window["dilation"], strict=True)
    )
    sizes = []
    for d in range(n):
        lost = window["padding"][d] + window["padding"][n + d] - window["dilation"][d] * (kernel[d] - 1) - extra[d]
        sizes.append(max(1, -(-lost // window["stride"][d]) + 1) + draw.int(0, 4))
    groups, inputs, outputs = draw.choice([(1, draw.size(9), draw.size(9)), (2, 4, 3), (3, 3, 1), (2, 6, 2)])
    arrays = [
        draw.tensor(dtype, (draw.int(1, 2), inputs, *sizes), specials=False),
        draw.tensor(dtype, (inputs, outputs, *kernel), specials=False),
    ]
    if draw.bool():
        arrays.append(draw.tensor(dtype, (outputs * groups,), specials=False))
    return Sample(tuple(arrays), {**window, "output_padding": extra, "groups": groups})


define(
    OpDef(
        name="conv_transpose",
        doc="The transpose of conv: x [N, I, *spatial], w [I, O/groups, *kernel], bias [O]. Every pixel spreads the "
        "kernel over the result; `padding` (all lows, then all highs) crops it, `output_padding` adds at the end.",
        operands=operands("x w bias?", x=FLOATS, w=FLOATS, bias=FLOATS),
        attrs={
            "stride": Attr("ints"),
            "padding": Attr("ints"),
            "output_padding": Attr("ints"),
            "dilation": Attr("ints"),
            "groups": Attr("int", 1),
        },
        infer=_infer_conv_transpose,
        reference=_conv_transpose,
        sample=_sample_conv_transpose,
        flops=_conv_flops,
        dim_links=_conv_transpose_links,
        decompose=_decompose_conv_transpose,
    )
)
