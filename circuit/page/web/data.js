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

/** Every run, and the first one against each other; which edges are shared is said by the stops that are compared. */
function viewsOf(runs) {
  const alone = runs.map((run, i) => {
    const edges = run.edges.map(edgeOf);
    return { key: String(i), label: run.name, run, edges, byName: new Map(edges.map((e) => [e.name, e])) };
  });
  const apart = alone.slice(1).map((other, i) => differenceOf(alone[0], other, `0-${i + 1}`));
  return [...alone, ...apart];
}

function differenceOf(a, b, key) {
  const edges = [...new Set([...a.byName.keys(), ...b.byName.keys()])].map((name) => {
    const [own, other] = [a.byName.get(name), b.byName.get(name)];
    return { ...(own ?? other), score: own?.score ?? null, other: other?.score ?? null, span: own?.span, own, beside: other };
  });
  const byName = new Map(edges.map((e) => [e.name, e]));
  return { key, label: `${a.label} against ${b.label}`, run: a.run, other: b.run, edges, byName, sides: [a.label, b.label] };
}

/** The stop of the circuit itself. */
export function circuitStop(run) {
  return run.stops.findIndex((stop) => stop.circuit);
}

/** The stop of another run that a stop is compared with: circuit with circuit, else the one nearest in size. */
export function stopBeside(run, stop, other) {
  if (run.stops[stop].circuit) return circuitStop(other);
  const far = (one) => Math.abs(Math.log((one.n_edges + 1) / (run.stops[stop].n_edges + 1)));
  return other.stops.reduce((best, one, i) => (far(one) < far(other.stops[best]) ? i : best), 0);
}

/** Where an edge of a difference is at a stop of the first run: in both, the first or second alone, or nowhere. */
export function sideOf(edge, { run, other }, stop) {
  const first = edge.own !== undefined && isIn(edge.own, run, stop);
  const second = edge.beside !== undefined && isIn(edge.beside, other, stopBeside(run, stop, other));
  return first && second ? "both" : first ? "first" : second ? "second" : null;
}

/** Whether an edge is in the circuit of a stop. */
export function isIn(edge, run, stop) {
  return run.stops[stop].circuit ? edge.kept : edge.stop !== undefined && edge.stop <= stop;
}
