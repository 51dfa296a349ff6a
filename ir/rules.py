"""Reads `.rules` files: `pattern => replacement where condition`, each under a comment with its algebra.

A rule read here is the same `Rule` that the decorator in `ir/rewrite.py` makes. docs/rules.md
explains the language, `ir/rules.lark` is its grammar.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError, nearest
from secateur.ir.formula import WORDS, Formula, FormulaError
from secateur.ir.graph import Value
from secateur.ir.opdef import REQUIRED, all_ops, lookup
from secateur.ir.pattern import Capture, Equals, Match, Node, Number, Pattern, Typing
from secateur.ir.reader import TERMINALS, Reader, grammar, name_tree, read_number
from secateur.ir.rewrite import Outcome, Refusal, Rewrite, Rule
from secateur.ir.syntax import parse_text

Functions = Mapping[str, Callable[..., Any]]
FIT = "fit"  # fit(x): x, broadcast to the result's shape where it has another one


@dataclass(frozen=True, slots=True)
class Ref:
    """A captured value, the result of a labelled operation, or (spread) captured further operands."""

    name: str
    spread: bool = False


@dataclass(frozen=True, slots=True)
class Build:
    """A new operation: `name` is an op, or the label of an operation of the pattern.

    Attributes:
        attrs: a key and a formula, or an empty key and the label whose attributes are taken over.
        result: which result is meant; None for all, where there are several.
    """

    name: str
    operands: tuple[Term, ...]
    attrs: tuple[tuple[str, Formula | str], ...] = ()
    result: int | None = None


Term: TypeAlias = Ref | Build | Number | Equals


@dataclass(frozen=True, slots=True)
class Condition:
    """`name = formula` binds a name; without a name the formula must hold, else `reason` says why not."""

    formula: Formula
    name: str = ""
    reason: str = ""


def load_rules(path: str | Path, functions: Functions | None = None) -> list[Rule]:
    """The rules of a file. Raises `CompileError` with line, column and caret where it is not well formed."""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        raise CompileError(f"there is no file {path}") from None
    except UnicodeDecodeError:
        raise CompileError(f"cannot read {path}: it is not text") from None
    except OSError as error:
        raise CompileError(f"cannot read {path}: {error.strerror or error}") from None
    return parse_rules(text, str(path), functions)


def parse_rules(text: str, file: str = "<rules>", functions: Functions | None = None) -> list[Rule]:
    """The rules of a text; `functions` are added to those that formulas know (see `formula.FUNCTIONS`)."""
    tree = parse_text(grammar(), text, file, TERMINALS, "file")
    reader = _RuleReader(text, file, functions)
    rules = [rule for child in tree.children for rule in reader.statement(child)]
    names: set[str] = set()
    for rule in rules:
        if rule.name in names:
            raise CompileError(f"rule {rule.name!r} is defined twice", span=rule.span, source=text)
        names.add(rule.name)
    return rules


class _RuleReader(Reader):
    def __init__(self, text: str, file: str, functions: Functions | None) -> None:
        super().__init__(text, file, functions, {})
        self.defined: dict[str, tuple[list[str], Any]] = {}
        self.lets = self.defined
        self.ended = 0  # the last line of the rule before

    def statement(self, tree: Any) -> list[Rule]:
        if tree.data == "let":
            name, *parameters, body = tree.children
            self.defined[str(name)] = ([str(item) for item in parameters if item is not None], body)
            return []
        name, families, *clauses, nodes, replacement, where = tree.children
        variable, *members = [str(item) for item in families.children] if families else [""]
        rules = []
        for op in members or [""]:
            family = {variable: op} if op else {}
            patterns = self.nodes(nodes, {}, family)
            base = f"{name}_{op}" if op else str(name)
            for number, pattern in enumerate(patterns):
                if not isinstance(pattern, Pattern):
                    raise self.error("a pattern needs an operation at its root", nodes)
                full = f"{base}_{number}" if len(patterns) > 1 else base
                rules.append(self.rule(full, pattern, replacement, where, family, clauses, name))
        self.ended = tree.meta.end_line
        return rules

    def rule(
        self,
        name: str,
        pattern: Pattern,
        replacement: Any,
        where: Any,
        family: Mapping[str, str],
        clauses: Any,
        at: Any,
    ) -> Rule:
        bound = Bound(pattern, lambda message: self.error(message, at))
        conditions = []
        for tree in where.children if where else []:
            conditions.append(self.condition(tree, bound))
            if conditions[-1].name:
                bound.data.add(conditions[-1].name)
        trees = replacement.children if replacement.data == "several" else [replacement]
        terms = tuple(self.term(tree, bound, family) for tree in trees)
        rule = Rule(name, pattern, _rewrite(name, conditions, terms), self.comment(at.line), 0.0)
        options: dict[str, Any] = {"replacement": terms, "span": self.span(at), "given": {}}
        for clause in clauses:
            if clause.data == "given":
                captured, low, high = clause.children
                if str(captured) not in bound.values:
                    raise self.error(f"{captured} is not captured by the pattern", captured)
                options["given"][str(captured)] = (float(read_number(low)), float(read_number(high)))
            else:
                options[clause.data] = float(clause.children[0]) if clause.data == "tolerance" else True
        return replace(rule, **options)

    def comment(self, line: int) -> str:
        """The comment above a rule, and above the `let`s that stand between without a blank line."""
        lines, at = self.text.splitlines(), line - 2
        found: list[str] = []
        while at >= self.ended and lines[at].strip():
            text = lines[at].strip()
            if text.startswith("//"):
                found.insert(0, text.removeprefix("//").strip())
            elif found:
                break
            at -= 1
        return "\n".join(found)

    def condition(self, tree: Any, bound: Bound) -> Condition:
        if tree.data == "bind":
            return Condition(self.known(tree.children[1], bound), str(tree.children[0]))
        formula, reason = tree.children
        read = self.known(formula, bound)
        return Condition(read, "", json.loads(reason) if reason else f"{read.text} does not hold")

    def known(self, tree: Any, bound: Bound) -> Formula:
        """A formula all of whose names are bound."""
        formula = self.compiler.formula(tree)
        for name in sorted(formula.names - bound.names):
            raise self.error(f"{name} is not bound by the pattern", tree, nearest(name, bound.names))
        return formula

    def term(self, tree: Any, bound: Bound, family: Mapping[str, str]) -> Term:
        if tree.data in ("value", "rest"):
            name = str(tree.children[0] or "")
            allowed = bound.rests if tree.data == "rest" else bound.values | bound.labels
            if name in ("true", "false") and tree.data == "value":
                return Number(WORDS[name])
            if name not in allowed:
                raise self.error(f"{name or '...'} is not bound by the pattern", tree, nearest(name, allowed))
            return Ref(name, tree.data == "rest")
        if tree.data == "number":
            return Number(read_number(tree))
        if tree.data == "equals":
            return Equals(self.known(tree.children[0], bound))
        return self.build(tree, bound, family)

    def build(self, tree: Any, bound: Bound, family: Mapping[str, str]) -> Build:
        token, *parts, attrs, result = tree.children
        name = family.get(str(token), str(token))
        operands = tuple(self.term(part, bound, family) for part in parts if part is not None)
        if name != FIT and name not in bound.labels and name not in all_ops():
            raise self.error(f"unknown op {name!r}", token, nearest(name, [*all_ops(), *bound.labels, FIT]))
        given: list[tuple[str, Formula | str]] = []
        for item in attrs.children if attrs else []:
            if item is None:
                continue
            key, *value = item.children
            if item.data == "spread":
                if str(key) not in bound.labels:
                    raise self.error(f"{key} is not an operation of the pattern", item, nearest(key, bound.labels))
                given.append(("", str(key)))
                continue
            given.append((str(key), self.known(value[0] if value[0] is not None else name_tree(key), bound)))
        if name in all_ops():
            self.check_attributes(name, given, tree)
        return Build(name, operands, tuple(given), int(result) if result is not None else None)

    def check_attributes(self, name: str, given: Iterable[tuple[str, Formula | str]], at: Any) -> None:
        known, keys = lookup(name).attrs, {key for key, _ in given}
        for key in keys - {""} - set(known):
            raise self.error(f"{name} has no attribute {key!r}", at, nearest(key, known))
        missing = [key for key, attr in known.items() if attr.default is REQUIRED and key not in keys]
        if missing and "" not in keys:
            raise self.error(f"{name} needs attribute {missing[0]!r} ({known[missing[0]].kind})", at)


class Bound:
    """The names that a pattern binds: values, labelled operations, further operands, and plain data.

    Raises what `error` makes of a message where a formula of the pattern uses a name before it is bound.
    """

    def __init__(self, pattern: Pattern, error: Callable[[str], Exception]) -> None:
        self.values: set[str] = set()
        self.labels = {"root"}
        self.rests: set[str] = set()
        self.data: set[str] = set()
        self.error = error
        self.visit(pattern)
        for name in self.values & (self.data | self.labels | self.rests):
            raise error(f"{name} stands for two things in the pattern")

    @property
    def names(self) -> set[str]:
        return self.values | self.labels | self.rests | self.data

    def visit(self, node: Node) -> None:
        if isinstance(node, Pattern):
            self.labels |= {node.label} - {""}
            for operand in node.operands:
                self.visit(operand)
            self.rests |= {node.rest or ""} - {""}
            for _, formula in node.attrs:
                self.data |= {formula.text} & formula.names - self.names
                self.require(formula)
        elif isinstance(node, Equals):
            self.require(node.formula)
        elif isinstance(node, Capture):
            self.values |= {node.name} - {"_"}
        self.dims(getattr(node, "type", None))

    def dims(self, typing: Typing | None) -> None:
        named = [dim.removesuffix("...") for dim in (typing.dims or () if typing else ()) if isinstance(dim, str)]
        self.data |= set(named) - {"", "_"}

    def require(self, formula: Formula) -> None:
        for name in sorted(formula.names - self.names):
            raise self.error(f"{name} is used before it is bound (from the left and from inside)")


# Building -----------------------------------------------------------------------------------------


def _rewrite(name: str, conditions: list[Condition], terms: tuple[Term, ...]) -> Rewrite:
    def rewrite(m: Match, b: Builder) -> Outcome:
        scope = m.scope
        for condition in conditions:
            try:
                value = condition.formula(scope)
            except FormulaError as error:
                return Refusal(str(error))
            if condition.name:
                scope[condition.name] = value
            elif not np.all(value):
                return Refusal(condition.reason)
        try:
            maker = _Maker(m, b, scope)
            return [value for term in terms for value in maker.make(term, m.root.results[0])]
        except (CompileError, FormulaError) as error:
            why = error.message if isinstance(error, CompileError) else str(error)
            raise CompileError(f"rule {name!r} cannot build its replacement: {why}", span=m.root.span) from None

    return rewrite


class _Maker:
    """Builds the terms of a replacement; a term that occurs twice is built once."""

    def __init__(self, m: Match, b: Builder, scope: dict[str, Any]) -> None:
        self.match = m
        self.b = b
        self.scope = scope
        self.made: dict[int | Term, list[Value]] = {}

    def make(self, term: Term, like: Value) -> list[Value]:
        """The values of a term; a number takes its element type from `like`."""
        if isinstance(term, Ref):
            return self.reference(term)
        if isinstance(term, Build):
            whole = replace(term, result=None)
            if whole not in self.made:
                self.made[whole] = self.build(term)
            results = self.made[whole]
            return results if term.result is None else [results[term.result]]
        value = term.value if isinstance(term, Number) else term.formula(self.scope)
        return [self.b.constant(np.asarray(value).astype(like.type.dtype.numpy))]

    def reference(self, term: Ref) -> list[Value]:
        if term.spread:
            return list(self.scope[term.name])
        if term.name in self.match.values:
            return [self.match.values[term.name]]
        return list(self.scope[term.name].results[:1])

    def build(self, term: Build) -> list[Value]:
        fixed = (Number, Equals)
        root = self.match.root
        known = {i: self.make(o, root.results[0]) for i, o in enumerate(term.operands) if not isinstance(o, fixed)}
        like = next((values[-1] for values in reversed(known.values()) if values), root.results[0])
        operands = [v for i, o in enumerate(term.operands) for v in known.get(i) or self.make_fixed(o, like)]
        if term.name == FIT:
            return [
                self.b.broadcast_to(value, shape=root.results[0].shape)
                if value.shape != root.results[0].shape
                else value
                for value in operands
            ]
        name = self.scope[term.name].name if term.name in self.scope else term.name
        attrs: dict[str, Any] = {}
        for key, value in term.attrs:
            attrs.update({key: _plain(value(self.scope))} if isinstance(value, Formula) else self.scope[value].attrs)
        return list(self.b.op(name, operands, attrs).results)

    def make_fixed(self, term: Term, like: Value) -> list[Value]:
        return self.make(term, like) if isinstance(term, (Number, Equals)) else []


def _plain(value: Any) -> Any:
    """Attribute data without NumPy's scalars."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value
