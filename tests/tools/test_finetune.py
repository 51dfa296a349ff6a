"""Fine-tuning: never worse than the start, distillation, and runs that go on bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secateur.backends.torch.lower import run
from secateur.backends.torch.train import float_constants, to_graph, trainable
from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError, Span
from secateur.ir.graph import Graph
from secateur.ir.interpret import interpret
from secateur.ir.text import weights
from secateur.ir.types import DType
from secateur.tools.finetune.checkpoint import load_checkpoint, own_randomness, random_state
from secateur.tools.finetune.loop import Finetuned, Hooks, Moment, finetune
from secateur.tools.finetune.objectives import Distillation, Objective, cross_entropy, distil, find_value
from secateur.tools.finetune.schedule import Settings, share_at

CLASSES = 4
Batch = tuple[np.ndarray, ...]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def network(rng: np.random.Generator, most: int = 0) -> Graph:
    """linear -> relu -> linear with random weights; `most` is the largest code of quantised ones."""
    b = Builder.graph("mlp", x="f32[1,8]")
    h = b["x"]
    for name, (n, k) in {"first": (16, 8), "second": (CLASSES, 16)}.items():
        b.span = Span(module=name)
        w = (rng.standard_normal((n, k)) / math.sqrt(k)).astype(np.float32)
        if most:
            s, z = b.constant(0.03), b.constant(0 if name == "second" else 128, DType.U8)
            h = b.dequantize(b.quantize(h, s, z), s, z)
            scale = np.abs(w).max(axis=1, keepdims=True) / np.float32(most)
            codes = b.constant(np.round(w / scale).astype(np.int8), name=f"{name}.weight")
            weight = b.dequantize(codes, scale, np.zeros((), np.int8))
        else:
            weight = b.constant(w, name=f"{name}.weight")
        h = b.linear(h, weight, b.constant(np.zeros(n, np.float32), name=f"{name}.bias"))
        h = b.relu(h) if name == "first" else h
    return b.returns(h)


def pair(rng: np.random.Generator, most: int = 3) -> tuple[Graph, Graph]:
    """A float network and the same one, quantised coarsely."""
    seed = int(rng.integers(1 << 30))
    return network(np.random.default_rng(seed)), network(np.random.default_rng(seed), most)


def data(rng: np.random.Generator, teacher: Graph, count: int = 6, size: int = 16) -> list[Batch]:
    """Batches of inputs with the teacher's decisions as labels."""
    made = []
    for _ in range(count):
        x = rng.standard_normal((size, 8)).astype(np.float32)
        logits = trainable(teacher)(torch.from_numpy(x))[0]
        made.append((x, logits.argmax(-1).numpy()))
    return made


QUICK = Settings(steps=60, rate=3e-3, evaluate_every=10)


def assert_same_values(a: Graph, b: Graph) -> None:
    assert str(a) == str(b)
    for name, array in weights(a).items():
        np.testing.assert_array_equal(array, weights(b)[name])


def constants(graph: Graph) -> list[np.ndarray]:
    return [op.attrs["value"] for op in graph.find("constant")]


# What it is for -----------------------------------------------------------------------------------


def test_distillation_brings_a_quantised_graph_closer_to_its_teacher(rng: np.random.Generator) -> None:
    teacher, student = pair(rng)
    batches = data(rng, teacher)
    soft = distil(teacher, Distillation(share=1.0))
    settings = Settings(steps=150, rate=3e-3, evaluate_every=25)
    result = finetune(student, batches, soft, settings, masters=float_constants(teacher))
    assert result.best_step > 0 and result.steps == 150
    assert 0 < -result.best < -0.8 * result.start  # the score is minus the divergence from the teacher


