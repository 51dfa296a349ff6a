"""Models built with onnx.helper and exported from torch, against torch and NumPy."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from secateur.frontends.onnx import import_onnx  # noqa: E402
from secateur.ir.diagnostics import CompileError  # noqa: E402
from secateur.ir.interpret import interpret  # noqa: E402
from secateur.ir.text import parse, print_graph, weights  # noqa: E402

F32 = TensorProto.FLOAT


def tensor(name: str, shape: Any, kind: int = F32) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[str],
    weights: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 21,
    **extra: Any,
) -> Any:
    initializers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "net", inputs, [tensor(name, None) for name in outputs], initializers)
    opsets = [helper.make_opsetid("", opset), *extra.pop("opsets", [])]
    return helper.make_model(graph, opset_imports=opsets, **extra)


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.default_rng().integers(1 << 30))
    print("seed", seed)
    return np.random.default_rng(seed)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def close(actual: np.ndarray, wanted: np.ndarray, limit: float = 1e-5) -> None:
    assert actual.shape == wanted.shape
    assert actual.dtype == wanted.dtype
    error = np.linalg.norm(actual.astype(np.float64) - wanted) / max(np.linalg.norm(wanted), 1e-12)
    assert error < limit


def test_mlp_with_gemm_and_relu(rng: np.random.Generator) -> None:
    w, bias, x = normal(rng, 8, 4), normal(rng, 8), normal(rng, 3, 4)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="fc", transB=1),
        helper.make_node("Relu", ["h"], ["y"], name="act"),
    ]
    graph = import_onnx(model_of(nodes, [tensor("x", [3, 4])], ["y"], {"w": w, "b": bias}))
    assert [op.name for op in graph.ops] == ["constant", "constant", "linear", "relu"]
    (linear,) = graph.find("linear")
    assert linear.span is not None and linear.span.module == "fc"
    assert [op.attrs["name"] for op in graph.find("constant")] == ["w", "b"]
    close(interpret(graph, x)[0], np.maximum(x @ w.T + bias, 0))


def test_shape_arithmetic_is_folded_away(rng: np.random.Generator) -> None:
    """Shape -> Gather -> Unsqueeze -> Concat -> Reshape, as exporters write a flatten."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["y"]),
    ]
    weights = {"zero": np.asarray(0), "axes": np.asarray([0]), "rest": np.asarray([-1])}
    graph = import_onnx(model_of(nodes, [tensor("x", [2, 3, 4])], ["y"], weights))
    assert [op.name for op in graph.ops] == ["reshape"]
    x = normal(rng, 2, 3, 4)
    np.testing.assert_array_equal(interpret(graph, x)[0], x.reshape(2, 12))


def test_folding_does_not_blow_up_what_is_stated_briefly() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
        helper.make_node("Add", ["big", "x"], ["y"]),
    ]
    graph = import_onnx(model_of(nodes, [tensor("x", [1])], ["y"], {"s": np.asarray([4096, 4096])}))
    assert max(op.attrs["value"].size for op in graph.find("constant")) == 1


def test_symbolic_dimensions_need_input_shapes() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], [tensor("x", ["batch", 4])], ["y"])
    with pytest.raises(CompileError, match=r"dimension 0 is symbolic \('batch'\)(.|\n)*input_shapes="):
        import_onnx(model)
    assert import_onnx(model, {"batch": 3}).outputs[0].shape == (3, 4)
    assert import_onnx(model, {"x": (5, 4)}).outputs[0].shape == (5, 4)
    with pytest.raises(CompileError, match="the model has"):
        import_onnx(model, {"x": (5, 6)})
    with pytest.raises(CompileError, match="no input or dimension called 'bach'"):
        import_onnx(model, {"bach": 3})


def test_one_error_lists_every_unsupported_op() -> None:
    nodes = [
        helper.make_node("GridSample", ["x", "g"], ["a"], name="warp1"),
        helper.make_node("GridSample", ["a", "g"], ["b"], name="warp2"),
        helper.make_node("Sparkle", ["b"], ["y"], name="extra", domain="my.ops"),
    ]
    model = model_of(
        nodes,
        [tensor("x", [1, 1, 4, 4]), tensor("g", [1, 4, 4, 2])],
        ["y"],
        opsets=[helper.make_opsetid("my.ops", 1)],
    )
    with pytest.raises(CompileError) as caught:
        import_onnx(model)
    text = str(caught.value)
    assert "2 unsupported ops" in text
    assert "GridSample x2: warp1, warp2" in text
    assert "my.ops.Sparkle x1: extra" in text


def test_unknown_attribute_is_refused() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"], slope=0.5)], [tensor("x", [4])], ["y"])
    with pytest.raises(CompileError, match="attribute 'slope' is not supported"):
        import_onnx(model)


def test_model_local_functions_are_inlined(rng: np.random.Generator) -> None:
    body = [
        helper.make_node("Constant", [], ["c"]),
        helper.make_node("Mul", ["a", "c"], ["scaled"]),
        helper.make_node("Tanh", ["scaled"], ["r"]),
    ]
    body[0].attribute.add(name="value_float", type=onnx.AttributeProto.FLOAT, ref_attr_name="alpha")
    function = helper.make_function("my", "Squash", ["a"], ["r"], body, [helper.make_opsetid("", 21)], ["alpha"])
    nodes = [helper.make_node("Squash", ["x"], ["y"], domain="my", alpha=0.5, name="squash")]
    model = model_of(nodes, [tensor("x", [3])], ["y"], opsets=[helper.make_opsetid("my", 1)], functions=[function])
    x = normal(rng, 3)
    graph = import_onnx(model)
    close(interpret(graph, x)[0], np.tanh(x * np.float32(0.5)))
    (tanh,) = graph.find("tanh")
    assert tanh.span is not None and tanh.span.module == "squash/r"


