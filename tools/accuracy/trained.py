"""Float models that the studies start from: trained here, kept under a name that tells everything they depend on."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file


def trained(
    folder: Path, name: str, home: ModuleType, facts: Any, model: torch.nn.Module, train: Callable[[], None]
) -> bool:
    """Give a model the weights that `train` would, from `folder` where they are there; returns whether they were.

    Args:
        name: of the model, the start of the file's name.
        home: the module that trains it; another source text means other weights, and so does another torch.
        facts: whatever else the weights depend on: seed, steps, data; anything with an exact `repr`.
        train: trains `model` in place.
    """
    key = hashlib.sha256(f"{inspect.getsource(home)}\n{facts!r}\n{torch.__version__}".encode()).hexdigest()[:16]
    path = folder / f"{name}-{key}.safetensors"
    try:
        model.load_state_dict(load_file(path))
        return True
    except (FileNotFoundError, SafetensorError, RuntimeError):  # none, or one that is broken: it is made again
        train()
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, part)
    part.replace(path)
    return False
