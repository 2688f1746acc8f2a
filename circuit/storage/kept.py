"""Long work in parts: finished parts are saved in a file, from which interrupted work resumes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit import parallel
from persona_circuits.circuit.errors import WriteError
from persona_circuits.circuit.storage.reading import read_state, state_metadata
from persona_circuits.circuit.storage.writing import write_bytes

__all__ = ["Kept", "packed", "search_of", "unpacked"]

SAVE_SECONDS = 30.0


class Kept:
    """Parts of one work, by name, each a few arrays; nothing is written where there is no ``path``.

    As a context manager it saves finished parts on an error or a signal, at most twice a minute before that, and
    removes the file when the work is complete. Of several processes, which all have the same parts, the first one reads
    and writes.

    Parameters
    ----------
    search
        What identifies the work (``search_of``). A file of other work is not used.

    Examples
    --------
    >>> with Kept(None, "squares") as kept:
    ...     kept.of("two", lambda: {"square": np.array([4.0])})["square"].tolist()
    [4.0]
    """

    def __init__(self, path: str | Path | None, search: str) -> None:
        self.path, self.search = None if path is None else Path(path), search
        self.known: dict[str, np.ndarray] = {}
        if self.path is not None:
            self.known = parallel.gathered(read_state(self.path, search) if parallel.is_first() else {})
        self._saved, self._new = time.monotonic(), False

    def of(self, name: str, make: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        """The arrays of a part: saved ones, or new ones from ``make``."""
        arrays: Mapping[str, np.ndarray] = self.part(name)
        if not arrays:
            arrays = make()
            self.add({name: arrays})
        return arrays

    def part(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a saved part; none where it is not saved."""
        own = f"{name}/"
        return {key.removeprefix(own): array for key, array in self.known.items() if key.startswith(own)}

    def add(self, parts: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Keep parts, all of them or none, in place of those of the same names; they must not be changed after."""
        if self.path is None:
            return
        self.known |= {
            f"{name}/{key}": np.ascontiguousarray(array) for name, part in parts.items() for key, array in part.items()
        }  # safetensors ignores strides
        self._new = True
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self._save()

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.done()
        elif self._new:
            with contextlib.suppress(WriteError):  # report the error that ended the work
                self._save()

    def done(self) -> None:
        """Remove the file of complete work."""
        if self.path is not None and parallel.is_first():
            self.path.unlink(missing_ok=True)

    def _save(self) -> None:
        from safetensors.numpy import save

        assert self.path is not None
        if parallel.is_first():
            write_bytes(save(self.known, metadata=state_metadata(self.search, self.known)), self.path)
        self._saved, self._new = time.monotonic(), False


def search_of(*parts: object) -> str:
    """An identifier of work: the SHA-256 of the ``repr`` of everything its results depend on."""
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()


def packed(content: Any) -> np.ndarray:
    """Plain values as an array of bytes, so that they can be kept: JSON, whose numbers come back as they were.

    Examples:
        >>> unpacked(packed([0.1, None, "a"]))
        [0.1, None, 'a']
    """
    return np.frombuffer(json.dumps(content).encode(), dtype=np.uint8)


def unpacked(array: np.ndarray) -> Any:
    """What was packed."""
    return json.loads(array.tobytes())
