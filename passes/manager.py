"""Runs passes in order: verifies, times, dumps and snapshots after each, and can stop anywhere."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from secateur.ir.diagnostics import CompileError, nearest
from secateur.ir.graph import Graph
from secateur.ir.rewrite import RewriteStats
from secateur.ir.text import print_graph, weights, write_ir
from secateur.ir.verify import verify
from secateur.passes.base import Pass, make_pass


@dataclass(frozen=True)
class PassRecord:
    """What one pass did: seconds, operations before and after, and its rules' statistics."""

    name: str
    seconds: float
    ops_before: int
    ops_after: int
    rules: RewriteStats | None
    snapshot: Graph | None = None


@dataclass
class PassManager:
    """A pipeline and what to do around its passes.

    Attributes:
        passes: in order.
        stop_after: name of a pass of the pipeline after which to stop.
        print_after: called with the pass's name and the graph's text after each pass.
        dump: folder that receives `NN_pass.ir` after each pass, large constants beside it, for `read_ir`.
        snapshots: keep a copy of the graph after each pass in its record.
    """

    passes: Sequence[Pass]
    stop_after: str = ""
    print_after: Callable[[str, str], None] | None = None
    dump: Path | None = None
    snapshots: bool = False
    records: list[PassRecord] = field(default_factory=list)
    _dumped: tuple[dict[str, np.ndarray], Path | None] = field(default=({}, None), repr=False)

    def run(self, graph: Graph) -> Graph:
        """Run the pipeline on `graph` in place and return it.

        Raises:
            CompileError: the pipeline has no pass `stop_after`, or a pass failed or broke the graph (named).
        """
        names = [item.name for item in self.passes]
        if self.stop_after and self.stop_after not in names:
            raise CompileError(f"the pipeline has no pass {self.stop_after!r}", hint=nearest(self.stop_after, names))
        for item in self.passes:
            self._run_one(item, graph)
            if item.name == self.stop_after:
                break
        return graph

    def _run_one(self, item: Pass, graph: Graph) -> None:
        before = len(graph)
        rules, seconds = run_pass(item, graph)
        copy = graph.clone() if self.snapshots else None
        self.records.append(PassRecord(item.name, seconds, before, len(graph), rules, copy))
        if self.print_after:
            self.print_after(item.name, print_graph(graph))
        if self.dump:
            self._write(graph, self.dump / f"{len(self.records):02}_{item.name}.ir")

    def _write(self, graph: Graph, path: Path) -> None:
        """Dump a graph. Where no constant changed since the last dump, its weights are the same file, linked."""
        current = weights(graph)
        before, file = self._dumped
        same = file and current.keys() == before.keys() and all(current[name] is before[name] for name in current)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".safetensors").unlink(missing_ok=True)
            if same and file and current:
                path.write_text(print_graph(graph, spans=True))
                os.link(file, path.with_suffix(".safetensors"))
            else:
                write_ir(graph, path)
                self._dumped = (current, path.with_suffix(".safetensors"))
        except OSError as error:
            raise CompileError(f"cannot write {path}: {error.strerror or error}") from None


def run_pass(item: Pass, graph: Graph) -> tuple[RewriteStats | None, float]:
    """Run one pass in place and verify what it leaves: its rules' statistics, and its seconds.

    Raises:
        CompileError: the pass fails, whatever it raises, or leaves a broken graph; the message names it.
    """
    start = time.perf_counter()
    try:
        rules = item.run(graph)
    except CompileError:
        raise
    except Exception as error:  # a pass may be anybody's code
        raise CompileError(f"{_failed(item)}{type(error).__name__}: {error}{_place(item, error)}") from error
    seconds = time.perf_counter() - start
    try:
        verify(graph)
    except CompileError as error:
        error.message = f"pass {item.name!r} left a broken graph: {error.message}"
        raise
    return rules, seconds


def why_failed(item: Pass, error: Exception) -> str:
    """What a failure says apart from the pass's name, for those who have said that already."""
    return str(error).removeprefix(_failed(item)) if isinstance(error, CompileError) else repr(error)


def _failed(item: Pass) -> str:
    return f"pass {item.name!r} failed: "


def _place(item: Pass, error: Exception) -> str:
    """The innermost line of the pass's own file that an exception went through: ` (fold.py:40)`."""
    file = getattr(sys.modules.get(type(item).__module__), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}:{lines[-1]})" if file and lines else ""


def optimize(graph: Graph, pipeline: str | Sequence[str | Pass] = "default") -> Graph:
    """Run a pipeline on a copy of `graph`.

    Args:
        pipeline: the name of one in `pipelines.py`, or passes by name, text or object.

    Raises:
        CompileError: unknown pipeline, pass or option (the nearest one is suggested).
    """
    return PassManager(resolve(pipeline)).run(graph.clone())


def resolve(pipeline: str | Sequence[str | Pass]) -> list[Pass]:
    """The passes of a pipeline; raises `CompileError` on an unknown one."""
    from secateur.passes.pipelines import PIPELINES

    if isinstance(pipeline, str):
        if pipeline not in PIPELINES:
            raise CompileError(f"unknown pipeline {pipeline!r}", hint=nearest(pipeline, PIPELINES))
        pipeline = PIPELINES[pipeline]
    return [make_pass(item) if isinstance(item, str) else item for item in pipeline]
