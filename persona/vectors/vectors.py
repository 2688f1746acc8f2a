"""Persona vectors: the mean residual stream over the tokens of what a model says as somebody.

    response        mean over exactly its own tokens, after every block, in one pass
    question        mean over a persona's responses to it
    persona vector  mean over questions, the same ones for every persona

All geometry is of centred vectors: the mean of all personas is subtracted first. What all
responses share (the model's mean stream, mostly) is far larger than what tells personas
apart, and uncentred cosines are near 1 whatever the personas are.

    assistant axis  baseline minus mean of the others (arXiv:2601.10387)
    position on it  0 at the mean of the others, 1 at the baseline, by construction

How much of a vector is noise is seen in its halves: the questions of even and of odd place,
each with a vector of its own. What one half says of a persona the other must say, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from persona_circuits.circuit.errors import FileError, TaskError, listed
from persona_circuits.circuit.figures import write_arrays
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.storage import Kind, read_tensors, tell_damaged
from persona_circuits.circuit.task import prompt_faults
from persona_circuits.persona.data import Template
from persona_circuits.persona.responses import Response, SpokenTokens, spoken_tokens
from persona_circuits.persona.streams import grouped, mean_streams

__all__ = [
    "Components",
    "PersonaVectors",
    "Reliability",
    "assistant_axis",
    "axis_positions",
    "centred",
    "cosines",
    "most_reliable_layer",
    "persona_vectors",
    "principal_components",
    "reliability",
    "tree",
]

Vectors = Float[np.ndarray, "persona d_model"]


@dataclass(frozen=True, eq=False)
class PersonaVectors:
    """The vectors of all personas after every block.

    ``means`` are over all ``questions``, ``halves`` over those of even and of odd place
    (nan with a single question). ``n_responses`` and ``n_tokens`` are what each persona's
    vector is made of, ``prompt_lengths`` how many tokens stand before a response on average;
    ``left_out`` counts responses by why they are not in.
    """

    personas: tuple[str, ...]
    questions: tuple[str, ...]
    means: Float[np.ndarray, "persona layer d_model"]
    halves: Float[np.ndarray, "2 persona layer d_model"]
    n_responses: tuple[int, ...]
    n_tokens: tuple[int, ...]
    prompt_lengths: tuple[float, ...]
    model: str
    fingerprint: str
    left_out: Mapping[str, int]

    @property
    def n_layers(self) -> int:
        """How many blocks the model has."""
        return self.means.shape[1]

    def at(self, layer: int) -> Vectors:
        """The vectors after one block, as they are: not centred."""
        return self.means[:, layer]


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of centred vectors: unit ``axes``, each persona's ``scores``, and shares of variance.

    The sign of an axis is free; its largest entry in absolute value is made positive.
    """

    axes: Float[np.ndarray, "component d_model"]
    scores: Float[np.ndarray, "persona component"]
    explained: Float[np.ndarray, " component"]


@dataclass(frozen=True)
class Reliability:
    """Of the two halves' centred vectors: mean cosine of a persona with itself and with others, and identification.

    ``identified`` is the share of personas whose one half has the largest cosine with its own other half, both
    ways; chance is one in the number of personas.
    """

    own: float
    others: float
    identified: float


