/** Elements, made with their text as text: nothing from the data is ever read as markup. */

const SVG = "http://www.w3.org/2000/svg";

export const h = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
export const s = (tag, attributes = {}, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "value" || key === "checked" || key === "disabled") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A number with its sign, in as many digits as tell it apart. */
export function signed(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const size = fixed(Math.abs(value), digits);
  return Number(size) === 0 ? size : `${value < 0 ? "−" : "+"}${size}`;
}

export function fixed(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const said = value.toFixed(digits);
  return Number(said) === 0 ? said.replace("-", "") : said.replace("-", "−");
}

/** The same, in powers of ten where it would read as zero. */
export function precise(value, digits = 4) {
  const small = value && Math.abs(value) < 10 ** -digits;
  return small ? value.toExponential(1).replaceAll("-", "−") : fixed(value, digits);
}

/** A token with its spaces and line feeds seen. */
export const spelt = (token) => token.replaceAll("\n", "⏎").replaceAll(" ", "␣");

export const count = (value) => value.toLocaleString("en");
export const percent = (value) => `${(100 * value).toFixed(Math.abs(value) < 0.1 ? 1 : 0).replace("-", "−")} %`;

/** A table whose columns sort; numbers stand on the right, and a row may do something when it is chosen. */
export function table(caption, columns, rows, { onRow } = {}) {
  const body = h("tbody");
  const fill = (items) => body.replaceChildren(...items.map((row) => h("tr", {}, row.cells.map((cell, i) => h(
    i ? "td" : "th", { class: typeof cell === "number" || columns[i].number ? "number" : null, scope: i ? null : "row" },
    i === 0 && onRow && row.node !== null ? h("button", { type: "button", class: "link", onclick: () => onRow(row) }, String(cell)) : shownCell(cell, columns[i]),
  )))));
  let by = null;
  let rising = false;
  const head = h("tr", {}, columns.map((column, i) => h("th", { scope: "col" }, h("button", {
    type: "button", class: "sort", onclick: (event) => {
      rising = by === i ? !rising : false;
      by = i;
      const key = (row) => row.cells[i];
      fill([...rows].sort((a, b) => (rising ? 1 : -1) * compared(key(a), key(b))));
      for (const th of head.children) th.removeAttribute("aria-sort");
      event.target.parentElement.setAttribute("aria-sort", rising ? "ascending" : "descending");
    },
  }, column.name))));
  fill(rows);
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", {}, caption), h("thead", {}, head), body));
}

function shownCell(cell, column) {
  if (cell === null || cell === undefined) return "–";
  return typeof cell === "number" && column.show ? column.show(cell) : String(cell);
}

function compared(a, b) {
  if (typeof a === "number" && typeof b === "number") return Math.abs(a) - Math.abs(b) || a - b;
  return a === b ? 0 : (a ?? "") < (b ?? "") ? -1 : 1;
}
