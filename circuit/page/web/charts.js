/** Small charts: lines with intervals over a logarithmic size, and heat maps. */

import { fixed, h, s } from "./elements.js";

const [W, H, M] = [560, 250, { left: 46, right: 14, top: 12, bottom: 36 }];
const DASHES = ["", "6 3", "2 3"];

/**
 * Lines of f by size. A series is { name, points: [{ x, y, low, high }] }; a mark is { x, y, low, high, name };
 * a band { low, high, name } lies across.
 */
export function sizeChart(label, series, marks, band, onPick) {
  const points = [...series.flatMap((one) => one.points), ...marks];
  const [first, last] = [Math.min(...points.map((p) => p.x)), Math.max(...points.map((p) => p.x))];
  const ends = points.flatMap((p) => [p.low ?? p.y, p.high ?? p.y]);
  const [low, high] = [Math.min(0, ...ends, band?.low ?? 0), Math.max(1.05, ...ends)];
  const x = (value) => M.left + (W - M.left - M.right) * (Math.log(value / first) / Math.log(Math.max(last / first, 1.0001)));
  const y = (value) => H - M.bottom - (H - M.top - M.bottom) * ((value - low) / (high - low));
  const svg = s("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label });
  for (const at of ticks(low, high)) {
    svg.append(s("line", { class: at === 1 ? "whole" : "rule", x1: M.left, x2: W - M.right, y1: y(at), y2: y(at) }),
      s("text", { class: "tick end", x: M.left - 6, y: y(at) + 3.5 }, String(at)));
  }
  for (let power = 1; power <= last; power *= 10) {
    if (power >= first) svg.append(s("text", { class: "tick middle", x: x(power), y: H - M.bottom + 16 }, power.toLocaleString("en")));
  }
  svg.append(s("text", { class: "tick middle", x: (W + M.left) / 2, y: H - 4 }, "edges"));
  if (band) {
    svg.append(s("rect", { class: "null", x: M.left, width: W - M.left - M.right, y: y(band.high), height: Math.max(2, y(band.low) - y(band.high)) },
      s("title", {}, band.name)));
  }
  series.forEach((one, i) => {
    const known = one.points.filter((p) => p.low !== null && p.low !== undefined);
    const around = [...known.map((p) => [p.x, p.high]), ...known.reverse().map((p) => [p.x, p.low])];
    if (around.length) svg.append(s("polygon", { class: `spread s${i}`, points: around.map(([a, b]) => `${x(a)},${y(b)}`).join(" ") }));
    svg.append(s("polyline", { class: `curve s${i}`, "stroke-dasharray": DASHES[i % 3], points: one.points.map((p) => `${x(p.x)},${y(p.y)}`).join(" ") }));
    for (const p of one.points) {
      svg.append(s("circle", { class: `dot s${i}`, cx: x(p.x), cy: y(p.y), r: 3, onclick: onPick ? () => onPick(p) : null },
        s("title", {}, said(p, one.name))));
    }
  });
  for (const p of marks) {
    svg.append(s("circle", { class: "mark", cx: x(p.x), cy: y(p.y), r: 7 }, s("title", {}, said(p, p.name))));
  }
  const names = series.map((one, i) => h("li", {}, s("svg", { class: "chart key", viewBox: "0 0 30 8", "aria-hidden": "true" },
    s("line", { class: `curve s${i}`, x1: 0, x2: 30, y1: 4, y2: 4, "stroke-dasharray": DASHES[i % 3] })), one.name));
  return h("figure", {}, svg, h("ul", { class: "legend" }, names,
    marks.length ? h("li", {}, "○ ", marks[0].name) : null, band ? h("li", {}, h("span", { class: "nullkey" }), band.name) : null));
}

function said(p, name) {
  const between = p.low === null || p.low === undefined ? "" : `, ${fixed(p.low, 2)} to ${fixed(p.high, 2)}`;
  return `${name}: ${p.x.toLocaleString("en")} edges, f ${fixed(p.y, 3)}${between}`;
}

function ticks(low, high) {
  const step = high - low > 3 ? 1 : high - low > 1.6 ? 0.5 : 0.25;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + 1e-9; at += step) found.push(Math.round(at * 100) / 100);
  return found;
}

/** Cells from light to dark, or to either side of zero; each says its number, and rows and columns have names. */
export function heat(label, rows, columns, values, { diverging = false, size = 13, most, named = true } = {}) {
  const left = named ? Math.min(150, 8 + 6.2 * Math.max(...rows.map((row) => row.length))) : 4;
  const foot = 8 + 5.6 * Math.min(14, Math.max(...columns.map((column) => column.length)));
  const [width, height] = [left + size * columns.length + 4, size * rows.length + foot];
  const top = most ?? Math.max(...values.flat().map((v) => Math.abs(v ?? 0)), 1e-12);
  const svg = s("svg", { class: "chart heat", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
  values.forEach((row, i) => {
    if (named) svg.append(s("text", { class: "tick end", x: left - 4, y: size * (i + 0.5) + 3.2 }, cut(rows[i], 22)));
    row.forEach((value, j) => {
      const share = Math.min(1, Math.abs(value ?? 0) / top);
      svg.append(s("rect", {
        class: diverging && value < 0 ? "cell minus" : "cell", x: left + size * j, y: size * i,
        width: size - 0.5, height: size - 0.5, "fill-opacity": (0.04 + 0.96 * share).toFixed(3),
      }, s("title", {}, `${rows[i]}, ${columns[j]}: ${fixed(value, 3)}`)));
    });
  });
  columns.forEach((column, j) => svg.append(s("text", {
    class: "tick end", transform: `translate(${left + size * (j + 0.5) + 3} ${size * rows.length + 5}) rotate(-90)`,
  }, cut(column, 14))));
  return h("figure", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, h("figcaption", {}, label), svg);
}

const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
