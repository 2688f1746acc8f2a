"""The numbers of a study: a flat table of names, and the clustered estimates that most of them are.

A name is ``stage.subject.measure``; docs/study.md lists them. Intervals are those of
``circuit.statistics.intervals``: pairs that share a persona, on either side, or a question are not independent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from persona_circuits.circuit.errors import PersonaCircuitsError, WriteError
from persona_circuits.circuit.evaluation.hypothesis import holm
from persona_circuits.circuit.figures import plain
from persona_circuits.circuit.statistics import Clusters, interval, weighted_mean
from persona_circuits.persona.data import sign_flip
from persona_circuits.persona.data.items import Item, shared_by

__all__ = ["Estimates", "Number", "Numbers", "StageNumbers", "number_rows", "slug", "with_holm"]

COLUMNS = ("value", "low", "high", "n", "p", "p_holm", "unit", "what", "source")
Values = Sequence[float] | NDArray[Any]


@dataclass(frozen=True)
class Number:
    """One number: ``what`` it is in a line, and ``source``, the file in the study's folder that it goes with.

    ``low`` and ``high`` are a 95 % interval; ``n`` what it was computed over; ``p`` of the test that ``what`` names,
    ``p_holm`` the same corrected for all tests of its stage. None where there is none.
    """

    value: float
    what: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    n: int | None = None
    p: float | None = None
    p_holm: float | None = None
    source: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, absent ones left out."""
        values = plain(asdict(self))
        return {key: values[key] for key in COLUMNS if values[key] not in (None, "")}


Numbers = dict[str, Number]


class StageNumbers:
    """What a stage gives: its numbers, notes on what could not be done, and plain extras for the report.

    A number that is not defined (None, nan, infinite) is not entered. ``source`` is the file that numbers go with
    unless they name another.
    """

    def __init__(self, source: str = "") -> None:
        self.source = source
        self.numbers: Numbers = {}
        self.notes: list[str] = []
        self.extras: dict[str, Any] = {}

    def add(self, name: str, value: float | int | bool | None, what: str, **about: Any) -> None:
        """Enter a number; ``estimate`` among ``about`` is anything with ``low`` and ``high``, or None."""
        bounds = about.pop("estimate", None)
        if bounds is not None:
            about |= {"low": bounds.low, "high": bounds.high}
        if value is None or not np.isfinite(value):
            return
        about = {"source": self.source} | about
        known = {key: entry for key, entry in about.items() if entry is not None and entry == entry}
        known |= {key: float(known[key]) for key in ("low", "high", "p") if key in known}
        assert name not in self.numbers, f"two numbers are called {name}"
        self.numbers[name] = Number(float(value), what, **known)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """A part of a stage that these pairs or this model may not allow: the reason becomes a note."""
        try:
            yield
        except WriteError:
            raise
        except PersonaCircuitsError as error:
            lines = str(error).splitlines()
            self.notes.append(f"{what}: {lines[0]}" + (f" {lines[1].strip()}" if len(lines) > 1 else ""))


