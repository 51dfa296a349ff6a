// State, and what changes it: mouse, keyboard, search, slider.

const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const state = { stage: 0, compare: "plain", mode: "family", chosen: null, twin: null, query: "", hits: [], hit: -1, memory: false, depth: 0 };
const LEAST_ZOOM = 0.55; // below this, text is hard to read

const ruler = document.createElement("canvas").getContext("2d");
const widths = new Map();

function textWidth(text, font) {
  const key = font + text;
  if (!widths.has(key)) {
    ruler.font = `${font} ${FONT}`;
    widths.set(key, ruler.measureText(text).width);
  }
  return widths.get(key);
}

// Views: a canvas, the scene on it, where things lie and what of it is seen ---------------------------------

function makeView(figure) {
  const view = { figure, canvas: figure.querySelector("canvas"), scene: null, camera: { x: 0, y: 0, k: 1 }, toggled: new Map() };
  view.found = { leaves: new Set(), boxes: new Set() };
  view.isOpen = (number) => view.toggled.get(boxKey(view.scene, number)) ?? view.opened.has(number);
  return view;
}

const right = makeView($("right")), left = makeView($("left"));
left.toggled = right.toggled; // a box that opens on one side opens on the other
const views = () => (left.figure.hidden ? [right] : [left, right]);
const boxKey = (scene, number) => `${scene.boxes[number].kind} ${scene.boxes[number].key}`;

function show(view, scene, marks) {
  const fresh = view.scene !== scene;
  view.scene = scene;
  view.marks = { leaves: marks, boxes: new Map() };
  if (fresh) study(view);
  for (const [leaf, mark] of marks) {
    for (let box = view.boxOf[leaf]; box > 0; box = view.parent[box]) {
      const counts = view.marks.boxes.get(box) ?? {};
      counts[mark.kind] = (counts[mark.kind] ?? 0) + 1;
      view.marks.boxes.set(box, counts);
    }
  }
}

// What can be said of a scene once and for all: parents, users, totals of boxes, which boxes open at first.
function study(view) {
  const { scene } = view;
  view.boxOf = new Array(scene.leaves.length).fill(0);
  view.parent = new Array(scene.boxes.length).fill(-1);
  scene.boxes.forEach((box, number) => {
    for (const code of box.cells) {
      if (code % 3 === LEAF) view.boxOf[Math.floor(code / 3)] = number;
      if (code % 3 === BOX) view.parent[Math.floor(code / 3)] = number;
    }
  });
  view.users = scene.values.map(() => []);
  scene.leaves.forEach((leaf, index) => leaf.reads.forEach((value) => view.users[value].push(index)));
  view.inside = scene.boxes.map(() => ({ ops: 0, flops: 0, bytes: 0, seconds: 0, names: new Map() }));
  scene.leaves.forEach((leaf, index) => {
    const record = DATA.ops[leaf.record];
    if (record.family === "input" || record.family === "output") return;
    for (let box = view.boxOf[index]; box >= 0; box = view.parent[box]) tally(view.inside[box], record);
  });
  view.opened = openedTo(scene, state.depth);
  view.searchable = null;
}

function tally(inside, record) {
  inside.ops++;
  for (const key of ["flops", "bytes", "seconds"]) inside[key] += record[key] ?? 0;
  const entry = inside.names.get(record.name) ?? [record.family, 0];
  entry[1]++;
  inside.names.set(record.name, entry);
}

// Modules down to a depth; fusions stay closed, but in a small graph.
function openedTo(scene, depth) {
  const opened = new Set([0]);
  let level = [0];
  for (let i = 0; i < depth; i++) {
    const inner = level.flatMap((n) => scene.boxes[n].cells.filter((code) => code % 3 === BOX).map((code) => Math.floor(code / 3)));
    level = inner.filter((n) => scene.boxes[n].kind === "module" || scene.leaves.length < 40);
    level.forEach((n) => opened.add(n));
  }
  return opened;
}

// The deepest level at which the whole still fits and can be read.
function chooseDepth(view) {
  for (state.depth = 1; state.depth < 12; state.depth++) {
    const before = view.opened;
    view.opened = openedTo(view.scene, state.depth);
    relayout(view);
    fit(view);
    if (view.camera.k < LEAST_ZOOM && state.depth > 1) {
      view.opened = before;
      state.depth--;
      break;
    }
    if (view.opened.size === before.size) break;
  }
  relayout(view);
}

