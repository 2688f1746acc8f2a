"""Text from outside: names and answers that a terminal, a spreadsheet, a browser or a drawing program would obey."""

import ast
import csv
import io
import json
import re
from html import unescape

import networkx
import pygraphviz
import pytest
from conftest import DATA, ROOT
from typer.testing import CliRunner

from persona_circuits import cli
from persona_circuits.circuit.drawing import draw
from persona_circuits.circuit.figures import (
    Curve,
    csv_rows,
    csv_text,
    figure_page,
    heat_map,
    line_chart,
    line_panels,
    markdown_code,
    png_bytes,
    write_csv,
)
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.io import write_graphml
from persona_circuits.circuit.printable import one_line, shortened, visible
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit, from_networkx
from persona_circuits.circuit.table import Table, markdown_cell, markdown_table
from persona_circuits.commands import terminal

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
    "quotes": '\\N "q" \'q\' \\" \\',
    "path": "../../etc/passwd",
    "underscore": "_hidden",
    "long": "x" * 200_000,
    "NUL": "a\x00b",
}
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200f\u200b\u2028\ud800-\udfff]")
names = pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)


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
    terminal.print_table(Table(name, (name, "n", name), [(name, "1", name)]))
    said = capsys.readouterr().out
    assert not CONTROL.search(said)
    assert len(said) < 6000
    if len(name) < 30 and name.isprintable():
        assert said.count(name) >= 3


