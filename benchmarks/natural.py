"""Real models in every format: the tables of docs/real_models.md, of what ``persona-circuits`` wrote.

    make natural                                            measures both models and writes the page
    python benchmarks/natural.py RUN RUN --collapse COLLAPSE COLLAPSE --page docs/real_models.md

A RUN is a folder of ``formats``. A COLLAPSE is one of ``collapse`` on more pairs, and is called by its format.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import markdown_table, replace_section

from persona_circuits.circuit.errors import PersonaCircuitsError
from persona_circuits.circuit.figures import interval
from persona_circuits.persona.data import said

COLUMNS = (
    "model",
    "format",
    "pairs",
    "mass",
    "D",
    "95 %",
    "sigma_0",
    "friend's D",
    "order effect",
    "collapse",
    "answer names it",
    "it says",
)


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """A row per model and format; the recommended format in bold, and once more on held-out pairs."""
    cells = []
    for record in records:
        name = Path(record["model"]["name"]).name
        rows = [*record["formats"], *filter(None, [record["held_out"]])]
        cells += [(name, *_cells(row, record["recommended"])) for row in rows]
        cells += [(name, form, *[""] * 9, why) for form, why in record["skipped"].items()]
    return markdown_table(COLUMNS, cells, texts=2)


def more_pairs(folders: Sequence[Path]) -> str:
    """A row per folder of ``collapse``: D of all its pairs, beside its null."""
    cells = []
    for folder in folders:
        record = json.loads((folder / "collapse.json").read_text("utf-8"))
        found = record["groups"][0]["summary"]
        d = found["divergence"]
        cells.append(
            (
                Path(record["model"]["name"]).name,
                f"`{folder.name}`",
                str(found["n"]),
                f"{found['mass']:.2f}",
                f"{d['value']:+.2f}",
                interval(d["low"], d["high"]),
                f"{found['p_zero']:.3f}",
                _or_nothing(record["sigma_0"], ".2f"),
                f"{found['collapse']['value']:.2f}",
            )
        )
    columns = ("model", "format", "pairs", "mass", "D", "95 %", "p (D = 0)", "sigma_0", "collapse")
    return markdown_table(columns, cells, texts=2)


def _cells(row: Mapping[str, Any], best: str) -> tuple[str, ...]:
    name = f"{row['format']}, held out" if row["split"] == "test" else row["format"]
    d = row["divergence"]
    return (
        f"**{name}**" if row["format"] == best else name,
        str(row["n"]),
        f"{row['mass']:.2f}",
        f"{d['value']:+.2f}",
        interval(d["low"], d["high"]),
        _or_nothing(row["sigma_0"], ".2f"),
        _or_nothing(row["friend"], "+.2f"),
        _or_nothing(row["order_effect"], ".2f"),
        f"{row['collapse']:.2f}",
        _or_nothing(row["named"], ".2f"),
        f"`{said(row['words'], 2)}`",
    )


def _or_nothing(value: float | None, how: str) -> str:
    return "" if value is None else f"{value:{how}}"


def main(argv: list[str] | None = None) -> int:
    """Print the table; 2 for bad input."""
    parser = argparse.ArgumentParser(description="Real models in every format.")
    parser.add_argument("runs", nargs="*", type=Path, help="folders that persona-circuits formats wrote")
    parser.add_argument(
        "--collapse", nargs="+", default=[], type=Path, help="folders that persona-circuits collapse wrote"
    )
    parser.add_argument("--page", type=Path, help="write the tables into this page, between its marks")
    args = parser.parse_args(argv)
    try:
        records = [json.loads((run / "formats.json").read_text("utf-8")) for run in args.runs]
        texts = {"natural": table(records)} if records else {}
        texts |= {"more-pairs": more_pairs(args.collapse)} if args.collapse else {}
        for section, text in texts.items() if args.page else ():
            replace_section(args.page, section, text)
    except (OSError, ValueError, KeyError, PersonaCircuitsError) as error:
        print(f"natural.py: {error}", file=sys.stderr)
        return 2
    print("\n\n".join(texts.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
