"""Prompt pairs for one tokenizer, built from personas, questions and templates.

1. Personas meet: all unordered pairs, the opposed ones, or those of a list.
2. Meetings, and wordings of questions, are divided between train and test.
3. For a meeting, a question and a template: what either persona prefers, as the source says.
4. Of all paraphrases of the two, those two that ``persona.pairs.matching`` puts first and finds sound.
5. If wanted, the same question under no persona (``persona.pairs.neutral``); where no wording fits,
   the next two paraphrases are tried.
6. What fails is dropped with its reason; reasons, counts and examples are the report.
7. If wanted, null pairs: two paraphrases of one persona (``persona.pairs.null``).

Chance (which meetings are tested, the order, wordings, filler) comes from the seed alone; filler
is chosen without regard to the personas. No model is asked what it prefers.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

from persona_circuits.circuit.errors import OptionError, TaskError, listed
from persona_circuits.circuit.task import Reader, encode
from persona_circuits.circuit.task.reading import task_of_items
from persona_circuits.persona.data import (
    Persona,
    Question,
    Template,
    TokenizerOnly,
    examples_without,
    preferred,
    shown_options,
)
from persona_circuits.persona.pairs.forms import usable
from persona_circuits.persona.pairs.matching import (
    REASONS,
    Case,
    Drop,
    Setting,
    Side,
    leak_finder,
    matched,
    pair_row,
    setting,
)
from persona_circuits.persona.pairs.neutral import Neutrals, NeutralSide, neutral_side, neutrals, without_neutral
from persona_circuits.persona.pairs.null import Made, null_pairs
from persona_circuits.persona.pairs.options import PairOptions
from persona_circuits.persona.pairs.report import Built, Tally
from persona_circuits.persona.pairs.splits import Split, divided, in_turn, meetings

__all__ = ["build_pairs"]

Had = Sequence[tuple[int, int, int]]


def build_pairs(
    personas: Sequence[Persona],
    questions: Sequence[Question],
    tokenizer_or_model: Any,
    templates: Template | Sequence[Template],
    *,
    contrast: str | Sequence[tuple[str, str]] = "all",
    options: PairOptions | None = None,
    neutral_wordings: Sequence[str] = (),
    only: Collection[tuple[str, str, str]] | None = None,
) -> Built:
    """Pairs of prompts that differ in the persona only, ready for ``circuit.task.batching``.

    Parameters
    ----------
    tokenizer_or_model
        A Hugging Face tokenizer, ``persona.data.prompts.load_tokenizer``'s, or a loaded model.
    contrast
        ``all``, ``opposed`` (personas that name each other as opposite), or pairs of names,
        of which the first becomes ``clean``.
    neutral_wordings
        What stands in the persona's place in ``neutral``, instead of the sources of ``persona.pairs.neutral``.
    only
        Build these alone, each two personas and a question by name; what is held out stays as it is without.

    Returns
    -------
    The rows of a pair file, with what was left out and why.

    Raises
    ------
    TaskError
        Fewer than two personas, a contrast that is not there, or no pair left (with the reasons).
    OptionError
        An option makes no sense, or filler is asked of a template that has none.
    """
    options = (options or PairOptions()).checked()
    templates = (templates,) if isinstance(templates, Template) else tuple(templates)
    _check_fillers(templates, options)
    somebody, nobody = without_neutral(personas) if options.neutral else (personas, ())
    met = meetings(somebody, contrast)
    reader = tokenizer_or_model if isinstance(tokenizer_or_model, Reader) else TokenizerOnly(tokenizer_or_model)
    tally = Tally()
    closed = [question for question in questions if question.options]
    for question in questions:
        if not question.options:
            tally.drop("open question", question.id, len(met) * len(templates))
    splits, statement = divided(met, closed, seed=options.seed, share=options.test_share, most=options.max_pairs)
    tally.skip("in neither split", _between(splits, met, closed) * len(templates))
    how = setting(reader, align=options.align, leaks=options.leaks, seed=options.seed, forms=options.forms)
    neutral = neutrals(neutral_wordings, nobody, reader) if options.neutral else None
    make = _Maker(how, options, neutral, tally)
    pairs = tuple(pair for split in splits for pair in _filled(split, templates, options, make, tally, only))
    if not pairs:
        headline = f"no pair is left of {sum(tally.counts.values())} combination(s) of personas, question and template:"
        raise TaskError(listed(headline, tally.lines(REASONS)))
    pairs, held_out = _without_lone_split(pairs, splits, statement)
    null = null_pairs(pairs, how) if options.null else None
    rows = tuple(dict(pair.row) for pair in pairs)
    _check_rows([*rows, *(null.rows if null else ())], reader, options.align)
    about = _about(reader, templates, options, held_out, personas, tally)
    return Built(rows, tally.dropped(), about, null)


def _check_fillers(templates: Sequence[Template], options: PairOptions) -> None:
    for template in templates:
        if options.filler and ("{filler}" not in template.text or len(template.fillers) < options.filler):
            raise OptionError(
                f"template {template.name} has {len(template.fillers)} filler sentences and --filler asks for "
                f"{options.filler}; give a JSON template with {{filler}} and a 'filler' list"
            )


def _filled(
    split: Split,
    templates: Sequence[Template],
    options: PairOptions,
    make: Callable[..., tuple[Made, ...]],
    tally: Tally,
    only: Collection[tuple[str, str, str]] | None,
) -> Iterator[Made]:
    """The pairs of a split: in turn one pair of each question and template, until the quota is met."""
    counts: dict[str, int] = {}
    rows = 0
    left = len(templates) * len(split.asked) * len(split.meetings)
    for meeting, question, indices, template in in_turn(split, templates, options.seed):
        if rows + (len(question.options) if template.style.lists else 1) > split.quota:
            tally.skip("beyond --max-pairs", left)
            return
        left -= 1
        if only is not None and (meeting[0].name, meeting[1].name, question.id) not in only:
            continue
        if options.per_question and counts.get(question.id, 0) >= options.per_question:
            tally.skip("beyond --per-question", 1)
            continue
        try:
            several = make(meeting, question, indices, template, split.quota - rows)
        except Drop as drop:
            names = f"{meeting[0].name} and {meeting[1].name}, {question.id}"
            tally.drop(drop.reason, f"{names}: {drop.detail}" if drop.detail else names)
            continue
        tally.tried += 1
        counts[question.id], rows = counts.get(question.id, 0) + 1, rows + len(several)
        for pair in several:
            yield Made(pair.case, {**pair.row, **({"split": split.name} if split.name else {})})


def _between(splits: Sequence[Split], met: Sequence[Any], questions: Sequence[Question]) -> int:
    """Meetings and questions of different splits, which are asked in neither."""
    if sum(len(split.meetings) for split in splits) > len(met):
        return 0  # the meetings are shared, and every question is in a split
    return sum(len(split.meetings) * (len(questions) - len(split.asked)) for split in splits)


def _without_lone_split(
    pairs: tuple[Made, ...], splits: Sequence[Split], statement: Mapping[str, Any]
) -> tuple[tuple[Made, ...], Mapping[str, Any]]:
    """Where one of two splits came out empty, no split is named: half a division would be none."""
    empty = [split.name for split in splits if not any(pair.row.get("split", "") == split.name for pair in pairs)]
    if not empty:
        return pairs, statement
    bare = tuple(Made(pair.case, {key: value for key, value in pair.row.items() if key != "split"}) for pair in pairs)
    return bare, {**statement, "held_out": f"nothing: no pair was left for {empty[0]}, so no split is named"}


@dataclass(frozen=True, eq=False)
class _Maker:
    """From a combination to its rows, at most so many; raises ``Drop`` where there is none.

    Where options are listed, it gives a row in all their cyclic orders, or in none. Further variants are other
    wordings of the question in turn, in paraphrases that no variant has had where there are some.
    """

    how: Setting
    options: PairOptions
    nobody: Neutrals | None
    tally: Tally
    finders: Callable[..., Any] = field(default_factory=lambda: lru_cache(maxsize=None)(leak_finder))

    def __call__(
        self, meeting: tuple[Persona, Persona], question: Question, indices: tuple[int, ...], template: Template, n: int
    ) -> tuple[Made, ...]:
        answers = _preferences(*meeting, question)
        key = "/".join([str(self.options.seed), *(p.name for p in meeting), question.id, template.name])
        orders = _orders(question) if template.style.lists else [question]
        turns = _in_turns(indices, random.Random(key))
        filler = _filler(template, question, self.options)
        pairs: list[Made] = []
        for variant in range(max(1, min(self.options.variants, n // len(orders)))):
            rng, had, index = f"{key}/{variant}" if variant else key, _had(pairs), turns[variant % len(turns)]
            cases = [
                Case(*meeting, ordered, index, template, filler, self.finders(ordered.options), order, variant)
                for order, ordered in enumerate(orders)
            ]
            try:
                pairs += [self._row(case, answers, random.Random(rng), turns, had) for case in cases]
            except Drop:
                if not pairs:
                    raise
        return tuple(pairs)

    def _row(self, case: Case, answers: tuple[str, str], rng: random.Random, turns: Sequence[int], had: Had) -> Made:
        rng.choice(turns)
        wordings, sides, neutral = _first_sound(case, self.how, self.nobody, rng, had)
        everything = sides if neutral is None else (*sides, (neutral.prompt, neutral.encoded))
        listed_options, tokens, forms = _candidates(everything, answers, case, self.how, self.tally)
        leaked, align = _leaked(case, wordings, self.options, self.tally), self.options.align
        row = pair_row(case, wordings, sides, tokens, listed_options, leaked, align=align) | forms
        if neutral is not None:
            self.tally.note("neutral", neutral.source, neutral.wording)
            row |= {"neutral": neutral.prompt.text, "neutral_wording": neutral.wording}
            row |= {"n_tokens_neutral": len(neutral.encoded.ids)} if align == "right" else {}
        return Made(case, row)


def _orders(question: Question) -> list[Question]:
    """The question with its options in every cyclic order, so that each stands in each place once."""
    options = question.options
    return [replace(question, options=options[i:] + options[:i]) for i in range(len(options))]


def _in_turns(indices: Sequence[int], rng: random.Random) -> list[int]:
    """Wordings in the order in which variants have them; the first is drawn, the others follow in the list's order."""
    start = indices.index(rng.choice(indices))
    return [*indices[start:], *indices[:start]]


