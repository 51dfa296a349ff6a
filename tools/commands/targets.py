"""secateur targets: the processors that code can be compiled for."""

from __future__ import annotations

import argparse
import platform
from typing import Any

from secateur.backends.cpu.target import TARGETS, missing_features, native_target
from secateur.tools.console import Ui, table

HELP = "list the processors that code can be compiled for"
EXAMPLE = "secateur targets"


def configure(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(args: argparse.Namespace, ui: Ui) -> None:
    native = native_target().name
    found: list[dict[str, Any]] = []
    for target in TARGETS.values():
        missing = sorted(missing_features(target.features))
        other = target.machine != platform.machine()
        found.append(
            {
                "name": target.name,
                "machine": target.machine,
                "vector_bits": 8 * target.vector_bytes,
                "features": list(target.features),
                "native": target.name == native,
                "runs_here": not other and not missing,
                "why_not": f"for {target.machine}" if other else f"no {', '.join(missing)}" if missing else "",
            }
        )
    rows = [
        (
            item["name"] + (" (native)" if item["native"] else ""),
            item["machine"],
            item["vector_bits"],
            "yes" if item["runs_here"] else f"no: {item['why_not']}",
            " ".join(item["features"]),
        )
        for item in found
    ]
    columns = ["target", "machine", "vector bits>", "runs here", "needs"]
    ui.report(found, table("", columns, rows, "every target can be compiled for on every machine"))
