/** Above the graph: view, nested circuits, filters, pins, groups, undo, full screen, export. */

import { circuitStop, page, shape, stopBeside, views } from "./data.js";
import { count, fixed, h } from "./elements.js";
import { saving } from "./exports.js";
import { state } from "./state.js";

const press = (words, does, more = {}) => h("button", { type: "button", onclick: does, ...more }, words);

/** A stop in words: size, and faithfulness where it was measured. */
export function stopText(run, stop) {
  const f = Object.entries(stop.f).at(-1);
  const size = `${count(stop.n_edges)} edges, ${count(stop.n_nodes)} nodes`;
  if (!f) return `${size}: faithfulness not measured`;
  const [split, { f: value, low, high }] = f;
  const held = run.summary.held_out && Object.keys(stop.f).length > 1 ? "held out" : `on ${split}`;
  return `${size}: f ${fixed(value, 2)}${low === null ? "" : ` [${fixed(low, 2)}, ${fixed(high, 2)}]`} ${held}`;
}

/** The slider through nested circuits. */
export function slider(shown) {
  const { run, other, sides } = state.view();
  const place = state.stop();
  const stop = run.stops[place];
  const says = sides ? `${sides[0]} ${stopText(run, stop)}; ${sides[1]} ${stopText(other, other.stops[stopBeside(run, place, other)])}` : stopText(run, stop);
  const own = circuitStop(run);
  const move = (event) => state.set({ stop: Number(event.target.value) === own ? "" : event.target.value });
  return h("div", { class: "slider" },
    h("label", { for: "stop" }, "Nested circuits"),
    h("input", { id: "stop", type: "range", min: 0, max: run.stops.length - 1, step: 1, value: place, list: "stops",
      disabled: run.stops.length < 2, "aria-valuetext": says, oninput: move }),
    h("datalist", { id: "stops" }, h("option", { value: own })),
    h("output", { for: "stop", id: "stop-text" }, h("strong", {}, stop.circuit ? (sides ? "the circuits" : "the circuit") : `stop ${place + 1} of ${run.stops.length}`, ":"), " ", says),
    h("span", { id: "shown-count", class: "quiet" }, `${count(shown.edges.length)} shown`),
    run.note ? h("span", { class: "quiet" }, run.note) : null);
}

function choice(id, name, options, value, key) {
  return h("label", {}, name, " ", h("select", { id, onchange: (event) => state.set({ [key]: event.target.value }) },
    options.map(([option, words]) => h("option", { value: option, selected: option === value }, words))));
}

function boxes(name, letters, value, key) {
  return h("fieldset", {}, h("legend", {}, name), letters.map(([letter, words]) => h("label", {}, h("input", {
    type: "checkbox", checked: value.includes(letter), "data-letter": `${key}-${letter}`,
    onchange: (event) => state.set({ [key]: event.target.checked ? ordered(letters, value + letter) : value.replace(letter, "") }),
  }), words)));
}

const ordered = (letters, chosen) => letters.map(([letter]) => letter).filter((letter) => chosen.includes(letter)).join("");

/** The first line: what is seen, what is undone, what is written. */
export function toolbar(shown, svg, toggleWide) {
  const now = state.get();
  const { run, sides } = state.view();
  const paths = [["all", "all edges"], ...[1, 3, 5, 10, 20, 50].map((n) => [String(n), n === 1 ? "the strongest path" : `the ${n} strongest paths`])];
  const kinds = Object.entries(saving).filter(([name]) => name !== "Circuit (JSON)" || run.about.model);
  return h("div", { class: "toolbar", role: "toolbar", "aria-label": "Graph" },
    views.length > 1 ? choice("view", "View", views.map((one) => [one.key, one.label]), now.view, "view") : null,
    choice("paths", "Show", paths, now.paths, "paths"),
    sides ? choice("part", "Edges", [["", "all"], ["both", "in both"], ["first", `${sides[0]} only`], ["second", `${sides[1]} only`]], now.part, "part") : null,
    press("Undo", state.undo, { id: "undo", disabled: !state.canUndo(), title: "U" }),
    press("Reset", state.reset, { id: "reset", disabled: state.isDefault() }),
    press(document.fullscreenElement ? "Leave full screen" : "Full screen", toggleWide, { id: "wide", title: "F" }),
    h("details", { class: "menu" }, h("summary", {}, "Save"), h("div", {},
      kinds.map(([name, save]) => press(name, () => save(shown, svg), { "data-save": name })),
      press("Copy link", () => navigator.clipboard?.writeText(state.link())))));
}

/** What is shown of the circuit. */
export function filters() {
  const now = state.get();
  const { run } = state.view();
  const layer = (key, name) => h("label", {}, name, " ", h("input", {
    type: "number", id: key, min: 0, max: shape.layers - 1, value: now[key], onchange: (event) => state.set({ [key]: String(Math.max(0, Math.min(shape.layers - 1, Math.trunc(Number(event.target.value) || 0)))) }),
  }));
  return h("details", { class: "filters" }, h("summary", {}, "Filters", active(now)),
    h("div", {},
      choice("sign", "Sign", [["", "both"], ["for", "below 0: carries it"], ["against", "above 0: against it"]], now.sign, "sign"),
      boxes("Into", [["q", "q"], ["k", "k"], ["v", "v"], ["m", "MLP"], ["l", "logits"]], now.slots, "slots"),
      boxes("Nodes", [["i", "input"], ["h", "heads"], ["m", "MLPs"]], now.kinds, "kinds"),
      layer("low", "Layers from"), layer("high", "to"),
      run.spans.length ? choice("span", "Most at", [["", "any part"], ...run.spans.map((name, i) => [String(i), name])], now.span, "span") : null,
      run.edges.some((edge) => edge.core === false) ? choice("core", "Stability", [["", "core and fringe"], ["core", "core only"]], now.part, "part") : null));
}

function active(now) {
  const n = [now.sign, now.slots !== "qkvml", now.kinds !== "ihm", now.low !== "0", now.high !== String(shape.layers - 1), now.span, now.part].filter(Boolean).length;
  return n ? h("span", { class: "badge" }, String(n)) : null;
}

/** Pinned nodes and named groups, each with what takes it away. */
export function chips() {
  const sets = Object.entries(state.groups());
  const pinned = state.pins().map((name) => h("span", { class: "chip" }, h("button", { type: "button", class: "link", onclick: () => state.set({ pick: name }) }, name),
    press("×", () => state.togglePin(name), { "aria-label": `Unpin ${name}` })));
  const named = sets.map(([name, nodes], i) => h("span", { class: "chip group", "data-group": String(i % 6) },
    h("button", { type: "button", class: "link", title: nodes.join(", "), onclick: () => state.set({ pins: nodes.filter((node) => node !== "input").join(",") }) }, `${name} (${nodes.length})`)));
  if (!pinned.length && !named.length) return null;
  return h("p", { class: "chips" }, pinned.length ? "Pinned: " : "", pinned, pinned.length ? press("Unpin all", () => state.set({ pins: "" })) : "", named.length ? " Groups: " : "", named);
}

export const KEYS = [
  ["Arrow keys", "from node to node"], ["Enter", "numbers of the node"], ["P or Space", "pin the node"], ["[ and ]", "a smaller, a larger circuit"],
  ["U or Ctrl+Z", "undo"], ["F", "full screen"], ["Esc", "nothing picked"],
];
export const pageTitle = page.title;
