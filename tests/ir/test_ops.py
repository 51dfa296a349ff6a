"""Every op on instances drawn from its own sample: types, text, references against torch, decompositions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.backends.torch.lower import run, to_numpy
from secateur.backends.torch.ops import TABLE
from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.draw import Draw
from secateur.ir.graph import Graph, Op
from secateur.ir.interpret import interpret
from secateur.ir.opdef import all_ops, lookup
from secateur.ir.text import parse, weights
from secateur.ir.types import DType
from secateur.ir.verify import verify

DRAWS = 40
OPS = all_ops()
# rtol and atol by element type: what summing in another order and another libm may cost.
TOLERANCE = {DType.F64: 1e-8, DType.F32: 2e-4, DType.F16: 4e-3, DType.BF16: 3e-2}


def instance(name: str, seed: int) -> tuple[Graph, Op]:
    """A graph of one op over constants, from the op's sample."""
    sample = OPS[name].sample(Draw(seed))
    b = Builder.graph("sample")
    op = b.op(name, sample.operands, dict(sample.attrs))
    return b.returns(*op.results), op


def assert_same(actual: np.ndarray, expected: np.ndarray, *, slack: float = 1.0) -> None:
    """Shapes, types and integers exactly; floats within their type's tolerance, NaN and infinities in place."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    dtype = DType.of(expected.dtype)
    if dtype.is_float:
        actual, expected = actual.astype(np.float64), expected.astype(np.float64)
        tolerance = TOLERANCE[dtype] * slack
        # Sums that cancel err by the size of what they add up, for which the largest result stands in.
        size = max(1.0, np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * size)
    else:
        np.testing.assert_array_equal(actual, expected)


def for_draws(name: str, seed: int, check) -> None:
    """Run `check(graph, op)` on fresh instances; a failure shows the seed and the instance."""
    for number in range(seed, seed + DRAWS):
        graph, op = instance(name, number)
        try:
            check(graph, op)
        except Exception as error:
            raise AssertionError(f"{name}, seed {number}: {error}\n{graph}") from error


@pytest.mark.parametrize("name", OPS)
def test_inference_text_and_cost(name: str, seed: int) -> None:
    def check(graph: Graph, op: Op) -> None:
        verify(graph)
        for array, value in zip(interpret(graph), graph.outputs, strict=True):
            assert (array.shape, array.dtype) == (value.shape, value.type.dtype.numpy)
        text = str(graph)
        assert str(parse(text, weights(graph))) == text
        flops, moved = OPS[name].cost(op)
        assert flops >= 0 and moved >= 0

    for_draws(name, seed, check)


@pytest.mark.parametrize("name", OPS)
def test_reference_agrees_with_torch(name: str, seed: int) -> None:
    def check(graph: Graph, op: Op) -> None:
        for actual, expected in zip(map(to_numpy, run(graph)), interpret(graph), strict=True):
            assert_same(actual, expected)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for_draws(name, seed, check)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.decompose])
def test_decomposition_agrees_with_reference(name: str, seed: int) -> None:
    def check(graph: Graph, op: Op) -> None:
        expected = interpret(graph)
        opdef = lookup(name)
        assert opdef.decompose
        values = opdef.decompose(Builder(graph, op, op.span), op)
        if values is None:
            return
        graph.replace(op, values)
        verify(graph)
        assert not graph.find(name), "a decomposition must not use its own op"
        for actual, wanted in zip(interpret(graph), expected, strict=True):
            assert_same(actual, wanted)

    for_draws(name, seed, check)


# The normalised axis is coupled index for index, though every value depends on all of it.
COUPLED = ("softmax", "log_softmax", "layer_norm", "rms_norm", "group_norm")


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.dim_links])
def test_dim_links_join_equal_sizes(name: str, seed: int) -> None:
    def check(graph: Graph, op: Op) -> None:
        links = OPS[name].dim_links
        assert links
        found = links(op)
        assert len(set(found)) == len(found)
        for link in found:
            assert op.operands[link.operand].shape[link.dim] == op.results[link.result].shape[link.result_dim]

    for_draws(name, seed, check)


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.dim_links and name not in COUPLED])
def test_dim_links_tell_the_truth(name: str, seed: int) -> None:
    """Reversing everything along a linked dimension reverses the result along it and nothing else."""

    def check(graph: Graph, op: Op) -> None:
        links = OPS[name].dim_links
        assert links
        arrays = [value.op.attrs["value"] for value in op.operands if value.op]
        expected = interpret(graph)
        for target in {(link.result, link.result_dim) for link in links(op)}:
            mine = [link for link in links(op) if (link.result, link.result_dim) == target]
            turned = list(arrays)
            for link in mine:
                turned[link.operand] = np.flip(turned[link.operand], link.dim)
            actual = np.asarray(_results(name, turned, op)[target[0]])
            assert_same(np.flip(actual, target[1]), expected[target[0]], slack=2.0)

    for_draws(name, seed, check)


def _results(name: str, arrays: list[np.ndarray], op: Op) -> tuple[np.ndarray, ...]:
    with np.errstate(all="ignore"):
        results = OPS[name].reference(*arrays, **op.attrs)
    return results if isinstance(results, tuple) else (results,)


def test_torch_covers_every_op() -> None:
    assert set(OPS) - set(TABLE) == {"constant", "fusion"}


def test_every_op_is_documented() -> None:
    for name, op in OPS.items():
        assert op.doc.strip().endswith("."), name


REFUSED = {
    "reshape": (["f32[2,3]"], {"shape": (4,)}, "shape [4] has 4 elements, the operand has 6"),
    "transpose": (["f32[2,3]"], {"perm": (0, 0)}, "perm [0, 0] is not a permutation of 0..1"),
    "slice": (
        ["f32[4]"],
        {"starts": (3,), "stops": (9,), "steps": (1,)},
        "3:9 is not a range in dimension 0 of size 4",
    ),
    "concat": (["f32[2,3]", "f32[2,4]"], {"axis": 0}, "shapes must agree in every dimension but 0"),
    "pad": (
        ["f32[3]"],
        {"low": (3,), "high": (0,), "interior": (0,), "mode": "reflect"},
        "mode 'reflect' can add at most 2 to dimension 0 of size 3",
    ),
    "gather": (["f32[0]", "i64[2]"], {"axis": 0}, "cannot index into a dimension of size 0"),
    "reduce_max": (["f32[0,3]"], {"axes": (0,)}, "there is no max of no elements"),
    "reduce_sum": (["f32[2]"], {"axes": (-1,)}, "axis -1 is outside 0..0"),
    "topk": (["f32[3]"], {"k": 4, "axis": 0}, "k = 4 is not in 0..3, the size of dimension 0"),
    "matmul": (["f32[2,3]", "f32[4,5]"], {}, "the last dimension of a, 3, is not the last but one of b, 4"),
    "linear": (["f32[2,3]", "f32[5,4]"], {}, "x must be [..., K] and w [N, K]"),
    "einsum": (["f32[2,3]", "f32[4,5]"], {"equation": "ij,jk->ik"}, "label 'j' stands for 3 and for 4"),
    "conv": (
        ["f32[1,3,8,8]", "f32[8,4,3,3]"],
        {"stride": (1, 1), "padding": (0,) * 4, "dilation": (1, 1)},
        "x has 3 channels, w takes 4 in each of 1 groups",
    ),
    "max_pool": (
        ["f32[1,3,8,8]"],
        {"kernel": (2, 2), "stride": (2, 2), "padding": (2,) * 4, "dilation": (1, 1)},
        "padding [2, 2, 2, 2] leaves windows of [2, 2] outside the input",
    ),
    "group_norm": (["f32[1,6,4]"], {"groups": 4}, "6 channels do not divide into 4 groups"),
    "add": (["f32[2]", "i32[2]"], {}, "operands must have one element type; insert a cast"),
    "maximum": (["f32[2]", "f32[3]"], {}, "shapes [2], [3] do not broadcast"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_what_does_not_fit(name: str) -> None:
    types, attrs, message = REFUSED[name]
    b = Builder.graph("refused", **{f"x{index}": type for index, type in enumerate(types)})
    with pytest.raises(CompileError) as caught:
        b.op(name, b.into.inputs, attrs)
    assert str(caught.value) == f"{name}({', '.join(types)}): {message}"


def test_conv_by_hand() -> None:
    """A 2x2 kernel over a 3x3 image, worked out on paper."""
    x = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    w = np.array([[[[1, 2], [3, 4]]]], np.float32)
    b = Builder.graph("conv")
    y = b.conv(b.constant(x), w, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1))
    assert interpret(b.returns(y))[0].tolist() == [[[[27, 37], [57, 67]]]]


def test_out_of_range_indices_clamp() -> None:
    b = Builder.graph("gather")
    y = b.gather(np.array([10, 20, 30]), np.array([-1, -9, 7, 1]), axis=0)
    assert interpret(b.returns(y))[0].tolist() == [30, 10, 30, 20]


def test_narrow_floats_round_once() -> None:
    """2048 ones in f16 sum to 2048 and 1/2048 more is lost only at the end: no rounding on the way."""
    b = Builder.graph("sum")
    y = b.reduce_sum(np.full(4096, 0.5, np.float16), axes=(0,))
    assert interpret(b.returns(y))[0] == 2048


def test_sort_puts_nan_last_and_keeps_ties_in_order() -> None:
    b = Builder.graph("sort")
    x = np.array([1, np.nan, 3, 1], np.float32)
    up, down = b.sort(x, axis=0), b.sort(x, axis=0, descending=True)
    indices = [array.tolist() for array in interpret(b.returns(up[1], down[1]))]
    assert indices == [[0, 3, 2, 1], [1, 2, 0, 3]]


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_integer_division_is_defined_everywhere(dtype: type) -> None:
    """The lowest number by -1 wraps and anything by 0 is 0, in the reference and in torch."""
    low = int(np.iinfo(dtype).min)
    b = Builder.graph("divide")
    a, d = b.constant(np.array([low, low, -7], dtype)), b.constant(np.array([-1, 0, 2], dtype))
    graph = b.returns(b.floor_div(a, d), b.trunc_div(a, d), b.mod(a, d), b.fmod(a, d))
    expected = [[low, 0, -4], [low, 0, -3], [0, 0, 1], [0, 0, -1]]
    assert [array.tolist() for array in interpret(graph)] == expected
    assert [tensor.tolist() for tensor in run(graph)] == expected
