"""Files and objects that are no model: each gets one message that says what it is and what would help."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import secateur
from secateur.frontends.open import import_model
from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.text import write_ir

RANDOM = np.random.default_rng().bytes(4096)


def zip_of(*names: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"")

    return write


def content(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


def safetensors(path: Path) -> None:
    """A header of 128 bytes: its length begins like a pickle does."""
    header = json.dumps({"__metadata__": {"x": ""}}).ljust(128).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


FILES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "checkpoint.pt": (zip_of("archive/data.pkl"), "a PyTorch checkpoint: weights without a program", "torch.export"),
    "checkpoint.pth": (content(b"\x80\x02ctorch._utils\n"), "a pickle", "torch.export.save"),
    "weights.bin": (content(b"\x80\x04\x95"), "a pickle", "torch.export.save"),
    "archive.zip": (zip_of("a.txt", "b/c.txt"), "a zip archive", "torch.export archive"),
    "weights.safetensors": (safetensors, "weights without a program", "export the model they belong to"),
    "weights.gguf": (content(b"GGUF\x03\0\0\0"), "a GGUF file", "export the model from PyTorch"),
    "model.h5": (content(b"\x89HDF\r\n\x1a\n"), "an HDF5 file", "convert it to ONNX"),
    "cat.png": (content(b"\x89PNG\r\n\x1a\n"), "a picture", "a model is an ONNX file"),
    "libmodel.so": (content(b"\x7fELF\x02\x01"), "a program or shared library", "a model is an ONNX file"),
    "page": (content(b"\n\n <!doctype html>"), "a web page or XML", "a model is an ONNX file"),
    "pointer": (content(b"version https://git-lfs.github.com/spec/v1\n"), "a Git LFS pointer", "git lfs pull"),
    "nothing": (content(b""), "an empty file", "a model is an ONNX file"),
    "notes.md": (content(b"# Model\n"), "text", "a model is an ONNX file"),
    "data": (content(b"\1\0" * 50), "unknown binary data", "a model is an ONNX file"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_looks_like_a_model_and_is_none(tmp_path: Path, name: str) -> None:
    write, what, hint = FILES[name]
    write(tmp_path / name)
    with pytest.raises(CompileError, match=f"{name} is not a model: it looks like {what}") as caught:
        import_model(tmp_path / name)
    assert hint in caught.value.hint and len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".ir", ".ONNX", ".PT2", ".Ir"])
@pytest.mark.parametrize(
    "data",
    [b"", b"hello, world\n", RANDOM, b"\xff\xfe\x00", b"PK\x03\x04", b"\x80\x04K\x01.", b"<html>", b"\0" * 64],
    ids=["empty", "text", "random", "binary", "zip", "pickle", "html", "zeros"],
)
def test_the_right_suffix_and_the_wrong_content(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(data)
    if suffix.lower() == ".pt2":
        pytest.importorskip("torch")
    with pytest.raises(CompileError) as caught:
        import_model(path)
    assert "model" in str(caught.value) and len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_archive(tmp_path: Path, kept: float) -> None:
    torch = pytest.importorskip("torch")
    exported = torch.export.export(torch.nn.Linear(8, 4).eval(), (torch.randn(2, 8),))
    torch.export.save(exported, tmp_path / "whole.pt2")
    data = (tmp_path / "whole.pt2").read_bytes()
    (tmp_path / "cut.pt2").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(CompileError, match=r"cut\.pt2"):
        import_model(tmp_path / "cut.pt2")


def test_ir_without_its_weights(tmp_path: Path) -> None:
    b = Builder.graph("m", x="f32[64]")
    graph = b.returns(b.add(b["x"], b.constant(np.arange(64, dtype=np.float32), name="w")))
    write_ir(graph, tmp_path / "m.ir")
    assert str(import_model(tmp_path / "m.ir")) == str(graph)
    (weights,) = tmp_path.glob("*.safetensors")
    whole = weights.read_bytes()
    for data in (b"", whole[: len(whole) // 2], RANDOM):
        weights.write_bytes(data)
        with pytest.raises(CompileError, match="safetensors"):
            import_model(tmp_path / "m.ir")
    weights.unlink()
    with pytest.raises(CompileError, match=r"safetensors|@w"):
        import_model(tmp_path / "m.ir")


def test_folders(tmp_path: Path) -> None:
    b = Builder.graph("m", x="f32[4]")
    secateur.compile(b.returns(b.relu(b["x"]))).save(tmp_path / "built")
    with pytest.raises(CompileError, match=r"is a compiled artefact \(`secateur run` runs it\), not a model"):
        import_model(tmp_path / "built")
    (tmp_path / "dir.onnx").mkdir()
    with pytest.raises(CompileError, match=r"dir\.onnx is a folder, not a model"):
        import_model(tmp_path / "dir.onnx")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "resnet50.onnx").touch()
    with pytest.raises(CompileError, match="there is no file") as caught:
        import_model(tmp_path / "resnet5.onnx")
    assert caught.value.hint == "did you mean 'resnet50.onnx'?"
    (tmp_path / "dangling.onnx").symlink_to("nowhere")
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    paths = [
        "nowhere/m.onnx",
        "dangling.onnx",
        "loop.onnx",
        "nul\0.onnx",
        "long" * 200 + ".onnx",
        "resnet50.onnx/m.onnx",
    ]
    for path in paths:
        with pytest.raises(CompileError, match=r"there is no file|cannot read"):
            import_model(tmp_path / path)
    for name in ("", "https://example.org/model.onnx"):
        with pytest.raises(CompileError, match=r"there is no file|is a folder"):
            import_model(name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    for name in ("m.onnx", "m.ir", "m.txt"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0)
        with pytest.raises(CompileError, match="cannot read"):
            import_model(tmp_path / name)


@pytest.mark.parametrize("thing", [None, 3, b"model.onnx", [], {}, object(), np.zeros(3), dict, len])
def test_objects_that_are_no_model(thing: object) -> None:
    with pytest.raises(CompileError, match=f"a {type(thing).__name__} is not a model") as caught:
        import_model(thing)
    assert "torch.nn.Module" in caught.value.hint and ".onnx" in caught.value.hint


def test_what_is_nearly_a_torch_model() -> None:
    torch = pytest.importorskip("torch")
    module, inputs = torch.nn.Linear(4, 3), (torch.ones(2, 4),)
    for thing in (module.state_dict(), torch.nn.Linear, inputs[0], module.forward, iter(module.parameters())):
        with pytest.raises(CompileError, match="is not a model"):
            import_model(thing, inputs)


@pytest.mark.parametrize("wrong", ["text", 3, (), (3, 4), "shape"])
def test_example_inputs_that_do_not_fit(wrong: object) -> None:
    torch = pytest.importorskip("torch")
    inputs = (torch.ones(5, 7),) if wrong == "shape" else wrong
    for model in (torch.nn.Linear(4, 3), torch.fx.symbolic_trace(torch.nn.Linear(4, 3))):
        with pytest.raises(CompileError):
            import_model(model, inputs)


def test_a_name_for_the_command_line_says_what_python_code_does() -> None:
    with pytest.raises(CompileError, match=r"zoo:minilm is a name for the command line") as caught:
        import_model("zoo:minilm")
    assert caught.value.hint == "in Python: from secateur.tools.zoo import build; secateur.compile(*build('minilm'))"
