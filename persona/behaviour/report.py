"""The behavioural study as files and as rows of a table: JSON, three CSV tables, and figures.

    collapse.json    everything, with what it was made from
    pairs.csv        a line per pair, controls after the study's own
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

from persona_circuits.circuit.figures import picked, plain, write_csv
from persona_circuits.circuit.storage import write_json
from persona_circuits.circuit.table import Column, Table, comma
from persona_circuits.persona.behaviour.prediction import Prediction
from persona_circuits.persona.behaviour.results import CollapseStudy, PairRow
from persona_circuits.persona.data import drawn_over
from persona_circuits.persona.data.items import shared_by

__all__ = ["collapse_record", "group_table", "prediction_table", "write_collapse"]

FORMAT = "persona-circuits/collapse"
PREDICTED = (
    Column("predictor", "name"),
    Column("log loss", "loss.value", ".3f"),
    Column("95 %", "loss", comma(3)),
    Column("less than majority", "gain.value", "+.3f"),
    Column("95 %", "gain", comma(3)),
    Column("p", "p", ".2g"),
    Column("above lead and effect", "behind.value", "+.3f"),
    Column("95 %", "behind", comma(3)),
)
GROUPS = (
    Column("pairs", lambda group: group.value if group.axis == "all" else f"{group.axis} {group.value}"),
    Column("n", "summary.n"),
    Column("D", "summary.divergence.value", "+.2f"),
    Column("95 %", "summary.divergence", comma()),
    Column("p (D = 0)", "summary.p_zero", ".4f"),
    Column("PDR", "summary.dominance", lambda quartiles: f"{quartiles[1]:.2f}"),
    Column("collapse", "summary.collapse.value", ".2f"),
    Column("95 %", "summary.collapse", comma()),
    Column("agree", "summary.agree", ".2f"),
    Column("mass", "summary.mass", ".2f"),
    Column("paraphrases", "paraphrase", lambda group: f"{group.divergence.value:+.2f}, {group.collapse.value:.2f}"),
)
"""The median PDR; collapse over all candidates, agreement within the two declared tokens; D and collapse of the
paraphrase controls beside the group."""


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
    record = {
        "format": FORMAT,
        "version": 1,
        "model": {"name": study.model, "fingerprint": study.fingerprint},
        "sources": [{"source": source, "sha256": sha256} for source, sha256 in study.sources],
        "options": asdict(study.options),
        **picked(study, "sigma_0", "sigma_0_interval", "sigma_0_median", "n_paraphrases"),
        **picked(study, "rows_per_pair", "order_effect", "words"),
        "placement_late_minus_early": study.placement,
        "prediction": study.prediction,
        "notes": study.notes,
        "resampled": drawn_over(*shared_by([row.measure.item for row in study.pairs])),
        "groups": [study.overall, *study.groups, *study.controls],
        "questions": study.questions,
        "pairs": [_pair(row) for row in (*study.pairs, *study.control_pairs)],
    }
    return plain(record)


def group_table(study: CollapseStudy) -> Table:
    """A row per group of pairs."""
    return Table(f"persona collapse of {study.model}", GROUPS, (study.overall, *study.groups, *study.controls))


def prediction_table(prediction: Prediction) -> Table:
    """A row per predictor of collapse."""
    title = f"collapse of {prediction.n} held-out rows ({prediction.collapsed} collapse) from what other wordings say"
    return Table(title, PREDICTED, prediction.predictors)


def _pair(row: PairRow) -> dict[str, Any]:
    measure = row.measure
    item, pair, neutral = measure.item, measure.item.pair, measure.neutral
    axes = {name: row.axis(name) for name in ("domain", "contrast", "placement", "prior_level", "held_out")}
    return {
        **picked(pair, "id", "line", "question", "persona_a", "persona_b", "split"),
        "control": item.control,
        **axes,
        "bias": row.bias,
        "bias_source": row.bias_source,
        **picked(measure, "divergence", "prior"),
        "neutral_prior": neutral and neutral.margin,
        "neutral_lead": neutral and neutral.lead,
        "neutral_wordings": neutral.n if neutral else 0,
        **picked(measure, "prior_dominance", "required_gain"),
        "outcome": row.outcome,
        **picked(measure, "choice_a", "choice_b", "collapses", "agrees", "jensen_shannon", "jensen_shannon_vocabulary"),
        **picked(measure, "soft_collapse", "mass_a", "mass_b", "low_mass", "order_spread"),
        "orders": measure.n_orders,
        "rows": max(1, len(measure.row_divergences)),
        "row_divergences": measure.row_divergences,
        "candidates": item.candidates,
        **picked(measure, "log_probs_a", "log_probs_b"),
    }
