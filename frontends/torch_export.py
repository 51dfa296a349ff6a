"""PyTorch models by `torch.export`: the main door.

The exported program is made functional (no in-place operations, no aliases) with every operation
that has a row in `aten/` kept whole. What has no row is decomposed by PyTorch's own table, if it
can be; what is left is reported in one error.
"""

from __future__ import annotations

import operator
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from secateur.frontends.aten.base import DTYPES, Context, Unsupported, array_of, rows, tensor_type
from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError, Span
from secateur.ir.graph import Graph, Value
from secateur.ir.types import DType, TensorType

_DECOMPOSITION_ROUNDS = 4
_PLACES_SHOWN = 3


def import_exported(program: ExportedProgram, name: str = "main") -> Graph:
    """An exported program as a graph.

    Inputs are the program's tensor inputs in order; outputs its tensors, flattened, without None.
    Parameters and buffers become constants under their qualified names, sharing memory.

    Raises:
        CompileError: operations that are not supported (all of them, with counts and source
            places), dynamic shapes, or a program that changes its buffers or inputs.
    """
    return _Importer(_decomposed(program), name).run()


def import_module(module: torch.nn.Module, example_inputs: Any, name: str = "") -> Graph:
    """Export a module in evaluation mode and import it.

    Args:
        example_inputs: positional arguments, or the only one; their shapes are fixed in the graph.

    Raises:
        CompileError: as `import_exported`, and when PyTorch cannot export the module.
    """
    return import_exported(export_module(module, example_inputs), name or type(module).__name__)


