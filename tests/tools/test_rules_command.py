"""secateur test-rules and opt --explain, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secateur.tools.main import main

GOOD = "// -(-x) == x\nrule double: neg(neg(x)) => x\n"
BAD = "// x + y == x\nrule lost: add(x, y) => x\n"
GRAPH = "graph @m(%x: f32[2]) -> (f32[2]) {\n  %0 = abs(%x) : f32[2]\n  %1 = neg(%0) : f32[2]\n  return %1\n}\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_good_rules_pass(capsys: pytest.CaptureFixture[str]) -> None:
    Path("good.rules").write_text(GOOD)
    assert main(["test-rules", "good.rules", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["lint"] == [] and report["rules"][0]["ok"] and report["rules"][0]["instances"] == 40


def test_a_wrong_rule_is_shown_with_its_counterexample(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.rules").write_text(GOOD + "\n" + BAD)
    assert main(["test-rules", "bad.rules"]) == 1
    shown = capsys.readouterr()
    assert "bad.rules:5:6: rule 'lost' is wrong: " in shown.err and "graph @instance() -> (" in shown.err
    assert "error: 1 of 2 rules have faults: 1 wrong" in shown.err and "--seed" in shown.err


PYTHON = '''
from secateur.ir.rewrite import rule

@rule("square(neg(x))")
def even(m, b):
    """(-x)^2 == x^2"""
    return b.square(m["x"])
'''


def test_rules_in_python(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(PYTHON)
    assert main(["test-rules", "mine.py", "--json"]) == 0
    assert [item["rule"] for item in json.loads(capsys.readouterr().out)["rules"]] == ["even"]
    Path("mine.py").write_text("1 / 0")
    assert main(["test-rules", "mine.py"]) == 1
    assert "error: cannot load mine.py: ZeroDivisionError" in capsys.readouterr().err


def test_lint_only(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.rules").write_text(BAD.partition("\n")[2])
    assert main(["test-rules", "--lint-only", "bad.rules"]) == 1
    assert "rule 'lost' has no comment with its algebra above it" in capsys.readouterr().err


def test_a_syntax_error_shows_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.rules").write_text("rule a: neg(x => x\n")
    assert main(["test-rules", "bad.rules"]) == 1
    err = capsys.readouterr().err
    assert "bad.rules:1:15: unexpected '=>'" in err and "                ^" in err and "expected" in err


def test_explain_and_rewrite(capsys: pytest.CaptureFixture[str]) -> None:
    Path("good.rules").write_text(GOOD)
    Path("m.ir").write_text(GRAPH)
    command = ["opt", "m.ir", "-p", "rewrite{rules=good.rules}"]
    assert main([*command, "--explain", "double", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    why = "abs is not neg (at m.ir:2:8)"
    assert report["fired"] == 0 and [miss["why"] for miss in report["misses"]] == [why]
    assert report["misses"][0]["at"] == "m.ir:3:8"
    assert main([*command, "--explain", "duoble"]) == 1
    assert "did you mean 'double'?" in capsys.readouterr().err


def test_explain_a_rule_that_fires_wherever_it_is_tried(capsys: pytest.CaptureFixture[str]) -> None:
    Path("good.rules").write_text(GOOD)
    Path("m.ir").write_text(GRAPH.replace("abs(", "neg("))
    assert main(["opt", "m.ir", "-p", "rewrite{rules=good.rules}", "--explain", "double", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fired"] == 1


def test_explain_a_rule_without_a_place_in_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    Path("two.rules").write_text(GOOD + "\n// sqrt(x)^2 == x\nrule unrooted: square(sqrt(x)) => x\n")
    Path("m.ir").write_text(GRAPH)
    command = ["opt", "m.ir", "-p", "rewrite{rules=two.rules}", "--explain"]
    assert main([*command, "unrooted"]) == 1
    err = capsys.readouterr().err
    assert "rule 'unrooted' was never tried" in err and "its root, the last operation" in err
    assert main([*command, "unrotted"]) == 1
    assert "did you mean 'unrooted'?" in capsys.readouterr().err
    assert main([*command, "something_else"]) == 1
    assert "there is no rule 'something_else'" in capsys.readouterr().err


def test_a_rule_that_loops_is_not_ok(capsys: pytest.CaptureFixture[str]) -> None:
    Path("loop.rules").write_text(GOOD + "\n// x + y == y + x\nrule swap: add(x, y) => add(y, x)\n")
    assert main(["test-rules", "loop.rules"]) == 1
    shown = capsys.readouterr()
    (row,) = [line for line in shown.out.splitlines() if "swap" in line]
    assert "loops" in row and " ok " not in row
    assert "error: 1 of 2 rules have faults: 0 wrong, 1 found by the linter" in shown.err
    assert main(["test-rules", "loop.rules", "--json"]) == 1
    assert [item["ok"] for item in json.loads(capsys.readouterr().out)["rules"]] == [True, False]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.rules", "error: there is no file none.rules"),
        ("none.py", "error: there is no file none.py"),
        ("m.ir", "error: m.ir is neither a .rules file nor a Python file with rules"),
        ("empty.py", "error: empty.py holds no rules"),
    ],
)
def test_a_file_without_rules(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("m.ir").write_text(GRAPH)
    Path("empty.py").write_text("")
    assert main(["test-rules", name]) == 1
    assert message in capsys.readouterr().err


def test_a_missing_file_of_rules_for_the_rewrite_pass(capsys: pytest.CaptureFixture[str]) -> None:
    Path("m.ir").write_text(GRAPH)
    assert main(["opt", "m.ir", "-p", "rewrite{rules=none.rules}"]) == 1
    assert "there is no file none.rules" in capsys.readouterr().err
