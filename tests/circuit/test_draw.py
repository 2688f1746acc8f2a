"""The picture of a circuit: what stands where, what it looks like, and what reaches the file."""

from __future__ import annotations

import ast
import base64
import io
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from fontTools.ttLib import TTFont

from persona_circuits.circuit.drawing import FORMATS, DrawReport, Marks, draw, style, to_agraph
from persona_circuits.circuit.drawing import render as module
from persona_circuits.circuit.drawing.legible import SIZES, Layout, crossings
from persona_circuits.circuit.drawing.page import STEP, Page
from persona_circuits.circuit.drawing.roles import roles_of
from persona_circuits.circuit.errors import FileError, OptionError
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit

GRAPH = Graph(3, 4)
SCORES = {
    "input->a0.h1<v>": -0.4,
    "a0.h1->m0": -0.3,
    "m0->a2.h0<q>": 0.25,
    "a0.h1->a2.h0<k>": -0.01,
    "m0->a2.h3<v>": 0.0,
    "a2.h0->m2": -0.2,
    "a2.h3->logits": 0.1,
    "m2->logits": -0.5,
}


@pytest.fixture
def circuit() -> Circuit:
    return Circuit.of(GRAPH, SCORES)


@pytest.fixture
def scores() -> Scores:
    return Scores.of(GRAPH, SCORES)


def dense(graph: Graph, seed: int = 0, share: float = 0.3) -> tuple[Circuit, Scores]:
    """A random circuit with a share of all edges, and scores for all of them."""
    rng = np.random.default_rng(seed)
    mask = (rng.random(graph.valid.shape) < share) & graph.valid
    return Circuit(graph, mask), Scores(graph, rng.normal(size=mask.shape))


def center(picture, node: str) -> tuple[float, float]:
    x, y = map(float, picture.get_node(node).attr["pos"].split(","))
    return x, y


def edge(picture, name: str):
    src, rest = name.split("->")
    return picture.get_edge(src, rest.split("<")[0], name)


def curve(item) -> np.ndarray:
    """The control points of an edge; shape ``[3 n + 1, 2]``."""
    return np.array([list(map(float, point.split(","))) for point in item.attr["pos"].split(" ")[1:]])


def on_curve(item) -> np.ndarray:
    """Points along an edge, close to one another; shape ``[points, 2]``."""
    points, t = curve(item), np.linspace(0, 1, 25)[:, None]
    weights = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3)
    pieces = range(0, len(points) - 1, 3)
    return np.concatenate([sum(w * points[i + k] for k, w in enumerate(weights)) for i in pieces])


# --- where things are ----------------------------------------------------------------------


def test_depth_grows_upwards(circuit, scores):
    picture = to_agraph(circuit, scores=scores)
    heights = [center(picture, node)[1] for node in ("input", "a0.h1", "m0", "a2.h0", "m2", "logits")]
    assert all(low < high for low, high in pairwise(heights))
    assert center(picture, "a2.h0")[1] == center(picture, "a2.h3")[1]
    assert center(picture, "a2.h0")[0] < center(picture, "a2.h3")[0] < center(picture, "m2")[0]


def test_parallel_layers_have_one_row():
    graph = Graph(2, 2, parallel=True)
    circuit = Circuit.of(graph, ["input->a0.h0<q>", "input->m0", "a0.h0->logits", "m0->logits"])
    picture = to_agraph(circuit)
    assert center(picture, "a0.h0")[1] == center(picture, "m0")[1]


@pytest.mark.parametrize("graph", [Graph(4, 5), Graph(4, 5, parallel=True), Graph(3, 32), Graph(24, 2)])
def test_nodes_do_not_overlap_and_edges_pass_beside_them(graph):
    picture = to_agraph(*dense(graph)[:1], scores=dense(graph)[1], strongest=120)
    boxes = {
        str(node): (*center(picture, node), 36 * float(node.attr["width"]), 36 * float(node.attr["height"]))
        for node in picture.nodes()
    }
    for one, (x, y, wide, tall) in boxes.items():
        for other, (x2, y2, wide2, tall2) in boxes.items():
            assert one == other or abs(x - x2) > wide + wide2 or abs(y - y2) > tall + tall2, (one, other)
    for item in picture.edges(keys=True):
        xs, ys = on_curve(picture.get_edge(*item)).T
        assert (np.diff(ys) > -0.02).all(), f"{item} turns downwards"
        for node, (x, y, wide, tall) in boxes.items():
            inside = (abs(xs - x) < wide) & (abs(ys - y) < tall)
            assert node in item[:2] or not inside.any(), f"{item} runs through {node}"


