"""Activation patching as files, figures and rows of a table.

patch.json           summary: D, shares of every site, movers, paths, ablation, with what they were made from
sites.csv            a line per site: shares by direction with intervals
movers.csv           a line per head, the largest first
paths.csv            a line per path, where any was asked for
ablation.csv         a line per random set, after that of the chosen heads, where any were ablated
pairs.csv            a line per pair: D, and whether it is below twice the null's spread
patch.safetensors    what every site and path moved, per pair and direction; metadata ``about`` names the axes
patch.html, *.png    the figures
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit.figures import (
    Chart,
    Curve,
    Points,
    chart,
    heat_map,
    picked,
    plain,
    write_arrays,
    write_csv,
    write_figures,
)
from persona_circuits.circuit.storage import write_json
from persona_circuits.circuit.table import Column, Table, comma
from persona_circuits.persona.data import Estimate
from persona_circuits.persona.patching.activation import DIRECTIONS, PatchStudy
from persona_circuits.persona.patching.heads import HeadAblation
from persona_circuits.persona.patching.paths import Paths
from persona_circuits.persona.patching.sites import ANSWER, EVERYWHERE, Site

__all__ = ["ablation_lines", "patch_figures", "patch_record", "patch_tables", "write_patch"]

FORMAT = "persona-circuits/patch"


def _rounded(value: float, places: int) -> float:
    """Rounded, and never minus zero."""
    return round(value, places) + 0.0


def _share(value: float) -> str:
    return f"{_rounded(value, 2):.2f}"


def _number(estimate: Estimate, places: int = 2) -> str:
    return f"{_rounded(estimate.value, places):+.{places}f}" if estimate.value == estimate.value else ""


def _finely(estimate: Estimate) -> str:
    return _number(estimate, 3)


MOST = 10  # heads, and paths to a receiver, in tables
MOVERS = (
    Column("head", "head"),
    Column("mover", lambda one: "yes" if one.is_mover else ""),
    Column("denoising", "denoising", _number),
    Column("95 %", "denoising", comma()),
    Column("noising", "noising", _number),
    Column("everywhere", "everywhere", _number),
    Column("attention A", "attention_a", ".2f"),
    Column("B", "attention_b", ".2f"),
    Column("p (FDR)", "p_adjusted", ".2g"),
)
PATHS = (
    Column("from", "from"),
    Column("to", "to"),
    Column("denoising", "denoising", _finely),
    Column("95 %", "denoising", comma(3)),
    Column("noising", "noising", _finely),
    Column("95 %", "noising", comma(3)),
)
MOST_PARTS = 8  # columns of a terminal's table
MOST_HEADS = 30  # rows of the map of heads by part


def write_patch(study: PatchStudy, folder: str | Path) -> None:
    """Write all files into ``folder``, which must exist.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    folder = Path(folder)
    write_json(patch_record(study), folder / "patch.json")
    tables = {
        "sites": _site_records(study),
        "movers": [asdict(mover) for mover in study.movers],
        "pairs": _pair_records(study),
    }
    tables |= {"paths": _path_records(study), "ablation": _ablation_records(study.ablation)}
    for name, rows in tables.items():
        if rows:
            write_csv(rows, folder / f"{name}.csv")
    write_arrays(_arrays(study), _axes(study), folder / "patch.safetensors")
    title = f"Activation patching: {Path(study.model).name}, {Path(study.source).name}"
    write_figures(patch_figures(study), folder, page="patch.html", title=title, notes=study.notes)