class Estimates:
    """Means, medians, ratios and differences over some pairs, with intervals that know what they share."""

    def __init__(self, items: Sequence[Item], *, n_resamples: int = 2000, seed: int = 0) -> None:
        self.items, self.n_resamples, self.seed = tuple(items), n_resamples, seed

    @cached_property
    def clusters(self) -> Clusters:
        """Which pairs share a persona or a question."""
        pairs = [item.pair for item in self.items]
        names = [item.question for item in self.items]
        return Clusters.named([pair.persona_a for pair in pairs], [pair.persona_b for pair in pairs], names)

    def mean(self, values: Values, *, within: tuple[float, float] = (-np.inf, np.inf)) -> dict[str, Any]:
        """``value``, ``low`` and ``high``, the ends within the range that a mean of such values can have.

        Values that are nan are left out.
        """
        estimate = self.ratio(values, np.ones(len(self.items)))
        ends = {end: float(np.clip(estimate[end], *within)) for end in ("low", "high") if end in estimate}
        return estimate | ends

    def share(self, hits: Values) -> dict[str, Any]:
        """The mean of numbers from 0 to 1."""
        return self.mean(hits, within=(0.0, 1.0))

    def ratio(self, above: Values, below: Values) -> dict[str, Any]:
        """A ratio of means."""
        top, bottom = (np.asarray(values, dtype=np.float64) for values in (above, below))
        known = np.isfinite(top) & np.isfinite(bottom)
        if not known.any():
            return {"value": None, "n": 0}
        top, bottom = np.where(known, top, 0.0), np.where(known, bottom, 0.0)

        def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            whole = weights @ bottom
            return np.divide(weights @ top, whole, out=np.full(len(whole), np.nan), where=np.abs(whole) > 1e-9)

        return self._of(statistic, int(known.sum()))

    def difference(self, values: Values, is_first: Bool[np.ndarray, " pair"]) -> dict[str, Any]:
        """The mean of the pairs that are marked minus that of the others, both under the same draws."""
        x, first = np.asarray(values, dtype=np.float64), np.asarray(is_first, dtype=bool)
        known = np.isfinite(x)
        sides = (first & known, ~first & known)
        if not (sides[0].any() and sides[1].any()):
            return {"value": None, "n": 0}

        def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            means = [weighted_mean(weights[:, side], x[side]) for side in sides]
            return means[0] - means[1]

        return self._of(statistic, int(known.sum()), clusters=self.clusters.between(first))

    def median(self, values: Values) -> dict[str, Any]:
        """The median; values may be infinite. Its interval comes from the drawn weights as they are."""
        return self._median(values, np.ones(len(self.items), dtype=bool), None)

    def median_difference(self, values: Values, is_first: Bool[np.ndarray, " pair"]) -> dict[str, Any]:
        """The median of the pairs that are marked minus that of the others."""
        first = np.asarray(is_first, dtype=bool)
        return self._median(values, first, ~first)

    def flips(self, values: Values) -> float | None:
        """The p of a mean of zero, by random signs of all pairs of two personas together."""
        x = np.asarray(values, dtype=np.float64)
        known = np.isfinite(x)
        items = [item for item, is_known in zip(self.items, known, strict=True) if is_known]
        return sign_flip(x[known].tolist(), *shared_by(items), n_resamples=self.n_resamples, seed=self.seed)

    def _median(
        self, values: Values, first: Bool[np.ndarray, " pair"], other: Bool[np.ndarray, " pair"] | None
    ) -> dict[str, Any]:
        x = np.asarray(values, dtype=np.float64)
        sides = [side & ~np.isnan(x) for side in (first, other) if side is not None]
        if not all(side.any() for side in sides):
            return {"value": None, "n": 0}

        def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            medians = [_weighted_medians(weights[:, side], x[side]) for side in sides]
            with np.errstate(invalid="ignore"):
                return medians[0] if len(medians) == 1 else medians[0] - medians[1]

        return self._of(statistic, int(sum(side.sum() for side in sides)), influence=np.zeros(len(x)))

    def _of(
        self,
        statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        n: int,
        influence: Float[np.ndarray, " pair"] | None = None,
        clusters: Clusters | None = None,
    ) -> dict[str, Any]:
        size = len(self.items)
        value = float(statistic(np.full((1, size), 1 / size))[0])
        how: dict[str, Any] = {"influence": influence, "n_draws": self.n_resamples, "seed": self.seed}
        bounds = interval(statistic, clusters or self.clusters, **how) if size > 1 else None
        estimate: dict[str, Any] = {"value": value if np.isfinite(value) else None, "n": n}
        return estimate | ({} if bounds is None else {"low": bounds.low, "high": bounds.high})


def with_holm(numbers: Mapping[str, Number]) -> Numbers:
    """The same numbers, those with a ``p`` corrected for all of them together (Holm 1979)."""
    tested = {name: number.p for name, number in numbers.items() if number.p is not None}
    adjusted = holm(np.array(list(tested.values()), dtype=np.float64))
    corrected = dict(zip(tested, adjusted.tolist(), strict=True))
    return {name: replace(number, p_holm=corrected.get(name)) for name, number in numbers.items()}


def slug(text: object) -> str:
    """A part of a name: lower case, everything but letters, digits, ``+`` and ``.`` as ``_``."""
    return re.sub(r"[^\w+]+", "_", str(text).strip().lower()).strip("_") or "none"


def number_rows(numbers: Mapping[str, Number]) -> list[dict[str, Any]]:
    """A row per number for CSV, all columns in every row."""
    return [{"name": name, **{key: number.as_dict().get(key) for key in COLUMNS}} for name, number in numbers.items()]


def _weighted_medians(weights: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weighted median under each row of weights, the mean of two where the weight splits evenly; nan without."""
    order = np.argsort(values, kind="stable")
    sums, x = np.cumsum(weights[:, order], axis=1), values[order]
    half = sums[:, -1:] / 2
    low = np.minimum((sums < half * (1 - 1e-12)).sum(1), len(x) - 1)
    high = np.minimum((sums <= half * (1 + 1e-12)).sum(1), len(x) - 1)
    with np.errstate(invalid="ignore"):
        middle = np.where(x[low] == x[high], x[low], (x[low] + x[high]) / 2)
    return np.where(sums[:, -1] > 0, middle, np.nan)
