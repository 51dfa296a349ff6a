"""The table of ATen overloads and what its rows are written in."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch

from secateur.ir.builder import Builder
from secateur.ir.graph import Value
from secateur.ir.types import DType, TensorType

Number: TypeAlias = bool | int | float
Row: TypeAlias = Callable[..., Any]

DTYPES = {
    torch.float32: DType.F32,
    torch.float64: DType.F64,
    torch.float16: DType.F16,
    torch.bfloat16: DType.BF16,
    torch.int8: DType.I8,
    torch.uint8: DType.U8,
    torch.int16: DType.I16,
    torch.int32: DType.I32,
    torch.int64: DType.I64,
    torch.bool: DType.BOOL,
}
TORCH = {ours: theirs for theirs, ours in DTYPES.items()}

_ROWS: dict[str, Row] = {}


class Unsupported(Exception):
    """A row cannot express this use of its operation; the text says what about it."""


def aten(*overloads: str) -> Callable[[Row], Row]:
    """Register a row for overloads such as `add.Tensor`; `relu` stands for `relu.default`.

    The row is called with the `Context` and then every argument of the overload's schema, in the
    schema's order with defaults filled in: tensors as `Value`, the rest as Python objects. It
    returns a `Value`, or a sequence of them for an operation with several results.
    """

    def register(row: Row) -> Row:
        for name in overloads:
            key = name if "." in name else f"{name}.default"
            if key in _ROWS:
                raise ValueError(f"aten.{key} has two rows")
            _ROWS[key] = row
        return row

    return register


@cache
def rows() -> dict[str, Row]:
    """Every row by overload, e.g. `add.Tensor`."""
    import secateur.frontends.aten as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return _ROWS


def tensor_type(tensor: torch.Tensor) -> TensorType:
    """The IR type of a (fake) tensor. Raises `Unsupported` for dtypes and dimensions the IR has no name for."""
    if tensor.dtype not in DTYPES:
        raise Unsupported(f"element type {str(tensor.dtype).removeprefix('torch.')}")
    if any(not isinstance(size, int) for size in tensor.shape):
        raise Unsupported(f"dynamic shape {list(tensor.shape)}")
    return TensorType(DTYPES[tensor.dtype], tuple(tensor.shape))


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """A C-contiguous NumPy array that shares the tensor's memory where the tensor is contiguous on the CPU."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(DType.BF16.numpy)
    return tensor.numpy()


def promoted(operands: Sequence[Value | Number]) -> DType:
    """PyTorch's type promotion: tensors with dimensions outrank 0-d tensors, which outrank Python numbers.

    A lower rank only counts when its kind (bool < integer < float) is higher.
    """
    result: torch.dtype | None = None
    for level in _by_rank(operands):
        own: torch.dtype | None = None
        for dtype in level:
            own = dtype if own is None else torch.promote_types(own, dtype)
        if own is not None and (result is None or _kind(own) > _kind(result)):
            result = own if result is None or result == torch.bool else torch.promote_types(result, own)
    assert result is not None
    return DTYPES[result]


def _by_rank(operands: Sequence[Value | Number]) -> list[list[torch.dtype]]:
    levels: list[list[torch.dtype]] = [[], [], []]
    numbers = {bool: torch.bool, int: torch.int64, float: torch.float32}
    for item in operands:
        if isinstance(item, Value):
            levels[item.type.rank == 0].append(TORCH[item.type.dtype])
        else:
            levels[2].append(numbers[type(item)])
    return levels


def _kind(dtype: torch.dtype) -> int:
    return 0 if dtype == torch.bool else 2 if dtype.is_floating_point else 1


def axis_of(dim: int, rank: int) -> int:
    """A dimension as PyTorch counts it, from 0; a 0-d tensor takes 0 and -1."""
    return dim % max(rank, 1)


def axes_of(dims: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Dimensions as a sorted tuple; None and the empty list mean all of them."""
    if dims is None or (not isinstance(dims, int) and len(dims) == 0):
        return tuple(range(rank))
    items = [dims] if isinstance(dims, int) else dims
    return tuple(sorted(axis_of(dim, rank) for dim in items)) if rank else ()


def spread(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    """A setting for each of `count` spatial dimensions; a single one counts for all."""
    items = (value,) if isinstance(value, int) else tuple(value)
    return items * count if len(items) == 1 else items


@dataclass
class Context:
    """What a row sees besides its arguments.

    Attributes:
        b: builds operations at the node's source position.
        overload: which one this is, e.g. `add.Tensor`.
        out: what PyTorch says the node gives: a fake tensor, or a sequence of them.
    """

    b: Builder
    overload: str = ""
    out: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the node's (only) tensor."""
        return tensor_type(self.out).shape

    @property
    def dtype(self) -> DType:
        """The element type of the node's (only) tensor."""
        return tensor_type(self.out).dtype

    def value(self, item: Value | Number, dtype: DType) -> Value:
        """A tensor or number in the given element type."""
        return self.cast(item, dtype) if isinstance(item, Value) else self.b.constant(item, dtype)

    def cast(self, x: Value, dtype: DType) -> Value:
        result: Value = x if x.type.dtype == dtype else self.b.cast(x, dtype=dtype)
        return result

    def promote(self, *operands: Value | Number, real: bool = False) -> list[Value]:
        """All operands in their common type; with `real`, integers and booleans become f32."""
        dtype = promoted(operands)
        if real and not dtype.is_float:
            dtype = DType.F32
        return [self.value(item, dtype) for item in operands]

    def real(self, x: Value) -> Value:
        """`x`, as f32 where it is not a floating point tensor."""
        return x if x.type.dtype.is_float else self.cast(x, DType.F32)

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        result: Value = x if x.shape == tuple(shape) else self.b.reshape(x, shape=tuple(shape))
        return result

    def broadcast(self, x: Value, shape: Sequence[int]) -> Value:
        result: Value = x if x.shape == tuple(shape) else self.b.broadcast_to(x, shape=tuple(shape))
        return result

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        result: Value = x if tuple(perm) == tuple(range(len(perm))) else self.b.transpose(x, perm=tuple(perm))
        return result

    def slice(self, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
        """Part of one axis; 0 <= start <= stop <= size."""
        if (start, stop, step) == (0, x.shape[axis], 1):
            return x
        starts, stops, steps = [0] * x.type.rank, list(x.shape), [1] * x.type.rank
        starts[axis], stops[axis], steps[axis] = start, stop, step
        result: Value = self.b.slice(x, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))
        return result

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        kept = [part for part in parts if part.shape[axis]] or list(parts[:1])
        result: Value = kept[0] if len(kept) == 1 else self.b.concat(*kept, axis=axis)
        return result