def _had(pairs: Sequence[Made]) -> Had:
    rows = [pair.row for pair in pairs]
    return [(row["wording"], row["wording_a"], row["wording_b"]) for row in rows if row.get("order", 0) == 0]


def _fresh_first(case: Case, how: Setting, rng: random.Random, had: Had) -> Iterable[tuple[Any, tuple[Side, Side]]]:
    """Sound paraphrases, for a further variant those first that no variant has had, and none that asked the same."""
    if not had:
        return matched(case, how, rng)
    a, b = ([entry[side] for entry in had] for side in (1, 2))
    left = [(both, sides) for both, sides in matched(case, how, rng) if (case.index, *both) not in had]
    return sorted(left, key=lambda entry: a.count(entry[0][0]) + b.count(entry[0][1]))


def _first_sound(
    case: Case, how: Setting, nobody: Neutrals | None, rng: random.Random, had: Had
) -> tuple[tuple[int, int], tuple[Side, Side], NeutralSide | None]:
    """The first two sound paraphrases and, if wanted, a neutral wording that goes with them."""
    fault: Drop | None = None
    for wordings, sides in _fresh_first(case, how, rng, had):
        if nobody is None:
            return wordings, sides, None
        try:
            return wordings, sides, neutral_side(case, wordings, sides, nobody, how)
        except Drop as drop:
            fault = fault or drop
    raise fault or Drop("no further variant")


