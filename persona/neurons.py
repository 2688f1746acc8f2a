"""Contrastive neurons: the MLP neurons that tell two personas apart, and what D loses without them.

1. Every neuron is read at one position of both prompts of every pair.
2. On the fitting pairs: mean difference A - B, effect size, Z against a null, q (``neuron_statistics``).
   Neurons whose difference is rounding are counted, and not ranked. The ``top_k`` largest Z are selected.
3. On the held-out pairs, which had no part in the selection: the selected neurons' differences and ranks.
4. Cross-validation, for every group of pairs (a couple of personas, a domain, a template, a wording): the
   list from all other fitting pairs against the group's own, beside what two random lists share.
5. Ablation on held-out pairs: D with the selected neurons at zero, at their mean, or swapped between
   A and B; beside random neurons of the same layers, as many in each, none of them selected or at rounding level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats

from circuit.errors import OptionError, TaskError
from circuit.graph import Graph
from circuit.model import NEURON_HOOKS, Model
from circuit.options import PlainNumbers
from circuit.uncertainty import Clusters, Interval, cluster_codes, interval, ratio_interval, weighted_mean
from persona.activations import Progress
from persona.examples import Example, ExampleFile, leak
from persona.neuron_runs import KINDS, NEURON_POSITIONS, Neurons, Readings, ablated, neurons_of, read_neurons
from persona.neuron_statistics import (
    LEAST_NULL,
    POOLS,
    Overlap,
    Ranking,
    at_rounding,
    effect_size,
    grouped_means,
    overlap,
    pooled,
    rank_neurons,
    ranks,
    z_of,
)
from persona.steering import some_pairs

__all__ = [
    "GROUP_KINDS",
    "Ablation",
    "Group",
    "NeuronOptions",
    "NeuronStudy",
    "Side",
    "held_out_files",
    "study_neurons",
]

GROUP_KINDS = ("personas", "domain", "template", "wording")
SOURCES = {"fit": "pairs", "held": "held_out", "null": "null"}
Stage = Callable[[str], Progress]


@dataclass(frozen=True)
class NeuronOptions(PlainNumbers):
    """``layers``: all if empty. ``everywhere``: neurons are changed at every token, not at the position alone.

    ``max_pairs`` is how many held-out pairs are ablated, ``least`` how many pairs a group has at
    least, ``level`` that of false discoveries, ``n_draws`` the draws of the null.
    """

    layers: tuple[int, ...] = ()
    hook: str = "post"
    position: str = "prompt-end"
    pool: str = "mean"
    top_k: int = 20
    level: float = 0.05
    kinds: tuple[str, ...] = KINDS
    everywhere: bool = False
    n_random: int = 100
    max_pairs: int = 32
    least: int = 4
    n_draws: int = 200
    batch_size: int = 32
    seed: int = 0

    def checked(self) -> NeuronOptions:
        """These options.

        Raises:
            OptionError: one of them makes no sense.
        """
        known = {"hook": tuple(NEURON_HOOKS), "position": NEURON_POSITIONS, "pool": POOLS}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise OptionError(f"--{name} {getattr(self, name)!r} is not one of {', '.join(values)}")
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise OptionError(f"--ablation {unknown[0]!r} is not one of {', '.join(KINDS)}")
        bounds = {"top_k": 1, "n_random": 1, "max_pairs": 1, "least": 2, "n_draws": 10, "batch_size": 1}
        for name, bound in bounds.items():
            if getattr(self, name) < bound:
                option = {"least": "min-group"}.get(name, name.replace("_", "-"))
                raise OptionError(f"--{option} must be at least {bound}, got {getattr(self, name)}")
        if not 0 < self.level < 1:
            raise OptionError(f"--level must be between 0 and 1, got {self.level:g}")
        return self


@dataclass(frozen=True, eq=False)
class Side:
    """Differences A - B over some pairs: mean, effect size, T, Z (nan where not ranked); intervals of the selected."""

    n_pairs: int
    difference: Float[np.ndarray, " neuron"]
    effect: Float[np.ndarray, " neuron"]
    size: Float[np.ndarray, " neuron"]
    z: Float[np.ndarray, " neuron"]
    intervals: tuple[Interval | None, ...] = ()


@dataclass(frozen=True, eq=False)
class Group:
    """One group of pairs. ``overlap`` is of the list from the other fitting pairs with the group's own.

    ``median_rank`` is of the others' list in this group, out of ``overlap.universe``; ``same_sign`` the share of
    it whose difference has the others' sign (nan for ``rms``, which has none); ``rho`` Spearman's over all
    ranked neurons' differences, for ``rms`` their Z. ``own`` is the group's list, ``ranks`` the places of the
    selected neurons in it.
    """

    kind: str
    name: str
    held_out: bool
    n_pairs: int
    overlap: Overlap
    median_rank: float
    same_sign: float
    rho: float
    own: tuple[int, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Ablation:
    """D, in logits, with the selected neurons changed, and with random ones.

    ``change`` is the mean of D changed - D, ``kept`` the ratio of their means; ``random`` are the changes
    by the random sets, ``p`` the share of them that change D as much in size: (1 + b) / (1 + B).
    """

    kind: str
    before: Float[np.ndarray, " pair"]
    after: Float[np.ndarray, " pair"]
    random: Float[np.ndarray, " set"]
    change: float
    change_interval: Interval | None
    kept: float | None
    kept_interval: Interval | None
    p: float


@dataclass(frozen=True, eq=False)
class NeuronStudy:
    """Everything that was measured; ``selected`` are the places of the top neurons among ``neurons``, best first.

    ``means`` are of A's and of B's prompts over the fitting pairs. ``held`` is None where nothing was held out.
    """

    model: str
    fingerprint: str
    graph: Graph
    sources: dict[str, tuple[str, str]]
    options: NeuronOptions
    neurons: Neurons
    ranking: Ranking
    means: Float[np.ndarray, "side neuron"]
    silent: Bool[np.ndarray, " neuron"]
    fit: Side
    held: Side | None
    selected: tuple[int, ...]
    groups: tuple[Group, ...]
    ablations: tuple[Ablation, ...]
    ablated_pairs: tuple[str, ...]
    clusters: str
    n_null: int
    notes: tuple[str, ...] = field(default=())

    @property
    def n_discovered(self) -> int:
        """Neurons with q at or below the level."""
        return int((self.ranking.q <= self.options.level).sum())


def held_out_files(
    pairs: ExampleFile, held_out: ExampleFile | None = None, null: ExampleFile | None = None
) -> tuple[ExampleFile, ExampleFile | None, ExampleFile | None]:
    """The pairs to select on, those that are held out, and the paraphrase pairs.

    Without a file of their own the held-out pairs are those of ``pairs`` whose split is not ``train``,
    where some are, and the paraphrases those whose ``control`` is ``paraphrase``. Other controls are left out.

    Raises:
        TaskError: a file has no pair of the kind that is asked of it.
    """
    own = [i for i, item in enumerate(pairs.items) if item.control == "none"]
    if not own:
        raise TaskError(f"{pairs.source} has no pair but controls; give pairs of the study itself")
    if held_out is None:
        fit = [i for i in own if pairs.items[i].pair.split == "train"] or own
        held, rest = pairs, [i for i in own if i not in set(fit)]
    else:
        fit, held = own, held_out
        rest = [i for i, item in enumerate(held.items) if item.control == "none"]
        if not rest:
            raise TaskError(f"{held.source} has no pair but controls; give --test-pairs pairs of the study itself")
    given = null or pairs
    alike = [i for i, item in enumerate(given.items) if item.control == "paraphrase"]
    if null is not None and not alike:
        raise TaskError(f"{null.source} has no pair whose 'control' is 'paraphrase': two wordings of one persona")
    return (
        _chosen(pairs, fit),
        _chosen(held, rest) if rest else None,
        _chosen(given, alike) if alike else None,
    )


def study_neurons(
    model: Model,
    fit: ExampleFile,
    held: ExampleFile | None = None,
    null: ExampleFile | None = None,
    *,
    options: NeuronOptions | None = None,
    stage: Stage | None = None,
) -> NeuronStudy:
    """Find the neurons that tell the personas apart on ``fit``, and say on ``held`` what they are worth.

    Parameters
    ----------
    held
        Pairs that selection does not see; without them everything is measured on ``fit``, and a note says so.
    null
        Paraphrase pairs; without them signs are flipped.
    stage
        Names a step and gives its progress.

    Raises
    ------
    OptionError
        An option makes no sense, a prompt does not have the position, or too few neurons are left to draw from.
    ModelError
        A layer has no such neurons.
    TaskError
        Too few personas have paraphrases.
    """
    options = (options or NeuronOptions()).checked()
    stage = stage or (lambda _name: lambda _done, _total: None)
    _check_null(null, options)
    neurons = neurons_of(model, options.hook, options.layers)
    files = {name: file for name, file in (("fit", fit), ("held", held), ("null", null)) if file is not None}
    read = _read(model, files, neurons, options, stage)
    ranking = _ranking(model, fit, null, read, neurons, options)
    selected = tuple(int(place) for place in ranking.order[: options.top_k])
    measured = "fit" if held is None else "held"
    sides = {
        name: _side(files[name], read[name], ranking, selected if name == measured else (), options)
        for name in dict.fromkeys(("fit", measured))
    }
    some = some_pairs(files[measured], options.max_pairs)
    ablations = _ablations(model, some, neurons, ranking, read["fit"], selected, options, stage("ablation"))
    values = read["fit"].values
    study = NeuronStudy(
        model=model.name,
        fingerprint=model.fingerprint,
        graph=model.graph,
        sources={SOURCES[name]: (file.source, file.sha256) for name, file in files.items()},
        options=options,
        neurons=neurons,
        ranking=ranking,
        means=np.stack([values[::2].mean(0), values[1::2].mean(0)]),
        silent=(values == 0).all(0),
        fit=sides["fit"],
        held=sides.get("held"),
        selected=selected,
        groups=_groups(fit, held, read, ranking, selected, options),
        ablations=ablations,
        ablated_pairs=tuple(item.pair.id for item in some.items) if ablations else (),
        clusters=Clusters.of([item.pair for item in some.items]).describe(),
        n_null=len(null.items) if null is not None else 0,
    )
    leaks = leak(fit, held) if held is not None else ""
    return replace(study, notes=(*([leaks] if leaks else []), *_notes(study)))


def _read(
    model: Model, files: dict[str, ExampleFile], neurons: Neurons, options: NeuronOptions, stage: Stage
) -> dict[str, Readings]:
    names = {"fit": "neurons", "held": "held-out pairs", "null": "paraphrases"}
    how = {"batch_size": options.batch_size}
    return {
        name: read_neurons(model, file.examples, neurons, options.position, **how, progress=stage(names[name]))
        for name, file in files.items()
    }


def _chosen(found: ExampleFile, places: Sequence[int]) -> ExampleFile:
    examples = tuple(found.examples[2 * i + side] for i in places for side in (0, 1))
    return replace(found, items=tuple(found.items[i] for i in places), examples=examples)


def _check_null(null: ExampleFile | None, options: NeuronOptions) -> None:
    if null is None:
        if options.pool == "rms":
            raise OptionError(
                "--pool rms needs paraphrase pairs: the signs of squares cannot be flipped; give --null, a file with "
                "pairs whose 'control' is 'paraphrase', or use --pool mean"
            )
        return
    personas = {one.persona for one in null.examples}
    if len(personas) < LEAST_NULL:
        raise TaskError(
            f"the paraphrase pairs of {null.source} are of {len(personas)} persona(s); the null needs {LEAST_NULL}: "
            "give more, or leave them out to have signs flipped"
        )


def _turned(file: ExampleFile, differences: Float[np.ndarray, "pair neuron"], pool: str) -> np.ndarray:
    """Differences as they are pooled: for ``rms`` from the persona whose name comes first to the other."""
    if pool == "mean":
        return differences
    signs = [-1.0 if item.pair.persona_a > item.pair.persona_b else 1.0 for item in file.items]
    return differences * np.array(signs)[:, None]


def _ranking(
    model: Model,
    fit: ExampleFile,
    null: ExampleFile | None,
    read: dict[str, Readings],
    neurons: Neurons,
    options: NeuronOptions,
) -> Ranking:
    differences = _turned(fit, read["fit"].differences, options.pool)
    codes = _couples(fit)
    size = pooled(grouped_means(differences, codes), options.pool)
    epsilon = float(torch.finfo(model.dtype).eps)
    rounding = at_rounding(size, np.abs(read["fit"].values).max(0), neurons.layers, epsilon)
    given = {}
    if null is not None:
        given["null"] = read["null"].differences
        given["null_groups"] = cluster_codes([one.persona for one in null.examples[::2]])[0]
    return rank_neurons(
        differences, codes, rounding, pool=options.pool, n_draws=options.n_draws, seed=options.seed, **given
    )


def _side(file: ExampleFile, read: Readings, ranking: Ranking, selected: Sequence[int], options: NeuronOptions) -> Side:
    """Differences over one file, with intervals for the selected."""
    differences = read.differences
    clusters = Clusters.of([item.pair for item in file.items])
    intervals = [
        interval(
            lambda weights, x=differences[:, place]: weighted_mean(weights, x),
            clusters,
            influence=(differences[:, place] - differences[:, place].mean()) / len(differences),
            seed=options.seed,
        )
        for place in selected
    ]
    turned, codes = _turned(file, differences, options.pool), _couples(file)
    size, z = pooled(grouped_means(turned, codes), options.pool), z_of(turned, codes, ranking, options.pool)
    return Side(len(file.items), differences.mean(0), effect_size(differences), size, z, tuple(intervals))


def _couples(file: ExampleFile) -> Int[np.ndarray, " pair"]:
    """The two personas of every pair, in no order, as a code."""
    return cluster_codes([item.persona_pair for item in file.items])[0]


def _groups(
    fit: ExampleFile,
    held: ExampleFile | None,
    read: dict[str, Readings],
    ranking: Ranking,
    selected: Sequence[int],
    options: NeuronOptions,
) -> tuple[Group, ...]:
    found = []
    files = {"fit": fit} | ({"held": held} if held is not None else {})
    for kind in GROUP_KINDS:
        labels = {name: np.array(_labels(file, kind)) for name, file in files.items()}
        if len({label for some in labels.values() for label in some} - {""}) < 2:
            continue
        for name, file in files.items():
            for label in dict.fromkeys(label for label in labels[name].tolist() if label):
                own = labels[name] == label
                others = ~own if name == "fit" else np.ones(len(fit.items), dtype=bool)
                if min(own.sum(), others.sum()) >= options.least:
                    two = _part(file, read[name], own), _part(fit, read["fit"], others)
                    found.append(_group(kind, label, name == "held", *two, ranking, selected, options))
    return tuple(found)


def _part(file: ExampleFile, read: Readings, chosen: Bool[np.ndarray, " pair"]) -> tuple[ExampleFile, np.ndarray]:
    return _chosen(file, np.flatnonzero(chosen).tolist()), read.differences[chosen]


def _labels(file: ExampleFile, kind: str) -> list[str]:
    """Of every pair the group it is in; empty where the file does not say.

    A wording has the number of its persona's text among those of the file, by order of appearance.
    """
    firsts: Sequence[Example] = file.examples[::2]
    if kind == "personas":
        return [item.persona_pair if item.pair.persona_a else "" for item in file.items]
    if kind == "domain":
        return [item.axes.get("domain", "") for item in file.items]
    if kind == "template":
        return [one.template for one in firsts]
    texts: dict[str, list[str]] = {}
    labels = []
    for one in firsts:
        known = texts.setdefault(one.persona, [])
        if one.wording not in known:
            known.append(one.wording)
        labels.append(f"wording {known.index(one.wording)}")
    return labels


def _group(
    kind: str,
    label: str,
    held_out: bool,
    mine: tuple[ExampleFile, np.ndarray],
    rest: tuple[ExampleFile, np.ndarray],
    ranking: Ranking,
    selected: Sequence[int],
    options: NeuronOptions,
) -> Group:
    turned = [_turned(file, differences, options.pool) for file, differences in (mine, rest)]
    z = [
        z_of(values, _couples(file), ranking, options.pool)
        for (file, _), values in zip((mine, rest), turned, strict=True)
    ]
    places = [ranks(values) for values in z]
    lists = [_first(values, options.top_k) for values in places]
    signed = options.pool == "mean"
    means = [values.mean(0) for values in turned] if signed else z
    live = ~ranking.rounding
    same = [np.sign(means[0][place]) == np.sign(means[1][place]) for place in lists[1]] if signed else []
    varied = live.sum() > 1 and all(np.ptp(values[live]) > 0 for values in means)
    return Group(
        kind=kind,
        name=label,
        held_out=held_out,
        n_pairs=len(mine[0].items),
        overlap=overlap(lists[1], lists[0], int(live.sum())),
        median_rank=float(np.median(places[0][lists[1]])) if lists[1] else np.nan,
        same_sign=float(np.mean(same)) if same else np.nan,
        rho=float(stats.spearmanr(means[0][live], means[1][live]).statistic) if varied else np.nan,
        own=tuple(lists[0]),
        ranks=tuple(int(places[0][place]) for place in selected),
    )


def _first(places: Int[np.ndarray, " neuron"], n: int) -> list[int]:
    """The neurons with the first ``n`` ranks, the first one first."""
    chosen = np.flatnonzero((places > 0) & (places <= n))
    return chosen[np.argsort(places[chosen])].tolist()


def _ablations(
    model: Model,
    some: ExampleFile,
    neurons: Neurons,
    ranking: Ranking,
    fitted: Readings,
    selected: Sequence[int],
    options: NeuronOptions,
    progress: Progress,
) -> tuple[Ablation, ...]:
    if not selected or not options.kinds:
        return ()
    sets = np.concatenate([_mask(selected, len(neurons))[None], _random_sets(neurons, ranking, selected, options)])
    before, after = ablated(
        model,
        some,
        neurons,
        sets,
        options.kinds,
        position=None if options.everywhere else options.position,
        means=fitted.everywhere if options.everywhere else fitted.values.mean(0),
        batch_size=options.batch_size,
        progress=progress,
    )
    clusters = Clusters.of([item.pair for item in some.items])
    return tuple(
        _ablation(kind, before, found, clusters, options.seed) for kind, found in zip(options.kinds, after, strict=True)
    )


def _ablation(
    kind: str,
    before: Float[np.ndarray, " pair"],
    after: Float[np.ndarray, "set pair"],
    clusters: Clusters,
    seed: int,
) -> Ablation:
    changes = after - before
    effects = changes.mean(1)
    extreme = int((np.abs(effects[1:]) >= abs(effects[0]) * (1 - 1e-9)).sum())
    kept = ratio_interval(after[0], before, clusters, seed=seed)
    return Ablation(
        kind=kind,
        before=before,
        after=after[0],
        random=effects[1:],
        change=float(effects[0]),
        change_interval=interval(lambda weights: weighted_mean(weights, changes[0]), clusters, seed=seed),
        kept=float(after[0].mean() / before.mean()) if kept is not None else None,
        kept_interval=kept,
        p=(1 + extreme) / len(effects),
    )


def _mask(places: Sequence[int], n: int) -> Bool[np.ndarray, " neuron"]:
    found = np.zeros(n, dtype=bool)
    found[list(places)] = True
    return found


def _random_sets(
    neurons: Neurons, ranking: Ranking, selected: Sequence[int], options: NeuronOptions
) -> Bool[np.ndarray, "set neuron"]:
    """As many neurons of each layer as are selected there, of those that are neither selected nor at rounding level."""
    rng = np.random.default_rng(options.seed)
    sets = np.zeros((options.n_random, len(neurons)), dtype=bool)
    chosen = _mask(selected, len(neurons))
    free = ~ranking.rounding & ~chosen
    for layer in np.unique(neurons.layers[chosen]):
        own = neurons.layers == layer
        count, pool = int((own & chosen).sum()), np.flatnonzero(own & free)
        if len(pool) <= count:
            raise OptionError(
                f"layer {layer} has {count} of the selected neurons and {len(pool)} others above rounding to draw "
                "random ones from; lower --top-k"
            )
        for row in sets:
            row[rng.choice(pool, size=count, replace=False)] = True
    return sets


def _notes(study: NeuronStudy) -> tuple[str, ...]:
    options, ranking = study.options, study.ranking
    notes = []
    if study.held is None:
        notes.append("not held out: selected and measured on the same pairs; name splits in the file, or --test-pairs")
    if ranking.null == "sign-flip":
        notes.append(
            f"no paraphrase pairs: p is of random signs of {ranking.n_groups} couples of personas. It says that a "
            "difference is steady, not that it is more than another wording makes; and all signs agree by chance in "
            f"{2.0 ** (1 - ranking.n_groups):.2g} of draws, for all neurons at once"
        )
    if len(study.selected) < options.top_k:
        notes.append(f"{len(study.selected)} neurons differ by more than rounding, fewer than --top-k {options.top_k}")
    missed = sum(not ranking.q[place] <= options.level for place in study.selected)
    if missed:
        notes.append(f"{missed} of the {len(study.selected)} selected neurons have q above {options.level:g}")
    return tuple(notes)
