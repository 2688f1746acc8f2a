"""The workflow pages: what a fence prints is put beneath it, and every command in them is one that there is."""

import re
import shlex
import sys

import pytest
import typer
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import workflows

PAGES = sorted((ROOT / "docs" / "workflows").glob("*.md"))


def test_what_a_fence_prints_takes_the_place_of_what_it_printed():
    page = "A\n\n```sh\necho 1\n```\n\n```text\nold\n```\n\nB\n\n```sh\ntrue\n```\n\nC\n"
    found = workflows.filled(page, workflows.in_shell)
    assert found == "A\n\n```sh\necho 1\n```\n\n```text\n1\n```\n\nB\n\n```sh\ntrue\n```\n\nC\n"
    assert workflows.filled(found, workflows.in_shell) == found


def test_a_fence_that_fails_leaves_its_page_alone(tmp_path, capsys):
    path = tmp_path / "page.md"
    path.write_text("```sh\necho 1\n```\n\n```sh\npersona-circuits no-such-command\n```\n")
    before = path.read_text()
    assert workflows.main([str(path)]) == 1
    assert path.read_text() == before
    assert "no-such-command" in capsys.readouterr().err


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_command_and_option_of_a_page_is_there(path):
    from persona_circuits.cli import app

    commands = typer.main.get_command(app).commands
    code = "\n".join(match["code"] for match in workflows.FENCE.finditer(path.read_text())).replace("\\\n", " ")
    for line in re.findall(r"persona-circuits ([^\n>|;]+)", code):
        name, *words = shlex.split(line)
        known = {option for one in commands[name].params for option in (*one.opts, *one.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_command_of_a_page_was_run_and_its_pictures_are_there(path):
    text = path.read_text()
    for match in workflows.FENCE.finditer(text):
        assert "```text" in match[0], match["code"]
    for picture in re.findall(r"\]\((images/[^)]+)\)", text):
        assert (path.parent / picture).is_file(), picture