function relayout(view) {
  const widthOf = (kind, number) => {
    if (kind === "box") {
      const box = view.scene.boxes[number], type = box.record === undefined ? "" : DATA.ops[box.record].types[0];
      return Math.min(320, Math.max(84, textWidth(box.label, "600 13px") + 30, textWidth(type, "11px") + 22));
    }
    const record = DATA.ops[view.scene.leaves[number].record];
    const head = record.detail ? `${record.name}  ${record.detail}` : record.name;
    return Math.min(320, Math.max(72, textWidth(head, "600 13px") + 22, textWidth(record.types[0] ?? "", "11px") + 22));
  };
  view.placed = place(view.scene, view.isOpen, widthOf);
  measureColours(view);
}

function measureColours(view) {
  const mode = MODES[state.mode];
  view.most = view.mostOfBoxes = 0;
  if (!mode.of) return;
  view.scene.boxes.forEach((_, number) => (view.inside[number].measure = { total: 0, known: 0 }));
  view.scene.leaves.forEach((leaf, index) => {
    const record = DATA.ops[leaf.record], value = mode.of(record), weight = mode.weight?.(record) ?? 1;
    if (value === undefined || value === null) return;
    view.most = Math.max(view.most, value);
    for (let box = view.boxOf[index]; box >= 0; box = view.parent[box]) {
      view.inside[box].measure.total += value * weight;
      view.inside[box].measure.known += weight;
    }
  });
  for (const box of view.placed.boxes) {
    if (box && !box.open) view.mostOfBoxes = Math.max(view.mostOfBoxes, view.inside[box.number].measure.total);
  }
  if (mode.most) view.most = view.mostOfBoxes = mode.most;
}

// Camera -------------------------------------------------------------------------------------------------

let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    for (const view of views()) paint(view, state);
  });
}

function fit(view) {
  const { clientWidth: w, clientHeight: h } = view.canvas, { placed } = view;
  const k = Math.min(1.4, (w - 60) / placed.width, (h - 80) / placed.height);
  view.camera = { k, x: (w - placed.width * k) / 2, y: (h - placed.height * k) / 2 };
}

// At first sight: everything if it can be read, else the top of it.
function begin(view) {
  fit(view);
  if (view.camera.k >= LEAST_ZOOM) return;
  const { clientWidth: w } = view.canvas, k = Math.min(1, Math.max(LEAST_ZOOM, (w - 60) / view.placed.width));
  view.camera = { k, x: (w - view.placed.width * k) / 2, y: 36 };
}

function zoom(view, factor, x = view.canvas.clientWidth / 2, y = view.canvas.clientHeight / 2) {
  const camera = view.camera, k = Math.min(4, Math.max(0.01, camera.k * factor));
  camera.x = x - ((x - camera.x) * k) / camera.k;
  camera.y = y - ((y - camera.y) * k) / camera.k;
  camera.k = k;
  redraw();
}

function pan(dx, dy) {
  for (const view of views()) {
    view.camera.x += dx;
    view.camera.y += dy;
  }
  redraw();
}

function rectOf(view, kind, number) {
  return kind === "leaf" ? view.placed.nodes[number] : view.placed.boxes[number];
}

function centre(view, kind, number, always) {
  const r = rectOf(view, kind, number), { camera } = view;
  const { clientWidth: w, clientHeight: h } = view.canvas;
  const x = (r.x + r.w / 2) * camera.k + camera.x, y = (r.y + Math.min(r.h, 60) / 2) * camera.k + camera.y;
  if (!always && x > 60 && x < w - 60 && y > 50 && y < h - 50) return;
  camera.x += w / 2 - x;
  camera.y += h / 2 - y;
}

// What stays where it is while everything around it moves: the selection, or what is nearest to the middle.
function anchored(view, change, anchor) {
  const before = anchor && rectOf(view, ...anchor), { camera } = view;
  const from = before && { x: (before.x + before.w / 2) * camera.k + camera.x, y: before.y * camera.k + camera.y };
  const after = change() ?? anchor;
  const r = after && rectOf(view, ...after);
  if (!from || !r) return;
  camera.x = from.x - (r.x + r.w / 2) * camera.k;
  camera.y = from.y - r.y * camera.k;
}

