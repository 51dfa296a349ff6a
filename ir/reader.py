"""Reads patterns: the text `add(once mul(x, y), 1)` as a `Pattern`. The grammar is `ir/rules.lark`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

from lark import Lark, Token, Tree

from secateur.ir.diagnostics import CompileError, Span, nearest
from secateur.ir.formula import WORDS, Compiler, Formula, to_number
from secateur.ir.opdef import all_ops, lookup
from secateur.ir.pattern import Capture, Equals, Node, Number, Pattern, Typing
from secateur.ir.syntax import load_grammar, parse_text
from secateur.ir.types import ALL, FLOATS, INTS, NUMERIC, DType

CLASSES = {"float": FLOATS, "int": INTS, "numeric": NUMERIC, "any": ALL, **{dtype.value: (dtype,) for dtype in DType}}
TERMINALS = {
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": "a string",
    "ONCE": "'once'",
    "MINUS": "'-'",
    "KIND": "'const' or 'number'",
    "COMPARE": "a comparison",
    "PLUS": "'+' or '-'",
    "TIMES": "'*', '/' or '%'",
    "POWER": "'**'",
    "$END": "the end of the text",
}


@cache
def grammar() -> Lark:
    return load_grammar("rules.lark", ["file", "pattern"])


def pattern(text: str) -> Pattern:
    """Read one pattern, such as `add(once mul(x, y), 1)`. Raises `CompileError` with a caret."""
    tree = parse_text(grammar(), text, "<pattern>", TERMINALS, "pattern")
    (node,) = Reader(text, "<pattern>").node(tree.children[0], {}, {})
    if not isinstance(node, Pattern):
        raise CompileError("a pattern needs an operation at its root", span=Span("<pattern>", 1, 1), source=text)
    return node


Substitution = dict[str, list[Node]]
Let = tuple[list[str], Any]


class Reader:
    """Turns syntax trees of patterns into patterns.

    Args:
        lets: named patterns, by name: their parameters and trees.
    """

    def __init__(
        self,
        text: str,
        file: str,
        functions: Mapping[str, Callable[..., Any]] | None = None,
        lets: Mapping[str, Let] | None = None,
    ) -> None:
        self.text = text
        self.file = file
        self.compiler = Compiler(text, functions or {}, self.error)
        self.lets = lets or {}

    def span(self, at: Any) -> Span:
        place: Any = at if isinstance(at, Token) else at.meta
        return Span(self.file, place.line, place.column)

    def error(self, message: str, at: Any, hint: str = "") -> CompileError:
        return CompileError(message, span=self.span(at), source=self.text, hint=hint)

    def node(self, tree: Any, given: Substitution, family: Mapping[str, str]) -> list[Node]:
        """Every pattern that a node stands for: several where it uses a `let` with alternatives."""
        if tree.data == "capture":
            name, typing = tree.children
            if str(name) in given and typing is None:
                return given[str(name)]
            if str(name) in ("true", "false"):
                return [Number(WORDS[str(name)])]
            return [Capture(str(name), self.typing(typing))]
        if tree.data == "number":
            return [Number(read_number(tree))]
        if tree.data == "equals":
            return [Equals(self.compiler.formula(tree.children[0]))]
        return self.operation(tree, given, family)

    def nodes(self, tree: Any, given: Substitution, family: Mapping[str, str]) -> list[Node]:
        return [node for child in tree.children for node in self.node(child, given, family)]

    def operation(self, tree: Any, given: Substitution, family: Mapping[str, str]) -> list[Node]:
        once, label, choice, *parts, attrs, result, typing = tree.children
        arguments = [part for part in parts if part is not None and part.data != "rest"]
        rests = [part for part in parts if part is not None and part.data == "rest"]
        if rests and (len(rests) > 1 or parts[-1] is not rests[0]):
            raise self.error("'...' stands for further operands and comes last, once", rests[0])
        alternatives = [self.node(argument, given, family) for argument in arguments]
        names = [str(name) for name in choice.children]
        if len(names) == 1 and names[0] in self.lets:
            return self.expand(names[0], tree, alternatives, family)
        names = [family.get(name, name) for name in names]
        self.check_operation(names, choice, len(arguments), bool(rests))
        made = Pattern(
            tuple(names),
            (),
            str(rests[0].children[0] or "") if rests else None,
            str(label or ""),
            once is not None,
            int(result or 0),
            tuple(self.attribute(names, item) for item in attrs.children if item is not None) if attrs else (),
            self.typing(typing),
        )
        made_of = (made.names, made.rest, made.label, made.once, made.result, made.attrs, made.type)
        return [Pattern(made_of[0], operands, *made_of[1:]) for operands in product(*alternatives)]

    def expand(self, name: str, tree: Any, alternatives: list[list[Node]], family: Mapping[str, str]) -> list[Node]:
        parameters, body = self.lets[name]
        if len(parameters) != len(alternatives):
            raise self.error(f"{name} takes {len(parameters)} patterns, not {len(alternatives)}", tree)
        return self.nodes(body, dict(zip(parameters, alternatives, strict=True)), family)

    def check_operation(self, names: Sequence[str], at: Any, count: int, rest: bool) -> None:
        for name in names:
            if name not in all_ops():
                raise self.error(f"unknown op {name!r}", at, nearest(name, [*all_ops(), *self.lets]))
            schema = lookup(name).operands
            least = sum(not (operand.optional or operand.variadic) for operand in schema)
            most = len(schema) if not (schema and schema[-1].variadic) else 1 << 30
            if count > most or (count < least and not rest):
                raise self.error(f"{name} does not take {count} operands", at, lookup(name).doc)

    def attribute(self, names: Sequence[str], tree: Any) -> tuple[str, Formula]:
        if tree.data == "spread":
            raise self.error("a pattern cannot spread attributes", tree)
        key, value = tree.children
        for name in names:
            if str(key) not in lookup(name).attrs:
                raise self.error(f"{name} has no attribute {str(key)!r}", tree, nearest(str(key), lookup(name).attrs))
        return str(key), self.compiler.formula(value if value is not None else name_tree(key))

    def typing(self, tree: Any) -> Typing | None:
        if tree is None:
            return None
        kind, choice, dims = tree.children
        names = [str(name) for name in choice.children] if choice else ["any"]
        for name in names:
            if name not in CLASSES:
                raise self.error(f"unknown element type {name!r}", choice, nearest(name, CLASSES))
        read = None if dims is None else tuple(_dim(child) for child in dims.children if child is not None)
        if read and sum(isinstance(dim, str) and dim.endswith("...") for dim in read) > 1:
            raise self.error("a shape has '...' at most once", dims)
        return Typing(str(kind or ""), tuple(dtype for name in names for dtype in CLASSES[name]), read)


def _dim(child: Any) -> int | str:
    if isinstance(child, Token):
        return int(child) if child.type == "NUMBER" else str(child)
    return f"{child.children[0] or ''}..."


def read_number(tree: Any) -> int | float:
    sign, digits = tree.children
    return to_number(str(digits)) * (-1 if sign else 1)


def name_tree(token: Token) -> Any:
    """The formula that is just a name, as `{axis}` is short for `{axis = axis}`."""
    tree = Tree("name", [token])
    meta: Any = tree.meta
    meta.start_pos, meta.end_pos, meta.line, meta.column = token.start_pos, token.end_pos, token.line, token.column
    return tree
