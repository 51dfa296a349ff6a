"""Scalar expressions of the IR as C over vectors of LANES elements.

In registers a value of a narrow float type is a v_f32, rounded to its type after each op, and a
bool is a vbool mask. `CTYPE` says how each element type is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.ir.expr import COMPARISONS, TYPED, Expr
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.opdef import lookup
from secateur.ir.types import DType

CTYPE: dict[DType, str] = {
    DType.F32: "float",
    DType.F64: "double",
    DType.F16: "f16_t",
    DType.BF16: "bf16_t",
    DType.I8: "int8_t",
    DType.U8: "uint8_t",
    DType.I16: "int16_t",
    DType.I32: "int32_t",
    DType.I64: "int64_t",
    DType.BOOL: "bool_t",
}
_NARROW = (DType.F16, DType.BF16)
_OPERATORS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "and": "&",
    "or": "|",
    "xor": "^",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
}


def register_type(dtype: DType) -> DType:
    """The type a value is computed in: f32 for the narrow floats, else its own."""
    return DType.F32 if dtype in _NARROW else dtype


def vector_type(dtype: DType) -> str:
    """The C type of a value in registers."""
    return "vbool" if dtype is DType.BOOL else f"v_{register_type(dtype)}"


def literal(value: Any, dtype: DType) -> str:
    """A number as a C scalar of `dtype`."""
    if dtype is DType.BOOL:
        return "-1" if value else "0"
    if not register_type(dtype).is_float:
        whole = int(np.asarray(int(value)).astype(dtype.numpy))  # wraps, as the reference does
        return f"({CTYPE[dtype]})INT64_MIN" if whole == -(2**63) else f"({CTYPE[dtype]}){whole}LL"
    number = float(value)
    suffix = "" if dtype is DType.F64 else "f"
    if math.isnan(number):
        return f"({CTYPE[register_type(dtype)]})NAN"
    if math.isinf(number):
        return "INFINITY" if number > 0 else "-INFINITY"
    return f"{float(register_type(dtype).numpy.type(number))!r}{suffix}"


def splat(value: Any, dtype: DType) -> str:
    """A number in every lane."""
    name = "i32" if dtype is DType.BOOL else str(register_type(dtype))
    return f"splat_{name}({literal(value, dtype)})"


def from_memory(loaded: str, dtype: DType) -> str:
    """A vector as it was loaded -> as it is computed with."""
    if dtype is DType.BOOL:
        return f"(CONVERT({loaded}, vbool) != 0)"
    if dtype is DType.BF16:
        return f"widen_bf16({loaded})"
    return f"CONVERT({loaded}, v_f32)" if dtype is DType.F16 else loaded


def to_memory(text: str, dtype: DType) -> str:
    """A vector as it is computed with -> as it is stored."""
    if dtype is DType.BOOL:
        return f"CONVERT({text} & 1, v_bool)"
    if dtype is DType.BF16:
        return f"narrow_bf16({text})"
    return f"CONVERT({text}, v_f16)" if dtype is DType.F16 else text


@dataclass
class BodyWriter:
    """Writes a body of elementwise ops as C statements, one `const` per expression node.

    Attributes:
        names: the C name of each value that is already in a register.
    """

    names: dict[Value, str]
    prefix: str = "t"
    count: int = 0

    def __post_init__(self) -> None:
        self.lines: list[str] = []
        self.known: dict[Expr, tuple[str, DType]] = {}  # within one op
        self.numbers: dict[str, int] = {}  # names of integer constants

    def graph(self, body: Graph) -> list[str]:
        """Write all ops; returns the names of the outputs."""
        for op in body.ops:
            self.op(op)
        return [self.names[value] for value in body.outputs]

    def op(self, op: Op) -> str:
        """Write one elementwise op (or scalar constant) and name its result."""
        result = op.result
        if op.name == "constant":
            value = op.attrs["value"].reshape(-1)[0]
            self.names[result] = self.define(vector_type(result.type.dtype), splat(value, result.type.dtype))
            if result.type.dtype.is_int:
                self.numbers[self.names[result]] = int(value)
            return self.names[result]
        expr = lookup(op.name).expr
        assert expr is not None, f"{op.name} is not elementwise"
        self.names[result] = self.round(self.of_operands(expr, op), result.type.dtype)
        return self.names[result]

    def unclipped(self, op: Op) -> str:
        """Write an op that ends in a saturation, but for that; returns the name of what it would saturate."""
        expr = lookup(op.name).expr
        assert expr is not None and expr.op == "saturate", f"{op.name} does not end in a saturation"
        return self.of_operands(expr.args[0], op)

    def of_operands(self, expr: Expr, op: Op) -> str:
        """Write an expression over an op's operands and attributes."""
        arguments = {
            spec.name: (self.names[value], value.type.dtype)
            for spec, value in zip(lookup(op.name).operands, op.operands, strict=True)
        }
        numeric = [dtype for _, dtype in arguments.values() if dtype is not DType.BOOL]
        self.known = {}
        return self.expr(expr, arguments, op.attrs, register_type(numeric[0]) if numeric else DType.BOOL)[0]

    def define(self, ctype: str, text: str) -> str:
        name = f"{self.prefix}{self.count}"
        self.count += 1
        self.lines.append(f"const {ctype} {name} = {text};")
        return name

    def round(self, text: str, dtype: DType) -> str:
        """Round to a narrow float type at the end of an op, as the reference does."""
        if dtype is DType.BF16:
            return self.define("v_f32", f"widen_bf16(narrow_bf16({text}))")
        if dtype is DType.F16:
            return self.define("v_f32", f"CONVERT(CONVERT({text}, v_f16), v_f32)")
        return text

    def expr(
        self, node: Expr, arguments: Mapping[str, tuple[str, DType]], attrs: Mapping[str, Any], first: DType
    ) -> tuple[str, DType]:
        """Write a tree; returns the name of its value and the type it is computed in.

        Numbers take the type of what they are combined with, as in `ir.expr.evaluate`; `first`, the type of
        the first operand, where there is nothing.
        """
        if node in self.known:
            return self.known[node]
        if node.op == "var":
            name, dtype = arguments[node.value]
            return name, register_type(dtype)
        if node.op in ("const", "attr"):
            return self.number(node, attrs, first), first
        if node.op in (*TYPED, "mulshift", "lookup"):
            done = self.special(node, arguments, attrs, first)
        else:
            plain = [arg.op in ("const", "attr") for arg in node.args]
            parts = [None if p else self.expr(arg, arguments, attrs, first) for arg, p in zip(node.args, plain)]
            typed = [part[1] for part in parts if part and part[1] is not DType.BOOL]
            dtype = typed[-1] if typed else first
            names = [
                part[0] if part else self.number(arg, attrs, dtype) for part, arg in zip(parts, node.args, strict=True)
            ]
            dtype = parts[-1][1] if parts[-1] else dtype
            result = DType.BOOL if node.op in COMPARISONS else dtype
            done = self.define(vector_type(result), primitive(node.op, names, dtype)), result
        self.known[node] = done
        return done

    def number(self, node: Expr, attrs: Mapping[str, Any], dtype: DType) -> str:
        value = node.value if node.op == "const" else attrs[node.value]
        return self.define(vector_type(dtype), splat(value, dtype))

    def special(
        self, node: Expr, arguments: Mapping[str, tuple[str, DType]], attrs: Mapping[str, Any], first: DType
    ) -> tuple[str, DType]:
        """Primitives with an argument that is no value: an element type, a shift, a table."""
        name, dtype = self.expr(node.args[0], arguments, attrs, first)
        last = node.args[-1]
        if node.op == "mulshift":
            multiplier, _ = self.expr(node.args[1], arguments, attrs, first)
            shift = int(attrs[last.value] if last.op == "attr" else last.value)
            return self.define("v_i32", self.mulshift(name, multiplier, shift)), DType.I32
        if node.op == "lookup":
            return self.define("v_i32", table(name, dtype, attrs[last.value])), DType.I32
        target = last.value if last.op == "dtype" else None
        target = target or (arguments[last.value][1] if last.op == "var" else attrs[last.value])
        saturates = node.op == "saturate" and dtype.is_int
        text = f"saturate_{dtype}_{target}({name})" if saturates else convert(name, dtype, target)
        return self.define(vector_type(target), text), register_type(target)

    def mulshift(self, name: str, multiplier: str, shift: int) -> str:
        """A power of two as multiplier leaves a shift."""
        number = self.numbers.get(multiplier, 0)
        power = number.bit_length() - 1
        if number == 1 << max(power, 0) and power < shift:
            return f"shift_rounded_i32({name}, {shift - power})"
        return f"mulshift_i32({name}, {multiplier}, {shift})"


