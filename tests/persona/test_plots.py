"""Figures as files: the page, and the PNG that matplotlib draws from the same plotly figure."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas
from PIL import Image

from persona_circuits.circuit.errors import FileError
from persona_circuits.circuit.figures import (
    Curve,
    figure_page,
    heat_map,
    line_chart,
    line_panels,
    png,
    png_bytes,
    write_figures,
)


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib axes of a figure, as ``png_bytes`` leaves them."""
    canvases, save = [], Canvas.savefig

    def kept(self, *arguments, **settings):
        canvases.append(self)
        save(self, *arguments, **settings)

    monkeypatch.setattr(Canvas, "savefig", kept)

    def draw(figure):
        png_bytes(figure)
        return canvases[-1].axes

    return draw


def pixels(figure):
    return np.asarray(Image.open(io.BytesIO(png_bytes(figure))).convert("RGB")).astype(int)


def labels(axes, which):
    return [tick.get_text() for tick in getattr(axes, f"get_{which}ticklabels")()]


def chart(**more):
    curves = [
        Curve("one", [0, 1, 2], [1.0, 2.0, None], [0.5, 1.5, None], [1.5, 2.5, None]),
        Curve("two <b>&amp;</b>", [0, 1, 2], [0.0, 1.0, 4.0], dash="dash", **more),
    ]
    return line_chart(curves, title="A title, $5", x="x", y="y")


def test_a_png_is_twice_the_figures_size_and_always_the_same():
    first, second = png_bytes(chart()), png_bytes(chart())
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert Image.open(io.BytesIO(first)).size == (2000, 1120)
    assert Image.open(io.BytesIO(png_bytes(chart(), dpi=80))).size == (800, 448)


def test_lines_bands_and_legend_are_the_figures(drawn):
    axes = drawn(chart())[0]
    first, second = axes.lines
    np.testing.assert_array_equal(first.get_xydata()[:2], [[0, 1], [1, 2]])
    assert np.isnan(first.get_xydata()[2, 1])
    assert second.get_linestyle() == "--"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two <b>&amp;</b>"]
    band = axes.patches[0].get_xy()
    assert {tuple(point) for point in band} == {(0, 0.5), (0, 1.5), (1, 1.5), (1, 2.5)}
    assert axes.figure.get_suptitle() == r"A title, \$5"
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


def test_numbers_in_cells_are_readable_on_their_colour(drawn):
    figure = heat_map([[1.0, 0.0]], ["a"], ["b", "c"], title="", x="", y="", unit="", numbers="+.1f")
    texts = {text.get_text(): text.get_color() for text in drawn(figure)[0].texts}
    assert texts == {"+1.0": "white", "+0.0": "#222222"}


def test_panels_share_one_legend_and_keep_their_titles(drawn):
    panels = {name: [Curve("a", ["x", "y"], [0.0, 1.0]), Curve("b", ["x", "y"], [1.0, level])] for name, level in
              (("first", 2.0), ("second", 3.0), ("third", 4.0))}  # fmt: skip
    figure = line_panels(panels, title="t", x="x", y="y")
    axes = drawn(figure)
    assert [one.get_title() for one in axes] == ["first", "second", "third"]
    assert [text.get_text() for text in axes[0].figure.legends[0].get_texts()] == ["a", "b"]
    assert all(one.get_legend() is None for one in axes)
    assert axes[2].lines[1].get_ydata().tolist() == [1.0, 4.0]
    assert axes[0].lines[0].get_color() == axes[2].lines[0].get_color() != axes[0].lines[1].get_color()
    rows = {round(one.get_subplotspec().rowspan.start) for one in axes}
    assert rows == {0, 1}


def test_bars_stand_beside_or_on_each_other(drawn):
    from plotly.graph_objects import Bar, Figure

    def bars(mode):
        traces = [Bar(x=["a", "b"], y=[1.0, 2.0], name="one"), Bar(x=["a", "b"], y=[3.0, -4.0], name="two")]
        return drawn(Figure(traces).update_layout(barmode=mode))[0].patches

    beside = bars("group")
    assert [bar.get_y() for bar in beside] == [0, 0, 0, 0]
    assert beside[0].get_x() + beside[0].get_width() == pytest.approx(beside[2].get_x())
    stacked = bars("relative")
    assert [(bar.get_y(), bar.get_height()) for bar in stacked] == [(0, 1), (0, 2), (1, 3), (0, -4)]


def test_error_bars_reach_from_low_to_high(drawn):
    from plotly.graph_objects import Bar, Figure

    error = {"array": [0.5], "arrayminus": [0.25]}
    axes = drawn(Figure([Bar(x=["a"], y=[2.0], error_y=error), Bar(x=["a"], y=[1.0])]))[0]
    (ends,) = axes.collections[0].get_segments()
    assert ends[:, 1].tolist() == [1.75, 2.5]
    assert ends[0, 0] == pytest.approx(axes.patches[0].get_x() + axes.patches[0].get_width() / 2)


def test_lines_and_bands_across_a_panel_and_texts_in_it(drawn):
    from plotly.graph_objects import Figure, Scatter

    figure = Figure(Scatter(x=[0, 4], y=[0, 2], mode="markers+text", text=["p", "q"]))
    figure.add_hline(1.5)
    figure.add_hrect(-1, 1, fillcolor="red", opacity=0.5)
    figure.add_vline(3)
    figure.update_yaxes(type="log", range=[-1, 1])
    axes = drawn(figure)[0]
    assert [line.get_ydata() for line in axes.lines] == [[1.5, 1.5], [0, 1]]
    assert axes.lines[1].get_xdata() == [3, 3]
    assert axes.patches[0].get_y() == -1
    assert [text.get_text() for text in axes.texts] == ["p", "q"]
    assert axes.get_yscale() == "log"
    assert axes.get_ylim() == (0.1, 10.0)


def test_points_take_colours_sizes_and_symbols(drawn):
    from plotly.graph_objects import Figure, Scatter

    marker = {"color": [0.0, 1.0], "colorscale": "Viridis", "size": [5, 10], "symbol": "square", "showscale": True}
    axes = drawn(Figure(Scatter(x=[0, 1], y=[0, 1], mode="markers", marker=marker)))
    points = axes[0].collections[0]
    assert points.get_array().tolist() == [0.0, 1.0]
    assert points.get_sizes()[1] == pytest.approx(4 * points.get_sizes()[0])
    assert len(axes) == 2  # the colour bar


def test_boxes_hold_their_points(drawn):
    from plotly.graph_objects import Box, Figure

    axes = drawn(Figure(Box(y=[1.0, 2.0, 3.0, None], name="few", boxpoints="all", boxmean=True)))[0]
    assert axes.lines[5 if len(axes.lines) > 5 else -1].get_ydata().tolist() == [2.0, 2.0]
    assert sorted(axes.collections[0].get_offsets()[:, 1]) == [1.0, 2.0, 3.0]
    assert labels(axes, "x") == ["few"]


def test_a_trace_that_is_not_known_is_our_mistake():
    from plotly.graph_objects import Figure, Pie

    with pytest.raises(AssertionError, match="no PNG of a pie trace"):
        png_bytes(Figure(Pie(values=[1])))


def test_nothing_of_matplotlibs_state_is_touched():
    import matplotlib

    before = dict(matplotlib.rcParams)
    png_bytes(chart())
    assert dict(matplotlib.rcParams) == before
    assert "pyplot" not in png.__dict__


def test_the_page_holds_the_script_once_and_escapes_what_it_is_told(tmp_path):
    figures = {"first": chart(), "second": chart(colour="#ff0000")}
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
