"""A graph in a notebook."""

from __future__ import annotations

import shutil

import pytest

from secateur.ir.text import parse
from secateur.tools import notebook

TEXT = "graph @m(%x: f32[4]) -> (f32[4]) {\n  %0 = relu(%x) : f32[4]\n  return %0\n}\n"


@pytest.mark.skipif(not shutil.which("dot"), reason="Graphviz is not installed")
def test_a_graph_shows_itself() -> None:
    shown = parse(TEXT)._repr_mimebundle_()
    assert shown["text/plain"] == TEXT
    assert shown["image/svg+xml"].startswith("<svg") and "relu" in shown["image/svg+xml"]


def test_without_graphviz_there_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert parse(TEXT)._repr_mimebundle_() == {"text/plain": TEXT}


def test_a_large_graph_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "MOST_OPS", 0)
    assert notebook.svg(parse(TEXT)) is None
