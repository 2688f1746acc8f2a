"""What became of the combinations: pairs, null pairs, what was dropped and why; and the files that hold it.

``pairs.jsonl`` has the pairs, ``pairs.report.json`` the report, ``pairs.null.jsonl`` the null pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.storage import replace_files, write_json, write_text
from persona_circuits.persona.pairs.matching import REASONS
from persona_circuits.persona.pairs.null import NullPairs, length_differences

__all__ = ["Built", "Tally", "default_null", "default_report", "write_pairs", "write_rows"]

N_EXAMPLES = 5


@dataclass(frozen=True)
class Dropped:
    """A reason, how many combinations of personas, question and template it cost, and a few of them."""

    reason: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Built:
    """The rows of a pair file and what was dropped; ``about`` are the remaining keys of the report.

    ``null`` is None where none was asked for.
    """

    rows: tuple[dict[str, Any], ...]
    dropped: tuple[Dropped, ...]
    about: Mapping[str, Any]
    null: NullPairs | None = None

    def report(self) -> dict[str, Any]:
        """What is written beside the pairs."""
        dropped = [{**asdict(item), "meaning": REASONS[item.reason]} for item in self.dropped]
        splits = [row.get("split", "") for row in self.rows]
        unequal = length_differences(self.rows)
        return {
            "kept": len(self.rows),
            "kept_by_split": {name: splits.count(name) for name in dict.fromkeys(splits) if name},
            "dropped_total": sum(item.count for item in self.dropped),
            "dropped": dropped,
            "unequal": {"pairs": sum(unequal.values()), "by_tokens": unequal},
            **({} if self.null is None else {"null": self.null.about()}),
            **self.about,
        }


def write_pairs(
    built: Built, path: str | Path, report: str | Path | None = None, null: str | Path | None = None, **sources: Any
) -> dict[str, Path]:
    """Write the pairs as JSON Lines, and beside them the report and the null pairs, if they were asked for.

    ``sources`` are put at the report's head. Every file appears whole or not at all. Returns
    where they are, as ``out``, ``report`` and ``null_out``; the last is missing, and a file of
    earlier null pairs there is taken away, where no null pair could be made.

    Raises:
        OptionError: two of the files are one.
        TaskError: ``null`` is given and there are no null pairs.
    """
    files = {
        "out": Path(path),
        "report": Path(report or default_report(path)),
        "null_out": Path(null or default_null(path)),
    }
    if len({file.resolve() for file in files.values()}) < 3:
        raise OptionError(
            f"--out, --report and --null must be different files, got {', '.join(map(str, files.values()))}"
        )
    if null is not None and not (built.null and built.null.rows):
        raise TaskError(f"no null pair can be made for {null}: {_without(built)}; add paraphrases")
    record = {**sources, **built.report()}
    nulls = () if built.null is None else built.null.rows
    unused = None if nulls else files.pop("null_out")
    if nulls:
        record["null"] = {"file": str(files["null_out"]), **record["null"]}
    with replace_files(*files.values()) as staged:
        write_rows(built.rows, staged[0])
        write_json(record, staged[1])
        if nulls:
            write_rows(nulls, staged[2])
    if unused is not None and built.null is not None:
        unused.unlink(missing_ok=True)
    return files


def _without(built: Built) -> str:
    if built.null is None:
        return "none was asked for"
    lacking = built.null.personas.items()
    return ", ".join(f"{len(names)} persona(s) have not {why}" for why, names in lacking) or "all have a fault"


def write_rows(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write rows as JSON Lines, whole or not at all."""
    write_text("".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows), path)


def default_report(path: str | Path) -> Path:
    """Where the report of a pair file lies: ``pairs.report.json`` beside ``pairs.jsonl``."""
    return Path(path).with_suffix(".report.json")


def default_null(path: str | Path) -> Path:
    """Where the null pairs of a pair file lie: ``pairs.null.jsonl`` beside ``pairs.jsonl``."""
    return Path(path).with_suffix(".null.jsonl")


@dataclass
class Tally:
    """What happened while pairs were made; the only mutable state here."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, dict[str, list[str]]] = field(default_factory=lambda: {"leaks": {}, "left_out": {}, "neutral": {}})
    tried: int = 0
    not_tried: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, example: str, count: int = 1) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.tried += count
        shown = self.examples.setdefault(reason, [])
        if len(shown) < N_EXAMPLES:
            shown.append(example)

    def note(self, kind: str, what: str, where: str) -> None:
        self.notes[kind].setdefault(what, []).append(where)

    def skip(self, why: str, count: int) -> None:
        if count:
            self.not_tried[why] = self.not_tried.get(why, 0) + count

    def dropped(self) -> tuple[Dropped, ...]:
        order = sorted(self.counts, key=lambda reason: (-self.counts[reason], reason))
        return tuple(Dropped(reason, self.counts[reason], tuple(self.examples[reason])) for reason in order)

    def lines(self, meanings: Mapping[str, str]) -> list[str]:
        return [
            f"{item.count} × {item.reason}: {meanings[item.reason]} (such as {item.examples[0]})"
            for item in self.dropped()
        ]
