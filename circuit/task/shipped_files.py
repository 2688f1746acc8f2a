"""Where the data that comes with the project lies: beside the checkout, or inside the installed packages."""

from __future__ import annotations

from pathlib import Path

from persona_circuits.circuit.catalogue import fetched
from persona_circuits.circuit.errors import FileError

__all__ = ["CONTROLS", "MODEL", "PAIRS", "resolve", "shipped"]

MODEL = "models/persona-world"
PAIRS = "datasets/pairs_demo.jsonl"
CONTROLS = "datasets/pairs_controls.jsonl"


def shipped(name: str) -> Path:
    """The path of a shipped file or folder such as ``datasets/pairs_test.jsonl``.

    ``models/`` and ``datasets/`` lie inside the package, in a checkout as in a wheel.

    Raises:
        FileError: it is not there.
    """
    place = Path(__file__).resolve().parents[2] / name
    if place.exists():
        return place
    raise FileError(
        f"{name} did not come with this installation; install the project again, or give a path of your own"
    )


def resolve(name: str) -> str:
    """The path of a model or file: as it is given, or the shipped or fetched one of that name if there is none here.

    So a circuit file can name what is shipped without a path of any machine in it.
    """
    if Path(name).exists():
        return name
    if (place := fetched(name)) is not None:
        return str(place)
    try:
        return str(shipped(name)) if name.startswith(("models/", "datasets/")) else name
    except FileError:
        return name
