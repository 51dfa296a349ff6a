"""secateur bench: how fast, beside whom, and is the answer the same."""

from __future__ import annotations

import argparse
import platform
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from secateur.backends.cpu.compile import Options, compile_to
from secateur.backends.cpu.kernel import draw, together
from secateur.backends.cpu.lower import families
from secateur.backends.cpu.profile import profile
from secateur.ir.diagnostics import CompileError
from secateur.passes.quantize import recipe_of
from secateur.tools.benchmark import TOLERANCE, Plan, Result, check_contenders, measure
from secateur.tools.calibration import RANDOM, RANDOM_NOTE, add_calibration_option
from secateur.tools.commands.compile import add_compile_options, positive
from secateur.tools.commands.opt import chosen_passes
from secateur.tools.commands.profile import profile_table
from secateur.tools.console import Ui, duration, table
from secateur.tools.models import MODEL_HELP

HELP = "time a compiled model beside other runtimes, each in its own process, and compare the outputs"
EXAMPLE = """secateur bench zoo:resnet50 --against eager,onnxruntime,openvino --threads 2 --rounds 5
secateur bench zoo:resnet50 --quantize int8 --against onnxruntime,openvino"""
QUANTIZE_HELP = (
    "quantise the model, everyone with the same calibration data: the others run the int8 model that ONNX Runtime's "
    "tools make of it, secateur its own (by this recipe), that same file (secateur-onnx), and the float model "
    "(secateur-f32)"
)


QUANTIZED = (
    "\nsecateur-onnx, onnxruntime and openvino run the same statically quantised file; secateur quantises the float "
    "model itself, with the same calibration data; eager and secateur-f32 are float"
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help=MODEL_HELP)
    parser.add_argument("--kernels", action="store_true", help="time the examples of every kernel family instead")
    parser.add_argument(
        "--against", default="eager,onnxruntime", help="any of eager, inductor, onnxruntime, openvino (%(default)s)"
    )
    add_compile_options(parser)
    parser.set_defaults(threads=2)
    parser.add_argument("--quantize", metavar="RECIPE", default="", help=QUANTIZE_HELP)
    add_calibration_option(parser)
    parser.add_argument("--rounds", type=positive, default=5, help="how often everyone has a turn (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="the length of a turn (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of random inputs and calibration data (%(default)s)")
    parser.add_argument("--work", metavar="DIR", help="for inputs, ONNX file, artefact and logs (build/bench/MODEL)")


def run(args: argparse.Namespace, ui: Ui) -> None:
    if args.kernels:
        bench_kernels(args, ui)
        return
    if not args.model:
        raise CompileError("name a model, or ask for --kernels")
    if args.calibration and not args.quantize:
        raise CompileError("--calibration goes with --quantize")
    if args.quantize:
        recipe_of(args.quantize)
    plan = Plan(
        model=args.model,
        folder=Path(args.work) if args.work else Path("build/bench") / re.sub(r"[^\w.-]+", "_", args.model),
        contenders=check_contenders([name for name in args.against.split(",") if name], bool(args.quantize)),
        threads=args.threads,
        rounds=args.rounds,
        seconds=args.seconds,
        seed=args.seed,
        target=args.target,
        pipeline=chosen_passes(args),
        cc=args.cc,
        load=args.load,
        quantize=args.quantize,
        calibration=args.calibration or "",
    )
    with ui.progress() as progress:
        results, prepared = measure(plan, progress)
    ui.report(describe(plan, results, prepared), results_table(plan, results))
    own = results[0]
    if own.failure:
        raise CompileError(f"secateur: {own.failure}")
    exact = next((result for result in results if result.name == "secateur-f32"), own)  # never the quantised one
    if exact.error is not None and not exact.error < TOLERANCE:
        raise CompileError(
            f"{exact.name}'s outputs are {exact.error:.2g} away from the reference, more than {TOLERANCE}"
        )


def bench_kernels(args: argparse.Namespace, ui: Ui) -> None:
    """Every family's examples as the steps of one program, each beside the machine's limit."""
    rng = np.random.default_rng(args.seed)
    examples = [example for item in families().values() for example in item.examples]
    graph = together(examples, rng)
    with ui.progress() as progress, tempfile.TemporaryDirectory(prefix="secateur-kernels-") as folder:
        compile_to(Path(folder), graph, Options(args.target, "none", args.threads, args.cc))
        inputs = [draw(value.type, rng) for value in graph.inputs]
        result = profile(Path(folder), inputs, args.threads, args.rounds * args.seconds, progress)
    ui.report(result.as_json(), profile_table(result, len(result.rows)))


def describe(plan: Plan, results: list[Result], prepared: dict[str, Any]) -> dict[str, Any]:
    """The whole benchmark as plain data, every single time included."""
    facts = {"model": plan.model, "threads": plan.threads, "machine": platform.machine(), "prepared": prepared}
    rows = []
    for result in results:
        times = {"median": result.median, "min": result.least} if result.rounds else {}
        rows.append({**times, **asdict(result)})
    return {**facts, "results": rows}


def results_table(plan: Plan, results: list[Result]) -> Any:
    """Median, minimum, ratio to Secateur's median, distance of the outputs from the reference (and their cosine)."""
    own = results[0].median if results[0].rounds else None
    rows = []
    for result in results:
        if result.failure:
            rows.append((result.name, *[""] * 5, result.failure))
            continue
        ratio = f"{result.median / own:.2f}" if own else ""
        error = "" if result.error is None else f"{result.error:.1e}"
        cosine = "" if result.cosine is None else f"{result.cosine:.4f}"
        rows.append((result.name, duration(result.median), duration(result.least), ratio, error, cosine, ""))
    title = f"{plan.model}, {plan.threads} threads, {plan.rounds} rounds of {plan.seconds:g} s in turns"
    title += f", quantised ({plan.quantize})" if plan.quantize else ""
    caption = "error: norm of the difference over norm; cosine: of the angle; both against eager (or the first other)"
    if plan.quantize:
        caption += QUANTIZED + (f"\n{RANDOM_NOTE.format(seed=plan.seed)}" if plan.calibration in ("", RANDOM) else "")
    return table(
        title, ["contender", "median>", "min>", "time / secateur's>", "error>", "cosine>", "note"], rows, caption
    )
