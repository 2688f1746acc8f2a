"""Notebooks are what the builder makes of the Markdown: nothing in them is written or run by hand."""

import importlib.util
import json
import sys

import pytest
from conftest import CRAFTGPT, ROOT

SPEC = importlib.util.spec_from_file_location("notebooks_build", ROOT / "notebooks" / "build.py")
build = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = build
SPEC.loader.exec_module(build)

QUICKEST = "lens"
WRITE_UP = [job for job in build.jobs() if not job.run]
EVIDENCE = [job for job in build.jobs() if job.run]


def name_of(job):
    return job.target.name


def made(text, folder):
    """The cells of a Markdown text that lies in ``folder/logs``, as pairs."""
    source = folder / "logs" / "text.md"
    return [(cell.kind, cell.source) for cell in build.cells(text, source, folder / "notebooks")]


def job_of(text, folder, *, run=True):
    (folder / "text.md").write_text(text)
    return build.Job(folder / "text.md", folder / "text.ipynb", run=run)


@pytest.mark.parametrize("job", WRITE_UP, ids=name_of)
def test_the_write_up_is_what_the_builder_makes_of_it_now(job):
    assert job.target.is_file(), f"run make notebooks: {job.target.name} is missing"
    assert job.target.read_text() == build.built(job), f"run make notebooks: {job.target.name} is not up to date"


@pytest.mark.parametrize("job", EVIDENCE, ids=name_of)
def test_the_evidence_has_its_sources_cells_was_run_and_failed_nowhere(job):
    assert job.target.is_file(), f"run make notebooks: {job.target.name} is missing"
    shipped = json.loads(job.target.read_text())
    wanted = build.assembled(build.cells(job.source.read_text(), job.source, build.TARGET))
    assert [(cell["cell_type"], "".join(cell["source"]), cell["id"]) for cell in shipped["cells"]] == [
        (cell.cell_type, cell.source, cell.id) for cell in wanted.cells
    ], f"run make notebooks: {job.target.name} is not up to date"
    code = [cell for cell in shipped["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


def test_no_notebook_is_without_a_source():
    assert {path.name for path in build.TARGET.glob("*.ipynb")} == {job.target.name for job in build.jobs()}


@pytest.mark.slow
def test_the_quickest_notebook_runs_again():
    """Last digits belong to the kind of processor: what is compared is that cells give outputs of the same kinds."""
    (job,) = (job for job in EVIDENCE if job.source.stem == QUICKEST)
    again, shipped = json.loads(build.built(job)), json.loads(job.target.read_text())
    assert len(again["cells"]) == len(shipped["cells"])
    if CRAFTGPT.is_dir():
        assert [_kinds(cell) for cell in again["cells"]] == [_kinds(cell) for cell in shipped["cells"]]


def _kinds(cell):
    return [(output["output_type"], sorted(output.get("data", ()))) for output in cell.get("outputs", ())]


def test_a_cell_starts_at_every_heading_and_at_every_python_fence(tmp_path):
    text = "before\n\n# One\n\ntext\n\n```python\nx = 1\n\ny = 2\n```\nafter\n\nTwo\n---\n```text\nno code\n```\n"
    assert made(text, tmp_path) == [
        ("markdown", "before"),
        ("markdown", "# One\n\ntext"),
        ("code", "x = 1\n\ny = 2"),
        ("markdown", "after"),
        ("markdown", "Two\n---\n```text\nno code\n```"),
    ]


def test_what_looks_like_a_heading_or_a_fence_inside_a_block_is_none(tmp_path):
    text = "```\n# no heading\n```\n\n> # quoted\n\n- item\n\n  ```python\n  x = 1\n  ```\n"
    assert made(text, tmp_path) == [("markdown", text.strip("\n"))]


def test_links_lead_from_the_notebook_to_where_they_led_from_the_markdown(tmp_path):
    for place in ("logs/images/a.png", "docs/images/b c.png"):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    text = (
        '![A](images/a.png) [![B](../docs/images/b%20c.png)](plan_v1.md#why) <img src="images/a.png">\n'
        "[web](https://example.org/a.png) [here](#here) `[code](x.md)` [twice](plan_v1.md 'title')\n\n"
        "```\n[fence](x.md)\n```\n\n    [indented](x.md)\n\n[ref]: plan_v2.md\n"
    )
    ((_, moved),) = made(text, tmp_path)
    assert moved.splitlines() == [
        "![A](../logs/images/a.png) [![B](../docs/images/b%20c.png)](../logs/plan_v1.md#why) "
        '<img src="../logs/images/a.png">',
        "[web](https://example.org/a.png) [here](#here) `[code](x.md)` [twice](../logs/plan_v1.md 'title')",
        "",
        "```",
        "[fence](x.md)",
        "```",
        "",
        "    [indented](x.md)",
        "",
        "[ref]: ../logs/plan_v2.md",
    ]


def test_a_picture_that_is_not_there_is_named(tmp_path):
    with pytest.raises(build.BuildError, match=r"text\.md shows the picture images/none\.png, which is not there"):
        made("![](images/none.png)", tmp_path)


def test_a_name_that_is_not_there_is_refused(capsys):
    assert build.main(["nothing"]) == 1
    assert "no Markdown of a notebook called nothing" in capsys.readouterr().err


@pytest.mark.slow
def test_cells_are_run_in_one_kernel_and_two_builds_give_the_same_bytes(tmp_path):
    job = job_of(
        "# T\n\n```python\nimport sys\nx = {'b', 'a'}\nprint(x)\nprint('kept', file=sys.stderr)\nprint(0)\n"
        "display(2)\nprint(1)\n```\n"
        "```python\nimport persona_circuits\npersona_circuits.Graph(1, 1).n_src\n```\n",
        tmp_path,
    )
    warnings = []
    text = build.built(job, warn=warnings.append)
    assert text == build.built(job)
    assert warnings == ["text.md, cell 1: kept"]
    cells = json.loads(text)["cells"]
    assert [cell["id"] for cell in cells] == ["cell-000", "cell-001", "cell-002"]
    printed = ["".join(output.get("text", "")) for output in cells[1]["outputs"]]
    assert printed in (["{'b', 'a'}\n0\n", "", "1\n"], ["{'a', 'b'}\n0\n", "", "1\n"])
    assert cells[2]["outputs"][0]["data"] == {"text/plain": ["3"]}
    assert all(cell["metadata"] == {} for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "message"),
    [("1 / 0", "a cell fails(.|\n)*ZeroDivisionError"), ("import os; print(os.getcwd())", "a path of this machine")],
)
def test_a_failing_cell_and_a_path_of_this_machine_are_refused(tmp_path, code, message):
    with pytest.raises(build.BuildError, match=message):
        build.built(job_of(f"```python\n{code}\n```\n", tmp_path))
