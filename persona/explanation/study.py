"""Why each pair collapses or does not: numbers, a verdict from them, and a causal test of the verdict.

1. every pair, and every control, is asked under both personas (``persona.behaviour.measure``);
2. both runs are looked inside (``persona.explanation.inside``); with ``average`` rows of other paraphrases and wordings
   are taken together from here on (``persona.behaviour.wordings``);
3. paraphrase controls give the null of D, signal and contributions (``persona.explanation.null``);
4. the numbers give a verdict by thresholds that a file fixes beforehand (``persona.explanation.verdicts``);
5. the causal test that goes with it is run on the model (``persona.explanation.causal``), and on all paraphrases;
   with ``calibration`` a verdict is given where controls have it rarely (``persona.explanation.calibration``);
6. pairs are summarised together and by any key of their rows;
7. where the rows say how they were generated, verdicts are compared with it (``persona.explanation.truth``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Stage, first_told, untold_stage
from persona_circuits.circuit.storage import Kept, search_of
from persona_circuits.circuit.task import Task, encode, without_forms
from persona_circuits.persona.behaviour import PARAPHRASE, PairMeasure, grouped_rows, measure_pairs, pooled, usual_rows
from persona_circuits.persona.data import ItemFile, clusters_of
from persona_circuits.persona.data.items import Item, shared_by
from persona_circuits.persona.explanation.calibration import (
    Calibration,
    Rate,
    calibrated,
    cluster_of,
    cuts_of,
    half_of,
    rates_of,
    withheld_of,
)
from persona_circuits.persona.explanation.causal import Outcome, flip_gain, run_test
from persona_circuits.persona.explanation.groups import Explained, Group, group_of, groups_by, is_label
from persona_circuits.persona.explanation.inside import Inside, look_inside
from persona_circuits.persona.explanation.null import CausalTest, null_of
from persona_circuits.persona.explanation.options import ExplainOptions
from persona_circuits.persona.explanation.runs import NO_MASK
from persona_circuits.persona.explanation.testing import Asking, tested
from persona_circuits.persona.explanation.truth import Agreement, agreement, expected_of
from persona_circuits.persona.explanation.verdicts import Null, Numbers, Thresholds, judge, load_thresholds
from persona_circuits.persona.explanation.wordings import mean_inside

__all__ = ["Explanation", "beyond_asking", "explain"]


INSIDE, TESTED, OF_PARAPHRASES = 3.8, 3.7, 3
"""How many times as long as asking a pair it takes to look inside, and to put it to a causal test (1.9 to 6.4, by
the test), measured on two models; and about how many tests a paraphrase is put to."""


@dataclass(frozen=True)
class Explanation:
    """Everything that was found. ``pairs`` and ``controls`` in the files' order; ``tests`` by their names.

    ``rates`` are how often controls have each verdict; with a ``calibration`` those on which it was not set.
    """

    model: str
    fingerprint: str
    sources: tuple[tuple[str, str], ...]
    options: ExplainOptions
    thresholds: Thresholds
    null: Null
    tests: Mapping[str, CausalTest]
    overall: Group
    groups: tuple[Group, ...]
    controls: tuple[Group, ...]
    agreement: Agreement | None
    pairs: tuple[Explained, ...]
    control_pairs: tuple[Explained, ...]
    nodes: tuple[str, ...]
    notes: tuple[str, ...]
    rates: tuple[Rate, ...] = ()
    calibration: Calibration | None = None


def explain(
    model: Model,
    pairs: ItemFile,
    *,
    controls: ItemFile | None = None,
    thresholds: Thresholds | None = None,
    calibration: Calibration | Literal["new"] | None = None,
    options: ExplainOptions | None = None,
    state: Path | None = None,
    stage: Stage | None = None,
) -> Explanation:
    """Say of every pair why it collapses or does not.

    Parameters
    ----------
    pairs
        Prompts of equal length in each pair; rows with a ``control`` are controls.
    controls
        More pairs, of which the rows with a ``control`` are taken, whatever their split.
    thresholds
        Those that are shipped, if none are given.
    calibration
        Thresholds and null that were set on controls of this model; ``new`` sets them on half of the controls.
    state
        File in which the study keeps what it has seen inside and tested, at most twice a minute and when it is
        stopped. Where it is there and of the same study, the study goes on from it; it is removed at the end.
    stage
        Called when a stage of the work begins, with its name; gives the stage's progress callback.

    Returns
    -------
    A verdict for every pair, with the numbers and the causal test that it rests on.

    Raises
    ------
    OptionError
        A number among the options is out of range, no row has a key to group by, or the calibration is of
        something else or has no controls.
    TaskError
        No pair is left, or one does not fit the model's tokenizer, or its prompts differ in length.
    """
    options, thresholds = (options or ExplainOptions()).checked(), thresholds or load_thresholds()
    stage = stage or untold_stage
    chosen = pairs.of_split(options.split)
    _check(chosen, options)
    more = () if controls is None else tuple(item for item in controls.items if item.control != "none")
    items = (*chosen.items, *more)
    source = f"{chosen.source} with {controls.source}" if controls is not None and more else chosen.source
    without_forms((item.pair for item in items), "explain")
    started = time.monotonic()
    measures = measure_pairs(model, items, source=source, batch_size=options.batch_size, progress=stage("asking"))
    asking = time.monotonic() - started
    stage = first_told(stage, "with all tests", asking * beyond_asking(items, causal=options.causal))
    rows = encode(Task(tuple(item.pair.bare() for item in items), source, ""), model)
    half = _training_half(calibration, items, model, thresholds, options)
    search = search_of(
        model.fingerprint, model.format, options, thresholds, calibration, rows, [item.candidates for item in items]
    )
    with Kept(state, search) as kept:
        progress = stage("looking inside")
        insides = look_inside(model, rows, batch_size=options.batch_size, progress=progress, kept=kept)
        groups = grouped_rows(items) if options.average else [(place,) for place in range(len(items))]
        askings = [[Asking(rows[i], measures[i], insides[i]) for i in group] for group in groups]
        judged, null = _all_judged(
            pooled(measures) if options.average else measures,
            [mean_inside([row.inside for row in group]) for group in askings],
            calibration,
            half,
            thresholds,
            model,
        )
        how: dict[str, Any] = {"thresholds": thresholds, "batch_size": options.batch_size, "kept": kept}
        restored = thresholds.restored(null.sigma_0)
        run = partial(run_test, model, **how)
        done, tests = tested(run, model, judged, askings, restored, stage, causal=options.causal)
    sources = tuple((file.source, file.sha256) for file in (pairs, controls) if file is not None)
    done, rates, fitted = _with_calibration(calibration, half, done, null, model, thresholds, options)
    summed = _summed(model, done, null, tests, thresholds, options, sources)
    return replace(summed, rates=rates, calibration=fitted)


def beyond_asking(items: Sequence[Item], *, causal: bool = True) -> float:
    """About how many times as long as asking them everything else takes."""
    alike = sum(item.control == PARAPHRASE for item in items) / max(1, len(items))
    return INSIDE + TESTED * causal * (1 + (OF_PARAPHRASES - 1) * alike)


def _training_half(
    calibration: Calibration | Literal["new"] | None,
    items: Sequence[Item],
    model: Model,
    thresholds: Thresholds,
    options: ExplainOptions,
) -> frozenset[str]:
    """The controls that a calibration is, or was, set on."""
    if calibration is None:
        return frozenset()
    if calibration == "new":
        half = half_of(items, seed=options.seed)
        if not half:
            raise OptionError("a new calibration is set on controls, and there are none; give them with --null")
        return half
    run = (model.fingerprint, thresholds.sha256, options.average, options.causal)
    stored = (calibration.fingerprint, calibration.thresholds, calibration.average, calibration.causal)
    names = ("another model", "other thresholds", "another --average", "another --causal")
    if differ := [name for name, a, b in zip(names, run, stored, strict=True) if a != b]:
        raise OptionError(
            f"calibration {calibration.source} is of {' and '.join(differ)} than this run; give the same, or the name "
            "of a new file to set one"
        )
    return frozenset(calibration.training)


def _all_judged(
    measures: Sequence[PairMeasure],
    insides: Sequence[Inside],
    calibration: Calibration | Literal["new"] | None,
    half: frozenset[str],
    thresholds: Thresholds,
    model: Model,
) -> tuple[list[Explained], Null]:
    """The verdict of every pair by the calibration's null, or that of the controls: all, or those of a half."""
    if isinstance(calibration, Calibration):
        null = calibration.null
    else:
        own = [i for i, measure in enumerate(measures) if calibration is None or cluster_of(measure.item) in half]
        null = null_of([measures[i] for i in own], [insides[i] for i in own], thresholds, n_rows=usual_rows(measures))
    judged = [
        _judged(measure, inside, measure.item.pair.row, null, thresholds, model)
        for measure, inside in zip(measures, insides, strict=True)
    ]
    return judged, null


