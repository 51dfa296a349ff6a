"""Constants, and the box that fusion draws around operations."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.ir.draw import Draw, Sample
from secateur.ir.graph import Graph, Op
from secateur.ir.opdef import Attr, OpDef, define, lookup, operands
from secateur.ir.types import ALL, TensorType

define(
    OpDef(
        name="constant",
        doc="A tensor known at compile time; `name` is the parameter's name in the source model.",
        operands=(),
        attrs={"value": Attr("array"), "name": Attr("str", "")},
        infer=lambda *, value, name: TensorType.of(value),
        reference=lambda *, value, name: value,
        sample=lambda draw: Sample((), {"value": draw.tensor(draw.choice(ALL), draw.shape())}),
        flops=lambda op: 0,
    )
)


def _infer_fusion(*types: TensorType, body: Graph, kind: str) -> tuple[TensorType, ...]:
    inner = tuple(value.type for value in body.inputs)
    if types != inner:
        raise ValueError(f"the body takes ({', '.join(map(str, inner))})")
    return tuple(value.type for value in body.outputs)


def _run_fusion(*arrays: np.ndarray, body: Graph, kind: str) -> tuple[np.ndarray, ...]:
    from secateur.ir.interpret import run  # the interpreter calls references, so it cannot be imported above

    return tuple(run(body, arrays))


def _sample_fusion(draw: Draw) -> Sample:
    from secateur.ir.builder import Builder

    array = draw.tensor(draw.choice(lookup("relu").operands[0].dtypes), draw.shape())
    b = Builder.graph("body", x=TensorType.of(array))
    body = b.returns(b.relu(b.add(b["x"], b["x"])))
    return Sample((array,), {"body": body, "kind": "pointwise"})


def _fusion_flops(op: Op) -> int:
    return sum(lookup(inner.name).cost(inner)[0] for inner in op.attrs["body"].ops)


define(
    OpDef(
        name="fusion",
        doc="Operations that a backend runs as one kernel: calls `body` on the operands. `kind` names the anchor.",
        operands=operands("xs*"),
        attrs={"body": Attr("graph"), "kind": Attr("str", "pointwise")},
        infer=_infer_fusion,
        reference=_run_fusion,
        sample=_sample_fusion,
        flops=_fusion_flops,
    )
)


def is_constant(op: Op | None) -> bool:
    return op is not None and op.name == "constant"


def constant_value(value: Any) -> np.ndarray | None:
    """The array behind a value that is a constant, else None."""
    return value.op.attrs["value"] if is_constant(value.op) else None
