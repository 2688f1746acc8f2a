/** What is shown, as files: circuit JSON, SVG, PNG, CSV, Neuronpedia's graph, groups. */

import { nodeOf, page, rankOf, shape } from "./data.js";
import { fileName } from "./graph.js";
import { state } from "./state.js";

const LOOK = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-opacity", "opacity", "font-family", "font-size", "font-weight", "text-anchor"];

function save(content, type, ending) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `${fileName()}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

const json = (value) => `${JSON.stringify(value, null, 1)}\n`;

/** Where an edge stands in circuit.json: by its slot, then by its source. */
function slotRank(edge) {
  if (edge.dst.kind === "logits") return 1e9;
  const layer = edge.dst.layer * (3 * shape.heads + 1);
  return layer + (edge.dst.kind === "mlp" ? 3 * shape.heads : "qkv".indexOf(edge.slot) * shape.heads + edge.dst.head);
}

/** A circuit.json of what is shown; numbers measured on the whole circuit stay only where that is what is shown. */
export function circuitRecord(edges) {
  const { run } = state.view();
  const { stability, certificate, ...about } = run.about;
  const kept = run.edges.filter((edge) => edge.kept);
  const whole = !state.view().sides && kept.length === edges.length && edges.every((edge) => edge.kept);
  const names = [...new Set(edges.flatMap((edge) => [edge.src.name, edge.dst.name]))].sort((a, b) => rankOf(nodeOf(a)) - rankOf(nodeOf(b)));
  const sorted = [...edges].sort((a, b) => slotRank(a) - slotRank(b) || rankOf(a.src) - rankOf(b.src));
  return {
    format: "persona-circuits/circuit", version: 1, ...about,
    faithfulness: whole ? run.faithfulness : [],
    counts: { ...about.counts, nodes: names.length, edges: edges.length },
    nodes: names,
    edges: sorted.map((edge) => ({ edge: edge.name, score: edge.score ?? null })),
  };
}

/** Neuronpedia's graph: a node per component at the last token, links weighted by score. */
export function neuronpediaGraph(edges) {
  const pair = page.inside?.example ?? {};
  const tokens = pair.tokens_a ?? [state.view().run.pairs[0]?.clean ?? ""];
  const names = [...new Set(edges.flatMap((edge) => [edge.src.name, edge.dst.name]))].map(nodeOf).sort((a, b) => rankOf(a) - rankOf(b));
  const last = tokens.length - 1;
  const idOf = (node) => `${node.name}_${last}`;
  const type = { input: "embedding", logits: "logit", head: "attention head", mlp: "mlp" };
  return {
    metadata: {
      slug: fileName().toLowerCase(), scan: state.view().run.about.model?.name ?? "", prompt_tokens: tokens, prompt: tokens.join(""),
      info: { description: state.view().run.answer.answer, generator: { name: "persona-circuits", version: state.view().run.about.versions?.["persona-circuits"] ?? "" } },
    },
    qParams: {
      pinnedIds: state.pins().map((name) => idOf(nodeOf(name))), linkType: "both", clickedId: "",
      supernodes: Object.entries(state.groups()).map(([name, nodes]) => [name, ...nodes.map((node) => idOf(nodeOf(node)))]),
    },
    nodes: names.map((node) => ({
      node_id: idOf(node), feature: node.kind === "head" ? node.head : null, layer: node.kind === "input" ? "E" : String(node.layer),
      ctx_idx: last, feature_type: type[node.kind], jsNodeId: `${node.name}-${last}`, clerp: node.name,
    })),
    links: edges.map((edge) => ({ source: idOf(edge.src), target: idOf(edge.dst), weight: edge.score ?? edge.other ?? 0 })),
  };
}

export function csvOf(edges) {
  const { sides, run } = state.view();
  const columns = ["edge", "source", "slot", "score", "in_circuit", "core", "frequency", ...(run.spans.length ? ["span"] : []), ...(sides ? ["in", `score in ${sides[1]}`] : [])];
  const rows = edges.map((edge) => [
    edge.name, edge.src.name, edge.name.split("->")[1], edge.score ?? "", edge.kept, edge.core ?? "", edge.frequency ?? "",
    ...(run.spans.length ? [run.spans[edge.span] ?? ""] : []), ...(sides ? [edge.side, edge.other ?? ""] : []),
  ]);
  // No spreadsheet is to compute a text.
  const plain = (cell) => (typeof cell === "string" && /^[=+\-@\t\r'＝＋－＠]/.test(cell) ? `'${cell}` : String(cell));
  const quoted = (cell) => (/[",\n]/.test(plain(cell)) ? `"${plain(cell).replaceAll('"', '""')}"` : plain(cell));
  return [columns, ...rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n";
}

/** The graph as a file of its own: what styles say is written into every element. */
export function svgText(svg) {
  const copy = svg.cloneNode(true);
  const [originals, copies] = [svg.querySelectorAll("*"), copy.querySelectorAll("*")];
  originals.forEach((element, i) => {
    if (element.closest(".hidden, .near") || element.classList.contains("handle")) {
      copies[i].setAttribute("data-gone", "");
      return;
    }
    const style = getComputedStyle(element);
    for (const key of LOOK) if (style[key]) copies[i].setAttribute(key, style[key]);
    for (const key of ["tabindex", "role", "class", "aria-label", "aria-pressed"]) copies[i].removeAttribute(key);
  });
  for (const gone of copy.querySelectorAll("[data-gone]")) gone.remove();
  const { width, height } = svg.viewBox.baseVal;
  for (const [key, value] of Object.entries({ xmlns: "http://www.w3.org/2000/svg", width, height })) copy.setAttribute(key, value);
  copy.removeAttribute("style");
  const paper = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const [key, value] of Object.entries({ width: "100%", height: "100%", fill: getComputedStyle(document.body).backgroundColor })) paper.setAttribute(key, value);
  copy.prepend(paper);
  return new XMLSerializer().serializeToString(copy);
}

async function pngOf(svg) {
  const picture = new Image();
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svgText(svg))}`;
  await picture.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [picture.width * 2, picture.height * 2];
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

export const saving = {
  "Circuit (JSON)": (shown) => save(json(circuitRecord(shown.edges)), "application/json", "circuit.json"),
  "Picture (SVG)": (_, svg) => save(svgText(svg), "image/svg+xml", "svg"),
  "Picture (PNG)": async (_, svg) => save(await pngOf(svg), "image/png", "png"),
  "Edges (CSV)": (shown) => save(csvOf(shown.edges), "text/csv", "csv"),
  "Neuronpedia graph (JSON)": (shown) => save(json(neuronpediaGraph(shown.edges)), "application/json", "neuronpedia.json"),
  "Groups (JSON)": () => save(json({ format: "persona-circuits/groups", version: 1, groups: state.groups() }), "application/json", "groups.json"),
};
