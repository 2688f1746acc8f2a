"""Charts as files: a page of all of them, a PNG of each, and from the page files for a paper."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from persona_circuits.circuit.errors import FileError, OptionError
from persona_circuits.circuit.figures.charts import Chart, charts_from
from persona_circuits.circuit.figures.page import DATA, figure_page
from persona_circuits.circuit.figures.paper import FORMATS, WIDTHS, paper
from persona_circuits.circuit.storage import write_bytes

__all__ = ["INDEX", "read_figures", "redraw", "write_figures"]

INDEX = "index.html"
"""The page of a run's folder, which holds no figures of its own."""


def write_figures(
    figures: Mapping[str, Chart], folder: str | Path, *, page: str, title: str, notes: Sequence[str] = ()
) -> None:
    """Write ``page`` (an HTML file name) with all figures, and ``NAME.png`` for each, into ``folder``.

    Parameters
    ----------
    figures
        By name; names are the PNGs' file names and the page's anchors.
    notes
        Lines above the figures on the page.

    Raises
    ------
    FileError
        The folder is missing or cannot be written.
    """
    folder = Path(folder)
    files = {f"{name}.png": paper(figure, ("png",))["png"] for name, figure in figures.items()}
    files[page] = figure_page(figures, title, notes).encode()
    for name, content in files.items():
        write_bytes(content, folder / name)


def redraw(page: str | Path, folder: str | Path, *, formats: Sequence[str] = ("svg", "pdf"), width: str) -> list[Path]:
    """Draw the figures of a page again, as files for a paper; ``folder`` must exist.

    Raises:
        FileError: the page cannot be read, or holds no figures of this program; or the folder cannot be written.
        OptionError: a format or the width is unknown.
    """
    if unknown := [form for form in formats if form not in FORMATS]:
        raise OptionError(f"{unknown[0]!r} is no format of figures; give some of {', '.join(FORMATS)}")
    if width not in WIDTHS:
        raise OptionError(f"{width!r} is no width of a paper's column; give {' or '.join(WIDTHS)}")
    written = []
    for name, figure in read_figures(page).items():
        for form, content in paper(figure, formats, width=width).items():
            written.append(Path(folder) / f"{name}.{form}")
            write_bytes(content, written[-1])
    return written


def read_figures(page: str | Path) -> dict[str, Chart]:
    """The figures of a page that ``write_figures`` wrote, or of the pages of a folder.

    Raises:
        FileError: the page cannot be read, or holds no figures of this program.
    """
    page = Path(page)
    pages = sorted(path for path in page.glob("*.html") if path.name != INDEX) if page.is_dir() else [page]
    if not pages:
        raise FileError(f"folder {page} holds no HTML page of figures; give the folder of a result that has one")
    return {name: figure for path in pages for name, figure in _read(path).items()}


def _read(page: Path) -> dict[str, Chart]:
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"page {page} cannot be read ({error}); give an HTML page that this program wrote") from error
    *_, data = text.partition(DATA)
    try:
        charts = charts_from(json.loads(data.partition("</script>")[0]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FileError(f"page {page} holds no figures to draw again; give one that this version wrote") from error
    if any(not name or Path(name).name != name for name in charts):
        raise FileError(f"page {page} has a figure whose name is no file's; give one that this program wrote")
    return charts
