"""Planted mistakes are found: the pass, the rewrite and the operation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from secateur.backends.cpu import compile as cpu
from secateur.ir.graph import Graph
from secateur.ir.text import parse, write_ir
from secateur.passes.base import load_pass
from secateur.passes.manager import resolve
from secateur.tools.bisect import COMPILED, bisect, distance
from secateur.tools.main import main

# The planted pass -> the operation that it spoils.
SPOILT = {
    "dropped_bias": "linear",
    "swapped_sub": "sub",
    "wrong_broadcast": "add",
    "lost_cast": "cast",
    "relu_side": "relu",
    "wrong_perm": "transpose",
    "lost_sign": "sqrt",
    "wrong_axis": "softmax",
    "off_by_one": "slice",
    "wrong_eps": "layer_norm",
    "not_transposed": "matmul",
}
CRASHES = {"crashing": "ZeroDivisionError", "broken": "used before it is defined"}
RULES = ("dropped_bias", "swapped_sub", "wrong_broadcast", "lost_cast", "relu_side", "wrong_perm", "lost_sign")


@pytest.mark.parametrize("name", SPOILT)
def test_a_planted_mistake_is_found(name: str, host: Graph, tensors: list[np.ndarray], plants: Path) -> None:
    load_pass(plants / f"{name}.py")
    before = str(host)
    search = bisect(host, tensors, resolve(["fold", "cse", name, "cse", "dce"]), 1e-3)
    found = search.finding
    assert str(host) == before
    assert found is not None and found.culprit == name and found.error > 1e-3
    assert found.op.startswith(f"{SPOILT[name]}(") and found.op_error > 1e-3
    assert [step.name for step in search.steps] == ["fold", "cse", name]
    if name in RULES:
        assert found.rule == f"{name}_rule" and found.number >= 1


@pytest.mark.parametrize("name", CRASHES)
def test_a_failing_pass_is_found(name: str, host: Graph, tensors: list[np.ndarray], plants: Path) -> None:
    load_pass(plants / f"{name}.py")
    found = bisect(host, tensors, resolve(["fold", name, "dce"]), 1e-3).finding
    assert found is not None and found.culprit == name and CRASHES[name] in found.reason


def test_the_first_wrong_rewrite_has_the_right_number(plants: Path) -> None:
    """Where a rule is wrong on one operation only, those in front of it are not blamed."""
    text = "graph @m(%x: f32[4]) -> (f32[4]) {\n"
    last = "x"
    for number in range(7):  # of positive numbers; the last pair's operand is negative
        text += f"  %s{number} = square(%{last}) : f32[4]\n  %r{number} = sqrt(%s{number}) : f32[4]\n"
        last = f"r{number}"
        if number == 5:
            text += f"  %n = neg(%{last}) : f32[4]\n"
            last = "n"
    load_pass(plants / "lost_sign.py")
    graph = parse(text + f"  return %{last}\n}}\n")
    found = bisect(graph, [np.float32([1, 2, 3, 4])], resolve(["lost_sign"]), 1e-3).finding
    assert found is not None and (found.rule, found.number) == ("lost_sign_rule", 7)


def test_the_everyday_passes_are_fine(host: Graph, tensors: list[np.ndarray]) -> None:
    passes = [*resolve("default"), *resolve("cpu")]
    search = bisect(host, tensors, passes, 1e-4)
    assert search.finding is None and len(search.steps) == len(passes)


def test_a_wrong_kernel_is_found(host: Graph, tensors: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler gets to see every cosine as a sine."""

    def miscompile(graph: Graph, options: cpu.Options) -> object:
        graph = graph.clone()
        for op in graph.walk():
            op.name = "sin" if op.name == "cos" else op.name
        return cpu.compile_graph(graph, options)

    monkeypatch.setattr("secateur.tools.bisect.compile_graph", miscompile)
    found = bisect(host, tensors, [], 1e-3, compile=cpu.Options(threads=1)).finding
    assert found is not None and found.culprit == COMPILED
    assert found.op.startswith("cos(") and [op.name for op in found.graph.ops] == ["cos"]


def test_distances() -> None:
    one, nan = np.ones(4, np.float32), np.float32([1, np.nan])
    assert distance([one], [one]) == 0 and distance([one * 1.5], [one]) == pytest.approx(0.5)
    assert distance([nan], [nan]) == 0 and distance([one[:2]], [nan]) == distance([nan], [one[:2]]) == np.inf
    assert distance([np.array([1, 2])], [np.array([1, 3])]) == 0.5
    assert distance([one[:3]], [one]) == distance([one.astype(np.float64)], [one]) == np.inf
    assert distance([np.zeros(0, np.float32)], [np.zeros(0, np.float32)]) == 0


def test_the_command(
    host: Graph, tensors: list[np.ndarray], plants: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ir(host, tmp_path / "m.ir")
    np.savez(tmp_path / "x.npz", *tensors)
    common = ["bisect", str(tmp_path / "m.ir"), "--inputs", str(tmp_path / "x.npz"), "--passes-only"]
    assert main([*common]) == 0
    assert "everything stays within" in capsys.readouterr().err
    planted = [*common, "--load", str(plants / "relu_side.py"), "-p", "fold relu_side dce"]
    assert main(planted) == 1
    printed = capsys.readouterr()
    assert "rewrite number 1: rule relu_side_rule" in printed.out
    assert "relu_side makes the results wrong" in printed.err
    assert main([*planted, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["finding"]["rule"] == "relu_side_rule"
    assert main([*planted, "--tolerance", "10"]) == 0
