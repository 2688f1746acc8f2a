"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from circuit.errors import FileError

__all__ = ["atomic", "check_output_folder", "replace_folder", "write_json"]


def write_json(content: Any, path: str | Path, *, indent: int | None = 1) -> None:
    """Write JSON atomically, with a newline at the end; NaN and infinity are refused."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block succeeds and vanishes when it fails.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    except OSError as error:
        raise FileError(
            f"cannot write {path} ({error.strerror}); choose a folder that exists and can be written"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_output_folder(folder: str | Path) -> None:
    """Make sure, before long work, that ``folder`` can be made or written; nothing is left behind.

    Raises:
        FileError: it is a file, or its nearest existing parent cannot be written.
    """
    folder = Path(folder)
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise FileError(
            f"output folder {folder} cannot be written ({error.strerror}); choose another with --out"
        ) from error


@contextlib.contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """A staging folder whose files move into ``folder`` together when the block succeeds; else nothing changes.

    Files of other names that are already in ``folder`` stay.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as staging:
        yield Path(staging)
        folder.mkdir(exist_ok=True)
        for path in sorted(Path(staging).iterdir()):
            os.replace(path, folder / path.name)