def _preferences(a: Persona, b: Persona, question: Question) -> tuple[str, str]:
    first, second = preferred(question, a), preferred(question, b)
    if first is None or second is None:
        raise Drop("no declared preference", (a if first is None else b).name)
    if first == second:
        raise Drop("same preference", first)
    return first, second


def _filler(template: Template, question: Question, options: PairOptions) -> str:
    """Sentences that depend on question and template only, so they cannot give a persona away."""
    if template.style.examples:
        return examples_without(question.options, template.style.examples)
    rng = random.Random(f"{options.seed}/filler/{question.id}/{template.name}")
    return " ".join(rng.sample(template.fillers, options.filler))


def _candidates(
    sides: Sequence[Side], answers: tuple[str, str], case: Case, how: Setting, tally: Tally
) -> tuple[list[str], tuple[str, str], dict[str, Any]]:
    """All options that can be told apart here, and the two preferred ones, as they follow the prompt; their forms."""
    question = case.question
    shown = dict(zip(question.options, shown_options(question.options, case.template.style), strict=True))
    answers = shown[answers[0]], shown[answers[1]]
    order = list(dict.fromkeys([*answers, *shown.values()]))
    fitting = usable(sides, order, case, how)
    for text, (reason, sentence) in fitting.faults.items():
        if text.strip() in answers:
            raise Drop(reason, sentence)
        tally.note("left_out", f"{question.id}: {sentence}", question.id)
    for note in fitting.notes:
        tally.note("left_out", f"{question.id}: {note}", question.id)
    texts = {text.strip(): text for text in fitting.ids}
    listed_options = [texts[option] for option in shown.values() if option in texts]
    return listed_options, (texts[answers[0]], texts[answers[1]]), fitting.key()


