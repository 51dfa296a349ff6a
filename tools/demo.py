"""The main job, on real input: all-MiniLM-L6-v2 with its real weights, compiled ahead of time, answers questions
about Python's standard library with the passages of its documentation.

    make demo
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from rich.panel import Panel

from secateur.backends.artifact import Program
from secateur.backends.cpu.compile import Options, compile_graph
from secateur.frontends.open import import_model
from secateur.ir.diagnostics import CompileError
from secateur.passes.manager import optimize
from secateur.tools.benchmark import Plan, Result, measure
from secateur.tools.commands.bench import results_table
from secateur.tools.commands.view import NO_BINARY, render
from secateur.tools.console import Tracker, Ui, duration, size, table
from secateur.tools.passages import Passage, standard_library
from secateur.tools.picture import draw
from secateur.tools.zoo import build, minilm_folder

LENGTH = 128
TOP = 5
QUESTIONS = (
    "How do I turn an object into a JSON string?",
    "How can I copy a whole folder with everything in it?",
    "Which function finds the largest items of a list?",
    "How do I run another program and read what it prints?",
    "How do I wrap long text into lines of a given width?",
    "How can I cache the results of a function?",
    "How do I split a URL into its parts?",
    "How do I get a temporary file that is removed automatically?",
    "How can I find similar words when somebody misspelt one?",
    "How do I compute the median of some numbers?",
)

Embed = Callable[[np.ndarray, np.ndarray], np.ndarray]


class SentenceEncoder(torch.nn.Module):
    """MiniLM with mean pooling over the tokens that are not padding, and unit length: i64[1,S] twice -> f32[1,384]."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.model(tokens, mask)
        weights = mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)


def sentence_encoder() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The encoder with its real weights, and one real sentence as example input."""
    model, _ = build("minilm")
    tokens, mask = tokenize([QUESTIONS[0]])
    return SentenceEncoder(model).eval(), (torch.from_numpy(tokens), torch.from_numpy(mask))


def tokenize(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token numbers and mask of each text, cut or padded to LENGTH: i64[N,128] twice."""
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    encoded = tokenizer.encode_batch(list(texts))
    tokens = np.array([item.ids for item in encoded], np.int64)
    return tokens, np.array([item.attention_mask for item in encoded], np.int64)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; the exit code is 1 where its answers differ from PyTorch's."""
    parser = argparse.ArgumentParser(prog="python -m secateur.tools.demo", description=(__doc__ or "").strip())
    parser.add_argument("--output", type=Path, default=Path("demo"), help="where everything is written (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--per-module", type=int, default=6, help="passages of each module (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of the speed comparison (%(default)s)")
    args = parser.parse_args(argv)
    try:
        return demo(args.output, args.threads, args.per_module, args.rounds, Ui())
    except CompileError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def demo(output: Path, threads: int, per_module: int, rounds: int, ui: Ui) -> int:
    passages = standard_library(per_module)
    torch.set_num_threads(1)  # the reference only: on a busy machine, barriers of two thread pools starve each other
    with ui.progress() as progress:
        model, program, facts = compile_encoder(output, threads, progress)
        tokens, mask = tokenize([*QUESTIONS, *(f"{passage.name}: {passage.text}" for passage in passages)])
        ours = embed_all("embedding with Secateur", program, tokens, mask, progress)
        theirs = embed_all("embedding with PyTorch", in_torch(model), tokens, mask, progress)
    ui.report(None, *answers(passages, ours))
    plan = Plan(
        model="secateur.tools.demo:sentence_encoder",
        folder=output / "bench",
        contenders=["secateur", "eager", "onnxruntime"],
        threads=threads,
        rounds=rounds,
        artefact=output / "minilm",
    )
    with ui.progress() as progress:
        results, _ = measure(plan, progress)
    facts |= agreement(ours, theirs)
    facts |= {"passages": len(passages), "latency": {r.name: r.median for r in results if r.rounds}}
    (output / "report.json").write_text(json.dumps(facts, indent=2) + "\n")
    show(facts, plan, results, ui)
    return 0 if facts["same_top5"] == len(QUESTIONS) else 1


