// Mouse and keyboard, and the start.

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
  state.mode = ["seconds", "error"].find((mode) => DATA.ops.some((record) => record[mode] !== undefined)) ?? state.mode;
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
