"""Rewrite rules and the one driver that applies them.

A rule is a pattern over operations, and a function that builds the replacement or says why not:

    @rule("transpose(transpose(x))")
    def double_transpose(m, b):
        \"\"\"transpose(transpose(x, p), q) == transpose(x, p[q])\"\"\"
        return b.transpose(m["x"], perm=[m.op(0).attrs["perm"][axis] for axis in m.root.attrs["perm"]])

Rules are indexed by the operation at their root, and the driver keeps a worklist, so that the
cost of a run follows the number of operations and of changes, not their product.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError, Span
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.pattern import Match, Miss, Pattern, is_number, match, matches
from secateur.ir.reader import pattern

__all__ = [
    "Match",
    "Outcome",
    "Pattern",
    "Refusal",
    "Rewrite",
    "RewriteStats",
    "Rule",
    "apply_rules",
    "erase_dead",
    "is_number",
    "match",
    "matches",
    "pattern",
    "rule",
]


SHARED = 16  # uses of a value above which a change of what makes it does not wake its users: the worklist stays linear


@dataclass(frozen=True, slots=True)
class Refusal:
    """A rule's condition did not hold; `reason` is what a user reads."""

    reason: str


Outcome = Value | Sequence[Value] | Refusal | None
Rewrite = Callable[[Match, Builder], Outcome]


@dataclass(frozen=True, slots=True)
class Rule:
    """`pattern => rewrite(match, builder)`; the docstring of `rewrite` states the algebra.

    Attributes:
        tolerance: the largest error in f32, relative to the largest number of the result or to 1 (see
            `prove.difference`); 0 says that every bit is kept, but for the sign
            of a zero.
        finite: holds where no element is NaN or infinite, on the way included.
        defined: holds where the result is not NaN.
        given: holds where the elements of a captured value lie in a range.
        draws: patterns that the proof by use draws instances from, where `pattern` says too little.
        replacement: what the text of a `.rules` file builds, for the linter.
    """

    name: str
    pattern: Pattern
    rewrite: Rewrite
    doc: str = ""
    tolerance: float = 0.0
    finite: bool = False
    defined: bool = False
    given: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    draws: tuple[Pattern, ...] = ()
    replacement: Any = None
    span: Span | None = None


def rule(
    text: str,
    *,
    tolerance: float = 0.0,
    finite: bool = False,
    defined: bool = False,
    given: Mapping[str, tuple[float, float]] | None = None,
    draws: Sequence[str] = (),
    name: str = "",
    doc: str = "",
) -> Callable[[Rewrite], Rule]:
    """Make a rule of a function: it returns the new value(s), a `Refusal`, or None to decline.

    The options are the fields of `Rule`; name and doc are the function's own by default.
    """

    def wrap(function: Rewrite) -> Rule:
        code = function.__code__
        return Rule(
            name or function.__name__,
            pattern(text),
            function,
            doc or (function.__doc__ or "").strip(),
            tolerance,
            finite,
            defined,
            given or {},
            tuple(pattern(item) for item in draws),
            span=Span(code.co_filename, code.co_firstlineno),
        )

    return wrap


@dataclass
class RewriteStats:
    """Per rule: how often it fired, why it declined, the seconds it took; in all: how many operations were visited."""

    fired: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    visits: int = 0

    def add(self, other: RewriteStats) -> None:
        self.fired.update(other.fired)
        self.refused.update(other.refused)
        self.visits += other.visits
        for name, seconds in other.seconds.items():
            self.seconds[name] += seconds


# Asked before each rewrite, with the rule, the operation and the values that are to replace its results.
Gate = Callable[[Rule, Op, Sequence[Value]], bool]
_gate: ContextVar[Gate | None] = ContextVar("gate", default=None)


@contextmanager
def gated(allow: Gate) -> Iterator[None]:
    """While it lasts, rules fire only where `allow` says so: how a wrong rewrite is found by bisection.

    When `allow` is asked, the old operation and the new ones are both in the graph, so that it may compare them.
    """
    token = _gate.set(allow)
    try:
        yield
    finally:
        _gate.reset(token)


@dataclass
class Explanation:
    """Why a rule did not fire: its near misses, each with the operation at its root.

    Attributes:
        rule: the rule's name, or what the names of a family of rules begin with.
        known: the names of all rules that the driver was given.
        tried: the names of those that were tried at some operation.
        misses: for each operation that could have been the root, what did not fit there at the last try.
    """

    rule: str
    fired: int = 0
    known: set[str] = field(default_factory=set)
    tried: set[str] = field(default_factory=set)
    misses: dict[Op, str] = field(default_factory=dict)

    def covers(self, name: str) -> bool:
        return name == self.rule or name.startswith(f"{self.rule}_")

    def record(self, op: Op, misses: list[Miss]) -> None:
        """Keep what got furthest."""
        if misses:
            _, inner, why = max(misses, key=lambda miss: miss[0])
            place = f" (at {inner.span})" if inner is not None and inner is not op and inner.span else ""
            self.misses[op] = why + place


_explanation: ContextVar[Explanation | None] = ContextVar("explanation", default=None)


@contextmanager
def explaining(rule: str) -> Iterator[Explanation]:
    """While it lasts, near misses of a rule are recorded."""
    explanation = Explanation(rule)
    token = _explanation.set(explanation)
    try:
        yield explanation
    finally:
        _explanation.reset(token)


