"""Checkpoints: one .safetensors file that holds everything a run needs to go on bit for bit. Nothing is pickled."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.ir.diagnostics import CompileError

_FACTS = "secateur.finetune"  # the metadata key; safetensors holds strings there


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and plain data; the file appears whole or not at all.

    Raises:
        CompileError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        own = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        save_file(own, part, metadata={_FACTS: json.dumps(facts)})
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CompileError(f"cannot write the checkpoint {path}: {reason}") from None
    finally:
        part.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_checkpoint` wrote.

    Raises:
        CompileError: there is no such file, or it is something else.
    """
    if not path.is_file():
        raise CompileError(f"there is no checkpoint {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            facts = json.loads((file.metadata() or {})[_FACTS])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = "it is no checkpoint of ours" if isinstance(error, KeyError) else error
        raise CompileError(f"cannot read the checkpoint {path}: {reason}", hint="start again without it") from None


def random_state() -> dict[str, Tensor]:
    """The state of the generators that a data function may draw from: torch's, NumPy's global one and Python's."""
    _, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy.keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy.place": torch.tensor([place, has_gauss], dtype=torch.int64),
        "numpy.gauss": torch.tensor(gauss, dtype=torch.float64),
        "python.words": torch.tensor([version, *words], dtype=torch.int64),
        "python.gauss": torch.tensor(math.nan if next_gauss is None else next_gauss, dtype=torch.float64),
    }


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Go back to a state that `random_state` gave."""
    torch.set_rng_state(state["torch"])
    place, has_gauss = state["numpy.place"].tolist()
    keys = state["numpy.keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, place, has_gauss, float(state["numpy.gauss"])))
    version, *words = state["python.words"].tolist()
    gauss = float(state["python.gauss"])
    random.setstate((version, tuple(words), None if math.isnan(gauss) else gauss))


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seed the global generators in this block, and give them back as they were."""
    kept = random_state()
    torch.manual_seed(seed)
    np.random.seed(seed % (1 << 32))
    random.seed(seed)
    try:
        yield
    finally:
        set_random_state(kept)
