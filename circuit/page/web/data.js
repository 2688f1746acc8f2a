/** The page's data, as it stands in the page, and what follows from it once. */

export const page = JSON.parse(document.getElementById("page-data").textContent);
export const shape = page.runs[0].graph;
export const views = viewsOf(page.runs);
export const metricUnit = page.runs[0].about.task?.unit ?? "";

/** A node of this name: its kind, layer and head. */
export function nodeOf(name) {
  const head = /^a(\d+)\.h(\d+)$/.exec(name);
  if (head) return { name, kind: "head", layer: Number(head[1]), head: Number(head[2]) };
  if (name.startsWith("m")) return { name, kind: "mlp", layer: Number(name.slice(1)), head: -1 };
  return { name, kind: name, layer: name === "input" ? -1 : shape.layers, head: -1 };
}

/** Where a node stands among all: input, then each layer's heads and its MLP, then logits. */
export function rankOf(node) {
  if (node.kind === "input") return -1;
  if (node.kind === "logits") return 1e9;
  return node.layer * (shape.heads + 1) + (node.kind === "head" ? node.head : shape.heads);
}

function edgeOf(item) {
  const [src, end] = item.edge.split("->");
  const slot = /<([qkv])>$/.exec(end)?.[1] ?? (end === "logits" ? "l" : "m");
  const dst = end.replace(/<[qkv]>$/, "");
  const ends = { src: nodeOf(src), dst: nodeOf(dst) };
  return { ...item, name: item.edge, ...ends, slot, strength: Math.abs(item.score ?? 1), turn: rankOf(ends.dst) * 1e5 + rankOf(ends.src) };
}

/** Every run, and the first one against each other: shared edges and each one's own. */
function viewsOf(runs) {
  const alone = runs.map((run, i) => {
    const edges = run.edges.map(edgeOf);
    return { key: String(i), label: run.name, run, edges, byName: new Map(edges.map((e) => [e.name, e])) };
  });
  const apart = alone.slice(1).map((other, i) => differenceOf(alone[0], other, `0-${i + 1}`));
  return [...alone, ...apart];
}

function differenceOf(a, b, key) {
  const edges = [];
  for (const edge of a.edges.filter((e) => e.kept)) {
    const same = b.byName.get(edge.name);
    edges.push({ ...edge, side: same?.kept ? "both" : "first", other: same?.score ?? null });
  }
  for (const edge of b.edges.filter((e) => e.kept && !a.byName.get(e.name)?.kept)) {
    edges.push({ ...edge, score: a.byName.get(edge.name)?.score ?? null, side: "second", other: edge.score });
  }
  const byName = new Map(edges.map((e) => [e.name, e]));
  return { key, label: `${a.label} against ${b.label}`, run: a.run, other: b.run, edges, byName, sides: [a.label, b.label] };
}

/** The stop of the circuit itself. */
export function circuitStop(run) {
  return run.stops.findIndex((stop) => stop.circuit);
}

/** Whether an edge is in the circuit of a stop. */
export function isIn(edge, run, stop) {
  return run.stops[stop].circuit ? edge.kept : edge.stop !== undefined && edge.stop <= stop;
}
