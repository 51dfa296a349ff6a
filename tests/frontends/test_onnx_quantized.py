"""Quantised ONNX models: QDQ pairs, the QLinear forms and integer products, against NumPy, torch and ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from secateur.frontends.onnx import import_onnx  # noqa: E402
from secateur.ir.diagnostics import CompileError  # noqa: E402
from secateur.ir.graph import Graph  # noqa: E402
from secateur.ir.interpret import interpret  # noqa: E402
from secateur.passes.manager import optimize  # noqa: E402

KINDS = {np.dtype(np.int8): TensorProto.INT8, np.dtype(np.uint8): TensorProto.UINT8}
KINDS |= {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int32): TensorProto.INT32}


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.default_rng().integers(1 << 30))
    print("seed", seed)
    return np.random.default_rng(seed)


def model_of(nodes: list[Any], inputs: dict[str, np.ndarray], constants: dict[str, np.ndarray], output: int) -> Any:
    """A model whose result is `y`, of element type `output`; inputs have the arrays' types."""
    infos = [helper.make_tensor_value_info(name, KINDS[x.dtype], x.shape) for name, x in inputs.items()]
    made = helper.make_graph(
        nodes,
        "net",
        infos,
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def runtime(model: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What ONNX Runtime computes, without rewriting the graph."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def names(graph: Graph) -> list[str]:
    return [op.name for op in graph.ops if op.name != "constant"]


def drawn(rng: np.random.Generator, dtype: type, *shape: int) -> np.ndarray:
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


def steps_apart(a: np.ndarray, b: np.ndarray) -> int:
    assert a.dtype == b.dtype and a.shape == b.shape
    return int(np.abs(a.astype(np.int64) - b.astype(np.int64)).max())


# QDQ ----------------------------------------------------------------------------------------------


def test_scales_of_an_axis_broadcast(rng: np.random.Generator) -> None:
    w, scale = drawn(rng, np.int8, 8, 3, 3, 3), rng.uniform(0.01, 0.1, 8).astype(np.float32)
    node = helper.make_node("DequantizeLinear", ["w", "s", "z"], ["y"], axis=0)
    model = model_of([node], {}, {"w": w, "s": scale, "z": np.zeros(8, np.int8)}, TensorProto.FLOAT)
    graph = import_onnx(model)
    (op,) = graph.find("dequantize")
    assert names(graph) == ["dequantize"]
    assert [value.shape for value in op.operands] == [(8, 3, 3, 3), (8, 1, 1, 1), ()]
    np.testing.assert_array_equal(interpret(graph)[0], w.astype(np.float32) * scale.reshape(8, 1, 1, 1))


@pytest.mark.parametrize("length", [32, 28])
def test_blocks_are_a_dimension_where_they_fit(rng: np.random.Generator, length: int) -> None:
    w = drawn(rng, np.int8, 6, length)
    scale, zero = rng.uniform(0.01, 0.1, (6, 4)).astype(np.float32), drawn(rng, np.int8, 6, 4)
    node = helper.make_node("DequantizeLinear", ["w", "s", "z"], ["y"], axis=1, block_size=8)
    graph = import_onnx(model_of([node], {}, {"w": w, "s": scale, "z": zero}, TensorProto.FLOAT))
    wide = [np.repeat(item.astype(np.float32), 8, axis=1)[:, :length] for item in (scale, zero)]
    np.testing.assert_array_equal(interpret(graph)[0], (w - wide[1]) * wide[0])
    (op,) = graph.find("dequantize")
    assert op.result.shape == ((6, 4, 8) if length == 32 else (6, 28))


def test_integers_of_weights_stay(rng: np.random.Generator) -> None:
    """Weights that the model quantises itself become integers at import, and are not turned back into floats."""
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=0),
        helper.make_node("Conv", ["x", "d"], ["y"]),
    ]
    x, w = rng.standard_normal((1, 3, 5, 5), np.float32), rng.standard_normal((4, 3, 3, 3), np.float32)
    constants = {"w": w, "s": np.full(4, 0.02, np.float32), "z": np.zeros(4, np.int8)}
    graph = import_onnx(model_of(nodes, {"x": x}, constants, TensorProto.FLOAT))
    assert names(graph) == ["dequantize", "conv"]
    assert graph.find("dequantize")[0].operands[0].type.dtype.value == "i8"


