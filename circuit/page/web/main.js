/** Puts the page together, and draws anew what the state changes. */

import { chips, filters, slider, toolbar } from "./controls.js";
import { h } from "./elements.js";
import { Drawing, legend, titleOfEdge } from "./graph.js";
import { isOpened, openedSection } from "./opened.js";
import { panel } from "./panel.js";
import { controlSection, curveSection, edgeTable, heading, keySection, methodSection, pairSection, stabilitySection, verdictSection } from "./sections.js";
import { state } from "./state.js";

const root = document.getElementById("page");
const tip = h("div", { class: "tip", role: "status", hidden: true });
const slots = Object.fromEntries(["bar", "slide", "filter", "chip", "legend", "side"].map((name) => [name, h("div", { class: `at-${name}` })]));
const listing = h("details", { class: "listing" }, h("summary", {}, "Table of what is shown"));
const tableSlot = h("div");
listing.append(tableSlot);

let visible = state.shown();

/** The edge itself, or those at a node. */
function nearOf(what) {
  if (!what) return [];
  return what.edge ? [what] : visible.edges.filter((edge) => edge.src.name === what.name || edge.dst.name === what.name);
}

/** Bring out some edges; without any those of what is picked. */
function bringOut(edges) {
  const { pick } = state.get();
  graph.highlight(edges.length || !pick ? edges : nearOf(state.view().byName.get(pick) ?? { name: pick }));
}

const graph = new Drawing((what) => {
  const near = nearOf(what);
  bringOut(near);
  tip.hidden = !what;
  if (what) tip.textContent = what.edge ? titleOfEdge(what) : `${what.name}: ${near.filter((e) => e.dst.name === what.name).length} in, ${near.filter((e) => e.src.name === what.name).length} out${isOpened(what.name) ? ", opened" : ""}`;
});

const graphArea = h("section", { id: "graph", "aria-label": "The circuit" }, slots.bar, slots.slide, slots.filter, slots.chip,
  h("div", { class: "stage" }, h("div", { class: "left" }, h("div", { class: "drawing", tabindex: "-1" }, graph.svg), slots.legend), h("aside", { class: "side-panel" }, slots.side)), listing);

graphArea.addEventListener("pointermove", (event) => {
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - 190)}px`;
  tip.style.top = `${event.clientY + 16}px`;
});

function toggleWide() {
  if (document.fullscreenElement) document.exitFullscreen();
  else graphArea.requestFullscreen?.();
}

/** Draw all that depends on the state; what has the keyboard keeps it. */
function draw() {
  const active = document.activeElement?.id;
  const open = Object.fromEntries(["filters", "menu"].map((name) => [name, root.querySelector(`.${name}`)?.open]));
  visible = state.shown();
  graph.update(visible);
  slots.bar.replaceChildren(toolbar(visible, graph.svg, toggleWide));
  const range = document.getElementById("stop");
  if (range && document.activeElement === range) refreshSlider(range);
  else slots.slide.replaceChildren(slider(visible));
  slots.filter.replaceChildren(filters());
  slots.chip.replaceChildren(...[chips()].filter(Boolean));
  slots.legend.replaceChildren(legend());
  slots.side.replaceChildren(...panel(visible, bringOut).flat(Infinity).filter(Boolean));
  if (listing.open) tableSlot.replaceChildren(edgeTable(visible));
  bringOut([]);
  if (location.href.startsWith("about:srcdoc")) tellNotebook();
  if (open.filters) root.querySelector(".filters").open = true;
  if (active && document.activeElement?.id !== active) document.getElementById(active)?.focus();
}

/** What is chosen, to the notebook that has this page in a frame; a page at an address tells nobody. */
function tellNotebook() {
  const edges = visible.edges.map((edge) => edge.name);
  const size = state.edgesOfStop().length;
  parent.postMessage({ format: "persona-circuits/selection", pins: state.pins(), edges, size, groups: state.groups() }, "*");
}

/** The slider while it is dragged: the element stays, what it says changes. */
function refreshSlider(range) {
  const fresh = slider(visible);
  const now = range.closest(".slider");
  range.setAttribute("aria-valuetext", fresh.querySelector("input").getAttribute("aria-valuetext"));
  range.value = fresh.querySelector("input").value;
  for (const id of ["stop-text", "shown-count"]) now.querySelector(`#${id}`).replaceWith(fresh.querySelector(`#${id}`));
}

document.addEventListener("keydown", (event) => {
  if (event.target.matches?.("input[type=number], input[type=text], select, textarea")) return;
  const { run } = state.view();
  const step = { "[": -1, "]": 1 }[event.key];
  if (step) {
    const place = Math.max(0, Math.min(run.stops.length - 1, state.stop() + step));
    state.set({ stop: run.stops[place].circuit ? "" : String(place) });
  } else if ((event.key === "u" && !event.ctrlKey && !event.metaKey) || (event.key === "z" && (event.ctrlKey || event.metaKey))) state.undo();
  else if (event.key === "f" && !event.ctrlKey && !event.metaKey) toggleWide();
  else if (event.key === "Escape") state.set({ pick: "" });
  else return;
  event.preventDefault();
});
document.addEventListener("fullscreenchange", draw);
listing.addEventListener("toggle", () => listing.open && tableSlot.replaceChildren(edgeTable(visible)));

/** Where the graph is wider than the window, what a link picks is in view. */
function scrollToPick() {
  const [frame, node] = [graph.svg.parentElement, graph.boxes.get(state.get().pick)];
  if (node) frame.scrollLeft = (node.x / graph.svg.viewBox.baseVal.width) * frame.scrollWidth - frame.clientWidth / 2;
}

state.listen(draw);
root.replaceChildren(...[heading(), graphArea, keySection(), curveSection(), controlSection(), stabilitySection(), openedSection(), verdictSection(), pairSection(), methodSection()].filter(Boolean), tip);
draw();
scrollToPick();
