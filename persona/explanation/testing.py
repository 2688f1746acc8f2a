"""The causal tests of all pairs, and of all paraphrases beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Stage
from persona_circuits.circuit.task import Row, answer_id
from persona_circuits.persona.behaviour import PARAPHRASE, PairMeasure
from persona_circuits.persona.explanation.causal import TESTS, Asked, Outcome, flip_gain
from persona_circuits.persona.explanation.groups import Explained
from persona_circuits.persona.explanation.inside import Inside
from persona_circuits.persona.explanation.null import CausalTest, causal_test
from persona_circuits.persona.explanation.wordings import mean_outcome

__all__ = ["Asking", "tested"]


@dataclass(frozen=True)
class Asking:
    """One row as it was asked: its ids, its measures, and what is inside."""

    row: Row
    measure: PairMeasure
    inside: Inside

    def asked(self, model: Model, restored: float) -> Asked:
        """What its causal test has to know."""
        item = self.measure.item
        ids = [answer_id(item.pair.clean, list(self.row.clean), text, model, []) for text in item.candidates]
        gain = flip_gain(self.measure.log_probs_a, self.measure.log_probs_b)
        return Asked(self.row, tuple(i for i in ids if i is not None), self.inside, gain, restored)


def tested(
    run: Callable[..., Sequence[Outcome]],
    model: Model,
    pairs: Sequence[Explained],
    askings: Sequence[Sequence[Asking]],
    restored: float,
    stage: Stage,
    *,
    causal: bool,
) -> tuple[list[Explained], dict[str, CausalTest]]:
    """Every pair with the outcome of its own test; and the tests, which all paraphrases are put to as well.

    ``askings`` are the rows of each pair, one or several.
    """
    outcomes = [_not_run(pair, causal) for pair in pairs]
    alike = [place for place, pair in enumerate(pairs) if pair.item.control == PARAPHRASE]
    tests = {}
    for cause, test in TESTS.items() if causal else ():
        own = [place for place, pair in enumerate(pairs) if pair.verdict.name == cause]
        if not own:
            continue
        places = sorted({*own, *alike})
        rows = [(place, asking.asked(model, restored)) for place in places for asking in askings[place]]
        outcome_of = run(test=test, asked=[asked for _, asked in rows], progress=stage(f"causal test: {test}"))
        several: dict[int, list[Outcome]] = {}
        for (place, _), outcome in zip(rows, outcome_of, strict=True):
            several.setdefault(place, []).append(outcome)
        results = {place: mean_outcome(group) for place, group in several.items()}
        for place in own:
            outcomes[place] = results[place]
        studied = [results[place] for place in own if pairs[place].item.control == "none"]
        tests[test] = causal_test(cause, studied, [results[place] for place in alike])
    return [replace(pair, outcome=outcome) for pair, outcome in zip(pairs, outcomes, strict=True)], tests


def _not_run(pair: Explained, causal: bool) -> Outcome:
    test = TESTS.get(pair.verdict.name, "")
    return Outcome(test, None, {}, "not asked for" if test and not causal else "no test for this verdict")
