"""Matrix products."""

from __future__ import annotations

import string
from collections import Counter

from secateur.frontends.onnx.node import Node, row
from secateur.ir.graph import Value


def product(n: Node, a: Value, b: Value) -> Value:
    """numpy.matmul: a vector operand is a row on the left, a column on the right, and leaves no dimension."""
    left, right = a.type.rank == 1, b.type.rank == 1
    a = n.reshape(a, (1, *a.shape)) if left else a
    b = n.reshape(b, (*b.shape, 1)) if right else b
    made = n.b.matmul(a, b)
    shape = list(made.shape)
    if right:
        del shape[-1]
    if left:
        del shape[-1 if right else -2]
    return n.reshape(made, shape)


@row("MatMul")
def matmul(n: Node) -> Value:
    return product(n, n.x(0), n.x(1))


@row("Gemm")
def gemm(n: Node) -> Value:
    """alpha * A B + beta * C, each factor transposed or not. With a transposed B and a plain bias it is `linear`."""
    a, b, c = n.x(0), n.x(1), n.opt(2)
    alpha, beta = n.attr("alpha", 1.0), n.attr("beta", 1.0)
    a = n.transpose(a, (1, 0)) if n.attr("transA", 0) else a
    if c is not None and beta != 1:
        c = n.b.mul(c, n.scalar_like(beta, c))
    if n.attr("transB", 0):
        if alpha == 1 and c is not None and c.shape == (b.shape[0],):
            return n.b.linear(a, b, c)
        made = n.b.linear(a, b)
    else:
        made = n.b.matmul(a, b)
    made = made if alpha == 1 else n.b.mul(made, n.scalar_like(alpha, made))
    return made if c is None else n.b.add(made, c)


@row("Einsum")
def einsum(n: Node) -> Value:
    values = n.all()
    return n.b.einsum(*values, equation=explicit_equation(n, n.need("equation"), [v.type.rank for v in values]))


def explicit_equation(n: Node, equation: str, ranks: list[int]) -> str:
    """With `->` and letters in place of an ellipsis, whose dimensions lead the result where it is implicit."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise n.fail(f"equation {equation!r} has {len(terms)} operands, {len(ranks)} are given")
    hidden = [rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True) if "..." in t]
    free = [letter for letter in string.ascii_letters if letter not in equation][: max(hidden, default=0)]
    if not arrow:
        counts = Counter(left.replace(",", "").replace(".", ""))
        right = ("..." if hidden else "") + "".join(sorted(letter for letter, count in counts.items() if count == 1))
    if len(set(hidden)) > 1:
        raise n.fail(f"equation {equation!r}: an ellipsis of different ranks is not supported")
    return f"{','.join(terms)}->{right}".replace("...", "".join(free))
