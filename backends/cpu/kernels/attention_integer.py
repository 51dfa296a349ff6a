"""Attention in fixed point, one head at a time: scores, weights and sums stay in scratch memory.

Queries times packed keys give a tile of scores; each row becomes weights of one byte and the inverse of
their sum; weights times packed values give sums that one fixed-point multiplication divides. Both products
are those of the gemm family's register tile, or of the tile registers of Intel AMX.
"""

from __future__ import annotations

from secateur.backends.cpu.attention_plan import Plan, make_plan, products
from secateur.backends.cpu.band import copy_elements
from secateur.backends.cpu.cexpr import CTYPE, BodyWriter, from_memory, to_memory
from secateur.backends.cpu.dot import Dot
from secateur.backends.cpu.kernel import Example, Family, Job, Kernel, family
from secateur.backends.cpu.kernels.matmul import pack_panel, strided_offset
from secateur.backends.cpu.tile import Epilogue, check_epilogue
from secateur.backends.cpu.views import View
from secateur.ir.opdef import lookup
from secateur.ir.ops.fixed_point import GAIN, HIDDEN, WEIGHT
from secateur.ir.types import DType, numel

UNITS = 16


def _match(job: Job) -> str:
    op = job.anchor
    if op.name != "attention_integer":
        return f"{op.name} is no attention in integers"
    if any(value.type.numel == 0 for value in (*op.operands, *op.results)):
        return "empty"
    return check_epilogue(job)


def _cost(job: Job) -> float:
    """Products, a dozen instructions for a vector of scores, and what packing takes."""
    q, k, v = job.anchor.operands[:3]
    rows, keys = numel(q.shape[:-1]), k.shape[-2]
    plan, lanes = make_plan(job), job.target.lanes
    step = 0.1 if plan.tiles else plan.scores.cycles * 0.6
    steps = rows * keys * (q.shape[-1] + v.shape[-1]) / plan.scores.group
    return (steps * step + rows * keys * 12.0) / lanes + (k.type.bytes + v.type.bytes) * 0.3 + 500.0


def _accepts(job: Job, position: int, view: View) -> bool:
    positions = [job.position(value) for value in job.anchor.operands]
    if position not in positions or not job.reads_once(position):
        return False
    return position != positions[0] or view.strides[-1] == 1 or view.shape[-1] == 1


