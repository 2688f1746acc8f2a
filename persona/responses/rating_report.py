"""Ratings as files, figures and rows of a table.

ratings.csv        a line per response
rating.json        means per persona, with what they were made from
personas.csv       the same, a line per persona
rating.html, *.png the figures
journal.jsonl      the autorater's answers so far, by key; the next run goes on from there
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from persona_circuits.circuit.figures import Chart, Points, bar_chart, picked, plain, write_csv, write_figures
from persona_circuits.circuit.storage import write_json
from persona_circuits.circuit.table import Column, Table, comma
from persona_circuits.persona.data import clusters_of
from persona_circuits.persona.responses.rating import PersonaRating, Ratings

__all__ = ["rating_figures", "rating_record", "rating_table", "write_ratings"]

FORMAT = "persona-circuits/rate"
RATED = (
    Column("persona", "persona"),
    Column("responses", "n"),
    Column("rating", "rating.value", "+.2f"),
    Column("95 %", "rating", comma()),
    Column("as another", "control.value", "+.2f"),
    Column("95 %", "control", comma()),
    Column("above it", "above_control", ".2f"),
    Column("unrated", "unrated"),
)


def write_ratings(
    ratings: Ratings, summary: Sequence[PersonaRating], about: Mapping[str, Any], folder: str | Path
) -> None:
    """Write all files but the journal into ``folder``, which must exist; ``summary`` begins with all personas.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    folder = Path(folder)
    write_json(rating_record(ratings, summary, about), folder / "rating.json")
    write_csv([asdict(r) for r in summary], folder / "personas.csv")
    rows = [
        {
            **vars(r.response.exchange),
            "condition": r.response.condition,
            "response": r.response.text,
            **picked(r, "rating", "control", "per_token", "said"),
        }
        for r in ratings.rated
    ]
    write_csv(rows, folder / "ratings.csv")
    title = f"Persona ratings by {Path(ratings.rater).name}"
    write_figures(rating_figures(ratings, summary[1:]), folder, page="rating.html", title=title)


def rated_over(ratings: Ratings) -> str:
    """What the intervals over all responses are drawn over, in words."""
    asked = [x.response.exchange for x in ratings.rated]
    if not asked:
        return "nothing: no response is rated"
    return clusters_of([x.persona for x in asked], [x.question for x in asked]).describe("responses")


def rating_record(ratings: Ratings, summary: Sequence[PersonaRating], about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the responses, as plain values for JSON."""
    record = {
        "format": FORMAT,
        "version": 1,
        "rater": ratings.rater,
        "unit": ratings.unit,
        "made_from": about,
        "n": len(ratings.rated),
        **picked(ratings, "unparsable", "failures", "left_out"),
        "resampled": rated_over(ratings),
        "all": summary[0],
        "personas": summary[1:],
    }
    return plain(record)


def rating_table(ratings: Ratings, summary: Sequence[PersonaRating]) -> Table:
    """A row per persona, after that of all."""
    title = f"{len(ratings.rated):,} responses rated by {ratings.rater} ({ratings.unit})"
    over = f"intervals   over {rated_over(ratings)}; of one persona over questions"
    return Table(title, RATED, summary, notes=[over])


def rating_figures(ratings: Ratings, summary: Sequence[PersonaRating]) -> dict[str, Chart]:
    """Every persona's mean rating with its interval, and the same responses rated as another persona's."""
    known = [(rating.value, row) for row in summary if (rating := row.rating) is not None]
    known.sort(key=lambda entry: -entry[0])
    marks = []
    for name, which in (("own persona", "rating"), ("another persona", "control")):
        values = [(row.persona, getattr(row, which)) for _, row in known if getattr(row, which) is not None]
        x, low, high = ([getattr(row, end) for _, row in values] for end in ("value", "low", "high"))
        marks.append(Points(name, x, [persona for persona, _ in values], low, high))
    title, unit = "How much of the persona shows in what was said", f"mean rating ({ratings.unit})"
    return {"ratings": bar_chart(marks, title=title, x=unit, y="persona", across=True)}
