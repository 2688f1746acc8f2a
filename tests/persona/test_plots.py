"""Figures: one description, drawn for the page by plotly and for paper by matplotlib."""

import io
import json
import re

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text
from PIL import Image

from persona_circuits.circuit.errors import FileError, OptionError
from persona_circuits.circuit.figures import (
    Axis,
    Bars,
    Chart,
    Curve,
    Panel,
    Points,
    Spread,
    bar_chart,
    chart,
    figure_page,
    heat_map,
    line_chart,
    line_panels,
    png_bytes,
    read_figures,
    redraw,
    write_figures,
)
from persona_circuits.circuit.figures.charts import MOST_SERIES
from persona_circuits.circuit.figures.page import plotly_figure
from persona_circuits.circuit.figures.paper import paper


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib axes of a figure, as ``paper`` leaves them."""
    canvases, save = [], Canvas.savefig

    def kept(self, *arguments, **settings):
        canvases.append(self)
        save(self, *arguments, **settings)

    monkeypatch.setattr(Canvas, "savefig", kept)

    def draw(figure, **how):
        paper(figure, ("png",), **how)
        return canvases[-1].axes

    return draw


def pixels(figure):
    return np.asarray(Image.open(io.BytesIO(png_bytes(figure))).convert("RGB")).astype(int)


def labels(axes, which):
    return [tick.get_text() for tick in getattr(axes, f"get_{which}ticklabels")()]


def legend(axes):
    return [text.get_text() for text in axes.figure.legends[0].get_texts()]


def curves(**more):
    both = [
        Curve("one", [0, 1, 2], [1.0, 2.0, None], [0.5, 1.5, None], [1.5, 2.5, None]),
        Curve("two <b>&amp;</b>", [0, 1, 2], [0.0, 1.0, 4.0], dash="dash", **more),
    ]
    return line_chart(both, title="A title, $5", x="x", y="y")


def attribution(n_layers=30, n_heads=9):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(n_layers, n_heads)) * np.exp(-8 * rng.random((n_layers, n_heads)))
    names = [f"layer {layer}" for layer in range(n_layers)], [f"h{head}" for head in range(n_heads)]
    return heat_map(values.tolist(), *names, title="", x="", y="", unit="logits", numbers="+.2f", upward=True)


def every_kind():
    """A chart of every kind of mark, and of every field that changes how it is drawn."""
    bars = [Bars("probe", ["a", "b"], [0.5, None], [0.4, None], [0.7, None]), Bars("chance", ["a", "b"], [0.2, 0.3])]
    points = Points("p", [1.0, 2.0], ["u", "v"], [0.5, None], [1.5, None])
    tree = Panel((Curve("", [0.0, 1.0], [0.0, 1.0], markers=False),), x=Axis(falls=True), y=Axis(bare=True))
    scaled = Points("q", [0, 1], [0, 1], labels=["a", "b"], values=[0.0, 1.0], unit="place")
    return {
        "lines": curves(),
        "log": line_chart([curves().panels[0].marks[0]], title="", x=Axis("x", log=True), y="", lines={"y": 1.0}),
        "bars": bar_chart(bars, title="", x="", y=""),
        "stacked": bar_chart(bars, title="", x="", y="", stacked=True, across=True),
        "intervals": bar_chart([points], title="", x="", y="", across=True, lines={"x": 1.0}),
        "scatter": chart([scaled], title="", x="x", y=Axis("y", ends=(-1.0, 2.0)), shade=(-0.5, 0.5)),
        "spread": chart([Spread("few", [1.0, 2.0, 3.0]), Points("chosen", ["few"], [2.5])], title="", x="", y=""),
        "map": attribution(3, 3),
        "panels": line_panels({"one": bars, "two": bars}, title="", x="", y=""),
        "grid": Chart("", (tree, *attribution(3, 3).panels), 2, (0.2, 0.8)),
    }


@pytest.mark.parametrize("name", list(every_kind()))
def test_every_kind_is_drawn_by_both(name):
    from plotly.graph_objects import Figure

    one = every_kind()[name]
    figure = Figure(plotly_figure(one))  # refuses what plotly does not know
    assert len(figure.data) >= len([mark for panel in one.panels for mark in panel.marks])
    files = paper(one)
    assert [content[:4] for content in files.values()] == [b"\x89PNG", b"<?xm", b"%PDF"]
    assert paper(one) == files
    assert paper(one, width="single") != files


def test_paper_has_its_width_its_font_and_no_date():
    files = paper(curves())
    assert Image.open(io.BytesIO(files["png"])).size[0] == 2070  # 6.9 inches
    assert 'width="496.8pt"' in files["svg"].decode()
    assert 'width="237.6pt"' in paper(curves(), ("svg",), width="single")["svg"].decode()
    assert b"PersonaCircuitsSans" in files["pdf"]
    assert not re.search(rb"Date|\(D:|Matplotlib v", files["svg"] + files["pdf"])
    assert Image.open(io.BytesIO(png_bytes(curves(), dpi=90))).size[0] == 621


def test_lines_bands_and_legend_are_the_figures(drawn):
    axes = drawn(curves())[0]
    first, second = axes.lines
    np.testing.assert_array_equal(first.get_xydata()[:2], [[0, 1], [1, 2]])
    assert np.isnan(first.get_xydata()[2, 1])
    assert second.get_linestyle() == "--"
    assert first.get_marker() != second.get_marker()
    assert legend(axes) == ["one", "two <b>&amp;</b>"]
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in band} == {(0, 0.5), (0, 1.5), (1, 1.5), (1, 2.5)}
    assert axes.figure.get_suptitle() == "A title, $5"
    assert not any(text.get_parse_math() for text in axes.figure.findobj(Text))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x", "y")


def test_a_heat_maps_first_row_is_at_the_top_and_missing_cells_are_grey(drawn):
    figure = heat_map([[1.0, -1.0], [None, 0.0]], ["up", "down"], ["left", "right"], title="t", x="", y="", unit="u")
    axes = drawn(figure)[0]
    assert (labels(axes, "y"), labels(axes, "x")) == (["up", "down"], ["left", "right"])
    assert axes.yaxis_inverted()
    mesh = axes.collections[0]
    assert mesh.get_clim() == (-1.0, 1.0)
    assert mesh.get_array().tolist() == [[1.0, -1.0], [None, 0.0]]
    shown = {tuple(color) for color in pixels(figure).reshape(-1, 3)[::97]}
    assert {(33, 102, 172), (178, 24, 43), (228, 228, 228)} <= shown  # blue above, red below zero, grey: none


def test_layer_0_is_at_the_bottom_as_in_the_picture_of_a_circuit(drawn):
    axes = drawn(attribution())[0]
    assert not axes.yaxis_inverted()
    assert labels(axes, "y")[0] == "layer 0"
    assert "autorange" not in plotly_figure(attribution())["layout"]["yaxis"]


def test_numbers_in_cells_are_readable_on_their_colour(drawn):
    figure = heat_map([[1.0, 0.2]], ["a"], ["b", "c"], title="", x="", y="", unit="", numbers="+.1f")
    texts = {text.get_text(): text.get_color() for text in drawn(figure)[0].texts}
    assert texts == {"+1.0": "white", "+0.2": "#222222"}


def test_cells_have_numbers_where_there_is_room_and_something_to_say(drawn):
    cells = attribution().panels[0].cells
    texts = [text.get_text() for text in drawn(attribution())[0].texts]
    assert 10 < len(texts) < 150 < len(cells.rows) * len(cells.columns)
    assert not {"+0.00", "-0.00"} & set(texts)
    largest = max(abs(value) for row in cells.values for value in row)
    assert {f"{largest:.2f}"} <= {text.strip("+-") for text in texts}
    assert min(abs(float(text)) for text in texts) >= 0.05 * largest - 0.005
    assert not drawn(attribution(30, 60))[0].texts  # no room
    assert len(drawn(attribution(30, 60))[0].collections) == 2  # there, marks say which cells are below zero
    few = heat_map([[0.004, 1.0]], ["a"], ["b", "c"], title="", x="", y="", unit="", numbers=".2f")
    assert few.panels[0].cells.texts() == [["", "1.00"]]


def test_letters_have_seven_points_and_do_not_run_into_each_other(drawn):
    names = [f"block {place}" for place in range(40)]
    figure = line_chart([Curve("", names, [1.0] * 40)], title="t", x="x", y="y")
    for width in ("single", "double"):
        axes = drawn(figure, width=width)[0]
        assert min(text.get_fontsize() for text in axes.figure.findobj(Text) if text.get_text()) >= 7
        shown = labels(axes, "x")
        assert names[0] == shown[0]
        inches = axes.get_position().width * axes.figure.get_figwidth()
        assert 8 < len(shown) < inches / (7 / 72)


def test_a_legend_holds_what_can_be_told_apart():
    many = [Curve(f"layer {place}", [0, 1], [0.0, float(place)]) for place in range(17)]
    figure = line_chart(many, title="", x="", y="")
    looks = list(figure.looks().values())
    assert len({(look.colour, look.symbol) for look in looks[:MOST_SERIES]}) == MOST_SERIES
    assert {look.colour for look in looks[MOST_SERIES:]} == {"#bbbbbb"}
    page = plotly_figure(figure)["data"]
    assert [trace["name"] for trace in page if trace.get("showlegend", True)][-1] == "and 7 more"
    assert sum(trace.get("showlegend", True) for trace in page) == MOST_SERIES + 1


def test_a_long_legend_is_capped_on_paper_too(drawn):
    many = [Curve(f"layer {place}", [0, 1], [0.0, float(place)]) for place in range(17)]
    axes = drawn(line_chart(many, title="", x="", y=""))[0]
    assert legend(axes) == [*(f"layer {place}" for place in range(MOST_SERIES)), "and 7 more"]
    assert len(axes.lines) == 17


def test_panels_share_one_legend_and_keep_their_titles(drawn):
    panels = {name: [Curve("a", ["x", "y"], [0.0, 1.0]), Curve("b", ["x", "y"], [1.0, level])] for name, level in
              (("first", 2.0), ("second", 3.0), ("third", 4.0))}  # fmt: skip
    figure = line_panels(panels, title="t", x="x", y="y")
    axes = drawn(figure)
    assert [one.get_title() for one in axes] == ["first", "second", "third"]
    assert legend(axes[0]) == ["a", "b"]
    assert all(one.get_legend() is None for one in axes)
    assert axes[2].lines[1].get_ydata().tolist() == [1.0, 4.0]
    assert axes[0].lines[0].get_color() == axes[2].lines[0].get_color() != axes[0].lines[1].get_color()
    assert {round(one.get_subplotspec().rowspan.start) for one in axes} == {0, 1}
    assert [one.get_ylabel() for one in axes] == ["y", "", "y"]
    assert [one.get_xlabel() for one in axes] == ["", "x", "x"]
    assert {round(one.get_subplotspec().colspan.start) for one in drawn(figure, width="single")} == {0}


def test_bars_stand_beside_or_on_each_other(drawn):
    def bars(**how):
        both = [Bars("one", ["a", "b"], [1.0, 2.0]), Bars("two", ["a", "b"], [3.0, -4.0])]
        return drawn(bar_chart(both, title="", x="", y="", **how))[0].patches

    beside = bars()
    assert [bar.get_y() for bar in beside] == [0, 0, 0, 0]
    assert beside[0].get_x() + beside[0].get_width() == pytest.approx(beside[2].get_x())
    assert beside[0].get_hatch() != beside[2].get_hatch()
    stacked = bars(stacked=True)
    assert [(bar.get_y(), bar.get_height()) for bar in stacked] == [(0, 1), (0, 2), (1, 3), (0, -4)]
    across = bars(stacked=True, across=True)
    assert [(bar.get_x(), bar.get_width()) for bar in across] == [(0, 1), (0, 2), (1, 3), (0, -4)]


@pytest.mark.parametrize("across", [False, True])
def test_whiskers_reach_from_low_to_high(drawn, across):
    bars = [Bars("one", ["a"], [2.0], [1.75], [2.5]), Bars("two", ["a"], [1.0])]
    axes = drawn(bar_chart(bars, title="", x="", y="", across=across))[0]
    (ends,) = axes.collections[0].get_segments()
    assert ends[:, 1 - across].tolist() == [1.75, 2.5]
    (trace, _) = plotly_figure(bar_chart(bars, title="", x="", y="", across=across))["data"]
    error = trace["error_x" if across else "error_y"]
    assert (error["array"], error["arrayminus"]) == ([0.5], [0.25])
    dots = Points("", [2.0], ["a"], [1.5], [4.0]) if across else Points("", ["a"], [2.0], [1.5], [4.0])
    (ends,) = drawn(bar_chart([dots], title="", x="", y="", across=across))[0].collections[1].get_segments()
    assert ends[:, 1 - across].tolist() == [1.5, 4.0]


def test_lines_and_bands_across_a_panel_and_texts_in_it(drawn):
    points = Points("", [0, 4], [0.2, 2], labels=["p", "q"])
    y = Axis(log=True, ends=(0.1, 10.0))
    axes = drawn(chart([points], title="", y=y, lines={"y": 1.5, "x": 3}, shade=(0.5, 1)))[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[1.5, 1.5], [0, 1]]
    assert list(axes.lines[1].get_xdata()) == [3, 3]
    assert axes.patches[0].get_y() == 0.5
    assert [text.get_text() for text in axes.texts] == ["p", "q"]
    assert axes.get_yscale() == "log"
    assert axes.get_ylim() == (0.1, 10.0)
    assert plotly_figure(chart([points], title="", y=y))["layout"]["yaxis"]["range"] == (-1.0, 1.0)


def test_points_take_colours_sizes_and_symbols(drawn):
    points = [Points("q", [0, 1], [0, 1], values=[0.0, 1.0], size=5), Points("r", [0], [0], size=10, symbol="square")]
    axes = drawn(chart(points, title=""))
    first, second = axes[0].collections
    assert first.get_array().tolist() == [0.0, 1.0]
    assert second.get_sizes()[0] == pytest.approx(4 * first.get_sizes()[0])
    assert len(axes) == 2  # the colour bar


def test_spreads_hold_their_values(drawn):
    axes = drawn(chart([Spread("few", [1.0, 2.0, 3.0])], title=""))[0]
    assert axes.lines[5 if len(axes.lines) > 5 else -1].get_ydata().tolist() == [2.0, 2.0]
    assert sorted(axes.collections[0].get_offsets()[:, 1]) == [1.0, 2.0, 3.0]
    assert labels(axes, "x") == ["few"]


def test_nothing_of_matplotlibs_state_is_touched():
    import matplotlib

    before = dict(matplotlib.rcParams)
    png_bytes(curves())
    assert dict(matplotlib.rcParams) == before


def test_the_page_holds_the_script_once_and_escapes_what_it_is_told(tmp_path):
    figures = {"first": curves(), "second": curves(colour="#ff0000")}
    page = figure_page(figures, "a <title>", ["note & more"])
    assert page.count("plotly.js v") == 1
    assert page.count('class="plotly-graph-div"') == 2
    assert "a &lt;title&gt;" in page
    assert "note &amp; more" in page
    write_figures(figures, tmp_path, page="all.html", title="a <title>", notes=["note & more"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.html", "first.png", "second.png"]
    assert (tmp_path / "all.html").read_text() == page
    with pytest.raises(FileError):
        write_figures(figures, tmp_path / "absent", page="all.html", title="")


def test_a_page_is_drawn_again_as_it_was(tmp_path):
    write_figures(every_kind(), tmp_path, page="all.html", title="t")
    (tmp_path / "again").mkdir()
    written = redraw(tmp_path / "all.html", tmp_path / "again", formats=("png", "svg"), width="double")
    assert [path.name for path in written] == [f"{name}.{form}" for name in every_kind() for form in ("png", "svg")]
    for path in written[::2]:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    assert figure_page(read_figures(tmp_path / "all.html"), "t") == (tmp_path / "all.html").read_text()


@pytest.mark.parametrize(
    "data",
    ["", "{}}", "[]", '{"a": 1}', '{"a": {"title": "", "panels": [{}]}}', '{"../a": {"title": "", "panels": []}}'],
)  # fmt: skip
def test_a_page_that_holds_no_figures_is_refused(data, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(f'<script type="application/json" id="charts">{data}</script>' if data else "<p>")
    with pytest.raises(FileError, match=r"page\.html.*give one that this"):
        read_figures(path)


def test_an_unknown_format_or_width_is_refused(tmp_path):
    (tmp_path / "page.html").write_text(figure_page(every_kind(), ""))
    with pytest.raises(OptionError, match="'gif' is no format of figures; give some of png, svg, pdf"):
        redraw(tmp_path / "page.html", tmp_path, formats=["gif"], width="double")
    with pytest.raises(OptionError, match="'triple' is no width of a paper's column; give single or double"):
        redraw(tmp_path / "page.html", tmp_path, width="triple")
    with pytest.raises(FileError, match=r"absent\.html cannot be read"):
        redraw(tmp_path / "absent.html", tmp_path, width="double")


def test_the_page_holds_no_number_that_is_none(tmp_path):
    page = figure_page({"a": chart([Points("p", [np.float64(1.0)], [float("nan")])], title="")}, "")
    data = page.split('id="charts">')[1].split("</script>")[0]
    json.loads(data, parse_constant=lambda text: pytest.fail(text))
