"""C for a block of tiles: products on tile registers, and between them the epilogue of the block before.

Tile products and vector instructions run on different units, but no processor looks far enough ahead to overlap
two whole blocks. So a block stores its sums, and their epilogue is written in pieces between the products of the
next one: with many steps along K it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from secateur.backends.cpu.band import LINE, Source
from secateur.backends.cpu.blocks import COLUMNS, DEPTH, Steps
from secateur.backends.cpu.cexpr import CTYPE, to_memory
from secateur.backends.cpu.dot import Dot
from secateur.backends.cpu.tile import Epilogue
from secateur.ir.types import DType

STRAIGHT = 2  # steps up to which a piece follows every product, not every step: then the epilogue is the larger part


@dataclass(frozen=True)
class BlockCode:
    """What the functions of a kernel are made from.

    Attributes:
        lda: elements from a row of the left side to the next.
        height: rows of a tile.
        ldo: elements from a row of the result to the next.
        ahead: lines of the next panel that every step fetches into the second-level cache; with 0, none.
    """

    dot: Dot
    source: Source
    steps: Steps
    lda: int
    height: int
    epilogue: Epilogue
    result: DType
    ldo: int
    lanes: int
    ahead: int = 0

    def functions(self, columns: int) -> list[str]:
        """Blocks of one and of two row tiles for panels of `columns`, and the epilogue of the last block alone."""
        return [self.block(1, columns), self.block(2, columns), self.rest(columns)]

    def parameters(self) -> str:
        """Sums that wait for their epilogue, and its operands at their first element."""
        return f"const int32_t *s, long rows, {CTYPE[self.result]} *o{self.epilogue.params()}"

    def waiting(self, base: str) -> str:
        """Arguments for `parameters` from a `struct waiting`."""
        operands = self.epilogue.arguments(f"{base}.at", f"{base}.column")
        return f"{base}.t, {base}.rows, o + {base}.at{operands}"

    def rest(self, columns: int) -> str:
        lines = [f"BLOCK NAME_rest_{columns}({self.parameters()}) {{", *self._before(columns), "long i = 0;"]
        return "\n".join([*lines, *self._rest(columns), "}"])

    def block(self, rows: int, columns: int) -> str:
        """Stores the sums of `rows` row tiles to `t`, those of the second from row `low` on."""
        left, right = CTYPE[self.dot.left], CTYPE[self.dot.right]
        tiles = -(-columns // COLUMNS)
        inputs = "".join(f", const {left} *x{i}" for i in range(rows)) + ", int32_t *t" + ", long low" * (rows > 1)
        inputs += f", const {right} *next" * (self.ahead > 0)
        lines = [f"BLOCK NAME_block{rows}_{columns}(const {right} *b{inputs}, {self.parameters()}) {{"]
        lines += ["MEMORY_IS_READ;", *self._before(columns), "long i = 0;"]
        lines += [f"_tile_zero({2 * i + j});" for i, j in product(range(rows), range(tiles))]
        lines += (
            self._straight(rows, tiles, columns)
            if self.source.runs * self.steps.count <= STRAIGHT
            else self._loops(rows, tiles, columns)
        )
        return "\n".join([*lines, "}"])

    def _products(self, rows: int, tiles: int, left: str, right: str) -> Iterator[tuple[list[str], tuple[int, int]]]:
        """The instructions of one step, product by product, and which tile each adds to."""
        signs = "".join("u" if dtype is DType.U8 else "s" for dtype in (self.dot.left, self.dot.right))
        for i, j in product(range(rows), range(tiles)):
            lines = [f"_tile_loadd({4 + i}, x{i} + {left}, {self.lda});"] if j == 0 else []
            lines += [f"_tile_loadd({6 + j}, {right} + {j * self.steps.bytes * COLUMNS}, {DEPTH});"] if i == 0 else []
            yield [*lines, f"_tile_dpb{signs}d({2 * i + j}, {4 + i}, {6 + j});"], (i, j)

    def _store(self, i: int, j: int, tiles: int) -> str:
        width = tiles * COLUMNS
        row = f"low * {width} + " if i else ""
        return f"_tile_stored({2 * i + j}, t + {row}{j * COLUMNS}, {4 * width});"

    def _straight(self, rows: int, tiles: int, columns: int) -> list[str]:
        """Few steps: pieces of the epilogue after every product, and between the stores."""
        offsets = [range(0, count * stride, stride) for count, stride in self.source.taps]
        runs = range(0, self.steps.count * self.steps.bytes, self.steps.bytes)
        starts = [sum(at) for at in product(*offsets, runs)]
        lines: list[str] = []
        stored: tuple[int, int] | None = None
        for number, start in enumerate(starts):
            right = f"b + {number * tiles * self.steps.bytes * COLUMNS}"
            for instructions, tile in self._products(rows, tiles, str(start), right):
                lines += instructions
                if stored:
                    lines.append(self._store(*stored, tiles))
                stored = tile if number == len(starts) - 1 else None
                lines += self._piece(columns, len(starts) * rows * tiles)
        assert stored
        return [*lines, *self._rest(columns), self._store(*stored, tiles)]

    def _loops(self, rows: int, tiles: int, columns: int) -> list[str]:
        """Many steps: a piece of the epilogue after each."""
        lines, left = [], "k"
        for depth, (count, stride) in enumerate(self.source.taps):
            lines.append(f"for (long y{depth} = 0; y{depth} < {count * stride}L; y{depth} += {stride}L) {{")
            left += f" + y{depth}"
        size, step = self.steps.bytes, tiles * self.steps.bytes * COLUMNS
        lines.append(f"for (long k = 0; k < {self.steps.count * size}; k += {size}, b += {step}) {{")
        for instructions, _ in self._products(rows, tiles, left, "b"):
            lines += instructions
        if self.ahead:
            fetch = f"_mm_prefetch((const char *)next + l * {LINE}, _MM_HINT_T1);"
            lines += [f"UNROLL for (int l = 0; l < {self.ahead}; l++) {fetch}", f"next += {self.ahead * LINE};"]
        lines += self._piece(columns, self.source.runs * self.steps.count)
        lines += ["}"] * (1 + len(self.source.taps))
        stores = [self._store(i, j, tiles) for i, j in product(range(rows), range(tiles))]
        return [*lines, *self._rest(columns), *stores]

    # The epilogue of the sums at `s`: row `i` is the next.

    def _group(self, columns: int) -> int:
        """Rows that are computed together: two where all their results are clipped to 8 bits in one register."""
        return 2 if self.epilogue.clipped is not None and columns == 2 * self.lanes == 32 else 1

    def _piece(self, columns: int, pieces: int) -> list[str]:
        """One of so many pieces that together are the epilogue of a whole block."""
        group = self._group(columns)
        count = -(-2 * self.height // group // pieces)
        head = f"for (int n = 0; n < {count} && i + {group} <= rows; n++, i += {group}) {{"
        return ['_Pragma("GCC unroll 1")', head, *self._rows(group, columns), "}"]

    def _rest(self, columns: int) -> list[str]:
        group = self._group(columns)
        lines = [f"for (; i + {group} <= rows; i += {group}) {{", *self._rows(group, columns), "}"]
        return [*lines, "if (i < rows) {", *self._rows(1, columns), "}"] if group > 1 else lines

    def _before(self, columns: int) -> list[str]:
        """Loads of what is the same in every row."""
        vectors = -(-columns // self.lanes)
        bias = range(vectors) if self.epilogue.bias else ()
        loads = [f"const v_i32 bias_{j} = load_i32(bias + {j * self.lanes});" for j in bias]
        return [*self.epilogue.before(vectors, columns, self.lanes), *loads]

    def _rows(self, group: int, columns: int) -> list[str]:
        """`group` rows from row `i` on."""
        lines, values = [], []
        for row, j in product(range(group), range(-(-columns // self.lanes))):
            valid = min(self.lanes, columns - j * self.lanes)
            width = -(-columns // COLUMNS) * COLUMNS
            loaded = f"load_i32(s + (i + {row}) * {width} + {j * self.lanes})"
            lines.append(f"const v_i32 r{row}{j} = {loaded}{f' + bias_{j}' if self.epilogue.bias else ''};")
            target = f"(i + {row}) * {self.ldo}L + {j * self.lanes}"
            count = "LANES" if valid == self.lanes else str(valid)
            kept = {"scalar": "0", "channel": str(j)}
            at, suffix = {"full": target}, f"{row}{j}"
            written, value = self.epilogue.apply(f"r{row}{j}", at, count, suffix, kept, clip=group == 1)
            lines += written
            values.append(value)
            if group == 1:
                stored = to_memory(value, self.result)
                ending = f"_{self.result}(o + {target}, {stored}"
                lines.append(f"store{ending});" if valid == self.lanes else f"storen{ending}, {valid});")
        if group == 2:
            rows = ", ".join(f"o + (i + {row}) * {self.ldo}L" for row in range(group))
            lines.append(f"store_rows_{self.result}({rows}, {', '.join(values)});")
        return lines