function nearestLeaf(view) {
  const x = (view.canvas.clientWidth / 2 - view.camera.x) / view.camera.k, y = (view.canvas.clientHeight / 2 - view.camera.y) / view.camera.k;
  let best = -1, least = Infinity;
  view.placed.nodes.forEach((node, leaf) => {
    const distance = node ? Math.hypot(node.x + node.w / 2 - x, node.y + node.h / 2 - y) : Infinity;
    if (distance < least) [best, least] = [leaf, distance];
  });
  return best;
}

// Selection ------------------------------------------------------------------------------------------------

function isChosen(view, state, kind, number) {
  return [state.chosen, state.twin].some((it) => it && it.view === view && it.kind === kind && it.number === number);
}

function litValues(view, state) {
  const { chosen } = state;
  if (!chosen || chosen.view !== view || chosen.kind !== "leaf") return [];
  const leaf = view.scene.leaves[chosen.number];
  return [...leaf.reads, ...leaf.writes];
}

function choose(view, kind, number) {
  state.chosen = kind ? { view, kind, number } : null;
  state.twin = kind === "leaf" && !left.figure.hidden ? showTwin(view, number) : null;
  refreshPanel();
  if (state.memory) drawMemory();
  redraw();
}

// Side by side: the same operation on the other side, brought to the same height on the screen. What is only on
// this side has no twin; then it is the nearest operation above that has one which is brought there.
function showTwin(view, leaf) {
  const other = view === left ? right : left, { match } = DATA.stages[state.stage];
  const twinOf = (at) => (!match ? at : view === left ? match.indexOf(at) : match[at]);
  let here = leaf;
  while (twinOf(here) < 0 && view.scene.leaves[here].reads.length) here = view.scene.values[view.scene.leaves[here].reads[0]][0];
  const number = twinOf(here);
  if (number < 0) return null;
  reveal(view, "leaf", here);
  reveal(other, "leaf", number);
  const from = rectOf(view, "leaf", here), to = rectOf(other, "leaf", number), { x, y, k } = view.camera;
  other.camera = { k, x: x + (from.x + from.w / 2 - to.x - to.w / 2) * k, y: y + (from.y - to.y) * k };
  return here === leaf ? { view: other, kind: "leaf", number } : null;
}

function refreshPanel() {
  const panel = $("panel"), { chosen } = state;
  panel.scrollTop = 0;
  if (!chosen) showOverview(panel, right, state, app);
  else if (chosen.kind === "leaf") showLeaf(panel, chosen.view, chosen.number, app);
  else showBox(panel, chosen.view, chosen.number, app);
}

const app = {
  go(view, kind, number) {
    reveal(view, kind, number);
    centre(view, kind, number, false);
    choose(view, kind, number);
  },
  goRemoved(leaf) {
    if (state.compare === "plain") setCompare("overlay");
    const number = state.compare === "side" ? leaf : right.scene.ghost?.indexOf(leaf) ?? -1;
    if (number >= 0) app.go(state.compare === "side" ? left : right, "leaf", number);
  },
  toggle(view, number) {
    const open = !view.isOpen(number);
    anchored(view, () => {
      view.toggled.set(boxKey(view.scene, number), open);
      for (const other of views()) relayout(other);
    }, ["box", number]);
    choose(view, "box", number);
  },
  setStage,
};

// Open what hides a leaf or box.
function reveal(view, kind, number) {
  let changed = false;
  for (let box = kind === "leaf" ? view.boxOf[number] : view.parent[number]; box > 0; box = view.parent[box]) {
    if (view.isOpen(box)) continue;
    view.toggled.set(boxKey(view.scene, box), true);
    changed = true;
  }
  if (!changed) return;
  for (const other of views()) relayout(other);
  centre(view, kind, number, true);
}

function openAll(open) {
  for (const view of views()) view.scene.boxes.forEach((_, number) => view.toggled.set(boxKey(view.scene, number), open));
  for (const view of views()) {
    relayout(view);
    if (open) begin(view);
    else fit(view);
  }
  if (state.chosen?.kind === "leaf" && !open) choose(null);
  redraw();
}

function at(view, x, y) {
  const { camera, placed } = view, px = (x - camera.x) / camera.k, py = (y - camera.y) / camera.k;
  const inside = (r) => r && px >= r.x && px <= r.x + r.w && py >= r.y && py <= r.y + r.h;
  const leaf = placed.nodes.findIndex(inside);
  if (leaf >= 0) return ["leaf", leaf];
  const box = placed.order.findLast((number) => number > 0 && inside(placed.boxes[number]));
  return box ? ["box", box] : null;
}