def _with_calibration(
    given: Calibration | Literal["new"] | None,
    half: frozenset[str],
    done: Sequence[Explained],
    null: Null,
    model: Model,
    thresholds: Thresholds,
    options: ExplainOptions,
) -> tuple[list[Explained], tuple[Rate, ...], Calibration | None]:
    """Verdicts as far as they are given; the rates of controls, of those that nothing was set on; the calibration."""
    controls = [row for row in done if row.item.control != "none"]
    if given is None:
        return list(done), rates_of(controls), None
    training, held_out = ([row for row in controls if (cluster_of(row.item) in half) is here] for here in (True, False))
    calibration = given
    if calibration == "new":
        about = (model.fingerprint, thresholds.sha256, options.average, options.causal)
        calibration = Calibration(*about, null, cuts_of(training), tuple(sorted(half)))
    rates = rates_of([calibrated(row, calibration) for row in held_out])
    withheld = tuple(dict.fromkeys((*calibration.withheld, *withheld_of(rates))))
    calibration = replace(calibration, withheld=withheld, held_out=rates or calibration.held_out)
    return [calibrated(row, calibration) for row in done], rates or calibration.held_out, calibration


def _check(pairs: ItemFile, options: ExplainOptions) -> None:
    if all(item.control != "none" for item in pairs.items):
        raise TaskError(f"every pair of {pairs.source} ({options.split}) is a control; none is left to explain")
    known = _labels(pairs)
    for key in options.by:
        if key not in ("pair", "question") and key not in known:
            raise OptionError(
                f"--by {key}: no pair of {pairs.source} has a key {key!r}; its keys are: "
                f"{', '.join(dict.fromkeys(('pair', *known)))}"
            )


