"""Persona vectors on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from persona_circuits.circuit.errors import TaskError
from persona_circuits.circuit.figures import plain
from persona_circuits.circuit.storage import Kind, NotJson, is_number, is_text, is_whole, parse_json, read_tensors
from persona_circuits.persona.vectors.comparison import Compared, Comparison
from persona_circuits.persona.vectors.likeness import Likeness
from persona_circuits.persona.vectors.vectors import (
    Components,
    PersonaVectors,
    Reliability,
    assistant_axis,
    axis_positions,
    centred,
    cosines,
    principal_components,
    reliability,
    tree,
)

__all__ = [
    "Geometry",
    "StoredVectors",
    "about_vectors",
    "geometry_of",
    "persona_records",
    "read_vectors",
    "vector_record",
]

FORMAT = "persona-circuits/vectors"
VECTORS = Kind("file of vectors", expected="the vectors.safetensors of persona-circuits vectors")
FAR = 0.1  # share by which a baseline's prompts may be shorter or longer before a note says so


@dataclass(frozen=True, eq=False)
class Geometry:
    """The personas' vectors after one block, and what they look like there.

    ``positions`` are those on the assistant axis; components are fitted without the baseline.
    """

    vectors: PersonaVectors
    layer: int
    baseline: str | None
    cosines: Float[np.ndarray, "persona persona"]
    components: Components
    positions: Float[np.ndarray, " persona"] | None
    own: Float[np.ndarray, " persona"]
    order: tuple[int, ...]
    tree: Float[np.ndarray, "merge 4"]
    layers: tuple[dict[str, float | int | None], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class StoredVectors:
    """Vectors read from a file, with the layer and baseline that they were studied with."""

    vectors: PersonaVectors
    layer: int
    baseline: str | None

    def compared(self, layer: int | None = None) -> Compared:
        """As a side of a comparison, at its own layer if none is given."""
        at = self.layer if layer is None else layer
        return Compared(self.vectors.model, self.vectors.personas, self.vectors.at(at), at)


def geometry_of(vectors: PersonaVectors, layer: int, baseline: str | None) -> Geometry:
    """Everything about the personas after one block, and its headline numbers after all of them.

    Raises:
        TaskError: there are fewer than three personas, or two have exactly the same vector as their mean.
    """
    from scipy.cluster.hierarchy import leaves_list

    if len(vectors.personas) < 3:
        raise TaskError(
            f"there are {len(vectors.personas)} personas; centred vectors of fewer than three say nothing: "
            "two are each other's opposite whatever they are"
        )
    here = vectors.at(layer)
    merges = tree(here)
    at = None if baseline is None else vectors.personas.index(baseline)
    return Geometry(
        vectors=vectors,
        layer=layer,
        baseline=baseline,
        cosines=cosines(here),
        components=principal_components(here, without=at),
        positions=None if baseline is None else axis_positions(vectors, baseline, layer),
        own=np.diag(cosines(*vectors.halves[:, :, layer])),
        order=tuple(int(i) for i in leaves_list(merges)),
        tree=merges,
        layers=tuple(_layer(vectors, i, baseline) for i in range(vectors.n_layers)),
        notes=_notes(vectors, at),
    )


def read_vectors(path: str | Path) -> StoredVectors:
    """Read ``vectors.safetensors``, or the folder that it is in.

    Raises:
        FileError: it cannot be read, or holds something else.
    """
    path = Path(path)
    path = path / "vectors.safetensors" if path.is_dir() else path
    stored = read_tensors(path, VECTORS, only=("means", "halves"))
    try:
        about = parse_json(stored.metadata.get("about", "null"))
    except NotJson as error:
        raise VECTORS.faulty(path, f"cannot be used (its 'about' is not JSON: {error})") from error
    if fault := _fault_of(about, stored.arrays):
        raise VECTORS.faulty(path, f"cannot be used ({fault})")
    lists = ("personas", "questions", "n_responses", "n_tokens", "prompt_lengths")
    fields: dict[str, Any] = {name: tuple(about[name]) for name in lists}
    fields |= {name: about[name] for name in ("model", "fingerprint", "left_out")}
    means, halves = (stored.arrays[name].astype(np.float64) for name in ("means", "halves"))
    return StoredVectors(PersonaVectors(means=means, halves=halves, **fields), about["layer"], about.get("baseline"))


def _fault_of(about: Any, arrays: Mapping[str, np.ndarray]) -> str:
    """What is wrong with stored vectors first, empty if nothing is; halves may be nan, means may not."""
    means, halves = arrays.get("means"), arrays.get("halves")
    if means is None or halves is None or means.ndim != 3 or halves.shape != (2, *means.shape) or not means.size:
        return "it has no 'means' [persona, layer, d_model] with 'halves' [2, persona, layer, d_model]"
    if not np.isfinite(means).all() or np.isinf(halves).any():
        return "its vectors hold nan or infinity"
    if not isinstance(about, dict):
        return "its metadata has no 'about'"
    lists: dict[str, Callable[[Any], bool]] = {"personas": is_text, "questions": is_text, "prompt_lengths": is_number}
    lists |= {"n_responses": is_whole, "n_tokens": is_whole}
    for name, good in lists.items():
        values = about.get(name)
        if not isinstance(values, list) or not all(map(good, values)):
            return f"{name} is not the list that is expected"
        if name != "questions" and len(values) != len(means):
            return f"{name} has {len(values)} entries for {len(means)} personas"
    if not all(isinstance(about.get(name), str) for name in ("model", "fingerprint")):
        return "model and fingerprint must be text"
    if not isinstance(about.get("left_out"), dict) or not all(map(is_whole, about["left_out"].values())):
        return "left_out must be counts by reason"
    if not is_whole(about.get("layer"), 0, means.shape[1] - 1):
        return "layer must be one of the vectors' layers"
    return "" if about.get("baseline") in (None, *about["personas"]) else "baseline must be one of the personas"


def vector_record(
    geometry: Geometry,
    about: Mapping[str, Any],
    comparison: Comparison | None = None,
    beside: Sequence[tuple[Likeness, ...] | None] = (),
) -> dict[str, Any]:
    """Everything that was found, as plain values for JSON; ``beside`` are personas' cosines with other vectors."""
    vectors = geometry.vectors
    names = [vectors.personas[i] for i in geometry.order]
    record = {
        "format": FORMAT,
        "version": 1,
        **about_vectors(geometry),
        "made_from": about,
        "notes": geometry.notes,
        "personas": persona_records(geometry),
        "layers": geometry.layers,
        "explained": geometry.components.explained,
        "order": names,
        "tree": [{"merged": [int(a), int(b)], "distance": c, "size": int(d)} for a, b, c, d in geometry.tree],
        "cosines": {name: geometry.cosines[i] for i, name in enumerate(vectors.personas)},
    }
    if comparison is not None:
        record["comparison"] = asdict(comparison)
    if beside:
        record["cosines_beside"] = beside
    return plain(record)


