"""Names, and what protobufs say as plain Python data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from secateur.frontends.onnx.node import Item

DOMAIN_ALIAS = {"ai.onnx": ""}


class Scope(dict[str, Item]):
    """The values by name of a graph, with the enclosing graph's behind them."""

    def __init__(self, versions: dict[str, int], label: str = "", outer: Scope | None = None) -> None:
        super().__init__()
        self.versions = versions
        self.label = label  # the names of the function calls and branches around
        self.outer = outer
        self.depth: int = outer.depth + 1 if outer else 0
        self.attrs: dict[str, Any] = outer.attrs if outer else {}

    def find(self, name: str) -> Item:
        """The value called `name`; raises `KeyError`."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope:
                return scope[name]
            scope = scope.outer
        raise KeyError(name)


def alias(domain: str) -> str:
    return DOMAIN_ALIAS.get(domain, domain)


def fits(shape: Sequence[int], dims: Sequence[Any]) -> bool:
    """Whether a shape agrees with the dimensions that the model fixes."""
    fixed = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    return len(shape) == len(fixed) and all(want in (None, size) for size, want in zip(shape, fixed, strict=True))


def attribute_value(attr: Any, onnx: Any) -> Any:
    """Plain Python data: bytes as str, lists as tuples; tensors and graphs as they are."""
    value = onnx.helper.get_attribute_value(attr)
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, (str, int, float)):
        return value
    if attr.type in (onnx.AttributeProto.TENSOR, onnx.AttributeProto.GRAPH):
        return value
    if isinstance(value, np.ndarray) or not hasattr(value, "__iter__"):
        return value
    return tuple(item.decode("utf-8", errors="replace") if isinstance(item, bytes) else item for item in value)