@pytest.mark.parametrize("scale", [0.0, -0.5, np.nan, np.inf])
@pytest.mark.parametrize("op", ["QuantizeLinear", "DequantizeLinear", "QLinearMatMul"])
def test_a_scale_that_is_no_step_is_refused(op: str, scale: float) -> None:
    bad, good, zero = np.array([0.1, scale], np.float32), np.float32(0.1), np.uint8(0)
    x = np.zeros((2, 2), np.float32 if op == "QuantizeLinear" else np.uint8)
    inputs = ["x", "s", "z"] if op != "QLinearMatMul" else ["x", "g", "z0", "x", "s", "z", "g", "z0"]
    constants = {"s": bad, "z": np.zeros(2, np.uint8), "g": good, "z0": zero}
    model = model_of([helper.make_node(op, inputs, ["y"], name="here")], {"x": x}, constants, TensorProto.FLOAT)
    with pytest.raises(CompileError) as caught:
        import_onnx(model)
    assert f"{op}: a scale is {scale:g}" in str(caught.value)
    assert "here" in str(caught.value) and "positive" in str(caught.value)


def test_four_bits_are_refused_by_name() -> None:
    packed = helper.make_tensor("w", TensorProto.INT4, [4], [1, -2, 3, -4])
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"])
    scale = numpy_helper.from_array(np.float32(0.5), "s")
    info = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = helper.make_graph([node], "net", [], [info], [packed, scale])
    with pytest.raises(CompileError, match="INT4 is not supported"):
        import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


# QLinear forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [np.int8, np.uint8])
def test_qlinear_conv_is_a_float_conv_between_integers(rng: np.random.Generator, weights: type) -> None:
    x, w = drawn(rng, np.uint8, 2, 4, 9, 9), drawn(rng, weights, 6, 2, 3, 3)
    constants = {
        "sx": np.float32(0.05),
        "zx": np.uint8(117),
        "sy": np.float32(4.0),
        "zy": np.uint8(99),
        "w": w,
        "sw": rng.uniform(0.01, 0.1, 6).astype(np.float32),
        "b": drawn(rng, np.int8, 6).astype(np.int32),
        "zw": np.full(6, 0 if weights is np.int8 else 128, weights),
    }
    inputs = ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy", "b"]
    node = helper.make_node("QLinearConv", inputs, ["y"], group=2, pads=[1, 1, 0, 1], strides=[2, 1])
    model = model_of([node], {"x": x}, constants, TensorProto.UINT8)
    graph = import_onnx(model)
    assert sorted(names(graph)) == ["conv", "dequantize", "dequantize", "dequantize", "quantize"]
    wanted = runtime(model, {"x": x})
    assert steps_apart(interpret(graph, x)[0], wanted) <= 1
    lowered = optimize(graph, ["lower_quantized"])
    assert "dequantize" not in names(lowered) and lowered.find("rescale")
    assert steps_apart(interpret(lowered, x)[0], wanted) <= 1


