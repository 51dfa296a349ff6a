"""Largest element and mean of sliding windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.ir.draw import Draw, Sample
from secateur.ir.graph import Op
from secateur.ir.opdef import Attr, DimLink, OpDef, define, operands
from secateur.ir.ops._common import wide
from secateur.ir.ops._window import (
    check_window,
    draw_sizes,
    draw_window,
    overhang,
    pad_spatial,
    result_shape,
    spatial,
    to_channels_first,
    to_channels_last,
    volume,
    window_counts,
    windows,
)
from secateur.ir.types import FLOATS, NUMERIC, DType, TensorType

Ints = tuple[int, ...]


def _infer(
    x: TensorType, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool, channels_last: bool
) -> TensorType:
    n = check_window(x, kernel, stride, padding, dilation)
    for d in range(n):
        if max(padding[d], padding[n + d]) > dilation[d] * (kernel[d] - 1):
            raise ValueError(f"padding {list(padding)} leaves windows of {list(kernel)} outside the input")
    counts = window_counts(spatial(x, channels_last), kernel, stride, padding, dilation, ceil_mode)
    return x.with_shape(result_shape(x, x.shape[-1 if channels_last else 1], counts, channels_last))


def _links(op: Op) -> list[DimLink]:
    place = op.results[0].type.rank - 1 if op.attrs["channels_last"] else 1
    return [DimLink(0, 0, 0), DimLink(0, place, place)]


def _flops(op: Op) -> int:
    return op.results[0].type.numel * volume(op.attrs["kernel"])


def _lowest(dtype: np.dtype) -> Any:
    """What a maximum starts from."""
    return -np.inf if dtype.kind not in "iu" else np.iinfo(dtype).min


# max_pool -----------------------------------------------------------------------------------------


def _infer_max_pool(
    x: TensorType, *, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool, channels_last: bool
) -> TensorType:
    return _infer(x, kernel, stride, padding, dilation, ceil_mode, channels_last)


def _max_pool(
    x: np.ndarray, *, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool, channels_last: bool
) -> np.ndarray:
    work = wide(to_channels_first(x) if channels_last else x)
    n, sizes = len(kernel), work.shape[2:]
    counts = window_counts(sizes, kernel, stride, padding, dilation, ceil_mode)
    behind = overhang(sizes, kernel, stride, padding, dilation, counts)
    work = pad_spatial(work, padding[:n], behind, _lowest(work.dtype))
    result = windows(work, kernel, stride, dilation, counts).max(tuple(range(-n, 0)))
    return (to_channels_last(result) if channels_last else result).astype(x.dtype)


def _sample_pool(draw: Draw, dtypes: tuple[DType, ...], *, dilated: bool) -> tuple[np.ndarray, dict[str, Any]]:
    n = draw.choice([1, 2, 2, 3])
    window = draw_window(draw, n, dilated=dilated)
    sizes, channels = draw_sizes(draw, window), draw.size(9)
    channels_last, batch = draw.bool(0.3), 0 if draw.bool(0.03) else draw.int(1, 2)
    shape = (batch, *sizes, channels) if channels_last else (batch, channels, *sizes)
    attrs = {**window, "ceil_mode": draw.bool(0.3), "channels_last": channels_last}
    return draw.tensor(draw.choice(dtypes), shape), attrs


def _sample_max_pool(draw: Draw) -> Sample:
    array, attrs = _sample_pool(draw, NUMERIC, dilated=True)
    return Sample((array,), attrs)


_WINDOW = {"kernel": Attr("ints"), "stride": Attr("ints"), "padding": Attr("ints")}

define(
    OpDef(
        name="max_pool",
        doc="Largest element of every window of x [N, C, *spatial] (channels_last: [N, *spatial, C]); padding never "
        "wins, NaN does. `ceil_mode` lets a last window hang over the end if it starts inside.",
        operands=operands("x", x=NUMERIC),
        attrs={
            **_WINDOW,
            "dilation": Attr("ints"),
            "ceil_mode": Attr("bool", False),
            "channels_last": Attr("bool", False),
        },
        infer=_infer_max_pool,
        reference=_max_pool,
        sample=_sample_max_pool,
        flops=_flops,
        dim_links=_links,
    )
)


# avg_pool -----------------------------------------------------------------------------------------


def _infer_avg_pool(
    x: TensorType,
    *,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    channels_last: bool,
) -> TensorType:
    return _infer(x, kernel, stride, padding, (1,) * len(kernel), ceil_mode, channels_last)


def _avg_pool(
    x: np.ndarray,
    *,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    channels_last: bool,
) -> np.ndarray:
    work = wide(to_channels_first(x) if channels_last else x)
    n, sizes, ones = len(kernel), work.shape[2:], (1,) * len(kernel)
    counts = window_counts(sizes, kernel, stride, padding, ones, ceil_mode)
    behind = overhang(sizes, kernel, stride, padding, ones, counts)
    axes = tuple(range(-n, 0))
    view = windows(pad_spatial(work, padding[:n], behind, 0), kernel, stride, ones, counts)
    divisor = window_sizes(sizes, kernel, stride, padding, counts, count_include_pad).astype(work.dtype)
    result = view.sum(axes) / divisor
    return (to_channels_last(result) if channels_last else result).astype(x.dtype)


def window_sizes(
    sizes: Ints, kernel: Ints, stride: Ints, padding: Ints, counts: Ints, count_include_pad: bool
) -> np.ndarray:
    """[*counts]: how many elements of the input (or of input and padding) lie in each window."""
    n, total = len(sizes), np.ones((), np.int64)
    for d, size in enumerate(sizes):
        start = np.arange(counts[d]) * stride[d] - padding[d]
        end = start + kernel[d]
        low, high = (-padding[d], size + padding[n + d]) if count_include_pad else (0, size)
        inside = np.minimum(end, high) - np.maximum(start, low)
        total = total[..., None] * inside
    return total


def _sample_avg_pool(draw: Draw) -> Sample:
    array, attrs = _sample_pool(draw, FLOATS, dilated=False)
    del attrs["dilation"]
    return Sample((array,), {**attrs, "count_include_pad": draw.bool()})


define(
    OpDef(
        name="avg_pool",
        doc="Mean of every window of x [N, C, *spatial] (channels_last: [N, *spatial, C]). With count_include_pad the "
        "padding's zeros count as elements; what `ceil_mode` lets hang over the end never does.",
        operands=operands("x", x=FLOATS),
        attrs={
            **_WINDOW,
            "ceil_mode": Attr("bool", False),
            "count_include_pad": Attr("bool", True),
            "channels_last": Attr("bool", False),
        },
        infer=_infer_avg_pool,
        reference=_avg_pool,
        sample=_sample_avg_pool,
        flops=_flops,
        dim_links=_links,
    )
)
