"""Attention of one head at a time: scores, softmax and the weighted sum stay in scratch memory."""

from __future__ import annotations

from secateur.backends.cpu.cexpr import CTYPE, from_memory, literal
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family
from secateur.backends.cpu.kernels.matmul import pack_panel, strided_offset
from secateur.backends.cpu.tile import TileCode
from secateur.backends.cpu.tiling import SINGLE, Tiling, choose_tiling
from secateur.backends.cpu.views import View
from secateur.ir.types import DType, numel

VECTORS = 2
UNITS = 16


def _match(job: Job) -> str:
    op = job.op
    if op.name != "attention":
        return f"{op.name} is no attention"
    if op.operands[0].type.dtype is not DType.F32:
        return f"element type {op.operands[0].type.dtype}"
    if any(value.type.numel == 0 for value in (*op.operands, *op.results)):
        return "empty"
    return ""


def _cost(job: Job) -> float:
    q, k, v = job.op.operands[:3]
    flops = 2 * numel(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])
    return flops / (2 * job.target.lanes) * 1.2 + numel(q.shape[:-1]) * k.shape[-2] * 2.0 + 500.0


def _accepts(job: Job, position: int, view: View) -> bool:
    return position == 3 or position in (1, 2) or view.strides[-1] == 1 or view.shape[-1] == 1