def _candidates(op: Op, rules: list[Rule]) -> Iterator[tuple[Rule, Match, list[Miss]]]:
    """Every match of every rule at an operation, with what did not fit on the way, if somebody asks for that."""
    explanation = _explanation.get()
    for item in rules:
        misses: list[Miss] = []
        asked = explanation is not None and explanation.covers(item.name)
        if explanation is not None:
            explanation.tried.add(item.name)  # before the matches: who takes one does not come back for the next
        for found in matches(item.pattern, op, misses if asked else None):
            yield item, found, misses
        if explanation is not None and asked:
            explanation.record(op, misses)


def apply_rules(graph: Graph, rules: Iterable[Rule], *, fuel: int | None = None) -> RewriteStats:
    """Apply rules until none fires, and remove what becomes dead.

    Args:
        fuel: the most rewrites allowed; by default 20 for each operation plus 1,000.

    Raises:
        CompileError: fuel ran out (naming the rule that fired most), or a replacement has another type.
    """
    rules = list(rules)
    if (explanation := _explanation.get()) is not None:
        explanation.known.update(item.name for item in rules)
    by_root: defaultdict[str, list[Rule]] = defaultdict(list)
    depth = 1
    for item in rules:
        depth = max(depth, item.pattern.depth)
        for name in item.pattern.names:
            by_root[name].append(item)
    stats = RewriteStats()
    worklist = OrderedDict.fromkeys(graph.ops)  # an ordered set that pops from its front in constant time
    fuel = fuel if fuel is not None else 20 * len(worklist) + 1000
    while worklist:
        op, _ = worklist.popitem(last=False)
        if op.graph is not graph:
            continue
        stats.visits += 1
        changed = _rewrite_one(graph, op, by_root[op.name], stats)
        if changed is None:
            continue
        worklist.update(OrderedDict.fromkeys(_upwards(graph, changed, depth)))
        fuel -= 1
        if fuel < 0:
            name, count = stats.fired.most_common(1)[0]
            raise CompileError(f"rewriting does not end: rule {name!r} fired {count} times", span=op.span)
    return stats


def _rewrite_one(graph: Graph, op: Op, rules: list[Rule], stats: RewriteStats) -> list[Op] | None:
    """Try the rules on one operation; where one fires, returns the operations around it that changed."""
    for item, found, misses in _candidates(op, rules):
        start = time.perf_counter()
        previous = op.prev
        outcome = item.rewrite(found, Builder(graph, op, op.span))
        stats.seconds[item.name] += time.perf_counter() - start
        if outcome is None or isinstance(outcome, Refusal):
            reason = outcome.reason if outcome is not None else "it declines, and does not say why"
            misses.append((1 << 30, op, reason))
            if outcome is not None:
                stats.refused[item.name, reason] += 1
            _erase_between(graph, previous, op)
            continue
        values = [outcome] if isinstance(outcome, Value) else list(outcome)
        if [value.type for value in values] != [value.type for value in op.results]:
            raise CompileError(f"rule {item.name!r} changes the type of {op!r}", span=op.span)
        if (allow := _gate.get()) and not allow(item, op, values):
            _erase_between(graph, previous, op)
            continue
        stats.fired[item.name] += 1
        if (explanation := _explanation.get()) is not None and explanation.covers(item.name):
            explanation.fired += 1
            explanation.misses.pop(op, None)
        return _replace(graph, op, values, _between(previous, op))
    return None


def _replace(graph: Graph, op: Op, values: list[Value], new: list[Op]) -> list[Op]:
    """Put `values` in the place of `op`; returns what the rules should look at again."""
    users = [user for value in op.results for user in value.users]
    released = op.operands
    graph.replace(op, values)
    erase_dead(graph, [*(value.op for value in released if value.op), *new])
    # A value that has lost a use may now be the only use of something: rules ask for that.
    alone = [user for value in released if len(value.uses) == 1 for user in value.users]
    sources = [value.op for value in (*values, *released) if value.op]
    return [*new, *sources, *alone, *users]


def _upwards(graph: Graph, ops: Iterable[Op], depth: int) -> Iterator[Op]:
    """The operations and, as a pattern may reach down to them, their users up to `depth` levels above."""
    seen: set[Op] = set()
    level = list(ops)
    for left in range(depth, 0, -1):
        level = [op for op in dict.fromkeys(level) if op.graph is graph and op is not graph.terminator]
        level = [op for op in level if op not in seen]
        seen.update(level)
        yield from level
        if left > 1:
            # What feeds very many users (a shared constant) did not change for all of them.
            level = [user for op in level for value in op.results if len(value.uses) <= SHARED for user in value.users]


def _between(previous: Op | None, op: Op) -> list[Op]:
    """The operations that a rewrite put in front of `op`."""
    new, at = [], op.prev
    while at is not None and at is not previous:
        new.append(at)
        at = at.prev
    return new[::-1]


def _erase_between(graph: Graph, previous: Op | None, op: Op) -> None:
    for new in reversed(_between(previous, op)):
        graph.erase(new)


def erase_dead(graph: Graph, candidates: Iterable[Op]) -> int:
    """Erase those candidates whose results are unused, and what becomes unused by that."""
    stack, count = list(candidates), 0
    while stack:
        op = stack.pop()
        if op.graph is not graph or op is graph.terminator or any(value.uses for value in op.results):
            continue
        stack += [value.op for value in op.operands if value.op]
        graph.erase(op)
        count += 1
    return count
