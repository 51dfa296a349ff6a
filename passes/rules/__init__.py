"""Rewrite rules as data, by topic: `<topic>.rules`, and beside it `<topic>.py` for those that need code."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from secateur.ir.rewrite import Rule
from secateur.ir.rules import load_rules

HERE = Path(__file__).parent


@cache
def topic(name: str) -> tuple[Rule, ...]:
    """The rules of a topic: those of its text, then those of its code."""
    text = HERE / f"{name}.rules"
    code = f"{__name__}.{name}"
    return (
        *(load_rules(text) if text.exists() else ()),
        *(import_module(code).RULES if find_spec(code) else ()),
    )


def topics() -> list[str]:
    """Every topic, in alphabetical order."""
    return sorted({path.stem for path in HERE.iterdir() if path.suffix in (".rules", ".py")} - {"__init__"})
