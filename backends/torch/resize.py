"""Resampling in torch: its own kernels where they have the mode, else a dense matrix for each axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.backends.torch.table import implements

Ints = tuple[int, ...]
_ATEN = torch.ops.aten
_LINEAR = (_ATEN.upsample_linear1d, _ATEN.upsample_bilinear2d, _ATEN.upsample_trilinear3d)
_NEAREST = (_ATEN.upsample_nearest1d, _ATEN.upsample_nearest2d, _ATEN.upsample_nearest3d)


def _native(x: Tensor, size: Ints, scales: tuple[float, ...], **attrs: Any) -> Tensor | None:
    """torch's kernel for x [N, C, *spatial], or None where there is none for these attributes."""
    n, mode, kind = x.ndim - 2, attrs["mode"], attrs["coordinates"]
    if n not in (1, 2, 3) or tuple(x.shape[:2]) != size[:2] or not x.is_floating_point() or 0 in size:
        return None
    if any(scale not in (0.0, 1.0) for scale in scales[:2]):
        return None
    given = [scale or None for scale in scales[2:]]
    if mode == "nearest":
        if kind == "asymmetric" and attrs["nearest"] == "floor":
            return _NEAREST[n - 1](x, size[2:], *given)
        return None
    if kind not in ("half_pixel", "align_corners"):
        return None
    if mode == "linear":
        return _LINEAR[n - 1](x, size[2:], kind == "align_corners", *given)
    if n == 2 and attrs["cubic_a"] == -0.75:
        return _ATEN.upsample_bicubic2d(x, size[2:], kind == "align_corners", *given)
    return None


def _coordinate(i: int, size: int, result: int, scale: float, kind: str) -> float:
    if kind == "align_corners":
        return i * (size - 1) / (result - 1) if result > 1 else 0.0
    if kind == "asymmetric":
        return i / scale if scale else i * size / result
    if kind == "pytorch_half_pixel" and result == 1:
        return 0.0
    return ((i + 0.5) / scale if scale else (i + 0.5) * size / result) - 0.5


def _keys(d: float, a: float) -> float:
    """The cubic convolution kernel at distance d."""
    d = abs(d)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def _matrix(size: int, result: int, scale: float, **attrs: Any) -> Tensor:
    """[result, size], f64: how much each input position contributes to each result position."""
    matrix = torch.zeros(result, size, dtype=torch.float64)
    for i in range(result):
        x = torch.tensor(_coordinate(i, size, result, scale, attrs["coordinates"]), dtype=torch.float64)
        base = int(x.floor())
        for place in range(base - 1, base + 3):
            distance = float(x) - place
            weight = max(0.0, 1 - abs(distance)) if attrs["mode"] == "linear" else _keys(distance, attrs["cubic_a"])
            matrix[i, min(max(place, 0), size - 1)] += weight
    return matrix


def _nearest_index(size: int, result: int, scale: float, **attrs: Any) -> Tensor:
    at = [_coordinate(i, size, result, scale, attrs["coordinates"]) for i in range(result)]
    x = torch.tensor(at, dtype=torch.float64)
    rounded = {
        "floor": x.floor(),
        "ceil": x.ceil(),
        "round_prefer_floor": (x - 0.5).ceil(),
        "round_prefer_ceil": (x + 0.5).floor(),
    }[attrs["nearest"]]
    return rounded.long().clamp(0, size - 1)


@implements("resize")
def resize(x: Tensor, size: Ints, scales: tuple[float, ...], **attrs: Any) -> Tensor:
    native = _native(x, size, scales, **attrs)
    if native is not None:
        return native
    for axis, (before, after, scale) in enumerate(zip(x.shape, size, scales, strict=True)):
        if before == 0 or (before == after and scale in (0.0, 1.0)):
            continue
        if attrs["mode"] == "nearest":
            x = x.index_select(axis, _nearest_index(before, after, scale, **attrs))
        else:
            matrix = _matrix(before, after, scale, **attrs).to(x.dtype)
            x = (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return x
