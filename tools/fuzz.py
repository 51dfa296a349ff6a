"""Random graphs through the passes and through compiled code, held against the interpreter.

    python -m secateur.tools.fuzz --seconds 60 --seed 1

How far results may differ is measured, not guessed: each graph is interpreted a few times with every float result
disturbed by about its rounding error. What that moves by much is badly conditioned, and may move in other code too;
integers and bools that it changes at all are not compared.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateur.backends.cpu.compile import PIPELINE, Options, compile_graph
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Op, Value, copy_ops
from secateur.ir.interpret import interpret, run_op
from secateur.ir.text import write_ir
from secateur.ir.types import DType
from secateur.passes.base import all_passes
from secateur.passes.manager import optimize, resolve
from secateur.tools.growth import grow

TOGETHER = 24  # graphs in one compiled program: the C compiler starts once for all of them
NOISE = {DType.F32: 1e-6, DType.F64: 1e-13, DType.F16: 1e-3, DType.BF16: 8e-3}
TRIALS = 3
FINITE = ("conv", "conv_transpose", "attention", "softmax")  # see `_undefined`
SLACK = 8.0  # times what the noise moved
FLOOR = {DType.F32: 3e-5, DType.F64: 1e-10, DType.F16: 4e-3, DType.BF16: 3e-2}  # of the largest magnitude


@dataclass(frozen=True)
class Expected:
    """One output: its value, and how far another correct computation may be from it (NaN: not compared)."""

    value: np.ndarray
    slack: np.ndarray

    def differs(self, actual: np.ndarray) -> str:
        """What is wrong with `actual`, or the empty string."""
        if actual.shape != self.value.shape or actual.dtype != self.value.dtype:
            return f"is {actual.dtype}{list(actual.shape)}, not {self.value.dtype}{list(self.value.shape)}"
        wanted, got = self.value.astype(np.float64), actual.astype(np.float64)
        with np.errstate(all="ignore"):
            far = ~(np.abs(wanted - got) <= self.slack) & (wanted != got) & ~(np.isnan(wanted) & np.isnan(got))
        if actual.dtype.kind in "iu":  # f64 cannot tell large integers apart
            far = actual != self.value
        far &= ~np.isnan(self.slack)
        if not far.any():
            return ""
        at = tuple(int(i) for i in np.argwhere(far)[0])
        return f"differs at {int(far.sum())} of {far.size} places, first at {list(at)}: {got[at]}, not {wanted[at]}"


@dataclass(frozen=True)
class Case:
    """A graph, its inputs and what comes out of it."""

    seed: int
    graph: Graph
    inputs: list[np.ndarray]
    expected: list[Expected]


@dataclass(frozen=True)
class Failure:
    """Where the results of a case left the interpreter's."""

    case: Case
    stage: str
    what: str

    def __str__(self) -> str:
        return f"graph of seed {self.case.seed}, {self.stage}: {self.what}"

    def write(self, folder: Path) -> Path:
        """Write the graph as IR text, and its inputs beside it; returns the text's path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"fuzz{self.case.seed}.ir"
        write_ir(self.case.graph, path)
        stored = [array.view(np.uint16) if array.dtype.name == "bfloat16" else array for array in self.case.inputs]
        np.savez(path.with_suffix(".npz"), *stored)
        return path


def make_case(seed: int, steps: int) -> Case:
    graph, inputs = grow(seed, steps)
    value = interpret(graph, *inputs)
    rng = np.random.default_rng(seed)
    return Case(seed, graph, inputs, _judge(value, [_disturbed(graph, inputs, rng) for _ in range(TRIALS)]))


def _disturbed(graph: Graph, inputs: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """The outputs where every float that is read or computed is wrong by about one rounding."""

    def shaken(array: np.ndarray) -> np.ndarray:
        dtype = DType.of(array.dtype)
        if not dtype.is_float:
            return array
        factor = 1 + NOISE[dtype] * rng.uniform(-1, 1, array.shape)
        with np.errstate(all="ignore"):
            return np.asarray(array.astype(np.float64) * factor).astype(array.dtype)

    live: dict[Value, np.ndarray] = {v: shaken(a) for v, a in zip(graph.inputs, inputs, strict=True)}
    for op in graph.ops:
        operands = [live[value] for value in op.operands]
        arrays = run_op(op, operands)
        if _undefined(op, operands, arrays):
            arrays = tuple(np.full_like(array, np.nan) for array in arrays)
        live.update(zip(op.results, arrays if op.name == "constant" else map(shaken, arrays), strict=True))
    return [live[value] for value in graph.outputs]


def _undefined(op: Op, operands: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> bool:
    """Whether the result depends on how it is computed.

    The zeros of a padding times infinity are NaN, or left out; a softmax over nothing but -inf is NaN, or 0 as
    attention has it. What overflows in f16 may not where pieces are computed as one operation in f32.
    """
    finite = all(np.isfinite(array).all() for array in operands)
    overflows = any(array.dtype == np.float16 and not np.isfinite(array).all() for array in results)
    return overflows if finite else op.name in FINITE


def _judge(values: list[np.ndarray], trials: list[list[np.ndarray]]) -> list[Expected]:
    found = []
    for index, value in enumerate(values):
        dtype = DType.of(value.dtype)
        base, others = value.astype(np.float64), np.array([t[index].astype(np.float64) for t in trials])
        known = np.isfinite(base) & np.isfinite(others).all(0)
        with np.errstate(all="ignore"):
            moved = np.where(known, np.abs(others - base), 0.0).max(0)
        slack = np.zeros(value.shape)
        if dtype.is_float:
            size = max(1.0, float(np.abs(base[known]).max())) if known.any() else 1.0
            slack += SLACK * moved.max(initial=0) + FLOOR[dtype] * size
        elif moved.any():
            slack += np.nan  # one element that moved may have moved others: a sort, an argmax
        strange = ~known & (np.array([~_same(base, other) for other in others]).any(0))
        found.append(Expected(value, np.where(strange, np.nan, slack)))
    return found


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray((a == b) | (np.isnan(a) & np.isnan(b)))


def check_passes(case: Case) -> Failure | None:
    """Interpret the graph as the default pipeline, that and the CPU's, and a few passes in any order leave it."""
    names = sorted(all_passes().keys() - {"rewrite"})  # which needs to be given rules
    order = np.random.default_rng(case.seed).choice(names, 5).tolist()
    for passes in (resolve("default"), [*resolve("default"), *resolve(PIPELINE)], resolve(order)):
        stage = " ".join(map(str, passes))
        try:
            actual = interpret(optimize(case.graph, passes), *case.inputs)
        except Exception as error:  # any failure is a finding
            return Failure(case, stage, _name(error))
        failure = _compare(case, stage, actual)
        if failure:
            return failure
    return None


