"""What an operation is: a frozen record of data, and the registry of all of them.

An operation is defined once, in one file under `ir/ops/`, by a call of `define(OpDef(...))`. From
that record derive the verifier, the builder, the interpreter, constant folding, the op's tests,
the fuzzer, fusion, and the `secateur ops` listing.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.ir.diagnostics import CompileError, Span, nearest
from secateur.ir.draw import Draw, Sample
from secateur.ir.expr import Expr
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.types import ALL, DType, TensorType

if TYPE_CHECKING:
    from secateur.ir.builder import Builder

REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Operand:
    """One operand of the schema. At most the trailing operands are optional; a variadic one is last."""

    name: str
    dtypes: tuple[DType, ...] = ALL
    optional: bool = False
    variadic: bool = False


@dataclass(frozen=True, slots=True)
class Attr:
    """One attribute: `kind` is int, float, bool, str, ints, floats, dtype, graph or array."""

    kind: str
    default: Any = REQUIRED
    choices: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class DimLink:
    """Result dimension `result_dim` follows dimension `dim` of operand `operand`, index for index.

    `operand == -1` never occurs: a dimension with no link is free (made by the op itself) and an
    operand dimension with no link is consumed (contracted, reduced).
    """

    operand: int
    dim: int
    result_dim: int
    result: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpDef:
    """One operation.

    Attributes:
        name: as the text form prints it.
        doc: one line on what it computes, with the shapes.
        operands: the operand schema; `operands("x w bias?", ...)` builds it.
        attrs: the attribute schema by name.
        infer: operand types and attributes -> result type(s); raises `ValueError` when they do not fit.
        reference: NumPy arrays and attributes -> result array(s): interpreter, folding and oracle.
        sample: draws one valid random instance.
        flops: result and operand types, attributes -> floating point (or integer) operations, an
            FMA counted as two; by default one for each result element.
        moved: bytes read and written where that is not all operands and results once.
        dim_links: which result dimension follows which operand dimension.
        expr: for an elementwise op, the one scalar expression everything else derives from.
        decompose: rebuilds the op from simpler ones; a backend without a kernel for it uses this. None
            for an instance that has no simpler form.
        commutative: the first two operands may be swapped.
    """

    name: str
    doc: str
    operands: tuple[Operand, ...]
    infer: Callable[..., TensorType | tuple[TensorType, ...]]
    reference: Callable[..., np.ndarray | tuple[np.ndarray, ...]]
    sample: Callable[[Draw], Sample]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    flops: Callable[[Op], int] | None = None
    moved: Callable[[Op], int] | None = None
    dim_links: Callable[[Op], list[DimLink]] | None = None
    expr: Expr | None = None
    decompose: Callable[[Builder, Op], Sequence[Value] | None] | None = None
    commutative: bool = False

    @property
    def elementwise(self) -> bool:
        return self.expr is not None

    def cost(self, op: Op) -> tuple[int, int]:
        """(FLOPs, bytes read and written when nothing is cached) of one instance."""
        flops = self.flops(op) if self.flops else sum(r.type.numel for r in op.results)
        if self.moved:
            return flops, self.moved(op)
        return flops, sum(v.type.bytes for v in (*op.operands, *op.results))

    def complete(self, attrs: Mapping[str, Any], span: Span | None = None) -> dict[str, Any]:
        """Attributes with the defaults filled in and every value in its canonical Python type."""
        for key in attrs:
            if key not in self.attrs:
                raise CompileError(f"{self.name} has no attribute {key!r}", span=span, hint=nearest(key, self.attrs))
        done = {}
        for key, attr in self.attrs.items():
            value = attrs.get(key, attr.default)
            if value is REQUIRED:
                raise CompileError(f"{self.name} needs attribute {key!r} ({attr.kind})", span=span)
            try:
                done[key] = _CONVERT[attr.kind](value)
            except (TypeError, ValueError):
                raise CompileError(
                    f"{self.name}: attribute {key!r} must be {attr.kind}, got {value!r}", span=span
                ) from None
            if attr.choices and done[key] not in attr.choices:
                known = ", ".join(map(repr, attr.choices))
                raise CompileError(f"{self.name}: {key} = {value!r} is not one of {known}", span=span)
        return done

    def check_operands(self, types: Sequence[TensorType], span: Span | None = None) -> None:
        """Raises `CompileError` where number or element types do not fit the schema."""
        variadic = bool(self.operands) and self.operands[-1].variadic
        least = sum(not (spec.optional or spec.variadic) for spec in self.operands)
        most = len(self.operands)
        if len(types) < least or (len(types) > most and not variadic):
            wanted = f"{least}" if least == most else f"{least} or more" if variadic else f"{least} to {most}"
            raise CompileError(f"{self.name} takes {wanted} operands, got {len(types)}", span=span)
        for position, type in enumerate(types):
            spec = self.operands[min(position, most - 1)]
            if type.dtype not in spec.dtypes:
                allowed = ", ".join(d.value for d in spec.dtypes)
                raise CompileError(
                    f"{self.name}: operand {spec.name!r} is {type}; its element type must be one of {allowed}",
                    span=span,
                )

    def result_types(
        self, types: Sequence[TensorType], attrs: Mapping[str, Any], span: Span | None = None
    ) -> tuple[TensorType, ...]:
        """Type inference with its errors placed: the builder and the verifier both call this."""
        self.check_operands(types, span)
        try:
            inferred = self.infer(*types, **attrs)
        except ValueError as error:
            shown = ", ".join(map(str, types))
            raise CompileError(f"{self.name}({shown}): {error}", span=span) from None
        return inferred if isinstance(inferred, tuple) else (inferred,)


def operands(text: str, **dtypes: tuple[DType, ...]) -> tuple[Operand, ...]:
    """`operands("x w bias?", x=FLOATS)`: `?` marks an optional operand, `*` a variadic one."""
    specs = []
    for word in text.split():
        name = word.rstrip("?*")
        specs.append(Operand(name, dtypes.pop(name, ALL), word.endswith("?"), word.endswith("*")))
    if dtypes:
        raise TypeError(f"no operand named {', '.join(dtypes)}")
    return tuple(specs)


def _exact(kind: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return convert


def _int(value: Any) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise TypeError
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, (str, bool)):
        raise TypeError
    return float(value)


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "int": _int,
    "float": _float,
    "bool": _exact((bool, np.bool_)),  # type: ignore[arg-type]
    "str": _exact(str),
    "ints": lambda value: tuple(_int(item) for item in value),
    "floats": lambda value: tuple(_float(item) for item in value),
    "dtype": lambda value: value if isinstance(value, DType) else DType(value),
    "graph": _exact(Graph),
    "array": _exact(np.ndarray),
}

_REGISTRY: dict[str, OpDef] = {}


def define(opdef: OpDef) -> OpDef:
    """Register an operation. A second one of the same name is a programming error."""
    if opdef.name in _REGISTRY:
        raise ValueError(f"op {opdef.name!r} is defined twice")
    _REGISTRY[opdef.name] = opdef
    return opdef


@cache
def _load() -> None:
    import secateur.ir.ops as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def all_ops() -> dict[str, OpDef]:
    """Every operation by name, in alphabetical order."""
    _load()
    return dict(sorted(_REGISTRY.items()))


def lookup(name: str, span: Span | None = None) -> OpDef:
    """The definition of an operation; raises `CompileError` naming the nearest one."""
    _load()
    if name not in _REGISTRY:
        raise CompileError(f"unknown op {name!r}", span=span, hint=nearest(name, _REGISTRY))
    return _REGISTRY[name]
