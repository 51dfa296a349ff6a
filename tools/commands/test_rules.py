"""secateur test-rules: rules tried on random instances of their patterns."""

from __future__ import annotations

import argparse
import runpy
import time
from pathlib import Path
from typing import Any

from secateur.ir.diagnostics import CompileError
from secateur.ir.prove import Finding, Proof, lint, prove
from secateur.ir.rewrite import Rule
from secateur.ir.rules import load_rules
from secateur.passes.rules import topic, topics
from secateur.tools.console import Ui, table

HELP = "lint rules and prove them by use: both sides are run on random instances and compared"
EXAMPLE = "secateur test-rules my.rules\nsecateur test-rules --lint-only my.rules"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", help="a .rules file, or a Python file with rules (default: all built-in ones)"
    )
    parser.add_argument("--lint-only", action="store_true", help="do not run the rules, only look for faults in them")
    parser.add_argument("--seed", type=int, help="repeat the run that showed this seed")
    parser.add_argument(
        "--instances", type=int, default=40, help="instances to try each rule on (default: %(default)s)"
    )


def run(args: argparse.Namespace, ui: Ui) -> None:
    seed = args.seed if args.seed is not None else time.time_ns() % 1_000_000_000
    groups = {args.file: _rules(args.file)} if args.file else {name: list(topic(name)) for name in topics()}
    rules = [rule for group in groups.values() for rule in group]
    if not rules:
        raise CompileError(f"{args.file} holds no rules")
    proofs: list[Proof] = []
    with ui.progress() as tracker:
        tracker(f"linting {len(rules)} rules")
        findings = [finding for group in groups.values() for finding in lint(group, seed)]
        for number, rule in enumerate([] if args.lint_only else rules):
            tracker(f"proving {len(rules)} rules", number / len(rules))
            proofs.append(prove(rule, seed, enough=args.instances))
    wrong = [proof for proof in proofs if not proof.ok]
    for text in [*map(str, findings), *map(_shown, wrong)]:
        ui.note(text)
    shown = [] if args.lint_only else [_table(proofs, findings, seed)]
    ui.report(_report(proofs, findings, seed), *shown)
    if findings or wrong:
        faulty = {(proof.rule.name, proof.rule.span) for proof in wrong} | {(item.rule, item.span) for item in findings}
        raise CompileError(
            f"{len(faulty)} of {len(rules)} rules have faults: {len(wrong)} wrong, {len(findings)} found by the linter",
            hint=f"--seed {seed} repeats this run",
        )


def _rules(path: str) -> list[Rule]:
    """The rules of a file. Raises `CompileError` where it cannot be read, or its code fails."""
    if not Path(path).exists():
        raise CompileError(f"there is no file {path}")
    if path.endswith(".rules"):
        return load_rules(path)
    if not path.endswith(".py"):
        raise CompileError(f"{path} is neither a .rules file nor a Python file with rules")
    try:
        names = runpy.run_path(path, run_name=Path(path).stem)
    except Exception as error:  # somebody else's code: anything may happen
        raise CompileError(f"cannot load {path}: {type(error).__name__}: {error}") from error
    return [item for item in names.values() if isinstance(item, Rule)]


def _shown(proof: Proof) -> str:
    place = f"{proof.rule.span}: " if proof.rule.span else ""
    if proof.counterexample is None:
        return f"{place}rule {proof.rule.name!r}: no instance of its pattern makes it fire"
    return f"{place}rule {proof.rule.name!r} is wrong: {proof.counterexample}\n"


def _state(proof: Proof, findings: list[Finding]) -> str:
    """One word on a rule: a rule that is right on every instance may still rewrite for ever."""
    if not proof.ok:
        return "wrong"
    rule = proof.rule
    return (
        "loops" if any(item.loops and (item.rule, item.span) == (rule.name, rule.span) for item in findings) else "ok"
    )


def _report(proofs: list[Proof], findings: list[Finding], seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "lint": [str(finding) for finding in findings],
        "rules": [
            {
                "rule": proof.rule.name,
                "instances": proof.instances,
                "ok": _state(proof, findings) == "ok",
                "tolerance": proof.rule.tolerance,
                "counterexample": str(proof.counterexample) if proof.counterexample else None,
            }
            for proof in proofs
        ],
    }


def _table(proofs: list[Proof], findings: list[Finding], seed: int) -> Any:
    rows = [
        (p.rule.name, _state(p, findings), p.instances, p.rule.tolerance or "exact", p.rule.doc.split("\n")[0])
        for p in proofs
    ]
    return table("", ["rule", "", "instances>", "tolerance>", "algebra"], rows, f"seed {seed}")
