"""Batches for training: the graph's inputs, then whatever the objective wants, such as labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from secateur.backends.torch.lower import TORCH, to_torch
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.tools.finetune.checkpoint import random_state, set_random_state
from secateur.tools.functions import blaming

Tensors = tuple[Tensor, ...]
Source = Iterable[Any] | Callable[..., Iterable[Any]]
_CLOSE = 0.02  # relative difference between examples in batches of another size


def epoch(source: Source, number: int) -> Iterator[Any]:
    """The batches of one epoch: `source` again, or what it gives when it is called, with the epoch if it takes one.

    Raises:
        CompileError: a source that can be read only once.
    """
    if isinstance(source, Iterator):
        raise CompileError("the batches can be read only once", hint="give a list, or a function that yields them")
    if not callable(source):
        return iter(source)
    try:
        takes = len(inspect.signature(source).parameters) > 0
    except ValueError:  # a builtin that does not tell
        takes = False
    return iter(source(number) if takes else source())


def split(graph: Graph, batch: Any, where: str) -> tuple[Tensors, Tensors]:
    """A batch as (inputs, extra) tensors.

    The inputs have the graph's types, but for a leading dimension that is the same for all: the batch.

    Args:
        batch: a tuple or list of arrays or tensors, or a mapping whose keys are input names (and others).
        where: what to call the batch in messages.

    Raises:
        CompileError: too few tensors, or one of another type.
    """
    items = _in_order(graph, batch, where)
    if len(items) < len(graph.inputs):
        raise CompileError(f"{where} holds {len(items)} tensors, graph @{graph.name} takes {len(graph.inputs)} inputs")
    tensors = tuple(item if isinstance(item, Tensor) else to_torch(np.asarray(item)) for item in items)
    inputs = tensors[: len(graph.inputs)]
    for position, (value, tensor) in enumerate(zip(graph.inputs, inputs, strict=True)):
        fits = tensor.dtype is TORCH[value.type.dtype] and tuple(tensor.shape[1:]) == value.shape[1:]
        if not fits or tensor.ndim != value.type.rank:
            name = value.hint or f"input {position}"
            given = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
            raise CompileError(f"{where}: {name} must be {value.type}, at any batch size, got {given}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CompileError(f"{where}: {value.hint or f'input {position}'} holds NaN or infinity")
    return inputs, tensors[len(graph.inputs) :]


def _in_order(graph: Graph, batch: Any, where: str) -> list[Any]:
    if isinstance(batch, Mapping):
        names = [value.hint for value in graph.inputs]
        missing = [name for name in names if name not in batch]
        if missing:
            raise CompileError(f"{where} has no {missing[0]!r}", hint=f"it holds {', '.join(map(str, batch))}")
        return [*(batch[name] for name in names), *(value for key, value in batch.items() if key not in names)]
    return list(batch) if isinstance(batch, (tuple, list)) else [batch]


def check_batch_size(module: fx.GraphModule, graph: Graph, inputs: Tensors) -> None:
    """Make sure that a graph made for another batch size treats each example of this one as if it were alone.

    Raises:
        CompileError: it does not, or cannot compute this batch size at all.
    """
    size = graph.inputs[0].shape[0] if graph.inputs and graph.inputs[0].type.rank else 0
    if all(tuple(x.shape) == value.shape for x, value in zip(inputs, graph.inputs, strict=True)):
        return
    given = inputs[0].shape[0] if inputs and inputs[0].ndim else 0
    refusal = CompileError(
        f"graph @{graph.name} is made for batches of {size} and mixes the examples of one of {given}",
        hint=f"give batches of {size}, or import the model at a batch size of {given}",
    )
    if not size or not given or any(x.shape[0] != given for x in inputs):
        raise refusal
    rows = torch.arange(size) % given
    try:
        with torch.no_grad():
            whole, alone = module(*inputs), module(*(x[rows] for x in inputs))
    except RuntimeError:
        raise refusal from None
    for many, few in zip(whole, alone, strict=True):
        if many.numel() * size != few.numel() * given:
            raise refusal
        if not _close(many.reshape(given, -1)[rows], few.reshape(size, -1)):
            raise refusal


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the rounding of sums, which may move a few codes by one: judged by the whole."""
    error, norm = torch.linalg.vector_norm(a.double() - b.double()), torch.linalg.vector_norm(b.double())
    return bool(error <= _CLOSE * norm)


@dataclass
class Stream:
    """Batches for ever; where it is can be told, and gone back to.

    Attributes:
        epoch, position: the running epoch, and how many of its batches are used up.
        random: the state of the random generators when the epoch began.
    """

    source: Source
    epoch: int = 0
    position: int = 0
    random: dict[str, Tensor] = field(default_factory=random_state)
    _running: Iterator[Any] | None = field(default=None, repr=False)

    def __next__(self) -> Any:
        """The next batch, as the source gives it; raises `CompileError` where an epoch has none."""
        while True:
            with blaming("the data"):
                running = self._running or self._begin()
                batch = next(running, None)
            if batch is not None:
                self.position += 1
                self._running = running
                return batch
            if not self.position:
                raise CompileError(
                    "there are no batches to train on", hint="give a list, or a function that yields them"
                )
            self.epoch, self.position, self._running = self.epoch + 1, 0, None

    def _begin(self) -> Iterator[Any]:
        """The epoch's batches from `position` on; what it drew to get there it draws again."""
        if not self.position:
            self.random = random_state()
            return epoch(self.source, self.epoch)
        now = random_state()
        set_random_state(self.random)
        running = epoch(self.source, self.epoch)
        for _ in range(self.position):
            next(running)
        set_random_state(now)
        return running

    @property
    def place(self) -> str:
        """The batch that came last, for messages."""
        return f"batch {self.position} of epoch {self.epoch + 1}"
