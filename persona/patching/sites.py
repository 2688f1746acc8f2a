"""Where activations are patched: streams, attention and MLP outputs, and heads, by layer and part of the prompt.

    spans       the parts that the pair file names, else what differs, what is before it and what is after it
    named       single tokens: persona-end, question-end, question-word (see ``persona.data.positions``)
    positions   every token, where all prompts have one length

The last token, where the answer is read, is always a part of its own, ``answer``; the others
leave it out. ``everywhere`` is the whole prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.graph import Graph, Node
from persona_circuits.circuit.task import Batch, Row
from persona_circuits.persona.data import Example, ExampleFile, shared_positions

__all__ = ["ANSWER", "EVERYWHERE", "Site", "parts_of", "sites_of"]

ANSWER, EVERYWHERE = "answer", "everywhere"
REST = "between"
CONTRAST = ("persona", "contrast")
"""What the part is called that tells the two prompts apart: by the pair file, or where it names none."""


@dataclass(frozen=True)
class Site:
    """One thing that is patched. ``kind`` is stream, attn, mlp or head; a stream's layer L is the final norm's."""

    kind: str
    layer: int
    part: str
    head: int = -1

    @property
    def name(self) -> str:
        """The node's name; ``a3`` for all heads of a layer, ``stream 3`` for what enters it."""
        if self.kind in ("head", "mlp"):
            return str(Node(self.kind, self.layer, self.head))  # type: ignore[arg-type]
        return f"a{self.layer}" if self.kind == "attn" else f"stream {self.layer}"

    def sources(self, graph: Graph) -> slice:
        """The sources of the graph that it patches; none for a stream."""
        heads, mlp = graph.heads_of(self.layer), graph.mlp_of(self.layer)
        if self.kind == "head":
            return slice(heads.start + self.head, heads.start + self.head + 1)
        return heads if self.kind == "attn" else slice(mlp, mlp + 1)


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of the prompts: of every row, by its ``index``, which of its clean tokens are in which part."""

    names: tuple[str, ...]
    inside: Mapping[int, NDArray[np.bool_]]

    def masks(self, batch: Batch) -> dict[str, Bool[Tensor, "batch pos"]]:
        """Every part's positions in a batch, and ``everywhere``."""
        width = batch.clean.shape[1]
        table = np.zeros((len(self.names), len(batch), width), dtype=bool)
        for place, index in enumerate(batch.indices):
            inside = self.inside[index]
            table[:, place, width - inside.shape[1] :] = inside
        masks = torch.from_numpy(table).to(batch.clean.device)
        return dict(zip(self.names, masks, strict=True)) | {EVERYWHERE: torch.ones_like(masks[0])}

    @property
    def contrast(self) -> str | None:
        """The part in which the persona stands, if there is one."""
        return next((name for name in CONTRAST if name in self.names), None)


def parts_of(file: ExampleFile, rows: Sequence[Row], mode: str, tokenizer: Any = None) -> Parts:
    """The parts of every row; rows are the pairs of ``file`` in both directions.

    With a tokenizer positions bear the token that stands there in all prompts, if it is one.

    Raises:
        OptionError: ``positions``, and the prompts differ in length.
    """
    if mode == "positions":
        return _by_position(file, rows, tokenizer)
    if mode == "named":
        names = [name for name in shared_positions(file) if name != "prompt-end"]
        where = {row.index: _named(row, file.examples[row.index], names) for row in rows}
    else:
        names = _span_names(rows)
        where = {row.index: _spans(row, names) for row in rows}
    used = [i for i, _ in enumerate(names) if any(table[i].any() for table in where.values())]
    inside = {index: np.concatenate([table[used], _last(table.shape[1])]) for index, table in where.items()}
    labels = [f"{name} (span)" if name in (ANSWER, EVERYWHERE) else name for name in (names[i] for i in used)]
    return Parts((*labels, ANSWER), inside)


def sites_of(graph: Graph, kinds: Sequence[str], parts: Sequence[str]) -> tuple[Site, ...]:
    """All sites of these kinds, in the order of ``KINDS``, by layer, head and part."""
    layers, heads = range(graph.n_layers), range(graph.n_heads)
    sites: list[Site] = []
    if "stream" in kinds:
        sites += [Site("stream", layer, part) for layer in range(graph.n_layers + 1) for part in parts]
    for kind, name in (("attn", "attn"), ("mlps", "mlp")):
        if kind in kinds:
            sites += [Site(name, layer, part) for layer in layers for part in (*parts, EVERYWHERE)]
    if "heads" in kinds:
        both = (ANSWER, EVERYWHERE)
        sites += [Site("head", layer, part, head) for layer in layers for head in heads for part in both]
    if "head-parts" in kinds:
        rest = [part for part in parts if part != ANSWER or "heads" not in kinds]
        sites += [Site("head", layer, part, head) for layer in layers for head in heads for part in rest]
    return tuple(sites)


def _last(length: int) -> NDArray[np.bool_]:
    return (np.arange(length) == length - 1)[None]


def _span_names(rows: Sequence[Row]) -> list[str]:
    return [*dict.fromkeys(span.name for row in rows for span in row.spans if span.name != "last"), REST]


def _spans(row: Row, names: Sequence[str]) -> NDArray[np.bool_]:
    """Tokens by part, the last one in none; those that no part holds are in ``between``."""
    table = np.zeros((len(names), len(row.clean)), dtype=bool)
    for span in row.spans:
        if span.name in names:
            table[names.index(span.name), span.start : span.end] = True
    table[names.index(REST)] |= ~table.any(0)
    table[:, -1] = False
    return table


def _named(row: Row, example: Example, names: Sequence[str]) -> NDArray[np.bool_]:
    table = np.zeros((len(names), len(row.clean)), dtype=bool)
    for i, name in enumerate(names):
        table[i, example.placed.places[name]] = True
    table[:, -1] = False
    return table


def _by_position(file: ExampleFile, rows: Sequence[Row], tokenizer: Any) -> Parts:
    lengths = sorted({len(row.clean) for row in rows})
    if len(lengths) > 1:
        raise OptionError(
            f"--parts positions needs prompts of one length, and those of {file.source} have {lengths[0]} to "
            f"{lengths[-1]} tokens; use --parts spans or named, or choose pairs of one length"
        )
    tokens = [{row.clean[place] for row in rows} for place in range(lengths[0] - 1)]
    shared = [tokenizer.decode(list(ids)).strip() if tokenizer and len(ids) == 1 else "" for ids in tokens]
    names = [f"{place} {text}".strip() for place, text in enumerate(shared)]
    return Parts((*names, ANSWER), {row.index: np.eye(lengths[0], dtype=bool) for row in rows})
