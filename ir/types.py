"""Element types, dimensions and tensor types."""

from __future__ import annotations

import enum
import math
import re
from dataclasses import dataclass
from typing import TypeAlias

import ml_dtypes
import numpy as np

Dim: TypeAlias = int  # a named symbol joins here when shapes become dynamic
Shape: TypeAlias = tuple[Dim, ...]


class DType(enum.Enum):
    """The element types of the IR, by the names the text form uses."""

    F32 = "f32"
    F64 = "f64"
    F16 = "f16"
    BF16 = "bf16"
    I8 = "i8"
    U8 = "u8"
    I16 = "i16"
    I32 = "i32"
    I64 = "i64"
    BOOL = "bool"

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return self.value

    @property
    def numpy(self) -> np.dtype:
        return _NUMPY[self]

    @property
    def bytes(self) -> int:
        return self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        return self in FLOATS

    @property
    def is_int(self) -> bool:
        return self in INTS

    @staticmethod
    def of(dtype: np.dtype | type) -> DType:
        """The element type of a NumPy dtype; raises `KeyError` for one the IR has no name for."""
        return _FROM_NUMPY[np.dtype(dtype)]


FLOATS = (DType.F32, DType.F64, DType.F16, DType.BF16)
INTS = (DType.I8, DType.U8, DType.I16, DType.I32, DType.I64)
NUMERIC = FLOATS + INTS
ALL = (*NUMERIC, DType.BOOL)

_NUMPY = {
    DType.F32: np.dtype(np.float32),
    DType.F64: np.dtype(np.float64),
    DType.F16: np.dtype(np.float16),
    DType.BF16: np.dtype(ml_dtypes.bfloat16),
    DType.I8: np.dtype(np.int8),
    DType.U8: np.dtype(np.uint8),
    DType.I16: np.dtype(np.int16),
    DType.I32: np.dtype(np.int32),
    DType.I64: np.dtype(np.int64),
    DType.BOOL: np.dtype(np.bool_),
}
_FROM_NUMPY = {numpy: dtype for dtype, numpy in _NUMPY.items()}


def numel(shape: Shape) -> int:
    """Number of elements of a shape; 1 for a scalar."""
    return math.prod(shape)


@dataclass(frozen=True, slots=True)
class TensorType:
    """A dense tensor of `dtype` elements; `shape` is outermost dimension first."""

    dtype: DType
    shape: Shape

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        return numel(self.shape)

    @property
    def bytes(self) -> int:
        return self.numel * self.dtype.bytes

    def with_shape(self, shape: tuple[Dim, ...] | list[Dim]) -> TensorType:
        return TensorType(self.dtype, tuple(shape))

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape)

    @staticmethod
    def of(array: np.ndarray) -> TensorType:
        """The type of a NumPy array."""
        return TensorType(DType.of(array.dtype), tuple(array.shape))

    @staticmethod
    def parse(text: str) -> TensorType:
        """`f32[1,64]` -> TensorType; raises `ValueError` on anything else."""
        match = re.fullmatch(r"\s*(\w+)\[([\d\s,]*)\]\s*", text)
        if not match or match[1] not in {d.value for d in DType}:
            raise ValueError(f"not a tensor type: {text!r} (expected e.g. f32[1,64])")
        dims = [int(part) for part in match[2].split(",") if part.strip()]
        return TensorType(DType(match[1]), tuple(dims))