def _labels(pairs: ItemFile) -> tuple[str, ...]:
    """Keys of rows that can tell pairs apart: those with text or a number."""
    keys = dict.fromkeys(key for item in pairs.items for key, value in item.pair.row.items() if is_label(value))
    return tuple(key for key in keys if key not in ("clean", "corrupt", "neutral"))


def _judged(
    measure: PairMeasure, inside: Inside, keys: Mapping[str, Any], null: Null, thresholds: Thresholds, model: Model
) -> Explained:
    numbers = _numbers(measure, inside, null, thresholds, model.d_model)
    return Explained(
        keys=keys,
        measure=measure,
        inside=inside,
        numbers=numbers,
        flip_gain=flip_gain(measure.log_probs_a, measure.log_probs_b),
        verdict=judge(numbers, thresholds),
        outcome=Outcome("", None, {}),
        expected=expected_of(keys),
    )


def _numbers(measure: PairMeasure, inside: Inside, null: Null, thresholds: Thresholds, d_model: int) -> Numbers:
    d, below = measure.divergence, thresholds.null(null.sigma_0)
    least = below if null.n else 0.0
    size = max(abs(d), least)
    conserved = abs(inside.conservation) <= thresholds.conservation * max(1.0, abs(d))
    return Numbers(
        divergence=d,
        null=below,
        mass=min(measure.mass_a, measure.mass_b),
        one_choice=measure.collapses,
        signal_persona=inside.most("persona"),
        signal_answer=inside.most("answer"),
        arrived=thresholds.signal if null.signal_answer is None else null.signal_answer,
        access=None if inside.slope is None or size == 0 else math.copysign(1.0, d) * inside.slope / size,
        alignment=inside.alignment[-1],
        aligned=thresholds.aligned(inside.chance, d_model),
        cancellation=inside.cancellation if conserved else None,
        stronger_side=inside.stronger_side if conserved else None,
        opposed=max(thresholds.divergence_floor, null.stronger_side or 0.0),
    )


