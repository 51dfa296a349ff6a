"""Secateur: an ahead-of-time compiler for neural networks.

    program = secateur.compile(model, example_inputs)     # nn.Module, ExportedProgram, .onnx, .pt2, .ir
    result = program(*inputs)
    program.save("build/model")                           # C source, header, weights, library, manifest
    small = secateur.compile(model, example_inputs, quantize="int8", calibration=batches)

Everything is imported on first use, so that opening a compiled artefact needs NumPy and nothing else.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.backends.artifact import Program as Program
    from secateur.backends.artifact import load as load
    from secateur.frontends.open import import_model as import_model
    from secateur.ir.diagnostics import CompileError as CompileError
    from secateur.ir.graph import Graph as Graph
    from secateur.ir.interpret import interpret as interpret
    from secateur.ir.text import parse as parse
    from secateur.passes.base import Pass
    from secateur.passes.manager import optimize as optimize
    from secateur.passes.quantize import Recipe as Recipe

__version__ = "0.1.0"

_HOME = {
    "CompileError": "secateur.ir.diagnostics",
    "Graph": "secateur.ir.graph",
    "Program": "secateur.backends.artifact",
    "Recipe": "secateur.passes.quantize",
    "import_model": "secateur.frontends.open",
    "interpret": "secateur.ir.interpret",
    "load": "secateur.backends.artifact",
    "optimize": "secateur.passes.manager",
    "parse": "secateur.ir.text",
}

__all__ = [
    "CompileError",
    "Graph",
    "Program",
    "Recipe",
    "compile",
    "import_model",
    "interpret",
    "load",
    "optimize",
    "parse",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


def compile(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    target: str = "native",
    pipeline: str | Sequence[str | Pass] = "default",
    threads: int | None = None,
    cc: str | None = None,
    name: str = "model",
    quantize: str | Recipe | None = None,
    calibration: Any = None,
    progress: Callable[[str, float], None] | None = None,
) -> Program:
    """Compile a model, or a graph, for a processor.

    Args:
        model: whatever `import_model` takes, or a `Graph` (which is left as it is).
        example_inputs: tensors that a torch.nn.Module is traced with.
        target: a processor by name; `secateur targets` lists them.
        pipeline: passes to run first: a pipeline's name, or a list of passes.
        threads: fixed at compile time; None leaves the choice to the moment of loading.
        name: of the library, the header and all C symbols; two models in one program need two.
        cc: a C compiler to use instead of the bundled one.
        quantize: "int8", "int4", "weights-int8", "weights-int4", or a `Recipe` with every option of quantisation.
        calibration: what real inputs look like, where activations are quantised: an iterable of batches (tuples of
            arrays in the order of the inputs, or dicts by their names), a .npz file, or a folder of them.
        progress: called with a stage and its share done, 0 to 1, while compiling.

    Raises:
        CompileError: what could not be compiled, where it is, and what would help.
    """
    from secateur.backends.cpu.compile import Options, compile_graph
    from secateur.frontends.open import import_model

    graph = import_model(model, example_inputs)
    return compile_graph(graph, Options(target, pipeline, threads, cc, name, quantize, calibration), progress)
