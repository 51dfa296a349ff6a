"""The processors code is emitted for. All that differs between them is in this table."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from secateur.ir.diagnostics import CompileError, nearest


@dataclass(frozen=True, slots=True)
class Target:
    """One processor kind.

    Attributes:
        name: as `--target` takes it.
        vector_bytes: width of a vector register.
        registers: number of vector registers.
        flags: what gcc and clang need to be told.
        zig_cpu: the same for ziglang's clang.
        features: what the running CPU must offer, by the names of /proc/cpuinfo.
        machine: `platform.machine()` of the processors that can run the code.
        triple: for cross compilation with ziglang's clang.
        l2_bytes: size of the second-level cache that blocking counts on.
    """

    name: str
    vector_bytes: int
    registers: int
    flags: tuple[str, ...]
    zig_cpu: str
    features: tuple[str, ...]
    machine: str = "x86_64"
    triple: str = "x86_64-linux-gnu"
    l2_bytes: int = 1 << 20

    @property
    def lanes(self) -> int:
        """Number of f32 elements in a vector."""
        return self.vector_bytes // 4


_V2 = ("sse4_2", "ssse3", "popcnt")
_V3 = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
_HERE = platform.machine()
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "x86-64-v2", 16, 16, ("-march=x86-64-v2",), "x86_64_v2", ("sse4_2", "ssse3", "popcnt"), l2_bytes=256 << 10
        ),
        Target("x86-64-v3", 32, 16, ("-march=x86-64-v3",), "x86_64_v3", _V3, l2_bytes=256 << 10),
        Target("x86-64-v4", 64, 32, ("-march=x86-64-v4", "-mprefer-vector-width=512"), "x86_64_v4", _V4),
        Target(
            "aarch64", 16, 32, ("-march=armv8-a",), "generic", ("asimd",), "aarch64", "aarch64-linux-gnu", 512 << 10
        ),
        Target("generic", 16, 16, (), "baseline", (), _HERE, f"{_HERE}-linux-gnu", 256 << 10),
    )
}


def find_target(name: str) -> Target:
    """A target by name; `native` is the best one this machine runs. Raises `CompileError`."""
    if name == "native":
        return native_target()
    if name not in TARGETS:
        raise CompileError(
            f"unknown target {name!r}", hint=nearest(name, [*TARGETS, "native"]) or "see `secateur targets`"
        )
    return TARGETS[name]


@cache
def native_target() -> Target:
    """The last target of the table whose features this machine has."""
    fitting = [t for t in TARGETS.values() if t.machine == platform.machine() and not missing_features(t.features)]
    return max(fitting, key=lambda t: (t.vector_bytes, len(t.features)), default=TARGETS["generic"])


@cache
def cpu_features() -> frozenset[str]:
    """What the running CPU offers, by the names of /proc/cpuinfo; empty where that file does not exist."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def missing_features(features: tuple[str, ...]) -> list[str]:
    return [feature for feature in features if feature not in cpu_features()]


def default_threads() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
