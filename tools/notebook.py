"""What a notebook shows of a graph: `Graph._repr_mimebundle_` finds `svg` by an entry point of this package."""

from __future__ import annotations

import shutil

from secateur.ir.graph import Graph
from secateur.tools.picture import draw

MOST_OPS = 300  # beyond that, Graphviz takes longer than anybody waits, and nobody sees anything


def svg(graph: Graph) -> str | None:
    """The picture of a graph; None where it is too large for one, or Graphviz is not installed."""
    if shutil.which("dot") is None or sum(1 for _ in graph.walk()) > MOST_OPS:
        return None
    picture = draw(graph).pipe(format="svg").decode()
    return picture[picture.index("<svg") :]
