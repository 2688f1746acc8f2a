"""The library as a researcher meets it: the README's examples, the docstrings', and what results say of themselves."""

import doctest
import inspect
import json
import re

import pytest
import torch
from conftest import ROOT

import persona_circuits
from persona_circuits import Circuit, Graph, Scores, Task, discover, encode
from persona_circuits.circuit.errors import GraphError, OptionError, TaskError

EXAMPLES = (
    "Circuit",
    "CircuitPage",
    "Task",
    "acdc",
    "discover",
    "draw",
    "eap",
    "eap_ig",
    "exact",
    "measure",
    "patched_logits",
    "threshold",
    "to_networkx",
)
"""Public names whose docstrings have an example, or whose methods' have one."""


@pytest.fixture(scope="module")
def planted():
    from persona_circuits.models.planted import planted_models

    case = next(one for one in planted_models() if one.name == "two-hop")
    return case.model(), case.task


@pytest.fixture(scope="module")
def found(planted):
    model, task = planted
    return discover(model, task, persona_circuits.Options(metric="logit-diff", n_random=2))


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings(name, planted):
    """``model`` and ``task`` are a planted model and its pairs; all public names are there."""
    public = {one: getattr(persona_circuits, one) for one in persona_circuits.__all__ if not one.startswith("__")}
    model, task = planted
    scope = {**public, "model": model, "task": task, "torch": torch}
    tests = doctest.DocTestFinder(exclude_empty=True).find(public[name], name, globs=scope)
    tests = [one for one in tests if one.examples]
    assert tests
    for one in tests:
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(one)
        assert result.failed == 0, one.name


def public_verbs():
    for name in persona_circuits.__all__:
        value = getattr(persona_circuits, name)
        if inspect.isfunction(value):
            yield name, value


@pytest.mark.parametrize(("name", "verb"), list(public_verbs()))
def test_docstrings_of_public_verbs_are_of_one_style(name, verb):
    text = inspect.getdoc(verb)
    assert not re.search(r"^(Args|Parameters|Returns|Raises|Examples):$", text, re.M), name
    sections = re.findall(r"^(Parameters|Returns|Raises|Examples)\n-+$", text, re.M)
    order = [one for one in ("Parameters", "Returns", "Raises", "Examples") if one in sections]
    assert sections == order
    returns = verb.__annotations__.get("return")
    assert "Returns" in sections or returns == "None" or name.endswith("_by_definition"), name


def snippets():
    """The README's Python: indented blocks of its library section."""
    text = (ROOT / "README.md").read_text().split("## As a library")[1].split("\n## ")[0]
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.M)
    return [re.sub("^    ", "", block, flags=re.M) for block in blocks if "import" in block]


