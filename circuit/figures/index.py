"""``index.html`` of a run's folder: the question, the command, the figures, the tables, and all files.

The page is made of the folder's own files and names them relative to itself, so that the folder may be moved or sent;
it holds no script and needs no network.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from persona_circuits.circuit.errors import FileError
from persona_circuits.circuit.figures.files import INDEX, read_figures
from persona_circuits.circuit.figures.html import document, figure, link, shown, table
from persona_circuits.circuit.figures.tables import csv_rows
from persona_circuits.circuit.storage import write_text

__all__ = ["About", "is_index", "run_page", "write_index"]

MOST_ROWS, MOST_COLUMNS = 50, 16  # of a table that are shown on the page; the file has all
DEEPEST = 3  # folders within folders whose files are named
MARK = '<meta name="generator" content="persona-circuits index">'


@dataclass(frozen=True)
class About:
    """What a run was: its title, its question, the command that made it, its inputs, and its notes."""

    title: str
    asked: str = ""
    command: str = ""
    given: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()


def write_index(folder: str | Path, about: About) -> None:
    """Write ``index.html`` of the files that are in the folder.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    write_text(run_page(folder, about), Path(folder) / INDEX)


def is_index(text: str) -> bool:
    """Whether a page is one that ``write_index`` wrote."""
    return MARK in text


def run_page(folder: str | Path, about: About) -> str:
    """The page as text."""
    folder = Path(folder)
    groups: dict[Path, list[Path]] = defaultdict(list)
    for path in _files(folder, DEEPEST):
        groups[path.parent].append(path)
    parts = [MARK, *_head(about), *(f"<p>{shown(note)}</p>" for note in about.notes)]
    for place, files in sorted(groups.items()):
        if place != folder:
            parts.append(f"<h2>{shown(place.relative_to(folder).as_posix())}</h2>")
        parts += _section(folder, files)
    return document(about.title, parts)


def _files(folder: Path, deepest: int) -> Iterator[Path]:
    """Files in order of their names, those of inner folders after those of the outer one; no links, nothing hidden."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise FileError(f"folder {folder} cannot be read ({error}); give one that holds a result") from error
    inside = [path for path in paths if not path.name.startswith(".") and not path.is_symlink()]
    yield from (path for path in inside if path.is_file() and path.name != INDEX)
    for path in inside if deepest else ():
        if path.is_dir():
            yield from _files(path, deepest - 1)


def _head(about: About) -> Iterator[str]:
    if about.asked:
        yield f"<p>{shown(about.asked)}</p>"
    if about.command:
        yield f"<pre><code>{shown(about.command)}</code></pre>"
    if about.given:
        yield table(("", ""), about.given, texts=2)


def _section(folder: Path, files: Sequence[Path]) -> Iterator[str]:
    """Pages, figures, tables and the other files of one folder."""
    names = {path: path.relative_to(folder).as_posix() for path in files}
    pages = [path for path in files if path.suffix == ".html"]
    if pages:
        links = ", ".join(link(names[path], path.name) for path in pages)
        yield f"<p>Interactive: {links}</p>"
    captions: dict[str, tuple[str, str]] = {}
    for page in pages:
        captions |= {name: (title, names[page]) for name, title in _titles(page)}
    pictures = [path for path in files if path.suffix == ".png" or (path.suffix == ".svg" and _alone(path, files))]
    if pictures:
        shows = (captions.get(path.stem, (path.stem.replace("-", " "), "")) for path in pictures)
        drawn = (figure(names[path], title, target=page) for path, (title, page) in zip(pictures, shows, strict=True))
        yield f'<div class="figures">{"".join(drawn)}</div>'
    yield from (_table(path, names[path]) for path in files if path.suffix == ".csv")
    others = [path for path in files if path not in pages and path not in pictures and path.suffix != ".csv"]
    if others:
        yield f"<p>Files: {', '.join(link(names[path], path.name) for path in others)}</p>"


def _alone(path: Path, files: Sequence[Path]) -> bool:
    return path.with_suffix(".png") not in files


def _titles(page: Path) -> list[tuple[str, str]]:
    """Names and titles of a page's figures; none of a page of another kind."""
    try:
        return [(name, chart.title or name) for name, chart in read_figures(page).items()]
    except FileError:
        return []


def _table(path: Path, name: str) -> str:
    """A table, shut; the first rows and columns where it is large."""
    try:
        rows = csv_rows(path)
    except FileError:
        return f"<p>{link(name, path.name)}</p>"
    columns = list(rows[0])[:MOST_COLUMNS] if rows else []
    cells = [[row.get(column, "") for column in columns] for row in islice(rows, MOST_ROWS)]
    more = f"; the first {MOST_ROWS} are here" if len(rows) > MOST_ROWS else ""
    more += f", of {len(rows[0])} columns the first {MOST_COLUMNS}" if rows and len(rows[0]) > MOST_COLUMNS else ""
    summary = f"{shown(path.name)}: {len(rows):,} row{'s' * (len(rows) != 1)}{more}"
    content = table(columns, cells, texts=MOST_COLUMNS) if columns else ""
    return f"<details><summary>{summary}</summary>{content}<p>{link(name, 'the whole table')}</p></details>"
