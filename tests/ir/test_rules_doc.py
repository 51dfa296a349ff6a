"""The examples of docs/rules.md: rules are linted and proved, wrong ones are found, Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from secateur.ir.prove import lint, prove
from secateur.ir.rules import parse_rules

DOC = Path(__file__).parents[2] / "docs" / "rules.md"
BLOCKS = re.findall(r"^```(rules|wrong|python)\n(.*?)^```", DOC.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "rules"])
def test_rules_hold(text: str, seed: int) -> None:
    rules = parse_rules(text)
    assert lint(rules, seed) == []
    for item in rules:
        proof = prove(item, seed, enough=10)
        assert proof.ok, f"seed {seed}: {item.name}, {proof.instances} instances: {proof.counterexample}"


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "wrong"])
def test_wrong_rules_are_found(text: str, seed: int) -> None:
    assert all(prove(item, seed).counterexample for item in parse_rules(text))


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "python"])
def test_python_runs(text: str) -> None:
    exec(compile(text, str(DOC), "exec"), {})


def test_there_are_examples_of_each_kind() -> None:
    assert {kind for kind, _ in BLOCKS} == {"rules", "wrong", "python"}