CONTRIB = [
    ("QLinearAdd", ["x", "s", "z", "x2", "s2", "z2", "sy", "z"], {}),
    ("QLinearMul", ["x", "s", "z", "x2", "s2", "z2", "sy", "z"], {}),
    ("QLinearSigmoid", ["x", "s", "z", "sg", "z0"], {}),
    ("QLinearLeakyRelu", ["x", "s", "z", "sy", "z"], {"alpha": 0.1}),
    ("QLinearGlobalAveragePool", ["x", "s", "z", "s2", "z"], {"channels_last": 0}),
    ("QLinearAveragePool", ["x", "s", "z", "s2", "z"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("QLinearConcat", ["sy", "z", "x", "s", "z", "x2", "s2", "z2"], {"axis": 1}),
]


@pytest.mark.parametrize(("op", "inputs", "attrs"), CONTRIB, ids=[item[0] for item in CONTRIB])
def test_quantised_ops_of_onnx_runtime(
    rng: np.random.Generator, op: str, inputs: list[str], attrs: dict[str, Any]
) -> None:
    given = {"x": drawn(rng, np.uint8, 1, 3, 4, 4)}
    if "x2" in inputs:
        given["x2"] = drawn(rng, np.uint8, 1, 3, 4, 4)
    scales = {"s": 0.03, "s2": 0.017, "sy": 0.06, "sg": 1 / 256}
    constants = {name: np.float32(scale) for name, scale in scales.items() if name in inputs}
    zeros = {"z": 120, "z2": 131, "z0": 0}
    constants |= {name: np.uint8(zero) for name, zero in zeros.items() if name in inputs}
    node = helper.make_node(op, inputs, ["y"], domain="com.microsoft", **attrs)
    model = model_of([node], given, constants, TensorProto.UINT8)
    graph = import_onnx(model)
    assert graph.find("quantize") and graph.find("dequantize")
    assert steps_apart(interpret(graph, *given.values())[0], runtime(model, given)) <= 1


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("scaled", [False, True])
def test_qgemm(rng: np.random.Generator, turned: int, scaled: bool) -> None:
    x = drawn(rng, np.uint8, 5, 12)
    constants = {
        "s": np.float32(0.02),
        "z": np.uint8(100),
        "w": drawn(rng, np.int8, *((7, 12) if turned else (12, 7))),
        "sw": rng.uniform(0.01, 0.1, 7).astype(np.float32),
        "zw": np.zeros(7, np.int8),
        "c": drawn(rng, np.int8, 7).astype(np.int32) * 50,
        "sy": np.float32(0.8),
        "zy": np.uint8(128),
    }
    inputs = ["x", "s", "z", "w", "sw", "zw", "c", *(["sy", "zy"] if scaled else [])]
    node = helper.make_node("QGemm", inputs, ["y"], domain="com.microsoft", transB=turned)
    constants = {name: value for name, value in constants.items() if name in inputs}
    model = model_of([node], {"x": x}, constants, TensorProto.UINT8 if scaled else TensorProto.FLOAT)
    made, wanted = interpret(import_onnx(model), x)[0], runtime(model, {"x": x})
    if scaled:
        assert steps_apart(made, wanted) <= 1
    else:
        np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-4)


# Integer products ---------------------------------------------------------------------------------

INTEGERS = [np.int8, np.uint8]


@pytest.mark.parametrize("known", [True, False], ids=["known zero points", "zero points at run time"])
@pytest.mark.parametrize("w_type", INTEGERS)
@pytest.mark.parametrize("x_type", INTEGERS)
def test_conv_integer(rng: np.random.Generator, x_type: type, w_type: type, known: bool) -> None:
    x, w = drawn(rng, x_type, 2, 4, 7, 6), drawn(rng, w_type, 6, 2, 3, 3)
    zeros = {"zx": drawn(rng, x_type), "zw": drawn(rng, w_type, 6)}
    node = helper.make_node("ConvInteger", ["x", "w", "zx", "zw"], ["y"], group=2, pads=[1, 2, 0, 1], strides=[1, 2])
    inputs, constants = ({"x": x}, {"w": w, **zeros}) if known else ({"x": x, "w": w, **zeros}, {})
    graph = import_onnx(model_of([node], inputs, constants, TensorProto.INT32))
    assert all(op.operands[0].type.dtype.bytes == 1 for op in graph.find("conv"))
    centred = [torch.from_numpy(x.astype(np.float64) - zeros["zx"]), torch.from_numpy(w.astype(np.float64))]
    centred[1] -= torch.from_numpy(zeros["zw"].astype(np.float64)).reshape(6, 1, 1, 1)
    padded = torch.nn.functional.pad(centred[0], (2, 1, 1, 0))
    wanted = torch.nn.functional.conv2d(padded, centred[1], stride=(1, 2), groups=2)
    np.testing.assert_array_equal(interpret(graph, *inputs.values())[0], wanted.numpy().astype(np.int32))


def test_conv_integer_with_plain_weights_is_one_operation(rng: np.random.Generator) -> None:
    x, w = drawn(rng, np.uint8, 1, 3, 6, 6), drawn(rng, np.uint8, 4, 3, 3, 3)
    node = helper.make_node("ConvInteger", ["x", "w", "zx", "zw"], ["y"], pads=[1, 1, 1, 1])
    constants = {"w": w, "zx": np.uint8(9), "zw": np.uint8(128)}
    graph = import_onnx(model_of([node], {"x": x}, constants, TensorProto.INT32))
    assert names(graph) == ["conv"]


SHAPES = [((4, 8), (8, 5)), ((2, 4, 8), (2, 8, 5)), ((2, 4, 8), (8, 5)), ((8,), (8, 5)), ((4, 8), (8,)), ((8,), (8,))]


@pytest.mark.parametrize("known", [True, False], ids=["known zero points", "zero points at run time"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_matmul_integer(rng: np.random.Generator, shapes: tuple[tuple[int, ...], ...], known: bool) -> None:
    a, b = drawn(rng, np.uint8, *shapes[0]), drawn(rng, np.int8, *shapes[1])
    rows = shapes[0][-2:-1] if len(shapes[0]) > 1 else ()
    columns = shapes[1][-1:] if len(shapes[1]) > 1 else ()
    zeros = {"za": drawn(rng, np.uint8, *rows), "zb": drawn(rng, np.int8, *columns)}
    node = helper.make_node("MatMulInteger", ["a", "b", "za", "zb"], ["y"])
    inputs, constants = ({"a": a, "b": b}, zeros) if known else ({"a": a, "b": b, **zeros}, {})
    graph = import_onnx(model_of([node], inputs, constants, TensorProto.INT32))
    (product,) = graph.find("matmul")
    assert {value.type.dtype.bytes for value in product.operands} == {1}
    left = a.astype(np.int64) - zeros["za"].astype(np.int64)[(..., None) if rows else ()]
    wanted = np.matmul(left, b.astype(np.int64) - zeros["zb"])
    np.testing.assert_array_equal(interpret(graph, *inputs.values())[0], wanted.astype(np.int32))


# Whole models -------------------------------------------------------------------------------------


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.deep = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.deep(x))
        return self.head(torch.nn.functional.avg_pool2d(x, 8).flatten(1))


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_a_model_that_onnx_runtime_quantised(tmp_path: Path, form: str) -> None:
    """Both forms import as the same operations, follow ONNX Runtime, and become integer code."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    torch.manual_seed(0)
    example = torch.randn(1, 3, 16, 16)
    torch.onnx.export(Small().eval(), (example,), tmp_path / "float.onnx", dynamo=True, verbose=False)
    fed = [{"x": torch.randn(1, 3, 16, 16).numpy()} for _ in range(8)]

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(fed)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    quantization.quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "small.onnx",
        Reader(),
        quant_format=getattr(quantization.QuantFormat, form),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    graph = import_onnx(tmp_path / "small.onnx")
    lowered = optimize(graph, ["lower_quantized"])
    assert [op.operands[0].type.dtype.value for op in lowered.find("conv")] == ["u8"] * len(lowered.find("conv"))
    model = onnx.load(tmp_path / "small.onnx")
    for inputs in fed:
        wanted = runtime(model, inputs)
        for made in (graph, lowered):
            error = np.abs(interpret(made, inputs["x"])[0] - wanted).max() / np.abs(wanted).max()
            assert error < 0.03
