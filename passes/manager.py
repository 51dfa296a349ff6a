"""Runs passes in order: verifies, times, dumps and snapshots after each, and can stop anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from secateur.ir.diagnostics import CompileError, nearest
from secateur.ir.graph import Graph
from secateur.ir.rewrite import RewriteStats
from secateur.ir.text import print_graph
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
        dump: folder that receives `NN_pass.ir` after each pass.
        snapshots: keep a copy of the graph after each pass in its record.
    """

    passes: Sequence[Pass]
    stop_after: str = ""
    print_after: Callable[[str, str], None] | None = None
    dump: Path | None = None
    snapshots: bool = False
    records: list[PassRecord] = field(default_factory=list)

    def run(self, graph: Graph) -> Graph:
        """Run the pipeline on `graph` in place and return it.

        Raises:
            CompileError: the pipeline has no pass `stop_after`, or a pass broke the graph (named).
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
        start = time.perf_counter()
        rules = item.run(graph)
        seconds = time.perf_counter() - start
        try:
            verify(graph)
        except CompileError as error:
            error.message = f"pass {item.name!r} left a broken graph: {error.message}"
            raise
        copy = graph.clone() if self.snapshots else None
        self.records.append(PassRecord(item.name, seconds, before, len(graph), rules, copy))
        if self.print_after:
            self.print_after(item.name, print_graph(graph))
        if self.dump:
            self.dump.mkdir(parents=True, exist_ok=True)
            (self.dump / f"{len(self.records):02}_{item.name}.ir").write_text(print_graph(graph))


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
