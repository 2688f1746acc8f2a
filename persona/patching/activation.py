"""Activation patching between two personas: what one part of the model carries, put into the other's run.

For a pair with D = m(x_A) - m(x_B), and a site (a stream, an attention or MLP output, a head; at
some positions):

    denoising    [m(x_B, site from x_A) - m(x_B)] / D    what the site alone brings over from A to B
    noising      [m(x_A) - m(x_A, site from x_B)] / D    what is lost in A when the site is B's
    both         their mean

(Vig et al. 2020, arXiv:2004.12265; Meng et al. 2022, arXiv:2202.05262; the words are those of
Heimersheim and Nanda 2024, arXiv:2404.15255.) With the personas exchanged, denoising is
noising and noising is denoising, so the two numbers are both directions of the swap. A
site whose effect others can make up for has little noising; one that needs others, little denoising.
Shares are ratios of means over pairs, with intervals over personas and questions.

Persona movers: the heads ranked by denoising at the answer's position alone, the place where a
head can write the preference. Each has a p that its share is no larger than a negligible one
in size (cluster-robust t test), corrected over all heads (Benjamini and Hochberg 1995).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy  # whose parts are loaded when they are used: scipy.stats takes a second
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from persona_circuits.circuit.evaluation import NullRun, null_run
from persona_circuits.circuit.forward import (
    Prepared,
    patched_nodes,
    patched_stream,
    per_pass,
    portions,
    prepare_each,
    seconds_a_pass,
)
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress, Stage, about, untold_stage
from persona_circuits.circuit.statistics import Clusters, detectable_ratio, is_zero, ratio_p_values
from persona_circuits.circuit.storage import Kept, search_of
from persona_circuits.circuit.task import Row, Task, batches, encode, with_swap_rows
from persona_circuits.persona.data import Estimate, ExampleFile, leak, ratio_of_means
from persona_circuits.persona.data.items import Item
from persona_circuits.persona.patching.heads import HeadAblation, ablate_heads, finite_margins, parse_heads
from persona_circuits.persona.patching.options import PatchOptions
from persona_circuits.persona.patching.paths import Paths, parse_paths, patch_paths
from persona_circuits.persona.patching.sites import ANSWER, EVERYWHERE, Site, parts_of, sites_of

__all__ = ["DIRECTIONS", "PatchStudy", "study_patching"]

DIRECTIONS = ("noising", "denoising")
"""The order of the two rows of a swapped pair: B's site in A's run, and A's in B's."""


@dataclass(frozen=True, eq=False)
class Effects:
    """What patching moved, in logits: ``values`` ``[direction, site, pair]``, to be divided by ``divergence``.

    ``shares`` has the estimates of ``noising``, ``denoising`` and ``both``, one per site. ``everything``
    is the share that comes with all sites at once: 1, unless prompts of unequal length are aligned.
    """

    sites: tuple[Site, ...]
    values: Float[np.ndarray, "direction site pair"]
    shares: Mapping[str, tuple[Estimate, ...]]
    everything: float

    def share(self, direction: str, site: Site) -> Estimate:
        """The estimate of one site."""
        return self.shares[direction][self.sites.index(site)]


@dataclass(frozen=True)
class Mover:
    """A head at the answer's position. ``everywhere`` is its share (both directions) at all positions.

    ``is_mover``: ``p_adjusted`` is at most alpha and the share is above zero. ``attention_a`` and ``_b`` are
    the mass of its attention from the answer to the persona in either run, mean over pairs; None where the
    prompts show no persona.
    """

    head: str
    layer: int
    index: int
    denoising: Estimate
    noising: Estimate
    everywhere: Estimate
    p: float
    p_adjusted: float
    is_mover: bool
    attention_a: float | None
    attention_b: float | None


@dataclass(frozen=True, eq=False)
class PatchStudy:
    """Everything that was measured; ``divergence`` is D of every pair in logits.

    ``detectable`` is the share that the strongest head would need to be a mover, were it the only one: its p has to be
    ``alpha`` over the number of heads. With the median head's spread; None where heads were not patched.
    ``passes`` counts forward passes, ``runs`` the prompts in them. ``attention`` is the mass on the persona from the
    answer, ``[side, pair, layer, head]``.
    """

    model: str
    fingerprint: str
    source: str
    sha256: str
    options: PatchOptions
    graph: Graph
    items: tuple[Item, ...]
    parts: tuple[str, ...]
    divergence: Float[np.ndarray, " pair"]
    mean_divergence: Estimate
    effects: Effects
    movers: tuple[Mover, ...]
    detectable: float | None
    attention: NDArray[np.float64] | None
    paths: Paths | None
    ablation: HeadAblation | None
    null: NullRun | None
    passes: int
    runs: int
    resampled: str
    notes: tuple[str, ...] = field(default=())

    @property
    def below_null(self) -> NDArray[np.bool_] | None:
        """The pairs whose |D| is below twice the null's sigma_0; None without one."""
        sigma = None if self.null is None else self.null.sigma_0
        return None if sigma is None else np.abs(self.divergence) < 2 * sigma


