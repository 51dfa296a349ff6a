"""Runs contenders side by side, each in a process of its own, in interleaved rounds.

While one is timed the others are stopped by a signal, so that no spinning thread of theirs disturbs it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from secateur.ir.diagnostics import CompileError, nearest
from secateur.tools.console import Tracker
from secateur.tools.contenders import CONTENDERS

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Plan:
    """What to measure, and how long.

    Attributes:
        model: as the command line names it.
        folder: receives inputs, ONNX file, artefact and outputs.
        contenders: by name, in the order of the table.
        seconds: how long each contender runs in each round.
        artefact: an artefact that exists already, to be measured instead of one compiled now.
        load: files of passes that the pipeline names.
    """

    model: str
    folder: Path
    contenders: Sequence[str]
    threads: int = 2
    rounds: int = 5
    seconds: float = 1.0
    seed: int = 0
    target: str = "native"
    pipeline: str | Sequence[str] = "default"
    cc: str | None = None
    artefact: Path | None = None
    load: Sequence[str] = ()


@dataclass
class Result:
    """One contender's seconds per run, round by round; its outputs' distance from the reference; or why it failed."""

    name: str
    rounds: list[list[float]] = field(default_factory=list)
    error: float | None = None
    failure: str = ""
    load_seconds: float = 0.0
    outputs: str = ""

    @property
    def median(self) -> float:
        return statistics.median(time for times in self.rounds for time in times)

    @property
    def least(self) -> float:
        return min(time for times in self.rounds for time in times)


class Process:
    """A worker process: `ask` sends one request and waits for its answer; `stopped` while nobody asks."""

    def __init__(self, threads: int, log: Path) -> None:
        count = str(threads)
        env = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TOKENIZERS_PARALLELISM": "false"}
        with log.open("w") as errors:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "secateur.tools.bench_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=env,
            )
        self.log = log

    def ask(self, **request: Any) -> dict[str, Any]:
        """Raises `CompileError` with the worker's own message where it failed, or when it died."""
        assert self.child.stdin and self.child.stdout
        try:
            self.child.stdin.write(json.dumps(request) + "\n")
            self.child.stdin.flush()
            line = self.child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise CompileError(f"the worker process ended (code {self.child.wait()})", hint=f"its log is {self.log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CompileError(answer["error"], hint=answer["hint"])
        return answer

    def signal(self, name: str) -> None:
        """Send SIGSTOP or SIGCONT where the system has them."""
        if hasattr(signal, name) and self.child.poll() is None:
            self.child.send_signal(getattr(signal, name))

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.signal("SIGCONT")
        assert self.child.stdin and self.child.stdout
        self.child.stdin.close()
        try:
            self.child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.child.stdout.close()


def check_contenders(names: Sequence[str]) -> list[str]:
    """Contender names with `secateur` first and none twice; raises `CompileError` on an unknown one."""
    for name in names:
        if name not in CONTENDERS:
            hint = nearest(name, CONTENDERS) or f"known are {', '.join(CONTENDERS)}"
            raise CompileError(f"unknown contender {name!r}", hint=hint)
    return list(dict.fromkeys(["secateur", *names]))


def measure(plan: Plan, progress: Tracker) -> tuple[list[Result], dict[str, Any]]:
    """Prepare, load everyone, time everyone in turns, compare the outputs.

    Returns:
        The results in the plan's order, and the seconds that preparing took.

    Raises:
        CompileError: Secateur cannot compile the model. What happens to the others is in their results.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    prepared = _prepare(plan, progress)
    results = {name: Result(name) for name in plan.contenders}
    with ExitStack() as stack:
        workers = {name: worker for name in plan.contenders if (worker := _load(plan, results[name], stack, progress))}
        _compare([results[name] for name in workers])
        for index in range(plan.rounds):
            for done, name in enumerate(_rotated(list(workers), index)):
                progress("timing in turns", (index * len(workers) + done) / (plan.rounds * len(workers)))
                workers[name].signal("SIGCONT")
                results[name].rounds.append(workers[name].ask(do="time", seconds=plan.seconds)["times"])
                workers[name].signal("SIGSTOP")
    return list(results.values()), prepared


def _prepare(plan: Plan, progress: Tracker) -> dict[str, Any]:
    progress(f"compiling {plan.model} and exporting it for the others")
    needs = sorted({CONTENDERS[name].needs for name in plan.contenders if not unavailable(name, plan.model)})
    with Process(plan.threads, plan.folder / "prepare.log") as worker:
        return worker.ask(
            do="prepare",
            model=plan.model,
            folder=str(plan.folder),
            threads=plan.threads,
            needs=needs,
            seed=plan.seed,
            target=plan.target,
            pipeline=plan.pipeline,
            cc=plan.cc,
            artefact=str(plan.artefact) if plan.artefact else "",
            load=list(plan.load),
        )


def unavailable(name: str, model: str) -> str:
    """Why a contender cannot take part, or the empty string."""
    contender = CONTENDERS[name]
    for package in contender.packages:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    if contender.needs == "torch" and model.endswith((".onnx", ".ir")):
        return "needs a PyTorch model"
    if contender.needs == "onnx" and model.endswith(".ir"):
        return "needs a PyTorch or ONNX model"
    return ""


def _load(plan: Plan, result: Result, stack: ExitStack, progress: Tracker) -> Process | None:
    """A loaded and stopped worker, or None with the reason in `result.failure`."""
    result.failure = unavailable(result.name, plan.model)
    if result.failure:
        return None
    progress(f"loading {result.name}")
    worker = stack.enter_context(Process(plan.threads, plan.folder / f"{result.name}.log"))
    try:
        answer = worker.ask(
            do="load", contender=result.name, model=plan.model, folder=str(plan.folder), threads=plan.threads
        )
    except CompileError as error:
        result.failure = error.message
        return None
    result.load_seconds, result.outputs = answer["seconds"], answer["outputs"]
    worker.signal("SIGSTOP")
    return worker


def _compare(loaded: Sequence[Result]) -> None:
    """Set every result's distance from eager PyTorch, or from the first other contender where that is missing."""
    others = [result for result in loaded if result.name != "secateur"]
    reference = next((result for result in loaded if result.name == "eager"), others[0] if others else None)
    if reference is None:
        return
    expected = read_outputs(reference.outputs)
    for result in loaded:
        result.error = relative_error(read_outputs(result.outputs), expected)


def read_outputs(path: str) -> list[np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return [archive[name] for name in archive.files]


def relative_error(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest ratio of difference norm to norm over all outputs; infinite where number or shapes differ."""
    if [a.shape for a in found] != [b.shape for b in expected]:
        return float("inf")
    worst = 0.0
    for a, b in zip(found, expected):
        wide = b.astype(np.float64)
        norm = float(np.linalg.norm(wide)) or 1.0
        worst = max(worst, float(np.linalg.norm(a.astype(np.float64) - wide)) / norm)
    return worst


def _rotated(names: list[str], index: int) -> list[str]:
    """The order of one round: everyone is first once."""
    start = index % len(names) if names else 0
    return names[start:] + names[:start]
