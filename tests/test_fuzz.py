"""A bounded run of the fuzzer on fresh graphs, and that it sees what it should."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from secateur.ir.graph import Graph
from secateur.ir.interpret import interpret
from secateur.ir.text import read_ir
from secateur.ir.verify import verify
from secateur.passes.base import Pass
from secateur.passes.manager import optimize
from secateur.tools import fuzz
from secateur.tools.growth import grow

GRAPHS = 72
SEED = int(np.random.default_rng().integers(1 << 30))


def test_passes_and_compiled_code_agree_with_the_interpreter() -> None:
    tally, failures = fuzz.fuzz(SEED, graphs=GRAPHS)
    assert tally.graphs == GRAPHS
    assert not failures, "\n".join(map(str, failures))


def test_graphs_are_valid_and_the_same_for_the_same_seed() -> None:
    for seed in range(SEED, SEED + 20):
        graph, inputs = grow(seed, 12)
        verify(graph)
        again, _ = grow(seed, 12)
        assert str(graph) == str(again), f"seed {seed}"
        interpret(graph, *inputs)


def _wrong(graph: Graph, pipeline: Sequence[Pass]) -> Graph:
    """A pass that turns the first addition into a subtraction."""
    graph = optimize(graph, pipeline)
    for op in graph.find("add")[:1]:
        op.name = "sub"
    return graph


def test_a_wrong_pass_is_found_and_written_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "optimize", _wrong)
    monkeypatch.setattr(fuzz, "check_compiled", lambda cases, target, threads: [])
    assert fuzz.main(["--graphs", "48", "--seed", str(SEED), "--out", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"seed {SEED}\n")
    assert ", fold canonicalize" in out
    assert "48 graphs" in out
    written = sorted(tmp_path.glob("*.ir"))
    assert written
    graph, arrays = read_ir(written[0]), np.load(written[0].with_suffix(".npz"))
    verify(graph)
    assert len(arrays.files) == len(graph.inputs)


def test_integers_are_compared_exactly() -> None:
    large = np.array([2**60, 5], np.int64)
    expected = fuzz.Expected(large, np.zeros(2))
    assert not expected.differs(large.copy())
    assert "differs at 1 of 2 places" in expected.differs(large + np.array([1, 0]))
    assert "is float64[2]" in expected.differs(large.astype(np.float64))
