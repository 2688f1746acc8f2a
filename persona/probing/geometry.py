"""Personas at every layer and position: share of the variance, CKA, RSA; each as ``representation`` defines it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from persona_circuits.circuit.progress import Progress
from persona_circuits.persona.probing import representation
from persona_circuits.persona.probing.representation import Correlation, Geometry

__all__ = ["Place", "geometry_by_place"]


@dataclass(frozen=True, eq=False)
class Place:
    """The geometry at one point and position, both as indices.

    ``cka_persona`` is with who the persona is, ``cka_answer`` and ``rsa_answer`` with the
    last point at the answer's place, ``rsa_traits`` with the personas' traits. nan and None
    where nothing varies, or the file does not say enough.
    """

    point: int
    position: int
    geometry: Geometry
    cka_persona: float
    cka_answer: float
    rsa_traits: Correlation | None
    rsa_answer: Correlation | None


@dataclass(frozen=True, eq=False)
class _Personas:
    """Distances between personas by name."""

    names: tuple[str, ...]
    distances: Float[np.ndarray, "persona persona"]

    def with_others(self, other: _Personas, n_permutations: int, seed: int) -> Correlation | None:
        """Rank correlation over the personas that both have."""
        both = [name for name in self.names if name in other.names]
        first, second = ([side.names.index(name) for name in both] for side in (self, other))
        return representation.rank_correlation(
            self.distances[np.ix_(first, first)],
            other.distances[np.ix_(second, second)],
            n_permutations=n_permutations,
            seed=seed,
        )


def geometry_by_place(
    streams: Float[np.ndarray, "example point position d_model"],
    personas: Sequence[str],
    questions: Sequence[str],
    traits: Mapping[str, Mapping[str, float]],
    *,
    answer: int | None,
    n_permutations: int,
    seed: int,
    progress: Progress,
) -> tuple[tuple[Place, ...], Float[np.ndarray, "place place"]]:
    """The geometry at every point of every position, position by position, and CKA between all of them.

    ``answer`` is the index of the answer's position, None if it is not among them.
    """
    where = [(point, position) for position in range(streams.shape[2]) for point in range(streams.shape[1])]
    centred = [representation.centred_by_group(streams[:, point, position], questions) for point, position in where]
    cka = _cka(centred, questions)
    shares = representation.signal_to_noise(centred, personas, questions)
    identity = representation.indicators(personas)
    of_traits = _trait_distances(personas, traits)
    last = None if answer is None else where.index((streams.shape[1] - 1, answer))
    final = None if last is None else _Personas(*representation.persona_distances(centred[last], personas, questions))
    places = []
    for i, ((point, position), x) in enumerate(zip(where, centred, strict=True)):
        distances = _Personas(*representation.persona_distances(x, personas, questions))
        places.append(
            Place(
                point=point,
                position=position,
                geometry=shares[i],
                cka_persona=representation.linear_cka(x, identity, questions),
                cka_answer=float("nan") if last is None else float(cka[i, last]),
                rsa_traits=distances.with_others(of_traits, n_permutations, seed),
                rsa_answer=None if final is None else distances.with_others(final, n_permutations, seed),
            )
        )
        progress(i + 1, len(where))
    return tuple(places), cka


def _cka(
    streams: Sequence[Float[np.ndarray, "example d_model"]], questions: Sequence[str]
) -> Float[np.ndarray, "place place"]:
    """``linear_cka`` of every two, each Gram matrix computed once."""
    names = np.asarray(questions, dtype=object)
    differ = names[:, None] != names[None]
    grams = np.stack([(x @ x.T)[differ] for x in streams])
    across = grams @ grams.T
    norms = np.diag(across)
    scale = np.sqrt(np.where(norms > 0, norms, np.nan))
    return across / scale[:, None] / scale[None]


def _trait_distances(personas: Sequence[str], traits: Mapping[str, Mapping[str, float]]) -> _Personas:
    """Euclidean distances between the traits of the personas that have any."""
    names = sorted(name for name in set(personas) if traits.get(name))
    known = sorted({trait for name in names for trait in traits[name]})
    table = np.zeros((len(names), max(1, len(known))))
    for row, name in enumerate(names):
        table[row, : len(known)] = [traits[name].get(trait, 0.0) for trait in known]
    return _Personas(tuple(names), np.linalg.norm(table[:, None] - table[None], axis=-1))
