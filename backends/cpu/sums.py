"""The epilogue of sums that lie in memory: rows of i32 as matrix instructions store them.

What an epilogue reads again in every row is loaded once, in front of the loop. Two rows of 32 results of 8 bits
are clipped together, which takes a quarter of the instructions that one vector after the other does.
"""

from __future__ import annotations

from dataclasses import dataclass

from secateur.backends.cpu.cexpr import CTYPE, BodyWriter, from_memory, to_memory
from secateur.backends.cpu.tile import Epilogue
from secateur.ir.graph import Op, Value
from secateur.ir.opdef import lookup
from secateur.ir.types import DType

BYTES = (DType.I8, DType.U8)


@dataclass(frozen=True)
class SumsCode:
    """What a function over rows of sums is made from.

    Attributes:
        result: element type of the results.
        ldo: elements from a row of the result to the next.
    """

    epilogue: Epilogue
    result: DType
    ldo: int

    def function(self, name: str, columns: int, width: int, lanes: int) -> str:
        """`name(t, rows, o, operands...)`: results of rows of `width` sums, of which the first `columns` are valid."""
        vectors = -(-columns // lanes)
        params = self.epilogue.params()
        lines = [f"INLINE void {name}(const int32_t *t, long rows, {CTYPE[self.result]} *o{params}) {{"]
        lines += self._before(columns, lanes, vectors)
        paired = self.clipped() is not None and columns == width == 2 * lanes == 32
        lines.append("long i = 0;")
        if paired:
            lines.append("for (; i + 2 <= rows; i += 2) {")
            values = []
            for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
                written, value = self._apply(row, column, width, lanes, columns, clip=False)
                lines += written
                values.append(value)
            ends = f"o + i * {self.ldo}L, o + (i + 1) * {self.ldo}L"
            lines += [f"store_rows_{self.result}({ends}, {', '.join(values)});", "}"]
        lines.append("for (; i < rows; i++) {")
        for column in range(vectors):
            written, value = self._apply(0, column, width, lanes, columns, clip=True)
            valid, target = min(lanes, columns - column * lanes), f"o + i * {self.ldo}L + {column * lanes}"
            stored = to_memory(value, self.result)
            whole = f"store_{self.result}({target}, {stored});"
            lines += [*written, whole if valid == lanes else f"storen_{self.result}({target}, {stored}, {valid});"]
        return "\n".join([*lines, "}", "}"])

    def clipped(self) -> Op | None:
        """The last operation, where all it does in the end is to clip 32 bits to 8."""
        ops = [op for op in self.epilogue.job.epilogue if op.name != "constant"]
        body = self.epilogue.job.body
        if not ops or self.result not in BYTES or (body and body.outputs[0] is not ops[-1].result):
            return None
        expr = lookup(ops[-1].name).expr
        wide = ops[-1].operands[0].type.dtype is DType.I32
        return ops[-1] if expr is not None and expr.op == "saturate" and wide else None

    def _before(self, columns: int, lanes: int, vectors: int) -> list[str]:
        """Loads of what is the same in every row."""
        lines = []
        for value, name, kind in self.epilogue.reads:
            if name == "bias" or kind == "full":
                continue
            for column in range(vectors if kind == "channel" else 1):
                at, valid = f"{name} + {column * lanes}", min(lanes, columns - column * lanes)
                dtype = value.type.dtype
                if kind == "scalar":
                    loaded = f"gather_{dtype}({name}, 0, LANES)"
                elif valid == lanes or self.epilogue.padded_channel(value, kind):
                    loaded = f"load_{dtype}({at})"
                else:
                    loaded = f"loadn_{dtype}({at}, {valid})"
                lines.append(f"const __auto_type {name}_{column} = {from_memory(loaded, dtype)};")
        return lines

    def _apply(self, row: int, column: int, width: int, lanes: int, columns: int, clip: bool) -> tuple[list[str], str]:
        """Statements for one vector of row `i + row`, and its value; without `clip` before the last saturation."""
        suffix, valid = f"{row}{column}", min(lanes, columns - column * lanes)
        names: dict[Value, str] = {}
        lines = [f"const v_i32 r{suffix} = load_i32(t + (i + {row}) * {width} + {column * lanes});"]
        for operand, name, kind in self.epilogue.reads:
            if name == "bias":
                continue
            if kind != "full":
                names[operand] = f"{name}_{column if kind == 'channel' else 0}"
                continue
            names[operand] = f"{name}_{suffix}"
            dtype, at = operand.type.dtype, f"{name} + (i + {row}) * {self.ldo}L + {column * lanes}"
            loaded = f"load_{dtype}({at})" if valid == lanes else f"loadn_{dtype}({at}, {valid})"
            lines.append(f"const __auto_type {names[operand]} = {from_memory(loaded, dtype)};")
        job = self.epilogue.job
        names[job.anchor.result] = f"r{suffix}"
        writer = BodyWriter(names, prefix=f"t{suffix}_")
        last = self.clipped()
        for op in job.epilogue:
            if op is last and not clip:
                value = writer.unclipped(op)
                return [*lines, *writer.lines], value
            writer.op(op)
        final = job.body.outputs[0] if job.body else job.anchor.result
        return [*lines, *writer.lines], writer.names[final]
