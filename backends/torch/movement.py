"""Movement and indexing in torch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from secateur.backends.torch.table import implements

Ints = tuple[int, ...]


@implements("reshape")
def reshape(x: Tensor, shape: Ints) -> Tensor:
    return x.reshape(shape)


@implements("transpose")
def transpose(x: Tensor, perm: Ints) -> Tensor:
    return x.permute(perm)


@implements("broadcast_to")
def broadcast_to(x: Tensor, shape: Ints) -> Tensor:
    return x.expand(shape)


@implements("slice")
def slice_(x: Tensor, starts: Ints, stops: Ints, steps: Ints) -> Tensor:
    return x[tuple(map(slice, starts, stops, steps))]


@implements("flip")
def flip(x: Tensor, axes: Ints) -> Tensor:
    return torch.flip(x, axes)


@implements("concat")
def concat(*xs: Tensor, axis: int) -> Tensor:
    return torch.cat(xs, axis)


@implements("pad")
def pad(x: Tensor, low: Ints, high: Ints, interior: Ints, mode: str, value: float) -> Tensor:
    for axis, size in enumerate(x.shape):
        a, b = low[axis], high[axis]
        if mode == "constant":
            x = _pad_constant(x, axis, a, b, interior[axis], value)
        elif mode == "reflect":
            x = (
                torch.cat([x.narrow(axis, 1, a).flip(axis), x, x.narrow(axis, size - 1 - b, b).flip(axis)], axis)
                if a or b
                else x
            )
        elif mode == "wrap":
            x = torch.cat([x.narrow(axis, size - a, a), x, x.narrow(axis, 0, b)], axis)
        elif a or b:
            first, last = x.narrow(axis, 0, 1), x.narrow(axis, size - 1, 1)
            x = torch.cat([first] * a + [x] + [last] * b, axis)
    return x


def _pad_constant(x: Tensor, axis: int, low: int, high: int, interior: int, value: float) -> Tensor:
    size = x.shape[axis]
    spread = size + max(size - 1, 0) * interior
    shape = list(x.shape)
    shape[axis] = low + spread + high
    result = x.new_full(shape, bool(value) if x.dtype is torch.bool else value)
    result.narrow(axis, low, spread)[(slice(None),) * axis + (slice(None, None, interior + 1),)] = x
    return result


def _inside(indices: Tensor, size: int) -> Tensor:
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices).clamp(0, max(size - 1, 0))


@implements("gather")
def gather(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    shape = x.shape[:axis] + indices.shape + x.shape[axis + 1 :]
    if math.prod(shape) == 0:
        return x.new_empty(shape)
    return x.index_select(axis, _inside(indices, x.shape[axis]).reshape(-1)).reshape(shape)


@implements("gather_elements")
def gather_elements(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    return torch.gather(x, axis, _inside(indices, x.shape[axis]))


def _flat_offsets(indices: Tensor, sizes: Ints) -> Tensor:
    """Row-major offsets of index vectors [..., depth] in a tensor of `sizes`."""
    offset = torch.zeros(indices.shape[:-1], dtype=torch.long)
    for j, size in enumerate(sizes):
        offset = offset * size + _inside(indices[..., j], size)
    return offset


@implements("gather_nd")
def gather_nd(x: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    if batch_dims:
        pairs = zip(x.unbind(0), indices.unbind(0), strict=True)
        return torch.stack([gather_nd(a, i, batch_dims - 1) for a, i in pairs])
    depth = indices.shape[-1]
    flat = x.reshape(math.prod(x.shape[:depth]), *x.shape[depth:])
    return flat[_flat_offsets(indices, x.shape[:depth])]


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@implements("scatter_elements")
def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    at = _inside(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, at, updates)
    return x.scatter_reduce(axis, at, updates, _REDUCE[reduction])


@implements("scatter_nd")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, **attrs: Any) -> Tensor:
    depth = indices.shape[-1]
    count, rest = math.prod(x.shape[:depth]), math.prod(x.shape[depth:])
    at = _flat_offsets(indices, x.shape[:depth]).reshape(-1, 1)
    flat = scatter_elements(
        x.reshape(count, rest), at.expand(-1, rest), updates.reshape(at.shape[0], rest), axis=0, **attrs
    )
    return flat.reshape(x.shape)
