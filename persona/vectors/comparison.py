"""The same personas in two or more models: do the models arrange them alike?

Models have other dimensions, so vectors cannot be compared as they are. What can be:

    similarity of similarities   Spearman's rho between the models' persona-by-persona distances
                                 (1 - centred cosine), p by permuting personas (Mantel 1967)
    joint components             principal components of all models' centred vectors side by side,
                                 each model scaled to the same total variance, as multiple factor
                                 analysis does (Escofier and Pagès 1994); each model has scores of
                                 its own on the shared components
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from persona_circuits.circuit.errors import TaskError
from persona_circuits.persona.probing import Correlation, rank_correlation
from persona_circuits.persona.vectors.options import VectorOptions
from persona_circuits.persona.vectors.vectors import centred, cosines

__all__ = ["Compared", "Comparison", "compare_models"]

FEWEST = 4  # with fewer personas there are too few orders to tell likeness from chance


@dataclass(frozen=True, eq=False)
class Compared:
    """One model's personas at one layer."""

    name: str
    personas: tuple[str, ...]
    vectors: Float[np.ndarray, "persona d_model"]
    layer: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """What models have in common over the ``personas`` that all of them have.

    ``similarity`` is 1 on the diagonal, ``p`` 0 there; both are nan where a matrix has no
    variance. ``explained`` is each component's share of all variance, ``by_model`` the same
    within each model; ``scores`` are each model's own.
    """

    models: tuple[str, ...]
    layers: tuple[int, ...]
    personas: tuple[str, ...]
    similarity: Float[np.ndarray, "model model"]
    p: Float[np.ndarray, "model model"]
    explained: Float[np.ndarray, " component"]
    by_model: Float[np.ndarray, "model component"]
    scores: Float[np.ndarray, "model persona component"]


def compare_models(
    models: Sequence[Compared], *, n_permutations: int = VectorOptions.n_permutations, seed: int = VectorOptions.seed
) -> Comparison:
    """Compare two models or more over their common personas, in the first one's order.

    Raises:
        TaskError: fewer than four personas are in all of them.
    """
    shared = [name for name in models[0].personas if all(name in model.personas for model in models)]
    if len(shared) < FEWEST:
        raise TaskError(f"the models have {len(shared)} personas in common; a comparison needs {FEWEST} or more")
    tables = [model.vectors[[model.personas.index(name) for name in shared]] for model in models]
    distances = [1 - cosines(table) for table in tables]
    n = len(models)
    similarity, p = np.eye(n), np.zeros((n, n))
    for i in range(n):
        for j in range(i):
            correlation = _alike(distances[i], distances[j], n_permutations, seed)
            similarity[i, j] = similarity[j, i] = np.nan if correlation is None else correlation.value
            p[i, j] = p[j, i] = np.nan if correlation is None else correlation.p
    return Comparison(
        tuple(model.name for model in models),
        tuple(model.layer for model in models),
        tuple(shared),
        similarity,
        p,
        *_joint([_scaled(table) for table in tables]),
    )


def _alike(
    first: Float[np.ndarray, "persona persona"], second: Float[np.ndarray, "persona persona"], n: int, seed: int
) -> Correlation | None:
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return None
    return rank_correlation(first, second, n_permutations=n, seed=seed)


def _scaled(vectors: Float[np.ndarray, "persona d_model"]) -> Float[np.ndarray, "persona d_model"]:
    table = centred(vectors)
    size = np.linalg.norm(table)
    return table / size if size else table


def _joint(
    tables: Sequence[Float[np.ndarray, "persona _"]],
) -> tuple[
    Float[np.ndarray, " component"], Float[np.ndarray, "model component"], Float[np.ndarray, "model persona component"]
]:
    """Shares of variance, each model's variance along its own part of a component, and its scores there.

    The mean of the models' scores is the joint score.
    """
    _, sizes, axes = np.linalg.svd(np.concatenate(tables, axis=1), full_matrices=False)
    n_components = len(tables[0]) - 1
    sizes, axes = sizes[:n_components], axes[:n_components]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    parts = np.split(axes, np.cumsum([table.shape[1] for table in tables])[:-1], axis=1)
    scores = np.stack([table @ part.T for table, part in zip(tables, parts, strict=True)])
    lengths = np.stack([np.linalg.norm(part, axis=1) for part in parts])
    shares = np.divide((scores**2).sum(1), lengths**2, out=np.zeros_like(lengths), where=lengths > 1e-9)
    return sizes**2 / (sizes**2).sum(), shares, len(tables) * scores
