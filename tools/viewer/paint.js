// Draws a placed scene on a canvas: only what is in sight, and no more text than can be read.

const FONT = 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
const MARKS = { added: "+", removed: "−", changed: "~" };
let theme = {};

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  theme = new Proxy({}, { get: (kept, name) => (kept[name] ??= style.getPropertyValue(`--${name}`).trim()) });
}

function paint(view, state) {
  const { canvas, placed, camera } = view;
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.fillStyle = theme.page;
  pen.fillRect(0, 0, width, height);
  pen.setTransform(ratio * camera.k, 0, 0, ratio * camera.k, ratio * camera.x, ratio * camera.y);
  const seen = { x1: -camera.x / camera.k, y1: -camera.y / camera.k };
  seen.x2 = seen.x1 + width / camera.k;
  seen.y2 = seen.y1 + height / camera.k;
  const visible = (r) => r.x < seen.x2 && r.x + r.w > seen.x1 && r.y < seen.y2 && r.y + r.h > seen.y1;
  const open = placed.order.filter((n) => n > 0 && placed.boxes[n].open && visible(placed.boxes[n]));
  for (const number of open) paintOpen(pen, view, state, number);
  paintLines(pen, view, state, seen);
  for (const number of open) paintTitle(pen, view, placed.boxes[number]);
  for (const number of placed.order) {
    const box = placed.boxes[number];
    if (number > 0 && !box.open && visible(box)) paintClosed(pen, view, state, number);
  }
  placed.nodes.forEach((node, leaf) => {
    if (node && visible(node)) paintNode(pen, view, state, leaf, node);
  });
}

function paintOpen(pen, view, state, number) {
  const box = view.placed.boxes[number], fusion = view.scene.boxes[number].kind === "fusion";
  rounded(pen, box, 8);
  pen.fillStyle = fusion ? theme.fusion : box.depth % 2 ? theme["box-0"] : theme["box-1"];
  pen.fill();
  const chosen = isChosen(view, state, "box", number), found = view.found.boxes.has(number);
  pen.lineWidth = chosen || found ? 2.5 : 1;
  pen.strokeStyle = chosen ? theme.accent : found ? theme.found : fusion ? theme["fusion-edge"] : theme["box-edge"];
  pen.stroke();
}

function paintTitle(pen, view, box) {
  if (view.camera.k < 0.18) return;
  const about = view.scene.boxes[box.number];
  const size = Math.min(26, Math.max(12, 11 / view.camera.k));
  pen.font = `600 ${size > 13 ? Math.min(size, 20) : 12}px ${FONT}`;
  pen.fillStyle = theme.soft;
  pen.textAlign = "left";
  pen.textBaseline = "middle";
  const text = about.kind === "fusion" ? "fusion" : about.label;
  pen.strokeStyle = about.kind === "fusion" ? theme.fusion : box.depth % 2 ? theme["box-0"] : theme["box-1"];
  pen.lineWidth = 5;
  pen.lineJoin = "round";
  pen.strokeText(text, box.x + 10, box.y + 15, box.w - 20);
  pen.fillText(text, box.x + 10, box.y + 15, box.w - 20);
}

function paintClosed(pen, view, state, number) {
  const box = view.placed.boxes[number], about = view.scene.boxes[number], fusion = about.kind === "fusion";
  const shade = shadeOfBox(view, state, number);
  rounded(pen, { x: box.x + 4, y: box.y + 4, w: box.w, h: box.h }, 8);
  pen.fillStyle = fusion ? theme["fusion-edge"] : theme["box-edge"];
  pen.fill();
  rounded(pen, box, 8);
  pen.fillStyle = shade?.fill ?? (fusion ? theme.fusion : theme["box-1"]);
  pen.fill();
  outline(pen, view, state, "box", number, view.marks.boxes.get(number) ? "changed" : "");
  if (view.camera.k < 0.25) return;
  const inside = view.inside[number], ink = shade?.ink ?? theme["node-ink"];
  label(pen, box, about.label, fusion ? DATA.ops[about.record].types[0] : `${inside.ops} ops`, ink);
  const marks = view.marks.boxes.get(number);
  if (marks) badges(pen, box, marks);
}