def _summed(
    model: Model,
    done: Sequence[Explained],
    null: Null,
    tests: Mapping[str, CausalTest],
    thresholds: Thresholds,
    options: ExplainOptions,
    sources: tuple[tuple[str, str], ...],
) -> Explanation:
    main = tuple(row for row in done if row.item.control == "none")
    others = tuple(row for row in done if row.item.control != "none")
    judged = [row for row in done if row.expected is not None]
    settings: dict[str, Any] = {
        "tests": tests,
        "majority": thresholds.majority,
        "n_resamples": options.n_resamples,
        "seed": options.seed,
    }
    return Explanation(
        model=model.name,
        fingerprint=model.fingerprint,
        sources=sources,
        options=options,
        thresholds=thresholds,
        null=null,
        tests=tests,
        overall=group_of("all", "all", main, **settings),
        groups=tuple(group for key in options.by for group in groups_by(key, main, **settings)),
        controls=groups_by("control", others, **settings),
        agreement=agreement(
            [str(row.expected) for row in judged],
            [row.verdict.name for row in judged],
            clusters=clusters_of(*shared_by([row.item for row in judged])) if judged else None,
            n_permutations=options.n_resamples,
            seed=options.seed,
        ),
        pairs=main,
        control_pairs=others,
        nodes=tuple(str(node) for node in model.graph.src_nodes),
        notes=tuple(_notes(main, null, tests, thresholds)),
    )


def _notes(main: Sequence[Explained], null: Null, tests: Mapping[str, CausalTest], thresholds: Thresholds) -> list[str]:
    """What a reader of the verdicts must know."""
    notes, n = [], len(main)
    if not null.n:
        notes.append(
            "no paraphrase controls: sigma_0 is unknown, and the floor of "
            f"{thresholds.divergence_floor:.2f} logits stands for 2 sigma_0; signals, contributions and causal tests "
            "have no null; give controls with --null"
        )
    for test in tests.values():
        if not test.tells:
            notes.append(
                f"{test.cause}: its test ({test.test}) agrees on {test.agree} of {test.ran} pairs and on "
                f"{test.null_agree} of {test.null_ran} paraphrases (p {test.p:.2g}), which confirms nothing"
            )
    unknown = sum(row.numbers.cancellation is None for row in main)
    if unknown:
        notes.append(
            f"{unknown} of {n} pairs: contributions do not add up to D (soft cap, or weights in half precision), "
            "so kappa is unknown and cancellation cannot be found"
        )
    if any(row.inside.slope is None for row in main):
        notes.append(f"{NO_MASK}: access is unknown, nearness cannot be tested")
    if len({row.item.question for row in main}) == 1 and len({row.item.persona_pair for row in main}) == 1:
        notes.append("one question and two personas only: prompts differ in little else, so all signals are large")
    if any(row.item.names_no_more for row in main):
        notes.append("some pairs name no further candidates: one choice or two is then of the two declared sides alone")
    return notes
