"""Contrastive neurons: the MLP neurons that tell two personas apart, and what D loses without them.

1. Every neuron is read at one position of both prompts of every pair.
2. On the fitting pairs: mean difference A - B, effect size, Z against a null, q (``neuron_statistics``).
   Neurons whose difference is rounding are counted, and not ranked. The ``top_k`` largest Z, or
   differences, are selected.
3. On the held-out pairs, which had no part in the selection: the selected neurons' differences and ranks.
4. Cross-validation, for every group of pairs (a couple of personas, a domain, a template, a wording): the
   list from all other fitting pairs against the group's own, beside what two random lists share.
5. Ablation on held-out pairs: D with the selected neurons at zero, at their mean, or swapped between
   A and B; beside random neurons of the same layers, as many in each, none of them selected or at rounding level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Stage, untold_stage
from persona_circuits.circuit.statistics import Clusters, cluster_codes, interval, weighted_mean
from persona_circuits.persona.data import ExampleFile, clusters_of, leak, told_once
from persona_circuits.persona.neurons.ablation import ablations_of
from persona_circuits.persona.neurons.groups import couples_of, groups_of, too_small, turned_differences
from persona_circuits.persona.neurons.options import NeuronOptions
from persona_circuits.persona.neurons.ranking import (
    LEAST_NULL,
    Paraphrases,
    Ranking,
    at_rounding,
    effect_size,
    grouped_means,
    pooled,
    rank_neurons,
    score_of,
)
from persona_circuits.persona.neurons.results import SOURCES, NeuronStudy, Side
from persona_circuits.persona.neurons.runs import Neurons, Readings, neurons_of, read_neurons
from persona_circuits.persona.steering.passes import chosen_pairs, some_pairs

__all__ = ["held_out_files", "study_neurons"]


def held_out_files(
    pairs: ExampleFile, held_out: ExampleFile | None = None, null: ExampleFile | None = None
) -> tuple[ExampleFile, ExampleFile | None, ExampleFile | None]:
    """The pairs to select on, those that are held out, and the paraphrase pairs.

    Without a file of their own the held-out pairs are those of ``pairs`` whose split is not ``train``,
    where some are, and the paraphrases those whose ``control`` is ``paraphrase``. Other controls are left out.

    Raises:
        TaskError: a file has no pair of the kind that is asked of it.
    """
    studied = [i for i, item in enumerate(pairs.items) if item.control == "none"]
    if not studied:
        raise TaskError(f"{pairs.source} has no pair but controls; give pairs of the study itself")
    if held_out is None:
        fit = [i for i in studied if pairs.items[i].pair.split == "train"] or studied
        held, rest = pairs, [i for i in studied if i not in set(fit)]
    else:
        fit, held = studied, held_out
        rest = [i for i, item in enumerate(held.items) if item.control == "none"]
        if not rest:
            raise TaskError(f"{held.source} has no pair but controls; give --test-pairs pairs of the study itself")
    source = null or pairs
    alike = [i for i, item in enumerate(source.items) if item.control == "paraphrase"]
    if null is not None and not alike:
        raise TaskError(f"{null.source} has no pair whose 'control' is 'paraphrase': two wordings of one persona")
    return (
        chosen_pairs(pairs, fit),
        chosen_pairs(held, rest) if rest else None,
        chosen_pairs(source, alike) if alike else None,
    )


def study_neurons(
    model: Model,
    fit: ExampleFile,
    held: ExampleFile | None = None,
    null: ExampleFile | None = None,
    *,
    options: NeuronOptions | None = None,
    dropped: Mapping[str, int] | None = None,
    stage: Stage | None = None,
) -> NeuronStudy:
    """Find the neurons that tell the personas apart on ``fit``, and measure them on ``held``.

    Parameters
    ----------
    held
        Pairs that selection does not see; without them everything is measured on ``fit``, and a note says so.
    null
        Paraphrase pairs; without them signs are flipped.
    dropped
        Pairs that were left out before, by what kept them out.
    stage
        Names a step and gives its progress.

    Returns
    -------
    The neurons found, their null, and what ablating them does beside random ones.

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
    stage = stage or untold_stage
    _check_null(null, options)
    neurons = neurons_of(model, options.hook, options.layers)
    files = {name: file for name, file in (("fit", fit), ("held", held), ("null", null)) if file is not None}
    whole, leaks = files, leak(fit, held) if held is not None else ""
    files = {name: file.once(options.position) for name, file in whole.items()}
    fit, held, null = files["fit"], files.get("held"), files.get("null")
    read = _read(model, files, neurons, options, stage)
    ranking = _ranking(model, fit, null, read, neurons, options)
    selected = tuple(int(place) for place in ranking.order[: options.top_k])
    measured = "fit" if held is None else "held"
    sample = some_pairs(whole[measured], options.max_pairs)
    ablations = ablations_of(model, sample, neurons, ranking, read["fit"], selected, options, stage("ablation"))
    values, left = read["fit"].values, len(whole[measured].items) - len(sample.items) if ablations else 0
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
        fit=_side(fit, read["fit"], ranking, selected if held is None else (), options),
        held=None if held is None else _side(held, read["held"], ranking, selected, options),
        selected=selected,
        groups=groups_of(fit, held, read, ranking, selected, options),
        ablations=ablations,
        ablated_pairs=tuple(item.pair.id for item in sample.items) if ablations else (),
        clusters=Clusters.of([item.pair for item in sample.items]).describe(),
        n_null=len(null.items) if null is not None else 0,
        dropped=_dropped(dropped or {}, fit, held, left, options),
    )
    repeats = [says for file in whole.values() for says in told_once(file, options.position)]
    return replace(study, notes=(*([leaks] if leaks else []), *repeats, *_notes(study)))


