"""secateur ops: the operations of the IR."""

from __future__ import annotations

import argparse
from typing import Any

from secateur.ir.opdef import REQUIRED, Attr, OpDef, Operand, all_ops, lookup
from secateur.ir.types import ALL, FLOATS, INTS, NUMERIC
from secateur.tools.console import Ui, table

HELP = "list the operations of the IR, or show one"
EXAMPLE = "secateur ops conv"

_SETS = {ALL: "any", FLOATS: "float", INTS: "integer", NUMERIC: "number"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="an operation")


def run(args: argparse.Namespace, ui: Ui) -> None:
    if args.name:
        _show_one(lookup(args.name), ui)
        return
    ops = all_ops().values()
    rows = [(op.name, signature(op), op.doc) for op in ops]
    ui.report([describe(op) for op in ops], table(f"{len(rows)} operations", ["op", "signature", "what it does"], rows))


def _show_one(op: OpDef, ui: Ui) -> None:
    operands = [(spec.name, dtypes(spec), kind(spec)) for spec in op.operands]
    attrs = [(name, attr.kind, default(attr), ", ".join(map(str, attr.choices))) for name, attr in op.attrs.items()]
    shown: list[Any] = [f"{signature(op)}\n{op.doc}\n"]
    if operands:
        shown.append(table("operands", ["name", "element types", "kind"], operands))
    if attrs:
        shown.append(table("attributes", ["name", "kind", "default", "one of"], attrs))
    facts = [("elementwise", op.elementwise), ("commutative", op.commutative), ("decomposes", op.decompose is not None)]
    shown.append(", ".join(name if holds else f"not {name}" for name, holds in facts))
    ui.report(describe(op), *shown)


def signature(op: OpDef) -> str:
    """`conv(x, w, bias?){stride, padding, groups=1}`"""
    operands = ", ".join(spec.name + ("?" if spec.optional else "*" if spec.variadic else "") for spec in op.operands)
    attrs = ", ".join(key if attr.default is REQUIRED else f"{key}={default(attr)}" for key, attr in op.attrs.items())
    return f"{op.name}({operands})" + (f"{{{attrs}}}" if attrs else "")


def describe(op: OpDef) -> dict[str, Any]:
    """An operation's schema as plain data."""
    return {
        "name": op.name,
        "doc": op.doc,
        "operands": [
            {"name": spec.name, "dtypes": [d.value for d in spec.dtypes], "kind": kind(spec)} for spec in op.operands
        ],
        "attrs": {
            key: {"kind": attr.kind, "default": default(attr), "choices": list(attr.choices)}
            for key, attr in op.attrs.items()
        },
        "elementwise": op.elementwise,
        "commutative": op.commutative,
        "decomposes": op.decompose is not None,
    }


def dtypes(spec: Operand) -> str:
    return _SETS.get(spec.dtypes) or ", ".join(d.value for d in spec.dtypes)


def kind(spec: Operand) -> str:
    return "optional" if spec.optional else "variadic" if spec.variadic else "required"


def default(attr: Attr) -> str:
    return "required" if attr.default is REQUIRED else repr(attr.default)
