"""all-MiniLM-L6-v2 with its real weights on passages of the standard library: 8-bit embeddings beside fp32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from secateur.tools.accuracy.report import Row
from secateur.tools.accuracy.study import Found, Room, compiled, cosines
from secateur.tools.demo import QUESTIONS, in_torch, sentence_encoder, tokenize
from secateur.tools.passages import Passage, standard_library

TOP = 5


@dataclass(frozen=True)
class Config:
    """How much is done.

    Attributes:
        per_module: passages of each module.
        calibration: passages to calibrate with.
        every: one module in so many is for calibration, the others are held out.
    """

    per_module: int = 8
    calibration: int = 48
    every: int = 3
    held_out: int = 10**6


def study(room: Room, config: Config) -> Found:
    """Cosine with fp32 of every held-out passage, and how many of the best five stay for questions and passages."""
    known, unseen = passages(config)
    model, inputs = sentence_encoder()
    batches = list(zip(*(np.split(part, len(part)) for part in tokenize([text_of(item) for item in known]))))
    tokens, mask = tokenize([*QUESTIONS, *(text_of(item) for item in unseen)])
    program = compiled(room, model, inputs, "int8", batches)
    room.progress("MiniLM", 0.6)
    with torch.inference_mode():
        reference = in_torch(model)
        before, after = [], []
        for row in range(len(tokens)):
            one = tokens[row : row + 1], mask[row : row + 1]
            before.append(reference(*one)[0])
            after.append(program(*one)[0])
            room.progress("MiniLM", 0.6 + 0.4 * (row + 1) / len(tokens))
    found = rows(np.stack(before), np.stack(after))
    room.note("MiniLM: " + ", ".join(f"{row.measure} {row.value:.4g}" for row in found))
    facts = {"calibration passages": len(known), "held-out passages": len(unseen), "questions": len(QUESTIONS)}
    return Found(found, {"seed": "none: nothing is drawn", **facts})


def passages(config: Config) -> tuple[list[Passage], list[Passage]]:
    """Passages to calibrate with and held-out ones, of different modules."""
    every = standard_library(config.per_module)
    modules = sorted({module_of(item) for item in every})
    chosen = set(modules[:: config.every])
    known = [item for item in every if module_of(item) in chosen]
    unseen = [item for item in every if module_of(item) not in chosen]
    steps = max(1, len(known) // config.calibration)
    return known[::steps][: config.calibration], unseen[: config.held_out]


def module_of(passage: Passage) -> str:
    return passage.name.partition(".")[0]


def text_of(passage: Passage) -> str:
    return f"{passage.name}: {passage.text}"


def rows(before: np.ndarray, after: np.ndarray) -> list[Row]:
    """Figures of embeddings f32[Q+N,D]: questions first, then passages."""
    each = cosines(before, after)
    mean = float(each.mean())
    questions = len(QUESTIONS)
    least = f"the least is {each.min():.4f}"
    found = [Row("MiniLM", "int8", "mean cosine with fp32", 1.0, mean, 1 - mean, "", 0.01, detail=least)]
    # One answer to ten questions is two points: too few for a goal, so only the passages have one.
    for name, share, limit in (
        ("questions", overlap(before[:questions], after[:questions], before[questions:], after[questions:]), None),
        (
            "passages",
            overlap(before[questions:], after[questions:], before[questions:], after[questions:], alone=True),
            5.0,
        ),
    ):
        figure = 100 * share
        found.append(
            Row("MiniLM", "int8", f"top-{TOP} overlap of {name}, %", 100.0, figure, 100 - figure, "points", limit)
        )
    return found


def overlap(
    ask_before: np.ndarray, ask_after: np.ndarray, before: np.ndarray, after: np.ndarray, alone: bool = False
) -> float:
    """Share of the TOP nearest passages that both find; `alone` leaves out that a passage is nearest to itself."""
    nearest = []
    for asked, stored in ((ask_before, before), (ask_after, after)):
        scores = asked @ stored.T
        if alone:
            np.fill_diagonal(scores, -np.inf)
        nearest.append(np.argsort(-scores, axis=1, kind="stable")[:, :TOP])
    return float(np.mean([len(set(a) & set(b)) / TOP for a, b in zip(*nearest)]))
