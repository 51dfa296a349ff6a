"""Scalar expressions: the one definition of every elementwise op.

An expression is written as Python arithmetic over operand and attribute names, for instance
`select(x <= 0, x * slope, x)`. NumPy evaluation lives here; the backends print the same tree as
vector C. The set of primitives is closed: a backend that knows PRIMITIVES knows every elementwise
op there is or will be.

Floats narrower than 32 bits are widened to f32, computed, and rounded once at the end of each op.
Integer arithmetic wraps; integer division by zero gives 0. Constants take the type of the first
operand, or of what they are combined with once a `cast` or `saturate` has changed it.

The second argument of `cast` and `saturate` is an element type: its name, the attribute `dtype`, or
an operand, whose element type is meant.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.ir.types import DType


@dataclass(frozen=True, slots=True)
class Expr:
    """A tree: `op` is "var" or "attr" (`value` is its name), "const" (its number), "dtype" or a primitive."""

    op: str
    args: tuple[Expr, ...] = ()
    value: Any = None

    def vars(self) -> set[str]:
        if self.op == "var":
            return {self.value}
        return set().union(*(arg.vars() for arg in self.args))


def _erf(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x.astype(np.float64))).astype(x.dtype)


def _integer_division(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Division where a zero divisor gives 0 for integers and the IEEE result for floats."""

    def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if np.issubdtype(np.result_type(a, b), np.floating):
            return function(a, b)
        return np.where(b == 0, np.zeros_like(b), function(a, np.where(b == 0, np.ones_like(b), b)))

    return divide


def _truncated_quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a - np.fmod(a, b)) // b


