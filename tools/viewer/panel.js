// The texts beside the graph. Whatever comes from a model goes through textContent, never through markup.

function element(tag, text, properties) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  return Object.assign(made, properties);
}

function heading(parent, text) {
  parent.append(element("h3", text));
}

function rows(parent, pairs) {
  const table = element("table");
  for (const [name, value, kind] of pairs) {
    if (value === undefined || value === "") continue;
    const row = table.insertRow();
    row.append(element("td", name));
    const cell = row.insertCell();
    if (value instanceof Node) cell.append(value);
    else cell.textContent = value;
    if (kind) cell.className = kind;
  }
  parent.append(table);
}

function link(text, action) {
  const made = element("button", text, { type: "button", className: "link" });
  made.addEventListener("click", action);
  return made;
}

// Each link with a remark behind it, whose kind is its style.
function links(parent, list) {
  for (const [text, remark, action, kind] of list) {
    const line = element("div", undefined, { className: "entry" });
    line.append(link(text, action), " ", element("span", remark, { className: kind ?? "remark" }));
    parent.append(line);
  }
}

function named(record) {
  return record.module ? `${record.name} · ${record.module}` : record.name;
}

// One operation --------------------------------------------------------------------------------------

function showLeaf(panel, view, leaf, app) {
  const record = DATA.ops[view.scene.leaves[leaf].record], mark = view.marks.leaves.get(leaf);
  panel.replaceChildren(element("h2", record.name));
  if (record.doc) panel.append(element("p", record.doc));
  if (mark) panel.append(element("p", mark.why ? `${mark.kind}: ${mark.why}` : mark.kind, { className: mark.kind }));
  facts(panel, record);
  around(panel, view, leaf, app);
  if (record.attrs?.length) {
    heading(panel, "Attributes");
    rows(panel, record.attrs);
  }
  constants(panel, record);
  code(panel, record);
}

function facts(panel, record) {
  rows(panel, [
    ...record.types.map((type, i) => [record.types.length > 1 ? `result ${i}` : "result", type]),
    ["module", record.module],
    ["source", record.source],
    ["FLOPs", record.flops ? count(record.flops, "FLOP") : undefined],
    ["moves", record.bytes ? bytes(record.bytes) : undefined],
    ["time", record.seconds === undefined ? undefined : seconds(record.seconds)],
    ["of the limit", record.share === undefined ? undefined : MODES.share.unit(record.share)],
    ["error by quantisation", record.error === undefined ? undefined : percent(record.error)],
    ["stays float", record.float],
  ]);
}

function around(panel, view, leaf, app) {
  const about = view.scene.leaves[leaf];
  const name = (other) => named(DATA.ops[view.scene.leaves[other].record]);
  const typeOf = (value) => DATA.ops[view.scene.leaves[view.scene.values[value][0]].record].types[view.scene.values[value][1]];
  const sources = about.reads.map((value) => [view.scene.values[value][0], typeOf(value)]);
  const users = about.writes.flatMap((value) => view.users[value].map((user) => [user, typeOf(value)]));
  for (const [title, list] of [["Reads", sources], ["Read by", users]]) {
    if (!list.length) continue;
    heading(panel, title);
    links(panel, list.slice(0, 24).map(([other, type]) => [name(other), type, () => app.go(view, "leaf", other)]));
    if (list.length > 24) panel.append(element("p", `and ${list.length - 24} more`));
  }
}

function constants(panel, record) {
  for (const [operand, number] of record.constants ?? []) {
    const about = DATA.constants[number];
    heading(panel, `Constant: ${operand}`);
    rows(panel, [
      ["name", about.name],
      ["type", about.type],
      ["values", about.values?.join(", ")],
      ["size", bytes(about.bytes)],
      ["density", about.elements > 1 ? MODES.density.unit(about.density) : undefined],
      ["mean ± dev.", about.histogram?.length ? `${about.mean} ± ${about.deviation}` : undefined],
      ["not finite", about.nonfinite || undefined, "removed"],
    ]);
    if (about.histogram?.length) histogram(panel, about);
  }
}

