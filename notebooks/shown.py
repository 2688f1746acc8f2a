"""How the notebooks show what they find: figures as PNG, rows as tables, and where the models lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Markdown:
    """Rows as a Markdown table."""
    from IPython.display import Markdown

    lines = [columns, ["---"] * len(columns), *rows]
    return Markdown("\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("*", "\\*").replace("<", "&lt;")
