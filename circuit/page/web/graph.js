/** The graph: a fixed grid of layers and heads, from input below to logits above. */

import { nodeOf, page, rankOf, shape, views } from "./data.js";
import { h, s, signed } from "./elements.js";
import { anyOpened, isEverOpened, isOpened } from "./opened.js";
import { state } from "./state.js";

const CELL = shape.heads > 16 ? 34 : 48;
const BOX = { width: CELL - 12, height: 18 };
const ROW = shape.layers > 16 ? 42 : 52;
const [LEFT, GAP, TOP, BAR] = [62, 14, 12, 22];
const WIDTH = LEFT + CELL * shape.heads + GAP + CELL + 16;
const OFFSET = { q: -0.28, k: 0, v: 0.28, m: 0, l: 0 };
const MOST_HANDLES = 1200;

/** Where rows are: layers that no run uses are low. */
function rowsOf() {
  const used = new Set(views.flatMap((one) => one.edges.flatMap((edge) => [edge.src.layer, edge.dst.layer])));
  const rows = [];
  let y = TOP + BAR + 26;
  for (let layer = shape.layers - 1; layer >= 0; layer--) {
    const tall = used.has(layer) ? ROW : 12;
    rows[layer] = { y: y + tall - 14, top: y, tall, used: used.has(layer) };
    y += tall;
  }
  return { rows, bottom: y + 30 };
}

const { rows, bottom } = rowsOf();
const HEIGHT = bottom + BAR + 10;

/** A node's centre and size. */
function placeOf(node) {
  const middle = (LEFT + WIDTH - 16) / 2;
  if (node.kind === "input") return { x: middle, y: bottom + BAR / 2, width: WIDTH - LEFT - 16, height: BAR };
  if (node.kind === "logits") return { x: middle, y: TOP + BAR / 2, width: WIDTH - LEFT - 16, height: BAR };
  const { y } = rows[node.layer];
  if (node.kind === "head") return { x: LEFT + CELL * (node.head + 0.5), y, ...BOX };
  const raised = shape.parallel ? 0 : ROW * 0.44;
  return { x: LEFT + CELL * (shape.heads + 0.5) + GAP, y: y - raised, ...BOX };
}

/** The line of an edge: diagonal between nodes, in the gutter beside a column from and to the bars. */
function lineOf(edge) {
  const [from, to] = [placeOf(edge.src), placeOf(edge.dst)];
  const shift = (OFFSET[edge.slot] ?? 0) * to.width;
  const [y1, y2] = [from.y - from.height / 2, to.y + to.height / 2];
  const turn = Math.min(26, (y1 - y2) / 2);
  const jitter = (((edge.src.kind === "input" ? edge.dst.layer : edge.src.layer) % 5) - 2) * 1.5;
  if (edge.src.kind === "input" && edge.dst.kind === "logits") {
    const x = WIDTH - 22;
    return `M${x} ${y1}L${x} ${y2}`;
  }
  if (edge.src.kind === "input") {
    const gutter = to.x + (edge.slot === "q" ? -1 : 1) * (CELL / 2) + jitter;
    const x2 = to.x + shift;
    return `M${gutter} ${y1}L${gutter} ${y2 + turn}C${gutter} ${y2 + turn * 0.4} ${x2} ${y2 + turn * 0.7} ${x2} ${y2}`;
  }
  if (edge.dst.kind === "logits") {
    const gutter = from.x + CELL / 2 + jitter;
    return `M${from.x} ${y1}C${from.x} ${y1 - turn * 0.7} ${gutter} ${y1 - turn * 0.4} ${gutter} ${y1 - turn}L${gutter} ${y2}`;
  }
  if (edge.dst.kind === "mlp" && edge.src.kind === "head" && edge.src.layer === edge.dst.layer) {
    const left = to.x - to.width / 2;
    return `M${from.x} ${y1}C${from.x} ${to.y} ${from.x + 20} ${to.y} ${left} ${to.y}`;
  }
  const x2 = to.x + shift;
  const pull = Math.max(18, (y1 - y2) * 0.42);
  return `M${from.x} ${y1}C${from.x} ${y1 - pull} ${x2} ${y2 + pull} ${x2} ${y2}`;
}

/** The drawn graph: `update` shows what the state says, `highlight` brings edges out; `onHover` hears of what is pointed at. */
export class Drawing {
  constructor(onHover) {
    this.onHover = onHover;
    this.edgeLayer = s("g", { class: "edges" });
    this.near = s("g", { class: "near", "aria-hidden": "true" });
    this.nodeLayer = s("g", { class: "nodes" });
    this.svg = s("svg", {
      class: "graph", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group",
      "aria-label": "Graph of the circuit. Arrow keys go from node to node, Enter shows a node, P pins it.",
    }, background(), this.edgeLayer, this.near, this.nodeLayer);
    this.svg.style.maxWidth = `${Math.round(WIDTH * 1.35)}px`;
    this.svg.addEventListener("keydown", (event) => this.onKey(event));
    this.drawn = null;
    this.lines = new Map();
    this.seen = new Set();
    this.boxes = new Map();
    this.buildNodes();
  }