function histogram(panel, about) {
  const canvas = element("canvas", undefined, { className: "histogram", width: 640, height: 128 });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `histogram from ${about.low} to ${about.high}`);
  const pen = canvas.getContext("2d"), most = Math.max(...about.histogram), width = canvas.width / about.histogram.length;
  pen.fillStyle = theme.accent;
  about.histogram.forEach((n, i) => {
    const height = (n / most) * 124;
    pen.fillRect(i * width, 126 - height, width - 2, height);
  });
  pen.fillStyle = theme.line;
  pen.fillRect(0, 126, canvas.width, 2);
  panel.append(canvas);
  const sampled = about.sampled < about.elements ? ` (${count(about.sampled, "")}of ${count(about.elements, "")}elements)` : "";
  panel.append(element("p", `${about.low} … ${about.high}${sampled}`));
}

function code(panel, record) {
  if (!record.function || !DATA.functions) return;
  heading(panel, "Generated C");
  panel.append(element("p", record.function));
  panel.append(element("pre", DATA.functions[record.function] ?? "not found in the sources", { tabIndex: 0 }));
}

// One box ---------------------------------------------------------------------------------------------

function showBox(panel, view, number, app) {
  const box = view.scene.boxes[number], inside = view.inside[number];
  panel.replaceChildren(element("h2", box.kind === "fusion" ? `fusion: ${box.label}` : box.label));
  panel.append(element("p", box.kind === "module" ? box.key : "one kernel computes what is in this box"));
  if (box.record !== undefined) facts(panel, DATA.ops[box.record]);
  else totals(panel, inside);
  const open = view.isOpen(number);
  panel.append(element("p"), link(open ? "close this box (Enter)" : "open this box (Enter)", () => app.toggle(view, number)));
  families(panel, inside);
  if (box.record === undefined) return;
  const record = DATA.ops[box.record];
  if (record.attrs?.length) {
    heading(panel, "Attributes");
    rows(panel, record.attrs);
  }
  constants(panel, record);
}

function totals(panel, inside) {
  rows(panel, [
    ["operations", inside.ops],
    ["FLOPs", count(inside.flops, "FLOP")],
    ["moves", bytes(inside.bytes)],
    ["time", inside.seconds ? seconds(inside.seconds) : undefined],
  ]);
}

function families(panel, inside) {
  heading(panel, "Operations");
  const table = element("table");
  for (const [name, [family, n]] of [...inside.names].sort((a, b) => b[1][1] - a[1][1])) {
    const row = table.insertRow(), swatch = element("span", undefined, { className: "swatch" });
    swatch.style.background = theme[family.replace(" ", "-")];
    row.insertCell().append(swatch, ` ${name}`);
    row.append(element("td", n, { className: "number" }));
  }
  panel.append(table);
}

// The whole graph, and the passes -----------------------------------------------------------------------

function showOverview(panel, view, state, app) {
  const stage = DATA.stages[state.stage];
  panel.replaceChildren(element("h2", stage.name));
  totals(panel, view.inside[0]);
  if (DATA.stages.length > 1) passes(panel, state, app);
  changesOf(panel, view, stage, state, app);
  if (DATA.memory) {
    heading(panel, "Memory");
    rows(panel, [["arena", bytes(DATA.memory.arena)], ["weights", bytes(DATA.memory.weights)], ["scratch", bytes(DATA.memory.scratch)]]);
  }
  ranked(panel, view, app, "Slowest", "seconds", seconds);
  ranked(panel, view, app, "Largest errors by quantisation", "error", percent);
  families(panel, view.inside[0]);
}

function changesOf(panel, view, stage, state, app) {
  const rules = Object.entries(stage.rules ?? {});
  if (rules.length) {
    heading(panel, "Rules that fired");
    rows(panel, rules.map(([name, n]) => [name, n, "number"]));
  }
  const shown = view.scene === DATA.scenes[stage.scene] ? view.marks.leaves : new Map();
  const told = [...shown].slice(0, 60).map(([leaf, mark]) => {
    const record = DATA.ops[view.scene.leaves[leaf].record];
    return [named(record), mark.why || mark.kind, () => app.go(view, "leaf", leaf), mark.kind];
  });
  const before = state.stage ? DATA.scenes[DATA.stages[state.stage - 1].scene] : null;
  for (const leaf of stage.removed.slice(0, 60)) {
    const record = DATA.ops[before.leaves[leaf].record];
    told.push([named(record), "removed", () => app.goRemoved(leaf), "removed"]);
  }
  if (!told.length) return;
  heading(panel, "What this pass did");
  links(panel, told);
  const all = stage.marks.length + stage.removed.length;
  if (all > told.length) panel.append(element("p", `and ${all - told.length} more`));
}

