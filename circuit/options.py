"""Options: frozen dataclasses whose fields say, once, what an option is, does and is by default.

    n_random: Annotated[int, Option("Random circuits of the same size to compare with.")] = 10

The library is called with such a dataclass, and the command line makes its own options from the same fields
(``commands.signature``): name, type, help and default stand here alone. A field without an ``Option`` is the
library's. These modules import nothing heavy, so that ``--help`` answers at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from persona_circuits.circuit.choices import ABLATIONS, ALIGNMENTS, IG_RULES, METRIC_NAMES
from persona_circuits.circuit.errors import OptionError, meant

__all__ = [
    "AblationName",
    "Alignment",
    "AnyMetric",
    "BatchSize",
    "Budget",
    "Field",
    "IgRule",
    "MetricName",
    "Option",
    "PlainNumbers",
    "Positions",
    "RandomCircuits",
    "Resamples",
    "Seed",
    "Steps",
    "Where",
    "check_choices",
    "check_least",
    "check_n_random",
    "conditions_of",
    "names_of",
    "numbers_of",
    "options_of",
    "seconds_of",
]


@dataclass(frozen=True)
class Option:
    """What a field of an options dataclass is on the command line.

    ``name`` is the flag where it is not the field's own name. ``given`` and ``read`` are for a field that is written in
    another way than it is kept: the type of what is given, and what turns that into the field's value; ``shown`` is
    its default as it would be given, where that is not the field's parts with commas between them.
    A field of type ``tuple`` is an option that may be repeated, unless it is read from one text.
    """

    help: str
    name: str | None = None
    choices: tuple[str, ...] = ()
    min: int | float | None = None
    given: Any = None
    read: Callable[[Any], Any] | None = None
    shown: Any = None


class Field(NamedTuple):
    """A field with an ``Option``: its name, its type without the ``Option``, the option and the default."""

    name: str
    type: Any
    option: Option
    default: Any

    @property
    def flag(self) -> str:
        """``--n-random``, say."""
        return self.option.name or f"--{self.name.replace('_', '-')}"


@cache
def options_of(kind: Any) -> tuple[Field, ...]:
    """The fields of an options dataclass that are options of the command line, in order."""
    options = []
    hints = _hints(kind)
    for field in fields(kind):
        hint = hints[field.name]
        if get_origin(hint) is Annotated and (
            marks := [mark for mark in get_args(hint)[1:] if isinstance(mark, Option)]
        ):
            options.append(Field(field.name, get_args(hint)[0], marks[-1], field.default))
    return tuple(options)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def check_choices(options: Any) -> None:
    """Check that every option with choices has one of them.

    Raises:
        OptionError: one has not.
    """
    kind: Any = type(options)
    for field in options_of(kind):
        value = getattr(options, field.name)
        for choice in value if isinstance(value, tuple) else (value,):
            if field.option.choices and isinstance(choice, str) and choice not in field.option.choices:
                known = field.option.choices
                raise OptionError(f"{field.flag} {choice!r} is not one of {', '.join(known)}{meant(choice, known)}")


def check_least(options: Any, **bounds: int) -> None:
    """Check that numbers are no smaller than these bounds; None is skipped.

    Raises:
        OptionError: one is.
    """
    kind: Any = type(options)
    flags = {field.name: field.flag for field in options_of(kind)}
    for name, least in bounds.items():
        value = getattr(options, name)
        if value is not None and not value >= least:
            flag = flags.get(name, f"--{name.replace('_', '-')}")
            raise OptionError(f"{flag} must be at least {least}, got {value:g}")


def check_n_random(n: int) -> None:
    """Raise ``OptionError`` where the number of random circuits, or orders, is negative."""
    if n < 0:
        raise OptionError(f"--n-random must not be negative, got {n}")


class PlainNumbers:
    """A base of frozen dataclasses: numpy's numbers become Python's, and whole floats become int where an int is due.

    Raises:
        OptionError: a field of whole numbers is given a fraction.
    """

    def __post_init__(self) -> None:
        kind: Any = type(self)
        hints = _hints(kind)
        for field in fields(self):  # type: ignore[arg-type]
            value = _plain(getattr(self, field.name))
            kinds = _kinds(hints[field.name])
            if isinstance(value, float) and int in kinds and float not in kinds:
                if not value.is_integer():
                    raise OptionError(f"{field.name} must be a whole number, got {value!r}")
                value = int(value)
            object.__setattr__(self, field.name, value)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type that there is."""
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return get_args(plain) or (plain,)


def _plain(value: Any) -> Any:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    if type(value) in (tuple, list):
        return type(value)(_plain(item) for item in value)
    return value


def names_of(text: str) -> tuple[str, ...]:
    """The parts between commas.

    Raises:
        OptionError: there is none.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if text.strip() and not names:
        raise OptionError(f"{text!r} has no names; put them between commas, such as m3,m7")
    return names


def numbers_of(text: str) -> tuple[float, ...]:
    """Numbers separated by commas.

    Raises:
        OptionError: one of them is no number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"--strengths {text!r} are not numbers separated by commas, such as 0.5,1,2") from error


def seconds_of(text: str) -> float:
    """``2m``, ``90s``, ``1.5h``, or a number of seconds.

    Raises:
        OptionError: it is none of these, or not above zero.
    """
    units = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text)
    if match is None or match[2] not in units or float(match[1]) <= 0:
        raise OptionError(f"--budget {text!r} is no time; write one such as 2m, 90s or 1h")
    return float(match[1]) * units[match[2]]


def conditions_of(where: list[str]) -> tuple[tuple[str, str], ...]:
    """``KEY=VALUE`` split in two.

    Raises:
        OptionError: one has no ``=``.
    """
    conditions = []
    for item in where:
        key, equals, value = item.partition("=")
        if not equals:
            raise OptionError(f"--where {item!r} must be KEY=VALUE, such as domain=food")
        conditions.append((key.strip(), value.strip()))
    return tuple(conditions)


BatchSize = Annotated[int, Option("Prompts per pass.")]
Seed = Annotated[int, Option("Seed of random circuits, random scores and bootstraps.", min=0)]
RandomCircuits = Annotated[int, Option("Random circuits of the same size to compare with.")]
Budget = Annotated[
    float | None,
    Option(
        "Time that it may take, such as 2m: the most informative comes first, and what is left out is reported.",
        given=str,
        read=seconds_of,
    ),
]
Resamples = Annotated[int, Option("Draws of bootstraps and permutations.")]
Steps = Annotated[int, Option("Points of EAP-IG.")]
IgRule = Annotated[str, Option("Where EAP-IG's points lie.", choices=IG_RULES)]
AnyMetric = Any  # str | metrics.Metric | Callable, but this module loads none of that
"""The name of a metric, or a ``Metric``, or a function (logits, targets) -> one number per prompt, higher is better."""
MetricName = Annotated[AnyMetric, Option("What the circuit is to explain.", choices=METRIC_NAMES)]
AblationName = Annotated[str, Option("What an edge outside the circuit carries.", choices=ABLATIONS)]
Alignment = Annotated[
    str, Option("equal: prompts of one length; right: unequal personas, aligned on the common end.", choices=ALIGNMENTS)
]
Positions = Annotated[
    tuple[str, ...],
    Option("persona-end, question-end, question-word or prompt-end; may be repeated. (default: all there are)"),
]
Where = Annotated[
    tuple[tuple[str, str], ...],
    Option("Only pairs with this value, KEY=VALUE; may be repeated.", given=list[str], read=conditions_of),
]
