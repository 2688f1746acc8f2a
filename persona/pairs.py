"""Prompt pairs for one tokenizer, built from personas, questions and templates.

1. Personas meet: all unordered pairs, the opposed ones, or those of a list.
2. Meetings, and wordings of questions, are divided between train and test.
3. For a meeting, a question and a template: what either persona prefers, as the source says.
4. Of all paraphrases of the two, two that give prompts of equal token length: without an option
   in their text if possible, then of the same place in both lists, then nearest to the median length.
5. The prompts are checked as ``circuit.task`` checks them, and the parts must lie on the same tokens.
6. What fails is dropped with its reason; reasons, counts and examples are the report.

Chance (which meetings are tested, the order, wordings, filler) comes from the seed alone; filler
is chosen without regard to the personas. No model is asked what it prefers.
"""

from __future__ import annotations

import json
import random
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from circuit.errors import OptionError, TaskError, listed
from circuit.files import atomic, write_json
from circuit.task import PromptPair, Reader, Task, encode
from persona.prompts import Encoded, TokenizerOnly, candidates, encode_prompt, prompt_faults
from persona.sources import Persona, Question, preferred
from persona.splits import Split, divided, in_turn, meetings
from persona.templates import FIELDS, PARTS, Prompt, Template, option_list

__all__ = ["LEAKS", "REASONS", "Built", "Dropped", "PairOptions", "build_pairs", "default_report", "write_pairs"]

LEAKS = ("drop", "keep", "only")
N_EXAMPLES = 5
REASONS = {
    "open question": "the question has no options; give them with --answers",
    "no declared preference": "the sources do not say what a persona prefers; give it with --answers",
    "same preference": "both personas prefer the same option",
    "unequal length": "no two paraphrases give prompts of equal token length; add paraphrases",
    "parts on other tokens": "the lengths are equal but a part lies on other tokens; add paraphrases",
    "candidate merges": "a preferred option merges with the prompt's last token; change the end of the template or cue",
    "candidate of several tokens": "a preferred option is not one token here; use other options",
    "candidates of one token": "the two preferred options are the same token",
    "unknown word": "the tokenizer cannot write a word of the prompt or of an option; use words (and case) it knows",
    "two BOS tokens": "the prompt starts with two BOS tokens; take one out of the template",
    "too long": "the prompt does not fit the model's context",
    "option in the persona": "a persona's text holds an option; add paraphrases without it, or use --leaks keep",
    "no option in the persona": "--leaks only asks for personas whose text holds an option",
}


@dataclass(frozen=True)
class PairOptions:
    """How pairs are chosen.

    ``test_share`` is the share of meetings, and of question wordings, that is held out (0: no
    splits); ``per_question`` the most pairs of one question; ``filler`` the sentences per prompt.
    """

    seed: int = 0
    max_pairs: int = 1000
    per_question: int | None = None
    test_share: float = 0.2
    leaks: str = "drop"
    filler: int = 0

    def checked(self) -> PairOptions:
        """These options.

        Raises:
            OptionError: one of them makes no sense.
        """
        if self.max_pairs < 1 or (self.per_question is not None and self.per_question < 1):
            raise OptionError("--max-pairs and --per-question must be at least 1")
        if not 0 <= self.test_share < 1:
            raise OptionError(f"--test-share must be at least 0 and below 1, got {self.test_share:g}")
        if self.leaks not in LEAKS:
            raise OptionError(f"--leaks must be one of {', '.join(LEAKS)}, got {self.leaks!r}")
        if self.filler < 0:
            raise OptionError(f"--filler must not be negative, got {self.filler}")
        return self


@dataclass(frozen=True)
class Dropped:
    """A reason, how many combinations of personas, question and template it cost, and a few of them."""

    reason: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Built:
    """The rows of a pair file and what was dropped; ``about`` are the remaining keys of the report."""

    rows: tuple[dict[str, Any], ...]
    dropped: tuple[Dropped, ...]
    about: Mapping[str, Any]

    def report(self) -> dict[str, Any]:
        """What is written beside the pairs."""
        dropped = [{**asdict(item), "meaning": REASONS[item.reason]} for item in self.dropped]
        splits = [row.get("split", "") for row in self.rows]
        return {
            "kept": len(self.rows),
            "kept_by_split": {name: splits.count(name) for name in dict.fromkeys(splits) if name},
            "dropped_total": sum(item.count for item in self.dropped),
            "dropped": dropped,
            **self.about,
        }


