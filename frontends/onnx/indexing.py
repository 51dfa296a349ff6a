"""Gather and scatter. Where ONNX forbids indices out of range, ours clamp them."""

from __future__ import annotations

import numpy as np

from secateur.frontends.onnx.node import Node, row
from secateur.ir.graph import Value

REDUCTIONS = ("none", "add", "mul", "max", "min")


@row("Gather")
def gather(n: Node) -> Value:
    x = n.x(0)
    return n.b.gather(x, n.x(1), axis=n.axis(n.attr("axis", 0), x.type.rank))


@row("GatherElements")
def gather_elements(n: Node) -> Value:
    x = n.x(0)
    return n.b.gather_elements(x, n.x(1), axis=n.axis(n.attr("axis", 0), x.type.rank))


@row("GatherND")
def gather_nd(n: Node) -> Value:
    return n.b.gather_nd(n.x(0), n.x(1), batch_dims=n.attr("batch_dims", 0))


@row("ScatterElements", "Scatter")
def scatter_elements(n: Node) -> Value:
    n.refuse("reduction", *REDUCTIONS)
    x = n.x(0)
    axis = n.axis(n.attr("axis", 0), x.type.rank)
    return n.b.scatter_elements(x, n.x(1), n.x(2), axis=axis, reduction=n.attr("reduction", "none"))


@row("ScatterND")
def scatter_nd(n: Node) -> Value:
    n.refuse("reduction", *REDUCTIONS)
    return n.b.scatter_nd(n.x(0), n.x(1), n.x(2), reduction=n.attr("reduction", "none"))


@row("Compress")
def compress(n: Node) -> Value:
    """By a constant condition: otherwise the shape depends on the data."""
    x, chosen = n.x(0), np.flatnonzero(n.const(1)).astype(np.int64)
    if "axis" not in n.attrs:
        x = n.reshape(x, (x.type.numel,))
    return n.b.gather(x, n.b.constant(chosen), axis=n.axis(n.attr("axis", 0), x.type.rank))
