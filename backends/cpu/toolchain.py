"""The C compiler: ziglang's clang by default, any gcc or clang by `--cc` or `$CC`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from secateur.backends.cpu.target import Target
from secateur.ir.diagnostics import CompileError

# NaN and infinity keep their meaning: nothing of -ffast-math but fused multiply-add. Integers wrap.
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fwrapv",
    "-Wno-psabi",
    "-g0",  # debugging information would name the folder it was built in
)
GLIBC = "2.17"  # the oldest C library the default compiler's output runs on


@dataclass(frozen=True)
class Compiler:
    """A compiler command and whether it is ziglang's."""

    command: tuple[str, ...]
    zig: bool

    def target_flags(self, target: Target) -> list[str]:
        if self.zig:
            wide = [flag for flag in target.flags if not flag.startswith("-march")]
            return ["-target", f"{target.triple}.{GLIBC}", f"-mcpu={target.zig_cpu}", "-fno-sanitize=undefined", *wide]
        return list(target.flags)

    def version(self) -> str:
        """The first line of `--version`."""
        done = _run([*self.command, "--version"], None)
        return (done.stdout.splitlines() or ["unknown"])[0].strip()


def find_compiler(cc: str | None = None) -> Compiler:
    """The compiler to use: `cc`, else `$CC`, else ziglang's, else one on the PATH.

    Raises:
        CompileError: none is there; says what to install.
    """
    wanted = cc or os.environ.get("SECATEUR_CC") or os.environ.get("CC")
    if wanted:
        words = wanted.split()
        if not shutil.which(words[0]):
            raise CompileError(
                f"C compiler {words[0]!r} is not on the PATH", hint="leave out --cc for the built-in one"
            )
        return Compiler(tuple(words), zig=words[0].endswith("zig"))
    if importlib.util.find_spec("ziglang"):
        return Compiler((sys.executable, "-m", "ziglang", "cc"), zig=True)
    for name in ("clang", "gcc", "cc"):
        if found := shutil.which(name):
            return Compiler((found,), zig=False)
    raise CompileError("no C compiler found", hint="pip install ziglang, or name one with --cc")


def build(
    folder: Path,
    sources: Sequence[str],
    library: str,
    target: Target,
    compiler: Compiler,
    progress: Callable[[float], None] | None = None,
    extra: Sequence[str] = (),
) -> None:
    """Compile the sources of a folder in parallel and link them into a shared library there.

    Args:
        extra: further flags, for instance `-DPROFILE`.

    Raises:
        CompileError: the compiler failed; its message is shown.
    """
    flags = [*FLAGS, *compiler.target_flags(target), *extra]
    # Big files first, so that the last one to finish is a small one.
    order = sorted(sources, key=lambda name: -(folder / name).stat().st_size)
    objects = [f"{Path(name).stem}.o" for name in order]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        jobs = [
            pool.submit(_compile, [*compiler.command, *flags, "-c", source], object, folder)
            for source, object in zip(order, objects, strict=True)
        ]
        for done, job in enumerate(as_completed(jobs), 1):
            job.result()
            if progress:
                progress(done / (len(jobs) + 1))
    _compile([*compiler.command, *flags, "-shared", *objects, "-lm", "-lpthread"], library, folder)
    for name in objects:
        (folder / name).unlink()


def _compile(command: list[str], output: str, folder: Path) -> None:
    done = _run([*command, "-o", output], folder)
    if done.returncode or not (folder / output).is_file():
        message = "\n".join(done.stderr.strip().splitlines()[:30])
        message = message or f"exit code {done.returncode}, and there is no {output}"
        raise CompileError(
            f"the C compiler failed: {' '.join(command[:4])} ...\n{message}", hint=f"the source is kept in {folder}"
        )


def _run(command: list[str], folder: Path | None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if not os.access(Path.home(), os.W_OK):
        environment.setdefault("ZIG_GLOBAL_CACHE_DIR", str(Path(tempfile.gettempdir()) / "secateur-zig-cache"))
    try:
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:  # a command that is no program
        return subprocess.CompletedProcess(command, 127, "", str(error))
