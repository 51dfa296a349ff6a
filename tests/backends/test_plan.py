"""Views against NumPy's own strided arrays, and the memory plan by running it on paper."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from secateur.backends.cpu.compile import Options, compile_graph
from secateur.backends.cpu.kernel import Kernel
from secateur.backends.cpu.legalize import legalize
from secateur.backends.cpu.lower import Lowered, Step, lower
from secateur.backends.cpu.plan import ALIGNMENT, plan
from secateur.backends.cpu.target import find_target
from secateur.backends.cpu.views import ARENA, INPUT, OUTPUT, WEIGHT, Buffer, View, collapse, contiguous_strides
from secateur.ir.builder import Builder
from secateur.ir.draw import Draw
from secateur.ir.graph import Graph, Value
from secateur.ir.interpret import interpret
from secateur.ir.types import DType, TensorType
from secateur.passes.manager import PassManager, resolve

SEED = int(np.random.default_rng().integers(1 << 30))


# Views --------------------------------------------------------------------------------------------


def as_numpy(view: View, memory: np.ndarray) -> np.ndarray:
    """What a view shows of `memory`."""
    if 0 in view.shape:
        return np.zeros(view.shape, memory.dtype)
    strides = [stride * memory.itemsize for stride in view.strides]
    ends = [(n - 1) * stride for n, stride in zip(view.shape, view.strides)]
    assert view.offset + sum(end for end in ends if end < 0) >= 0
    assert view.offset + sum(end for end in ends if end > 0) < memory.size
    return np.lib.stride_tricks.as_strided(memory[view.offset :], view.shape, strides)


def fresh_view(draw: Draw, *, empty: bool = True) -> tuple[View, np.ndarray]:
    shape = draw.shape(0, 4, numel=500, empty=empty)
    array = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    return View.whole(Buffer(ARENA, array.nbytes), TensorType.of(array)), array


def factors(draw: Draw, size: int) -> tuple[int, ...]:
    """A random shape of `size` elements, ones among its dimensions."""
    if size == 0:
        return tuple(draw.choice([(0,), (0, 3), (2, 0, 1)]))
    shape = []
    while size > 1:
        divisor = draw.choice([n for n in range(2, size + 1) if size % n == 0])
        shape.append(divisor)
        size //= divisor
    for _ in range(draw.int(0, 2)):
        shape.insert(draw.int(0, len(shape)), 1)
    return tuple(shape)


def moved(draw: Draw, view: View, array: np.ndarray) -> tuple[View, np.ndarray] | None:
    """One random movement of a view, and NumPy's; None where reshaping needs a copy."""
    rank = array.ndim
    match draw.choice(["transpose", "slice", "broadcast", "flip", "reshape", "reshape"]):
        case "transpose":
            perm = draw.permutation(rank)
            return view.transpose(perm), array.transpose(perm)
        case "slice":
            starts = tuple(draw.int(0, n) for n in array.shape)
            stops = tuple(draw.int(a, n) for a, n in zip(starts, array.shape))
            if draw.bool(0.7):  # keep most of it
                starts, stops = tuple(min(a, 1, n) for a, n in zip(starts, array.shape)), array.shape
            steps = tuple(draw.int(1, 3) for _ in array.shape)
            index = tuple(slice(a, b, c) for a, b, c in zip(starts, stops, steps))
            return view.slice(starts, stops, steps), array[index]
        case "broadcast":
            wide = tuple(draw.int(2, 3) if n == 1 and draw.bool() else n for n in array.shape)
            shape = (*((draw.int(1, 2),) if draw.bool(0.3) else ()), *wide)
            return view.broadcast(shape), np.broadcast_to(array, shape)
        case "flip":
            axes = tuple(axis for axis in range(rank) if draw.bool(0.4))
            return view.flip(axes), np.flip(array, axes) if axes else array
        case _:
            shape = factors(draw, array.size)
            new = view.reshape(shape)
            if new is None:
                with pytest.raises((AttributeError, ValueError)):  # NumPy cannot do it without a copy either
                    array.reshape(shape, copy=False)
                return None
            return new, array.reshape(shape)


