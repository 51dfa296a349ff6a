"""secateur quantize: what it writes, whom it blames, and that a metric's budget is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import secateur
from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError, Span
from secateur.ir.text import read_ir, write_ir
from secateur.passes.quantize import Quantized
from secateur.tools.main import main
from secateur.tools.quantize_search import Candidate, Mix, checked, frontier, search
from secateur.tools.quantize_times import Cost, Costs

SEED = 11
JUDGE = """
import numpy as np

inputs, labels = (np.load("{folder}/held_out.npz")[name] for name in ("x", "labels"))

def agreement(program):
    right = [program(x).argmax(-1) == label for x, label in zip(inputs, labels)]
    return np.mean(right)

def closeness(program):
    return float(np.allclose(program(inputs[0]), np.load("{folder}/held_out.npz")["first"], rtol=1e-4, atol=1e-4))

def raises(program):
    raise ValueError("no data")

def text(program):
    return "good"

def nan(program):
    return float("nan")

def nothing(program):
    program(inputs[0])

def batches():
    for x in inputs[:4]:
        yield (x,)
"""


def network() -> secateur.Graph:
    """Four layers with a name each; the second has an input that is a hundred times as large as the others."""
    rng = np.random.default_rng(SEED)
    b = Builder.graph("network", x="f32[32,16]")
    value = b["x"]
    for number, (inputs, outputs) in enumerate([(16, 64), (64, 64), (64, 64), (64, 10)]):
        b.span = Span(module=f"layer{number}")
        weights = rng.standard_normal((outputs, inputs)).astype(np.float32) / np.float32(np.sqrt(inputs))
        if number == 0:
            weights[5] *= 100
        if number == 1:
            weights[:, 5] /= 30
        value = b.linear(value, weights)
        value = b.relu(value) if number < 3 else value
    return b.returns(value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The model, calibration data, and a judge with data of its own."""
    graph = network()
    write_ir(graph, tmp_path / "m.ir")
    rng = np.random.default_rng(SEED + 1)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((8 * 32, 16)).astype(np.float32))
    held_out = rng.standard_normal((20, 32, 16)).astype(np.float32)
    labels = np.stack([secateur.interpret(graph, x)[0].argmax(-1) for x in held_out])
    first = secateur.interpret(graph, held_out[0])[0]
    np.savez(tmp_path / "held_out.npz", x=held_out, labels=labels, first=first)
    (tmp_path / "judge.py").write_text(JUDGE.format(folder=tmp_path))
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    quick = ("--calibration", str(folder / "data.npz"), "--seconds", "0.05", "--threads", "1")
    return ["quantize", str(folder / "m.ir"), *quick, *more]


def test_the_written_model_compiles_and_is_close(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folder, "-o", str(folder / "q.ir"))) == 0
    assert "operations quantised" in capsys.readouterr().out
    graph = read_ir(folder / "q.ir")
    assert len(graph.find("quantize")) >= 4
    x = np.load(folder / "held_out.npz")["x"][0]
    program = secateur.compile(graph, threads=1)
    assert program.report()["quantization"]["products"] == {"integer": 4, "weights": 0, "float": 0}
    expected = secateur.interpret(network(), x)[0]
    assert np.linalg.norm(program(x) - expected) < 0.05 * np.linalg.norm(expected)


def test_the_report_names_the_culprit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Quantisation that destroys accuracy with no culprit named: microsoft/onnxruntime#14233, pytorch/ao#4292."""
    options = ("--report", "--override", "layer2=int4", "--json", "-o", str(folder / "q.ir"))
    assert main(arguments(folder, *options)) == 0
    data = json.loads(capsys.readouterr().out)
    worst, *others = data["culprits"]
    assert worst["name"] == "layer2:linear" and worst["alone"] > 10 * max(row["alone"] for row in others)
    assert worst["gain"] > 3 > max(row["gain"] for row in others)
    for row in data["culprits"]:
        assert row["seconds"] > 0 or row["op"] != "linear"
        assert row["lost_seconds"] > row["float_seconds"] - row["seconds"]
    twin = json.loads((folder / "q.report.json").read_text())
    assert [row["name"] for row in twin["culprits"]] == [row["name"] for row in data["culprits"]]
    page = ["view", str(folder / "q.ir"), "--errors", str(folder / "q.report.json"), "-o", str(folder / "q.html")]
    assert main(page) == 0
    assert '"error":' in (folder / "q.html").read_text()


def test_the_table_says_what_the_report_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folder, "--report")) == 0
    printed = capsys.readouterr().out
    assert all(f"layer{number}" in printed for number in range(4)) and "error alone" in printed


def made_up(made: Quantized, *_: object) -> Costs:
    """Costs that no other load of the machine changes: floats take three times as long."""
    return Costs({label: Cost(1e-6, 3e-6) for label in made.attempt.plan.named.values()}, 4e-6, 12e-6)


