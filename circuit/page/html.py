"""The page itself: styles, program and data in one HTML file.

The program is a handful of ECMAScript modules under ``web``. In the page they are one inline module: imports of each
other are left out, and what they export has names of its own. Data stand in a script element of JSON, with ``<`` as an
escape, so that no text of a persona is ever markup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from persona_circuits.circuit.io import page_schema, schema_faults
from persona_circuits.circuit.printable import visible
from persona_circuits.circuit.storage import Kind, json_of, read_text

__all__ = ["MODULES", "is_page", "page_faults", "page_html", "read_page", "web_file"]

MODULES = (
    "data.js",
    "paths.js",
    "state.js",
    "elements.js",
    "opened.js",
    "graph.js",
    "charts.js",
    "inside.js",
    "panel.js",
    "exports.js",
    "controls.js",
    "sections.js",
    "main.js",
)
"""The program, a module after those that it imports."""
DATA = '<script type="application/json" id="page-data">'
PAGE = Kind("page of a circuit", expected="a page that report wrote")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
_IMPORT = re.compile(r"^import [^;]*;\n", re.M)
_EXPORT = re.compile(r"^export ", re.M)


def page_html(data: Mapping[str, Any]) -> str:
    """The whole page as text; it loads nothing."""
    title = escape(visible(str(data["title"])))
    content = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    content = content.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<style>{web_file("style.css")}</style></head><body><main id="page"><noscript>'
        "This page draws itself with JavaScript, from data inside it; nothing is loaded.</noscript></main>"
        f'{DATA}{content}</script><script type="module">{program()}</script></body></html>\n'
    )


def read_page(path: str | Path) -> Any:
    """The data of a page.

    Raises:
        FileError: the file cannot be read, or is no page of a circuit.
    """
    text = read_text(path, PAGE)
    if DATA not in text:
        raise PAGE.faulty(path, "holds no data of a circuit")
    data = text.partition(DATA)[2].partition("</script>")[0]
    return json_of(data, path, PAGE)


def is_page(text: str) -> bool:
    """Whether a file's text is a page of a circuit."""
    return DATA in text


def page_faults(data: Any) -> list[str]:
    """The violations of the page's schema by its data."""
    return schema_faults(data, page_schema())


@cache
def program() -> str:
    """All modules as one."""
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", web_file(name))) for name in MODULES)


def web_file(name: str) -> str:
    """The text of a file of the program."""
    return resources.files("persona_circuits.circuit.page").joinpath(f"web/{name}").read_text("utf-8")