def test_the_result_is_what_was_simulated(rng: np.random.Generator) -> None:
    """The score of the returned graph is the best one; its codes stay in their range."""
    teacher, student = pair(rng)
    batches = data(rng, teacher)
    objective = distil(teacher)
    result = finetune(student, batches, objective, QUICK, held_out=batches[:2])
    module = trainable(result.graph)
    losses = []
    for x, labels in batches[:2]:
        inputs = (torch.from_numpy(x),)
        losses.append(objective.compute(module(*inputs), inputs, (torch.from_numpy(labels),)).item())
    assert -sum(losses) / 2 == result.best
    codes = [array for array in constants(result.graph) if array.dtype == np.int8 and array.ndim]
    assert len(codes) == 2 and all(np.abs(array).max() <= 7 for array in codes)
    x = batches[0][0][:1]
    assert np.isfinite(interpret(result.graph, x)[0]).all()


def test_never_worse_than_the_start(rng: np.random.Generator) -> None:
    """pytorch/pytorch#114859: training that only harms gives back the graph it was given, to the bit."""
    teacher, student = pair(rng, most=127)
    harmful = Settings(steps=20, rate=1.0, clip=0, evaluate_every=5)
    objective = Objective(lambda outputs, inputs, extra: -outputs[0].square().mean())

    def metric(program: Any) -> float:
        mine = program(batches[0][0])
        return -float(np.abs(mine - wanted).max())

    batches = data(rng, teacher)
    wanted = trainable(teacher)(torch.from_numpy(batches[0][0]))[0].numpy(force=True)
    result = finetune(student, batches, objective, harmful, metric=metric)
    assert (result.best, result.best_step, result.steps) == (result.start, 0, 20)
    assert all(record["score"] < result.start for record in result.history[1:])
    assert_same_values(result.graph, student)


def test_cross_entropy_learns_labels(rng: np.random.Generator) -> None:
    teacher, _ = pair(rng)
    student = network(rng, most=7)
    batches = data(rng, teacher, count=8)

    def accuracy(program: Any) -> float:
        return float(np.mean([(program(x).argmax(-1) == labels).mean() for x, labels in batches]))

    result = finetune(student, batches, cross_entropy(), Settings(steps=150, rate=1e-2), metric=accuracy)
    assert result.best > max(0.7, result.start)


def test_inner_values_are_matched_by_name(rng: np.random.Generator) -> None:
    teacher, student = pair(rng)
    batches = [batch[:1] for batch in data(rng, teacher)]
    objective = distil(teacher, Distillation(match={"first": 50.0}))
    result = finetune(student, batches, objective, Settings(steps=150, rate=5e-3, evaluate_every=50))
    x = torch.from_numpy(np.concatenate([batch[0] for batch in batches]))
    inner = [_inner(graph, x) for graph in (teacher, student, result.graph)]
    assert (inner[2] - inner[0]).square().mean() < 0.8 * (inner[1] - inner[0]).square().mean()
    assert len(result.graph.outputs) == 1


def _inner(graph: Graph, x: torch.Tensor) -> torch.Tensor:
    made = graph.clone()
    made.outputs = [find_value(made, "first")]
    return trainable(made)(x)[0]


def test_values_are_found_by_hint_module_and_weights(rng: np.random.Generator) -> None:
    for graph in pair(rng):
        relu = graph.find("relu")[0]
        assert find_value(graph, "first") is relu.result
        assert find_value(graph, "first.weight") is graph.find("linear")[0].result
        relu.result.hint = "hidden"
        assert find_value(graph, "hidden") is relu.result
        with pytest.raises(CompileError, match=r"has no value 'frist'\nhint: did you mean 'first'\?"):
            find_value(graph, "frist")


@pytest.mark.parametrize("kind", ["kl", "mse", "cosine"])
def test_a_student_that_equals_its_teacher_has_no_soft_loss(kind: Any, rng: np.random.Generator) -> None:
    teacher, _ = pair(rng)
    objective = distil(teacher, Distillation(kind=kind, share=1.0, match={"first": 1.0}))
    x = (torch.from_numpy(data(rng, teacher, 1)[0][0]),)
    outputs = trainable(teacher)(*x)[0], _inner(teacher, x[0])
    assert abs(objective.compute(outputs, x, ()).item()) < 1e-6


