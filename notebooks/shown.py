"""How the notebooks show what they find: figures as PNG, rows as tables, and where the models lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_circuits.circuit.table import Table

if TYPE_CHECKING:
    from IPython.display import Image, Markdown

    from persona_circuits.circuit.figures import Chart

WORLD = "../models/persona-world"
CRAFTGPT = "../../shared/models/craftgpt-5m"
DATASETS = Path("../datasets")


def has_craftgpt() -> bool:
    """Whether the chat model's folder is there; says so if it is not."""
    there = Path(CRAFTGPT).is_dir()
    if not there:
        print("craftgpt-5m is not at ../shared/models beside the checkout; its cells are passed over")
    return there


def figure(drawn: Chart) -> Image:
    """A chart as a PNG of 1,000 pixels, drawn without a browser."""
    from IPython.display import Image

    from persona_circuits.circuit.figures import png_bytes

    return Image(png_bytes(drawn, dpi=145))


def table(columns: Table | Sequence[str], rows: Sequence[Sequence[str]] = ()) -> Markdown:
    """Rows under columns, or a result's own table, as Markdown."""
    from IPython.display import Markdown

    if isinstance(columns, Table):
        columns, rows = columns.labels, columns.cells()
    lines = [columns, ["---"] * len(columns), *rows]
    return Markdown("\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("*", "\\*").replace("<", "&lt;")


def results(study: str) -> dict[str, dict[str, float]]:
    """The numbers of a study of ``logs/``, by name."""
    from persona_circuits.circuit.storage import Kind, read_json

    return read_json(Path("../logs") / study / "numbers.json", Kind("results"))["numbers"]


def number_rows(numbers: dict[str, dict[str, float]], names: dict[str, str]) -> Markdown:
    """Value, interval, p and number of pairs of results, by what they are to be called."""
    rows = []
    for text, name in names.items():
        one = numbers[name]
        bounds = f"{one['low']:.2f} to {one['high']:.2f}" if "low" in one else ""
        p = f"{one['p']:.3f}" if "p" in one else ""
        rows.append((text, f"{one['value']:.2f}", bounds, p, str(one.get("n", ""))))
    return table(("", "value", "95 %", "p", "n"), rows)
