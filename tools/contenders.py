"""Who takes part in a benchmark: each row says how a model is loaded so that one call runs it once.

Every contender runs on the same number of threads, in float32; or, in a benchmark of quantised models, those that
start from an ONNX file run the one that ONNX Runtime has quantised.
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
        folder: holds `inputs.npz`, `model.onnx`, `quantized.onnx` and artefacts, as far as they are needed.
        threads: for everyone.
        quantized: whether ONNX files are run in their quantised form.
    """

    model: str
    folder: Path
    threads: int
    quantized: bool = False

    def inputs(self) -> list[np.ndarray]:
        with np.load(self.folder / "inputs.npz", allow_pickle=False) as archive:
            return [archive[name] for name in archive.files]

    @property
    def float_onnx(self) -> Path:
        return Path(self.model) if self.model.endswith(".onnx") else self.folder / "model.onnx"

    @property
    def quantized_onnx(self) -> Path:
        return self.folder / "quantized.onnx"

    @property
    def onnx(self) -> Path:
        return self.quantized_onnx if self.quantized else self.float_onnx


@dataclass(frozen=True)
class Contender:
    """A way to run a model.

    Attributes:
        needs: what it starts from: torch, onnx, or one of the `ARTEFACTS`.
        packages: what must be installed.
        only_quantized: takes part where models are quantised, and is not named by the user.
    """

    name: str
    needs: str
    packages: tuple[str, ...]
    load: Callable[[Entry], Call]
    only_quantized: bool = False


# Folders of artefacts: of the model as the options say, of its float form, of the file that ONNX Runtime quantised.
ARTEFACT, FLOAT, IMPORTED = ARTEFACTS = ("artefact", "artefact-f32", "artefact-onnx")


def torch_model(model: str) -> Any:
    """The torch module that a name on the command line means."""
    import torch

    if is_python(model):
        return build_python(model)[0].eval()
    return torch.export.load(model).module()


def _secateur(entry: Entry, artefact: str = ARTEFACT) -> Call:
    import secateur

    program = secateur.load(entry.folder / artefact)
    inputs = entry.inputs()
    return lambda: _as_sequence(program(*inputs))


def _secateur_f32(entry: Entry) -> Call:
    return _secateur(entry, FLOAT)


def _secateur_onnx(entry: Entry) -> Call:
    return _secateur(entry, IMPORTED)


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
        Contender("secateur", ARTEFACT, (), _secateur),
        Contender("secateur-onnx", IMPORTED, ("onnxruntime",), _secateur_onnx, only_quantized=True),
        Contender("secateur-f32", FLOAT, (), _secateur_f32, only_quantized=True),
        Contender("eager", "torch", ("torch",), _eager),
        Contender("inductor", "torch", ("torch",), _inductor),
        Contender("onnxruntime", "onnx", ("onnxruntime",), _onnxruntime),
        Contender("openvino", "onnx", ("openvino",), _openvino),
    )
}
