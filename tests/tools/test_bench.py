"""The benchmark's machinery on a model of no size, and the passages the demo searches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from secateur.tools.benchmark import check_contenders, relative_error
from secateur.tools.main import main
from secateur.tools.passages import standard_library

MODEL = """
import torch

def mlp():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU()), (torch.randn(4, 8),)
"""
QUICK = ("--rounds", "2", "--seconds", "0.01", "--threads", "1", "--json")


def test_contenders_run_in_turns_and_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_tiny_model.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    work = str(tmp_path / "work")
    rules = tmp_path / "mine.rules"
    rules.write_text("// relu(relu(x)) == relu(x)\nrule again: relu(relu(x)) => relu(x)\n")
    chosen = ("--load", str(rules), "-p", "mine dce")
    assert main(["bench", "a_tiny_model:mlp", "--against", "eager,onnxruntime", "--work", work, *chosen, *QUICK]) == 0
    results = {row["name"]: row for row in json.loads(capsys.readouterr().out)["results"]}
    assert list(results) == ["secateur", "eager", "onnxruntime"]
    for row in results.values():
        assert not row["failure"] and row["error"] < 1e-5 and 0 < row["min"] <= row["median"]
        assert len(row["rounds"]) == 2 and all(len(times) >= 3 for times in row["rounds"])


def test_a_contender_that_cannot_take_part_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "m.ir"
    model.write_text("graph @m(%x: f32[4]) -> (f32[4]) {\n  %0 = relu(%x) : f32[4]\n  return %0\n}\n")
    assert main(["bench", str(model), "--against", "eager", "--work", str(tmp_path / "work"), *QUICK]) == 0
    own, eager = json.loads(capsys.readouterr().out)["results"]
    assert own["rounds"] and eager["failure"] == "needs a PyTorch model"


QUANTIZED = """
import torch

def network():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, stride=2), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(8 * 49, 10)), (torch.randn(1, 3, 16, 16),)
"""


def test_quantised_models_start_from_the_same_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """int8 slower than fp32 shows at once: microsoft/onnxruntime#20052."""
    (tmp_path / "a_tiny_network.py").write_text(QUANTIZED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    data = tmp_path / "data.npz"
    np.savez(data, np.random.default_rng(0).standard_normal((16, 3, 16, 16)).astype(np.float32))
    chosen = ("--quantize", "int8", "--calibration", str(data), "--work", str(tmp_path / "work"))
    assert main(["bench", "a_tiny_network:network", "--against", "onnxruntime,eager", *chosen, *QUICK]) == 0
    results = {row["name"]: row for row in json.loads(capsys.readouterr().out)["results"]}
    assert list(results) == ["secateur", "secateur-onnx", "secateur-f32", "onnxruntime", "eager"]
    for name, row in results.items():
        assert not row["failure"] and row["rounds"]
        quantised = name not in ("secateur-f32", "eager")
        assert (1e-4 < row["error"] < 0.1 and 0.99 < row["cosine"] < 1) if quantised else row["error"] < 1e-5


def test_who_is_quantised_needs_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (("--against", "secateur-onnx"), "quantised models only"),
        (("--calibration", "x.npz"), "--calibration goes with --quantize"),
        (("--quantize", "int9"), "no recipe is called 'int9'"),
        (("--quantize", "int8", "--calibration", "x.npz"), "no file or folder x.npz"),
    ):
        assert main(["bench", "zoo:resnet18-small", *arguments, "--work", str(tmp_path), *QUICK]) == 1
        assert message in capsys.readouterr().err


def test_secateur_comes_first_and_once() -> None:
    assert check_contenders(["eager", "secateur", "eager"]) == ["secateur", "eager"]


def test_relative_error() -> None:
    one = np.ones(4, np.float32)
    assert relative_error([one], [one]) == 0
    assert relative_error([one * 1.5], [one]) == pytest.approx(0.5)
    assert relative_error([one, one], [one]) == float("inf")


def test_passages_are_real_documentation() -> None:
    passages = standard_library(6)
    assert 200 < len(passages) < 600
    assert len({passage.name for passage in passages}) > 0.95 * len(passages)
    assert {"json.dumps", "shutil.copytree"} <= {passage.name for passage in standard_library(12)}
    assert all(40 <= len(passage.text) <= 600 for passage in passages)