def test_edges_leave_the_top_and_enter_their_port(circuit, scores):
    picture = to_agraph(circuit, scores=scores)
    x, y = center(picture, "a2.h0")
    ends = {slot: curve(edge(picture, name))[-1] for slot, name in
            (("q", "m0->a2.h0<q>"), ("k", "a0.h1->a2.h0<k>"))}  # fmt: skip
    assert ends["q"][0] < x - 10 < ends["k"][0] < x + 10
    assert all(y - 30 < end[1] < y for end in ends.values())
    start = curve(edge(picture, "a2.h0->m2"))[0]
    assert start == pytest.approx([x, y + module.HEAD[1] / 2], abs=0.02)
    assert edge(picture, "m0->a2.h0<q>").attr["headport"] == "q"
    assert edge(picture, "m2->logits").attr["headport"] == ""


def test_layers_without_nodes_take_little_room_and_are_marked():
    names = ["input->m0", "m0->m19", "m19->logits"]
    picture = to_agraph(Circuit.of(Graph(20, 1), names))
    close = to_agraph(Circuit.of(Graph(2, 1), ["input->m0", "m0->m1", "m1->logits"]))
    assert center(picture, "m19")[1] - center(close, "m1")[1] < 40
    assert "1–18 empty" in picture.graph_attr["_background"]
    assert "empty" not in close.graph_attr["_background"]


def test_the_page_holds_everything():
    for graph in (Graph(3, 2), Graph(3, 32), Graph(24, 2)):
        circuit, scores = dense(graph)
        picture = to_agraph(circuit, scores=scores)
        left, low, right, high = map(float, picture.graph_attr["bb"].split(","))
        points = np.concatenate([curve(picture.get_edge(*item)) for item in picture.edges(keys=True)])
        assert (points > [left, low]).all()
        assert (points < [right, high]).all()
        assert right < 110 * graph.n_heads + 700  # points: a wrong unit is off by a factor of 72
        assert high < 400 * graph.n_layers + 400


# --- what things look like -----------------------------------------------------------------


def test_only_nodes_of_shown_edges_are_drawn(circuit, scores):
    picture = to_agraph(circuit, scores=scores)
    assert set(picture.nodes()) == {str(node) for node in circuit.nodes()}
    assert {item[2] for item in picture.edges(keys=True)} == set(SCORES)


def test_dead_nodes_are_left_out_and_counted():
    names = ["input->m0", "m0->logits", "input->a1.h0<q>"]  # nothing reads a1.h0
    picture = to_agraph(Circuit.of(GRAPH, names))
    assert set(picture.nodes()) == {"input", "m0", "logits"}
    assert "2 of 3 edges; 1 left out, on no path from input to logits" in picture.graph_attr["_background"]


def test_kinds_differ_in_shape_and_colour(circuit):
    picture = to_agraph(circuit)
    looks = {
        tuple(picture.get_node(node).attr[key] for key in ("shape", "fillcolor")) for node in ("a2.h0", "m2", "input")
    }
    assert len(looks) == 3
    assert picture.get_node("a2.h0").attr["shape"] != picture.get_node("m2").attr["shape"]


def test_used_ports_are_filled(circuit):
    picture = to_agraph(circuit)
    label = picture.get_node("a2.h0").attr["label"]
    filled = re.findall(r'port="(.)"[^>]*bgcolor', label)
    assert filled == ["q", "k"]
    assert re.findall(r">(.)</font></td>", label) == ["q", "k", "v"]


def test_width_grows_with_the_size_of_the_score(circuit, scores):
    picture = to_agraph(circuit, scores=scores)
    ranked = sorted(SCORES, key=lambda name: abs(SCORES[name]))
    widths = [float(edge(picture, name).attr["penwidth"]) for name in ranked]
    assert all(thin < thick for thin, thick in pairwise(widths))
    assert widths[0] == pytest.approx(style.THIN)
    assert widths[-1] == pytest.approx(style.THICK)


