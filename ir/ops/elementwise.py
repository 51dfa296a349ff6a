"""Elementwise operations: each is one scalar expression over broadcast operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from secateur.ir.draw import Draw, Sample
from secateur.ir.expr import COMPARISONS, evaluate, parse
from secateur.ir.graph import Op
from secateur.ir.opdef import Attr, DimLink, OpDef, Operand, define
from secateur.ir.types import ALL, FLOATS, INTS, NUMERIC, DType, TensorType

LOGICAL = (*INTS, DType.BOOL)


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The common shape under NumPy's rules; raises `ValueError` when there is none."""
    try:
        return tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        raise ValueError(f"shapes {', '.join(str(list(s)) for s in shapes)} do not broadcast") from None


def broadcast_links(op: Op) -> list[DimLink]:
    """Every operand dimension that is not stretched follows the result dimension it is aligned with."""
    shape = op.results[0].shape
    links = []
    for position, value in enumerate(op.operands):
        offset = len(shape) - value.type.rank
        for dim, size in enumerate(value.shape):
            if size == shape[dim + offset]:
                links.append(DimLink(position, dim, dim + offset))
    return links


def elementwise(
    name: str,
    names: str,
    text: str,
    dtypes: tuple[DType, ...] | dict[str, tuple[DType, ...]] = NUMERIC,
    *,
    result: str | DType | None = None,
    doc: str = "",
    attrs: dict[str, Attr] | None = None,
    ranges: dict[str, tuple[float, float]] | None = None,
    attr_ranges: dict[str, tuple[float, float]] | None = None,
    commutative: bool = False,
    draws: Callable[[Draw], Sample] | None = None,
    check: Callable[..., None] | None = None,
) -> OpDef:
    """Define an elementwise op from its expression.

    All operands have one element type out of `dtypes`, or each one out of its own. The result has the type
    of the attribute `dtype` where there is one, else `result`: an element type, or the operand that has it.
    `ranges` bounds what the sample draws for an operand (where the function is undefined or
    ill-conditioned outside), `attr_ranges` what it draws for a float attribute; `draws` replaces the sample.
    `check` gets types and attributes and raises `ValueError` where they do not fit.
    """
    operand_names = tuple(names.split())
    attrs = attrs or {}
    expr = parse(text, operand_names, tuple(attrs))
    gives_bool = expr.op in COMPARISONS
    typed = dtypes if isinstance(dtypes, dict) else dict.fromkeys(operand_names, dtypes) | {"cond": (DType.BOOL,)}

    def infer(*types: TensorType, **given: Any) -> TensorType:
        if check:
            check(*types, **given)
        values = {key: t.dtype for t, key in zip(types, operand_names, strict=True) if key != "cond"}
        if isinstance(dtypes, tuple) and len(set(values.values())) > 1:
            raise ValueError("operands must have one element type; insert a cast")
        plain = DType.BOOL if gives_bool else next(iter(values.values()))
        dtype = given.get("dtype") or (values[result] if isinstance(result, str) else result) or plain
        return TensorType(dtype, broadcast(*(t.shape for t in types)))

    def reference(*arrays: np.ndarray, **given: Any) -> np.ndarray:
        result = evaluate(expr, dict(zip(operand_names, arrays, strict=True)), given)
        dtype = infer(*(TensorType.of(a) for a in arrays), **given).dtype
        with np.errstate(all="ignore"):
            shape = np.broadcast_shapes(*(a.shape for a in arrays))
            return np.broadcast_to(result.astype(dtype.numpy), shape)

    def sample(draw: Draw) -> Sample:
        assert isinstance(dtypes, tuple), f"{name} needs a sample of its own"
        dtype, shape = draw.choice(dtypes), draw.shape()
        arrays: list[np.ndarray] = []
        for key in operand_names:
            low, high = (ranges or {}).get(key, (None, None))
            size = shape if len(arrays) == 0 and draw.bool(0.7) else draw.broadcastable(shape)
            arrays.append(draw.tensor(DType.BOOL if key == "cond" else dtype, size, low, high))
        given: dict[str, Any] = {k: draw.float(*r) for k, r in (attr_ranges or {}).items()}
        if "dtype" in attrs:
            given["dtype"] = draw.choice(ALL)
        return Sample(tuple(arrays), given)

    specs = tuple(Operand(key, typed[key]) for key in operand_names)
    return define(
        OpDef(
            name=name,
            doc=doc or f"{text}, elementwise.",
            operands=specs,
            attrs=attrs,
            infer=infer,
            reference=reference,
            sample=draws or sample,
            dim_links=broadcast_links,
            expr=expr,
            commutative=commutative,
        )
    )


def _unary(names: str, dtypes: tuple[DType, ...], ranges: dict[str, tuple[float, float]] | None = None) -> None:
    for name in names.split():
        elementwise(name, "x", f"{name}(x)", dtypes, doc=f"{name} of each element.", ranges=ranges)


