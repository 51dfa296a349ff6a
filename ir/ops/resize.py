"""Resampling to another size, one axis at a time.

For every result position a coordinate in the input is computed, and from it a few input positions
with a weight each; positions outside are clamped to the edge. The four ways of placing coordinates
and of rounding are those that ONNX names and that PyTorch's interpolate uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.ir.draw import Draw, Sample
from secateur.ir.graph import Op, Value
from secateur.ir.opdef import Attr, DimLink, OpDef, define, operands
from secateur.ir.ops._common import check_length, in_f32, wide
from secateur.ir.types import ALL, FLOATS, DType, TensorType

if TYPE_CHECKING:
    from secateur.ir.builder import Builder

Ints = tuple[int, ...]
Taps = list[tuple[np.ndarray, np.ndarray]]
MODES = ("nearest", "linear", "cubic")
COORDINATES = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
_ROUND: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": np.floor,
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "ceil": np.ceil,
}
ROUNDINGS = tuple(_ROUND)


def _coordinates(size: int, result: int, scale: float, kind: str) -> np.ndarray:
    """Where in the input each result position lies, f64 [result]. `scale` 0.0 means result / size."""
    at = np.arange(result, dtype=np.float64)
    if kind == "align_corners":
        return at * (size - 1) / (result - 1) if result > 1 else np.zeros(result)
    if kind == "pytorch_half_pixel" and result == 1:
        return np.zeros(result)
    shift = 0.0 if kind == "asymmetric" else 0.5
    # The product before the quotient: exact wherever the true coordinate is a whole number.
    scaled = (at + shift) / scale if scale else (at + shift) * size / result
    return scaled - shift


def _cubic_weights(t: np.ndarray, a: float) -> list[np.ndarray]:
    """Weights of the positions -1, 0, 1, 2 around a fraction t: the convolution kernel of Keys (1981)."""

    def near(d: np.ndarray) -> np.ndarray:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: np.ndarray) -> np.ndarray:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def taps(size: int, result: int, scale: float, attrs: dict[str, Any]) -> Taps:
    """(positions, weights), both [result], whose weighted sum is the result along one axis."""
    at = _coordinates(size, result, scale, attrs["coordinates"])
    if attrs["mode"] == "nearest":
        pairs = [(_ROUND[attrs["nearest"]](at), np.ones(result))]
    elif attrs["mode"] == "linear":
        base = np.floor(at)
        pairs = [(base, 1 - (at - base)), (base + 1, at - base)]
    else:
        base = np.floor(at)
        weights = _cubic_weights(at - base, attrs["cubic_a"])
        pairs = [(base + offset, weight) for offset, weight in zip((-1, 0, 1, 2), weights, strict=True)]
    return [(np.clip(place, 0, size - 1).astype(np.int64), weight) for place, weight in pairs]


def _infer(x: TensorType, *, size: Ints, scales: tuple[float, ...], **attrs: Any) -> TensorType:
    check_length("size", size, x.rank)
    check_length("scales", scales, x.rank)
    if attrs["mode"] != "nearest" and not x.dtype.is_float:
        raise ValueError(f"mode {attrs['mode']!r} needs a float type, got {x.dtype}")
    for dim, (before, after) in enumerate(zip(x.shape, size, strict=True)):
        if after < 0 or (before == 0) != (after == 0):
            raise ValueError(f"dimension {dim} cannot go from {before} to {after}")
    if any(scale < 0 for scale in scales):
        raise ValueError("scales are positive, or 0.0 to derive them from the sizes")
    return x.with_shape(size)


def _changed(shape: Ints, size: Ints, scales: tuple[float, ...]) -> list[int]:
    """The axes along which anything is computed."""
    return [d for d, n in enumerate(shape) if (n != size[d] or scales[d] not in (0.0, 1.0)) and n]


def _resize(x: np.ndarray, *, size: Ints, scales: tuple[float, ...], **attrs: Any) -> np.ndarray:
    work = wide(x)
    for axis in _changed(x.shape, size, scales):
        pairs = taps(x.shape[axis], size[axis], scales[axis], attrs)
        if attrs["mode"] == "nearest":
            work = np.take(work, pairs[0][0], axis)
            continue
        own = [-1 if d == axis else 1 for d in range(x.ndim)]
        work = sum(np.take(work, place, axis) * weight.astype(work.dtype).reshape(own) for place, weight in pairs)
    return work.astype(x.dtype)


def _links(op: Op) -> list[DimLink]:
    changed = _changed(op.operands[0].shape, op.attrs["size"], op.attrs["scales"])
    return [DimLink(0, dim, dim) for dim in range(op.results[0].type.rank) if dim not in changed]


def _flops(op: Op) -> int:
    changed = _changed(op.operands[0].shape, op.attrs["size"], op.attrs["scales"])
    each = {"nearest": 0, "linear": 3, "cubic": 7}[op.attrs["mode"]]
    return op.results[0].type.numel * each * len(changed)


def _decompose(b: Builder, op: Op) -> list[Value]:
    """Axis by axis: a gather of each tap's positions, weighted by constants and added up."""
    attrs = op.attrs
    changed = _changed(op.operands[0].shape, attrs["size"], attrs["scales"])

    def build(x: Value) -> Value:
        for axis in changed:
            pairs = taps(x.shape[axis], attrs["size"][axis], attrs["scales"][axis], attrs)
            parts = []
            for place, weight in pairs:
                part = b.gather(x, b.constant(place, DType.I64), axis=axis)
                if attrs["mode"] != "nearest":
                    shaped = weight.reshape([-1] + [1] * (x.type.rank - 1 - axis))
                    part = b.mul(part, b.constant(shaped, x.type.dtype))
                parts.append(part)
            x = parts[0]
            for part in parts[1:]:
                x = b.add(x, part)
        return x

    return [build(op.operands[0])] if attrs["mode"] == "nearest" else in_f32(b, op, build)


