/** Around the graph: the question and the answer above; curves, tests, pairs, method and files below. */

import { page } from "./data.js";
import { sizeChart } from "./charts.js";
import { KEYS } from "./controls.js";
import { count, fixed, h, percent, precise, signed, table } from "./elements.js";
import { state } from "./state.js";

const run = page.runs[0];
const three = (v) => fixed(v, 3);

export function heading() {
  const { question, answer, caution } = run.answer;
  return h("header", {}, h("h1", {}, page.title), question ? h("p", { class: "question" }, question) : null,
    h("p", { class: "answer" }, answer), caution ? h("p", { class: "caution" }, caution) : null, example());
}

/** A pair as the model reads it, token by token where they are known. */
function example() {
  const known = page.inside?.example;
  const pair = run.pairs.find((one) => one.id && one.id === known?.id) ?? run.pairs[0];
  if (!known && !pair) return null;
  const answers = pair ?? known;
  const side = (name, tokens, text, persona, said) => h("figure", {}, h("figcaption", {}, h("strong", {}, name), persona ? ` ${persona}` : "", " prefers ", h("code", {}, said.join(" / "))),
    tokens ? h("p", { class: "tokens prompt" }, tokens.map((token) => h("span", { class: "token plain" }, token.replaceAll("\n", "⏎")))) : h("pre", {}, text));
  return h("details", { class: "example", open: true }, h("summary", {}, `A pair of prompts${known ? ", as the model reads them" : ""}`), h("div", { class: "sides" },
    side("A", known?.tokens_a, pair?.clean, pair?.persona_a, answers.answers), side("B", known?.tokens_b, pair?.corrupt, pair?.persona_b, answers.wrong_answers)));
}

export function edgeTable(shown) {
  const { sides } = state.view();
  const columns = [{ name: "edge" }, { name: "score", number: true, show: (v) => signed(v, 4) }, sides ? { name: `score in ${sides[1]}`, number: true, show: (v) => signed(v, 4) } : { name: "selected in", number: true, show: (v) => fixed(v, 2) }, { name: "part" }];
  const part = (edge) => edge.side ?? (edge.core === undefined ? (edge.kept ? "circuit" : "outside") : edge.core ? "core" : "fringe");
  const rows = [...shown.edges].sort((a, b) => b.strength - a.strength).map((edge) => ({ name: edge.name, cells: [edge.name, edge.score, sides ? edge.other : edge.frequency ?? null, part(edge)] }));
  return table(`${count(rows.length)} edges that are shown`, columns, rows, { onRow: (row) => state.set({ pick: row.name }) });
}

export function curveSection() {
  const splits = [...new Set(run.curve.flatMap((point) => Object.keys(point.f)))];
  if (!splits.length) return null;
  const series = splits.map((split) => ({
    name: split, points: run.curve.filter((p) => p.f[split]).map((p) => ({ x: p.n_edges, y: p.f[split].f, low: p.f[split].low, high: p.f[split].high })),
  }));
  const report = run.faithfulness.at(-1);
  const one = report?.circuit;
  const marks = one?.ratio_of_means === null || !one?.n_edges ? [] : [{ x: one.n_edges, y: one.ratio_of_means, low: one.interval?.low ?? null, high: one.interval?.high ?? null, name: `the circuit, ${report.split}` }];
  const band = report?.random_mean === null || !report ? null
    : { low: report.random_mean - (report.random_sd ?? 0), high: report.random_mean + (report.random_sd ?? 0), name: `random circuits of ${count(one.n_edges)} edges, mean ± sd` };
  const pick = (point) => {
    const place = run.stops.findIndex((stop) => stop.n_edges === point.x && !stop.circuit);
    if (place >= 0) state.set({ view: "0", stop: String(place) });
  };
  return section("Faithfulness against size", sizeChart("Faithfulness of nested circuits by their number of edges", series, marks, band, pick),
    h("p", { class: "quiet" }, "f: how much of the effect is left with only these edges, 1 for the whole model, 0 with all cut; bands are 95 % intervals. Click on a dot to see its circuit."));
}

