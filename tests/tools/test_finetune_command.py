"""`secateur finetune` from a float model and a data file to a trained model that compiles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import secateur
from secateur.backends.torch.lower import run
from secateur.ir.builder import Builder
from secateur.ir.interpret import interpret
from secateur.ir.text import read_ir, write_ir
from secateur.tools.main import main

DATA = """
import numpy as np

rng = np.random.default_rng(SEED)
X = rng.standard_normal((96, 12)).astype(np.float32)
Y = (X[:, :3] ** 2).argmax(1)

def batches(epoch):
    order = np.random.permutation(len(X))
    for chosen in np.split(order, 6):
        yield X[chosen], Y[chosen]

def unlabelled():
    return [(x[None],) for x in X[:24]]

def accuracy(program):
    return (program(X).argmax(1) == Y).mean()

def broken(program):
    return program(X)[len(X)]
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A float model m.ir, and data.py, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    seed = int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    b = Builder.graph("m", x="f32[1,12]")
    first, second = (rng.standard_normal(shape).astype(np.float32) / 3 for shape in ((24, 12), (3, 24)))
    hidden = b.relu(b.linear(b["x"], b.constant(first, name="first.weight")))
    write_ir(b.returns(b.linear(hidden, b.constant(second, name="second.weight"))), "m.ir")
    Path("data.py").write_text(DATA.replace("SEED", str(seed)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def as_json(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    assert main([*argv, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


QUANTISED = ("finetune", "m.ir", "--quantize", "int4", "--data", "data.py:batches")


def test_quantise_and_distil(capsys: pytest.CaptureFixture[str]) -> None:
    """From a float model to compiled integers that give what training saw (pytorch/executorch#16426)."""
    options = ("--steps", "30", "--rate", "1e-3", "--evaluate-every", "10", "-o", "out.ir", "--match", "first=2")
    report = as_json(capsys, *QUANTISED, *options)
    assert report["best"] >= report["start"] and report["steps"] == 30
    assert [item["step"] for item in report["history"]] == [0, 10, 20, 30]
    made = read_ir("out.ir")
    assert made.find("quantize") and len(made.outputs) == 1
    x = np.random.default_rng(0).standard_normal((1, 12)).astype(np.float32)
    simulated = run(made, torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(interpret(made, x)[0], simulated, atol=1e-5)
    scale = float(np.abs(simulated).max())
    np.testing.assert_allclose(secateur.compile(made)(x), simulated, atol=0.05 * scale)


def test_labels_a_metric_and_a_resumed_run(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--loss", "labels", "--metric", "data.py:accuracy", "--rate", "5e-3", "--steps", "40", "--seed", "3")
    whole = as_json(capsys, *QUANTISED, *options, "-o", "whole.ir")
    assert whole["best"] >= whole["start"]
    kept = ("--checkpoint", "c.safetensors")
    as_json(capsys, *QUANTISED, *options, *kept)
    again = as_json(capsys, *QUANTISED, *options, *kept, "--resume", "-o", "again.ir")
    assert {**again, "output": ""} == {**whole, "output": ""}
    assert Path("again.ir").read_text().replace("again", "whole") == Path("whole.ir").read_text()


def test_a_quantised_model_after_a_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    as_json(capsys, *QUANTISED, "--steps", "0", "-o", "start.ir")
    rest = ("--data", "data.py:unlabelled", "--held-out", "data.py:unlabelled", "--steps", "6", "--accumulate", "4")
    report = as_json(capsys, "finetune", "start.ir", "--teacher", "m.ir", *rest, "--compare", "mse")
    assert report["best"] >= report["start"] and report["steps"] == 6
    assert main(["finetune", "start.ir", "--teacher", "m.ir", *rest, "-o", "end.ir"]) == 0
    shown = capsys.readouterr().out
    assert "score is minus the loss; seed 0" in shown and "wrote end.ir" in shown and "nan" not in shown


FAILURES = [
    ((*QUANTISED[:-1], "data.py"), "'data.py' is not FILE:FUNCTION"),
    ((*QUANTISED[:-1], "date.py:batches"), "there is no file date.py"),
    ((*QUANTISED[:-1], "data.py:batchs"), "data.py has no function 'batchs'\nhint: did you mean 'batches'?"),
    ((*QUANTISED[:-1], "m.ir:batches"), "m.ir is not a Python file"),
    ((*QUANTISED, "--metric", "data.py:broken"), "the metric failed: IndexError: index 96 is out of bounds"),
    ((*QUANTISED, "--match", "frist"), "has no value 'frist'"),
    ((*QUANTISED, "--match", "first=much"), "--match 'first=much': 'much' is not a number"),
    ((*QUANTISED, "--freeze", "w_third*"), "no parameter is called 'w_third*'"),
    ((*QUANTISED, "--rate", "nan"), "rate must be a finite number of 0 or more, got nan"),
    ((*QUANTISED, "--resume"), "--resume needs to know from where"),
    ((*QUANTISED, "-o", "no/where.ir"), "cannot write no/where.ir: its folder does not exist"),
    ((*QUANTISED, "--checkpoint", "/proc/none/c.safetensors", "--steps", "0"), "cannot write the checkpoint"),
    (("finetune", "m.ir", "--data", "data.py:unlabelled"), "a batch holds no labels"),
    (("finetune", "m.ir", "--data", "data.py:batches", "--loss", "distil"), "there is no teacher to follow"),
]


@pytest.mark.parametrize(("argv", "message"), FAILURES)
def test_bad_input_gives_one_clear_message(
    argv: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 1
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown


def test_a_data_file_that_fails_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data.py").write_text("import numpy as np\n\ndef batches():\n    yield np.zeros(3)[7]\n")
    assert main(QUANTISED) == 1
    assert "the data failed: IndexError" in capsys.readouterr().err
    Path("data.py").write_text("1 / 0\n")
    assert main(QUANTISED) == 1
    assert "data.py failed: ZeroDivisionError: division by zero" in capsys.readouterr().err
