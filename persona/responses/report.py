"""Responses as files, a figure and rows of a table.

responses.jsonl   a line per response; ``read_responses`` reads it back
responses.json    what they were made from, and a summary per persona
personas.csv      that summary, a line per persona
responses.html, *.png   the figures
journal.jsonl     what has been answered so far, by key; the next run goes on from there
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import TaskError, listed
from persona_circuits.circuit.figures import Bars, Chart, bar_chart, plain, write_csv, write_figures
from persona_circuits.circuit.printable import shortened
from persona_circuits.circuit.storage import Kind, is_number, is_text, is_whole, read_json_lines, write_json, write_text
from persona_circuits.circuit.table import Column, Table
from persona_circuits.persona.responses.plan import Exchange, Response, Responses, baseline_of

__all__ = ["read_responses", "summarise", "summary_table", "write_response_study", "write_responses"]

FORMAT = "persona-circuits/responses"
RESPONSES = Kind("response file")
SAID = (
    Column("persona", "persona"),
    Column("for example", "example", lambda text: shortened(" ".join(text.split()), 40)),
    Column("responses", "n"),
    Column("words", "words", ".1f"),
    Column("ended", "ended", ".2f"),
    Column("empty", "empty", ".2f"),
    Column("distinct", "distinct", ".2f"),
    Column("unlike baseline", "unlike_baseline", ".2f"),
)
TEXTS = ("persona", "question", "user", "response")


@dataclass(frozen=True)
class PersonaSummary:
    """One persona's responses: mean words, and shares that ended by themselves, are empty, are different texts.

    ``unlike_baseline``: the share whose text is not that of the baseline persona to the same
    question, wording and sample; None for the baseline itself, or where there is none.
    ``example`` is the text that occurs most often, the first of these.
    """

    persona: str
    n: int
    words: float
    ended: float
    empty: float
    distinct: float
    unlike_baseline: float | None
    example: str


def summarise(responses: Sequence[Response], baseline: str | None = None) -> tuple[PersonaSummary, ...]:
    """A summary per persona, in order of appearance.

    Raises:
        OptionError: the named baseline is not among the personas.
    """
    names = list(dict.fromkeys(r.exchange.persona for r in responses))
    base = baseline_of(names, baseline)
    plainly = {_put(r.exchange): r.text for r in responses if r.exchange.persona == base}
    return tuple(_summary([r for r in responses if r.exchange.persona == name], base, plainly) for name in names)


def summary_table(title: str, summaries: Sequence[PersonaSummary]) -> Table:
    """A row per persona."""
    return Table(title, SAID, summaries, 2)


def write_response_study(
    found: Responses, about: Mapping[str, Any], folder: str | Path, *, baseline: str | None = None
) -> None:
    """Write all files but the journal into ``folder``, which must exist; ``about`` is what they were made from.

    Raises:
        FileError: the folder is missing or cannot be written.
        OptionError: the named baseline is not among the personas.
    """
    folder = Path(folder)
    summaries = summarise(found.responses, baseline)
    write_responses(found.responses, folder / "responses.jsonl")
    record = {"format": FORMAT, "version": 1, **about, "n": len(found.responses), "failures": found.failures}
    write_json(plain({**record, "personas": [asdict(s) for s in summaries]}), folder / "responses.json")
    write_csv([asdict(s) for s in summaries], folder / "personas.csv")
    title = f"Responses of {Path(str(about['model'])).name}"
    write_figures(response_figures(summaries), folder, page="responses.html", title=title)


def response_figures(summaries: Sequence[PersonaSummary]) -> dict[str, Chart]:
    """How long each persona speaks and, with a baseline, how often it says something else."""
    charts = {"length": _bars(summaries, [s.words for s in summaries], "Length of responses", "words")}
    others = [s for s in summaries if s.unlike_baseline is not None]
    if others:
        others.sort(key=lambda s: -(s.unlike_baseline or 0.0))
        values = [s.unlike_baseline or 0.0 for s in others]
        title = "Responses that are not the baseline's to the same question"
        charts["unlike-baseline"] = _bars(others, values, title, "share")
    return charts


def write_responses(responses: Sequence[Response], path: str | Path) -> None:
    """One JSON object a line: the exchange's fields, and the response's."""
    lines = []
    for response in responses:
        row = {**vars(response.exchange), "response": response.text, "finish": response.finish, "model": response.model}
        if response.prompt_ids:
            row |= {"fingerprint": response.fingerprint, "prompt": response.prompt}
            row |= {"prompt_ids": list(response.prompt_ids), "ids": list(response.ids)}
        lines.append(json.dumps(row, ensure_ascii=False))
    write_text("".join(f"{line}\n" for line in lines), path)


def read_responses(path: str | Path) -> tuple[Response, ...]:
    """What ``write_responses`` wrote, or lines of persona, question, user and response made elsewhere.

    Raises:
        FileError: the file cannot be read.
        TaskError: lines are at fault; all are listed.
    """
    path, faults, responses = Path(path), list[str](), []
    for number, row in read_json_lines(path, RESPONSES, faults):
        try:
            responses.append(_read_response(row))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    if faults:
        raise TaskError(listed(f"response file {path} has {len(faults)} fault(s):", faults))
    if not responses:
        raise TaskError(f"response file {path} holds no responses; persona-circuits respond writes one")
    return tuple(responses)


def _read_response(row: Any) -> Response:
    if not isinstance(row, dict):
        raise ValueError("expected an object")
    row = _steered(row) if "toward" in row and "text" in row else row
    if missing := [key for key in TEXTS if not isinstance(row.get(key), str)]:
        raise ValueError(f"{', '.join(missing)} must be text")
    numbers = {key: row.get(key, 0) for key in ("wording", "question_wording", "sample")}
    names = ("system", "finish", "model", "fingerprint", "prompt", "condition")
    others = {key: row.get(key, "") for key in names}
    ids = {key: row.get(key, []) for key in ("prompt_ids", "ids")}
    if not all(map(is_whole, numbers.values())):
        raise ValueError(f"{', '.join(numbers)} must be whole numbers")
    if not all(isinstance(value, str) for value in others.values()):
        raise ValueError(f"{', '.join(others)} must be text")
    if not all(isinstance(value, list) and all(map(is_whole, value)) for value in ids.values()):
        raise ValueError("prompt_ids and ids must be lists of token ids")
    exchange = Exchange(
        row["persona"], question=row["question"], system=others.pop("system"), user=row["user"], **numbers
    )
    prompt_ids, own = (tuple(value) for value in ids.values())
    return Response(exchange, row["response"], **others, prompt_ids=prompt_ids, ids=own)


def _steered(row: dict[str, Any]) -> dict[str, Any]:
    """A line of ``steer``'s generations.jsonl: said towards a persona, under a condition."""
    strength, control = row.get("strength"), row.get("control")
    if not is_number(strength) or not is_text(control):
        raise ValueError("a steered text needs 'control', text, and 'strength', a number")
    condition = control if not strength else f"{control} {strength:+g}"
    texts = {"persona": row["toward"], "user": row.get("question"), "response": row["text"], "condition": condition}
    kept = {key: row.get(key, "") for key in ("question", "finish")}
    return {**kept, **texts, "system": row.get("persona_text", "")}


def _summary(own: Sequence[Response], base: str | None, plainly: Mapping[tuple[Any, ...], str]) -> PersonaSummary:
    texts = [r.text.strip() for r in own]
    compared = [r for r in own if r.exchange.persona != base and _put(r.exchange) in plainly]
    unlike = [r.text.strip() != plainly[_put(r.exchange)].strip() for r in compared]
    return PersonaSummary(
        persona=own[0].exchange.persona,
        n=len(own),
        words=sum(len(text.split()) for text in texts) / len(own),
        ended=sum(r.finish == "stop" for r in own) / len(own),
        empty=sum(not text for text in texts) / len(own),
        distinct=len(set(texts)) / len(own),
        unlike_baseline=sum(unlike) / len(unlike) if unlike else None,
        example=Counter(texts).most_common(1)[0][0],
    )


def _put(exchange: Exchange) -> tuple[Any, ...]:
    """The question as it was put, whoever was asked."""
    return (exchange.question, exchange.question_wording, exchange.sample)


def _bars(summaries: Sequence[PersonaSummary], values: Sequence[float], title: str, unit: str) -> Chart:
    bars = Bars(unit, [s.persona for s in summaries], list(values))
    return bar_chart([bars], title=title, x=unit, y="persona", across=True)
