// Places a scene: which layer a cell lies in and the order inside each are given, sizes and coordinates are found here,
// because they change whenever a box opens or closes. All coordinates are in pixels at zoom 1.

const LEAF = 0, BOX = 1, BEND = 2;
const STRAIGHT = 0.1;
const GAP = { beside: 18, lane: 9, layers: 30, box: 14, title: 26 };

function place(scene, isOpen, widthOf) {
  const layouts = new Array(scene.boxes.length);
  const layoutOf = (number) => (layouts[number] ??= placeBox(scene, number, isOpen, widthOf, layoutOf));
  const placed = { nodes: new Array(scene.leaves.length), boxes: new Array(scene.boxes.length), lines: [], order: [] };
  const root = layoutOf(0);
  emitBox(scene, 0, 0, 0, 0, isOpen, layoutOf, placed);
  placed.width = root.width;
  placed.height = root.height;
  return placed;
}

// One box: sizes of its cells, then y by layers, then x.
function placeBox(scene, number, isOpen, widthOf, layoutOf) {
  const box = scene.boxes[number], root = number === 0;
  const cells = box.cells.map((code) => cellOf(code, isOpen, widthOf, layoutOf));
  const segments = [];
  for (let i = 0; i < box.segments.length; i += 3) {
    const [from, to, value] = box.segments.slice(i, i + 3);
    segments.push({ from, to, value, out: cells[from].outs?.get(value) ?? 0, in: cells[to].ins?.get(value) ?? 0 });
  }
  const tops = layersDown(box, cells, segments, root);
  across(box.layers, cells, segments);
  return finish(scene, number, cells, segments, tops, root, widthOf);
}

function cellOf(code, isOpen, widthOf, layoutOf) {
  const number = Math.floor(code / 3);
  if (code % 3 === BEND) return { w: 0, h: 0, bend: true, value: number };
  if (code % 3 === LEAF) return { w: widthOf("leaf", number), h: 38, leaf: number };
  if (!isOpen(number)) return { w: widthOf("box", number), h: 40, box: number };
  const inner = layoutOf(number);
  return { w: inner.width, h: inner.height, box: number, ins: inner.ins, outs: inner.outs };
}

function layersDown(box, cells, segments, root) {
  const tops = [];
  let y = root ? 0 : GAP.title + 4;
  const busy = new Array(box.layers.length).fill(0);
  box.layers.forEach((layer, index) => layer.forEach((cell) => (cells[cell].layer = index)));
  segments.forEach((segment) => busy[cells[segment.to].layer]++);
  box.layers.forEach((layer, index) => {
    const height = Math.max(...layer.map((cell) => cells[cell].h));
    const narrow = straight(box.layers[index - 1], cells) || straight(layer, cells);
    if (index > 0) y += (narrow ? GAP.box + 4 : GAP.layers) + Math.min(40, 2 * Math.max(0, busy[index] - layer.length));
    tops.push({ top: y, bottom: y + height });
    layer.forEach((cell) => (cells[cell].y = y + (height - cells[cell].h) / 2));
    y += height;
  });
  return tops;
}

// A layer of nothing but ports and bends needs less room around it.
function straight(layer, cells) {
  return layer?.every((cell) => cells[cell].bend);
}

// x: every cell is drawn to where its neighbours are, layer after layer, down and up again.
function across(layers, cells, segments) {
  const up = cells.map(() => []), down = cells.map(() => []);
  for (const segment of segments) {
    const a = cells[segment.from], b = cells[segment.to];
    const weight = a.bend && b.bend ? 8 : a.bend || b.bend ? 0.15 : 1; // long lines are straight, and follow the boxes
    // Boxes rather stand below each other than drift aside for lines that would be straight from port to port.
    const shift = STRAIGHT * (segment.out - segment.in);
    up[segment.to].push({ other: segment.from, shift, weight });
    down[segment.from].push({ other: segment.to, shift: -shift, weight });
  }
  for (const layer of layers) {
    let x = 0;
    layer.forEach((cell, i) => {
      if (i > 0) x += apart(cells[layer[i - 1]], cells[cell]);
      cells[cell].x = x;
    });
    layer.forEach((cell) => (cells[cell].x -= x / 2));
  }
  const backwards = [...layers].reverse();
  for (let sweep = 0; sweep < 3; sweep++) {
    for (const layer of backwards) settle(layer, cells, [down]);
    for (const layer of layers) settle(layer, cells, [up]);
  }
  for (let sweep = 0; sweep < 6; sweep++) {
    for (const layer of backwards) settle(layer, cells, [up, down]);
    for (const layer of layers) settle(layer, cells, [up, down]);
  }
}

