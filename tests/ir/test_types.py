"""Element types and tensor types."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.ir.types import ALL, DType, TensorType


@pytest.mark.parametrize("dtype", ALL)
def test_dtype_names_sizes_and_numpy(dtype: DType) -> None:
    assert DType(str(dtype)) is dtype
    assert DType.of(dtype.numpy) is dtype
    assert dtype.bytes == np.zeros(1, dtype.numpy).nbytes
    assert dtype.is_float + dtype.is_int + (dtype is DType.BOOL) == 1


def test_foreign_dtypes_are_unknown() -> None:
    with pytest.raises(KeyError):
        DType.of(np.complex64)


@pytest.mark.parametrize("text", ["f32[]", "f32[1,64]", "bf16[0,3]", "bool[7]"])
def test_type_text(text: str) -> None:
    assert str(TensorType.parse(text)) == text


@pytest.mark.parametrize("text", ["f32", "f33[1]", "f32[a]", "f32[-1]", "[2]"])
def test_type_text_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a tensor type"):
        TensorType.parse(text)


def test_type_properties() -> None:
    type = TensorType.parse("f16[2,3]")
    assert (type.rank, type.numel, type.bytes) == (2, 6, 12)
    assert str(type.with_dtype(DType.I64)) == "i64[2,3]"
    assert str(type.with_shape([6])) == "f16[6]"
    assert TensorType.of(np.zeros((2, 3), np.float16)) == type
    assert TensorType.parse("f32[]").numel == 1
