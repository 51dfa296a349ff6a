"""Pipelines by name, options as text, and what the manager does around passes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Op
from secateur.ir.text import parse, print_graph, read_ir
from secateur.passes.base import Pass, all_passes, make_pass
from secateur.passes.decompose import Decompose
from secateur.passes.fold import Fold
from secateur.passes.manager import PassManager, optimize, resolve
from secateur.passes.pipelines import PIPELINES


@pytest.fixture
def graph() -> Graph:
    return parse("""graph @m(%x: f32[4]) -> (f32[4]) {
      %zero = constant {value = [0.0]} : f32[]
      %0 = add(%x, %zero) : f32[4]
      %1 = exp(%0) : f32[4]
      %2 = exp(%0) : f32[4]
      return %1
    }""")


def test_options_are_read_and_shown() -> None:
    assert make_pass("fold{limit=1000}") == Fold(limit=1000)
    assert make_pass("decompose{keep=softmax+gelu, only=}") == Decompose(keep=("softmax", "gelu"))
    for text in ("fold", "fold{limit=1000}", "decompose{keep=softmax+gelu}"):
        assert str(make_pass(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("canonicalise", "unknown pass 'canonicalise'\nhint: did you mean 'canonicalize'?"),
        ("zzz", "unknown pass 'zzz'\nhint: see `secateur passes`"),
        ("fold{limits=3}", "pass 'fold' has no option 'limits'\nhint: did you mean 'limit'?"),
        ("fold{limit=much}", "pass 'fold': option 'limit' must be int, got 'much'"),
        ("fold{limit=3", "'fold{limit=3': options are written as fold{option=value,...}"),
    ],
)
def test_a_wrong_pass_gets_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(CompileError) as caught:
        make_pass(text)
    assert str(caught.value) == message


def test_unknown_pipeline_suggests_one() -> None:
    with pytest.raises(CompileError, match="unknown pipeline 'defualt'\nhint: did you mean 'default'"):
        optimize(Graph(), "defualt")


def test_pipelines_hold_passes_that_exist() -> None:
    for name in PIPELINES:
        resolve(name)


@pytest.mark.parametrize("cls", all_passes().values(), ids=lambda cls: cls.__module__.rpartition(".")[2])
def test_a_pass_says_what_it_does_and_how_exactly(cls: type[Pass]) -> None:
    doc = cls.__doc__ or ""
    assert "before:" in doc and "after:" in doc
    assert ("Exact" in doc) == cls.exact and ("Not exact" in doc) == (not cls.exact)
    assert cls.exact == (cls.tolerance == 0.0)


def test_records_snapshots_and_stop(graph: Graph) -> None:
    shown: list[tuple[str, str]] = []
    manager = PassManager(
        resolve(["canonicalize", "cse", "dce"]),
        stop_after="cse",
        snapshots=True,
        print_after=lambda *a: shown.append(a),
    )
    manager.run(graph)
    assert [(r.name, r.ops_before, r.ops_after) for r in manager.records] == [("canonicalize", 4, 2), ("cse", 2, 1)]
    assert manager.records[0].rules.fired == {"add_zero": 1}
    assert [name for name, _ in shown] == ["canonicalize", "cse"]
    snapshot = manager.records[1].snapshot
    assert snapshot is not graph and print_graph(snapshot) == print_graph(graph) == shown[1][1]


def test_dumps_are_numbered_and_parse(graph: Graph, tmp_path: Path) -> None:
    PassManager(resolve("default"), dump=tmp_path / "new").run(graph)
    files = sorted((tmp_path / "new").iterdir())
    assert [path.name for path in files[:3]] == ["01_fold.ir", "02_canonicalize.ir", "03_cse.ir"]
    assert print_graph(parse(files[-1].read_text())) == print_graph(graph)


def test_dumps_bring_their_weights(tmp_path: Path) -> None:
    b = Builder.graph("m", x="f32[1,40]")
    graph = b.returns(b.add(b["x"], b.constant(np.arange(40, dtype=np.float32), name="w")))
    PassManager(resolve(["fold", "cse"]), dump=tmp_path).run(graph)
    for name in ("01_fold.ir", "02_cse.ir"):
        (constant,) = read_ir(tmp_path / name).find("constant")
        np.testing.assert_array_equal(constant.attrs["value"], np.arange(40))


def test_a_dump_that_cannot_be_written_is_one_clear_line(graph: Graph) -> None:
    with pytest.raises(CompileError, match=r"cannot write /proc/nowhere/01_cse\.ir: "):
        PassManager(resolve(["cse"]), dump=Path("/proc/nowhere")).run(graph)


def test_stop_after_an_absent_pass_is_an_error(graph: Graph) -> None:
    with pytest.raises(CompileError, match="the pipeline has no pass 'fuze'\nhint: did you mean 'fuse'"):
        PassManager(resolve(["cse", "fuse"]), stop_after="fuze").run(graph)


def test_a_pass_that_breaks_the_graph_is_named(graph: Graph) -> None:
    @dataclass(frozen=True)
    class Breaks(Pass):
        @property
        def name(self) -> str:
            return "breaks"

        def run(self, graph: Graph) -> None:
            graph.insert(Op("exp", [graph.outputs[0]], {}, [graph.inputs[0].type]), before=next(graph.ops))

    with pytest.raises(CompileError, match="pass 'breaks' left a broken graph: operand 0 of exp is used before"):
        PassManager([Breaks()]).run(graph)


def test_a_pass_that_fails_is_named_with_its_line(graph: Graph) -> None:
    @dataclass(frozen=True)
    class Fails(Pass):
        def run(self, graph: Graph) -> None:
            int(f"no {graph.name}")

    name = Path(__file__).name
    line = Fails.run.__code__.co_firstlineno + 1
    with pytest.raises(CompileError) as caught:
        PassManager([Fails()]).run(graph)
    expected = f"pass 'test_manager' failed: ValueError: invalid literal for int() with base 10: 'no m' ({name}:{line})"
    assert str(caught.value) == expected and isinstance(caught.value.__cause__, ValueError)


def test_optimize_leaves_the_original(graph: Graph) -> None:
    before = print_graph(graph)
    assert len(optimize(graph)) == 1
    assert print_graph(graph) == before
