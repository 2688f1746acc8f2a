"""Notebooks made from Markdown: the write-up as it is, the evidence with every cell run.

    logs/NAME.md            -> notebooks/NAME_Md.ipynb    converted, nothing is run
    notebooks/src/NAME.md   -> notebooks/NAME.ipynb       run from top to bottom, outputs stored

A fence marked ``python`` at the top level becomes a code cell; everything else stays Markdown, a
new cell at every heading. Relative links and pictures are rewritten, so that they lead from
``notebooks/`` to where they led from the Markdown. The same Markdown gives the same bytes: cells
are numbered, and nothing that depends on the machine or the hour is stored.

    python notebooks/build.py                  # all
    python notebooks/build.py lens plan_v1     # these
    python notebooks/build.py --convert        # the write-up alone
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from markdown_it.token import Token
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
LOGS, SOURCES, TARGET = ROOT / "logs", ROOT / "notebooks" / "src", ROOT / "notebooks"
SECONDS_PER_CELL = 600
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
SURROUNDINGS = {
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
}
CODE = re.compile(r"(?P<ticks>(?<!`)(`+)(?!`).+?(?<!`)\2(?!`))", re.DOTALL)
LINKS = re.compile(
    r"""(?P<before>\]\(\s*<?|^[ ]{0,3}\[[^\]\n]+\]:[ \t]+<?|\b(?:src|href)=["'])(?P<to>[^\s<>"')]+)""", re.MULTILINE
)
ELSEWHERE = re.compile(r"^(?:[a-zA-Z][a-zA-Z0-9+.-]*:|#|/)")


class BuildError(Exception):
    """A notebook cannot be made; the message says which and what to do."""


@dataclass(frozen=True)
class Cell:
    """``kind`` is ``markdown`` or ``code``."""

    kind: str
    source: str


@dataclass(frozen=True)
class Job:
    """One notebook: the Markdown it is made from, where it goes, and whether its cells are run."""

    source: Path
    target: Path
    run: bool


def jobs() -> list[Job]:
    """Every notebook that there is to make, the write-up first. A folder's ``README.md`` is none."""
    write_up = [Job(path, TARGET / f"{path.stem}_Md.ipynb", run=False) for path in sorted(LOGS.glob("*.md"))]
    evidence = [Job(path, TARGET / f"{path.stem}.ipynb", run=True) for path in sorted(SOURCES.glob("*.md"))]
    return [job for job in (*write_up, *evidence) if job.source.name != "README.md"]


def built(job: Job, warn: Callable[[str], None] | None = None) -> str:
    """The notebook as the text of its file.

    Parameters
    ----------
    warn
        Called with what the cells wrote to standard error, which no notebook keeps.

    Raises
    ------
    BuildError
        A picture is not there, a cell fails, or an output tells of this machine.
    """
    import nbformat

    notebook = assembled(cells(job.source.read_text(encoding="utf-8"), job.source, TARGET))
    if job.run:
        notebook = _cleaned(_run(notebook, job.source), job.source, warn)
    nbformat.validate(notebook)
    return nbformat.writes(notebook, version=4) + "\n"


def cells(text: str, source: Path, folder: Path) -> list[Cell]:
    """The cells of a Markdown text that lies at ``source``, for a notebook in ``folder``.

    Raises
    ------
    BuildError
        A picture is named that is not there.
    """
    from markdown_it import MarkdownIt

    lines, found = text.splitlines(keepends=True), []
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    _check_pictures(tokens, source)
    kept = [token.map for token in tokens if token.type in ("fence", "code_block") and token.map]
    for start, end, code in _stretches(tokens, len(lines)):
        if code is not None:
            found.append(Cell("code", code.rstrip()))
            continue
        source_text = "".join(_moved(part, source.parent, folder) for part in _parts(lines, start, end, kept))
        if source_text.strip():
            found.append(Cell("markdown", source_text.strip("\n")))
    return found


def assembled(found: Sequence[Cell]) -> NotebookNode:
    """A notebook without outputs; cells are named by their place."""
    from nbformat import v4

    new = {"markdown": v4.new_markdown_cell, "code": v4.new_code_cell}
    notebook = v4.new_notebook(metadata={"kernelspec": dict(KERNEL), "language_info": {"name": "python"}})
    notebook.cells = [new[one.kind](one.source, id=f"cell-{place:03d}") for place, one in enumerate(found)]
    return notebook


def _stretches(tokens: Sequence[Token], n_lines: int) -> Iterator[tuple[int, int, str | None]]:
    """Lines ``start`` to ``end`` of every cell, and the code where it is one."""
    start = 0
    for token in tokens:
        if token.level or token.map is None:
            continue
        first, last = token.map
        if token.type == "heading_open" and first > start:
            yield start, first, None
            start = first
        elif token.type == "fence" and token.info.strip() == "python":
            yield start, first, None
            yield first, last, token.content
            start = last
    yield start, n_lines, None