def test_temperature_leaves_gradients_their_size(rng: np.random.Generator) -> None:
    """Hinton et al. 2015: T^2 keeps the soft gradients at about those of differences of logits over classes."""
    teacher, _ = pair(rng)
    x = (torch.from_numpy(data(rng, teacher, 1)[0][0]),)
    wanted = trainable(teacher)(*x)[0].detach()
    logits = (wanted + 0.01 * torch.from_numpy(rng.standard_normal(wanted.shape).astype(np.float32))).requires_grad_()
    distil(teacher, Distillation(temperature=50.0, share=1.0)).compute((logits,), x, ()).backward()
    shift = (logits - wanted).detach()
    expected = (shift - shift.mean(-1, keepdim=True)) / CLASSES / len(shift)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected, rtol=0.2, atol=float(expected.abs().max()) * 0.1)


# Going on -----------------------------------------------------------------------------------------


def drawing(teacher: Graph) -> Any:
    """A data function that draws from the global generators while it runs."""

    def batches(epoch: int) -> Iterator[Batch]:
        for _ in range(5):
            x = np.random.standard_normal((4, 8)).astype(np.float32) + 0.1 * epoch
            x += torch.rand(4, 8).numpy()
            yield x, trainable(teacher)(torch.from_numpy(x))[0].argmax(-1).numpy()

    return batches


@pytest.mark.parametrize("cut", [3, 7, 10, 18])
def test_a_resumed_run_is_the_uninterrupted_one(cut: int, rng: np.random.Generator, tmp_path: Path) -> None:
    teacher, student = pair(rng)
    settings = Settings(steps=18, rate=3e-3, evaluate_every=4, accumulate=2, seed=5)
    path = tmp_path / "deep" / "run.safetensors"

    def go(**options: Any) -> Finetuned:
        return finetune(student, drawing(teacher), distil(teacher), settings, hooks=Hooks(**options))

    class Interrupted(Exception):
        pass

    def interrupt(moment: Moment) -> None:
        if moment.step == cut + 1:
            raise Interrupted

    whole = go()
    if cut < 18:
        with pytest.raises(Interrupted):
            go(checkpoint=path, every=cut, on_step=interrupt)
    else:
        go(checkpoint=path)
    resumed = go(checkpoint=path, resume=True)
    assert_same_values(resumed.graph, whole.graph)
    assert json.dumps(resumed.history) == json.dumps(whole.history)
    assert (resumed.best, resumed.best_step, resumed.steps) == (whole.best, whole.best_step, 18)
    assert [item.name for item in path.parent.iterdir()] == ["run.safetensors"]


