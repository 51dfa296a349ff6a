"""Files that are no models, broken ones, and models that reach for other files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from secateur.frontends.onnx import import_onnx  # noqa: E402
from secateur.ir.diagnostics import CompileError  # noqa: E402
from secateur.ir.interpret import interpret  # noqa: E402


def add_model(weight: Any) -> Any:
    value = helper.make_tensor_value_info
    node = helper.make_node("Add", ["x", "w"], ["y"], name="plus")
    inputs, outputs = [value("x", TensorProto.FLOAT, [4])], [value("y", TensorProto.FLOAT, [4])]
    graph = helper.make_graph([node], "net", inputs, outputs, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def external(location: str, **more: str) -> Any:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, text in {"location": location, **more}.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, text
    return weight


@pytest.fixture
def data() -> np.ndarray:
    return np.arange(8, dtype=np.float32)


def saved(folder: Path, weight: Any) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(add_model(weight).SerializeToString())
    return path


def test_reads_external_data_at_an_offset(tmp_path: Path, data: np.ndarray) -> None:
    (tmp_path / "w.bin").write_bytes(data.tobytes())
    graph = import_onnx(saved(tmp_path, external("w.bin", offset="16", length="16")))
    np.testing.assert_array_equal(interpret(graph, np.zeros(4, np.float32))[0], data[4:])


def test_a_model_in_memory_has_no_folder_to_read_from() -> None:
    with pytest.raises(CompileError, match="imported by its path"):
        import_onnx(add_model(external("w.bin")))


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "", ".", "a/../../w.bin", "w\0.bin"])
def test_locations_outside_the_folder_are_refused(tmp_path: Path, data: np.ndarray, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(data.tobytes())
    with pytest.raises(CompileError, match=r"leaves the model's folder|cannot read|not a plain file"):
        import_onnx(saved(folder, external(location)))


@pytest.mark.parametrize("kind", ["symlink", "folder symlink", "hardlink"])
def test_links_are_refused(tmp_path: Path, data: np.ndarray, kind: str) -> None:
    folder, secret = tmp_path / "model", tmp_path / "secret"
    folder.mkdir()
    secret.mkdir()
    (secret / "w.bin").write_bytes(data.tobytes())
    location = "w.bin"
    if kind == "symlink":
        (folder / "w.bin").symlink_to(secret / "w.bin")
    elif kind == "hardlink":
        os.link(secret / "w.bin", folder / "w.bin")
    else:
        (folder / "sub").symlink_to(secret)
        location = "sub/w.bin"
    with pytest.raises(CompileError, match="link"):
        import_onnx(saved(folder, external(location)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"length": "12"}, "12 bytes, its shape needs 16"),
        ({"offset": "24"}, "has 32 bytes, the tensor ends at 40"),
        ({"offset": "-4"}, "not a byte count"),
        ({"offset": "9" * 30}, "not a byte count"),
        ({"command": "rm"}, "unknown or repeated external data key"),
    ],
)
def test_external_data_must_fit(tmp_path: Path, data: np.ndarray, more: dict[str, str], message: str) -> None:
    (tmp_path / "w.bin").write_bytes(data.tobytes())
    with pytest.raises(CompileError, match=message):
        import_onnx(saved(tmp_path, external("w.bin", **more)))


def test_missing_external_file(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"cannot read external data 'w\.bin'"):
        import_onnx(saved(tmp_path, external("w.bin")))


@pytest.mark.parametrize("content", [b"", b"hello, world\n" * 50, b"\x80\x04K\x01.", b"\x00" * 64])
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(CompileError, match="not an ONNX model"):
        import_onnx(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(CompileError, match="cannot read the model"):
            import_onnx(path)


def test_every_truncation_is_one_clear_error(tmp_path: Path, data: np.ndarray) -> None:
    whole = add_model(numpy_helper.from_array(data[:4], "w")).SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            graph = import_onnx(path)
        except CompileError:
            continue
        assert graph.outputs, length  # cut where only the trailing opset or metadata is missing


def test_damaged_bytes_never_escape_as_other_errors(tmp_path: Path, data: np.ndarray) -> None:
    seed = int(np.random.default_rng().integers(1 << 30))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    whole = add_model(numpy_helper.from_array(data[:4], "w")).SerializeToString()
    path = tmp_path / "model.onnx"
    for _ in range(400):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(damaged), rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            import_onnx(path)
        except CompileError:
            continue


def broken(change: Any) -> Any:
    model = add_model(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    change(model)
    return model


def unsorted(model: Any) -> None:
    model.graph.node.insert(0, helper.make_node("Relu", ["y"], ["z"], name="early"))


def twice(model: Any) -> None:
    model.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))


def wrong_length(model: Any) -> None:
    model.graph.initializer[0].dims[0] = 5


def huge(model: Any) -> None:
    model.graph.initializer[0].dims[0] = 1 << 50


def negative(model: Any) -> None:
    model.graph.initializer[0].dims[0] = -4


def no_output(model: Any) -> None:
    model.graph.output[0].name = "nothing"


def ancient(model: Any) -> None:
    model.opset_import[0].version = 5


def strings(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


def mixed(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32


def no_domain(model: Any) -> None:
    model.graph.node[0].domain = "ai.onnx.ml"


def too_big_result(model: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([1 << 40, 4]), "s"))
    model.graph.node.append(helper.make_node("Expand", ["y", "s"], ["z"], name="bomb"))


def endless_range(model: Any) -> None:
    for name, number in (("a", 0), ("b", 1 << 40), ("c", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(number), name))
    model.graph.node.append(helper.make_node("Range", ["a", "b", "c"], ["z"], name="bomb"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (endless_range, "bomb .*more than the limit"),
        (unsorted, "Relu: input 'y' is not computed before it is used"),
        (twice, "'y' is computed twice"),
        (wrong_length, "do not fit shape"),
        (huge, "more than the limit"),
        (negative, "negative dimension"),
        (no_output, "output 'nothing' is never computed"),
        (ancient, "opset 5 is outside 7"),
        (strings, "element type STRING is not supported"),
        (mixed, "plus .*one element type"),
        (no_domain, "unsupported op"),
        (too_big_result, "bomb .*more than the limit"),
    ],
)
def test_broken_models(change: Any, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        import_onnx(broken(change))
