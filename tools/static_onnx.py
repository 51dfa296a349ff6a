"""The statically quantised ONNX file that all runtimes of a benchmark start from, made by ONNX Runtime's own tools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

# Quantising what lies between the products of a transformer as well, its mask of -3e38 included, leaves nothing of
# the results; products only is what ONNX Runtime's guide does with transformers.
PRODUCTS = ["Conv", "Gemm", "MatMul"]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Iterator[dict[str, np.ndarray]]) -> None:
        self.feeds = feeds

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def quantize_file(
    source: Path, target: Path, batches: Iterable[Sequence[np.ndarray]], *, products_only: bool = False
) -> None:
    """Write `source` in QDQ form: u8 activations, i8 weights per output channel, min-max ranges over the batches.

    Args:
        source: a float ONNX file.
        target: appears whole or not at all.
        batches: arrays in the order of the model's inputs.
        products_only: quantise products alone, instead of all that ONNX Runtime can.
    """
    prepared, fresh = target.with_name("prepared.onnx"), target.with_name("unfinished.onnx")
    try:
        names = _prepare(source, prepared)
        quantize_static(
            str(prepared),
            str(fresh),
            _Reader(dict(zip(names, batch, strict=True)) for batch in batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=PRODUCTS if products_only else None,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        fresh.rename(target)
    finally:
        prepared.unlink(missing_ok=True)
        fresh.unlink(missing_ok=True)


def _prepare(source: Path, prepared: Path) -> list[str]:
    """Write the file that quantisation starts from, and return its inputs' names.

    Symbolic shape inference fails on exported transformers; shapes are known without it. What ONNX Runtime's
    optimiser writes of some of them it cannot open again; those stay as they were exported.
    """
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    try:
        return _input_names(prepared)
    except Fail:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True, skip_optimization=True)
        return _input_names(prepared)


def _input_names(path: Path) -> list[str]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [item.name for item in session.get_inputs()]
