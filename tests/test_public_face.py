"""The names a user imports, what is accepted as a model, and that nothing heavy is loaded before it is needed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import secateur
from secateur.ir.builder import Builder
from secateur.ir.text import write_ir

TEXT = """graph @m(%x: f32[2,3]) -> (f32[2,3]) {
  %0 = add(%x, %x) : f32[2,3]
  %1 = relu(%0) : f32[2,3]
  return %1
}
"""


def test_every_public_name_exists() -> None:
    for name in secateur.__all__:
        assert getattr(secateur, name) is not None
        assert name in dir(secateur)


def test_text_to_graph_to_numbers_to_program() -> None:
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    x = np.random.default_rng(seed).standard_normal((2, 3)).astype(np.float32)
    graph = secateur.parse(TEXT)
    assert str(graph) == TEXT
    expected = secateur.interpret(graph, x)[0]
    np.testing.assert_array_equal(expected, np.maximum(x + x, 0))
    program = secateur.compile(secateur.optimize(graph))
    np.testing.assert_array_equal(program(x), expected)


def test_a_saved_program_can_be_loaded(tmp_path: Path) -> None:
    program = secateur.compile(secateur.parse(TEXT))
    loaded = secateur.load(program.save(tmp_path / "m"))
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(loaded(x), program(x))


@pytest.mark.parametrize("heavy", ["torch", "lark", "rich", "onnx", "networkx", "graphviz", "safetensors"])
def test_nothing_heavy_is_imported_by_the_package_or_by_loading(heavy: str) -> None:
    script = f"import sys, secateur; secateur.load; assert {heavy!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_ir_file_is_a_model(tmp_path: Path) -> None:
    write_ir(secateur.parse(TEXT), tmp_path / "m.ir", spans=False)
    assert str(secateur.import_model(tmp_path / "m.ir")) == TEXT


def test_a_module_needs_example_inputs() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(secateur.CompileError, match="ReLU has no shapes of its own"):
        secateur.import_model(torch.nn.ReLU())
    graph = secateur.import_model(torch.nn.ReLU(), [torch.ones(2)])
    assert [op.name for op in graph.ops] == ["relu"]


def test_graph_modules_and_archives_are_models(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model, inputs = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval(), (torch.randn(2, 4),)
    exported = torch.export.export(model, inputs)
    torch.export.save(exported, tmp_path / "m.pt2")
    expected = model(*inputs).detach().numpy()
    traced = torch.fx.symbolic_trace(model)
    for source in (model, traced, exported, tmp_path / "m.pt2", str(tmp_path / "m.pt2")):
        graph = secateur.import_model(source, inputs)
        np.testing.assert_allclose(secateur.interpret(graph, inputs[0].numpy())[0], expected, rtol=1e-5, atol=1e-6)


CASES = [
    (3, "a int is not a model"),
    ("missing.onnx", "there is no file"),
    (".", "is a folder, not a model"),
    ("notes.txt", "it looks like text"),
    ("old.pt", "it looks like a pickle"),
    ("new.pt", "weights without a program"),
    ("broken.pt2", "is not a torch.export archive"),
    ("empty.bin", "an empty file"),
    ("page.html", "a web page"),
    ("bad.ir", "unexpected"),
]


@pytest.mark.parametrize(("model", "message"), CASES)
def test_what_is_not_a_model_is_said_clearly(
    model: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("hello")
    Path("old.pt").write_bytes(b"\x80\x02}q\x00.")
    Path("broken.pt2").write_bytes(b"PK\x03\x04 nothing")
    Path("empty.bin").touch()
    Path("page.html").write_text("<!doctype html>")
    Path("bad.ir").write_text("graph @m() -> () { ! }")
    with zipfile.ZipFile("new.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(secateur.CompileError, match=message):
        secateur.import_model(model)


def two_layers() -> secateur.Graph:
    rng = np.random.default_rng(0)
    b = Builder.graph("layers", x="f32[4,8]")
    first, second = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 8), (3, 16)))
    return b.returns(b.linear(b.relu(b.linear(b["x"], first)), second))


def batches(count: int = 64) -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(1)
    return [(rng.standard_normal((4, 8)).astype(np.float32),) for _ in range(count)]


@pytest.mark.parametrize("recipe", ["int8", "weights-int8", secateur.Recipe(weights="int4")])
def test_a_model_is_quantised_and_says_so(recipe: str | secateur.Recipe) -> None:
    graph = two_layers()
    program = secateur.compile(graph, quantize=recipe, calibration=batches())
    assert str(graph) == str(two_layers())
    x = np.random.default_rng(2).standard_normal((4, 8)).astype(np.float32)
    expected = secateur.interpret(graph, x)[0]
    error = np.linalg.norm(program(x) - expected) / np.linalg.norm(expected)
    assert 0 < error < (0.2 if getattr(recipe, "weights", "") == "int4" else 0.05)
    told = program.report()["quantization"]
    assert told["batches"] == 64 and told["error"]["final"] > 10
    assert "products: 2 " in str(program.report())
    kind = "weights" if recipe == "weights-int8" else "integer"
    assert told["products"] == {"integer": 0, "weights": 0, "float": 0} | {kind: 2}


def test_a_float_program_says_nothing_of_quantisation() -> None:
    assert "quantization" not in secateur.compile(two_layers()).report()


REFUSED = [
    ({"quantize": "int8"}, "need calibration data"),
    ({"calibration": [1]}, "nothing is to be quantised"),
    ({"quantize": "int9", "calibration": [1]}, "no recipe is called 'int9'"),
    ({"quantize": "int8", "calibration": []}, "the calibration set is empty"),
    ({"quantize": "int8", "calibration": [(np.zeros((4, 9), np.float32),)]}, r"must be f32\[4,8\]"),
    ({"quantize": "int8", "calibration": [(np.full((4, 8), np.nan, np.float32),)]}, "32 values that are NaN"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_cannot_be_quantised_is_said_clearly(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(secateur.CompileError, match=message):
        secateur.compile(two_layers(), **arguments)
