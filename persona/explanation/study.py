"""Why each pair collapses or does not: numbers, a verdict from them, and a causal test of the verdict.

1. every pair, and every control, is asked under both personas (``persona.behaviour.measure``);
2. both runs are looked into (``persona.explanation.inside``);
3. paraphrase controls give the null of D, signal and contributions (``persona.explanation.null``);
4. the numbers give a verdict by thresholds that a file fixes beforehand (``persona.explanation.verdicts``);
5. the causal test that goes with it is run on the model (``persona.explanation.causal``), and on all paraphrases;
6. pairs are summed up together and by any key of their rows;
7. where the rows say how they were generated, verdicts are compared with it (``persona.explanation.truth``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Stage, first_told, untold_stage
from persona_circuits.circuit.storage import Kept, search_of
from persona_circuits.circuit.task import PromptPair, Row, Task, answer_id, encode
from persona_circuits.persona.behaviour import PARAPHRASE, PairMeasure, measure_pairs
from persona_circuits.persona.data import ItemFile, clusters_of
from persona_circuits.persona.explanation.causal import TESTS, Asked, Outcome, flip_gain, run_test
from persona_circuits.persona.explanation.groups import Explained, Group, group_of, groups_by, is_label
from persona_circuits.persona.explanation.inside import Inside, look_inside
from persona_circuits.persona.explanation.null import CausalTest, causal_test, null_of
from persona_circuits.persona.explanation.options import ExplainOptions
from persona_circuits.persona.explanation.truth import Agreement, agreement, expected_of
from persona_circuits.persona.explanation.verdicts import Null, Numbers, Thresholds, judge, load_thresholds

__all__ = [
    "Explanation",
    "explain",
]


INSIDE, TESTED = 4.5, 6.5
"""How many times as long as asking it takes to look inside, and to test every pair: measured on two models."""


@dataclass(frozen=True)
class Explanation:
    """Everything that was found. ``pairs`` and ``controls`` in the files' order; ``tests`` by their names."""

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


def explain(
    model: Model,
    pairs: ItemFile,
    *,
    controls: ItemFile | None = None,
    thresholds: Thresholds | None = None,
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
        A number among the options is out of range, or no row has a key to group by.
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
    begun = time.monotonic()
    measures = measure_pairs(model, items, source=source, batch_size=options.batch_size, progress=stage("asking"))
    asking = time.monotonic() - begun
    stage = first_told(stage, "with all tests", asking * (INSIDE + TESTED * options.causal))
    rows = encode(Task(tuple(_bare(item.pair) for item in items), source, ""), model)
    search = search_of(model.fingerprint, model.format, options, thresholds, rows, [item.candidates for item in items])
    with Kept(state, search) as kept:
        progress = stage("looking inside")
        seen = look_inside(model, rows, batch_size=options.batch_size, progress=progress, kept=kept)
        null = null_of(measures, seen, thresholds)
        found = [
            _judged(measure, inside, measure.item.pair.row, null, thresholds, model)
            for measure, inside in zip(measures, seen, strict=True)
        ]
        how: dict[str, Any] = {"thresholds": thresholds, "batch_size": options.batch_size, "kept": kept}
        restored = thresholds.restored(null.sigma_0)
        done, tests = _tested(partial(run_test, model, **how), model, found, rows, restored, options, stage)
    sources = tuple((file.source, file.sha256) for file in (pairs, controls) if file is not None)
    return _summed(model, done, null, tests, thresholds, options, sources)


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
    found = dict.fromkeys(key for item in pairs.items for key, value in item.pair.row.items() if is_label(value))
    return tuple(key for key in found if key not in ("clean", "corrupt", "neutral"))


def _bare(pair: PromptPair) -> PromptPair:
    return PromptPair(pair.clean, pair.corrupt, pair.answers, pair.wrong_answers, id=pair.id, line=pair.line)


def _judged(
    measure: PairMeasure,
    inside: Inside,
    keys: Mapping[str, Any],
    null: Null,
    thresholds: Thresholds,
    model: Model,
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


def _tested(
    run: Callable[..., Sequence[Outcome]],
    model: Model,
    found: Sequence[Explained],
    rows: Sequence[Row],
    restored: float,
    options: ExplainOptions,
    stage: Stage,
) -> tuple[list[Explained], dict[str, CausalTest]]:
    """Every pair with the outcome of its own test; and the tests, which all paraphrases are put to as well."""
    outcomes = [_not_run(one, options) for one in found]
    alike = [place for place, one in enumerate(found) if one.item.control == PARAPHRASE]
    tests = {}
    for cause, test in TESTS.items() if options.causal else ():
        own = [place for place, one in enumerate(found) if one.verdict.name == cause]
        if not own:
            continue
        places = sorted({*own, *alike})
        asked = [_asked(model, found[place], rows[place], restored) for place in places]
        outcome_of = run(test=test, asked=asked, progress=stage(f"causal test: {test}"))
        results = dict(zip(places, outcome_of, strict=True))
        for place in own:
            outcomes[place] = results[place]
        studied = [results[place] for place in own if found[place].item.control == "none"]
        tests[test] = causal_test(cause, studied, [results[place] for place in alike])
    return [replace(one, outcome=outcome) for one, outcome in zip(found, outcomes, strict=True)], tests


def _not_run(one: Explained, options: ExplainOptions) -> Outcome:
    test = TESTS.get(one.verdict.name, "")
    return Outcome(test, None, {}, "not asked for" if test and not options.causal else "no test for this verdict")


def _asked(model: Model, one: Explained, row: Row, restored: float) -> Asked:
    ids = [answer_id(one.item.pair.clean, list(row.clean), text, model, []) for text in one.item.candidates]
    return Asked(row, tuple(i for i in ids if i is not None), one.inside, one.flip_gain, restored)


def _summed(
    model: Model,
    done: Sequence[Explained],
    null: Null,
    tests: Mapping[str, CausalTest],
    thresholds: Thresholds,
    options: ExplainOptions,
    sources: tuple[tuple[str, str], ...],
) -> Explanation:
    main = tuple(one for one in done if one.item.control == "none")
    others = tuple(one for one in done if one.item.control != "none")
    judged = [one for one in done if one.expected is not None]
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
            [str(one.expected) for one in judged],
            [one.verdict.name for one in judged],
            clusters=clusters_of([one.item.personas for one in judged], [one.item.question for one in judged])
            if judged
            else None,
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
        notes.append("this model's attention takes no mask of numbers: access is unknown, nearness cannot be tested")
    if len({row.item.question for row in main}) == 1 and len({row.item.persona_pair for row in main}) == 1:
        notes.append("one question and two personas only: prompts differ in little else, so all signals are large")
    if any(row.item.names_no_more for row in main):
        notes.append("some pairs name no further candidates: one choice or two is then of the two declared sides alone")
    return notes
