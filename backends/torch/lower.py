"""Graph -> torch.fx.GraphModule over the table of torch functions."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, fx, nn

from secateur.backends.torch.ops import TABLE
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.types import DType

TORCH = {
    DType.F32: torch.float32,
    DType.F64: torch.float64,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.I8: torch.int8,
    DType.U8: torch.uint8,
    DType.I16: torch.int16,
    DType.I32: torch.int32,
    DType.I64: torch.int64,
    DType.BOOL: torch.bool,
}


def to_torch(array: np.ndarray) -> Tensor:
    """A tensor with its own copy of an array's data."""
    copy = np.array(array, order="C")
    if copy.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copy)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """An array with a tensor's data, bf16 included."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


class Lowering:
    """Fills one fx graph; fusion bodies are laid out in place."""

    def __init__(self) -> None:
        self.root = nn.Module()
        self.fx = fx.Graph()
        self.attribute_names: set[str] = set()

    def hold(self, name: str, tensor: Tensor, *, parameter: bool = False, gradient: bool = False) -> str:
        """Give the module a parameter or a buffer; returns its name, with a number behind it where it was taken."""
        name = base = re.sub(r"\W", "_", name)
        count = 0
        while name in self.attribute_names:
            count += 1
            name = f"{base}_{count}"
        self.attribute_names.add(name)
        if parameter:
            self.root.register_parameter(name, nn.Parameter(tensor, requires_grad=gradient))
        else:
            self.root.register_buffer(name, tensor)
        return name

    def constant(self, op: Op) -> fx.Node:
        tensor = to_torch(op.attrs["value"])
        learns = bool(op.attrs["name"]) and tensor.is_floating_point()
        return self.fx.get_attr(self.hold("w_" + (op.attrs["name"] or "constant"), tensor, parameter=learns))

    def call(self, op: Op, operands: tuple[fx.Node, ...]) -> list[fx.Node]:
        if op.name not in TABLE:
            raise CompileError(f"op {op.name!r} has no torch function", span=op.span)
        attrs = {key: TORCH[value] if isinstance(value, DType) else value for key, value in op.attrs.items()}
        node = self.fx.call_function(TABLE[op.name], operands, attrs)
        if len(op.results) == 1:
            return [node]
        return [self.fx.call_function(operator.getitem, (node, index)) for index in range(len(op.results))]

    def result(self, node: fx.Node, value: Value) -> fx.Node:
        """What the module returns for an output of the graph."""
        return node

    def lay_out(self, graph: Graph, inputs: list[fx.Node]) -> list[fx.Node]:
        """Add the nodes of a graph; returns those of its outputs."""
        nodes: dict[Value, fx.Node] = dict(zip(graph.inputs, inputs, strict=True))
        for op in graph.ops:
            operands = tuple(nodes[value] for value in op.operands)
            if op.name == "constant":
                results = [self.constant(op)]
            elif op.name == "fusion":
                results = self.lay_out(op.attrs["body"], list(operands))
            else:
                results = self.call(op, operands)
            nodes.update(zip(op.results, results, strict=True))
        return [nodes[value] for value in graph.outputs]


def to_module(graph: Graph) -> fx.GraphModule:
    """A module that computes the graph and returns a tuple of tensors.

    Named floating-point constants become parameters (`w_` + name, no gradient until asked for),
    other constants buffers.

    Raises:
        CompileError: an operation has no torch function.
    """
    return build(graph, Lowering())


def build(graph: Graph, lowering: Lowering) -> fx.GraphModule:
    """Lay out a graph and make a module of it."""
    inputs: list[Any] = []
    for index, value in enumerate(graph.inputs):
        inputs.append(lowering.fx.placeholder(re.sub(r"\W", "_", value.hint) if value.hint else f"x{index}"))
    nodes = lowering.lay_out(graph, inputs)
    lowering.fx.output(tuple(map(lowering.result, nodes, graph.outputs)))
    return fx.GraphModule(lowering.root, lowering.fx)


def run(graph: Graph, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Compute the graph's outputs with torch."""
    return tuple(to_module(graph)(*tensors))


def executor(graph: Graph) -> Callable[..., list[np.ndarray]]:
    """The graph as a function of arrays that gives its outputs: what calibration runs, and one way to run it fast.

    Raises:
        CompileError: an operation has no torch function.
    """
    module = to_module(graph)

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [to_numpy(tensor) for tensor in module(*map(to_torch, arrays))]

    return run
