"""From a float graph and calibration data to the quantised graph that is compiled, and what the manifest says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np

from secateur.ir.diagnostics import CompileError, Span
from secateur.ir.graph import Graph, Op
from secateur.ir.interpret import run as interpret
from secateur.ir.opdef import lookup
from secateur.passes.quantize import Recipe, quantize, recipe_of
from secateur.passes.quantize.names import labels

Progress: TypeAlias = Callable[[str, float], None]
Compile: TypeAlias = Callable[[Graph], Callable[..., Any]]
Execute: TypeAlias = Callable[..., Sequence[np.ndarray]]

GROUPED = "linear_grouped"
PRODUCTS = ("conv", "linear", "matmul", "attention", "attention_integer", GROUPED)
SMALL = 500_000_000  # floating point operations that the interpreter is done with before a compiler has started


def check_request(quantize: str | Recipe | None, calibration: Any) -> None:
    """Raises `CompileError` where recipe and calibration data do not go together."""
    if quantize is None:
        if calibration is not None:
            raise CompileError(
                "calibration data is given, but nothing is to be quantised",
                hint='say how: quantize="int8", or --quantize int8',
            )
        return
    recipe = recipe_of(quantize)
    if recipe.activations != "none" and calibration is None:
        raise CompileError(
            "quantised activations need calibration data: a few batches of real inputs",
            hint="give it as calibration (--calibration DATA), or quantise weights alone by the recipe weights-int8",
        )


def name_operations(graph: Graph) -> None:
    """Give operations that do not say where they come from a source: their label in reports of quantisation."""
    for op, label in labels(graph).items():
        if op.span is None:
            op.span = Span(module=label)


def executor(compile: Compile) -> Callable[[Graph], Execute]:
    """What calibration runs graphs by: compiled code, or the interpreter where a graph is not worth the compiler."""

    def run(graph: Graph) -> Execute:
        if sum(lookup(op.name).cost(op)[0] for op in graph.ops) < SMALL:
            return lambda *arrays: interpret(graph, arrays)
        program = compile(graph)

        def execute(*arrays: np.ndarray) -> Sequence[np.ndarray]:
            results = program(*arrays)
            return results if isinstance(results, tuple) else (results,)

        return execute

    return run


def quantized(
    graph: Graph, recipe: str | Recipe, calibration: Any, run: Callable[[Graph], Execute], progress: Progress
) -> tuple[Graph, dict[str, Any]]:
    """The graph with quantize and dequantize in it, and a record of what was done, for the manifest.

    Sources are filled in where the given graph has none.

    Raises:
        CompileError: as `quantize`: an empty calibration set, arrays that do not fit, NaN in them.
    """
    name_operations(graph)
    made = quantize(graph, calibration, recipe, run=run, progress=progress)
    return made.graph, {"recipe": asdict(made.recipe), **made.report}


def lowered(graph: Graph) -> dict[str, Any]:
    """What integers a graph is left with that has gone through the backend's passes.

    Returns:
        `conversions`: how often values go between integers and floats; `products`: how many convolutions, linear
        layers, matrix products and attentions work in integers, have integer weights alone, or work in floats.
    """
    ops = list(graph.walk())
    kinds = Counter(_kind(op) for op in ops if op.name in PRODUCTS)
    return {
        "conversions": sum(op.name in ("quantize", "dequantize") for op in ops),
        "products": {kind: kinds[kind] for kind in ("integer", "weights", "float")},
    }


def _kind(op: Op) -> str:
    if not op.operands[0].type.dtype.is_float:
        return "integer"
    return "weights" if op.name == GROUPED else "float"
