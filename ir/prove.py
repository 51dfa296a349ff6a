"""Proof by use: rules are tried on instances drawn from their patterns, and both sides are compared.

Integers and booleans must agree exactly, floats within the rule's tolerance, NaN and infinities in
their places. A rule that fails is shown with the smallest instance found, as IR text. The linter
finds by the same instances what never fires, never ends, or changes a type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError, Span
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.instances import Instance, instances
from secateur.ir.interpret import run
from secateur.ir.pattern import matches
from secateur.ir.rewrite import Refusal, Rule, apply_rules
from secateur.ir.text import print_graph
from secateur.ir.types import DType

ENOUGH = 20  # instances on which a rule must hold
TRIES = 3000  # draws made to find them
SHRINK = 600  # draws made to find a small counterexample
PATIENCE = 300  # instances that an earlier rule takes, after which it is thought to take them all
MOST = 1 << 20  # elements of a constant that a counterexample shows
UNIT = 1.0  # the size of most instances' numbers: their rounding remains where all of a result cancels
BRINK = 0.2  # of the largest number: above it, an infinity and a number may differ only by the order of products
ROUNDS = 60  # rewrites after which an instance of a few operations is thought to go on for ever


@dataclass(frozen=True)
class Counterexample:
    """An instance for which a rule is wrong: what is wrong, and the program before and after, with its data."""

    message: str
    before: str
    after: str
    size: tuple[int, int] = (0, 0)  # operations and elements

    def __str__(self) -> str:
        return f"{self.message}\n// before\n{self.before}// after\n{self.after}".rstrip()


@dataclass(frozen=True)
class Proof:
    """How a rule did: on how many instances it fired, and where it was wrong."""

    rule: Rule
    instances: int
    counterexample: Counterexample | None = None

    @property
    def ok(self) -> bool:
        return self.instances > 0 and self.counterexample is None


@dataclass(frozen=True)
class Finding:
    """What the linter says about a rule."""

    rule: str
    message: str
    span: Span | None = None

    @property
    def loops(self) -> bool:
        return self.message.startswith("loops ")

    def __str__(self) -> str:
        return f"{f'{self.span}: ' if self.span else ''}rule {self.rule!r} {self.message}"


def prove(rule: Rule, seed: int, *, enough: int = ENOUGH, tries: int = TRIES) -> Proof:
    """Try a rule on up to `enough` instances."""
    count = 0
    for instance in _drawn(rule, seed, tries):
        found = _counterexample(rule, instance)
        if found == "declined":
            continue
        count += 1
        if isinstance(found, Counterexample):
            return Proof(rule, count, _smaller(rule, seed, found))
        if count == enough:
            break
    return Proof(rule, count)


def _drawn(rule: Rule, seed: int, tries: int, *, small: bool = False) -> Iterator[Instance]:
    patterns = rule.draws or (rule.pattern,)
    streams = [
        instances(
            p, seed + 1000003 * at, tries=tries // len(patterns), small=small, finite=rule.finite, given=rule.given
        )
        for at, p in enumerate(patterns)
    ]
    while streams:
        for stream in list(streams):
            instance = next(stream, None)
            if instance is None:
                streams.remove(stream)
            else:
                yield instance


def _smaller(rule: Rule, seed: int, first: Counterexample) -> Counterexample:
    """The smallest counterexample that some more draws of small sizes give."""
    best = first
    for instance in _drawn(rule, seed, SHRINK, small=True):
        found = _counterexample(rule, instance)
        if isinstance(found, Counterexample) and found.size < best.size:
            best = found
    return best


@np.errstate(all="ignore")
def fire(rule: Rule, graph: Graph, op: Op) -> list[Value] | CompileError | None:
    """Build a rule's replacement for an operation; None where it does not match or declines."""
    for found in matches(rule.pattern, op):
        before = op.prev
        try:
            outcome = rule.rewrite(found, Builder(graph, op, op.span))
        except CompileError as error:
            return error
        if outcome is not None and not isinstance(outcome, Refusal):
            return [outcome] if isinstance(outcome, Value) else list(outcome)
        while op.prev is not None and op.prev is not before:
            graph.erase(op.prev)
    return None


def _counterexample(rule: Rule, instance: Instance) -> Counterexample | str | None:
    """What is wrong with a rule on an instance; "declined" where it does not fire there."""
    graph, root = instance.graph, instance.root
    before = graph.clone()
    arrays = instance.arrays
    values = fire(rule, graph, root)
    if values is None:
        return "declined"
    text = print_graph(_closed(before, arrays), inline=MOST)
    size = (len(before), sum(value.type.numel for op in before.ops for value in (*op.operands, *op.results)))
    if isinstance(values, CompileError):
        return Counterexample(_plain(values, rule), text, "", size)
    old, new = [str(value.type) for value in root.results], [str(value.type) for value in values]
    if old != new:
        return Counterexample(f"it changes the type {', '.join(old)} to {', '.join(new)}", text, "", size)
    seen = [*arrays]
    wanted = run(before, arrays, lambda op, results: seen.extend(results))
    if rule.finite and not all(_is_finite(array) for array in seen):
        return "declined"
    scale = max(map(_largest, seen), default=1.0)
    graph.replace(root, values)
    for position, (want, got) in enumerate(zip(wanted, run(graph, arrays), strict=True)):
        if rule.defined and want.dtype.kind not in "biu":
            got = np.where(np.isnan(want), want, got)
        if (why := difference(want, got, rule.tolerance, scale)) is not None:
            which = f"result {position}: " if len(wanted) > 1 else ""
            return Counterexample(which + why, text, print_graph(_alive(_closed(graph, arrays)), inline=MOST), size)
    return None


