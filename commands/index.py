"""The page of a run's folder, with the command that made it as it was given."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

__all__ = ["given_command", "index", "result_folder"]

SECRET = ("--api-key",)
"""Options whose values are not written down."""


@contextmanager
def result_folder(context: typer.Context, out: Path, name: str, *, notes: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to fill with a command's results; with its ``index.html`` it then takes the place of ``out``."""
    from persona_circuits.circuit.storage import replace_folder

    with replace_folder(out) as staging:
        yield staging
        index(context, staging, name, notes=notes)


def index(context: typer.Context, folder: Path, name: str, *, notes: Sequence[str] = ()) -> None:
    """Write ``index.html`` into the folder of a command's results for the model of that name."""
    from persona_circuits.circuit.figures import About, write_index

    purpose = (context.command.help or "").split("\n\n")[0]
    title = f"{context.info_name}: {Path(name).name}"
    write_index(folder, About(title, purpose, given_command(context), given=(("model", name),), notes=notes))


def given_command(context: typer.Context) -> str:
    """The command with the options given, except the folder, which may have moved since."""
    return shlex.join(["persona-circuits", str(context.info_name), *_arguments(context)])


def _arguments(context: typer.Context) -> Iterator[str]:
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is None or source.name != "COMMANDLINE":
            continue
        value: Any = context.params[str(parameter.name)]
        values = value if isinstance(value, list | tuple) else [value]
        if parameter.param_type_name == "argument":
            yield from map(str, values)
        elif isinstance(value, bool):
            yield parameter.opts[0] if value else parameter.secondary_opts[0]
        elif parameter.opts[0] != "--out":
            for item in values:
                yield from (parameter.opts[0], "..." if parameter.opts[0] in SECRET else str(item))