@pytest.mark.parametrize(
    ("name", "color", "style"),
    [
        ("m2->logits", style.BLUE, "solid"),
        ("a2.h3->logits", style.VERMILLION, "dashed"),
        ("m0->a2.h3<v>", module.GREY, "solid"),
    ],
)
def test_sign_is_told_by_colour_and_by_style(circuit, scores, name, color, style):
    picture = to_agraph(circuit, scores=scores)
    item = edge(picture, name)
    assert item.attr["color"].startswith(color)
    assert item.attr["style"] == style
    assert float(item.attr["score"]) == SCORES[name]


def test_without_scores_all_edges_look_the_same(circuit):
    picture = to_agraph(circuit)
    items = [picture.get_edge(*item).attr for item in picture.edges(keys=True)]
    assert {(item["penwidth"], item["color"], item["style"]) for item in items} == {("1.100", module.GREY, None)}
    assert "metric" not in picture.graph_attr["_background"]


def test_the_legend_says_sign_and_scale(circuit, scores):
    picture = to_agraph(circuit, scores=scores)
    legend = picture.graph_attr["_background"]
    for words in ("m(edge corrupted) − m(clean)", "it lowers the metric", "works against it", "metric units",
                  "query (q)", "MLP of layer"):  # fmt: skip
        assert words in legend
    assert all(f"{number:.3g}" in legend for number in (0.5, 0.125, 0.03125))


# --- how much is shown ---------------------------------------------------------------------


def test_the_strongest_paths_are_shown_and_the_rest_is_counted(tmp_path, circuit, scores):
    picture = to_agraph(circuit, scores=scores, strongest=5)
    path = {"input->a0.h1<v>", "a0.h1->m0", "m0->a2.h0<q>", "a2.h0->m2", "m2->logits"}  # its weakest edge is 0.2
    assert {item[2] for item in picture.edges(keys=True)} == path
    svg = tmp_path / "c.svg"
    assert draw(circuit, svg, scores=scores, strongest=6) == DrawReport(6, 8, svg)
    assert "6 of 8 edges, on the strongest paths from input to logits; 2 left out" in svg.read_text()
    assert draw(circuit, svg, scores=scores, strongest=1) == DrawReport(5, 8, svg)  # a whole path at least


@pytest.mark.parametrize("strongest", [10, 40, 150])
def test_nothing_dangles_and_every_path_left_out_is_weaker(strongest):
    circuit, scores = dense(Graph(6, 4))
    items = to_agraph(circuit, scores=scores, strongest=strongest).edges(keys=True)
    shown = Circuit.of(circuit.graph, [item[2] for item in items])
    assert len(shown) <= strongest
    assert shown.without_dead_ends() == shown
    assert widest(shown, scores) == pytest.approx(widest(circuit, scores))


def test_the_widest_path_is_where_raising_the_threshold_cuts_input_from_logits():
    circuit, scores = dense(Graph(2, 2))
    widths = []
    for size in sorted({abs(scores[item]) for item in circuit.edges()}):
        kept = [str(item) for item in circuit.edges() if abs(scores[item]) >= size]
        if len(Circuit.of(circuit.graph, kept).without_dead_ends()):
            widths.append(size)
    assert max(widths) == pytest.approx(widest(circuit, scores))


def widest(circuit: Circuit, scores: Scores) -> float:
    """The largest weakest edge of any path from input to logits."""
    import networkx as nx

    graph = nx.MultiDiGraph(
        (str(e.src), str(e.dst), {"size": abs(scores[e])}) for e in circuit.without_dead_ends().edges()
    )
    best = {"input": np.inf}
    for node in nx.topological_sort(graph):
        for _, other, about in graph.out_edges(node, data=True):
            best[other] = max(best.get(other, 0.0), min(best.get(node, 0.0), about["size"]))
    return best["logits"]


def test_thousands_are_counted_readably():
    circuit, scores = dense(Graph(12, 12), share=0.2)
    picture = to_agraph(circuit, scores=scores, strongest=150)
    assert re.search(
        r"150 of \d,\d{3} edges, on the strongest paths .*; \d,\d{3} left out", picture.graph_attr["_background"]
    )


def test_without_scores_the_first_paths_are_shown(circuit):
    picture = to_agraph(circuit, strongest=4)
    shown = Circuit.of(GRAPH, [item[2] for item in picture.edges(keys=True)])
    assert len(shown) == 4
    assert shown.without_dead_ends() == shown
    assert "4 of 8 edges, on the first paths from input to logits; 4 left out" in picture.graph_attr["_background"]


