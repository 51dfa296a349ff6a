"""Source spans and the one error type that users see."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Where something comes from: a file position, a module path of the source model, or both.

    `line` and `column` count from 1; 0 means unknown.
    """

    file: str = ""
    line: int = 0
    column: int = 0
    module: str = ""

    def __str__(self) -> str:
        place = self.file
        if self.line:
            place += f":{self.line}"
            if self.column:
                place += f":{self.column}"
        if self.module:
            return f"{self.module} ({place})" if place else self.module
        return place or "<unknown>"


class CompileError(Exception):
    """What went wrong, where, and what would help.

    Every failure that a user can cause is one of these. The command line prints it as it is and
    exits non-zero; a traceback appears only with `--debug`.

    Args:
        message: what is wrong, one sentence.
        span: where.
        source: the text that `span` points into; the offending line is shown with a caret.
        hint: what would help.
    """

    def __init__(self, message: str, *, span: Span | None = None, source: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.span = span
        self.source = source
        self.hint = hint

    def __str__(self) -> str:
        parts = [f"{self.span}: {self.message}" if self.span else self.message]
        parts += self._excerpt()
        if self.hint:
            parts.append(f"hint: {self.hint}")
        return "\n".join(parts)

    def _excerpt(self) -> list[str]:
        lines = self.source.splitlines()
        if not self.span or not 0 < self.span.line <= len(lines):
            return []
        text = lines[self.span.line - 1]
        start = max(0, self.span.column - 60)
        shown = text[start : start + 120]
        caret = " " * (self.span.column - 1 - start) + "^"
        return [f"  {shown}", f"  {caret}"] if self.span.column else [f"  {shown}"]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the closest known name, or the empty string: `did you mean 'fold'?`."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""