function passes(panel, state, app) {
  heading(panel, "Passes");
  const table = element("table");
  DATA.stages.forEach((stage, index) => {
    const row = table.insertRow();
    row.className = index === state.stage ? "current" : "";
    row.insertCell().append(link(stage.name, () => app.setStage(index)));
    const cell = row.insertCell();
    cell.append(...changeCounts(stage));
    row.append(element("td", `${stage.ops} ops`, { className: "number" }));
    row.append(element("td", stage.seconds === undefined ? "" : seconds(stage.seconds), { className: "number" }));
  });
  panel.append(table);
}

function changeCounts(stage) {
  const counts = { added: 0, removed: stage.removed.length, changed: 0 };
  for (const [, kind] of stage.marks) counts[kind]++;
  const parts = Object.entries(counts).filter(([, n]) => n).map(([kind, n]) => element("span", `${MARKS[kind]}${n} `, { className: kind }));
  if (stage.boxed) parts.push(element("span", "boxes", { className: "added" }));
  return parts;
}

function ranked(panel, view, app, title, key, unit) {
  const known = view.scene.leaves
    .map((leaf, index) => [DATA.ops[leaf.record], index])
    .filter(([record]) => record[key] !== undefined)
    .sort((a, b) => b[0][key] - a[0][key]);
  if (!known.length) return;
  heading(panel, title);
  links(panel, known.slice(0, 12).map(([record, leaf]) => [named(record), unit(record[key]), () => app.go(view, "leaf", leaf)]));
}

// The memory plan: steps from left to right, the arena from bottom to top ---------------------------------

function paintMemory(canvas, step) {
  const plan = DATA.memory, ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight, area = { x: 76, y: 6, w: width - 92, h: height - 28 };
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = `11px ${FONT}`;
  pen.fillStyle = theme.soft;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const part of [0, 0.5, 1]) pen.fillText(bytes(plan.arena * part), area.x - 6, area.y + area.h * (1 - part) + (part === 1 ? 5 : 0));
  pen.textAlign = "center";
  for (let i = 0; i <= 8; i++) {
    const at = Math.round(((plan.steps - 1) * i) / 8);
    pen.fillText(at, area.x + ((at + 0.5) / plan.steps) * area.w, area.y + area.h + 12);
  }
  pen.fillStyle = theme.page;
  pen.fillRect(area.x, area.y, area.w, area.h);
  plan.buffers.forEach((buffer, index) => {
    const r = memoryRect(buffer, area);
    const leaf = DATA.scenes[0].leaves[plan.leaves[buffer[2]]];
    pen.fillStyle = theme[DATA.ops[leaf.record].family.replace(" ", "-")];
    pen.fillRect(r.x, r.y, r.w, r.h);
    pen.strokeStyle = theme["box-edge"];
    pen.lineWidth = 0.7;
    pen.strokeRect(r.x, r.y, r.w, r.h);
  });
  if (step !== undefined) {
    pen.fillStyle = theme.accent;
    pen.fillRect(area.x + ((step + 0.5) / plan.steps) * area.w - 1, area.y, 2, area.h);
  }
  return area;
}

function memoryRect([offset, size, first, last], area) {
  const { arena, steps } = DATA.memory, unit = area.w / steps;
  const h = (size / arena) * area.h;
  return { x: area.x + first * unit, y: area.y + area.h - (offset / arena) * area.h - h, w: (last - first + 1) * unit, h };
}

function bufferAt(area, x, y) {
  return DATA.memory.buffers.findLast((buffer) => {
    const r = memoryRect(buffer, area);
    return x >= r.x && x < r.x + r.w && y >= r.y && y < r.y + r.h;
  });
}
