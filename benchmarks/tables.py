"""The tables of benchmarks/README.md, written between their markers.

    python benchmarks/tables.py runs/bench.json

reads what pytest-benchmark wrote (``make bench`` does both). The other benchmarks write theirs
through ``replace_section``. Text outside the markers is the author's and stays.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import FileError, PersonaCircuitsError
from persona_circuits.circuit.storage import atomic
from persona_circuits.circuit.table import markdown_table

README = Path(__file__).resolve().parent / "README.md"


def main(argv: list[str] | None = None) -> int:
    """Write the section of ``make bench``; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="what pytest --benchmark-json wrote")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--section", default="bench", help="the markers between which the tables are written")
    args = parser.parse_args(argv)
    try:
        text = bench_section(json.loads(args.results.read_text("utf-8")))
        replace_section(args.readme, args.section, text)
    except (OSError, ValueError, KeyError, PersonaCircuitsError) as error:
        print(f"tables.py: {error}", file=sys.stderr)
        return 2
    print(f"{args.readme}: {args.section}")
    return 0


def bench_section(results: Mapping[str, Any]) -> str:
    """A line about the machine, then a table per shape."""
    rows = [_row(item) for item in results["benchmarks"]]
    if not rows:
        raise ValueError("no benchmark was run")
    parts = [machine_line(rows[0]["machine"])]
    for title in dict.fromkeys(row["shape"] for row in rows):
        parts.append(f"**{title}**\n\n{_table([row for row in rows if row['shape'] == title])}")
    return "\n\n".join(parts)


def machine_line(machine: Mapping[str, Any]) -> str:
    """Where and with what it was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)} of {machine['cores']} cores"
    return f"Measured on {machine['name']} ({machine['device']}), {threads}; {versions}."


def replace_section(path: str | Path, name: str, text: str) -> None:
    """Put ``text`` between ``<!-- name:begin -->`` and ``<!-- name:end -->``.

    Raises:
        FileError: the file or its markers are missing.
    """
    path = Path(path)
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    try:
        content = path.read_text("utf-8")
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror})") from error
    before, found, rest = content.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise FileError(f"{path} has no section {begin} … {end}; put both markers where the table belongs")
    with atomic(path) as temporary:
        temporary.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def _row(item: Mapping[str, Any]) -> dict[str, Any]:
    """One benchmark: seconds per ``per`` (an edge, a circuit), with its spread."""
    extra, stats = item["extra_info"], item["stats"]
    seconds = {name: stats[name] / extra["per"] for name in ("median", "min", "max")}
    return {**extra, "seconds": seconds, "rounds": stats["rounds"]}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = ("", "s", "fastest to slowest", "rounds", "ratio", "peak MB", "agreement, cost")
    return markdown_table(columns, [_cells(row) for row in rows])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    seconds, peak = row["seconds"], row.get("peak_bytes")
    spread = "" if row["rounds"] == 1 else f"{seconds['min']:.3g} to {seconds['max']:.3g}"
    return (
        row["what"],
        f"{seconds['median']:.3g}",
        spread,
        str(row["rounds"]),
        ratio_text(row.get("ratios", ()), row.get("beside", "")),
        "" if peak is None else f"{peak / 1e6:,.1f}",
        row.get("agreement", ""),
    )


def ratio_text(ratios: Sequence[float], beside: str) -> str:
    """The median ratio to what ran beside every round, and the smallest and largest; empty without any."""
    if not ratios:
        return ""
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f} × {beside}{spread}"


if __name__ == "__main__":
    sys.exit(main())
