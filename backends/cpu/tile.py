"""The register tile: the inner loop of every matrix product, convolution and attention kernel.

A tile keeps `rows` x `vectors` accumulators in registers. Per step of K it loads `vectors` vectors
of packed weights and broadcasts one element of each row (or a few neighbours of 8 bits, see dot.py),
so that one load feeds `rows` multiply-adds. Row strides are constants, which turns all addressing into
displacements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from secateur.backends.cpu.cexpr import CTYPE, BodyWriter, from_memory, to_memory
from secateur.backends.cpu.dot import Dot
from secateur.backends.cpu.kernel import Job
from secateur.backends.cpu.tiling import Tiling, functions_for
from secateur.ir.expr import Expr
from secateur.ir.graph import Op, Value
from secateur.ir.opdef import lookup
from secateur.ir.types import DType, TensorType

BYTES = (DType.I8, DType.U8)
_SLOW = frozenset({"exp", "log", "expm1", "log1p", "tanh", "erf", "pow", "sin", "cos", "tan", "div", "sqrt"})


# Epilogues ----------------------------------------------------------------------------------------


@dataclass
class Epilogue:
    """The elementwise operations behind an anchor, applied to its tile before it is stored.

    Operands are of three kinds: `scalar`, `channel` (one value a column), `full` (shaped like the
    result). `bias` is what the accumulators start from, or `start` in its place; with `computed` the kernel
    declares `bias` itself and fills it. With `pack`, constant channel operands are stored padded, so that
    they are read in whole vectors everywhere.

    Attributes:
        pointers: C name -> job operand or packed array, in the order of the kernel's arguments.
        reads: value, C name and kind behind each pointer; the bias comes last, and may be an operand as well.
    """

    job: Job
    columns: int
    padded: int
    bias: Value | None = None
    pack: bool = True
    start: np.ndarray | None = None
    computed: bool = False
    pointers: list[tuple[str, int | np.ndarray]] = field(default_factory=list)
    reads: list[tuple[Value, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for value in operands_of(self.job.epilogue, self.job.anchor):
            self._add(value, f"e{len(self.pointers)}", classify(value.type, self.job.result_type))
        if self.computed:
            self.bias = Value(TensorType(DType.I32, (self.padded,)))
            self.reads.append((self.bias, "bias", "channel"))
            return
        if self.start is not None:
            self.bias = Value(TensorType.of(self.start))
        if self.bias is not None:
            self._add(self.bias, "bias", "channel")

    def _add(self, value: Value, name: str, kind: str) -> None:
        constant = self._known(value)
        if self.pack and kind == "channel" and constant is not None:
            padded = np.zeros(self.padded, dtype=constant.dtype)
            padded[: self.columns] = constant.reshape(-1)
            self.pointers.append((name, padded))
        else:
            position = self.job.position(value)
            assert position is not None
            self.pointers.append((name, position))
        self.reads.append((value, name, kind))

    def _known(self, value: Value) -> np.ndarray | None:
        return self.start if self.start is not None and value is self.bias else self.job.constant(value)

    def full_operands(self, result: DType) -> list[int]:
        """Job operands that are shaped like the result and whose memory it may take over."""
        return [
            pointer
            for (_, pointer), (value, _, kind) in zip(self.pointers, self.reads)
            if kind == "full" and isinstance(pointer, int) and value.type.dtype.bytes == result.bytes
        ]

    def padded_channel(self, value: Value, kind: str = "channel") -> bool:
        """Whether an operand may be read in whole vectors beyond its last column."""
        if self.computed and value is self.bias:
            return True
        return self.pack and kind == "channel" and self._known(value) is not None

    @property
    def heavy(self) -> bool:
        """Too much code to be unrolled over a whole tile."""
        return sum(_weight(lookup(op.name).expr) for op in self.job.epilogue if op.name != "constant") > 8

    def params(self) -> str:
        """Parameters of a tile function besides its own."""
        return "".join(f", const {CTYPE[value.type.dtype]} *{name}" for value, name, _ in self.reads)

    def arguments(self, at: str, column: str) -> str:
        """Arguments for a tile whose first element is at offset `at` of the result and column `column`."""
        shift = {"scalar": "", "channel": f" + {column}", "full": f" + {at}"}
        return "".join(f", {name}{shift[kind]}" for _, name, kind in self.reads)

    def declare(self, first: int) -> list[str]:
        """Typed pointers at the top of a kernel; `p[first]` is the first of them."""
        return [
            f"const {CTYPE[value.type.dtype]} *{name} = p[{first + i}];"
            for i, (value, name, _) in enumerate(self.reads[: len(self.pointers)])
        ]

    def before(self, vectors: int, columns: int, lanes: int) -> list[str]:
        """Loads of what is the same in every row, for `apply` to use: the compiler cannot tell that stores keep it."""
        lines = []
        for value, name, kind in self.reads:
            for j in range({"scalar": 1, "channel": vectors, "full": 0}[kind] if name != "bias" else 0):
                valid = min(lanes, columns - j * lanes)
                if valid > 0:
                    count = "LANES" if valid == lanes else str(valid)
                    lines.append(self._load(value, name, kind, f"{j} * LANES", count, f"{name}_{j}"))
        return lines

    def _load(self, value: Value, name: str, kind: str, at: str, count: str, into: str) -> str:
        dtype = value.type.dtype
        if kind == "scalar":
            loaded = f"gather_{dtype}({name}, 0, LANES)"
        elif count == "LANES" or self.padded_channel(value, kind):
            loaded = f"load_{dtype}({name} + {at})"
        else:
            loaded = f"loadn_{dtype}({name} + {at}, {count})"
        return f"const __auto_type {into} = {from_memory(loaded, dtype)};"

    def apply(
        self,
        accumulator: str,
        at: dict[str, str],
        count: str,
        suffix: str = "",
        loaded: dict[str, str] | None = None,
        clip: bool = True,
    ) -> tuple[list[str], str]:
        """Statements that turn an accumulator into the value to store, and that value.

        Args:
            at: where operands of kind `channel` and `full` are read, relative to their pointers.
            count: LANES, or how many elements are valid.
            loaded: suffixes of what `before` has loaded, by kind.
            clip: whether to do what `clipped` says is done last.
        """
        names: dict[Value, str] = {}
        lines = []
        for value, name, kind in self.reads:
            if name == "bias":
                continue
            if loaded and kind in loaded:
                names[value] = f"{name}_{loaded[kind]}"
                continue
            names[value] = f"{name}_{suffix}"
            lines.append(self._load(value, name, kind, at.get(kind, ""), count, names[value]))
        names[self.job.anchor.result] = accumulator
        writer = BodyWriter(names, prefix=f"t{suffix}_")
        last = None if clip else self.clipped
        for op in self.job.epilogue:
            if op is last:
                value_of = writer.unclipped(op)
                return [*lines, *writer.lines], value_of
            writer.op(op)
        final = self.job.body.outputs[0] if self.job.body else self.job.anchor.result
        return [*lines, *writer.lines], writer.names[final]

    @property
    def clipped(self) -> Op | None:
        """The last operation, where all it does in the end is to clip 32 bits to 8."""
        ops = [op for op in self.job.epilogue if op.name != "constant"]
        body = self.job.body
        if not ops or not body or body.outputs[0] is not ops[-1].result or ops[-1].result.type.dtype not in BYTES:
            return None
        expr = lookup(ops[-1].name).expr
        wide = ops[-1].operands[0].type.dtype is DType.I32
        return ops[-1] if expr is not None and expr.op == "saturate" and wide else None


def operands_of(ops: Sequence[Op], anchor: Op) -> list[Value]:
    """What the epilogue reads besides the anchor's result and its own values."""
    inside = {value for op in (*ops, anchor) for value in op.results}
    return list(dict.fromkeys(value for op in ops for value in op.operands if value not in inside))