def _leaked(case: Case, wordings: tuple[int, int], options: PairOptions, tally: Tally) -> list[str]:
    """The options that stand in the texts of the two personas."""
    leaks: dict[str, None] = {}
    for persona, text in zip((case.a, case.b), case.texts(wordings), strict=True):
        for option in case.leaks(text):
            tally.note("leaks", f"{persona.name}: {option!r} in {text!r}", case.question.id)
            leaks[option] = None
    if leaks and options.leaks == "drop":
        raise Drop("option in the persona", ", ".join(leaks))
    if not leaks and options.leaks == "only":
        raise Drop("no option in the persona")
    return list(leaks)


def _check_rows(rows: Sequence[Mapping[str, Any]], reader: Reader, align: str) -> None:
    """The files must pass the check that every reader of them makes; anything else is our own mistake."""
    encode(task_of_items(rows, "the pairs built"), reader, align=align)


def _about(
    reader: Reader,
    templates: Sequence[Template],
    options: PairOptions,
    statement: Mapping[str, Any],
    personas: Sequence[Persona],
    tally: Tally,
) -> dict[str, Any]:
    leaks, left_out, nobody = (tally.notes[kind] for kind in ("leaks", "left_out", "neutral"))
    return {
        "tried": tally.tried,
        "not_tried": tally.not_tried,
        "splits": dict(statement),
        "leaks": [{"what": what, "combinations": len(where)} for what, where in leaks.items()],
        "candidates_left_out": [{"what": what, "combinations": len(where)} for what, where in left_out.items()],
        **({"neutral": {source: dict(Counter(texts)) for source, texts in nobody.items()}} if nobody else {}),
        "wordings_left_out": [note for persona in personas for note in persona.notes],
        "options": asdict(options),
        "model": reader.name,
        "context": reader.n_context,
        "templates": [template.about() for template in templates],
    }
