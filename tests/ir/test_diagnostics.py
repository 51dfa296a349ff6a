"""Spans and the error that users see."""

from __future__ import annotations

import pytest

from secateur.ir.diagnostics import CompileError, Span, nearest


@pytest.mark.parametrize(
    ("span", "shown"),
    [
        (Span("a.ir", 2, 5), "a.ir:2:5"),
        (Span("a.ir", 2), "a.ir:2"),
        (Span("a.ir"), "a.ir"),
        (Span(module="layer.0"), "layer.0"),
        (Span("net.py", 9, module="layer.0"), "layer.0 (net.py:9)"),
        (Span(), "<unknown>"),
    ],
)
def test_span_text(span: Span, shown: str) -> None:
    assert str(span) == shown


def test_message_place_excerpt_hint() -> None:
    error = CompileError("no such op", span=Span("a.ir", 2, 3), source="one\ntwo three\n", hint="try harder")
    assert str(error) == "a.ir:2:3: no such op\n  two three\n    ^\nhint: try harder"


def test_message_alone() -> None:
    assert str(CompileError("it broke")) == "it broke"
    assert str(CompileError("it broke", span=Span("a.ir", 99, 1), source="short")) == "a.ir:99:1: it broke"


def test_long_lines_are_cut_around_the_place() -> None:
    line = "x" * 500 + "!" + "y" * 500
    excerpt = str(CompileError("here", span=Span("a", 1, 501), source=line)).splitlines()
    assert len(excerpt[1]) <= 130 and excerpt[1][excerpt[2].index("^")] == "!"


def test_nearest() -> None:
    assert nearest("fodl", ["fold", "fuse"]) == "did you mean 'fold'?"
    assert nearest("zzz", ["fold", "fuse"]) == ""
