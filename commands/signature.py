"""Typer's signature of a command, made from the options dataclasses that the command takes.

    @with_options
    def discover(*, options: Options, loading: Annotated[Loading, Without("fitting")], as_json: JsonOption = False)

Each parameter whose type is a dataclass gives way, in its place, to one option per field with an
``Option`` (``circuit.options``); the command is called with the dataclass that is made of them. ``Without`` leaves
fields out and ``Only`` all others; they keep the dataclass's defaults. ``But`` gives another default for this command.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import typer

from persona_circuits.circuit.options import Field, options_of
from persona_circuits.commands.names import complete_model
from persona_circuits.commands.terminal import errors_as_exit_codes

__all__ = ["But", "Group", "Only", "Without", "groups_of", "with_options"]


class Without:
    """Fields that a command does not offer."""

    def __init__(self, *names: str) -> None:
        self.names = names


class Only:
    """Fields that a command offers, of a dataclass of which it needs a few."""

    def __init__(self, *names: str) -> None:
        self.names = names


class But:
    """Other defaults of a command, by the fields' names."""

    def __init__(self, **defaults: Any) -> None:
        self.defaults = defaults


class Group(NamedTuple):
    """An options dataclass among a command's parameters: its type and the fields that are offered, with defaults."""

    kind: Any
    fields: tuple[Field, ...]

    def made(self, given: dict[str, Any]) -> Any:
        """The dataclass, with what is given on the command line taken out of ``given``."""
        values = {field.name: _value(field, given.pop(field.name)) for field in self.fields}
        return self.kind(**{name: value for name, value in values.items() if value is not MISSING})


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with options in the place of its options dataclasses."""
    groups, hints = groups_of(command), get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters.extend(_parameter(field) for field in groups[parameter.name].fields)
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(kind=kind, annotation=hints[parameter.name]))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        with errors_as_exit_codes():
            made = {name: group.made(given) for name, group in groups.items()}
        command(**given, **made)

    for entry in parameters:
        if entry.name == "model":
            get_args(entry.annotation)[1].autocompletion = complete_model
    run.__annotations__ = {entry.name: entry.annotation for entry in parameters}
    vars(run)["__signature__"] = inspect.Signature(parameters)  # names that occur twice are refused here
    return run


def groups_of(command: Callable[..., None]) -> dict[str, Group]:
    """The options dataclasses that a command takes, by parameter."""
    return dict(_groups(inspect.unwrap(command)))


def _groups(command: Callable[..., None]) -> Iterator[tuple[str, Group]]:
    for name, hint in get_type_hints(command, include_extras=True).items():
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if not is_dataclass(kind):
            continue
        hidden = {item for mark in marks if isinstance(mark, Without) for item in mark.names}
        wanted = {item for mark in marks if isinstance(mark, Only) for item in mark.names}
        other = {key: value for mark in marks if isinstance(mark, But) for key, value in mark.defaults.items()}
        named: Any = kind
        fields = [
            field for field in options_of(named) if field.name not in hidden and (not wanted or field.name in wanted)
        ]
        changed = (field._replace(default=other.get(field.name, field.default)) for field in fields)
        yield name, Group(kind, tuple(changed))


def _parameter(field: Field) -> inspect.Parameter:
    """A field as Typer wants it: an annotated parameter with a default."""
    option, default = field.option, _shown(field)
    named = (field.flag,) if option.name or default is False else ()  # a switch that is on can be turned off, too
    settings: dict[str, Any] = {"help": option.help}
    if option.min is not None:
        settings["min"] = option.min
    hint = Annotated[_shown_type(field), typer.Option(*named, **settings)]  # type: ignore
    empty = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=empty)


def _shown_type(field: Field) -> Any:
    """The type that is given on the command line."""
    if field.option.given is not None:
        return field.option.given | None if _repeated(field) else field.option.given
    if _repeated(field):
        return list[get_args(field.type)[0]] | None  # type: ignore
    if not field.option.choices:
        return field.type
    chosen: Any = Literal[field.option.choices]  # type: ignore
    return chosen | None if type(None) in get_args(field.type) else chosen


def _shown(field: Field) -> Any:
    """The default as it would be given; None for what may be repeated and then adds to nothing."""
    if _repeated(field):
        return None
    if field.option.shown is not None:
        return field.option.shown
    if field.option.read is not None and isinstance(field.default, tuple):
        return ",".join(item if isinstance(item, str) else f"{item:g}" for item in field.default)
    return field.default


def _value(field: Field, given: Any) -> Any:
    """A field's value from what is given; MISSING where the dataclass's default is meant."""
    if _repeated(field) and given is None:
        return field.default
    if field.option.read is not None and given is not None:
        return field.option.read(given)
    return tuple(given) if _repeated(field) else given


def _repeated(field: Field) -> bool:
    given = field.option.given
    if given is not None:
        return get_origin(given) is list
    return get_origin(field.type) is tuple and get_args(field.type)[1:] == (Ellipsis,)
