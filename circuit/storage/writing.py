"""The one module that writes: files whole or not at all, and checks, before long work, that they can be written.

A file is made under a hidden name beside its own, brought to the disk (fsync) and renamed. Files that belong
together are made in a hidden folder inside their own folder, and renamed when all of them are there:

    FOLDER/.persona-circuits-4f0c…/new/      being written; of a killed process, removed at the next start
    FOLDER/.persona-circuits-4f0c…/ready/    complete; of a killed process, moved into place at the next start

Nothing is staged outside ``FOLDER``, which may be a mount point, a link to another file system, or all that one
may write to. Staging holds a lock, which distinguishes a living process's files from a killed one's. Permissions
are what the umask leaves; a link to a file is followed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from persona_circuits.circuit import parallel
from persona_circuits.circuit.errors import WriteError

__all__ = [
    "PREFIX",
    "append",
    "atomic",
    "check_output_file",
    "check_output_folder",
    "replace_files",
    "replace_folder",
    "settle",
    "working_folder",
    "write_bytes",
    "write_json",
    "write_text",
]

PREFIX = ".persona-circuits-"
PROBE = 4096  # bytes written and removed, to see before long work that the disk takes any
NAME_MAX = 255
FULL = "free some space, or choose another place"
CLOSED = "choose a place that can be written"
ADVICE = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.EIO: CLOSED,
    errno.EROFS: CLOSED,
    errno.EACCES: CLOSED,
    errno.EPERM: CLOSED,
    errno.ELOOP: CLOSED,
    errno.EISDIR: "give the name of a file, or move the folder away",
    errno.EEXIST: "move what is there away, or choose another place",
    errno.ENOTDIR: "a file stands where a folder is needed: move it away, or choose another place",
    errno.ENOENT: "make its folder, or choose a place in a folder that exists",
    errno.ENAMETOOLONG: f"choose a name of at most {NAME_MAX} bytes",
}
FILE_ENDINGS = (".json", ".jsonl", ".csv", ".md", ".html", ".png", ".svg", ".safetensors")


def write_json(content: Any, path: str | Path, *, indent: int | None = 1) -> None:
    """Write JSON atomically, with a newline at the end; NaN and infinity are refused."""
    write_text(json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_text(text: str, path: str | Path) -> None:
    """Write a text file, in UTF-8 and with the text's own line ends, in one step."""
    write_bytes(text.encode("utf-8"), path)


