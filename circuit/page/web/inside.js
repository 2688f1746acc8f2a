/** Inside a node: what a head attends to and moves, what it promotes, an MLP's neurons; and the whole along its depth. */

import { page } from "./data.js";
import { heat } from "./charts.js";
import { fixed, h, percent, signed, spelt, table } from "./elements.js";
import { isKept } from "./opened.js";
import { state } from "./state.js";

const inside = page.inside;

/** What is known of a node; without one, of the stream along the depth. */
export function insideOf(node) {
  if (!inside) {
    return h("p", { class: "quiet" }, "What the node does was not computed: ", h("code", {}, "report --inside"), " does, where the model is.");
  }
  if (state.view().key !== "0") return h("p", { class: "quiet" }, `What nodes do is known of ${page.runs[0].name}.`);
  if (!node || node.kind === "input" || node.kind === "logits") return along();
  const found = inside.nodes[node.name];
  if (!found) return h("p", { class: "quiet" }, "Only nodes of the circuit were looked into.");
  return [direct(found), node.kind === "head" ? attention(node, found) : neurons(node, found), promoted(found)];
}

function direct(found) {
  const { mean, share } = found.direct;
  return [
    h("h4", {}, "Direct effect on the options"),
    h("p", {}, `${signed(mean, 3)} of D = ${fixed(inside.divergence, 3)} logits`,
      share === null ? "" : ` (${percent(share)})`, `, mean over ${inside.n_pairs} pairs, through the final norm alone.`),
  ];
}

function attention(node, found) {
  const tokens = { a: inside.example.tokens_a, b: inside.example.tokens_b };
  const mode = state.get().inside || "answer";
  const choose = (key, words) => h("button", { type: "button", "aria-pressed": String(mode === key), onclick: () => state.set({ inside: key }) }, words);
  const modes = [choose("answer", "From the answer"), choose("pattern", "Pattern"), choose("weighted", "Value-weighted")];
  const side = (key) => {
    const names = tokens[key].map(spelt);
    const pattern = decoded(found[`pattern_${key}`], names.length);
    if (mode === "pattern") return heat(`${node.name}, prompt ${key.toUpperCase()}: attention`, names, names, pattern, { most: 1, size: 11 });
    const weighted = pattern.map((row) => row.map((p, j) => p * found[`values_${key}`][j]));
    if (mode === "weighted") return heat(`${node.name}, prompt ${key.toUpperCase()}: attention times size of what is moved`, names, names, weighted, { size: 11 });
    return answerRow(key, names, pattern.at(-1), found[`moved_${key}`]);
  };
  return [
    h("h4", {}, "Where it looks"), h("p", { class: "buttons" }, modes),
    mode === "answer" ? h("p", { class: "quiet" }, "Shade: attention from the last token. Number: what is moved from there, in logits of the options' difference.") : null,
    h("div", { class: "sides" }, side("a"), side("b")), bySpan(found),
  ];
}

function answerRow(key, names, row, moved) {
  const most = Math.max(...row, 1e-9);
  return h("figure", {}, h("figcaption", {}, `prompt ${key.toUpperCase()}`), h("p", { class: "tokens" }, names.map((name, i) => h("span", {
    class: "token", style: `--shade:${(row[i] / most).toFixed(2)}`, title: `attention ${fixed(row[i], 3)}, moved ${signed(moved[i], 3)}`,
  }, name, Math.abs(moved[i]) > 0.02 ? h("small", {}, signed(moved[i], 2)) : null))));
}

function bySpan(found) {
  if (!found.spans?.length) return null;
  return table("What it moves, by part of the prompt", [{ name: "part" }, { name: "of D", number: true, show: (v) => signed(v, 3) }],
    found.spans.map(([name, value]) => ({ cells: [name, value] })));
}

function decoded(text, n) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return Array.from({ length: n }, (_, i) => Array.from(bytes.subarray(i * n, (i + 1) * n), (v) => v / 255));
}

function promoted(found) {
  const list = (items) => items.map(([token, value]) => h("span", { class: "token plain" }, spelt(token), h("small", {}, signed(value, 2))));
  return [h("h4", {}, "Tokens that its output promotes"),
    ["a", "b"].map((key) => h("div", {}, h("p", { class: "quiet" }, `prompt ${key.toUpperCase()}: up, then down`),
      h("p", { class: "tokens" }, list(found[`up_${key}`])), h("p", { class: "tokens" }, list(found[`down_${key}`]))))];
}

function neurons(node, found) {
  if (!found.neurons) return null;
  const show = (v) => signed(v, 3);
  const kept = found.neurons.map((one) => ({ true: "yes", false: "no" }[isKept(node.name, one.neuron)] ?? null));
  const told = kept.some((one) => one !== null);
  return table("Neurons with the largest direct effect on D", [
    { name: "neuron" }, { name: "of D", number: true, show }, { name: "under A", number: true, show }, { name: "under B", number: true, show },
    ...(told ? [{ name: "kept" }] : []),
  ], found.neurons.map((one, i) => ({ cells: [`n${one.neuron}`, one.direct, one.a, one.b, ...(told ? [kept[i]] : [])] })));
}

/** The persona's signal by layer and position, and the logit lens along the depth. */
function along() {
  const points = ["embedding", ...inside.lens.slice(1).map((_, i) => `after ${i}`)];
  const { signal, example } = inside;
  const grid = [...signal].reverse();
  const columns = example.tokens_a.slice(-signal[0].length).map(spelt);
  return h("details", { class: "along" }, h("summary", {}, "Along the depth: persona signal and logit lens"),
    heat("Difference of the two streams over their size, by layer and token", [...points].reverse(), columns, grid, { size: 13 }),
    table("Logit lens", [
      { name: "stream" }, { name: "D", number: true, show: (v) => signed(v, 2) }, { name: "A would say" }, { name: "B would say" },
    ], inside.lens.map((one, i) => ({ cells: [points[i], one.divergence, one.top_a.map(spelt).join(" "), one.top_b.map(spelt).join(" ")] }))));
}