def test_checkpoints_of_something_else_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    teacher, student = pair(rng)
    path = tmp_path / "run.safetensors"
    batches, settings = data(rng, teacher), Settings(steps=2)

    def go(graph: Graph, settings: Settings) -> Finetuned:
        return finetune(graph, batches, distil(teacher), settings, hooks=Hooks(checkpoint=path, resume=True))

    go(student, settings)
    with pytest.raises(CompileError, match=r"is of a run with rate = 0\.0001, not 0\.5"):
        go(student, Settings(steps=2, rate=0.5))
    with pytest.raises(CompileError, match="is of another graph"):
        go(network(rng, most=3), settings)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CompileError, match=r"cannot read the checkpoint .*run\.safetensors"):
        go(student, settings)
    with pytest.raises(CompileError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none")


def test_the_callers_random_numbers_stay_as_they_were(rng: np.random.Generator) -> None:
    before = random_state()
    with own_randomness(3):
        torch.rand(3)
        np.random.rand(3)
    after = random_state()
    for name in ("torch", "numpy.keys", "numpy.place", "python.words"):
        assert torch.equal(before[name], after[name]), name


# Options and hooks --------------------------------------------------------------------------------


def test_frozen_parameters_stay(rng: np.random.Generator) -> None:
    teacher, student = pair(rng)
    settings = Settings(steps=20, rate=3e-3, frozen=("step_*", "*.bias", "*_bias"))
    with pytest.raises(CompileError, match=r"no parameter is called '\*\.bias'"):
        finetune(student, data(rng, teacher), distil(teacher), settings)
    settings = Settings(steps=100, rate=5e-3, frozen=("step_*", "*_bias"))
    result = finetune(student, data(rng, teacher), distil(teacher), settings)
    pairs = list(zip(constants(student), constants(result.graph), strict=True))
    assert all(np.array_equal(a, b) for a, b in pairs if a.dtype != np.int8)
    assert any(not np.array_equal(a, b) for a, b in pairs)
    with pytest.raises(CompileError, match="the graph has no parameters to train"):
        finetune(student, data(rng, teacher), distil(teacher), Settings(frozen=("*",)))


def test_hooks_see_each_step_and_may_stop(rng: np.random.Generator) -> None:
    teacher, student = pair(rng)
    told: list[tuple[str, float | None]] = []
    seen: list[Moment] = []

    def on_step(moment: Moment) -> bool:
        seen.append(moment)
        return moment.step == 7

    hooks = Hooks(on_step=on_step, progress=lambda what, share: told.append((what, share)))
    result = finetune(student, data(rng, teacher), distil(teacher), QUICK, hooks=hooks)
    assert [moment.step for moment in seen] == list(range(1, 8))
    assert (result.steps, result.stopped, result.history[-1]["step"]) == (7, "on_step said so", 7)
    assert ("evaluating", None) in told and ("fine-tuning", 7 / 60) in told


def test_patience(rng: np.random.Generator) -> None:
    teacher, student = pair(rng)
    settings = Settings(steps=50, rate=0.0, evaluate_every=2, patience=3)
    result = finetune(student, data(rng, teacher), distil(teacher), settings)
    assert (result.steps, result.stopped) == (6, "no better score in 3 evaluations")


def test_a_loop_of_ones_own(rng: np.random.Generator) -> None:
    """What finetune does can be done by hand: a module, a loss and the way back."""
    teacher, student = pair(rng)
    module, objective = trainable(student), distil(teacher)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
    losses = []
    for x, _ in data(rng, teacher, count=2) * 15:
        optimizer.zero_grad()
        loss = objective.compute(module(torch.from_numpy(x)), (torch.from_numpy(x),), ())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-2:]) < sum(losses[:2])
    x = torch.from_numpy(rng.standard_normal((1, 8)).astype(np.float32))
    assert torch.equal(run(to_graph(module, student), x)[0], module(x)[0])


def test_learning_rates_over_time() -> None:
    cosine = [share_at(step, Settings(steps=20, warmup=0.2, final=0.1)) for step in range(20)]
    assert cosine[:5] == [0.25, 0.5, 0.75, 1.0, 1.0] and cosine[4:] == sorted(cosine[4:], reverse=True)
    assert 0.1 < cosine[-1] < 0.12
    linear = [share_at(step, Settings(steps=4, warmup=0, schedule="linear")) for step in range(4)]
    assert linear == [1.0, 0.75, 0.5, 0.25]
    assert share_at(3, Settings(steps=4, schedule="constant")) == 1.0


def test_mappings_and_repeatable_functions_are_data_too(rng: np.random.Generator) -> None:
    teacher, student = pair(rng)
    plain = data(rng, teacher)
    named = [{"labels": labels, "x": x} for x, labels in plain]
    results = [
        finetune(student, source, distil(teacher), Settings(steps=4)) for source in (plain, named, lambda: plain)
    ]
    assert results[0].history[-1] == results[1].history[-1] == results[2].history[-1]


# Nonsense -----------------------------------------------------------------------------------------