def write_bytes(data: bytes, path: str | Path) -> None:
    """Write a file in one step.

    Raises:
        WriteError: the folder is missing or cannot be written, or the disk is full.
    """
    with atomic(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block succeeds and vanishes when it fails.

    Raises:
        WriteError: the folder is missing or cannot be written, or the disk is full.
    """
    path = Path(path)
    with _told(path):
        target = Path(os.path.realpath(path))
        _check_is_file(path)
        temporary, handle = _locked_file(target.parent, target.suffix if len(target.suffix) < 16 else "")
    try:
        with _told(path):
            yield temporary
            if not _is_staged(path):
                os.fsync(handle)
            os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        os.close(handle)


@contextlib.contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """A staging folder whose files move into ``folder`` together when the block succeeds; else nothing changes.

    Files of other names that are already in ``folder`` stay; a sub-folder takes the place of a whole one.

    Raises:
        WriteError: the folder cannot be made or written, a file's name is a folder's there, or the disk is full.
    """
    folder = Path(folder)
    with working_folder(folder), _told(folder):
        settle(folder)
        staging, handle = _locked_folder(folder)
        try:
            new = staging / "new"
            new.mkdir()
            yield new
            _check_kinds(new, folder)
            _to_disk(new)
            with _undisturbed():
                os.rename(new, staging / "ready")
                _move(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            os.close(handle)


@contextlib.contextmanager
def replace_files(*paths: str | Path) -> Iterator[tuple[Path, ...]]:
    """Temporary paths of files that take their places together when the block succeeds; else nothing changes.

    Raises:
        WriteError: as ``replace_folder``.
    """
    targets = [Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path) for path in paths]
    with contextlib.ExitStack() as stack:
        folders = dict.fromkeys(target.parent for target in targets)
        staged = {folder: stack.enter_context(replace_folder(folder)) for folder in folders}
        yield tuple(staged[target.parent] / target.name for target in targets)


@contextlib.contextmanager
def working_folder(folder: str | Path) -> Iterator[Path]:
    """The folder, made if it is not there; if nothing is in it after the block, it is removed again.

    Of several processes the first one removes it: another may have ended while that one still writes.

    Raises:
        WriteError: it cannot be made.
    """
    folder = Path(folder)
    created = [place for place in (folder, *folder.parents) if not place.exists()]
    if not parallel.is_first():
        created = []
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        for place in created:
            with contextlib.suppress(OSError):
                place.rmdir()


def append(file: io.FileIO, data: bytes, path: str | Path) -> None:
    """Add bytes to the end of an open, unbuffered file: all of them, or none where the disk is full.

    Raises:
        WriteError: the file cannot be written.
    """
    end = os.fstat(file.fileno()).st_size
    with _told(Path(path)):
        try:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
        except OSError:
            os.ftruncate(file.fileno(), end)
            raise


def check_output_folder(folder: str | Path) -> None:
    """Make sure, before long work, that ``folder`` can be made and written; no trace of the check remains.

    What a killed process left there is moved into place where it was complete, else removed.

    Raises:
        WriteError: it is a file, the working folder without a name of its own, a link that leads nowhere, holds
            a folder where a file goes, or cannot be written.
    """
    folder = Path(folder)
    if str(folder) == ".":
        raise WriteError(
            "output folder '.' (or an empty one) is the working folder itself; give a folder of its own, such as "
            "runs/NAME, or the working folder's full path"
        )
    with _told(folder, "output folder {} cannot be written"):
        nearest = _nearest(folder)
        if nearest == folder:
            settle(folder)
            for path in sorted(folder.iterdir()):
                if path.suffix in FILE_ENDINGS and path.is_dir():
                    raise OSError(errno.EISDIR, f"{path.name} in it is a folder, where a file may have to go")
        _probe(nearest)


def check_output_file(path: str | Path, *, makes_folder: bool = False) -> None:
    """Make sure, before long work, that the file can be written; no trace of the check remains.

    Parameters
    ----------
    makes_folder
        The file's folder is made where it is not there.

    Raises
    ------
    WriteError
        It is a folder or a device, its name is too long, it is a link that leads nowhere, or its folder is missing
        or cannot be written.
    """
    path = Path(path)
    with _told(path):
        _check_is_file(path)
        nearest = Path(os.path.realpath(path)).parent if path.is_file() else _nearest(path)
        if nearest != path.parent and not (path.is_file() or makes_folder):
            raise OSError(errno.ENOENT, f"there is no folder {path.parent}")
        settle(nearest)
        _probe(nearest)


def settle(folder: str | Path) -> None:
    """Finish in ``folder`` what killed processes left: complete results move into place, the rest is removed."""
    for path in sorted(Path(folder).glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            _settle(path)


def _settle(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if not _lock(handle, wait=False):  # of a living process
            return
        if not path.is_dir():
            path.unlink()
            return
        if (path / "ready").is_dir():
            _move(path, path.parent)
        shutil.rmtree(path)
    finally:
        os.close(handle)


def _locked_file(folder: Path, suffix: str) -> tuple[Path, int]:
    """A new empty file that ``settle`` leaves alone while its handle is open."""
    while True:
        path = folder / f"{PREFIX}{secrets.token_hex(8)}{suffix}"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        _lock(handle)
        if os.fstat(handle).st_nlink:  # else another process settled it before the lock was held
            return path, handle
        os.close(handle)


def _locked_folder(folder: Path) -> tuple[Path, int]:
    """A new empty folder that ``settle`` leaves alone while its handle is open."""
    while True:
        path = folder / f"{PREFIX}{secrets.token_hex(8)}"
        path.mkdir()
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY)
            _lock(handle)
            if path.exists():
                return path, handle
            os.close(handle)


def _lock(handle: int, *, wait: bool = True) -> bool:
    """Whether the lock is held; not where another process holds it, or the file system knows no locks."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True


def _move(staging: Path, folder: Path) -> None:
    """Rename all that is ready to its place in ``folder``; where one fails, those before it are undone."""
    old = staging / "old"
    old.mkdir(exist_ok=True)
    moved: list[str] = []
    try:
        for path in sorted((staging / "ready").iterdir()):
            target = folder / path.name
            if target.is_dir():
                os.rename(target, old / path.name)
            elif target.exists():
                with contextlib.suppress(OSError):  # no hard links here, or kept before the process was killed
                    os.link(target, old / path.name)
            moved.append(path.name)
            os.replace(path, target)
    except OSError:
        for name in reversed(moved):
            _take_back(folder / name, old / name, staging / f"undone-{name}")
        raise


def _take_back(target: Path, old: Path, undone: Path) -> None:
    with contextlib.suppress(OSError):
        if target.is_dir() or not old.exists():
            os.rename(target, undone)
        if old.exists():
            os.replace(old, target)


def _check_kinds(new: Path, folder: Path) -> None:
    """No file may take a folder's place, nor a folder a file's."""
    for path in sorted(new.iterdir()):
        target = folder / path.name
        if target.exists() and target.is_dir() != path.is_dir():
            kind = errno.EISDIR if target.is_dir() else errno.EEXIST
            raise OSError(kind, f"{path.name} in it is a {'folder' if target.is_dir() else 'file'}")


def _to_disk(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, lambda received, _frame: came.append(received))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise OSError(errno.EISDIR, "it is a folder")
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "it is no ordinary file")


def _nearest(path: Path) -> Path:
    """The innermost folder of the path that exists."""
    for place in (path, *path.parents):
        if len(os.fsencode(place.name)) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise OSError(errno.ENOENT, f"{place} is a link to {os.readlink(place)}, which does not exist")
        if place.exists():
            if not place.is_dir():
                raise OSError(errno.ENOTDIR, f"{'it' if place == path else place} is a file")
            return place
    return Path(".")


def _probe(folder: Path) -> None:
    path, handle = _locked_file(folder, "")
    try:
        os.write(handle, bytes(PROBE))
        os.fsync(handle)
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _is_staged(path: Path) -> bool:
    return any(part.startswith(PREFIX) for part in path.parts)


def _shown(path: Path) -> Path:
    """The path that a staged file will have."""
    parts = path.parts
    hidden = {place + more for place, part in enumerate(parts) if part.startswith(PREFIX) for more in (0, 1)}
    return Path(*(part for place, part in enumerate(parts) if place not in hidden))


@contextlib.contextmanager
def _told(path: Path, template: str = "cannot write {}") -> Iterator[None]:
    """Turn the system's errors about the path into one sentence that names it; other errors pass through."""
    try:
        yield
    except OSError as error:
        named = os.fspath(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else None
        own = named is None or PREFIX in str(named) or os.path.abspath(path).startswith(os.path.abspath(str(named)))
        if error.errno not in ADVICE or not own:
            raise
        raise WriteError(f"{template.format(_shown(path))}: {error.strerror}; {ADVICE[error.errno]}") from error
