"""Pictures: boxes, shapes, and names that stay data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from secateur.ir.text import parse
from secateur.tools.main import main
from secateur.tools.picture import draw, family

EVIL = '"]; n0 -> n1; \\n <b>&amp;</b> {a|b}'
TEXT = """graph @m(%x: f32[1,64]) -> (f32[1,64]) {
  %w = constant {value = [3.0]} : f32[1]
  %0 = fusion(%x, %w) {kind = "pointwise"} graph @body(%a: f32[1,64], %b: f32[1]) -> (f32[1,64]) {
    %0 = mul(%a, %b) : f32[1,64]
    %1 = relu(%0) : f32[1,64]
    return %1
  } : f32[1,64]
  return %0
}
"""


def test_a_fusion_is_a_box_with_edges_to_its_inside() -> None:
    source = draw(parse(TEXT)).source
    assert "subgraph cluster" in source and "fusion: pointwise" in source
    assert "f32[1,64]" in source and "2 operations" in source


def test_names_from_the_model_are_data() -> None:
    graph = parse(TEXT)
    graph.name = EVIL
    graph.inputs[0].hint = f"<{EVIL}>"
    source = draw(graph).source
    assert '\\"]; n0 -> n1;' in source, "quotes are escaped"
    assert "&amp;amp;" in source, "entities are escaped"
    assert "label=<" not in source, "nothing becomes HTML"


@pytest.mark.skipif(not shutil.which("dot"), reason="Graphviz is not installed")
@pytest.mark.parametrize("format", ["svg", "png"])
def test_graphviz_draws_any_name(format: str, tmp_path: Path) -> None:
    graph = parse(TEXT)
    graph.name = graph.inputs[0].hint = EVIL
    data = draw(graph).pipe(format=format)
    assert data.startswith(b"\x89PNG" if format == "png" else b"<?xml")
    if format == "svg":
        assert b"&lt;b&gt;&amp;amp;&lt;/b&gt;" in data, "shown as it was written"


def test_without_graphviz_the_source_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    (tmp_path / "m.ir").write_text(TEXT)
    assert main(["view", str(tmp_path / "m.ir"), "-o", str(tmp_path / "m.svg")]) == 0
    assert (tmp_path / "m.dot").read_text().startswith("digraph")
    assert not (tmp_path / "m.svg").exists()
    assert "dot -Tsvg" in capsys.readouterr().err


def test_families_have_colours() -> None:
    assert [family(name) for name in ("conv", "add", "reduce_sum", "reshape", "fusion")] == [
        "linear algebra",
        "elementwise",
        "reduction",
        "movement",
        "other",
    ]