# --- bundles -------------------------------------------------------------------------------


def test_edges_that_go_the_same_way_are_one_stroke():
    heads = [f"a3.h{head}" for head in range(6)]
    names = [
        "input->m0",
        *(f"m0->{head}<v>" for head in heads),
        *(f"{head}->logits" for head in heads),
        "m0->m2",
        "m2->logits",
    ]
    picture = to_agraph(Circuit.of(Graph(4, 6), names))
    below = center(picture, "m2")[1]
    trunks = {tuple(map(tuple, part[part[:, 1] < below])) for part in (curve(edge(picture, one)) for one in names[1:7])}
    assert len(trunks) == 1
    ends = {tuple(curve(edge(picture, f"m0->{head}<v>"))[-1]) for head in heads}
    assert len(ends) == 6
    (level,) = {level for head in heads for level in levels(edge(picture, f"m0->{head}<v>"))}
    assert below < level < center(picture, "a3.h0")[1]


def levels(item) -> list[float]:
    """The heights at which an edge runs level over more than the room of a corner."""
    on = on_curve(item)
    flat = [y for (x, y), (x2, y2) in pairwise(on) if abs(x2 - x) > 2 and abs(y2 - y) < 1e-6]
    return sorted({round(y, 2) for y in flat})


def test_a_fan_into_a_node_above_is_one_bar_with_one_arrow():
    graph = Graph(2, 12)
    heads = [f"a0.h{head}" for head in range(12)]
    names = [*(f"input->{head}<v>" for head in heads), *(f"{head}->m0" for head in heads), "m0->logits"]
    picture = to_agraph(Circuit.of(graph, names))
    fan = [edge(picture, f"{head}->m0") for head in heads]
    assert len({level for item in fan for level in levels(item)}) == 1
    assert len({tuple(curve(item)[-1]) for item in fan}) == 1
    assert len({tuple(curve(item)[0]) for item in fan}) == 12


def test_bars_of_several_bundles_lie_apart():
    circuit, scores = dense(Graph(4, 5), share=0.5)
    chosen = next(style.chosen_by_size(circuit, scores, [200]))
    page = Page.of(circuit.graph, chosen)
    assert len(page.levels) > 8
    for gap in range(1, len(page.rows)):
        here = sorted(level for bundle, level in page.levels.items() if bundle.gap == gap)
        assert all(high - low >= STEP - 1e-9 for low, high in pairwise(here))
        floor = max(page.boxes[node].high for node in page.rows[gap - 1])
        roof = min(page.boxes[node].low for node in page.rows[gap])
        assert all(floor < level < roof for level in here)


# --- what can be followed ------------------------------------------------------------------


