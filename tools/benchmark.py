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

from secateur.backends.artifact import install
from secateur.ir.diagnostics import CompileError, nearest
from secateur.tools.console import Tracker
from secateur.tools.contenders import ARTEFACT, ARTEFACTS, CONTENDERS, IMPORTED

TOLERANCE = 1e-3
REFERENCES = ("eager", "secateur-f32")  # float, both: what results are held against


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
        quantize: a recipe's name: everyone runs the model quantised with the same calibration data.
        calibration: what `--calibration` names; random batches without it.
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
    quantize: str = ""
    calibration: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """What every request tells a worker."""
        return {"model": self.model, "folder": str(self.folder), "threads": self.threads}


@dataclass
class Result:
    """One contender's seconds per run, round by round; its outputs' distance from the reference; or why it failed.

    Attributes:
        error: norm of the difference over norm. cosine: of the outputs and the reference's, the least of all outputs.
    """

    name: str
    rounds: list[list[float]] = field(default_factory=list)
    error: float | None = None
    cosine: float | None = None
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


def check_contenders(names: Sequence[str], quantized: bool = False) -> list[str]:
    """Contender names, our own first and none twice; raises `CompileError` on an unknown one."""
    for name in names:
        if name not in CONTENDERS:
            hint = nearest(name, CONTENDERS) or f"known are {', '.join(CONTENDERS)}"
            raise CompileError(f"unknown contender {name!r}", hint=hint)
        if CONTENDERS[name].only_quantized and not quantized:
            raise CompileError(f"{name} takes part in benchmarks of quantised models only", hint="add --quantize int8")
    forms = [name for name, item in CONTENDERS.items() if item.only_quantized] if quantized else []
    return list(dict.fromkeys(["secateur", *forms, *names]))


def measure(plan: Plan, progress: Tracker) -> tuple[list[Result], dict[str, Any]]:
    """Prepare, load everyone, time everyone in turns, compare the outputs.

    Returns:
        The results in the plan's order, and the seconds that preparing took.

    Raises:
        CompileError: Secateur cannot compile the model. What happens to the others is in their results.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    results = {name: Result(name) for name in plan.contenders}
    prepared = _prepare(plan, results, progress)
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


def _prepare(plan: Plan, results: dict[str, Result], progress: Tracker) -> dict[str, Any]:
    """Write what everyone starts from. Where one of several forms does not compile, that is its result."""
    progress(f"importing {plan.model}" + (", exporting it for the others" if len(plan.contenders) > 1 else ""))
    needs = sorted({CONTENDERS[name].needs for name in plan.contenders if not unavailable(name, plan.model)})
    facts = {**plan.facts, "quantized": bool(plan.quantize), "seed": plan.seed, "calibration": plan.calibration}
    how = {"target": plan.target, "pipeline": plan.pipeline, "cc": plan.cc, "load": list(plan.load)}
    with Process(plan.threads, plan.folder / "prepare.log") as worker:
        prepared = worker.ask(do="prepare", needs=needs, **facts)
        if plan.artefact:
            install(plan.artefact, plan.folder / ARTEFACT)
        for name, result in results.items():
            form = CONTENDERS[name].needs
            if form not in needs or form not in ARTEFACTS or (form == ARTEFACT and plan.artefact):
                continue
            progress(f"compiling {name}")
            try:
                answer = worker.ask(do="compile", form=form, quantize=plan.quantize, **plan.facts, **how)
                prepared["compile_seconds" if form == ARTEFACT else f"compile_seconds {name}"] = answer["seconds"]
            except CompileError as error:
                if form == ARTEFACT and not plan.quantize:
                    raise
                result.failure = error.message
    return prepared


def unavailable(name: str, model: str) -> str:
    """Why a contender cannot take part, or the empty string."""
    contender = CONTENDERS[name]
    for package in contender.packages:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    if contender.needs == "torch" and model.endswith((".onnx", ".ir")):
        return "needs a PyTorch model"
    if contender.needs in ("onnx", IMPORTED) and model.endswith(".ir"):
        return "needs a PyTorch or ONNX model"
    return ""


def _load(plan: Plan, result: Result, stack: ExitStack, progress: Tracker) -> Process | None:
    """A loaded and stopped worker, or None with the reason in `result.failure`."""
    result.failure = result.failure or unavailable(result.name, plan.model)
    if result.failure:
        return None
    progress(f"loading {result.name}")
    worker = stack.enter_context(Process(plan.threads, plan.folder / f"{result.name}.log"))
    try:
        answer = worker.ask(do="load", contender=result.name, quantized=bool(plan.quantize), **plan.facts)
    except CompileError as error:
        result.failure = error.message
        return None
    result.load_seconds, result.outputs = answer["seconds"], answer["outputs"]
    worker.signal("SIGSTOP")
    return worker


def _compare(loaded: Sequence[Result]) -> None:
    """Set every result's distance from the first that is there of `REFERENCES`, or else from the first other one."""
    by_name = {result.name: result for result in loaded}
    others = [result for result in loaded if result.name != "secateur"]
    reference = next((by_name[name] for name in REFERENCES if name in by_name), others[0] if others else None)
    if reference is None:
        return
    expected = read_outputs(reference.outputs)
    for result in loaded:
        found = read_outputs(result.outputs)
        result.error, result.cosine = relative_error(found, expected), least_cosine(found, expected)


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


def least_cosine(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The least cosine between an output and its reference; NaN where shapes differ or something is not finite."""
    if [a.shape for a in found] != [b.shape for b in expected]:
        return float("nan")
    cosines = [1.0]
    for a, b in zip(found, expected):
        x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        norms = float(np.linalg.norm(x) * np.linalg.norm(y))
        cosines.append(float(x @ y) / norms if norms else float(not (x.any() or y.any())))
    return float(np.min(cosines))


def _rotated(names: list[str], index: int) -> list[str]:
    """The order of one round: everyone is first once."""
    start = index % len(names) if names else 0
    return names[start:] + names[:start]
