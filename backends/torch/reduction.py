"""Reductions, running sums and sorting in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from secateur.backends.torch.table import enter, implements

Ints = tuple[int, ...]


def _over_axes(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch takes no axes for all of them; here no axes mean none."""

    def reduce(x: Tensor, axes: Ints, keepdims: bool) -> Tensor:
        return function(x, axes, keepdims) if axes else x

    return reduce


def _prod(x: Tensor, axes: Ints, keepdims: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdims, dtype=x.dtype)
    return x


enter("reduce_sum", _over_axes(lambda x, axes, keepdims: torch.sum(x, axes, keepdims, dtype=x.dtype)))
enter("reduce_mean", _over_axes(torch.mean))
enter("reduce_max", _over_axes(torch.amax))
enter("reduce_min", _over_axes(torch.amin))
enter("reduce_any", _over_axes(torch.any))
enter("reduce_all", _over_axes(torch.all))
enter("reduce_prod", _prod)


@implements("argmax")
def argmax(x: Tensor, axis: int, keepdims: bool) -> Tensor:
    return torch.argmax(x, axis, keepdims)


@implements("argmin")
def argmin(x: Tensor, axis: int, keepdims: bool) -> Tensor:
    return torch.argmin(x, axis, keepdims)


def _cumulative(function: Callable[..., Tensor], start: int) -> Callable[..., Tensor]:
    def run(x: Tensor, axis: int, exclusive: bool, reverse: bool) -> Tensor:
        if x.shape[axis] == 0:
            return x
        if reverse:
            return run(x.flip(axis), axis, exclusive, False).flip(axis)
        if exclusive:
            first = torch.full_like(x.narrow(axis, 0, 1), start)
            x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
        return function(x, axis, dtype=x.dtype)

    return run


enter("cumsum", _cumulative(torch.cumsum, 0))
enter("cumprod", _cumulative(torch.cumprod, 1))


@implements("sort")
def sort(x: Tensor, axis: int, descending: bool) -> tuple[Tensor, Tensor]:
    values, indices = torch.sort(x, dim=axis, descending=descending, stable=True)
    return values, indices


@implements("topk")
def topk(x: Tensor, k: int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """By a stable sort: torch.topk promises nothing about ties."""
    values, indices = sort(x, axis, largest)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


def softmax_like(function: Callable[..., Tensor]) -> Callable[..., Any]:
    return lambda x, axis: function(x, dim=axis)


enter("softmax", softmax_like(torch.softmax))
enter("log_softmax", softmax_like(torch.log_softmax))
