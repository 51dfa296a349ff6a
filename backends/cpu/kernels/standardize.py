"""Layer norm in fixed point: two walks over a row, sums first, then results and what follows them."""

from __future__ import annotations

from secateur.backends.cpu.cexpr import CTYPE, to_memory
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family
from secateur.backends.cpu.kernels.rows import loop
from secateur.backends.cpu.tile import Epilogue, check_epilogue
from secateur.ir.ops.fixed_point import FRACTION


def _match(job: Job) -> str:
    op = job.anchor
    if op.name != "standardize":
        return f"{op.name} does not standardize"
    return "empty" if op.result.type.numel == 0 else check_epilogue(job)


def _cost(job: Job) -> float:
    return 300.0 + job.result_type.numel / job.target.lanes * 16.0


def _statistics(size: int, centre: bool, epsilon: int) -> list[str]:
    """From the sums of x and x * x, exactly those that the definition takes from the differences: with
    c = 64 x - mean, sum(c * c) = 4096 sum(x * x) - 128 mean sum(x) + size mean * mean."""
    one, half = 1 << FRACTION, size // 2
    mean = f"floor_div_i64({one} * total + {half}, {size})" if centre else "0"
    return [
        f"const int64_t mean = {mean};",
        f"const int64_t apart = {one * one} * squares - {2 * one} * mean * total + {size} * mean * mean;",
        f"const int64_t root = root_i64((apart / {size} + {epsilon}LL) << 16), least = root > 1 ? root : 1;",
        "const int bits = 64 - __builtin_clzll((uint64_t)least);",
        "const v_i32 inverse = splat_i32((int32_t)(((int64_t)1 << (29 + bits)) / least));",
        "const v_i32 middle = splat_i32((int32_t)mean);",
    ]


def _emit(job: Job) -> Kernel:
    op, lanes, into = job.anchor, job.target.lanes, job.result_type.dtype
    size = op.result.shape[-1]
    epilogue = Epilogue(job, size, size + 2 * lanes)
    source = job.position(op.operands[0])
    assert source is not None

    def add(count: str) -> list[str]:
        load = "load_i16(x + i)" if count == "LANES" else f"loadn_i16(x + i, {count})"
        return [f"const v_i32 v = CONVERT({load}, v_i32);", "sums += v;", "wide = add_squares(wide, v);"]

    def finish(count: str) -> list[str]:
        load = "load_i16(x + i)" if count == "LANES" else f"loadn_i16(x + i, {count})"
        lines = [
            f"const v_i32 c = (CONVERT({load}, v_i32) << {FRACTION}) - middle;",
            "const v_i32 r0 = mulshift_i32(c, inverse, bits + 1);",
        ]
        written, value = epilogue.apply("r0", {"channel": "i", "full": f"u * {size}L + i"}, count)
        stored = to_memory(value, into)
        whole = f"store_{into}(o + i, {stored});"
        return [*lines, *written, whole if count == "LANES" else f"storen_{into}(o + i, {stored}, {count});"]

    rest = str(size % lanes)
    lines = [
        "KERNEL(NAME) {",
        "(void)scratch;",
        *epilogue.declare(2),
        "for (long u = begin; u < end; u++) {",
        f"const int16_t *x = (const int16_t *)p[0] + u * {size}L;",
        f"{CTYPE[into]} *o = ({CTYPE[into]} *)p[1] + u * {size}L;",
        "v_i32 sums = {0}; v_wide wide = {0};",
        *loop(size, lanes, add("LANES"), add(rest)),
        "int64_t total = 0, squares = 0; (void)total;",
        "for (int i = 0; i < LANES; i++) total += sums[i];",
        "for (int i = 0; i < (int)(sizeof wide / 8); i++) squares += (int64_t)wide[i];",
        *_statistics(size, op.attrs["centre"], op.attrs["epsilon"]),
        *loop(size, lanes, finish("LANES"), finish(rest)),
        "}",
        "}",
    ]
    args = (source, ("result", 0), *(pointer for _, pointer in epilogue.pointers))
    return Kernel("\n".join(lines), args, op.result.type.numel // size)


STANDARDIZE = family(
    Family(
        name="standardize",
        doc="Layer norm's core in fixed point over contiguous rows, with a fused epilogue.",
        match=_match,
        emit=_emit,
        cost=_cost,
        examples=(
            Example("standardize", ("i16[128,768]",), {"epsilon": 40}),
            Example("standardize", ("i16[7,99]",), {"epsilon": 0, "centre": False}, epilogue=("neg",)),
        ),
    )
)