def check_compiled(cases: Sequence[Case], target: str, threads: int) -> list[Failure]:
    """Compile cases as one program and run it; where that cannot be, each alone, to name the one that fails."""
    try:
        actual = _run_compiled(cases, target, threads)
    except Exception as error:
        if len(cases) == 1:
            return [Failure(cases[0], "compilation", _name(error))]
        return [failure for case in cases for failure in check_compiled([case], target, threads)]
    failures = []
    for case, own in zip(cases, actual, strict=True):
        failure = _compare(case, "compiled code", own)
        failures += [failure] if failure else []
    return failures


def _run_compiled(cases: Sequence[Case], target: str, threads: int) -> list[list[np.ndarray]]:
    whole = Graph("fuzz")
    outputs: list[Value] = []
    for case in cases:
        mapping = {value: whole.add_input(value.type) for value in case.graph.inputs}
        copy_ops(case.graph.ops, whole, mapping)
        outputs += [mapping[value] for value in case.graph.outputs]
    whole.outputs = outputs
    program = compile_graph(whole, Options(target=target, threads=threads))
    results = program(*(array for case in cases for array in case.inputs))
    left = iter(results if isinstance(results, tuple) else (results,))
    return [[next(left) for _ in case.graph.outputs] for case in cases]


def _compare(case: Case, stage: str, actual: Iterable[np.ndarray]) -> Failure | None:
    for index, (expected, got) in enumerate(zip(case.expected, actual, strict=True)):
        what = expected.differs(np.asarray(got))
        if what:
            return Failure(case, stage, f"output {index} {what}")
    return None


def _name(error: Exception) -> str:
    return str(error) if isinstance(error, CompileError) else f"{type(error).__name__}: {error}"


@dataclass
class Tally:
    graphs: int = 0
    operations: int = 0
    failures: int = 0


def fuzz(
    seed: int,
    *,
    seconds: float = float("inf"),
    graphs: int | None = None,
    steps: int = 12,
    target: str = "native",
    threads: int = 2,
    folder: Path | None = None,
) -> tuple[Tally, list[Failure]]:
    """Draw graphs and check them, until the time is up or that many are done.

    Args:
        seed: of the first graph; each further one has the next.
        steps: operations, or clusters of them, in one graph.
        folder: where failures are written as soon as they are found.
    """
    tally, failures = Tally(), []
    end = time.monotonic() + seconds
    while time.monotonic() < end and (graphs is None or tally.graphs < graphs):
        count = TOGETHER if graphs is None else min(TOGETHER, graphs - tally.graphs)
        cases = [make_case(seed + tally.graphs + number, steps) for number in range(count)]
        broken = [failure for case in cases if (failure := check_passes(case))]
        failed = {failure.case.seed for failure in broken}
        broken += check_compiled([case for case in cases if case.seed not in failed] or cases[:1], target, threads)
        tally.graphs += count
        tally.operations += sum(len(case.graph) for case in cases)
        tally.failures += len(broken)
        failures += broken
        for failure in broken:
            print(f"{failure}" + (f"; written to {failure.write(folder)}" if folder else ""), flush=True)
    return tally, failures


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m secateur.tools.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="stop after this time (default 60)")
    parser.add_argument("--seed", type=int, help="of the first graph; default: a fresh one")
    parser.add_argument("--graphs", type=int, help="stop after this many graphs")
    parser.add_argument("--steps", type=int, default=12, help="operations, or clusters of them, in one graph (12)")
    parser.add_argument("--target", default="native", help="a target this machine can run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="folder for failing graphs")
    args = parser.parse_args(argv)
    seed = args.seed if args.seed is not None else int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}", flush=True)
    options = {"graphs": args.graphs, "steps": args.steps, "target": args.target, "threads": args.threads}
    tally, _ = fuzz(seed, seconds=args.seconds, folder=args.out, **options)
    print(f"{tally.graphs} graphs, {tally.operations} operations, {tally.failures} failures")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