  buildEdges() {
    const view = state.view();
    const most = Math.max(...view.edges.map((edge) => edge.strength), 1e-12);
    const handles = view.edges.length <= MOST_HANDLES;
    this.drawn = view.key;
    this.lines = new Map([...view.edges].sort((a, b) => a.strength - b.strength)
      .map((edge) => [edge.name, this.lineGroup(edge, edge.strength / most, handles)]));
    this.edgeLayer.replaceChildren(...this.lines.values());
    this.seen = new Set(this.lines.keys());
    this.svg.classList.toggle("dense", !handles);
  }

  /** An edge: its line, and one that is easier to hit. */
  lineGroup(edge, share, handle) {
    const d = lineOf(edge);
    const group = s("g", { class: lookOf(edge), "data-edge": edge.name },
      s("path", { class: "line", d, "stroke-width": (0.6 + 4.6 * Math.sqrt(share)).toFixed(2) }),
      handle ? s("path", { class: "handle", d }) : null);
    group.addEventListener("pointerenter", () => this.onHover(edge));
    group.addEventListener("pointerleave", () => this.onHover(null));
    group.addEventListener("click", () => state.set({ pick: edge.name }));
    return group;
  }

  buildNodes() {
    const names = new Set(["input", "logits", ...views.flatMap((one) => one.edges.flatMap((edge) => [edge.src.name, edge.dst.name]))]);
    const nodes = [...names].map(nodeOf).sort((a, b) => rankOf(a) - rankOf(b));
    this.nodeLayer.replaceChildren(...nodes.map((node) => this.nodeGroup(node)));
  }

  nodeGroup(node) {
    const { x, y, width, height } = placeOf(node);
    const group = s("g", { class: `node ${node.kind}`, tabindex: "-1", role: "button", "data-node": node.name },
      s("rect", { x: x - width / 2, y: y - height / 2, width, height, rx: node.kind === "mlp" ? 8 : 3 }),
      s("text", { x, y: y + 3.6 }, labelOf(node)),
      isEverOpened(node.name) ? s("circle", { class: "opened", cx: x + width / 2 - 1, cy: y - height / 2 + 1, r: 3.4 }) : null);
    for (const name of ["pointerenter", "focus"]) group.addEventListener(name, () => this.onHover(node));
    for (const name of ["pointerleave", "blur"]) group.addEventListener(name, () => this.onHover(null));
    group.addEventListener("click", (event) => (event.shiftKey ? state.togglePin(node.name) : state.set({ pick: node.name })));
    this.boxes.set(node.name, { node, group, x, y });
    return group;
  }

  update(shown) {
    if (this.drawn !== state.view().key) this.buildEdges();
    const names = new Set(shown.edges.map((edge) => edge.name));
    for (const name of this.seen) if (!names.has(name)) this.lines.get(name).classList.add("hidden");
    for (const name of names) if (!this.seen.has(name)) this.lines.get(name).classList.remove("hidden");
    this.seen = names;
    for (const edge of shown.edges) if (edge.side) this.lines.get(edge.name).setAttribute("class", lookOf(edge));
    const [into, out] = [countsOf(shown.edges, "dst"), countsOf(shown.edges, "src")];
    const { pick } = state.get();
    const current = this.boxes.has(pick) ? pick : "input";
    const [pins, sets] = [state.pins(), Object.entries(state.groups())];
    for (const { node: { name, kind }, group } of this.boxes.values()) {
      const [n, m, pinned] = [into.get(name) ?? 0, out.get(name) ?? 0, pins.includes(name)];
      const member = sets.findIndex(([, nodes]) => nodes.includes(name));
      group.classList.toggle("hidden", !n && !m && !pinned && kind !== "input" && kind !== "logits");
      group.classList.toggle("pinned", pinned);
      group.classList.toggle("picked", pick === name);
      group.setAttribute("data-group", member < 0 ? "" : String(member % 6));
      group.querySelector(".opened")?.classList.toggle("hidden", !isOpened(name));
      group.setAttribute("aria-pressed", String(pinned));
      group.setAttribute("tabindex", name === current ? "0" : "-1");
      group.setAttribute("aria-label", spoken(name, n, m, pinned, member < 0 ? "" : sets[member][0]));
    }
    this.edgeLayer.querySelector(".picked")?.classList.remove("picked");
    this.lines.get(pick)?.classList.add("picked");
  }

  /** Bring out some edges, or none: the others fade as one, and these are drawn again above them. */
  highlight(edges) {
    this.svg.classList.toggle("looking", edges.length > 0);
    this.near.replaceChildren(...edges.map((edge) => this.lines.get(edge.name)).filter(Boolean)
      .map((group) => s("g", { class: group.getAttribute("class") }, group.firstChild.cloneNode())));
  }