def build_pairs(
    personas: Sequence[Persona],
    questions: Sequence[Question],
    tokenizer_or_model: Any,
    templates: Template | Sequence[Template],
    *,
    contrast: str | Sequence[tuple[str, str]] = "all",
    options: PairOptions | None = None,
) -> Built:
    """Pairs of prompts that differ in the persona only, of equal token length, ready for ``circuit.task``.

    Parameters
    ----------
    tokenizer_or_model
        A Hugging Face tokenizer, ``persona.prompts.load_tokenizer``'s, or a loaded model.
    contrast
        ``all``, ``opposed`` (personas that name each other as opposite), or pairs of names,
        of which the first becomes ``clean``.

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
    met = meetings(personas, contrast)
    reader = tokenizer_or_model if isinstance(tokenizer_or_model, Reader) else TokenizerOnly(tokenizer_or_model)
    tally = _Tally()
    closed = [question for question in questions if question.options]
    for question in questions:
        if not question.options:
            tally.drop("open question", question.id, len(met) * len(templates))
    splits, statement = divided(met, closed, seed=options.seed, share=options.test_share, most=options.max_pairs)
    tally.skip("in neither split", _between(splits, met, closed) * len(templates))
    make = _row_maker(reader, options, tally)
    rows = tuple(row for split in splits for row in _filled(split, templates, options, make, tally))
    if not rows:
        raise TaskError(_nothing_left(tally))
    rows, statement = _without_lone_split(rows, splits, statement)
    _check_rows(rows, reader)
    about = _about(reader, templates, options, statement, personas, tally)
    return Built(rows, tally.dropped(), about)


def write_pairs(built: Built, path: str | Path, report: str | Path | None = None, **sources: Any) -> Path:
    """Write the pairs as JSON Lines and the report beside them; ``sources`` are put at the report's head.

    Returns the report's path. Either file appears whole or not at all.
    """
    path = Path(path)
    report = default_report(path) if report is None else Path(report)
    with atomic(path) as temporary:
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in built.rows)
        temporary.write_text("".join(lines), encoding="utf-8")
    write_json({**sources, **built.report()}, report)
    return report


def default_report(path: str | Path) -> Path:
    """Where the report of a pair file lies: ``pairs.report.json`` beside ``pairs.jsonl``."""
    return Path(path).with_suffix(".report.json")


@dataclass
class _Tally:
    """What happened while pairs were made; the one thing here that grows."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, dict[str, list[str]]] = field(default_factory=lambda: {"leaks": {}, "left_out": {}})
    tried: int = 0
    not_tried: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, example: str, count: int = 1) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.tried += count
        shown = self.examples.setdefault(reason, [])
        if len(shown) < N_EXAMPLES:
            shown.append(example)

    def note(self, kind: str, what: str, where: str) -> None:
        self.notes[kind].setdefault(what, []).append(where)

    def skip(self, why: str, count: int) -> None:
        if count:
            self.not_tried[why] = self.not_tried.get(why, 0) + count

    def dropped(self) -> tuple[Dropped, ...]:
        order = sorted(self.counts, key=lambda reason: (-self.counts[reason], reason))
        return tuple(Dropped(reason, self.counts[reason], tuple(self.examples[reason])) for reason in order)


