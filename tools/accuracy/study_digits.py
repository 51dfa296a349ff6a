"""Digits: quantised after training, with training, and with weights of 4 bits; and a hostile network, repaired."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

import secateur
from secateur.ir.graph import Graph
from secateur.passes.quantize import quantize
from secateur.tools.accuracy import digits
from secateur.tools.accuracy.digits import Net, Split
from secateur.tools.accuracy.report import Row
from secateur.tools.accuracy.study import PLAIN, Found, Room, compiled
from secateur.tools.accuracy.trained import trained
from secateur.tools.finetune.loop import finetune
from secateur.tools.finetune.objectives import Distillation, distil
from secateur.tools.finetune.schedule import Settings

BATCH = 64
GOALS = {"int8": 0.2, "int8, trained": 0.1, "int4 weights, trained": 0.5}


@dataclass(frozen=True)
class Config:
    """How much is done.

    Attributes:
        halves: of each seed, 1 or 2.
        calibration: batches of 64 images.
        steps8, steps4: of quantisation-aware training with weights of 8 and of 4 bits.
        octaves: how far the hostile network's channels are scaled, up and down.
    """

    training: digits.Config = field(default_factory=digits.Config)
    halves: int = 2
    calibration: int = 8
    steps8: int = 150
    steps4: int = 300
    octaves: float = 5.0

    def splits(self, seeds: tuple[int, ...]) -> list[Split]:
        return [split for split in digits.splits(seeds) if split.fold < self.halves]


@dataclass
class Tally:
    """Which held-out images are recognised, over all splits: bool[N] each."""

    float_: list[np.ndarray] = field(default_factory=list)
    quantised: list[np.ndarray] = field(default_factory=list)

    def row(self, study: str, variant: str, limit: float | None, ruin: bool = False) -> Row:
        before, after = np.concatenate(self.float_), np.concatenate(self.quantised)
        lost, won = int((before & ~after).sum()), int((after & ~before).sum())
        error = 100 * math.sqrt(lost + won) / len(before)
        detail = f"{lost} of {len(before)} images lost, {won} won; standard error {error:.2f} points"
        figures = 100 * float(before.mean()), 100 * float(after.mean())
        cost = 100 * (lost - won) / len(before)
        return Row(study, variant, "accuracy, %", *figures, cost, "points", limit, ruin, detail)


def float_net(room: Room, split: Split, config: Config) -> Net:
    torch.manual_seed(split.seed)
    net = Net()
    facts = (split.seed, split.fold, config.training)
    trained(
        room.weights,
        "digits",
        sys.modules[digits.__name__],
        facts,
        net,
        lambda: digits.train(net, split, config.training, lambda what, share: None),
    )
    return net.eval()


def recognised(predict: digits.Predict, split: Split) -> np.ndarray:
    return digits.correct(predict, split.test_x, split.test_y, BATCH)


def in_torch(net: Net) -> digits.Predict:
    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            made: np.ndarray = net(torch.from_numpy(images)).numpy()
        return made

    return predict


def calibration(split: Split, count: int) -> list[tuple[np.ndarray]]:
    """Batches of training images as they are: f32[64,1,8,8]."""
    return [(split.train_x[start : start + BATCH],) for start in range(0, count * BATCH, BATCH)]


# Digits -------------------------------------------------------------------------------------------


def study(room: Room, config: Config) -> Found:
    """Accuracy of every variant on every split."""
    tallies = {name: Tally() for name in GOALS}
    splits = config.splits(config.training.seeds)
    for number, split in enumerate(splits):
        net = float_net(room, split, config)
        before = recognised(in_torch(net), split)
        shown = [f"digits, {split.name}: fp32 {100 * before.mean():.2f} %"]
        for part, (name, predict) in enumerate(variants(room, net, split, config)):
            after = recognised(predict, split)
            tallies[name].float_.append(before)
            tallies[name].quantised.append(after)
            shown.append(f"{name} {100 * after.mean():.2f} %")
            room.progress("digits", (number + (part + 1) / len(GOALS)) / len(splits))
        room.note(", ".join(shown))
    facts = {"seeds": list(config.training.seeds), "networks": len(splits), "training steps": config.training.steps}
    facts |= {"calibration images": config.calibration * BATCH, "trained quantised": [config.steps8, config.steps4]}
    return Found([tally.row("digits", name, GOALS[name]) for name, tally in tallies.items()], facts)


def variants(room: Room, net: Net, split: Split, config: Config) -> Iterator[tuple[str, digits.Predict]]:
    """Each variant's name with its compiled program, one by one."""
    example = (torch.from_numpy(split.train_x[:BATCH]),)
    batches = calibration(split, config.calibration)
    yield "int8", compiled(room, net, example, "int8", batches)
    graph = secateur.optimize(secateur.import_model(net, example))
    for name, recipe, steps, rate in (
        ("int8, trained", "int8", config.steps8, 1e-4),
        ("int4 weights, trained", "int4", config.steps4, 1e-3),
    ):
        start = quantize(graph, batches, recipe).graph
        yield name, compiled(room, retrained(start, graph, split, Settings(steps=steps, rate=rate, seed=split.seed)))


def retrained(start: Graph, teacher: Graph, split: Split, settings: Settings) -> Graph:
    """Quantisation-aware training on the training half, following the float network's logits.

    Without labels, since the aim is the float network's own answers: labels would train it on, in another direction.
    """

    def batches(epoch: int) -> Iterator[tuple[torch.Tensor]]:
        generator = torch.Generator().manual_seed(1000 * split.seed + epoch)
        endless = digits.batches(split, BATCH, generator)
        return (next(endless)[:1] for _ in range(len(split.train_x) // BATCH))

    objective = distil(teacher, Distillation(temperature=2.0, share=1.0))
    held_out = calibration(split, len(split.train_x) // BATCH)
    return finetune(start, batches, objective, settings, held_out=held_out).graph


# A hostile network --------------------------------------------------------------------------------


def hostile(room: Room, config: Config) -> Found:
    """The same function with channels scaled wildly: what plain ranges make of it, and the default recipe."""
    tallies = {"plain min-max": Tally(), "int8": Tally()}
    seed = config.training.seeds[0]
    splits = config.splits((seed,))
    for number, split in enumerate(splits):
        net = float_net(room, split, config)
        digits.disturb(net, split.seed, config.octaves)
        before = recognised(in_torch(net), split)
        example, batches = (torch.from_numpy(split.train_x[:BATCH]),), calibration(split, config.calibration)
        shown = [f"hostile network, {split.name}: fp32 {100 * before.mean():.2f} %"]
        for name, recipe in (("plain min-max", PLAIN), ("int8", secateur.Recipe())):
            after = recognised(compiled(room, net, example, recipe, batches), split)
            tallies[name].float_.append(before)
            tallies[name].quantised.append(after)
            shown.append(f"{name} {100 * after.mean():.2f} %")
        room.note(", ".join(shown))
        room.progress("hostile network", (number + 1) / len(splits))
    rows = [tallies["plain min-max"].row("hostile", "plain min-max", 10.0, ruin=True)]
    rows.append(tallies["int8"].row("hostile", "int8", 0.2))
    return Found(rows, {"seeds": [seed], "networks": len(splits), "channels apart by": 4.0**config.octaves})
