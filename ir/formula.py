"""Formulas of rules: small expressions over shapes, attributes and numbers, compiled to closures.

A value has `.shape`, `.rank`, `.dtype`, `.type`, `.numel`, `.uses` and, if constant, `.value` (an
array: f64 where it is a float); an operation has its attributes besides. `p[q]` picks by every
index of a tuple. Nothing here can run code of a rule file's author: there are only the operators,
and the functions of a table.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from lark import Token

from secateur.ir.graph import Op, Value
from secateur.ir.ops.constant import constant_value
from secateur.ir.types import DType, TensorType

Scope = Mapping[str, Any]
Evaluate = Callable[[Scope], Any]


class FormulaError(Exception):
    """A formula has no value here: a missing attribute, an index out of range, a constant that is none."""


@dataclass(frozen=True, slots=True)
class Formula:
    """An expression: the names it reads and what computes it. Two of the same text are the same."""

    text: str
    names: frozenset[str]
    compute: Evaluate = field(compare=False)

    def __call__(self, scope: Scope) -> Any:
        """Raises `FormulaError` where the formula has no value."""
        try:
            with np.errstate(all="ignore"):
                return self.compute(scope)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise FormulaError(f"{self.text} has no value here ({error})") from None


def inverse(perm: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes `perm`."""
    back = [0] * len(perm)
    for position, axis in enumerate(perm):
        back[axis] = position
    return tuple(back)


def number(value: Value) -> float:
    """The number behind a constant of one element; raises `ValueError` where there is none.

    In f32 it is read by the shortest digits that give it back: 0.1 where f32 holds 0.100000001490116.
    """
    array = constant_value(value)
    if array is None or array.size != 1:
        raise ValueError("not a constant of one element")
    item = array.reshape(-1)[0]
    return float(str(item)) if array.dtype == np.float32 else item.item()


def _array(value: Value) -> np.ndarray:
    array = constant_value(value)
    if array is None:
        raise ValueError("not a constant")
    return array.astype(np.float64) if value.type.dtype.is_float else array


def close(a: Any, b: Any) -> bool:
    """Whether numbers or arrays agree within one part in a million."""
    return bool(np.allclose(a, b, rtol=1e-6, atol=0.0, equal_nan=True))


def holds(wider: DType, narrow: DType) -> bool:
    """Whether an element type holds every value of another one."""
    if wider is narrow or narrow is DType.BOOL:
        return True
    if wider is DType.BOOL or (narrow.is_float and wider.is_int):
        return False
    if wider.is_int:
        a, b = np.iinfo(wider.numpy), np.iinfo(narrow.numpy)
        return int(a.min) <= int(b.min) and int(b.max) <= int(a.max)
    float_ = ml_dtypes.finfo(wider.numpy)  # type: ignore[no-untyped-call]
    if narrow.is_int:
        return int(np.iinfo(narrow.numpy).max).bit_length() <= float_.nmant + 1
    other = ml_dtypes.finfo(narrow.numpy)  # type: ignore[no-untyped-call]
    return bool(float_.nmant >= other.nmant and float_.maxexp >= other.maxexp)


def is_normal(number: float, dtype: DType) -> bool:
    """Whether a number is neither too small nor too large to keep its digits in an element type."""
    limits = ml_dtypes.finfo(dtype.numpy)  # type: ignore[no-untyped-call]
    return bool(float(limits.tiny) <= abs(number) <= float(limits.max))


def trailing(axes: Sequence[int], rank: int) -> int:
    """How many trailing dimensions axes are; 0 where they are others."""
    return len(axes) if tuple(sorted(axes)) == tuple(range(rank - len(axes), rank)) else 0


def places(perm: Sequence[int], gone: Sequence[int], kept: bool) -> tuple[int, ...]:
    """A permutation once some of the axes it names are gone; itself where they are kept."""
    left = [axis for axis in perm if kept or axis not in gone]
    return tuple(sorted(left).index(axis) for axis in left)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "all": np.all,
    "any": np.any,
    "len": len,
    "max": max,
    "min": min,
    "range": lambda *limits: tuple(range(*limits)),
    "sorted": lambda items: tuple(sorted(items)),
    "set": frozenset,
    "sum": sum,
    "prod": math.prod,
    "sqrt": np.sqrt,
    "isfinite": lambda items: bool(np.all(np.isfinite(items))),
    "close": close,
    "holds": holds,
    "inverse": inverse,
    "is_normal": is_normal,
    "places": places,
    "trailing": trailing,
    "number": number,
    "is_float": lambda dtype: dtype.is_float,
    "is_int": lambda dtype: dtype.is_int,
    "is_constant": lambda value: constant_value(value) is not None,
    "is_number": lambda value: constant_value(value) is not None and value.type.numel == 1,
}

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "%": operator.mod,
    "**": operator.pow,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda a, b: a in b,
    "not in": lambda a, b: a not in b,
}

_OF_VALUE: dict[str, Callable[[Value], Any]] = {
    "shape": lambda value: value.shape,
    "rank": lambda value: value.type.rank,
    "dtype": lambda value: value.type.dtype,
    "type": lambda value: value.type,
    "numel": lambda value: value.type.numel,
    "uses": lambda value: len(value.uses),
    "value": _array,
}

WORDS: dict[str, Any] = {"true": True, "false": False, "none": None, **{dtype.value: dtype for dtype in DType}}


