"""The page in a real browser: what it shows is what the file says, by pointer and by keyboard, and all it writes reads.

Chromium from the system, driven by Playwright; skipped with its reason where either is missing.
"""

import base64
import csv
import io
import json
import math

import pytest
from conftest import DATA, ROOT, woven
from tests_browser import Seen
from typer.testing import CliRunner

from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.io import circuit_record, faults_of, read_circuit, read_groups, write_circuit
from persona_circuits.circuit.page import CircuitPage, page_html, page_of_run, read_page
from persona_circuits.circuit.page.html import web_file
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.cli import app

SCRIPT = "<script>alert(1)</script>"
SAMPLE = ROOT / "docs" / "sample" / "persona-world.html"
SHAPES = {
    "persona-world": (12, 12, 123),
    "30 layers": (30, 9, 737),
    "400 edges": (12, 12, 400),
    "5,000 edges": (24, 16, 5000),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two searches of the tiny model, the first with nested circuits and all else."""
    folder = tmp_path_factory.mktemp("runs")
    base = ["discover", "--model", str(DATA / "tiny-gpt2"), "--pairs", str(DATA / "tiny_pairs.json"), "--n-random", "1"]
    for name, more in (
        ("one", ["--threshold", "0.02", "--report"]),
        ("two", ["--threshold", "0.05", "--method", "eap"]),
    ):
        done = CliRunner().invoke(app, [*base, "--out", str(folder / name), *more])
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def path(runs):
    """The page of both, with a persona that is markup."""
    data = page_of_run(runs / "one", others={f"two {SCRIPT}": runs / "two"}, command="persona-circuits report")
    data["title"] = f"tiny {SCRIPT}"
    pair = {"id": SCRIPT, "clean": f"You are {SCRIPT}", "corrupt": "You are <b>bold</b>", "persona_a": SCRIPT}
    data["runs"][0]["pairs"] = [{**pair, "answers": [" a"], "wrong_answers": [" b"]}]
    data["inside"]["example"]["tokens_a"] = [SCRIPT, *data["inside"]["example"]["tokens_a"][1:]]
    (runs / "page.html").write_text(page_html(data))
    return runs / "page.html"


def test_the_slider_walks_the_circuits_of_the_file(browser, path):
    run = read_page(path)["runs"][0]
    with Seen(browser, path) as seen:
        assert set(seen.edges()) == {edge["edge"] for edge in run["edges"] if edge["kept"]}
        for place, stop in enumerate(run["stops"]):
            seen.stop(place)
            assert len(seen.edges()) == stop["n_edges"]
            says = seen.page.inner_text("#stop-text")
            assert f"{stop['n_edges']:,} edges" in says
            f = round(list(stop["f"].values())[-1]["f"], 2) or 0.0
            assert f"f {f:.2f}".replace("-", "−") in says
        seen.page.keyboard.press("Escape")
        before = len(seen.edges())
        seen.page.locator("h1").click()
        seen.page.keyboard.press("[")
        assert len(seen.edges()) < before


def test_a_persona_that_is_markup_is_shown_as_text(browser, path):
    with Seen(browser, path) as seen:
        assert seen.page.inner_text("h1") == f"tiny {SCRIPT}"
        assert SCRIPT in seen.page.inner_text(".example")
        assert seen.page.eval_on_selector_all("main script, main b", "items => items.length") == 0
        assert SCRIPT in seen.page.inner_text("#view")


def test_pins_keep_the_ways_in_and_out_and_filters_what_they_say(browser, path):
    run = read_page(path)["runs"][0]
    kept = [edge for edge in run["edges"] if edge["kept"]]
    with Seen(browser, path) as seen:
        every = set(seen.edges())
        seen.page.locator(".node.mlp:not(.hidden)").last.click(modifiers=["Shift"])
        name = seen.fragment().split("pins=")[1].split("&")[0]
        assert set(seen.edges()) == _through(kept, name)
        assert name in seen.page.inner_text(".chips")
        seen.page.click("#undo")
        assert set(seen.edges()) == every
        seen.page.click(".filters summary")
        seen.page.select_option("#sign", "against")
        assert set(seen.edges()) == {edge["edge"] for edge in kept if edge["score"] > 0}
        seen.page.keyboard.press("Escape")
        seen.page.click("#reset")
        assert set(seen.edges()) == every
        seen.page.uncheck("[data-letter='slots-v']")
        assert set(seen.edges()) == {edge["edge"] for edge in kept if "<v>" not in edge["edge"]}
        seen.page.locator("h1").click()
        seen.page.keyboard.press("u")
        seen.page.select_option("#paths", "1")
        found = seen.edges()
        assert _strength(found, kept) == _widest(kept)


def _ends(edge):
    source, target = edge["edge"].split("->")
    return source, target.split("<")[0]


def _through(edges, name):
    """Edges before and behind a node, by following them one at a time."""
    found = set()
    for here, there in ((1, 0), (0, 1)):
        nodes = {name}
        for _ in range(20):
            more = {edge["edge"]: _ends(edge)[there] for edge in edges if _ends(edge)[here] in nodes}
            found |= set(more)
            nodes |= set(more.values())
    return found


def _strength(names, edges):
    scores = {edge["edge"]: abs(edge["score"]) for edge in edges}
    return min(scores[name] for name in names)


def _widest(edges):
    """The largest bound at which the edges above it still join input and logits."""
    for bound in sorted({abs(edge["score"]) for edge in edges}, reverse=True):
        reached = {"input"}
        for _ in range(20):
            reached |= {_ends(edge)[1] for edge in edges if abs(edge["score"]) >= bound and _ends(edge)[0] in reached}
        if "logits" in reached:
            return bound
    return None


def test_views_share_and_differ_as_the_files_do(browser, path, runs):
    one, two = (set(read_circuit(runs / name).circuit.edge_names()) for name in ("one", "two"))
    with Seen(browser, path) as seen:
        seen.page.select_option("#view", "1")
        assert set(seen.edges()) == two
        seen.page.select_option("#view", "0-1")
        assert set(seen.edges()) == one | two
        for part, expected in (("both", one & two), ("first", one - two), ("second", two - one)):
            seen.page.select_option("#part", part)
            assert set(seen.edges()) == expected


def _held(run, place):
    """The edges of a stop, by the page's data."""
    stop = run["stops"][place]
    return {e["edge"] for e in run["edges"] if (e["kept"] if stop["circuit"] else e.get("stop", 10**9) <= place)}


def test_the_slider_compares_circuits_of_like_size(browser, path):
    """At every stop of the first run the other's nearest in size is beside it, with what was measured of either."""
    first, second = read_page(path)["runs"]
    seen_sides = set()
    with Seen(browser, path) as seen:
        seen.page.select_option("#view", "0-1")
        for place, stop in enumerate(first["stops"]):
            seen.stop(place)
            sizes = [abs(math.log((one["n_edges"] + 1) / (stop["n_edges"] + 1))) for one in second["stops"]]
            beside = sizes.index(min(sizes))
            if stop["circuit"]:
                beside = next(i for i, one in enumerate(second["stops"]) if one["circuit"])
            a, b = _held(first, place), _held(second, beside)
            assert set(seen.edges()) == a | b
            for look, expected in (("both", a & b), ("first", a - b), ("second", b - a)):
                drawn = seen.page.eval_on_selector_all(
                    f".edges > g.{look}:not(.hidden)", "items => items.map((one) => one.getAttribute('data-edge'))"
                )
                assert set(drawn) == expected
                seen_sides |= {look} if expected else set()
            says = seen.page.inner_text("#stop-text")
            assert f"{first['name']} {len(a):,} edges" in says
            assert f"{second['name']} {len(b):,} edges" in says
    assert seen_sides == {"both", "first", "second"}


def test_a_link_shows_the_same_and_undo_goes_back(browser, path):
    with Seen(browser, path) as seen:
        seen.stop(1)
        seen.page.locator(".node.mlp:not(.hidden)").first.click(modifiers=["Shift"])
        link, edges = seen.page.evaluate("location.hash"), seen.edges()
        assert "stop=1" in link
        seen.page.locator("h1").click()
        for _ in range(2):
            seen.page.keyboard.press("u")
        assert "stop" not in seen.fragment()
    with Seen(browser, path, link) as again:
        assert again.edges() == edges
    with Seen(browser, path, "#stop=999&view=x&pins=%3Cb%3E,a99.h1&groups=[1]&low=z") as odd:
        assert odd.page.locator(".node").count() > 2


UNNAMED = """[...document.querySelectorAll("button, select, input, summary")].filter(
  (one) => !(one.textContent.trim() || one.getAttribute("aria-label") || one.labels?.length)
).length"""


def test_everything_works_by_keyboard(browser, path):
    with Seen(browser, path) as seen:
        seen.page.locator(".node[tabindex='0']").focus()
        names = set()
        for key in ("ArrowUp", "ArrowUp", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowDown"):
            seen.page.keyboard.press(key)
            names.add(seen.page.evaluate("document.activeElement.getAttribute('data-node')"))
        assert len(names) > 3
        seen.page.keyboard.press("Enter")
        picked = seen.page.evaluate("document.activeElement.getAttribute('data-node')")
        assert seen.page.inner_text(".side-panel h3").startswith(picked)
        seen.page.keyboard.press("p")
        assert f"pins={picked}" in seen.fragment()
        assert "pinned" in seen.page.locator(f"[data-node='{picked}']").get_attribute("aria-label")
        assert seen.page.evaluate("document.activeElement.getAttribute('data-node')") == picked
        assert seen.page.evaluate(UNNAMED) == 0


def test_what_is_saved_is_read_again(browser, path, tmp_path):
    with Seen(browser, path, '#stop=2&groups={"movers":["m0"]}&pins=m0') as seen:
        edges = seen.edges()
        (tmp_path / "circuit.json").write_bytes(seen.saved("Circuit (JSON)"))
        assert faults_of(tmp_path / "circuit.json") == []
        assert set(read_circuit(tmp_path).circuit.edge_names()) == set(edges)
        rows = list(csv.DictReader(io.StringIO(seen.saved("Edges (CSV)").decode())))
        assert {row["edge"] for row in rows} == set(edges)
        (tmp_path / "g.json").write_bytes(seen.saved("Groups (JSON)"))
        assert read_groups(tmp_path / "g.json") == {"movers": ["m0"]}
        picture = seen.saved("Picture (SVG)").decode()
        assert picture.count("<path") == len(edges)
        assert "var(" not in picture
        assert seen.saved("Picture (PNG)").startswith(b"\x89PNG")
        graph = json.loads(seen.saved("Neuronpedia graph (JSON)"))
        assert set(graph) == {"metadata", "qParams", "nodes", "links"}
        ids = {node["node_id"] for node in graph["nodes"]}
        assert {link[end] for link in graph["links"] for end in ("source", "target")} == ids
        assert len(graph["links"]) == len(edges)
        assert all(
            type(node["ctx_idx"]) is int and {"feature", "layer", "feature_type", "jsNodeId", "clerp"} <= set(node)
            for node in graph["nodes"]
        )
        assert {"slug", "scan", "prompt", "prompt_tokens"} <= set(graph["metadata"])
        assert graph["qParams"]["supernodes"] == [["movers", *(one for one in ids if one.startswith("m0_"))]]
    done = CliRunner().invoke(app, ["validate", str(tmp_path / "circuit.json"), str(tmp_path / "g.json")])
    assert done.exit_code == 0, done.output


def test_inside_a_head_and_an_mlp(browser, path):
    inside = read_page(path)["inside"]
    head = max(
        (name for name in inside["nodes"] if name.startswith("a")),
        key=lambda name: abs(inside["nodes"][name]["direct"]["mean"]),
    )
    mlp = next(name for name in inside["nodes"] if name.startswith("m"))
    n = len(inside["example"]["tokens_a"])
    with Seen(browser, path, f"#pick={head}&inside=pattern") as seen:
        assert seen.page.locator(".side-panel .heat").count() == 2
        assert seen.page.locator(".side-panel .heat").first.locator(".cell").count() == n * n
        assert f"{abs(inside['nodes'][head]['direct']['mean']):.3f}" in seen.page.inner_text(".side-panel")
    with Seen(browser, path, f"#pick={mlp}") as seen:
        assert f"n{inside['nodes'][mlp]['neurons'][0]['neuron']}" in seen.page.inner_text(".side-panel")


def test_on_paper_it_is_light_and_within_the_sheet(browser, drawn):
    path, _ = drawn(12, 12, 120)
    with Seen(browser, path, viewport={"width": 700, "height": 900}, color_scheme="dark") as seen:
        seen.page.emulate_media(media="print")
        assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 700
        assert not seen.page.locator(".toolbar").is_visible()


def test_on_a_narrow_window_the_pick_is_in_view_and_the_menu_within(browser, drawn):
    path, _ = drawn(4, 30, 40)
    edges = read_page(path)["runs"][0]["edges"]
    last = max(
        (e["edge"].split("->")[0] for e in edges if ".h" in e["edge"].split("->")[0]),
        key=lambda n: int(n.split("h")[1]),
    )
    with Seen(browser, path, f"#pick={last}", viewport={"width": 390, "height": 800}) as seen:
        box = seen.page.locator(f"[data-node='{last}']").bounding_box()
        assert 0 <= box["x"] <= 390 - box["width"]
        seen.page.click(".menu summary")
        menu = seen.page.locator(".menu > div").bounding_box()
        assert menu["x"] >= 0
        assert menu["x"] + menu["width"] <= 390
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_notebooks_frame_has_the_page_and_a_link(browser, path, tmp_path):
    page = CircuitPage(read_page(path))
    (tmp_path / "cell.html").write_text(f"<!DOCTYPE html><body>{page._repr_html_()}</body>")
    context = browser.new_context()
    tab, said = context.new_page(), []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto((tmp_path / "cell.html").as_uri())
    frame = tab.frames[1]
    frame.wait_for_selector("svg.graph .node")
    frame.locator(".node.mlp:not(.hidden)").first.click(modifiers=["Shift"])
    name = frame.locator(".node.pinned").get_attribute("data-node")
    link = frame.evaluate("location.href")
    context.close()
    assert page.selection(link)["pins"] == [name]
    assert said == []


def test_a_widget_hears_what_is_chosen_in_its_frame(browser, path):
    """The program that anywidget runs, with a model that keeps what is set; only its own frame is heard."""
    program = base64.b64encode(web_file("notebook.mjs").encode()).decode()
    held = {"html": page_html(read_page(path)), "title": "t"}
    context = browser.new_context()
    tab = context.new_page()
    tab.evaluate(
        """async ([program, held]) => {
          const { default: widget } = await import(`data:text/javascript;base64,${program}`);
          window.saved = 0;
          const set = (key, value) => { held[key] = value; };
          const model = { get: (key) => held[key], set, save_changes: () => { saved += 1; } };
          window.held = held;
          window.stop = widget.render({ model, el: document.body });
        }""",
        [program, held],
    )
    tab.wait_for_function("window.saved > 0")
    run = read_page(path)["runs"][0]
    kept = {edge["edge"] for edge in run["edges"] if edge["kept"]}
    assert set(tab.evaluate("held.edges")) == kept
    assert tab.evaluate("[held.size, held.pins]") == [len(kept), []]
    tab.frames[1].locator(".node.mlp:not(.hidden)").first.click(modifiers=["Shift"])
    name = tab.frames[1].locator(".node.pinned").get_attribute("data-node")
    tab.wait_for_function("held.pins.length > 0")
    assert tab.evaluate("held.pins") == [name]
    assert set(tab.evaluate("held.edges")) == _through([edge for edge in run["edges"] if edge["kept"]], name)
    tab.evaluate("postMessage({ format: 'persona-circuits/selection', pins: ['x'] }, '*')")
    tab.evaluate("new Promise(requestAnimationFrame)")
    assert tab.evaluate("held.pins") == [name]
    tab.evaluate("stop()")
    context.close()


@pytest.fixture(scope="module")
def drawn(runs, tmp_path_factory):
    """A page of a circuit of so many edges, its scores drawn at random."""

    def draw(layers, heads, n):
        folder = tmp_path_factory.mktemp("drawn")
        graph = Graph(layers, heads)
        circuit, scores = woven(graph, n) if n else (Circuit.empty(graph), None)
        record = json.loads((runs / "two" / "circuit.json").read_text())
        about = {key: value for key, value in record.items() if key not in ("nodes", "edges", "counts")} | {
            "faithfulness": []
        }
        about["model"] = {**about["model"], "n_layers": layers, "n_heads": heads}
        write_circuit(circuit_record(circuit, scores, about), folder / "circuit.json")
        (folder / "page.html").write_text(page_html(page_of_run(folder)))
        return folder / "page.html", len(circuit)

    return draw


def test_an_empty_circuit_has_a_page(browser, drawn):
    page, _ = drawn(3, 4, 0)
    with Seen(browser, page) as seen:
        assert "empty" in seen.page.inner_text(".answer")
        assert seen.edges() == []
        assert "No path" in seen.page.inner_text(".side-panel")


def test_circuits_found_in_a_real_model_have_a_page(browser, tmp_path):
    """SmolLM2's, for two frames of its personas, from the files of the study."""
    frames = ROOT / "logs" / "smollm2-chat-cue" / "frames"
    record = json.loads((frames / "you" / "circuit.json").read_text())
    page = tmp_path / "page.html"
    page.write_text(page_html(page_of_run(frames / "you", others={"friend": frames / "friend"})))
    with Seen(browser, page) as seen:
        assert "smollm2" in seen.page.inner_text("h1").lower()
        assert "234 edges, 60 nodes" in seen.page.inner_text("body")
        seen.page.select_option("#paths", "all")
        assert sorted(seen.edges()) == sorted(edge["edge"] for edge in record["edges"])
        assert seen.page.locator("text=layer 29").count()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_nothing_is_wider_than_the_window(browser, drawn, path, width, scheme):
    pages = [path, drawn(30, 9, 737)[0], *([SAMPLE] if SAMPLE.exists() else [])]
    for page in pages:
        with Seen(browser, page, viewport={"width": width, "height": 800}, color_scheme=scheme) as seen:
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
            dark = seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 29)"
            assert dark == (scheme == "dark")


@pytest.mark.parametrize("name", ["400 edges", "5,000 edges"])
def test_large_circuits_are_usable(browser, drawn, name, record_property, capsys):
    """Frames while the slider moves and nodes are pointed at; what they take is told, not demanded."""
    page, n = drawn(*SHAPES[name])
    with Seen(browser, page, "#paths=all") as seen:
        assert len(seen.edges()) == n
        frames = seen.page.evaluate(FRAMES)
        record_property("frames", frames)
        with capsys.disabled():
            print(f"\n  page of {n:,} edges: {frames['fps']:.0f} frames a second, a stop takes {frames['stop']:.0f} ms")
        seen.page.locator("[data-node='m0']").hover()
        assert seen.page.locator(".tip").is_visible()


FRAMES = """async () => {
  const range = document.getElementById("stop");
  const nodes = [...document.querySelectorAll(".node:not(.hidden)")];
  const move = (place) => { range.value = place; range.dispatchEvent(new Event("input", { bubbles: true })); };
  const began = performance.now();
  for (let i = 0; i <= Number(range.max); i++) { move(i); await new Promise(requestAnimationFrame); }
  const stop = (performance.now() - began) / (Number(range.max) + 1);
  const start = performance.now();
  const n = 40;
  for (let i = 0; i < n; i++) {
    nodes[i % nodes.length].dispatchEvent(new PointerEvent("pointerenter"));
    await new Promise(requestAnimationFrame);
  }
  return { fps: (1000 * n) / (performance.now() - start), stop };
}"""


def test_a_certificate_is_seen(browser, runs, tmp_path):
    out = tmp_path / "sure"
    how = ["--model", str(DATA / "tiny-gpt2"), "--pairs", str(DATA / "tiny_pairs.json"), "--method", "eap"]
    done = CliRunner().invoke(app, ["discover", *how, "--n-random", "0", "--certify", "1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(app, ["report", str(out)]).exit_code == 0
    record = read_circuit(out).record
    edge = record["edges"][0]
    with Seen(browser, out / "page.html", f"#pick={edge['edge']}") as seen:
        says = f"{record['certificate']['stays']:,} edges stay when any 1 of {record['certificate']['n_units']}"
        assert says in seen.page.inner_text("main")
        assert ("stays" if edge["stays"] else "abstains") in seen.page.inner_text(".side-panel")
        (tmp_path / "circuit.json").write_bytes(seen.saved("Circuit (JSON)"))
    assert faults_of(tmp_path / "circuit.json") == []


def test_a_verdict_is_seen_beside_its_causal_test_and_null(browser, path, tmp_path):
    data = read_page(path)
    group = {"by": "all", "value": SCRIPT, "n": 8, "headline": "unconfirmed", "verdict": "prior dominance"}
    group |= {"share": 0.75, "agree": 1, "disagree": 5, "null_agree": 0.25}
    group |= {"divergence": {"value": 0.5, "low": 0.1, "high": 0.9}}
    test = {"cause": "prior dominance", "test": "gain", "agree": 1, "ran": 6, "null_agree": 2, "null_ran": 8}
    data["verdicts"] = {
        **{"source": "explain.json", "sha256": "0" * 64, "pairs": ["a.jsonl"], "same_pairs": False},
        "resampled": "pairs",
        "null": {"n": 8, "sigma_0": 0.04},
        "tests": [{**test, "random_share": None, "p": 0.9}],
        "groups": [group, {**group, "by": "domain", "headline": "prior dominance"}],
    }
    (tmp_path / "p.html").write_text(page_html(data))
    with Seen(browser, tmp_path / "p.html") as seen:
        rows = seen.page.locator("table:has(caption:text-is('Verdicts of explain')) tbody tr")
        cells = [rows.nth(i).locator("th, td").all_inner_texts() for i in range(2)]
        said = ["8", "+0.50 (+0.10 to +0.90)", "1 of 6", "25 %"]
        assert cells[0] == ["all pairs", "unconfirmed (prior dominance, 75 %)", *said]
        assert cells[1] == [f"domain: {SCRIPT}", "prior dominance, 75 %", *said]
        assert seen.page.get_by_text("other pairs than the circuit was found on").is_visible()
    with Seen(browser, path) as seen:
        assert seen.page.get_by_text("Verdicts of explain").count() == 0