def _plain(error: CompileError, rule: Rule) -> str:
    """An error's message without the name of the rule, which whoever shows it says already."""
    return error.message.removeprefix(f"rule {rule.name!r} ")


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind in "biu" or bool(np.all(np.isfinite(array.astype(np.float64))))


def _largest(array: np.ndarray) -> float:
    if array.dtype.kind == "b" or not array.size:
        return 0.0
    wide = np.abs(array.astype(np.float64))
    return float(wide[np.isfinite(wide)].max(initial=0.0))


def difference(want: np.ndarray, got: np.ndarray, tolerance: float, scale: float = 0.0) -> str | None:
    """How two results differ, or None where they agree.

    Args:
        tolerance: relative in f32, see below; it grows with the rounding of narrower types. 0 asks for every bit.
        scale: the largest number on the way, which no error is measured against more than.

    The error of an element is measured against the largest number of the result, or `UNIT` where that is
    larger: sums that cancel leave the rounding of what went into them, which is of this order.
    """
    a, b = (np.asarray(array) for array in (want, got))
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return f"{a.dtype}{list(a.shape)} became {b.dtype}{list(b.shape)}"
    dtype = DType.of(a.dtype)
    if not dtype.is_float:
        bad = a != b
    else:
        a, b = a.astype(np.float64), b.astype(np.float64)
        limits = ml_dtypes.finfo(dtype.numpy)  # type: ignore[no-untyped-call]
        relative = tolerance * max(float(limits.eps) / 2.0**-23, 1.0)
        size = min(scale, max(UNIT, _largest(a)))
        finite = np.isfinite(a)
        bad = np.where(finite, False, (a != b) & ~(np.isnan(a) & np.isnan(b)))
        with np.errstate(invalid="ignore"):
            bad |= finite & ~(np.abs(a - b) <= relative * np.maximum(np.abs(a), size if tolerance else 0.0))
            if tolerance:  # one of two neighbours may overflow, but no infinity comes from a small number
                brink = BRINK * float(limits.max)
                bad &= ~(
                    (np.minimum(np.abs(a), np.abs(b)) > brink) & (np.sign(a) == np.sign(b)) & (finite != np.isfinite(b))
                )
    if not np.any(bad):
        return None
    at = tuple(int(index) for index in np.argwhere(bad)[0])
    return f"element {list(at)} is {np.asarray(got)[at]}, should be {np.asarray(want)[at]}"


def _closed(graph: Graph, arrays: Sequence[np.ndarray]) -> Graph:
    """The graph with its inputs as constants: a program that holds its data."""
    copy = graph.clone()
    first = next(iter(copy.ops), copy.terminator)
    for value, array in zip(copy.inputs, arrays, strict=True):
        value.replace_uses(Builder(copy, first).constant(array, name=value.hint))
    copy.inputs.clear()
    return copy


def _alive(graph: Graph) -> Graph:
    for op in reversed(list(graph.ops)):
        if not any(value.uses for value in op.results):
            graph.erase(op)
    return graph


# The linter ---------------------------------------------------------------------------------------


def lint(rules: Sequence[Rule], seed: int = 0, *, samples: int = 6) -> list[Finding]:
    """What is wrong with rules beside their algebra: the order of `rules` is the order in which they are tried.

    Looks for missing algebra, rules that no instance of their pattern satisfies, rules that an
    earlier one always forestalls, replacements of another type, and rewriting that does not end.
    """
    findings: list[Finding] = []
    for at, rule in enumerate(rules):
        if not rule.doc:
            findings.append(Finding(rule.name, "has no comment with its algebra above it", rule.span))
        findings += (Finding(rule.name, message, rule.span) for message in _lint_by_use(rules, at, seed, samples))
    return findings


def _lint_by_use(rules: Sequence[Rule], at: int, seed: int, samples: int) -> Iterator[str]:
    rule = rules[at]
    fired, forestalled = 0, set[str]()
    for instance in _drawn(rule, seed, TRIES):
        copy = instance.graph.clone()
        values = fire(rule, copy, _root(copy))
        if values is None:
            continue
        fired += 1
        if isinstance(values, CompileError):
            yield _plain(values, rule)
            return
        if [value.type for value in values] != [value.type for value in _root(copy).results]:
            yield f"changes the type {_root(copy).results[0].type} to {values[0].type}"
            return
        forestalled.add(_first(rules[:at], instance.graph))
        if (endless := _loops(rules, rule, instance.graph)) is not None:
            yield endless
            return
        if fired == PATIENCE or (fired >= samples and "" in forestalled):
            break
    if not fired:
        yield f"never fires: none of {TRIES} draws of its pattern satisfies its conditions"
    elif "" not in forestalled:
        yield f"is never reached: {' and '.join(map(repr, sorted(forestalled)))} above it takes what it matches"


def _root(graph: Graph) -> Op:
    """The operation that an instance was drawn for: the last one."""
    last = graph.terminator.prev
    assert last is not None
    return last


def _first(rules: Sequence[Rule], graph: Graph) -> str:
    """The name of the first rule that fires at the root, or the empty string."""
    copy = graph.clone()
    firing = (rule.name for rule in rules if _root(copy).name in rule.pattern.names and fire(rule, copy, _root(copy)))
    return next(firing, "")


@np.errstate(all="ignore")
def _loops(rules: Sequence[Rule], rule: Rule, graph: Graph) -> str | None:
    """Whether a rule alone, or all of them together, rewrite an instance without end."""
    for chosen, what in (([rule], "by itself"), (rules, "with the other rules")):
        try:
            apply_rules(graph.clone(), chosen, fuel=ROUNDS)
        except CompileError as error:
            if "does not end" in error.message:
                return f"loops {what}: {error.message}"
            if len(chosen) == 1:
                return _plain(error, rule)
    return None
