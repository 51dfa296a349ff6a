"""Text in, text out: every file under `cases/<pass>/` is a program before and after the pass.

A case is the program, a line `// ---- after <passes>` (one pass, or several with ` then ` between),
and the program expected. `pytest --bless` rewrites what follows that line. Both programs are also
run on random inputs and compared: bit for bit, or within the tolerances that the passes state.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from secateur.ir.draw import Draw
from secateur.ir.graph import Graph
from secateur.ir.interpret import interpret
from secateur.ir.text import parse, print_graph
from secateur.ir.types import TensorType
from secateur.passes.base import Pass, all_passes
from secateur.passes.manager import PassManager, resolve

CASES = Path(__file__).parent / "cases"
MARK = re.compile(r"^// ---- after (.+)\n", re.MULTILINE)
NAMED = re.compile(r"constant @(?P<name>[^\s{]+) : (?P<type>\w+\[[\d,]*\])")


def random_tensor(draw: Draw, type: TensorType, name: str) -> np.ndarray:
    """Random data; positive where the name says that it is a variance."""
    low, high = (0.5, 2.0) if "var" in name else (None, None)
    return draw.tensor(type.dtype, type.shape, low, high)


def read(text: str, draw: Draw) -> Graph:
    types = {match["name"]: TensorType.parse(match["type"]) for match in NAMED.finditer(text)}
    return parse(text, {name: random_tensor(draw, type, name) for name, type in types.items()})


def shown(graph: Graph, source: str) -> str:
    """The text of a graph without the values of constants whose data is random."""
    names = {re.escape(match["name"]) for match in NAMED.finditer(source)}
    if not names:
        return print_graph(graph)
    return re.sub(rf"(constant @(?:{'|'.join(names)})(?:\.\w+)*) \{{value = [^}}]*\}}", r"\1", print_graph(graph))


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Norm of the difference over the norm, where both are finite; infinite where they are not alike."""
    got, want = (np.asarray(array, np.float64) for array in (got, want))
    finite = np.isfinite(want)
    if got.shape != want.shape or not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return np.inf
    return float(np.linalg.norm(got[finite] - want[finite]) / max(np.linalg.norm(want[finite]), 1e-30))


def assert_same(before: Graph, after: Graph, draw: Draw, tolerance: float) -> None:
    inputs = [random_tensor(draw, value.type, value.hint) for value in before.inputs]
    for want, got in zip(interpret(before, *inputs), interpret(after, *inputs), strict=True):
        assert got.dtype == want.dtype
        if tolerance:
            assert relative_error(got, want) <= tolerance
        else:
            np.testing.assert_array_equal(got, want)


def tolerance(passes: list[Pass]) -> float:
    return sum(item.tolerance for item in passes)


@pytest.mark.parametrize("path", sorted(CASES.glob("*/*.ir")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_case(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text()
    mark = MARK.search(text)
    assert mark, f"{path} has no line '// ---- after <pass>'"
    source, expected = text[: mark.start()], text[mark.end() :]
    seed = int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}")
    draw = Draw(seed, specials=False)
    before = read(source, draw)
    passes = resolve(mark[1].split(" then "))
    unchanged = print_graph(before)
    after = PassManager(passes).run(before.clone())
    if request.config.getoption("--bless"):
        path.write_text(text[: mark.end()] + shown(after, source))
    else:
        assert shown(after, source) == expected
    assert print_graph(before) == unchanged, "the pass changed a copy's original"
    assert_same(before, after, draw, tolerance(passes))


def test_every_pass_has_a_case() -> None:
    covered = {path.parent.name for path in CASES.glob("*/*.ir")}
    assert not set(all_passes()) - covered
