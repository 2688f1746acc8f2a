"""Named positions of a prompt: where the persona ends, where the question ends, and where the answer is read.

    persona-end     the last token of the persona's text, its full stop included
    question-end    the last token of the question, its question mark included
    question-word   the last token of the question with a letter or a digit in it
    prompt-end      the last token of the prompt: what follows is the answer

Pair files written by the ``pairs`` command say where the parts lie (``spans``, with their
characters). In other files the two prompts of a pair are compared: the persona is every
sentence that has a difference in it; the question is the line after ``Q:`` or
``Question:``, else the last sentence with a question mark, else the last whole sentence,
the persona's own left aside. Sentences end at ``.``, ``!``, ``?``, line feeds and chat
markup such as ``<|end|>`` or ``[/INST]``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persona_circuits.circuit.task import PromptPair, Reader
from persona_circuits.persona.data.prompts import encode_prompt, prompt_faults
from persona_circuits.persona.data.templates import PARTS, Prompt

__all__ = ["POSITIONS", "Placed", "apart", "locate", "seen", "without_persona"]

POSITIONS = ("persona-end", "question-end", "question-word", "prompt-end")
MARK = r"\n|_?\[/?[A-Za-z]+\]|<[^<>\n]{1,40}>"
SENTENCE = re.compile(rf"{MARK}|((?:(?!{MARK}).)+?(?:[.!?…]+[\"'”’)]*(?={MARK}|\s|$)|(?={MARK}|$)))")
ASKED = re.compile(r"(?im)^[ \t]*(?:q|question)[ \t]*:[ \t]*(\S.*)$")
SPEAKER = re.compile(r"\w+:[ \t]+")
Span = tuple[int, int]


@dataclass(frozen=True)
class Placed:
    """A prompt with its ids, the characters of persona and question, and its named positions.

    A part that was not found has no span, and no position. ``places`` are token indices;
    ``persona_tokens`` and ``question_tokens`` are ``[start, end)``, empty where there is none.
    """

    text: str
    ids: tuple[int, ...]
    spans: Mapping[str, Span]
    places: Mapping[str, int]
    persona_tokens: Span = (0, 0)
    question_tokens: Span = (0, 0)

    @property
    def persona(self) -> str:
        """The persona's text, empty where there is none."""
        return self.text[slice(*self.spans["persona"])] if "persona" in self.spans else ""

    @property
    def question(self) -> str:
        """The question's text, empty where there is none."""
        return self.text[slice(*self.spans["question"])] if "question" in self.spans else ""

    @property
    def frame(self) -> str:
        """What stands around the question, in its line and after it: the template, as far as it can be seen."""
        start, end = self.spans.get("question", (len(self.text), len(self.text)))
        around = self.text[self.text.rfind("\n", 0, start) + 1 : start], self.text[end:]
        return "{question}".join(part.replace(self.persona or "\n\n", "{persona}") for part in around)


def locate(
    pair: PromptPair, reader: Reader, spans: Mapping[str, Any] | None = None, faults: list[str] | None = None
) -> tuple[Placed, Placed]:
    """Both prompts of a pair with their named positions.

    Parameters
    ----------
    spans
        The pair's ``spans`` as its file holds them; without characters they are not used.
    faults
        What is wrong with the prompts' ids (two BOS tokens, too long) is added here.

    Raises
    ------
    OptionError
        The tokenizer does not say which characters a token stands for.
    """
    texts = {"clean": pair.clean, "corrupt": pair.corrupt}
    spans_of = _given(spans, texts) or _compared(pair.clean, pair.corrupt)
    placed = tuple(place(texts[side], spans_of[side], reader, faults) for side in texts)
    return placed[0], placed[1]


def seen(placed: Placed, position: str) -> tuple[int, ...]:
    """The tokens that a stream at a position, or the mean over a part, has seen: prompts that share them share it.

    All of the prompt where it has no such position.
    """
    last = placed.places.get(position, len(placed.ids) - 1)
    means = {"persona-mean": placed.persona_tokens[1], "question-mean": placed.question_tokens[1]}
    return placed.ids[: means.get(position, last + 1)]


def place(text: str, spans: Mapping[str, Span], reader: Reader, faults: list[str] | None = None) -> Placed:
    """A prompt with the named positions of the parts whose characters are given."""
    whole = {name: spans.get(name, (0, 0)) for name in PARTS}
    if not spans:
        whole["question"] = (0, len(text))  # a placeholder: only the ids are used
    encoded = encode_prompt(Prompt(text, whole), reader)
    if faults is not None:
        faults += prompt_faults(encoded, reader)
    places = {f"{name}-end": encoded.tokens[name][1] - 1 for name in ("persona", "question") if name in spans}
    if "question" in spans:
        places["question-word"] = _last_word(encoded.ids, encoded.tokens["question"], reader)
    places["prompt-end"] = len(encoded.ids) - 1
    tokens = [encoded.tokens[name] if name in spans else (0, 0) for name in ("persona", "question")]
    return Placed(text, encoded.ids, dict(spans), {name: places[name] for name in POSITIONS if name in places}, *tokens)


