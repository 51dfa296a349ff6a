"""Normalisation, products, convolution and pooling in torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.backends.torch.table import implements

Ints = tuple[int, ...]
CONV = (F.conv1d, F.conv2d, F.conv3d)
CONV_TRANSPOSE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
MAX_POOL = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
AVG_POOL = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


# Normalisation ------------------------------------------------------------------------------------


@implements("layer_norm")
def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, dims: int, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-dims:], weight, bias, eps)


@implements("rms_norm")
def rms_norm(x: Tensor, weight: Tensor | None = None, *, dims: int, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-dims:], weight, eps)


@implements("group_norm")
def group_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, groups: int, eps: float
) -> Tensor:
    return torch.group_norm(x, groups, weight, bias, eps)


@implements("batch_norm")
def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, eps: float, axis: int) -> Tensor:
    if x.numel() == 0:
        return x
    turned = x.movedim(axis, 0).unsqueeze(0)
    return F.batch_norm(turned, mean, var, weight, bias, eps=eps).squeeze(0).movedim(0, axis)


# Products -----------------------------------------------------------------------------------------


def _exact(x: Tensor) -> Tensor:
    """Integers as i64, for which torch has every product; narrowing afterwards wraps."""
    return x if x.is_floating_point() else x.long()


def _product_type(x: Tensor) -> torch.dtype:
    return torch.int32 if x.element_size() == 1 else x.dtype


@implements("matmul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(_exact(a), _exact(b)).to(_product_type(a))


@implements("linear")
def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.is_floating_point():
        return F.linear(x, w, bias)
    product = matmul(x, w.T) if x.ndim > 1 else matmul(x[None], w.T)[0]
    return product if bias is None else product + bias


@implements("einsum")
def einsum(*xs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *map(_exact, xs)).to(xs[0].dtype)


@implements("attention")
def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, scale: float, causal: bool) -> Tensor:
    repeat = q.shape[-3] // k.shape[-3]
    k, v = k.repeat_interleave(repeat, -3), v.repeat_interleave(repeat, -3)
    if mask is not None:
        mask = mask.expand(*q.shape[:-1], k.shape[-2])
    if mask is not None and causal:
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        mask = mask & seen if mask.dtype is torch.bool else mask.masked_fill(~seen, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, is_causal=causal and mask is None)


# Convolution --------------------------------------------------------------------------------------


def _torch_padding(low: Ints, high: Ints) -> list[int]:
    """Lows and highs, outermost dimension first, in the order of F.pad."""
    return [amount for pair in zip(reversed(low), reversed(high), strict=True) for amount in pair]


@implements("conv")
def conv(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    channels_last: bool,
    pad_value: int,
) -> Tensor:
    n = w.ndim - 2
    x = x.movedim(-1, 1) if channels_last else x
    narrow = not x.is_floating_point()
    if narrow:  # sums of 8-bit products are exact in f64; narrowing from i64 wraps
        x, w = x.double(), w.double()
    low, high = padding[:n], padding[n:]
    if low != high or pad_value:
        x, low = F.pad(x, _torch_padding(low, high), value=pad_value), (0,) * n
    result = CONV[n - 1](x, w, None if narrow else bias, stride, low, dilation, groups)
    if narrow:
        result = result.long() if bias is None else result.long() + bias.long().view(-1, *[1] * n)
        result = result.int()
    return result.movedim(1, -1) if channels_last else result


@implements("conv_transpose")
def conv_transpose(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    n = w.ndim - 2
    low, high = padding[:n], padding[n:]
    common = tuple(map(min, low, high))
    result = CONV_TRANSPOSE[n - 1](x, w, bias, stride, common, output_padding, groups, dilation)
    for d in range(n):  # what one side crops more than the other
        start = low[d] - common[d]
        result = result.narrow(2 + d, start, result.shape[2 + d] - start - (high[d] - common[d]))
    return result


# Pooling ------------------------------------------------------------------------------------------


def _frame(x: Tensor, low: Ints, high: Ints, fill: float) -> Tensor:
    return F.pad(x, _torch_padding(low, high), value=fill)


def _overhang(x: Tensor, reach: Ints, stride: Ints, padding: Ints, ceil_mode: bool) -> Ints:
    """How far the last window of ceil_mode sticks out behind input and padding, in each dimension."""
    n, over = len(reach), []
    for d in range(n):
        size = x.shape[2 + d]
        room = size + padding[d] + padding[n + d] - reach[d]
        steps = -(-room // stride[d]) if ceil_mode else room // stride[d]
        if steps * stride[d] >= size + padding[d]:
            steps -= 1
        over.append(max(0, steps * stride[d] - room))
    return tuple(over)


def _windows(x: Tensor, kernel: Ints, stride: Ints, dilation: Ints) -> Tensor:
    """[N, C, *counts, product of kernel] by Tensor.unfold."""
    n = len(kernel)
    for d in range(n):
        x = x.unfold(2 + d, dilation[d] * (kernel[d] - 1) + 1, stride[d])
    taps: list[Any] = [slice(None, None, step) for step in dilation]
    return x[(..., *taps)].flatten(-n)


def _direct(kernel: Ints, padding: Ints, x: Tensor) -> bool:
    """Whether torch's own pooling takes it: padding the same on both sides, at most half a kernel, kernel inside."""
    n = len(kernel)
    if any(k > size for k, size in zip(kernel, x.shape[2:], strict=True)):
        return False
    half = all(2 * p <= k for p, k in zip(padding[:n], kernel, strict=True))
    return padding[:n] == padding[n:] and half and x.is_floating_point() and x.numel() > 0


@implements("max_pool")
def max_pool(
    x: Tensor, *, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool, channels_last: bool
) -> Tensor:
    n = len(kernel)
    x = x.movedim(-1, 1) if channels_last else x
    if _direct(kernel, padding, x):
        result = MAX_POOL[n - 1](x, kernel, stride, padding[:n], dilation, ceil_mode)
    else:
        reach = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
        behind = map(sum, zip(padding[n:], _overhang(x, reach, stride, padding, ceil_mode), strict=True))
        fill = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
        result = _windows(_frame(x, padding[:n], tuple(behind), fill), kernel, stride, dilation).amax(-1)
    return result.movedim(1, -1) if channels_last else result


@implements("avg_pool")
def avg_pool(
    x: Tensor,
    *,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    channels_last: bool,
) -> Tensor:
    n = len(kernel)
    x = x.movedim(-1, 1) if channels_last else x
    if _direct(kernel, padding, x):
        result = AVG_POOL[n - 1](x, kernel, stride, padding[:n], ceil_mode, count_include_pad)
    else:
        none, over = (0,) * n, _overhang(x, kernel, stride, padding, ceil_mode)

        def sums(values: Tensor, fill: float) -> Tensor:
            framed = _frame(_frame(values, padding[:n], padding[n:], fill), none, over, 0.0)
            return _windows(framed, kernel, stride, (1,) * n).sum(-1)

        ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
        result = sums(x, 0.0) / sums(ones, 1.0 if count_include_pad else 0.0)
    return result.movedim(1, -1) if channels_last else result
