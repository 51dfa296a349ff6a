"""Calibration batches: every way of giving them yields the same arrays, and nonsense is refused in one clear line."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.ir.builder import Builder
from secateur.ir.diagnostics import CompileError
from secateur.ir.graph import Graph
from secateur.passes.quantize import batches as module
from secateur.passes.quantize.batches import open_batches


def program() -> Graph:
    b = Builder.graph("m", x="f32[2,3]", k="i64[4]")
    return b.returns(b["x"], b["k"])


X = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
K = np.arange(40).reshape(10, 4)


def save_npz(folder: Path) -> Path:
    np.savez(folder / "set.npz", x=X, k=K)
    return folder / "set.npz"


def save_compressed_by_order(folder: Path) -> Path:
    np.savez_compressed(folder / "set.npz", a=X, b=K)
    return folder / "set.npz"


def save_column_major(folder: Path) -> Path:
    np.savez(folder / "set.npz", x=np.asfortranarray(X), k=np.asfortranarray(K))
    return folder / "set.npz"


def save_folder(folder: Path) -> Path:
    for i, (x, k) in enumerate(zip(X, K, strict=True)):
        np.savez(folder / f"{i:02}.npz", x=x, k=k[None])
    return folder


SOURCES: dict[str, Callable[[Path], Any]] = {
    "tuples": lambda folder: list(zip(X, K, strict=True)),
    "lists": lambda folder: [list(pair) for pair in zip(X, K, strict=True)],
    "dicts": lambda folder: [{"k": k, "x": x} for x, k in zip(X, K, strict=True)],
    "generator": lambda folder: ((x, k) for x, k in zip(X, K, strict=True)),
    "many samples an item": lambda folder: [(X[:4], K[:4]), (X[4:], K[4:])],
    "arrays": lambda folder: {"x": X, "k": K},
    "npz": save_npz,
    "npz as text": lambda folder: str(save_npz(folder)),
    "npz by order": save_compressed_by_order,
    "npz in column-major order": save_column_major,
    "folder": save_folder,
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_batches_again_and_again(name: str, tmp_path: Path) -> None:
    batches = open_batches(SOURCES[name](tmp_path), program())
    for _ in range(3):
        got = list(batches)
        assert len(got) == 10 == batches.count
        np.testing.assert_array_equal(np.stack([x for x, _ in got]), X)
        np.testing.assert_array_equal(np.stack([k for _, k in got]), K)


def test_single_arrays_and_npy_files(tmp_path: Path) -> None:
    b = Builder.graph("m", x="f32[2,3]")
    graph = b.returns(b["x"])
    np.save(tmp_path / "x.npy", X.reshape(20, 3))
    for source in (list(X), X, X.reshape(20, 3), tmp_path / "x.npy", tmp_path):
        np.testing.assert_array_equal(np.stack([x for (x,) in open_batches(source, graph)]), X)


def test_an_incomplete_last_batch_is_left_out() -> None:
    b = Builder.graph("m", x="f32[2,3]")
    assert len(list(open_batches(X.reshape(20, 3)[:9], b.returns(b["x"])))) == 4


def test_limit_and_the_judging_part() -> None:
    batches = open_batches(list(zip(X, K, strict=True)), program(), limit=9)
    assert len(list(batches)) == 9
    judged = [int(x[0, 0]) // 6 for x, _ in batches.judging()]
    assert judged == [3, 7]
    assert [int(x[0, 0]) // 6 for x, _ in batches.calibrating()] == [0, 1, 2, 4, 5, 6, 8]
    few = open_batches(list(zip(X, K, strict=True)), program(), limit=3)
    list(few)
    assert len(list(few.judging())) == len(list(few.calibrating())) == 3


def test_what_can_be_read_once_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_BATCHES", 8)
    b = Builder.graph("m", x="f32[1]")
    graph = b.returns(b["x"])
    total = np.zeros(80)
    for seed in range(400):
        batches = open_batches((np.float32([i]) for i in range(80)), graph, seed=seed)
        assert len(list(batches)) == 80
        kept = [int(x[0]) for (x,) in batches]
        assert kept == [int(x[0]) for (x,) in batches] and len(set(kept)) == 8
        total[kept] += 1
    # Each is kept in a tenth of 400 trials: 40, standard deviation 6.
    assert total.min() > 40 - 30 and total.max() < 40 + 30
    assert abs(total[:40].sum() - total[40:].sum()) < 200


def test_a_file_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    b = Builder.graph("m", x="f32[1,256,256]")
    graph = b.returns(b["x"])
    np.savez(tmp_path / "set.npz", x=np.ones((128, 1, 256, 256), np.float32))  # 32 MiB, of which a batch is 256 KiB
    tracemalloc.start()
    try:
        assert sum(float(x.sum()) for (x,) in open_batches(tmp_path / "set.npz", graph)) == 128 * 256 * 256
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def broken_file(folder: Path) -> Path:
    path = save_npz(folder)
    path.write_bytes(path.read_bytes()[:200])
    return path


def short_array(folder: Path) -> Path:
    np.save(folder / "x.npy", X)
    data = (folder / "x.npy").read_bytes()
    (folder / "x.npy").write_bytes(data[:-4])
    return folder / "x.npy"


def pickled(folder: Path) -> Path:
    np.savez(folder / "set.npz", x=np.array([{"a": 1}], object), k=K)
    return folder / "set.npz"


def bare_pickle(folder: Path) -> Path:
    (folder / "set.npz").write_bytes(pickle.dumps([X, K]))
    return folder / "set.npz"


def spoilt(value: float) -> list[tuple[np.ndarray, np.ndarray]]:
    x = X.copy()
    x[2, 1, 1] = value
    return list(zip(x, K, strict=True))


def nothing() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield from ()


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty list": (lambda f: [], "the calibration set is empty"),
    "empty generator": (lambda f: nothing(), "the calibration set is empty"),
    "empty folder": (lambda f: f, "the calibration set is empty"),
    "empty array": (lambda f: {"x": X[:0], "k": K[:0]}, "the calibration set is empty"),
    "NaN": (lambda f: spoilt(np.nan), "calibration batch 2: input 0 (x) holds 1 values that are NaN or infinite, of 6"),
    "infinity": (lambda f: spoilt(-np.inf), "calibration batch 2: input 0 (x) holds 1 values that are NaN or infinite"),
    "shape": (
        lambda f: [(X[0], K[0]), (X[0].T, K[0])],
        "calibration batch 1: input 0 (x) must be f32[2,3], or many samples of it along a leading axis; got f32[3,2]",
    ),
    "dtype": (lambda f: [(X[0].astype(np.float64), K[0])], "input 0 (x) must be f32[2,3], or many samples"),
    "unknown dtype": (lambda f: [(X[0].astype(np.complex64), K[0])], "got complex64[2, 3]"),
    "number": (lambda f: [(X[0],)], "calibration batch 0: the model takes 2 inputs, got 1"),
    "name": (lambda f: [{"x": X[0], "kk": K[0]}], "calibration batch 0 has no array for input 1 (k)"),
    "one name too many": (lambda f: [{"x": X[0], "k": K[0], "y": X}], "holds 'y', which is no input"),
    "different lengths": (lambda f: {"x": X, "k": K[:5]}, "different numbers of samples: [5, 10]"),
    "objects": (lambda f: [(X[0], [{}])], "calibration batch 0 holds list, which is not an array of numbers"),
    "too few for one batch": (lambda f: [(X[0][:1], K[0])], "1 samples do not fill a batch of 2"),
    "no source": (lambda f: 3, "calibration batches cannot come from int"),
    "no file": (lambda f: f / "none.npz", "there is no file or folder"),
    "broken file": (broken_file, "cannot read"),
    "one array for two inputs": (short_array, "takes 2 inputs, got 1"),
    "pickle in an array": (pickled, "it holds Python objects, which are never unpickled"),
    "pickle for an archive": (bare_pickle, "cannot read"),
    "another file": (lambda f: Path(__file__), "it is neither .npz nor .npy, nor a folder of them"),
}


@pytest.mark.parametrize("name", WRONG)
def test_nonsense_is_refused(name: str, tmp_path: Path) -> None:
    make, message = WRONG[name]
    source = make(tmp_path)
    with pytest.raises(CompileError) as caught:
        list(open_batches(source, program()))
    assert message in str(caught.value)


def test_a_file_that_ends_early_is_named(tmp_path: Path) -> None:
    b = Builder.graph("m", x="f32[2,3]")
    with pytest.raises(CompileError, match=r"cannot read .*x\.npy: the file ends in the middle of an array"):
        list(open_batches(short_array(tmp_path), b.returns(b["x"])))
