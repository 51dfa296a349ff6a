"""One node as the rows of the table see it, and the table itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError, Span
from secateur.ir.graph import Value
from secateur.ir.ops.constant import constant_value
from secateur.ir.types import DType

if TYPE_CHECKING:
    from secateur.frontends.onnx.importer import Importer
    from secateur.frontends.onnx.scope import Scope

# Attributes that a row need not look at: they change nothing in what we compute, or only in a form
# of the op that the row tells by other means (its inputs, a known condition).
HARMLESS = frozenset(
    {
        "axes",
        "block_size",
        "consumed_inputs",
        "else_branch",
        "extrapolation_value",
        "hidden_size",
        "is_test",
        "keepdims",
        "momentum",
        "noop_with_empty_axes",
        "num_outputs",
        "precision",
        "ratio",
        "roi",
        "round_mode",
        "saturate",
        "seed",
        "softmax_precision",
        "sorted",
        "split",
        "stash_type",
        "storage_order",
        "then_branch",
        "type",
    }
)

MAX_WRITTEN = 1 << 26

Item = Value | tuple[Value, ...] | None  # a tensor, a sequence of tensors, or an absent optional


class Attributes(dict[str, Any]):
    """Attributes that remember which of them were looked at."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)


class Node:
    """A node with its inputs looked up and its attributes decoded.

    Attributes:
        name: the op type.
        version: of the opset the node is read by.
        b: the builder; what it makes carries the node's span.
        outputs: how many outputs the node declares; `wanted` tells which are named.
    """

    def __init__(
        self,
        name: str,
        version: int,
        builder: Builder,
        inputs: Sequence[Item],
        attrs: dict[str, Any],
        outputs: Sequence[str],
        importer: Importer,
        scope: Scope,
        proto: Any,
    ) -> None:
        self.name = name
        self.version = version
        self.b = builder
        self.inputs = inputs
        self.attrs = Attributes(attrs)
        self.outputs = len(outputs)
        self.wanted = [bool(output) for output in outputs]
        self.importer = importer
        self.scope = scope
        self.proto = proto

    @property
    def span(self) -> Span | None:
        return self.b.span

    def fail(self, message: str, hint: str = "") -> CompileError:
        return CompileError(f"{self.name}: {message}", span=self.span, hint=hint)

    def by_function(self) -> list[Item]:
        """What the function body in the op's ONNX schema gives: for rows that cover the common case only."""
        self.attrs.read.update(self.attrs)
        return self.importer.expand(self.proto, list(self.inputs), self.scope)

    # Inputs -------------------------------------------------------------------------------------

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def opt(self, index: int) -> Value | None:
        """Input `index`, or None where it is left out."""
        item = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(item, tuple):
            raise self.fail(f"input {index} is a sequence, a tensor is expected")
        return item

    def x(self, index: int = 0) -> Value:
        """Input `index`, which must be there."""
        value = self.opt(index)
        if value is None:
            raise self.fail(f"input {index} is missing")
        return value

    def all(self) -> list[Value]:
        """Every input, for variadic ops."""
        return [self.x(index) for index in range(len(self.inputs))]

    def sequence(self, index: int) -> tuple[Value, ...]:
        item = self.inputs[index] if index < len(self.inputs) else None
        if not isinstance(item, tuple):
            raise self.fail(f"input {index} is not a sequence")
        return item

    def const(self, index: int) -> np.ndarray:
        """The array of input `index`, which must be known at import."""
        array = constant_value(self.x(index))
        if array is None:
            raise self.fail(
                f"input {index} must be a constant",
                hint="the shapes of a compiled program are fixed; make the value an initializer or a Constant",
            )
        return array

    def ints(self, index: int) -> tuple[int, ...]:
        """A constant input as a tuple of int; a scalar counts as one item."""
        return tuple(int(item) for item in self.const(index).reshape(-1))

    def scalar(self, index: int) -> Any:
        """A constant input of one element, as a Python number."""
        array = self.const(index)
        if array.size != 1:
            raise self.fail(f"input {index} must have one element, has shape {list(array.shape)}")
        return array.reshape(()).item()

    # Attributes ---------------------------------------------------------------------------------

    def attr(self, name: str, default: Any) -> Any:
        """An attribute, or `default`; its kind must be that of the default (None accepts any)."""
        value = self.attrs.get(name, default)
        kinds = {int: int, float: float, str: str, tuple: tuple}
        if default is not None and not isinstance(value, kinds[type(default)]):
            raise self.fail(f"attribute {name!r} must be {type(default).__name__}, got {value!r}")
        return value

    def need(self, name: str) -> Any:
        """An attribute without a default."""
        if name not in self.attrs:
            raise self.fail(f"attribute {name!r} is missing")
        return self.attrs[name]

    def check_read(self) -> None:
        """Raises `CompileError` for an attribute the row did not look at: it might change the meaning."""
        for name in self.attrs.keys() - self.attrs.read - HARMLESS:
            raise self.fail(f"attribute {name!r} is not supported")

    def refuse(self, name: str, *allowed: Any) -> None:
        """Raises `CompileError` where an attribute has a value other than the supported ones."""
        value = self.attrs.get(name, allowed[0])
        if value not in allowed:
            raise self.fail(f"{name} = {value!r} is not supported")

    def refuse_outputs(self, most: int) -> None:
        """Raises `CompileError` where an optional output is asked for that is not computed."""
        if any(self.wanted[most:]):
            raise self.fail(f"output {most + self.wanted[most:].index(True)} is not supported")

    def axis(self, value: int, rank: int) -> int:
        """An axis counted from the front; raises `CompileError` outside -rank..rank-1."""
        if not -rank <= value < max(rank, 1):
            raise self.fail(f"axis {value} is out of range for rank {rank}")
        return value % rank if rank else 0

    def axes(self, values: Sequence[int], rank: int) -> tuple[int, ...]:
        done = tuple(self.axis(int(value), rank) for value in values)
        if len(set(done)) < len(done):
            raise self.fail(f"axes {list(values)} repeat")
        return done

    # Building -----------------------------------------------------------------------------------

    def scalar_like(self, number: float, like: Value) -> Value:
        """A rank-0 constant of the element type of `like`."""
        return self.b.constant(np.asarray(number, dtype=like.type.dtype.numpy))

    def cast(self, x: Value, dtype: DType) -> Value:
        """`x` as `dtype`; itself where it already is."""
        return x if x.type.dtype is dtype else self.b.cast(x, dtype=dtype)

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """`x` reshaped; itself where nothing changes."""
        return x if x.shape == tuple(shape) else self.b.reshape(x, shape=tuple(shape))

    def expand(self, x: Value, shape: Sequence[int]) -> Value:
        """`x` broadcast to exactly `shape`; itself where nothing changes."""
        return x if x.shape == tuple(shape) else self.b.broadcast_to(x, shape=tuple(shape))

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        """`x` transposed; itself where nothing moves."""
        return x if tuple(perm) == tuple(range(x.type.rank)) else self.b.transpose(x, perm=tuple(perm))

    def bound(self, count: int) -> int:
        """`count` itself; raises `CompileError` where writing that many numbers (or ops) out is out of reason."""
        if count > MAX_WRITTEN:
            raise self.fail(f"needs {count} numbers written out, more than the limit of {MAX_WRITTEN}")
        return count

    def counting(self, size: int, axis: int, rank: int) -> Value:
        """0, 1, ... size - 1 (i64) along one axis of a tensor of `rank` dimensions, the others being 1."""
        numbers = np.arange(self.bound(size), dtype=np.int64)
        return self.b.constant(numbers.reshape([size if dim == axis else 1 for dim in range(rank)]))

    def cut(self, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
        """start..stop of one axis."""
        rank = x.type.rank
        if (start, stop, step) == (0, x.shape[axis], 1):
            return x
        starts, stops, steps = [0] * rank, list(x.shape), [1] * rank
        starts[axis], stops[axis], steps[axis] = start, stop, step
        return self.b.slice(x, starts=starts, stops=stops, steps=steps)


Row = Callable[[Node], Item | list[Item] | list[Value]]
TABLE: dict[tuple[str, str], Row] = {}


def row(*names: str, domain: str = "") -> Callable[[Row], Row]:
    """Enter a function into the table under the op types it imports."""

    def enter(function: Row) -> Row:
        for name in names:
            assert (domain, name) not in TABLE, name
            TABLE[domain, name] = function
        return function

    return enter
