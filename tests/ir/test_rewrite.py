"""Patterns and the driver that applies rules."""

from __future__ import annotations

import time

import pytest

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph, Value
from secateur.ir.rewrite import Match, Refusal, apply_rules, match, pattern, rule
from secateur.ir.text import parse
from secateur.ir.verify import verify


@rule("neg(neg(x))")
def double_negation(m: Match, b: Builder) -> Value:
    """-(-x) == x"""
    return m["x"]


@rule("mul(x, x)")
def to_square(m: Match, b: Builder) -> Value:
    """x * x == square(x)"""
    return b.square(m["x"])


def graph_of(*lines: str, result: str = "%0", inputs: str = "%x: f32[2], %y: f32[2]") -> Graph:
    return parse(f"graph @f({inputs}) -> (f32[2]) {{\n" + "\n".join(lines) + f"\nreturn {result}\n}}")


def root(graph: Graph):
    return graph.terminator.prev


def test_captures_that_repeat_must_be_one_value() -> None:
    same = graph_of("%0 = mul(%x, %x) : f32[2]")
    other = graph_of("%0 = mul(%x, %y) : f32[2]")
    assert match(to_square.pattern, root(same)) and not match(to_square.pattern, root(other))


def test_commutative_operands_match_in_either_order() -> None:
    wanted = pattern("add(relu(x), y)")
    for order in ("%0, %y", "%y, %0"):
        graph = graph_of("%0 = relu(%x) : f32[2]", f"%1 = add({order}) : f32[2]", result="%1")
        found = match(wanted, root(graph))
        assert found and (found["x"].hint, found["y"].hint) == ("x", "y")
        assert found.op(0).name == "relu" and found.only_use(0)
    graph = graph_of("%0 = relu(%x) : f32[2]", "%1 = sub(%y, %0) : f32[2]", result="%1")
    assert not match(pattern("sub(relu(x), y)"), root(graph))


def test_rest_alternatives_and_wildcards() -> None:
    graph = graph_of(
        "%0 = concat(%x, %x, %x) {axis = 0} : f32[6]",
        "%1 = slice(%0) {starts=[0], stops=[2], steps=[1]} : f32[2]",
        result="%1",
    )
    assert match(pattern("slice(concat(x, ...))"), root(graph))
    assert not match(pattern("slice(concat(x))"), root(graph))
    assert match(pattern("(slice|pad)(_)"), root(graph))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "a pattern needs an operation at its root"),
        ("relu(x)[0]", "1:8: unexpected '['"),
        ("relu(y=x)", "1:7: unexpected '='"),
        ("rellu(x)", "unknown op 'rellu'"),
        ("relu(x, y)", "relu does not take 2 operands"),
        ("softmax(x) {axes}", "softmax has no attribute 'axes'"),
    ],
)
def test_malformed_patterns(text: str, message: str) -> None:
    with pytest.raises(CompileError) as caught:
        pattern(text)
    assert message in str(caught.value) and f"  {text}\n" in str(caught.value)


def test_rules_run_until_none_fires() -> None:
    graph = graph_of(*(f"%v{i} = neg(%{'x' if i == 0 else f'v{i - 1}'}) : f32[2]" for i in range(7)), result="%v6")
    stats = apply_rules(graph, [double_negation])
    assert [op.name for op in graph.ops] == ["neg"]
    assert stats.fired == {"double_negation": 3}
    verify(graph)


def test_a_replacement_can_match_again() -> None:
    @rule("square(neg(x))")
    def even(m: Match, b: Builder) -> Value:
        """square(-x) == square(x)"""
        return b.square(m["x"])

    graph = graph_of("%0 = neg(%x) : f32[2]", "%1 = mul(%0, %0) : f32[2]", result="%1")
    apply_rules(graph, [to_square, even])
    assert [op.name for op in graph.ops] == ["square"]
    assert next(graph.ops).operands[0].hint == "x"


def test_refusals_are_counted_and_leave_nothing_behind() -> None:
    @rule("relu(x)")
    def hesitant(m: Match, b: Builder) -> Refusal:
        """Builds, then thinks better of it."""
        b.neg(b.abs(m["x"]))
        return Refusal("not today")

    graph = graph_of("%0 = relu(%x) : f32[2]")
    text = str(graph)
    stats = apply_rules(graph, [hesitant])
    assert str(graph) == text
    assert stats.refused == {("hesitant", "not today"): 1} and not stats.fired


def test_fuel_stops_a_rule_that_never_ends() -> None:
    @rule("neg(x)")
    def again(m: Match, b: Builder) -> Value:
        """Goes round in circles."""
        return b.neg(m["x"])

    with pytest.raises(CompileError, match="rewriting does not end: rule 'again' fired"):
        apply_rules(graph_of("%0 = neg(%x) : f32[2]"), [again], fuel=50)


def test_a_rule_may_not_change_the_type() -> None:
    @rule("relu(x)")
    def wrong(m: Match, b: Builder) -> Value:
        """Drops a dimension."""
        return b.reduce_sum(m["x"], axes=(0,))

    with pytest.raises(CompileError, match="rule 'wrong' changes the type"):
        apply_rules(graph_of("%0 = relu(%x) : f32[2]"), [wrong])


def test_results_with_more_users_survive() -> None:
    graph = graph_of("%0 = neg(%x) : f32[2]", "%1 = neg(%0) : f32[2]", "%2 = add(%0, %1) : f32[2]", result="%2")
    apply_rules(graph, [double_negation])
    assert [op.name for op in graph.ops] == ["neg", "add"]


def test_time_grows_with_the_graph_not_its_square() -> None:
    def seconds(count: int) -> float:
        b = Builder.graph("long", x="f32[2]")
        value = b["x"]
        for _ in range(count):
            value = b.relu(b.neg(b.neg(value)))
        graph = b.returns(value)
        start = time.perf_counter()
        stats = apply_rules(graph, [double_negation, to_square])
        assert stats.fired["double_negation"] == count
        return time.perf_counter() - start

    small = min(seconds(500) for _ in range(3))
    assert seconds(5000) < 40 * small + 0.2
