"""Perplexity of a small GPT on files it has not seen: 8-bit weights and activations, and 4-bit weights by groups."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import numpy as np
import torch

from secateur.tools.accuracy import language
from secateur.tools.accuracy.language import Gpt, Text
from secateur.tools.accuracy.report import Row
from secateur.tools.accuracy.study import Found, Room, compiled
from secateur.tools.accuracy.trained import trained

GOALS = (("int8", "int8", 1.0), ("int4 weights by groups of 32", "weights-int4", 3.0))


@dataclass(frozen=True)
class Config:
    """How much is done: `calibration` and `held_out` are pieces of text of the model's length."""

    model: language.Config = field(default_factory=language.Config)
    batch: int = 8
    calibration: int = 64
    held_out: int = 512


def study(room: Room, config: Config) -> Found:
    """Perplexity of torch's fp32 and of both quantised programs on the same pieces of held-out files."""
    text = language.read_text(config.model)
    model, kept = float_model(room, text, config)
    rows = language.windows(text.held_out, config.held_out, config.model.context)
    inputs = language.windows(text.train, config.calibration, config.model.context)[:, :-1]
    count = len(inputs) // config.batch * config.batch
    batches = [(np.ascontiguousarray(part),) for part in np.split(inputs[:count], count // config.batch)]
    rows = rows[: len(rows) // config.batch * config.batch]
    room.progress("GPT", 0.5)

    def in_torch(tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            made: np.ndarray = model(torch.from_numpy(tokens)).numpy()
        return made

    before = language.perplexity(in_torch, rows, config.batch)
    room.note(f"GPT: fp32 {before:.3f}{' (weights of an earlier run)' if kept else ''}")
    found = []
    for number, (name, recipe, limit) in enumerate(GOALS):
        program = compiled(room, model, (torch.from_numpy(batches[0][0]),), recipe, batches)
        after = language.perplexity(program, rows, config.batch)
        lost = 100 * (after / before - 1)
        room.note(f"GPT: {name} {after:.3f}, {lost:+.2f} %")
        found.append(
            Row("GPT", name, "perplexity", before, after, lost, "%", limit, detail=f"{rows[:, 1:].size} tokens")
        )
        room.progress("GPT", 0.5 + 0.5 * (number + 1) / len(GOALS))
    facts = {"seed": config.model.seed, "parameters": sum(p.numel() for p in model.parameters())}
    facts |= {"training tokens": config.model.steps * config.model.batch * config.model.context}
    facts |= {"calibration tokens": count * config.model.context, "held-out tokens": rows[:, 1:].size}
    return Found(found, facts)


def float_model(room: Room, text: Text, config: Config) -> tuple[Gpt, bool]:
    """The trained model, and whether its weights were there already."""
    torch.manual_seed(config.model.seed)
    model = Gpt(config.model)

    def train() -> None:
        language.train(model, text.train, config.model, lambda what, share: room.progress("GPT", 0.5 * share))

    kept = trained(room.weights, "gpt", sys.modules[language.__name__], (config.model, text.digest), model, train)
    return model.eval(), kept