def _tiling(job: Job, rows: int, columns: int) -> Tiling:
    """Both products of a row tile have the same height, so both use the same number of vectors."""
    tallest = (job.target.registers - 2 - VECTORS) // VECTORS
    count = -(-rows // tallest)
    base, extra = divmod(rows, count)
    panels = -(-columns // (VECTORS * job.target.lanes))
    return Tiling(VECTORS, panels, count, base, extra, choose_tiling(rows, columns, 64, job.target).cycles)


def _emit(job: Job) -> Kernel:
    lanes = job.target.lanes
    (q, k, v), out = job.views[:3], job.results[0]
    batch, (s, d), (t, dv) = q.shape[:-2], q.shape[-2:], v.shape[-2:]
    width = VECTORS * lanes
    heads = numel(batch)
    blocks = max(1, min(-(-UNITS // heads), s // 16))
    scores_tiling, value_tiling = _tiling(job, s, t), _tiling(job, s, dv)
    padded = scores_tiling.panels * width + 16
    scores = TileCode(SINGLE, VECTORS, (), d, q.strides[-2], width, padded)
    values = TileCode(SINGLE, VECTORS, (), t, padded, width, out.strides[-2])
    functions = [scores.emit(f"NAME_scores{height}", height, width, lanes) for height in scores_tiling.heights]
    functions += values.functions(value_tiling, dv, lanes)
    repeat = batch[-1] // k.shape[-3]
    grouped = (*batch[:-1], k.shape[-3])

    bias = job.views[3].broadcast((*batch, s, t)) if len(job.views) > 3 else None
    mask = f", ({CTYPE[bias.dtype]} const *)p[3] + mo" if bias else ""
    functions.append(_softmax(job, bias, t, padded))
    count = scores_tiling.count
    walks = {"qo": q.strides[:-2], "oo": out.strides[:-2]} | ({"mo": bias.strides[:-2]} if bias else {})
    tallest = max(scores_tiling.heights)
    sizes = [scores_tiling.panels * d * width, value_tiling.panels * t * width, tallest * padded]
    lines = [
        "KERNEL(NAME) {",
        *(f"const float *{name} = p[{i}];" for i, name in enumerate("qkv")),
        f"float *o = (float *)p[{len(job.views)}];",
        "float *const kp = (float *)SCRATCH;",
        f"float *const vp = kp + {sizes[0]}L, *const sc = vp + {sizes[1]}L;",
        "for (long u = begin; u < end; u++) {",
        f"const long block = u % {blocks}, head = u / {blocks}, shared = head / {repeat};",
        *strided_offset(batch, walks, "head"),
        "if (PACKED != shared) {",
        "PACKED = shared;",
        *["{", *strided_offset(grouped, {"ko": k.strides[:-2], "vo": v.strides[:-2]}, "shared")],
        f"for (long c = 0; c < {scores_tiling.panels}; c++) {{",
        *pack_panel(SINGLE, f"(kp + c * {d * width}L)", "k + ko", d, t, width, k.strides[-1], k.strides[-2]),
        "}",
        f"for (long c = 0; c < {value_tiling.panels}; c++) {{",
        *pack_panel(SINGLE, f"(vp + c * {t * width}L)", "v + vo", t, dv, width, v.strides[-2], v.strides[-1]),
        *["}", "}", "}"],
        f"const long t0 = block * {count} / {blocks}, t1 = (block + 1) * {count} / {blocks};",
        "for (long t = t0; t < t1; t++) {",
        f"const long m = {scores_tiling.start('t')};",
    ]
    for height in scores_tiling.heights:
        lines += _rows(height, scores_tiling, value_tiling, d * width, t * width, width, q, out, dv % width != 0, mask)
    lines += ["}", "}", "}"]
    args = (*range(len(job.views)), ("result", 0))
    note = f"{heads} heads of {s}x{t}, {tallest}-row tiles"
    scratch = (sum(sizes) + 64) * 4
    return Kernel("\n\n".join([*functions, "\n".join(lines)]), args, heads * blocks, scratch, note=note)


def _softmax(job: Job, bias: View | None, t: int, padded: int) -> str:
    """Softmax of `rows` rows of scores in place, the first of them being query `m`."""
    lanes, causal = job.target.lanes, job.op.attrs["causal"]
    scale = literal(job.op.attrs["scale"], DType.F32)

    def masked(count: str) -> list[str]:
        lines = [f"v_f32 s = load_f32(row + j) * {scale};"]
        if bias:
            step, dtype = bias.strides[-1], bias.dtype
            at = f"bias + (m + i) * {bias.strides[-2]}L + j * {step}L"
            whole, some = f"load_{dtype}({at})", f"loadn_{dtype}({at}, {count})"
            loaded = f"gather_{dtype}({at}, {step}L, {count})" if step != 1 else whole if count == "LANES" else some
            value = from_memory(loaded, dtype)
            never = "splat_f32(-INFINITY)"
            lines.append(f"s = select_f32({value}, s, {never});" if dtype is DType.BOOL else f"s += {value};")
        if causal:
            lines.append("s = select_f32(lane + (int)j <= (int)(m + i), s, splat_f32(-INFINITY));")
        if count != "LANES":
            lines.append(f"s = select_f32(lane < {count}, s, splat_f32(-INFINITY));")
        return [*lines, "top = max_f32(s, top);", "store_f32(row + j, s);"]

    whole = t // lanes * lanes
    first = [f"for (long j = 0; j < {whole}; j += LANES) {{", *masked("LANES"), "}"] if whole else []
    if t % lanes:
        first += [f"{{ const long j = {whole};", *masked(str(t % lanes)), "}"]
    vectors = -(-t // lanes) * lanes
    parameter = f", const {CTYPE[bias.dtype]} *bias" if bias else ""
    return "\n".join(
        [
            f"static void NAME_softmax(float *scores, long m, int rows{parameter}) {{",
            "vbool lane; for (int l = 0; l < LANES; l++) lane[l] = l;",
            "(void)lane; (void)m;",
            "for (int i = 0; i < rows; i++) {",
            f"float *row = scores + i * {padded}L;",
            "v_f32 top = splat_f32(-INFINITY), total = splat_f32(0.f);",
            *first,
            "float most = max_lanes_f32(top);",
            "if (most == -INFINITY) most = 0; /* a row that may attend to nothing gives zeros */",
            f"for (long j = 0; j < {vectors}; j += LANES) {{",
            "const v_f32 e = exp_f32(load_f32(row + j) - most);",
            "total += e;",
            "store_f32(row + j, e);",
            "}",
            "const float sum = sum_lanes_f32(total), factor = 1.f / (sum == 0 ? 1.f : sum);",
            f"for (long j = 0; j < {vectors}; j += LANES) store_f32(row + j, load_f32(row + j) * factor);",
            "}",
            "}",
        ]
    )


def _rows(
    height: int,
    scores: Tiling,
    values: Tiling,
    key_panel: int,
    value_panel: int,
    width: int,
    q: View,
    out: View,
    partial: bool,
    mask: str,
) -> list[str]:
    """Scores, softmax and weighted sum of one row tile of a given height."""
    condition = "1" if not scores.extra else f"t {'<' if height > scores.base else '>='} {scores.extra}"
    call = f"(sc, vp + c * {value_panel}L, o + oo + m * {out.strides[-2]}L + c * {width});"
    pick = f"if (c < {values.panels - 1}) NAME_tile{height}{call} else NAME_last{height}{call}"
    return [
        f"if ({condition}) {{",
        f"for (long c = 0; c < {scores.panels}; c++)",
        f"NAME_scores{height}(q + qo + m * {q.strides[-2]}L, kp + c * {key_panel}L, sc + c * {width});",
        f"NAME_softmax(sc, m, {height}{mask});",
        f"for (long c = 0; c < {values.panels}; c++) {{",
        pick if partial else f"NAME_tile{height}{call}",
        "}",
        "}",
    ]


ATTENTION = family(
    Family(
        name="attention",
        doc="Scores, mask, softmax and weighted sum of one head, keys and values packed in scratch memory.",
        match=_match,
        emit=_emit,
        cost=_cost,
        accepts=_accepts,
        places=True,
        examples=(
            Example("attention", ("f32[1,12,128,32]",) * 3, {"scale": 0.2}),
            Example("attention", ("f32[1,12,197,64]",) * 3, {"scale": 0.125}),
            Example(
                "attention", ("f32[2,8,33,24]", "f32[2,2,33,24]", "f32[2,2,33,24]"), {"scale": 0.2, "causal": True}
            ),
            Example("attention", ("f32[1,2,9,8]",) * 3 + ("bool[1,1,1,9]",), {"scale": 0.3}),
        ),
    )
)
