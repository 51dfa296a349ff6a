"""A failure as one file of IR text: the program, its inputs, and what was run on it.

    // reduced: swap in bad_sub
    // passes: bad_sub
    // tolerance: 0.001
    // input f32[2] = [1.0, -2.0]
    graph @m(%x: f32[2]) -> (f32[2]) { ...

With `// compiled` in the place of passes, the failure was in the compiled code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateur.backends.cpu.compile import Options
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.ir.interpret import run
from secateur.ir.text import read_ir, write_ir
from secateur.ir.types import TensorType
from secateur.passes.base import Pass, make_pass
from secateur.tools.bisect import apply, distance, run_compiled

_INPUT = re.compile(r"^// input (\w+\[[\d,]*\]) = \[(.*)\]$", re.M)
_WORDS = {"True": True, "False": False}


@dataclass(frozen=True)
class Check:
    """What is run on a program, and how far its results may then be from the interpreter's.

    Attributes:
        passes: run in order; none with `compile`.
        compile: how to compile; None where only passes are checked.
    """

    passes: Sequence[Pass]
    tolerance: float
    compile: Options | None = None

    def verdict(self, graph: Graph, inputs: Sequence[np.ndarray]) -> str:
        """`right`, `wrong`, `raises TYPE` of what is checked, or `invalid` where the program itself cannot run."""
        try:
            want = run(graph, inputs)
        except Exception:  # a reference may raise anything on inputs that make no sense
            return "invalid"
        try:
            got = self.results(graph.clone(), inputs)
        except Exception as failure:  # the failure that is looked for
            return f"raises {type(failure.__cause__ or failure).__name__}"
        return "right" if distance(got, want) <= self.tolerance else "wrong"

    def results(self, graph: Graph, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        for item in self.passes:
            apply(item, graph)
        return run(graph, inputs) if self.compile is None else run_compiled(graph, inputs, self.compile)


def write_case(path: str | Path, graph: Graph, inputs: Sequence[np.ndarray], check: Check, title: str) -> None:
    """Write a program, its inputs and its check as IR text; large constants go beside it.

    Raises:
        CompileError: the file cannot be written.
    """
    path = Path(path)
    lines = [f"// reduced: {' '.join(title.split())}"]
    lines.append("// compiled" if check.compile is not None else f"// passes: {' '.join(map(str, check.passes))}")
    lines.append(f"// tolerance: {check.tolerance!r}")
    lines += [f"// input {TensorType.of(array)} = [{', '.join(map(str, array.reshape(-1)))}]" for array in inputs]
    try:
        write_ir(graph, path, spans=False)
        path.write_text("\n".join(lines) + "\n" + path.read_text())
    except OSError as error:
        raise CompileError(f"cannot write {path}: {error.strerror or error}") from None


def read_case(path: str | Path) -> tuple[Graph, list[np.ndarray], Check]:
    """Read what `write_case` wrote; the passes it names must be known.

    Raises:
        CompileError: the file is not a case, or names a pass that is not known.
    """
    graph = read_ir(path)
    text = Path(path).read_text()
    passes = re.search(r"^// passes: (.*)$", text, re.M)
    tolerance = re.search(r"^// tolerance: (\S+)$", text, re.M)
    if not tolerance or not (passes or "\n// compiled\n" in text):
        raise CompileError(f"{path} has no lines `// passes:` and `// tolerance:`", hint="secateur reduce writes them")
    check = Check([make_pass(word) for word in passes[1].split()] if passes else [], float(tolerance[1]))
    return graph, read_inputs(text), check if passes else Check([], check.tolerance, Options())


def read_inputs(text: str) -> list[np.ndarray]:
    """The tensors in the comments of a case."""
    found = []
    for match in _INPUT.finditer(text):
        type = TensorType.parse(match[1])
        items = [_WORDS.get(word) if word in _WORDS else float(word) for word in match[2].split(", ") if word]
        if type.dtype.is_int:
            items = [int(word) for word in match[2].split(", ") if word]
        found.append(np.array(items).astype(type.dtype.numpy).reshape(type.shape))
    return found
