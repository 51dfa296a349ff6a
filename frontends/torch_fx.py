"""Symbolically traced modules (`torch.fx.GraphModule`).

There is one mechanism for PyTorch: the traced module is run through `torch.export`, so every
call_module, call_function and call_method node is resolved by PyTorch itself and meets the same
table as any other model. PyTorch carries each traced node's module path along, and its source line
where the tracer recorded one (`tracer.record_stack_traces = True`).
"""

from __future__ import annotations

from typing import Any

import torch

from secateur.frontends.torch_export import export_module, import_exported
from secateur.ir.graph import Graph


def import_fx(module: torch.fx.GraphModule, example_inputs: Any, name: str = "") -> Graph:
    """Import a traced module for inputs of the given shapes.

    Constants keep their qualified names and operations the path of the submodule they come from.

    Raises:
        CompileError: as `import_exported`, and when PyTorch cannot export the module.
    """
    program = export_module(module, example_inputs)
    return import_exported(program, name or type(module).__name__)