def classify(type: TensorType, result: TensorType) -> str:
    """The kind of an epilogue operand, or the empty string for one that no tile can read."""
    if type.numel == 1:
        return "scalar"
    if type.shape == result.shape:
        return "full"
    if type.shape[-1] == result.shape[-1] and type.numel == result.shape[-1]:
        return "channel"
    return ""


def check_epilogue(job: Job) -> str:
    """Why the operations behind the anchor cannot be an epilogue, or the empty string."""
    if len(job.op.results) != 1:
        return "several results"
    if job.ops.index(job.anchor) != next(i for i, op in enumerate(job.ops) if op.name != "constant"):
        return "has a prologue"
    if any(job.position(value) is None for value in job.anchor.operands):
        return "the body holds a parameter of the anchor"
    if job.body and any(value.op is None for value in job.body.outputs):
        return "an output is an input"
    for op in job.epilogue:
        if op.name == "constant":
            if op.attrs["value"].size != 1:
                return "an epilogue constant is not a scalar"
        elif not lookup(op.name).elementwise:
            return f"{op.name} is not elementwise"
        elif op.result.shape != job.anchor.result.shape and op.result.type.numel != 1:
            return "the epilogue changes the shape"
    for value in operands_of(job.epilogue, job.anchor):
        if value.type.numel == 0 or not classify(value.type, job.result_type):
            return f"epilogue operand {value.type} is neither scalar, per channel nor full"
    return ""


