"""Who takes part in a benchmark: each row says how a model is loaded so that one call runs it once.

Every contender runs in float32 on the same number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.tools.models import build_python, is_python

Call = Callable[[], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Entry:
    """One benchmark's files.

    Attributes:
        model: as the command line names it.
        folder: holds `inputs.npz`, `model.onnx` and the folder `artefact`, as far as they are needed.
        threads: for everyone.
    """

    model: str
    folder: Path
    threads: int

    def inputs(self) -> list[np.ndarray]:
        with np.load(self.folder / "inputs.npz", allow_pickle=False) as archive:
            return [archive[name] for name in archive.files]

    @property
    def onnx(self) -> Path:
        return Path(self.model) if self.model.endswith(".onnx") else self.folder / "model.onnx"


@dataclass(frozen=True)
class Contender:
    """A way to run a model: `needs` names the file or object it starts from, `packages` what must be installed."""

    name: str
    needs: str
    packages: tuple[str, ...]
    load: Callable[[Entry], Call]


def torch_model(model: str) -> Any:
    """The torch module that a name on the command line means."""
    import torch

    if is_python(model):
        return build_python(model)[0].eval()
    return torch.export.load(model).module()


def _secateur(entry: Entry) -> Call:
    import secateur

    program = secateur.load(entry.folder / "artefact")
    inputs = entry.inputs()
    return lambda: _as_sequence(program(*inputs))


def _eager(entry: Entry, compile: bool = False) -> Call:
    import torch

    torch.set_num_threads(entry.threads)
    model = torch_model(entry.model)
    call = torch.compile(model) if compile else model
    inputs = [torch.from_numpy(array) for array in entry.inputs()]

    def run() -> Sequence[np.ndarray]:
        with torch.inference_mode():
            return [tensor.numpy() for tensor in flatten(call(*inputs))]

    return run


def _inductor(entry: Entry) -> Call:
    return _eager(entry, compile=True)


def _onnxruntime(entry: Entry) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = entry.threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(entry.onnx), options, providers=["CPUExecutionProvider"])
    feed = dict(zip([item.name for item in session.get_inputs()], entry.inputs(), strict=True))
    return lambda: session.run(None, feed)


def _openvino(entry: Entry) -> Call:
    import openvino

    config = {
        "INFERENCE_NUM_THREADS": entry.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.compile_model(str(entry.onnx), "CPU", config)
    request = compiled.create_infer_request()
    inputs = entry.inputs()

    def run() -> Sequence[np.ndarray]:
        results = request.infer(inputs)
        return [results[output] for output in compiled.outputs]

    return run


def _as_sequence(results: Any) -> Sequence[np.ndarray]:
    return results if isinstance(results, (tuple, list)) else (results,)


def flatten(result: Any) -> list[Any]:
    """The tensors in what a torch model returns, in the order torch.export gives them."""
    from torch.utils._pytree import tree_flatten

    return [leaf for leaf in tree_flatten(result)[0] if hasattr(leaf, "numpy")]


CONTENDERS = {
    item.name: item
    for item in (
        Contender("secateur", "artefact", (), _secateur),
        Contender("eager", "torch", ("torch",), _eager),
        Contender("inductor", "torch", ("torch",), _inductor),
        Contender("onnxruntime", "onnx", ("onnxruntime",), _onnxruntime),
        Contender("openvino", "onnx", ("openvino",), _openvino),
    )
}
