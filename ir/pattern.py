"""Patterns over operations: what they are and how they match.

`add(mul(x, y), 1)` matches from the root down. The grammar is `ir/rules.lark`; docs/rules.md explains it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from secateur.ir.formula import Formula, FormulaError, number, same
from secateur.ir.graph import Op, Value
from secateur.ir.opdef import lookup
from secateur.ir.ops.constant import constant_value
from secateur.ir.types import ALL, FLOATS, DType


@dataclass(frozen=True, slots=True)
class Typing:
    """What may be asked of a value: `const float[n, k...]`.

    Attributes:
        kind: "const" (a constant), "number" (a constant of one element) or "".
        dims: numbers, names, `_`, and at most one `name...` for any number of dimensions; None for any shape.
    """

    kind: str = ""
    dtypes: tuple[DType, ...] = ALL
    dims: tuple[int | str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Capture:
    """Any value, by name; a name that occurs twice must be the same value, `_` binds nothing."""

    name: str
    type: Typing | None = None


@dataclass(frozen=True, slots=True)
class Number:
    """A constant whose every element is this number: integers and booleans exactly, fractions nearly."""

    value: int | float | bool


@dataclass(frozen=True, slots=True)
class Equals:
    """A constant whose every element is what a formula gives."""

    formula: Formula


@dataclass(frozen=True, slots=True)
class Pattern:
    """An operation with a pattern for each operand.

    Attributes:
        names: the operations it may be.
        rest: further operands may follow, captured by this name unless it is empty; None where they may not.
        label: the name by which the operation is known in formulas and replacements.
        once: the result is used by this match alone.
        result: which result is meant, for an operation with several.
        attrs: formulas that attributes must equal; a bare name that is not bound yet is bound.
    """

    names: tuple[str, ...]
    operands: tuple[Node, ...] = ()
    rest: str | None = None
    label: str = ""
    once: bool = False
    result: int = 0
    attrs: tuple[tuple[str, Formula], ...] = ()
    type: Typing | None = None

    @property
    def inner(self) -> list[Pattern]:
        return [operand for operand in self.operands if isinstance(operand, Pattern)]

    @property
    def depth(self) -> int:
        """Levels of operations, the root included."""
        return 1 + max((pattern.depth for pattern in self.inner), default=0)


Node: TypeAlias = Pattern | Capture | Number | Equals
Miss = tuple[int, Op | None, str]  # operations matched before, the operation that did not fit, and why


@dataclass(slots=True)
class Match:
    """What a pattern matched: `m["x"]` is a captured value, `m.ops` the operations in pattern order.

    Attributes:
        data: attributes, dimensions, labelled operations and variadic operands by name.
        misses: where given, receives what did not fit.
    """

    ops: list[Op] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    misses: list[Miss] | None = None

    def __getitem__(self, name: str) -> Value:
        return self.values[name]

    @property
    def root(self) -> Op:
        return self.ops[0]

    @property
    def scope(self) -> dict[str, Any]:
        """Everything that a formula can name."""
        return {"root": self.ops[0], **self.values, **self.data}

    def op(self, index: int) -> Op:
        """The operation number `index` below the root, in the order the pattern's text names them."""
        return self.ops[index + 1]

    def only_use(self, *indices: int) -> bool:
        """Whether each of these inner operations feeds nothing but this match."""
        return all(_used_once(self.op(i)) for i in indices)

    def bind(self, name: str, thing: Any) -> Match:
        return Match(self.ops, self.values, {**self.data, name: thing}, self.misses)

    def miss(self, op: Op | None, why: str) -> None:
        if self.misses is not None:
            self.misses.append((len(self.ops), op, why))


def match(pattern: Pattern, op: Op) -> Match | None:
    """The first match of a pattern with `op` at its root, if there is one."""
    return next(matches(pattern, op), None)


def matches(pattern: Pattern, op: Op, misses: list[Miss] | None = None) -> Iterator[Match]:
    """Every match of a pattern with `op` at its root; commutative ops are tried in both operand orders."""
    yield from _match_op(pattern, op, Match(misses=misses))


def _used_once(op: Op) -> bool:
    return len(op.results) == 1 and len(op.result.uses) == 1


def _match_op(pattern: Pattern, op: Op, found: Match) -> Iterator[Match]:
    if op.name not in pattern.names:
        return found.miss(op, f"{op.name} is not {' or '.join(pattern.names[:4])}")
    count, given = len(pattern.operands), op.operands
    if len(given) < count or (len(given) > count and pattern.rest is None):
        return found.miss(op, f"{op.name} has {len(given)} operands, not {count}")
    if pattern.once and not _used_once(op):
        return found.miss(op, f"the result of {op.name} is used elsewhere too")
    here = Match([*found.ops, op], found.values, found.data, found.misses)
    if pattern.label:
        here = here.bind(pattern.label, op)
    orders = [given]
    if count == 2 and given[0] is not given[1] and lookup(op.name).commutative:
        orders.append(given[::-1])
    for order in orders:
        for trial in _match_operands(pattern.operands, order, here):
            if (done := _match_rest(pattern, op, trial)) is not None:
                yield done


