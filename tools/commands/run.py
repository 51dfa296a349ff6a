"""secateur run: feed tensors to a compiled artefact or a model, and look at what comes out."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import secateur
from secateur.ir.types import TensorType
from secateur.tools.commands.compile import add_compile_options, compile_model
from secateur.tools.console import Ui, duration, table
from secateur.tools.models import (
    INPUTS_HELP,
    MODEL_HELP,
    Specs,
    input_specs,
    manifest_specs,
    named,
    open_graph,
    random_inputs,
    read_inputs,
    summary,
    write_npz,
)

HELP = "run a compiled artefact, or a model, on tensors from a file or on random ones"
EXAMPLE = "secateur run build/model --random 0 -o outputs.npz\nsecateur run build/model --inputs inputs.npz"

Runner = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=f"a compiled artefact's folder, or {MODEL_HELP}")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--inputs", metavar="FILE.npz", help=INPUTS_HELP)
    group.add_argument("--random", type=int, metavar="SEED", help="random tensors; integers are 0 or 1, masks all ones")
    parser.add_argument("-o", "--output", metavar="FILE.npz", help="write the results here")
    parser.add_argument(
        "--interpret", action="store_true", help="run a model by its NumPy reference, without compiling"
    )
    add_compile_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> None:
    runner, inputs, names = _prepare(args, ui)
    tensors = read_inputs(args.inputs, inputs) if args.inputs else random_inputs(inputs, args.random)
    start = time.perf_counter()
    with ui.stage("running"):
        results = runner(tensors)
    seconds = time.perf_counter() - start
    names = names or [f"output{index}" for index in range(len(results))]
    if args.output:
        write_npz(args.output, dict(zip(names, results)))
    found: list[dict[str, Any]] = [
        {"name": name, "type": str(TensorType.of(result)), **summary(result)} for name, result in zip(names, results)
    ]
    keys = ("min", "mean", "max")
    rows = [(f["name"], f["type"], *(f"{f[key]:.6g}" for key in keys), f["nonfinite"] or "") for f in found]
    ui.report(
        {"seconds": seconds, "outputs": found},
        table("", ["result", "type", "min>", "mean>", "max>", "not finite>"], rows),
        f"one run, the first: {duration(seconds)}",
    )


def _prepare(args: argparse.Namespace, ui: Ui) -> tuple[Runner, Specs, list[str]]:
    """How to run it, what it takes, and its results' names where they are known."""
    path = Path(args.model)
    if args.interpret:
        graph = open_graph(args.model, ui)
        return lambda tensors: secateur.interpret(graph, *tensors), input_specs(graph), []
    program = secateur.load(path) if path.is_dir() else compile_model(args.model, args, ui)
    manifest = program.manifest
    names = [name for name, _ in named(manifest["outputs"], "output")]

    def runner(tensors: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        results = program(*tensors)
        return results if isinstance(results, tuple) else (results,)

    return runner, manifest_specs(manifest), names
