"""secateur finetune: train a quantised model on data, with labels or after a float teacher."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import secateur
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.passes.quantize import RECIPES, quantize
from secateur.tools.calibration import add_calibration_option, calibration_source
from secateur.tools.commands.opt import write_result
from secateur.tools.console import Ui, table
from secateur.tools.functions import load_function
from secateur.tools.models import MODEL_HELP, input_specs, open_graph

if TYPE_CHECKING:
    from secateur.tools.finetune.loop import Finetuned
    from secateur.tools.finetune.objectives import Objective

HELP = "train a quantised model on data, with labels or after a float teacher"
EXAMPLE = """secateur finetune model.onnx --quantize int4 --data data.py:batches --metric data.py:accuracy -o model.ir
secateur finetune quantised.ir --teacher model.onnx --data data.py:batches --steps 1000 -o tuned.ir"""

CALIBRATION = 32  # batches of the training data, where there is no --calibration
LOSSES = ("distil", "labels")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=f"with quantize and dequantize, or float with --quantize: {MODEL_HELP}")
    data = "FILE.py:FUNCTION, which returns or yields batches: the inputs, then labels if there are any; it is called "
    parser.add_argument(
        "--data", required=True, metavar="DATA", help=data + "for each epoch, with its number if it can"
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT.ir", help="write the best model here, with its weights beside it"
    )
    parser.add_argument("--quantize", metavar="RECIPE", help=f"quantise the float model first: {', '.join(RECIPES)}")
    add_calibration_option(parser)
    parser.add_argument("--teacher", metavar="MODEL", help="a float model to follow; with --quantize, the model itself")
    parser.add_argument("--loss", choices=LOSSES, help="the teacher's outputs, or labels alone (default: as is given)")
    metric = (
        "FILE.py:FUNCTION(program) -> score, more is better; program(*arrays) runs the model as it is; runs your file"
    )
    parser.add_argument("--metric", metavar="METRIC", help=metric)
    parser.add_argument("--held-out", metavar="DATA", help="batches whose loss decides, where there is no --metric")
    _add_distillation(parser)
    _add_settings(parser)
    parser.add_argument("--checkpoint", metavar="FILE.safetensors", help="write the state of the run here")
    parser.add_argument("--every", type=int, default=100, metavar="N", help="steps between checkpoints (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")


def _add_distillation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, default=2.0, metavar="T", help="of the teacher (%(default)s)")
    parser.add_argument("--share", type=float, default=0.9, help="of the teacher; the rest is labels' (%(default)s)")
    kinds = "how outputs are compared: logits, numbers or embeddings (%(default)s)"
    parser.add_argument("--compare", choices=("kl", "mse", "cosine"), default="kl", help=kinds)
    match = "a value inside to follow too, by module, weights or name; may be repeated"
    parser.add_argument("--match", action="append", default=[], metavar="NAME[=WEIGHT]", help=match)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=500, help="of the optimiser (%(default)s)")
    parser.add_argument("--rate", type=float, default=1e-4, help="the highest learning rate (%(default)s)")
    parser.add_argument("--step-rate", type=float, help="that of quantisation steps, relative (ten times --rate)")
    parser.add_argument("--schedule", choices=("cosine", "linear", "constant"), default="cosine", help="(%(default)s)")
    parser.add_argument("--decay", type=float, default=0.0, help="of weights (%(default)s)")
    parser.add_argument("--accumulate", type=int, default=1, metavar="N", help="batches to a step (%(default)s)")
    parser.add_argument("--evaluate-every", type=int, default=50, metavar="N", help="steps (%(default)s)")
    parser.add_argument("--patience", type=int, default=0, metavar="N", help="evaluations without a better one")
    parser.add_argument("--freeze", action="append", default=[], metavar="PATTERN", help="parameters, e.g. 'step_*'")
    parser.add_argument("--seed", type=int, default=0, help="of torch, NumPy and Python (%(default)s)")


def run(args: argparse.Namespace, ui: Ui) -> None:
    # PyTorch is loaded by this command alone.
    from secateur.backends.torch.train import float_constants
    from secateur.tools.finetune.loop import Hooks, finetune
    from secateur.tools.finetune.schedule import Settings

    if args.output and not Path(args.output).absolute().parent.is_dir():
        raise CompileError(f"cannot write {args.output}: its folder does not exist")
    if args.resume and not args.checkpoint:
        raise CompileError("--resume needs to know from where", hint="--checkpoint FILE.safetensors")
    names = ("steps", "rate", "step_rate", "schedule", "decay", "accumulate", "evaluate_every", "patience", "seed")
    settings = Settings(**{name: getattr(args, name) for name in names}, frozen=tuple(args.freeze))
    data = load_function(args.data)
    metric = load_function(args.metric) if args.metric else None
    held_out = load_function(args.held_out) if args.held_out else None
    teacher = open_graph(args.teacher, ui) if args.teacher else None
    graph = open_graph(args.model, ui)
    masters = float_constants(teacher) if teacher else {}
    if args.quantize:
        graph, repaired = _quantized(graph, data, args, ui)
        # Repairs scale channels between layers: values inside are those of the repaired model, results are the same.
        teacher, masters = teacher or repaired, float_constants(repaired)
    with ui.progress() as progress:
        hooks = Hooks(progress=progress, checkpoint=args.checkpoint, every=args.every, resume=args.resume)
        objective = _objective(args, teacher)
        result = finetune(
            graph, data, objective, settings, metric=metric, held_out=held_out, masters=masters, hooks=hooks
        )
    if args.output:
        write_result(result.graph, args.output)
    _report(result, args, ui)


def _quantized(graph: Graph, data: Any, args: argparse.Namespace, ui: Ui) -> tuple[Graph, Graph]:
    """The model after post-training quantisation, and the float one behind it, repaired."""
    from secateur.backends.torch.lower import executor

    graph = secateur.optimize(graph)
    if args.calibration:
        source = calibration_source(args.calibration, input_specs(graph), args.seed)
    else:
        source = list(_calibration(graph, data, args.seed))
    with ui.progress() as progress:
        made = quantize(graph, source, args.quantize, run=executor, progress=progress)
    return made.graph, made.attempt.graph


def _calibration(graph: Graph, data: Any, seed: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Inputs of the first training batches, cut to the graph's batch size."""
    from secateur.tools.finetune.checkpoint import own_randomness
    from secateur.tools.finetune.data import epoch, split
    from secateur.tools.functions import blaming

    with own_randomness(seed), blaming("the data"):
        batches = list(islice(epoch(data, 0), CALIBRATION))
    for number, batch in enumerate(batches):
        inputs, _ = split(graph, batch, f"batch {number + 1}")
        size = graph.inputs[0].shape[0] if graph.inputs[0].type.rank else 1
        for start in range(0, len(inputs[0]) - size + 1, max(size, 1)):
            yield tuple(tensor[start : start + size].numpy() for tensor in inputs)


