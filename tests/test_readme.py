"""What the README shows works as it is written there; its code blocks run in `test_docs.py`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from secateur.ir.text import parse
from secateur.tools.main import parse_arguments

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text()


@pytest.mark.parametrize("line", re.findall(r"^    (secateur .*)$", TEXT, re.M))
def test_the_command_lines_are_understood(line: str) -> None:
    if " | " in line:
        first, *others = line.split(" | ")
        lines = [first, *(f"secateur {name}" for name in others)]
    else:
        lines = [line]
    for one in lines:
        parse_arguments(shlex.split(one)[1:])


def test_the_graph_is_valid() -> None:
    import numpy as np

    (text,) = re.findall(r"^    graph .*?^    \}$", TEXT, re.M | re.S)
    parse(text, {"0.weight": np.zeros((32, 64), np.float32)})


def test_pictures_and_targets_of_make_exist() -> None:
    for name in re.findall(r"\]\((docs/[^)]+)\)", TEXT):
        assert (README.parent / name).is_file()
    makefile = (README.parent / "Makefile").read_text()
    for target in set(re.findall(r"make (demo|test|bench)\b", TEXT)):
        assert re.search(rf"^{target}:", makefile, re.M)
