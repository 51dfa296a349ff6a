"""Planted mistakes become a few operations that show them, and a file that shows them again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from secateur.ir.graph import Graph
from secateur.ir.interpret import interpret
from secateur.ir.text import parse, write_ir
from secateur.passes.base import load_pass
from secateur.passes.manager import resolve
from secateur.tools.bisect import bisect
from secateur.tools.cases import Check, read_case, read_inputs, write_case
from secateur.tools.main import main
from secateur.tools.reduce import Case, Reducer, unpacked
from secateur.tools.resize import shrunk

# The planted pass -> the most operations that may be left of the 60.
LEFT = {
    "dropped_bias": 2,
    "swapped_sub": 2,
    "wrong_broadcast": 3,
    "lost_cast": 2,
    "relu_side": 2,
    "wrong_perm": 2,
    "lost_sign": 2,
    "wrong_axis": 1,
    "off_by_one": 1,
    "wrong_eps": 1,
    "not_transposed": 2,
    "crashing": 1,
    "broken": 2,
}


@pytest.mark.parametrize("name", LEFT)
def test_a_planted_mistake_is_reduced(
    name: str, host: Graph, tensors: list[np.ndarray], plants: Path, tmp_path: Path
) -> None:
    load_pass(plants / f"{name}.py")
    passes = resolve([name])
    found = bisect(host, tensors, resolve(["fold", "cse", name]), 1e-3).finding
    assert found is not None and len(found.graph) > 50
    check = Check(passes, 1e-3)
    kind = check.verdict(found.graph, found.inputs)
    case = Reducer(Case(found.graph, tuple(found.inputs)), lambda *tried: check.verdict(*tried) == kind).run()
    print(case.graph)
    assert len(case.graph) <= LEFT[name]
    assert sum(array.size for array in case.inputs) <= 36

    file = tmp_path / "wrong.ir"
    write_case(file, case.graph, case.inputs, check, name)
    again, inputs, same = read_case(file)
    assert str(again) == str(case.graph) and same.verdict(again, inputs) == kind
    assert Check([], 1e-3).verdict(again, inputs) == "right", "without the pass the case is fine"


def test_the_command(
    host: Graph, tensors: list[np.ndarray], plants: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ir(host, tmp_path / "m.ir")
    np.savez(tmp_path / "x.npz", *tensors)
    common = ["reduce", str(tmp_path / "m.ir"), "--inputs", str(tmp_path / "x.npz"), "-o", str(tmp_path / "w.ir")]
    common.append("--passes-only")
    assert main(common) == 1
    assert "there is nothing to reduce" in capsys.readouterr().err
    planted = [*common, "--load", str(plants / "off_by_one.py"), "-p", "fold off_by_one dce"]
    assert main([*planted, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["ops"] == 1 and done["culprit"] == "off_by_one" and "slice" in done["text"]
    again = ["bisect", str(tmp_path / "w.ir"), "--passes-only"]
    assert main([*again, "--load", str(plants / "off_by_one.py"), "-p", "off_by_one"]) == 1
    assert main([*again, "-p", "fold"]) == 0
    assert main(["bisect", str(tmp_path / "m.ir")]) == 1
    assert "give --inputs FILE.npz or --random SEED" in capsys.readouterr().err


def test_a_reduced_case_is_read_back_exactly(tmp_path: Path) -> None:
    graph = parse("graph @m(%a: f16[2], %b: bool[2], %c: i8[0], %d: f32[]) -> (f16[2]) {\n  return %a\n}\n")
    inputs = [
        np.array([np.nan, -np.inf], np.float16),
        np.array([True, False]),
        np.zeros(0, np.int8),
        np.array(0.1, np.float32),
    ]
    write_case(tmp_path / "c.ir", graph, inputs, Check(resolve(["fold{limit=3}", "cse"]), 0.5), "a\nb")
    again, arrays, check = read_case(tmp_path / "c.ir")
    assert str(again) == str(graph)
    assert [str(item) for item in check.passes] == ["fold{limit=3}", "cse"] and check.tolerance == 0.5
    for one, other in zip(inputs, arrays, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_shapes_shrink_together() -> None:
    text = """graph @m(%x: f32[8,12]) -> (f32[8,4,3]) {
      %0 = reshape(%x) {shape = [8,4,3]} : f32[8,4,3]
      %1 = exp(%0) : f32[8,4,3]
      return %1
    }"""
    x = np.arange(96, dtype=np.float32).reshape(8, 12)
    shapes = {made.inputs[0].shape for made, _ in shrunk(parse(text), [x])}
    assert {(1, 12), (4, 12)} <= shapes
    for made, arrays in shrunk(parse(text), [x]):
        assert interpret(made, *arrays)[0].size == arrays[0].size


def test_fusions_are_unpacked() -> None:
    text = """graph @m(%x: f32[2]) -> (f32[2]) {
      %0 = fusion(%x) {kind = "pointwise"} graph @body(%a: f32[2]) -> (f32[2]) {
        %0 = exp(%a) : f32[2]
        %1 = neg(%0) : f32[2]
        return %1
      } : f32[2]
      return %0
    }"""
    graph = parse(text)
    case = unpacked(Case(graph, (np.float32([1, 2]),)), graph.find("fusion")[0])
    assert [op.name for op in case.graph.ops] == ["exp", "neg"]
    np.testing.assert_array_equal(interpret(case.graph, *case.inputs), interpret(graph, *case.inputs))


def test_inputs_of_a_file() -> None:
    (array,) = read_inputs("// input i64[2,1] = [9007199254740993, -1]\n")
    assert array.tolist() == [[9007199254740993], [-1]]
