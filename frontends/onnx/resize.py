"""Resize and its predecessor Upsample."""

from __future__ import annotations

import math
from collections.abc import Sequence

from secateur.frontends.onnx.node import Node, row
from secateur.ir.graph import Value

COORDINATES = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")


@row("Upsample")
def upsample(n: Node) -> Value:
    x = n.x()
    scales = [float(s) for s in (n.const(1).reshape(-1) if n.version >= 9 else n.need("scales"))]
    return _old(n, x, scales)


def _old(n: Node, x: Value, scales: list[float]) -> Value:
    """Upsample and Resize of opset 10: positions are divided by the scale and rounded down."""
    n.refuse("mode", "nearest", "linear")
    size = [math.floor(dim * scale) for dim, scale in zip(x.shape, scales, strict=True)]
    return n.b.resize(x, size=size, scales=scales, mode=n.attr("mode", "nearest"), coordinates="asymmetric")


@row("Resize")
def resize(n: Node) -> Value:
    x = n.x()
    if n.version == 10:
        return _old(n, x, [float(s) for s in n.const(1).reshape(-1)])
    rank = x.type.rank
    axes = n.axes(n.attr("axes", tuple(range(rank))), rank)
    size, scales = _target(n, x, axes)
    n.refuse("mode", "nearest", "linear", "cubic")
    n.refuse("exclude_outside", 0)
    n.refuse("nearest_mode", "round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    shrinks = any(after < before for before, after in zip(x.shape, size, strict=True))
    mode = n.attr("mode", "nearest")
    if n.attr("antialias", 0) and shrinks and mode != "nearest":
        raise n.fail("antialias = 1 is not supported when the size shrinks")
    return n.b.resize(
        x,
        size=size,
        scales=scales,
        mode=mode,
        coordinates=_coordinates(n, x, size, scales),
        nearest=n.attr("nearest_mode", "round_prefer_floor"),
        cubic_a=n.attr("cubic_coeff_a", -0.75),
    )


def _target(n: Node, x: Value, axes: Sequence[int]) -> tuple[list[int], list[float]]:
    """(full-rank size, full-rank scales; 0.0 where the sizes say it)."""
    size, scales = list(x.shape), [0.0] * x.type.rank
    if n.has(2) and n.const(2).size:
        for axis, scale in zip(axes, n.const(2).reshape(-1), strict=True):
            scales[axis] = float(scale)
            size[axis] = math.floor(x.shape[axis] * float(scale))
        return size, scales
    wanted = n.ints(3)
    policy = n.attr("keep_aspect_ratio_policy", "stretch")
    n.refuse("keep_aspect_ratio_policy", "stretch", "not_larger", "not_smaller")
    if policy == "stretch":
        for axis, target in zip(axes, wanted, strict=True):
            size[axis] = target
        return size, scales
    ratios = [target / x.shape[axis] for axis, target in zip(axes, wanted, strict=True)]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    for axis in axes:
        size[axis], scales[axis] = math.floor(scale * x.shape[axis] + 0.5), scale
    return size, scales


def _coordinates(n: Node, x: Value, size: list[int], scales: list[float]) -> str:
    kind: str = n.attr("coordinate_transformation_mode", "half_pixel")
    exact = all(scale in (0.0, after / before) for before, after, scale in zip(x.shape, size, scales, strict=True))
    if kind == "half_pixel_symmetric" and exact:
        return "half_pixel"
    if kind not in COORDINATES or (kind == "align_corners" and not exact):
        raise n.fail(f"coordinate_transformation_mode = {kind!r} is not supported for these sizes")
    return kind
