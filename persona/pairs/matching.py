"""Which paraphrases of two personas meet in a question and a template, and what their prompts must have in common.

Paraphrases are tried from the best: without an option in their text if possible, then of equal token
length, then of the same place in both lists, then nearest to the median length. With ``equal`` other
lengths are not tried at all. Outside the persona the two prompts must have the same tokens, so that
all that a longer wording does to them is to move what stands after it.
"""

from __future__ import annotations

import random
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

from persona_circuits.circuit.task import Reader, shared_ends
from persona_circuits.persona.data import (
    FIELDS,
    PARTS,
    Encoded,
    Persona,
    Prompt,
    Question,
    Template,
    encode_prompt,
    first_person,
    listing,
    prompt_faults,
    shown_options,
)

__all__ = ["REASONS", "Case", "Drop", "Setting", "Side", "check_sides", "leak_finder", "matched", "pair_row", "setting"]

REASONS = {
    "open question": "the question has no options; give them with --answers",
    "no declared preference": "the sources do not say what a persona prefers; give it with --answers, or let the model "
    "declare it with --ask-model",
    "no cue": "the question has no cue, which is all that this format asks; give it a 'cue', or use another --format",
    "same preference": "both personas prefer the same option",
    "unequal length": "no two paraphrases give prompts of equal token length; add paraphrases, or use --align right",
    "parts on other tokens": "the prompts differ outside the persona, or a part lies on other tokens; add paraphrases",
    "no common end": "the prompts end in the persona, so there is nothing to align on; let the template end in a cue",
    "candidate merges": "a preferred option merges with the prompt's last token; change the end of the template or cue",
    "candidate of several tokens": "a preferred option is not one token here; use other options, or a --cue that holds "
    "all but their last token ('I would like mashed')",
    "candidates of one token": "the two preferred options are the same token",
    "no form": "a preferred option has no form that is its own here; give it 'forms' in the questions",
    "unknown word": "the tokenizer cannot write a word of the prompt or of an option; use words (and case) it knows",
    "two BOS tokens": "the prompt starts with two BOS tokens; take one out of the template",
    "too long": "the prompt does not fit the model's context",
    "beyond the embedding": "the tokenizer has tokens that the model has no embedding for; use other words",
    "option in the persona": "a persona's text holds an option; add paraphrases without it, or use --leaks keep",
    "no option in the persona": "--leaks only asks for personas whose text holds an option",
    "no neutral wording of equal length": "no neutral wording gives a prompt of the pair's token length; "
    "add some with --neutral-wordings, or use --align right",
    "no further variant": "all paraphrases and wordings are in other rows of the pair; add some",
    "no neutral wording": "all neutral wordings tried have a fault or hold an option; add some with --neutral-wordings",
}
Side = tuple[Prompt, Encoded]


class Drop(Exception):
    """A combination makes no pair: the reason, a key of REASONS, and what is special here."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Case:
    """A meeting asked one wording of a question in one template; ``leaks`` finds options in a text."""

    a: Persona
    b: Persona
    question: Question
    index: int
    template: Template
    filler: str
    leaks: Callable[[str], list[str]]
    order: int = 0
    variant: int = 0

    def prompt(self, wording: str) -> Prompt:
        """The prompt under a wording of a persona."""
        asked, style = self.question.wordings[self.index], self.template.style
        own = None if style.own_cue else self.question.cue_of(self.index)
        if own is None and style.needs_cue:
            raise Drop("no cue", self.question.id)
        persona = first_person(wording) if style.first_person else wording
        cue = self.template.cue if own is None else own
        values = (persona, self.filler, asked, listing(self.question.options, style), cue)
        return self.template.render(dict(zip(FIELDS, values, strict=True)))

    def about_order(self, name: str, options: Sequence[str]) -> dict[str, Any]:
        """Where options are listed: the row's name with its order, and what its candidates stand for."""
        if not self.template.style.lists:
            return {}
        return {"id": f"{name}/order-{self.order}", "orders_of": name, "order": self.order, "options": list(options)}

    def texts(self, wordings: tuple[int, int]) -> tuple[str, str]:
        """What these two places in the personas' lists of paraphrases say."""
        return self.a.wordings[wordings[0]], self.b.wordings[wordings[1]]


@dataclass(frozen=True)
class Setting:
    """How prompts are read, aligned and chosen; ``encoded`` gives a prompt's tokens, and remembers them.

    With ``forms`` options are sets of them.
    """

    reader: Reader
    encoded: Callable[[Prompt], Encoded]
    align: str = "equal"
    leaks: str = "drop"
    seed: int = 0
    forms: bool = False

    def side(self, case: Case, wording: str) -> Side:
        """The prompt of a case under a wording."""
        prompt = case.prompt(wording)
        return prompt, self.encoded(prompt)


def setting(reader: Reader, *, align: str, leaks: str, seed: int, forms: bool = False) -> Setting:
    """A setting for this reader."""
    read = lru_cache(maxsize=50_000)(lambda text, spans: encode_prompt(Prompt(text, dict(spans)), reader))
    return Setting(reader, lambda prompt: read(prompt.text, tuple(prompt.spans.items())), align, leaks, seed, forms)


def matched(case: Case, setting: Setting, rng: random.Random) -> Iterator[tuple[tuple[int, int], tuple[Side, Side]]]:
    """The places and prompts of two paraphrases without a fault, the best first.

    Raises:
        Drop: there are none, with the fault of the best.
    """
    faults: list[Drop] = []
    sound = False
    for wordings in _in_order(case, setting, rng):
        first, second = (setting.side(case, text) for text in case.texts(wordings))
        try:
            check_sides((first, second), setting)
        except Drop as drop:
            faults.append(drop)
            continue
        sound = True
        yield wordings, (first, second)
    if not sound:
        raise faults[0]