def compile_encoder(output: Path, threads: int, progress: Tracker) -> tuple[torch.nn.Module, Program, dict[str, Any]]:
    """Compile, save and draw the encoder. Returns the torch module, the program, and facts on the artefact."""
    progress("loading the model")
    model, inputs = sentence_encoder()
    progress("loading the model", 1.0)
    start = time.perf_counter()
    progress("importing with torch.export")
    graph = import_model(model, inputs)
    progress("importing with torch.export", 1.0)
    imported = time.perf_counter()
    program = compile_graph(graph, Options(threads=threads), progress)
    compiled = time.perf_counter()
    folder = program.save(output / "minilm")
    progress("drawing")
    picture = render(draw(optimize(optimize(graph), "cpu")), output / "minilm.svg")
    progress("drawing", 1.0)
    facts = {
        "import_seconds": imported - start,
        "compile_seconds": compiled - imported,
        "artefact_bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "library_bytes": (folder / program.manifest["library"]).stat().st_size,
        "arena_bytes": program.manifest["arena_bytes"],
        "source": str(folder / "model.c"),
        "picture": str(picture),
    }
    return model, program, facts


def in_torch(model: torch.nn.Module) -> Embed:
    """The encoder as eager PyTorch runs it, from and to NumPy."""

    def embed(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            result: np.ndarray = model(torch.from_numpy(tokens), torch.from_numpy(mask)).numpy()
        return result

    return embed


def embed_all(what: str, embed: Embed, tokens: np.ndarray, mask: np.ndarray, progress: Tracker) -> np.ndarray:
    """The embedding of every text, one at a time: f32[N,384]."""
    rows = []
    for index in range(len(tokens)):
        rows.append(embed(tokens[index : index + 1], mask[index : index + 1])[0])
        progress(what, (index + 1) / len(tokens))
    return np.stack(rows)


def best(embeddings: np.ndarray) -> np.ndarray:
    """For each question, the places of the TOP passages that are most similar, best first."""
    questions, passages = embeddings[: len(QUESTIONS)], embeddings[len(QUESTIONS) :]
    return np.argsort(-(questions @ passages.T), axis=1, kind="stable")[:, :TOP]


def agreement(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """The largest relative error of an embedding, and for how many questions the first five are the same."""
    errors = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    same = int(sum(np.array_equal(a, b) for a, b in zip(best(ours), best(theirs))))
    return {"max_relative_error": float(errors.max()), "same_top5": same}


def answers(passages: Sequence[Passage], embeddings: np.ndarray) -> list[Panel]:
    """A panel for each question with the three best passages."""
    shown = []
    scores = embeddings[: len(QUESTIONS)] @ embeddings[len(QUESTIONS) :].T
    for question, places, row in zip(QUESTIONS, best(embeddings), scores):
        lines = [f"{row[i]:.2f}  {passages[i].name}: {passages[i].first_line[:100]}" for i in places[:3]]
        shown.append(Panel("\n".join(lines), title=question, title_align="left"))
    return shown


def show(facts: dict[str, Any], plan: Plan, results: list[Result], ui: Ui) -> None:
    rows = [
        ("passages embedded", facts["passages"]),
        ("max relative error against PyTorch", f"{facts['max_relative_error']:.1e}"),
        ("questions with the same top 5", f"{facts['same_top5']} of {len(QUESTIONS)}"),
        ("import, compile", f"{duration(facts['import_seconds'])}, {duration(facts['compile_seconds'])}"),
        ("artefact", f"{size(facts['artefact_bytes'])}, the library in it {size(facts['library_bytes'])}"),
        ("arena", size(facts["arena_bytes"])),
        ("C source", facts["source"]),
        ("picture", facts["picture"]),
    ]
    ui.report(None, results_table(plan, results), table("", ["what", "figure"], rows))
    if facts["picture"].endswith(".dot"):
        picture = Path(facts["picture"])
        ui.note(NO_BINARY.format(format="svg", source=picture, picture=picture.with_suffix(".svg")))


if __name__ == "__main__":
    sys.exit(main())
