"""The page of a run's folder: what it shows, that nothing on it is obeyed, and that its links hold wherever it lies."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

import pytest
import typer
from typer.testing import CliRunner

from persona_circuits import cli
from persona_circuits.circuit.errors import FileError
from persona_circuits.circuit.figures import (
    About,
    Points,
    chart,
    is_index,
    read_figures,
    write_csv,
    write_figures,
    write_index,
)
from persona_circuits.commands.checking import faults_of_file
from persona_circuits.commands.index import index

EVIL = "<script>alert(1)</script> \"x\" & 'y'\x1b[31m"


class Read(HTMLParser):
    """Tags, addresses and text of a page, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.places: list[str] = []
        self.alts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.places += [value for name, value in attrs if name in ("href", "src")]
        self.alts += [value for name, value in attrs if name == "alt"]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def folder(tmp_path):
    """A run with a figure, a table, a result and an inner folder; their names and texts are as bad as they may be."""
    run = tmp_path / "run"
    (run / "stage one").mkdir(parents=True)
    write_figures({"d-map": chart([Points("p", [1.0], [2.0])], title=EVIL)}, run, page="probe.html", title="t")
    write_csv([{"persona": EVIL, "D": i} for i in range(60)], run / "a&b #1?.csv")
    (run / "stage one" / "x<b>.json").write_text("{}")
    (run / ".state").write_text("hidden")
    (run / "link.json").symlink_to(tmp_path / "outside.json")
    (tmp_path / "outside.json").write_text("{}")
    write_index(run, About(EVIL, "what is asked", "persona-circuits probe --model 'a b'", [("model", EVIL)], [EVIL]))
    return run


def test_the_page_shows_what_the_folder_holds(folder):
    page = Read((folder / "index.html").read_text())
    for said in (
        "what is asked",
        "persona-circuits probe --model 'a b'",
        "a&b #1?.csv: 60 rows; the first 50",
        "stage one",
    ):
        assert said in page.text
    assert page.tags.count("img") == 1
    assert page.tags.count("tr") == 50 + 1 + 1
    places = {unquote(place) for place in page.places}
    assert places == {"./probe.html", "./d-map.png", "./a&b #1?.csv", "./stage one/x<b>.json"}


def test_texts_are_shown_and_never_obeyed(folder):
    page = Read((folder / "index.html").read_text())
    assert "script" not in page.tags
    shown = EVIL.replace("\x1b", "\\u001b")
    assert page.text.count(shown) >= 5
    assert page.alts == [shown]


def test_the_folder_may_be_moved(folder, tmp_path):
    text = (folder / "index.html").read_text()
    place = tmp_path / "else where"
    shutil.move(folder, place)
    assert str(tmp_path) not in text
    assert all((place / unquote(one)).is_file() for one in Read(text).places)
    assert not re.search(r"https?:|//|@import|url\(", text.replace("persona-circuits/", ""))


def test_the_same_files_give_the_same_page_and_none_of_its_own(folder):
    before = (folder / "index.html").read_text()
    write_index(folder, About(EVIL, "what is asked", "persona-circuits probe --model 'a b'", [("model", EVIL)], [EVIL]))
    assert (folder / "index.html").read_text() == before
    assert is_index(before)
    assert list(read_figures(folder)) == ["d-map"], "the page itself holds no figures, which is no fault"


def test_a_figure_of_another_folder_and_a_broken_table_do_not_stop_it(folder):
    (folder / "other.html").write_text("no figures")
    (folder / "bad.csv").write_bytes(b"\xff\xfe")
    write_index(folder, About("t"))
    assert {"./other.html", "./bad.csv"} <= set(Read((folder / "index.html").read_text()).places)
    with pytest.raises(FileError):
        write_index(folder / "absent" / "x", About("t"))


def test_a_command_says_how_it_was_called_but_for_its_folder(tmp_path):
    app = typer.Typer()

    @app.callback()
    def top() -> None:
        """A group, so that the command has a name."""

    @app.command()
    def probe(
        context: typer.Context,
        pairs: str,
        out: Annotated[Path, typer.Option("--out")],
        n: Annotated[int, typer.Option("--n")] = 3,
        layer: Annotated[list[int] | None, typer.Option("--layer")] = None,
        api_key: Annotated[str | None, typer.Option("--api-key")] = None,
        save: bool = True,
        idle: Annotated[int, typer.Option("--idle")] = 5,
    ) -> None:
        """What is asked.

        And more of it.
        """
        index(context, out, "models/some", notes=["a note"])

    given = ["probe", "my pairs", "--out", str(tmp_path), "--n", "4", "--layer", "1", "--layer", "2", "--no-save"]
    given += ["--api-key", "sk-secret"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    page = Read((tmp_path / "index.html").read_text())
    assert "\npersona-circuits probe 'my pairs' --n 4 --layer 1 --layer 2 --api-key ... --no-save\n" in page.text
    assert "\nprobe: some\n" in page.text
    assert "\nWhat is asked.\n" in page.text
    assert "\na note\n" in page.text
    assert str(tmp_path) not in page.text
    assert "sk-secret" not in (tmp_path / "index.html").read_text()


def test_a_page_is_valid_as_part_of_a_result(folder):
    assert faults_of_file(folder / "index.html") == []
    (folder / "index.html").write_text("<html>")
    assert faults_of_file(folder / "index.html") != []


@pytest.mark.parametrize(
    "command", ["collapse", "explain", "probe", "lens", "patch", "vectors", "steer", "neurons", "curves", "study"]
)
def test_every_command_with_figures_writes_one(command):
    """That the command calls the one function; what it writes is looked at above."""
    import inspect

    function = next(
        one.callback for one in cli.app.registered_commands if (one.name or one.callback.__name__) == command
    )
    module = inspect.getmodule(inspect.unwrap(function))
    own = inspect.getsource(inspect.unwrap(function))
    helpers = "".join(inspect.getsource(module) for name in ("_write_curves", "_write_explanation") if name in own)
    assert re.search(r"\b(index|result_folder)\(context, ", own + helpers)