def _match_rest(pattern: Pattern, op: Op, found: Match) -> Match | None:
    """What is asked of an operation once its operands match: its type, attributes, further operands."""
    if pattern.rest:
        found = found.bind(pattern.rest, op.operands[len(pattern.operands) :])
    for key, formula in pattern.attrs:
        scope = found.scope
        if formula.text in formula.names and formula.text not in scope:
            found = found.bind(formula.text, op.attrs[key])
            continue
        wanted = _compute(formula, scope, op, found)
        if wanted is None or not same(op.attrs[key], wanted[0]):
            found.miss(op, f"{op.name} has {key} = {op.attrs[key]}, not {formula.text}")
            return None
    return _match_type(pattern.type, op.results[pattern.result], found) if pattern.type else found


def _compute(formula: Formula, scope: Mapping[str, Any], op: Op | None, found: Match) -> tuple[Any] | None:
    try:
        return (formula(scope),)
    except FormulaError as error:
        found.miss(op, str(error))
        return None


def _match_operands(patterns: Sequence[Node], values: Sequence[Value], found: Match) -> Iterator[Match]:
    """Match operands from the left; a later one that fails makes an earlier one try its other order."""
    if not patterns:
        yield found
        return
    first, value = patterns[0], values[0]
    if not isinstance(first, Pattern):
        leaf = _match_leaf(first, value, found)
        partial = iter((leaf,) if leaf else ())
    elif value.op is None:
        partial = iter(())
        found.miss(None, f"an input of the graph is not {' or '.join(first.names[:4])}")
    elif value.index != first.result:
        partial = iter(())
        found.miss(value.op, f"it is result {value.index} of {value.op.name}, not {first.result}")
    else:
        partial = _match_op(first, value.op, found)
    for trial in partial:
        yield from _match_operands(patterns[1:], values[1:], trial)


def _match_leaf(leaf: Capture | Number | Equals, value: Value, found: Match) -> Match | None:
    if isinstance(leaf, Capture):
        return _match_capture(leaf, value, found)
    wanted = (leaf.value,) if isinstance(leaf, Number) else _compute(leaf.formula, found.scope, value.op, found)
    if wanted is not None and is_number(value, wanted[0]):
        return found
    found.miss(value.op, f"an operand is not the constant {wanted[0] if wanted else '?'}")
    return None


def _match_capture(leaf: Capture, value: Value, found: Match) -> Match | None:
    if leaf.name != "_":
        bound = found.values.get(leaf.name)
        if bound is None:
            found = Match(found.ops, {**found.values, leaf.name: value}, found.data, found.misses)
        elif bound is not value:
            found.miss(value.op, f"{leaf.name} would have to be one value in both places")
            return None
    if leaf.type is None:
        return found
    typed = _match_type(leaf.type, value, found)
    return typed.bind(leaf.name, number(value)) if typed and leaf.type.kind == "number" else typed


def _match_type(typing: Typing, value: Value, found: Match) -> Match | None:
    if value.type.dtype not in typing.dtypes:
        found.miss(value.op, f"{value.type} is not {' or '.join(map(str, typing.dtypes))}")
        return None
    if typing.kind and (constant_value(value) is None or (typing.kind == "number" and value.type.numel != 1)):
        found.miss(value.op, f"{value.type} is not a constant{' of one element' * (typing.kind == 'number')}")
        return None
    return found if typing.dims is None else _match_dims(typing.dims, value, found)


def _match_dims(dims: tuple[int | str, ...], value: Value, found: Match) -> Match | None:
    rest = next((at for at, dim in enumerate(dims) if isinstance(dim, str) and dim.endswith("...")), None)
    extra = value.type.rank - len(dims) + (rest is not None)
    if extra < 0 or (extra and rest is None):
        found.miss(value.op, f"{value.type} is not of shape [{', '.join(map(str, dims))}]")
        return None
    sizes: list[Any] = list(value.shape)
    if rest is not None:
        sizes[rest : rest + extra] = [value.shape[rest : rest + extra]]
    for dim, size in zip(dims, sizes, strict=True):
        name = dim.removesuffix("...") if isinstance(dim, str) else ""
        if name in ("", "_"):
            fits = not isinstance(dim, int) or dim == size
        else:
            fits = found.data.get(name, size) == size
            found = found.bind(name, size) if fits else found
        if not fits:
            found.miss(value.op, f"{value.type}: a dimension is {size}, not {dim}")
            return None
    return found


def is_number(value: Value, number: Any) -> bool:
    """Whether a value is a constant whose every element is `number` (see `Number`)."""
    array = constant_value(value)
    if array is None or not array.size or (array.dtype == np.bool_) != isinstance(number, bool):
        return False
    if isinstance(number, bool):
        return bool(np.all(array == number))
    whole = not np.isfinite(number) or number == int(number)
    slack = 0.0 if whole or not value.type.dtype.is_float else 4 * _EPS[value.type.dtype] * abs(number)

    def near(item: np.ndarray) -> bool:
        wide = item.astype(np.float64)
        return bool(np.all((wide == number) | (np.abs(wide - number) <= slack)))

    with np.errstate(invalid="ignore"):
        return near(array.reshape(-1)[:1]) and (array.size == 1 or near(array))


_EPS = {dtype: float(ml_dtypes.finfo(dtype.numpy).eps) for dtype in FLOATS}  # type: ignore[no-untyped-call]