def study_patching(
    model: Model,
    found: ExampleFile,
    held_out: ExampleFile,
    *,
    options: PatchOptions | None = None,
    null: Task | None = None,
    state: Path | None = None,
    stage: Stage | None = None,
) -> PatchStudy:
    """Patch every site and path on the pairs of ``found``; ablate heads on those of ``held_out``.

    Parameters
    ----------
    found, held_out
        Of ``load_examples``, which has checked them against this model's tokenizer.
    null
        Pairs of two paraphrases of one persona: how large D is where there is nothing.
    state
        File in which the study keeps what it has measured, at most twice a minute and when it is stopped. Where it
        is there and of the same study, the study goes on from it; it is removed at the end.

    Returns
    -------
    The effect of every site and path, in shares of D, the heads that move it, and ablations beside random heads.

    Raises
    ------
    OptionError
        An option makes no sense for this model or these pairs.
    TaskError
        Prompts of a pair differ in length, and are not aligned.
    """
    options, stage = (options or PatchOptions()).checked(), stage or untold_stage
    plan = parse_paths(model.graph, options.senders, options.receivers)
    named = parse_heads(model.graph, options.ablate, options.ablate_top)
    rows, separate = _rows(found, model, options.align), held_out is not found
    others = _rows(held_out, model, options.align) if separate else rows
    sweep = _Sweep(model, found, rows, options)
    without = partial(ablate_heads, model, held_out, others, rows, options=options)
    search = search_of(model.fingerprint, model.format, options, rows, others, found.sha256, held_out.sha256)
    with Kept(state, search) as kept:
        ablated = without(named, kept=kept, progress=stage("ablating heads")) if named else None
        sweep.run(stage(f"patching {len(sweep.sites)} sites{sweep.about()}"), kept)
        clusters = Clusters.of([item.pair for item in found.items])
        divergence = sweep.by_pair(sweep.whole)[0]
        effects = _effects(sweep, divergence, clusters, options.seed)
        movers = _movers(effects, divergence, clusters, sweep.attention(), options)
        if options.ablate_top is not None:
            heads = tuple(model.graph.src_index(mover.head) for mover in movers[: options.ablate_top])
            ablated = without(heads, kept=kept, progress=stage("ablating heads"))
        walk = partial(patch_paths, model, sweep.groups, divergence=divergence, clusters=clusters, seed=options.seed)
        walked = walk(plan, kept=kept, progress=stage("patching paths")) if plan is not None else None
        quiet = None if null is None else null_run(model, null, align=options.align, batch_size=options.batch_size)
    more = [part for part in (walked, ablated) if part is not None]
    detectable, leaks = _detectable(effects, divergence, clusters, options), leak(found, held_out) if separate else None
    return PatchStudy(
        **_about(model, found, options),
        parts=sweep.parts.names,
        divergence=divergence,
        mean_divergence=ratio_of_means(divergence[None], np.ones_like(divergence), clusters, seed=options.seed)[0],
        effects=effects,
        movers=movers,
        detectable=detectable,
        attention=sweep.attention(),
        paths=walked,
        ablation=ablated,
        null=quiet,
        passes=sweep.passes + sum(part.passes for part in more),
        runs=sweep.runs + sum(part.runs for part in more),
        resampled=clusters.describe(),
        notes=(*_notes(divergence, effects, ablated, leaks, options), *_power(movers, detectable)),
    )


def _about(model: Model, file: ExampleFile, options: PatchOptions) -> dict[str, Any]:
    record = {"model": model.name, "fingerprint": model.fingerprint, "graph": model.graph, "options": options}
    return {**record, "source": file.source, "sha256": file.sha256, "items": file.items}


