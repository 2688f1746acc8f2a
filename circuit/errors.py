"""Every error a user can cause, each a sentence that says what to do next.

    PersonaCircuitsError
    ├── GraphError     a name that is not a node or an edge of this graph
    ├── ModelError     a model that cannot be loaded, or cannot be decomposed
    ├── TaskError      a pair file with faults; all of them are listed at once
    ├── FileError      a circuit file that is not valid, or a path that cannot be used
    │   └── WriteError a file or folder that cannot be written
    └── OptionError    an option, or a combination of options, that makes no sense

The command line turns these into exit code 2. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = [
    "FileError",
    "GraphError",
    "ModelError",
    "OptionError",
    "PersonaCircuitsError",
    "TaskError",
    "WriteError",
    "cut",
    "first_line",
    "listed",
    "meant",
]

MAX_MESSAGE = 3500
MAX_FAULT = 300
"""Characters of a message, and of one fault in a list of them."""


class PersonaCircuitsError(Exception):
    """Base of all errors that a user can cause and fix; messages that quote too much are cut in the middle."""

    def __init__(self, message: object = "") -> None:
        # A lone surrogate, as in the name of a file that is not UTF-8, could not be printed.
        super().__init__(cut(str(message).encode("utf-8", "backslashreplace").decode(), MAX_MESSAGE))


class GraphError(PersonaCircuitsError):
    """A name is not a node or an edge of this graph."""


class ModelError(PersonaCircuitsError):
    """A model cannot be loaded, or cannot be written as a sum of nodes."""


class TaskError(PersonaCircuitsError):
    """A set of prompt pairs cannot be used."""


class FileError(PersonaCircuitsError):
    """A file is not what it should be, or cannot be written."""


class WriteError(FileError):
    """A file or folder cannot be written; what was there before is as it was."""


class OptionError(PersonaCircuitsError):
    """An option has a value, or stands beside another option, that makes no sense."""


def listed(headline: str, faults: Sequence[str], *, most: int = 20) -> str:
    """One message out of many faults: the headline, a line each, and how many more there are."""
    shown = [f"  {cut(fault, MAX_FAULT)}" for fault in faults[:most]]
    if len(faults) > most:
        shown.append(f"  … and {len(faults) - most} more")
    return "\n".join([headline, *shown])


def cut(text: str, most: int) -> str:
    """The text, or its beginning and end where it has more than ``most`` characters."""
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 3]} … {text[len(text) - tail :]}"


def first_line(error: BaseException) -> str:
    """The first line of what another library's error says, cut to 200 characters."""
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0]
    return line if len(line) <= 200 else line[:199] + "…"


def meant(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'eap-ig'?``, or nothing where no known word is close."""
    from difflib import get_close_matches

    matches = get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
