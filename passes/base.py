"""What a pass is, and how passes are found.

A pass is a frozen dataclass in a file of its own under `passes/`; the file's name is the pass's
name everywhere, and its fields are its options. Nothing has to be registered.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from secateur.ir.diagnostics import CompileError, nearest
from secateur.ir.graph import Graph
from secateur.ir.rewrite import RewriteStats

NOT_PASSES = {"base", "manager", "pipelines"}


@dataclass(frozen=True)
class Pass:
    """Base of all passes.

    Attributes:
        exact: results keep every bit. A pass that is not exact states its relative tolerance.
        tolerance: the largest relative error (norm of the difference over norm) it may cause.
    """

    exact: ClassVar[bool] = True
    tolerance: ClassVar[float] = 0.0

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    def run(self, graph: Graph) -> RewriteStats | None:
        """Change the graph in place. A pass built on rules returns their statistics."""
        raise NotImplementedError

    def __str__(self) -> str:
        options = [
            f"{field.name}={_option_text(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{self.name}{{{','.join(options)}}}" if options else self.name


@cache
def all_passes() -> dict[str, type[Pass]]:
    """Every pass by name."""
    import secateur.passes as package

    found: dict[str, type[Pass]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg or module.name in NOT_PASSES:
            continue
        namespace = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
        own = [
            item
            for item in namespace.values()
            if isinstance(item, type) and issubclass(item, Pass) and item.__module__ == namespace["__name__"]
        ]
        if len(own) != 1:
            raise ImportError(f"passes/{module.name}.py must define exactly one Pass")
        found[module.name] = own[0]
    return found


def make_pass(text: str) -> Pass:
    """`fold` or `fold{limit=1000}` -> the pass; a list is written `decompose{keep=softmax+gelu}`.

    Raises:
        CompileError: unknown pass or option (with the nearest one), or a value of the wrong kind.
    """
    name, brace, rest = text.strip().partition("{")
    known = all_passes()
    if name not in known:
        raise CompileError(f"unknown pass {name!r}", hint=nearest(name, known) or "see `secateur passes`")
    if brace and not rest.endswith("}"):
        raise CompileError(f"{text!r}: options are written as {name}{{option=value,...}}")
    fields = {field.name: field for field in dataclasses.fields(known[name])}
    options: dict[str, Any] = {}
    for item in filter(None, rest.removesuffix("}").split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in fields:
            raise CompileError(f"pass {name!r} has no option {key!r}", hint=nearest(key, fields))
        options[key] = _convert(name, key, value if equals else "true", fields[key].default)
    return known[name](**options)


def _option_text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _convert(name: str, key: str, text: str, default: Any) -> Any:
    """An option's text as the type of its default."""
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(filter(None, text.split("+")))
        return type(default)(text)
    except (KeyError, ValueError):
        kind = type(default).__name__
        raise CompileError(f"pass {name!r}: option {key!r} must be {kind}, got {text!r}") from None
