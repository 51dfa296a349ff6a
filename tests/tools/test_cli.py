"""The command line, from arguments to what is printed and the exit code."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.tools.main import commands, main

TEXT = """graph @m(%x: f32[2,3]) -> (f32[2,3]) {
  %a = constant {value = [1.0]} : f32[1]
  %b = add(%a, %a) : f32[1]
  %0 = add(%x, %b) : f32[2,3]
  %1 = relu(%0) : f32[2,3]
  return %1
}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.ir").write_text(TEXT)


def call(*argv: str) -> int:
    """The exit code of a command line, however it ends."""
    try:
        return main(argv)
    except SystemExit as leave:
        return int(leave.code or 0)


def as_json(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    assert call(*argv, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(name, "--help") == 0
    printed = capsys.readouterr().out
    assert "example:" in printed and f"secateur {name}" in printed


WRONG_USAGE = [
    (["complie"], "did you mean 'compile'?"),
    (["compile", "m.ir", "-o", "out", "--thread", "2"], "did you mean '--threads'?"),
    (["compile", "m.ir"], "required: -o/--output"),
    (["compile", "m.ir", "-o", "out", "--threads", "0"], "must be at least 1"),
    ([], "required: COMMAND"),
]
FAILURES = [
    (["opt", "m.ir", "-p", "fld"], "did you mean 'fold'?"),
    (["opt", "m.ir", "-p", "fold{limt=3}"], "did you mean 'limit'?"),
    (["opt", "m.ir", "-p", "fold{limit=many}"], "must be int"),
    (["opt", "m.ir", "--pipeline", "defualt"], "did you mean 'default'?"),
    (["opt", "m.ir", "--stop-after", "nowhere"], "no pass 'nowhere'"),
    (["opt", "m.ir", "-p", "rewrite"], "rewrite{rules=my.rules}"),
    (["opt", "n.ir"], "did you mean 'm.ir'?"),
    (["opt", "m.ir", "-o", "/proc/nowhere/x.ir"], "cannot write"),
    (["ops", "rleu"], "did you mean 'relu'?"),
    (["passes", "fuze"], "did you mean 'fuse'?"),
    (["view", "m.ir", "-o", "m.gif"], "must end in a kind of picture"),
    (["bench", "m.ir", "--against", "onxruntime"], "did you mean 'onnxruntime'?"),
    (["compile", "zoo:resnet5", "-o", "out"], "did you mean 'resnet50'?"),
    (["compile", "zoo:minilm-smal", "-o", "out"], "did you mean 'minilm-small'? there are resnet18, "),
    (["compile", "zoo:", "-o", "out"], "zoo: needs a model's name\nhint: there are resnet18, "),
    (["compile", "nowhere.at_all:f", "-o", "out"], "'nowhere'"),
    (["compile", "m.ir", "-o", "out", "--target", "x86-64-v5"], "did you mean"),
    (["compile", "m.ir", "-o", "/proc/nowhere/out"], "cannot write /proc/nowhere/out"),
    (["compile", "m.ir", "-o", "m.ir"], "is not a compiled artefact"),
    (["compile", "m.ir", "-o", "out", "--cc", "no-such-compiler"], "no-such-compiler"),
    (["run", "m.ir", "--interpret", "--inputs", "m.ir"], "cannot read m.ir as a .npz file"),
    (["run", "m.ir", "--interpret", "--inputs", "x.npz"], "there is no file x.npz"),
    (["run", ".", "--random", "0"], "is not an artefact"),
]


@pytest.mark.parametrize(("argv", "message"), WRONG_USAGE)
def test_wrong_usage_exits_with_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("argv", "message"), FAILURES)
def test_failures_exit_with_1_and_no_traceback(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*argv) == 1
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed and "internal error" not in printed
    assert sorted(path.name for path in Path().iterdir()) == ["m.ir"], "something half-written was left"


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(Exception, match="unknown pass"):
        main(["opt", "m.ir", "-p", "fld", "--debug"])


def test_opt_prints_text_that_opt_reads(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("opt", "m.ir", "-p", "fold dce") == 0
    once = capsys.readouterr().out
    assert "constant {value = [2.0]}" in once and once.count("add") == 1
    monkeypatch.setattr("sys.stdin", io.StringIO(once))
    assert call("opt", "-", "--pipeline", "none") == 0
    assert capsys.readouterr().out == once


def test_opt_stops_dumps_and_times(capsys: pytest.CaptureFixture[str]) -> None:
    done = as_json(capsys, "opt", "m.ir", "-p", "fold", "-p", "cse,dce", "--stop-after", "cse", "--dump", "steps")
    assert [record["pass"] for record in done["passes"]] == ["fold", "cse"]
    assert sorted(path.name for path in Path("steps").iterdir()) == ["01_fold.ir", "02_cse.ir"]


def test_opt_shows_the_time_of_passes_and_rules(capsys: pytest.CaptureFixture[str]) -> None:
    text = "graph @m(%x: f32[2]) -> (f32[2]) {\n  %0 = relu(%x) : f32[2]\n  %1 = relu(%0) : f32[2]\n  return %1\n}\n"
    Path("m.ir").write_text(text)
    Path("mine.rules").write_text("// relu(relu(x)) == relu(x)\nrule again: relu(relu(x)) => relu(x)\n")
    assert call("opt", "m.ir", "--load", "mine.rules", "-p", "mine dce", "--time-passes") == 0
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().err.splitlines()]
    assert ["again", "1", "0"] in [line[:3] for line in lines]
    assert ["mine", "2", "1", "1"] in [[line[0], *line[3:]] for line in lines if line[:1] == ["mine"]]


def test_opt_writes_text_and_weights() -> None:
    from secateur.ir.builder import Builder
    from secateur.ir.text import read_ir, write_ir

    b = Builder.graph("m", x="f32[1,40]")
    write_ir(b.returns(b.add(b["x"], b.constant(np.arange(40, dtype=np.float32), name="w"))), "big.ir")
    assert call("opt", "big.ir", "-o", "out.ir") == 0
    (constant,) = read_ir("out.ir").find("constant")
    np.testing.assert_array_equal(constant.attrs["value"], np.arange(40))


def test_compile_then_run_agrees_with_the_interpreter(capsys: pytest.CaptureFixture[str]) -> None:
    done = as_json(capsys, "compile", "m.ir", "-o", "out")
    assert done["report"]["kernels"] and {"model.c", "model.h", "manifest.json"} <= done["files"].keys()
    assert sorted(path.name for path in Path().iterdir()) == ["m.ir", "out"]
    assert call("run", "out", "--random", "3", "-o", "a.npz") == 0
    assert call("run", "m.ir", "--interpret", "--random", "3", "-o", "b.npz") == 0
    with np.load("a.npz") as a, np.load("b.npz") as b:
        np.testing.assert_array_equal(a[a.files[0]], b[b.files[0]])


def test_compile_replaces_an_artefact_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("compile", "m.ir", "-o", "out") == 0
    assert call("compile", "m.ir", "-o", "out", "--target", "generic") == 0
    assert json.loads(Path("out/manifest.json").read_text())["target"] == "generic"
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    assert call("compile", "m.ir", "-o", "mine") == 1
    assert [path.name for path in Path("mine").iterdir()] == ["letter.txt"]


def test_a_failing_compiler_shows_its_message_and_keeps_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    compiler = Path("cc.sh")
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'this is beyond me' >&2\nexit 1\n")
    compiler.chmod(0o755)
    assert call("compile", "m.ir", "-o", "out", "--cc", str(compiler.absolute())) == 1
    printed = capsys.readouterr().err
    assert "this is beyond me" in printed and "out.failed" in printed
    assert Path("out.failed/model.c").exists() and not Path("out").exists()


def test_code_for_another_machine_can_be_compiled_here(capsys: pytest.CaptureFixture[str]) -> None:
    import platform

    other = "aarch64" if platform.machine() == "x86_64" else "x86-64-v2"
    assert call("compile", "m.ir", "-o", "out", "--target", other) == 0
    assert call("run", "out", "--random", "0") == 1
    assert "this machine is" in capsys.readouterr().err


def test_run_takes_tensors_by_name_or_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.full((2, 3), -5, np.float32)
    for name, tensors in (("a.npz", {"x": x}), ("b.npz", {"arr_0": x})):
        np.savez(name, **tensors)
        done = as_json(capsys, "run", "m.ir", "--interpret", "--inputs", name)
        assert done["outputs"][0]["max"] == 0
    np.savez("c.npz", other=x)
    assert call("run", "m.ir", "--interpret", "--inputs", "c.npz") == 0
    capsys.readouterr()
    np.savez("c.npz", y=x, z=x)
    assert call("run", "m.ir", "--interpret", "--inputs", "c.npz") == 1
    assert "has no tensor 'x' (f32[2,3])" in capsys.readouterr().err
    np.savez("d.npz", x=x[:1])
    assert call("run", "m.ir", "--interpret", "--inputs", "d.npz") == 1
    assert "input 0 (x) must be f32[2,3], got f32[1,3]" in capsys.readouterr().err


def test_random_masks_are_ones_unless_they_are_floats() -> None:
    from secateur.ir.types import TensorType
    from secateur.tools.models import random_inputs

    types = [TensorType.parse(text) for text in ("i64[40]", "bool[40]", "f32[40]", "i64[40]")]
    names = ["attention_mask", "mask", "mask", "ids"]
    ones = [bool(np.all(array == 1)) for array in random_inputs(list(zip(names, types)), 0)]
    assert ones == [True, True, False, False]


def test_listings(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"relu", "conv", "matmul"} <= {op["name"] for op in as_json(capsys, "ops")}
    assert as_json(capsys, "ops", "conv")["attrs"]["groups"]["default"] == "1"
    listed = as_json(capsys, "passes")
    assert "fold" in {item["name"] for item in listed["passes"]} and "default" in listed["pipelines"]
    targets = as_json(capsys, "targets")
    assert sum(target["native"] for target in targets) == 1
    for argv in (["ops"], ["ops", "conv"], ["passes"], ["passes", "fold"], ["targets"]):
        assert call(*argv) == 0
        assert capsys.readouterr().out.strip()


def test_doctor_compiles_and_runs_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    checks = {check["name"]: check for check in as_json(capsys, "doctor")}
    assert checks["C compiler"]["state"] == checks["python"]["state"] == "ok"
    assert all(check["advice"] for check in checks.values() if check["state"] != "ok")
    assert call("doctor", "--cc", "no-such-compiler") == 1
    assert "no-such-compiler" in capsys.readouterr().out
