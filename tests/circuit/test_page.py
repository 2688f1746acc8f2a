"""The page's data against the run's files, and the page as text: one file, no markup from data, a schema."""

import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import DATA, ROOT, woven
from typer.testing import CliRunner

from persona_circuits.circuit.errors import FileError, OptionError
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.io import (
    by_source,
    circuit_record,
    read_circuit,
    read_groups,
    read_scores,
    write_circuit,
    write_eap_ig,
)
from persona_circuits.circuit.page import circuit_page, page_faults, page_html, page_of_run, read_page
from persona_circuits.circuit.page.html import MODULES, program
from persona_circuits.circuit.pruning import greedy, threshold
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.cli import app

TINY, PAIRS = str(DATA / "tiny-gpt2"), str(DATA / "tiny_pairs.json")
SAMPLE = ROOT / "docs" / "sample" / "persona-world.html"
WEB = ROOT / "circuit" / "page" / "web"
SCRIPT = "<script>alert(1)</script>"


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A search of the tiny model with its nested circuits, its page and what its nodes do."""
    out = tmp_path_factory.mktemp("page") / "tiny"
    how = ["--threshold", "0.02", "--n-random", "2", "--report", "--by-span"]
    done = call("discover", "--model", TINY, "--pairs", PAIRS, "--out", out, *how)
    assert done.exit_code == 0, done.output
    return out


def written(folder, graph, circuit, scores, **about):
    """A run's folder with a circuit that no search has found."""
    record = json.loads((folder / "circuit.json").read_text())
    kept = {
        key: record[key] for key in ("format", "version", "model", "task", "method", "ablation", "seed", "versions")
    }
    kept["model"] = {**kept["model"], "n_layers": graph.n_layers, "n_heads": graph.n_heads}
    return circuit_record(circuit, scores, {**kept, "faithfulness": [], **about})


def random_scores(graph, seed=0):
    values = np.random.default_rng(seed).standard_normal((graph.n_src, graph.n_dst)) ** 3
    return Scores(graph, values * graph.valid)


def test_discover_report_writes_a_page_that_its_schema_takes(run):
    data = read_page(run / "page.html")
    assert page_faults(data) == []
    assert data["runs"][0]["name"] == "tiny"
    assert data["inside"]["n_pairs"] == 8
    assert page_faults({**data, "version": 2}) == ["version: 1 was expected"]
    assert (run / "page.html").read_text() == page_html(data)
    done = call("validate", run)
    assert done.exit_code == 0, done.stderr
    assert "page.html: valid (page of a circuit)" in done.stdout


def test_stops_are_the_circuits_of_their_thresholds_with_what_the_sweep_measured(run):
    data = page_of_run(run)["runs"][0]
    scores, sweep = read_scores(run / "scores.safetensors"), json.loads((run / "sweep.json").read_text())
    measured = {point["n_edges"]: point for point in sweep["points"]}
    own = read_circuit(run)
    seen = 0
    for place, stop in enumerate(data["stops"]):
        if stop["circuit"]:
            held = {edge["edge"] for edge in data["edges"] if edge["kept"]}
            assert held == set(own.circuit.edge_names())
            assert stop["f"]["all"]["f"] == own.record["faithfulness"][-1]["circuit"]["ratio_of_means"]
            continue
        held = {edge["edge"] for edge in data["edges"] if edge.get("stop", 10**9) <= place}
        weakest = min(abs(edge["score"]) for edge in data["edges"] if edge["edge"] in held)
        assert held <= set(threshold(scores, weakest * (1 - 1e-9)).edge_names())
        assert len(held) == stop["n_edges"]
        assert stop["f"]["all"]["f"] == measured[stop["n_edges"]]["faithfulness"]["all"]
        seen += 1
    assert seen > 3
    sizes = [stop["n_edges"] for stop in data["stops"]]
    assert sizes == sorted(sizes)