def line(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    return [tuple((np.array(start) + part * (np.array(end) - start)).tolist()) for part in np.linspace(0, 1, 4)]


STEPS = [*line((0, 0), (0, 40)), *line((0, 40), (90, 40))[1:], *line((90, 40), (90, 90))[1:]]


@pytest.mark.parametrize(
    ("curves", "expected"),
    [
        ([line((0, 0), (90, 90)), line((90, 0), (0, 90))], 1),
        ([line((0, 0), (90, 90)), line((10, 0), (100, 90))], 0),
        ([line((0, 0), (90, 90)), line((90, 0), (0, 90)), line((40, 0), (41, 90))], 3),
        ([STEPS, line((50, 0), (50, 90))], 1),
        ([line((0, 0), (90, 40)), line((90, 50), (0, 90))], 0),
        ([], 0),
    ],
)  # fmt: skip
def test_crossings_are_counted(curves, expected):
    assert crossings(curves, [1.0] * len(curves)) == pytest.approx(expected)


def test_edges_of_a_bundle_cross_as_one_line():
    same = line((0.0, 0.0), (90.0, 90.0))
    assert crossings([same, same, line((90.0, 0.0), (0.0, 90.0))], [0.5, 0.5, 1.0]) == pytest.approx(1)


def test_as_many_edges_are_drawn_as_can_be_followed():
    hairball, simple = dense(Graph(6, 5)), dense(Graph(3, 2))
    shown = {name: to_agraph(one[0], scores=one[1]).number_of_edges() for name, one in
             (("hairball", hairball), ("simple", simple))}  # fmt: skip
    assert shown["simple"] == len(simple[0].without_dead_ends())
    assert 5 < shown["hairball"] < len(hairball[0]) / 3
    assert to_agraph(hairball[0], scores=hairball[1], strongest=120).number_of_edges() == 120
    sizes = [n for n in SIZES if n > shown["hairball"]]
    for chosen in style.chosen_by_size(*hairball, sizes):
        assert not Layout.of(hairball[0].graph, chosen, "").legible


@pytest.mark.parametrize(("width", "sides"), [("", (7.5, 10.0)), ("single", (3.3, 9.0)), ("double", (6.9, 9.0))])
@pytest.mark.parametrize("graph", [Graph(30, 9), Graph(12, 12)])
def test_on_the_page_it_is_for_names_have_five_points(graph, width, sides):
    circuit, scores = dense(graph, share=0.02)
    picture = to_agraph(circuit, scores=scores, width=width, title="a model: a metric, a file of pairs.jsonl")
    left, low, right, high = map(float, picture.graph_attr["bb"].split(","))
    scale = min(72 * sides[0] / (right - left), 72 * sides[1] / (high - low))
    assert scale * float(picture.node_attr["fontsize"]) >= 5
    assert picture.number_of_edges() >= 5


def test_a_bundle_has_one_look():
    graph = Graph(4, 8)
    names = [f"m0->a3.h{head}<v>" for head in range(8)]
    circuit = Circuit.of(
        graph, ["input->m0", *names, *(f"a3.h{head}->logits" for head in range(8)), "m0->a1.h0<v>", "a1.h0->logits"]
    )
    scores = Scores.of(graph, {str(item): 1.0 if str(item) in names[:4] else -1.0 for item in circuit.edges()})
    picture = to_agraph(circuit, scores=scores)
    strokes = {(edge(picture, name).attr["style"], tuple(curve(edge(picture, name))[0])) for name in names}
    assert len(strokes) == 2
    assert len({start for _, start in strokes}) == 2


def test_an_empty_circuit_says_so(tmp_path):
    path = tmp_path / "empty.svg"
    assert draw(Circuit.empty(GRAPH), path, scores=Scores.of(GRAPH, {})) == DrawReport(0, 0, path)
    svg = path.read_text()
    assert "no edges" in svg
    assert ">input<" in svg
    assert ">logits<" in svg


# --- files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fmt", "magic"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF"), ("dot", b"digraph")]
)
def test_formats(tmp_path, circuit, scores, fmt, magic):
    path = tmp_path / f"c.{fmt}"
    draw(circuit, path, scores=scores, title='Ada & "Bo" <1> \\ Ünï')
    assert path.read_bytes().lstrip().removeprefix(b"strict ").startswith(magic)
    assert path.stat().st_size < 300_000
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_every_format_is_tested():
    assert FORMATS == ("svg", "png", "pdf", "dot")


def test_fmt_goes_before_the_ending(tmp_path, circuit):
    draw(circuit, tmp_path / "picture.txt", fmt="dot")
    assert "digraph" in (tmp_path / "picture.txt").read_text()


def test_title_is_shown_as_it_is(tmp_path, circuit):
    draw(circuit, tmp_path / "c.svg", title='Ada & "Bo" <1>\nnext')
    assert "Ada &amp; &quot;Bo&quot; &lt;1&gt; next<" in (tmp_path / "c.svg").read_text()


def test_a_picture_has_its_own_letters(tmp_path, circuit, scores):
    """Those that it uses, in a font that reads; and no more than a few of them."""
    title = "Ärger & Ω <7>"
    draw(circuit, tmp_path / "c.svg", scores=scores, title=title)
    face = re.search(r"data:font/woff;base64,([^)]+)\)", (tmp_path / "c.svg").read_text())[1]
    letters = set(TTFont(io.BytesIO(base64.b64decode(face))).getBestCmap())
    assert {ord(letter) for letter in title} <= letters
    assert ord("Щ") not in letters
    assert ElementTree.fromstring((tmp_path / "c.svg").read_text()).tag.endswith("svg")


