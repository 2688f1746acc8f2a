"""The same persona ascribed to somebody else: what is left of its effect is due to its words, not to who it is.

    you      You are a monk.                 the persona itself
    again    You are somebody who prays.     the persona in other words of equal meaning: what words alone do
    friend   Your friend is a monk.          somebody else
    book     This book describes a monk.     a mention
    past     You were once a monk.           no longer
    not      You are not a monk.             denied
    nobody   Nobody here is a monk.          nobody

A frame takes the place of ``You are`` (or ``I am``, where the persona speaks of itself) at the head of the
persona's text, in any format and template. The row says where that text stands (``spans``); where it
does not, the two prompts of the pair are compared. Of a frame's wordings that one is taken which gives all frames of
a pair the same number of tokens, where the tokenizer allows it: then nothing differs but the frame.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from persona_circuits.circuit.choices import FRAMES
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.task import Reader, token_ids
from persona_circuits.persona.data import Persona, apart, first_person
from persona_circuits.persona.pairs.variants import Unfit, Varied, checked_row, rows_of, varied

__all__ = ["framed"]

SAID = {
    "second": {
        "you": ("You are", "You really are", "You yourself are"),
        "friend": ("Your friend is", "A friend is"),
        "book": ("This book describes", "A book describes"),
        "past": ("You were once", "You once were", "Once you were"),
        "not": ("You are not", "You aren't"),
        "nobody": ("Nobody here is", "Nobody is"),
    },
    "first": {
        "you": ("I am", "I really am", "I myself am"),
        "friend": ("My friend is", "A friend is"),
        "book": ("This book describes", "A book describes"),
        "past": ("I was once", "I once was", "Once I was"),
        "not": ("I am not", "I'm not"),
        "nobody": ("Nobody here is", "Nobody is"),
    },
}
SIDES = ("clean", "corrupt")
Span = tuple[int, int]
BEGINS = {"second": re.compile(r"You are\b"), "first": re.compile(r"I am\b")}


def framed(
    pairs: Any, frames: Sequence[str], reader: Reader, *, split: str | None = None, personas: Sequence[Persona] = ()
) -> Varied:
    """Every pair of a file, or of rows, in every one of these frames, checked as ``vary`` checks.

    Rows get ``variant``, the frame; ``base``, the id of the pair; and ``frame_matched``, whether all frames of this
    pair have the same number of tokens. ``again`` takes its words from the paraphrases of ``personas``.

    Raises:
        OptionError: there is no such frame, or ``again`` is asked for without personas.
        TaskError: the file cannot be read, or no pair is left in every frame (with the reasons).
    """
    if unknown := [name for name in frames if name not in FRAMES]:
        raise OptionError(f"--frame {unknown[0]!r} is not one of {', '.join(FRAMES)}")
    if "again" in frames and not personas:
        raise OptionError("--frame again says a persona in its other words: give the personas' file with --personas")
    paraphrases = {persona.name: persona.wordings for persona in personas}
    variants = partial(_in_frames, frames=tuple(frames), reader=reader, paraphrases=paraphrases)
    return varied(rows_of(pairs, split), variants, "no pair is left in every frame:")


def _in_frames(
    row: Mapping[str, Any], frames: tuple[str, ...], reader: Reader, paraphrases: Mapping[str, Sequence[str]]
) -> list[Mapping[str, Any]]:
    personas = _personas(row)
    voice, places = _begins(row, personas)
    ways = {
        frame: [
            tuple(_with(row[side], place, words) for side, place in zip(SIDES, places, strict=True))
            for words in SAID[voice][frame]
        ]
        for frame in frames
        if frame != "again"
    }
    if "again" in frames:
        ways["again"] = _again(row, personas, voice, paraphrases, reader)
    chosen, matched = _matched([ways[frame] for frame in frames], reader)
    return [
        {**checked_row(row, frame, texts, reader), "frame_matched": matched}
        for frame, texts in zip(frames, chosen, strict=True)
    ]


def _again(
    row: Mapping[str, Any], personas: tuple[Span, Span], voice: str, others: Mapping[str, Sequence[str]], reader: Reader
) -> list[tuple[str, ...]]:
    """The pair with both personas in other words, of one length: all ways to do so."""
    prompts = []
    for side, key, (start, end) in zip(SIDES, ("persona_a", "persona_b"), personas, strict=True):
        own = row[side][start:end]
        texts = [first_person(text) if voice == "first" else text for text in others.get(row.get(key, ""), ())]
        prompts.append([row[side][:start] + text + row[side][end:] for text in texts if text != own])
    ways = [sides for sides in product(*prompts) if len({len(token_ids(text, reader)) for text in sides}) == 1]
    if not ways:
        raise Unfit("again: its personas have no other paraphrases of one length")
    return ways


def _personas(row: Mapping[str, Any]) -> tuple[Span, Span]:
    """The characters of the persona in either prompt: as the row says, else where its prompts differ."""
    if "spans" not in row:
        spans = apart(row["clean"], row["corrupt"])
        if spans is None:
            raise Unfit("the row has no 'spans', and its prompts do not differ in one stretch; build it with pairs")
        return spans
    try:
        clean, corrupt = (row["spans"][side]["persona"]["chars"] for side in SIDES)
        return (clean[0], clean[1]), (corrupt[0], corrupt[1])
    except (KeyError, TypeError, IndexError):
        raise Unfit("the row does not say where its persona stands ('spans'); build it with pairs") from None


def _begins(row: Mapping[str, Any], personas: tuple[Span, Span]) -> tuple[str, tuple[Span, Span]]:
    """Whether the persona is in the second or the first person, and which characters of either prompt say so."""
    for voice, pattern in BEGINS.items():
        clean, corrupt = (pattern.match(row[side], span[0]) for side, span in zip(SIDES, personas, strict=True))
        if clean and corrupt:
            return voice, (clean.span(), corrupt.span())
    raise Unfit("a persona's text does not begin with 'You are' or 'I am'")


def _with(text: str, place: tuple[int, int], words: str) -> str:
    return text[: place[0]] + words + text[place[1] :]


def _matched(ways: Sequence[Sequence[tuple[str, ...]]], reader: Reader) -> tuple[tuple[tuple[str, ...], ...], bool]:
    """A way of each frame: the first ones of equal length, else the first ones that differ least in length."""
    lengths = {way: len(token_ids(way[0], reader)) for some in ways for way in some}

    def apart(chosen: tuple[tuple[str, ...], ...]) -> int:
        chosen_lengths = [lengths[way] for way in chosen]
        return max(chosen_lengths) - min(chosen_lengths)

    best = min(product(*ways), key=apart)
    return best, apart(best) == 0
