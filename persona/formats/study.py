"""Every format on the same pairs: how much of the answer it holds, and how much of that is the persona.

1. A sample of what personas and questions declare is drawn, of the training split that ``pairs`` would make with the
   same seed: test persona pairs and wordings are not seen.
2. Each format puts the same choices: mass, D with its interval, sigma_0 over paraphrases, collapse; where options are
   listed, the mean over all their orders, and the order effect; D where a friend is the persona; and of some
   prompts the greedy answer, and whether it begins with the option that the first token's logits choose.
3. Recommended is the format with the largest D among those with enough mass. The largest of several is too large
   by selection, so it alone is then measured on the held-out pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress, untold
from persona_circuits.circuit.task import token_ids
from persona_circuits.circuit.task.reading import task_of_items
from persona_circuits.persona.behaviour import PairMeasure, StudyOptions, averaged, measure_pairs, summarise
from persona_circuits.persona.data import Estimate, Persona, Question, Words, items_of, load_format
from persona_circuits.persona.formats.options import FormatOptions
from persona_circuits.persona.pairs import PairOptions, build_pairs, framed
from persona_circuits.persona.responses import Sampling, continuations

__all__ = ["FormatRow", "FormatStudy", "calibrated", "recommended", "study_formats"]

ANSWER_TOKENS = 16
CALIBRATION = 8
"""Pairs on which ``calibrated`` compares the formats."""
Row = Mapping[str, Any]
Sample = frozenset[tuple[str, str, str]]


@dataclass(frozen=True)
class FormatRow:
    """One format on one split. D, ``sigma_0``, ``order_effect`` and ``friend`` (D of a friend) are in logits.

    ``collapse`` is the share of pairs with one choice; ``named`` the share of answers, spelt out, that begin with the
    option of the first token; ``words`` the most likely first tokens; ``answer`` one of the answers.
    """

    format: str
    split: str
    n: int
    mass: float
    divergence: Estimate
    p_zero: float
    sigma_0: float | None
    order_effect: float | None
    collapse: float
    friend: float | None
    named: float | None
    words: Words
    answer: str


@dataclass(frozen=True)
class FormatStudy:
    """All formats of one model; ``skipped`` says why a format is missing; ``held_out`` tests the recommended one."""

    model: str
    fingerprint: str
    options: FormatOptions
    rows: tuple[FormatRow, ...]
    skipped: Mapping[str, str]
    best: str
    held_out: FormatRow | None


def study_formats(
    model: Model,
    personas: Sequence[Persona],
    questions: Sequence[Question],
    *,
    contrast: str | Sequence[tuple[str, str]] = "opposed",
    options: FormatOptions | None = None,
    stage: Callable[[str], Progress] | None = None,
) -> FormatStudy:
    """Measure the formats of ``options`` on a model, with the personas' declared preferences.

    Raises:
        OptionError: an option makes no sense.
        TaskError: no format can be put to this model.
    """
    options = (options or FormatOptions()).checked()
    stages = stage or (lambda _: untold)
    ask = _Asking(model, tuple(personas), tuple(questions), contrast, options)
    study = ask.study(stages)
    try:
        held_out = ask.measured(study.best, "test", ask.sample("test"), stages(f"{study.best}, held out"))
    except TaskError:
        return study
    return replace(study, held_out=held_out)


def calibrated(
    model: Model,
    personas: Sequence[Persona],
    questions: Sequence[Question],
    *,
    contrast: str | Sequence[tuple[str, str]] = "all",
    like: PairOptions | None = None,
    stage: Callable[[str], Progress] | None = None,
) -> FormatStudy:
    """The formats on a small sample of the training split alone, and which of them to use: what ``pairs`` does.

    As ``study_formats``, without a friend's D, answers that are spelt out, and the test on held-out pairs; splits are
    those of the pairs that are built with the options ``like``.

    Raises:
        OptionError: an option makes no sense.
        TaskError: no format can be put to this model.
    """
    like = like or PairOptions()
    share = like.test_share or FormatOptions.test_share
    options = FormatOptions(max_pairs=CALIBRATION, n_answers=0, seed=like.seed, test_share=share).checked()
    ask = _Asking(model, tuple(personas), tuple(questions), contrast, options, friend=False)
    return ask.study(stage or (lambda _: untold))


def recommended(rows: Sequence[FormatRow], min_mass: float) -> FormatRow:
    """The row with the largest D among those with ``min_mass``; among all where none has it."""
    enough = [row for row in rows if row.mass >= min_mass] or list(rows)
    return max(enough, key=lambda row: row.divergence.value)


@dataclass(frozen=True)
class _Asking:
    """What is asked, whatever the format."""

    model: Model
    personas: tuple[Persona, ...]
    questions: tuple[Question, ...]
    contrast: Any
    options: FormatOptions
    friend: bool = True

    def study(self, stages: Callable[[str], Progress]) -> FormatStudy:
        """Every format on the training sample."""
        sample = self.sample("train")
        rows: list[FormatRow] = []
        skipped: dict[str, str] = {}
        for name in self.options.chosen:
            try:
                rows.append(self.measured(name, "train", sample, stages(f"format {name}")))
            except (OptionError, TaskError) as error:
                skipped[name] = str(error).splitlines()[0]
        if not rows:
            raise TaskError(f"no format can be put to {self.model.name}: " + "; ".join(skipped.values()))
        best = recommended(rows, self.options.min_mass)
        about = (self.model.name, self.model.fingerprint, self.options)
        return FormatStudy(*about, tuple(rows), skipped, best.format, None)

    def measured(self, name: str, split: str, sample: Sample, progress: Progress) -> FormatRow:
        """A format's row on the sample of one split."""
        rows, null = self._rows(name, split, sample)
        friend = framed(rows, ("friend",), self.model).rows if self.friend else ()
        items = items_of(task_of_items([*rows, *null, *friend], f"format {name}")).items
        measures = averaged(measure_pairs(self.model, items, batch_size=self.options.batch_size, progress=progress))
        friends = [m for m in measures if "variant" in m.item.pair.row]
        rest = [m for m in measures if "variant" not in m.item.pair.row]
        how = StudyOptions(n_resamples=self.options.n_resamples, seed=self.options.seed)
        study = summarise(rest, how, model=self.model.name)
        answers, named = self._answers([m for m in rest if m.item.control == "none"])
        whole = study.overall.summary
        return FormatRow(
            format=name,
            split=split,
            n=whole.n,
            mass=whole.mass,
            divergence=whole.divergence,
            p_zero=whole.p_zero,
            sigma_0=study.sigma_0,
            order_effect=study.order_effect,
            collapse=whole.collapse.value,
            friend=float(np.mean([m.divergence for m in friends])) if friends else None,
            named=named,
            words=study.words,
            answer=answers[0] if answers else "",
        )

    def _rows(self, name: str, split: str, sample: Sample) -> tuple[Sequence[Row], Sequence[Row]]:
        """The pairs of the sample in a format, and their null pairs."""
        template = load_format(name, self.model.tokenizer)
        how: dict[str, Any] = {"contrast": self.contrast, "options": self._how(), "only": sample}
        built = build_pairs(self.personas, self.questions, self.model, template, **how)
        null = built.null.rows if built.null else ()
        rows = [row for row in built.rows if row.get("split", split) == split]
        if not rows:
            raise TaskError(f"format {name}: no pair of split {split} is left")
        return rows, [row for row in null if row.get("split", split) == split]

    def sample(self, split: str) -> Sample:
        """Which personas meet in which questions: the first pairs that the simplest format gives in this split."""
        template = load_format("cue", self.model.tokenizer)
        built = build_pairs(
            self.personas, self.questions, self.model, template, contrast=self.contrast, options=self._how(null=False)
        )
        rows = [row for row in built.rows if row.get("split", "train") == split]
        if not rows:
            raise TaskError(f"there is no pair of split {split}")
        return frozenset(_key(row) for row in rows[: self.options.max_pairs])

    def _how(self, *, null: bool = True) -> PairOptions:
        return PairOptions(
            seed=self.options.seed, max_pairs=100_000, test_share=self.options.test_share, null=null
        ).checked()

    def _answers(self, measures: Sequence[PairMeasure]) -> tuple[list[str], float | None]:
        """Greedy answers of some pairs' clean prompts, and the share that begins with the option of the first token."""
        sampling = Sampling(max_new_tokens=ANSWER_TOKENS, temperature=0.0)
        answers, agree = [], []
        for measure in measures[: self.options.n_answers]:
            pair = measure.item.pair
            answer = continuations(self.model, [token_ids(pair.clean, self.model)], sampling, keys=[pair.id])[0].text
            answers.append(answer)
            agree.append(_names(answer, _first_choice(measure)))
        return answers, float(np.mean(agree)) if agree else None


def _first_choice(measure: PairMeasure) -> str:
    """What the answer says for the choice: the option itself, or its letter in the first order."""
    row = measure.item.pair.row
    options, shown = row.get("options"), row.get("candidates", [])
    return shown[options.index(measure.choice_a)] if options and measure.choice_a in options else measure.choice_a


def _names(answer: str, choice: str) -> bool:
    """Whether an answer begins with this word, in any case, after an article or none."""
    words = [word.strip(".,:;!?\"'()*") for word in answer.lower().split()]
    return [word for word in words if word not in ("a", "an", "the", "")][:1] == [choice.strip().lower()]


def _key(row: Row) -> tuple[str, str, str]:
    return row["persona_a"], row["persona_b"], row["question"]
