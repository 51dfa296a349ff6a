"""The training loop: evaluates where it starts, keeps the best, and goes on from a checkpoint bit for bit.

A loop of one's own needs none of this: `trainable` gives the module, an `Objective` the loss, `to_graph` the result.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.backends.torch.lower import to_numpy
from secateur.backends.torch.train import to_graph, trainable
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.tools.finetune.checkpoint import (
    load_checkpoint,
    own_randomness,
    random_state,
    save_checkpoint,
    set_random_state,
)
from secateur.tools.finetune.data import Source, Stream
from secateur.tools.finetune.judge import Judge, Metric
from secateur.tools.finetune.objectives import Objective, watching
from secateur.tools.finetune.schedule import Settings, learned, optimizer, set_rate, share_at
from secateur.tools.functions import blaming

HELD_OUT = 8  # batches of the training data that judge where nothing else does


@dataclass(frozen=True)
class Moment:
    """What `on_step` is told after each step of the optimiser.

    Attributes:
        step: how many steps are made.
        loss: of this one.
        share: of the highest learning rates.
        module: that trains.
    """

    step: int
    loss: float
    share: float
    module: torch.fx.GraphModule


@dataclass(frozen=True)
class Hooks:
    """What a run calls, and where it is kept.

    Attributes:
        on_step: called after each step; returns True to stop.
        progress: called with what is being done, and its share where it is known.
        checkpoint: a .safetensors file to write every `every` steps, and at the end.
        resume: go on from the checkpoint if there is one.
    """

    on_step: Callable[[Moment], bool | None] | None = None
    progress: Callable[[str, float | None], None] | None = None
    checkpoint: str | Path | None = None
    every: int = 100
    resume: bool = False


@dataclass(frozen=True)
class Finetuned:
    """What came of it.

    Attributes:
        graph: with the best values that were seen; those it had, to the bit, where none were better.
        start, best: the score at the start, and of `graph`; more is better.
        best_step: after how many steps that was; 0 is the start.
        steps: how many were made.
        history: a record of each evaluation: step, score, and the mean loss since the one before.
        stopped: why the run ended early, or empty.
    """

    graph: Graph
    start: float
    best: float
    best_step: int
    steps: int
    history: list[dict[str, float | None]]
    stopped: str = ""


@dataclass
class _State:
    """Where a run is, apart from tensors."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    start: float = math.nan
    best: float = math.nan
    best_step: int = 0
    losses: list[float] = field(default_factory=list)  # since the last evaluation
    history: list[dict[str, float | None]] = field(default_factory=list)
    stopped: str = ""


def finetune(
    graph: Graph,
    batches: Source,
    objective: Objective,
    settings: Settings | None = None,
    *,
    metric: Metric | None = None,
    held_out: Source | None = None,
    masters: Mapping[str, np.ndarray] | None = None,
    hooks: Hooks | None = None,
) -> Finetuned:
    """Train the constants of a graph: weights, biases, and the steps of quantisation.

    The result is never worse than the start by the score that decides (pytorch/pytorch#114859): the start is a
    candidate like every later evaluation.

    Args:
        graph: a QDQ graph, or a float one.
        batches: an iterable that can be repeated, or a function that gives one, called with the number of the
            epoch if it takes an argument. A batch is the graph's inputs, then labels if the objective wants them;
            its size may differ from the graph's.
        metric: called with the model as a function of arrays; its score, more is better, decides what is kept.
        held_out: batches whose mean loss decides where there is no metric; by default the first few of training.
        masters: float weights by name, see `trainable`.
        hooks: callbacks, progress and checkpoints. A run that is resumed ends as one that was never interrupted,
            to the bit.

    Raises:
        CompileError: batches that do not fit or are none, a loss or score that is not finite at the start, a
            metric or data function that fails, or a checkpoint of another run.
    """
    chosen = settings or Settings()
    with own_randomness(chosen.seed):
        module = trainable(watching(graph, objective.watch), masters=masters)
        judged, limit = (batches, HELD_OUT) if held_out is None else (held_out, 0)
        judge = Judge(graph, module, objective, metric, judged, limit)
        run = _Run(graph, judge, chosen, Stream(batches), hooks or Hooks())
        return run.run()


