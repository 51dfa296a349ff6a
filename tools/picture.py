"""A graph as a picture: operations coloured by family, fusions as boxes, shapes on the edges.

Names of nodes are made up (`n12`); everything that comes from the model goes through
`_text`, so that no name can be read as DOT or HTML.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import graphviz
import numpy as np

from secateur.ir.graph import Graph, Op, Value, bodies
from secateur.ir.opdef import lookup
from secateur.tools.console import size

# Family -> fill colour and operations; what is listed nowhere is elementwise or "other".
FAMILIES: dict[str, tuple[str, str]] = {
    "linear algebra": ("#a8d5ba", "matmul linear linear_grouped einsum conv conv_transpose attention"),
    "normalisation": ("#f6d6a8", "softmax log_softmax layer_norm rms_norm group_norm batch_norm"),
    "reduction": ("#f2b5a7", "argmax argmin cumsum cumprod topk sort max_pool avg_pool"),
    "movement": ("#d9d9d9", "reshape transpose broadcast_to slice flip concat pad resize"),
    "indexing": ("#d3c0e8", "gather gather_elements gather_nd scatter_elements scatter_nd"),
    "elementwise": ("#b7d0ee", ""),
    "other": ("#ffffff", ""),
}
_FAMILY = {name: family for family, (_, names) in FAMILIES.items() for name in names.split()}
MOST_ATTRS = 60
# Attributes that the type of the result already tells.
SHOWN_BY_TYPE = {"reshape": ("shape",), "broadcast_to": ("shape",), "cast": ("dtype",), "resize": ("size",)}


def family(name: str) -> str:
    """The family of an operation, for its colour."""
    if name in _FAMILY:
        return _FAMILY[name]
    if name.startswith("reduce_"):
        return "reduction"
    return "elementwise" if lookup(name).elementwise else "other"


def _text(text: str) -> str:
    """Text that is shown as it is: no escapes, no HTML, no entities."""
    return graphviz.escape(text.replace("&", "&amp;"))


def draw(graph: Graph, *, title: str = "") -> graphviz.Digraph:
    """The picture of a graph; `str()` of it is DOT."""
    dot = graphviz.Digraph("graph", engine="dot")
    drawn = sum(op.name not in ("constant", "fusion") for op in graph.walk())
    label = _text(title or f"@{graph.name}: {drawn} operations")
    dot.attr("graph", label=label, labelloc="t", fontname="Helvetica", fontsize="14", ranksep="0.3", nodesep="0.2")
    dot.attr("node", fontname="Helvetica", fontsize="11", shape="box", style="rounded,filled", margin="0.12,0.05")
    dot.attr("edge", fontname="Helvetica", fontsize="9", fontcolor="#555555", color="#777777", arrowsize="0.6")
    _Drawing(dot).whole(graph)
    return dot


@dataclass
class _Drawing:
    """What has been drawn: the node of each value, the constants that enter bodies, and a counter that names nodes."""

    dot: graphviz.Digraph
    nodes: dict[Value, str] = field(default_factory=dict)
    constants: dict[Value, Op] = field(default_factory=dict)
    count: int = 0

    def node(self, into: graphviz.Digraph, label: str, **style: str) -> str:
        self.count += 1
        into.node(f"n{self.count}", _text(label), **style)
        return f"n{self.count}"

    def whole(self, graph: Graph) -> None:
        for index, value in enumerate(graph.inputs):
            label = f"{value.hint or f'input {index}'}\n{value.type}"
            self.nodes[value] = self.node(self.dot, label, shape="ellipse", fillcolor="#ffffff", penwidth="1.6")
        self.body(graph, self.dot)
        for index, value in enumerate(graph.outputs):
            label = "result" if len(graph.outputs) == 1 else f"result {index}"
            node = self.node(self.dot, f"{label}\n{value.type}", shape="ellipse", fillcolor="#ffffff", penwidth="1.6")
            self.edge(value, node)

    def body(self, graph: Graph, into: graphviz.Digraph) -> None:
        for op in graph.ops:
            if op.name == "constant":
                continue  # drawn beside each of its users, so that no edge crosses the picture
            inner = bodies(op)
            if inner:
                self.box(op, inner[0], into)
            else:
                self.operation(op, into)

    def box(self, op: Op, inner: Graph, into: graphviz.Digraph) -> None:
        """An operation with a body: a box around the body, whose edges lead straight to what is inside."""
        self.count += 1
        with into.subgraph(name=f"cluster{self.count}") as cluster:
            kind = op.attrs.get("kind", "")
            cluster.attr(label=_text(f"{op.name}: {kind}" if kind else op.name), style="rounded,filled")
            cluster.attr(color="#8a8a8a", fillcolor="#f5f5f0", fontsize="10", fontcolor="#444444", margin="10")
            self.inside(op, inner, cluster)

    def inside(self, op: Op, inner: Graph, cluster: graphviz.Digraph) -> None:
        for parameter, value in zip(inner.inputs, op.operands, strict=True):
            known = self.known_constant(value)
            if known:
                self.constants[parameter] = known
            else:
                self.nodes[parameter] = self.nodes[value]
        self.body(inner, cluster)
        for result, value in zip(op.results, inner.outputs, strict=True):
            known = self.known_constant(value)
            self.nodes[result] = self.constant(known, cluster) if known else self.nodes[value]

    def known_constant(self, value: Value) -> Op | None:
        """The constant behind a value, also where it enters a body as a parameter."""
        return value.op if value.op and value.op.name == "constant" else self.constants.get(value)

    def operation(self, op: Op, into: graphviz.Digraph) -> None:
        fill = FAMILIES[family(op.name)][0]
        label = "\n".join([op.name, *attributes(op), *([op.span.module] if op.span and op.span.module else [])])
        node = self.node(into, label, fillcolor=fill, color="#666666")
        for value in op.operands:
            known = self.known_constant(value)
            if known:
                into.edge(self.constant(known, into, op), node, arrowhead="none", style="dotted")
            else:
                self.edge(value, node)
        for result in op.results:
            self.nodes[result] = node

    def constant(self, op: Op, into: graphviz.Digraph, user: Op | None = None) -> str:
        style = {"shape": "plain", "style": "", "fontsize": "8", "fontcolor": "#666666"}
        module = user.span.module if user and user.span else ""
        return self.node(into, constant_label(op, module), **style)

    def edge(self, value: Value, node: str) -> None:
        known = self.known_constant(value)
        if known:
            self.nodes[value] = self.constant(known, self.dot)
        self.dot.edge(self.nodes[value], node, label=_text(f" {value.type}"))


def constant_label(op: Op, module: str = "") -> str:
    """A small constant's numbers, or a large one's name (without its user's module) and type."""
    value: np.ndarray = op.attrs["value"]
    if value.size <= 4:
        return ", ".join(f"{item:.4g}" if value.dtype.kind == "f" else str(item) for item in value.reshape(-1))
    name = op.attrs["name"].removeprefix(f"{module}.")
    return f"{name}\n{op.result.type}" if name else f"{op.result.type}, {size(value.nbytes)}"


def attributes(op: Op) -> list[str]:
    """The attributes that differ from their defaults, on lines of bounded width."""
    known = lookup(op.name).attrs
    lines: list[str] = []
    for key, value in _visible(op):
        if (key in known and value == known[key].default) or key in SHOWN_BY_TYPE.get(op.name, ()):
            continue
        text = f"{key}={_short(value)}"
        if lines and len(lines[-1]) + len(text) < 28:
            lines[-1] += f" {text}"
        else:
            lines.append(text[:MOST_ATTRS])
    return lines


def _visible(op: Op) -> Iterator[tuple[str, Any]]:
    yield from ((key, value) for key, value in op.attrs.items() if not isinstance(value, (Graph, np.ndarray)))


def _short(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{','.join(map(_short, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
