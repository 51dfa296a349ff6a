"""The process of one contender: reads requests as lines of JSON, answers with lines of JSON.

    {"do": "prepare", ...}   write inputs and ONNX files
    {"do": "compile", ...}   write an artefact of what was prepared
    {"do": "load", ...}      load the contender, run it once, write its outputs
    {"do": "time", ...}      run it for a while; the answer holds the seconds of each run

A failure is an answer with the key `error`. The process ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from secateur.backends.cpu.compile import Options, compile_graph
from secateur.frontends.open import import_model
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.passes.base import load_pass
from secateur.passes.quantize.batches import open_batches
from secateur.tools.calibration import calibration_source, similar_batches
from secateur.tools.contenders import ARTEFACT, CONTENDERS, IMPORTED, Call, Entry, torch_model
from secateur.tools.models import build_python, input_specs, is_python, random_inputs

Answer = dict[str, Any]


class Worker:
    """Holds the prepared model, or the loaded contender, between requests."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.graph: Graph | None = None
        self.batches: Any = None

    def prepare(
        self,
        model: str,
        folder: str,
        threads: int,
        quantized: bool,
        needs: list[str],
        seed: int,
        calibration: str,
    ) -> Answer:
        """Write what the contenders start from. The float ONNX file of an earlier run is kept, all else made anew."""
        entry = Entry(model, Path(folder), threads, quantized)
        source, example = _source(model)
        start = time.perf_counter()
        self.graph = graph = import_model(source, example or None)
        imported = time.perf_counter() - start
        specs = input_specs(graph)
        arrays = [tensor.numpy() for tensor in example] if example else random_inputs(specs, seed)
        np.savez(entry.folder / "inputs.npz", *arrays)
        if {"onnx", IMPORTED} & set(needs) and not entry.float_onnx.exists():
            export_onnx(source if is_python(model) else torch_model(model), example, entry.float_onnx)
        if quantized:
            given = (
                calibration_source(calibration, specs, seed) if calibration else similar_batches(specs, seed, arrays)
            )
            self.batches = open_batches(given, graph)
            if {"onnx", IMPORTED} & set(needs):
                quantize_onnx(graph, entry, self.batches)
        return {"import_seconds": imported}

    def compile(
        self,
        model: str,
        folder: str,
        threads: int,
        form: str,
        target: str,
        pipeline: str | Sequence[str],
        cc: str | None,
        load: list[str],
        quantize: str,
    ) -> Answer:
        """Write the artefact `form` of the prepared model."""
        assert self.graph is not None, "compile before prepare"
        for path in load:
            load_pass(path)
        entry = Entry(model, Path(folder), threads, bool(quantize))
        start = time.perf_counter()
        options = Options(target, pipeline, threads, cc)
        if form == ARTEFACT and quantize:
            options = replace(options, quantize=quantize, calibration=self.batches)
        graph = import_model(entry.quantized_onnx) if form == IMPORTED else self.graph
        compile_graph(graph, options).save(entry.folder / form)
        return {"seconds": time.perf_counter() - start}

    def load(self, contender: str, model: str, folder: str, threads: int, quantized: bool) -> Answer:
        """Load a contender and write the outputs of its first run to `<contender>.npz`."""
        start = time.perf_counter()
        self.call = CONTENDERS[contender].load(Entry(model, Path(folder), threads, quantized))
        outputs = self.call()
        path = Path(folder) / f"{contender}.npz"
        np.savez(path, *outputs)
        return {"seconds": time.perf_counter() - start, "outputs": str(path)}

    def time(self, seconds: float) -> Answer:
        """Run for about `seconds`, at least three times, after two runs that do not count."""
        assert self.call is not None, "time before load"
        for _ in range(2):
            self.call()
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            self.call()
            times.append(time.perf_counter() - start)
        return {"times": times}


def _source(model: str) -> tuple[Any, tuple[Any, ...]]:
    """What `import_model` reads, and example inputs where the model has some."""
    if is_python(model):
        module, example = build_python(model)
        return module.eval(), example
    if not model.endswith(".pt2"):
        return Path(model), ()
    import torch

    program = torch.export.load(model)
    return program, tuple(program.example_inputs[0]) if program.example_inputs else ()


def quantize_onnx(graph: Graph, entry: Entry, batches: Any) -> None:
    """Write the quantised ONNX file; of a model with attention only the products are quantised."""
    from secateur.tools.static_onnx import quantize_file

    attends = any(op.name in ("softmax", "attention") for op in graph.ops)
    quantize_file(entry.float_onnx, entry.quantized_onnx, batches, products_only=attends)


def export_onnx(model: Any, example: tuple[Any, ...], path: Path) -> None:
    """Export a torch module to ONNX with torch's own exporter; the file appears whole or not at all."""
    import torch

    fresh = path.with_name("unfinished.onnx")
    torch.onnx.export(model, example, str(fresh), dynamo=True, external_data=False, verbose=False)
    fresh.rename(path)


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""
    worker = Worker()
    actions: dict[str, Callable[..., Answer]] = {
        "prepare": worker.prepare,
        "compile": worker.compile,
        "load": worker.load,
        "time": worker.time,
    }
    for line in requests:
        request = json.loads(line)
        try:
            answer = actions[request.pop("do")](**request)
        except CompileError as error:
            answer = {"error": error.message, "hint": error.hint}
        except Exception as error:  # whatever a foreign runtime raises is that contender's result
            first = next(iter(str(error).splitlines()), "")
            answer = {"error": f"{type(error).__name__}: {first}", "hint": ""}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    # Libraries print to standard output as they like; the answers keep it for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
