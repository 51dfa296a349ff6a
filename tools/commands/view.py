"""secateur view: a model as a picture, or as a page to explore."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import graphviz

from secateur.backends.artifact import MANIFEST
from secateur.ir.diagnostics import CompileError, nearest
from secateur.passes.manager import optimize, resolve
from secateur.tools.commands.opt import add_pass_options, chosen_passes
from secateur.tools.console import Ui, size
from secateur.tools.models import MODEL_HELP, is_python, open_graph
from secateur.tools.picture import draw
from secateur.tools.viewer.errors import Errors, errors_of

HELP = "show a model or an artefact: one HTML file to explore (what each pass did, code, memory), or a picture"
EXAMPLE = (
    "secateur view model.onnx -o model.html\nsecateur view build/model -o model.html --profile profile.json\n"
    "secateur view model-int8.ir -o model.html --errors model-int8.report.json"
)

PAGE = "html"
PICTURES = ("svg", "png", "pdf", "dot")
FORMATS = (PAGE, *PICTURES)
NO_BINARY = (
    "no picture was drawn, because the program `dot` of Graphviz is not installed; get it with your package manager "
    "(apt install graphviz, brew install graphviz, ...) and run: dot -T{format} {source} -o {picture}"
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=f"a compiled artefact's folder, or {MODEL_HELP}")
    add_pass_options(parser)
    parser.set_defaults(pipeline=None)
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="what to write: .html, or .svg, .png, .pdf, .dot"
    )
    parser.add_argument(
        "--profile", metavar="FILE.json", help="colour an artefact by time: what `secateur profile -o` wrote"
    )
    parser.add_argument(
        "--errors",
        metavar="FILE.json",
        help="colour a model by the error of quantisation: the report that `secateur quantize` wrote (an artefact "
        "that was compiled with --quantize knows its own)",
    )


def run(args: argparse.Namespace, ui: Ui) -> None:
    path = Path(args.output)
    format = path.suffix.lstrip(".").lower()
    if format not in FORMATS:
        hint = nearest(format, FORMATS) or f"one of {', '.join('.' + name for name in FORMATS)}"
        raise CompileError(f"cannot draw {path.name}: the name must end in a kind of picture", hint=hint)
    artifact = (Path(args.model) / MANIFEST).is_file()
    if artifact and format != PAGE:
        raise CompileError(f"{args.model} is an artefact, which is shown as .html only", hint="view the model instead")
    if args.profile and not artifact:
        raise CompileError("--profile goes with an artefact, because its rows are the artefact's steps")
    if args.errors and (artifact or format != PAGE):
        raise CompileError("--errors goes with a page of a model; an artefact knows its own")
    args.pipeline = args.pipeline or ("default,cpu" if format == PAGE else "none")
    if format == PAGE:
        _page(args, ui, path, artifact)
    else:
        _picture(args, ui, path)


def _page(args: argparse.Namespace, ui: Ui, path: Path, artifact: bool) -> None:
    from secateur.tools.viewer.compiled import tell_artifact
    from secateur.tools.viewer.page import page
    from secateur.tools.viewer.story import tell

    if artifact:
        with ui.stage(f"reading {args.model}"):
            story = tell_artifact(Path(args.model), _read_profile(args.profile) if args.profile else None)
    else:
        errors = _read_errors(args.errors) if args.errors else {}
        graph = open_graph(args.model, ui)
        with ui.stage("running passes"):
            passes = [item for name in chosen_passes(args) for item in resolve([name])]
            story = tell(graph, passes, _title(graph.name, args.model), errors)
    try:
        path.write_text(page(story.data()), encoding="utf-8")
    except OSError as error:
        raise CompileError(f"cannot write {path}: {error.strerror or error}") from None
    last = story.stages[-1]
    passed = len(story.stages) - 1
    ui.report(
        {"file": str(path), "bytes": path.stat().st_size, "ops": last["ops"], "passes": passed},
        f"wrote {path}, {size(path.stat().st_size)}: {last['ops']} operations"
        + (f" after {passed} passes" if passed else "")
        + "; open it in a browser",
    )


def _title(name: str, model: str) -> str:
    """The file's name where there is one: graphs in files are seldom named for people."""
    return Path(model).name if Path(model).suffix and not is_python(model) else name


def _read_profile(path: str) -> dict[str, Any]:
    """What `secateur profile -o` wrote; raises `CompileError` where it is something else."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        for row in data["rows"]:
            int(row["step"]), float(row["seconds"])
    except OSError as error:
        raise CompileError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CompileError(f"{path} is not a profile: {error}", hint="write one with `secateur profile -o`") from None
    return dict(data)


def _read_errors(path: str) -> Errors:
    """What `secateur quantize` reported; raises `CompileError` where it is something else."""
    try:
        return errors_of(json.loads(Path(path).read_text(encoding="utf-8"))["ops"])
    except OSError as error:
        raise CompileError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        hint = "`secateur quantize -o` writes one"
        raise CompileError(f"{path} is not a report of quantisation: {reason}", hint=hint) from None


def _picture(args: argparse.Namespace, ui: Ui, path: Path) -> None:
    graph = open_graph(args.model, ui)
    with ui.stage("running passes"):
        graph = optimize(graph, chosen_passes(args))
    with ui.stage(f"drawing {len(graph)} operations"):
        written = render(draw(graph), path)
    if written != path:
        format = path.suffix.lstrip(".").lower()
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
