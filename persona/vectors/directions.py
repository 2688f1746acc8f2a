"""Directions to steer along: for every pair a vector from persona B to persona A, after every block.

    contrast   mean over the fitting pairs of the pair's own two personas of A's stream minus B's
    personas   difference of the two personas' means at the prompt's end. Personas meet different
               questions, so the means are those of the additive model stream = question + persona,
               fitted by least squares
    pooled     mean over the fitting pairs of A's stream minus B's, one direction for all pairs:
               for pairs whose first persona is always of one kind
    pair       the pair's own difference: not held out; the upper bound and the positive control
    readout    the direction in which the pair's own two answers are read out, A's minus B's: what would be
               added if the persona wrote into the answer directly
    a file     persona vectors (the pair's two personas by name, or two named ones for all pairs),
               or any array of a safetensors file: a probe's weights

Strength 1 adds the direction once. ``contrast``, ``personas``, ``pooled`` and ``pair`` are differences between
the two personas' streams, so +1/2 on A's prompts and -1/2 on B's doubles what the personas
differ by along it. An array from a file has no such scale and gets it: its length is made the
mean absolute difference of the fitting pairs along it, its sign that of A minus B. So is a
readout's length, each fitting pair along its own; its sign is that of A's answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats

from persona_circuits.circuit.errors import FileError, OptionError, TaskError
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.storage import Kind, check_format, read_tensors
from persona_circuits.persona.data import Example
from persona_circuits.persona.streams import grouped, mean_streams

__all__ = [
    "MEASURED",
    "Directions",
    "controls",
    "default_kind",
    "find_directions",
    "measured_directions",
    "place_of",
    "prompt_end_streams",
]

DIRECTION = Kind("direction file", expected="a safetensors file")
FEWEST_COUPLES = 5  # all of them along one direction by chance in 1 of 32
MEASURED = ("contrast", "personas", "pooled", "pair")
"""Kinds that are linear in the streams."""
KINDS = (*MEASURED, "readout")
CONTROLS = ("random", "covariance")
Streams = Float[np.ndarray, "example layer d_model"]
Readouts = Float[np.ndarray, "pair d_model"]


@dataclass(frozen=True, eq=False)
class Directions:
    """A vector per pair and layer, from B to A; ``shared`` says that it is one and the same for all pairs."""

    kind: str
    vectors: Float[np.ndarray, "pair layer d_model"]
    shared: bool
    notes: tuple[str, ...] = ()


def prompt_end_streams(
    model: Model, examples: Sequence[Example], *, position: str = "prompt-end", batch_size: int = 32
) -> Streams:
    """The stream after every block at each prompt's last token, or another named position, in float64.

    Raises:
        OptionError: a prompt has no such position.
    """
    places = [place_of(example, position) for example in examples]
    streams = np.empty((len(examples), model.graph.n_layers, model.d_model))
    for group in grouped([len(example.placed.ids) for example in examples], batch_size):
        tokens = torch.tensor([examples[i].placed.ids for i in group], device=model.device)
        here = torch.zeros_like(tokens, dtype=torch.bool)
        here[torch.arange(len(group)), [places[i] for i in group]] = True
        streams[group] = mean_streams(model, tokens, here).double().numpy()
    return streams


def place_of(one: Example, position: str) -> int:
    """The token of a named position.

    Raises:
        OptionError: the prompt has no such position.
    """
    if position not in one.placed.places:
        known = ", ".join(one.placed.places)
        raise OptionError(f"--positions {position}: {one.placed.text[:80]!r} has no such token; it has {known}")
    return one.placed.places[position]


def default_kind(fitting: Sequence[Example], steered: Sequence[Example]) -> str:
    """``contrast`` where the personas of every steered pair are fitted on as a pair, else ``personas`` or ``pooled``.

    ``personas`` needs every steered persona to have a name and to be fitted on.
    """
    couples = set(map(frozenset, _couples(fitting)))
    if all(all(both) and frozenset(both) in couples for both in _couples(steered)):
        return "contrast"
    known = {example.persona for example in fitting if example.persona}
    return "personas" if {example.persona for example in steered} <= known else "pooled"


def find_directions(
    kind: str,
    fitting: Sequence[Example],
    fitting_streams: Streams,
    steered: Sequence[Example],
    steered_streams: Float[np.ndarray, "steered layer d_model"],
    *,
    toward: tuple[str, str] | None = None,
    readouts: tuple[Readouts, Readouts] | None = None,
    fingerprint: str = "",
) -> Directions:
    """The directions of the steered pairs. Examples come in twos, a pair's ``clean`` (persona A) first.

    Parameters
    ----------
    kind
        One of ``KINDS``, or a file: ``vectors.safetensors`` (or its folder), or
        ``FILE.safetensors:NAME`` or ``…:NAME:ROW`` for an array of any other.
    fitting, fitting_streams
        What directions are fitted on; not looked at for ``pair``.
    toward
        Personas of a file of vectors: steer every pair to the first, away from the second.
    readouts
        For ``readout``: the unit directions of the fitting and of the steered pairs' answers.
    fingerprint
        The model's: vectors of other weights are noted.

    Raises
    ------
    OptionError
        There is no such kind, or ``toward`` stands beside one that has no names.
    TaskError
        A steered persona does not occur in what is fitted on, or its direction is zero.
    FileError
        The file cannot be used.
    """
    deltas = fitting_streams[::2] - fitting_streams[1::2]
    if toward is not None and kind in KINDS:
        raise OptionError(f"--toward and --away name personas of a file of vectors; --direction is {kind}")
    if kind in MEASURED:
        notes: tuple[str, ...] = ("each pair's own: not held out",) if kind == "pair" else ()
        if kind == "pooled":
            notes = _pooling_notes(deltas, _couples(fitting))
        vectors = measured_directions(kind, fitting, fitting_streams, steered, steered_streams)
        directions = Directions(kind, vectors, kind == "pooled", notes)
    elif kind == "readout":
        assert readouts is not None, "whoever asks for readouts gives them"
        directions = Directions(kind, _readouts(deltas, *readouts), False)
    else:
        directions = _from_file(kind, deltas, _couples(steered), toward, fingerprint)
    if not (np.linalg.norm(directions.vectors, axis=-1) > 0).all():
        raise TaskError(f"a direction of --direction {kind} is zero: two personas have the same stream there")
    return directions


def measured_directions(
    kind: str,
    fitting: Sequence[Example],
    fitting_streams: Streams,
    steered: Sequence[Example],
    steered_streams: Float[np.ndarray, "steered layer d_model"],
) -> Float[np.ndarray, "pair layer d_model"]:
    """Those of a kind in ``MEASURED``: linear in the streams, so that parts of these give parts of the directions.

    Raises:
        TaskError: a steered persona does not occur in what is fitted on.
    """
    deltas, names = fitting_streams[::2] - fitting_streams[1::2], _couples(steered)
    if kind == "pair":
        return steered_streams[::2] - steered_streams[1::2]
    if kind == "pooled":
        return np.repeat(deltas.mean(0)[None], len(names), 0)
    if kind == "contrast":
        return _contrasts(deltas, _couples(fitting), names)
    return _persona_differences(fitting, fitting_streams, names)


def controls(
    directions: Float[np.ndarray, "pair d_model"], streams: Float[np.ndarray, "example d_model"], *, n: int, seed: int
) -> dict[str, Float[np.ndarray, "draw pair d_model"]]:
    """Directions that mean nothing, each as long as the one that it stands beside, the same of each draw for all pairs.

    ``random`` are uniform over all directions; ``covariance`` are drawn with the covariance of
    the given streams, so they are as typical of the model's activity as any difference there.
    """
    rng = np.random.default_rng(seed)
    spread = streams - streams.mean(0)
    drawn = {
        "random": rng.normal(size=(n, directions.shape[-1])),
        "covariance": rng.normal(size=(n, len(streams))) @ spread / np.sqrt(len(streams)),
    }
    lengths = np.linalg.norm(directions, axis=-1)[None, :, None]
    return {
        name: lengths * (rows / np.linalg.norm(rows, axis=-1, keepdims=True))[:, None] for name, rows in drawn.items()
    }


def _couples(examples: Sequence[Example]) -> list[tuple[str, str]]:
    """The two personas of every pair."""
    return [(a.persona, b.persona) for a, b in zip(examples[::2], examples[1::2], strict=True)]


def _pooling_notes(
    deltas: Float[np.ndarray, "pair layer d_model"], names: Sequence[tuple[str, str]]
) -> tuple[str, ...]:
    """Whether couples of personas share one direction at all: each one's is compared with the mean of the others.

    A note where no more of them point there than signs drawn at random would (binomial, one-sided .05).
    """
    couples = list(dict.fromkeys(names))
    means = np.stack([deltas[[name == couple for name in names]].mean(0) for couple in couples])
    if len(couples) < FEWEST_COUPLES:
        return (
            f"pooled over {len(couples)} couple(s) of personas: nothing says that they have one direction in common",
        )
    others = means.sum(0) - means
    lengths = np.linalg.norm(means, axis=-1) * np.linalg.norm(others, axis=-1)
    cosines = np.divide((means * others).sum(-1), lengths, out=np.zeros_like(lengths), where=lengths > 0).mean(1)
    along = int((cosines > 0).sum())
    if stats.binomtest(along, len(couples), alternative="greater").pvalue <= 0.05:
        return ()
    return (
        f"pooling is wrong here: {along} of {len(couples)} couples of personas differ in the direction of the others' "
        "mean, as by chance; fit on pairs that have the steered personas, or take --direction pair",
    )


def _contrasts(
    deltas: Float[np.ndarray, "pair layer d_model"], fitted: Sequence[tuple[str, str]], names: Sequence[tuple[str, str]]
) -> Float[np.ndarray, "steered layer d_model"]:
    """The mean difference of the fitting pairs that have the same two personas, turned as the steered pair is."""
    means = {}
    for both in dict.fromkeys(names):
        couples = zip(deltas, fitted, strict=True)
        rows = [delta if two == both else -delta for delta, two in couples if two in (both, both[::-1])]
        if not rows:
            shown = " and ".join(name or "(no name)" for name in both)
            raise TaskError(
                f"no pair of {shown} is fitted on; use --direction personas or pooled, or fit on pairs of them"
            )
        means[both] = np.mean(rows, axis=0)
    return np.stack([means[both] for both in names])


def _persona_differences(
    examples: Sequence[Example], streams: Streams, names: Sequence[tuple[str, str]]
) -> Float[np.ndarray, "pair layer d_model"]:
    known = list(dict.fromkeys(example.persona for example in examples))
    if missing := sorted({name for pair in names for name in pair if name not in known or not name}):
        shown = ", ".join(name or "(no name)" for name in missing[:12])
        raise TaskError(
            f"{len(missing)} personas are steered but not fitted on: {shown}; "
            "use --direction pooled, or fit on pairs that have them"
        )
    questions = list(dict.fromkeys(example.question for example in examples))
    design = np.zeros((len(examples), len(known) + len(questions)))
    for row, example in enumerate(examples):
        design[row, known.index(example.persona)] = design[row, len(known) + questions.index(example.question)] = 1.0
    flat = streams.reshape(len(examples), -1)
    fitted = np.linalg.lstsq(design, flat, rcond=None)[0][: len(known)].reshape(len(known), *streams.shape[1:])
    return np.stack([fitted[known.index(a)] - fitted[known.index(b)] for a, b in names])


def _readouts(
    deltas: Float[np.ndarray, "pair layer d_model"], fitting: Readouts, steered: Readouts
) -> Float[np.ndarray, "pair layer d_model"]:
    """Every steered pair's readout, at each layer as long as the fitting pairs differ along theirs."""
    lengths = np.abs(np.einsum("pld,pd->pl", deltas, fitting)).mean(0)
    return steered[:, None] * lengths[:, None]


