"""Pages of the viewer: the list of runs, and two runs side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from persona_circuits.circuit.figures import About, run_page
from persona_circuits.circuit.figures.html import HTML, document, link, shown, table
from persona_circuits.circuit.graph import Edge
from persona_circuits.circuit.io import StoredCircuit, read_circuit
from persona_circuits.circuit.printable import signed
from persona_circuits.circuit.viewing.runs import CIRCUIT, Run

__all__ = ["BOTH", "FILES", "compared", "listed", "overview"]

FILES, BOTH = "/files/", "/both"
MOST_EDGES = 40
COLUMNS = ("compare", "", "run", "model", "date", "D", "f", "edges")


def listed(runs: Sequence[Run], folder: Path) -> str:
    """The list of runs, of which two circuits can be chosen."""
    if not runs:
        message = f"no runs in {folder}: no folder of it holds a circuit.json or an index.html"
        return document("Runs", [f"<p>{shown(message)}</p>"])
    rows = [_row(run) for run in runs]
    what = '<p class="screen">Choose two circuits: <button type="submit">compare</button></p>'
    form = f'<form action="/compare" method="get">{what}{table(COLUMNS, rows, texts=5)}</form>'
    message = "D: the metric's effect on the pairs searched on; f: faithfulness on the pairs named beside it"
    return document("Runs", [f'<p class="faint">{shown(folder)}: {len(runs):,}. {shown(message)}</p>', form])


def _row(run: Run) -> tuple[object, ...]:
    box = f'<input type="checkbox" name="run" value="{escape(run.name)}" aria-label="{escape(f"compare {run.name}")}">'
    picture = "" if run.picture is None else _picture(run, "thumbnail")
    pages = " ".join(link(_address(run, page), page, of_page=False) for page in run.pages)
    name = f"{link(_address(run), run.name, of_page=False)}<br>{pages}" + (f"<br>{shown(run.fault)}" * bool(run.fault))
    return (HTML(box if run.record else ""), HTML(picture), HTML(name), Path(run.model).name, run.date, *_numbers(run))


def _numbers(run: Run) -> tuple[str, str, str]:
    report = run.faithfulness
    f = (
        ""
        if report is None or report["ratio_of_means"] is None
        else f"{report['ratio_of_means']:.3f} ({report['split']})"
    )
    return (
        "" if run.divergence is None else signed(run.divergence),
        f,
        "" if run.n_edges is None else f"{run.n_edges:,}",
    )


def _address(run: Run, name: str = "") -> str:
    return FILES + quote("" if run.name == "." else f"{run.name}/") + quote(name)


def _picture(run: Run, kind: str = "") -> str:
    assert run.picture is not None
    where = escape(_address(run, run.picture))
    return f'<a href="{where}"><img class="{kind}" src="{where}" alt="{escape(f"picture of {run.name}")}"></a>'


def overview(run: Run) -> str:
    """The page of a run that has none of its own."""
    facts = ((name, value) for name, value in _facts(run))
    return run_page(run.folder, About(run.name, given=[(name, str(value)) for name, value in facts]))


def compared(first: Run, second: Run) -> str:
    """Two circuits: numbers and pictures side by side, and the edges that both have or one has alone.

    Raises:
        PersonaCircuitsError: a circuit cannot be read.
    """
    stored = [read_circuit(run.folder / CIRCUIT) for run in (first, second)]
    facts = [dict(_facts(run)) for run in (first, second)]
    rows = [(name, facts[0].get(name, ""), facts[1].get(name, "")) for name in dict.fromkeys([*facts[0], *facts[1]])]
    pictures = "".join(
        f"<figure>{_picture(run)}<figcaption>{shown(run.name)}</figcaption></figure>"
        for run in (first, second)
        if run.picture is not None
    )
    in_one = ""
    if stored[0].circuit.graph == stored[1].circuit.graph:
        address = f"{BOTH}?run={quote(first.name, safe='')}&run={quote(second.name, safe='')}#view=0-1"
        in_one = f'; <a href="{escape(address)}">both in one graph</a>'
    parts = [
        f'<p class="screen"><a href="/">all runs</a>{in_one}</p>',
        table(("", first.name, second.name), rows, texts=3),
        f'<div class="figures">{pictures}</div>',
        *_edges(stored, (first.name, second.name)),
    ]
    return document(f"{first.name} and {second.name}", parts)


def _facts(run: Run) -> Iterator[tuple[str, object]]:
    divergence, f, edges = _numbers(run)
    yield from (("model", run.model), ("date", run.date))
    if not run.record:
        return
    task, method = run.record["task"], run.record["method"]
    yield from (("pairs", task["source"]), ("metric", task["metric"]), ("ablation", run.record["ablation"]))
    yield "scores, pruning", f"{method['scores'] or 'none'}, {method['prune']}"
    yield from (("D", divergence), ("f", f))
    if (report := run.faithfulness) and report.get("interval"):
        yield "95 % interval of f", " to ".join(f"{end:.3f}" for end in _ends(report["interval"]))
    yield from (("edges", edges), ("nodes", run.record["counts"]["nodes"]))


def _ends(interval: Any) -> Sequence[float]:
    return (interval["low"], interval["high"]) if isinstance(interval, dict) else interval[:2]


def _edges(stored: Sequence[StoredCircuit], names: Sequence[str]) -> Iterator[str]:
    """How many edges both have, and the strongest of those, and of those that one has alone."""
    first, second = stored
    yield "<h2>Edges</h2>"
    if first.circuit.graph != second.circuit.graph:
        kinds = " and ".join(
            f"{item.circuit.graph.n_layers} layers of {item.circuit.graph.n_heads} heads" for item in stored
        )
        yield f"<p>Different graphs: {shown(kinds)}; no edge is in both.</p>"
        return
    both, union = first.circuit & second.circuit, len(first.circuit | second.circuit)
    yield f"<p>{len(both):,} shared, of {union:,} in either; Jaccard {len(both) / max(1, union):.3f}</p>"
    alone = [first.circuit - second.circuit, second.circuit - first.circuit]
    shared = sorted(both.edges(), key=lambda edge: (-min(_size(item, edge) for item in stored), str(edge)))
    yield from _table("shared", shared, stored, names)
    for place, own in enumerate(alone):
        edges = sorted(own.edges(), key=lambda edge: (-_size(stored[place], edge), str(edge)))
        yield from _table(f"of {names[place]} alone", edges, [stored[place]], [names[place]])


def _size(stored: StoredCircuit, edge: Edge) -> float:
    return 0.0 if stored.scores is None else abs(stored.scores[edge])


def _table(what: str, edges: Sequence[Edge], stored: Sequence[StoredCircuit], names: Sequence[str]) -> Iterator[str]:
    first = f", the {MOST_EDGES} strongest" if len(edges) > MOST_EDGES else ""
    rows = [
        (edge, *("" if other.scores is None else signed(other.scores[edge], 4) for other in stored))
        for edge in edges[:MOST_EDGES]
    ]
    content = table(("edge", *names), rows) if rows else ""
    yield f"<details open><summary>{shown(f'{what}: {len(edges):,}{first}')}</summary>{content}</details>"