// Passes -----------------------------------------------------------------------------------------------------

function marksAfter(stage) {
  return new Map(stage.marks.map(([leaf, kind, why]) => [leaf, { kind, why }]));
}

function setStage(number) {
  number = Math.max(0, Math.min(DATA.stages.length - 1, number));
  const known = state.stage === number ? null : matcher(state.stage, number);
  const start = right.placed ? (state.chosen?.kind === "leaf" && state.chosen.view === right ? state.chosen.number : nearestLeaf(right)) : -1;
  const overlaid = right.scene?.base;
  const base = overlaid ? overlaid[start] ?? -1 : start;
  const selected = state.chosen?.kind === "leaf" && state.chosen.view === right;
  state.stage = number;
  state.chosen = state.twin = null;
  anchored(right, () => {
    showStage();
    const leaf = known && base >= 0 ? known(base) : -1;
    const drawn = leaf >= 0 && right.scene.base ? right.scene.base.indexOf(leaf) : leaf;
    if (drawn < 0) return null;
    if (selected) state.chosen = { view: right, kind: "leaf", number: drawn };
    return right.placed.nodes[drawn] ? ["leaf", drawn] : null;
  }, start >= 0 && right.placed.nodes[start] ? ["leaf", start] : null);
  search(state.query, false);
  refreshPanel();
  redraw();
}

// Leads a leaf of one stage's scene to the same operation in another's, or to -1.
function matcher(from, to) {
  return (leaf) => {
    for (let i = from; i < to && leaf >= 0; i++) {
      const { match } = DATA.stages[i + 1];
      if (match) leaf = match.indexOf(leaf);
    }
    for (let i = from; i > to && leaf >= 0; i--) {
      const { match } = DATA.stages[i];
      if (match) leaf = match[leaf];
    }
    return leaf;
  };
}

function showStage() {
  const stage = DATA.stages[state.stage], overlaid = state.compare === "overlay" && stage.overlay >= 0;
  const scene = DATA.scenes[overlaid ? stage.overlay : stage.scene], marks = marksAfter(stage);
  if (overlaid) show(right, scene, overlaidMarks(scene, marks));
  else show(right, scene, marks);
  const side = state.compare === "side" && state.stage > 0;
  left.figure.hidden = !side;
  right.figure.querySelector("figcaption").hidden = !side;
  relayout(right);
  if (side) {
    const gone = new Map(stage.removed.map((leaf) => [leaf, { kind: "removed", why: "" }]));
    for (const [leaf, mark] of marks) if (mark.kind === "changed") gone.set(stage.match[leaf], mark);
    show(left, DATA.scenes[DATA.stages[state.stage - 1].scene], gone);
    relayout(left);
    left.camera = { ...right.camera };
  }
  labelStage(stage);
}

function overlaidMarks(scene, marks) {
  const all = new Map();
  scene.leaves.forEach((_, leaf) => {
    if (scene.ghost[leaf] >= 0) all.set(leaf, { kind: "removed", why: "" });
    else if (marks.has(scene.base[leaf])) all.set(leaf, marks.get(scene.base[leaf]));
  });
  return all;
}

function labelStage(stage) {
  $("slider").value = state.stage;
  $("slider").setAttribute("aria-valuetext", stage.name);
  const counts = changeCounts(stage);
  const nothing = state.stage && !counts.length ? "nothing changed" : `${stage.ops} operations`;
  $("stage").replaceChildren(element("b", `${state.stage}  ${stage.name}`), "   ", ...counts, ` ${nothing}`);
}

function setCompare(value) {
  state.compare = value;
  $("compare").value = value;
  state.chosen = state.twin = null;
  showStage();
  for (const view of views()) begin(view);
  search(state.query, false);
  refreshPanel();
  redraw();
}

function setMode(value) {
  state.mode = value;
  $("mode").value = value;
  for (const view of views()) measureColours(view);
  legend();
  redraw();
}

// Search ---------------------------------------------------------------------------------------------------------