function paintNode(pen, view, state, leaf, node) {
  const record = DATA.ops[view.scene.leaves[leaf].record], mark = view.marks.leaves.get(leaf);
  const shade = shadeOf(view, state, leaf);
  rounded(pen, node, record.family === "input" || record.family === "output" ? 19 : 6);
  pen.globalAlpha = mark?.kind === "removed" ? 0.55 : 1;
  pen.fillStyle = shade?.fill ?? theme[record.family.replace(" ", "-")];
  pen.fill();
  pen.globalAlpha = 1;
  outline(pen, view, state, "leaf", leaf, mark?.kind);
  if (view.camera.k < 0.25) return;
  const head = record.detail ? `${record.name}  ${record.detail}` : record.name;
  label(pen, node, head, record.types[0] ?? "", shade?.ink ?? theme["node-ink"]);
  if (mark) badges(pen, node, { [mark.kind]: 0 });
}

function label(pen, r, first, second, ink) {
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillStyle = ink;
  pen.font = `600 13px ${FONT}`;
  pen.fillText(first, r.x + r.w / 2, r.y + (second ? 13 : r.h / 2), r.w - 8);
  pen.font = `11px ${FONT}`;
  pen.globalAlpha = 0.78;
  if (second) pen.fillText(second, r.x + r.w / 2, r.y + 27, r.w - 8);
  pen.globalAlpha = 1;
}

function outline(pen, view, state, kind, number, mark) {
  const chosen = isChosen(view, state, kind, number);
  const found = kind === "leaf" ? view.found.leaves.has(number) : view.found.boxes.has(number);
  pen.setLineDash(mark === "removed" ? [5, 3] : []);
  pen.lineWidth = chosen ? 3 : found || mark ? 2.2 : 1;
  pen.strokeStyle = chosen ? theme.accent : found ? theme.found : mark ? theme[mark] : theme["node-edge"];
  pen.stroke();
  pen.setLineDash([]);
}

// Small round signs on the upper right corner: what a pass added, removed, changed; with counts on closed boxes.
function badges(pen, r, marks) {
  let x = r.x + r.w - 4;
  pen.font = `700 11px ${FONT}`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  for (const kind of ["changed", "removed", "added"]) {
    if (marks[kind] === undefined) continue;
    const text = MARKS[kind] + (marks[kind] || ""), width = Math.max(16, pen.measureText(text).width + 8);
    rounded(pen, { x: x - width + 8, y: r.y - 8, w: width, h: 16 }, 8);
    pen.fillStyle = theme[kind];
    pen.fill();
    pen.fillStyle = theme.page;
    pen.fillText(text, x - width / 2 + 8, r.y + 0.5);
    x -= width + 2;
  }
}

function paintLines(pen, view, state, seen) {
  const lit = new Set(litValues(view, state)), late = [];
  const simple = view.camera.k < 0.12;
  pen.lineWidth = Math.max(1.1, 0.6 / view.camera.k);
  pen.strokeStyle = theme.wire;
  pen.beginPath();
  for (const line of view.placed.lines) {
    if (Math.min(line.x1, line.x2) > seen.x2 || Math.max(line.x1, line.x2) < seen.x1) continue;
    if (line.y1 > seen.y2 || line.y2 < seen.y1) continue;
    if (lit.has(line.value)) late.push(line);
    else trace(pen, line, simple);
  }
  pen.stroke();
  arrows(pen, view, seen, theme.wire, (line) => !lit.has(line.value));
  if (!late.length) return;
  pen.lineWidth = Math.max(2.2, 1.2 / view.camera.k);
  pen.strokeStyle = theme["wire-on"];
  pen.beginPath();
  for (const line of late) trace(pen, line, simple);
  pen.stroke();
  arrows(pen, view, seen, theme["wire-on"], (line) => lit.has(line.value));
}

function trace(pen, line, simple) {
  pen.moveTo(line.x1, line.y1);
  if (line.x1 !== line.x2) {
    const middle = (line.bottom + line.top) / 2;
    pen.lineTo(line.x1, line.bottom);
    if (simple) pen.lineTo(line.x2, line.top);
    else pen.bezierCurveTo(line.x1, middle, line.x2, middle, line.x2, line.top);
  }
  pen.lineTo(line.x2, line.y2);
}

