"""`torch.compile(model, backend="secateur")`: compiled where it can be, eager where not, and said so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch

from secateur.ir.diagnostics import CompileError
from secateur.tools import dynamo
from secateur.tools.zoo import build


class Mlp(torch.nn.Module):
    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.norm = torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8)
        self.second, self.drop = torch.nn.Linear(8, 3), torch.nn.Dropout()
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.second(self.between(self.norm(self.first(x)))))


def through_python(x: torch.Tensor) -> torch.Tensor:
    return x * float(x.sum().item() > 0)


def through_fft(x: torch.Tensor) -> torch.Tensor:
    return torch.fft.irfft(torch.fft.rfft(x), n=8)


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dynamo._Piece]]:
    """The pieces that a test's models are traced into; nothing is left of other tests."""
    made: list[dynamo._Piece] = []
    monkeypatch.setattr(dynamo, "_said", set())
    original = dynamo._Piece

    def recorded(*given: object) -> dynamo._Piece:
        made.append(original(*given))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(dynamo, "_Piece", recorded)
    torch.manual_seed(0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield made
    torch._dynamo.reset()


def check(model: torch.nn.Module, *inputs: torch.Tensor, **options: object) -> list[str]:
    """Compare with eager and return what was said."""
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = torch.compile(model, backend="secateur", **options)(*inputs)  # type: ignore[call-overload]
        torch.testing.assert_close(got, model(*inputs), rtol=1e-4, atol=1e-4)
    return [str(item.message) for item in caught if str(item.message).startswith("secateur: ")]


def test_a_model_of_the_zoo(pieces: list[dynamo._Piece]) -> None:
    model, inputs = build("resnet18-small")
    assert check(model, *inputs, options={"threads": 1}) == []
    (piece,) = pieces
    (program,) = piece.programs.values()
    assert program is not None and program.manifest["threads"] == 1
    assert len(program.manifest["inputs"]) == 1, "parameters are constants"


def test_a_graph_break_is_said(pieces: list[dynamo._Piece]) -> None:
    said = check(Mlp(through_python).eval(), torch.randn(2, 6))
    assert len(said) == 1 and "the model is split where PyTorch cannot trace it" in said[0]
    assert len(pieces) > 1 and all(all(piece.programs.values()) for piece in pieces)


def test_an_unsupported_operation_runs_in_eager_and_is_said(pieces: list[dynamo._Piece]) -> None:
    said = check(Mlp(through_fft).eval(), torch.randn(2, 6))
    assert len(said) == 1 and "operations of the model run in eager PyTorch" in said[0] and "fft" in said[0]
    assert [list(piece.programs.values()) for piece in pieces] == [[None]]


def test_gradients_run_in_eager_and_are_right() -> None:
    model = Mlp(torch.relu).eval()
    with pytest.warns(UserWarning, match="call the model under torch.no_grad"):
        torch.compile(model, backend="secateur")(torch.randn(2, 6)).sum().backward()
    assert model.first.weight.grad is not None


def test_training_mode_is_not_frozen() -> None:
    model = Mlp(torch.relu).train()
    before = model.norm.running_mean.clone()
    with torch.no_grad(), pytest.warns(UserWarning, match="run in eager PyTorch"):
        torch.compile(model, backend="secateur")(torch.randn(4, 6))
    assert not torch.equal(model.norm.running_mean, before)


def test_new_parameters_are_seen(pieces: list[dynamo._Piece]) -> None:
    model, x = Mlp(torch.relu).eval(), torch.randn(2, 6)
    compiled = torch.compile(model, backend="secateur")
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(x), model(x))
            model.second.bias.add_(1.0)
        model.load_state_dict({name: tensor * 0.5 for name, tensor in model.state_dict().items()})
        torch.testing.assert_close(compiled(x), model(x))
    assert len(pieces) == 1


def test_every_shape_has_its_program() -> None:
    model = Mlp(torch.relu).eval()
    compiled = torch.compile(model, backend="secateur")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in (2, 3, 5, 2):
            x = torch.randn(rows, 6)
            torch.testing.assert_close(compiled(x), model(x))


def test_results_that_share_memory_stay_shared() -> None:
    def twice(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x + 1
        return y, y.view(-1)

    with torch.no_grad(), pytest.warns(UserWarning, match="share memory"):
        y, flat = torch.compile(twice, backend="secateur")(torch.zeros(2, 2))
    y.add_(1)
    assert flat.tolist() == [2, 2, 2, 2]


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(Exception, match=r"no option 'thread'(.|\n)*did you mean 'threads'") as caught, torch.no_grad():
        torch.compile(Mlp(torch.relu).eval(), backend="secateur", options={"thread": 1})(torch.randn(2, 6))
    assert isinstance(caught.value, CompileError) or "CompileError" in str(caught.value)