def _sample(draw: Draw) -> Sample:
    mode = draw.choice(MODES)
    shape = draw.shape(1, 4, numel=512)
    axes = draw.permutation(len(shape))[: draw.int(1, 2)]
    size, scales = list(shape), [0.0] * len(shape)
    for axis in axes:
        if shape[axis] == 0:
            continue
        size[axis] = draw.choice([shape[axis] * 2, max(1, shape[axis] // 2), draw.size()])
        if draw.bool(0.3):
            scales[axis] = draw.choice([0.5, 1.5, 2.0, 2.3])
            size[axis] = max(1, int(shape[axis] * scales[axis]))
    attrs = {
        "size": tuple(size),
        "scales": tuple(scales),
        "mode": mode,
        "coordinates": draw.choice(COORDINATES),
        "nearest": draw.choice(ROUNDINGS),
        "cubic_a": draw.choice([-0.75, -0.5]),
    }
    dtype = draw.choice(ALL if mode == "nearest" else FLOATS)
    return Sample((draw.tensor(dtype, shape, specials=None if mode == "nearest" else False),), attrs)


define(
    OpDef(
        name="resize",
        doc="x resampled to shape `size`. `scales` (0.0: derive from the sizes) and `coordinates` place the result's "
        "positions in x, `mode` says how values there are made, `nearest` how mode nearest rounds.",
        operands=operands("x"),
        attrs={
            "size": Attr("ints"),
            "scales": Attr("floats"),
            "mode": Attr("str", "nearest", MODES),
            "coordinates": Attr("str", "half_pixel", COORDINATES),
            "nearest": Attr("str", "floor", ROUNDINGS),
            "cubic_a": Attr("float", -0.75),
        },
        infer=_infer,
        reference=_resize,
        sample=_sample,
        flops=_flops,
        dim_links=_links,
        decompose=_decompose,
    )
)