def table(name: str, dtype: DType, entries: Sequence[int]) -> str:
    """A lookup in a table that stands in the code, in the narrowest type that a fast way exists for."""
    narrow = (DType.I16,) if dtype is DType.I16 else (DType.U8, DType.I8)
    low, high = min(entries), max(entries)
    fitting = (kind for kind in narrow if np.iinfo(kind.numpy).min <= low and high <= np.iinfo(kind.numpy).max)
    kind = next(fitting, DType.I32)
    numbers = ", ".join(map(str, entries)).replace("-2147483648", "INT32_MIN")
    return f"({{ static const {CTYPE[kind]} t_[] = {{{numbers}}}; lookup_{dtype}_{kind}({name}, t_); }})"


def primitive(op: str, args: list[str], dtype: DType) -> str:
    """One primitive of `ir/expr.py` applied to vectors computed in `dtype`."""
    if op == "isnan":
        return f"TRUTH({args[0]} != {args[0]})"
    if op in COMPARISONS:
        if dtype is DType.BOOL:
            args = args[::-1]  # a mask that is set is -1, the smaller one
        return f"TRUTH({args[0]} {_OPERATORS[op]} {args[1]})"
    if dtype is DType.BOOL:
        return _boolean(op, args)
    if op == "neg":
        return f"-{args[0]}"
    if op == "not":
        return f"~{args[0]}"
    if op in ("shl", "shr"):
        return f"{args[0]} {'<<' if op == 'shl' else '>>'} ({args[1]} & {dtype.bytes * 8 - 1})"
    if op == "div" and dtype.is_float:
        return f"{args[0]} / {args[1]}"
    if op == "abs":
        return _absolute(args[0], dtype)
    if op in _OPERATORS:
        return f"{args[0]} {_OPERATORS[op]} {args[1]}"
    return f"{op}_{dtype}({', '.join(args)})"


