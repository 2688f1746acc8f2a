"""Reading files: one decoding, one splitting into lines, one JSON, one way to say what is wrong with any of them.

    text      UTF-8, with or without a byte order mark; lines end at LF or CRLF and nowhere else
    JSON      as RFC 8259 has it, so without NaN and Infinity; a key stands once in an object; numbers fit a float
    tensors   safetensors, with every format of numbers that PyTorch has; pickles are named and never opened

Sizes are bounded: ``MAX_BYTES``, ``MAX_LINES``, ``MAX_DEPTH``, ``MAX_DIGITS``. Every reader passes a ``Kind``, the noun
for its file and the error for its faults.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit.errors import FileError, PersonaCircuitsError, listed

__all__ = [
    "DamagedState",
    "Kind",
    "NotJson",
    "check_format",
    "decoded",
    "is_number",
    "is_text",
    "is_texts",
    "is_whole",
    "json_lines",
    "json_of",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_json_lines",
    "read_state",
    "read_tensors",
    "read_text",
    "state_metadata",
    "table_kind",
    "tell_damaged",
]

MAX_BYTES = 2**30
"""Of a text file."""
MAX_LINES = 10_000_000
MAX_DEPTH = 64
"""Objects and lists inside one another."""
MAX_DIGITS = 100
"""Of a whole number."""
CHUNK = 2**20
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
MAGIC = {
    b"GGUF": "gguf",
    b"PK\x03\x04": "pickle",
    b"\x80\x02": "pickle",
    b"\x93NUMPY": "numpy",
    b"version https://git-lfs": "lfs",
}
ADVICE = {
    "pickle": "is a PyTorch pickle, which is not read, as reading one can run code; where you trust it, load it with "
    "torch.load and weights_only=True and write its tensors with safetensors.torch.save_file",
    "gguf": "is GGUF, which is not read; load it with the program that wrote it (repeng: ControlVector.import_gguf), "
    "stack its vectors to one tensor [layer, d_model], and write that with safetensors.torch.save_file",
    "numpy": "is NumPy's format, which is not read; write its arrays with safetensors.numpy.save_file",
    "lfs": "is a git-lfs pointer and not the file itself; fetch it with git lfs pull",
}
NUMPY_FORMATS = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
"""safetensors' names of what NumPy holds; anything else is read through PyTorch."""


@dataclass(frozen=True)
class Kind:
    """What a file is called in messages, the error for its faults, and what was ``expected`` of it."""

    noun: str
    error: type[PersonaCircuitsError] = FileError
    expected: str = ""

    def unreadable(self, name: str | Path, reason: object) -> PersonaCircuitsError:
        """The error of a file that cannot be read at all."""
        advice = f"expected {self.expected}" if self.expected else "check the path"
        return self.error(f"{self.noun} {name} cannot be read ({reason}); {advice}")

    def faulty(self, name: str | Path, what: str) -> PersonaCircuitsError:
        """The error of a file with one fault."""
        return self.error(f"{self.noun} {name} {what}" + (f"; expected {self.expected}" if self.expected else ""))


class NotJson(ValueError):
    """Why a text is not JSON that is read here; ``at`` is line and column where its grammar is broken."""

    def __init__(self, faults: list[str], at: tuple[int, int] | None = None) -> None:
        super().__init__(faults[0])
        self.faults, self.at = faults, at


class DamagedState(UserWarning):
    """A file of unfinished work is damaged and is not used."""


@dataclass(frozen=True)
class Tensors:
    """The requested tensors of a file, the names of all, and the file's metadata."""

    arrays: Mapping[str, np.ndarray]
    names: tuple[str, ...]
    metadata: Mapping[str, str]


def read_bytes(path: str | Path, kind: Kind, *, label: str | None = None) -> bytes:
    """The content of a file; ``label`` is what messages call it, if not ``path``.

    Raises:
        PersonaCircuitsError: of the given kind; there is no such file, or it has more than ``MAX_BYTES``.
    """
    chunks, size = [], 0
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                size += len(chunk)
                if size > MAX_BYTES:
                    raise kind.faulty(label or path, f"has more than {MAX_BYTES:,} bytes; no more are read")
                chunks.append(chunk)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise kind.unreadable(label or path, getattr(error, "strerror", None) or error) from error
    return b"".join(chunks)


