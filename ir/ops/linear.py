"""Products: matmul, linear, einsum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from secateur.ir.draw import Draw, Sample
from secateur.ir.graph import Op, Value
from secateur.ir.opdef import Attr, DimLink, OpDef, define, operands
from secateur.ir.ops._common import BYTES, check_same_dtype, in_f32, multiply, product_type, wide
from secateur.ir.ops.elementwise import broadcast
from secateur.ir.types import FLOATS, NUMERIC, DType, TensorType, numel

if TYPE_CHECKING:
    from secateur.ir.builder import Builder

Ints = tuple[int, ...]


# matmul -------------------------------------------------------------------------------------------


def _infer_matmul(a: TensorType, b: TensorType) -> TensorType:
    dtype = product_type([a, b])
    if a.rank < 2 or b.rank < 2:
        raise ValueError("operands need at least two dimensions")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"the last dimension of a, {a.shape[-1]}, is not the last but one of b, {b.shape[-2]}")
    return TensorType(dtype, (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]))


def _matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    result = multiply(a, b)
    return result if a.dtype.itemsize == 1 else result.astype(a.dtype)


def _matmul_links(op: Op) -> list[DimLink]:
    rank, shape = op.results[0].type.rank, op.results[0].shape
    links = []
    for position, value in enumerate(op.operands):
        offset = rank - value.type.rank
        links += [DimLink(position, d, d + offset) for d, n in enumerate(value.shape[:-2]) if n == shape[d + offset]]
    a, b = op.operands
    return [*links, DimLink(0, a.type.rank - 2, rank - 2), DimLink(1, b.type.rank - 1, rank - 1)]


def _sample_matmul(draw: Draw) -> Sample:
    batch = draw.shape(0, 2, numel=12)
    m, k, n = (0 if draw.bool(0.02) else draw.size() for _ in range(3))
    dtype = draw.choice((*FLOATS, *FLOATS, *BYTES, DType.I32, DType.I64))
    other = draw.choice(BYTES) if dtype in BYTES else dtype
    a, b = (*draw.broadcastable(batch), m, k), (*draw.broadcastable(batch), k, n)
    return Sample((draw.tensor(dtype, a), draw.tensor(other, b)))


define(
    OpDef(
        name="matmul",
        doc="[..., M, K] x [..., K, N] -> [..., M, N]; the batch dimensions broadcast. Integers wrap; "
        "8-bit operands (of either sign) give i32.",
        operands=operands("a b", a=NUMERIC, b=NUMERIC),
        infer=_infer_matmul,
        reference=_matmul,
        sample=_sample_matmul,
        flops=lambda op: 2 * op.results[0].type.numel * op.operands[0].shape[-1],
        dim_links=_matmul_links,
    )
)


# linear -------------------------------------------------------------------------------------------


def _infer_linear(x: TensorType, w: TensorType, bias: TensorType | None = None) -> TensorType:
    dtype = product_type([t for t in (x, w, bias) if t])
    if x.rank < 1 or w.rank != 2 or x.shape[-1] != w.shape[1]:
        raise ValueError("x must be [..., K] and w [N, K]")
    if bias and bias.shape != w.shape[:1]:
        raise ValueError(f"bias must be [{w.shape[0]}]")
    return TensorType(dtype, (*x.shape[:-1], w.shape[0]))


def _linear(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    result = multiply(x, w.T, bias)
    return result if x.dtype.itemsize == 1 else result.astype(x.dtype)


def _linear_links(op: Op) -> list[DimLink]:
    last = op.results[0].type.rank - 1
    links = [DimLink(0, dim, dim) for dim in range(last)]
    return links + [DimLink(position, 0, last) for position in range(1, len(op.operands))]


def _decompose_linear(b: Builder, op: Op) -> list[Value]:
    """A matmul with the transposed weight on x flattened to two dimensions, and an add."""

    def build(x: Value, w: Value, *bias: Value) -> Value:
        rows = b.reshape(x, shape=[numel(x.shape[:-1]), x.shape[-1]])
        result = b.matmul(rows, b.transpose(w, perm=[1, 0]))
        result = b.add(result, bias[0]) if bias else result
        return b.reshape(result, shape=op.results[0].shape)

    return in_f32(b, op, build)


def _sample_linear(draw: Draw) -> Sample:
    dtype, n = draw.choice((*FLOATS, *FLOATS, DType.I32, *BYTES)), draw.size()
    lead, k = draw.shape(0, 3, numel=128), draw.size()
    narrow = dtype in BYTES
    arrays = [draw.tensor(dtype, (*lead, k)), draw.tensor(DType.I8 if narrow else dtype, (n, k))]
    bias = DType.I32 if narrow else dtype
    return Sample((*arrays, draw.tensor(bias, (n,))) if draw.bool() else tuple(arrays))


define(
    OpDef(
        name="linear",
        doc="x [..., K], w [N, K], bias [N] -> x @ w.T + bias, [..., N]. 8-bit x and w with an i32 bias give i32.",
        operands=operands("x w bias?", x=NUMERIC, w=NUMERIC, bias=NUMERIC),
        infer=_infer_linear,
        reference=_linear,
        sample=_sample_linear,
        flops=lambda op: op.results[0].type.numel * (2 * op.operands[1].shape[1] + len(op.operands) - 2),
        dim_links=_linear_links,
        decompose=_decompose_linear,
    )
)


# einsum -------------------------------------------------------------------------------------------


def split_equation(equation: str) -> tuple[list[str], str]:
    """`"ij,jk->ik"` -> (["ij", "jk"], "ik"); raises `ValueError` on what is not explicit letters."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or not all(c.isascii() and c.isalpha() for c in "".join(terms) + right):
        raise ValueError(f"equation {equation!r} must be of the form 'ij,jk->ik'")
    unknown = set(right) - set("".join(terms))
    if unknown or len(set(right)) != len(right):
        raise ValueError(f"equation {equation!r}: each result label occurs once, and in an operand")
    return terms, right


