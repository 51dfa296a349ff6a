"""`torch.compile(model, backend="secateur")`: PyTorch finds it by the entry point of this package.

PyTorch hands over one traced piece of a model at a time. A piece is compiled when it is called for
the first time with tensors of certain shapes; parameters and buffers become constants, and it is
compiled again when one of them has changed. What cannot be compiled runs in eager PyTorch, and a
warning says so once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from secateur.backends.artifact import Program
from secateur.backends.cpu.compile import Options, compile_graph
from secateur.frontends.torch_export import import_module
from secateur.ir.diagnostics import CompileError, nearest

MOST_SHAPES = 8
OPTIONS = ("target", "pipeline", "threads", "cc")
_said: set[str] = set()

Traced = Callable[..., Sequence[Any]]


def backend(
    module: torch.fx.GraphModule, example_inputs: Sequence[Any], *, options: dict[str, Any] | None = None
) -> Traced:
    """What `torch.compile` calls with each traced piece; returns what will run in its place.

    Args:
        options: `torch.compile(..., options={"threads": 2})`: arguments of `secateur.compile`.

    Raises:
        CompileError: an unknown option.
    """
    for name in options or {}:
        if name not in OPTIONS:
            raise CompileError(
                f"the backend has no option {name!r}", hint=nearest(name, OPTIONS) or f"one of {', '.join(OPTIONS)}"
            )
    _tell_graph_breaks()
    reason = why_eager(module, example_inputs)
    if reason:
        _tell(f"{_size(module)} run in eager PyTorch: {reason}")
        return module.forward
    placeholders = module.graph.find_nodes(op="placeholder")
    frozen = {index: item for index, item in enumerate(example_inputs) if _is_static(placeholders[index], item)}
    return _Piece(module, frozen, options or {})


def why_eager(module: torch.fx.GraphModule, inputs: Sequence[Any]) -> str:
    """Why a traced piece cannot be compiled, as far as can be told without trying; empty if it may."""
    tensors = [item for item in inputs if isinstance(item, torch.Tensor)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "gradients may be asked for; call the model under torch.no_grad()"
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return "it has tensors that are not on the CPU"
    values = [node.meta.get("example_value") for node in module.graph.find_nodes(op="placeholder")]
    results = _results(module)
    if not results or not all(isinstance(value, torch.Tensor) for value in results):
        return "it does not return tensors only"
    storages = [value.untyped_storage()._cdata for value in results]
    given = {value.untyped_storage()._cdata for value in values if isinstance(value, torch.Tensor)}
    if len(set(storages)) < len(storages) or given & set(storages):
        return "its results share memory with each other or with its inputs"
    return ""


def _results(module: torch.fx.GraphModule) -> list[Any]:
    (returned,) = module.graph.output_node().args
    nodes = returned if isinstance(returned, (tuple, list)) else (returned,)
    return [node.meta.get("example_value") if isinstance(node, torch.fx.Node) else node for node in nodes]


def _is_static(node: torch.fx.Node, item: Any) -> bool:
    """Whether an input of a traced piece is a parameter or buffer of the model."""
    marks = node.meta.get("tensor_dict") or {}
    return isinstance(item, torch.nn.Parameter) or "_dynamo_static_input_type" in marks


class _Frozen(torch.nn.Module):
    """A traced piece with its parameters held instead of passed."""

    def __init__(self, module: torch.fx.GraphModule, frozen: dict[int, torch.Tensor]) -> None:
        super().__init__()
        self.module = module
        self.names = {index: f"constant{index}" for index in frozen}
        for index, tensor in frozen.items():
            self.register_buffer(self.names[index], tensor.detach())

    def forward(self, *given: Any) -> Any:
        rest = iter(given)
        count = len(given) + len(self.names)
        return self.module(*(getattr(self, self.names[i]) if i in self.names else next(rest) for i in range(count)))


@dataclass
class _Piece:
    """One traced piece of a model: a program for each combination of shapes, None where eager PyTorch runs."""

    module: torch.fx.GraphModule
    frozen: dict[int, torch.Tensor]
    options: dict[str, Any]
    programs: dict[tuple[Any, ...], Program | None] = field(default_factory=dict)
    seen: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        state = [_state(tensor) for tensor in self.frozen.values()]
        if state != self.seen:  # somebody has trained, or loaded, other parameters
            self.programs.clear()
            self.seen = state
        given = [item for index, item in enumerate(inputs) if index not in self.frozen]
        key = tuple((item.shape, item.dtype) if isinstance(item, torch.Tensor) else item for item in given)
        if key not in self.programs:
            self.programs[key] = self.compiled(given)
        program = self.programs[key]
        if program is None:
            results: Sequence[Any] = self.module(*inputs)
            return results
        result = program(*(item for item in given if isinstance(item, torch.Tensor)))
        return result if isinstance(result, tuple) else (result,)

    def compiled(self, given: Sequence[Any]) -> Program | None:
        reason = ""
        if len(self.programs) >= MOST_SHAPES:
            reason = f"it is called with more than {MOST_SHAPES} combinations of shapes"
        else:
            try:
                with torch.no_grad():
                    graph = import_module(_Frozen(self.module, self.frozen), tuple(given))
                program = compile_graph(graph, Options(**self.options))
                if any(isinstance(item, torch.Tensor) for item in given):
                    return program
                reason = "it takes no tensors"
            except CompileError as error:
                reason = str(error)
            except Exception as error:  # a model must run, whatever our mistake
                reason = f"{type(error).__name__}: {error}"
        _tell(f"{_size(self.module)} run in eager PyTorch: {reason}")
        return None


def _state(tensor: torch.Tensor) -> tuple[int, int]:
    """Changes when a tensor is written to in place, or gets other memory."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _size(module: torch.fx.GraphModule) -> str:
    count = sum(node.op not in ("placeholder", "output", "get_attr") for node in module.graph.nodes)
    return f"{count} operations of the model" if count != 1 else "1 operation of the model"


def _tell_graph_breaks() -> None:
    """PyTorch calls the backend with what follows a break, after having counted it."""
    from torch._dynamo.utils import counters

    for reason in counters["graph_break"]:
        _tell(f"the model is split where PyTorch cannot trace it, and Python runs in between: {reason.splitlines()[0]}")


def _tell(message: str) -> None:
    if message not in _said:
        _said.add(message)
        warnings.warn(f"secateur: {message}", stacklevel=3)