function arrows(pen, view, seen, colour, wanted) {
  if (view.camera.k < 0.3) return;
  pen.fillStyle = colour;
  pen.beginPath();
  for (const line of view.placed.lines) {
    if (!line.arrow || line.y2 < seen.y1 || line.y2 > seen.y2 + 10 || !wanted(line)) continue;
    pen.moveTo(line.x2, line.y2);
    pen.lineTo(line.x2 - 3.6, line.y2 - 7);
    pen.lineTo(line.x2 + 3.6, line.y2 - 7);
    pen.closePath();
  }
  pen.fill();
}

function rounded(pen, r, radius) {
  pen.beginPath();
  pen.roundRect(r.x, r.y, r.w, r.h, radius);
}

// Colours ------------------------------------------------------------------------------------------

// `weight`: a box shows the mean of what is in it, by this; without, the sum.
const MODES = {
  family: { label: "family of the operation" },
  flops: { label: "FLOPs", of: (r) => r.flops, unit: (n) => count(n, "FLOP") },
  bytes: { label: "bytes moved", of: (r) => r.bytes, unit: bytes },
  density: { label: "density of constants", of: densityOf, unit: (n) => `${(100 * n).toFixed(1)} %`, most: 1, weight: elementsOf },
  seconds: { label: "time", of: (r) => r.seconds, unit: seconds },
  share: { label: "share of the machine's limit", of: (r) => r.share, unit: (n) => `${(100 * n).toFixed(0)} %`, most: 1, weight: (r) => r.seconds },
  error: { label: "error by quantisation", of: (r) => r.error, unit: percent, weight: () => 1 },
};

// Scalars are left out: they are no tensors that could be pruned.
function tensorsOf(record) {
  return (record.constants ?? []).map(([, number]) => DATA.constants[number]).filter((about) => about.elements > 1);
}

function elementsOf(record) {
  return tensorsOf(record).reduce((sum, about) => sum + about.elements, 0);
}

function densityOf(record) {
  const filled = tensorsOf(record).reduce((sum, about) => sum + about.elements * about.density, 0);
  return elementsOf(record) ? filled / elementsOf(record) : undefined;
}

function shadeOf(view, state, leaf) {
  const mode = MODES[state.mode];
  if (!mode.of) return null;
  return shade(mode.of(DATA.ops[view.scene.leaves[leaf].record]), view.most);
}

function shadeOfBox(view, state, number) {
  const mode = MODES[state.mode];
  if (!mode.of) return null;
  const { total, known } = view.inside[number].measure;
  return shade(known ? (mode.weight ? total / known : total) : undefined, view.mostOfBoxes);
}

function shade(value, most) {
  if (value === undefined || value === null) return { fill: theme.none, ink: theme["node-ink"] };
  const t = most > 0 ? Math.min(1, Math.sqrt(Math.max(0, value) / most)) : 0;
  return { fill: heat(t), ink: t > 0.62 ? theme["heat-ink-2"] : theme["heat-ink-0"] };
}

function heat(t) {
  const [from, to, part] = t < 0.5 ? ["heat-0", "heat-1", 2 * t] : ["heat-1", "heat-2", 2 * t - 1];
  const a = channels(theme[from]), b = channels(theme[to]);
  return `rgb(${a.map((channel, i) => Math.round(channel + (b[i] - channel) * part)).join(",")})`;
}

function channels(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

// Numbers as people read them ------------------------------------------------------------------------

function percent(n) {
  return `${+(100 * n).toPrecision(2)} %`;
}

function count(n, unit) {
  const at = Math.min(4, Math.max(0, Math.floor(Math.log10(Math.max(1, n)) / 3)));
  return `${+(n / 1000 ** at).toPrecision(3)} ${["", "k", "M", "G", "T"][at]}${unit}`;
}

function bytes(n) {
  const at = Math.min(3, Math.floor(Math.log2(Math.max(1, n)) / 10));
  return `${+(n / 1024 ** at).toPrecision(3)} ${["B", "KiB", "MiB", "GiB"][at]}`;
}

function seconds(s) {
  return s >= 1 ? `${s.toPrecision(3)} s` : s >= 1e-3 ? `${(1e3 * s).toPrecision(3)} ms` : `${(1e6 * s).toPrecision(3)} µs`;
}