def test_views_are_numpys_strided_arrays() -> None:
    print("seed", SEED)
    refused = 0
    for number in range(1500):
        draw = Draw(SEED + number)
        view, array = fresh_view(draw)
        memory = array.reshape(-1).copy()
        for _ in range(draw.int(1, 6)):
            if math.prod(array.shape) > 5000:
                break
            result = moved(draw, view, array)
            if result is None:
                refused += 1
                continue
            view, array = result
            assert view.shape == array.shape, number
            np.testing.assert_array_equal(as_numpy(view, memory), array, err_msg=f"seed {SEED + number}")
            assert view.contiguous == as_numpy(view, memory).flags.c_contiguous or 0 in view.shape, number
    assert refused


def test_a_reshape_that_must_copy_says_so() -> None:
    view = View.whole(Buffer(ARENA, 24), TensorType(DType.F32, (2, 3)))
    assert view.transpose((1, 0)).reshape((6,)) is None
    assert view.broadcast((4, 2, 3)).reshape((24,)) is None
    assert view.slice((0, 0), (2, 2), (1, 1)).reshape((4,)) is None
    split = view.transpose((1, 0)).reshape((3, 1, 2))
    assert split is not None and (split.strides[0], split.strides[2]) == (1, 3)


def offsets(shape: tuple[int, ...] | list[int], strides: tuple[int, ...] | list[int]) -> list[int]:
    return [sum(i * s for i, s in zip(index, strides)) for index in np.ndindex(*shape)]


def test_collapsing_keeps_every_walk_and_merges_what_it_can() -> None:
    print("seed", SEED)
    for number in range(600):
        draw = Draw(SEED + number)
        shape = draw.shape(0, 5, numel=300, empty=False)
        walks = []
        for _ in range(draw.int(1, 3)):
            view = View.whole(Buffer(ARENA, 0), TensorType(DType.F32, tuple(1 if draw.bool(0.2) else n for n in shape)))
            view = view.flip(tuple(axis for axis in range(len(shape)) if draw.bool(0.1))).broadcast(shape)
            walks.append(view.strides)
        dims, strides = collapse(shape, *walks)
        assert dims and all(len(walk) == len(dims) for walk in strides)
        for before, after in zip(walks, strides, strict=True):
            assert offsets(dims, after) == offsets(shape, before), f"seed {SEED + number}"
        for axis, (_, inner) in enumerate(pairwise(dims)):
            assert any(walk[axis] != walk[axis + 1] * inner for walk in strides), "two dimensions could be one"
    assert collapse((4, 5, 6), contiguous_strides((4, 5, 6))) == ([120], [[1]])


# The plan -----------------------------------------------------------------------------------------


def reads_and_writes(step: Step) -> tuple[list[Buffer], list[Buffer]]:
    reads, writes = [], []
    for item, view in zip(step.kernel.args, step.args, strict=True):
        (writes if isinstance(item, tuple) else reads).append(view.buffer)
    return reads, writes


def run_on_paper(program: Lowered, arena_bytes: int) -> None:
    """Run the steps over an arena whose every byte knows the buffer that owns it."""
    owner = np.full(arena_bytes, -1)
    number_of = {buffer: number for number, buffer in enumerate(program.buffers)}

    def place(buffer: Buffer) -> slice:
        assert buffer.offset >= 0 and buffer.offset + buffer.bytes <= arena_bytes
        assert buffer.offset % ALIGNMENT == 0
        return slice(buffer.offset, buffer.offset + buffer.bytes)

    written: set[Buffer] = set()
    for number, step in enumerate(program.steps):
        reads, writes = reads_and_writes(step)
        for buffer in reads:
            if buffer.kind == ARENA:
                assert buffer in written, f"step {number} reads what nobody wrote"
                assert (owner[place(buffer)] == number_of[buffer]).all(), f"step {number} reads what was overwritten"
        for buffer in writes:
            assert buffer.kind in (ARENA, OUTPUT)
            if buffer.kind != ARENA:
                continue
            taken = place(buffer)
            for other in reads:
                if other.kind == ARENA and other is not buffer and buffer.bytes and other.bytes:
                    apart = taken.stop <= other.offset or other.offset + other.bytes <= taken.start
                    once = [read.root for read in reads].count(other.root) == 1
                    taken_over = buffer.shares and buffer.root is other.root and once
                    assert apart or taken_over, f"step {number} writes what it reads"
            owner[taken] = number_of[buffer]
            written.add(buffer)


