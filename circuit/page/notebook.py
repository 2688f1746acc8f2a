"""The page in a notebook's cell, and what was chosen in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.io import StoredCircuit
from persona_circuits.circuit.page.data import page_data
from persona_circuits.circuit.page.html import page_html, web_file
from persona_circuits.circuit.page.run import record_run
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import check_output_file, parse_json, write_text
from persona_circuits.circuit.subgraph import Circuit

__all__ = ["CircuitPage", "circuit_page"]


@dataclass(frozen=True, eq=False, repr=False)
class CircuitPage:
    """A page's ``data``; a notebook shows the page itself, in a frame of its own."""

    data: Mapping[str, Any]

    def __repr__(self) -> str:
        run = self.data["runs"][0]
        return f"CircuitPage({self.data['title']}; {run['stops'][-1]['n_edges']:,} edges at most)"

    def _repr_html_(self) -> str:
        look = 'width="100%" height="900" style="border:0" allowfullscreen'
        may = 'sandbox="allow-scripts allow-downloads allow-modals"'
        title = escape(str(self.data["title"]))
        return f'<iframe srcdoc="{escape(page_html(self.data))}" {look} {may} title="{title}"></iframe>'

    def widget(self) -> Any:
        """The page as an anywidget, which knows what is chosen in it.

        Its traits follow the page: ``pins``, names of nodes; ``edges``, those that are shown; ``size``, how many the
        circuit of the slider has; ``groups``, nodes by the names of sets.

        Raises:
            OptionError: anywidget is not installed.
        """
        try:
            import anywidget
            import traitlets
        except ImportError as error:
            raise OptionError(
                f"a widget needs anywidget ({error}); pip install 'persona-circuits[notebook]', or show the page itself"
            ) from error
        traits: dict[str, Any] = {
            name: kind.tag(sync=True)
            for name, kind in (
                ("html", traitlets.Unicode(page_html(self.data))),
                ("title", traitlets.Unicode(str(self.data["title"]))),
                ("pins", traitlets.List(traitlets.Unicode())),
                ("edges", traitlets.List(traitlets.Unicode())),
                ("size", traitlets.Int(0)),
                ("groups", traitlets.Dict(default_value=dict(self.data["groups"]))),
            )
        }
        return type("PageWidget", (anywidget.AnyWidget,), {"_esm": web_file("notebook.mjs"), **traits})()

    def write(self, path: str | Path) -> None:
        """Write the page as one HTML file.

        Raises:
            WriteError: it cannot be written there.
        """
        check_output_file(Path(path))
        write_text(page_html(self.data), Path(path))

    def selection(self, link: str) -> dict[str, Any]:
        """What a link that the page gave has chosen: ``pins``, ``groups``, and other choices by their names.

        Raises:
            OptionError: the link's groups are not readable.

        Examples:
            >>> page = circuit_page(Circuit.full(model.graph))
            >>> page.selection("page.html#pins=m0,a1.h3&stop=2")["pins"]
            ['m0', 'a1.h3']
        """
        query = {key: values[-1] for key, values in parse_qs(urlsplit(link).fragment).items()}
        try:
            groups = parse_json(query.pop("groups", json.dumps(self.data["groups"])))
        except ValueError as error:
            raise OptionError(f"the link's groups are no JSON ({error}); copy it from the page again") from error
        pins = [name for name in query.pop("pins", "").split(",") if name]
        return {"pins": pins, "groups": groups, **query}


def circuit_page(
    circuit: Circuit | StoredCircuit,
    scores: Scores | None = None,
    *,
    name: str = "circuit",
    sweep: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
    inside: Mapping[str, Any] | None = None,
    opened: Mapping[str, Any] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> CircuitPage:
    """The page of a circuit at hand.

    Parameters
    ----------
    circuit
        With what a file says of it, or alone.
    scores
        Of its edges, and of others that smaller and larger circuits have.
    sweep, summary, inside
        What ``sweep.json``, ``summary.json`` and ``inside.json`` of a run would hold.
    opened
        What ``neurons.json`` and ``heads.json`` would, as ``neurons`` and ``heads``.
    groups
        Nodes by the names of sets.

    Returns
    -------
    The page: a notebook shows it, and ``write`` makes a file of it.
    """
    stored = circuit if isinstance(circuit, StoredCircuit) else StoredCircuit(circuit, scores, None, Path())
    run = record_run(stored, scores or stored.scores, name=name, sweep=sweep, summary=summary, opened=opened)
    return CircuitPage(page_data([run], inside=inside, groups=groups))