def about_vectors(geometry: Geometry) -> dict[str, Any]:
    vectors = geometry.vectors
    names = ("personas", "questions", "n_responses", "n_tokens", "prompt_lengths", "model", "fingerprint", "left_out")
    return {name: getattr(vectors, name) for name in names} | {"layer": geometry.layer, "baseline": geometry.baseline}


def _layer(vectors: PersonaVectors, layer: int, baseline: str | None) -> dict[str, float | int | None]:
    at = None if baseline is None else vectors.personas.index(baseline)
    components = principal_components(vectors.at(layer), without=at)
    agree: Reliability = reliability(vectors, layer)
    axis_pc1 = None
    if baseline is not None:
        axis = assistant_axis(vectors, baseline)[layer]
        axis_pc1 = float(abs(components.axes[0] @ axis) / np.linalg.norm(axis))
    enough = int(np.searchsorted(components.explained.cumsum(), 0.8) + 1)
    return {
        "layer": layer,
        **asdict(agree),
        "pc1": float(components.explained[0]),
        "components_80": enough,
        "axis_pc1": axis_pc1,
    }


def _notes(vectors: PersonaVectors, baseline: int | None) -> tuple[str, ...]:
    notes = [f"{count:,} responses are left out: {why}" for why, count in vectors.left_out.items()]
    if len(vectors.questions) < 2:
        notes.append("a single question: nothing can be said of how reliable the vectors are")
    if baseline is not None:
        others = float(np.mean(np.delete(vectors.prompt_lengths, baseline)))
        length = vectors.prompt_lengths[baseline]
        if abs(length - others) > FAR * others:
            notes.append(
                f"the baseline's prompts have {length:.1f} tokens, the others' {others:.1f} on average: part of the "
                "axis is position and length; a neutral persona of like length would be the better baseline"
            )
    return tuple(notes)


def persona_records(geometry: Geometry) -> list[dict[str, Any]]:
    vectors, scores = geometry.vectors, geometry.components.scores
    between = geometry.cosines.copy()
    np.fill_diagonal(between, np.nan)
    lengths = np.linalg.norm(centred(vectors.at(geometry.layer)), axis=1)
    rows = []
    for i, name in enumerate(vectors.personas):
        near, far = int(np.nanargmax(between[i])), int(np.nanargmin(between[i]))
        rows.append(
            {
                "persona": name,
                "responses": vectors.n_responses[i],
                "tokens": vectors.n_tokens[i],
                "length": lengths[i],
                "halves": geometry.own[i],
                "axis": None if geometry.positions is None else geometry.positions[i],
                **{f"pc{k + 1}": scores[i, k] for k in range(min(3, scores.shape[1]))},
                "nearest": vectors.personas[near],
                "nearest_cosine": between[i, near],
                "farthest": vectors.personas[far],
                "farthest_cosine": between[i, far],
            }
        )
    return rows
