"""What a circuit file must hold: its JSON Schema and every fault with its place."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

__all__ = [
    "schema",
]


def schema() -> dict[str, Any]:
    """The JSON Schema of ``circuit.json``."""
    text = resources.files("persona_circuits.circuit.io").joinpath("schemas/circuit.schema.json").read_text("utf-8")
    return json.loads(text)
