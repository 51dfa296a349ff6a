"""How a run trains: every option, the learning rate over time, and the parameters' groups."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import fx, nn

from secateur.ir.diagnostics import CompileError, nearest


@dataclass(frozen=True)
class Settings:
    """Options of fine-tuning.

    Attributes:
        steps: of the optimiser (AdamW).
        rate: highest learning rate of weights.
        step_rate: that of quantisation steps, which learn in shares of themselves; None for ten times `rate`.
        schedule: "cosine" or "linear" down to `final` times the rate, or "constant"; behind a linear warm-up over
            the share `warmup` of the steps.
        decay: of weights of two dimensions or more, towards 0.
        clip: largest norm of all gradients together; 0 for none.
        accumulate: batches whose gradients make one step.
        evaluate_every: steps between evaluations; there is one at the start and at the end in any case.
        patience: evaluations without a better one after which to stop; 0 to go on to the end.
        frozen: patterns of parameters that stay, e.g. "step_*"; those of `trainable`, `w_` and a constant's name.
        seed: of torch and of NumPy's global generator.

    Raises:
        CompileError: an option has a value that means nothing.
    """

    steps: int = 500
    rate: float = 1e-4
    step_rate: float | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final: float = 0.0
    warmup: float = 0.05
    decay: float = 0.0
    clip: float = 1.0
    accumulate: int = 1
    evaluate_every: int = 50
    patience: int = 0
    frozen: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("accumulate", 1), ("evaluate_every", 1), ("patience", 0)):
            if getattr(self, name) < least:
                raise CompileError(f"{name} must be {least} or more, got {getattr(self, name)}")
        for name in ("rate", "step_rate", "decay", "clip"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise CompileError(f"{name} must be a finite number of 0 or more, got {value}")
        if self.schedule not in ("cosine", "linear", "constant"):
            raise CompileError(f"schedule: {self.schedule!r} is not one of cosine, linear, constant")
        if not (0 <= self.warmup <= 1 and 0 <= self.final <= 1):
            raise CompileError(f"warmup {self.warmup} and final {self.final} must be in 0..1")


def share_at(step: int, settings: Settings) -> float:
    """The share of its highest value that the learning rate has at a step, from 0."""
    warm = math.ceil(settings.warmup * settings.steps)
    if step < warm:
        return (step + 1) / warm
    if settings.schedule == "constant":
        return 1.0
    done = (step - warm) / max(1, settings.steps - warm)
    left = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return settings.final + (1 - settings.final) * left


def learned(module: fx.GraphModule, settings: Settings) -> dict[str, nn.Parameter]:
    """The parameters that train, by name; those of `frozen` lose their gradients.

    Raises:
        CompileError: a pattern that names no parameter, or none is left.
    """
    known = [name for name, _ in module.named_parameters()]
    for pattern in settings.frozen:
        matched = [name for name in known if fnmatchcase(name, pattern)]
        if not matched:
            raise CompileError(f"no parameter is called {pattern!r}", hint=nearest(pattern, known))
        for name in matched:
            module.get_parameter(name).requires_grad_(False)
    found = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not found:
        raise CompileError("the graph has no parameters to train", hint="named constants are parameters")
    return found


def optimizer(parameters: dict[str, nn.Parameter], settings: Settings) -> torch.optim.AdamW:
    """AdamW with a group for weights, one for vectors such as biases, and one for quantisation steps."""
    step_rate = 10 * settings.rate if settings.step_rate is None else settings.step_rate
    weights: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    steps: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        own = steps if name.startswith("step_") else weights if parameter.ndim > 1 else vectors
        own.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": weights, "highest": settings.rate, "weight_decay": settings.decay},
        {"params": vectors, "highest": settings.rate, "weight_decay": 0.0},
        {"params": steps, "highest": step_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.rate)


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = share * group["highest"]