def without_persona(placed: Placed, reader: Reader) -> Placed | None:
    """The same prompt with the persona's text left out, and its line if nothing else stands there.

    None where there is no persona, or nothing else.
    """
    start, end = placed.spans.get("persona", (0, 0))
    text = placed.text
    if start == end or not (text[:start] + text[end:]).strip():
        return None
    fills_its_line = start == 0 or text[start - 1] == "\n"
    if text[end : end + 1] == " " or (text[end : end + 1] == "\n" and fills_its_line):
        end += 1
    spans = {
        name: (a - (end - start), b - (end - start)) if a >= end else (a, b)
        for name, (a, b) in placed.spans.items()
        if name != "persona"
    }
    return place(text[:start] + text[end:], spans, reader)


def _given(spans: Mapping[str, Any] | None, texts: Mapping[str, str]) -> dict[str, dict[str, Span]] | None:
    """The characters that the file gives for both prompts; None unless they are there and lie in the text."""
    if not isinstance(spans, Mapping):
        return None
    spans_of: dict[str, dict[str, Span]] = {}
    for side, text in texts.items():
        parts = spans.get(side)
        if not isinstance(parts, Mapping):
            return None
        given = {name: _chars(parts.get(name), text) for name in ("persona", "question")}
        known = {name: span for name, span in given.items() if span is not None}
        if len(known) < len(given):
            return None
        spans_of[side] = {name: span for name, span in known.items() if span[0] < span[1]}
    return spans_of


def apart(clean: str, corrupt: str) -> tuple[Span, Span] | None:
    """The persona's characters in both prompts of a pair, where all they differ in is one stretch of a line.

    A speaker's name before it (``Guest:``) is not part of it. None where there is no difference, or where markup, the
    end of a line or a question stands within it.
    """
    spans_of = _compared(clean, corrupt)
    if not all("persona" in parts for parts in spans_of.values()):
        return None
    spans = []
    for text, (start, end) in ((clean, spans_of["clean"]["persona"]), (corrupt, spans_of["corrupt"]["persona"])):
        if "?" in text[start:end] or re.search(MARK, text[start:end]):
            return None
        speaker = SPEAKER.match(text, start, end)
        spans.append((speaker.end() if speaker else start, end))
    return spans[0], spans[1]


def _chars(part: Any, text: str) -> Span | None:
    chars = part.get("chars") if isinstance(part, Mapping) else None
    if not isinstance(chars, Sequence) or len(chars) != 2 or not all(isinstance(end, int) for end in chars):
        return None
    return (chars[0], chars[1]) if 0 <= chars[0] <= chars[1] <= len(text) else None


def _compared(clean: str, corrupt: str) -> dict[str, dict[str, Span]]:
    """Persona and question from the text of the two prompts alone."""
    shortest = min(len(clean), len(corrupt))
    start = next((i for i in range(shortest) if clean[i] != corrupt[i]), shortest)
    tail = next((i for i in range(shortest - start) if clean[-1 - i] != corrupt[-1 - i]), shortest - start)
    spans_of = {}
    for side, text in (("clean", clean), ("corrupt", corrupt)):
        persona = _sentences_over(text, start, len(text) - tail) if clean != corrupt else None
        question = _question(text, persona)
        parts = {"persona": persona, "question": question}
        spans_of[side] = {name: span for name, span in parts.items() if span is not None}
    return spans_of


def _sentences_over(text: str, start: int, end: int) -> Span:
    """The sentences that have a part in ``[start, end)``, from the first to the last."""
    hit = [span for span in _sentences(text) if span[0] < max(end, start + 1) and span[1] > min(start, end - 1)]
    return (min(start, hit[0][0]), max(end, hit[-1][1])) if hit else (start, end)


def _question(text: str, persona: Span | None) -> Span | None:
    start, end = persona or (0, 0)
    free = [span for span in _sentences(text) if span[1] <= start or span[0] >= end]
    asked = [match.span(1) for match in ASKED.finditer(text)]
    asked = [span for span in asked if span[1] <= start or span[0] >= end]
    marked = [span for span in free if "?" in text[slice(*span)][-3:]]
    whole = [span for span in free if re.search(r"[.!…][\"'”’)]*$", text[slice(*span)])]
    return next((spans[-1] for spans in (asked, marked, whole) if spans), None)


def _sentences(text: str) -> list[Span]:
    """Sentences without the space around them."""
    spans = (match.span() for match in SENTENCE.finditer(text) if match[1])
    return [
        (start + len(text[start:end]) - len(text[start:end].lstrip()), end)
        for start, end in spans
        if text[start:end].strip()
    ]


def _last_word(ids: Sequence[int], span: Span, reader: Reader) -> int:
    words = (i for i in reversed(range(*span)) if any(map(str.isalnum, reader.tokenizer.decode([ids[i]]))))
    return next(words, span[1] - 1)
