// What is looked at: passes, search, colours, and the plan of the memory.

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
