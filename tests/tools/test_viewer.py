"""The viewer's data: what changed from pass to pass, boxes, layers, artefacts, and names that stay text."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.backends.cpu.compile import Options, compile_to
from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError, Span
from secateur.ir.graph import Graph
from secateur.ir.text import parse, write_ir
from secateur.ir.types import DType, TensorType
from secateur.passes.manager import resolve
from secateur.tools.main import main
from secateur.tools.viewer.arrange import BEND, BOX, LEAF, arrange, uncross
from secateur.tools.viewer.changes import compare
from secateur.tools.viewer.compiled import functions, tell_artifact
from secateur.tools.viewer.flatten import flatten
from secateur.tools.viewer.page import page
from secateur.tools.viewer.records import Records, measured
from secateur.tools.viewer.story import Story, tell

EVIL = "</script><script>alert(1)</script><!--<b>&amp;\u2028@DATA@ ]]>"
TEXT = """graph @m(%x: f32[1,64]) -> (f32[1,32]) {
  %w = constant {value = [3.0]} : f32[1]
  %z = constant {value = [0.0]} : f32[1]
  %0 = mul(%x, %w) : f32[1,64]
  %1 = add(%0, %z) : f32[1,64]
  %2 = relu(%1) : f32[1,64]
  %3 = slice(%2) {starts = [0,0], stops = [1,32], steps = [1,1]} : f32[1,32]
  return %3
}
"""


class Scripts(HTMLParser):
    """The elements of a page, and the text of its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = tag == "script"
        self.scripts += [""] * self.inside

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data


def module(layers: int, width: int = 8) -> Graph:
    """Blocks of linear, add and relu with a connection around each, in modules `net.N`."""
    rng = np.random.default_rng(layers)
    graph = Graph("net", [("x", TensorType(DType.F32, (1, width)))])
    builder = Builder(graph)
    value = graph.inputs[0]
    for layer in range(layers):
        builder.span = Span("net.py", 10 + layer, 0, f"net.{layer}.inner")
        weight = builder.constant(rng.standard_normal((width, width)).astype(np.float32), name=f"net.{layer}.weight")
        made = builder.relu(builder.linear(value, weight))
        builder.span = Span("net.py", 11 + layer, 0, f"net.{layer}")
        value = builder.add(value, made)
    graph.outputs = [value]
    return graph


def story_of(text: str, passes: list[str]) -> Story:
    return tell(parse(text), [item for name in passes for item in resolve([name])], "m")


def names(story: Story, scene: int, leaves: list[int]) -> list[str]:
    return [story.records.ops[story.scenes[scene]["leaves"][leaf]["record"]]["name"] for leaf in leaves]


def test_a_pass_shows_what_it_removed_and_what_stayed() -> None:
    story = story_of(TEXT, ["canonicalize", "cse"])
    imported, canonical, cse = story.stages
    assert names(story, 0, canonical["removed"]) == ["add"], "x + 0 is x"
    assert canonical["marks"] == [] and imported["ops"] == 4 and canonical["ops"] == 3
    assert names(story, imported["scene"], [canonical["match"][i] for i in range(5)]) == [
        "x",
        "mul",
        "relu",
        "slice",
        "result",
    ]
    assert cse["scene"] == canonical["scene"], "nothing changed, nothing is stored twice"
    both = story.scenes[canonical["overlay"]]
    assert sorted(both["ghost"])[-1] == canonical["removed"][0] and both["base"].count(-1) == 1


def test_a_changed_operation_says_how() -> None:
    records = Records()
    items = flatten(parse(TEXT), records)
    wider = parse(
        TEXT.replace("[1,64]", "[2,64]").replace("stops = [1,32]", "stops = [2,32]").replace("[1,32]", "[2,32]")
    )
    why = compare(items, flatten(wider, records), records).why.values()
    assert any("result f32[1,32] → f32[2,32]" in text and "stops [1, 32] → [2, 32]" in text for text in why)


def test_fusions_are_boxes_and_their_operations_stay_the_same() -> None:
    story = tell(module(3), [*resolve("default"), *resolve("cpu")], "net")
    (fuse,) = [stage for stage in story.stages if stage["name"] == "fuse"]
    assert fuse["boxed"] and not fuse["removed"] and not fuse["marks"]
    kinds = [box["kind"] for box in story.scenes[fuse["scene"]]["boxes"]]
    assert kinds.count("fusion") == 3
    fusion = next(box for box in story.scenes[fuse["scene"]]["boxes"] if box["kind"] == "fusion")
    assert story.records.ops[fusion["record"]]["name"] == "fusion" and "linear" in fusion["label"]