def _in_order(case: Case, setting: Setting, rng: random.Random) -> list[tuple[int, int]]:
    lengths = [[len(setting.side(case, text)[1].ids) for text in p.wordings] for p in (case.a, case.b)]
    leaking = [[bool(case.leaks(text)) for text in persona.wordings] for persona in (case.a, case.b)]
    places = list(product(range(len(lengths[0])), range(len(lengths[1]))))
    if setting.align == "equal":
        places = [(i, j) for i, j in places if lengths[0][i] == lengths[1][j]]
    if not places:
        shown = [f"{p.name} {'/'.join(map(str, side))}" for p, side in zip((case.a, case.b), lengths, strict=True)]
        raise Drop("unequal length", f"tokens {', '.join(shown)}")
    middle = statistics.median(lengths[0] + lengths[1])
    clean = setting.leaks != "only"

    def cost(place: tuple[int, int]) -> tuple[Any, ...]:
        (i, n), (j, m) = ((at, side[at]) for at, side in zip(place, lengths, strict=True))
        return (leaking[0][i] or leaking[1][j]) == clean, abs(n - m), i != j, abs((n + m) / 2 - middle), rng.random()

    return sorted(places, key=cost)


def check_sides(sides: tuple[Side, Side], setting: Setting) -> None:
    """Each prompt for itself, and both together: the same tokens but for the persona, moved by its length at most.

    Raises:
        Drop: they do not.
    """
    for _, side in sides:
        if side.unknown:
            raise Drop("unknown word", repr(side.unknown))
        for fault in prompt_faults(side, setting.reader):
            reason = "two BOS tokens" if "BOS" in fault else "beyond the embedding" if "beyond" in fault else "too long"
            raise Drop(reason, fault)
    (_, clean), (_, corrupt) = sides
    if setting.align == "equal" and len(clean.ids) != len(corrupt.ids):
        raise Drop("unequal length", f"tokens {len(clean.ids)} and {len(corrupt.ids)}")
    if _outside(clean) != _outside(corrupt) or _moved(clean, corrupt) != corrupt.tokens:
        raise Drop("parts on other tokens", f"persona on {clean.tokens['persona']} and {corrupt.tokens['persona']}")
    if setting.align == "right" and not shared_ends(clean.ids, corrupt.ids)[1]:
        raise Drop("no common end", f"{sides[0][0].text!r} and {sides[1][0].text!r}")


def _outside(side: Encoded) -> tuple[tuple[int, ...], tuple[int, ...]]:
    start, end = side.tokens["persona"]
    return side.ids[:start], side.ids[end:]


def _moved(clean: Encoded, corrupt: Encoded) -> dict[str, tuple[int, ...]]:
    """The parts of the one prompt where the other's length puts them."""
    _, end = clean.tokens["persona"]
    shift = len(corrupt.ids) - len(clean.ids)
    return {name: tuple(at + shift if at >= end else at for at in span) for name, span in clean.tokens.items()}


def leak_finder(options: tuple[str, ...]) -> Callable[[str], list[str]]:
    """Finds options as whole words, with any spacing or hyphen between their words.

    In any case, except for single letters: "a" is an article, so option A is found only as it is written.
    """
    patterns = {
        option: re.compile(
            r"(?<!\w)" + r"[\s_-]*".join(map(re.escape, re.split(r"[\s_-]+", option))) + r"(?!\w)",
            re.I if len(option.strip()) > 1 else 0,
        )
        for option in options
    }
    leaks = lru_cache(maxsize=None)(lambda text: [option for option in options if patterns[option].search(text)])
    return lambda text: leaks(text)


def pair_row(
    case: Case,
    wordings: tuple[int, int],
    sides: tuple[Side, Side],
    tokens: tuple[str, str],
    options: Sequence[str],
    leaked: Sequence[str],
    *,
    align: str,
) -> dict[str, Any]:
    """A line of the pair file; ``tokens`` (the answers) and ``options`` (all candidates) as they follow the prompt."""
    (clean, encoded), (corrupt, other) = sides
    names = {"persona_a": case.a.name, "persona_b": case.b.name, "question": case.question.id}
    name = "/".join([f"{case.a.name}~{case.b.name}", f"{case.question.id}.{case.index}", case.template.name])
    name += f"/{wordings[0]}.{wordings[1]}" if case.variant else ""
    meant = dict(zip(shown_options(case.question.options, case.template.style), case.question.options, strict=True))
    row = {
        "id": name,
        "clean": clean.text,
        "corrupt": corrupt.text,
        "answers": [tokens[0]],
        "wrong_answers": [tokens[1]],
        **names,
        "candidates": list(options),
        "template": case.template.name,
        "wording": case.index,
        "wording_a": wordings[0],
        "wording_b": wordings[1],
        "filler": case.filler,
        "n_tokens": len(encoded.ids),
    }
    row |= case.about_order(name, [meant[text.strip()] for text in options])
    if case.question.domain:
        row["domain"] = case.question.domain
    if case.a.domain and case.b.domain:
        row["persona_domain"] = " / ".join(sorted({case.a.domain, case.b.domain}))
    if align == "right":
        row |= {"n_tokens_corrupt": len(other.ids), "unequal": len(encoded.ids) != len(other.ids)}
    spans = {"clean": _spans(*sides[0]), "corrupt": _spans(*sides[1])}
    return row | {"leak": bool(leaked), "leaked": list(leaked), "spans": spans}


def _spans(prompt: Prompt, encoded: Encoded) -> dict[str, dict[str, list[int]]]:
    return {
        name: {"chars": list(prompt.spans[name]), "tokens": list(encoded.tokens[name])}
        for name in ("prefix", *PARTS, "cue")
    }