function apart(a, b) {
  return (a.w + b.w) / 2 + (a.bend && b.bend ? GAP.lane : GAP.beside);
}

// The least squares positions in a given order with given distances: pool adjacent violators.
function settle(layer, cells, sides) {
  const blocks = [];
  let offset = 0;
  layer.forEach((cell, i) => {
    if (i > 0) offset += apart(cells[layer[i - 1]], cells[cell]);
    let sum = 0, weight = 0;
    for (const side of sides) {
      for (const link of side[cell]) {
        sum += link.weight * (cells[link.other].x + link.shift);
        weight += link.weight;
      }
    }
    const wanted = weight ? sum / weight : cells[cell].x;
    weight = weight || 0.05;
    blocks.push({ mean: wanted - offset, weight, count: 1 });
    while (blocks.length > 1 && blocks[blocks.length - 2].mean > blocks[blocks.length - 1].mean) {
      const last = blocks.pop(), first = blocks[blocks.length - 1];
      const total = first.weight + last.weight;
      first.mean = (first.mean * first.weight + last.mean * last.weight) / total;
      first.weight = total;
      first.count += last.count;
    }
  });
  let at = 0;
  offset = 0;
  for (const block of blocks) {
    for (let i = 0; i < block.count; i++, at++) {
      if (at > 0) offset += apart(cells[layer[at - 1]], cells[layer[at]]);
      cells[layer[at]].x = block.mean + offset;
    }
  }
}

// From the coordinates of cells to a box that starts at (0, 0), with its ports.
function finish(scene, number, cells, segments, tops, root, widthOf) {
  const pad = root ? 0 : GAP.box;
  let left = Infinity, right = -Infinity;
  for (const cell of cells) {
    left = Math.min(left, cell.x - cell.w / 2);
    right = Math.max(right, cell.x + cell.w / 2);
  }
  if (!cells.length) left = right = 0;
  const least = root ? 0 : widthOf("box", number);
  const width = Math.max(right - left + 2 * pad, least), shift = (width - (right - left)) / 2 - left;
  const height = (tops.length ? tops[tops.length - 1].bottom : 0) + pad;
  const ins = new Map(), outs = new Map();
  for (const cell of cells) {
    cell.x += shift;
    if (!cell.bend) continue;
    if (cell.layer === 0) ins.set(cell.value, cell.x - width / 2);
    else if (cell.layer === tops.length - 1) outs.set(cell.value, cell.x - width / 2);
  }
  return { width, height, cells, segments, tops, ins, outs };
}

// Absolute positions of a box and of everything in it, outer boxes before inner ones.
function emitBox(scene, number, x, y, depth, isOpen, layoutOf, placed) {
  const layout = layoutOf(number);
  const open = number === 0 || isOpen(number);
  placed.boxes[number] = { x, y, w: layout.width, h: layout.height, depth, open, number };
  placed.order.push(number);
  for (const cell of layout.cells) {
    if (cell.leaf !== undefined) placed.nodes[cell.leaf] = { x: x + cell.x - cell.w / 2, y: y + cell.y, w: cell.w, h: cell.h };
    if (cell.box === undefined) continue;
    const left = x + cell.x - cell.w / 2, top = y + cell.y;
    if (isOpen(cell.box)) emitBox(scene, cell.box, left, top, depth + 1, isOpen, layoutOf, placed);
    else {
      placed.boxes[cell.box] = { x: left, y: top, w: cell.w, h: cell.h, depth: depth + 1, open: false, number: cell.box };
      placed.order.push(cell.box);
    }
  }
  for (const segment of layout.segments) placed.lines.push(lineOf(layout, segment, x, y));
}

function lineOf(layout, segment, x, y) {
  const a = layout.cells[segment.from], b = layout.cells[segment.to], tops = layout.tops;
  const enters = a.bend && a.layer === 0, leaves = b.bend && b.layer === tops.length - 1;
  return {
    value: segment.value,
    x1: x + a.x + segment.out,
    y1: y + (enters ? 0 : a.bend ? tops[a.layer].top : a.y + a.h),
    bottom: y + tops[a.layer].bottom,
    top: y + tops[b.layer].top,
    x2: x + b.x + segment.in,
    y2: y + (leaves ? layout.height : b.bend ? tops[b.layer].top : b.y),
    arrow: !b.bend && !b.ins,
  };
}
