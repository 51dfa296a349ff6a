"""Passes that come from elsewhere: files of one's own, and the entry points of installed packages."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from secateur.ir.diagnostics import CompileError
from secateur.ir.text import parse
from secateur.passes import base
from secateur.passes.manager import optimize
from secateur.tools.main import main

TEXT = "graph @m(%x: f32[4]) -> (f32[4]) {\n  %0 = relu(%x) : f32[4]\n  %1 = relu(%0) : f32[4]\n  return %1\n}\n"
PASS = """
from dataclasses import dataclass

from secateur.ir.graph import Graph
from secateur.passes.base import Pass


@dataclass(frozen=True)
class Rename(Pass):
    \"\"\"Gives every value a hint.\"\"\"

    hint: str = "v"
    times: int = 1

    def run(self, graph: Graph) -> None:
        for op in graph.ops:
            op.result.hint = self.hint * self.times
"""


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test loads or installs is gone after it."""
    monkeypatch.setattr(base, "_loaded", {})
    base._installed.cache_clear()
    yield
    base._installed.cache_clear()


def test_a_file_is_a_pass_with_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, model = tmp_path / "rename.py", tmp_path / "m.ir"
    file.write_text(PASS)
    model.write_text(TEXT)
    assert main(["opt", str(model), "--load", str(file), "-p", "rename{hint=abc,times=2} cse"]) == 0
    assert "%abcabc = relu(%x)" in capsys.readouterr().out
    assert main(["passes", "rename", "--load", str(file)]) == 0
    assert "Gives every value a hint." in capsys.readouterr().out
    assert str(base.make_pass("rename{times=3}")) == "rename{times=3}"


def test_options_may_be_absent(tmp_path: Path) -> None:
    file = tmp_path / "rename.py"
    options = "limit: int | None = None\n    names: tuple[str, ...] | None = None\n    sizes: tuple[int, ...] = (1,)"
    file.write_text(PASS.replace("times: int = 1", options + "\n    table: dict | None = None\n    odd: object = 1j"))
    base.load_pass(file)
    made = vars(base.make_pass("rename{limit=3,names=a+b,sizes=2+3}"))
    assert made == {"hint": "v", "limit": 3, "names": ("a", "b"), "sizes": (2, 3), "table": None, "odd": 1j}
    assert base.make_pass("rename{limit=none}") == base.make_pass("rename")
    for text, message in [
        ("limit=x", "option 'limit' must be int, got 'x'"),
        ("table=1", "option 'table' cannot be given as text"),
        ("odd=1", "option 'odd' cannot be given as text"),
    ]:
        with pytest.raises(CompileError, match=message):
            base.make_pass(f"rename{{{text}}}")


def test_a_file_that_has_changed_is_loaded_again(tmp_path: Path) -> None:
    file = tmp_path / "rename.py"
    for hint in ("a", "b"):
        file.write_text(PASS.replace('"v"', f'"{hint}"'))
        base.load_pass(file)
        assert f"%{hint} = relu(%x)" in str(optimize(parse(TEXT), ["rename"]))


def test_a_file_of_rules_is_a_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.rules"
    file.write_text("// relu(relu(x)) == relu(x)\nrule twice tolerance 1e-6: relu(relu(x)) => relu(x)\n")
    item = base.load_pass(file)
    assert (item.exact, item.tolerance, item().name, str(item())) == (False, 1e-6, "mine", "mine")
    assert str(optimize(parse(TEXT), ["mine"])).count("relu(") == 1
    assert main(["passes", "mine", "--load", str(file)]) == 0
    assert "twice: relu(relu(x)) == relu(x)" in capsys.readouterr().out


def test_an_installed_package_brings_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text(PASS)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{base.GROUP}]\ntheirs = theirs\nbroken = nowhere.at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.warns(UserWarning, match="'broken' of an installed package cannot be used: No module named 'nowhere'"):
        assert "theirs" in base.all_passes()
    assert "%vv = relu" in str(optimize(parse(TEXT), ["theirs{times=2}"]))


WRONG = [
    ("fold.py", PASS, "'fold' is taken"),
    ("my-pass.py", PASS, "'my-pass' is not a name"),
    ("notes.txt", PASS, "neither a .py nor a .rules file"),
    ("mine.rules", "rule a: relu(x => x\n", "mine.rules:1"),
    ("rename.py", "x = 1\n", "exactly one subclass of Pass, this one: none"),
    ("rename.py", PASS + PASS.replace("Rename", "Other"), "this one: Rename, Other"),
    ("rename.py", PASS.replace("@dataclass(frozen=True)", ""), "put @dataclass(frozen=True) on it"),
    ("rename.py", PASS.replace(' = "v"', ""), "option 'hint' has no default"),
    (
        "rename.py",
        PASS.replace(' = "v"', " = field(default_factory=list)").replace("import dataclass", "import dataclass, field"),
        "'hint' has a default_factory, and must have a plain default",
    ),
    ("rename.py", PASS.replace("def run", "def go"), "has no method run(self, graph)"),
    ("rename.py", "x = 1\ny = )\n", "rename.py:2: cannot load"),
    ("rename.py", "x = 1\ny = x.nowhere\n", "rename.py:2: cannot load"),
]


@pytest.mark.parametrize(("name", "text", "message"), WRONG)
def test_a_file_that_holds_no_pass_is_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CompileError) as caught:
        base.load_pass(tmp_path / name)
    assert message in str(caught.value)
    assert not base._loaded


def test_the_line_is_told_of_a_relative_path_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rename.py").write_text("x = 1\ny = x.nowhere\n")
    with pytest.raises(CompileError, match=r"^rename\.py:2: cannot load"):
        base.load_pass("rename.py")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="there is no such file"):
        base.load_pass(tmp_path / "none.py")
