"""The table that the torch files fill: op name -> function over torch tensors.

Each function takes the operands as tensors and the attributes by name, as the IR has them, except
that `cast` takes a torch dtype. f16 and bf16 are computed in f32 and rounded once, as everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TABLE: dict[str, Callable[..., Any]] = {}
NARROW = (torch.float16, torch.bfloat16)


def _in_f32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Widen narrow float operands, and round float results back."""

    @functools.wraps(function)
    def call(*args: Tensor, **attrs: Any) -> Any:
        narrow = next((a.dtype for a in args if a.dtype in NARROW), None)
        if narrow is None:
            return function(*args, **attrs)
        result = function(*(a.float() if a.dtype is narrow else a for a in args), **attrs)
        if isinstance(result, tuple):
            return tuple(r.to(narrow) if r.dtype is torch.float32 else r for r in result)
        return result.to(narrow) if result.dtype is torch.float32 else result

    return call


def implements(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function into TABLE under the given op names."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            enter(name, function)
        return function

    return wrap


def enter(name: str, function: Callable[..., Any], *, exact: bool = False) -> None:
    def call(*args: Tensor, **attrs: Any) -> Any:
        return function(*args, **attrs)

    # torch.fx writes the name of a function into the code it generates.
    call.__name__ = call.__qualname__ = name
    TABLE[name] = call if exact else _in_f32(call)
