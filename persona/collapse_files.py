"""The behavioural study as files and as rows of a table: JSON, three CSV tables, and a page of figures.

    collapse.json    everything, with what it was made from
    pairs.csv        a line per pair, controls behind the study's own
    questions.csv    a line per question
    groups.csv       a line per value of an axis, the paraphrase controls beside it
    collapse.html    the figures; needs no network

Numbers are rounded to six places, and what is not defined (PDR where b = D = 0, the
required gain where D = 0) is null or empty. The same study gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from circuit.files import atomic, write_json
from persona.collapse import CollapseStudy, Group, PairRow
from persona.statistics import Estimate

__all__ = ["FORMAT", "TABLE", "collapse_record", "group_rows", "write_collapse"]

FORMAT = "persona-circuits/collapse"
PLACES = 6
TABLE = ("pairs", "n", "D", "95 %", "p (D = 0)", "PDR", "collapse", "95 %", "agree", "mass", "paraphrases")


def write_collapse(study: CollapseStudy, folder: str | Path) -> None:
    """Write all files into ``folder``, which must exist.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    from persona.figures import collapse_page

    folder = Path(folder)
    record = collapse_record(study)
    write_json(record, folder / "collapse.json")
    for name in ("pairs", "questions", "groups"):
        _write_text(_csv([_flat(row) for row in record[name]]), folder / f"{name}.csv")
    _write_text(collapse_page(study), folder / "collapse.html")


def collapse_record(study: CollapseStudy) -> dict[str, Any]:
    """Everything that was found, as plain values for JSON."""
    record = {
        "format": FORMAT,
        "version": 1,
        "model": {"name": study.model, "fingerprint": study.fingerprint},
        "sources": [{"source": source, "sha256": sha256} for source, sha256 in study.sources],
        "options": asdict(study.options),
        "sigma_0": study.sigma_0,
        "n_paraphrases": study.n_paraphrases,
        "placement_late_minus_early": study.placement,
        "notes": study.notes,
        "groups": [study.overall, *study.groups, *study.controls],
        "questions": study.questions,
        "pairs": [_pair(row) for row in (*study.pairs, *study.control_pairs)],
    }
    return _plain(record)


def group_rows(study: CollapseStudy) -> list[tuple[str, ...]]:
    """The table for a terminal, a row per group, columns as in ``TABLE``.

    The median PDR; collapse over all candidates, agreement within the two declared
    tokens. The last column holds D and collapse of the paraphrase controls beside the group.
    """
    return [_table_row(group) for group in (study.overall, *study.groups, *study.controls)]


def _table_row(group: Group) -> tuple[str, ...]:
    own, beside = group.summary, group.paraphrase
    return (
        group.value if group.axis == "all" else f"{group.axis} {group.value}",
        str(own.n),
        f"{own.divergence.value:+.2f}",
        _interval(own.divergence),
        f"{own.p_zero:.4f}",
        "" if own.dominance is None else f"{own.dominance[1]:.2f}",
        f"{own.collapse.value:.2f}",
        _interval(own.collapse),
        f"{own.agree:.2f}",
        f"{own.mass:.2f}",
        "" if beside is None else f"{beside.divergence.value:+.2f}, {beside.collapse.value:.2f}",
    )


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:.2f}, {estimate.high:.2f}"


def _pair(row: PairRow) -> dict[str, Any]:
    measure = row.measure
    item, pair, neutral = measure.item, measure.item.pair, measure.neutral
    axes = {name: row.axis(name) for name in ("domain", "contrast", "placement", "prior_level", "held_out")}
    return {
        "id": pair.id,
        "line": pair.line,
        "question": pair.question,
        "persona_a": pair.persona_a,
        "persona_b": pair.persona_b,
        "split": pair.split,
        "control": item.control,
        **axes,
        "bias": row.bias,
        "bias_source": row.bias_source,
        "divergence": measure.divergence,
        "prior": measure.prior,
        "neutral_prior": neutral and neutral.margin,
        "neutral_lead": neutral and neutral.lead,
        "neutral_wordings": neutral.n if neutral else 0,
        "prior_dominance": measure.prior_dominance,
        "required_gain": measure.required_gain,
        "outcome": row.outcome,
        "choice_a": measure.choice_a,
        "choice_b": measure.choice_b,
        "collapses": measure.collapses,
        "agrees": measure.agrees,
        "jensen_shannon": measure.jensen_shannon,
        "jensen_shannon_vocabulary": measure.jensen_shannon_vocabulary,
        "soft_collapse": measure.soft_collapse,
        "mass_a": measure.mass_a,
        "mass_b": measure.mass_b,
        "low_mass": measure.low_mass,
        "candidates": item.candidates,
        "log_probs_a": measure.log_probs_a,
        "log_probs_b": measure.log_probs_b,
    }


def _plain(value: Any) -> Any:
    """Lists and dictionaries for tuples and dataclasses, rounded floats, None for what is no number."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, PLACES) + 0.0 if math.isfinite(value) else None
    return value


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """One level of columns: ``summary.divergence.low``; lists are joined by `` | ``."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            found[f"{prefix}{key}"] = " | ".join(str(item).strip() for item in value)
        else:
            found[f"{prefix}{key}"] = value
    return found


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_text(text: str, path: Path) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
