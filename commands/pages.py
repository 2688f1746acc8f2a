"""The page of a circuit: report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import Option
from persona_circuits.commands.index import given_command
from persona_circuits.commands.options import LATEST, Loading
from persona_circuits.commands.signature import Without, with_options
from persona_circuits.commands.terminal import (
    errors_as_exit_codes,
    fitted_task,
    load,
    own_pairs,
    progress_bars,
    read_task,
    refuse_idle,
    say,
    warn_of_other_weights,
)

__all__ = ["PAGE", "write_inside"]

PAGE = "page.html"
RUNNING = ("model", "pairs", "device", "dtype", "max_memory", "fitting")


@dataclass(frozen=True)
class Shown:
    """What the page shows beside the circuit."""

    beside: Annotated[
        tuple[str, ...],
        Option("NAME=RUN: another circuit of the same shape, seen beside it; may be repeated.", name="--with"),
    ] = ()
    groups: Annotated[Path | None, Option("Named groups of nodes, a file that the page saves.")] = None
    verdicts: Annotated[
        Path | None, Option("A folder of explain: its verdicts, beside their causal tests and null.")
    ] = None


@dataclass(frozen=True)
class Running:
    """Whether the model is run, too, and which one."""

    inside: Annotated[bool, Option("Run the model too: what every node attends to, moves, promotes; inside.json.")] = (
        False
    )
    model: Annotated[str | None, Option("For --inside. (default: the run's)")] = None
    pairs: Annotated[Path | None, Option("For --inside. (default: the run's)")] = None


@with_options
def report(
    context: typer.Context,
    *,
    run: Annotated[Path, typer.Argument(help="A run's folder, its circuit.json, or EAP-IG's JSON.")] = LATEST,
    file: Annotated[
        Path | None, typer.Option("--file", help="The page. (default: page.html beside the circuit)")
    ] = None,
    shown: Shown,
    running: Running,
    loading: Annotated[Loading, Without("revision")],
) -> None:
    """Write one page that explains a circuit: a single HTML file that needs no network, from the run's files."""
    with errors_as_exit_codes():
        refuse_idle(context, (running.inside, "--inside", RUNNING))
        from persona_circuits.circuit.io import read_circuit
        from persona_circuits.circuit.page import page_html, page_of_run
        from persona_circuits.circuit.storage import check_output_file, write_text

        stored = read_circuit(run)
        file = file or stored.path.with_name(PAGE)
        check_output_file(file)
        settings: dict[str, Any] = {"others": _named(shown.beside), "groups": shown.groups, "verdicts": shown.verdicts}
        if running.inside:
            _look_inside(stored, running, loading)
        data = page_of_run(run, **settings, command=given_command(context))
        write_text(page_html(data), file)
        say(str(file))


def _named(items: tuple[str, ...]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for item in items:
        name, equals, path = item.partition("=")
        if not (name and equals and path):
            raise OptionError(f"--with {item!r}: expected NAME=RUN, such as prior=runs/prior")
        if name in paths:
            raise OptionError(f"--with names two runs {name}; give each a name of its own")
        paths[name] = Path(path)
    return paths


def _look_inside(stored: Any, running: Running, loading: Loading) -> None:
    name = running.model or stored.model_name()
    if name is None:
        raise OptionError("the circuit does not say which model it is of; give --model")
    task = read_task(running.pairs or own_pairs(stored.record))
    with progress_bars() as stage:
        loaded = load(stage, name, loading)
        warn_of_other_weights(stored.record, loaded)
        about = (stored.record or {}).get("task", {})
        task = fitted_task(task.where(**about.get("where", {})), loaded, about.get("align", "equal"), loading.fitting)
        write_inside(loaded, task, stored.circuit, stored.path.parent, align=about.get("align", "equal"), stage=stage)


def write_inside(model: Any, task: Any, circuit: Any, folder: Path, *, align: str, stage: Any) -> None:
    """What the nodes of a circuit do, into ``inside.json`` of its folder."""
    from persona_circuits.circuit.page.run import INSIDE
    from persona_circuits.circuit.storage import write_json
    from persona_circuits.persona.inside import look_inside

    write_json(look_inside(model, task, circuit, align=align, progress=stage("inside the nodes")), folder / INSIDE)