def test_heads_stand_together_by_what_their_scores_say_they_do():
    """Two read the input, two write the answer; one does both half and half, so it has no role."""
    graph = Graph(2, 5)
    sizes = {
        **{f"input->a0.h{head}<v>": 1.0 for head in range(4)},
        "input->a1.h0<v>": -0.1, "a0.h0->a1.h0<v>": 1.0, "a1.h0->logits": 1.0,
        "a0.h1->a1.h2<q>": 1.0, "a1.h2->logits": -1.0, "a0.h0->m0": 1.0, "a0.h1->logits": 0.1, "a0.h2->logits": 1.0,
        "a0.h3->logits": 0.5, "a0.h3->a1.h0<k>": 0.5, "a0.h2->a1.h0<k>": 0.2, "m0->a1.h1<v>": 1.0, "a1.h1->m1": 1.0,
        "m1->logits": 1.0,
    }  # fmt: skip
    circuit, scores = Circuit.of(graph, sizes), Scores.of(graph, sizes)
    found = {str(node): role for node, role in roles_of(circuit, scores).items()}
    assert found == {
        "a0.h0": "reader", "a0.h1": "reader", "a0.h2": "both", "a1.h0": "writer", "a1.h1": "between", "a1.h2": "writer"
    }  # fmt: skip
    picture = to_agraph(circuit, scores=scores)
    row = sorted((f"a0.h{head}" for head in range(4)), key=lambda name: center(picture, name)[0])
    assert row == ["a0.h0", "a0.h1", "a0.h2", "a0.h3"]
    assert center(picture, "a1.h1")[0] < center(picture, "a1.h0")[0] < center(picture, "a1.h2")[0]
    look = {name: (picture.get_node(name).attr["fillcolor"], picture.get_node(name).attr["style"]) for name in found}
    assert len(set(look.values())) == 4
    assert "heads by role" in picture.graph_attr["_background"]
    assert "width:" in picture.graph_attr["_background"]
    assert roles_of(Circuit.of(graph, ["input->a0.h0<v>", "a0.h0->logits"]), scores) == {}
    assert roles_of(circuit, None) == {}


def test_same_input_same_bytes(tmp_path):
    circuit, scores = dense(Graph(3, 3))
    for fmt in ("svg", "dot", "png", "pdf"):
        for name in ("one", "two"):
            draw(circuit, tmp_path / f"{name}.{fmt}", scores=scores, strongest=60)
        assert (tmp_path / f"one.{fmt}").read_bytes() == (tmp_path / f"two.{fmt}").read_bytes(), fmt


@pytest.mark.parametrize(("width", "points"), [("single", 3.3 * 72), ("double", 6.9 * 72)])
def test_a_picture_fits_a_papers_columns(width, points, tmp_path):
    circuit, scores = dense(Graph(30, 4), share=0.02)
    draw(circuit, tmp_path / "c.svg", scores=scores, width=width)
    sides = [
        float(side)
        for side in re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', (tmp_path / "c.svg").read_text()).groups()
    ]
    assert sides[0] <= points + 1
    assert sides[1] <= 9 * 72 + 1
    assert sides[0] > points - 2 or sides[1] > 9 * 72 - 2
    with pytest.raises(OptionError, match="'wide' is no width of a paper's column; give single or double"):
        draw(circuit, tmp_path / "c.svg", width="wide")


def test_large_pictures_keep_to_the_pixel_limit(monkeypatch, tmp_path, circuit):
    monkeypatch.setattr(module, "PNG_PIXELS", 40_000.0)
    draw(circuit, tmp_path / "c.png")
    width, height = np.frombuffer((tmp_path / "c.png").read_bytes()[16:24], dtype=">u4")
    assert 36_000 < width * height <= 41_000


# --- fonts ---------------------------------------------------------------------------------


def test_labels_are_drawn_on_a_machine_without_fonts(tmp_path, monkeypatch):
    (tmp_path / "none").mkdir()
    settings = tmp_path / "fonts.conf"
    settings.write_text(f"<fontconfig><dir>{tmp_path / 'none'}</dir></fontconfig>")
    path = tmp_path / "c.pdf"
    draw(Circuit.empty(GRAPH), path)
    with_fonts = undated(path)
    monkeypatch.setenv("FONTCONFIG_FILE", str(settings))
    draw(Circuit.empty(GRAPH), path)
    assert undated(path) == with_fonts
    assert b"PersonaCircuitsSans" in with_fonts


def undated(pdf: Path) -> bytes:
    return re.sub(rb"\(D:[^)]*\)", b"()", pdf.read_bytes())