export function controlSection() {
  if (!run.faithfulness.length) return null;
  const rows = run.faithfulness.flatMap((report) => {
    const line = (name, one) => one && { cells: [name, report.split, one.n_edges, one.m, one.ratio_of_means, one.interval ? `${fixed(one.interval.low, 3)} to ${fixed(one.interval.high, 3)}` : "–"] };
    const random = report.random_mean === null ? null : { cells: [`random, matched (${report.random.length})`, report.split, report.circuit.n_edges, null, report.random_mean, report.random_sd === null ? "–" : `sd ${fixed(report.random_sd, 3)}`] };
    return [line("circuit", report.circuit), line("complement", report.complement), line("complement and layer 0's reads", report.complement_with_reads), line(`all but ${report.edge}`, report.without_edge), random].filter(Boolean);
  });
  const columns = [{ name: "what is kept" }, { name: "pairs" }, { name: "edges", number: true, show: count }, { name: "m", number: true, show: (v) => signed(v, 3) }, { name: "f", number: true, show: three }, { name: "95 % interval", number: true }];
  return section("The circuit beside its controls", table("Faithfulness, a ratio of means", columns, rows), h("p", { class: "quiet" }, run.faithfulness.map((report) => `${report.split}: intervals over ${report.resampled ?? "pairs"}`).join("; "), "."));
}

export function stabilitySection() {
  const { stability, certificate } = run.about;
  const { evaluation } = run;
  if (!stability && !certificate && !evaluation?.tests) return section("Stability and tests", h("p", { class: "quiet" }, "Not evaluated: ", h("code", {}, "persona-circuits evaluate"), " resamples the pairs, tests the circuit, and writes both into its file; then make this page again."));
  const verdict = stability && (stability.unstable === null ? "unknown" : stability.unstable ? "unstable" : "stable");
  return section("Stability and tests",
    stability ? h("p", {}, h("strong", {}, verdict), `: ${count(stability.core)} edges are core, ${count(stability.fringe)} fringe; mean pairwise Jaccard of resampled circuits ${fixed(stability.jaccard, 2)}, drawn over ${stability.by ?? "pairs"}.`) : null,
    certificate ? h("p", {}, h("strong", {}, "certificate"), `: ${count(certificate.stays)} edges stay when any ${certificate.radius} of ${certificate.n_units} ${certificate.by} are taken away, ${count(certificate.abstains)} abstain (${certificate.way === "exhaustive" ? `all ${count(certificate.n)} sets taken away` : `${count(certificate.n)} draws of ${certificate.kept}`}; confidence ${certificate.confidence}).`) : null,
    evaluation?.tests ? table("Hypothesis tests", [{ name: "test" }, { name: "decision" }, { name: "p (Holm)", number: true, show: precise }, { name: "says" }], evaluation.tests.map((one) => ({ cells: [one.name, one.decision, one.p_holm, one.sentence] }))) : null,
    evaluation?.completeness?.backup ? h("p", {}, evaluation.completeness.backup.sentence) : null);
}

/** Why personas collapse or not, by explain: a verdict never stands without its causal test and what paraphrases do. */
export function verdictSection() {
  const found = page.verdicts;
  if (!found) return null;
  const name = (one) => (one.by === "all" ? "all pairs" : `${one.by}: ${one.value}`);
  const said = (one) => (one.headline === one.verdict ? `${one.verdict}, ${percent(one.share)}` : `${one.headline} (${one.verdict}, ${percent(one.share)})`);
  const agrees = (agree, ran) => (ran ? `${agree} of ${ran}` : null);
  const between = (one) => `${signed(one.value, 2)}${one.low === null ? "" : ` (${signed(one.low, 2)} to ${signed(one.high, 2)})`}`;
  const groups = found.groups.map((one) => ({ cells: [name(one), said(one), one.n, between(one.divergence), agrees(one.agree, one.agree + one.disagree), one.null_agree] }));
  const tests = found.tests.map((one) => ({ cells: [one.cause, one.test, agrees(one.agree, one.ran), one.random_share, one.null_ran ? agrees(one.null_agree, one.null_ran) : "none given", one.p] }));
  const other = found.same_pairs ? "" : " These are other pairs than the circuit was found on.";
  return section("Why personas collapse or not",
    table("Verdicts of explain", [{ name: "pairs" }, { name: "verdict" }, { name: "n", number: true, show: count }, { name: "D (95 % interval)", number: true }, { name: "causal test agrees", number: true }, { name: "on paraphrases", number: true, show: percent }], groups),
    tests.length ? table("Causal tests of the verdicts", [{ name: "cause" }, { name: "test" }, { name: "agrees on pairs", number: true }, { name: "with random nodes", number: true, show: percent }, { name: "on paraphrases", number: true }, { name: "p", number: true, show: (v) => (v === 0 ? "< 0.000001" : precise(v)) }], tests) : h("p", { class: "caution" }, "No causal test was run: the verdicts go by numbers alone."),
    h("p", { class: "quiet" }, `Of ${found.pairs.join(", ")}; intervals over ${found.resampled}. ${found.null ? `Null: ${count(found.null.n)} paraphrases, sigma_0 ${fixed(found.null.sigma_0, 3)} logits.` : "No paraphrases were given: the tests have no null."}${other}`));
}