def test_a_mix_within_the_budget(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 4 bits everywhere too much is lost; the mix keeps in float what is needed for the budget."""
    monkeypatch.setattr("secateur.tools.commands.quantize.measure_costs", made_up)
    judge = f"{folder / 'judge.py'}:agreement"
    options = ("--recipe", "int4", "--delta", "0.03", "--metric", judge, "--json", "-o", str(folder / "q.ir"))
    assert main(arguments(folder, *options)) == 0
    found = json.loads(capsys.readouterr().out)["search"]
    assert found["baseline"] == 1.0 and found["quantized"] < 0.97 <= found["score"]
    assert 0 < len(found["mix"]) < 8
    program = secateur.compile(read_ir(folder / "q.ir"), threads=1)
    held_out = np.load(folder / "held_out.npz")
    right = [program(x).argmax(-1) == label for x, label in zip(held_out["x"], held_out["labels"])]
    assert np.mean(right) == found["score"]


def test_where_only_floats_will_do_the_model_stays_float(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.tools.commands.quantize.measure_costs", made_up)
    options = ("--delta", "0", "--recipe", "int4", "--metric", f"{folder / 'judge.py'}:closeness")
    assert main(arguments(folder, *options, "-o", str(folder / "q.ir"))) == 0
    assert "the float model is the fastest within 0 of 1" in " ".join(capsys.readouterr().err.split())
    assert not read_ir(folder / "q.ir").find("quantize")


def test_a_budget_below_nothing_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = f"{folder / 'judge.py'}:agreement"
    assert main(arguments(folder, "--recipe", "int4", "--delta", "-0.5", "--metric", judge)) == 1
    assert "delta must be 0 or more" in capsys.readouterr().err


METRICS = [
    ("raises", "judge.py:raises failed: ValueError: no data"),
    ("text", "judge.py:text returned str, not a number"),
    ("nan", "judge.py:nan returned nan"),
    ("nothing", "judge.py:nothing returned nothing"),
    ("missing", "has no function 'missing'"),
]


@pytest.mark.parametrize(("name", "message"), METRICS)
def test_a_metric_that_is_none(name: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folder, "--delta", "0.1", "--metric", f"{folder / 'judge.py'}:{name}")) == 1
    assert message in " ".join(capsys.readouterr().err.split())


REFUSED = [
    (["-o", "q.ir"], "needs to know what real inputs look like"),
    (["--calibration", "random"], "nothing is asked for"),
    (["--calibration", "nowhere.npz", "-o", "q.ir"], "there is no file or folder nowhere.npz"),
    (["--calibration", "random", "--report", "--recipe", "int9"], "no recipe is called 'int9'"),
    (["--calibration", "random", "--delta", "0.1"], "--delta and --metric go together"),
    (["--calibration", "random", "--report", "--override", "x"], "is not PATTERN=SCHEME"),
    (["--calibration", "random", "--report", "--keep-float", "layer9"], "no operation is called 'layer9'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_options_that_make_no_sense(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert main(["quantize", "m.ir", *options]) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_weights_alone_need_no_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = str(folder / "m.ir"), str(folder / "q.ir")
    assert main(["quantize", model, "--recipe", "weights-int8", "-o", out]) == 0
    assert "4 operations quantised" in capsys.readouterr().out
    assert main(["compile", model, "--quantize", "weights-int8", "-o", str(folder / "artefact"), "--threads", "1"]) == 0
    assert "in integers 0, in floats 4 (4 of them with integer weights)" in " ".join(capsys.readouterr().out.split())
    assert main(["quantize", model, "--recipe", "weights-int8", "--report"]) == 1
    assert "what real inputs look like" in capsys.readouterr().err


def test_calibration_by_a_function_and_at_random(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = str(folder / "m.ir"), str(folder / "q.ir")
    judge = str(folder / "judge.py")
    assert main(["quantize", model, "--calibration", f"{judge}:batches", "-o", out, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["batches"] == 4 and "random" not in printed.err
    assert main(["quantize", model, "--calibration", "random", "--seed", "3", "-o", out]) == 0
    assert "random (seed 3)" in capsys.readouterr().err
    assert main(["quantize", model, "--calibration", f"{judge}:raises", "-o", out]) == 1
    assert "judge.py:raises failed: TypeError" in " ".join(capsys.readouterr().err.split())


# The search by itself --------------------------------------------------------------------------------


def drawn(seed: int, count: int) -> list[Candidate]:
    rng = np.random.default_rng(seed)
    return [Candidate(f"c{i}", float(rng.integers(1, 50)), float(rng.random())) for i in range(count)]


def test_the_frontier_is_best_for_every_time() -> None:
    seed = int(np.random.SeedSequence().entropy % 2**32)  # type: ignore[operator]
    print("seed", seed)
    items = drawn(seed, 8)
    total = sum(item.lost for item in items)
    mixes = frontier(items, steps=int(total))  # a step is a unit of time: the programme is exact

    def facts(mix: Mix) -> tuple[float, float]:
        return (
            sum(item.lost for item in items if item.name in mix),
            sum(item.error for item in items if item.name not in mix),
        )

    every = [frozenset(item.name for i, item in enumerate(items) if bits >> i & 1) for bits in range(256)]
    for mix in mixes:
        lost, error = facts(mix)
        assert error <= min(facts(other)[1] for other in every if facts(other)[0] <= lost) + 1e-9
    assert mixes[0] == frozenset() and mixes[-1] == every[-1]


def test_what_is_faster_in_float_is_float_in_every_mix() -> None:
    items = [Candidate("slow", -1.0, 0.5), Candidate("a", 2.0, 0.1), Candidate("b", 1.0, 0.2)]
    assert all("slow" in mix for mix in frontier(items))


def test_the_search_finds_the_one_that_matters() -> None:
    items = [Candidate(f"c{i}", 1.0 + i, 0.01) for i in range(12)]

    def score(mix: Mix) -> float:
        return 1.0 if "c7" in mix else 0.5

    found = search(items, score, 0.1)
    assert found.mix == {"c7"} and (found.baseline, found.quantized, found.score) == (1.0, 0.5, 1.0)
    assert search(items, score, 0.6).mix == frozenset()


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5), 1])
def test_numbers_of_all_kinds_are_scores(value: object) -> None:
    assert checked(lambda program: value, "m", lambda: None) == float(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [True, "1", None, np.zeros(2), float("inf")])
def test_what_is_no_score(value: object) -> None:
    with pytest.raises(CompileError, match="the metric m returned"):
        checked(lambda program: value, "m", lambda: None)
