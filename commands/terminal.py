"""What every command does at its edges: load, print, report progress, turn errors into exit codes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, overload

import typer

from persona_circuits.circuit.progress import duration
from persona_circuits.circuit.table import Table
from persona_circuits.commands.options import Loading
from persona_circuits.commands.progress import progress_bars

__all__ = [
    "EXPLAIN",
    "by_token_count",
    "duration",
    "errors_as_exit_codes",
    "fitted_task",
    "in_processes",
    "kept_in",
    "lines_of",
    "load",
    "own_pairs",
    "path_and_name",
    "print_table",
    "print_tables",
    "progress_bars",
    "read_task",
    "refuse_idle",
    "refuse_revision",
    "require",
    "revision_of",
    "say",
    "say_drawn",
    "shipped_or",
    "show",
    "shown_text",
    "two_splits",
    "warn_of_other_weights",
]

LONGEST_NAME, LONGEST_CELL, LONGEST_LINE = 60, 400, 2000  # characters shown: of a row's name, a cell, a line
LONGEST_PHRASE = 24  # of a column whose cells are not broken
FILE_WIDTH = 140  # of tables where there is no terminal


EXPLAIN = ContextVar("explain", default=False)
"""Whether a line on each word stands under every table."""


def shown_text(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:.{places}f}"


def by_token_count(counts: dict[str, Any]) -> str:
    gaps = [int(gap) for gap in counts["by_tokens"]]
    return f"{gaps[0]} to {gaps[-1]} tokens" if gaps[0] != gaps[-1] else f"{gaps[0]} token(s)"


@overload
def path_and_name(given: Path | None, default: str) -> tuple[str, str]: ...
@overload
def path_and_name(given: Path | None, default: None) -> tuple[str | None, str | None]: ...
@overload
def path_and_name(given: Path | None, default: str | None) -> tuple[str | None, str | None]: ...
def path_and_name(given: Path | None, default: str | None) -> tuple[str | None, str | None]:
    """Where a file lies and what results call it; the shipped default where none is given."""
    from persona_circuits.circuit.task import resolve

    name = default if given is None else str(given)
    return (None, None) if name is None else (resolve(name), name)


def two_splits(
    model: Any,
    pairs: Path | None,
    train: str | None,
    test: str | None,
    fit: str | None,
    tokens: tuple[str, str] | None = None,
) -> tuple[Any, Any]:
    """The pairs to search on and those to test on; the same ones where the file names no splits.

    With ``fit``, an alignment, those of them that fit the model; with ``tokens`` these for the pairs' own answers.
    """
    from persona_circuits.circuit.discovery import split_of
    from persona_circuits.circuit.task import resolve
    from persona_circuits.circuit.task.shipped_files import PAIRS
    from persona_circuits.persona.data import examples_of, items_of

    task, name = read_task(pairs), PAIRS if pairs is None else str(pairs)
    first, second = split_of(task, train, "train"), split_of(task, test, "test")
    items = items_of(task, resolve(name))
    read = partial(
        examples_of, items if tokens is None else items.with_tokens(tokens), model, fitting=fit is not None, align=fit
    )
    examples = read(split=first)
    return examples, examples if second == first else read(split=second)


def lines_of(path: Path | None) -> tuple[str, ...]:
    from persona_circuits.circuit.errors import FileError
    from persona_circuits.circuit.storage import Kind, read_text

    if path is None:
        return ()
    kind = Kind("list of neutral prompts", expected="one prompt a line")
    lines = [line for line in read_text(path, kind).split("\n") if line.strip()]
    if not lines:
        raise FileError(f"{path} is empty; expected one prompt a line")
    return tuple(line.replace("\\n", "\n") for line in lines)


def shipped_or(model: str | None) -> str:
    from persona_circuits.circuit.task import MODEL

    return MODEL if model is None else model


def read_task(pairs: Path | str | None) -> Any:
    from persona_circuits.circuit.task import load_task, resolve
    from persona_circuits.circuit.task.shipped_files import PAIRS

    name = PAIRS if pairs is None else str(pairs)
    return load_task(resolve(name), label=name)


def own_pairs(record: dict[str, Any] | None) -> str:
    from persona_circuits.circuit.errors import OptionError

    if record is None:
        raise OptionError("the circuit does not say which pairs it was found on; give --pairs")
    return str(record["task"]["source"])


def revision_of(record: dict[str, Any] | None, other_model: str | None) -> str | None:
    """The commit that a circuit was found in, unless another model is asked for."""
    return record["model"]["revision"] if record is not None and other_model is None else None


def load(stage: Callable[[str], Any], name: str, loading: Loading, check: Callable[[Any], object] | None = None) -> Any:
    """The model of that name; notes on it go to standard error.

    ``check`` is called with its tokenizer before the weights are read, and raises on what does not fit it.
    """
    stage(f"loading {name}")
    from persona_circuits.circuit.cost import parse_bytes
    from persona_circuits.circuit.model import load_model
    from persona_circuits.circuit.task import resolve

    refuse_revision(resolve(name), loading.revision)
    if check is not None and not loading.fitting:
        from persona_circuits.circuit.model.checkpoint import check_folder
        from persona_circuits.circuit.model.gguf import gguf_in
        from persona_circuits.persona.data import load_tokenizer

        if Path(resolve(name)).is_dir() and gguf_in(resolve(name)) is None:
            check_folder(Path(resolve(name)))  # a folder that is no model is the first thing to be told
        check(load_tokenizer(name, revision=loading.revision))
    limit = None if loading.max_memory is None else parse_bytes(loading.max_memory)
    settings: dict[str, Any] = {key: getattr(loading, key) for key in ("revision", "device", "dtype")}
    model = load_model(resolve(name), label=name, max_memory=limit, **settings)
    for note in model.notes:
        say(f"note: {note}", err=True)
    return model


def show(
    as_json: bool,
    record: Callable[[], Any],
    tables: Callable[[], None],
    *,
    out: Path | None = None,
    notes: Sequence[str] = (),
    written: Sequence[object] = (),
    indent: int | None = None,
) -> None:
    """What a command found: as JSON, with its folder ``out`` if it has one, or as tables, notes and where files are."""
    if as_json:
        content = record()
        typer.echo(json.dumps(content if out is None else {"out": str(out), **content}, indent=indent))
        return
    tables()
    for note in notes:
        say(f"note: {note}")
    if places := list(map(str, written)) or ([f"{out}/"] if out is not None else []):
        say(f"written to  {', '.join(places)}")


def print_table(table: Table) -> None:
    """The title, the table, and the lines below it."""
    from rich import table as drawn
    from rich.box import SIMPLE_HEAD
    from rich.text import Text

    from persona_circuits.circuit.glossary import TERMS, explained, labelled

    shown, cells = drawn.Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False), table.cells()
    for i, label in enumerate(table.labels):
        shown.add_column(
            Text(labelled(label)) if label in TERMS else _cell(label, LONGEST_CELL),
            justify="left" if i < table.texts else "right",
            no_wrap=i == 0 or i >= table.texts or max((len(row[i]) for row in cells), default=0) <= LONGEST_PHRASE,
        )
    for row in cells:
        shown.add_row(*(_cell(cell, LONGEST_CELL if i else LONGEST_NAME) for i, cell in enumerate(row)))
    say(f"\n{table.title}")
    _console().print(shown)
    if EXPLAIN.get():
        say("\n".join(explained(table.labels)))
    for note in table.notes:
        say(note)


def print_tables(tables: Iterable[Table]) -> None:
    for table in tables:
        print_table(table)


def _cell(text: str, most: int) -> Any:
    """A cell as plain text: no markup, no control characters, one line, of bounded length."""
    from rich.text import Text

    from persona_circuits.circuit.printable import one_line

    return Text(one_line(text, most))


def say(text: object, *, err: bool = False) -> None:
    """Print text: control characters are escaped, and overlong lines cut."""
    from persona_circuits.circuit.printable import shortened, visible

    lines = visible(text).split("\n")
    typer.echo("\n".join(shortened(line, LONGEST_LINE) for line in lines), err=err)


def say_drawn(personas: Sequence[Any], questions: Sequence[str]) -> None:
    """What the intervals of the tables above are drawn over."""
    from persona_circuits.persona.data import drawn_over

    say(f"intervals   over {drawn_over(personas, questions)}")


def refuse_revision(model: str, revision: str | None) -> None:
    """A folder or a file has no revisions."""
    from persona_circuits.circuit.errors import OptionError

    if revision is not None and Path(model).exists():
        kind = "folder" if Path(model).is_dir() else "file"
        raise OptionError(
            f"--revision has no effect here: it is for a model of the hub, and {model} is a {kind}; leave it out"
        )


def require(value: float | None, bar: float | None) -> None:
    if bar is not None and (value is None or value < bar):
        shown = "undefined" if value is None else f"{value:.3f}"
        say(f"faithfulness {shown} is below the bar of {bar:g}", err=True)
        raise typer.Exit(1)


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else FILE_WIDTH, highlight=False)


@contextlib.contextmanager
def errors_as_exit_codes() -> Iterator[list[Callable[[], str]]]:
    """A user's error is one message on standard error and exit code 2; a bug keeps its traceback.

    Ctrl-C and SIGTERM give a line and 130 or 143. The functions that the block adds to its list then say what
    is saved for the next run, if anything.
    """
    from persona_circuits.circuit.errors import PersonaCircuitsError

    rank = int(os.environ.get("RANK", "0"))
    prefix = f"rank {rank}: " if rank else ""
    kept: list[Callable[[], str]] = []
    with _signals() as came, _damage_as_notes():
        try:
            yield kept
        except BaseException as error:
            if came or isinstance(error, KeyboardInterrupt):
                say(f"{prefix}{_stopped(kept)}", err=True)
                raise typer.Exit(128 + (came or [signal.SIGINT])[0]) from None
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                place = error.filename or "a temporary file"
                say(f"{prefix}error: cannot write {place}: {error.strerror}; free some space", err=True)
            elif isinstance(error, PersonaCircuitsError):
                say(f"{prefix}error: {error}", err=True)
            else:
                raise
            raise typer.Exit(2) from None


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM end the block with ``_Stopped``; the list holds which one came. A second ends the process."""
    came: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        came.append(number)
        signal.signal(number, signal.SIG_DFL)
        raise _Stopped

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for number in ours:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        for number in ours:
            signal.signal(number, before[number])