def most_alive(program: Lowered) -> int:
    """The most bytes that are needed at any one step."""
    lives: dict[Buffer, list[int]] = {}
    for buffer in program.buffers:
        if buffer.root.kind == ARENA and buffer.first >= 0:
            lives.setdefault(buffer.root, []).extend((buffer.first, buffer.last))
    needs = [
        sum(root.bytes for root, uses in lives.items() if min(uses) <= number <= max(uses))
        for number in range(len(program.steps))
    ]
    return max(needs, default=0)


def random_program(draw: Draw) -> Lowered:
    """Steps over made-up buffers: sizes few, so that memory can often be taken over."""
    program = Lowered(Graph("paper"), find_target("generic"))
    alive: list[View] = []

    def view(kind: str) -> View:
        type = TensorType(DType.F32, (draw.choice([0, 1, 5, 16, 40, 100]),))
        buffer = Buffer(kind, type.bytes)
        program.buffers.append(buffer)
        return View.whole(buffer, type)

    def use(item: View, number: int) -> View:
        item.buffer.first = number if item.buffer.first < 0 else item.buffer.first
        item.buffer.last = number
        return item

    alive += [view(INPUT), view(WEIGHT)]
    for number in range(draw.int(1, 40)):
        operands = [draw.choice(alive[-8:] if draw.bool(0.8) else alive) for _ in range(draw.int(1, 3))]
        results = [view(OUTPUT if draw.bool(0.05) else ARENA) for _ in range(draw.choice([1, 1, 1, 2]))]
        args = [use(item, number) for item in (*operands, *results)]
        inplace = tuple(i for i in range(len(operands)) if draw.bool(0.7))
        order = (*range(len(operands)), *(("result", i) for i in range(len(results))))
        program.steps.append(Step(Kernel("", order, 1, inplace=inplace), args, "paper", None, 0.0))
        alive += results
    return program