def persona_vectors(
    model: Model,
    responses: Sequence[Response],
    template: Template | None = None,
    *,
    anew: bool = False,
    cache: str | Path | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> PersonaVectors:
    """Read every persona's vectors off the model while it processes the responses.

    Parameters
    ----------
    responses
        Of this model (then their own token ids are used) or of any other, in which case
        ``template`` makes the prompts.
    anew
        Put this model's responses, too, after the prompts of ``template`` where they were made with another.
    cache
        Folder of what has been read: a file per persona, named by model, layers and tokens.
    progress
        Called with the number of responses done and of all.

    Returns
    -------
    ``means`` are a vector per persona and layer, ``[persona, layer, d_model]``, ``halves`` those of half the questions.

    Raises
    ------
    OptionError
        Responses of another model are given without a template.
    TaskError
        Fewer than two personas have a response with a token in it, they share no question,
        or a prompt is at fault.
    """
    spoken = [spoken_tokens(response, model, template, anew=anew) for response in responses]
    usable, left_out = _usable(responses, spoken, model)
    shared = _shared_questions([responses[i] for i in usable], left_out)
    usable = [i for i in usable if responses[i].exchange.question in shared]
    by_persona: dict[str, list[int]] = {}
    for i in usable:
        by_persona.setdefault(responses[i].exchange.persona, []).append(i)
    total, done, means = len(usable), 0, []
    for indices in by_persona.values():
        rows = [spoken[i] for i in indices]
        places = [shared.index(responses[i].exchange.question) for i in indices]
        means.append(_read(model, rows, places, cache, batch_size))
        done += len(indices)
        if progress is not None:
            progress(done, total)
    halves = np.stack([half for half, _ in means], axis=1)
    return PersonaVectors(
        personas=tuple(by_persona),
        questions=tuple(shared),
        means=np.stack([mean for _, mean in means]),
        halves=halves,
        n_responses=tuple(len(indices) for indices in by_persona.values()),
        n_tokens=tuple(sum(len(spoken[i].ids) - spoken[i].start for i in indices) for indices in by_persona.values()),
        prompt_lengths=tuple(float(np.mean([spoken[i].start for i in indices])) for indices in by_persona.values()),
        model=model.name,
        fingerprint=model.fingerprint,
        left_out=left_out,
    )


def centred(vectors: Vectors) -> Vectors:
    """The vectors minus their mean over personas."""
    return vectors - vectors.mean(0)


def cosines(vectors: Vectors, others: Vectors | None = None) -> Float[np.ndarray, "persona other"]:
    """Cosines of centred vectors, each side centred by its own mean; nan where a centred vector is zero."""
    left, right = (_unit(centred(side)) for side in (vectors, vectors if others is None else others))
    return left @ right.T


def assistant_axis(vectors: PersonaVectors, baseline: str) -> Float[np.ndarray, "layer d_model"]:
    """The baseline's vector minus the mean of all others, after every block: it points to the baseline."""
    at = vectors.personas.index(baseline)
    return vectors.means[at] - np.delete(vectors.means, at, axis=0).mean(0)


def axis_positions(vectors: PersonaVectors, baseline: str, layer: int) -> Float[np.ndarray, " persona"]:
    """Where personas lie on the assistant axis: 0 is the mean of all but the baseline, 1 the baseline.

    The baseline's own 1 is no finding. The others' numbers are shares of its distance.
    """
    axis = assistant_axis(vectors, baseline)[layer]
    here = vectors.at(layer)
    others = np.delete(here, vectors.personas.index(baseline), axis=0).mean(0)
    return (here - others) @ axis / (axis @ axis)


def principal_components(vectors: Vectors, *, without: int | None = None) -> Components:
    """All principal components of the personas' vectors, the largest share of variance first.

    The persona ``without`` does not enter the components and is projected onto them: a
    baseline that stands far off would be the first component all by itself.
    """
    fitted = vectors if without is None else np.delete(vectors, without, axis=0)
    _, sizes, axes = np.linalg.svd(centred(fitted), full_matrices=False)
    n_components = min(len(fitted) - 1, fitted.shape[1])
    axes, variance = axes[:n_components], sizes[:n_components] ** 2
    axes = axes * np.sign(axes[np.arange(n_components), np.abs(axes).argmax(1)])[:, None]
    whole = variance.sum()
    return Components(axes, (vectors - fitted.mean(0)) @ axes.T, variance / whole if whole else variance)


def most_reliable_layer(vectors: PersonaVectors) -> int | None:
    """The layer at which most personas are identified by their other half; None where that is undefined.

    Of several, the one where a persona's halves are most alike against those of two. One question says nothing.
    """
    scores = [reliability(vectors, layer) for layer in range(vectors.n_layers)]
    known = [layer for layer, x in enumerate(scores) if np.isfinite([x.own, x.others, x.identified]).all()]
    if not known:
        return None
    return max(known, key=lambda at: (round(scores[at].identified, 9), scores[at].own - scores[at].others))


def reliability(vectors: PersonaVectors, layer: int) -> Reliability:
    """How far the two halves of the questions agree on the personas; nan with a single question."""
    between = cosines(*vectors.halves[:, :, layer])
    n = len(between)
    off = ~np.eye(n, dtype=bool)
    if not np.isfinite(between).all():
        return Reliability(*[float("nan")] * 3)
    hits = [between.argmax(axis) == np.arange(n) for axis in (0, 1)]
    return Reliability(float(np.diag(between).mean()), float(between[off].mean()), float(np.mean(hits)))


def tree(vectors: Vectors) -> Float[np.ndarray, "merge 4"]:
    """Average-linkage clustering of personas by 1 - cosine, as scipy writes it.

    Raises:
        TaskError: fewer than two personas, or one whose centred vector is zero.
    """
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    gaps = 1 - cosines(vectors)
    if len(gaps) < 2 or not np.isfinite(gaps).all():
        raise TaskError("a tree needs two personas or more, none of which is exactly their mean")
    np.fill_diagonal(gaps, 0.0)
    return linkage(squareform((gaps + gaps.T) / 2, checks=False).clip(min=0.0), "average", optimal_ordering=True)


def _usable(
    responses: Sequence[Response], spoken: Sequence[SpokenTokens], model: Model
) -> tuple[list[int], dict[str, int]]:
    """Places of the responses that have a token and fit the context, and the others by reason."""
    faults = {fault for row in spoken for fault in prompt_faults(list(row.ids), model) if "context holds" not in fault}
    if faults:
        raise TaskError(listed(f"the responses cannot be put to {model.name}:", sorted(faults)))
    usable, left_out = [], {"empty": 0, "not in this tokenizer's words": 0, "too long": 0}
    for i, row in enumerate(spoken):
        if row.start >= len(row.ids) or not responses[i].text.strip():
            left_out["empty"] += 1
        elif row.unknown:
            left_out["not in this tokenizer's words"] += 1
        elif model.n_context and len(row.ids) > model.n_context:
            left_out["too long"] += 1
        else:
            usable.append(i)
    return usable, {why: count for why, count in left_out.items() if count}


def _shared_questions(responses: Sequence[Response], left_out: Mapping[str, int]) -> list[str]:
    """The questions that every persona has a response to, in order of appearance."""
    by_persona: dict[str, dict[str, None]] = {}
    for response in responses:
        by_persona.setdefault(response.exchange.persona, {})[response.exchange.question] = None
    if len(by_persona) < 2:
        without = "".join(f"; {count:,} responses are left out: {why}" for why, count in left_out.items())
        raise TaskError(
            f"vectors need two personas or more with a response that can be read, got {len(by_persona)}{without}"
        )
    shared = [name for name in next(iter(by_persona.values())) if all(name in names for names in by_persona.values())]
    if not shared:
        raise TaskError("there is no question that every persona has a response to, so their means cannot be compared")
    return shared


def _read(
    model: Model, rows: Sequence[SpokenTokens], questions: Sequence[int], cache: str | Path | None, batch_size: int
) -> tuple[Float[np.ndarray, "2 layer d_model"], Float[np.ndarray, "layer d_model"]]:
    """One persona's two half means and whole mean, from the cache where it has them."""
    key = _key(model, rows, questions)
    path = None if cache is None else Path(cache) / f"{key[:32]}.safetensors"
    if path is not None and path.is_file() and (stored := _cached(path, (model.graph.n_layers, model.d_model))):
        return stored["halves"], stored["mean"]
    means = _means(model, rows, questions, batch_size)
    halves = np.stack([_mean_of(means[half::2]) for half in (0, 1)])
    mean = _mean_of(means)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"key": key, "model": model.name, "fingerprint": model.fingerprint, "layers": "all"}
        write_arrays({"halves": halves, "mean": mean}, about | {"prompts": key, "n_responses": len(rows)}, path)
    return halves, mean


