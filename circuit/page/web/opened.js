/** Opened nodes: the neurons of an MLP, the parts of a head, and why it attends; beside the graph, and all of them below it. */

import { metricUnit, page } from "./data.js";
import { count, fixed, h, percent, precise, signed, spelt, table } from "./elements.js";
import { state } from "./state.js";

/** So many neurons are listed below the graph; beside a node all that the page has. */
const LISTED = 30;
const sets = new Map(page.runs.filter((run) => run.opened).map((run) => [run, new Set(
  [...Object.keys(run.opened.neurons?.n_neurons ?? {}), ...(run.opened.heads?.parts ?? []).map((one) => one.head)],
)]));

/** The runs of the view that have opened nodes. */
const runsInView = () => [state.view().run, state.view().other].filter((run) => sets.has(run));

/** Whether a run has opened the node: one that is in view, or any. */
export const isOpened = (name) => runsInView().some((run) => sets.get(run).has(name));
export const isEverOpened = (name) => [...sets.values()].some((names) => names.has(name));
export const anyOpened = () => runsInView().length > 0;

/** Whether a neuron of an opened MLP is kept; null where the MLP is not opened, or where that is not on the page. */
export function isKept(mlp, place) {
  const found = page.runs[0].opened?.neurons;
  if (!found?.n_neurons[mlp]) return null;
  if (found.kept.some((one) => one.name === `${mlp}.n${place}`)) return true;
  return keptOf(found, mlp).length < found.n_kept[mlp] ? null : false;
}

const keptOf = (found, mlp) => found.kept.filter((one) => one.name.startsWith(`${mlp}.`));
const ends = (interval, digits = 3) => (interval ? `${fixed(interval.low, digits)} to ${fixed(interval.high, digits)}` : "–");
const words = (tokens) => tokens.map(spelt).join(" ");
const first = (terms) => (terms.length ? `${terms[0][0]} ${signed(terms[0][1], 3)}` : null);
const pickNode = (row) => state.set({ pick: row.node });
const score = (name, digits = 4) => ({ name, number: true, show: (v) => signed(v, digits) });
const share = (name) => ({ name, number: true, show: (v) => fixed(v, 3) });

/** Beside the graph: what the runs in view have of a node, else what opens it. */
export function openedOf(node) {
  const runs = runsInView().filter((run) => sets.get(run).has(node.name));
  const option = { mlp: "--neurons", head: "--open-heads" }[node.kind];
  if (!runs.length && option) return h("p", { class: "quiet" }, "Not opened: ", h("code", {}, `discover ${option} ${node.name}`), " does.");
  return runs.map((run) => [
    h("h4", {}, node.kind === "mlp" ? "Its neurons" : "Its parts", runs.length > 1 || state.view().sides ? `, ${run.name}` : ""),
    node.kind === "mlp" ? neuronsOf(run.opened.neurons, node.name) : partsOf(run.opened.heads, node.name),
  ]);
}

function neuronsOf(found, mlp) {
  const [n, kept] = [found.n_kept[mlp], keptOf(found, mlp)];
  const names = Object.keys(found.n_neurons);
  const measured = found.measured.at(-1);
  const f = (name) => { const row = measured.rows.find((one) => one.name === name); return row ? fixed(row.f, 3) : "–"; };
  return [
    h("p", {}, `${count(n)} of ${count(found.n_neurons[mlp])} neurons are kept, with ${signed(found.kept_scores[mlp])} of the MLP's score of ${signed(found.scores[mlp])} ${metricUnit} (${found.method}).`),
    measured ? h("p", { class: "quiet" }, `f of the circuit with the kept neurons of ${names.join(", ")}: ${f("these")}; with all of them ${f("all")}, with all but these ${f("all but these")}, with none ${f("none")} (${measured.n_pairs} pairs, ${measured.split}).`) : null,
    kept.length ? table(`Kept neurons${kept.length < n ? `, the ${count(kept.length)} strongest; neurons.csv has all` : ""}`, NEURON_COLUMNS,
      kept.map((one) => ({ cells: [one.name.split(".")[1], one.score, words(one.promotes), words(one.demotes)] }))) : null,
  ];
}

const NEURON_COLUMNS = [{ name: "neuron" }, score("score"), { name: "promotes" }, { name: "demotes" }];
const PART_COLUMNS = [{ name: "part" }, { name: "edges", number: true, show: count }, score("score"), share("lost"), { name: "95 % interval", number: true }];
const cellsOfPart = (one) => [one.part, one.n_edges, one.score, one.lost.value, ends(one.lost.interval)];

function partsOf(found, head) {
  const attended = found.attended.filter((one) => one.head === head);
  return [
    table(`Parts of ${head}`, PART_COLUMNS, found.parts.filter((one) => one.head === head).map((one) => ({ cells: cellsOfPart(one) }))),
    h("p", { class: "quiet" }, `${LOST} On ${found.n_pairs} pairs (${found.split}).`),
    h("h4", {}, "Why it attends"), h("p", { class: "quiet" }, WHY),
    attended.map(termTable),
  ];
}

