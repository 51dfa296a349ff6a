"""How large the integers of a value can be, whatever the input: what keeps fixed-point arithmetic in 32 bits."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from secateur.ir.graph import Op, Value
from secateur.ir.ops.constant import constant_value
from secateur.ir.types import DType

Range = tuple[np.ndarray, np.ndarray]  # lowest and highest, i64 or f64, broadcasting to the value's shape
_ANY: Range = (np.asarray(-(2.0**31)), np.asarray(2.0**31))


def bounds(value: Value) -> Range:
    """The lowest and the highest integer that a value may hold; one for each channel of a product's result."""
    array = constant_value(value)
    if array is not None:
        wide = array.astype(np.float64)
        return np.asarray(wide.min(initial=0)), np.asarray(wide.max(initial=0))
    if value.type.dtype is not DType.I32:
        limits = np.iinfo(value.type.dtype.numpy)
        return np.asarray(float(limits.min)), np.asarray(float(limits.max))
    known = _RULES.get(value.op.name) if value.op is not None else None
    if known is None or value.op is None:
        return _ANY
    low, high = known(value.op)
    return np.maximum(low, _ANY[0]), np.minimum(high, _ANY[1])


def largest(value: Value) -> float:
    """The largest magnitude of any element."""
    low, high = bounds(value)
    return float(max(-low.min(), high.max(), 0.0))


def _whole(value: Value) -> Range:
    low, high = bounds(value)
    return np.asarray(low.min()), np.asarray(high.max())


def _corners(a: Range, c: Range, combine: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Range:
    corners = np.broadcast_arrays(*(combine(x, y) for x in a for y in c))
    return np.min(corners, 0), np.max(corners, 0)


def _product(op: Op) -> Range:
    """conv and linear: for each output channel the weights' signs say which end of the input is worst."""
    x, weight, *bias = op.operands
    w = constant_value(weight)
    low, high = _whole(x)
    if w is None:
        most = float(max(-low, high)) * 128.0 * math.prod(weight.shape[1:])
        return np.asarray(-most), np.asarray(most)
    axes = tuple(range(1, w.ndim))
    up = np.maximum(w, 0).sum(axes, dtype=np.float64)
    down = np.minimum(w, 0).sum(axes, dtype=np.float64)
    ends = up * low + down * high, up * high + down * low
    add = bounds(bias[0]) if bias else (np.zeros(()), np.zeros(()))
    if bias and (known := constant_value(bias[0])) is not None:
        add = known.astype(np.float64), known.astype(np.float64)
    shape = (-1, *[1] * (x.type.rank - 2)) if op.name == "conv" and not op.attrs["channels_last"] else (-1,)
    return (ends[0] + add[0]).reshape(shape), (ends[1] + add[1]).reshape(shape)


def _matmul(op: Op) -> Range:
    a, c = op.operands
    low, high = _corners(_whole(a), _whole(c), np.multiply)
    return low * a.shape[-1], high * a.shape[-1]


def _sum(op: Op) -> Range:
    (x,) = op.operands
    count = math.prod(x.shape[axis] for axis in op.attrs["axes"])
    low, high = _whole(x)
    return np.minimum(low * count, 0), np.maximum(high * count, 0)


def _rescale(op: Op) -> Range:
    x, multiplier, zero = op.operands
    low, high = _corners(bounds(x), bounds(multiplier), np.multiply)
    offset = _whole(zero)
    scale = 2.0 ** -op.attrs["shift"]
    return low * scale - 1 + offset[0], high * scale + 1 + offset[1]


def _standardize(op: Op) -> Range:
    """No element of n lies further than sqrt(n) standard deviations from the mean."""
    most = math.sqrt(op.operands[0].shape[-1]) * 2.0**20 + 1
    return np.asarray(-most), np.asarray(most)


def _table(op: Op) -> Range:
    table = np.asarray(op.attrs["table"], np.float64)
    return np.asarray(table.min()), np.asarray(table.max())


def _moved(op: Op) -> Range:
    parts = [_whole(value) for value in op.operands]
    return np.asarray(min(low for low, _ in parts)), np.asarray(max(high for _, high in parts))


def _limits(low: float, high: float) -> Callable[[Op], Range]:
    return lambda op: (np.asarray(low), np.asarray(high))


_RULES: dict[str, Callable[[Op], Range]] = {
    "conv": _product,
    "linear": _product,
    "matmul": _matmul,
    "reduce_sum": _sum,
    "rescale": _rescale,
    "standardize": _standardize,
    "lookup": _table,
    "decay": _limits(0, 32767),
    "cast": lambda op: bounds(op.operands[0]),
    "neg": lambda op: (-bounds(op.operands[0])[1], -bounds(op.operands[0])[0]),
    "add": lambda op: _corners(bounds(op.operands[0]), bounds(op.operands[1]), np.add),
    "sub": lambda op: _corners(bounds(op.operands[0]), bounds(op.operands[1]), np.subtract),
    "mul": lambda op: _corners(bounds(op.operands[0]), bounds(op.operands[1]), np.multiply),
    **dict.fromkeys(
        ("reshape", "transpose", "broadcast_to", "slice", "flip", "concat", "reduce_max", "reduce_min", "max_pool"),
        _moved,
    ),
}