function searchable(view) {
  const texts = (record) => {
    const names = (record.constants ?? []).map(([, number]) => DATA.constants[number].name);
    return [record.name, record.detail, record.module, record.source, record.function, ...record.types, ...names].join("\n").toLowerCase();
  };
  return (view.searchable ??= {
    leaves: view.scene.leaves.map((leaf) => texts(DATA.ops[leaf.record])),
    boxes: view.scene.boxes.map((box) => `${box.kind} ${box.key}\n${box.label}`.toLowerCase()),
  });
}

function search(text, jump) {
  state.query = text;
  const query = text.trim().toLowerCase();
  for (const view of views()) {
    const known = query ? searchable(view) : { leaves: [], boxes: [] };
    view.found.leaves = new Set(known.leaves.flatMap((entry, i) => (entry.includes(query) ? [i] : [])));
    view.found.boxes = new Set(known.boxes.flatMap((entry, i) => (i > 0 && entry.includes(query) ? [i] : [])));
  }
  const { leaves, boxes } = right.found;
  state.hits = leaves.size ? [...leaves].map((i) => ["leaf", i]) : [...boxes].map((i) => ["box", i]);
  state.hit = -1;
  tellHits(query);
  if (jump && query && state.hits.length) nextHit(1);
  redraw();
}

function nextHit(step) {
  if (!state.hits.length) return;
  state.hit = (state.hit + step + state.hits.length) % state.hits.length;
  const small = right.camera.k < 0.8;
  app.go(right, ...state.hits[state.hit]);
  if (small) {
    zoom(right, 1 / right.camera.k);
    centre(right, ...state.hits[state.hit], true);
    choose(right, ...state.hits[state.hit]);
  }
  tellHits(state.query);
}

function tellHits(query) {
  const place = state.hit >= 0 ? `${state.hit + 1} / ` : "";
  $("found").textContent = !query ? "" : state.hits.length ? `${place}${state.hits.length}` : "nothing found";
}

// Legend, tip, memory ---------------------------------------------------------------------------------------------

function legend() {
  const box = $("legend"), mode = MODES[state.mode];
  box.replaceChildren();
  if (mode.of) {
    const bar = element("canvas", undefined, { width: 120, height: 10 }), pen = bar.getContext("2d");
    for (let x = 0; x < 120; x++) {
      pen.fillStyle = heat(x / 119);
      pen.fillRect(x, 0, 1, 10);
    }
    const item = element("span", mode.unit(0));
    item.append(bar, mode.unit(right.most), mode.weight ? "" : " an operation");
    box.append(item);
    return;
  }
  const used = new Set(right.scene.leaves.map((leaf) => DATA.ops[leaf.record].family));
  for (const family of ["linear algebra", "normalisation", "reduction", "elementwise", "movement", "indexing", "other"]) {
    if (!used.has(family)) continue;
    const item = element("span"), swatch = element("span", undefined, { className: "swatch" });
    swatch.style.background = theme[family.replace(" ", "-")];
    item.append(swatch, family);
    box.append(item);
  }
}

function tip(view, hit, x, y) {
  const box = $("tip");
  box.hidden = !hit;
  if (!hit) return;
  const [kind, number] = hit;
  if (kind === "leaf") {
    const record = DATA.ops[view.scene.leaves[number].record], mark = view.marks.leaves.get(number);
    const measure = MODES[state.mode].of?.(record);
    const told = [`${record.name}${record.detail ? `  ${record.detail}` : ""}  →  ${record.types.join(", ")}`, record.module];
    if (measure !== undefined) told.push(`${MODES[state.mode].label}: ${MODES[state.mode].unit(measure)}`);
    if (mark) told.push(mark.why ? `${mark.kind}: ${mark.why}` : mark.kind);
    box.textContent = told.filter(Boolean).join("\n");
  } else {
    const inside = view.inside[number];
    box.textContent = `${view.scene.boxes[number].key || view.scene.boxes[number].label}\n${inside.ops} operations, ${count(inside.flops, "FLOP")}`;
  }
  putTip(view.figure, x, y);
}

function putTip(over, x, y) {
  const box = $("tip"), frame = $("views").getBoundingClientRect(), from = over.getBoundingClientRect();
  const px = from.left - frame.left + x, py = from.top - frame.top + y;
  box.style.left = `${Math.max(4, Math.min(px + 14, frame.width - box.offsetWidth - 8))}px`;
  box.style.top = `${Math.max(4, Math.min(py + 16, frame.height - box.offsetHeight - 8))}px`;
}

