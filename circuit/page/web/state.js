/** What is looked at. All of it stands in the address's fragment, so that a link shows the same. */

import { circuitStop, isIn, nodeOf, page, shape, sideOf, views } from "./data.js";
import { strongestPaths, throughNodes } from "./paths.js";

/** A circuit of more edges than this is first shown by its strongest paths. */
const LEGIBLE = 200;
const DEFAULTS = {
  view: "0", stop: "", paths: views[0].edges.filter((edge) => edge.kept).length > LEGIBLE ? "20" : "all", sign: "", slots: "qkvml", kinds: "ihm", low: "0", high: String(shape.layers - 1),
  span: "", part: "", pins: "", pick: "", groups: JSON.stringify(page.groups), inside: "",
};
const PASSING = new Set(["pick", "inside"]);
let now = read();
let address = location.href;
const past = [];
const link = () => address;
const listeners = [];

const get = () => now;
const pins = () => (now.pins ? now.pins.split(",") : []);
const groups = () => JSON.parse(now.groups);
const view = () => views.find((one) => one.key === now.view) ?? views[0];
const isDefault = () => Object.keys(DEFAULTS).every((key) => now[key] === DEFAULTS[key]);
const canUndo = () => past.length > 0;

/** The place of the stop that is shown; of a difference that of the first run. */
function stop() {
  const { run } = view();
  const place = Number(now.stop);
  return now.stop !== "" && run.stops[place] ? place : circuitStop(run);
}

/** Change some values, told to all who listen; what was is kept for undo. */
function set(changes) {
  const next = { ...now, ...changes };
  if (Object.keys(next).every((key) => next[key] === now[key])) return;
  const passing = Object.keys(changes).every((key) => PASSING.has(key));
  if (!passing) past.push(now);
  now = next;
  write();
  tell();
}

function undo() {
  if (!past.length) return;
  now = past.pop();
  write();
  tell();
}

function reset() {
  set({ ...DEFAULTS, groups: now.groups });
}

function togglePin(name) {
  const held = pins();
  const next = held.includes(name) ? held.filter((one) => one !== name) : [...held, name];
  set({ pins: next.join(","), pick: name });
}

function listen(listener) {
  listeners.push(listener);
}

function tell() {
  for (const listener of listeners) listener();
}

function write() {
  const said = new URLSearchParams();
  for (const [key, value] of Object.entries(now)) if (value !== DEFAULTS[key]) said.set(key, value);
  const fragment = said.toString();
  address = location.href.replace(/#.*/s, "") + (fragment ? `#${fragment}` : "");
  try {
    history.replaceState(null, "", address);
  } catch {
    // A frame of a notebook has no address of its own; what "Copy link" gives has the fragment all the same.
  }
}

function read() {
  const said = new URLSearchParams(location.hash.slice(1));
  const found = { ...DEFAULTS };
  for (const key of Object.keys(DEFAULTS)) if (said.has(key)) found[key] = said.get(key);
  const known = (name) => /^(input|logits|a\d+\.h\d+|m\d+)$/.test(name) && nodeOf(name).layer <= shape.layers;
  found.pins = found.pins.split(",").filter(known).join(",");
  try {
    const given = JSON.parse(found.groups);
    const sound = given && !Array.isArray(given) && typeof given === "object"
      && Object.values(given).every((nodes) => Array.isArray(nodes) && nodes.every((node) => known(String(node))));
    if (!sound) found.groups = DEFAULTS.groups;
  } catch {
    found.groups = DEFAULTS.groups;
  }
  return found;
}

window.addEventListener("hashchange", () => {
  past.push(now);
  now = read();
  tell();
});

/** The edges of the stop, before any filter. */
function edgesOfStop() {
  const { run, edges, sides } = view();
  const place = stop();
  if (!sides) return edges.filter((edge) => isIn(edge, run, place));
  for (const edge of edges) edge.side = sideOf(edge, view(), place);
  return edges.filter((edge) => edge.side);
}

/** The edges that are shown, and the strongest paths among them. */
function shown() {
  const { low, high, sign, slots, kinds, span, part, paths } = now;
  const within = (node) => node.kind === "input" || node.kind === "logits"
    || (node.layer >= Number(low) && node.layer <= Number(high));
  const letter = { input: "i", head: "h", mlp: "m" };
  let edges = edgesOfStop().filter((edge) => {
    if (sign === "for" && !(edge.score < 0)) return false;
    if (sign === "against" && !(edge.score > 0)) return false;
    if (!slots.includes(edge.slot)) return false;
    if (!kinds.includes(letter[edge.src.kind])) return false;
    if (edge.dst.kind !== "logits" && !kinds.includes(letter[edge.dst.kind])) return false;
    if (!within(edge.src) || !within(edge.dst)) return false;
    if (span !== "" && edge.span !== Number(span)) return false;
    if (part === "core" && edge.core === false) return false;
    return !["both", "first", "second"].includes(part) || edge.side === part;
  });
  if (pins().length) edges = throughNodes(edges, pins());
  const strongest = strongestPaths(edges, Number(paths) || 10);
  if (paths !== "all") {
    const on = new Set(strongest.flatMap((path) => path.edges));
    edges = edges.filter((edge) => on.has(edge));
  }
  return { edges, paths: strongest };
}

export const state = {
  get, link, pins, groups, view, isDefault, canUndo, stop, set, undo, reset, togglePin, listen, edgesOfStop, shown,
};
