"""Whole models, places, names, and what users get wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.frontends.open import import_model
from secateur.frontends.torch_export import import_exported, import_module
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.ir.interpret import interpret
from secateur.ir.text import parse, print_graph, weights
from secateur.ir.verify import verify


def error_of(graph: Graph, model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """Norm of the difference over norm, of the first result."""
    with torch.no_grad():
        want = model(*inputs).double().numpy()
    got = interpret(graph, *(item.numpy() for item in inputs))[0]
    assert got.shape == want.shape
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


NAMES = [
    "resnet18",
    "resnet50",
    "mobilenet_v1",
    "mobilenet_v2",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b16",
    "bert_base",
    "distilbert",
    "gpt2",
    "llama",
    "minilm",
]


@pytest.mark.parametrize("name", NAMES)
def test_architectures(name: str) -> None:
    zoo = pytest.importorskip("secateur.tools.zoo", reason="needs transformers")
    model, inputs = zoo.entry(name, small=True).build()
    graph = import_module(model, inputs)
    verify(graph)
    assert error_of(graph, model, inputs) < 1e-5
    text = print_graph(graph, spans=True)
    assert print_graph(parse(text, weights(graph)), spans=True) == text


def test_zoo_is_reproducible_and_leaves_the_random_state_alone() -> None:
    zoo = pytest.importorskip("secateur.tools.zoo", reason="needs transformers")
    assert set(zoo.SMALL) == set(zoo.FULL) == set(NAMES)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, (image,) = zoo.build("resnet18-small")
    assert torch.equal(torch.rand(3), expected)
    second, (again,) = zoo.build("resnet18-small")
    assert torch.equal(image, again)
    assert torch.equal(first(image), second(again))
    with pytest.raises(CompileError, match="did you mean 'resnet50'"):
        zoo.build("resnet5")


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(32, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.register_buffer("scale", torch.arange(4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x)) * self.scale + torch.tensor([1.0, 2.0, 3.0, 4.0])


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x).relu()


def test_constants_keep_names_and_share_memory() -> None:
    model = Outer()
    graph = import_module(model, torch.randn(2, 32))
    constants = {op.attrs["name"]: op.attrs["value"] for op in graph.find("constant")}
    assert {"block.linear.weight", "block.linear.bias", "block.scale", "block.norm.running_mean"} <= set(constants)
    assert "block.norm.num_batches_tracked" not in constants
    assert np.shares_memory(constants["block.linear.weight"], model.block.linear.weight.detach().numpy())
    assert graph.name == "Outer"
    assert model.training, "the module's own mode is restored"


def test_tied_weights_are_one_constant() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(20, 8)
            self.head = torch.nn.Linear(8, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(x))

    graph = import_module(Tied(), torch.tensor([[1, 2]]))
    assert len(graph.find("constant")) == 1


def test_spans_name_the_module_and_the_users_line() -> None:
    graph = import_module(Outer(), torch.randn(2, 32))
    (linear,), (relu,) = graph.find("linear"), graph.find("relu")
    assert linear.span is not None and linear.span.module == "block.linear"
    assert relu.span is not None and relu.span.file.endswith("test_torch_export.py")
    source = Path(__file__).read_text().splitlines()
    assert "relu()" in source[relu.span.line - 1]


def test_outputs_are_flattened_and_none_is_dropped() -> None:
    class Many(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, object]:
            return {"a": x + 1, "b": [x, None], "c": (x * 2,)}

    x = torch.randn(3)
    results = interpret(import_module(Many(), x), x.numpy())
    assert [tuple(r) for r in results] == [tuple((x + 1).numpy()), tuple(x.numpy()), tuple((x * 2).numpy())]


def test_an_exported_program_and_a_saved_one(tmp_path: Path) -> None:
    model, x = Outer().eval(), torch.randn(2, 32)
    program = torch.export.export(model, (x,))
    assert error_of(import_exported(program), model, (x,)) < 1e-6
    torch.export.save(program, tmp_path / "outer.pt2")
    graph = import_model(tmp_path / "outer.pt2")
    assert graph.name == "outer"
    assert error_of(graph, model, (x,)) < 1e-6


def test_nan_and_infinity_pass_through() -> None:
    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x.relu(), x.clamp(-1, 1), x.amax(0), x.softmax(-1), x.median(), torch.maximum(x, x.flip(0)), x.sign()

    x = torch.tensor([[1.0, float("nan"), -2.0], [float("inf"), 0.5, float("-inf")]])
    for got, want in zip(interpret(import_module(Net(), x), x.numpy()), Net()(x), strict=True):
        np.testing.assert_array_equal(np.isnan(got), want.isnan().numpy())
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)


# What users get wrong -----------------------------------------------------------------------------


def test_all_unsupported_operations_are_listed_at_once() -> None:
    class Hard(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y = torch.linalg.inv(x) + torch.linalg.inv(x + 1)
            return y, x.nonzero(), x[x > 0], torch.cummax(x.relu(), 0)[0]

    with pytest.raises(CompileError) as caught:
        import_module(Hard(), torch.randn(3, 3))
    lines = str(caught.value).splitlines()
    assert lines[0] == "the model uses 4 unsupported operations:"
    assert lines[1].startswith("  aten.linalg_inv_ex.default: 2 uses, at ")
    assert "test_torch_export.py:" in lines[1]
    listed = "\n".join(lines[2:5])
    for name in ("aten.nonzero", "aten.index.Tensor (with a mask", "aten.cummax"):
        assert f"  {name}" in listed
    assert lines[5].startswith("hint: ")


def failing(model: torch.nn.Module, inputs: object) -> str:
    with pytest.raises(CompileError) as caught:
        import_module(model, inputs)
    return str(caught.value)


def test_wrong_example_inputs() -> None:
    assert "PyTorch cannot export Outer" in failing(Outer(), torch.randn(2, 31))
    assert "PyTorch cannot export Outer" in failing(Outer(), (torch.randn(2, 32), torch.randn(2)))


def test_dynamic_shapes_are_refused() -> None:
    batch = torch.export.Dim("batch", min=2, max=8)
    program = torch.export.export(torch.nn.Linear(3, 4), (torch.randn(4, 3),), dynamic_shapes=({0: batch},))
    with pytest.raises(CompileError, match="dynamic shape") as caught:
        import_exported(program)
    assert "without dynamic_shapes" in str(caught.value)


def test_state_that_changes_is_refused() -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(1)
            return x + self.count

    assert "changes 'count' while it runs" in failing(Counter(), torch.randn(1))


def test_training_mode_is_refused() -> None:
    program = torch.export.export(Outer().train(), (torch.randn(2, 32),))
    with pytest.raises(CompileError, match="training mode"):
        import_exported(program)


def test_complex_tensors_are_refused() -> None:
    class Fourier(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.rfft(x).abs()

    assert "_fft_r2c" in failing(Fourier(), torch.randn(8))


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    path = tmp_path / "broken.pt2"
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(CompileError, match=r"is not a torch\.export archive"):
        import_model(path)
