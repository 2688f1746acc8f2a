/** Beside the graph: the node or edge that is looked at, with its numbers; else the strongest paths. */

import { metricUnit, nodeOf, page } from "./data.js";
import { fixed, h, percent, signed } from "./elements.js";
import { insideOf } from "./inside.js";
import { openedOf } from "./opened.js";
import { strongestPaths, throughNodes } from "./paths.js";
import { state } from "./state.js";

/** The panel for what is picked; `highlight` brings out edges. */
export function panel(shown, highlight) {
  const { pick } = state.get();
  const edge = state.view().byName.get(pick);
  if (edge) return edgePanel(edge);
  return pick && !pick.includes("->") ? nodePanel(nodeOf(pick), shown, highlight) : pathsPanel(shown, highlight);
}

const button = (words, does, more = {}) => h("button", { type: "button", onclick: does, ...more }, words);
const toNode = (name) => button(name, () => state.set({ pick: name }), { class: "link" });

function edgePanel(edge) {
  const { sides } = state.view();
  const span = edge.span === undefined ? null : state.view().run.spans[edge.span];
  return [
    h("h3", {}, edge.name),
    h("dl", {},
      term(sides ? `score in ${sides[0]}` : "score", `${signed(edge.score)} ${metricUnit}`),
      sides ? term(`score in ${sides[1]}`, `${signed(edge.other)} ${metricUnit}`) : null,
      sides ? term("in", { both: "both", first: `${sides[0]} only`, second: `${sides[1]} only` }[edge.side] ?? "neither of these") : null,
      shareOf(edge.score),
      edge.frequency === undefined || edge.frequency === null ? null
        : term("selected in", `${percent(edge.frequency)} of resamples: ${edge.core ? "core" : "fringe"}`),
      edge.stays === undefined ? null : term("certificate", edge.stays ? "stays" : "abstains"),
      span ? term("most of it at", span) : null),
    h("p", {}, "from ", toNode(edge.src.name), " to ", toNode(edge.dst.name),
      { q: ", its queries", k: ", its keys", v: ", its values" }[edge.slot] ?? ""),
  ];
}

function shareOf(score) {
  const whole = state.view().run.about.task?.divergence;
  return whole && score !== null && score !== undefined ? term("of D", percent(score / Math.abs(whole))) : null;
}

function term(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

function nodePanel(node, shown, highlight) {
  const into = shown.edges.filter((edge) => edge.dst.name === node.name);
  const out = shown.edges.filter((edge) => edge.src.name === node.name);
  const sum = (edges) => signed(edges.reduce((total, edge) => total + (edge.score ?? 0), 0), 3);
  const pinned = state.pins().includes(node.name);
  const through = strongestPaths(throughNodes(shown.edges, [node.name]), 20)
    .find((path) => path.edges.some((edge) => edge.src.name === node.name || edge.dst.name === node.name));
  return [
    h("h3", {}, node.name, " ", h("span", { class: "quiet" }, kindOf(node))),
    h("p", { class: "buttons" },
      button(pinned ? "Unpin" : "Pin", () => state.togglePin(node.name), { "aria-pressed": String(pinned) }), groupButtons(node.name)),
    h("dl", {}, term(`in: ${edgeCount(into)}`, `sum ${sum(into)}`), term(`out: ${edgeCount(out)}`, `sum ${sum(out)}`)),
    edgeList("in", into),
    edgeList("out", out),
    through ? [h("h4", {}, "Strongest path through it"), pathLine(through, highlight)] : null,
    openedOf(node),
    insideOf(node),
  ];
}

const edgeCount = (edges) => `${edges.length} edge${edges.length === 1 ? "" : "s"}`;

function kindOf(node) {
  if (node.kind === "head") return `layer ${node.layer}, head ${node.head}`;
  if (node.kind === "mlp") return `layer ${node.layer}, MLP`;
  return node.kind === "input" ? "the embedding" : "the answer";
}

function groupButtons(name) {
  const sets = state.groups();
  const add = () => {
    const group = prompt("Name of the group", Object.keys(sets)[0] ?? "");
    if (!group) return;
    const nodes = [...new Set([...(sets[group] ?? []), ...(state.pins().includes(name) ? state.pins() : [name])])];
    state.set({ groups: JSON.stringify({ ...sets, [group]: nodes }) });
  };
  const leave = Object.entries(sets).filter(([, nodes]) => nodes.includes(name)).map(([group, nodes]) => button(`Out of ${group}`, () => {
    const rest = nodes.filter((one) => one !== name);
    const next = { ...sets, [group]: rest };
    if (!rest.length) delete next[group];
    state.set({ groups: JSON.stringify(next) });
  }));
  return [button("Add to group…", add), leave];
}

function edgeList(title, edges) {
  if (!edges.length) return null;
  const strongest = [...edges].sort((a, b) => b.strength - a.strength);
  const line = (edge) => h("li", {}, button(edge.name, () => state.set({ pick: edge.name }), { class: "link" }), " ",
    h("span", { class: "number" }, signed(edge.score)));
  return h("details", { open: strongest.length <= 12 }, h("summary", {}, `${title}: ${edgeCount(edges)}`), h("ol", { class: "edges-list" }, strongest.map(line)));
}

function pathsPanel(shown, highlight) {
  const { paths } = shown;
  return [
    h("h3", {}, "Strongest paths from the input to the answer"),
    h("p", { class: "quiet" }, "A path is as strong as its weakest edge. Point at one to see it; click on a node or an edge for its numbers."),
    paths.length ? h("ol", { class: "paths" }, paths.map((path) => h("li", {}, pathLine(path, highlight))))
      : h("p", {}, "No path from input to logits is among what is shown."),
    page.inside ? insideOf(null) : null,
  ];
}

function pathLine(path, highlight) {
  const nodes = [path.edges[0].src.name, ...path.edges.map((edge) => (/[qkv]/.test(edge.slot) ? `${edge.dst.name}·${edge.slot}` : edge.dst.name))];
  const { edges, weakest } = path;
  const on = () => highlight(edges);
  return h("button", {
    type: "button", class: "path", onpointerenter: on, onfocus: on, onpointerleave: () => highlight([]), onblur: () => highlight([]),
    onclick: () => state.set({ pins: [...new Set(edges.slice(0, -1).map((edge) => edge.dst.name))].join(",") }),
    title: "Pin the nodes of this path",
  }, nodes.join(" → "), h("span", { class: "number" }, ` ${fixed(weakest.strength, 3)}`));
}