class _Sweep:
    """The arrays of a study while they are filled, a value per row."""

    def __init__(self, model: Model, file: ExampleFile, rows: Sequence[Row], options: PatchOptions) -> None:
        self.model, self.rows = model, rows
        self.groups = batches(rows, options.batch_size, model.device)
        self.parts = parts_of(file, rows, options.parts, model.tokenizer)
        self.sites = sites_of(model.graph, options.at, self.parts.names)
        self.steps = list(_steps(self.sites))
        self.whole, self.all = np.zeros(len(rows)), np.zeros(len(rows))
        self.moved = np.zeros((len(rows), len(self.sites)))
        self.wants_attention = "heads" in options.at and self.parts.contrast is not None
        self.mass = np.full((len(rows), model.graph.n_layers, model.graph.n_heads), np.nan)
        self.passes = self.runs = 0

    def run(self, progress: Progress, kept: Kept) -> None:
        total, done = len(self.groups) * max(1, len(self.steps)), 0
        for group in self.groups:
            for item in prepare_each(self.model, [group]):
                self._plain(item)
                for place, chosen in enumerate(self.steps):
                    result = kept.of(f"sites {place} {item.batch.place}", partial(self._patch, item, chosen))
                    self.moved[np.ix_(item.batch.indices, chosen)] = result["moved"]
                    self.passes, self.runs = self.passes + int(result["cost"][0]), self.runs + int(result["cost"][1])
                    done += 1
                    progress(min(done, total), total)

    def about(self) -> str:
        """How long it may take, estimated from two plain passes of the first batch; empty if under a second."""
        length, depth = self.groups[0].clean.shape[1], max(1, self.model.graph.n_layers)
        passes = sum((1 - site.layer / depth) / (length if site.part == ANSWER else 1) for site in self.sites)
        return about(seconds_a_pass(self.model, self.groups) * len(self.rows) * passes)

    def by_pair(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """``[row, …]`` as ``[direction, pair, …]``."""
        return np.stack([values[0::2], values[1::2]])

    def attention(self) -> NDArray[np.float64] | None:
        """``[side, pair, layer, head]``."""
        return self.by_pair(self.mass) if self.wants_attention else None

    def _plain(self, item: Prepared) -> None:
        at, base = list(item.batch.indices), finite_margins(item.clean.logits, item.batch)
        self.whole[at] = base - finite_margins(item.corrupt.logits, item.batch)
        self.all[at] = base - finite_margins(item.ablated.logits, item.batch)
        self.passes, self.runs = self.passes + 2, self.runs + 2 * len(at)
        if self.wants_attention:
            inside = self.parts.masks(item.batch)[self.parts.contrast or ""]
            self.mass[at] = _attention_mass(self.model, item, inside)

    def _patch(self, item: Prepared, chosen: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Sites of one layer, and all streams or no streams, in as few passes as the memory allows.

        Gives ``moved``, ``[row, site]``, and ``cost``: passes, and prompts in them.
        """
        masks, base = self.parts.masks(item.batch), finite_margins(item.clean.logits, item.batch)
        sites, moved, passes = [self.sites[i] for i in chosen], [], 0
        streams, at_end = self.model.graph.n_heads + 8, sites[0].part == ANSWER
        for span in portions(len(sites), per_pass(self.model, item, streams, at_end=at_end)):
            where = torch.stack([masks[site.part] for site in sites[span]])
            logits = self._logits(item, sites[span], where)
            moved += [base - finite_margins(part, item.batch) for part in logits]
            passes += 1
        return {"moved": np.stack(moved, axis=1), "cost": np.array([passes, len(sites) * len(item.batch)])}

    def _logits(self, item: Prepared, sites: Sequence[Site], where: Bool[Tensor, "patch batch pos"]) -> Tensor:
        if sites[0].kind == "stream":
            return patched_stream(self.model, item, sites[0].layer, where)
        nodes = torch.zeros(len(sites), self.model.graph.n_src, dtype=torch.bool, device=where.device)
        for i, site in enumerate(sites):
            nodes[i, site.sources(self.model.graph)] = True
        return patched_nodes(self.model, item, nodes, where)


def _steps(sites: Sequence[Site]) -> Iterator[list[int]]:
    """The places of sites that begin at one layer and can share passes: of the answer alone one position is run."""
    by_start: dict[tuple[bool, bool, int], list[int]] = {}
    for i, site in enumerate(sites):
        by_start.setdefault((site.kind == "stream", site.part == ANSWER, site.layer), []).append(i)
    yield from by_start.values()


def _rows(file: ExampleFile, model: Model, align: str) -> tuple[Row, ...]:
    task = Task(tuple(item.pair for item in file.items), file.source, file.sha256)
    return with_swap_rows(encode(task, model, align=align))


def _attention_mass(
    model: Model, item: Prepared, inside: Bool[Tensor, "batch pos"]
) -> Float[np.ndarray, "batch layer head"]:
    """Attention from the last position to the marked ones: what arrives there of values that are 1 at those, else 0."""
    masses = []
    with torch.no_grad():
        for block in model.blocks:
            q, k, v = item.clean.qkv[block.layer]
            z = block.attention(q, k, inside[..., None, None].to(v.dtype).expand_as(v).contiguous(), item.clean.context)
            masses.append(z[:, -1].double().mean(-1))
    return torch.stack(masses, dim=1).cpu().numpy()


def _effects(sweep: _Sweep, divergence: Float[np.ndarray, " pair"], clusters: Clusters, seed: int) -> Effects:
    values = sweep.by_pair(sweep.moved).transpose(0, 2, 1)
    numerators = {"noising": values[0], "denoising": values[1], "both": values.mean(0)}
    shares = {name: ratio_of_means(x, divergence, clusters, seed=seed) for name, x in numerators.items()}
    whole = ratio_of_means(sweep.by_pair(sweep.all).mean(0)[None], divergence, clusters, seed=seed)[0]
    return Effects(sweep.sites, values, shares, whole.value)


def _movers(
    effects: Effects,
    divergence: Float[np.ndarray, " pair"],
    clusters: Clusters,
    attention: NDArray[np.float64] | None,
    options: PatchOptions,
) -> tuple[Mover, ...]:
    """All heads, the largest share first; none where heads were not patched."""
    if "heads" not in options.at:
        return ()
    at = _heads_at_the_answer(effects)
    p = ratio_p_values(effects.values[1, at], divergence, clusters, negligible=options.negligible)
    adjusted = scipy.stats.false_discovery_control(p)
    mass = None if attention is None else np.nanmean(attention, axis=1)
    movers = []
    for i, raw, corrected in zip(at, p, adjusted, strict=True):
        site = effects.sites[i]
        share = effects.shares["denoising"][i]
        shown = (None, None) if mass is None else [float(side[site.layer, site.head]) for side in mass]
        movers.append(
            Mover(
                head=site.name,
                layer=site.layer,
                index=site.head,
                denoising=share,
                noising=effects.shares["noising"][i],
                everywhere=effects.share("both", Site("head", site.layer, EVERYWHERE, site.head)),
                p=float(raw),
                p_adjusted=float(corrected),
                is_mover=bool(corrected <= options.alpha and share.value > 0),
                attention_a=shown[0],
                attention_b=shown[1],
            )
        )
    order = sorted(movers, key=lambda mover: (-np.nan_to_num(mover.denoising.value), mover.layer, mover.index))
    return tuple(order)


def _heads_at_the_answer(effects: Effects) -> list[int]:
    return [i for i, site in enumerate(effects.sites) if site.kind == "head" and site.part == ANSWER]


def _detectable(
    effects: Effects, divergence: Float[np.ndarray, " pair"], clusters: Clusters, options: PatchOptions
) -> float | None:
    """The share with which a single head passes Benjamini and Hochberg's correction."""
    at = _heads_at_the_answer(effects)
    if not at:
        return None
    settings = {"level": options.alpha / len(at), "negligible": options.negligible}
    return detectable_ratio(effects.values[1, at], divergence, clusters, **settings)


def _power(movers: Sequence[Mover], detectable: float | None) -> list[str]:
    """Where nothing survives the correction, the share that would have."""
    if detectable is None or any(mover.is_mover for mover in movers):
        return []
    needed = f"a share of D of about {detectable:.2f}" if np.isfinite(detectable) else "more pairs than these"
    return [
        f"no head survives the correction over {len(movers)} heads; one would have needed {needed} (with the median "
        f"head's spread), and the largest has {movers[0].denoising.value:.2f}: heads below that may be movers all the "
        "same; more pairs, personas and questions find smaller ones"
    ]


def _notes(
    divergence: Float[np.ndarray, " pair"],
    effects: Effects,
    ablated: HeadAblation | None,
    leaks: str | None,
    options: PatchOptions,
) -> tuple[str, ...]:
    notes = []
    if reversed_pairs := int((divergence < 0).sum()):
        notes.append(
            f"D is below zero on {reversed_pairs} of {len(divergence)} pairs: their personas prefer the other way"
        )
    if is_zero(divergence):
        notes.append("the mean D is zero, so no share of it is defined")
    if abs(effects.everything - 1) > 0.01:
        notes.append(
            f"patching everything gives {effects.everything:.2f} of D, not 1: prompts of unequal length stand against "
            "each other place by place"
        )
    if ablated is not None and options.ablate_top is not None and leaks is None:
        notes.append("the heads were ablated on the pairs that they were chosen on; name splits to hold some out")
    elif ablated is not None and leaks:
        notes.append(leaks)
    if ablated is not None and len(ablated.random_changed) < options.n_random:
        notes.append(f"there are only {len(ablated.random_changed)} other sets of as many heads in the same layers")
    return tuple(notes)
