"""secateur profile: every step timed, beside limits measured on this machine, and nothing left in the artefact."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from secateur.backends.cpu.compile import Options, compile_graph
from secateur.backends.cpu.profile import Limits, machine_limits, profile
from secateur.backends.cpu.target import native_target
from secateur.ir.builder import Builder
from secateur.tools.main import main

SEED = int(np.random.default_rng().integers(1 << 30))


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(SEED)
    b = Builder.graph("net", x="f32[32,64]")
    hidden = b.relu(b.linear(b["x"], rng.standard_normal((96, 64)).astype(np.float32)))
    graph = b.returns(b.softmax(b.linear(hidden, rng.standard_normal((10, 96)).astype(np.float32)), axis=1))
    return compile_graph(graph, Options(threads=2)).save(tmp_path_factory.mktemp("profile") / "net")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_profile_times_every_step(artefact: Path) -> None:
    x = np.random.default_rng(SEED).standard_normal((32, 64)).astype(np.float32)
    result = profile(artefact, [x], seconds=0.1)
    assert [row.op for row in result.rows] == ["linear", "linear", "softmax"]
    assert all(row.seconds > 0 and row.share > 0 for row in result.rows)
    assert result.rows[0].flops == 2 * 32 * 64 * 96 + 32 * 96
    assert sum(row.seconds for row in result.rows) <= result.profiled_seconds * 1.5


def test_limits_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine_limits(native_target(), 1)
    assert first.flops > 1e8 and first.bandwidth > 1e8
    monkeypatch.setattr("secateur.backends.cpu.profile._probe", lambda target, threads: Limits(1, 1, 1))
    assert machine_limits(native_target(), 1) == first


def test_command_writes_table_json_and_picture(
    artefact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, picture = tmp_path / "p.json", tmp_path / "roof.svg"
    assert main(["profile", str(artefact), "--seconds", "0.1", "-o", str(data), "--picture", str(picture)]) == 0
    assert "GFLOP/s" in capsys.readouterr().out
    assert len(json.loads(data.read_text())["rows"]) == 3
    circles = [node for node in ElementTree.parse(picture).iter() if node.tag.endswith("circle")]
    assert len(circles) >= 3


def test_an_artefact_carries_no_profiling(artefact: Path) -> None:
    assert b"_stamps" not in (artefact / "libmodel.so").read_bytes()


def test_what_is_no_artefact_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(tmp_path)]) == 1
    assert "is not an artefact" in capsys.readouterr().err