def _parts(lines: Sequence[str], start: int, end: int, kept: Sequence[Sequence[int]]) -> Iterator[str | tuple[str]]:
    """The text of some lines in parts; code blocks, which no link is looked for in, as tuples."""
    at = start
    for first, last in kept:
        if first >= at and last <= end:
            yield "".join(lines[at:first])
            yield ("".join(lines[first:last]),)
            at = last
    yield "".join(lines[at:end])


def _moved(part: str | tuple[str], old: Path, new: Path) -> str:
    """The text with its relative links as seen from the folder ``new``; code is left as it is."""
    if isinstance(part, tuple):
        return part[0]

    def turned(match: re.Match[str]) -> str:
        to = match["to"]
        if ELSEWHERE.match(to):
            return match[0]
        path, mark, rest = re.match(r"([^#?]*)([#?]?)(.*)", to).groups()  # type: ignore[union-attr]
        return match["before"] + Path(os.path.relpath(old / path, new)).as_posix() + mark + rest

    pieces = CODE.split(part)  # text, span, its ticks, text, …
    return "".join(
        LINKS.sub(turned, piece) if place % 3 == 0 else piece if place % 3 == 1 else ""
        for place, piece in enumerate(pieces)
    )


def _check_pictures(tokens: Sequence[Token], source: Path) -> None:
    for token in tokens:
        for child in token.children or ():
            to = str(child.attrs.get("src", "")) if child.type == "image" else ""
            if to and not ELSEWHERE.match(to) and not (source.parent / unquote(to)).is_file():
                raise BuildError(f"{_shown(source)} shows the picture {unquote(to)}, which is not there")


def _run(notebook: NotebookNode, source: Path) -> NotebookNode:
    """The notebook with its outputs, run in ``notebooks/`` with this checkout's modules first."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    with tempfile.TemporaryDirectory() as folder:
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        here = {"PYTHONPATH": paths, "IPYTHONDIR": folder}
        client = NotebookClient(
            notebook,
            timeout=SECONDS_PER_CELL,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(TARGET)}},
            config=Config({"KernelManager": {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}}),
        )
        try:
            return client.execute(env={**os.environ, **SURROUNDINGS, **here})
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            raise BuildError(f"{_shown(source)}: a cell fails.\n{_plain(str(error)).strip()}") from error


def _cleaned(notebook: NotebookNode, source: Path, warn: Callable[[str], None] | None) -> NotebookNode:
    """The notebook without what differs from run to run."""
    notebook.metadata = {"kernelspec": dict(KERNEL), "language_info": {"name": "python"}}
    for place, cell in enumerate(notebook.cells):
        cell.metadata = {}
        outputs = cell.get("outputs", [])
        for output in outputs:
            if output.get("name") == "stderr" and warn is not None:
                warn(f"{_shown(source)}, cell {place}: {output.text.rstrip()}")
        if cell.cell_type == "code":
            cell.outputs = _joined([output for output in outputs if output.get("name") != "stderr"])
            _check_outputs(cell.outputs, f"{_shown(source)}, cell {place}")
    return notebook


def _joined(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Printed text that stands together as one output: how it was cut up on its way depends on the hour."""
    found: list[NotebookNode] = []
    for output in outputs:
        if found and output.output_type == found[-1].output_type == "stream":
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def _check_outputs(outputs: Sequence[Any], where: str) -> None:
    """No path of this machine may stand in an output."""
    paths = [str(ROOT), f"{tempfile.gettempdir()}{os.sep}", f"{Path.home()}{os.sep}"]
    for output in outputs:
        texts = [output.get("text", "")]
        texts += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
        for path in paths:
            if any(path in text for text in texts):
                raise BuildError(f"{where} prints {path}, a path of this machine; print it relative to the project")


def _plain(text: str) -> str:
    """Without a terminal's colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def _chosen(names: Sequence[str], convert: bool) -> list[Job]:
    known = jobs()
    stems = [job.source.stem for job in known]
    if unknown := [name for name in names if name not in stems]:
        raise BuildError(f"there is no Markdown of a notebook called {unknown[0]}; there are {', '.join(stems)}")
    return [job for job in known if (not names or job.source.stem in names) and not (convert and job.run)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the notebooks that are asked for; 1 if one cannot be made."""
    from persona_circuits.circuit.storage import atomic

    parser = argparse.ArgumentParser(description="Make notebooks from the Markdown in logs/ and notebooks/src/.")
    parser.add_argument("names", nargs="*", help="names of Markdown files, without .md; all if left out")
    parser.add_argument("--convert", action="store_true", help="the write-up alone, which runs nothing")
    given = parser.parse_args(arguments)
    try:
        for job in _chosen(given.names, given.convert):
            text = built(job, warn=lambda line: print(line, file=sys.stderr))
            with atomic(job.target) as temporary:
                temporary.write_text(text, encoding="utf-8")
            print(_shown(job.target))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
