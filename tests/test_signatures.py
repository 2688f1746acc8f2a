"""An option stands once, in an options dataclass: of its fields the command line makes its signatures."""

import ast
from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import Annotated, Literal, get_args, get_origin

import pytest
import typer
from conftest import ROOT
from typer.testing import CliRunner

from persona_circuits import cli
from persona_circuits.circuit import choices
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.model import DTYPES, NEURON_HOOKS
from persona_circuits.circuit.options import AnyMetric, Option, check_choices, options_of
from persona_circuits.commands.signature import But, Only, Without, groups_of, with_options
from persona_circuits.metrics import METRICS
from persona_circuits.persona.neurons.options import HOOKS

CALLBACKS = {one.name or one.callback.__name__.replace("_", "-"): one.callback for one in cli.app.registered_commands}
GROUPS = {name: groups_of(callback) for name, callback in CALLBACKS.items()}
MADE = [(name, group) for name, groups in GROUPS.items() for group in groups.values()]
KINDS = sorted({group.kind for _, group in MADE}, key=lambda kind: f"{kind.__module__}.{kind.__name__}")


def named(value):
    value = getattr(value, "kind", value)
    return value if isinstance(value, str) else f"{value.__module__}.{value.__name__}"


def shown_of(command):
    return {param.name: param for param in typer.main.get_command(cli.app).commands[command].params}


@pytest.mark.parametrize("command", CALLBACKS)
def test_a_command_offers_what_its_dataclasses_say(command):
    """Flag, help, bounds, default and whether it may be repeated; in the dataclass's order."""
    params = shown_of(command)
    for group in GROUPS[command].values():
        for field in group.fields:
            param, option = params[field.name], field.option
            assert param.opts == [field.flag]
            assert (param.help, param.min) == (option.help, option.min)
            repeated = option.given is None and get_origin(field.type) is tuple
            assert param.multiple == (repeated or get_origin(option.given) is list)
            plain = option.given is None and option.read is None and not repeated
            assert param.required == (field.default is MISSING)
            assert not plain or param.required or param.default == field.default
        order = [name for name in params if name in {field.name for field in group.fields}]
        assert order == [field.name for field in group.fields]


@pytest.mark.parametrize("command", CALLBACKS)
def test_help_shows_every_option(command):
    done = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "250", "TERM": "dumb"})
    assert done.exit_code == 0
    for group in GROUPS[command].values():
        for field in group.fields:
            assert f"{field.flag} " in done.stdout or f"{field.flag}/" in done.stdout, field.flag


def is_whole(group):
    """Whether nothing of it must be given, neither by the user nor by the command."""
    return all(field.default is not MISSING for field in (*group.fields, *fields(group.kind)))


@pytest.mark.parametrize(("command", "group"), [one for one in MADE if is_whole(one[1])], ids=named)
def test_without_anything_given_the_dataclass_is_made_as_the_library_has_it(command, group):
    """So what is shown as a default is the library's: also what is read from text, such as ``0.5,1,2``."""
    own = {field.name: field.default for field in fields(group.kind)}
    params = shown_of(command)
    given = {field.name: params[field.name].default for field in group.fields}
    other = {field.name for field in group.fields if field.default != own[field.name]}
    made, plain = group.made({**given}), group.kind()
    assert other <= {
        "temperature",
        "force",
    }  # steering draws the most likely tokens; the command line stops a vain search
    for field in fields(group.kind):
        assert field.name in other or getattr(made, field.name) == getattr(plain, field.name), field.name


@pytest.mark.parametrize("command", CALLBACKS)
def test_no_command_states_an_option_of_its_dataclasses_again(command):
    """Not by hand beside them, and not in another group: fields that are left out, too."""
    groups = GROUPS[command].values()
    flags = [field.flag for group in groups for field in group.fields]
    assert len(flags) == len(set(flags))
    by_hand = set(shown_of(command)) - {field.name for group in groups for field in group.fields}
    stated = {flag for name in by_hand for flag in shown_of(command)[name].opts}
    assert not stated & set(flags)