def _label_sizes(terms: list[str], shapes: list[Ints]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        if len(term) != len(shape):
            raise ValueError(f"{term!r} labels an operand of {len(shape)} dimensions")
        for label, size in zip(term, shape, strict=True):
            if sizes.setdefault(label, size) != size:
                raise ValueError(f"label {label!r} stands for {sizes[label]} and for {size}")
    return sizes


def _infer_einsum(*types: TensorType, equation: str) -> TensorType:
    terms, result = split_equation(equation)
    if len(terms) != len(types):
        raise ValueError(f"equation {equation!r} has {len(terms)} operands")
    check_same_dtype(types)
    sizes = _label_sizes(terms, [type.shape for type in types])
    return types[0].with_shape([sizes[label] for label in result])


def _einsum(*xs: np.ndarray, equation: str) -> np.ndarray:
    result = np.einsum(equation, *map(wide, xs), optimize=len(xs) > 1)
    return np.asarray(result).astype(xs[0].dtype)


def _einsum_links(op: Op) -> list[DimLink]:
    terms, result = split_equation(op.attrs["equation"])
    return [
        DimLink(position, dim, result.index(label))
        for position, term in enumerate(terms)
        for dim, label in enumerate(term)
        if label in result
    ]


def _einsum_flops(op: Op) -> int:
    terms, _ = split_equation(op.attrs["equation"])
    sizes = _label_sizes(terms, [value.shape for value in op.operands])
    return 2 * math.prod(sizes.values()) * max(1, len(terms) - 1)


def _diagonals(b: Builder, x: Value, term: str) -> tuple[Value, str]:
    """Take the diagonal of labels that repeat: two such dimensions of size n merge, and every (n+1)-th stays."""
    while len(set(term)) < len(term):
        first = next(i for i, label in enumerate(term) if label in term[i + 1 :])
        second = term.index(term[first], first + 1)
        rest = [i for i in range(len(term)) if i not in (first, second)]
        size = x.shape[first]
        x = b.transpose(x, perm=[*rest, first, second])
        x = b.reshape(x, shape=[*x.shape[:-2], size * size])
        x = b.slice(x, starts=[0] * x.type.rank, stops=x.shape, steps=[1] * len(rest) + [size + 1])
        term = "".join(term[i] for i in rest) + term[first]
    return x, term


def _sum_away(b: Builder, x: Value, term: str, keep: set[str]) -> tuple[Value, str]:
    axes = [i for i, label in enumerate(term) if label not in keep]
    kept = "".join(label for label in term if label in keep)
    return (b.reduce_sum(x, axes=axes) if axes else x), kept


def _contract(b: Builder, x: Value, a: str, y: Value, c: str, keep: set[str]) -> tuple[Value, str]:
    """Join two operands as one batched matmul: shared labels are batch if kept, else contracted."""
    shared = [label for label in a if label in c]
    batch = [label for label in shared if label in keep]
    inner = [label for label in shared if label not in keep]
    rows = [label for label in a if label not in shared]
    columns = [label for label in c if label not in shared]
    sizes = dict(zip(a, x.shape, strict=True)) | dict(zip(c, y.shape, strict=True))

    def matrix(value: Value, term: str, groups: tuple[list[str], ...]) -> Value:
        value = b.transpose(value, perm=[term.index(label) for group in groups for label in group])
        return b.reshape(value, shape=[numel(tuple(sizes[label] for label in g)) for g in groups])

    product = b.matmul(matrix(x, a, (batch, rows, inner)), matrix(y, c, (batch, inner, columns)))
    if product.type.dtype is not x.type.dtype:  # 8-bit operands: the sum modulo 2^8
        product = b.cast(product, dtype=x.type.dtype)
    labels = "".join(batch + rows + columns)
    return b.reshape(product, shape=[sizes[label] for label in labels]), labels


def _decompose_einsum(b: Builder, op: Op) -> list[Value]:
    """Left to right: diagonals, sums over labels nothing else has, then one matmul for each further operand."""
    terms, result = split_equation(op.attrs["equation"])

    def build(*xs: Value) -> Value:
        items = [_diagonals(b, x, term) for x, term in zip(xs, terms, strict=True)]
        keep = set(result).union(*(set(term) for _, term in items[1:]))
        x, labels = _sum_away(b, *items[0], keep)
        for position, (y, term) in enumerate(items[1:], 1):
            later = set(result).union(*(set(t) for _, t in items[position + 1 :]))
            y, term = _sum_away(b, y, term, later | set(labels))
            x, labels = _contract(b, x, labels, y, term, later)
        x, labels = _sum_away(b, x, labels, set(result))
        return b.transpose(x, perm=[labels.index(label) for label in result])

    return in_f32(b, op, build)


def _sample_einsum(draw: Draw) -> Sample:
    dtype = draw.choice((DType.F32, DType.F64, DType.F16, DType.BF16, DType.I32))
    letters = "abcdef"
    sizes = {label: 0 if draw.bool(0.01) else draw.size(5) for label in letters}
    terms = []
    for _ in range(draw.choice([1, 2, 2, 2, 3])):
        term = "".join(letters[i] for i in draw.permutation(6)[: draw.int(0, 3)])
        terms.append(term + term[0] if term and draw.bool(0.15) else term)
    known = sorted(set("".join(terms)))
    result = "".join(known[i] for i in draw.permutation(len(known))[: draw.int(0, min(4, len(known)))])
    arrays = tuple(draw.tensor(dtype, [sizes[label] for label in term], -2, 2) for term in terms)
    return Sample(arrays, {"equation": ",".join(terms) + "->" + result})


define(
    OpDef(
        name="einsum",
        doc="Sum of products after `equation`, e.g. 'bij,bjk->bik': letters and an explicit result, no ellipsis.",
        operands=operands("xs*", xs=NUMERIC),
        attrs={"equation": Attr("str")},
        infer=_infer_einsum,
        reference=_einsum,
        sample=_sample_einsum,
        flops=_einsum_flops,
        dim_links=_einsum_links,
        decompose=_decompose_einsum,
    )
)