X = np.zeros((4, 8), np.float32)
REFUSED: dict[str, tuple[Any, str]] = {
    "none": ([], "there are no batches to judge by"),
    "once": (iter([(X,)]), "the batches can be read only once"),
    "shape": ([(X[:, :5],)], r"held-out batch 1: x must be f32\[1,8\], at any batch size, got float32\[4, 5\]"),
    "type": ([(X.astype(np.float64),)], r"x must be f32\[1,8\], at any batch size, got float64"),
    "nan": ([(X * np.nan,)], "held-out batch 1: x holds NaN or infinity"),
    "few": ([()], r"held-out batch 1 holds 0 tensors, graph @mlp takes 1 inputs"),
    "names": ([{"y": X}], "held-out batch 1 has no 'x'\nhint: it holds y"),
    "raises": (lambda: 1 / 0, r"the data failed: ZeroDivisionError: division by zero \(.*test_finetune\.py:\d+\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_batches_that_do_not_fit(case: str, rng: np.random.Generator) -> None:
    teacher, student = pair(rng)
    batches, message = REFUSED[case]
    with pytest.raises(CompileError, match=message):
        finetune(student, batches, distil(teacher), Settings(steps=1))


def test_scores_and_losses_that_mean_nothing(rng: np.random.Generator) -> None:
    teacher, student = pair(rng)
    batches = data(rng, teacher)

    def go(metric: Any = None, objective: Objective | None = None, **options: Any) -> Finetuned:
        return finetune(student, batches, objective or distil(teacher), Settings(steps=3, **options), metric=metric)

    with pytest.raises(CompileError, match="the score at the start is nan"):
        go(lambda program: math.nan)
    with pytest.raises(CompileError, match="the metric gave str, not a number"):
        go(lambda program: "good")
    with pytest.raises(CompileError, match=r"the metric failed: KeyError: 'top1' \(.*test_finetune\.py:\d+\)"):
        go(lambda program: {}["top1"])
    infinite = Objective(lambda outputs, inputs, extra: outputs[0].sum() / 0)
    with pytest.raises(CompileError, match="before the first step\nhint: look at the data and the labels"):
        go(lambda program: 0.0, infinite)
    calls: list[int] = []

    def later(outputs: Any, inputs: Any, extra: Any) -> torch.Tensor:
        calls.append(1)
        return outputs[0].sum() * (math.nan if len(calls) > 2 else 1)

    result = go(lambda program: 0.0, Objective(later))
    assert result.steps == 2 and result.stopped.startswith("the loss was nan after step 2")
    assert_same_values(result.graph, student)


def test_labels_and_options_that_mean_nothing(rng: np.random.Generator) -> None:
    teacher, student = pair(rng)
    (x, labels), *_ = data(rng, teacher)
    with pytest.raises(CompileError, match="a batch holds no labels"):
        finetune(student, [(x,)], cross_entropy())
    with pytest.raises(CompileError, match="labels must be integers, one for each row of logits"):
        finetune(student, [(x, labels[:3])], cross_entropy())
    with pytest.raises(CompileError, match="has no value 'third'"):
        distil(teacher, Distillation(match={"third": 1.0}))
    with pytest.raises(CompileError, match=r"outputs \[1\] are not all in 0\.\.0 of the teacher"):
        distil(teacher, Distillation(outputs=(1,)))
    for wrong, message in (
        ({"steps": -1}, "steps must be 0 or more, got -1"),
        ({"rate": math.inf}, "rate must be a finite number of 0 or more, got inf"),
        ({"schedule": "cos"}, "'cos' is not one of cosine, linear, constant"),
        ({"warmup": 2.0}, r"warmup 2\.0 and final 0\.0 must be in 0\.\.1"),
    ):
        with pytest.raises(CompileError, match=message):
            Settings(**wrong)  # type: ignore[arg-type]


def test_a_graph_that_mixes_examples_takes_its_own_batch_size_only(rng: np.random.Generator) -> None:
    b = Builder.graph("mixing", x="f32[2,8]")
    w = b.constant(rng.standard_normal((3, 8)).astype(np.float32), name="w")
    y = b.linear(b.sub(b["x"], b.reduce_mean(b["x"], axes=(0,), keepdims=True)), w)
    graph = b.returns(y)
    objective = Objective(lambda outputs, inputs, extra: outputs[0].square().mean())
    x = rng.standard_normal((6, 8)).astype(np.float32)
    finetune(graph, [(x[:2],)], objective, Settings(steps=1))
    with pytest.raises(CompileError, match="is made for batches of 2 and mixes the examples of one of 6"):
        finetune(graph, [(x,)], objective, Settings(steps=1))