let arenaArea = null;
function drawMemory() {
  const step = state.chosen?.kind === "leaf" ? DATA.ops[state.chosen.view.scene.leaves[state.chosen.number].record].step : undefined;
  const live = new Map(); // by offset: a result that takes its operand's place shares its memory
  for (const [offset, size, first, last] of DATA.memory.buffers) {
    if (step >= first && step <= last) live.set(offset, Math.max(size, live.get(offset) ?? 0));
  }
  const used = bytes([...live.values()].reduce((sum, size) => sum + size, 0));
  const now = step === undefined ? "" : `; step ${step} uses ${used}`;
  $("arena-text").textContent = `Arena of ${bytes(DATA.memory.arena)} over ${DATA.memory.steps} steps, ${DATA.memory.buffers.length} buffers${now}`;
  arenaArea = paintMemory($("arena").querySelector("canvas"), step);
}

function toggleMemory() {
  if (!DATA.memory) return;
  state.memory = !state.memory;
  $("arena").hidden = !state.memory;
  $("memory").setAttribute("aria-pressed", state.memory);
  if (state.memory) drawMemory();
}

function listenToMemory() {
  const canvas = $("arena").querySelector("canvas");
  canvas.addEventListener("mousemove", (event) => {
    const buffer = bufferAt(arenaArea, event.offsetX, event.offsetY);
    canvas.style.cursor = buffer ? "pointer" : "";
    if (!buffer) return;
    const [offset, size, first, last] = buffer, leaf = right.scene.leaves[DATA.memory.leaves[first]];
    $("arena-text").textContent = `${bytes(size)} at ${offset}, steps ${first} to ${last}: ${DATA.ops[leaf.record].name} ${DATA.ops[leaf.record].types[0] ?? ""}`;
  });
  canvas.addEventListener("mouseleave", drawMemory);
  canvas.addEventListener("click", (event) => {
    const buffer = bufferAt(arenaArea, event.offsetX, event.offsetY);
    if (buffer) app.go(right, "leaf", DATA.memory.leaves[buffer[2]]);
  });
}

// Events ------------------------------------------------------------------------------------------------------------

function listen(view) {
  const { canvas } = view;
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.offsetX, y: event.offsetY, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) {
      const hit = at(view, event.offsetX, event.offsetY);
      canvas.style.cursor = hit ? "pointer" : "";
      tip(view, hit, event.offsetX, event.offsetY);
      return;
    }
    const dx = event.offsetX - drag.x, dy = event.offsetY - drag.y;
    if (!drag.moved && Math.hypot(dx, dy) < 4) return;
    Object.assign(drag, { x: event.offsetX, y: event.offsetY, moved: true });
    tip(view, null);
    pan(dx, dy);
  });
  canvas.addEventListener("pointerup", (event) => {
    const clicked = drag && !drag.moved;
    drag = null;
    if (clicked) choose(view, ...(at(view, event.offsetX, event.offsetY) ?? [null]));
  });
  canvas.addEventListener("pointerleave", () => tip(view, null));
  canvas.addEventListener("dblclick", (event) => {
    const hit = at(view, event.offsetX, event.offsetY);
    if (hit?.[0] === "box") app.toggle(view, hit[1]);
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    tip(view, null);
    const scale = event.deltaMode === 1 ? 16 : 1;
    if (event.ctrlKey || event.metaKey || !event.shiftKey) for (const other of views()) zoom(other, Math.exp(-event.deltaY * scale * 0.0015), event.offsetX, event.offsetY);
    else pan(-event.deltaY * scale, 0);
  }, { passive: false });
}