def test_no_step_of_a_random_program_reads_what_was_overwritten() -> None:
    print("seed", SEED)
    shared = 0
    for number in range(400):
        program = random_program(Draw(SEED + number))
        arena_bytes = plan(program)
        run_on_paper(program, arena_bytes)
        assert most_alive(program) <= arena_bytes
        separate = sum(-(-b.bytes // ALIGNMENT) * ALIGNMENT for b in program.buffers if b.kind == ARENA)
        assert arena_bytes <= separate
        for buffer in program.buffers:
            if buffer.shares:
                shared += 1
                assert buffer.kind == buffer.root.kind == ARENA and buffer.bytes == buffer.root.bytes
    assert shared > 100


SHAPES = [(6, 10), (10, 6), (60,), (1, 60), (6, 1, 10), (2, 3, 10), (12, 10)]


def random_step(b: Builder, draw: Draw, values: list[Value]) -> Value:
    """Another operation over what is there: kernels that work in place, views, and copies."""
    x = draw.choice(values[-10:] if draw.bool(0.7) else values)
    rank = x.type.rank
    same = [value for value in values if value.shape == x.shape]
    axis = draw.int(0, rank - 1)
    match draw.choice(
        ["unary", "unary", "binary", "binary", "binary", "view", "view", "view", "join", "row", "linear"]
    ):
        case "unary":
            return getattr(b, draw.choice(["relu", "neg", "tanh", "abs"]))(x)
        case "binary":
            wide = b.reduce_mean(x, axes=(axis,), keepdims=True) if draw.bool(0.2) else draw.choice(same)
            return getattr(b, draw.choice(["add", "sub", "maximum"]))(x, wide)
        case "view":
            fitting = [shape for shape in SHAPES if math.prod(shape) == x.type.numel]
            moves = [b.transpose(x, perm=draw.permutation(rank)), b.flip(x, axes=(axis,))]
            moves += [b.reshape(x, shape=shape) for shape in fitting]
            return draw.choice(moves)
        case "join":
            joined = b.concat(x, draw.choice(same), axis=axis)
            start = draw.int(0, x.shape[axis])
            starts = tuple(start if i == axis else 0 for i in range(rank))
            stops = tuple(start + n if i == axis else n for i, n in enumerate(x.shape))
            return b.slice(joined, starts=starts, stops=stops, steps=(1,) * rank)
        case "row":
            return b.softmax(x, axis=axis) if draw.bool() else b.cumsum(x, axis=axis)
        case _:
            weight = draw.rng.standard_normal((x.shape[-1], x.shape[-1])).astype(np.float32) / x.shape[-1]
            return b.linear(x, weight)


def random_graph(draw: Draw, count: int) -> Graph:
    b = Builder.graph("random", x="f32[6,10]", y="f32[60]")
    values = [b["x"], b["y"]]
    for _ in range(count):
        values.append(random_step(b, draw, values))
    outputs = [draw.choice(values) for _ in range(6)] + values[-3:]
    return b.returns(*outputs)


def lowered(graph: Graph, pipeline: str) -> Lowered:
    target = find_target("x86-64-v3")
    graph = PassManager([*resolve(pipeline), *resolve("cpu")]).run(graph.clone())
    legalize(graph, target)
    return lower(graph, target)


@pytest.mark.parametrize("pipeline", ["none", "default"])
def test_no_step_of_a_random_graph_reads_what_was_overwritten(pipeline: str) -> None:
    print("seed", SEED)
    shared = 0
    for number in range(15):
        program = lowered(random_graph(Draw(SEED + number), 40), pipeline)
        arena_bytes = plan(program)
        run_on_paper(program, arena_bytes)
        assert most_alive(program) <= arena_bytes
        shared += sum(buffer.shares is not None for buffer in program.buffers)
    assert shared


@pytest.mark.parametrize("pipeline", ["none", "default"])
def test_random_graphs_compute_what_the_interpreter_does(pipeline: str) -> None:
    """In-place results, views of views and results that are views of inputs, all in one program."""
    print("seed", SEED)
    for number in range(2):
        draw = Draw(SEED + number)
        graph = random_graph(draw, 60)
        inputs = [draw.rng.standard_normal(value.shape).astype(np.float32) for value in graph.inputs]
        kept = [array.copy() for array in inputs]
        program = compile_graph(graph, Options(pipeline=pipeline, threads=2))
        for _ in range(2):
            for actual, expected in zip(program(*inputs), interpret(graph, *inputs), strict=True):
                scale = max(1.0, float(np.abs(expected).max()))
                np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * scale, err_msg=str(SEED + number))
        for array, before in zip(inputs, kept, strict=True):
            np.testing.assert_array_equal(array, before)


def test_a_chain_in_place_needs_one_buffer_and_results_need_none() -> None:
    b = Builder.graph("m", x="f32[64,64]")
    value = b["x"]
    for axis in (0, 1, 0):
        value = b.cumsum(value, axis=axis)
    program = lowered(b.returns(value), "none")
    size = 64 * 64 * 4
    assert plan(program) in (size, 2 * size)  # the last result lies in the caller's memory
    assert [step.args[-1].buffer.kind for step in program.steps][-1] == OUTPUT


def test_lifetimes_that_do_not_meet_share_memory() -> None:
    b = Builder.graph("m", x="f32[64,64]")
    rng = np.random.default_rng(SEED)
    value = b["x"]
    for _ in range(10):
        value = b.softmax(b.linear(value, rng.standard_normal((64, 64), dtype=np.float32)), axis=1)
    assert plan(lowered(b.returns(value), "none")) <= 2 * 64 * 64 * 4
