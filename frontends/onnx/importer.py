"""Walks an ONNX graph and builds ours. What each op becomes is in the table, one row an op."""

from __future__ import annotations

import importlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.frontends.onnx.fold import FoldingBuilder, drop_dead
from secateur.frontends.onnx.load import check_size, element_type, load_model, tensor_array
from secateur.frontends.onnx.node import TABLE, Item, Node
from secateur.frontends.onnx.protobuf import onnx_module
from secateur.frontends.onnx.scope import Scope, alias, attribute_value, fits
from secateur.ir.diagnostics import CompileError, Span
from secateur.ir.graph import Graph, Value
from secateur.ir.types import TensorType
from secateur.ir.verify import verify

FAMILIES = (
    "activations",
    "attention",
    "control",
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "movement",
    "normalize",
    "pooling",
    "quantized",
    "recurrent",
    "reduction",
    "resize",
    "sequences",
    "shapes",
)
MAX_NODES = 1_000_000  # after functions are expanded and loops unrolled
MAX_DEPTH = 64

InputShapes = Mapping[str, Sequence[int] | int]


def import_onnx(source: str | os.PathLike[str] | Any, input_shapes: InputShapes | None = None) -> Graph:
    """Import an ONNX model, opset 7 or newer.

    Args:
        source: the path of an `.onnx` file, or an `onnx.ModelProto`.
        input_shapes: shapes for inputs with symbolic dimensions, by input name (a tuple), or sizes by the
            dimension's own name (an int).

    Raises:
        CompileError: no model, a broken one, unsupported ops (all of them in one message), shapes that are
            not known, unsafe external data.
    """
    for family in FAMILIES:
        importlib.import_module(f"secateur.frontends.onnx.{family}")
    model, path = load_model(source)
    importer = Importer(model, path, input_shapes or {})
    try:
        graph = importer.run()
    except CompileError:
        raise
    except Exception as error:  # damaged protobufs hold what no check foresees, e.g. names that are not UTF-8
        raise CompileError(
            f"the model is damaged ({type(error).__name__}: {error})", span=Span(file=importer.file)
        ) from error
    verify(graph)
    return graph


