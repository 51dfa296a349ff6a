"""The text form of a graph: an exact printer and a parser whose errors point at the place.

Constants of up to INLINE elements are printed in place; larger ones by name, their data lying in
a `.safetensors` file beside the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from lark import Lark, Token, Tree
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from secateur.ir.diagnostics import CompileError, Span
from secateur.ir.graph import Graph, Op, Value
from secateur.ir.opdef import OpDef, lookup
from secateur.ir.syntax import load_grammar, parse_text
from secateur.ir.types import DType, TensorType

Node: TypeAlias = Any  # a lark tree or token: what its children are, the grammar says and lark's types do not

INLINE = 16
_PLAIN_SYMBOL = re.compile(r"[A-Za-z0-9_.$:/-]+")
_TERMINALS = {
    "VALUE": "a value such as %0",
    "SYMBOL": "a name such as @main",
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": "a string",
    "RETURN": "return",
    "$END": "the end of the text",
}


# Printing -----------------------------------------------------------------------------------------


def print_graph(graph: Graph, *, spans: bool = False, inline: int = INLINE) -> str:
    """The text of a graph. Parsing it (with the weights it names) and printing again gives the same text.

    Constants of more than `inline` elements are printed by name alone.
    """
    return "\n".join(_Printer(spans, inline).graph(graph, "")) + "\n"


def weights(graph: Graph) -> dict[str, np.ndarray]:
    """The constants that the text form prints by name, by that name."""
    named = _constant_names(graph)
    return {name: op.attrs["value"] for op, name in named.items() if op.attrs["value"].size > INLINE}


def _constant_names(graph: Graph) -> dict[Op, str]:
    """A unique symbol for every constant: its own name, made unique; `const.N` where it has none."""
    names: dict[Op, str] = {}
    taken: dict[str, np.ndarray] = {}
    for op in graph.walk():
        if op.name != "constant":
            continue
        base = name = op.attrs["name"] or f"const.{len(names)}"
        tries = 0
        while name in taken and taken[name] is not op.attrs["value"]:
            tries += 1
            name = f"{base}.{tries}"
        taken[name] = op.attrs["value"]
        names[op] = name
    return names


class _Printer:
    def __init__(self, spans: bool, inline: int) -> None:
        self.spans = spans
        self.inline = inline
        self.constants: dict[Op, str] = {}

    def graph(self, graph: Graph, indent: str) -> list[str]:
        if not indent:
            self.constants = _constant_names(graph)
        names = _value_names(graph)
        inputs = ", ".join(f"{names[value]}: {value.type}" for value in graph.inputs)
        outputs = ", ".join(str(value.type) for value in graph.outputs)
        lines = [f"graph {_symbol(graph.name)}({inputs}) -> ({outputs}) {{"]
        for op in graph.ops:
            lines += self.op(op, names, indent + "  ")
        results = ", ".join(names[value] for value in graph.outputs)
        return [*lines, f"{indent}  return {results}".rstrip(), f"{indent}}}"]

    def op(self, op: Op, names: dict[Value, str], indent: str) -> list[str]:
        left = ", ".join(names[value] for value in op.results)
        right = ", ".join(str(value.type) for value in op.results)
        if self.spans and op.span:
            right += f" loc({_string(str(Span(op.span.file, op.span.line, op.span.column)))}"
            right += f", {_string(op.span.module)})" if op.span.module else ")"
        head = f"{indent}{left} = {op.name}"
        if op.name == "constant":
            return [f"{head}{self.constant(op)} : {right}"]
        head += f"({', '.join(names[value] for value in op.operands)})"
        plain = {key: value for key, value in sorted(op.attrs.items()) if not isinstance(value, Graph)}
        if plain:
            head += f" {{{', '.join(f'{key} = {_attr(value)}' for key, value in plain.items())}}}"
        nested = [value for value in op.attrs.values() if isinstance(value, Graph)]
        if not nested:
            return [f"{head} : {right}"]
        first, *rest = self.graph(nested[0], indent)
        return [f"{head} {first}", *rest[:-1], f"{rest[-1]} : {right}"]

    def constant(self, op: Op) -> str:
        value: np.ndarray = op.attrs["value"]
        if value.size > self.inline:
            return f" {_symbol(self.constants[op])}"
        own = f" {_symbol(op.attrs['name'])}" if op.attrs["name"] else ""
        return f"{own} {{value = [{', '.join(_number(item) for item in value.reshape(-1))}]}}"


def _value_names(graph: Graph) -> dict[Value, str]:
    """Hints where they are unique and not a plain number, else running numbers."""
    names: dict[Value, str] = {}
    taken: set[str] = set()
    count = 0
    for value in [*graph.inputs, *(result for op in graph.ops for result in op.results)]:
        hint = re.sub(r"[^A-Za-z0-9_.$-]", "_", value.hint)
        if not hint or hint.isdigit():
            name, count = str(count), count + 1
        else:
            name, tries = hint, 0
            while name in taken:
                tries += 1
                name = f"{hint}_{tries}"
        taken.add(name)
        names[value] = f"%{name}"
    return names


def _string(text: str) -> str:
    return json.dumps(text)


def _symbol(name: str) -> str:
    return f"@{name}" if _PLAIN_SYMBOL.fullmatch(name) else f"@{_string(name)}"


def _number(item: Any) -> str:
    if isinstance(item, (np.bool_, bool)):
        return "true" if item else "false"
    if isinstance(item, (int, np.integer)):
        return str(item)
    # The shortest digits that give the same number back in its own type.
    return str(item) if isinstance(item, np.floating) else repr(float(item))


def _attr(value: Any) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_attr(item) for item in value)}]"
    if value is None:
        return "none"
    if isinstance(value, DType):
        return value.value
    return _number(value)


# Parsing ------------------------------------------------------------------------------------------


@cache
def _grammar() -> Lark:
    return load_grammar("grammar.lark")


def parse(text: str, weights: Mapping[str, np.ndarray] | None = None, *, file: str = "") -> Graph:
    """Read the text form.

    Args:
        text: one graph.
        weights: the arrays of constants that the text names but does not hold.
        file: where the text is from, for error messages.

    Raises:
        CompileError: with line, column and a caret.
    """
    tree = parse_text(_grammar(), text, file, _TERMINALS)
    return _Parser(text, weights or {}, file).graph(tree.children[0])


class _Parser:
    def __init__(self, text: str, weights: Mapping[str, np.ndarray], file: str) -> None:
        self.text = text
        self.weights = weights
        self.file = file or "<text>"

    def error(self, message: str, at: Node, hint: str = "") -> CompileError:
        place: Node = at if isinstance(at, Token) else at.meta
        return CompileError(message, span=Span(self.file, place.line, place.column), source=self.text, hint=hint)

    def graph(self, tree: Node) -> Graph:
        symbol = tree.children[0]
        parts = [child for child in tree.children[1:] if child is not None]
        graph = Graph(_unquote(symbol))
        scope: dict[str, Value] = {}
        for node in (part for part in parts if part.data == "input"):
            name, type_tree = node.children
            self.bind(scope, name, graph.add_input(self.type(type_tree), _hint(name)))
        for node in (part for part in parts if part.data == "op"):
            self.op(node, graph, scope)
        last = parts[-1]
        graph.outputs = [self.value(scope, name) for name in last.children if name is not None]
        declared = [self.type(part) for part in parts if part.data == "type"]
        actual = [value.type for value in graph.outputs]
        if declared != actual:
            shown = ", ".join(map(str, actual))
            raise self.error(f"return gives ({shown}), the header says ({', '.join(map(str, declared))})", last)
        return graph

    def bind(self, scope: dict[str, Value], name: Token, value: Value) -> None:
        if name in scope:
            raise self.error(f"{name} is defined twice", name)
        scope[str(name)] = value

    def value(self, scope: dict[str, Value], name: Token) -> Value:
        if name not in scope:
            raise self.error(f"{name} is not defined here", name)
        return scope[str(name)]

    def type(self, tree: Node) -> TensorType:
        name, *dims = tree.children
        try:
            return TensorType(DType(str(name)), tuple(int(dim) for dim in dims if dim is not None))
        except ValueError:
            raise self.error(f"not a tensor type: {name}", tree) from None

    def op(self, tree: Node, graph: Graph, scope: dict[str, Value]) -> None:
        parts = [child for child in tree.children if child is not None]
        trees: dict[str, Node] = {part.data: part for part in parts if isinstance(part, Tree)}
        tokens: list[Node] = [part for part in parts if isinstance(part, Token)]
        results = [token for token in tokens if token.type == "VALUE"]
        name = next(token for token in tokens if token.type == "NAME")
        types = [self.type(part) for part in parts if isinstance(part, Tree) and part.data == "type"]
        span = self.location(trees.get("location")) or Span(self.file, name.line, name.column)
        operand_tokens = trees["operands"].children if "operands" in trees else []
        values = [self.value(scope, token) for token in operand_tokens if token is not None]
        try:
            opdef = lookup(str(name))
            attrs = self.attrs(opdef, trees)
            if name == "constant":
                symbol = next((token for token in tokens if token.type == "SYMBOL"), None)
                attrs = self.constant(attrs, symbol, types[0], name)
            attrs = opdef.complete(attrs)
            inferred = opdef.result_types([value.type for value in values], attrs)
        except CompileError as error:
            if error.span:
                raise
            raise self.error(error.message, name, error.hint) from None
        if inferred != tuple(types):
            wanted = ", ".join(map(str, inferred))
            raise self.error(f"{name} has type {wanted} here, the text says {', '.join(map(str, types))}", name)
        if len(results) != len(types):
            raise self.error(f"{name} has {len(types)} results, {len(results)} are named", name)
        op = graph.insert(Op(str(name), values, attrs, types, span))
        for token, value in zip(results, op.results, strict=True):
            value.hint = _hint(token)
            self.bind(scope, token, value)

    def attrs(self, opdef: OpDef, trees: dict[str, Node]) -> dict[str, Any]:
        attrs: dict[str, Any] = {}
        for node in trees["attrs"].children if "attrs" in trees else []:
            if node is not None:
                attrs[str(node.children[0])] = _attr_value(node.children[1])
        if "graph" in trees:
            key = next((key for key, attr in opdef.attrs.items() if attr.kind == "graph"), "")
            if not key:
                raise self.error(f"{opdef.name} takes no body", trees["graph"])
            attrs[key] = self.graph(trees["graph"])
        return attrs

    def constant(self, attrs: dict[str, Any], symbol: Token | None, type: TensorType, at: Token) -> dict[str, Any]:
        name = _unquote(symbol) if symbol else ""
        if "value" in attrs:
            items = attrs["value"]
            if len(items) != type.numel:
                raise self.error(f"{len(items)} numbers for {type}, which has {type.numel} elements", at)
            try:
                value = np.array(items, dtype=type.dtype.numpy).reshape(type.shape)
            except (OverflowError, TypeError, ValueError):
                raise self.error(f"a number does not fit {type.dtype}", at) from None
            return {"value": value, "name": name}
        if name not in self.weights:
            raise self.error(
                f"the data of constant @{name} is missing",
                symbol or at,
                "large constants are read from the .safetensors file beside the text; pass weights= to parse()",
            )
        value = self.weights[name]
        if TensorType.of(value) != type:
            raise self.error(f"constant @{name} is {TensorType.of(value)} in the weights", symbol or at)
        return {"value": value, "name": "" if name.startswith("const.") else name}

    def location(self, tree: Node | None) -> Span | None:
        if tree is None:
            return None
        place, module = (json.loads(token) if token is not None else "" for token in tree.children)
        file, _, rest = place.partition(":")
        numbers = [int(part) for part in rest.split(":") if part.isdigit()]
        line, column = [*numbers, 0, 0][:2]
        return Span("" if place == "<unknown>" else file, line, column, module)


def _hint(token: Token) -> str:
    return "" if token[1:].isdigit() else token[1:]


def _unquote(symbol: Token) -> str:
    return json.loads(symbol[1:]) if symbol[1] == '"' else symbol[1:]


def _attr_value(node: Node) -> Any:
    if node.data == "list":
        return tuple(_attr_value(child) for child in node.children if child is not None)
    token = str(node.children[0])
    if node.data == "string":
        return json.loads(token)
    if node.data == "number":
        return int(token) if re.fullmatch(r"-?\d+", token) else float(token)
    words = {"true": True, "false": False, "none": None, "inf": float("inf"), "nan": float("nan")}
    return words.get(token, token)


# Files --------------------------------------------------------------------------------------------


def write_ir(graph: Graph, path: str | Path, *, spans: bool = True) -> None:
    """Write `path` and, where there are large constants, `path` with the suffix `.safetensors`."""
    path = Path(path)
    path.write_text(print_graph(graph, spans=spans))
    data = {name: _storable(array) for name, array in weights(graph).items()}
    if data:
        save_file(data, path.with_suffix(".safetensors"))


def read_ir(path: str | Path) -> Graph:
    """Read what `write_ir` wrote. Raises `CompileError` on a missing or malformed file."""
    path = Path(path)
    beside = path.with_suffix(".safetensors")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CompileError(f"cannot read {path}: {error}") from None
    try:
        arrays = load_file(beside) if beside.exists() else {}
    except (OSError, SafetensorError) as error:
        raise CompileError(f"cannot read {beside}: {error}") from None
    return parse(text, {name: _restored(name, array) for name, array in arrays.items()}, file=str(path))


def _storable(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.view(np.uint16) if array.dtype == DType.BF16.numpy else array)


def _restored(name: str, array: np.ndarray) -> np.ndarray:
    return array.view(DType.BF16.numpy) if array.dtype == np.uint16 else array
