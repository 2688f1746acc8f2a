"""Options of the studies of circuits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from persona_circuits.circuit.choices import (
    ABLATIONS,
    ALIGNMENTS,
    AT_CLEAN,
    IG_RULES,
    LEVELS,
    METHODS,
    METRIC_NAMES,
    ORDERS,
)
from persona_circuits.circuit.discovery.options import MeasureOptions
from persona_circuits.circuit.errors import OptionError, meant
from persona_circuits.circuit.options import (
    BatchSize,
    Budget,
    Option,
    PlainNumbers,
    Seed,
    Steps,
    Where,
    check_least,
    names_of,
)

__all__ = ["ComparisonOptions", "CurveOptions", "EvaluationOptions"]


def _levels_of(level: str) -> tuple[str, ...]:
    return LEVELS if level == "both" else (level,)


def _orders_of(order: str) -> tuple[str, ...]:
    return ORDERS if order == "both" else (order,)


@dataclass(frozen=True)
class CurveOptions(PlainNumbers):
    """What ``curve_study`` does; ``scorers`` are methods to run, ``random`` among them asks for the band."""

    scorers: Annotated[
        tuple[str, ...],
        Option(
            "Comma-separated: eap, eap-ig, eap-ig-activations, clean-corrupted, ceap, relp, gim, atp-star, exact, "
            "random; or scores.safetensors, a run's folder, a submission to MIB.",
            given=str,
            read=names_of,
        ),
    ] = ("eap", "eap-ig", "random")
    levels: Annotated[
        tuple[str, ...],
        Option(
            "What is kept: edges, or nodes with all edges among them.",
            name="--level",
            given=Literal["edge", "node", "both"],
            read=_levels_of,
        ),
    ] = ("edge",)
    orders: Annotated[
        tuple[str, ...],
        Option(
            "Largest |score| first, or first what lowers the metric most when it is corrupted.",
            name="--order",
            given=Literal["absolute", "signed", "both"],
            read=_orders_of,
            shown="both",
        ),
    ] = ORDERS
    metric: Annotated[
        str | None,
        Option("What is to be explained. (default: the run's, else persona-divergence)", choices=METRIC_NAMES),
    ] = None
    ablation: Annotated[
        str | None, Option("What a cut edge carries. (default: the run's, else corrupt)", choices=ABLATIONS)
    ] = None
    align: Annotated[str | None, Option("As in discover. (default: the run's, else equal)", choices=ALIGNMENTS)] = None
    where: Where = ()
    steps: Steps = 5
    ig_rule: str = "midpoint"
    n_random: Annotated[int, Option("Random orders of the scorer random.")] = 10
    train_split: Annotated[str | None, Option("Pairs to score on. (default: train, or all)")] = None
    eval_split: Annotated[str | None, Option("Pairs to measure on. (default: test, or all)", name="--split")] = None
    batch_size: BatchSize = 32
    seed: Seed = 0

    def settled(self, record: Mapping[str, Any] | None = None) -> CurveOptions:
        """These options with defaults from a run's ``record``, else those of a search."""
        own = MeasureOptions(metric=self.metric, ablation=self.ablation, align=self.align).settled(record)
        return replace(self, metric=own.metric, ablation=own.ablation, align=own.align)

    def checked(self) -> CurveOptions:
        """These options, settled.

        Raises:
            OptionError: a value is unknown or impossible.
        """
        from persona_circuits.metrics import METRICS

        self = self.settled()
        for name, values, allowed in (
            ("scorers", self.scorers, METHODS),
            ("level", self.levels, LEVELS),
            ("order", self.orders, ORDERS),
            ("metric", (self.metric,), tuple(METRICS)),
            ("ablation", (self.ablation,), ABLATIONS),
            ("align", (self.align,), ALIGNMENTS),
            ("ig-rule", (self.ig_rule,), IG_RULES),
        ):
            if unknown := [value for value in values if value not in allowed]:
                more = ", or a file or folder of scores that is there" if name == "scorers" else ""
                close = meant(str(unknown[0]), allowed)
                raise OptionError(f"--{name} {unknown[0]!r} is not one of {', '.join(allowed)}{more}{close}")
        check_least(self, steps=1, batch_size=1, n_random=1)
        zero = [name for name in self.scorers if name in AT_CLEAN]
        if METRICS[str(self.metric)].flat_at_clean and zero:
            raise OptionError(
                f"--metric {self.metric} has zero gradient at the clean run, so {zero[0]} would score every edge zero; "
                f"leave {zero[0]} out of --scorers, or take another --metric"
            )
        return self


@dataclass(frozen=True)
class ComparisonOptions(PlainNumbers):
    """How two circuits are compared."""

    n_draws: Annotated[int, Option("Random draws for each comparison with chance.")] = 200
    budget: Budget = None


@dataclass(frozen=True)
class EvaluationOptions(MeasureOptions):
    """How a circuit is evaluated.

    ``by`` are keys of the pairs: it is measured on every value of each, beside circuits outside it; by default on those
    of the usual keys that split the pairs. ``n_random`` random circuits stand beside the faithfulness,
    ``n_tested`` beside the hypothesis tests; ``n_resamples`` of the pairs, or ``orders`` of ACDC, tell its
    stability; with ``certify`` so many personas or questions are taken away too. ``quick``: few random circuits,
    permutations, edges and resamples, and pairs grouped by EAP scores.
    ``budget`` is in seconds: the tests are quick then, and pairs, random circuits and tests are left out as need be.
    """

    by: Annotated[
        tuple[str, ...] | None,
        Option(
            "Measure on every value of this key of the pairs; may be repeated. (default: the usual)",
            given=list[str],
            read=tuple,
        ),
    ] = None
    orders: Annotated[int, Option("Random orders in which ACDC's search is repeated; 0: none.", min=0)] = 3
    certify: Annotated[
        int | None,
        Option("Say of every edge whether it stays when any so many personas or questions are taken away.", min=1),
    ] = None
    quick: Annotated[bool, Option("Few random circuits, permutations and edges: seconds instead of minutes.")] = False
    budget: Budget = None
    n_tested: int = 100
    n_resamples: int = 200
