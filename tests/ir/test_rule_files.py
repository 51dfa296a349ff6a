"""The rule language: what each construct matches and builds, and what errors say."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.ir.interpret import interpret
from secateur.ir.rewrite import apply_rules, explaining
from secateur.ir.rules import load_rules, parse_rules
from secateur.ir.text import parse
from secateur.ir.verify import verify


def graph_of(*lines: str, inputs: str = "%x: f32[2,3], %y: f32[2,3]", result: str = "%z: f32[2,3]") -> Graph:
    names, types = zip(*(part.split(":") for part in result.split("; ")))
    body = "\n".join(lines)
    return parse(f"graph @f({inputs}) -> ({', '.join(types)}) {{\n{body}\nreturn {', '.join(names)}\n}}")


def rewritten(rules: str, *lines: str, **options: str) -> list[str]:
    """The operations left, after a run that must keep the results."""
    graph = graph_of(*lines, **options)
    before = graph.clone()
    apply_rules(graph, parse_rules(rules))
    verify(graph)
    rng = np.random.default_rng()
    arrays = [rng.standard_normal(value.shape).astype(value.type.dtype.numpy) for value in graph.inputs]
    for want, got in zip(interpret(before, *arrays), interpret(graph, *arrays), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    return [op.name for op in graph.ops if op.name != "constant"]


NEG_OF_SUM = ["%s = add(%x, %y) : f32[2,3]", "%z = neg(%s) : f32[2,3]"]


def test_operands_in_either_order() -> None:
    rules = "// -(x * -1) == x\nrule a: mul(neg(x), y) => neg(mul(x, y))"
    for order in ("%n, %y", "%y, %n"):
        lines = ["%n = neg(%x) : f32[2,3]", f"%z = mul({order}) : f32[2,3]"]
        assert rewritten(rules, *lines) == ["mul", "neg"]


def test_types_and_shapes() -> None:
    wide = "// x\nrule a: neg(add(x: float[n, n], y)) => sub(neg(x), y)"
    assert rewritten(wide, *NEG_OF_SUM) == ["add", "neg"]
    assert rewritten(wide.replace("[n, n]", "[n, m]"), *NEG_OF_SUM) == ["neg", "sub"]
    assert rewritten(wide.replace("[n, n]", "[2, rest...]"), *NEG_OF_SUM) == ["neg", "sub"]
    assert rewritten(wide.replace("float[n, n]", "int"), *NEG_OF_SUM) == ["add", "neg"]
    assert rewritten(wide.replace("float[n, n]", "(f64|f32)"), *NEG_OF_SUM) == ["neg", "sub"]
    assert rewritten(wide.replace("float[n, n]", "const"), *NEG_OF_SUM) == ["add", "neg"]


def test_attributes_are_captured_compared_and_computed() -> None:
    rules = """// transpose(transpose(x, p), q) == transpose(x, p[q])
    rule a: transpose(transpose(x) {perm = p}) {perm = q} => transpose(x) {perm = p[q]}

    // transpose(x, 0 1 ...) == x
    rule b: transpose(x) {perm = range(x.rank)} => x"""
    lines = ["%t = transpose(%x) {perm = [1,0]} : f32[3,2]", "%z = transpose(%t) {perm = [1,0]} : f32[2,3]"]
    assert rewritten(rules, *lines) == []


def test_numbers_by_value_and_computed() -> None:
    rules = """// sum(x) / n == mean(x)
    rule a: mul(reduce_sum(x) {axes, keepdims}, =1 / prod(x.shape[axes])) => fit(reduce_mean(x) {axes, keepdims})"""
    for number, left in ((0.5, ["reduce_mean"]), (0.25, ["reduce_sum", "mul"])):
        lines = [
            "%s = reduce_sum(%x) {axes = [0], keepdims = false} : f32[3]",
            f"%c = constant {{value = [{number}]}} : f32[1]",
            "%z = mul(%s, %c) : f32[3]",
        ]
        assert rewritten(rules, *lines, result="%z: f32[3]") == left


def test_further_operands_are_passed_on() -> None:
    rules = """// -x == x * -1
    rule a: layer_norm(neg(x), more...) => layer_norm(mul(x, -1), more...) {..root}"""
    weights = "%x: f32[2,3], %w: f32[3], %b: f32[3]"
    lines = ["%n = neg(%x) : f32[2,3]", "%z = layer_norm(%n, %w, %b) {dims = 1, eps = 0.1} : f32[2,3]"]
    assert rewritten(rules, *lines, inputs=weights) == ["mul", "layer_norm"]


def test_one_use() -> None:
    rules = "// -(x + y) == -x - y\nrule a: neg(once add(x, y)) => sub(neg(x), y)"
    assert rewritten(rules, *NEG_OF_SUM) == ["neg", "sub"]
    assert rewritten(rules, *NEG_OF_SUM, result="%z: f32[2,3]; %s: f32[2,3]") == ["add", "neg"]


def test_several_results() -> None:
    rules = """// the second of two results, and both replaced
    rule a: sort(x: [_, _]) {axis, descending} => (topk(x) {k = x.shape[axis], axis, largest = descending}.0,
                                                   topk(x) {k = x.shape[axis], axis, largest = descending}.1)

    // only the first
    rule b: neg(neg(topk(x) {k, axis}.0)) => topk(x) {k, axis, largest = root.rank == 2}.0"""
    line = "%a, %i = sort(%x) {axis = 1, descending = true} : f32[2,3], i64[2,3]"
    assert rewritten(rules, line, result="%a: f32[2,3]; %i: i64[2,3]") == ["topk"]
    lines = [line, "%m = neg(%a) : f32[2,3]", "%z = neg(%m) : f32[2,3]"]
    assert rewritten(rules, *lines) == ["topk"]


def test_families_lets_and_alternatives() -> None:
    rules = parse_rules("""// F(-x)
    let minus(x) = neg(x) | sub(0, x) | mul(x, -1)
    rule even for F in abs, cosh: F(minus(x)) => F(x)""")
    assert [rule.name for rule in rules] == [f"even_{op}_{n}" for op in ("abs", "cosh") for n in range(3)]
    assert {rule.doc for rule in rules} == {"F(-x)"}
    graph = graph_of("%n = neg(%x) : f32[2,3]", "%z = abs(%n) : f32[2,3]")
    assert apply_rules(graph, rules).fired == {"even_abs_0": 1}


def test_a_refusal_has_its_reason_and_place() -> None:
    rules = parse_rules('// no\nrule a: neg(relu(x)) => x where x.rank > 5 else "only for more than five dimensions"')
    graph = graph_of("%r = relu(%x) : f32[2,3]", "%s = neg(%r) : f32[2,3]", "%z = neg(%s) : f32[2,3]")
    with explaining("a") as explanation:
        stats = apply_rules(graph, rules)
    reason = "only for more than five dimensions"
    assert stats.refused == {("a", reason): 1}
    assert list(explanation.misses.values()) == [reason, "neg is not relu (at <text>:3:6)"]
    assert explanation.tried == {"a"} and explanation.fired == 0


ERRORS = [
    ("rule a: neg(x) = x", "1:16: unexpected '='", "expected"),
    ("rule a neg(x) => x", "1:8: unexpected 'neg'", "expected ':' or"),
    ("rule a: neg(x) => y", "1:19: y is not bound by the pattern", "rule a: neg(x) => y\n                    ^"),
    ("rule a: neg(x) => x where xx.rank == 1", "1:27: xx is not bound", "did you mean 'x'?"),
    ("rule a: ngg(x) => x", "1:9: unknown op 'ngg'", "did you mean 'neg'?"),
    ("rule a: neg(x, y) => x", "neg does not take 2 operands", ""),
    ("rule a: softmax(x) {axes} => x", "softmax has no attribute 'axes'", "did you mean 'axis'?"),
    ("rule a: neg(x) => softmax(x)", "softmax needs attribute 'axis' (int)", ""),
    ("rule a: neg(x) => relu(x) {slope = 1}", "relu has no attribute 'slope'", ""),
    ("rule a: neg(x: floot) => x", "unknown element type 'floot'", "did you mean 'float'?"),
    ("rule a: neg(x) => x where lenn(x.shape) == 1", "unknown function 'lenn'", ""),
    ("rule a: concat(x..., y) => y", "comes last", ""),
    ("rule a: neg(x) => x\nrule a: abs(x) => x", "rule 'a' is defined twice", ""),
    ("rule a: add(=n, x: [n]) => x", "n is used before it is bound", ""),
    ("rule a given y in 0 .. 1: neg(x) => x", "y is not captured by the pattern", ""),
    ("rule a: x => x", "a pattern needs an operation at its root", ""),
    ("rule", "the text ends too early", "expected a name"),
]


@pytest.mark.parametrize(("text", "message", "more"), ERRORS)
def test_errors_say_where_and_what(text: str, message: str, more: str) -> None:
    with pytest.raises(CompileError) as caught:
        parse_rules(text)
    shown = str(caught.value)
    assert message in shown and more in shown and "\n  " in shown and "^" in shown


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(CompileError, match=r"there is no file nowhere\.rules"):
        load_rules("nowhere.rules")


def test_a_replacement_that_cannot_be_built_names_its_rule() -> None:
    rules = parse_rules("// no\nrule a: neg(x) => reshape(x) {shape = [7]}")
    with pytest.raises(CompileError, match="rule 'a' cannot build its replacement: reshape"):
        apply_rules(graph_of("%z = neg(%x) : f32[2,3]"), rules)