def test_recursive_function_is_refused() -> None:
    body = [helper.make_node("Again", ["a"], ["r"], domain="my")]
    function = helper.make_function("my", "Again", ["a"], ["r"], body, [helper.make_opsetid("my", 1)])
    model = model_of(
        [helper.make_node("Again", ["x"], ["y"], domain="my")],
        [tensor("x", [3])],
        ["y"],
        opsets=[helper.make_opsetid("my", 1)],
        functions=[function],
    )
    with pytest.raises(CompileError, match="nested more than"):
        import_onnx(model)


@pytest.mark.parametrize("flag", [True, False])
def test_branches(rng: np.random.Generator, flag: bool) -> None:
    """A constant condition picks a branch, another one chooses by `where`."""
    branches = {
        key: helper.make_graph([helper.make_node(name, ["x"], ["r"])], key, [], [tensor("r", [3])])
        for key, name in (("then_branch", "Neg"), ("else_branch", "Exp"))
    }
    nodes = [helper.make_node("If", ["c"], ["y"], **branches)]
    x = normal(rng, 3)
    wanted = -x if flag else np.exp(x)
    known = import_onnx(model_of(nodes, [tensor("x", [3])], ["y"], {"c": np.asarray(flag)}))
    assert len(known) == 1
    close(interpret(known, x)[0], wanted)
    chosen = import_onnx(model_of(nodes, [tensor("x", [3]), tensor("c", [], TensorProto.BOOL)], ["y"]))
    close(interpret(chosen, x, np.asarray(flag))[0], wanted)


def test_old_softmax_flattens(rng: np.random.Generator) -> None:
    nodes = [helper.make_node("Softmax", ["x"], ["y"], axis=1)]
    x = normal(rng, 2, 3, 4)
    shifted = np.exp(x - x.max((1, 2), keepdims=True))
    old = import_onnx(model_of(nodes, [tensor("x", [2, 3, 4])], ["y"], opset=11))
    close(interpret(old, x)[0], shifted / shifted.sum((1, 2), keepdims=True))
    new = import_onnx(model_of(nodes, [tensor("x", [2, 3, 4])], ["y"], opset=13))
    close(interpret(new, x)[0], shifted / shifted.sum(1, keepdims=True))


def test_negative_steps_and_clamped_bounds(rng: np.random.Generator) -> None:
    x = normal(rng, 5, 7)
    weights = {
        "starts": np.asarray([-1, 100]),
        "ends": np.asarray([-100, 1]),
        "axes": np.asarray([0, 1]),
        "steps": np.asarray([-2, -3]),
    }
    model = model_of([helper.make_node("Slice", ["x", *weights], ["y"])], [tensor("x", [5, 7])], ["y"], weights)
    np.testing.assert_array_equal(interpret(import_onnx(model), x)[0], x[::-2, 100:1:-3])


def exported(module: Any, *inputs: Any) -> Any:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module.eval(), inputs, dynamo=True, verbose=False)
    return program.model_proto


def agree_with_torch(module: Any, *inputs: Any, limit: float = 1e-4) -> str:
    import torch

    graph = import_onnx(exported(module, *inputs))
    with torch.no_grad():
        wanted = module(*inputs)
    actual = interpret(graph, *(value.numpy() for value in inputs))
    close(actual[0], wanted.numpy(), limit)
    return print_graph(graph)


def test_torch_residual_network() -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, a: int, b: int, stride: int) -> None:
            super().__init__()
            self.path = nn.Sequential(
                nn.Conv2d(a, b, 3, stride, 1, bias=False),
                nn.BatchNorm2d(b),
                nn.ReLU(),
                nn.Conv2d(b, b, 3, 1, 1, groups=4),
            )
            self.skip = nn.Conv2d(a, b, 1, stride)

        def forward(self, x: Any) -> Any:
            return torch.relu(self.path(x) + self.skip(x))

    module = nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        Block(8, 16, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    agree_with_torch(module, torch.randn(2, 3, 33, 33))


def test_torch_bert() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )

    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = transformers.BertModel(config)

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.bert(input_ids=ids, attention_mask=mask).last_hidden_state

    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    agree_with_torch(First().eval(), torch.randint(0, 50, (2, 9)), mask)


def test_torch_lstm() -> None:
    torch = pytest.importorskip("torch")

    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.lstm(x)[0]

    agree_with_torch(Last().eval(), torch.randn(2, 7, 5))


def test_odd_names_survive_the_text_form(rng: np.random.Generator) -> None:
    """Names in models are free text; they must neither break printing nor collide."""
    odd = 'a b"%\n{}é'
    nodes = [
        helper.make_node("Add", [odd, "w 1"], ["m/0:1"], name='"); system("'),
        helper.make_node("Relu", ["m/0:1"], ["y\t"]),
    ]
    big = normal(rng, 40)
    graph = import_onnx(model_of(nodes, [tensor(odd, [40])], ["y\t"], {"w 1": big}))
    text = print_graph(graph)
    assert print_graph(parse(text, weights(graph))) == text