def member(thing: Any, name: str) -> Any:
    """`thing.name` in a formula."""
    if isinstance(thing, Op):
        if name == "name" or name in thing.attrs:
            return thing.attrs.get(name, thing.name)
        thing = thing.results[0]
    if isinstance(thing, Value) and name in _OF_VALUE:
        return _OF_VALUE[name](thing)
    if isinstance(thing, TensorType) and name in ("shape", "rank", "dtype", "numel"):
        return getattr(thing, name)
    raise AttributeError(f"no .{name}")


def item(thing: Any, index: Any) -> Any:
    """`thing[index]`: by one index, or by each index of a tuple."""
    return tuple(thing[at] for at in index) if isinstance(index, tuple) else thing[index]


def same(a: Any, b: Any) -> bool:
    """Equality of attribute data, arrays included."""
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else a == b


class Compiler:
    """Turns the syntax tree of a formula into a `Formula`; `error(message, node)` makes what is raised."""

    def __init__(
        self, text: str, functions: Mapping[str, Callable[..., Any]], error: Callable[[str, Any], Exception]
    ) -> None:
        self.text = text
        self.functions = {**FUNCTIONS, **functions}
        self.error = error
        self.names: set[str] = set()

    def formula(self, tree: Any) -> Formula:
        self.names = set()
        compute = self.visit(tree)
        shown = " ".join(self.text[tree.meta.start_pos : tree.meta.end_pos].split())
        return Formula(shown, frozenset(self.names), compute)

    def visit(self, tree: Any) -> Evaluate:
        method: Callable[..., Evaluate] = getattr(self, f"_{tree.data}")
        return method(tree, *tree.children)

    def _name(self, tree: Any, token: Token) -> Evaluate:
        name = str(token)
        if name in WORDS:
            word = WORDS[name]
            return lambda scope: word
        self.names.add(name)
        return lambda scope: scope[name]

    def _literal(self, tree: Any, token: Token) -> Evaluate:
        number = to_number(str(token))
        return lambda scope: number

    def _string(self, tree: Any, token: Token) -> Evaluate:
        text = json.loads(token)
        return lambda scope: text

    def _minus(self, tree: Any, inner: Any) -> Evaluate:
        compute = self.visit(inner)
        return lambda scope: -compute(scope)

    def _negate(self, tree: Any, inner: Any) -> Evaluate:
        compute = self.visit(inner)
        return lambda scope: not compute(scope)

    def _either(self, tree: Any, left: Any, right: Any) -> Evaluate:
        a, b = self.visit(left), self.visit(right)
        return lambda scope: a(scope) or b(scope)

    def _both(self, tree: Any, left: Any, right: Any) -> Evaluate:
        a, b = self.visit(left), self.visit(right)
        return lambda scope: a(scope) and b(scope)

    def _binary(self, tree: Any, left: Any, sign: Token, right: Any) -> Evaluate:
        a, b, apply = self.visit(left), self.visit(right), _OPERATORS[str(sign)]
        return lambda scope: apply(a(scope), b(scope))

    def _comparison(self, tree: Any, *parts: Any) -> Evaluate:
        terms = [self.visit(part) for part in parts[::2]]
        signs = [_OPERATORS[" ".join(str(part).split())] for part in parts[1::2]]

        def compute(scope: Scope) -> Any:
            values = [term(scope) for term in terms]
            return all(np.all(sign(a, b)) for sign, a, b in zip(signs, values, values[1:]))

        return compute

    def _member(self, tree: Any, inner: Any, token: Token) -> Evaluate:
        compute, name = self.visit(inner), str(token)
        return lambda scope: member(compute(scope), name)

    def _item(self, tree: Any, inner: Any, index: Any) -> Evaluate:
        compute, at = self.visit(inner), self.visit(index)
        return lambda scope: item(compute(scope), at(scope))

    def _part(self, tree: Any, inner: Any, low: Any, high: Any) -> Evaluate:
        compute = self.visit(inner)
        start = self.visit(low) if low is not None else lambda scope: None
        stop = self.visit(high) if high is not None else lambda scope: None
        return lambda scope: compute(scope)[start(scope) : stop(scope)]

    def _call(self, tree: Any, token: Token, *arguments: Any) -> Evaluate:
        if str(token) not in self.functions:
            raise self.error(f"unknown function {str(token)!r}", token)
        function = self.functions[str(token)]
        computed = [self.visit(argument) for argument in arguments if argument is not None]
        return lambda scope: function(*(compute(scope) for compute in computed))

    def _items(self, tree: Any, *parts: Any) -> Evaluate:
        computed = [self.visit(part) for part in parts if part is not None]
        return lambda scope: tuple(compute(scope) for compute in computed)

    def _comprehension(self, tree: Any, element: Any, token: Token, source: Any, condition: Any) -> Evaluate:
        outside = set(self.names)
        each, keep = self.visit(element), self.visit(condition) if condition is not None else None
        name = str(token)
        self.names = outside | (self.names - {name})
        items = self.visit(source)

        def compute(scope: Scope) -> Any:
            scopes = ({**scope, name: entry} for entry in items(scope))
            return tuple(each(inner) for inner in scopes if keep is None or keep(inner))

        return compute


def to_number(text: str) -> int | float:
    """A number's text as an int where it is written as one."""
    return int(text) if text.isdigit() else float(text)