def _weight(expr: Expr | None) -> int:
    if expr is None or expr.op in ("var", "const", "attr"):
        return 0
    return (10 if expr.op in _SLOW else 1) + sum(_weight(arg) for arg in expr.args)


# The tile -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TileCode:
    """What a tile function is made from.

    Attributes:
        dot: what one step multiplies.
        taps: (count, stride) loops around the innermost run, outermost first.
        run: elements of A that lie side by side.
        lda: elements from a row of A to the next.
        ldb: elements of B that one step takes.
        ldo: elements from a row of the result to the next.
        wrap: (rows, further elements of A that every so many rows lie apart).
    """

    dot: Dot
    vectors: int
    taps: tuple[tuple[int, int], ...]
    run: int
    lda: int
    ldb: int
    ldo: int
    epilogue: Epilogue | None = None
    result: DType | None = None
    wrap: tuple[int, int] | None = None

    def emit(self, name: str, rows: int, columns: int, lanes: int) -> str:
        """A function that computes `rows` x `columns` results; the last vector may be partial."""
        dot, vectors = self.dot, self.vectors
        left, right = CTYPE[dot.left], CTYPE[dot.right]
        into = self.result or dot.sum
        params = self.epilogue.params() if self.epilogue else ""
        lines = [f"INLINE void {name}(const {left} *a, const {right} *b, {CTYPE[into]} *o{params}) {{"]
        lines.append(f"v_{dot.sum} c[{rows}][{vectors}];")
        lines += self.start(rows, columns, lanes)
        for depth, (count, stride) in enumerate(self.taps):
            source = f"a{depth - 1}" if depth else "a"
            lines.append(f"for (int y{depth} = 0; y{depth} < {count}; y{depth}++) {{")
            lines.append(f"const {left} *a{depth} = {source} + y{depth} * {stride}L;")
        at = f"a{len(self.taps) - 1}" if self.taps else "a"
        lines.append(f"for (int k = 0; k < {self.run}; k += {dot.group}, b += {self.ldb}) {{")
        for j in range(vectors):
            lines.append(f"const __auto_type b{j} = {dot.load(f'b + {j * dot.group} * LANES')};")
        lines.append(f"UNROLL for (int i = 0; i < {rows}; i++) {{")
        row = f"i * {self.lda}L" + (f" + i / {self.wrap[0]} * {self.wrap[1]}L" if self.wrap else "")
        lines.append(f"const __auto_type x = {dot.splat(f'{at} + {row} + k')};")
        lines += [dot.step(f"c[i][{j}]", "x", f"b{j}") for j in range(vectors)]
        lines += ["}", "}", *["}"] * len(self.taps)]
        return "\n".join([*lines, *self.finish(rows, columns, lanes), "}"])

    def functions(self, tiling: Tiling, columns: int, lanes: int) -> list[str]:
        """A function for each height of a tiling, as `functions_for` names them."""
        return functions_for(self.emit, tiling, columns, self.vectors * lanes, lanes)

    def start(self, rows: int, columns: int, lanes: int) -> list[str]:
        """Statements that set the accumulators to the bias, or to 0."""
        lines = [f"UNROLL for (int i = 0; i < {rows}; i++) {{"]
        bias = self.epilogue.bias if self.epilogue else None
        for j in range(self.vectors):
            if bias is None or self.epilogue is None:
                lines.append(f"c[i][{j}] = (v_{self.dot.sum}){{0}};")
                continue
            valid = min(lanes, columns - j * lanes)
            if self.epilogue.padded_channel(bias) or valid == lanes:
                lines.append(f"c[i][{j}] = load_{self.dot.sum}(bias + {j} * LANES);")
            else:
                lines.append(f"c[i][{j}] = loadn_{self.dot.sum}(bias + {j} * LANES, {max(valid, 0)});")
        return [*lines, "}"]

    def finish(self, rows: int, columns: int, lanes: int) -> list[str]:
        """Statements that apply the epilogue to the accumulators and store the results."""
        into = self.result or self.dot.sum
        heavy = self.epilogue is not None and self.epilogue.heavy
        lines = []
        if heavy:
            # Through memory, so that the epilogue's code stands here once and not rows x vectors times.
            lines.append(f"{CTYPE[self.dot.sum]} t[{rows}][{self.vectors} * LANES];")
            lines.append(f"UNROLL for (int i = 0; i < {rows}; i++) {{")
            lines += [f"store_{self.dot.sum}(t[i] + {j} * LANES, c[i][{j}]);" for j in range(self.vectors)]
            lines += ["}", '_Pragma("GCC unroll 1")']
        before = self.epilogue.before(self.vectors, columns, lanes) if self.epilogue else []
        lines = [*before, *lines, f"{'' if heavy else 'UNROLL '}for (int i = 0; i < {rows}; i++) {{"]
        paired = self.epilogue is not None and self.epilogue.clipped is not None
        j = 0
        while j < self.vectors and columns > j * lanes:
            valid = min(lanes, columns - j * lanes)
            target = f"o + i * {self.ldo}L + {j} * LANES"
            if paired and columns >= (j + 2) * lanes:
                values = [self._value(lines, k, "LANES", heavy, clip=False) for k in (j, j + 1)]
                lines.append(f"store_pair_{into}({target}, {', '.join(values)});")
                j += 2
                continue
            stored = to_memory(self._value(lines, j, "LANES" if valid == lanes else str(valid), heavy), into)
            whole = valid == lanes
            lines.append(
                f"store_{into}({target}, {stored});" if whole else f"storen_{into}({target}, {stored}, {valid});"
            )
            j += 1
        return [*lines, "}"]

    def _value(self, lines: list[str], j: int, count: str, heavy: bool, clip: bool = True) -> str:
        """Add the statements that compute vector `j` of row `i`; returns its name."""
        source = f"load_{self.dot.sum}(t[i] + {j} * LANES)" if heavy else f"c[i][{j}]"
        lines.append(f"const v_{self.dot.sum} r{j} = {source};")
        if self.epilogue is None:
            return f"r{j}"
        at = {"full": f"i * {self.ldo}L + {j} * LANES"}
        loaded = {"scalar": "0", "channel": str(j)}
        written, value = self.epilogue.apply(f"r{j}", at, count, str(j), loaded, clip)
        lines += written
        return value