def _objective(args: argparse.Namespace, teacher: Graph | None) -> Objective:
    from secateur.tools.finetune.objectives import Distillation, cross_entropy, distil

    loss = args.loss or ("distil" if teacher else "labels")
    if loss == "labels":
        return cross_entropy()
    if teacher is None:
        raise CompileError("there is no teacher to follow", hint="--teacher MODEL, or --quantize of a float model")
    options = Distillation(temperature=args.temperature, share=args.share, kind=args.compare)
    return distil(teacher, replace(options, match=dict(map(_match, args.match))))


def _match(text: str) -> tuple[str, float]:
    name, equals, weight = text.partition("=")
    try:
        return name, float(weight) if equals else 1.0
    except ValueError:
        raise CompileError(f"--match {text!r}: {weight!r} is not a number") from None


def _report(result: Finetuned, args: argparse.Namespace, ui: Ui) -> None:
    facts = {
        "start": result.start,
        "best": result.best,
        "best_step": result.best_step,
        "steps": result.steps,
        "stopped": result.stopped,
        "seed": args.seed,
        "output": args.output,
        "history": result.history,
    }
    rows = [
        (item["step"], f"{item['score']:.6g}", "" if item["loss"] is None else f"{item['loss']:.6g}")
        for item in result.history
    ]
    what = "the metric" if args.metric else "minus the loss"
    end = f"best after {result.best_step} of {result.steps} steps: {result.best:.6g}, at the start {result.start:.6g}"
    notes = [end, f"score is {what}; seed {args.seed}"]
    notes += [f"stopped early: {result.stopped}"] if result.stopped else []
    notes += [f"wrote {args.output}"] if args.output else []
    ui.report(facts, table("", ["step>", "score>", "loss>"], rows, "\n".join(notes)))
