"""The `secateur` command: finds its subcommands, and turns errors into one clear message and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from secateur import __version__
from secateur.ir.diagnostics import CompileError, nearest
from secateur.tools.console import Ui


class Parser(argparse.ArgumentParser):
    """Usage errors are one line, with the nearest name where one was misspelt."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\nsee {self.prog} --help\n")


def commands() -> dict[str, ModuleType]:
    """Every subcommand's module by name: the file's, with dashes."""
    import secateur.tools.commands as package

    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return {name.replace("_", "-"): importlib.import_module(f"{package.__name__}.{name}") for name in names}


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The whole command line, and each subcommand's parser by name."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="secateur",
        description="An ahead-of-time compiler for neural networks: a model in, native code out.",
        epilog="example:\n  secateur compile model.onnx -o build/model && secateur run build/model --random 0",
        formatter_class=shape,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"secateur {__version__}")
    children = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    made: dict[str, Parser] = {}
    for name, module in commands().items():
        example = "\n".join(f"  {line}" for line in module.EXAMPLE.splitlines())
        child = children.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=f"example:\n{example}",
            formatter_class=shape,
            allow_abbrev=False,
        )
        module.configure(child)
        child.add_argument("--json", action="store_true", help="print the report as JSON")
        child.add_argument("--debug", action="store_true", help="show a traceback when something fails")
        child.set_defaults(run=module.run)
        made[name] = child
    return parser, made


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments as a namespace; leaves with code 2, naming the nearest command or option, where they are wrong."""
    parser, children = build_parser()
    command = next((word for word in argv if not word.startswith("-")), "")
    if command and command not in children and argv[0] == command:
        parser.error(_with_hint(f"unknown command {command!r}", nearest(command, children)))
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        child = children[args.command]
        options = [option for action in child._actions for option in action.option_strings]
        word = unknown[0].partition("=")[0]
        what = "option" if word.startswith("-") else "argument"
        child.error(_with_hint(f"unknown {what} {word!r}", nearest(word, options)))
    return args


def _with_hint(message: str, hint: str) -> str:
    return f"{message}; {hint}" if hint else message


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (by default the process's own) and return the exit code."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    ui = Ui(args.json)
    try:
        args.run(args, ui)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has left; without this Python would complain while shutting down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.debug:
            raise
        sys.stderr.write(_failure(error) + "\n")
        return 1
    return 0


def _failure(error: Exception) -> str:
    """What a user reads of an error: `CompileError` speaks for itself, and so do errors of the file system."""
    if isinstance(error, CompileError):
        return f"error: {error}"
    if isinstance(error, OSError) and error.filename:
        return f"error: {error.filename}: {error.strerror or error}"
    first = (str(error).splitlines() or [""])[0]
    return f"internal error: {type(error).__name__}: {first}\nhint: --debug shows where it happened"


if __name__ == "__main__":
    sys.exit(main())
