"""Softmax, layer norm and RMS norm: each row is read from the first-level cache a few times."""

from __future__ import annotations

from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family
from secateur.backends.cpu.tile import Epilogue, check_epilogue
from secateur.ir.types import DType, numel

NORMS = ("softmax", "layer_norm", "rms_norm")


def _row(job: Job) -> int:
    """Elements of a row: everything that is normalised together."""
    op = job.anchor
    shape = op.result.shape
    return shape[-1] if op.name == "softmax" else numel(shape[len(shape) - op.attrs["dims"] :])


def _match(job: Job) -> str:
    op = job.anchor
    if op.name not in NORMS:
        return f"{op.name} does not normalise rows"
    if op.result.type.dtype is not DType.F32 or job.result_type.dtype is not DType.F32:
        return f"element type {op.result.type.dtype}"
    if op.result.type.numel == 0:
        return "empty"
    if op.name == "softmax" and op.attrs["axis"] != op.result.type.rank - 1:
        return "not along the last axis"
    if len(job.ops) > 1 and op.name != "softmax" and op.attrs["dims"] != 1:
        return "an epilogue over several dimensions"
    return check_epilogue(job)


def _cost(job: Job) -> float:
    per_vector = 30.0 if job.anchor.name == "softmax" else 8.0
    return 300.0 + job.result_type.numel / job.target.lanes * per_vector


def loop(count: int, lanes: int, body: list[str], tail_body: list[str]) -> list[str]:
    """A loop over a row: whole vectors, then the rest with `m` elements."""
    lines = []
    if count >= lanes:
        lines += [f"for (long i = 0; i < {count // lanes * lanes}; i += LANES) {{", *body, "}"]
    if count % lanes:
        lines += [f"{{ const long i = {count // lanes * lanes};", *tail_body, "}"]
    return lines


def _both(count: int, lanes: int, text: list[str]) -> list[str]:
    """The same statements for whole vectors and for the rest; LOAD(p), STORE(p, v), KEEP(v, w) adapt."""
    rest = str(count % lanes)
    whole = [_expand(line, "LANES") for line in text]
    return loop(count, lanes, whole, [_expand(line, rest) for line in text])


def _expand(line: str, count: str) -> str:
    if count == "LANES":
        return line.replace("LOAD(", "load_f32(").replace("STORE(", "store_f32(").replace("KEEP(", "KEEP_ALL(")
    line = line.replace("LOAD(", f"LOADN({count}, ").replace("STORE(", f"STOREN({count}, ")
    return line.replace("KEEP(", f"KEEP_FIRST({count}, ")


_MACROS = """#undef LOADN
#define LOADN(n, p) loadn_f32(p, n)
#undef STOREN
#define STOREN(n, p, v) storen_f32(p, v, n)
#undef KEEP_ALL
#define KEEP_ALL(v, other) (v)
#undef KEEP_FIRST
#define KEEP_FIRST(n, v, other) select_f32(lane < n, v, splat_f32(other))"""


def _softmax(count: int, lanes: int) -> list[str]:
    return [
        "v_f32 top = splat_f32(-INFINITY);",
        *_both(count, lanes, ["top = max_f32(KEEP(LOAD(x + i), -INFINITY), top);"]),
        "const float most = max_lanes_f32(top);",
        "v_f32 total = splat_f32(0.f);",
        *_both(
            count, lanes, ["const v_f32 e = exp_f32(LOAD(x + i) - most);", "total += KEEP(e, 0.f);", "STORE(o + i, e);"]
        ),
        "const float scale = 1.f / sum_lanes_f32(total);",
    ]


def _mean_and_scale(job: Job, count: int, lanes: int) -> list[str]:
    eps = f"{float(job.anchor.attrs['eps'])!r}f"
    if job.anchor.name == "rms_norm":
        mean = ["const float mean = 0.f;"]
    else:
        mean = [
            "v_f32 sum = splat_f32(0.f);",
            *_both(count, lanes, ["sum += LOAD(x + i);"]),
            f"const float mean = sum_lanes_f32(sum) / {count}.f;",
        ]
    return [
        *mean,
        "v_f32 squares = splat_f32(0.f);",
        *_both(count, lanes, ["const v_f32 d = KEEP(LOAD(x + i) - mean, 0.f);", "squares += d * d;"]),
        f"const float scale = 1.f / sqrtf(sum_lanes_f32(squares) / {count}.f + {eps});",
    ]


def _emit(job: Job) -> Kernel:
    op, lanes = job.anchor, job.target.lanes
    count = _row(job)
    rows = op.result.type.numel // count
    epilogue = Epilogue(job, op.result.shape[-1], op.result.shape[-1], pack=False)
    pointers = [job.position(value) for value, _, _ in epilogue.reads]
    weights = [(name, job.position(value)) for name, value in zip(("weight", "shift"), op.operands[1:])]
    source = job.position(op.operands[0])
    args = [source, ("result", 0), *(position for _, position in weights), *pointers]
    first = 2 + len(weights)
    lines = [
        _MACROS,
        "KERNEL(NAME) {",
        "(void)scratch;",
        "vbool lane; for (int l = 0; l < LANES; l++) lane[l] = l;",
        "(void)lane;",
        *(f"const float *{name} = p[{2 + i}];" for i, (name, _) in enumerate(weights)),
        *epilogue.declare(first),
        "for (long u = begin; u < end; u++) {",
        f"const float *x = (const float *)p[0] + u * {count}L;",
        f"float *o = (float *)p[1] + u * {count}L;",
        *(_softmax(count, lanes) if op.name == "softmax" else _mean_and_scale(job, count, lanes)),
    ]
    value = "LOAD(o + i) * scale" if op.name == "softmax" else "(LOAD(x + i) - mean) * scale"
    for name, _ in weights:
        value = f"({value}) {'*' if name == 'weight' else '+'} LOAD({name} + i)"

    def finish(n: str) -> list[str]:
        text = [f"const v_f32 r0 = {_expand(value, n)};"]
        written, result = epilogue.apply("r0", {"channel": "i", "full": f"u * {count}L + i"}, n)
        return [*text, *written, _expand(f"STORE(o + i, {result});", n)]

    lines += loop(count, lanes, finish("LANES"), finish(str(count % lanes)))
    inplace = (source,) if source is not None else ()
    return Kernel("\n".join([*lines, "}", "}"]), tuple(args), rows, inplace=inplace)  # type: ignore[arg-type]


ROWS = family(
    Family(
        name="rows",
        doc="Softmax, layer norm and RMS norm over contiguous rows, with a fused epilogue.",
        match=_match,
        emit=_emit,
        cost=_cost,
        examples=(
            Example("softmax", ("f32[12,128,128]",), {"axis": 2}),
            Example("layer_norm", ("f32[128,768]", "f32[768]", "f32[768]"), {"dims": 1, "eps": 1e-5}, (1, 2)),
            Example("rms_norm", ("f32[128,2048]", "f32[2048]"), {"dims": 1, "eps": 1e-6}, (1,), ("relu",)),
        ),
    )
)
