"""Opened MLPs and heads on the page: its data against the run's files, and what a browser shows of them."""

import json
import shutil

import pytest
from conftest import DATA, woven
from tests_browser import Seen
from typer.testing import CliRunner

from persona_circuits.circuit.errors import FileError
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.io import circuit_record, read_circuit, write_circuit
from persona_circuits.circuit.page import circuit_page, page_faults, page_html, page_of_run, read_page
from persona_circuits.cli import app

SCRIPT = "<script>alert(1)</script>"
FILES = ("neurons.json", "heads.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A search of the tiny model with two opened MLPs and two opened heads, and its page."""
    out = tmp_path_factory.mktemp("opened") / "tiny"
    how = ["--model", str(DATA / "tiny-gpt2"), "--pairs", str(DATA / "tiny_pairs.json"), "--threshold", "0.02"]
    below = ["--neurons", "m0,m2", "--neuron-share", "0.8", "--open-heads", "a1.h2,a2.h0"]
    done = CliRunner().invoke(app, ["discover", *how, *below, "--n-random", "2", "--report", "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def copied(run, tmp_path):
    """The run's circuit and what was found in it, to be changed."""
    for name in ("circuit.json", *FILES):
        shutil.copy(run / name, tmp_path)
    return tmp_path


def content(path):
    return json.loads(path.read_text())


def test_its_data_are_those_of_the_files(run):
    data = read_page(run / "page.html")
    assert page_faults(data) == []
    neurons, heads = (content(run / name) for name in FILES)
    opened = data["runs"][0]["opened"]
    own = opened["neurons"]
    assert [one["name"] for one in own["kept"]] == [one["name"] for one in neurons["kept"]]
    assert own["n_kept"] == {
        mlp: sum(one["name"].startswith(f"{mlp}.") for one in neurons["kept"]) for mlp in ("m0", "m2")
    }
    assert {key: own[key] for key in ("n_neurons", "scores", "kept_scores", "measured")} == {
        key: neurons[key] for key in ("n_neurons", "scores", "kept_scores", "measured")
    }
    for one, known in zip(own["kept"], neurons["kept"], strict=True):
        assert (one["score"], one["promotes"], one["demotes"]) == (known["score"], known["promotes"], known["demotes"])
        assert one["sources"] == [list(item) for item in known["sources"].items()][:5]
    assert opened["heads"]["parts"] == heads["parts"]
    for one, known in zip(opened["heads"]["attended"], heads["attended"], strict=True):
        assert {name: (query, key) for name, query, key in one["terms"]} == {
            name: (known["query"][name], known["key"][name]) for name, *_ in one["terms"]
        }
        assert len(one["terms"]) + one["others"][0] == len(known["query"])
        for side in (1, 2):
            total = sum(term[side] for term in one["terms"]) + one["others"][side]
            assert total == pytest.approx(known["score"], abs=1e-4)
        largest = [max(map(abs, term[1:])) for term in one["terms"]]
        assert largest == sorted(largest, reverse=True)
    assert {*FILES} <= {one["name"] for one in data["runs"][0]["files"]}


def test_without_opened_nodes_nothing_of_them_is_on_the_page(copied):
    for name in FILES:
        (copied / name).unlink()
    assert "opened" not in page_of_run(copied)["runs"][0]


def test_a_notebook_is_given_the_same(run):
    opened = dict(zip(("neurons", "heads"), (content(run / name) for name in FILES), strict=True))
    page = circuit_page(read_circuit(run), opened=opened)
    assert page.data["runs"][0]["opened"] == page_of_run(run)["runs"][0]["opened"]


def test_what_was_opened_in_another_circuit_is_left_out(copied):
    record = content(copied / "circuit.json")
    record["neurons"]["neurons"].pop()
    (copied / "circuit.json").write_text(json.dumps(record))
    assert set(page_of_run(copied)["runs"][0]["opened"]) == {"heads"}
    heads = content(copied / "heads.json")
    heads["parts"][0]["n_edges"] += 1
    (copied / "heads.json").write_text(json.dumps(heads))
    assert "opened" not in page_of_run(copied)["runs"][0]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_holds_something_else_is_named(name, copied):
    for broken in ({"format": "persona-circuits/patch"}, [], {**content(copied / name), "version": 2}):
        (copied / name).write_text(json.dumps(broken))
        with pytest.raises(FileError, match=rf"{name} is no such file of discover; it has \d+ fault"):
            page_of_run(copied)


def test_thousands_of_neurons_keep_the_page_small(run, copied):
    """The strongest are on the page, and how many there are."""
    graph = Graph(12, 12)
    circuit, scores = woven(graph, 500)
    about = content(run / "circuit.json")
    about["model"] |= {"n_layers": graph.n_layers, "n_heads": graph.n_heads}
    neurons, heads = (content(run / name) for name in FILES)
    edges = dict.fromkeys(graph.src_names[:100], 0.5)
    some = neurons["kept"][0] | {"sources": edges, "destinations": edges}
    neurons["kept"] = [some | {"name": f"m0.n{i}", "score": 1 - i / 5000} for i in range(5000)]
    about["neurons"]["neurons"] = [one["name"] for one in neurons["kept"]]
    heads["attended"] = [heads["attended"][0] | {"query": edges, "key": edges}] * 200
    heads["parts"] = []
    keys = ("format", "version", "model", "task", "method", "ablation", "seed", "versions", "neurons")
    record = circuit_record(circuit, scores, {**{key: about[key] for key in keys}, "faithfulness": []})
    write_circuit(record, copied / "circuit.json")
    for name, one in zip(FILES, (neurons, heads), strict=True):
        (copied / name).write_text(json.dumps(one))
    data = page_of_run(copied)
    own = data["runs"][0]["opened"]["neurons"]
    assert (len(own["kept"]), own["n_kept"]["m0"]) == (500, 5000)
    assert len(page_html(data).encode()) < 2_000_000


@pytest.fixture(scope="module")
def path(run):
    """The page with a token and a part of the prompt that are markup, and with terms that it does not list."""
    data = read_page(run / "page.html")
    opened = data["runs"][0]["opened"]
    opened["neurons"]["kept"][0]["promotes"][0] = SCRIPT
    first = opened["heads"]["attended"][0]
    first["span"] = SCRIPT
    first["others"] = [3, *first["terms"].pop()[1:]]
    (run / "marked.html").write_text(page_html(data))
    return run / "marked.html"


def rows(seen, caption):
    """The cells of a table beside the graph."""
    table = seen.page.locator(".side-panel table", has=seen.page.locator("caption", has_text=caption)).first
    return [row.locator("th, td").all_inner_texts() for row in table.locator("tbody tr").all()]


def number(text):
    return float(text.replace("−", "-"))


def test_beside_an_mlp_are_its_neurons_the_strongest_first(browser, path):
    own = read_page(path)["runs"][0]["opened"]["neurons"]
    mlp, place = own["kept"][0]["name"].split(".")
    with Seen(browser, path, f"#pick={mlp}") as seen:
        beside = seen.page.inner_text(".side-panel")
        assert f"{own['n_kept'][mlp]} of {own['n_neurons'][mlp]} neurons are kept" in beside
        these = own["measured"][-1]["rows"][1]
        assert f"{these['f']:.3f}".replace("-", "−") in beside
        found = rows(seen, "Kept neurons")
        kept = [one for one in own["kept"] if one["name"].startswith(f"{mlp}.")]
        assert [cells[0] for cells in found] == [one["name"].split(".")[1] for one in kept]
        assert found[0][0] == place
        assert SCRIPT in found[0][2]
        sizes = [abs(number(cells[1])) for cells in found]
        assert sizes == sorted(sizes, reverse=True)
        seen.page.locator(".side-panel th button", has_text="score").first.click()
        seen.page.locator(".side-panel th button", has_text="score").first.click()
        sizes = [abs(number(cells[1])) for cells in rows(seen, "Kept neurons")]
        assert sizes == sorted(sizes)
        names = {one["name"] for one in own["kept"]}
        for cells in rows(seen, "Neurons with the largest direct effect"):
            assert cells[-1] == ("yes" if f"{mlp}.{cells[0]}" in names else "no")


def test_beside_a_head_are_its_parts_and_what_makes_it_attend(browser, path):
    heads = read_page(path)["runs"][0]["opened"]["heads"]
    first = heads["attended"][0]
    with Seen(browser, path, f"#pick={first['head']}") as seen:
        parts = rows(seen, "Parts of")
        assert [cells[:2] for cells in parts] == [
            [one["part"], str(one["n_edges"])] for one in heads["parts"] if one["head"] == first["head"]
        ]
        found = rows(seen, SCRIPT)
        assert [cells[0] for cells in found] == [*(name for name, *_ in first["terms"]), "3 others"]
        assert [round(number(cell), 3) for cell in found[0][1:]] == [round(x, 3) for x in first["terms"][0][1:]]
        source = next(name for name, *_ in first["terms"] if name != "biases")
        seen.page.locator(".side-panel table button.link", has_text=source).first.click()
        assert f"pick={source}" in seen.fragment()


def test_opened_nodes_have_a_mark_and_all_of_them_are_listed(browser, path):
    run = read_page(path)["runs"][0]
    drawn = {node for edge in run["edges"] for node in edge["edge"].replace("<", ">").split("->")}
    opened = {"m0", "m2", "a1.h2", "a2.h0"} & {node.split(">")[0] for node in drawn}
    with Seen(browser, path, viewport={"width": 700, "height": 900}, color_scheme="dark") as seen:
        marked = "items => items.map((one) => one.closest('.node').getAttribute('data-node'))"
        assert set(seen.page.eval_on_selector_all(".node .opened:not(.hidden)", marked)) == opened
        for name in opened:
            assert "opened" in seen.page.locator(f"[data-node='{name}']").get_attribute("aria-label")
        assert "opened" in seen.page.inner_text(".legend >> nth=0")
        listed = seen.page.inner_text("#opened")
        assert all(name in listed for name in ("m0", "m2", "a1.h2", "a2.h0", SCRIPT))
        seen.page.locator("#opened button.link", has_text="m2").first.click()
        assert seen.page.inner_text(".side-panel h3").startswith("m2")
        seen.page.emulate_media(media="print")
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 700
        assert seen.page.locator("#opened").is_visible()
        assert seen.page.locator(".side-panel table").first.is_visible()