  /** The visible node nearest in a direction; bars are as near as any column. */
  neighbour(name, key) {
    const from = this.boxes.get(name);
    const [dx, dy] = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[key];
    const isBar = ({ node }) => node.kind === "input" || node.kind === "logits";
    let best = { far: Infinity, name };
    for (const to of this.boxes.values()) {
      if (to === from || to.group.classList.contains("hidden")) continue;
      const along = (to.x - from.x) * dx + (to.y - from.y) * dy;
      const across = Math.abs((to.x - from.x) * dy) + Math.abs((to.y - from.y) * dx);
      const far = dy ? along * 3 + (isBar(to) || isBar(from) ? 0 : across * 0.4) : along + across * 8;
      if (along > 4 && far < best.far) best = { far, name: to.node.name };
    }
    return best.name;
  }

  focus(name) {
    for (const { group } of this.boxes.values()) group.setAttribute("tabindex", "-1");
    const { group } = this.boxes.get(name);
    group.setAttribute("tabindex", "0");
    group.focus({ preventScroll: true });
    group.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  onKey(event) {
    const name = event.target.closest(".node")?.getAttribute("data-node");
    if (!name || event.ctrlKey || event.metaKey) return;
    if (event.key.startsWith("Arrow")) this.focus(this.neighbour(name, event.key));
    else if (event.key === "Enter") state.set({ pick: name });
    else if (event.key === "p" || event.key === "P" || event.key === " ") state.togglePin(name);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

const lookOf = (edge) => `edge ${edge.side ?? (edge.score > 0 ? "against" : "for")}${edge.core === false ? " fringe" : ""}`;

function labelOf(node) {
  if (node.kind === "input") return "input";
  if (node.kind === "logits") return "logits";
  return node.kind === "mlp" ? "MLP" : `h${node.head}`;
}

function countsOf(edges, end) {
  const counts = new Map();
  for (const edge of edges) counts.set(edge[end].name, (counts.get(edge[end].name) ?? 0) + 1);
  return counts;
}

function spoken(name, into, out, pinned, group) {
  return `${name}, ${into} edges in, ${out} out${isOpened(name) ? ", opened" : ""}${pinned ? ", pinned" : ""}${group ? `, in group ${group}` : ""}`;
}

/** Bands of the layers, with their numbers, and a dot where a head is that no edge touches. */
function background() {
  const found = [];
  rows.forEach((row, layer) => {
    if (layer % 2 === 0) found.push(s("rect", { class: "band", x: 0, y: row.top, width: WIDTH, height: row.tall }));
    if (!row.used) return;
    found.push(s("text", { class: "layer", x: 8, y: row.y + 3.5 }, `layer ${layer}`));
    for (let head = 0; head < shape.heads; head++) {
      found.push(s("circle", { class: "spot", cx: LEFT + CELL * (head + 0.5), cy: row.y, r: 1.3 }));
    }
    const mlp = placeOf(nodeOf(`m${layer}`));
    found.push(s("circle", { class: "spot", cx: mlp.x, cy: mlp.y, r: 1.3 }));
  });
  return s("g", { class: "background", "aria-hidden": "true" }, found);
}

/** What lines and boxes mean. */
export function legend() {
  const sample = (look, words) => h("li", {}, s("svg", { class: "graph sample", viewBox: "0 0 34 10", "aria-hidden": "true" },
    s("g", { class: `edge ${look}` }, s("path", { class: "line", d: "M1 5L33 5", "stroke-width": 2.6 }))), words);
  const { sides, run } = state.view();
  const swap = run.about.task?.swap_rows;
  if (!sides && run.edges.every((edge) => edge.score === null)) return h("ul", { class: "legend" });
  const items = sides
    ? [sample("both", "in both"), sample("first", `${sides[0]} only`), sample("second", `${sides[1]} only`)]
    : [
      sample("for", `score below 0: ${swap ? "carries the persona" : "carries the effect"}`),
      sample("against", "score above 0: works against it"),
      run.edges.some((edge) => edge.core === false) ? sample("for fringe", "fringe: not in 90 % of resamples") : null,
    ];
  const mark = s("svg", { class: "graph sample", viewBox: "0 0 34 10", "aria-hidden": "true" }, s("circle", { class: "opened", cx: 28, cy: 5, r: 4 }));
  return h("ul", { class: "legend" }, items, anyOpened() ? h("li", {}, mark, "opened: its neurons or parts are beside the graph") : null, h("li", { class: "quiet" }, "width: the square root of |score|"));
}

export const titleOfEdge = (edge) => `${edge.name} ${signed(edge.score)}`;
export const fileName = () => page.title.replace(/[^\w.-]+/g, "_").slice(0, 60);
