"""A small GPT, trained on the source files of Python's standard library; a tenth of the files is held out."""

from __future__ import annotations

import hashlib
import math
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
from torch import Tensor, nn
from torch.nn import functional

SKIPPED = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
Progress = Callable[[str, float], None]
Logits = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Config:
    """Sizes of the model and of its training."""

    vocabulary: int = 1024
    context: int = 128
    width: int = 128
    layers: int = 4
    heads: int = 4
    steps: int = 900
    batch: int = 32
    rate: float = 3e-3
    seed: int = 0
    files: int = 10**6  # at most


class Block(nn.Module):
    """Attention and a two-layer network, each behind a layer norm and added to the stream: f32[B,T,D] -> the same."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).split(width, dim=2)
        q, k, v = (part.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    """Tokens to the logits of each next token: i64[B,T] -> f32[B,T,V]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.places = nn.Parameter(torch.zeros(config.context, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deep = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, 0.0, 0.05 / math.sqrt(2 * config.layers) if deep else 0.05)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


# Text ---------------------------------------------------------------------------------------------


def source_files() -> tuple[list[Path], list[Path]]:
    """The library's source files: those to train on, and those held out, chosen by a hash of the name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    train: list[Path] = []
    held_out: list[Path] = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if not SKIPPED & set(inside.parts):
            chosen = hashlib.sha256(inside.as_posix().encode()).digest()[0] % 10 == 0
            (held_out if chosen else train).append(path)
    return train, held_out


@dataclass(frozen=True)
class Text:
    """Tokens of the files to train on and of those held out, each as one row: i64[N]."""

    train: np.ndarray
    held_out: np.ndarray
    digest: str


def read_text(config: Config) -> Text:
    """The library as tokens of a byte-pair vocabulary that is made from the training files."""
    parts = [
        [path.read_text(encoding="utf-8", errors="replace") for path in part[: config.files]] for part in source_files()
    ]
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(parts[0], config.vocabulary, min_frequency=2, show_progress=False)
    made = [np.concatenate([np.array(item.ids, np.int64) for item in tokenizer.encode_batch(part)]) for part in parts]
    digest = hashlib.sha256(made[0].tobytes() + made[1].tobytes()).hexdigest()
    return Text(made[0], made[1], digest)


def windows(tokens: np.ndarray, count: int, length: int) -> np.ndarray:
    """`count` pieces of text, evenly spread, none overlapping: i64[count, length + 1]."""
    count = min(count, len(tokens) // (length + 1))
    starts = np.linspace(0, len(tokens) - length - 1, count).astype(np.int64)
    return np.stack([tokens[start : start + length + 1] for start in starts])


# Training and measure -----------------------------------------------------------------------------


def train(model: Gpt, tokens: np.ndarray, config: Config, progress: Progress) -> None:
    """AdamW with a warm-up and a cosine, over random pieces of the text."""
    rng = np.random.default_rng(config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), config.rate, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(config.steps):
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = config.rate * warm * (0.05 + 0.475 * (1 + math.cos(math.pi * step / config.steps)))
        starts = rng.integers(0, len(tokens) - config.context - 1, config.batch)
        rows = torch.from_numpy(np.stack([tokens[start : start + config.context + 1] for start in starts]))
        loss = functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress("training the language model", (step + 1) / config.steps)


def perplexity(logits: Logits, rows: np.ndarray, batch: int) -> float:
    """exp of the mean negative log-likelihood of every token but the first of its row; `batch` rows at once."""
    total, count = 0.0, 0
    for part in (rows[start : start + batch] for start in range(0, len(rows), batch)):
        made = logits(np.ascontiguousarray(part[:, :-1])).astype(np.float64)
        made -= made.max(axis=2, keepdims=True)
        picked = np.take_along_axis(made, part[:, 1:, None], axis=2)[:, :, 0]
        total += float((np.log(np.exp(made).sum(axis=2)) - picked).sum())
        count += picked.size
    return math.exp(total / count)