class _Drop(Exception):
    """A combination makes no pair: the reason, a key of REASONS, and what is special here."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def _check_fillers(templates: Sequence[Template], options: PairOptions) -> None:
    for template in templates:
        if options.filler and ("{filler}" not in template.text or len(template.fillers) < options.filler):
            raise OptionError(
                f"template {template.name} has {len(template.fillers)} filler sentences and --filler asks for "
                f"{options.filler}; give a JSON template with {{filler}} and a 'filler' list"
            )


def _filled(
    split: _Split,
    templates: Sequence[Template],
    options: PairOptions,
    make: Callable[..., dict[str, Any]],
    tally: _Tally,
) -> Iterator[dict[str, Any]]:
    """The rows of a split: in turn one pair of each question and template, until the quota is met."""
    made: dict[str, int] = {}
    left = len(templates) * len(split.asked) * len(split.meetings)
    for meeting, question, indices, template in in_turn(split, templates, options.seed):
        if sum(made.values()) >= split.quota:
            tally.skip("beyond --max-pairs", left)
            return
        left -= 1
        if options.per_question and made.get(question.id, 0) >= options.per_question:
            tally.skip("beyond --per-question", 1)
            continue
        try:
            row = make(meeting, question, indices, template)
        except _Drop as drop:
            names = f"{meeting[0].name} and {meeting[1].name}, {question.id}"
            tally.drop(drop.reason, f"{names}: {drop.detail}" if drop.detail else names)
            continue
        tally.tried += 1
        made[question.id] = made.get(question.id, 0) + 1
        yield row | ({"split": split.name} if split.name else {})


def _between(splits: Sequence[Split], met: Sequence[Any], questions: Sequence[Question]) -> int:
    """Meetings and questions of different splits, which are asked in neither."""
    if sum(len(split.meetings) for split in splits) > len(met):
        return 0  # the meetings are shared, and every question is in a split
    return sum(len(split.meetings) * (len(questions) - len(split.asked)) for split in splits)


def _without_lone_split(
    rows: tuple[dict[str, Any], ...], splits: Sequence[Split], statement: Mapping[str, Any]
) -> tuple[tuple[dict[str, Any], ...], Mapping[str, Any]]:
    """Where one of two splits came out empty, no split is named: half a division would be none."""
    empty = [split.name for split in splits if not any(row.get("split", "") == split.name for row in rows)]
    if not empty:
        return rows, statement
    bare = tuple({key: value for key, value in row.items() if key != "split"} for row in rows)
    return bare, {**statement, "held_out": f"nothing: no pair was left for {empty[0]}, so no split is named"}


@dataclass(frozen=True)
class _Case:
    """A meeting asked one wording of a question in one template; ``leaks`` finds options in a text."""

    a: Persona
    b: Persona
    question: Question
    index: int
    template: Template
    filler: str
    leaks: Callable[[str], list[str]]

    def prompt(self, wording: str) -> Prompt:
        asked = self.question.wordings[self.index]
        cue = self.template.cue if self.question.cue is None else self.question.cue
        values = (wording, self.filler, asked, option_list(self.question.options), cue)
        return self.template.render(dict(zip(FIELDS, values, strict=True)))


def _row_maker(reader: Reader, options: PairOptions, tally: _Tally) -> Callable[..., dict[str, Any]]:
    """A function from a combination to its row, which raises ``_Drop`` where there is none."""
    read = lru_cache(maxsize=50_000)(lambda text, spans: encode_prompt(Prompt(text, dict(spans)), reader))
    finders = lru_cache(maxsize=None)(_leak_finder)

    def encoded(prompt: Prompt) -> Encoded:
        return read(prompt.text, tuple(prompt.spans.items()))

    def make(
        meeting: tuple[Persona, Persona], question: Question, indices: tuple[int, ...], template: Template
    ) -> dict[str, Any]:
        answers = _preferences(*meeting, question)
        rng = random.Random("/".join([str(options.seed), *(p.name for p in meeting), question.id, template.name]))
        filler = _filler(template, question, options)
        case = _Case(*meeting, question, rng.choice(indices), template, filler, finders(question.options))
        wordings, sides = _first_sound(case, _matched(case, encoded, options, rng), encoded, reader)
        listed_options, tokens = _candidates(sides, answers, question, reader, tally)
        leaked = _leaked(case, wordings, options, tally)
        return _row(case, wordings, sides, tokens, listed_options, leaked)

    return make


def _preferences(a: Persona, b: Persona, question: Question) -> tuple[str, str]:
    first, second = preferred(question, a), preferred(question, b)
    if first is None or second is None:
        raise _Drop("no declared preference", (a if first is None else b).name)
    if first == second:
        raise _Drop("same preference", first)
    return first, second


def _filler(template: Template, question: Question, options: PairOptions) -> str:
    """Sentences that depend on question and template only, so they cannot give a persona away."""
    rng = random.Random(f"{options.seed}/filler/{question.id}/{template.name}")
    return " ".join(rng.sample(template.fillers, options.filler))


def _matched(
    case: _Case, encoded: Callable[[Prompt], Encoded], options: PairOptions, rng: random.Random
) -> list[tuple[int, int]]:
    """The places of two paraphrases, the best first; see step 4 of the module."""
    lengths = [[len(encoded(case.prompt(text)).ids) for text in persona.wordings] for persona in (case.a, case.b)]
    leaking = [[bool(case.leaks(text)) for text in persona.wordings] for persona in (case.a, case.b)]
    equal = [(i, j) for i, j in product(*(range(len(side)) for side in lengths)) if lengths[0][i] == lengths[1][j]]
    if not equal:
        shown = [f"{p.name} {'/'.join(map(str, side))}" for p, side in zip((case.a, case.b), lengths, strict=True)]
        raise _Drop("unequal length", f"tokens {', '.join(shown)}")
    middle = statistics.median(lengths[0] + lengths[1])
    clean = options.leaks != "only"

    def cost(places: tuple[int, int]) -> tuple[Any, ...]:
        i, j = places
        return (leaking[0][i] or leaking[1][j]) == clean, i != j, abs(lengths[0][i] - middle), rng.random()

    return sorted(equal, key=cost)


def _first_sound(
    case: _Case, matched: Sequence[tuple[int, int]], encoded: Callable[[Prompt], Encoded], reader: Reader
) -> tuple[tuple[int, int], list[tuple[Prompt, Encoded]]]:
    """The first two paraphrases whose prompts have no fault, else the fault of the best."""
    faults: list[_Drop] = []
    for wordings in matched:
        sides = [(prompt, encoded(prompt)) for prompt in map(case.prompt, _texts(case, wordings))]
        try:
            _check_sides(sides, reader)
        except _Drop as drop:
            faults.append(drop)
            continue
        return wordings, sides
    raise faults[0]


def _texts(case: _Case, wordings: tuple[int, int]) -> tuple[str, str]:
    return case.a.wordings[wordings[0]], case.b.wordings[wordings[1]]


def _check_sides(sides: Sequence[tuple[Prompt, Encoded]], reader: Reader) -> None:
    """Each prompt for itself, and both together: the same tokens but for the persona, in the same places."""
    for _, side in sides:
        if side.unknown:
            raise _Drop("unknown word", repr(side.unknown))
        for fault in prompt_faults(side, reader):
            raise _Drop("two BOS tokens" if "BOS" in fault else "too long", fault)
    (_, clean), (_, corrupt) = sides
    start, end = clean.tokens["persona"]
    if clean.tokens != corrupt.tokens or any(
        clean.ids[place] != corrupt.ids[place] for place in (slice(start), slice(end, None))
    ):
        raise _Drop("parts on other tokens", f"persona on {clean.tokens['persona']} and {corrupt.tokens['persona']}")


def _candidates(
    sides: Sequence[tuple[Prompt, Encoded]],
    answers: tuple[str, str],
    question: Question,
    reader: Reader,
    tally: _Tally,
) -> tuple[list[str], tuple[str, str]]:
    """All options that are one token here, and the two preferred ones among them, as they follow the prompt."""
    order = list(dict.fromkeys([*answers, *question.options]))
    found = candidates(sides, order, reader)
    for text, (reason, sentence) in found.faults.items():
        if text.strip() in answers:
            raise _Drop(reason, sentence)
        tally.note("left_out", f"{question.id}: {sentence}", question.id)
    usable = {text.strip(): text for text in found.ids}
    return [usable[option] for option in question.options if option in usable], (usable[answers[0]], usable[answers[1]])


def _leaked(case: _Case, wordings: tuple[int, int], options: PairOptions, tally: _Tally) -> list[str]:
    """The options that stand in the texts of the two personas."""
    found: dict[str, None] = {}
    for persona, text in zip((case.a, case.b), _texts(case, wordings), strict=True):
        for option in case.leaks(text):
            tally.note("leaks", f"{persona.name}: {option!r} in {text!r}", case.question.id)
            found[option] = None
    if found and options.leaks == "drop":
        raise _Drop("option in the persona", ", ".join(found))
    if not found and options.leaks == "only":
        raise _Drop("no option in the persona")
    return list(found)


def _leak_finder(options: tuple[str, ...]) -> Callable[[str], list[str]]:
    """Finds options as whole words, in any case, with any spacing or hyphen between their words."""
    patterns = {
        option: re.compile(r"(?<!\w)" + r"[\s_-]*".join(map(re.escape, re.split(r"[\s_-]+", option))) + r"(?!\w)", re.I)
        for option in options
    }
    found = lru_cache(maxsize=None)(lambda text: [option for option in options if patterns[option].search(text)])
    return lambda text: found(text)


def _row(
    case: _Case,
    wordings: tuple[int, int],
    sides: Sequence[tuple[Prompt, Encoded]],
    tokens: tuple[str, str],
    options: list[str],
    leaked: list[str],
) -> dict[str, Any]:
    (clean, encoded), (corrupt, _) = sides
    names = {"persona_a": case.a.name, "persona_b": case.b.name, "question": case.question.id}
    return {
        "id": "/".join([f"{case.a.name}~{case.b.name}", f"{case.question.id}.{case.index}", case.template.name]),
        "clean": clean.text,
        "corrupt": corrupt.text,
        "answers": [tokens[0]],
        "wrong_answers": [tokens[1]],
        **names,
        "candidates": options,
        "template": case.template.name,
        "wording": case.index,
        "wording_a": wordings[0],
        "wording_b": wordings[1],
        "filler": case.filler,
        "n_tokens": len(encoded.ids),
        "leak": bool(leaked),
        "leaked": leaked,
        "spans": {"clean": _spans(*sides[0]), "corrupt": _spans(*sides[1])},
    }


def _spans(prompt: Prompt, encoded: Encoded) -> dict[str, dict[str, list[int]]]:
    return {
        name: {"chars": list(prompt.spans[name]), "tokens": list(encoded.tokens[name])}
        for name in ("prefix", *PARTS, "cue")
    }


def _nothing_left(tally: _Tally) -> str:
    total = sum(tally.counts.values())
    reasons = [
        f"{item.count} × {item.reason}: {REASONS[item.reason]} (such as {item.examples[0]})" for item in tally.dropped()
    ]
    return listed(f"no pair is left of {total} combination(s) of personas, question and template:", reasons)


def _check_rows(rows: Sequence[dict[str, Any]], reader: Reader) -> None:
    """The file must pass the check that every reader of it makes; anything else is our own mistake."""
    pairs = tuple(
        PromptPair(row["clean"], row["corrupt"], tuple(row["answers"]), tuple(row["wrong_answers"]), row["id"], line=i)
        for i, row in enumerate(rows, 1)
    )
    encode(Task(pairs, "the pairs built", ""), reader)


def _about(
    reader: Reader,
    templates: Sequence[Template],
    options: PairOptions,
    statement: Mapping[str, Any],
    personas: Sequence[Persona],
    tally: _Tally,
) -> dict[str, Any]:
    leaks, left_out = tally.notes["leaks"], tally.notes["left_out"]
    return {
        "tried": tally.tried,
        "not_tried": tally.not_tried,
        "splits": dict(statement),
        "leaks": [{"what": what, "combinations": len(where)} for what, where in leaks.items()],
        "candidates_left_out": [{"what": what, "combinations": len(where)} for what, where in left_out.items()],
        "wordings_left_out": [note for persona in personas for note in persona.notes],
        "options": asdict(options),
        "model": reader.name,
        "context": reader.n_context,
        "templates": [template.about() for template in templates],
    }