def test_letters_reach_the_pixels(tmp_path, monkeypatch):
    assert pixels(tmp_path, "iiii") != pixels(tmp_path, "WWWW")
    monkeypatch.setattr(module, "font_environment", without_fonts)
    assert pixels(tmp_path, "iiii") == pixels(tmp_path, "WWWW"), "without a font all letters are the same box"


def pixels(folder: Path, title: str) -> bytes:
    draw(Circuit.empty(GRAPH), folder / "c.png", title=title)
    return (folder / "c.png").read_bytes()


def without_fonts(folder: Path) -> dict[str, str]:
    settings = folder / "fonts.conf"
    settings.write_text(f"<fontconfig><dir>{folder}</dir></fontconfig>")
    return {**os.environ, "FONTCONFIG_FILE": str(settings)}


def test_drawing_leaves_the_package_as_it_was(tmp_path, circuit):
    folder = Path(module.__file__).parent / "fonts"
    draw(circuit, tmp_path / "c.png")
    assert sorted(item.name for item in folder.iterdir()) == ["LICENSE", "PersonaCircuitsSans.ttf"]


def test_the_font_is_small_and_its_licence_lies_beside_it():
    folder = Path(module.__file__).parent / "fonts"
    (font,) = folder.glob("*.ttf")
    assert font.stat().st_size < 60_000
    assert "Bitstream" in (folder / "LICENSE").read_text()
    assert not {"Bitstream", "Vera", "Arev", "DejaVu"} & set(re.findall("[A-Z][a-z]+", font.name))


# --- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c.gif", "c", ".svg", "c.svg.txt"])
def test_unknown_format(tmp_path, circuit, name):
    with pytest.raises(OptionError, match=r"format is .*\.svg, \.png, \.pdf, \.dot"):
        draw(circuit, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("strongest", [0, -1])
def test_strongest_below_one(tmp_path, circuit, strongest):
    with pytest.raises(OptionError, match="give 1 or more"):
        draw(circuit, tmp_path / "c.dot", strongest=strongest)


def test_scores_of_another_graph(tmp_path, circuit):
    with pytest.raises(OptionError, match="scores are of Graph"):
        draw(circuit, tmp_path / "c.dot", scores=Scores.of(Graph(2, 2), {}))


def test_a_missing_folder(tmp_path, circuit):
    with pytest.raises(FileError, match=r"missing.c\.dot: .*make its folder"):
        draw(circuit, tmp_path / "missing" / "c.dot")


def test_a_failed_write_leaves_nothing_behind(tmp_path, circuit):
    (tmp_path / "c.dot").mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(FileError, match=r"c\.dot"):
        draw(circuit, tmp_path / "c.dot")
    assert [item.name for item in tmp_path.iterdir()] == ["c.dot"]


def test_graphviz_failing_keeps_the_old_file(tmp_path, circuit, monkeypatch):
    path = tmp_path / "c.svg"
    path.write_text("old")
    monkeypatch.setattr(module, "_RENDER", "raise SystemExit('no such engine')")
    with pytest.raises(FileError, match="no such engine"):
        draw(circuit, path)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["c.svg"]


def test_importing_is_light():
    code = "import sys, persona_circuits.circuit.drawing; print({'pygraphviz', 'torch'} & set(sys.modules))"
    root = Path(module.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_public_names_exist():
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)} | {"FORMATS"}
    assert set(module.__all__) <= defined


def test_edges_are_parted_by_the_part_of_the_prompt_that_gives_most_of_them():
    from persona_circuits.circuit.attribution import ScoreParts
    from persona_circuits.circuit.evaluation.span_files import edges_by_part

    circuit, _ = dense(Graph(4, 4))
    values = np.random.default_rng(1).normal(size=(6, *circuit.mask.shape)) * circuit.graph.valid
    parts = ScoreParts(circuit.graph, "span", tuple("abcdef"), values)
    found = edges_by_part(parts, circuit)
    assert len(found) == 4
    assert sum(len(one) for one in found.values()) == len(circuit)
    assert [len(one) for one in found.values()][:3] == sorted((len(one) for one in found.values()), reverse=True)[1:]
    for name, one in list(found.items())[:-1]:
        for item in one.edges():
            own = np.abs([values[(place, *circuit.graph.index(item))] for place in range(6)])
            assert "abcdef"[own.argmax()] == name
    to_agraph(circuit, scores=parts.total(), marks=Marks(found))
