"""Values, operations and graphs in SSA form. Knows no particular operation.

A graph is a straight line of operations in a doubly linked list, so that inserting, moving and
erasing cost the same at any size. Its last operation is always `return`; graph outputs are that
operation's operands, so that a value's uses are all found in one place.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from secateur.ir.diagnostics import Span
from secateur.ir.types import TensorType

RETURN = "return"


class Value:
    """One tensor: a graph input (`op is None`) or result number `index` of `op`."""

    __slots__ = ("hint", "index", "op", "type", "uses")

    def __init__(self, type: TensorType, op: Op | None = None, index: int = 0, hint: str = "") -> None:
        self.type = type
        self.op = op
        self.index = index
        self.hint = hint
        self.uses: dict[tuple[Op, int], None] = {}  # ordered: rewrites must be deterministic

    @property
    def users(self) -> list[Op]:
        """The distinct operations that use this value, in order of first use."""
        return list(dict.fromkeys(op for op, _ in self.uses))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    def replace_uses(self, new: Value) -> None:
        """Make every user of this value use `new` instead."""
        for op, position in list(self.uses):
            op.set_operand(position, new)

    def __repr__(self) -> str:
        return f"<{self.hint or self.index}: {self.type}>"


class Op:
    """One operation: `results = name(operands) {attrs}`.

    Attribute values are plain data (int, float, bool, str, None, tuples of these, DType), a
    NumPy array for `constant`, or a Graph for an operation with a body.
    """

    __slots__ = ("_operands", "attrs", "graph", "name", "next", "prev", "results", "span")

    def __init__(
        self,
        name: str,
        operands: Iterable[Value],
        attrs: Mapping[str, Any],
        types: Iterable[TensorType],
        span: Span | None = None,
    ) -> None:
        self.name = name
        self.attrs = dict(attrs)
        self.results = tuple(Value(type, self, index) for index, type in enumerate(types))
        self.span = span
        self.graph: Graph | None = None
        self.prev: Op | None = None
        self.next: Op | None = None
        self._operands: list[Value] = list(operands)
        for position, value in enumerate(self._operands):
            value.uses[self, position] = None

    @property
    def operands(self) -> tuple[Value, ...]:
        return tuple(self._operands)

    @property
    def result(self) -> Value:
        """The only result; an operation with several has no `result`."""
        (value,) = self.results
        return value

    def set_operand(self, position: int, value: Value) -> None:
        del self._operands[position].uses[self, position]
        self._operands[position] = value
        value.uses[self, position] = None

    def set_operands(self, values: Iterable[Value]) -> None:
        for position, value in enumerate(self._operands):
            del value.uses[self, position]
        self._operands = list(values)
        for position, value in enumerate(self._operands):
            value.uses[self, position] = None

    def __repr__(self) -> str:
        return f"<{self.name} -> {', '.join(str(value.type) for value in self.results)}>"


class Graph:
    """A function from tensors to tensors.

    Args:
        name: printed as `graph @name`; free text, never reaches generated code.
        inputs: types of the inputs, with an optional name hint each.
    """

    def __init__(self, name: str = "main", inputs: Iterable[TensorType | tuple[str, TensorType]] = ()) -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.terminator = Op(RETURN, (), {}, ())
        self.terminator.graph = self
        self._first: Op = self.terminator
        for item in inputs:
            hint, type = item if isinstance(item, tuple) else ("", item)
            self.add_input(type, hint)

    # Reading ------------------------------------------------------------------------------------

    @property
    def outputs(self) -> tuple[Value, ...]:
        return self.terminator.operands

    @outputs.setter
    def outputs(self, values: Iterable[Value]) -> None:
        self.terminator.set_operands(values)

    @property
    def ops(self) -> Iterator[Op]:
        """The operations in order, without `return`. The current one may be erased while iterating."""
        op: Op | None = self._first
        while op is not None and op is not self.terminator:
            following = op.next
            yield op
            # What was inserted behind `op` meanwhile is visited too, unless `op` itself is gone.
            op = op.next if op.graph is self else following

    def __len__(self) -> int:
        return sum(1 for _ in self.ops)

    def find(self, name: str) -> list[Op]:
        """All operations called `name`, in order."""
        return [op for op in self.ops if op.name == name]

    def walk(self) -> Iterator[Op]:
        """The operations of this graph and of every body graph inside it."""
        for op in self.ops:
            yield op
            for body in bodies(op):
                yield from body.walk()

    # Changing -----------------------------------------------------------------------------------

    def add_input(self, type: TensorType, hint: str = "") -> Value:
        value = Value(type, None, len(self.inputs), hint)
        self.inputs.append(value)
        return value

    def insert(self, op: Op, before: Op | None = None) -> Op:
        """Link a new operation in front of `before` (by default at the end, before `return`)."""
        at = before or self.terminator
        op.graph = self
        op.prev, op.next = at.prev, at
        if at.prev is None:
            self._first = op
        else:
            at.prev.next = op
        at.prev = op
        return op

    def _unlink(self, op: Op) -> None:
        assert op.next is not None, "return is never unlinked"
        if op.prev is None:
            self._first = op.next
        else:
            op.prev.next = op.next
        op.next.prev = op.prev
        op.graph = None

    def erase(self, op: Op) -> None:
        """Remove an operation whose results have no uses left."""
        if any(value.uses for value in op.results):
            raise ValueError(f"{op!r} still has uses")
        op.set_operands(())
        self._unlink(op)

    def move(self, op: Op, before: Op) -> None:
        """Move an operation in front of another; the caller answers for dominance."""
        if op is not before:
            self._unlink(op)
            self.insert(op, before)

    def replace(self, op: Op, values: Iterable[Value]) -> None:
        """Replace the results of `op` by `values` and erase it. Name hints move along."""
        for old, new in zip(op.results, values, strict=True):
            if old.hint and not new.hint and new.op is not None:
                new.hint = old.hint
            old.replace_uses(new)
        self.erase(op)

    def clone(self) -> Graph:
        """A deep copy that shares the constants' arrays."""
        copy = Graph(self.name, [(value.hint, value.type) for value in self.inputs])
        mapping = dict(zip(self.inputs, copy.inputs, strict=True))
        copy_ops(self.ops, copy, mapping)
        copy.outputs = [mapping[value] for value in self.outputs]
        return copy

    def take(self, other: Graph) -> None:
        """Become `other`, which must not be used afterwards: how a snapshot is restored in place."""
        self.name, self.inputs, self._first, self.terminator = other.name, other.inputs, other._first, other.terminator
        for op in [*self.ops, self.terminator]:
            op.graph = self

    def __str__(self) -> str:
        from secateur.ir.text import print_graph  # the printer needs the op registry, which needs this file

        return print_graph(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """What a notebook shows: the text, and a picture where something installed can draw one.

        Who draws is found by the entry points of the group `secateur.pictures`, functions from a graph to
        SVG or None, because nothing here may know of the tools.
        """
        shown = {"text/plain": str(self)}
        for entry in importlib.metadata.entry_points(group="secateur.pictures"):
            picture = entry.load()(self)
            if picture:
                shown["image/svg+xml"] = picture
        return shown


def bodies(op: Op) -> list[Graph]:
    """The body graphs that an operation holds in its attributes."""
    return [value for value in op.attrs.values() if isinstance(value, Graph)]


def copy_ops(ops: Iterable[Op], into: Graph, mapping: dict[Value, Value], before: Op | None = None) -> None:
    """Copy operations into a graph, translating operands by `mapping` and adding the new results to it."""
    for op in ops:
        attrs = {key: value.clone() if isinstance(value, Graph) else value for key, value in op.attrs.items()}
        new = Op(op.name, (mapping[value] for value in op.operands), attrs, (r.type for r in op.results), op.span)
        into.insert(new, before)
        for old_result, new_result in zip(op.results, new.results, strict=True):
            new_result.hint = old_result.hint
            mapping[old_result] = new_result