const LOST = "Edges into the part, and the sum of their scores; lost: share of D that the circuit loses without the part, a ratio of means. The head then attends, or moves, as ablated.";
const WHY = "At the answer: q·k of a part's tokens less the mean over all, A less B, is a sum over what writes the query, and one over what writes the keys.";

/** What makes a head attend to a part of the prompt, source by source. */
function termTable(one) {
  const caption = `${one.span}: attention ${percent(one.attention_a)} under A, ${percent(one.attention_b)} under B; score ${signed(one.score, 3)}${one.interval ? ` (${ends(one.interval, 2)})` : ""}`;
  const rows = one.terms.map(([name, query, key]) => ({ node: /^biases$/.test(name) ? null : name, cells: [name, query, key] }));
  const [n, query, key] = one.others;
  if (n) rows.push({ node: null, cells: [`${count(n)} others`, query, key] });
  return table(caption, [{ name: "source" }, score("by the query", 3), score("by the keys", 3)], rows, { onRow: pickNode });
}

/** Below the graph: everything that the page's run has opened. */
export function openedSection() {
  const { neurons, heads } = page.runs[0].opened ?? {};
  if (!neurons && !heads) return null;
  return h("section", { id: "opened" }, h("h2", {}, "Opened nodes"), neurons ? allNeurons(neurons) : null, heads ? allHeads(heads) : null);
}

function allNeurons(found) {
  const mlps = Object.keys(found.n_neurons);
  const random = ({ random: drawn }) => (drawn.length ? `${fixed(drawn.reduce((a, b) => a + b) / drawn.length, 3)}, most ${fixed(Math.max(...drawn), 3)}` : null);
  const rows = found.measured.flatMap((one) => one.rows.map((row) => ({
    cells: [row.name, one.split, row.n_neurons, row.f, ends(row.interval), row.carried.value, ends(row.carried.interval), random(row.carried), row.carried.p],
  })));
  const columns = [{ name: "neurons" }, { name: "pairs" }, { name: "number", number: true, show: count }, share("f"), { name: "95 % interval", number: true }, share("of what they carry"), { name: "95 % interval", number: true }, { name: "random", number: true }, { name: "p", number: true, show: (v) => precise(v, 2) }];
  const n = mlps.reduce((sum, mlp) => sum + found.n_kept[mlp], 0);
  const listed = found.kept.slice(0, LISTED);
  return [
    rows.length ? table(`The circuit with neurons of ${mlps.join(", ")}`, columns, rows) : null,
    rows.length ? h("p", { class: "quiet" }, `These: the fewest by |score| that keep ${found.asked} of what the MLPs carry, on the pairs searched on. Of what they carry: (m − m(none)) / (m(all) − m(none)), a ratio of means; what is not kept is ablated. Intervals over ${found.measured.at(-1).drawn_over}; random: as many of each MLP, drawn from those with a score.`) : null,
    mlps.length ? table("Opened MLPs", [{ name: "MLP" }, { name: "neurons", number: true, show: count }, { name: "kept", number: true, show: count }, score("score of those kept"), score("score of the MLP")],
      mlps.map((mlp) => ({ node: mlp, cells: [mlp, found.n_neurons[mlp], found.n_kept[mlp], found.kept_scores[mlp], found.scores[mlp]] })), { onRow: pickNode }) : null,
    listed.length ? table(listed.length < n ? `Kept neurons, the ${listed.length} strongest of ${count(n)}` : "Kept neurons", [...NEURON_COLUMNS, { name: "most from" }, { name: "most to" }],
      listed.map((one) => ({ node: one.name.split(".")[0], cells: [one.name, one.score, words(one.promotes), words(one.demotes), first(one.sources), first(one.destinations)] })), { onRow: pickNode }) : null,
    found.notes.map((note) => h("p", { class: "quiet" }, note)),
  ];
}

function allHeads(found) {
  const rows = found.parts.map((one) => ({ node: one.head, cells: [one.head, ...cellsOfPart(one)] }));
  const by = (one, side) => first(one.terms.map((term) => [term[0], term[side]]).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])));
  const why = found.attended.map((one) => ({
    node: one.head, cells: [one.head, one.span, one.attention_a, one.attention_b, one.score, ends(one.interval, 2), by(one, 1), by(one, 2)],
  }));
  const attention = (name) => ({ name, number: true, show: percent });
  return [
    table(`Parts of heads on ${found.n_pairs} pairs (${found.split})`, [{ name: "head" }, ...PART_COLUMNS], rows, { onRow: pickNode }),
    h("p", { class: "quiet" }, LOST),
    why.length ? table(`Why heads attend, on ${found.n_attended} pairs`, [{ name: "head" }, { name: "part of the prompt" }, attention("attention, A"), attention("B"), score("score, A − B", 3), { name: "95 % interval", number: true }, { name: "most by the query" }, { name: "most by the keys" }], why, { onRow: pickNode }) : null,
    h("p", { class: "quiet" }, `${WHY} Norms are held. Intervals over ${found.drawn_over}.`),
  ];
}
