"""The words of tables: one page made of the same data, labels above columns, a line under each table if asked for."""

import ast
import re

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from persona_circuits import cli
from persona_circuits.circuit.glossary import TERMS, explained, glossary_page, labelled
from persona_circuits.circuit.table import Table
from persona_circuits.commands.terminal import EXPLAIN, print_table
from persona_circuits.persona.behaviour.report import GROUPS as COLLAPSE
from persona_circuits.persona.explanation.report import NUMBERS as EXPLANATION
from persona_circuits.persona.steering.report import TABLE as STEERING
from persona_circuits.persona.vectors.report import PERSONAS as VECTORS


def test_the_page_is_made_of_the_terms():
    assert (ROOT / "docs" / "glossary.md").read_text() == glossary_page()
    assert all(re.fullmatch(r"\S.*[^.]", term.says) for term in TERMS.values())


@pytest.mark.parametrize(
    ("columns", "unexplained"),
    [
        (COLLAPSE, {"pairs", "n", "95 %", "p (D = 0)", "paraphrases"}),
        (EXPLANATION, {"n", "test; paraphrases"}),
        (STEERING, {"layer", "strength", "random"}),
        (VECTORS, {"persona", "nearest", "farthest", "responses", "tokens", "length", "axis", "PC 1", "PC 2"}),
    ],
    ids=["collapse", "explain", "steer", "vectors"],
)
def test_columns_with_words_of_the_trade_are_in_it(columns, unexplained):
    columns = [getattr(column, "label", column) for column in columns]
    assert set(columns) - TERMS.keys() == unexplained
    assert len(explained(columns)) == len(set(columns) & TERMS.keys())


SYMBOLS = ("D", "b", "|b|", "f", "eta", "kappa", "sigma_0", "PDR", "rho", "g*", "CPR", "CMD", "KL", "CKA")
WORDED = ("x", "y", "unit", "title", "full")


def texts_of_figures(source):
    """Titles, axes' and scales' labels and names of series in a module, as far as they are written there."""
    for node in ast.walk(ast.parse(source)):
        found = []
        if isinstance(node, ast.Call):
            found = [one.value for one in node.keywords if one.arg in WORDED]
            if getattr(node.func, "id", "") in ("Points", "Curve", "Bars", "Axis", "Panel", "Spread"):
                found += node.args[:1]
        elif isinstance(node, ast.Dict):
            found = [
                value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and key.value in WORDED
            ]
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in WORDED:
            found = [node.value]
        for part in (part for one in found for part in ast.walk(one)):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.value


def bare_symbols(text):
    """Symbols that stand in a text outside parentheses."""
    while (less := re.sub(r"\([^()]*\)", "", text)) != text:
        text = less
    return [one for one in SYMBOLS if re.search(rf"(?<![\w|.'*-]){re.escape(one)}(?![\w|*-])", text)]


def test_symbols_in_figures_stand_in_parentheses_behind_plain_words():
    assert bare_symbols("D (logits)") == ["D"]
    assert bare_symbols("half of the persona effect (D(s) / 2), logits") == []
    seen, faults = 0, []
    for path in (path for room in ("circuit", "persona") for path in (ROOT / room).rglob("*.py")):
        source = path.read_text()
        for text in texts_of_figures(source) if "circuit.figures import" in source else ():
            seen += 1
            faults += [(path.name, text)] * bool(bare_symbols(text))
    assert seen > 100
    assert faults == []


def test_a_label_stands_above_its_symbol(capsys):
    assert labelled("PDR") == "prior's\nshare\n(PDR)"
    assert labelled("pairs") == "pairs"
    print_table(Table("title", ("pairs", "PDR"), [("all", "0.50")]))
    said = capsys.readouterr().out
    assert re.search(r"prior's *\n *share *\n *pairs +\(PDR\)|pairs +prior's *\n +share *\n +\(PDR\)", said), said
    assert "|b|" not in said


@pytest.mark.parametrize("command", [["--explain", "ground-truth"], ["ground-truth", "--explain"]])
def test_explain_adds_a_line_under_each_table(monkeypatch, command):
    rows = [["planted", "eap", "", "3", "1.000", "1.000"]]
    monkeypatch.setattr(
        "persona_circuits.commands.engine.print_calibration",
        lambda _rows: print_table(Table("planted models", ("planted model", "AUROC"), [rows[0][:2]])),
    )
    monkeypatch.setattr("persona_circuits.circuit.assessment.calibrate", lambda *_, **__: [])
    monkeypatch.setattr("persona_circuits.models.planted.planted_models", lambda: [])
    said = CliRunner().invoke(cli.app, command)
    assert said.exit_code == 0, said.output
    assert f"  AUROC: {TERMS['AUROC'].says}\n" in said.stdout
    assert not EXPLAIN.get()
    assert "AUROC:" not in CliRunner().invoke(cli.app, ["ground-truth"]).stdout
