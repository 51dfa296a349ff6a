"""Matrix products, convolution and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from secateur.frontends.aten.base import Context, Number, Unsupported, aten, spread
from secateur.frontends.aten.elementwise import add
from secateur.ir.graph import Value
from secateur.ir.types import DType

# Products -----------------------------------------------------------------------------------------


@aten("linear")
def linear(cx: Context, x: Value, weight: Value, bias: Value | None = None) -> Any:
    if weight.type.rank == 1:
        result = matmul(cx, x, weight)
        return result if bias is None else cx.b.add(result, bias)
    if x.type.rank == 1:
        wide = cx.reshape(x, (1, x.type.numel))
        return cx.reshape(linear(cx, wide, weight, bias), cx.shape)
    if x.type.dtype in (DType.I8, DType.U8):
        result = matmul(cx, x, cx.transpose(weight, (1, 0)))
        return result if bias is None else cx.b.add(result, bias)
    return cx.b.linear(x, weight) if bias is None else cx.b.linear(x, weight, bias)


@aten("mm", "bmm", "matmul", "mv", "dot", "vdot", "inner")
def matmul(cx: Context, a: Value, b: Value) -> Any:
    """A vector on the left is a row, on the right a column; the dimension it gained goes again."""
    left = cx.reshape(a, (1, *a.shape)) if a.type.rank == 1 else a
    right = cx.reshape(b, (*b.shape, 1)) if b.type.rank == 1 else b
    result = cx.b.matmul(left, right)
    if result.type.dtype is not a.type.dtype:  # torch keeps 8-bit sums in 8 bits
        result = cx.b.cast(result, dtype=a.type.dtype)
    shape = list(result.shape)
    if a.type.rank == 1:
        del shape[-2]
    if b.type.rank == 1:
        del shape[-1]
    return cx.reshape(result, shape)


@aten("addmm", "addmv", "baddbmm", "addbmm")
def addmm(cx: Context, bias: Value, a: Value, b: Value, beta: Number = 1, alpha: Number = 1) -> Any:
    """beta * bias + alpha * (a @ b), with a constant `b` and a row of bias a linear layer."""
    constant = b.op is not None and b.op.name == "constant"
    if constant and a.type.rank == b.type.rank == 2 and bias.shape == (b.shape[1],) and beta == alpha == 1:
        return cx.b.linear(a, cx.transpose(b, (1, 0)), bias)
    product = matmul(cx, a, b)
    if cx.overload.startswith("addbmm"):
        product = cx.b.reduce_sum(product, axes=(0,), keepdims=False)
    if beta != 1:
        bias = cx.b.mul(bias, cx.value(beta, bias.type.dtype))
    return add(cx, bias, product, alpha) if beta else add(cx, 0, product, alpha)


@aten("einsum")
def einsum(cx: Context, equation: str, tensors: Sequence[Value], _: Any = None) -> Any:
    return cx.b.einsum(*tensors, equation=_explicit(equation, tensors))


def _explicit(equation: str, tensors: Sequence[Value]) -> str:
    """The equation with `->` written out and every `...` replaced by letters of its own."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if letter not in equation]
    counts = [t.type.rank - len(term.replace("...", "")) for term, t in zip(terms, tensors, strict=True)]
    wild = "".join(free[: max(counts)])
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        right = ("..." if "..." in left else "") + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    filled = [term.replace("...", wild[len(wild) - n :]) for term, n in zip(terms, counts, strict=True)]
    return f"{','.join(filled)}->{right.replace('...', wild)}"


@aten("bilinear")
def bilinear(cx: Context, a: Value, b: Value, weight: Value, bias: Value | None = None) -> Any:
    lead = a.shape[:-1]
    left, right = cx.reshape(a, (math.prod(lead), a.shape[-1])), cx.reshape(b, (math.prod(lead), b.shape[-1]))
    result = cx.reshape(cx.b.einsum(left, weight, right, equation="ni,oij,nj->no"), cx.shape)
    return result if bias is None else cx.b.add(result, bias)


# Convolution --------------------------------------------------------------------------------------

Ints = int | Sequence[int]


def _conv(
    cx: Context,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Ints,
    low: Sequence[int],
    high: Sequence[int],
    dilation: Ints,
    groups: int,
) -> Any:
    n = weight.type.rank - 2
    batched = x if x.type.rank == n + 2 else cx.reshape(x, (1, *x.shape))
    operands = (batched, weight) if bias is None else (batched, weight, bias)
    result = cx.b.conv(
        *operands,
        stride=spread(stride, n),
        padding=(*low, *high),
        dilation=spread(dilation, n),
        groups=groups,
    )
    return cx.reshape(result, cx.shape)


@aten("conv1d", "conv2d", "conv3d")
def conv(
    cx: Context,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Any:
    sides = spread(padding, weight.type.rank - 2)
    return _conv(cx, x, weight, bias, stride, sides, sides, dilation, groups)


@aten("conv1d.padding", "conv2d.padding", "conv3d.padding")
def conv_named_padding(
    cx: Context,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Ints = 1,
    padding: str = "valid",
    dilation: Ints = 1,
    groups: int = 1,
) -> Any:
    """`same` puts the odd element behind, as PyTorch does."""
    n = weight.type.rank - 2
    total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(spread(dilation, n), weight.shape[2:])]
    low = [t // 2 for t in total]
    return _conv(cx, x, weight, bias, stride, low, [t - s for t, s in zip(total, low)], dilation, groups)


@aten("convolution")
def convolution(
    cx: Context,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
) -> Any:
    if transposed:
        return conv_transpose(cx, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(cx, x, weight, bias, stride, padding, dilation, groups)


@aten("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input")
def conv_transpose(
    cx: Context,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Any:
    n = weight.type.rank - 2
    batched = x if x.type.rank == n + 2 else cx.reshape(x, (1, *x.shape))
    operands = (batched, weight) if bias is None else (batched, weight, bias)
    result = cx.b.conv_transpose(
        *operands,
        stride=spread(stride, n),
        padding=spread(padding, n) * 2,
        output_padding=spread(output_padding, n),
        dilation=spread(dilation, n),
        groups=groups,
    )
    return cx.reshape(result, cx.shape)


# Attention ----------------------------------------------------------------------------------------


@aten("scaled_dot_product_attention")
def attention(
    cx: Context,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
    grouped: bool = False,
) -> Any:
    """q: [..., H, S, D], k: [..., Hkv, T, D], v: [..., Hkv, T, Dv]; H != Hkv only when `grouped`."""
    if dropout:
        raise Unsupported("with dropout; call model.eval() before the export")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if q.type.rank == 2:
        q, k, v = (cx.reshape(x, (1, *x.shape)) for x in (q, k, v))
    if not grouped:
        lead = max((x.shape[:-2] for x in (q, k, v)), key=lambda s: (len(s), math.prod(s)))
        q, k, v = (cx.broadcast(x, (*lead, *x.shape[-2:])) for x in (q, k, v))
    if mask is not None and mask.type.dtype is not DType.BOOL:
        mask = cx.cast(mask, q.type.dtype)
    operands = (q, k, v) if mask is None else (q, k, v, mask)
    return cx.reshape(cx.b.attention(*operands, scale=float(scale), causal=causal), cx.shape)