def _shift(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Shifts by a count outside 0..bits-1 are taken modulo the width, so that they are defined everywhere."""
    return lambda a, b: function(a, b & np.asarray(np.result_type(a).itemsize * 8 - 1, dtype=b.dtype))


def mulshift(x: Any, multiplier: Any, shift: Any) -> np.ndarray:
    """x * multiplier / 2^shift for i32, rounded half up, modulo 2^32: the one rounding of requantisation.

    The product and the sum with 2^(shift-1) are exact in i64 for 1 <= shift <= 62; the shift is arithmetic.
    This is the single-rounding form of gemmlowp's fixed-point multiplication (Jacob et al. 2018, section 2.2).
    """
    wide = np.asarray(x).astype(np.int64) * np.asarray(multiplier).astype(np.int64)
    count = np.asarray(shift).astype(np.int64)
    return ((wide + (np.int64(1) << (count - 1))) >> count).astype(np.int32)


def saturate(x: np.ndarray, dtype: DType) -> np.ndarray:
    """To an integer type: integers are clipped to its limits, floats convert as `cast` does."""
    if x.dtype.kind not in "iu":
        return _cast(x, dtype)
    limits = np.iinfo(dtype.numpy)
    return np.clip(x.astype(np.int64), limits.min, limits.max).astype(dtype.numpy)


INTERPOLATED = 129  # entries of a table for i16, one every 512 steps


def lookup(x: np.ndarray, table: Any) -> np.ndarray:
    """Function values by table, in i32.

    8-bit x: 256 entries, that of the type's lowest value first. i16: `INTERPOLATED` entries; with u = x + 32768,
    i = u >> 9 and f = u & 511 the result is t[i] + (((t[i+1] - t[i]) * f + 256) >> 9).
    """
    entries = np.asarray(table, dtype=np.int32)
    place = x.astype(np.int32) - np.iinfo(x.dtype).min
    if x.dtype.itemsize == 1:
        return entries[place]
    low, part = place >> 9, place & 511
    with np.errstate(over="ignore"):
        return entries[low] + (((entries[low + 1] - entries[low]) * part + 256) >> 9)


# Comparisons and `isnan` give bool; everything else keeps the type of its (last) argument.
PRIMITIVES: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "floordiv": _integer_division(np.floor_divide),
    "truncdiv": _integer_division(_truncated_quotient),
    "mod": _integer_division(np.mod),
    "fmod": _integer_division(np.fmod),
    "neg": np.negative,
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
    "pow": np.power,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "expm1": np.expm1,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "tanh": np.tanh,
    "atan2": np.arctan2,
    "erf": _erf,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "trunc": np.trunc,
    "isnan": np.isnan,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "shl": _shift(np.left_shift),
    "shr": _shift(np.right_shift),
    "select": np.where,
    "cast": lambda x, dtype: _cast(x, dtype),
    "saturate": saturate,
    "mulshift": mulshift,
    "lookup": lookup,
}
TYPED = frozenset({"cast", "saturate"})  # their second argument is an element type
COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge", "isnan"})

_DTYPES = frozenset(dtype.value for dtype in DType)
_OPERATORS = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
    ast.FloorDiv: "floordiv",
    ast.Mod: "mod",
    ast.Pow: "pow",
    ast.BitAnd: "and",
    ast.BitOr: "or",
    ast.BitXor: "xor",
    ast.LShift: "shl",
    ast.RShift: "shr",
    ast.Eq: "eq",
    ast.NotEq: "ne",
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
    ast.USub: "neg",
    ast.Invert: "not",
}


def parse(text: str, operands: tuple[str, ...], attrs: tuple[str, ...] = ()) -> Expr:
    """Parse an expression; raises `ValueError` on a name or a construct it does not know."""

    def convert(node: ast.AST) -> Expr:
        match node:
            case ast.Constant(value=bool() | int() | float() as number):
                return Expr("const", value=number)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return Expr("const", value=-number)
            case ast.Name(id="inf"):
                return Expr("const", value=math.inf)
            case ast.Name(id=name) if name in operands:
                return Expr("var", value=name)
            case ast.Name(id=name) if name in _DTYPES:
                return Expr("dtype", value=DType(name))
            case ast.Name(id=name) if name in attrs:
                return Expr("attr", value=name)
            case ast.UnaryOp(op=operator, operand=operand) if type(operator) in _OPERATORS:
                return Expr(_OPERATORS[type(operator)], (convert(operand),))
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
                return Expr(_OPERATORS[type(operator)], (convert(left), convert(right)))
            case ast.Compare(left=left, ops=[operator], comparators=[right]):
                return Expr(_OPERATORS[type(operator)], (convert(left), convert(right)))
            case ast.Call(func=ast.Name(id=name), args=args) if name in PRIMITIVES:
                return Expr(name, tuple(convert(arg) for arg in args))
        raise ValueError(f"cannot read {ast.unparse(node)!r} in expression {text!r}")

    return convert(ast.parse(text, mode="eval").body)


def evaluate(expr: Expr, arrays: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    """Evaluate over NumPy arrays with broadcasting; narrow floats are computed in f32.

    The result has the dtype that the tree computes in; the caller rounds it to the op's result type.
    """
    wide = {name: _widen(array) for name, array in arrays.items()}
    numeric = [array.dtype for array in wide.values() if array.dtype != np.bool_]
    first = numeric[0] if numeric else np.dtype(np.bool_)

    def element_type(node: Expr) -> DType:
        if node.op == "dtype":
            return node.value
        return DType.of(arrays[node.value].dtype) if node.op == "var" else attrs[node.value]

    def number(node: Expr, dtype: np.dtype) -> np.ndarray:
        return np.asarray(node.value if node.op == "const" else attrs[node.value]).astype(dtype)

    def run(node: Expr) -> Any:
        if node.op == "var":
            return wide[node.value]
        if node.op in ("const", "attr"):
            return number(node, first)
        if node.op in TYPED:
            return PRIMITIVES[node.op](run(node.args[0]), element_type(node.args[1]))
        if node.op == "lookup":
            return lookup(run(node.args[0]), attrs[node.args[1].value])
        plain = [arg.op in ("const", "attr") for arg in node.args]
        done = [None if known else run(arg) for arg, known in zip(node.args, plain)]
        dtype = next((value.dtype for value in reversed(done) if value is not None and value.dtype != np.bool_), first)
        return PRIMITIVES[node.op](
            *(number(arg, dtype) if value is None else value for arg, value in zip(node.args, done))
        )

    with np.errstate(all="ignore"):
        return np.asarray(run(expr))


def _widen(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype in (DType.F16.numpy, DType.BF16.numpy) else array


def _cast(x: np.ndarray, dtype: DType) -> np.ndarray:
    """Conversion as in C where C defines it; float to integer saturates and NaN becomes 0."""
    if dtype.is_int and x.dtype.kind not in "iub":
        limits = np.iinfo(dtype.numpy)
        whole = np.trunc(np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf))
        inside = np.clip(whole, float(limits.min), float(limits.max))
        exact = np.where(inside >= float(limits.max), 0, inside).astype(dtype.numpy)
        return np.where(whole >= float(limits.max), np.asarray(limits.max, dtype=dtype.numpy), exact)
    return x.astype(dtype.numpy)