def _dropped(
    before: Mapping[str, int], fit: ExampleFile, held: ExampleFile | None, left: int, options: NeuronOptions
) -> dict[str, int]:
    counts = {
        **before,
        "not ablated, beyond --max-pairs": left,
        "in a group below --min-group": too_small(fit, held, options),
    }
    return {why: count for why, count in counts.items() if count}


def _read(
    model: Model, files: dict[str, ExampleFile], neurons: Neurons, options: NeuronOptions, stage: Stage
) -> dict[str, Readings]:
    names = {"fit": "neurons", "held": "held-out pairs", "null": "paraphrases"}
    settings = {"batch_size": options.batch_size}
    return {
        name: read_neurons(model, file.examples, neurons, options.position, **settings, progress=stage(names[name]))
        for name, file in files.items()
    }


def _check_null(null: ExampleFile | None, options: NeuronOptions) -> None:
    if null is None:
        if options.pool == "rms":
            raise OptionError(
                "--pool rms needs paraphrase pairs: the signs of squares cannot be flipped; give --null, a file with "
                "pairs whose 'control' is 'paraphrase', or use --pool mean"
            )
        return
    personas = {example.persona for example in null.examples}
    if len(personas) < LEAST_NULL:
        raise TaskError(
            f"the paraphrase pairs of {null.source} are of {len(personas)} persona(s); the null needs {LEAST_NULL}: "
            "give more, or leave them out to have signs flipped"
        )


def _ranking(
    model: Model,
    fit: ExampleFile,
    null: ExampleFile | None,
    read: dict[str, Readings],
    neurons: Neurons,
    options: NeuronOptions,
) -> Ranking:
    differences = turned_differences(fit, read["fit"].differences, options.pool)
    codes = couples_of(fit)
    size = pooled(grouped_means(differences, codes), options.pool)
    epsilon = float(torch.finfo(model.dtype).eps)
    rounding = at_rounding(size, np.abs(read["fit"].values).max(0), neurons.layers, epsilon)
    quiet = None
    if null is not None:
        quiet = Paraphrases(read["null"].differences, cluster_codes([x.persona for x in null.examples[::2]])[0])
    couples = [fit.items[place].personas for place in np.unique(codes, return_index=True)[1]]
    clusters = clusters_of(couples, [""] * len(couples))
    return rank_neurons(differences, codes, rounding, options, null=quiet, clusters=clusters)


def _side(file: ExampleFile, read: Readings, ranking: Ranking, selected: Sequence[int], options: NeuronOptions) -> Side:
    """Differences over one file, with intervals for the selected."""
    differences = read.differences
    clusters = Clusters.of([item.pair for item in file.items])
    intervals = [
        interval(
            partial(weighted_mean, values=differences[:, place]),
            clusters,
            influence=(differences[:, place] - differences[:, place].mean()) / len(differences),
            seed=options.seed,
        )
        for place in selected
    ]
    turned, codes = turned_differences(file, differences, options.pool), couples_of(file)
    size, z = pooled(grouped_means(turned, codes), options.pool), score_of(turned, codes, ranking, options.pool)
    return Side(len(file.items), differences.mean(0), effect_size(differences), size, z, tuple(intervals))


def _notes(study: NeuronStudy) -> tuple[str, ...]:
    options, ranking = study.options, study.ranking
    notes = []
    if not options.answers:
        notes.append("without answers there is no D to lose: nothing was ablated")
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
    if study.selected and not study.n_discovered:
        notes.append(
            f"no neuron has q <= {options.level:g}: the {len(study.selected)} selected are the largest of what may all "
            "be noise, and figures do not mark them"
        )
    return tuple(notes)