def patch_record(study: PatchStudy) -> dict[str, Any]:
    """The summary, as plain values for JSON."""
    ablation = None
    if study.ablation is not None:
        ablation = {name: value for name, value in asdict(study.ablation).items() if name != "left_by_pair"}
    return plain(
        {
            "format": FORMAT,
            "version": 1,
            "model": {"name": study.model, "fingerprint": study.fingerprint},
            "source": {"source": study.source, "sha256": study.sha256},
            "options": study.options,
            "n_pairs": len(study.items),
            "divergence": study.mean_divergence,
            "resampled": study.resampled,
            "null": None if study.null is None else {**study.null.as_dict(), "n_below": _count(study.below_null)},
            "everything": study.effects.everything,
            "parts": study.parts,
            "sites": _site_records(study),
            "movers": study.movers,
            "detectable": study.detectable,
            "paths": _path_records(study),
            "ablation": ablation,
            **picked(study, "passes", "runs", "notes"),
        }
    )


def patch_tables(study: PatchStudy) -> list[Table]:
    """Shares of D by stream, the first heads, and the largest paths, as far as each was asked for."""
    tables = []
    if "stream" in study.options.at:
        title, shown = "share of D that comes with the residual stream", _shown_parts(study)
        columns = [Column("into", 0), *(Column(study.parts[i], i + 1, _share) for i in shown)]
        values = enumerate(_by_part(study, "stream", study.parts))
        tables.append(Table(title, columns, [(_into(study, layer), *row) for layer, row in values]))
    if study.movers:
        count = sum(mover.is_mover for mover in study.movers)
        title = f"persona movers: {count} of {len(study.movers)} heads, at the answer"
        tables.append(Table(title, MOVERS, study.movers[:MOST], 2))
    if study.paths is not None and (rows := _largest_paths(study.paths)):
        tables.append(Table("direct paths, the largest to each receiver, and together", PATHS, rows, 2))
    return tables


def _largest_paths(paths: Paths) -> list[dict[str, Any]]:
    """The largest paths to every receiver, and all together."""
    rows: list[dict[str, Any]] = []
    for place, receiver in enumerate(paths.receivers):
        both = [row[place] for row in paths.shares["both"]]
        known = [i for i, estimate in enumerate(both[:-1]) if estimate is not None]
        order = sorted(known, key=lambda i: -abs(np.nan_to_num(both[i].value)))[:MOST]  # type: ignore[union-attr]
        for i in (*order, len(both) - 1):
            shares = {name: paths.shares[name][i][place] for name in DIRECTIONS}
            rows.append({"from": paths.senders[i], "to": receiver, **shares})
    return rows


def ablation_lines(study: PatchStudy) -> list[str]:
    """The ablation in words."""
    ablation = study.ablation
    if ablation is None:
        return []
    heads, pairs = ", ".join(ablation.heads), f"{ablation.n_pairs} pairs ({ablation.split})"
    lines = [f"ablated     {heads} ({ablation.ablation}) on {pairs}, D {ablation.divergence:+.3f}"]
    if ablation.random_left:
        ends = f" ({comma()(ablation.left)})" if ablation.left.low is not None else ""
        spread = f"{min(ablation.random_left):.2f} to {max(ablation.random_left):.2f}"
        random = f"{len(ablation.random_left)} random sets of the same layers {spread}"
        lines.append(f"D left      {ablation.left.value:.2f}{ends}; {random}; p = {ablation.p:.2g}")
    choices = f"{ablation.changed:.0%} of prompts choose otherwise; random sets {np.mean(ablation.random_changed):.0%}"
    answers = f"own persona's answer {ablation.own:.0%}, before {ablation.own_before:.0%}"
    return [*lines, f"choices     {choices}; p = {ablation.p_changed:.2g}; {answers}"]


def patch_figures(study: PatchStudy) -> dict[str, Chart]:
    """The figures that this study has data for, by name."""
    at, figures = study.options.at, {}
    for option, kind, name, what in (
        ("stream", "stream", "patch-stream", "Residual stream"),
        ("attn", "attn", "patch-attention", "Attention outputs"),
        ("mlps", "mlp", "patch-mlps", "MLP outputs"),
    ):
        if option in at:
            figures[name] = _layers_map(study, kind, f"{what}, by layer and part of the prompt")
    if "heads" in at:
        figures["patch-heads"] = _heads_map(study, "both", EVERYWHERE, "Heads at all positions, both directions")
        title = "Heads at the answer alone, denoising: what each brings over"
        figures["patch-movers"] = _heads_map(study, "denoising", ANSWER, title)
    if "head-parts" in at:
        figures["patch-head-parts"] = _head_parts_map(study)
    if study.paths is not None:
        figures["patch-paths"] = _paths_map(study)
    if study.ablation is not None and study.ablation.random_left:
        figures["patch-ablation"] = _ablation_figure(study.ablation)
    return figures


