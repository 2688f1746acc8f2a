"""What a circuit file, and a page of one, must hold: their JSON Schemas."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

__all__ = ["page_schema", "schema"]


def schema() -> dict[str, Any]:
    """The JSON Schema of ``circuit.json``."""
    return _read("circuit.schema.json")


def page_schema() -> dict[str, Any]:
    """The JSON Schema of the data in a circuit's page."""
    return _read("page.schema.json")


def _read(name: str) -> dict[str, Any]:
    return json.loads(resources.files("persona_circuits.circuit.io").joinpath(f"schemas/{name}").read_text("utf-8"))
