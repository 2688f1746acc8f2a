"""The behavioural study as files and as rows of a table: JSON, three CSV tables, and figures.

    collapse.json    everything, with what it was made from
    pairs.csv        a line per pair, controls behind the study's own
    questions.csv    a line per question
    groups.csv       a line per value of an axis, the paraphrase controls beside it
    collapse.html    the figures; needs no network
    *.png            each figure

Numbers are rounded to six places, and what is not defined (PDR where b = D = 0, the
required gain where D = 0) is null or empty. The same study gives the same bytes.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from persona_circuits.circuit.figures import interval, plain, write_csv
from persona_circuits.circuit.storage import write_json
from persona_circuits.persona.behaviour.results import CollapseStudy, Group, PairRow
from persona_circuits.persona.data import Estimate, drawn_over

__all__ = [
    "PREDICTED",
    "TABLE",
    "collapse_record",
    "group_rows",
    "prediction_rows",
    "write_collapse",
]

FORMAT = "persona-circuits/collapse"
PREDICTED = ("predictor", "log loss", "95 %", "less than majority", "95 %", "p", "behind lead and effect", "95 %")
TABLE = ("pairs", "n", "D", "95 %", "p (D = 0)", "PDR", "collapse", "95 %", "agree", "mass", "paraphrases")


def write_collapse(study: CollapseStudy, folder: str | Path) -> None:
    """Write all files into ``folder``, which must exist.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    from persona_circuits.persona.behaviour.figures import write_collapse_figures

    folder = Path(folder)
    record = collapse_record(study)
    write_json(record, folder / "collapse.json")
    for name in ("pairs", "questions", "groups"):
        write_csv(record[name], folder / f"{name}.csv")
    write_collapse_figures(study, folder)


def collapse_record(study: CollapseStudy) -> dict[str, Any]:
    """Everything that was found, as plain values for JSON."""
    items = [row.measure.item for row in study.pairs]
    record = {
        "format": FORMAT,
        "version": 1,
        "model": {"name": study.model, "fingerprint": study.fingerprint},
        "sources": [{"source": source, "sha256": sha256} for source, sha256 in study.sources],
        "options": asdict(study.options),
        "sigma_0": study.sigma_0,
        "sigma_0_interval": study.sigma_0_interval,
        "sigma_0_median": study.sigma_0_median,
        "n_paraphrases": study.n_paraphrases,
        "rows_per_pair": study.rows_per_pair,
        "order_effect": study.order_effect,
        "words": study.words,
        "placement_late_minus_early": study.placement,
        "prediction": study.prediction,
        "notes": study.notes,
        "resampled": drawn_over([i.personas for i in items], [i.question for i in items]),
        "groups": [study.overall, *study.groups, *study.controls],
        "questions": study.questions,
        "pairs": [_pair(row) for row in (*study.pairs, *study.control_pairs)],
    }
    return plain(record)


def group_rows(study: CollapseStudy) -> list[tuple[str, ...]]:
    """The table for a terminal, a row per group, columns as in ``TABLE``.

    The median PDR; collapse over all candidates, agreement within the two declared
    tokens. The last column holds D and collapse of the paraphrase controls beside the group.
    """
    return [_table_row(group) for group in (study.overall, *study.groups, *study.controls)]


def prediction_rows(study: CollapseStudy) -> list[tuple[str, ...]]:
    """A row per predictor of collapse, columns as in ``PREDICTED``."""
    rows: list[tuple[str, ...]] = []
    for one in study.prediction.predictors if study.prediction is not None else ():
        behind = ("", "") if one.behind is None else _three(one.behind, "+")
        rows.append((one.name, *_three(one.loss), *_three(one.gain, "+"), f"{one.p:.2g}", *behind))
    return rows


def _three(estimate: Estimate, sign: str = "") -> tuple[str, str]:
    return format(estimate.value, f"{sign}.3f"), interval(estimate.low, estimate.high, 3)


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
    return interval(estimate.low, estimate.high)


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
        "order_spread": measure.order_spread,
        "orders": measure.n_orders,
        "rows": max(1, len(measure.row_divergences)),
        "row_divergences": measure.row_divergences,
        "candidates": item.candidates,
        "log_probs_a": measure.log_probs_a,
        "log_probs_b": measure.log_probs_b,
    }
