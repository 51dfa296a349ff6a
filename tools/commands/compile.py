"""secateur compile: a model in, a folder of native code out."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import secateur
from secateur.tools.commands.opt import add_pass_options, chosen_passes
from secateur.tools.console import Ui, duration, size
from secateur.tools.files import written_beside
from secateur.tools.models import MODEL_HELP, open_graph

HELP = "compile a model to C and a shared library"
EXAMPLE = "secateur compile model.onnx -o build/model --target x86-64-v3 --threads 2"


def add_compile_options(parser: argparse.ArgumentParser) -> None:
    """The options of compiling, the same for every command."""
    add_pass_options(parser)
    parser.add_argument("--target", default="native", help="a processor (see `secateur targets`; default: %(default)s)")
    parser.add_argument("--threads", type=positive, metavar="N", help="fix the number of threads now, not at load time")
    parser.add_argument("--cc", help="a C compiler to use instead of the bundled clang")


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="the folder to write")
    add_compile_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> None:
    start = time.perf_counter()
    with written_beside(Path(args.output), "manifest.json") as fresh:
        program = compile_model(args.model, args, ui)
        program.save(fresh)
    seconds = time.perf_counter() - start
    report = program.report()
    bytes = {item.name: item.stat().st_size for item in sorted(Path(args.output).iterdir()) if item.is_file()}
    files = ", ".join(f"{name} {size(count)}" for name, count in bytes.items())
    ui.report(
        {"output": args.output, "seconds": seconds, "files": bytes, "report": dict(report)},
        str(report),
        f"wrote {args.output} in {duration(seconds)}: {files}",
    )


def compile_model(name: str, args: argparse.Namespace, ui: Ui) -> secateur.Program:
    """Import and compile what the command line names, showing progress."""
    graph = open_graph(name, ui)
    with ui.progress() as progress:
        return secateur.compile(
            graph,
            target=args.target,
            pipeline=chosen_passes(args),
            threads=args.threads,
            cc=args.cc,
            progress=progress,
        )
