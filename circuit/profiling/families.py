"""What the tests found of every model family; read without a model or what runs one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from persona_circuits.circuit.storage import Kind, read_json

__all__ = ["supported_families"]


def supported_families() -> dict[str, Any]:
    """What the tests found of every model family: ``families``, ``refused`` and the ``versions`` they ran with."""
    return read_json(Path(__file__).with_name("families.json"), Kind("list of families"))