@pytest.mark.slow
def test_the_readmes_library_section_runs(tmp_path, monkeypatch):
    for name in ("models", "datasets"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    assert len(snippets()) == 2
    scope = {}
    for snippet in snippets():
        exec(compile(snippet, "README.md", "exec"), scope)
    assert scope["tested"].report.circuit.ratio_of_means > 0.5
    assert scope["tested"].results is None
    assert len(persona_circuits.read_circuit("runs/mine").record["evaluations"]) == 1
    assert scope["result"].record["task"]["metric"] == "margin"
    assert (tmp_path / "circuit.svg").exists()


def test_what_is_found_is_written_as_the_command_writes_it(found, tmp_path):
    found.write(tmp_path / "run", strongest=20)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    files = {"circuit.json", "real_circuits_1.json", "scores.safetensors", "summary.json", "graph.svg", "graph.png"}
    assert names == files
    assert persona_circuits.read_circuit(tmp_path / "run").circuit == found.circuit


def test_an_evaluation_is_saved_into_the_circuits_file(planted, found, tmp_path):
    model, task = planted
    found.write(tmp_path)
    tested = persona_circuits.evaluate_circuit(
        model, persona_circuits.read_circuit(tmp_path), task, persona_circuits.EvaluationOptions(quick=True)
    )
    tested.save(tmp_path / "circuit.json")
    record = persona_circuits.read_circuit(tmp_path).record
    assert record["stability"]["quick"]
    assert [one["faithfulness"] for one in record["evaluations"]] == [json.loads(json.dumps(tested.report.as_dict()))]
    assert len(tested.results.pairs.to_frame()) == len(task.of_split("test"))
    assert list(tested.results.tests.to_frame()["edge"]) == [row["edge"] for row in tested.results.tests.edge_rows()]
    assert repr(tested).startswith("Evaluation(FaithfulnessReport(f 1.000 [")
    assert "equivalence" in tested._repr_html_()


def test_a_bare_circuit_is_measured_but_has_no_file(planted, found, tmp_path):
    model, task = planted
    tested = persona_circuits.evaluate_circuit(model, found.circuit, task, tested=False)
    assert tested.record is None
    assert tested.report.metric == "persona-divergence"
    with pytest.raises(OptionError, match="without its file"):
        tested.save(tmp_path / "circuit.json")
    with pytest.raises(OptionError, match="give the pairs to measure on"):
        persona_circuits.evaluate_circuit(model, found.circuit)
    with pytest.raises(OptionError, match="give the model it was found in"):
        persona_circuits.evaluate_circuit(model, Circuit.full(Graph(2, 2)), task)


def test_results_say_what_they_are(found):
    assert repr(found.circuit) == "Circuit(3 of 110 edges, 4 of 12 nodes; 2 layers, 4 heads)"
    assert repr(found).startswith("Discovery(Circuit(3 of 110 edges")
    assert "logit-diff" in repr(found)
    assert repr(found.reports[0]).startswith("FaithfulnessReport(f 1.000")
    assert "<svg" in found._repr_html_()
    assert "<?xml" not in found._repr_html_()
    assert "m0" in found.circuit._repr_html_()
    assert found.page().data["runs"][0]["stops"][-1]["n_edges"] == len(found.circuit)
    assert "<svg" in persona_circuits.draw(found.circuit)._repr_svg_()
    assert repr(Scores.of(Graph(2, 2), {})) == "Scores(46 edges, all zero)"


def test_scores_as_a_table(found, monkeypatch):
    frame = found.scores.to_frame()
    assert len(frame) == found.circuit.graph.n_edges
    assert dict(zip(frame["edge"], frame["score"], strict=True)) == found.scores.as_dict()
    assert frame["score"].abs().is_monotonic_decreasing
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(OptionError, match="pip install pandas"):
        found.scores.to_frame()


def test_a_circuit_is_a_set_of_edges():
    graph = Graph(2, 2)
    a, b = (Circuit.of(graph, names) for names in (["input->m0", "m0->logits"], ["m0->logits", "input->logits"]))
    assert [str(edge) for edge in a] == a.edge_names()
    assert "input->m0" in a
    assert "input->m1" not in a
    assert (a & b).edge_names() == ["m0->logits"]
    assert len(a | b) == 3
    assert (a - b).edge_names() == ["input->m0"]
    assert (a - b) | (a & b) == a
    with pytest.raises(GraphError, match="not"):
        assert "m0->m9" in a
    for combine in (a.__and__, a.__or__, a.__sub__):
        with pytest.raises(GraphError, match="circuits of two graphs, 2 layers of 2 heads and 3 layers of 2 heads"):
            combine(Circuit.full(Graph(3, 2)))
    assert a.to_networkx().number_of_edges() == 2


def test_a_task_is_a_sequence(tiny_task):
    some = tiny_task[2:5]
    assert isinstance(some, Task)
    assert some.pairs == tiny_task.pairs[2:5]
    assert (some.source, some.sha256) == (tiny_task.source, tiny_task.sha256)
    assert tiny_task[3] == tiny_task.pairs[3] == list(tiny_task)[3]
    assert len(tiny_task) == len(tiny_task.pairs)
    assert "Task(8 pairs of " in repr(tiny_task)
    assert "the first 5" in tiny_task._repr_html_()


def test_a_task_from_pairs_in_memory_is_that_of_a_file(tiny, tiny_task):
    keys = ("clean", "corrupt", "answers", "wrong_answers")
    items = [{key: getattr(pair, key) for key in keys} for pair in tiny_task]
    made = Task.from_pairs(items, source="mine")
    ours, theirs = ([(row.clean, row.answers) for row in encode(one, tiny)] for one in (made, tiny_task))
    assert ours == theirs
    assert made.source == "mine"
    assert made.sha256 == Task.from_pairs(items).sha256 != Task.from_pairs(items[1:]).sha256
    twice = Task.from_pairs([*items, items[0]])
    assert (len(twice), twice.repeated) == (len(items), 1)
    one = Task.from_pairs([{**items[0], "answers": items[0]["answers"][0], "domain": "food"}])
    assert one[0].answers == items[0]["answers"]
    assert one[0].axis("domain") == "food"
    with pytest.raises(TaskError, match="pair 2: 'corrupt' must be a non-empty string"):
        Task.from_pairs([items[0], {**items[1], "corrupt": ""}])
    with pytest.raises(TaskError, match="mine holds no pairs"):
        Task.from_pairs([], source="mine")
