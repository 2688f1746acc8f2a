"""Looking at runs in a browser: view."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persona_circuits.commands.terminal import errors_as_exit_codes, say

__all__: list[str] = []


def view(
    folder: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 0,
) -> None:
    """Show a folder of runs in a browser on this machine: a list, every run's page, two circuits side by side."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.viewing import viewer_of

        viewer = viewer_of(folder, port)
    say(f"{folder} at {viewer.address}; Ctrl-C stops")
    try:
        viewer.serve_forever()
    except KeyboardInterrupt:
        say("stopped")
    finally:
        viewer.server_close()
