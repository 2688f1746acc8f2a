"""The same persona said of somebody else: what is left of its effect is what its words do, not who somebody is.

    you      You are a monk.                 the persona itself
    friend   Your friend is a monk.          somebody else
    book     This book describes a monk.     a mention
    past     You were once a monk.           no longer
    not      You are not a monk.             denied
    nobody   Nobody here is a monk.          nobody

A frame takes the place of ``You are`` (or ``I am``, where the persona speaks of itself) at the head of the
persona's text, in any format and template. Of a frame's wordings that one is taken which gives all frames of
a pair the same number of tokens, where the tokenizer allows it: then nothing differs but the frame.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from persona_circuits.circuit.choices import FRAMES
from persona_circuits.circuit.errors import OptionError, TaskError, listed
from persona_circuits.circuit.task import Reader, token_ids
from persona_circuits.persona.pairs.variants import Unfit, Varied, checked_row, rows_of

__all__ = [
    "framed",
]

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
BEGINS = {"second": re.compile(r"You are\b"), "first": re.compile(r"I am\b")}


def framed(pairs: Any, frames: Sequence[str], reader: Reader, *, split: str | None = None) -> Varied:
    """Every pair of a file, or of rows, in every one of these frames, checked as ``vary`` checks.

    Rows get ``variant``, the frame; ``base``, the id of the pair; and ``frame_matched``, whether all frames of this
    pair have the same number of tokens.

    Raises:
        OptionError: there is no such frame.
        TaskError: the file cannot be read, or no pair is left in every frame (with the reasons).
    """
    if unknown := [name for name in frames if name not in FRAMES]:
        raise OptionError(f"--frame {unknown[0]!r} is not one of {', '.join(FRAMES)}")
    rows: list[Mapping[str, Any]] = []
    dropped: dict[str, list[str]] = {}
    for base in rows_of(pairs, split):
        try:
            rows += _in_frames(base, tuple(frames), reader)
        except Unfit as fault:
            dropped.setdefault(str(fault), []).append(str(base["id"]))
    if not rows:
        reasons = [f"{len(ids)} × {reason} (such as {ids[0]})" for reason, ids in dropped.items()]
        raise TaskError(listed("no pair is left in every frame:", reasons))
    return Varied(tuple(rows), {reason: tuple(ids) for reason, ids in dropped.items()})


def _in_frames(row: Mapping[str, Any], frames: tuple[str, ...], reader: Reader) -> list[Mapping[str, Any]]:
    voice, places = _begins(row)
    texts = {
        (frame, said): tuple(
            _with(row[side], place, said) for side, place in zip(("clean", "corrupt"), places, strict=True)
        )
        for frame in frames
        for said in SAID[voice][frame]
    }
    lengths = {key: len(token_ids(both[0], reader)) for key, both in texts.items()}
    chosen, alike = _matched(frames, voice, lengths)
    return [
        {**checked_row(row, frame, texts[frame, said], reader), "frame_matched": alike}
        for frame, said in zip(frames, chosen, strict=True)
    ]


def _begins(row: Mapping[str, Any]) -> tuple[str, tuple[tuple[int, int], tuple[int, int]]]:
    """Whether the persona is said in the second or first person, and which characters of either prompt say it."""
    try:
        starts = [row["spans"][side]["persona"]["chars"][0] for side in ("clean", "corrupt")]
    except (KeyError, TypeError, IndexError):
        raise Unfit("the row does not say where its persona stands ('spans'); build it with pairs") from None
    for voice, pattern in BEGINS.items():
        found = [pattern.match(row[side], start) for side, start in zip(("clean", "corrupt"), starts, strict=True)]
        if found[0] and found[1]:
            return voice, (found[0].span(), found[1].span())
    raise Unfit("a persona's text does not begin with 'You are' or 'I am'")


def _with(text: str, place: tuple[int, int], said: str) -> str:
    return text[: place[0]] + said + text[place[1] :]


def _matched(
    frames: tuple[str, ...], voice: str, lengths: Mapping[tuple[str, str], int]
) -> tuple[tuple[str, ...], bool]:
    """A wording of each frame: the first ones of equal length, else the first ones that differ least in length."""
    ways = list(product(*(SAID[voice][frame] for frame in frames)))

    def apart(way: tuple[str, ...]) -> int:
        found = [lengths[frame, said] for frame, said in zip(frames, way, strict=True)]
        return max(found) - min(found)

    best = min(ways, key=apart)
    return best, apart(best) == 0
