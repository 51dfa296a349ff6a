"""The processors code is emitted for. All that differs between them is in this table."""

from __future__ import annotations

import ctypes
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
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_VNNI = (*_V4, "avx512_vnni")
_VBMI = (*_VNNI, "avx512vbmi")  # permutations of bytes, for tables
_AMX = ("amx_tile", "amx_int8")
_HERE = platform.machine()


def _x86(level: int, name: str, bytes: int, features: tuple[str, ...], *extensions: str) -> Target:
    """A level of x86-64, with extensions by the names that gcc and clang have for them."""
    flags = (f"-march=x86-64-v{level}", *(f"-m{extension}" for extension in extensions))
    wide = ("-mprefer-vector-width=512",) if bytes == 64 else ()
    # clang writes its processors' extensions as they are in `-m`, but for the hyphens.
    cpu = "+".join((f"x86_64_v{level}", *(extension.replace("-", "_") for extension in extensions)))
    cache = 1 << 20 if bytes == 64 else 256 << 10
    return Target(name, bytes, 32 if bytes == 64 else 16, (*flags, *wide), cpu, features, l2_bytes=cache)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        _x86(2, "x86-64-v2", 16, _V2),
        _x86(3, "x86-64-v3", 32, _V3),
        _x86(3, "x86-64-v3-vnni", 32, (*_V3, "avx_vnni"), "avxvnni"),
        _x86(4, "x86-64-v4", 64, _V4),
        _x86(4, "x86-64-v4-vnni", 64, _VNNI, "avx512vnni"),
        _x86(4, "x86-64-v4-vbmi", 64, _VBMI, "avx512vnni", "avx512vbmi"),
        _x86(4, "x86-64-v4-amx", 64, (*_VBMI, *_AMX), "avx512vnni", "avx512vbmi", "amx-tile", "amx-int8"),
        Target(
            "aarch64", 16, 32, ("-march=armv8-a",), "generic", ("asimd",), "aarch64", "aarch64-linux-gnu", 512 << 10
        ),
        Target(
            "aarch64-dotprod",
            16,
            32,
            ("-march=armv8.2-a+dotprod",),
            "generic+dotprod",
            ("asimd", "asimddp"),
            "aarch64",
            "aarch64-linux-gnu",
            512 << 10,
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
    """What the running CPU offers and the system permits, by the names of /proc/cpuinfo; empty without that file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            found = frozenset(value.split())
            return found if "amx_tile" not in found or _tiles_permitted() else found - set(_AMX)
    return frozenset()


def _tiles_permitted() -> bool:
    """Whether Linux lets this process use the tile registers of AMX: it wants to be asked (pool.c asks again)."""
    arch_prctl, request, tile_data = 158, 0x1023, 18
    try:
        return ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0
    except (OSError, AttributeError):
        return False


def missing_features(features: tuple[str, ...]) -> list[str]:
    return [feature for feature in features if feature not in cpu_features()]


def default_threads() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