export function pairSection() {
  const measured = run.evaluation?.pairs?.pairs ?? [];
  const texts = new Map(run.pairs.map((pair) => [pair.id, pair]));
  const worst = [...measured].sort((a, b) => Math.abs(1 - (b.faithfulness ?? 1)) - Math.abs(1 - (a.faithfulness ?? 1)));
  const columns = [{ name: "pair" }, { name: "f", number: true, show: three }, { name: "D", number: true, show: (v) => signed(v, 2) }, { name: "personas" }, { name: "question" }, { name: "prompt A" }];
  const last = (text) => (text ? text.trim().split("\n").slice(-2).join(" ⏎ ") : null);
  if (measured.length) {
    const rows = worst.map((one) => ({ cells: [one.id, one.faithfulness, one.divergence, `${one.persona_a} / ${one.persona_b}`, one.question, last(texts.get(one.id)?.clean)] }));
    return section("Pairs, worst first", table("The circuit pair by pair", columns, rows), h("p", { class: "quiet" }, "Furthest from f = 1 first."));
  }
  if (!run.about.task) return null;
  if (!run.pairs.length) return section("Pairs", h("p", { class: "quiet" }, "The pair file that the circuit names is not here, or is another now, so its prompts are not shown."));
  const rows = run.pairs.map((one) => ({ cells: [one.id ?? "", one.split ?? "", one.persona_a ?? "", one.persona_b ?? "", one.clean, (one.answers ?? []).join(" / "), (one.wrong_answers ?? []).join(" / ")] }));
  const named = ["pair", "split", "A", "B", "prompt A", "A prefers", "B prefers"].map((name) => ({ name }));
  return section("Pairs", table("Prompts and their answers", named, rows), h("p", { class: "quiet" }, "Pair by pair the circuit was not measured; ", h("code", {}, "persona-circuits evaluate"), " does."));
}

export function methodSection() {
  const { about, files } = run;
  const facts = [
    ["model", about.model?.name], ["weights", about.model?.fingerprint], ["quantised file", about.model?.origin?.file],
    ["pairs", about.task && `${about.task.source}, ${about.task.n_pairs} (${about.task.split})`], ["pairs' SHA-256", about.task?.sha256],
    ["metric", about.task && `${about.task.metric}, D ${signed(about.task.divergence, 3)} ${about.task.unit}`], ["scores", about.method?.scores && `${about.method.scores}${about.method.steps ? `, ${about.method.steps} steps, ${about.method.ig_rule}` : ""}`],
    ["pruned by", about.method && `${about.method.prune}${about.method.tau ? `, |score| ≥ ${precise(about.method.tau)}` : ""}${about.method.top_n ? `, ${about.method.top_n}` : ""}`],
    ["cut edges carry", about.ablation], ["seed", about.seed], ["versions", about.versions && Object.entries(about.versions).map(([name, v]) => `${name} ${v}`).join(", ")],
    ["explanation", page.verdicts && `${page.verdicts.source}, SHA-256 ${page.verdicts.sha256}`], ["this page", page.command],
  ].filter(([, value]) => value !== undefined && value !== null && value !== "");
  if (!facts.length && !files.length) return null;
  return section("Method", h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))))),
    files.length ? table("Files of the run", [{ name: "file" }, { name: "bytes", number: true, show: count }, { name: "SHA-256" }], files.map((one) => ({ cells: [one.name, one.bytes, one.sha256] }))) : null);
}

export function keySection() {
  return h("details", { class: "keys" }, h("summary", {}, "Keys"), h("dl", {}, KEYS.map(([key, does]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, does)))));
}

function section(title, ...children) {
  return h("section", {}, h("h2", {}, title), children);
}
