"""Functions of one small integer as tables, made from the float operations that they replace."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from secateur.ir.expr import INTERPOLATED, lookup
from secateur.ir.graph import Op, Value
from secateur.ir.interpret import run_op
from secateur.ir.ops.constant import constant_value
from secateur.ir.types import DType
from secateur.passes.integer.fixed_point import ROOM

SEGMENT = 512  # integers between two entries of a table for i16
DEEPEST = 40  # operations in one table
GRID = 1024  # points at which a function is looked at to find where it changes
FINEST = 12  # bits behind the point of an interpolated table


class NoTable(Exception):
    """Why a value has no table."""


def everything(dtype: DType) -> np.ndarray:
    """Every number of a small integer type, the lowest first."""
    limits = np.iinfo(dtype.numpy)
    return np.arange(limits.min, limits.max + 1).astype(dtype.numpy)


def reals(dtype: DType, scale: float, zero: int) -> np.ndarray:
    """What the numbers of a small integer type stand for, as `dequantize` computes it."""
    return (everything(dtype).astype(np.float32) - np.float32(zero)) * np.float32(scale)


def sources(root: Value) -> set[Value]:
    """The dequantised values that a value hangs on through elementwise operations and constants.

    Raises:
        NoTable: it hangs on something else too, or is too deep.
    """
    from secateur.ir.opdef import lookup as definition

    found: set[Value] = set()
    seen: set[Value] = set()
    stack = [root]
    while stack:
        value = stack.pop()
        if value in seen or constant_value(value) is not None:
            continue
        seen.add(value)
        if value.op is None:
            raise NoTable("an operand is not quantised")
        if value.op.name == "dequantize":
            found.add(value)
        elif not definition(value.op.name).elementwise or len(seen) > DEEPEST:
            raise NoTable(f"{value.op.name} has no integer form here")
        else:
            stack += value.op.operands
    return found


def evaluate(root: Value, source: Value, reals: np.ndarray) -> np.ndarray:
    """f of real numbers by the operations' own references: `source` is the value that they stand in for.

    Raises:
        NoTable: a constant differs from element to element.
    """
    arrays: dict[Value, np.ndarray] = {source: reals.astype(np.float32)}

    def run(value: Value) -> np.ndarray:
        if value not in arrays:
            if constant_value(value) is not None:
                arrays[value] = _constant(value)
            else:
                assert value.op is not None
                arrays[value] = run_op(value.op, [run(operand) for operand in value.op.operands])[0]
        return arrays[value]

    return run(root)


def _constant(value: Value) -> np.ndarray:
    array = constant_value(value)
    assert array is not None
    if array.size != 1:
        raise NoTable("a constant differs from channel to channel")
    return array.reshape(())


def interpolated(values: np.ndarray, low: float, high: float) -> tuple[np.ndarray, int]:
    """(129 entries, bits behind their point) for a function of all 65536 numbers of i16.

    The entries are the least-squares fit of a piecewise linear function, over the numbers whose value lies in
    low .. high: what the result saturates at does not pull at the rest.
    """
    shown = np.clip(np.nan_to_num(values.astype(np.float64)), 2 * low - high, 2 * high - low)
    weight = np.where((shown >= low - 1) & (shown <= high + 1), 1.0, 1e-6)
    at = np.arange(values.size)
    index, part = at // SEGMENT, (at % SEGMENT) / SEGMENT
    left, right = weight * (1 - part), weight * part
    diagonal = np.bincount(index, left * (1 - part), INTERPOLATED) + np.bincount(index + 1, right * part, INTERPOLATED)
    beside = np.bincount(index, left * part, INTERPOLATED)
    wanted = np.bincount(index, left * shown, INTERPOLATED) + np.bincount(index + 1, right * shown, INTERPOLATED)
    entries = _tridiagonal(diagonal, beside, wanted)
    steepest = max(float(np.abs(np.diff(entries)).max()) * SEGMENT, float(np.abs(entries).max()), 1.0)
    bits = min(FINEST, int(np.floor(np.log2(ROOM / steepest))))
    if bits < 0:
        raise NoTable("its values leave 32 bits")
    return np.rint(np.ldexp(entries, bits)).astype(np.int64), bits


def _tridiagonal(diagonal: np.ndarray, beside: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Solve a symmetric system whose matrix is zero but for its diagonal and the elements beside it (Thomas)."""
    d, y = diagonal.copy(), wanted.copy()
    for i in range(1, len(d)):
        share = beside[i - 1] / d[i - 1]
        d[i] -= share * beside[i - 1]
        y[i] -= share * y[i - 1]
    for i in range(len(d) - 1, -1, -1):
        y[i] = (y[i] - (beside[i] * y[i + 1] if i + 1 < len(d) else 0.0)) / d[i]
    return y


def worst(table: np.ndarray, bits: int, wanted: np.ndarray, low: int, high: int) -> int:
    """By how many steps an interpolated table misses what is wanted of every i16, saturated to low .. high."""
    found = lookup(everything(DType.I16), table.astype(np.int32)).astype(np.int64)
    found = (found + (1 << bits >> 1)) >> bits
    return int(np.abs(np.clip(found, low, high) - np.clip(wanted, low, high)).max())


def quantised(op: Op, values: np.ndarray) -> np.ndarray:
    """What a quantize with scalar parameters makes of real values."""
    parameters = [np.asarray(constant_value(value)).reshape(()) for value in op.operands[1:]]
    return run_op(op, [values.astype(np.float32), *parameters])[0]


def range_of_change(f: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> float:
    """The r up to which a function has to be known: it is constant from r to `high` and from -r to `low`.

    Found on a grid that is dense around zero; never less than a thousandth of the range.
    """
    far = max(-low, high, 1e-30)
    grid = far * np.geomspace(1e-3, 1.0, GRID)
    ends = []
    for side, limit in ((grid, high), (-grid, low)):
        values = f(np.clip(side, low, high).astype(np.float32))
        different = np.flatnonzero(values != f(np.asarray([limit], np.float32))[0])
        ends.append(grid[min(int(different[-1]) + 1, GRID - 1)] if different.size else grid[0])
    return float(max(ends))