# Arithmetic
elementwise("add", "a b", "a + b", commutative=True)
elementwise("sub", "a b", "a - b")
elementwise("mul", "a b", "a * b", commutative=True)
elementwise("div", "a b", "a / b", FLOATS)
elementwise("floor_div", "a b", "a // b", doc="Quotient rounded towards minus infinity; integer x // 0 is 0.")
elementwise("trunc_div", "a b", "truncdiv(a, b)", INTS, doc="Quotient rounded towards zero; x / 0 is 0.")
elementwise("mod", "a b", "a % b", doc="Remainder with the sign of the divisor; integer x % 0 is 0.")
elementwise("fmod", "a b", "fmod(a, b)", doc="Remainder with the sign of the dividend; integer x fmod 0 is 0.")
elementwise("pow", "a b", "a ** b", FLOATS, ranges={"a": (0.1, 4.0), "b": (-3.0, 3.0)})
elementwise("maximum", "a b", "max(a, b)", commutative=True, doc="The larger of two; NaN if either is NaN.")
elementwise("minimum", "a b", "min(a, b)", commutative=True, doc="The smaller of two; NaN if either is NaN.")
elementwise("atan2", "a b", "atan2(a, b)", FLOATS)
_unary("neg abs", NUMERIC)
elementwise("sign", "x", "select(x > 0, 1, select(x < 0, -1, x * 0))", doc="-1, 0 or 1; NaN stays NaN.")
elementwise("reciprocal", "x", "1 / x", FLOATS)
elementwise("square", "x", "x * x")

# Roots, exponentials, trigonometry, rounding
_unary("exp expm1 log1p tanh erf floor ceil trunc atan asinh cosh sinh", FLOATS)
_unary("sqrt log", FLOATS)
_unary("sin cos tan", FLOATS, {"x": (-20.0, 20.0)})
_unary("asin acos atanh", FLOATS, {"x": (-1.0, 1.0)})
_unary("acosh", FLOATS, {"x": (1.0, 50.0)})
elementwise("rsqrt", "x", "1 / sqrt(x)", FLOATS)
elementwise("round", "x", "round(x)", FLOATS, doc="To the nearest integer, halves to even.")

# Comparison and logic
for _name in ("eq", "ne"):
    elementwise(_name, "a b", f"{_name}(a, b)", ALL, commutative=True)
for _name in ("lt", "le", "gt", "ge"):
    elementwise(_name, "a b", f"{_name}(a, b)", ALL)
elementwise("isnan", "x", "isnan(x)", FLOATS)
elementwise("isinf", "x", "eq(abs(x), inf)", FLOATS)
for _name in ("and", "or", "xor"):
    elementwise(
        f"bit_{_name}",
        "a b",
        f"{_name}(a, b)" if _name == "xor" else "a & b" if _name == "and" else "a | b",
        LOGICAL,
        commutative=True,
        doc=f"Bitwise {_name}; the logical one for bool.",
    )
elementwise("bit_not", "x", "~x", LOGICAL, doc="Bitwise complement; logical negation for bool.")
elementwise("shift_left", "a b", "a << b", INTS, ranges={"b": (0, 7)})
elementwise("shift_right", "a b", "a >> b", INTS, ranges={"b": (0, 7)}, doc="Arithmetic for signed types.")
elementwise("where", "cond a b", "select(cond, a, b)", ALL, doc="a where cond holds, else b.")
elementwise(
    "cast",
    "x",
    "cast(x, dtype)",
    ALL,
    attrs={"dtype": Attr("dtype")},
    doc="To another element type; float to integer truncates and saturates, NaN becomes 0.",
)

# Activations
elementwise("relu", "x", "select(x <= 0, 0, x)")
elementwise(
    "leaky_relu",
    "x",
    "select(x <= 0, x * slope, x)",
    FLOATS,
    attrs={"slope": Attr("float", 0.01)},
    attr_ranges={"slope": (-0.5, 0.5)},
)
elementwise(
    "elu",
    "x",
    "select(x <= 0, alpha * expm1(x * input_scale), x) * scale",
    FLOATS,
    attrs={"alpha": Attr("float", 1.0), "scale": Attr("float", 1.0), "input_scale": Attr("float", 1.0)},
    attr_ranges={"alpha": (0.5, 2.0), "scale": (0.5, 2.0), "input_scale": (0.5, 2.0)},
    doc="ELU; with `scale` SELU, with `input_scale` CELU.",
)
elementwise(
    "clamp",
    "x",
    "min(max(x, low), high)",
    FLOATS,
    attrs={"low": Attr("float", float("-inf")), "high": Attr("float", float("inf"))},
    attr_ranges={"low": (-1.0, 0.0), "high": (0.0, 2.0)},
    doc="Into low..high; NaN stays NaN.",
)
elementwise("sigmoid", "x", "1 / (1 + exp(-x))", FLOATS)
elementwise("silu", "x", "x / (1 + exp(-x))", FLOATS)
elementwise(
    "softplus",
    "x",
    "select(x * beta > threshold, x, log1p(exp(x * beta)) / beta)",
    FLOATS,
    attrs={"beta": Attr("float", 1.0), "threshold": Attr("float", 20.0)},
)
elementwise("mish", "x", "x * tanh(select(x > 20, x, log1p(exp(x))))", FLOATS)
elementwise("gelu", "x", "x * 0.5 * (1 + erf(x * 0.7071067811865476))", FLOATS)
elementwise(
    "gelu_tanh",
    "x",
    "x * 0.5 * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))",
    FLOATS,
    doc="GELU in its tanh approximation.",
)
elementwise(
    "hard_sigmoid",
    "x",
    "min(max(x * alpha + beta, 0), 1)",
    FLOATS,
    attrs={"alpha": Attr("float", 1 / 6), "beta": Attr("float", 0.5)},
)
elementwise("hard_swish", "x", "x * (min(max(x + 3, 0), 6) / 6)", FLOATS)
