"""Other forms of an operation that the kernels do take: other ranks, layouts and element types.

conv over [N, C, L]            -> conv over [N, 1, L, C]
conv over [N, D, H, W, C]      -> sum over filter planes of conv over [N * OD, H, W, C]
max_pool in bf16               -> cast, max_pool in f32, cast
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.graph import Op, Value
from secateur.ir.ops.constant import constant_value
from secateur.ir.types import DType, numel

WINDOWS = frozenset({"conv", "max_pool", "avg_pool"})
_NARROW = (DType.F16, DType.BF16)
_PER_AXIS = ("kernel", "stride", "dilation")


def adapt(b: Builder, op: Op) -> list[Value] | None:
    """Rebuild an operation in a form closer to what kernels take, or None where there is none."""
    for form in (_widen, _channels_last, _one_axis, _three_axes):
        values = form(b, op)
        if values is not None:
            return values
    return None


def _widen(b: Builder, op: Op) -> list[Value] | None:
    if op.name == "fusion" or not any(value.type.dtype in _NARROW for value in op.operands):
        return None
    wide = [b.cast(v, dtype=DType.F32) if v.type.dtype in _NARROW else v for v in op.operands]
    results = b.op(op.name, wide, op.attrs).results
    return [
        b.cast(new, dtype=old.type.dtype) if new.type.dtype is not old.type.dtype else new
        for new, old in zip(results, op.results, strict=True)
    ]


def _channels_last(b: Builder, op: Op) -> list[Value] | None:
    if op.name not in WINDOWS or op.attrs["channels_last"]:
        return None
    rank = op.operands[0].type.rank
    x = b.transpose(op.operands[0], perm=(0, *range(2, rank), 1))
    result = b.op(op.name, [x, *op.operands[1:]], {**op.attrs, "channels_last": True}).result
    return [b.transpose(result, perm=(0, rank - 1, *range(1, rank - 1)))]


def _constant_or(
    b: Builder, value: Value, change: Callable[[np.ndarray], np.ndarray], otherwise: Value | None
) -> Value:
    """A constant changed now, or what does the same at run time."""
    array = constant_value(value)
    if array is not None:
        return b.constant(change(array))
    assert otherwise is not None
    return otherwise


def _one_axis(b: Builder, op: Op) -> list[Value] | None:
    """[N, L, C] as [N, 1, L, C]."""
    if op.name not in WINDOWS or op.operands[0].type.rank != 3:
        return None
    n, length, channels = op.operands[0].shape
    attrs: dict[str, Any] = dict(op.attrs)
    attrs.update({key: (1, *attrs[key]) for key in _PER_AXIS if key in attrs})
    attrs["padding"] = (0, attrs["padding"][0], 0, attrs["padding"][1])
    operands = [b.reshape(op.operands[0], shape=(n, 1, length, channels)), *op.operands[1:]]
    if op.name == "conv":
        outs, depth, width = op.operands[1].shape
        shape = (outs, depth, 1, width)
        runtime = None if constant_value(op.operands[1]) is not None else b.reshape(op.operands[1], shape=shape)
        operands[1] = _constant_or(b, op.operands[1], lambda w: w.reshape(shape), runtime)
    return [b.reshape(b.op(op.name, operands, attrs).result, shape=op.result.shape)]


def _three_axes(b: Builder, op: Op) -> list[Value] | None:
    """[N, D, H, W, C] by operations over [*, H, W, C]."""
    if op.name not in WINDOWS or op.operands[0].type.rank != 5:
        return None
    return [_deep_conv(b, op) if op.name == "conv" else _deep_pool(b, op)]


def _deep_pool(b: Builder, op: Op) -> Value:
    """Windows are products of intervals: pool over height and width first, then over depth."""
    x, attrs = op.operands[0], op.attrs
    n, d, h, w, c = x.shape
    p = attrs["padding"]
    plane: dict[str, Any] = {**attrs, "padding": (p[1], p[2], p[4], p[5])}
    column: dict[str, Any] = {**attrs, "padding": (p[0], 0, p[3], 0)}
    for key in _PER_AXIS:
        if key in attrs:
            plane[key], column[key] = attrs[key][1:], (attrs[key][0], 1)
    flat = b.op(op.name, [b.reshape(x, shape=(n * d, h, w, c))], plane).result
    _, oh, ow, _ = flat.shape
    deep = b.op(op.name, [b.reshape(flat, shape=(n, d, oh * ow, c))], column).result
    return b.reshape(deep, shape=op.result.shape)


def _deep_conv(b: Builder, op: Op) -> Value:
    x, weight = op.operands[:2]
    attrs = op.attrs
    p, (sd, *stride), (dd, *dilation) = attrs["padding"], attrs["stride"], attrs["dilation"]
    n, od, oh, ow, outs = op.result.shape
    x = b.pad(x, low=(0, p[0], 0, 0, 0), high=(0, p[3], 0, 0, 0), interior=(0,) * 5, value=attrs["pad_value"])
    flat = {**attrs, "padding": (p[1], p[2], p[4], p[5]), "stride": stride, "dilation": dilation}
    total: Value | None = None
    for plane in range(weight.shape[2]):
        first = plane * dd
        stops = (n, first + (od - 1) * sd + 1, *x.shape[2:])
        part = b.slice(x, starts=(0, first, 0, 0, 0), stops=stops, steps=(1, sd, 1, 1, 1))
        part = b.reshape(part, shape=(n * od, *x.shape[2:]))
        w = _plane(b, weight, plane)
        bias = op.operands[2:] if plane == 0 else ()
        value = b.op("conv", [part, w, *bias], flat).result
        total = value if total is None else b.add(total, value)
    assert total is not None
    return b.reshape(total, shape=(n, od, oh, ow, outs))


def _plane(b: Builder, weight: Value, plane: int) -> Value:
    shape = weight.shape
    runtime = None
    if constant_value(weight) is None:
        starts, stops = (0, 0, plane, 0, 0), (*shape[:2], plane + 1, *shape[3:])
        cut = b.slice(weight, starts=starts, stops=stops, steps=(1,) * 5)
        runtime = b.reshape(cut, shape=(*shape[:2], *shape[3:]))
    return _constant_or(b, weight, lambda w: np.ascontiguousarray(w[:, :, plane]), runtime)


def needs_no_kernel(op: Op) -> bool:
    """Whether nothing is computed because every result is empty."""
    return all(numel(value.shape) == 0 for value in op.results)
