"""secateur view: a picture of a model."""

from __future__ import annotations

import argparse
from pathlib import Path

import graphviz

from secateur.ir.diagnostics import CompileError, nearest
from secateur.passes.manager import optimize
from secateur.tools.commands.opt import add_pass_options, chosen_passes
from secateur.tools.console import Ui
from secateur.tools.models import MODEL_HELP, open_graph
from secateur.tools.picture import draw

HELP = "draw a model: fusions as boxes, operations coloured by family, shapes on the edges"
EXAMPLE = "secateur view model.onnx --pipeline default,cpu -o model.svg"

FORMATS = ("svg", "png", "pdf", "dot")
NO_BINARY = (
    "no picture was drawn, because the program `dot` of Graphviz is not installed; get it with your package manager "
    "(apt install graphviz, brew install graphviz, ...) and run: dot -T{format} {source} -o {picture}"
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    add_pass_options(parser)
    parser.set_defaults(pipeline="none")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="what to write: .svg, .png, .pdf or .dot")


def run(args: argparse.Namespace, ui: Ui) -> None:
    path = Path(args.output)
    format = path.suffix.lstrip(".").lower()
    if format not in FORMATS:
        hint = nearest(format, FORMATS) or f"one of {', '.join('.' + name for name in FORMATS)}"
        raise CompileError(f"cannot draw {path.name}: the name must end in a kind of picture", hint=hint)
    graph = open_graph(args.model, ui)
    with ui.stage("running passes"):
        graph = optimize(graph, chosen_passes(args))
    with ui.stage(f"drawing {len(graph)} operations"):
        written = render(draw(graph), path)
    if written != path:
        ui.note(NO_BINARY.format(format=format, source=written, picture=path))
    ui.report({"file": str(written), "ops": len(graph), "drawn": written == path}, f"wrote {written}")


def render(picture: graphviz.Digraph, path: Path) -> Path:
    """Write a picture; where Graphviz is missing, its DOT source instead. Returns the file that was written.

    Raises:
        CompileError: the file cannot be written, or Graphviz failed.
    """
    source = path.with_suffix(".dot")
    try:
        if path.suffix.lower() == ".dot":
            path.write_text(picture.source)
            return path
        data = picture.pipe(format=path.suffix.lstrip(".").lower())
        path.write_bytes(data)
    except graphviz.ExecutableNotFound:
        source.write_text(picture.source)
        return source
    except graphviz.CalledProcessError as error:
        raise CompileError(f"Graphviz failed: {error}") from None
    except OSError as error:
        raise CompileError(f"cannot write {path}: {error.strerror or error}") from None
    return path