@pytest.mark.parametrize("path", sorted((ROOT / "commands").glob("*.py")), ids=lambda path: path.stem)
def test_no_command_makes_its_options_field_by_field(path):
    """It is given them; one value or two may be replaced."""
    names = {kind.__name__ for kind in KINDS}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names:
            assert len(node.keywords) + len(node.args) <= 2, ast.unparse(node)


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_an_options_dataclass_is_frozen_and_every_option_has_a_sentence_and_a_default(kind):
    """What must be given stands in a command's own dataclass only."""
    assert kind.__dataclass_params__.frozen
    for field in options_of(kind):
        assert field.option.help.endswith((".", ")")), field.name
        assert field.default is not MISSING or kind.__module__.startswith("persona_circuits.commands.")
        kinds = get_args(field.type) if NoneType in get_args(field.type) else (field.type,)
        assert not field.option.choices or kinds[0] in (str, AnyMetric)


def test_names_are_those_of_what_they_name():
    assert tuple(METRICS) == choices.METRIC_NAMES
    assert set(choices.DTYPE_NAMES) == set(DTYPES)
    assert set(HOOKS) == set(NEURON_HOOKS)


@dataclass(frozen=True)
class Cake:
    """For the tests below."""

    eggs: Annotated[int, Option("How many.", min=0)] = 3
    flour: Annotated[str, Option("Of what.", choices=("wheat", "rye"))] = "wheat"
    layers: Annotated[tuple[int, ...], Option("How thick.", name="--layer")] = (1, 2)
    spices: Annotated[
        tuple[str, ...], Option("Apart by commas.", given=str, read=lambda text: tuple(text.split(",")))
    ] = ("nutmeg",)
    baked: Annotated[bool, Option("Or raw.")] = True
    iced: Annotated[bool, Option("With icing.")] = False
    secret: int = 7


def _refused(text):
    raise OptionError(f"{text} is no tea")


@dataclass(frozen=True)
class Tea:
    """For another."""

    leaves: Annotated[str, Option("Of what.", read=_refused)] = "green"


def asked(command, *arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [*arguments])


def test_a_dataclass_gives_way_to_its_fields():
    found = []

    @with_options
    def bake(*, name: str = "x", cake: Cake, loud: Annotated[bool, typer.Option("--loud")] = False) -> None:
        found.append((name, cake, loud))

    assert asked(bake).exit_code == 0
    assert found.pop() == ("x", Cake(), False)
    given = ["--eggs", "0", "--flour", "rye", "--layer", "5", "--spices", "a,b", "--no-baked", "--iced", "--loud"]
    assert asked(bake, *given).exit_code == 0
    assert found.pop() == ("x", Cake(0, "rye", (5,), ("a", "b"), False, True), True)
    for wrong in (["--eggs", "-1"], ["--flour", "oat"], ["--no-iced"], ["--secret", "1"], ["--layer", "x"]):
        assert asked(bake, *wrong).exit_code == 2, wrong
    assert "[default: nutmeg]" in asked(bake, "--help").stdout


def test_a_command_may_take_a_part_or_have_another_default():
    found = []

    @with_options
    def bake(*, cake: Annotated[Cake, Only("eggs", "flour"), But(eggs=9)]) -> None:
        found.append(cake)

    @with_options
    def mix(*, cake: Annotated[Cake, Without("baked")]) -> None:
        found.append(cake)

    assert asked(bake).exit_code == asked(mix, "--eggs", "1").exit_code == 0
    assert found == [Cake(eggs=9), Cake(eggs=1)]
    assert asked(bake, "--iced").exit_code == asked(mix, "--no-baked").exit_code == 2


def test_a_name_that_occurs_twice_is_refused():
    with pytest.raises(ValueError, match="duplicate parameter name: 'eggs'"):

        @with_options
        def bake(*, eggs: int = 1, cake: Cake) -> None: ...


def test_what_cannot_be_read_is_a_users_error():
    """One line and exit code 2, as anywhere."""

    @with_options
    def brew(*, tea: Tea) -> None: ...

    done = asked(brew, "--leaves", "oak")
    assert (done.exit_code, done.stderr) == (2, "error: oak is no tea\n")


def test_an_unknown_choice_has_its_flag():
    check_choices(Cake())
    with pytest.raises(OptionError, match="--flour 'oat' is not one of wheat, rye"):
        check_choices(Cake(flour="oat"))


def test_literals_of_the_command_line_are_the_choices():
    hint = with_options.__globals__["_shown_type"](options_of(Cake)[1])
    assert hint == Literal["wheat", "rye"]
