"""Text from outside: names and answers that a terminal, a spreadsheet, a browser or a drawing program would obey."""

import ast
import csv
import io
import json
import re
from dataclasses import replace
from html import unescape

import pytest
from conftest import DATA, ROOT
from PIL import Image
from typer.testing import CliRunner

import cli
from circuit.draw import draw
from circuit.files import write_graphml
from circuit.graph import Graph
from circuit.printable import one_line, shortened, visible
from circuit.scores import Scores
from circuit.subgraph import Circuit, from_networkx
from circuit.task import load_task
from persona.collapse_files import write_collapse
from persona.plots import Curve, figure_page, heat_map, line_chart, line_panels, write_figures
from persona.png import png_bytes
from persona.tables import csv_rows, csv_text, markdown_cell, markdown_code, markdown_table, write_csv

NASTY = {
    "markup": "[/] [/inst] [bold red]x[/bold red] :smile: \\[a]",
    "escape": "\x1b[31mred\x1b]0;title\x07\x1b[2J\x08\x7f",
    "C1": "\x9b31m \x85 \x9d0;title\x9c",
    "bidirectional": "\u202eabc\u2066 \u200f\u061c",
    "invisible": "\u200b\ufeff\u2028\u2029\u00ad\U000e0041",
    "formula": "=cmd|' /C calc'!A0",
    "plus": "+1+cmd",
    "minus": "-2+cmd",
    "at": "@SUM(A1)",
    "wide formula": "＝1+1",
    "tab formula": "\t=1",
    "apostrophe": "''=1",
    "script": "<script>alert(1)</script>",
    "closing": "</script></title><b>b</b>&amp;&lt;i&gt;",
    "mathematics": "$\\frac{1}{ $x^2$ \\$",
    "table": "a|b\nc\td\re\r\nf",
    "Markdown": "`a` ``b`` [x](javascript:alert(1)) ![i](http://localhost/x.png) <img src=x>",
    "template": "{0} %s %{x} ${y} %(z)s",
    "quotes": "\\N \"q\" 'q' \\\" \\",
    "path": "../../etc/passwd",
    "underscore": "_hidden",
    "long": "x" * 200_000,
    "NUL": "a\x00b",
}
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200f\u200b\u2028\ud800-\udfff]")
names = pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A pair file of which every text that is not asked of the model is nasty."""
    path = tmp_path_factory.mktemp("nasty") / "pairs.jsonl"
    plain = json.loads((DATA / "tiny_pairs.json").read_text())["prompts"]
    lines = [
        {**plain[i % len(plain)], "id": f"{name}#", "persona_a": name, "persona_b": f"not {name}", "question": name}
        for i, name in enumerate(NASTY.values())
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@names
def test_what_is_shown_has_nothing_that_a_terminal_obeys(name):
    assert not CONTROL.search(visible(name))
    assert "\n" not in one_line(name, 50)
    assert len(one_line(name, 50)) <= 50
    assert visible("Žofie, 雪, 🧑 and 1 | 2\n") == "Žofie, 雪, 🧑 and 1 | 2\n"


def test_escapes_are_those_of_json_and_cut_names_stay_apart():
    assert visible("\x1b\u202e\ud800\U000e0041") == "\\u001b\\u202e\\ud800\\U000e0041"
    assert json.loads(f'"{visible(chr(0x9B))}"') == "\x9b"
    first, second = (shortened("x" * 500 + end, 40, distinct=True) for end in "ab")
    assert len(first) == len(second) == 40
    assert first != second
    assert shortened("x" * 41, 40) == "x" * 39 + "…"
    assert shortened("x" * 40, 40) == "x" * 40


@names
def test_a_table_shows_the_name_in_its_title_its_header_and_its_cells(name, capsys):
    cli._print_table(name, (name, "n", name), [(name, "1", name)], texts=1)
    said = capsys.readouterr().out
    assert not CONTROL.search(said)
    assert len(said) < 6000
    if len(name) < 30 and name.isprintable():
        assert said.count(name) >= 3


def test_a_bar_shows_markup_as_text(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(cli.sys, "stderr", screen)
    screen.isatty = lambda: True
    with cli._progress() as stage:
        for name in NASTY.values():
            stage(name)(1, 2)
    assert "[/] [/inst] [bold red]x[/bold red]" in screen.getvalue()
    assert "\x1b]0;title" not in screen.getvalue()


def test_errors_and_notes_show_what_they_name(tmp_path):
    done = call("draw", tmp_path / "\x1b[31m[/].json", "--out", tmp_path / "x.svg")
    assert done.exit_code == 2
    assert "\\u001b[31m[/].json" in done.stderr
    assert not CONTROL.search(done.stderr)


def test_nothing_is_printed_past_the_one_helper():
    """JSON needs no help: it is ASCII, with everything else escaped."""
    tree = ast.parse((ROOT / "cli.py").read_text())
    helper = next(node for node in tree.body if getattr(node, "name", "") == "_say")
    inside = {id(node) for node in ast.walk(helper)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("typer.echo", "print", "click.echo"):
            is_json = ast.unparse(node.args[0]).startswith("json.dumps(") and "ensure_ascii" not in ast.unparse(node)
            assert id(node) in inside or is_json, f"cli.py, line {node.lineno}"


@pytest.mark.parametrize("command", ["collapse"])
def test_commands_show_and_write_nasty_names(command, pairs, tmp_path):
    done = call(command, "--model", DATA / "tiny-gpt2", "--pairs", pairs, "--out", tmp_path / "out", "--n-resamples", 50)
    assert done.exit_code == 0, done.output
    assert not CONTROL.search(done.output)
    rows = csv_rows(tmp_path / "out" / "pairs.csv")
    assert [row["persona_a"] for row in rows] == list(NASTY.values())
    record = json.loads((tmp_path / "out" / "collapse.json").read_text())
    assert [row["persona_a"] for row in record["pairs"]] == list(NASTY.values())
    page = (tmp_path / "out" / "collapse.html").read_text()
    assert "<script>alert" not in page
    assert "<img" not in page.replace("plotly", "")[-200_000:]


@names
def test_csv_has_no_formula_and_comes_back_as_it_was(name, tmp_path):
    rows = [{"name": name, name: -1.5, "n": -3}, {"name": "plain", name: 2.5e-7, "n": None}]
    write_csv(rows, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    for cell in cells:
        assert cell[:1] not in ("=", "@", "\t", "\r", "\n", "＝")
        assert cell[:1] not in ("+", "-") or float(cell) is not None
    assert cells[3:6] == [cells[0] if name == "name" else cells[3], "-1.5", "-3"]
    back = csv_rows(tmp_path / "a.csv")
    assert back == [{"name": name, name: "-1.5", "n": "-3"}, {"name": "plain", name: "0.0", "n": ""}]


def test_numbers_stay_numbers_in_csv():
    values = {"a": -1.5, "b": "-1.5", "c": "+2", "d": "-1e-05", "e": [-0.5, 1.25], "f": "-", "g": "-1.5 apples"}
    from persona.tables import flat

    assert csv_text([flat(values)]).split("\n")[1] == "-1.5,-1.5,+2,-1e-05,-0.5 | 1.25,'-,'-1.5 apples"


@names
def test_markdown_cells_hold_one_cell(name):
    table = markdown_table(("name", "n"), [(name, "1")])
    *_, row = table.split("\n")
    assert len(table.split("\n")) == 3
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert not re.search(r"<[a-z/]", row)
    assert "](" not in row
    assert not CONTROL.search(row)
    code = markdown_code(name)
    ticks = re.match("`+", code)[0]
    assert code.strip("`").count(ticks) == 0 or len(ticks) > max(map(len, re.findall("`+", name)), default=0)
    assert markdown_cell("`a0.h1->a3.h2<k>`") == "`a0.h1->a3.h2<k>`"


def charts(name):
    curve = Curve(name, [name, "b"], [1.0, 2.0], [0.5, None], [1.5, None])
    return {
        "lines": line_chart([curve, Curve("plain", [name, "b"], [0.0, 1.0])], title=name, x=name, y=name),
        "panels": line_panels({name: [curve], "other": [curve]}, title=name, x=name, y=name),
        "map": heat_map([[1.0, -1.0], [None, 0.0]], [name, "b"], [name, "c"], title=name, x=name, y=name, unit=name),
    }


@names
def test_pages_show_names_as_text(name):
    figures = charts(name)
    page = figure_page(figures, name, [name])
    own = re.sub(r"<script[^>]*>\s*/\*\*\n\* plotly\.js.*?</script>", "", page, flags=re.S)
    head = own.split("Plotly.newPlot")[0]
    for bad in ("<script>alert", "<b>b", "<img", "</title><b"):
        assert bad not in own
    assert not CONTROL.search(own)
    for tag in ("title", "h1", "p"):
        assert unescape(re.search(f"<{tag}>(.*?)</{tag}>", head, re.S)[1]) == visible(name)
    texts = [json.loads(f'"{text}"') for text in re.findall(r'"text":"((?:[^"\\]|\\.)*)"', own)]
    shown = {unescape(text.replace("<br>", "\n")) for text in texts}
    assert shortened(visible(name), 300, distinct=True) in shown
    assert all(re.fullmatch(r"([^<>]|<br>)*", text) for text in texts)


@names
def test_pictures_of_charts_show_names_as_text(name, drawn_texts, recwarn):
    for figure in charts(name).values():
        texts, picture = drawn_texts(figure)
        assert Image.open(io.BytesIO(picture)).width == 2000
        assert all(not CONTROL.search(text) for text in texts)
        wanted = shortened(visible(name).replace("\t", " "), 80).replace("$", r"\$").removeprefix("_")
        assert any(wanted in text for text in texts)
    assert not [one for one in recwarn if "Glyph" in str(one.message) and not any(map("＝".__eq__, name))]


@pytest.fixture
def drawn_texts(monkeypatch):
    """All texts on the picture of a figure, and the picture."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.text import Text

    kept = []
    save = Canvas.savefig
    monkeypatch.setattr(Canvas, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k))[1])

    def drawn(figure):
        picture = png_bytes(figure, dpi=200)
        return [text.get_text() for text in kept[-1].findobj(Text)], picture

    return drawn


@names
def test_pictures_of_circuits_have_names_as_titles(name, tmp_path):
    graph = Graph(2, 2)
    circuit = Circuit.of(graph, ["input->a0.h1<q>", "a0.h1->m1", "m1->logits"])
    for fmt in ("svg", "dot"):
        draw(circuit, tmp_path / f"x.{fmt}", title=name)
        content = (tmp_path / f"x.{fmt}").read_text()
        assert "<script>" not in content.replace("<script>", "", content.count("-<script>"))
        assert not CONTROL.search(content)
    svg = (tmp_path / "x.svg").read_text()
    assert not re.search(r"<(script|b|img)\b", svg)
    width = float(re.search(r'width="(\d+)', svg)[1])
    assert width < 3000
    assert from_networkx(__import__("networkx").read_graphml(_graphml(circuit, tmp_path))) == circuit


def _graphml(circuit, folder):
    write_graphml(circuit, Scores.of(circuit.graph, {}), folder / "x.graphml")
    return folder / "x.graphml"