// Along the data from the selection: up to what it reads, down to who reads it, left and right in its layer.
function step(key) {
  const { chosen } = state, view = chosen.view, here = rectOf(view, chosen.kind, chosen.number);
  if (chosen.kind === "leaf" && (key === "ArrowUp" || key === "ArrowDown")) {
    const leaf = view.scene.leaves[chosen.number];
    const next = key === "ArrowUp" ? leaf.reads.map((value) => view.scene.values[value][0]) : leaf.writes.flatMap((value) => view.users[value]);
    if (next.length) app.go(view, "leaf", next[0]);
    return;
  }
  const all = [
    ...view.placed.nodes.flatMap((r, i) => (r ? [["leaf", i, r]] : [])),
    ...view.placed.order.filter((n) => n > 0 && !view.placed.boxes[n].open).map((n) => ["box", n, view.placed.boxes[n]]),
  ];
  const towards = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
  let best = null, least = Infinity;
  for (const [kind, number, r] of all) {
    const dx = r.x + r.w / 2 - here.x - here.w / 2, dy = r.y + r.h / 2 - here.y - here.h / 2;
    const along = dx * towards[0] + dy * towards[1], beside = Math.abs(dx * towards[1]) + Math.abs(dy * towards[0]);
    if (along > 4 && along + 3 * beside < least) [best, least] = [[kind, number], along + 3 * beside];
  }
  if (best) app.go(view, ...best);
}

function showKeys() {
  $("keys").hidden = !$("keys").hidden;
  $("help").setAttribute("aria-expanded", !$("keys").hidden);
}

const KEYS = {
  "/": () => $("search").focus(),
  "+": () => views().forEach((view) => zoom(view, 1.25)),
  "=": () => views().forEach((view) => zoom(view, 1.25)),
  "-": () => views().forEach((view) => zoom(view, 0.8)),
  0: () => (views().forEach(fit), redraw()),
  o: () => openAll(true),
  c: () => openAll(false),
  "[": () => setStage(state.stage - 1),
  "]": () => setStage(state.stage + 1),
  m: toggleMemory,
  "?": showKeys,
  Escape: () => {
    $("keys").hidden = true;
    $("search").value = "";
    search("", false);
    choose(null);
  },
};

function onKey(event) {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (target === $("search")) {
    if (key === "Enter") nextHit(event.shiftKey ? -1 : 1);
    if (key === "Escape") {
      KEYS.Escape();
      right.canvas.focus();
    }
    return;
  }
  if (target.tagName === "SELECT" || target.tagName === "PRE") return;
  const arrow = key.startsWith("Arrow");
  if (arrow && target.tagName === "INPUT") return;
  if (arrow) {
    event.preventDefault();
    const by = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] }[key];
    if (state.chosen && !event.shiftKey) step(key);
    else pan(...by);
  } else if (key === "Enter" && target.tagName === "CANVAS") {
    if (state.chosen?.kind === "box") app.toggle(state.chosen.view, state.chosen.number);
  } else if (KEYS[key]) {
    event.preventDefault();
    KEYS[key]();
  }
}

function start() {
  readTheme();
  document.title = DATA.title;
  $("title").textContent = $("title").title = DATA.title;
  const known = (mode) => !mode.of || DATA.ops.some((record) => mode.of(record) !== undefined);
  for (const [name, mode] of Object.entries(MODES)) {
    if (known(mode)) $("mode").append(element("option", mode.label, { value: name }));
  }
  $("passes").hidden = $("compare-field").hidden = DATA.stages.length < 2;
  $("memory").hidden = !DATA.memory;
  $("slider").max = DATA.stages.length - 1;
  state.stage = Math.max(0, DATA.stages.length - 1);
  showStage();
  chooseDepth(right);
  begin(right);
  refreshPanel();
  if (DATA.ops.some((record) => record.seconds !== undefined)) state.mode = "seconds";
  setMode(state.mode);
  [left, right].forEach(listen);
  if (DATA.memory) listenToMemory();
  $("search").addEventListener("input", (event) => search(event.target.value, true));
  $("slider").addEventListener("input", (event) => setStage(+event.target.value));
  $("earlier").addEventListener("click", () => setStage(state.stage - 1));
  $("later").addEventListener("click", () => setStage(state.stage + 1));
  $("mode").addEventListener("change", (event) => setMode(event.target.value));
  $("compare").addEventListener("change", (event) => setCompare(event.target.value));
  $("open").addEventListener("click", () => openAll(true));
  $("close").addEventListener("click", () => openAll(false));
  $("fit").addEventListener("click", KEYS[0]);
  $("memory").addEventListener("click", toggleMemory);
  $("help").addEventListener("click", showKeys);
  document.addEventListener("keydown", onKey);
  new ResizeObserver(() => {
    redraw();
    if (state.memory) drawMemory();
  }).observe(document.body);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readTheme();
    legend();
    refreshPanel();
    redraw();
    if (state.memory) drawMemory();
  });
  document.documentElement.dataset.ready = Math.round(performance.now());
}

start();
