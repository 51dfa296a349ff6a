// The state of the page: views, cameras, what is chosen and what is open.

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
  if (mode.weight) view.mostOfBoxes = view.most;
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
