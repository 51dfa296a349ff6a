"""What a pass is, and how passes are found.

A pass is a frozen dataclass in a file of its own; the file's name is the pass's name everywhere,
and its fields are its options. Found are the files beside this one, the entry points of the group
`secateur.passes` of installed packages (each a module, named as the pass), and files given to
`load_pass`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
import traceback
import typing
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from secateur.ir.diagnostics import CompileError, Span, nearest
from secateur.ir.graph import Graph
from secateur.ir.rewrite import RewriteStats, apply_rules
from secateur.ir.rules import load_rules

NOT_PASSES = {"base", "manager", "pipelines"}
GROUP = "secateur.passes"
KINDS = (bool, int, float, str, tuple)  # of options
_loaded: dict[str, type[Pass]] = {}  # what `load_pass` has brought in


@dataclass(frozen=True)
class Pass:
    """Base of all passes.

    Attributes:
        exact: results keep every bit. A pass that is not exact states its relative tolerance.
        tolerance: the largest relative error (norm of the difference over norm) it may cause.
    """

    exact: ClassVar[bool] = True
    tolerance: ClassVar[float] = 0.0

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    def run(self, graph: Graph) -> RewriteStats | None:
        """Change the graph in place. A pass built on rules returns their statistics."""
        raise NotImplementedError

    def __str__(self) -> str:
        options = [
            f"{field.name}={_option_text(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{self.name}{{{','.join(options)}}}" if options else self.name


def all_passes() -> dict[str, type[Pass]]:
    """Every pass by name: built in, of installed packages, and loaded from files."""
    return {**_built_in(), **_installed(), **_loaded}


@cache
def _built_in() -> dict[str, type[Pass]]:
    import secateur.passes as package

    names = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg and m.name not in NOT_PASSES]
    return {name: pass_of(importlib.import_module(f"{package.__name__}.{name}")) for name in names}


@cache
def _installed() -> dict[str, type[Pass]]:
    """The passes that installed packages bring. One that cannot be had is a warning: the others still work."""
    found: dict[str, type[Pass]] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            item = pass_of(entry.load())
        except Exception as error:  # somebody else's code: anything may happen
            warnings.warn(f"pass {entry.name!r} of an installed package cannot be used: {error}", stacklevel=2)
            continue
        name = item.__module__.rpartition(".")[2]
        if name in _built_in():
            warnings.warn(f"pass {name!r} of an installed package is not used: there is one built in", stacklevel=2)
        else:
            found[name] = item
    return found


def load_pass(path: str | Path) -> type[Pass]:
    """Make the pass that a file holds known under the file's name: Python code, or a `.rules` file.

    A file that is loaded again replaces what it brought before.

    Raises:
        CompileError: there is no such file, it fails, it does not hold one pass, or the name is taken.
    """
    path = Path(path)
    name = path.stem
    if path.suffix not in (".py", ".rules"):
        raise CompileError(f"cannot load {path}: it is neither a .py nor a .rules file")
    if not path.is_file():
        raise CompileError(f"cannot load {path}: there is no such file")
    if name in _built_in() or name in _installed() or not name.isidentifier():
        reason = "is taken" if name.isidentifier() else "is not a name"
        raise CompileError(f"cannot load {path}: the file's name is the pass's name, and {name!r} {reason}")
    _loaded[name] = _pass_of_rules(path) if path.suffix == ".rules" else pass_of(_module(path))
    return _loaded[name]


def _pass_of_rules(path: Path) -> type[Pass]:
    """A pass that applies the rules of a file until none fires."""
    rules = load_rules(path)

    def run(self: Pass, graph: Graph) -> RewriteStats:
        return apply_rules(graph, rules)

    tolerance = max((rule.tolerance for rule in rules), default=0.0)
    doc = "\n\n    ".join([f"The rules of {path.name}.", *(f"{rule.name}: {rule.doc}" for rule in rules)])
    fields = {"__doc__": doc, "exact": not tolerance, "tolerance": tolerance, "run": run}
    return dataclass(frozen=True)(type("Rules", (Pass,), {**fields, "__module__": f"secateur_loaded.{path.stem}"}))


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"secateur_loaded.{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise CompileError(f"cannot load {path}: {_reason(error)}", span=_place(error, path)) from error
    return module


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, SyntaxError) else f"{type(error).__name__}: {error}"


def _place(error: Exception, path: Path) -> Span:
    """The line of the file that an exception came from."""
    if isinstance(error, SyntaxError):
        return Span(str(path), error.lineno or 0)
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path.absolute())]
    return Span(str(path), (lines[-1:] or [0])[0] or 0)


def pass_of(module: ModuleType) -> type[Pass]:
    """The one pass that a module defines. Raises `CompileError` where that is not so, or it is not written as one."""
    place = Span(module.__file__ or module.__name__)
    own = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Pass) and item.__module__ == module.__name__
    ]
    if len(own) != 1:
        names = ", ".join(item.__name__ for item in own) or "none"
        raise CompileError(f"a pass's file defines exactly one subclass of Pass, this one: {names}", span=place)
    item = own[0]
    if "__dataclass_fields__" not in vars(item):
        raise CompileError(f"{item.__name__} is not a dataclass", span=place, hint="put @dataclass(frozen=True) on it")
    for field in dataclasses.fields(item):
        if field.default_factory is not dataclasses.MISSING:
            raise CompileError(
                f"{item.__name__}: option {field.name!r} has a default_factory, and must have a plain default",
                span=place,
                hint="a tuple can stand for a list",
            )
        if field.default is dataclasses.MISSING:
            raise CompileError(f"{item.__name__}: option {field.name!r} has no default", span=place)
    if "run" not in vars(item):
        raise CompileError(f"{item.__name__} has no method run(self, graph)", span=place)
    return item


def make_pass(text: str) -> Pass:
    """`fold` or `fold{limit=1000}` -> the pass; a list is written `decompose{keep=softmax+gelu}`.

    Raises:
        CompileError: unknown pass or option (with the nearest one), or a value of the wrong kind.
    """
    name, brace, rest = text.strip().partition("{")
    known = all_passes()
    if name not in known:
        raise CompileError(f"unknown pass {name!r}", hint=nearest(name, known) or "see `secateur passes`")
    if brace and not rest.endswith("}"):
        raise CompileError(f"{text!r}: options are written as {name}{{option=value,...}}")
    fields = {field.name: field for field in dataclasses.fields(known[name])}
    options: dict[str, Any] = {}
    for item in filter(None, rest.removesuffix("}").split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in fields:
            raise CompileError(f"pass {name!r} has no option {key!r}", hint=nearest(key, fields))
        options[key] = _convert(known[name], name, key, value if equals else "true")
    return known[name](**options)


def _option_text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _convert(cls: type[Pass], name: str, key: str, text: str) -> Any:
    """An option's text as the type of its default; an empty tuple's elements are strings."""
    default: Any = next(field.default for field in dataclasses.fields(cls) if field.name == key)
    kind = _kind_behind_none(cls, key) if default is None else type(default)
    if default is None and text.lower() == "none":
        return None
    if kind not in KINDS:
        raise CompileError(
            f"pass {name!r}: option {key!r} cannot be given as text",
            hint="an option's type is bool, int, float, str or tuple, or one of them or None: int | None",
        )
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is tuple:
            element = type(default[0]) if default else str
            return tuple(element(item) for item in text.split("+") if item)
        return kind(text)
    except (KeyError, ValueError):
        raise CompileError(f"pass {name!r}: option {key!r} must be {kind.__name__}, got {text!r}") from None


def _kind_behind_none(cls: type[Pass], key: str) -> Any:
    """`int` of an option written `int | None = None`; None where the annotation is anything else."""
    try:
        hint = typing.get_type_hints(cls)[key]
    except NameError:  # it is written with a name that exists for type checkers only
        return None
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return typing.get_origin(kinds[0]) or kinds[0] if len(kinds) == 1 else None
