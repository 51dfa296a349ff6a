"""What the op families share: checks, links between dimensions, and the float rule of references."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from secateur.ir.draw import Draw
from secateur.ir.graph import Op, Value
from secateur.ir.opdef import DimLink
from secateur.ir.types import DType, TensorType

if TYPE_CHECKING:
    from secateur.ir.builder import Builder

INDEX = (DType.I32, DType.I64)
NARROW = (DType.F16, DType.BF16)


def check_axis(axis: int, rank: int, what: str = "axis") -> None:
    """Raises `ValueError` unless 0 <= axis < rank."""
    if not 0 <= axis < rank:
        raise ValueError(f"{what} {axis} is outside 0..{rank - 1}" if rank else f"{what} {axis} of a scalar")


def check_axes(axes: Sequence[int], rank: int) -> None:
    """Raises `ValueError` unless all axes are in range and distinct."""
    for axis in axes:
        check_axis(axis, rank)
    if len(set(axes)) != len(axes):
        raise ValueError(f"axes {list(axes)} repeat")


def check_length(what: str, values: Sequence[object], count: int) -> None:
    """Raises `ValueError` unless an attribute has `count` entries."""
    if len(values) != count:
        raise ValueError(f"{what} needs {count} entries, has {len(values)}")


def check_least(what: str, values: Sequence[int], least: int) -> None:
    """Raises `ValueError` where an attribute entry is below `least`."""
    if any(value < least for value in values):
        raise ValueError(f"{what} {list(values)} has an entry below {least}")


def check_same_dtype(types: Sequence[TensorType]) -> None:
    """Raises `ValueError` unless all operands have one element type."""
    if len({type.dtype for type in types}) > 1:
        raise ValueError("operands must have one element type; insert a cast")


BYTES = (DType.I8, DType.U8)


def product_type(types: Sequence[TensorType]) -> DType:
    """The element type of a product's result: that of its operands, and i32 for 8-bit ones (with an i32 bias).

    Raises `ValueError` where the operands have no such type in common.
    """
    x, w, *bias = types
    if x.dtype not in BYTES or w.dtype not in BYTES:
        check_same_dtype(types)
        return x.dtype
    if bias and bias[0].dtype is not DType.I32:
        raise ValueError(f"the bias of an 8-bit product is i32, got {bias[0].dtype}")
    return DType.I32


def multiply(a: np.ndarray, b: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """`a @ b` plus a bias that broadcasts, in the type that references compute in; 8-bit operands modulo 2^32 as i32.

    Integer sums are formed in floats that hold them exactly, which is where NumPy's fast products are.
    """
    if a.dtype.itemsize > 1 or b.dtype.itemsize > 1 or a.dtype.kind == "b":
        result = np.matmul(wide(a), wide(b))
        return result if bias is None else result + wide(bias)
    exact = np.float32 if a.shape[-1] * 255 * 255 < 1 << 24 else np.float64
    total = np.matmul(a.astype(exact), b.astype(exact)).astype(np.int64)
    return (total if bias is None else total + bias).astype(np.int32)


def wide(array: np.ndarray) -> np.ndarray:
    """f16 and bf16 as f32, everything else as it is: the type that references compute in."""
    return array.astype(np.float32) if array.dtype in (DType.F16.numpy, DType.BF16.numpy) else array


def identity_links(op: Op, *, without: Iterable[int] = (), results: int = 1) -> list[DimLink]:
    """Dimension i of operand 0 -> dimension i of each result, except `without`."""
    skip = set(without)
    dims = [dim for dim in range(op.operands[0].type.rank) if dim not in skip]
    return [DimLink(0, dim, dim, result) for result in range(results) for dim in dims]


def in_f32(b: Builder, op: Op, build: Callable[..., Value]) -> list[Value]:
    """Run `build` on the operands, narrow floats cast to f32 and the value cast back: one rounding for the op."""
    dtype = op.results[0].type.dtype
    if dtype not in NARROW:
        return [build(*op.operands)]
    cast = [b.cast(v, dtype=DType.F32) if v.type.dtype is dtype else v for v in op.operands]
    return [b.cast(build(*cast), dtype=dtype)]


def scalar(b: Builder, value: float, dtype: DType) -> Value:
    """A rank-0 constant of an element type."""
    return b.constant(np.asarray(value).astype(dtype.numpy))


def wrap_clamp(indices: np.ndarray, size: int) -> np.ndarray:
    """Indices as i64: a negative one counts from the end, then all are clamped into 0..size-1."""
    indices = indices.astype(np.int64)
    return np.clip(np.where(indices < 0, indices + size, indices), 0, max(size - 1, 0))


def build_wrap_clamp(b: Builder, indices: Value, size: int) -> Value:
    """`wrap_clamp` as operations; the result is i64."""
    at = indices if indices.type.dtype is DType.I64 else b.cast(indices, dtype=DType.I64)
    zero = scalar(b, 0, DType.I64)
    at = b.where(b.lt(at, zero), b.add(at, scalar(b, size, DType.I64)), at)
    return b.maximum(b.minimum(at, scalar(b, size - 1, DType.I64)), zero)


def draw_axis(draw: Draw, rank: int) -> int:
    return draw.int(0, rank - 1)


def draw_indices(draw: Draw, shape: Sequence[int], size: int) -> np.ndarray:
    """Indices into `size` (> 0) entries: now and then negative or out of range, which wrap and clamp."""
    dtype = draw.choice(INDEX)
    low, high = draw.choice([(0, size - 1), (0, size - 1), (-size, size - 1), (-size - 3, size + 3)])
    return draw.tensor(dtype, shape, low, high, specials=False)
