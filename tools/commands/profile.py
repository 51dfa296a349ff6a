"""secateur profile: where the time of an artefact goes, op by op, beside the machine's limits."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from secateur.backends.artifact import STORED, read_manifest
from secateur.backends.cpu.kernel import draw
from secateur.backends.cpu.profile import Profile, Row, profile
from secateur.ir.types import DType
from secateur.tools.commands.compile import positive
from secateur.tools.console import Ui, duration, size, table
from secateur.tools.models import INPUTS_HELP, manifest_specs, read_inputs
from secateur.tools.roofline import roofline

HELP = "time every step of an artefact and show its share of what the machine can do"
EXAMPLE = "secateur profile build/model -o profile.json --picture roofline.svg"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artefact", help="a folder that `secateur compile` wrote")
    parser.add_argument("--inputs", metavar="FILE.npz", help=f"{INPUTS_HELP}; by default random ones")
    parser.add_argument("--seed", type=int, default=0, help="of random inputs (%(default)s)")
    parser.add_argument("--threads", type=positive, help="instead of the number chosen at compile time")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to measure (%(default)s)")
    parser.add_argument("--most", type=positive, default=25, help="rows of the table, slowest first (%(default)s)")
    parser.add_argument("-o", "--output", metavar="JSON", help="write the whole profile, for `secateur view --profile`")
    parser.add_argument("--picture", metavar="SVG", help="write a roofline picture")


def run(args: argparse.Namespace, ui: Ui) -> None:
    folder = Path(args.artefact)
    arrays = _inputs(folder, args)
    with ui.progress() as progress:
        result = profile(folder, arrays, args.threads, args.seconds, progress)
    if args.output:
        Path(args.output).write_text(json.dumps(result.as_json(), indent=1) + "\n")
    if args.picture:
        Path(args.picture).write_text(roofline(result))
    ui.report(result.as_json(), profile_table(result, args.most))
    for path in filter(None, (args.output, args.picture)):
        ui.note(f"wrote {path}")


def _inputs(folder: Path, args: argparse.Namespace) -> list[np.ndarray]:
    specs = manifest_specs(read_manifest(folder))
    if args.inputs:
        return read_inputs(args.inputs, specs)
    rng = np.random.default_rng(args.seed)
    return [draw(t, rng).view(STORED[t.dtype.value]) if t.dtype is DType.BF16 else draw(t, rng) for _, t in specs]


def profile_table(result: Profile, most: int) -> Any:
    """The slowest steps: time, share of all, rate, and share of the limit that binds them."""
    total = sum(row.seconds for row in result.rows)
    slowest = sorted(result.rows, key=lambda row: -row.seconds)
    rows = [_cells(row, total) for row in slowest[:most]]
    if len(slowest) > most:
        rest = sum(row.seconds for row in slowest[most:])
        rows.append(("", f"{len(slowest) - most} more", "", "", duration(rest), f"{rest / total:.1%}", "", "", "", ""))
    limits = result.limits
    rate = sum(row.flops for row in result.rows) / total
    caption = (
        f"{len(slowest)} steps, {duration(total)}; {rate / 1e9:.0f} GFLOP/s, {rate / limits.flops:.0%} of the "
        f"{limits.flops / 1e9:.0f} GFLOP/s and {limits.bandwidth / 1e9:.0f} GB/s that {limits.threads} threads were "
        f"measured to have; profiling adds {max(0.0, result.overhead):.1%}"
    )
    columns = ["step>", "op", "kernel", "result", "time>", "of all>", "GFLOP/s>", "GB/s>", "of limit>", "bound by"]
    return table("", columns, rows, caption)


def _cells(row: Row, total: float) -> tuple[str, ...]:
    rates = (f"{row.flops / row.seconds / 1e9:.1f}", f"{row.bytes / row.seconds / 1e9:.1f}")
    name = row.op if row.flops else f"{row.op} ({size(row.bytes)})"
    time, part = duration(row.seconds), f"{row.seconds / total:.1%}"
    return (str(row.step), name, row.family, row.result, time, part, *rates, f"{row.share:.0%}", row.bound)
