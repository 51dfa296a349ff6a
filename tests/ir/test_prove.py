"""Proof by use finds wrong rules and passes right ones; the linter finds the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.prove import difference, lint, prove
from secateur.ir.rewrite import Match, Rule, apply_rules, rule
from secateur.ir.rules import load_rules, parse_rules
from secateur.ir.text import parse
from secateur.passes.rules import topic, topics

WRONG = load_rules(Path(__file__).parent / "wrong.rules")
TREE = [item for name in topics() for item in topic(name)]


@pytest.mark.parametrize("item", WRONG, ids=lambda item: item.name)
def test_a_wrong_rule_is_found(item: Rule, seed: int) -> None:
    proof = prove(item, seed, enough=100)
    found = proof.counterexample
    assert found, f"seed {seed}: {proof.instances} instances and nothing wrong"
    assert found.size[0] <= 10
    parse(found.before)


@pytest.mark.parametrize("item", TREE, ids=lambda item: item.name)
def test_a_rule_of_the_tree_holds(item: Rule, seed: int) -> None:
    proof = prove(item, seed, enough=10)
    assert proof.instances >= 2, f"seed {seed}: {proof.instances} instances"
    assert proof.counterexample is None, f"seed {seed}: {proof.counterexample}"


@pytest.mark.parametrize(
    ("want", "got", "agree"),
    [
        (100, np.inf, False),
        (np.inf, 100, False),
        (3e38, np.inf, True),
        (np.inf, 3e38, True),
        (-3e38, np.inf, False),
        (3e38, 1e38, False),
        (100, np.nan, False),
        (3e38, np.nan, False),
        (np.nan, 100, False),
        (np.inf, -np.inf, False),
        (np.nan, np.nan, True),
        (np.inf, np.inf, True),
    ],
)
def test_only_the_brink_of_overflow_excuses_an_infinity(want: float, got: float, agree: bool) -> None:
    arrays = np.float32([want]), np.float32([got])
    assert (difference(*arrays, 1e-5, 3e38) is None) == agree


@pytest.mark.parametrize(
    ("want", "got", "scale", "agree"),
    [
        ([1000, 1], [1000, 1.009], 1e6, True),  # relative to the largest number of the result
        ([1000, 1], [1000, 1.011], 1e6, False),
        ([0], [0.9e-5], 1e6, True),  # or to 1
        ([0], [1.1e-5], 1e6, False),
        ([1e-3], [1.1e-3], 1e-3, False),  # but not to more than what was on the way
    ],
)
def test_what_a_tolerance_is_relative_to(want: list[float], got: list[float], scale: float, agree: bool) -> None:
    assert (difference(np.float32(want), np.float32(got), 1e-5, scale) is None) == agree


def test_instances_overflow_on_the_way_unasked(seed: int) -> None:
    text = "// x == x\nrule a tolerance 1e-5: softplus(x) {beta = 1, threshold = 20} => log(add(exp(x), 1))"
    (item,) = parse_rules(text)
    found = prove(item, seed, enough=500).counterexample
    assert found and "is inf, should be" in found.message, f"seed {seed}: {found}"


def messages(text: str) -> list[str]:
    return [str(finding) for finding in lint(parse_rules(text))]


def test_rules_of_the_tree_are_clean() -> None:
    for name in topics():
        assert [str(finding) for finding in lint(topic(name), samples=2)] == []


def test_missing_algebra() -> None:
    assert messages("rule a: neg(neg(x)) => x") == ["<rules>:1:6: rule 'a' has no comment with its algebra above it"]


def test_a_rule_that_another_one_forestalls() -> None:
    (message,) = messages("// -(-x) == x\nrule a: neg(neg(x)) => x\n\n// the same\nrule b: neg(neg(neg(x))) => neg(x)")
    assert message == "<rules>:5:6: rule 'b' is never reached: 'a' above it takes what it matches"


def test_a_rule_whose_condition_never_holds() -> None:
    (message,) = messages("// no\nrule a: relu(x) => x where x.rank < 0")
    assert "rule 'a' never fires" in message


def test_a_rule_that_loops_alone() -> None:
    (message,) = messages("// x + y == y + x\nrule swap: add(x, y) => add(y, x)")
    assert "rule 'swap' loops by itself" in message


def test_rules_that_loop_together() -> None:
    found = messages("// a\nrule there: neg(x) => sub(0, x)\n\n// b\nrule back: sub(0, x) => fit(neg(x))")
    assert any("loops with the other rules" in message for message in found)


def test_a_change_of_type() -> None:
    (message,) = messages(
        "// no\nrule a: reduce_sum(x) {axes, keepdims = true} => reduce_sum(x) {axes, keepdims = false}"
    )
    assert "rule 'a' changes the type" in message


def test_a_loop_is_stopped_by_fuel_and_named() -> None:
    rules = parse_rules("// x + y == y + x\nrule swap: add(x, y) => add(y, x)")
    graph = parse("graph @f(%x: f32[2]) -> (f32[2]) {\n%0 = add(%x, %x) : f32[2]\nreturn %0\n}")
    with pytest.raises(CompileError, match="rewriting does not end: rule 'swap' fired"):
        apply_rules(graph, rules, fuel=30)


def test_rules_in_python_are_proved_alike(seed: int) -> None:
    @rule("mul(x, sigmoid(y))", draws=["mul(x, sigmoid(x))"])
    def wrong(m: Match, b: Builder):
        """x * sigmoid(x) == x, says someone."""
        return m["x"] if m["x"] is m["y"] else None

    assert prove(wrong, seed).counterexample
