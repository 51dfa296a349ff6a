"""Seconds for each step of an artefact, beside what the machine could do.

The artefact itself carries no profiling code: its sources are compiled once more with -DPROFILE
into a temporary folder, and that copy is run.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.backends.artifact import STORED, Program, load, read_manifest
from secateur.backends.cpu.emit import RUNTIME
from secateur.backends.cpu.target import Target, cpu_features, default_threads, find_target
from secateur.backends.cpu.toolchain import build, find_compiler
from secateur.ir.diagnostics import CompileError


@dataclass(frozen=True)
class Limits:
    """What a machine gives to a number of threads: floating point operations and bytes per second."""

    flops: float
    bandwidth: float
    threads: int


@dataclass(frozen=True)
class Row:
    """One step: its median seconds, and the share of the limit that binds it (compute or memory)."""

    step: int
    op: str
    family: str
    result: str
    source: str
    seconds: float
    flops: int
    bytes: int
    share: float
    bound: str


@dataclass(frozen=True)
class Profile:
    """All steps of a program; `plain_seconds` is a run of the unprofiled program, measured in turns."""

    rows: list[Row]
    limits: Limits
    profiled_seconds: float
    plain_seconds: float

    @property
    def overhead(self) -> float:
        """The share of time that profiling adds to a run."""
        return self.profiled_seconds / self.plain_seconds - 1

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "overhead": self.overhead}


def profile(
    folder: Path,
    inputs: Sequence[np.ndarray],
    threads: int | None = None,
    seconds: float = 2.0,
    progress: Callable[[str, float | None], None] | None = None,
) -> Profile:
    """Run an artefact's profiled copy and the artefact itself in turns for about `seconds`.

    Raises:
        CompileError: the folder is no artefact, or its sources do not compile.
    """
    report = progress or (lambda what, share: None)
    plain = load(folder, threads)
    count = threads or plain.manifest["threads"] or default_threads()
    target = find_target(plain.manifest["target"])
    report("measure the machine", None)
    limits = machine_limits(target, count)
    with tempfile.TemporaryDirectory(prefix="secateur-profile-") as temporary:
        report("compile with profiling", None)
        profiled, stamps = _instrumented(folder, Path(temporary), target, count)
        arrays = [np.ascontiguousarray(array) for array in inputs]
        plain(*inputs)
        outputs = [np.empty(o["shape"], STORED[o["dtype"]]) for o in plain.manifest["outputs"]]
        samples: list[np.ndarray] = []
        whole: dict[Program, list[float]] = {plain: [], profiled: []}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(samples) < 3:
            for program in (plain, profiled):
                start = time.perf_counter()
                program.run_into(arrays, outputs)
                whole[program].append(time.perf_counter() - start)
            samples.append(np.diff(stamps[:-1]))
            report("run", 1 - max(0.0, end - time.perf_counter()) / seconds)
    medians = np.median(np.stack(samples), axis=0)
    rows = [_row(entry, float(took), limits) for entry, took in zip(plain.manifest["kernels"], medians, strict=True)]
    return Profile(rows, limits, statistics.median(whole[profiled]), statistics.median(whole[plain]))


def _row(entry: dict[str, Any], seconds: float, limits: Limits) -> Row:
    compute, memory = entry["flops"] / limits.flops, entry["bytes"] / limits.bandwidth
    share = max(compute, memory) / max(seconds, 1e-9)
    keys = ("step", "op", "family", "result", "source", "flops", "bytes")
    bound = "compute" if compute >= memory else "memory"
    return Row(**{key: entry[key] for key in keys}, seconds=seconds, share=share, bound=bound)


def _instrumented(folder: Path, into: Path, target: Target, threads: int) -> tuple[Program, np.ndarray]:
    """The artefact compiled with profiling, and the array that each of its runs fills with stamps."""
    manifest = read_manifest(folder)
    for name in manifest["files"]:
        if Path(name).suffix in (".c", ".h", ".bin"):
            shutil.copy(folder / name, into / name)
    build(into, manifest["sources"], manifest["library"], target, find_compiler(), extra=["-DPROFILE"])
    program = Program(into, manifest, threads)
    stamps = np.zeros(len(manifest["kernels"]) + 2)
    attach = program.library[f"{manifest['name']}_stamps"]
    attach.argtypes, attach.restype = [ctypes.c_void_p, ctypes.c_void_p], None
    attach(program.handle, stamps.ctypes.data)
    return program, stamps


# What the machine gives ----------------------------------------------------------------------------


def machine_limits(target: Target, threads: int) -> Limits:
    """Measured by a probe of about a second, and cached for this processor, target and thread count.

    Raises:
        CompileError: the probe does not compile or runs out of memory.
    """
    path = _cache_folder() / f"limits-{_machine_key(target, threads)}.json"
    try:
        return Limits(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        pass  # not measured yet, or not readable: measure again
    limits = _probe(target, threads)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(limits)))
    except OSError:
        pass  # a cache that cannot be written only costs a second next time
    return limits


def _probe(target: Target, threads: int) -> Limits:
    with tempfile.TemporaryDirectory(prefix="secateur-probe-") as temporary:
        folder = Path(temporary)
        shutil.copy(RUNTIME / "probe.c", folder / "probe.c")
        (folder / "secateur.h").write_text(
            f"#define VECTOR_BYTES {target.vector_bytes}\n" + (RUNTIME / "secateur.h").read_text()
        )
        build(folder, ["probe.c"], "libprobe.so", target, find_compiler())
        result = np.zeros(2)
        function = ctypes.CDLL(str(folder / "libprobe.so")).probe
        function.argtypes = [ctypes.c_int, ctypes.c_void_p]
        if function(threads, result.ctypes.data):
            raise CompileError("the probe of the machine's limits ran out of memory")
    return Limits(float(result[0]), float(result[1]), threads)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur"


def _machine_key(target: Target, threads: int) -> str:
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line for line in lines if line.startswith("model name")), "")
    except OSError:
        model = platform.processor()
    text = "|".join([platform.node(), model, *sorted(cpu_features()), target.name, str(threads)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