def _emit(job: Job) -> Kernel:
    plan, lanes = make_plan(job), job.target.lanes
    epilogue = Epilogue(job, plan.dv, plan.dv + 2 * lanes)
    heads, heights = numel(plan.batch), plan.tiling.heights
    blocks = max(1, min(-(-UNITS // heads), plan.s // 16))
    functions = [*products(plan, lanes), _weights(job, plan), _pack(job, plan)]
    operands = [job.position(operand) for operand in job.anchor.operands]
    mask = job.view(job.anchor.operands[3]).broadcast((*plan.batch, plan.s, plan.t)) if len(operands) > 3 else None
    q, out, result = job.view(job.anchor.operands[0]), job.results[0], CTYPE[job.result_type.dtype]
    walks = {"qo": q.strides[:-2], "oo": out.strides[:-2]} | ({"mo": mask.strides[:-2]} if mask else {})
    places, size = plan.places
    lines = [
        "KERNEL(NAME) {",
        f"{result} *o = ({result} *)p[{len(operands)}];",
        *epilogue.declare(len(operands) + 1),
        *(f"{ctype} *const {name} = ({ctype} *)(SCRATCH + {offset}); (void){name};" for name, ctype, offset in places),
        *(["configure_tiles(16, 64);"] if plan.tiles else []),
        "for (long u = begin; u < end; u++) {",
        f"const long block = u % {blocks}, head = u / {blocks}, shared = head / {_repeat(job)};",
        *strided_offset(plan.batch, walks, "head"),
        "if (PACKED != shared) NAME_pack(p, shared, keys, values, key_start, value_start);",
        "PACKED = shared;",
        f"const long t0 = block * {plan.tiling.count} / {blocks}, t1 = (block + 1) * {plan.tiling.count} / {blocks};",
        "for (long t = t0; t < t1; t++) {",
        f"const long m = {plan.tiling.start('t')};",
        f"const int rows = {plan.tiling.base}{f' + (t < {plan.tiling.extra})' if plan.tiling.extra else ''};",
        *_tile(plan, q, "mo" if mask else "0"),
        *_finish(job, plan, epilogue, out),
        *["}"] * 2,
        *(["_tile_release();"] if plan.tiles else []),
        "}",
    ]
    args = (*operands, ("result", 0), *(pointer for _, pointer in epilogue.pointers))
    note = f"{heads} heads of {plan.s}x{plan.t}, {max(heights)}-row tiles"
    return Kernel("\n\n".join([*functions, "\n".join(lines)]), args, heads * blocks, size, note=note)  # type: ignore[arg-type]


def _repeat(job: Job) -> int:
    """Heads of queries that share one of keys and values."""
    q, k = job.anchor.operands[:2]
    return q.shape[-3] // k.shape[-3]


def _pack(job: Job, plan: Plan) -> str:
    """A function that packs the keys and values of a head."""
    k, v = (job.view(value) for value in job.anchor.operands[1:3])
    right = [CTYPE[dot.right] for dot in (plan.scores, plan.values)]
    lines = [
        f"static void NAME_pack(void *const *p, long head, {right[0]} *keys, {right[1]} *values, "
        "int32_t *key_start, int32_t *value_start) {",
        f"const {right[0]} *k = p[1]; const {right[1]} *v = p[2];",
        "(void)key_start; (void)value_start;",
        *strided_offset(k.shape[:-2], {"ko": k.strides[:-2], "vo": v.strides[:-2]}, "head"),
    ]
    lines += _panels(plan, plan.scores, "key", plan.panels[0], ("k + ko", plan.d, plan.t, k.strides[-1], k.strides[-2]))
    lines += _panels(
        plan, plan.values, "value", plan.panels[1], ("v + vo", plan.t, plan.dv, v.strides[-2], v.strides[-1])
    )
    return "\n".join([*lines, "}"])


def _panels(plan: Plan, dot: Dot, name: str, count: int, source: tuple[str, int, int, int, int]) -> list[str]:
    """Pack a matrix (where it is, depth, columns, strides along both) as `count` panels."""
    (at, depth, columns, row, column), width = source, plan.width
    size, packed = plan.depth(dot, depth) * width, dot.steps(depth) * dot.group * width
    panel = f"({name}s + c * {size}L)"
    lines = [f"for (long c = 0; c < {count}; c++) {{", *pack_panel(dot, panel, at, depth, columns, width, row, column)]
    if size > packed:
        lines.append(f"memset({panel} + {packed}, 0, {size - packed} * sizeof *{name}s);")
    if dot.shift:
        start = f"{name}_start + c * {width}"
        lines.append(f"start_sums({start}, 0, 0, {panel}, {dot.steps(depth)}, {width}, {dot.shift});")
    return [*lines, "}"]


def _tile(plan: Plan, q: View, mask: str) -> list[str]:
    """The three stages for `rows` queries from number `m` on."""
    lines = [
        "for (long i = 0; i < rows; i++) {",
        f"{CTYPE[plan.scores.left]} *const to = queries + i * {plan.query};",
        f"const {CTYPE[plan.scores.source]} *const from = "
        f"(const {CTYPE[plan.scores.source]} *)p[0] + qo + (m + i) * {q.strides[-2]}L;",
        copy_elements(plan.scores, plan.d, 1),
        "}",
    ]

    def product(kind: str, panels: int, panel: int, left: str, right: str, into: str) -> list[str]:
        if plan.tiles:
            call = f"NAME_{kind}({left}, {right} + c * {panel}L, {into} + c * {plan.width}, rows);"
            return [f"for (long c = 0; c < {panels}; c++) {call}"]
        calls = [
            f"NAME_{kind}{height}({left}, {right} + c * {panel}L, {into} + c * {plan.width});"
            for height in plan.tiling.heights
        ]
        pick = f"if (t < {plan.tiling.extra}) {calls[0]} else {calls[-1]}" if plan.tiling.extra else calls[0]
        return [f"for (long c = 0; c < {panels}; c++) {{", pick, "}"]

    keys, values = plan.panels
    return [
        *lines,
        *product("scores", keys, plan.key_panel, "queries", "keys", "scores"),
        f"NAME_weights(p, {mask}, scores, key_start, weights, inverse, m, rows);",
        *product("values", values, plan.value_panel, "weights", "values", "sums"),
    ]


def _weights(job: Job, plan: Plan) -> str:
    """A function that turns rows of scores, the first being query `m`, into weights and the inverse of their sum."""
    lanes, t, attrs = job.target.lanes, plan.t, job.anchor.attrs
    operands = job.anchor.operands
    mask = job.view(operands[3]).broadcast((*plan.batch, plan.s, t)) if len(operands) > 3 else None
    hides = mask is not None or attrs["causal"]
    hidden = f"splat_i32({HIDDEN})"

    def seen(count: str) -> list[str]:
        start = " + load_i32(start + j)" if plan.scores.shift else ""
        lines = [f"v_i32 s = load_i32(row + j){start};"]
        if mask:
            step = mask.strides[-1]
            at = f"mask + (m + i) * {mask.strides[-2]}L + j * {step}L"
            whole, some = f"load_bool({at})", f"loadn_bool({at}, {count})"
            loaded = f"gather_bool({at}, {step}L, {count})" if step != 1 else whole if count == "LANES" else some
            lines.append(f"s = select_i32({from_memory(loaded, DType.BOOL)}, s, {hidden});")
        if attrs["causal"]:
            lines.append(f"s = select_i32(lane + (int)j <= (int)(m + i), s, {hidden});")
        if count != "LANES":
            lines.append(f"s = select_i32(lane < {count}, s, {hidden});")
        return [*lines, "top = max_i32(s, top);", "store_i32(row + j, s);"]

    def weigh(partial: bool) -> list[str]:
        writer = BodyWriter({})
        decay = lookup("decay").expr
        assert decay is not None
        arguments = {"x": ("below", DType.I32), "multiplier": ("multiplier", DType.I32)}
        power, _ = writer.expr(decay, arguments, attrs, DType.I32)
        lines = ["const v_i32 s = load_i32(row + j), below = most - s;", *writer.lines]
        lines.append(f"v_i32 w = ({power} * {WEIGHT} + {1 << 14}) >> 15;")
        if hides or partial:
            lines.append(f"w &= TRUTH(s != {hidden});")
        stored = f"CONVERT({plan.values.convert('w')}, v_{plan.values.left})"
        return [*lines, "total += w;", f"store_{plan.values.left}(to + j, {stored});"]

    whole, rest = t // lanes * lanes, t % lanes
    first, second = [], []
    fast = t // 64 * 64 if _in_16_bits(job, plan) else 0
    if whole:
        first += [f"for (long j = 0; j < {whole}; j += LANES) {{", *seen("LANES"), "}"]
        second += [f"for (long j = {fast}; j < {whole}; j += LANES) {{", *weigh(False), "}"] if whole > fast else []
    if rest:
        first += [f"{{ const long j = {whole};", *seen(str(rest)), "}"]
        second += [f"{{ const long j = {whole};", *weigh(True), "}"]
    left = CTYPE[plan.values.left]
    return "\n".join(
        [
            "static void NAME_weights(void *const *p, long mo, int32_t *scores, const int32_t *start, "
            f"{left} *weights, int32_t *inverse, long m, int rows) {{",
            "const bool_t *const mask = (const bool_t *)p[3] + mo; (void)mask; (void)start; (void)m;",
            "vbool lane; for (int l = 0; l < LANES; l++) lane[l] = l;",
            f"(void)lane; const v_i32 multiplier = splat_i32({attrs['multiplier']});",
            "for (int i = 0; i < rows; i++) {",
            f"int32_t *row = scores + i * {plan.row}L; {left} *to = weights + i * {plan.row}L;",
            f"v_i32 top = {hidden}, total = {{0}};",
            *first,
            "const v_i32 most = splat_i32(max_lanes_i32(top));",
            *(_fast(fast, attrs["shift"], hides) if fast else []),
            *second,
            "const int32_t sum = sum_lanes_i32(total);",
            f"inverse[i] = sum ? (int32_t)(((int64_t)1 << {32 + GAIN}) / sum) : 0;",
            "}",
            "}",
        ]
    )


def _in_16_bits(job: Job, plan: Plan) -> bool:
    """Whether weights can be computed in lanes of 16 bits, without a look at what is hidden.

    No exponent may be too large for 32 bits, and that of a hidden score, at least 2^29 below any other
    one, has to be so large that the weight is 0.
    """
    multiplier, shift = job.anchor.attrs["multiplier"], job.anchor.attrs["shift"]
    least = ((multiplier << 29) + (1 << shift - 1)) >> shift
    wide = job.target.vector_bytes == 64 and "avx512bw" in job.target.features
    return wide and plan.values.left is DType.U8 and plan.d < 1 << 15 and multiplier < 1 << shift and least >= 15 << 8


def _fast(count: int, shift: int, hides: bool) -> list[str]:
    """The first `count` weights of a row, 64 at a time. Where all scores are hidden, all weights are 0."""
    powers = [f"mulshift_i32(most - load_i32(row + j + {i} * LANES), multiplier, {shift})" for i in range(4)]
    value = f"weights_u8({', '.join(powers)})"
    lines = [f"__m512i w = {value};"]
    if hides:
        lines.append(f"if (most[0] == {HIDDEN}) w = _mm512_setzero_si512();")
    return [
        f"for (long j = 0; j < {count}; j += 64) {{",
        *lines,
        "_mm512_storeu_si512(to + j, w);",
        "total += (v_i32)_mm512_sad_epu8(w, _mm512_setzero_si512());",
        "}",
    ]


def _finish(job: Job, plan: Plan, epilogue: Epilogue, out: View) -> list[str]:
    """Divide the sums, apply what follows, and store."""
    lanes, into = job.target.lanes, job.result_type.dtype

    def store(count: str) -> list[str]:
        start = " + load_i32(value_start + j)" if plan.values.shift else ""
        sums = f"load_i32(sums + i * {plan.panels[1] * plan.width}L + j){start}"
        lines = [f"const v_i32 r0 = mulshift_i32({sums}, divide, 32);"]
        full = f"(head * {plan.s} + m + i) * {plan.dv}L + j"
        written, value = epilogue.apply("r0", {"channel": "j", "full": full}, count)
        at, stored = f"o + oo + (m + i) * {out.strides[-2]}L + j", to_memory(value, into)
        whole = f"store_{into}({at}, {stored});"
        return [*lines, *written, whole if count == "LANES" else f"storen_{into}({at}, {stored}, {count});"]

    lines = ["for (long i = 0; i < rows; i++) {", "const v_i32 divide = splat_i32(inverse[i]);"]
    whole = plan.dv // lanes * lanes
    if whole:
        lines += [f"for (long j = 0; j < {whole}; j += LANES) {{", *store("LANES"), "}"]
    if plan.dv % lanes:
        lines += [f"{{ const long j = {whole};", *store(str(plan.dv % lanes)), "}"]
    return [*lines, "}"]


_SCALE = {"multiplier": 1500000000, "shift": 29}
ATTENTION_INTEGER = family(
    Family(
        name="attention_integer",
        doc="Scores, one-byte weights and weighted sum of one head in integers, packed in scratch memory.",
        match=_match,
        emit=_emit,
        cost=_cost,
        accepts=_accepts,
        places=True,
        examples=(
            Example("attention_integer", ("i8[1,12,128,64]",) * 3, _SCALE, epilogue=("relu",)),
            Example("attention_integer", ("i8[1,12,197,64]",) * 3, _SCALE),
            Example(
                "attention_integer", ("i8[2,8,33,24]", "i8[2,2,33,24]", "i8[2,2,33,24]"), {**_SCALE, "causal": True}
            ),
            Example("attention_integer", ("i8[1,2,9,8]",) * 3 + ("bool[1,1,1,9]",), _SCALE),
        ),
    )
)
