"""The process of one contender: reads requests as lines of JSON, answers with lines of JSON.

    {"do": "prepare", ...}   write inputs, ONNX file and artefact
    {"do": "load", ...}      load the contender, run it once, write its outputs
    {"do": "time", ...}      run it for a while; the answer holds the seconds of each run

A failure is an answer with the key `error`. The process ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from secateur.backends.artifact import install
from secateur.backends.cpu.compile import Options, compile_graph
from secateur.frontends.open import import_model
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.passes.base import load_pass
from secateur.tools.contenders import CONTENDERS, Call, Entry, torch_model
from secateur.tools.models import build_python, input_specs, is_python, random_inputs

Answer = dict[str, Any]


class Worker:
    """Holds the loaded contender between requests."""

    def __init__(self) -> None:
        self.call: Call | None = None

    def prepare(self, model: str, folder: str, threads: int, needs: list[str], seed: int, **how: Any) -> Answer:
        """Write what the contenders start from. The artefact is made anew, the ONNX file of an earlier run is kept."""
        entry = Entry(model, Path(folder), threads)
        source, example = _source(model)
        start = time.perf_counter()
        graph = import_model(source, example or None)
        imported = time.perf_counter()
        arrays = [tensor.numpy() for tensor in example] if example else random_inputs(input_specs(graph), seed)
        np.savez(entry.folder / "inputs.npz", *arrays)
        _artefact(graph, entry, **how)
        compiled = time.perf_counter()
        if "onnx" in needs and not entry.onnx.exists():
            export_onnx(source if is_python(model) else torch_model(model), example, entry.onnx)
        return {"import_seconds": imported - start, "compile_seconds": compiled - imported}

    def load(self, contender: str, model: str, folder: str, threads: int) -> Answer:
        """Load a contender and write the outputs of its first run to `<contender>.npz`."""
        start = time.perf_counter()
        self.call = CONTENDERS[contender].load(Entry(model, Path(folder), threads))
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


def _artefact(
    graph: Graph,
    entry: Entry,
    target: str,
    pipeline: str | list[str],
    cc: str | None,
    artefact: str,
    load: list[str],
) -> None:
    """Compile the graph, or take the artefact that exists already."""
    if artefact:
        install(Path(artefact), entry.folder / "artefact")
        return
    for path in load:
        load_pass(path)
    program = compile_graph(graph, Options(target, pipeline, entry.threads, cc))
    program.save(entry.folder / "artefact")


def export_onnx(model: Any, example: tuple[Any, ...], path: Path) -> None:
    """Export a torch module to ONNX with torch's own exporter; the file appears whole or not at all."""
    import torch

    fresh = path.with_name("unfinished.onnx")
    torch.onnx.export(model, example, str(fresh), dynamo=True, external_data=False, verbose=False)
    fresh.rename(path)


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""
    worker = Worker()
    actions: dict[str, Callable[..., Answer]] = {"prepare": worker.prepare, "load": worker.load, "time": worker.time}
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