class _Stopped(BaseException):
    """A signal came. No KeyboardInterrupt, of which typer says something of its own."""


def kept_in(state: Path) -> Callable[[], str]:
    """An entry for the list of ``errors_as_exit_codes``: says where the work so far is saved, if it is."""
    return lambda: f"what is done so far is kept in {state}" if state.exists() else ""


def _stopped(kept: Sequence[Callable[[], str]]) -> str:
    """What a stopped command leaves, and how to go on."""
    if notes := "; ".join(filter(None, (tell() for tell in kept))):
        return f"stopped: {notes}; the same command goes on from there"
    return "stopped: no file is half-written; the same command begins anew"


@contextlib.contextmanager
def _damage_as_notes() -> Iterator[None]:
    """Print the warning of an unusable saved state as a note on standard error; other warnings are unchanged."""
    import warnings

    from persona_circuits.circuit.storage import DamagedState

    plainly = warnings.showwarning

    def told(message: Warning | str, category: type[Warning], *place: Any, **where: Any) -> None:
        if issubclass(category, DamagedState):
            say(f"note: {message}", err=True)
        else:
            plainly(message, category, *place, **where)

    with warnings.catch_warnings():
        warnings.simplefilter("always", DamagedState)
        warnings.showwarning = told
        yield


@contextlib.contextmanager
def in_processes() -> Iterator[bool]:
    """Under torchrun, share the prompts among its processes; true in the one that prints and writes."""
    from persona_circuits.circuit import parallel

    with parallel.processes():
        yield parallel.is_first()


def fitted_task(task: Any, model: Any, align: str, fitting: bool) -> Any:
    """The task, or those of its pairs that fit, with notes on unused rows. None stays None."""
    from persona_circuits.circuit import parallel
    from persona_circuits.circuit.task import fitting as those_that_fit

    if task is None:
        return None
    usable = those_that_fit(task, model, align=align) if fitting else task
    for note in usable.notes if parallel.is_first() else ():
        say(f"note: {usable.source}: {note}", err=True)
    return usable


def refuse_idle(context: typer.Context, *rules: tuple[bool, str, Sequence[str]]) -> None:
    """Refuse options that were given and would do nothing.

    A rule says whether there is anything for its options to act on, what that is, and the options' parameter names.
    """
    from persona_circuits.circuit.errors import OptionError

    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for applies, what, names in rules:
        for name in names if not applies else ():
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                raise OptionError(f"{flags[name]} has no effect here: it is for {what}; leave one of them out")


def warn_of_other_weights(record: Mapping[str, Any] | None, model: Any) -> None:
    if record and record["model"]["fingerprint"] != model.fingerprint:
        say(
            f"note: the circuit was found in {record['model']['name']} with other weights than {model.name} has; "
            "this measures a transfer",
            err=True,
        )