def _from_file(
    spec: str,
    deltas: Float[np.ndarray, "pair layer d_model"],
    names: Sequence[tuple[str, str]],
    toward: tuple[str, str] | None,
    fingerprint: str,
) -> Directions:
    path, name, row = _parsed(spec)
    if name is None:
        return _from_vectors(path, deltas.shape[1:], names, toward, fingerprint)
    if toward is not None:
        raise OptionError("--toward and --away name personas of a file of vectors, not rows of an array")
    array = _array(path, name, row, deltas.shape[1:])
    unit = array / np.linalg.norm(array, axis=-1, keepdims=True)
    along = np.einsum("pld,ld->pl", deltas, unit)
    signs = np.where(along.mean(0) < 0, -1.0, 1.0)
    scaled = unit * (signs * np.abs(along).mean(0))[:, None]
    notes = (f"the sign of {name} was turned at layer(s) {', '.join(map(str, np.flatnonzero(signs < 0)))}",)
    return Directions(spec, np.repeat(scaled[None], len(names), 0), True, notes if (signs < 0).any() else ())


def _parsed(spec: str) -> tuple[Path, str | None, int | None]:
    match = re.fullmatch(r"(.+\.safetensors)(?::([^:]+))?(?::([0-9]{1,9}))?", spec, re.IGNORECASE)
    if match is None and Path(spec).is_dir():
        return Path(spec) / "vectors.safetensors", None, None
    if match is None:
        if Path(spec.split(":")[0]).is_file():
            check_format(spec.split(":")[0], DIRECTION)
        raise OptionError(
            f"--direction {spec!r} is not one of {', '.join(KINDS)}, no folder of vectors and no FILE.safetensors:NAME"
        )
    path, name, row = match.groups()
    return Path(path), name, None if row is None else int(row)