def test_a_run_without_a_sweep_has_sizes_and_says_that_nothing_was_measured(run, tmp_path):
    for name in ("circuit.json", "scores.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    data = page_of_run(tmp_path)["runs"][0]
    assert "Nothing was measured between the sizes" in data["note"]
    assert len(data["stops"]) > 3
    assert all(bool(stop["f"]) == stop["circuit"] for stop in data["stops"])
    assert page_of_run(tmp_path)["inside"] is None


def test_a_sweep_of_other_scores_is_left_out(run, tmp_path):
    for name in ("circuit.json", "scores.safetensors", "sweep.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    sweep = json.loads((tmp_path / "sweep.json").read_text())
    sweep["points"] = [{**point, "n_edges": point["n_edges"] + 1} for point in sweep["points"]]
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    assert "other scores" in page_of_run(tmp_path)["runs"][0]["note"]
    (tmp_path / "sweep.json").write_text('{"points": [{"tau": "a"}]}')
    with pytest.raises(FileError, match=r"no sweep of discover.*fault"):
        page_of_run(tmp_path)


def test_what_nodes_do_is_of_this_circuit_or_left_out(run, tmp_path):
    for name in ("circuit.json", "inside.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    assert page_of_run(tmp_path)["inside"] is not None
    inside = json.loads((tmp_path / "inside.json").read_text())
    inside["nodes"].pop(next(iter(inside["nodes"])))
    (tmp_path / "inside.json").write_text(json.dumps(inside))
    assert page_of_run(tmp_path)["inside"] is None


def test_spans_name_the_part_of_the_prompt_that_gives_most_of_a_score(run):
    from persona_circuits.circuit.storage import Kind, read_tensors

    data = page_of_run(run)["runs"][0]
    values = read_tensors(run / "spans.safetensors", Kind("spans"), only=("scores",)).arrays["scores"]
    graph = read_circuit(run).circuit.graph
    for edge in data["edges"]:
        src, dst = graph.index(edge["edge"])
        assert abs(values[edge["span"], src, dst]) == np.abs(values[:, src, dst]).max()


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))


def test_a_persona_that_is_markup_stays_text_and_nothing_is_loaded(run, tmp_path):
    for name in ("circuit.json", "scores.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    data = page_of_run(tmp_path, name=SCRIPT)
    data["runs"][0]["pairs"] = [{"clean": f"You are {SCRIPT}", "corrupt": "</script>&lt;", "id": "\u2028<!--"}]
    data["title"] = SCRIPT
    text = page_html(data)
    parsed = Elements()
    parsed.feed(text)
    assert [tag for tag, _ in parsed.seen].count("script") == 2
    assert not [attrs for _, attrs in parsed.seen if attrs.keys() & {"src", "href", "action"}]
    assert text.count("<script>alert") == 0
    (tmp_path / "p.html").write_text(text)
    assert read_page(tmp_path / "p.html") == data


def test_five_hundred_edges_are_below_two_megabytes(run, tmp_path):
    graph = Graph(12, 12)
    circuit, scores = woven(graph, 500)
    write_circuit(written(run, graph, circuit, scores), tmp_path / "circuit.json")
    assert 500 <= len(circuit) < 510
    assert len(page_html(page_of_run(tmp_path)).encode()) < 2_000_000


def test_an_empty_circuit_and_one_without_record_have_pages(run, tmp_path):
    graph = Graph(2, 2)
    write_circuit(written(run, graph, Circuit.empty(graph), None), tmp_path / "circuit.json")
    data = page_of_run(tmp_path)
    assert "empty" in data["runs"][0]["answer"]["answer"]
    assert data["runs"][0]["stops"] == [{"n_edges": 0, "n_nodes": 0, "tau": None, "circuit": True, "f": {}}]
    scores = random_scores(graph)
    write_eap_ig(greedy(scores, 9), scores, tmp_path / "eap.json")
    data = page_of_run(tmp_path / "eap.json")
    assert page_faults(data) == []
    assert data["runs"][0]["about"] == {}


def test_the_answer_says_what_was_measured_and_what_stands_against_it(run):
    from persona_circuits.circuit.page.answer import answer_of

    stored = read_circuit(run)
    report = stored.record["faithfulness"][-1]
    said = answer_of(stored.record, {"held_out": True}, stored.circuit)
    assert f"keep {report['circuit']['ratio_of_means']:.2f}" in said["answer"]
    assert f"Random circuits of the same size and shape keep {report['random_mean']:.2f}" in said["answer"]
    wide = {**report, "circuit": {**report["circuit"], "interval": {"low": 0.0, "high": 1.0}}}
    assert "interval is wide" in answer_of({**stored.record, "faithfulness": [wide]}, {}, stored.circuit)["caution"]
    undefined = {**report, "circuit": {**report["circuit"], "ratio_of_means": None}}
    assert "undefined" in answer_of({**stored.record, "faithfulness": [undefined]}, {}, stored.circuit)["answer"]


def test_groups_are_read_strictly_and_part_the_edges(tmp_path):
    graph = Graph(2, 2)
    path = tmp_path / "g.json"

    def held(groups):
        path.write_text(json.dumps({"format": "persona-circuits/groups", "version": 1, "groups": groups}))
        return path

    assert read_groups(held({"movers": ["a0.h1", "m1", "a0.h1"]}), graph) == {"movers": ["a0.h1", "m1"]}
    with pytest.raises(FileError, match=r"2 fault\(s\)"):
        read_groups(held({"a": ["a7.h1"], "b": "m0"}), graph)
    path.write_text("{}")
    with pytest.raises(FileError, match="expected"):
        read_groups(path)
    circuit = greedy(random_scores(graph), 12)
    parts = by_source(circuit, {"first": ["input", "a0.h0"], "second": ["input", "m0"]})
    assert all(str(edge.src) in ("input", "a0.h0") for edge in parts["first"])
    assert all(str(edge.src) == "m0" for edge in parts.get("second", ()))
    assert sum(map(len, parts.values())) == len(circuit)


def test_report_puts_runs_side_by_side_and_names_what_is_wrong(run, tmp_path):
    groups = tmp_path / "g.json"
    groups.write_text(json.dumps({"format": "persona-circuits/groups", "version": 1, "groups": {"first": ["m0"]}}))
    done = call("report", run, "--with", f"again={run}", "--groups", groups, "--file", tmp_path / "p.html")
    assert done.exit_code == 0, done.output
    data = read_page(tmp_path / "p.html")
    assert [one["name"] for one in data["runs"]] == ["tiny", "again"]
    assert data["groups"] == {"first": ["m0"]}
    assert call("validate", groups).exit_code == 0
    assert call("draw", run, "--groups", groups, "--out", tmp_path / "d.svg").exit_code == 0
    assert "first" in (tmp_path / "d.svg").read_text()
    for more, says in (
        (["--with", "again"], "NAME=RUN"),
        (["--with", f"a={run}", "--with", f"a={run}"], "two runs a"),
        (["--groups", run / "summary.json"], "expected"),
        (["--with", f"b={tmp_path}"], "cannot be read"),
    ):
        failed = call("report", run, *more, "--file", tmp_path / "q.html")
        assert failed.exit_code == 2
        assert says in failed.stderr
        assert not (tmp_path / "q.html").exists()


def test_runs_of_another_shape_do_not_share_a_page(run, tmp_path):
    graph = Graph(2, 2)
    write_circuit(written(run, graph, Circuit.empty(graph), None), tmp_path / "circuit.json")
    with pytest.raises(OptionError, match="another shape"):
        page_of_run(run, others={"small": tmp_path})


def test_report_looks_inside_where_it_is_asked_to(run, tmp_path):
    for name in ("circuit.json", "scores.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    done = call("report", tmp_path, "--inside")
    assert done.exit_code == 0, done.output
    assert read_page(tmp_path / "page.html")["inside"] == json.loads((run / "inside.json").read_text())


def test_a_notebook_shows_the_page_in_a_frame_and_reads_its_links(run, tmp_path):
    stored = read_circuit(run)
    page = circuit_page(stored)
    parsed = Elements()
    parsed.feed(page._repr_html_())
    assert [tag for tag, _ in parsed.seen] == ["iframe"]
    assert parsed.seen[0][1]["srcdoc"] == page_html(page.data)
    page.write(tmp_path / "p.html")
    assert read_page(tmp_path / "p.html") == page.data
    found = page.selection('about:srcdoc#pins=m0,a1.h3&stop=2&groups={"movers":["a1.h3"]}')
    assert found == {"pins": ["m0", "a1.h3"], "groups": {"movers": ["a1.h3"]}, "stop": "2"}
    assert page.selection("page.html") == {"pins": [], "groups": {}}
    with pytest.raises(OptionError, match="groups are no JSON"):
        page.selection("#groups={")


def test_the_sample_is_what_the_program_makes_of_its_data():
    """After a change of the page: make sample."""
    data = read_page(SAMPLE)
    assert SAMPLE.read_text() == page_html(data)
    assert page_faults(data) == []
    assert [run["name"] for run in data["runs"]] == ["discover", "prior"]


def test_every_module_is_in_the_program_after_what_it_imports():
    """Modules become one by leaving imports out, so each name must be exported, earlier, and once."""
    assert sorted(MODULES) == sorted(path.name for path in WEB.glob("*.js"))
    known, names = {}, []
    for module in MODULES:
        text = (WEB / module).read_text()
        for imported, source in re.findall(r"^import \{([^}]*)\} from \"\./([\w.]+)\";$", text, re.M):
            assert {name.strip() for name in imported.split(",") if name.strip()} <= known[source], (module, source)
        assert text.count("import ") == len(re.findall(r"^import \{", text, re.M)) + text.count("that it imports")
        found = re.findall(r"^(?:export )?(?:async )?(?:const|let|function|class) (\w+)", text, re.M)
        known[module] = set(re.findall(r"^export (?:async )?(?:const|let|function|class) (\w+)", text, re.M))
        names += found
    assert len(names) == len(set(names))
    assert "import " not in re.sub(r"/\*.*?\*/", "", program(), flags=re.S)
    assert "</script" not in program()


def explanation(run, **more):
    """An explain.json of the run's model and pairs, as explain writes it but for what the page does not read."""
    record = read_circuit(run).record
    group = {"by": "all", "value": "all", "n": 8, "headline": "unconfirmed", "verdict": "prior dominance"}
    group |= {"share": 0.75, "agree": 1, "disagree": 5, "null_agree": 0.25}
    group |= {"divergence": {"value": 0.5, "low": None, "high": None}}
    test = {"cause": "prior dominance", "test": "gain", "agree": 1, "ran": 6, "null_agree": 2, "null_ran": 8, "p": 0.9}
    return {
        "format": "persona-circuits/explain",
        "version": 1,
        "model": {key: record["model"][key] for key in ("name", "fingerprint")},
        "sources": [{"source": record["task"]["source"], "sha256": record["task"]["sha256"]}],
        "null": {"n": 8, "sigma_0": 0.04},
        "tests": {"gain": {**test, "random_share": None}, "idle": {**test, "ran": 0, "random_share": None}},
        "groups": [group],
        "resampled": "pairs",
        **more,
    }


def test_verdicts_stand_beside_their_causal_test_and_null(run, tmp_path):
    (tmp_path / "explain.json").write_text(json.dumps(explanation(run)))
    done = call("report", run, "--verdicts", tmp_path, "--file", tmp_path / "p.html")
    assert done.exit_code == 0, done.output
    data = read_page(tmp_path / "p.html")
    assert page_faults(data) == []
    found = data["verdicts"]
    assert [(one["headline"], one["agree"], one["null_agree"]) for one in found["groups"]] == [("unconfirmed", 1, 0.25)]
    assert [(one["test"], one["agree"], one["null_agree"]) for one in found["tests"]] == [("gain", 1, 2)]
    assert found["null"] == {"n": 8, "sigma_0": 0.04}
    assert found["same_pairs"]
    other = [{"source": "other.jsonl", "sha256": "0" * 64}]
    (tmp_path / "explain.json").write_text(json.dumps(explanation(run, sources=other)))
    assert not page_of_run(run, verdicts=tmp_path)["verdicts"]["same_pairs"]


def test_verdicts_of_other_weights_or_of_no_explanation_are_refused(run, tmp_path):
    for more, says in (
        ({"model": {"name": "m", "fingerprint": "0" * 64}}, "explains other weights, of m,"),
        ({"groups": [{"by": "all"}]}, "is no explanation"),
        ({"version": 2}, "is no explanation"),
    ):
        (tmp_path / "explain.json").write_text(json.dumps(explanation(run, **more)))
        failed = call("report", run, "--verdicts", tmp_path, "--file", tmp_path / "q.html")
        assert failed.exit_code == 2
        assert says in failed.stderr
        assert not (tmp_path / "q.html").exists()


def test_a_widget_without_anywidget_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(OptionError, match=r"persona-circuits\[notebook\]"):
        circuit_page(Circuit.full(Graph(2, 2))).widget()


def test_a_widgets_traits_follow_what_the_page_sends():
    """As a notebook would send it: a message of the widget's comm."""
    pytest.importorskip("anywidget", reason="the extra notebook is not installed")
    page = circuit_page(Circuit.full(Graph(2, 2)), groups={"movers": ["m0"]})
    widget, told = page.widget(), []
    widget.observe(lambda change: told.append(change["new"]), "pins")
    assert widget.html == page_html(page.data)
    assert widget.groups == {"movers": ["m0"]}
    state = {"pins": ["m0"], "edges": ["input->m0", "m0->logits"], "size": 7, "groups": {}}
    widget._handle_msg({"content": {"data": {"method": "update", "state": state, "buffer_paths": []}}, "buffers": []})
    assert {key: getattr(widget, key) for key in state} == state
    assert told == [["m0"]]