def test_a_bar_shows_markup_as_text(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(terminal.sys, "stderr", screen)
    screen.isatty = lambda: True
    with terminal.progress_bars() as stage:
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
    trees = {path: ast.parse(path.read_text()) for path in [ROOT / "cli.py", *(ROOT / "commands").glob("*.py")]}
    helper = next(node for tree in trees.values() for node in tree.body if getattr(node, "name", "") == "say")
    inside = {id(node) for node in ast.walk(helper)}
    for path, node in ((path, node) for path, tree in trees.items() for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("typer.echo", "print", "click.echo"):
            is_json = ast.unparse(node.args[0]).startswith("json.dumps(") and "ensure_ascii" not in ast.unparse(node)
            assert id(node) in inside or is_json, f"{path.name}, line {node.lineno}"


FEW = ("markup", "escape", "formula", "script", "mathematics", "table", "long")


@pytest.mark.slow
def test_collapse_shows_and_writes_nasty_names(tmp_path):
    """Every text of the pair file that is not asked of the model is nasty."""
    plain = json.loads((DATA / "tiny_pairs.json").read_text())["prompts"]
    texts = [NASTY[kind] for kind in FEW]
    lines = [
        {**pair, "id": f"{text}#", "persona_a": text, "persona_b": f"not {text}", "question": text}
        for pair, text in zip(plain, texts, strict=False)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    where = ("--model", DATA / "tiny-gpt2", "--pairs", tmp_path / "pairs.jsonl", "--out", out, "--n-resamples", 50)
    done = call("collapse", *where)
    assert done.exit_code == 0, done.output
    assert not CONTROL.search(done.output)
    assert [row["persona_a"] for row in csv_rows(out / "pairs.csv")] == texts
    assert [row["persona_a"] for row in json.loads((out / "collapse.json").read_text())["pairs"]] == texts
    assert "<script>alert" not in (out / "collapse.html").read_text()


def test_respond_shows_and_writes_nasty_names(tmp_path):
    texts = [NASTY[kind] for kind in FEW]
    people = [{"id": text, "wordings": ["you are a cook."]} for text in texts]
    asked = [{"id": text, "question": "you like tea?"} for text in texts[:2]]
    for name, rows in (("people", people), ("asked", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = ("--personas", tmp_path / "people.jsonl", "--questions", tmp_path / "asked.jsonl", "--max-new-tokens", 3)
    done = call("respond", "--model", DATA / "tiny-gpt2", *where, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert not CONTROL.search(done.output)
    assert "[/] [/inst] [bold red]x[/bold red]" in done.output
    assert [row["persona"] for row in csv_rows(tmp_path / "out" / "personas.csv")] == ["default", *texts]
    assert "<script>alert" not in (tmp_path / "out" / "responses.html").read_text()


@names
def test_csv_has_no_formula_and_comes_back_as_it_was(name, tmp_path):
    rows = [{"name": name, name: -1.5, "n": -3}, {"name": "plain", name: 2.5e-7, "n": None}]
    write_csv(rows, tmp_path / "a.csv")
    limit = csv.field_size_limit(1_000_000)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    csv.field_size_limit(limit)
    for cell in cells:
        assert cell[:1] not in ("=", "@", "\t", "\r", "\n", "＝")
        assert cell[:1] not in ("+", "-") or float(cell) is not None
    assert cells[4:6] == ["-1.5", "-3"]
    back = csv_rows(tmp_path / "a.csv")
    assert back == [{"name": name, name: "-1.5", "n": "-3"}, {"name": "plain", name: "0.0", "n": ""}]


def test_numbers_stay_numbers_in_csv():
    values = {"a": -1.5, "b": "-1.5", "c": "+2", "d": "-1e-05", "e": [-0.5, 1.25], "f": "-", "g": "-1.5 apples"}
    from persona_circuits.circuit.figures import flat

    names, cells, _ = csv_text([flat(values)]).split("\n")
    assert names == "a,b,c,d,e.1,e.2,f,g"  # one number a cell
    assert cells == "-1.5,-1.5,+2,-1e-05,-0.5,1.25,'-,'-1.5 apples"


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


def test_pictures_of_charts_show_names_as_text(drawn_texts):
    texts = [
        NASTY[kind] for kind in ("markup", "escape", "bidirectional", "closing", "mathematics", "underscore", "long")
    ]
    curves = [Curve(text, texts, [float(place)] * len(texts)) for place, text in enumerate(texts)]
    table = [[1.0] * len(texts)] * len(texts)
    figures = (
        line_chart(curves, title=texts[0], x=texts[1], y=texts[2]),
        line_panels({text: [curves[0]] for text in texts[:4]}, title="", x="", y=""),
        heat_map(table, texts, texts, title="", x="", y="", unit=NASTY["mathematics"]),
    )
    for figure in figures:
        shown = drawn_texts(figure)
        assert not any(CONTROL.search(text) for text in shown)
        for text in texts[: 4 if len(figure.panels) > 1 else None]:
            wanted = shortened(visible(text).replace("\t", " "), 40, distinct=True)
            assert wanted in {one.removeprefix(" ") if wanted[0] == "_" else one for one in shown}


@pytest.fixture
def drawn_texts(monkeypatch):
    """All texts on the picture of a figure, and the picture."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.text import Text

    kept = []
    save = Canvas.savefig
    monkeypatch.setattr(Canvas, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k))[1])

    def drawn(figure):
        png_bytes(figure, dpi=20)
        assert not any(text.get_parse_math() for text in kept[-1].findobj(Text))
        return [text.get_text() for text in kept[-1].findobj(Text)]

    return drawn


@pytest.mark.parametrize(
    "kinds",
    [("escape", "C1", "bidirectional", "invisible", "NUL", "script", "quotes", "mathematics", "formula"), ("long",),
     ("closing", "table", "Markdown")],
    ids=lambda kinds: kinds[0],
)  # fmt: skip
def test_pictures_of_circuits_have_names_as_titles(kinds, tmp_path):
    title = " ".join(NASTY[kind] for kind in kinds)
    graph = Graph(2, 2)
    circuit = Circuit.of(graph, ["input->a0.h1<q>", "a0.h1->m1", "m1->logits"])
    for fmt in ("svg", "dot"):
        draw(circuit, tmp_path / f"x.{fmt}", title=title)
        assert not CONTROL.search((tmp_path / f"x.{fmt}").read_text())
    svg = (tmp_path / "x.svg").read_text()
    assert not re.search(r"<(script|b|img)\b", svg)
    assert float(re.search(r'width="(\d+)', svg)[1]) < 3000
    assert len(pygraphviz.AGraph(str(tmp_path / "x.dot")).edges()) == 3


def test_graphml_holds_names_of_nodes_alone(tmp_path):
    circuit = Circuit.of(Graph(2, 2), ["input->a0.h1<q>", "a0.h1->m1", "m1->logits"])
    write_graphml(circuit, Scores.of(circuit.graph, {"m1->logits": -1.5}), tmp_path / "x.graphml")
    assert from_networkx(networkx.read_graphml(tmp_path / "x.graphml")) == circuit
