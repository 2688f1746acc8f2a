"""Every choice of a search, checked before any work."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from persona_circuits.circuit.attribution import ACTIVATIONS, IG_RULES, METHODS
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation.curves import check_target
from persona_circuits.circuit.forward import ABLATIONS
from persona_circuits.circuit.options import PlainNumbers
from persona_circuits.circuit.pruning import PRUNERS, check_tau
from persona_circuits.circuit.task import ALIGNMENTS
from persona_circuits.metrics import METRICS

__all__ = [
    "ORDERS",
    "Options",
]

ORDERS = {
    "threshold": "|score|, largest first",
    "top-n": "|score|, largest first",
    "greedy": "|score|, largest first, backward from logits",
}


@dataclass(frozen=True)
class Options(PlainNumbers):
    """What ``discover`` does, with the defaults of the command line.

    ``threshold`` is in units of the metric (``threshold_on="score"``) or a share of
    |m(full) - m(empty)| on the training pairs (``"share"``; with persona metrics that is |D|).
    ``target_faithfulness`` takes the place of a size: the smallest circuit by |score| that reaches it on
    the training pairs. ``sweep`` measures nested circuits over thresholds besides.
    """

    method: str = "eap-ig"
    prune: str = "threshold"
    threshold: float | None = None
    threshold_on: str = "share"
    top_n: int | None = None
    target_faithfulness: float | None = None
    sweep: bool = False
    metric: str = "persona-divergence"
    ablation: str = "corrupt"
    align: str = "equal"
    by_span: bool = False
    activations: str = "float32"
    steps: int = 5
    ig_rule: str = "midpoint"
    seed: int = 0
    batch_size: int = 32
    candidates: int | None = None
    n_random: int = 10
    train_split: str | None = None
    eval_split: str | None = None
    where: tuple[tuple[str, str], ...] = ()

    DEFAULT_SHARE = 0.003

    def checked(self) -> Options:
        """These options with the default threshold filled in.

        Raises:
            OptionError: a value is unknown or impossible, or an option would have no effect.
        """
        for name, value, allowed in (
            ("method", self.method, METHODS),
            ("prune", self.prune, PRUNERS),
            ("threshold-on", self.threshold_on, ("score", "share")),
            ("metric", self.metric, tuple(METRICS)),
            ("ig-rule", self.ig_rule, IG_RULES),
            ("ablation", self.ablation, ABLATIONS),
            ("align", self.align, ALIGNMENTS),
            ("activations", self.activations, ACTIVATIONS),
        ):
            if value not in allowed:
                raise OptionError(f"--{name} {value!r} is not one of {', '.join(allowed)}")
        for name, number in (("steps", self.steps), ("batch-size", self.batch_size), ("candidates", self.candidates)):
            if number is not None and number < 1:
                raise OptionError(f"--{name} must be at least 1, got {number}")
        if self.n_random < 0:
            raise OptionError(f"--n-random must not be negative, got {self.n_random}")
        self._check_size()
        if METRICS[self.metric].flat_at_clean and self.method == "eap" and self.prune != "acdc":
            raise OptionError(
                f"--metric {self.metric} has zero gradient at the clean run, so plain EAP would score every edge "
                "zero; use --method eap-ig or exact, or another --metric"
            )
        if self.by_span and (self.prune == "acdc" or self.method not in ("eap", "eap-ig")):
            raise OptionError("--by-span needs scores that are sums over positions: --method eap or eap-ig")
        if self.activations != "float32" and (
            self.by_span or self.prune == "acdc" or self.method not in ("eap", "eap-ig")
        ):
            raise OptionError("--activations bfloat16 is for the scores of --method eap or eap-ig, without --by-span")
        if self.threshold is None and self._uses_threshold():
            return Options(**{**asdict(self), "threshold": self.DEFAULT_SHARE})
        return self

    def _uses_threshold(self) -> bool:
        return self.target_faithfulness is None and self.prune in ("threshold", "acdc", "eap-acdc")

    def _check_size(self) -> None:
        if self.sweep and self.prune == "acdc":
            raise OptionError("--sweep puts edges in the order of their scores, and --prune acdc has none")
        if self.target_faithfulness is not None:
            check_target(self.target_faithfulness)
            for name, given in (("threshold", self.threshold), ("top-n", self.top_n)):
                if given is not None:
                    raise OptionError(f"--{name} and --target-faithfulness both set the size; give one of them")
            if self.prune not in ("threshold", "top-n"):
                raise OptionError(
                    f"--target-faithfulness keeps the first edges by |score|, --prune {self.prune} chooses others; "
                    "leave one of them out"
                )
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
                check_tau(self.threshold)
            elif self.threshold_on == "score":
                raise OptionError("--threshold-on score needs --threshold, in units of the metric")
        elif self.top_n is None:
            raise OptionError(f"--prune {self.prune} needs --top-n, the number of edges to keep")
        elif self.threshold is not None:
            raise OptionError(f"--threshold has no effect with --prune {self.prune}; use --top-n, or --prune threshold")
