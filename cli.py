"""The command line: parses, calls the public API, prints, and sets the exit code.

Exit codes: 0 done; 1 a demanded bar such as --min-faithfulness was missed; 2 bad
input, or a place that cannot be written; 130 Ctrl-C; 143 SIGTERM. Heavy imports
happen inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import sys
from importlib import import_module, util
from pathlib import Path
from typing import Annotated

import typer

if __name__ == "__main__":  # python cli.py: the checkout's own package, whatever is installed
    _HERE = Path(__file__).resolve().parent
    _SPEC = util.spec_from_file_location(
        "persona_circuits", _HERE / "__init__.py", submodule_search_locations=[str(_HERE)]
    )
    assert _SPEC is not None
    assert _SPEC.loader is not None
    sys.modules["persona_circuits"] = util.module_from_spec(_SPEC)
    _SPEC.loader.exec_module(sys.modules["persona_circuits"])


from persona_circuits.commands import (
    behaviour,
    circuits,
    comparing,
    directions,
    engine,
    evaluation,
    fetching,
    files,
    inside,
    pages,
    pairs,
    parts,
    speech,
    study,
    viewing,
)
from persona_circuits.commands.names import NamedCommands
from persona_circuits.commands.terminal import say

app = typer.Typer(
    cls=NamedCommands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"persona-circuits {import_module('persona_circuits').__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say under every table what its words mean; also after a command.")
    ] = False,
) -> None:
    """Find, test and draw the circuit that carries a persona into a preference."""


app.command()(circuits.discover)
app.command()(evaluation.evaluate)
app.command()(evaluation.specificity)
app.command()(comparing.curves)
app.command()(comparing.compare)
app.command()(pages.report)
app.command()(files.draw)
app.command()(files.figures)
app.command()(viewing.view)
app.command()(files.validate)
app.command()(files.export)
app.command()(fetching.get)
app.command()(engine.crosscheck)
app.command()(engine.bench)
app.command()(engine.models)
app.command()(engine.inspect)
app.command("ground-truth")(engine.ground_truth)
app.command()(pairs.pairs)
app.command()(pairs.vary)
app.command()(pairs.formats)
app.command("prior-pairs")(pairs.prior_pairs)
app.command()(behaviour.collapse)
app.command()(behaviour.explain)
app.command()(inside.probe)
app.command()(inside.lens)
app.command()(inside.patch)
app.command()(study.study)
app.command()(speech.respond)
app.command()(directions.vectors)
app.command()(directions.steer)
app.command()(parts.neurons)
app.command()(parts.bridge)
app.command()(speech.rate)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