class Importer:
    """The state of one import."""

    def __init__(self, model: Any, path: Path | None, input_shapes: InputShapes) -> None:
        self.onnx = onnx_module()
        self.model = model
        self.folder = path.parent if path else None
        self.file = str(path) if path else model.graph.name
        self.shapes = input_shapes
        self.functions = {(alias(f.domain), f.name, getattr(f, "overload", "")): f for f in model.functions}
        self.graph = Graph(model.graph.name or "main")
        self.builder = FoldingBuilder(self.graph)
        self.nodes = 0

    def run(self) -> Graph:
        proto = self.model.graph
        versions = {alias(item.domain): item.version for item in self.model.opset_import}
        self.check_supported(versions)
        scope = Scope(versions)
        self.add_initializers(proto, scope)
        self.add_inputs(proto, scope)
        self.add_nodes(proto.node, scope)
        outputs = [self.output(scope, item.name) for item in proto.output]
        self.graph.outputs = outputs
        drop_dead(self.graph)
        for value, item in zip(outputs, proto.output, strict=True):
            if value.op is not None and not value.hint:
                value.hint = item.name
        return self.graph

    def span(self, scope: Scope, name: str) -> Span:
        return Span(file=self.file, module="/".join(filter(None, (scope.label, name))))

    # Inputs and initializers --------------------------------------------------------------------

    def add_initializers(self, graph: Any, scope: Scope) -> None:
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise CompileError("sparse initializers are not supported", span=self.span(scope, name))
        for tensor in graph.initializer:
            span = self.builder.span = self.span(scope, tensor.name)
            array = tensor_array(tensor, self.folder, span)
            scope[tensor.name] = self.builder.constant(array, name=tensor.name)

    def add_inputs(self, graph: Any, scope: Scope) -> None:
        known = {item.name for item in graph.input}
        known |= {dim.dim_param for item in graph.input for dim in item.type.tensor_type.shape.dim}
        for name in self.shapes:
            if name not in known:
                raise CompileError(f"input_shapes: the model has no input or dimension called {name!r}")
        for item in graph.input:
            if item.name not in scope:  # up to IR version 3, initializers are listed as inputs as well
                scope[item.name] = self.graph.add_input(self.input_type(item, self.span(scope, item.name)), item.name)

    def input_type(self, item: Any, span: Span) -> TensorType:
        kind = item.type.WhichOneof("value")
        if kind != "tensor_type":
            raise CompileError(f"input {item.name!r} is no tensor but {kind}", span=span)
        tensor = item.type.tensor_type
        dtype = element_type(tensor.elem_type, span)
        given = self.shapes.get(item.name)
        if given is not None and not isinstance(given, int):
            shape = tuple(int(size) for size in given)
            if tensor.HasField("shape") and not fits(shape, tensor.shape.dim):
                shown = [dim.dim_param or dim.dim_value or "?" for dim in tensor.shape.dim]
                raise CompileError(f"input_shapes gives {list(shape)} for {item.name!r}, the model has {shown}")
        elif not tensor.HasField("shape"):
            raise CompileError(
                f"input {item.name!r} has no shape", span=span, hint=f"input_shapes={{{item.name!r}: (...)}}"
            )
        else:
            shape = tuple(
                self.dimension(item.name, position, dim, span) for position, dim in enumerate(tensor.shape.dim)
            )
        check_size(dtype, shape, span)
        return TensorType(dtype, shape)

    def dimension(self, name: str, position: int, dim: Any, span: Span) -> int:
        if dim.HasField("dim_value"):
            return int(dim.dim_value)
        size = self.shapes.get(dim.dim_param)
        if isinstance(size, int):
            return size
        shown = repr(dim.dim_param) if dim.dim_param else "without a name"
        option = f" or input_shapes={{{dim.dim_param!r}: 1}}" if dim.dim_param else ""
        raise CompileError(
            f"input {name!r}: dimension {position} is symbolic ({shown}); a compiled program has fixed shapes",
            span=span,
            hint=f"give it: input_shapes={{{name!r}: (1, ...)}}{option}",
        )

    def output(self, scope: Scope, name: str) -> Value:
        try:
            value = scope.find(name)
        except KeyError:
            raise CompileError(f"output {name!r} is never computed", span=Span(file=self.file)) from None
        if not isinstance(value, Value):
            raise CompileError(f"output {name!r} is a sequence; only tensors can be results", span=Span(file=self.file))
        return value

    # Nodes --------------------------------------------------------------------------------------

    def add_nodes(self, nodes: Iterable[Any], scope: Scope) -> None:
        if scope.depth > MAX_DEPTH:
            raise CompileError(
                f"functions and branches are nested more than {MAX_DEPTH} deep", span=self.span(scope, "")
            )
        for node in nodes:
            self.count(self.span(scope, node.name))
            self.add_node(node, scope)

    def count(self, span: Span | None) -> None:
        """One more node or turn of a loop; raises `CompileError` past the bound."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise CompileError(f"the model has more than {MAX_NODES} nodes", span=span)

    def add_node(self, proto: Any, scope: Scope) -> None:
        span = self.span(scope, proto.name or next(filter(None, proto.output), proto.op_type))
        inputs = [self.input(name, proto, scope, span) if name else None for name in proto.input]
        self.builder.span = span
        try:
            results = self.results(proto, inputs, scope)
        except CompileError as error:
            error.span = error.span or span
            raise
        except Exception as error:
            raise CompileError(f"{proto.op_type}: {type(error).__name__}: {error}", span=span) from error
        for name, value in zip(proto.output, results, strict=False):
            if not name:
                continue
            if name in scope:
                raise CompileError(f"{name!r} is computed twice", span=span)
            scope[name] = value
        if len(results) < len(proto.output) and any(proto.output[len(results) :]):
            raise CompileError(f"{proto.op_type}: output {len(results)} is not supported", span=span)

    def input(self, name: str, proto: Any, scope: Scope, span: Span) -> Item:
        try:
            return scope.find(name)
        except KeyError:
            raise CompileError(
                f"{proto.op_type}: input {name!r} is not computed before it is used", span=span
            ) from None

    def results(self, proto: Any, inputs: list[Item], scope: Scope) -> Sequence[Item]:
        domain = alias(proto.domain)
        function = self.functions.get((domain, proto.op_type, getattr(proto, "overload", "")))
        if function is not None:
            return self.call(function, proto, inputs, scope)
        if domain not in scope.versions:
            raise CompileError(f"{proto.op_type}: the model imports no opset of domain {domain!r}")
        handler = TABLE.get((domain, proto.op_type))
        if handler is None:
            return self.expand(proto, inputs, scope)
        attrs = self.attributes(proto, scope)
        version = scope.versions[domain]
        node = Node(proto.op_type, version, self.builder, inputs, attrs, tuple(proto.output), self, scope, proto)
        made = handler(node)
        node.check_read()
        return made if isinstance(made, list) else [made]

    def attributes(self, proto: Any, scope: Scope) -> dict[str, Any]:
        """Attributes as plain data; tensors and graphs stay protobufs."""
        decoded = {}
        for attr in proto.attribute:
            if attr.ref_attr_name:
                if attr.ref_attr_name in scope.attrs:
                    decoded[attr.name] = scope.attrs[attr.ref_attr_name]
                continue
            decoded[attr.name] = attribute_value(attr, self.onnx)
        return decoded

    # Functions and branches ---------------------------------------------------------------------

    def call(
        self, function: Any, proto: Any, inputs: list[Item], scope: Scope, defaults: Mapping[str, Any] | None = None
    ) -> list[Item]:
        """The outputs of a function body, imported in place with the node's inputs and attributes."""
        versions = {alias(item.domain): item.version for item in function.opset_import}
        inner = Scope(scope.versions | versions, self.builder.span.module if self.builder.span else "", None)
        inner.depth = scope.depth + 1
        given = {attr.name: attribute_value(attr, self.onnx) for attr in getattr(function, "attribute_proto", ())}
        inner.attrs = {**(defaults or {}), **given, **self.attributes(proto, scope)}
        if len(inputs) > len(function.input):
            raise CompileError(f"{proto.op_type} takes {len(function.input)} inputs, got {len(inputs)}")
        for position, name in enumerate(function.input):
            inner[name] = inputs[position] if position < len(inputs) else None
        self.add_nodes(function.node, inner)
        wanted = [bool(name) for name in proto.output]
        return [inner.find(name) if want else None for name, want in zip(function.output, wanted, strict=False)]

    def expand(self, proto: Any, inputs: list[Item], scope: Scope) -> list[Item]:
        """An op without a row, by the function body its ONNX schema carries."""
        body = self.schema_function(proto, inputs, scope)
        if body is None:
            self.refuse({proto.op_type: [self.builder.span.module if self.builder.span else ""]})
        schema = self.schema(proto, scope)
        defaults = {
            name: attribute_value(attr.default_value, self.onnx)
            for name, attr in schema.attributes.items()
            if attr.default_value.type
        }
        return self.call(body, proto, inputs, scope, defaults)

    def schema(self, proto: Any, scope: Scope) -> Any:
        """The ONNX schema of a node, or None."""
        domain = alias(proto.domain)
        try:
            return self.onnx.defs.get_schema(proto.op_type, scope.versions.get(domain, 0), domain)
        except self.onnx.defs.SchemaError:
            return None

    def schema_function(self, proto: Any, inputs: Sequence[Item] | None, scope: Scope) -> Any:
        """The FunctionProto of a schema, or None. Without `inputs`, only whether one may exist is known."""
        schema = self.schema(proto, scope)
        if schema is None:
            return None
        if schema.has_function:
            return schema.function_body
        if not schema.has_context_dependent_function:
            return None
        if inputs is None:
            return self.onnx.FunctionProto()
        types = [self.type_proto(item).SerializeToString() for item in inputs]
        plain = self.onnx.NodeProto()
        plain.CopyFrom(proto)
        del plain.attribute[:]
        for name, value in self.attributes(proto, scope).items():  # inside a function they may refer to the caller's
            plain.attribute.append(self.onnx.helper.make_attribute(name, value))
        data = schema.get_context_dependent_function(plain.SerializeToString(), types)
        body = self.onnx.FunctionProto()
        body.ParseFromString(data)
        return body

    def type_proto(self, item: Item) -> Any:
        if not isinstance(item, Value):
            return self.onnx.TypeProto()
        number = self.onnx.helper.np_dtype_to_tensor_dtype(item.type.dtype.numpy)
        return self.onnx.helper.make_tensor_type_proto(number, item.shape)

    def branch(self, graph: Any, scope: Scope, label: str, given: Mapping[str, Item] | None = None) -> list[Item]:
        """The outputs of a subgraph imported in place; it sees the values around it."""
        span = self.builder.span
        self.count(span)
        inner = Scope(scope.versions, "/".join(filter(None, (span.module if span else "", label))), scope)
        self.add_initializers(graph, inner)
        inner.update(given or {})
        self.add_nodes(graph.node, inner)
        self.builder.span = span
        return [inner.find(item.name) for item in graph.output]

    # Unsupported ops ----------------------------------------------------------------------------

    def check_supported(self, versions: dict[str, int]) -> None:
        """Raises one `CompileError` that lists every op the table and the schemas do not cover."""
        missing: dict[str, list[str]] = defaultdict(list)
        visited: set[tuple[str, str, str]] = set()
        self.collect(self.model.graph.node, Scope(versions), missing, visited)
        if missing:
            self.refuse(missing)

    def collect(self, nodes: Any, scope: Scope, missing: dict[str, list[str]], visited: set[Any]) -> None:
        for node in nodes:
            key = alias(node.domain), node.op_type, getattr(node, "overload", "")
            function = self.functions.get(key)
            if function is not None and key not in visited:
                visited.add(key)
                inner = Scope({alias(item.domain): item.version for item in function.opset_import})
                self.collect(function.node, inner, missing, visited)
            elif function is None and key[:2] not in TABLE and self.schema_function(node, None, scope) is None:
                shown = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
                missing[shown].append(node.name or next(iter(node.output), "?"))
            for attr in node.attribute:
                for graph in [attr.g, *attr.graphs]:
                    self.collect(graph.node, scope, missing, visited)

    def refuse(self, missing: Mapping[str, Sequence[str]]) -> None:
        counts = Counter({name: len(places) for name, places in missing.items()})
        lines = []
        for name, count in counts.most_common():
            places = [str(place) for place in missing[name]]
            more = f", and {count - 4} more" if count > 4 else ""
            lines.append(f"  {name} x{count}: {', '.join(places[:4])}{more}")
        raise CompileError(
            f"{len(missing)} unsupported op{'s' * (len(missing) > 1)}:\n" + "\n".join(lines),
            span=Span(file=self.file),
            hint="`secateur ops` lists what is there; docs/add_an_op.md shows how to add one",
        )
