"""The quantised file that a model's weights come from, so that results can name it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from persona_circuits.circuit.catalogue import ORIGIN_FILE
from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.storage import Kind, read_json

__all__ = ["Origin", "origin_of", "sha256_of"]

KIND = Kind("note of a model's origin", ModelError)
CHUNK = 2**20


@dataclass(frozen=True)
class Origin:
    """The quantised file that weights were dequantised from; ``source`` and ``licence`` are empty where not known."""

    file: str
    sha256: str
    quantisation: str
    source: str = ""
    licence: str = ""

    @property
    def sentence(self) -> str:
        """In one line: what was done to the weights, and of which file they are."""
        source = f" of {self.source}" if self.source else ""
        licence = f", licence {self.licence}" if self.licence else ""
        return f"quantised ({self.quantisation}), dequantised; {self.file}{source}, SHA-256 {self.sha256}{licence}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def origin_of(folder: Path) -> Origin | None:
    """What ``origin.json`` in a model's folder says; None where there is none.

    Raises:
        ModelError: the file is not what ``persona-circuits get`` writes.
    """
    path = folder / ORIGIN_FILE
    if not path.is_file():
        return None
    record = read_json(path, KIND)
    names = ("file", "sha256", "quantisation", "source", "licence")
    if not isinstance(record, dict) or not all(isinstance(record.get(name, ""), str) for name in names):
        raise KIND.faulty(path, f"is no object of texts named {', '.join(names)}; fetch the model again")
    origin = Origin(**{name: record.get(name, "") for name in names})
    if not (origin.file and origin.quantisation and re.fullmatch("[0-9a-f]{64}", origin.sha256)):
        raise KIND.faulty(path, "lacks a file, its SHA-256 or its quantisation; fetch the model again")
    return origin


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
