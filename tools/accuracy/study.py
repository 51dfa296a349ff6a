"""What every study shares: how a study is run, and quantisation the way a user would ask for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import secateur
from secateur.backends.artifact import Program
from secateur.tools.accuracy.report import Row

PLAIN = secateur.Recipe(observers=("minmax",), equalize=False, smooth=False, correct_bias=False, round="nearest")


@dataclass(frozen=True)
class Room:
    """Where and how a study works.

    Attributes:
        weights: folder of trained float weights.
        threads: of compiled programs.
        progress: called with what is being done and the share of the study that is.
        note: called with a line for every part that is done.
    """

    weights: Path
    threads: int
    progress: Callable[[str, float], None]
    note: Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """What a study comes back with: its rows, and what they rest on."""

    rows: list[Row]
    facts: dict[str, Any]


def compiled(
    room: Room,
    model: Any,
    inputs: Sequence[Any] | None = None,
    recipe: str | secateur.Recipe | None = None,
    calibration: Any = None,
) -> Program:
    """`secateur.compile` with the study's threads."""
    return secateur.compile(model, inputs, threads=room.threads, quantize=recipe, calibration=calibration)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each pair of rows: f[N,D] twice -> f[N]."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.einsum("nd,nd->n", a, b) / norms
