"""A result as a table: every column declared once, with its label, its value of a row and the value's format.

    LAYERS = (Column("layer", "layer"), Column("f", "circuit.f", ".3f", "undefined"), Column("95 %", "interval", to(2)))
    Table("faithfulness by layer", LAYERS, study.layers)

The terminal, Markdown, a notebook and, by ``records``, CSV and JSON take the same table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from persona_circuits.circuit.printable import html_table, visible

__all__ = ["Column", "Table", "comma", "markdown_cell", "markdown_table", "to"]


@dataclass(frozen=True)
class Column:
    """A column: its label, its value and the value's format.

    Parameters
    ----------
    value
        Attributes or keys with dots between them (``"gain.low"``), a place in the row, or a function of the row.
    form
        A format specification (``"+.2f"``), or a function of the value.
    missing
        The text where there is no value.
    """

    label: str
    value: str | int | Callable[[Any], Any]
    form: str | Callable[[Any], str] = ""
    missing: str = ""

    def of(self, row: Any) -> Any:
        """The value itself."""
        if not isinstance(self.value, str):
            return row[self.value] if isinstance(self.value, int) else self.value(row)
        for name in self.value.split("."):
            row = None if row is None else row[name] if isinstance(row, Mapping) else getattr(row, name)
        return row

    def text(self, row: Any) -> str:
        """The value as text."""
        value = self.of(row)
        if value is None:
            return self.missing
        return self.form(value) if callable(self.form) else format(value, self.form)


@dataclass(frozen=True)
class Table:
    """Rows under declared columns, of which the first ``texts`` are text and the others numbers.

    A text in the place of a ``Column`` is the label of the row's value at that place. ``notes`` are lines below.

    Examples
    --------
    >>> table = Table("one layer", (Column("layer", "at"), Column("f", "f", ".2f", "undefined")), [{"at": 1, "f": 0.5}])
    >>> print(table.markdown())
    | layer | f |
    | --- | ---: |
    | 1 | 0.50 |
    >>> table.records()
    [{'layer': 1, 'f': 0.5}]
    """

    title: str
    columns: Sequence[Column | str]
    rows: Sequence[Any]
    texts: int = 1
    notes: Sequence[str] = field(default=())

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(column.label for column in self._columns())

    def cells(self) -> list[tuple[str, ...]]:
        """The cells of every row as text."""
        columns = self._columns()
        return [tuple(column.text(row) for column in columns) for row in self.rows]

    def records(self) -> list[dict[str, Any]]:
        """The values themselves by label, for CSV and JSON."""
        columns = self._columns()
        return [{column.label: column.of(row) for column in columns} for row in self.rows]

    def markdown(self) -> str:
        return markdown_table(self.labels, self.cells(), texts=self.texts)

    def _repr_html_(self) -> str:
        return html_table(self.title, self.labels, self.cells())

    def _columns(self) -> list[Column]:
        return [
            column if isinstance(column, Column) else Column(column, place) for place, column in enumerate(self.columns)
        ]


def comma(places: int = 2) -> Callable[[Any], str]:
    """The ends of an estimate or an interval as ``1.20, 3.40``; nothing where they are not known."""
    return lambda row: "" if row.low is None or row.high is None else f"{row.low:.{places}f}, {row.high:.{places}f}"


def to(places: int = 2) -> Callable[[Any], str]:
    """The ends of an interval as ``1.20 to 3.40``."""
    return lambda row: f"{row.low:.{places}f} to {row.high:.{places}f}"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """A table whose first ``texts`` columns are text, the others numbers; cells read as they are."""
    rule = ["---"] * texts + ["---:"] * (len(columns) - texts)
    cells = [[markdown_cell(cell) for cell in row] for row in (columns, rule, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def markdown_cell(text: object) -> str:
    """Text on one line, escaped so that HTML, cell borders, links and pictures are shown as text."""
    line = visible(text).replace("\n", " ")
    if not re.fullmatch(r"`[^`]*`", line):  # all of it code, where nothing is obeyed
        line = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line).replace("](", "]\\(")
    return line.replace("|", "\\|")
