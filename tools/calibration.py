"""Where commands find calibration data: files, a function of the user's own, or random tensors for trials."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.tools.functions import blaming, load_function
from secateur.tools.models import Specs, random_inputs

CALIBRATION_HELP = (
    "what real inputs look like: a .npz of arrays by input name (with any number of samples), a .npy, a folder of "
    "them, FILE.py:FUNCTION (runs your file; the function returns batches), or `random` for a trial without data"
)
RANDOM = "random"
RANDOM_NOTE = "the calibration data is random (seed {seed}): good for times, not for accuracy"
BATCHES = 8  # random ones


@dataclass(frozen=True)
class Again:
    """Batches of a function, which is called anew each time they are gone through."""

    function: Callable[[], Iterable[Any]]
    name: str

    def __iter__(self) -> Iterator[Any]:
        with blaming(self.name):
            yield from self.function()


def add_calibration_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--calibration", metavar="DATA", help=CALIBRATION_HELP)


def calibration_source(text: str, specs: Specs, seed: int) -> Any:
    """What `--calibration` names, for `open_batches`.

    Raises:
        CompileError: there is no such file, or no such function in it.
    """
    if text == RANDOM:
        return similar_batches(specs, seed)
    if ".py:" in text:
        return Again(load_function(text), text)
    return Path(text)


def similar_batches(
    specs: Specs, seed: int, example: Sequence[np.ndarray] = (), count: int = BATCHES
) -> list[tuple[np.ndarray, ...]]:
    """Random batches: normal floats; an example's integers in another order, so that all stay valid; masks as they are.

    They say nothing about what a model will see: good for times, not for accuracy.
    """
    rng = np.random.default_rng(seed)
    batches = []
    for number in range(count):
        drawn = random_inputs(specs, seed + 1000 * (number + 1))
        for position, given in enumerate(example):
            if "mask" in specs[position][0]:
                drawn[position] = given
            elif not specs[position][1].dtype.is_float:
                drawn[position] = rng.permuted(given.ravel()).reshape(given.shape)
        batches.append(tuple(drawn))
    return batches
