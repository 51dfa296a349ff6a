"""What the project's little languages share: grammars beside the code, and syntax errors that point at the place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lark import Lark
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken

from secateur.ir.diagnostics import CompileError, Span


def load_grammar(name: str, start: str | list[str] = "start") -> Lark:
    """The grammar `ir/<name>`."""
    text = (Path(__file__).parent / name).read_text()
    return Lark(text, parser="lalr", start=start, propagate_positions=True, maybe_placeholders=True)


def parse_text(grammar: Lark, text: str, file: str, words: Mapping[str, str], start: str | None = None) -> Any:
    """The syntax tree of a text.

    Args:
        words: how error messages name a terminal of the grammar.

    Raises:
        CompileError: with line, column, a caret and what was expected.
    """
    try:
        return grammar.parse(text, start=start)
    except UnexpectedInput as error:
        raise _syntax_error(error, grammar, text, file, words) from None


def _syntax_error(
    error: UnexpectedInput, grammar: Lark, text: str, file: str, words: Mapping[str, str]
) -> CompileError:
    at_end = isinstance(error, UnexpectedEOF) or (isinstance(error, UnexpectedToken) and error.token.type == "$END")
    if isinstance(error, UnexpectedToken) and not at_end:
        found, expected = f"unexpected {str(error.token)!r}", error.expected
    elif isinstance(error, UnexpectedCharacters):
        found, expected = f"unexpected {text[error.pos_in_stream or 0]!r}", error.allowed
    else:
        found, expected = "the text ends too early", getattr(error, "expected", set())
    lines = text.splitlines() or [""]
    line, column = (len(lines), len(lines[-1]) + 1) if at_end else (error.line, error.column)
    known = {t.name: t.pattern.value for t in grammar.terminals}
    wanted = sorted({words.get(name, repr(known.get(name, name).replace("\\", ""))) for name in expected or ()})
    hint = f"expected {' or '.join(wanted)}" if 0 < len(wanted) <= 8 else ""
    return CompileError(found, span=Span(file or "<text>", line, column), source=text, hint=hint)
