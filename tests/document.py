"""Runs the code blocks of a Markdown file, in order, in the current folder: `python document.py FILE.md`.

What follows the language of a block names a file to write it to; without a name it is run:

    python    executed; the blocks of a document share their names
    ir        parsed as a graph
    rules     parsed as rules
    c         only written to its file
    console   lines with `$` are commands (`secateur`, `pytest`); every other line must be part of what
              they print, in order, `...` standing for anything. A line `error: ...` says that it fails.
    text      not run: output, and things that are no code
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from secateur.ir.rules import parse_rules
from secateur.ir.text import parse
from secateur.ir.types import TensorType
from secateur.tools.main import main

BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)
NAMED = re.compile(r"constant @([^\s{]+) : (\w+\[[\d,]*\])")


def run_document(path: Path) -> int:
    """Run every block and return how many there were; raises what a block raises, `AssertionError` for output."""
    text = path.read_text()
    names: dict[str, Any] = {"__name__": "document"}
    count = 0
    for match in BLOCK.finditer(text):
        line = text[: match.start()].count("\n") + 1
        language, _, file = match[1].partition(" ")
        print(f"{path.name}:{line}: {match[1]}")
        if file:
            Path(file).write_text(match[2])
        if language == "python":
            exec(compile(match[2], file or f"{path.name}:{line}", "exec"), {} if file else names)
        elif language == "ir":
            types = {name: TensorType.parse(type) for name, type in NAMED.findall(match[2])}
            parse(match[2], {name: np.zeros(type.shape, type.dtype.numpy) for name, type in types.items()})
        elif language == "rules":
            parse_rules(match[2])
        elif language == "c":
            assert file, "a block of C needs a file's name"
        elif language == "console":
            console(match[2])
        else:
            assert language == "text", f"nothing is known of blocks of {language!r}"
        count += 1
    return count


def console(block: str) -> None:
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, *expected = part.strip().splitlines()
        code, printed = call(shlex.split(command))
        fails = any(line.startswith("error: ") for line in expected)
        assert bool(code) == fails, f"{command}: exit code {code}\n{printed}"
        rest = plain(printed)
        for line in expected:
            for piece in filter(None, plain(line).split(" ... ")):
                assert piece.strip(". ") in rest, f"{command} does not print {piece!r}, but\n{printed}"
                rest = rest[rest.index(piece.strip(". ")) :]


def call(words: list[str]) -> tuple[int, str]:
    """The exit code of a command, and what it prints: first its output, then its errors."""
    if words[0] == "pytest":
        done = subprocess.run([sys.executable, "-m", *words, "-p", "no:cacheprovider"], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr
    assert words[0] == "secateur", f"{words[0]} is not a command of a document"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words[1:])
    return code, out.getvalue() + err.getvalue()


def plain(text: str) -> str:
    """Words with single spaces, without the frames of tables."""
    return " ".join(re.sub(r"[│┃━─┏┓┗┛┡┩└┘├┤┬┴┼╇╈┳┻╀]", " ", text).split())


if __name__ == "__main__":
    assert run_document(Path(sys.argv[1]).absolute()), "no block"