def _cached(path: Path, shape: tuple[int, int]) -> Mapping[str, np.ndarray]:
    """A persona's cached means; empty if the file is damaged, so that they are computed again."""
    try:
        stored = read_tensors(path, Kind("file of kept means")).arrays
    except FileError as error:
        tell_damaged(path, error)
        return {}
    if {name: array.shape for name, array in stored.items()} == {"halves": (2, *shape), "mean": shape}:
        return stored
    tell_damaged(path, "it does not hold one persona's means")
    return {}


def _means(
    model: Model, rows: Sequence[SpokenTokens], questions: Sequence[int], batch_size: int
) -> Float[np.ndarray, "question layer d_model"]:
    """Mean over the responses to each question, in float64."""
    sums = np.zeros((max(questions) + 1, model.graph.n_layers, model.d_model))
    counts = np.zeros(len(sums))
    for group in grouped([len(row.ids) for row in rows], batch_size):
        tokens = torch.tensor([rows[i].ids for i in group], device=model.device)
        starts = torch.tensor([rows[i].start for i in group], device=model.device)
        inside = torch.arange(tokens.shape[1], device=model.device) >= starts[:, None]
        for i, mean in zip(group, mean_streams(model, tokens, inside).double().numpy(), strict=True):
            sums[questions[i]] += mean
            counts[questions[i]] += 1
    return sums / counts[:, None, None]


def _mean_of(questions: Float[np.ndarray, "question layer d_model"]) -> Float[np.ndarray, "layer d_model"]:
    return questions.mean(0) if len(questions) else np.full(questions.shape[1:], np.nan)


def _key(model: Model, rows: Sequence[SpokenTokens], questions: Sequence[int]) -> str:
    """A hash of the model, the weights' format, the layers and every token that is read, by question."""
    whole = [model.fingerprint, str(model.dtype), "all layers", [[row.ids, row.start] for row in rows], list(questions)]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def _unit(vectors: Vectors) -> Vectors:
    sizes = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, sizes, out=np.full_like(vectors, np.nan), where=sizes > 0)
