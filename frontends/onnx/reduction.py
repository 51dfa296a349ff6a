"""Reductions, arg-reductions, running sums, top-k."""

from __future__ import annotations

import numpy as np

from secateur.frontends.onnx.node import Node, row
from secateur.ir.graph import Value
from secateur.ir.types import DType

# ONNX op type -> (ours for numbers, ours for bool)
PLAIN = {
    "ReduceSum": ("reduce_sum", ""),
    "ReduceMean": ("reduce_mean", ""),
    "ReduceMax": ("reduce_max", "reduce_any"),
    "ReduceMin": ("reduce_min", "reduce_all"),
    "ReduceProd": ("reduce_prod", ""),
}


def reduce_axes(n: Node) -> tuple[int, ...]:
    """The axes, an attribute up to opset 17 (12 for ReduceSum) and an input after; none given means all."""
    rank = n.x().type.rank
    given = n.ints(1) if n.has(1) else n.attr("axes", ())
    if not given and n.attr("noop_with_empty_axes", 0):
        return ()
    return n.axes(given, rank) if given else tuple(range(rank))


def reduce(n: Node, ours: str, x: Value, axes: tuple[int, ...], keepdims: bool | None = None) -> Value:
    keep = bool(n.attr("keepdims", 1)) if keepdims is None else keepdims
    return n.b.op(ours, (x,), {"axes": axes, "keepdims": keep}).result


@row(*PLAIN)
def plain(n: Node) -> Value:
    x, axes = n.x(), reduce_axes(n)
    number, boolean = PLAIN[n.name]
    if n.name in ("ReduceMax", "ReduceMin") and 0 in [x.shape[axis] for axis in axes]:
        return _of_nothing(n, x, axes)
    if n.name == "ReduceMean" and x.type.dtype.is_int:
        count = int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64))
        return n.b.trunc_div(reduce(n, "reduce_sum", x, axes), n.scalar_like(count, x))
    return reduce(n, boolean if x.type.dtype is DType.BOOL and boolean else number, x, axes)


def _of_nothing(n: Node, x: Value, axes: tuple[int, ...]) -> Value:
    """The largest (smallest) of no elements is the smallest (largest) number of the type."""
    least = n.name == "ReduceMax"
    dtype = x.type.dtype
    if dtype is DType.BOOL:
        number: float = not least
    elif dtype.is_float:
        number = -np.inf if least else np.inf
    else:
        number = np.iinfo(dtype.numpy).min if least else np.iinfo(dtype.numpy).max
    keep = bool(n.attr("keepdims", 1))
    shape = [1 if dim in axes else size for dim, size in enumerate(x.shape) if keep or dim not in axes]
    return n.expand(n.scalar_like(number, x), shape)


@row("ReduceL1")
def reduce_l1(n: Node) -> Value:
    return reduce(n, "reduce_sum", n.b.abs(n.x()), reduce_axes(n))


@row("ReduceL2")
def reduce_l2(n: Node) -> Value:
    x = n.x()
    wide = x if x.type.dtype.is_float else n.cast(x, DType.F64)
    return n.cast(n.b.sqrt(reduce(n, "reduce_sum", n.b.square(wide), reduce_axes(n))), x.type.dtype)


@row("ReduceSumSquare")
def reduce_sum_square(n: Node) -> Value:
    return reduce(n, "reduce_sum", n.b.square(n.x()), reduce_axes(n))


@row("ReduceLogSum")
def reduce_log_sum(n: Node) -> Value:
    x = n.x()
    wide = x if x.type.dtype.is_float else n.cast(x, DType.F64)
    return n.cast(n.b.log(reduce(n, "reduce_sum", wide, reduce_axes(n))), x.type.dtype)


@row("ReduceLogSumExp")
def reduce_log_sum_exp(n: Node) -> Value:
    """Shifted by the maximum, so that exp does not overflow; an infinite maximum must not shift (inf - inf)."""
    given, axes = n.x(), reduce_axes(n)
    x = given if given.type.dtype.is_float else n.cast(given, DType.F64)
    if 0 in x.shape:
        return n.cast(n.b.log(reduce(n, "reduce_sum", n.b.exp(x), axes)), given.type.dtype)
    most = reduce(n, "reduce_max", x, axes, keepdims=True)
    finite = n.b.where(n.b.isinf(most), n.scalar_like(0, x), most)
    total = reduce(n, "reduce_sum", n.b.exp(n.b.sub(x, finite)), axes)
    return n.cast(n.b.add(n.b.log(total), n.reshape(finite, total.shape)), given.type.dtype)


@row("ArgMax", "ArgMin")
def arg_reduction(n: Node) -> Value:
    """`select_last_index` looks from the other end."""
    x = n.x()
    axis = n.axis(n.attr("axis", 0), x.type.rank)
    attrs = {"axis": axis, "keepdims": bool(n.attr("keepdims", 1))}
    if not n.attr("select_last_index", 0):
        return n.b.op(n.name.lower(), (x,), attrs).result
    found = n.b.op(n.name.lower(), (n.b.flip(x, axes=(axis,)),), attrs).result
    return n.b.sub(n.scalar_like(x.shape[axis] - 1, found), found)


@row("CumSum", "CumProd")
def cumulative(n: Node) -> Value:
    x = n.x()
    axis = n.axis(int(n.scalar(1)), x.type.rank)
    attrs = {"axis": axis, "exclusive": bool(n.attr("exclusive", 0)), "reverse": bool(n.attr("reverse", 0))}
    return n.b.op(n.name.lower(), (x,), attrs).result


@row("TopK")
def topk(n: Node) -> list[Value]:
    """k is an attribute up to opset 9. Results are sorted whether asked for or not."""
    x = n.x()
    k = int(n.scalar(1)) if n.version >= 10 else n.need("k")
    axis = n.axis(n.attr("axis", -1), x.type.rank)
    return list(n.b.topk(x, k=k, axis=axis, largest=bool(n.attr("largest", 1))))
