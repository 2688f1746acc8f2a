"""Every choice of a search, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from persona_circuits.circuit.choices import (
    ABLATIONS,
    ACTIVATIONS,
    ALIGNMENTS,
    AT_CLEAN,
    ENSEMBLES,
    GRADIENTS,
    METHODS,
    METRIC_NAMES,
    PLAIN_GRADIENTS,
    PRUNERS,
    RESOLUTIONS,
    SEARCH_METHODS,
    THRESHOLD_UNITS,
    WEIGHINGS,
)
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import (
    AblationName,
    Alignment,
    AnyMetric,
    BatchSize,
    IgRule,
    MetricName,
    Option,
    PlainNumbers,
    RandomCircuits,
    Seed,
    Steps,
    Where,
    check_choices,
    check_least,
    check_n_random,
    names_of,
)

__all__ = ["ORDERS", "MeasureOptions", "Options"]

ORDERS = {
    "threshold": "|score|, largest first",
    "top-n": "|score|, largest first",
    "greedy": "|score|, largest first, backward from logits",
    "learn": "likelihood of an open gate, largest first",
}
Measures = TypeVar("Measures", bound="MeasureOptions")


@dataclass(frozen=True)
class Options(PlainNumbers):
    """What ``discover`` does, with the defaults of the command line.

    ``threshold`` is in units of the metric (``threshold_on="score"``) or a share of
    |m(full) - m(empty)| on the training pairs (``"share"``; with persona metrics that is |D|).
    ``target_faithfulness`` takes the place of a size: the smallest circuit by |score|, or with ``prune="learn"`` by its
    gates, that reaches it on the training pairs, among ``up_to``, a share, of all edges. Where ``prune="threshold"``
    is given no size at all, ``checked`` sets both to the default. ``sweep`` measures nested circuits over thresholds
    besides. Without ``force``, as on the command line, pairs without an effect are an error, with it a warning.
    """

    method: Annotated[str, Option("How edges are scored.", choices=SEARCH_METHODS)] = "eap-ig"
    of: Annotated[
        tuple[str, ...], Option("Methods that --method mean-of averages, such as eap-ig,gim.", given=str, read=names_of)
    ] = ()
    normalise: Annotated[str, Option("How the scores of --method mean-of are made comparable.", choices=ENSEMBLES)] = (
        "scale"
    )
    weigh: Annotated[
        str, Option("couples: in the scores D is divided by its spread over each couple's pairs.", choices=WEIGHINGS)
    ] = "pairs"
    prune: Annotated[str, Option("How the circuit is chosen.", choices=PRUNERS)] = "threshold"
    threshold: Annotated[
        float | None, Option("For threshold, acdc, eap-acdc. (default of the latter two: 0.003 of |D|)")
    ] = None
    threshold_on: Annotated[
        str, Option("Threshold in the metric's units, or as a share of |D|.", choices=THRESHOLD_UNITS)
    ] = "share"
    top_n: Annotated[int | None, Option("Edges to keep, for top-n, greedy and learn.")] = None
    target_faithfulness: Annotated[
        float | None,
        Option(
            "Instead of a size: the smallest circuit by |score|, or by learned gates, that reaches this faithfulness. "
            "(default: 0.8, looked for among the first 5 % of the edges)"
        ),
    ] = None
    up_to: float = 1.0
    finish: Annotated[
        float | None,
        Option(
            "Then edges go and come back by patched passes until each is worth this share of |D|, such as 0.002; with "
            "--target-faithfulness without falling below it."
        ),
    ] = None
    certify: Annotated[
        int | None,
        Option("Say of every edge whether it stays when any so many personas or questions are taken away.", min=1),
    ] = None
    checks: Annotated[
        int | None,
        Option("Patch so many edges outside the circuit, drawn at random, to bound how many were missed.", min=1),
    ] = None
    neurons: Annotated[
        tuple[str, ...],
        Option("MLPs of the circuit to open into their neurons, such as m3,m7.", given=str, read=names_of),
    ] = ()
    neuron_share: Annotated[
        float, Option("Share of what the opened MLPs carry that the fewest neurons are to keep.")
    ] = 0.9
    open_heads: Annotated[
        tuple[str, ...],
        Option("Heads to open, such as a9.h2: what their parts carry, and why they attend.", given=str, read=names_of),
    ] = ()
    sweep: Annotated[bool, Option("Nested circuits over thresholds too: size against faithfulness.")] = False
    metric: MetricName = "persona-divergence"
    ablation: AblationName = "corrupt"
    align: Alignment = "equal"
    resolution: Annotated[
        str, Option("span: a circuit keeps an edge at some parts of the prompt and not at others.", choices=RESOLUTIONS)
    ] = "edge"
    by_span: Annotated[bool, Option("Scores by part of the prompt too, and where the contrast persists.")] = False
    activations: Annotated[
        str, Option("Format of matrix products of the scores; what it costs is printed.", choices=ACTIVATIONS)
    ] = "float32"
    steps: Steps = 5
    ig_rule: IgRule = "midpoint"
    candidates: Annotated[
        int | None,
        Option(
            "Edges that ACDC and --finish try per pass, to one result. (default: what fits one, at most 8; GPU: 128)"
        ),
    ] = None
    train_steps: Annotated[int, Option("Steps in which --prune learn trains the gates.")] = 200
    nodes_first: Annotated[
        bool, Option("Let --prune learn choose nodes, then edges between them; always so above a million edges.")
    ] = False
    train_split: Annotated[str | None, Option("Pairs to search on. (default: train, or all if no split is named)")] = (
        None
    )
    eval_split: Annotated[str | None, Option("Pairs to measure on. (default: test, or all if no split is named)")] = (
        None
    )
    where: Where = ()
    n_random: RandomCircuits = 10
    seed: Seed = 0
    batch_size: BatchSize = 32
    force: Annotated[bool, Option("Search even where the pairs show no effect that a circuit could explain.")] = True

    DEFAULT_SHARE = 0.003
    DEFAULT_TARGET, DEFAULT_UP_TO = 0.8, 0.05

    def checked(self) -> Options:
        """These options with the default size filled in.

        Raises:
            OptionError: a value is unknown or impossible, or an option would have no effect.
        """
        check_choices(self)
        check_least(self, steps=1, batch_size=1, candidates=1, train_steps=1, checks=1)
        check_n_random(self.n_random)
        self._check_size()
        if self.finish is not None:
            from persona_circuits.circuit.pruning import check_tau

            check_tau(self.finish)
        from persona_circuits.circuit.discovery.own_metrics import metric_of

        metric = metric_of(self.metric)
        self._check_ensemble()
        if metric.flat_at_clean and {self.method, *self.of} & {*AT_CLEAN} and self.prune != "acdc":
            raise OptionError(
                f"--metric {metric.name} has zero gradient at the clean run, so --method {self.method} would score "
                "every edge zero; use --method eap-ig or exact, or another --metric"
            )
        if self.by_span and (self.prune == "acdc" or self.method not in GRADIENTS):
            raise OptionError(f"--by-span needs scores that are sums over positions: --method {', '.join(GRADIENTS)}")
        if self.activations != "float32" and (self.by_span or self.prune == "acdc" or self.method not in GRADIENTS):
            raise OptionError("--activations bfloat16 is for scores by gradients, without --by-span")
        self._check_certify()
        self._check_resolution()
        self._check_neurons()
        if self.weigh == "couples" and (self.method == "random" or self.certify is not None):
            what = "--certify" if self.certify is not None else "--method random"
            raise OptionError(f"--weigh couples and {what} do not go together; leave one of them out")
        own = replace(self, by_span=self.by_span or self.resolution == "span")
        if self.sized_by_default:
            return replace(own, target_faithfulness=self.DEFAULT_TARGET, up_to=self.DEFAULT_UP_TO)
        return replace(own, threshold=self.DEFAULT_SHARE) if self.threshold is None and self._uses_threshold() else own

    @property
    def nodes_above(self) -> int:
        """With more edges than this ``--prune learn`` chooses nodes first."""
        from persona_circuits.circuit.pruning.learn import NODES_ABOVE

        return 0 if self.nodes_first else NODES_ABOVE

    @property
    def sized_by_default(self) -> bool:
        """Whether nothing says how large the circuit is to be."""
        given = (self.threshold, self.top_n, self.target_faithfulness)
        return (
            self.prune == "threshold" and self.threshold_on == "share" and not any(value is not None for value in given)
        )

    def _check_resolution(self) -> None:
        if self.resolution == "edge":
            return
        if self.prune not in ("threshold", "top-n"):
            raise OptionError(
                f"--prune {self.prune} decides of edges at all parts of the prompt at once; with --resolution span use "
                "--prune threshold or top-n, or --target-faithfulness"
            )
        if self.method not in GRADIENTS:
            raise OptionError(
                f"--resolution span needs scores that are sums over positions: --method {', '.join(GRADIENTS)}"
            )
        others = {"certify": self.certify, "finish": self.finish, "checks": self.checks, "sweep": self.sweep}
        if given := [name for name, value in others.items() if value]:
            raise OptionError(f"--{given[0]} is of edges at all parts of the prompt; leave it out of --resolution span")
        if self.activations != "float32":
            raise OptionError("--activations bfloat16 has no scores by part of the prompt; leave it out")

    def _check_neurons(self) -> None:
        for name, given in (("neurons", self.neurons), ("open-heads", self.open_heads)):
            if given and self.resolution == "span":
                raise OptionError(f"--{name} is of edges at all parts of the prompt; leave it out of --resolution span")
        if not self.neurons:
            return
        if not 0 < self.neuron_share <= 1:
            raise OptionError(f"--neuron-share must be above 0 and at most 1, got {self.neuron_share:g}")
        if self.method not in PLAIN_GRADIENTS or self.prune == "acdc":
            how = f"--prune {self.prune}" if self.prune == "acdc" else f"--method {self.method}"
            raise OptionError(f"--neurons needs scores of --method {', '.join(PLAIN_GRADIENTS)}; {how} has none such")
        if self.ablation not in ("corrupt", "neutral"):
            raise OptionError(
                f"--neurons takes what neurons write from a run of other prompts, and --ablation {self.ablation} has "
                "none; use corrupt or neutral"
            )
        if self.ablation == "neutral" and self.align != "equal":
            raise OptionError("--neurons with --ablation neutral needs prompts of one length; leave --align out")

    def _check_ensemble(self) -> None:
        if self.method != "mean-of" or self.prune == "acdc":
            return
        if len(self.of) < 2 or (unknown := [name for name in self.of if name not in METHODS]):
            given = "nothing" if not self.of else ", ".join(self.of if len(self.of) < 2 else unknown)
            raise OptionError(
                f"--method mean-of needs --of, two or more of {', '.join(METHODS)} with commas; got {given}"
            )
        if self._uses_threshold() and self.threshold_on == "share":
            raise OptionError(
                "the mean of several scorers has no unit, so a share of |D| is no threshold; "
                "use --target-faithfulness, or --prune top-n --top-n N"
            )

    def _check_certify(self) -> None:
        if self.certify is None:
            return
        if self.certify < 1:
            raise OptionError(
                f"--certify must be at least 1, the personas or questions to take away, got {self.certify}"
            )
        if self.prune in ("acdc", "eap-acdc", "learn") or self.finish is not None:
            what = f"--prune {self.prune}" if self.finish is None else "--finish"
            raise OptionError(
                f"--certify prunes the pairs' own scores again, and {what} runs the model; leave one of them out"
            )
        without = self.method in ("random", "mean-of")
        if without or self.by_span or self.activations != "float32":
            what = f"--method {self.method}" if without else "--by-span" if self.by_span else "--activations"
            raise OptionError(f"--certify needs scores pair by pair, in float32, and {what} has none; leave one out")

    def _uses_threshold(self) -> bool:
        searched = self.sized_by_default or self.target_faithfulness is not None
        return not searched and self.prune in ("threshold", "acdc", "eap-acdc")

    def _check_size(self) -> None:
        if self.sweep and self.prune == "acdc":
            raise OptionError("--sweep puts edges in the order of their scores, and --prune acdc has none")
        if self.target_faithfulness is not None:
            from persona_circuits.circuit.evaluation.curves import check_target

            check_target(self.target_faithfulness)
            for name, given in (("threshold", self.threshold), ("top-n", self.top_n)):
                if given is not None:
                    raise OptionError(f"--{name} and --target-faithfulness both set the size; give one of them")
            if self.prune not in ("threshold", "top-n", "learn"):
                raise OptionError(
                    f"--target-faithfulness keeps the first edges by |score|, --prune {self.prune} chooses others; "
                    "leave one of them out"
                )
            return
        if self.sized_by_default:
            return
        if self._uses_threshold():
            if self.method == "random" and self.prune != "acdc" and self.threshold_on == "share":
                raise OptionError(
                    "random scores have no unit, so a share of |D| keeps all of them or none; use --prune top-n "
                    "--top-n N, or --threshold-on score, in standard deviations"
                )
            if self.top_n is not None:
                raise OptionError(f"--top-n has no effect with --prune {self.prune}; use --threshold, or --prune top-n")
            if self.threshold is not None:
                from persona_circuits.circuit.pruning import check_tau

                check_tau(self.threshold)
            elif self.threshold_on == "score":
                raise OptionError("--threshold-on score needs --threshold, in units of the metric")
        elif self.top_n is None:
            other = " or --target-faithfulness, the share of the effect to keep" if self.prune == "learn" else ""
            raise OptionError(f"--prune {self.prune} needs --top-n, the number of edges to keep{other}")
        elif self.threshold is not None:
            raise OptionError(f"--threshold has no effect with --prune {self.prune}; use --top-n, or --prune threshold")


@dataclass(frozen=True)
class MeasureOptions(PlainNumbers):
    """What a circuit is measured with.

    ``metric``, ``ablation``, ``align`` and ``where`` are the circuit's own where they are not given (``settled``).
    Constants of an ablation are taken from ``train_split`` (``train`` if there is one, else all).
    """

    metric: Annotated[
        AnyMetric | None, Option("What the circuit is to explain. (default: the circuit's)", choices=METRIC_NAMES)
    ] = None
    ablation: Annotated[
        str | None, Option("What an edge outside the circuit carries. (default: the circuit's)", choices=ABLATIONS)
    ] = None
    align: str | None = None
    split: Annotated[str | None, Option("Pairs to measure on. (default: test, or all)")] = None
    train_split: str | None = None
    where: Where = ()
    n_random: RandomCircuits = 10
    seed: Seed = 0
    batch_size: BatchSize = 32

    def settled(self: Measures, record: Mapping[str, Any] | None = None) -> Measures:
        """These options with defaults from the circuit's ``record``, else those of a search."""
        plain = Options()
        recorded = record or {"task": {"metric": plain.metric, "align": plain.align}, "ablation": plain.ablation}
        return replace(
            self,
            metric=self.metric or recorded["task"]["metric"],
            ablation=self.ablation or recorded["ablation"],
            align=self.align or recorded["task"]["align"],
            where=self.where or tuple(recorded["task"].get("where", {}).items()),
        )

    def checked(self: Measures) -> Measures:
        """These, settled.

        Raises:
            OptionError: a value is unknown or impossible.
        """
        check_choices(self)
        if self.align not in (None, *ALIGNMENTS):
            raise OptionError(f"--align {self.align!r} is not one of {', '.join(ALIGNMENTS)}")
        check_least(self, batch_size=1)
        check_n_random(self.n_random)
        return self.settled()
