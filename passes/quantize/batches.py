"""Calibration batches: from memory, files or folders, checked one at a time and never all in memory."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from secateur.ir.diagnostics import CompileError, nearest
from secateur.ir.graph import Graph
from secateur.ir.types import DType, TensorType

Batch = tuple[np.ndarray, ...]
Specs = Sequence[tuple[str, TensorType]]
Progress = Callable[[str, float], None]

EVERY = 4
KEPT_BATCHES = 64  # of an iterable that can be read only once
KEPT_BYTES = 256 << 20


@dataclass(frozen=True)
class Column:
    """One input over many samples: `shape` and `dtype` as stored, and a reader of the next so many rows."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int], np.ndarray]


@dataclass
class Batches:
    """The calibration inputs of a graph, as often as they are asked for: tuples of arrays of the inputs' types.

    What can be iterated only once is passed through the first time; a sample of it, of bounded size and
    drawn evenly (reservoir sampling, Vitter's algorithm R), is what all later iterations see.

    Attributes:
        source: an iterable of tuples, dicts or single arrays; an array or dict of arrays with a leading
            sample axis; the path of an .npz or .npy file, or of a folder of them.
        specs: name and type of each graph input.
        limit: at most so many batches are read; 0 for all.
        count: how many there are; 0 before they have been gone through once.
    """

    source: Any
    specs: Specs
    limit: int = 0
    seed: int = 0
    count: int = 0
    _kept: list[Batch] | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        once = isinstance(self.source, Iterator)
        kept: list[Batch] = []
        draw, number = random.Random(self.seed), 0
        try:
            for batch in self._checked():
                number += 1
                if once:
                    _keep(kept, batch, number, draw)
                yield batch
        finally:
            if once:
                self._kept = kept
        if not number:
            raise CompileError("the calibration set is empty", hint="give at least one batch of inputs")
        self.count = number

    def calibrating(self) -> Iterator[Batch]:
        """The batches that ranges, weights and biases come from: all but every fourth."""
        return (batch for number, batch in enumerate(self) if number % EVERY != EVERY - 1)

    def judging(self) -> Iterator[Batch]:
        """The batches that decide what is kept: every fourth, of which no range is made; all of fewer than four."""
        few = self.count < EVERY
        return (batch for number, batch in enumerate(self) if few or number % EVERY == EVERY - 1)

    def _checked(self) -> Iterator[Batch]:
        for number, batch in enumerate(_read(self.source, self.specs)):
            if self.limit and number == self.limit:
                return
            for position, (array, (name, _)) in enumerate(zip(batch, self.specs, strict=True)):
                bad = array.size - int(np.isfinite(array).sum()) if array.dtype.kind == "f" else 0
                if bad:
                    raise CompileError(
                        f"calibration batch {number}: {_input(position, name)} holds {bad} values that are NaN or "
                        f"infinite, of {array.size}",
                        hint="look at how the batch was prepared, or leave it out",
                    )
            yield batch


def open_batches(source: Any, graph: Graph, *, limit: int = 0, seed: int = 0) -> Batches:
    """The calibration batches of a graph. Contents are checked while iterating, a path at once.

    Raises:
        CompileError: no such file or folder, or not something batches can come from.
    """
    if isinstance(source, Batches):
        return source
    if isinstance(source, str):
        source = Path(source)
    if isinstance(source, Path) and not source.exists():
        raise CompileError(f"there is no file or folder {source}", hint="numpy.savez writes a file of batches")
    if not isinstance(source, (Path, Mapping, np.ndarray, Iterable)):
        raise CompileError(f"calibration batches cannot come from {type(source).__name__}")
    specs = [(value.hint, value.type) for value in graph.inputs]
    return Batches(source, specs, limit, seed)