class _Run:
    """One run; the module, the optimiser, the stream and `state` are all there is to it."""

    def __init__(self, graph: Graph, judge: Judge, settings: Settings, stream: Stream, hooks: Hooks) -> None:
        if hooks.every < 1:
            raise CompileError(f"every must be 1 or more, got {hooks.every}")
        self.graph, self.judge, self.settings, self.stream, self.hooks = graph, judge, settings, stream, hooks
        self.module = judge.module
        self.parameters = learned(self.module, settings)
        self.optimizer = optimizer(self.parameters, settings)
        self.path = Path(hooks.checkpoint) if hooks.checkpoint else None
        self.state = _State()
        self.best = self.values()
        self.identity = self.identify() if self.path else {}

    def run(self) -> Finetuned:
        if self.path and self.hooks.resume and self.path.exists():
            self.load(self.path)
        state, settings = self.state, self.settings
        if not state.history:
            self.evaluate()
        while state.step < settings.steps and not state.stopped:
            self.one_step()
            last = state.step == settings.steps or bool(state.stopped)
            if last or state.step % settings.evaluate_every == 0:
                self.evaluate()
            if self.path and not last and state.step % self.hooks.every == 0:
                self.save(self.path)
        if self.path:
            self.save(self.path)
        self.assign(self.best)
        made = to_graph(self.module, self.graph) if state.best_step else self.graph.clone()
        return Finetuned(made, state.start, state.best, state.best_step, state.step, state.history, state.stopped)

    # Steps --------------------------------------------------------------------------------------

    def one_step(self) -> None:
        state, settings = self.state, self.settings
        share, total = share_at(state.step, settings), 0.0
        set_rate(self.optimizer, share)
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(settings.accumulate):
            loss = self.loss() / settings.accumulate
            if not torch.isfinite(loss):
                self.diverged(loss.item())
                return
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), settings.clip)
        self.optimizer.step()
        state.step += 1
        state.losses.append(total)
        self.tell("fine-tuning", state.step / settings.steps)
        if self.hooks.on_step and self.hooks.on_step(Moment(state.step, total, share, self.module)):
            state.stopped = "on_step said so"

    def loss(self) -> Tensor:
        inputs, extra = self.judge.fitting(next(self.stream), self.stream.place)
        with blaming("the objective"):
            return self.judge.objective.compute(self.module(*inputs), inputs, extra)

    def diverged(self, loss: float) -> None:
        """A loss of NaN or infinity: nonsense at the start, the end of the run later on."""
        if not self.state.step:
            raise CompileError(f"the loss is {loss} before the first step", hint="look at the data and the labels")
        self.state.stopped = f"the loss was {loss} after step {self.state.step}; a lower rate may help"

    def evaluate(self) -> None:
        """Score the values as they are, and keep them if they are the best."""
        self.tell("evaluating", None)
        state, score = self.state, self.judge.score()
        if not state.history:
            if not math.isfinite(score):
                raise CompileError(f"the score at the start is {score}", hint="it must be a finite number")
            state.start = state.best = score
        elif score > state.best:
            state.best, state.best_step, self.best = score, state.step, self.values()
        mean = sum(state.losses) / len(state.losses) if state.losses else None
        state.history.append({"step": state.step, "score": score, "loss": mean})
        state.losses = []
        patience = self.settings.patience
        if patience and sum(int(record["step"] or 0) > state.best_step for record in state.history) >= patience:
            state.stopped = state.stopped or f"no better score in {patience} evaluations"

    def tell(self, what: str, share: float | None) -> None:
        if self.hooks.progress:
            self.hooks.progress(what, share)

    # Values and checkpoints ---------------------------------------------------------------------

    def values(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def assign(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def identify(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be one of this run."""
        graph = hashlib.sha256(str(self.graph).encode())
        for name, tensor in self.best.items():
            graph.update(name.encode() + to_numpy(tensor).tobytes())
        found: dict[str, Any] = json.loads(json.dumps({"graph": graph.hexdigest(), **asdict(self.settings)}))
        return found

    def save(self, path: Path) -> None:
        tensors = {f"now.{name}": value for name, value in self.values().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        tensors |= {f"random.{name}": value for name, value in random_state().items()}
        tensors |= {f"epoch.{name}": value for name, value in self.stream.random.items()}
        self.state.epoch, self.state.position = self.stream.epoch, self.stream.position
        save_checkpoint(path, tensors, {"run": self.identity, "state": asdict(self.state)})

    def load(self, path: Path) -> None:
        """Go to where a checkpoint is; raises `CompileError` where it is one of another run."""
        tensors, facts = load_checkpoint(path)
        for key, mine in self.identity.items():
            if facts["run"].get(key) != mine:
                what = "another graph" if key == "graph" else f"a run with {key} = {facts['run'].get(key)}, not {mine}"
                raise CompileError(f"the checkpoint {path} is of {what}", hint="start again without it")
        self.state = _State(**facts["state"])
        groups: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "random": {}, "epoch": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor
        self.assign(groups["now"])
        self.best = groups["best"]
        for name, tensor in groups["optimizer"].items():
            key, _, parameter = name.partition(".")
            self.optimizer.state[self.parameters[parameter]][key] = tensor
        self.stream.epoch, self.stream.position = self.state.epoch, self.state.position
        self.stream.random = groups["epoch"]
        set_random_state(groups["random"])