def _shown_parts(study: PatchStudy) -> list[int]:
    """Places of the parts that fit a terminal, in the order of the prompt."""
    values = _by_part(study, "stream", study.parts)
    sizes = [max(abs(np.nan_to_num(row[i] or 0.0)) for row in values) for i in range(len(study.parts))]
    return sorted(sorted(range(len(sizes)), key=lambda i: -sizes[i])[:MOST_PARTS])


def _into(study: PatchStudy, layer: int) -> str:
    return "logits" if layer == study.graph.n_layers else f"block {layer}"


def _by_part(study: PatchStudy, kind: str, parts: Sequence[str]) -> list[list[float | None]]:
    """Shares of both directions, ``[layer][part]``."""
    values = {
        (site.layer, site.part): estimate.value
        for site, estimate in zip(study.effects.sites, study.effects.shares["both"], strict=True)
        if site.kind == kind
    }
    layers = study.graph.n_layers + (kind == "stream")
    return [[values.get((layer, part)) for part in parts] for layer in range(layers)]


def _layers_map(study: PatchStudy, kind: str, title: str) -> Chart:
    parts = study.parts if kind == "stream" else (*study.parts, EVERYWHERE)
    values = _by_part(study, kind, parts)
    names = [_into(study, layer) if kind == "stream" else f"layer {layer}" for layer in range(len(values))]
    return _map(study, values, names, parts, title, x="part of the prompt")


def _heads_map(study: PatchStudy, direction: str, part: str, title: str) -> Chart:
    values: list[list[float | None]] = [[None] * study.graph.n_heads for _ in range(study.graph.n_layers)]
    for site, estimate in zip(study.effects.sites, study.effects.shares[direction], strict=True):
        if site.kind == "head" and site.part == part:
            values[site.layer][site.head] = estimate.value
    columns = [f"h{head}" for head in range(study.graph.n_heads)]
    return _map(study, values, [f"layer {layer}" for layer in range(study.graph.n_layers)], columns, title, x="")


def _head_parts_map(study: PatchStudy) -> Chart:
    """The heads with the largest shares at any part."""
    values: dict[str, dict[str, float]] = {}
    for site, estimate in zip(study.effects.sites, study.effects.shares["both"], strict=True):
        if site.kind == "head" and site.part != EVERYWHERE:
            values.setdefault(site.name, {})[site.part] = estimate.value
    order = sorted(values, key=lambda name: -max(np.nan_to_num(np.abs(list(values[name].values())))))[:MOST_HEADS]
    rows = [name for name in values if name in order]
    cells = [[values[name].get(part) for part in study.parts] for name in rows]
    return _map(study, cells, rows, study.parts, "Heads by part of the prompt, both directions", x="part of the prompt")


def _paths_map(study: PatchStudy) -> Chart:
    """The strongest senders, in the model's order; all together are in the table."""
    assert study.paths is not None
    shares = study.paths.shares["both"][:-1]
    sizes = [max((abs(np.nan_to_num(x.value)) for x in row if x is not None), default=0.0) for row in shares]
    order = sorted(sorted(range(len(shares)), key=lambda i: -sizes[i])[:MOST_HEADS])
    cells = [[None if x is None else x.value for x in shares[i]] for i in order]
    names = [study.paths.senders[i] for i in order]
    return _map(study, cells, names, study.paths.receivers, "Direct paths, both directions", x="to", y="from")