def check_layers(scene: dict[str, Any]) -> None:
    """Every leaf and box is in one place, and every line leads from a layer to the next."""
    held = [code for box in scene["boxes"] for code in box["cells"]]
    assert sorted(code // 3 for code in held if code % 3 == LEAF) == list(range(len(scene["leaves"])))
    assert sorted(code // 3 for code in held if code % 3 == BOX) == list(range(1, len(scene["boxes"])))
    for box in scene["boxes"]:
        layer = {cell: index for index, cells in enumerate(box["layers"]) for cell in cells}
        assert sorted(layer) == list(range(len(box["cells"])))
        for upper, lower in zip(box["segments"][::3], box["segments"][1::3]):
            assert layer[lower] == layer[upper] + 1


def test_modules_nest_and_layers_are_whole() -> None:
    scene, items = arrange(flatten(module(4), Records()))
    check_layers(scene)
    assert [box["label"] for box in scene["boxes"]] == [
        "",
        "net",
        "0",
        "inner",
        "1",
        "inner",
        "2",
        "inner",
        "3",
        "inner",
    ]
    assert len(items) == 4 * 3 + 2
    inner = scene["boxes"][3]
    assert [code % 3 for code in inner["cells"]].count(BEND) == 2, "one value comes in, one goes out"


@pytest.mark.parametrize("seed", range(8))
def test_any_graph_has_layers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    print(f"seed {seed}")
    graph = Graph("random", [TensorType(DType.F32, (4,)) for _ in range(3)])
    builder, values = Builder(graph), list(graph.inputs)
    for _ in range(60):
        path = ".".join(str(rng.integers(3)) for _ in range(rng.integers(4)))
        builder.span = Span("r.py", 1, 0, path)
        a, b = (values[int(i)] for i in rng.integers(len(values), size=2))
        values.append(builder.add(a, b) if rng.random() < 0.7 else builder.relu(a))
    graph.outputs = [values[-1], values[int(rng.integers(len(values)))]]
    scene, items = arrange(flatten(graph, Records()))
    check_layers(scene)
    assert len(items) == 3 + 60 + 2


def test_lines_to_ports_are_uncrossed() -> None:
    ends = [(0, 0.1, 2, 0.5), (0, 0.9, 1, 0.5), (1, 0.5, 3, 0.5), (2, 0.5, 4, 0.5)]
    assert uncross([[0], [1, 2], [3, 4]], ends) == [[0], [2, 1], [4, 3]]


def test_constants_are_measured() -> None:
    array = np.zeros((10, 100), np.float32)
    array[0] = np.linspace(-1, 1, 100)
    array[0, 0] = np.nan
    found = measured(array)
    assert found["density"] == 0.1 and found["nonfinite"] == 1 and sum(found["histogram"]) == 999
    assert measured(np.array([1, 2], np.int64))["values"] == [1, 2]
    assert measured(np.array([np.inf], np.float32))["values"] == ["inf"]
    assert measured(np.zeros((0,), np.float32)) == {"bytes": 0, "elements": 0}
    assert "histogram" not in measured(np.ones(100, np.bool_))


def test_nothing_from_a_model_becomes_markup_or_script() -> None:
    graph = parse(TEXT)
    graph.inputs[0].hint = EVIL
    for op in graph.ops:
        op.span = Span(EVIL, 1, 1, EVIL)
        if op.name == "constant":
            op.attrs["name"] = EVIL
    story = tell(graph, resolve(["canonicalize"]), EVIL)
    text = page(story.data())
    parser = Scripts()
    parser.feed(text)
    assert parser.tags.count("script") == 2 and "b" not in parser.tags
    data, script = parser.scripts
    assert not set("<>&") & set(data), "no markup can begin in the data"
    assert json.loads(data)["title"] == EVIL
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script and "eval(" not in script
    assert not re.search(r"https?://|url\(|import\(|src=", text), "nothing is fetched"
    assert "default-src 'none'" in text


def test_an_artefact_shows_code_and_memory(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    compile_to(folder, module(3), Options(threads=1))
    story = tell_artifact(folder)
    scene = story.scenes[0]
    check_layers(scene)
    ops = [story.records.ops[leaf["record"]] for leaf in scene["leaves"]]
    assert ops[0]["name"] == "x" and ops[-1]["family"] == "output"
    assert all(leaf["reads"] for leaf in scene["leaves"][1:]), "every step reads what an earlier one wrote"
    for op in ops[1:-1]:
        assert f"KERNEL({op['function']})" in story.extra["functions"][op["function"]]
    memory = story.extra["memory"]
    assert max(offset + size for offset, size, _, _ in memory["buffers"]) <= memory["arena"]

    profile = {"rows": [{"step": i, "seconds": 0.5 + i, "share": 0.25} for i in range(memory["steps"])]}
    timed = tell_artifact(folder, profile)
    assert [op.get("seconds") for op in timed.records.ops if "step" in op] == [0.5 + i for i in range(memory["steps"])]
    with pytest.raises(CompileError, match="another artefact"):
        tell_artifact(folder, {"rows": profile["rows"][1:]})
    (folder / "kernels_0.c").unlink()
    with pytest.raises(CompileError, match=r"cannot read .*kernels_0\.c"):
        tell_artifact(folder)
    with pytest.raises(CompileError, match="not in the folder itself"):
        functions(folder, ["../secret.c"])


def quantisable() -> Graph:
    """Two layers and a norm, which stays float, of a model that says where its operations come from."""
    rng = np.random.default_rng(0)
    b = Builder.graph("quantisable", x="f32[4,8]")
    b.span = Span(module="first")
    hidden = b.relu(b.linear(b["x"], rng.standard_normal((16, 8)).astype(np.float32)))
    b.span = Span(module="second")
    hidden = b.linear(hidden, rng.standard_normal((6, 16)).astype(np.float32))
    b.span = Span(module="last")
    return b.returns(b.reduce_max(hidden, axes=(1,), keepdims=False))


def test_an_artefact_that_was_quantised_shows_the_error_of_each_step(tmp_path: Path) -> None:
    """The culprit is named: microsoft/onnxruntime#14233."""
    x = [np.random.default_rng(i).standard_normal((4, 8)).astype(np.float32) for i in range(8)]
    compile_to(tmp_path, quantisable(), Options(threads=1, quantize="int8", calibration=x))
    found = {op["module"]: op["error"] for op in tell_artifact(tmp_path).records.ops if "error" in op}
    assert found.keys() == {"first", "second"} and all(0 < error < 0.1 for error in found.values())


def test_a_model_is_coloured_by_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ir(quantisable(), tmp_path / "m.ir")
    rows = [{"source": "first", "op": "linear", "sqnr": 20.0, "reason": ""}]
    rows += [{"source": "last", "op": "reduce_max", "sqnr": None, "reason": "a reason"}]
    (tmp_path / "r.json").write_text(json.dumps({"ops": rows}))
    (tmp_path / "p.json").write_text("[]")
    model, report, target = (str(tmp_path / name) for name in ("m.ir", "r.json", "m.html"))
    assert main(["view", model, "--errors", report, "-o", target]) == 0
    parser = Scripts()
    parser.feed(Path(target).read_text())
    ops = json.loads(parser.scripts[0])["ops"]
    assert {op["error"] for op in ops if op.get("module") == "first"} == {0.1}
    assert {op["float"] for op in ops if op.get("module") == "last"} == {"a reason"}
    assert not any("error" in op for op in ops if op.get("module") == "second")
    capsys.readouterr()
    assert main(["view", model, "--errors", str(tmp_path / "p.json"), "-o", target]) == 1
    assert "is not a report of quantisation" in capsys.readouterr().err
    assert main(["view", model, "--errors", report, "-o", str(tmp_path / "m.dot")]) == 1
    assert "goes with a page" in capsys.readouterr().err


def test_the_command_writes_a_page_and_refuses_what_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.ir").write_text(TEXT)
    assert main(["view", str(tmp_path / "m.ir"), "-o", str(tmp_path / "m.html")]) == 0
    assert "operations after" in re.sub(r"\s+", " ", capsys.readouterr().out)
    assert (tmp_path / "m.html").read_text().startswith("<!doctype html>")
    (tmp_path / "p.json").write_text("{}")
    for arguments, message in (
        (["m.ir", "-o", "m.html", "--profile", "p.json"], "goes with an artefact"),
        (["m.ir", "-o", "m.htm"], "must end in a kind of picture"),
    ):
        arguments = [str(tmp_path / item) if "." in item else item for item in arguments]
        assert main(["view", *arguments]) == 1
        assert message in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_a_large_graph_is_told_in_time() -> None:
    graph = module(500)
    start = time.perf_counter()
    scene, _ = arrange(flatten(graph, Records()))
    assert len(scene["leaves"]) == 1502
    assert time.perf_counter() - start < 10
