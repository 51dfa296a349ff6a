"""What operations are called in reports, and by which names overrides find them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase

from secateur.ir.diagnostics import CompileError, nearest
from secateur.ir.graph import Graph, Op


def labels(graph: Graph) -> dict[Op, str]:
    """A name for each operation, each different: its module path or weights' name, with the op's name where
    several share one, and a number where even that is not enough."""
    plain = {op: _plain(op) for op in graph.ops if op.name != "constant"}
    shared = Counter(plain.values())
    named = {op: name if shared[name] == 1 else f"{name}:{op.name}".lstrip(":") for op, name in plain.items()}
    total, seen = Counter(named.values()), Counter[str]()
    found = {}
    for op, name in named.items():
        seen[name] += 1
        found[op] = name if total[name] == 1 else f"{name}.{seen[name]}"
    return found


def _plain(op: Op) -> str:
    if op.span is not None and op.span.module:
        return op.span.module
    return _weights(op).removesuffix(".weight") or op.results[0].hint or op.name


def _weights(op: Op) -> str:
    made = op.operands[1].op if len(op.operands) > 1 else None
    return str(made.attrs["name"]) if made is not None and made.name == "constant" else ""


def matching(pattern: str, named: dict[Op, str]) -> set[Op]:
    """The operations that a pattern names, in any of their names, or what follows a dot in one: `encoder.0.*` finds
    `model.encoder.0.dense`."""
    return {op for op, label in named.items() if any(_fits(name, pattern) for name in _aliases(op, label))}


def _fits(name: str, pattern: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[start:]), pattern) for start in range(len(parts)))


def _aliases(op: Op, label: str) -> Iterable[str]:
    module = op.span.module if op.span is not None else ""
    return filter(None, (label, op.name, module, _weights(op), *(value.hint for value in op.results)))


def required(pattern: str, named: dict[Op, str]) -> set[Op]:
    """As `matching`; raises `CompileError` where there is nothing of that name."""
    found = matching(pattern, named)
    if not found:
        known = {name for op, label in named.items() for name in _aliases(op, label)}
        raise CompileError(f"no operation is called {pattern!r}", hint=nearest(pattern, known))
    return found
