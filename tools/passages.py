"""Real text to search: the docstrings of Python's standard library, read from its source files without running them."""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODULES = """
    argparse ast base64 bisect calendar cmd collections colorsys configparser contextlib copy csv dataclasses datetime
    decimal difflib email.message enum fileinput fnmatch fractions ftplib functools getpass gettext glob gzip hashlib
    heapq hmac html http.client http.cookies imaplib inspect ipaddress json linecache locale logging mailbox mimetypes
    netrc optparse os pathlib pickle pkgutil platform plistlib pprint queue random sched secrets selectors shelve shlex
    shutil smtplib socket socketserver sqlite3.dump ssl statistics string subprocess tarfile tempfile textwrap threading
    timeit tokenize traceback types typing urllib.parse urllib.request uuid warnings wave weakref webbrowser zipfile
"""
SHORTEST, LONGEST = 40, 600


@dataclass(frozen=True)
class Passage:
    """A piece of documentation: whose it is, and its text."""

    name: str
    text: str

    @property
    def first_line(self) -> str:
        return self.text.partition(". ")[0].strip()


def standard_library(per_module: int) -> list[Passage]:
    """Up to `per_module` documented names of each module: functions and classes first, then methods."""
    found = []
    for module in MODULES.split():
        path = _source_of(module)
        if path:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += sorted(_documented(tree, module), key=lambda passage: passage.name.count("."))[:per_module]
    return found


def _source_of(module: str) -> Path | None:
    """A module's source file, or None where this Python does not have it."""
    base = Path(sysconfig.get_paths()["stdlib"], *module.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _documented(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[Passage]:
    for child in node.body:
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or child.name.startswith("_"):
            continue
        name = f"{prefix}.{child.name}"
        text = _paragraphs(ast.get_docstring(child) or "")
        if len(text) >= SHORTEST:
            yield Passage(name, text)
        if isinstance(child, ast.ClassDef):
            yield from _documented(child, name)


def _paragraphs(docstring: str) -> str:
    """The prose at the start of a docstring on one line, without doctest examples, of bounded length."""
    prose = inspect.cleandoc(docstring).partition(">>>")[0]
    return re.sub(r"\s+", " ", prose).strip()[:LONGEST]
