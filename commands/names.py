"""Commands and options by their names: suggestions for unknown names, and former names of options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from persona_circuits.circuit.errors import meant
from persona_circuits.commands.terminal import EXPLAIN

__all__ = ["FORMER", "NamedCommands", "complete_model"]

FORMER: Mapping[str, Mapping[str, str]] = {
    "collapse": {"--controls": "--null"},
    "explain": {"--controls": "--null"},
    "study": {"--controls": "--null"},
    "pairs": {"--neutral": "--add-neutral", "--out": "--file"},
    "rate": {"--neutral": "--neutral-text"},
    "evaluate": {"--out": "--report"},
    "compare": {"--out": "--report"},
    "bench": {"--out": "--report"},
    "vary": {"--out": "--file"},
    "prior-pairs": {"--out": "--file"},
    "draw": {"--out": "--file"},
}
"""Options under names that they had once, by command; they are read and not shown."""


class NamedCommands(TyperGroup):
    """The commands; it reads former names and --explain, and suggests a choice where one is misspelt."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command and its arguments, former names replaced."""
        name, command, rest = super().resolve_command(ctx, args)
        former = FORMER.get(str(name), {})
        if "--explain" in rest:
            EXPLAIN.set(True)
        return name, command, [_renamed(argument, former) for argument in rest if argument != "--explain"]

    def invoke(self, ctx: Any) -> Any:
        """Run it; the message on an invalid choice names the closest valid one."""
        before = EXPLAIN.set(bool(ctx.params.get("explain")))
        try:
            return super().invoke(ctx)
        except Exception as error:
            if match := re.fullmatch(
                r"(?:Value error, )?('(.*)' is not one of (.*?))\.?", getattr(error, "message", "")
            ):
                says, given, known = match.groups()
                error.message = says + meant(given, re.findall("'([^']*)'", known))  # type: ignore[attr-defined]
            raise
        finally:
            EXPLAIN.reset(before)


def complete_model(incomplete: str) -> list[str]:
    """Shell completion: the catalogue's models whose names begin so, else folders and GGUF files."""
    from persona_circuits.circuit.catalogue import CATALOGUE

    if names := [name for name in CATALOGUE if name.startswith(incomplete)]:
        return names
    folder, _, start = incomplete.rpartition("/")
    above = Path(f"{folder}/" if folder or incomplete.startswith("/") else ".")
    inside = [path for path in above.iterdir() if path.name.startswith(start)] if above.is_dir() else []
    folders = [f"{path}/" for path in inside if path.is_dir()]
    return sorted([*folders, *(str(path) for path in inside if path.suffix == ".gguf")])


def _renamed(argument: str, former: Mapping[str, str]) -> str:
    flag, equals, value = argument.partition("=")
    return f"{former.get(flag, flag)}{equals}{value}"
