"""secateur compile: a model in, a folder of native code out."""

from __future__ import annotations

import argparse
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Group

from secateur.backends.artifact import MANIFEST, Program, Report, make_report, read_manifest
from secateur.backends.cpu.compile import Options, compile_graph, compile_to
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.passes.quantize import RECIPES
from secateur.tools.calibration import RANDOM, RANDOM_NOTE, add_calibration_option, calibration_source
from secateur.tools.commands.opt import add_pass_options, chosen_passes
from secateur.tools.console import Ui, duration, size, table
from secateur.tools.files import written_beside
from secateur.tools.models import MODEL_HELP, input_specs, open_graph

HELP = "compile a model to C and a shared library"
EXAMPLE = """secateur compile model.onnx -o build/model --target x86-64-v3 --threads 2
secateur compile model.onnx -o build/model-int8 --quantize int8 --calibration data.npz"""


def add_compile_options(parser: argparse.ArgumentParser) -> None:
    """The options of compiling, the same for every command."""
    add_pass_options(parser)
    parser.add_argument("--target", default="native", help="a processor (see `secateur targets`; default: %(default)s)")
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="fixed now; without it, one a processor at each load"
    )
    parser.add_argument("--cc", help="a C compiler to use instead of the bundled clang")
    parser.add_argument("--name", default="model", help="of library, header and C symbols (%(default)s)")


def add_quantize_options(parser: argparse.ArgumentParser) -> None:
    """How a float model is quantised first."""
    parser.add_argument("--quantize", metavar="RECIPE", help=f"quantise first: {', '.join(RECIPES)}")
    add_calibration_option(parser)
    parser.add_argument("--seed", type=int, default=0, help="of `--calibration random` (%(default)s)")


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
    add_quantize_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> None:
    start = time.perf_counter()
    output = Path(args.output)
    with written_beside(output, MANIFEST) as fresh:
        graph = open_graph(args.model, ui)
        with ui.progress() as progress, source_kept(fresh, output):
            compile_to(fresh, graph, quantizing(args, graph, ui), progress)
    seconds = time.perf_counter() - start
    report = make_report(read_manifest(output))
    bytes = {item.name: item.stat().st_size for item in sorted(output.iterdir()) if item.is_file()}
    ui.report(
        {"output": args.output, "seconds": seconds, "files": bytes, "report": report},
        report_table(report),
        f"wrote {args.output} in {duration(seconds)}: " + ", ".join(f"{name} {size(n)}" for name, n in bytes.items()),
    )


def settings(args: argparse.Namespace) -> Options:
    """What `add_compile_options` gathered."""
    return Options(args.target, chosen_passes(args), args.threads, args.cc, args.name)


def quantizing(args: argparse.Namespace, graph: Graph, ui: Ui) -> Options:
    """What `add_compile_options` and `add_quantize_options` gathered; says so where the calibration data is made up."""
    source = None
    if args.calibration:
        source = calibration_source(args.calibration, input_specs(graph), args.seed)
        if args.calibration == RANDOM:
            ui.note(RANDOM_NOTE.format(seed=args.seed))
    return replace(settings(args), quantize=args.quantize, calibration=source)


def compile_model(name: str, args: argparse.Namespace, ui: Ui) -> Program:
    """Import and compile what the command line names, showing progress."""
    graph = open_graph(name, ui)
    with ui.progress() as progress:
        return compile_graph(graph, settings(args), progress)


@contextmanager
def source_kept(folder: Path, output: Path) -> Iterator[None]:
    """Where the C compiler fails, the source it failed on stays for a look, in `<output>.failed`."""
    try:
        yield
    except CompileError as error:
        if "C compiler failed" in error.message:
            kept = output.with_name(f"{output.name}.failed")
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(folder, kept)
            error.hint = f"the source is kept in {kept}"
        raise


def report_table(report: Report) -> Group:
    """Totals, and a row for every kernel that runs."""
    bytes = ("arena_bytes", "weights_bytes", "scratch_bytes")
    facts = [f"{key.removesuffix('_bytes')} {size(report[key])}" for key in bytes]
    head = f"target {report['target']}, {report['threads']} threads, {', '.join(facts)}"
    if "quantization" in report:
        head += f"\n{quantization_line(report['quantization'])}"
    rows = [
        (k["step"], k["family"], k["op"], k["result"], f"{k['flops'] / 1e6:.2f}", size(k["bytes"]), k["why"])
        for k in report["kernels"]
    ]
    columns = ["step>", "kernel", "op", "result", "MFLOP>", "moves>", "why"]
    return Group(table("", columns, rows), head)


def quantization_line(record: dict[str, Any]) -> str:
    """How much of a model works in integers, how often it goes between them and floats, and what that does to it."""
    products = record["products"]
    text = (
        f"products in integers {products['integer']}, in floats {products['float'] + products['weights']} "
        f"({products['weights']} of them with integer weights); "
        f"{record['conversions']} conversions between the two"
    )
    if record.get("error"):
        text += f"; {error_line(record)}"
    reasons = Counter(row["reason"] for row in record.get("ops", ()) if row["reason"])
    return "\n".join([text, *(f"stay float: {count}, because {why}" for why, count in reasons.most_common())])


def error_line(record: dict[str, Any]) -> str:
    """How far quantisation moved the results of calibration batches, from signal to noise ratios in dB."""
    final, plain = (100 * 10 ** (-record["error"][key] / 20) for key in ("final", "minmax"))
    return f"results differ by {final:.3g} % from float (norm over norm; {plain:.3g} % with plain min-max ranges)"
