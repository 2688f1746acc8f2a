"""Answers kept as they come, so that a stopped run goes on."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import FileError
from persona_circuits.circuit.storage import DamagedState, append, parse_json

__all__ = ["Answer", "Answers", "Journal"]


@dataclass(frozen=True)
class Answer:
    """The text, why it ended (``stop``, ``length``, ``content_filter``, …) and which model says it answered."""

    text: str
    finish: str
    model: str = ""


@dataclass(frozen=True)
class Answers:
    """An answer per request, None where it failed; ``failures`` are reasons with their counts."""

    answers: tuple[Answer | None, ...]
    asked: int
    remembered: int
    failures: Mapping[str, int]


class Journal:
    """An append-only JSON Lines file of results by key, for work that may be killed at any moment.

    A line is written in one piece and handed to the system at once. A line that a killed
    run left unfinished is passed over and counted in ``torn``; the next line begins after it.
    May be used from several threads.

    Raises:
        FileError: the file cannot be read or written, or is no journal.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.torn = 0
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = self.path.read_bytes() if self.path.exists() else b""
            self._entries = self._parsed(content)
            self._file = self.path.open("ab", buffering=0)
            if content and not content.endswith(b"\n"):
                self._file.write(b"\n")
        except OSError as error:
            raise FileError(f"journal {self.path} cannot be used ({error.strerror}); check the path") from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str, **types: type) -> dict[str, Any] | None:
        """What stands under the key; None where nothing does, or something without values of these types."""
        entry = self._entries.get(key)
        good = entry is not None and all(isinstance(entry.get(name), wanted) for name, wanted in types.items())
        return entry if good else None

    def add(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep a result; it is in the file when this returns."""
        line = json.dumps({"key": key, **value}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            append(self._file, line, self.path)
            self._entries[key] = dict(value)

    def _parsed(self, content: bytes) -> dict[str, dict[str, Any]]:
        items: dict[str, dict[str, Any]] = {}
        for line in content.split(b"\n"):
            if not line.strip():
                continue
            try:
                item = parse_json(line.decode("utf-8"))
                key = item.pop("key")
                if not isinstance(key, str):
                    raise TypeError("a key is text")
                items[key] = item
            except (ValueError, KeyError, AttributeError, TypeError):
                self.torn += 1
        if self.torn and not items and content.count(b"\n") > 1:
            raise FileError(f"{self.path} is no journal of answers; move it away or choose another folder with --out")
        if self.torn:
            count = f"{self.torn} line{'s' if self.torn > 1 else ''}"
            warnings.warn(DamagedState(f"{count} of {self.path} cannot be read; that work is done again"), stacklevel=3)
        return items
