"""What a trainable module calls: simulated quantisation with gradients, and shapes at any batch size.

Between `quantize` and `dequantize` the module carries codes, integers held in f32, and both do the arithmetic
of their operations. Rounding has the gradient of the identity, clipping that of a clamp, so that the gradients
of quantize and dequantize with respect to the step they share add up to those of LSQ (Esser et al. 2020,
Learned Step Size Quantization):

    d y / d s  =  round(x/s) - x/s   inside the range,   low or high outside.

Outside begins half a step behind the last code, where rounding ends: the largest weight of a channel, which
lies on that code, is to learn too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.backends.torch.table import TABLE

_LEAST = 2.0**-8  # a step never shrinks below this share of where it started, so that it stays positive


class _Round(torch.autograd.Function):
    """To the nearest integer, halves to even, with the gradient of the identity (straight through)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _Step(torch.autograd.Function):
    """start * ratio, with LSQ's gradient for the product handed to the ratio in units of `start`."""

    @staticmethod
    def forward(ctx: Any, ratio: Tensor, start: Tensor, share: float) -> Tensor:
        ctx.save_for_backward(start)
        ctx.share = share
        return start * ratio.clamp(min=_LEAST)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (start,) = ctx.saved_tensors
        return gradients[0] * ctx.share / start, None, None


def step(ratio: Tensor, start: Tensor, share: float) -> Tensor:
    """A learnable step size, f32 of start's shape.

    The parameter is the ratio to the calibrated step: it is near 1 whatever the range of the tensor, so one
    learning rate fits all, also where an optimiser such as Adam ignores the size of gradients. Its gradient is
    LSQ's (`share` is their 1/sqrt(N * Qp)) divided by `start`: plain descent moves the step as it does there.
    """
    return _Step.apply(ratio, start, share)  # type: ignore[no-untyped-call]


def quantize_codes(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """The codes of `x`, in f32: what the operation `quantize` gives, with gradients for `x` and `scale`."""
    rounded: Tensor = _Round.apply(x / scale)  # type: ignore[no-untyped-call]
    return torch.clamp(rounded + zero.float(), low, high)


def lsq_step(values: np.ndarray, high: int, shape: Sequence[int]) -> np.ndarray:
    """The step LSQ starts with where there is no calibrated one: 2 * mean|v| / sqrt(Qp), f32 of `shape`.

    Args:
        values: what is quantised, f32.
        high: the largest code, Qp.
        shape: of the step; broadcasts with `values`, whose mean is taken over what it leaves out.
    """
    aligned = (1,) * (values.ndim - len(shape)) + tuple(shape)
    axes = tuple(axis for axis, size in enumerate(aligned) if size != values.shape[axis])
    mean = np.abs(values).mean(axis=axes, keepdims=True, dtype=np.float64)
    step = 2 * mean / math.sqrt(high)
    return np.where(step > 0, step, 1.0).astype(np.float32).reshape(tuple(shape))


# A graph is made for one batch size. Training takes another one where every value has the batch outermost.


def _reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    whole = math.prod(shape)
    if not whole or x.numel() == whole:
        return x.reshape(shape)
    return x.reshape(-1, *shape[1:])


def _broadcast_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    grown = x.ndim == len(shape) > 0 and x.shape[0] not in (1, shape[0])
    return x.expand(x.shape[0], *shape[1:]) if grown else x.expand(shape)


def _concat(*xs: Tensor, axis: int) -> Tensor:
    batch = max(x.shape[0] for x in xs)
    same = [x.expand(batch, *x.shape[1:]) if axis and x.shape[0] == 1 else x for x in xs]
    return torch.cat(same, axis)


def _resize(x: Tensor, size: tuple[int, ...], **attrs: Any) -> Tensor:
    return TABLE["resize"](x, size=(x.shape[0], *size[1:]), **attrs)


ANY_BATCH: dict[str, Callable[..., Tensor]] = {
    "reshape": _reshape,
    "broadcast_to": _broadcast_to,
    "concat": _concat,
    "resize": _resize,
    "slice": TABLE["slice"],
}


def whole_batch(attrs: Mapping[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """A slice's attributes; one that takes all of the first dimension does so at any batch size."""
    if shape and (attrs["starts"][0], attrs["stops"][0], attrs["steps"][0]) == (0, shape[0], 1):
        return {**attrs, "stops": (sys.maxsize, *attrs["stops"][1:])}
    return dict(attrs)