def export_module(module: torch.nn.Module, example_inputs: Any) -> ExportedProgram:
    """`torch.export.export` with the module in evaluation mode; its own mode is restored."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(module, _as_tuple(example_inputs))
    except Exception as error:  # torch.export raises a dozen unrelated types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CompileError(
            f"PyTorch cannot export {type(module).__name__}: {reason[0]}",
            hint="call torch.export.export(model, inputs) yourself to see the whole story",
        ) from error
    finally:
        for child, training in modes.items():
            child.training = training


def load_exported(path: str | Path) -> ExportedProgram:
    """Read a `.pt2` file. Raises `CompileError` where there is none or PyTorch cannot read it."""
    if not Path(path).is_file():
        raise CompileError(f"no such file: {path}")
    rows()  # which registers operations that come with PyTorch, but not by themselves: those of quantised programs
    try:
        with _quiet():
            return torch.export.load(str(path))
    except Exception as error:  # a damaged archive surfaces as almost anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CompileError(f"{path} is not a torch.export archive: {reason[0]}") from error


def _as_tuple(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporting warns about PyTorch's own internals; none of it is for our users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Decomposition ------------------------------------------------------------------------------------


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """Functional form; operations without a row are decomposed for as long as PyTorch knows how."""
    with _quiet():
        result: ExportedProgram = program.run_decompositions({})
        table: dict[Any, Any] | None = None
        for _ in range(_DECOMPOSITION_ROUNDS):
            missing = {node.target for node in _calls(result) if not _has_row(node)}
            if not missing:
                break
            if table is None:
                table = dict(torch.export.default_decompositions().items())  # type: ignore[no-untyped-call]
            chosen = {target: table[target] for target in missing if target in table}
            if not chosen:
                break
            try:
                result = result.run_decompositions(chosen)
            except Exception:  # a decomposition that PyTorch itself cannot trace: reported as unsupported
                break
    return result


def _calls(program: ExportedProgram) -> list[torch.fx.Node]:
    return [node for node in program.graph.nodes if node.op == "call_function"]


def _key(node: torch.fx.Node) -> str:
    """`add.Tensor` for `aten.add.Tensor`; other targets keep their whole name."""
    return str(node.target).removeprefix("aten.")


def _has_row(node: torch.fx.Node) -> bool:
    return _key(node) in rows() or _is_ignored(node) or node.target is operator.getitem


def _is_ignored(node: torch.fx.Node) -> bool:
    """Checks made at run time, which a static graph has already passed, and arithmetic on sizes."""
    if _key(node) in rows():
        return False
    numbers = (bool, int, float, torch.SymInt, torch.SymFloat, torch.SymBool)
    words = f"{_key(node)} {node.args[1]}" if _key(node) == "with_effects" else _key(node)
    is_check = any(word in words for word in ("_assert", "sym_constrain", "check_errors"))
    return is_check or isinstance(node.meta.get("val"), numbers)


# Import -------------------------------------------------------------------------------------------


class _Importer:
    def __init__(self, program: ExportedProgram, name: str) -> None:
        self.program = program
        self.builder = Builder(Graph(name))
        self.values: dict[torch.fx.Node, Any] = {}
        self.problems: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}

    def run(self) -> Graph:
        self.inputs()
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                self.call(node)
        self.report()
        return self.outputs()

    def inputs(self) -> None:
        """Graph inputs for the user's tensors, constants for parameters, buffers and lifted tensors."""
        nodes = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(nodes, self.program.graph_signature.input_specs, strict=True):
            value = node.meta.get("val")
            if spec.kind is InputKind.USER_INPUT:
                self.values[node] = self.input(node, value)
            elif isinstance(value, torch.Tensor) and node.users and spec.target:
                self.values[node] = self.constant(spec.target)

    def input(self, node: torch.fx.Node, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        try:
            return self.builder.into.add_input(tensor_type(value), node.name)
        except Unsupported as reason:
            hint = "export without dynamic_shapes: sizes are fixed at compile time" if "dynamic" in str(reason) else ""
            raise CompileError(f"input {node.name!r} has {reason}", hint=hint) from None

    def constant(self, target: str) -> Value:
        found = self.program.state_dict.get(target)
        tensor = self.program.constants[target] if found is None else found
        try:
            tensor_type(tensor)
        except Unsupported as reason:
            raise CompileError(f"parameter {target!r} has {reason}") from None
        self.builder.span = Span(module=target.rpartition(".")[0] or target)
        return self.builder.constant(array_of(tensor), name=target)

    def call(self, node: torch.fx.Node) -> None:
        value = node.meta.get("val")
        if node.target is operator.getitem:
            source, index = node.args
            self.values[node] = self.values[source][index]  # type: ignore[index]
        elif _is_ignored(node):
            self.values[node] = value
        else:
            try:
                self.values[node] = self.convert(node, value)
            except Unsupported as reason:
                self.problem(node, str(reason))
                self.values[node] = _stand_in(value)
            except CompileError:
                if not self.problems:  # else it only follows from a stand-in
                    raise
                self.values[node] = _stand_in(value)

    def convert(self, node: torch.fx.Node, out: Any) -> Any:
        key = _key(node)
        if key not in rows():
            raise Unsupported("")
        self.builder.span = span_of(node)
        context = Context(self.builder, key, out)
        args = torch.fx.map_arg(_in_schema_order(node), lambda n: self.values[n])
        result = rows()[key](context, *args)
        self.check(node, result, out)
        return result

    def check(self, node: torch.fx.Node, result: Any, out: Any) -> None:
        """Every row must give the types that PyTorch gives; a row that does not is our mistake, not the user's."""
        many = isinstance(out, (tuple, list))
        for made, wanted in zip(result if many else [result], out if many else [out], strict=True):
            if isinstance(made, Value) and isinstance(wanted, torch.Tensor) and made.type != tensor_type(wanted):
                raise CompileError(
                    f"{node.target} was imported as {made.type}, PyTorch says {tensor_type(wanted)}",
                    span=self.builder.span,
                    hint="this is a mistake in the importer; please report it",
                )

    def problem(self, node: torch.fx.Node, reason: str) -> None:
        line = f"{node.target} ({reason})" if reason else str(node.target)
        self.problems[line] += 1
        places = self.places.setdefault(line, [])
        place = str(span_of(node) or node.name)
        if len(places) < _PLACES_SHOWN and place not in places:
            places.append(place)

    def report(self) -> None:
        if not self.problems:
            return
        lines = [f"the model uses {_count(len(self.problems), 'unsupported operation')}:"]
        for line, count in self.problems.most_common():
            lines.append(f"  {line}: {_count(count, 'use')}, at {'; '.join(self.places[line])}")
        raise CompileError("\n".join(lines), hint="a row in frontends/aten/ adds one; docs/add_an_op.md shows how")

    def outputs(self) -> Graph:
        """The user's outputs; changes to buffers that batch norms count with are dropped, others refused."""
        (returned,) = self.program.graph.output_node().args
        graph, values = self.builder.into, []
        for node, spec in zip(returned, self.program.graph_signature.output_specs, strict=True):
            if spec.kind is OutputKind.USER_OUTPUT:
                value = self.values[node] if isinstance(node, torch.fx.Node) else node
                if isinstance(value, Value):
                    values.append(value)
            elif spec.kind is not OutputKind.TOKEN and not str(spec.target).endswith("num_batches_tracked"):
                raise CompileError(
                    f"the model changes {spec.target!r} while it runs",
                    hint="compile a version that takes and returns its state instead",
                )
        if not values:
            raise CompileError("the model returns no tensor")
        graph.outputs = values
        return graph


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _in_schema_order(node: torch.fx.Node) -> Any:
    """Every argument of the overload's schema, by position, with defaults filled in."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in arguments), node.args))
    given.update(node.kwargs)
    return tuple(given.get(argument.name, argument.default_value) for argument in arguments)


def _stand_in(out: Any) -> Any:
    """Values of the right types, so that the rest of the graph can still be checked for support."""
    if isinstance(out, (tuple, list)):
        return [_stand_in(item) for item in out]
    if not isinstance(out, torch.Tensor):
        return out
    shape = tuple(size if isinstance(size, int) else 1 for size in out.shape)
    return Value(TensorType(DTYPES.get(out.dtype, DType.F32), shape))


# Source places ------------------------------------------------------------------------------------

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = str(Path(torch.__file__).parent)


def span_of(node: torch.fx.Node) -> Span | None:
    """The innermost line outside PyTorch that led to the node, and the path of the module it is in."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    outside = [frame for frame in frames if not frame[0].startswith(_TORCH)] or frames
    file, line = outside[-1] if outside else ("", "0")
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    module = list(stack.values())[-1][0] if stack else ""
    return Span(_short(file), int(line), 0, module) if file or module else None


def _short(file: str) -> str:
    """Installed packages by their own name, files below the working directory relative to it."""
    _, found, inside = file.rpartition("site-packages/")
    if found:
        return inside
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except ValueError:
        return file