def _map(
    study: PatchStudy,
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    *,
    x: str,
    y: str = "",
) -> Chart:
    full = f"{title} (persona effect {study.mean_divergence.value:+.2f} logits, {len(study.items)} pairs)"
    values = [[None if value is None else _rounded(value, 6) for value in row] for row in values]
    return heat_map(
        values, rows, columns, title=full, x=x, y=y, unit="share of the persona effect (D)", numbers="+.2f", upward=True
    )


def _ablation_figure(ablation: HeadAblation) -> Chart:
    """Random sets by how much of D they leave, the chosen one as a line: what is to its left is as strong."""
    left = sorted(ablation.random_left)
    random = Points("random sets", left, list(range(1, len(left) + 1)), size=6)
    chosen = Curve("chosen heads", [ablation.left.value] * 2, [0, len(left)], markers=False)
    shown = ", ".join(ablation.heads) if len(ablation.heads) <= 3 else f"{len(ablation.heads)} heads"
    title = (
        f"Persona effect (D) left without {shown} ({ablation.ablation}), and without random sets; p = {ablation.p:.2g}"
    )
    x, y = "share of the persona effect that is left", "random sets that leave at most as much"
    return chart([random, chosen], title=title, x=x, y=y)


def _site_records(study: PatchStudy) -> list[dict[str, Any]]:
    return [
        {"site": site.name, **asdict(site), "head": site.head if site.kind == "head" else None}
        | {name: shares[i] for name, shares in study.effects.shares.items()}
        for i, site in enumerate(study.effects.sites)
    ]


def _path_records(study: PatchStudy) -> list[dict[str, Any]]:
    paths = study.paths
    if paths is None:
        return []
    return [
        {"from": sender, "to": receiver} | {name: rows[i][j] for name, rows in paths.shares.items()}
        for j, receiver in enumerate(paths.receivers)
        for i, sender in enumerate(paths.senders)
        if paths.shares["both"][i][j] is not None
    ]


def _ablation_records(ablation: HeadAblation | None) -> list[dict[str, Any]]:
    if ablation is None:
        return []
    chosen = {"set": " ".join(ablation.heads), "left": ablation.left.value, "changed": ablation.changed}
    left = ablation.random_left or [None] * len(ablation.random_changed)
    random = zip(left, ablation.random_changed, strict=True)
    return [chosen, *({"set": f"random {i}", "left": left, "changed": new} for i, (left, new) in enumerate(random))]


def _pair_records(study: PatchStudy) -> list[dict[str, Any]]:
    below = [None] * len(study.items) if study.below_null is None else study.below_null.tolist()
    return [
        picked(item.pair, "id", "line", "question", "persona_a", "persona_b", "split")
        | {"divergence": value, "below_null": is_below}
        for item, value, is_below in zip(study.items, study.divergence.tolist(), below, strict=True)
    ]


def _count(marked: np.ndarray | None) -> int | None:
    return None if marked is None else int(marked.sum())


def _arrays(study: PatchStudy) -> dict[str, np.ndarray]:
    arrays = {"divergence": study.divergence, "sites": study.effects.values}
    if study.paths is not None:
        arrays["paths"] = study.paths.values
    if study.attention is not None:
        arrays["attention"] = study.attention
    if study.ablation is not None:
        arrays["ablated_divergence"] = study.ablation.left_by_pair
    return arrays


def _axes(study: PatchStudy) -> dict[str, Any]:
    about: dict[str, Any] = {
        "divergence": "pair",
        "sites": "direction site pair",
        "paths": "direction sender receiver pair",
        "attention": "side pair layer head",
        "ablated_divergence": "held-out pair",
        "direction": DIRECTIONS,
        "side": ["A", "B"],
        "pair": [item.pair.id for item in study.items],
        "site": [_label(site) for site in study.effects.sites],
    }
    if study.paths is not None:
        about |= {"sender": study.paths.senders, "receiver": study.paths.receivers}
    return about


def _label(site: Site) -> str:
    return f"{site.name} @ {site.part}"