def _boolean(op: str, args: list[str]) -> str:
    if op == "select":
        return f"({args[0]} & {args[1]}) | (~{args[0]} & {args[2]})"
    if op == "not":
        return f"~{args[0]}"
    text = {"max": "|", "min": "&", "add": "|", "mul": "&"}.get(op) or _OPERATORS[op]
    return f"{args[0]} {text} {args[1]}"


def _absolute(name: str, dtype: DType) -> str:
    if dtype is DType.U8:
        return name
    if dtype is DType.F32:
        return f"float_bits(bits_f32({name}) & 0x7fffffff)"
    # A zero keeps neither sign: -(-0.0) is 0.0 and 0.0 - 0.0 is 0.0.
    return f"select_{dtype}(TRUTH({name} <= 0), 0 - {name}, {name})"


def convert(name: str, source: DType, target: DType) -> str:
    """A vector computed in `source` -> the register form of `target`, before its rounding."""
    into = register_type(target)
    if source is into:
        return name
    if target is DType.BOOL:
        return f"TRUTH({name} != 0)"
    if source is DType.BOOL:
        return f"CONVERT({name} & 1, v_{into})"
    if source.is_float and into.is_int:
        return f"{source}_to_{into}({name})"
    return f"CONVERT({name}, v_{into})"
