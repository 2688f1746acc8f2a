"""What an option may look like after a prompt, and which of that a tokenizer can tell apart.

Of every word, the option's and the synonyms that the question's file gives: as it stands and with a capital, after an
article ("a cake", "The cake"), in the plural, with a space before it and without. Of letters: with a space and without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from persona_circuits.circuit.task import PromptPair, read_forms, token_ids
from persona_circuits.persona.data import candidates, shown_options
from persona_circuits.persona.data.prompts import Candidates, leads
from persona_circuits.persona.pairs.matching import Case, Drop, Setting, Side

__all__ = ["surface_forms", "usable"]

ARTICLES = ("a", "an", "the")
HISSING = ("s", "x", "z", "ch", "sh")


def usable(sides: Sequence[Side], options: Sequence[str], case: Case, setting: Setting) -> Candidates:
    """The options after all of these prompts: one token each, or with ``setting.forms`` what is left of their forms.

    Raises:
        Drop: a prompt and the beginnings of its forms do not fit the context.
    """
    if not setting.forms:
        return candidates(sides, options, setting.reader)
    lead, letters = leads(sides[0][0]), case.template.style.letters
    texts = {
        f"{lead}{option}": surface_forms(option, case.question.forms.get(option, ()), lead=lead, letters=letters)
        for option in dict.fromkeys((*options, *shown_options(case.question.options, case.template.style)))
    }
    forms, notes = _counted(sides, texts, setting)
    faults = {
        name: ("no form", f"none of {', '.join(map(repr, texts[name]))} stands for {name!r} alone")
        for name, some in forms.items()
        if not some
    }
    kept = {name: forms[name] for name in (f"{lead}{option}" for option in options) if forms[name]}
    return Candidates(dict.fromkeys(kept, -1), faults, kept, notes)


def surface_forms(
    word: str, synonyms: Sequence[str] = (), *, lead: str = " ", letters: bool = False
) -> tuple[str, ...]:
    """Every way in which an option may be written after a prompt.

    >>> surface_forms("cake")[:6]
    (' cake', ' Cake', ' a cake', ' A cake', ' the cake', ' The cake')
    >>> surface_forms("B", letters=True)
    (' B', 'B')
    """
    forms = [word] if letters else [form for text in (word, *synonyms) for form in _written(text)]
    other = "" if lead else " "
    return tuple(dict.fromkeys(f"{space}{text}" for space in (lead, other) for text in forms))


def _written(text: str) -> list[str]:
    article = "an" if text[:1].lower() in "aeiou" else "a"
    texts = [text]
    if text.lower().split(" ")[0] not in ARTICLES:
        texts += [f"{article} {text}", f"the {text}"]
        texts += [f"{before}{plural}" for plural in _plural(text) for before in ("", "the ")]
    return [form for base in texts for form in (base, base[:1].upper() + base[1:])]


def _plural(text: str) -> list[str]:
    """By rule alone; what has another plural, or looks like one, has none here."""
    last = text.lower()
    if not last[-1:].isalpha() or last.endswith("s"):
        return []
    if last.endswith("y") and last[-2:-1] not in "aeiou":
        return [f"{text[:-1]}ies"]
    return [f"{text}es" if last.endswith(HISSING) else f"{text}s"]


def _counted(
    sides: Sequence[Side], texts: Mapping[str, Sequence[str]], setting: Setting
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Of every option the forms that count for it, and not what begins with one of them; and those of no option."""
    reader = setting.reader
    faults: list[str] = []
    given = tuple((name, tuple(some)) for name, some in texts.items())
    prompts = [(list(side.ids), prompt.text, lambda text: token_ids(text, reader)) for prompt, side in sides]
    forms = read_forms(PromptPair("", "", tuple(texts), (), forms=given), prompts, reader, faults)
    if long := [fault for fault in faults if "context" in fault]:
        raise Drop("too long", long[0])
    prompt, side = sides[0]
    counted = {}
    for (name, some), own in zip(given, forms.forms, strict=True):
        by_ids = {tuple(token_ids(prompt.text + text, reader)[len(side.ids) :]): text for text in reversed(some)}
        counted[name] = tuple(by_ids[ids] for ids in own)
    notes = tuple(note for note in forms.left_out if " stands for " in note or " begins " in note)
    return counted, notes
