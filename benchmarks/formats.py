"""What a shorter number format does to a discovery: scores, divergence, circuit and faithfulness against float32.

    python benchmarks/formats.py                          the shipped model
    python benchmarks/formats.py --model FOLDER --pairs FILE --threshold 0.01 --page docs/models.md

Every row is a whole ``discover`` run with the same options. ``r`` is Pearson's over all edges, the largest
difference is a share of the largest float32 score, and edges that change are those in one circuit and not
in the other.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tables import markdown_table, replace_section

from persona_circuits.circuit.discovery import Discovery, Options, discover
from persona_circuits.circuit.errors import PersonaCircuitsError
from persona_circuits.circuit.model import load_model
from persona_circuits.circuit.task import MODEL, load_task, resolve
from persona_circuits.circuit.task.shipped_files import PAIRS

FORMATS = (("float32", "float32"), ("bfloat16-weights", "float32"), ("float32", "bfloat16"), ("bfloat16", "float32"))
"""Of the weights, and of the products that scores are made with."""
COLUMNS = ("model", "--dtype", "--activations", "D", "r", "largest difference", "edges", "edges that change", "f")


@dataclass(frozen=True)
class Row:
    """One format against float32; ``faithfulness`` is measured in the run's own format, on the held-out pairs."""

    dtype: str
    activations: str
    divergence: float
    correlation: float
    largest: float
    edges: int
    changed: int
    faithfulness: float | None


def compare(model: str, pairs: str, options: Options) -> list[Row]:
    """A run in every format, the first of which the others are compared with."""
    rows: list[Row] = []
    reference: Discovery | None = None
    for dtype, activations in FORMATS:
        loaded = load_model(resolve(model), dtype=dtype, label=model)
        found = discover(loaded, load_task(resolve(pairs)), Options(**{**vars(options), "activations": activations}))
        reference = reference or found
        rows.append(_row(dtype, activations, found, reference))
    return rows


def _row(dtype: str, activations: str, found: Discovery, reference: Discovery) -> Row:
    assert found.scores is not None
    assert reference.scores is not None
    valid = found.circuit.graph.valid
    short, long = found.scores.values[valid], reference.scores.values[valid]
    return Row(
        dtype,
        activations,
        found.divergence,
        float(np.corrcoef(short, long)[0, 1]),
        float(np.abs(short - long).max() / np.abs(long).max()),
        len(found.circuit),
        int((found.circuit.mask ^ reference.circuit.mask).sum()),
        found.reports[-1].circuit.ratio_of_means,
    )


def table(results: dict[str, list[Row]]) -> str:
    """All models' rows as Markdown."""
    cells = []
    for name, rows in results.items():
        for row in rows:
            f = "undefined" if row.faithfulness is None else f"{row.faithfulness:.3f}"
            agreement = (f"{row.correlation:.6f}", f"{row.largest:.2g}")
            counts = (f"{row.edges:,}", f"{row.changed:,}")
            cells.append((name, row.dtype, row.activations, f"{row.divergence:+.4f}", *agreement, *counts, f))
    return markdown_table(COLUMNS, cells, texts=3)


def main(argv: list[str] | None = None) -> int:
    """Print the table; 2 for bad input."""
    parser = argparse.ArgumentParser(description="What a shorter number format does to a discovery.")
    parser.add_argument("--model", action="append", help="folder or hub name; may be repeated")
    parser.add_argument("--pairs", action="append", help="pair file, one for each model")
    parser.add_argument("--threshold", type=float, default=0.003, help="share of |D|")
    parser.add_argument("--method", default="eap-ig")
    parser.add_argument("--page", type=Path, help="write the table into this page, between its marks")
    args = parser.parse_args(argv)
    models = args.model or [MODEL]
    pairs = args.pairs or [PAIRS]
    if len(models) != len(pairs):
        parser.error("give a --pairs for every --model")
    options = Options(method=args.method, threshold=args.threshold, n_random=0)
    try:
        results = {Path(model).name: compare(model, file, options) for model, file in zip(models, pairs, strict=True)}
    except PersonaCircuitsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = table(results)
    print(text)
    if args.page:
        replace_section(args.page, "bench-formats", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