def _from_vectors(
    path: Path,
    shape: tuple[int, ...],
    names: Sequence[tuple[str, str]],
    toward: tuple[str, str] | None,
    fingerprint: str,
) -> Directions:
    from persona_circuits.persona.vectors.storage import read_vectors

    vectors = read_vectors(path).vectors
    if vectors.means.shape[1:] != shape:
        raise FileError(f"{path} has vectors of shape {vectors.means.shape[1:]}, the model's streams are {shape}")
    wanted = [toward] * len(names) if toward is not None else names
    if missing := sorted({name for pair in wanted for name in pair if name not in vectors.personas}):
        raise TaskError(
            f"{path} has no vector of {', '.join(missing[:12])}; it has {', '.join(vectors.personas[:40])}; "
            "--toward and --away name two for all pairs"
        )
    at = vectors.personas.index
    differences = np.stack([vectors.means[at(a)] - vectors.means[at(b)] for a, b in wanted])
    other = bool(fingerprint) and vectors.fingerprint != fingerprint
    notes = (f"the vectors of {path} were read off other weights than the model has",) if other else ()
    return Directions(str(path), differences, toward is not None, notes)


def _array(path: Path, name: str, row: int | None, shape: tuple[int, ...]) -> Float[np.ndarray, "layer d_model"]:
    """One vector per layer: the array's rows, or its single vector for every layer."""
    stored = read_tensors(path, DIRECTION, only=(name,))
    if name not in stored.names:
        raise FileError(f"{path} has no array {name!r}; it has {', '.join(stored.names)}")
    array = np.asarray(stored.arrays[name], dtype=np.float64)
    if row is not None:
        if array.ndim < 2 or row >= len(array):
            raise FileError(f"{name} of {path} has shape {array.shape}; there is no row {row}")
        array = array[row]
    array = array[0] if array.ndim == 2 and len(array) == 1 else array
    if array.shape == shape[1:]:
        array = np.repeat(array[None], shape[0], 0)
    if array.shape != shape:
        raise FileError(
            f"{name} of {path} has shape {array.shape}; expected {shape[1:]} or {shape}: name a row with :ROW"
        )
    if not np.isfinite(array).all():
        at = np.argwhere(~np.isfinite(array))[0].tolist()
        raise FileError(f"{name} of {path} holds {array[tuple(at)]} (at {at}); a direction has finite numbers")
    if not (np.linalg.norm(array, axis=-1) > 0).all():
        raise FileError(f"{name} of {path} is zero at a layer; a direction has a length")
    return array
