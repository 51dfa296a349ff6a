"""What decides which values are kept: the user's metric, or the loss over batches that are held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from secateur.backends.torch.lower import to_numpy, to_torch
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.tools.finetune.checkpoint import random_state, set_random_state
from secateur.tools.finetune.data import Source, Tensors, check_batch_size, epoch, split
from secateur.tools.finetune.objectives import Objective
from secateur.tools.functions import blaming

Metric = Callable[[Callable[..., Any]], float]


@dataclass
class Judge:
    """Scores a module as it is now; more is better.

    Attributes:
        graph: whose outputs count; the module may have further ones, to watch.
        metric: called with `program`; without one, the score is minus the mean loss.
        held_out: batches for that; at most `limit` of them, or all where that is 0.
    """

    graph: Graph
    module: fx.GraphModule
    objective: Objective
    metric: Metric | None
    held_out: Source
    limit: int = 0
    random: dict[str, Tensor] = field(default_factory=random_state)
    _sizes: set[int] = field(default_factory=set)  # batch sizes that are known to work

    def fitting(self, batch: Any, where: str) -> tuple[Tensors, Tensors]:
        """A batch as (inputs, extra); raises `CompileError` where the graph cannot take it."""
        inputs, extra = split(self.graph, batch, where)
        size = inputs[0].shape[0] if inputs and inputs[0].ndim else 0
        if size not in self._sizes:
            check_batch_size(self.module, self.graph, inputs)
            self._sizes.add(size)
        return inputs, extra

    def program(self, *arrays: Any) -> Any:
        """The model as it is now, to be called as a compiled one, but at any batch size: one result is returned bare,
        several as a tuple of arrays."""
        inputs, _ = self.fitting([to_torch(np.asarray(array)) for array in arrays], "the metric's batch")
        with torch.no_grad():
            results = [to_numpy(x) for x in self.module(*inputs)[: len(self.graph.outputs)]]
        return results[0] if len(results) == 1 else tuple(results)

    def score(self) -> float:
        """The score of the values as they are; what it draws at random does not disturb the training.

        Raises:
            CompileError: the metric fails or gives no number, or there is nothing to judge by.
        """
        kept = random_state()
        set_random_state(self.random)  # batches that are drawn at random are the same each time
        try:
            return self._loss() if self.metric is None else self._metric(self.metric)
        finally:
            set_random_state(kept)

    def _metric(self, metric: Metric) -> float:
        with blaming("the metric"):
            score = metric(self.program)
        try:
            return float(score)
        except (TypeError, ValueError):
            raise CompileError(f"the metric gave {type(score).__name__}, not a number") from None

    @torch.no_grad()
    def _loss(self) -> float:
        losses = []
        with blaming("the data"):
            for number, batch in enumerate(islice(epoch(self.held_out, 0), self.limit or None)):
                inputs, extra = self.fitting(batch, f"held-out batch {number + 1}")
                losses.append(float(self.objective.compute(self.module(*inputs), inputs, extra)))
        if not losses:
            raise CompileError("there are no batches to judge by", hint="give a metric, or batches that are held out")
        return -sum(losses) / len(losses)