def decoded(content: bytes, name: str | Path, kind: Kind) -> str:
    """Bytes as text, without a byte order mark and with LF at the ends of lines.

    Raises:
        PersonaCircuitsError: of the given kind; the bytes are not UTF-8, or are more than ``MAX_LINES`` lines.
    """
    if content.count(b"\n") > MAX_LINES:
        raise kind.faulty(name, f"has more than {MAX_LINES:,} lines; no more are read")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise kind.faulty(name, f"is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def read_text(path: str | Path, kind: Kind, *, label: str | None = None) -> str:
    """The text of a file; raises as ``read_bytes`` and ``decoded`` do."""
    return decoded(read_bytes(path, kind, label=label), label or path, kind)


def read_json(path: str | Path, kind: Kind, *, label: str | None = None) -> Any:
    """The value that a JSON file holds.

    Raises:
        PersonaCircuitsError: of the given kind; the file cannot be read or is not JSON; all faults are listed.
    """
    return json_of(read_text(path, kind, label=label), label or path, kind)


def json_of(text: str, name: str | Path, kind: Kind) -> Any:
    """The value of a text that was read from the file ``name``; raises as ``read_json`` does."""
    try:
        return parse_json(text)
    except NotJson as error:
        if error.at is not None:
            line, column = error.at
            what = f"is not JSON: {error.faults[0]} at line {line}, column {column}"
        elif len(error.faults) == 1:
            what = f"is not JSON: {error.faults[0]}"
        else:
            raise kind.error(listed(f"{kind.noun} {name} has {len(error.faults)} fault(s):", error.faults)) from error
        raise kind.faulty(name, what) from error


def read_json_lines(path: str | Path, kind: Kind, faults: list[str]) -> Iterator[tuple[int, Any]]:
    """The values of a JSON Lines file with their lines, from 1; what is not JSON goes to ``faults``."""
    return json_lines(read_text(path, kind), faults)


def json_lines(text: str, faults: list[str]) -> Iterator[tuple[int, Any]]:
    """The values of a text of one JSON value per line, with their lines, from 1; others go to ``faults``."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except NotJson as error:
            column = f" at column {error.at[1]}" if error.at else ""
            faults += [f"line {number}: not JSON ({fault}{column})" for fault in error.faults]
            continue
        yield number, value


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        NotJson: its grammar is broken, it is nested too deeply, a key stands twice in an object, a number is none, has
            too many digits or does not fit a float, a string holds half of a surrogate pair.
    """
    try:
        value = STRICT.decode(text)
    except json.JSONDecodeError as error:
        raise NotJson([error.msg], (error.lineno, error.colno)) from error
    except RecursionError as error:
        raise NotJson([f"it is nested more than {MAX_DEPTH} levels deep"]) from error
    except _RefusedError as error:
        raise NotJson(_refused(text) or [str(error)]) from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
        raise NotJson([f"it is nested more than {MAX_DEPTH} levels deep"])
    if SURROGATE_ESCAPE.search(text) and (faults := _surrogates(value)):
        raise NotJson(faults)
    return value


def read_tensors(path: str | Path, kind: Kind, *, only: Collection[str] | None = None) -> Tensors:
    """Tensors of a safetensors file as arrays; formats that NumPy lacks, such as bfloat16, become float32.

    Parameters
    ----------
    only
        The names to read, where they are there; all, if None.

    Raises
    ------
    PersonaCircuitsError
        Of the given kind; the file cannot be read, or is a pickle, GGUF or the like.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    check_format(path, kind)
    try:
        with safe_open(path, framework="numpy") as file:
            names, metadata = tuple(sorted(file.keys())), dict(file.metadata() or {})
            chosen = [name for name in names if only is None or name in only]
            plain = [name for name in chosen if file.get_slice(name).get_dtype() in NUMPY_FORMATS]
            arrays = {name: file.get_tensor(name) for name in plain}
        if others := [name for name in chosen if name not in arrays]:
            arrays |= _through_torch(path, others)
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise kind.unreadable(path, getattr(error, "strerror", None) or error) from error
    return Tensors({name: arrays[name] for name in chosen}, names, metadata)


def check_format(path: str | Path, kind: Kind) -> None:
    """Refuse a file of tensors that is not safetensors by its name or its first bytes, with the way to convert it.

    Raises:
        PersonaCircuitsError: of the given kind.
    """
    path = Path(path)
    format = {".gguf": "gguf", ".npy": "numpy", ".npz": "numpy"}.get(path.suffix.lower())
    if path.suffix.lower() in PICKLES:
        format = "pickle"
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except (OSError, ValueError) as error:
        raise kind.unreadable(path, getattr(error, "strerror", None) or error) from error
    if head[8:9] != b"{":  # safetensors: eight bytes of length, which may look like anything, then JSON
        format = next((name for magic, name in MAGIC.items() if head.startswith(magic)), format)
    if format is not None:
        raise kind.error(f"{kind.noun} {path} {ADVICE[format]}")


def read_state(path: str | Path | None, search: str) -> dict[str, np.ndarray]:
    """The arrays saved by an interrupted search; none where there is no file, or one of another search.

    A damaged file is not used, with a warning (``DamagedState``).
    """
    from safetensors import SafetensorError, safe_open

    if path is None or not Path(path).is_file():
        return {}
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("search") != search:
                return {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:  # the last: a format of no array
        tell_damaged(path, error)
        return {}
    if metadata != state_metadata(search, arrays):
        tell_damaged(path, "its numbers are not those that were written")
        return {}
    return arrays


def state_metadata(search: str, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The metadata of an interrupted search's file: which search it is, and the SHA-256 of its arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    return {"search": search, "sha256": digest.hexdigest()}


def tell_damaged(path: str | Path, why: object) -> None:
    """Warn that a file of unfinished work is damaged, so that the work starts again."""
    reason = " ".join(str(why).split())[:200]
    warnings.warn(DamagedState(f"{path} is damaged ({reason}) and not used; its work starts again"), stacklevel=3)


def table_kind(text: str) -> str:
    """What a text that should hold JSON looks like by its first line: a table with its separator; empty for others."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    if first.lstrip()[:1] in ("{", "["):
        return ""
    for separator, name in (("\t", "tabs"), (";", "semicolons"), (",", "commas")):
        if separator in first:
            return f"a table separated by {name}"
    return ""


def is_text(value: Any) -> bool:
    """Whether a value is a string that is not empty."""
    return isinstance(value, str) and value != ""


def is_texts(value: Any) -> bool:
    """Whether a value is a list of strings, itself and they not empty."""
    return isinstance(value, list) and bool(value) and all(map(is_text, value))


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any, low: int = 0, high: int = 2**63 - 1) -> bool:
    """Whether a value is a whole number within bounds; 2.0 and true are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


class _RefusedError(Exception):
    """Something that Python's json takes and this module does not; ``_refused`` finds the places."""


@dataclass(frozen=True)
class _Odd:
    """What stands where a value should be."""

    what: str


class _Repeated(dict[str, Any]):
    """An object in which a key stands twice."""

    key = ""


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS + 1:
        raise _RefusedError(_digits(text))
    return int(text)


def _digits(text: str) -> str:
    return f"a whole number of {len(text.lstrip('-')):,} digits; at most {MAX_DIGITS} are read"


def _real(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _RefusedError(_too_large(text))
    return value


def _too_large(text: str) -> str:
    return f"{text[:40]} is too large for a number"


def _constant(text: str) -> Any:
    raise _RefusedError(_no_number(text))


def _no_number(text: str) -> str:
    return f"{text} is no number"


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(items)
    if len(record) < len(items):
        raise _RefusedError("a key stands twice in an object")
    return record


STRICT = json.JSONDecoder(parse_int=_integer, parse_float=_real, parse_constant=_constant, object_pairs_hook=_object)
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _refused(text: str) -> list[str]:
    """Every refused value of a text with its place, found by reading the text once more."""

    def or_odd(read: Any) -> Any:
        def reading(text: str) -> Any:
            try:
                return read(text)
            except _RefusedError as error:
                return _Odd(str(error))

        return reading

    def an_object(items: list[tuple[str, Any]]) -> dict[str, Any]:
        record = _Repeated(items)
        if len(record) < len(items):
            names = [name for name, _ in items]
            record.key = next(name for name in record if names.count(name) > 1)
            return record
        return dict(record)

    lenient = json.JSONDecoder(
        parse_int=or_odd(_integer),
        parse_float=or_odd(_real),
        parse_constant=or_odd(_constant),
        object_pairs_hook=an_object,
    )
    try:
        value = lenient.decode(text)
    except (json.JSONDecodeError, RecursionError):
        return []
    faults = []
    for place, item in _walked(value):
        if isinstance(item, _Odd):
            faults.append(f"{place}{item.what}")
        elif isinstance(item, _Repeated):
            faults.append(f"{place}the key {item.key[:60]!r} stands twice in an object")
    return faults


def _surrogates(value: Any) -> list[str]:
    """Every string, key or not, with half of a surrogate pair, which no text file can hold."""
    what = "half of a surrogate pair, which is no character"
    faults = []
    for place, item in _walked(value):
        texts = [item] if isinstance(item, str) else item if isinstance(item, dict) else ()
        faults += [f"{place}{what}" for text in texts if LONE_SURROGATE.search(text)]
    return faults


def _walked(value: Any) -> Iterator[tuple[str, Any]]:
    """Every value inside a value, with its place and a colon, nothing for the value itself."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        place, item = waiting.pop()
        yield f"{place.lstrip('.')}: " if place else "", item
        if isinstance(item, dict):
            waiting += [(f"{place}.{key[:60]}", part) for key, part in reversed(item.items())]
        elif isinstance(item, list):
            waiting += [(f"{place}[{i}]", part) for i, part in reversed([*enumerate(item)])]


def _is_deep(value: Any) -> bool:
    """Whether lists and objects stand more than ``MAX_DEPTH`` deep inside one another, without recursion."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        parts = (part for item in level for part in (item.values() if isinstance(item, dict) else item))
        level = [part for part in parts if isinstance(part, dict | list)]
    return bool(level)


def _through_torch(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    import torch
    from safetensors import safe_open

    arrays = {}
    with safe_open(path, framework="pt") as file:
        for name in names:
            tensor = file.get_tensor(name)
            if tensor.is_complex():
                raise ValueError(f"{name} holds complex numbers")
            arrays[name] = tensor.to(torch.float32).numpy()
    return arrays