def _keep(kept: list[Batch], batch: Batch, number: int, draw: random.Random) -> None:
    """Take batch `number` (from 1) into the sample with the chance that makes all equally likely."""
    room = max(1, min(KEPT_BATCHES, KEPT_BYTES // max(1, sum(array.nbytes for array in batch))))
    if len(kept) < room:
        kept.append(batch)
    else:
        place = draw.randrange(number)
        if place < room:
            kept[place] = batch


# Sources ------------------------------------------------------------------------------------------


def _read(source: Any, specs: Specs) -> Iterator[Batch]:
    if isinstance(source, Path):
        yield from _read_path(source, specs)
    elif isinstance(source, (Mapping, np.ndarray)):
        yield from _split(_columns(source, specs, "calibration set"), specs, "calibration set")
    else:
        for number, item in enumerate(source):
            where = f"calibration batch {number}"
            yield from _split(_columns(item, specs, where), specs, where)


def _columns(item: Any, specs: Specs, where: str) -> list[Column]:
    """The arrays of one item in the order of the graph's inputs."""
    if isinstance(item, Mapping):
        arrays = _by_name({name: _array(value, where) for name, value in item.items()}, specs, where)
    else:
        values = list(item) if isinstance(item, (tuple, list)) else [item]
        arrays = [_array(value, where) for value in values]
    if len(arrays) != len(specs):
        raise CompileError(f"{where}: the model takes {len(specs)} inputs, got {len(arrays)}")
    return [Column(array.shape, array.dtype, _rows_of(array)) for array in arrays]


def _array(value: Any, where: str) -> np.ndarray:
    """A NumPy array of an array or a torch tensor, which is known by its methods."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise CompileError(f"{where} holds {type(value).__name__}, which is not an array of numbers")
    return array


def _by_name(items: Mapping[str, Any], specs: Specs, where: str) -> list[Any]:
    """Items in the order of the inputs: by name, or as they come where none of the names is an input's."""
    names = [name for name, _ in specs]
    if not items.keys() & set(names) and len(items) == len(names):
        return list(items.values())
    for position, name in enumerate(names):
        if name not in items:
            raise CompileError(f"{where} has no array for {_input(position, name)}", hint=nearest(name, items))
    extra = sorted(items.keys() - set(names))
    if extra:
        raise CompileError(f"{where} holds {extra[0]!r}, which is no input", hint=f"inputs are {', '.join(names)}")
    return [items[name] for name in names]


def _rows_of(array: np.ndarray) -> Callable[[int], np.ndarray]:
    place = 0

    def read(count: int) -> np.ndarray:
        nonlocal place
        place += count
        return array[place - count : place]

    return read


# From rows to batches -----------------------------------------------------------------------------


def _split(columns: Sequence[Column], specs: Specs, where: str) -> Iterator[Batch]:
    """Batches of the inputs' shapes from arrays of one batch or of many samples; an incomplete last one is left out.

    For an input f32[2,3]: an array [2,3] is one batch, [10,3] five, [10,2,3] ten.
    """
    plans = [_rows_per_batch(column, *spec, f"{where}: {_input(i, spec[0])}") for i, (column, spec) in
             enumerate(zip(columns, specs, strict=True))]  # fmt: skip
    counts = {number for number, _ in plans}
    if len(counts) > 1:
        raise CompileError(f"{where}: the inputs are of different numbers of samples: {sorted(counts)}")
    for _ in range(counts.pop() if counts else 0):
        yield tuple(
            np.ascontiguousarray(column.read(rows)).reshape(type.shape)
            for column, (_, rows), (_, type) in zip(columns, plans, specs, strict=True)
        )


def _rows_per_batch(column: Column, name: str, type: TensorType, where: str) -> tuple[int, int]:
    """(number of batches, rows of each). A scalar input or an exact fit is one batch."""
    known = column.dtype == type.dtype.numpy
    if known and column.shape == () == type.shape:
        return 1, 0
    if known and column.shape[1:] == type.shape and len(column.shape) == type.rank + 1:
        return column.shape[0], 1
    if known and type.rank and len(column.shape) == type.rank and column.shape[1:] == type.shape[1:] and type.shape[0]:
        if 0 < column.shape[0] < type.shape[0]:
            raise CompileError(f"{where}: {column.shape[0]} samples do not fill a batch of {type.shape[0]}")
        return column.shape[0] // type.shape[0], type.shape[0]
    try:
        got = str(TensorType(DType.of(column.dtype), column.shape))
    except KeyError:
        got = f"{column.dtype}{list(column.shape)}"
    raise CompileError(f"{where} must be {type}, or many samples of it along a leading axis; got {got}")


def _input(position: int, name: str) -> str:
    return f"input {position}" + (f" ({name})" if name else "")


# Files --------------------------------------------------------------------------------------------


def _read_path(path: Path, specs: Specs) -> Iterator[Batch]:
    files = sorted(item for item in path.iterdir() if item.suffix in (".npz", ".npy")) if path.is_dir() else [path]
    for file in files:
        try:
            yield from _read_file(file, specs)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise CompileError(f"cannot read {file}: {reason}", hint="numpy.savez and numpy.save write such") from None


def _read_file(file: Path, specs: Specs) -> Iterator[Batch]:
    if file.suffix == ".npy":
        with file.open("rb") as whole:
            yield from _split_all([_stored(whole, str(file))], specs, str(file))
    elif file.suffix == ".npz":
        with zipfile.ZipFile(file) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            streams = [archive.open(name) for name in _by_name(members, specs, str(file))]
            try:
                yield from _split_all([_stored(stream, str(file)) for stream in streams], specs, str(file))
            finally:
                for stream in streams:
                    stream.close()
    else:
        raise CompileError(f"cannot read {file}: it is neither .npz nor .npy, nor a folder of them")


def _split_all(columns: list[Column], specs: Specs, where: str) -> Iterator[Batch]:
    if len(columns) != len(specs):
        raise CompileError(f"{where}: the model takes {len(specs)} inputs, got {len(columns)}")
    yield from _split(columns, specs, where)


def _stored(stream: IO[bytes], where: str) -> Column:
    """A stored array, read row by row as it is asked for; only one in column-major order is read whole."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the .npy format is not known")
    shape, fortran, dtype = readers[version](stream)
    if dtype.hasobject:
        raise CompileError(f"cannot read {where}: it holds Python objects, which are never unpickled")
    rest = int(np.prod(shape[1:], dtype=np.int64))

    def read(count: int) -> np.ndarray:
        size = rest * (count or 1) * dtype.itemsize  # a scalar input is read as no rows
        data = stream.read(size)
        if len(data) < size:
            raise EOFError("the file ends in the middle of an array")
        return np.frombuffer(data, dtype).reshape((count, *shape[1:]) if count else ())

    if not fortran:
        return Column(tuple(shape), dtype, read)
    whole = np.frombuffer(stream.read(), dtype).reshape(shape[::-1]).T
    return Column(tuple(shape), dtype, _rows_of(whole))
