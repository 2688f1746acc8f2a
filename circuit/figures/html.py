"""HTML of the pages that hold no scripts: one style, light and dark, on screen and on paper; all texts escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import quote

from persona_circuits.circuit.printable import visible

__all__ = ["HTML", "address", "document", "figure", "link", "shown", "table"]

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #5d646d; --paper: #fff; --line: #d9dce1; --band: #f4f5f7;
  --link: #005a8f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --faint: #a0a7b0; --paper: #16181b; --line: #3a3f46;
  --band: #202327; --link: #7cc4f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 75rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2rem; }
a { color: var(--link); } a:focus-visible, button:focus-visible, summary:focus-visible, input:focus-visible {
  outline: 3px solid var(--link); outline-offset: 2px; }
p.faint, figcaption, td.faint { color: var(--faint); }
pre { padding: .75rem; background: var(--band); border: 1px solid var(--line); border-radius: 4px;
  white-space: pre-wrap; }
.wide { overflow-x: auto; } .figures { display: flex; flex-wrap: wrap; gap: 1.5rem; margin: 1.5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; }
td.number, th.number { text-align: right; white-space: nowrap; }
figure { margin: 0; flex: 1 1 30rem; min-width: 0; max-width: 56rem; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 4px; }
img.thumbnail { width: 8rem; max-width: none; max-height: 8rem; object-fit: contain; object-position: top; }
details { margin: .5rem 0; } summary { cursor: pointer; }
button { font: inherit; padding: .3rem 1rem; }
@media (max-width: 40rem) { body { padding: .75rem; } img.thumbnail { width: 5rem; max-height: 5rem; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } form, .screen { display: none; }
  figure, table { break-inside: avoid; } a { color: inherit; } }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page; ``parts`` are HTML already, the title is text."""
    name = shown(title)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{name}</title><style>{STYLE}</style>"
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body><h1>{name}</h1>\n{body}\n</body></html>\n'


def shown(text: object) -> str:
    """Text as HTML that reads as it does."""
    return escape(visible(text))


def address(path: str) -> str:
    """A path relative to the page, as a link's address: never another scheme or place."""
    return "./" + quote(path)


def link(path: str, text: object, *, of_page: bool = True) -> str:
    """A link; ``path`` is relative to the page, unless it is an address already."""
    return f'<a href="{escape(address(path) if of_page else path)}">{shown(text)}</a>'


def figure(path: str, caption: str, *, target: str = "") -> str:
    """A picture with its caption, a link to ``target`` or to itself; both are relative to the page."""
    where, picture = escape(address(target or path)), escape(address(path))
    image = f'<a href="{where}"><img src="{picture}" alt="{shown(caption)}" loading="lazy"></a>'
    return f"<figure>{image}<figcaption>{shown(caption)}</figcaption></figure>"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, texts: int = 1) -> str:
    """A table whose first ``texts`` columns are text and whose others are numbers; cells of ``HTML`` stay."""
    kinds = ["" if place < texts else ' class="number"' for place in range(len(columns))]
    head = "".join(f"<th{kind}>{shown(name)}</th>" for kind, name in zip(kinds, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds, row, strict=False)) + "</tr>"
        for row in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


class HTML(str):
    """Text that is HTML already."""


def _cell(cell: object) -> str:
    return cell if isinstance(cell, HTML) else shown(cell)
