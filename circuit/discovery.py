"""The main job: from a model and prompt pairs to a circuit with its faithfulness.

pairs -> token ids, checked -> scores per edge -> circuit -> faithfulness on held-out pairs
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from circuit.attribution import IG_RULES, METHODS, score
from circuit.errors import OptionError
from circuit.faithfulness import FaithfulnessReport, evaluate
from circuit.files import circuit_record
from circuit.model import Model
from circuit.patching import Prepared, Progress, divergence, prepare
from circuit.pruning import PRUNERS, acdc, check_tau, greedy, threshold, top_n
from circuit.scores import Scores
from circuit.subgraph import Circuit
from circuit.task import Batch, Row, Task, batches, encode, with_swap_rows
from metrics import METRICS, Metric

__all__ = ["Discovery", "Options", "Stage", "discover", "evaluate_on", "split_of"]

Stage = Callable[[str], Progress]
"""Called when a stage of the work begins, with its name; gives the stage's progress callback."""


@dataclass(frozen=True)
class Options:
    """What ``discover`` does, with the defaults of the command line.

    ``threshold`` is in units of the metric (``threshold_on="score"``) or a share of
    |m(full) - m(empty)| on the training pairs (``"share"``; with persona metrics that is |D|).
    """

    method: str = "eap-ig"
    prune: str = "threshold"
    threshold: float | None = None
    threshold_on: str = "share"
    top_n: int | None = None
    metric: str = "persona-divergence"
    steps: int = 5
    ig_rule: str = "midpoint"
    seed: int = 0
    batch_size: int = 32
    candidates: int = 8
    n_random: int = 10
    train_split: str | None = None
    eval_split: str | None = None

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
        ):
            if value not in allowed:
                raise OptionError(f"--{name} {value!r} is not one of {', '.join(allowed)}")
        for name, number in (("steps", self.steps), ("batch-size", self.batch_size), ("candidates", self.candidates)):
            if number < 1:
                raise OptionError(f"--{name} must be at least 1, got {number}")
        if self.n_random < 0:
            raise OptionError(f"--n-random must not be negative, got {self.n_random}")
        self._check_size()
        if METRICS[self.metric].flat_at_clean and self.method == "eap" and self.prune != "acdc":
            raise OptionError(
                f"--metric {self.metric} has zero gradient at the clean run, so plain EAP would score every edge "
                "zero; use --method eap-ig or exact, or another --metric"
            )
        if self.threshold is None and self._uses_threshold():
            return Options(**{**asdict(self), "threshold": self.DEFAULT_SHARE})
        return self

    def _uses_threshold(self) -> bool:
        return self.prune in ("threshold", "acdc", "eap-acdc")

    def _check_size(self) -> None:
        if self._uses_threshold():
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


@dataclass(frozen=True)
class Discovery:
    """What was found: the circuit, every edge's score (None for plain ACDC), and how good it is where.

    ``divergence`` is m(full) - m(empty) on the training pairs, ``tau`` the threshold in
    the metric's units, ``acdc_cost`` patched passes and circuits tried. ``held_out``
    says whether all pairs of ``reports[-1]`` are pairs that the search did not see.
    """

    circuit: Circuit
    scores: Scores | None
    divergence: float
    tau: float | None
    acdc_cost: dict[str, int] | None
    reports: tuple[FaithfulnessReport, ...]
    held_out: bool
    record: dict[str, Any]


def discover(model: Model, task: Task, options: Options, *, stage: Stage | None = None) -> Discovery:
    """Find the circuit of a task in a model and measure it on held-out pairs.

    Raises:
        OptionError, TaskError: before any long work.
    """
    options = options.checked()
    stage = stage or (lambda _name: lambda _done, _total: None)
    metric = METRICS[options.metric]
    train_split, test_split = split_of(task, options.train_split, "train"), split_of(task, options.eval_split, "test")
    train, held_out = task.of_split(train_split), task.of_split(test_split)
    is_held_out = not set(train.pairs) & set(held_out.pairs)
    rows, held_rows = (_rows(encode(part, model), metric) for part in (train, held_out))
    groups = batches(rows, options.batch_size, model.device)
    span = divergence((prepare(model, group) for group in groups), metric)
    tau = _tau(options, span)
    scores = None
    if options.prune != "acdc":
        scores = score(
            model,
            groups,
            metric,
            method=options.method,
            steps=options.steps,
            rule=options.ig_rule,
            seed=options.seed,
            progress=stage(f"{options.method} scores"),
        )
    circuit, cost = _prune(model, groups, metric, scores, options, tau, stage)
    splits = [(train_split, rows), (test_split, held_rows)] if test_split != train_split else [(train_split, rows)]
    reports = tuple(
        _report(model, part, metric, circuit, split, options, stage(f"faithfulness on {split}"))
        for split, part in splits
    )
    about = _about(model, task, options, train_split, len(train.pairs), span, tau, reports)
    record = circuit_record(circuit, scores, about)
    return Discovery(circuit, scores, span, tau, cost, reports, is_held_out, record)


def evaluate_on(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    metric: str,
    split: str | None = None,
    batch_size: int = 32,
    n_random: int = 10,
    seed: int = 0,
    stage: Stage | None = None,
) -> FaithfulnessReport:
    """Faithfulness of a circuit on the pairs of one split (``test`` if there is one, else all).

    Raises:
        OptionError, TaskError: the metric is unknown, or the pairs do not fit the model.
    """
    options = Options(
        metric=metric, batch_size=batch_size, n_random=n_random, seed=seed, top_n=1, prune="top-n"
    ).checked()
    if circuit.graph != model.graph:
        raise OptionError(
            f"the circuit is of a model with {circuit.graph.n_layers} layers and {circuit.graph.n_heads} heads, but "
            f"{model.name} has {model.graph.n_layers} and {model.graph.n_heads}; give the model it was found in"
        )
    name = split_of(task, split, "test")
    rows = _rows(encode(task.of_split(name), model), METRICS[metric])
    progress = (stage or (lambda _name: lambda _done, _total: None))(f"faithfulness on {name}")
    return _report(model, rows, METRICS[metric], circuit, name, options, progress)


def split_of(task: Task, wanted: str | None, default: str) -> str:
    """The split to use: the one asked for, else ``default`` if the file has it, else all pairs."""
    return wanted if wanted is not None else default if default in task.splits else "all"


def _rows(rows: Sequence[Row], metric: Metric) -> tuple[Row, ...]:
    return with_swap_rows(rows) if metric.swap_rows else tuple(rows)


def _tau(options: Options, divergence: float) -> float | None:
    if options.threshold is None:
        return None
    if options.threshold_on == "score":
        return options.threshold
    if abs(divergence) < 1e-9:
        raise OptionError(
            "the metric is the same on clean and corrupt prompts, so a share of it is no threshold; "
            "use --threshold-on score, or other pairs"
        )
    return options.threshold * abs(divergence)


def _prune(
    model: Model,
    groups: Sequence[Batch],
    metric: Metric,
    scores: Scores | None,
    options: Options,
    tau: float | None,
    stage: Stage,
) -> tuple[Circuit, dict[str, int] | None]:
    if options.prune == "top-n":
        assert scores is not None
        assert options.top_n is not None
        return top_n(scores, options.top_n), None
    if options.prune == "greedy":
        assert scores is not None
        assert options.top_n is not None
        return greedy(scores, options.top_n), None
    assert tau is not None
    if options.prune == "threshold":
        assert scores is not None
        return threshold(scores, tau), None
    start = threshold(scores, tau) if scores is not None else None
    prepared = [prepare(model, group) for group in groups]
    found = acdc(model, prepared, metric, tau, start=start, candidates=options.candidates, progress=stage("ACDC"))
    return found.circuit, {"passes": found.passes, "evaluated": found.evaluated, "wasted": found.wasted}


def _report(
    model: Model,
    rows: Sequence[Row],
    metric: Metric,
    circuit: Circuit,
    split: str,
    options: Options,
    progress: Progress,
) -> FaithfulnessReport:
    groups = batches(rows, options.batch_size, model.device)

    def prepared() -> Iterator[Prepared]:
        for done, group in enumerate(groups, 1):
            yield prepare(model, group)
            progress(done, len(groups))

    return evaluate(model, prepared, metric, circuit, split=split, n_random=options.n_random, seed=options.seed)


def _about(
    model: Model,
    task: Task,
    options: Options,
    split: str,
    n_pairs: int,
    divergence: float,
    tau: float | None,
    reports: Sequence[FaithfulnessReport],
) -> dict[str, Any]:
    metric = METRICS[options.metric]
    scored = options.prune != "acdc"
    uses_ig = scored and options.method == "eap-ig"
    return {
        "model": {
            "name": model.name,
            "revision": model.revision,
            "dtype": str(model.dtype).removeprefix("torch."),
            "fingerprint": model.fingerprint,
            "n_layers": model.graph.n_layers,
            "n_heads": model.graph.n_heads,
            "parallel": model.graph.parallel,
        },
        "task": {
            "source": task.source,
            "sha256": task.sha256,
            "split": split,
            "n_pairs": n_pairs,
            "metric": metric.name,
            "unit": metric.unit,
            "swap_rows": metric.swap_rows,
            "divergence": divergence,
        },
        "method": {
            "scores": options.method if scored else None,
            "steps": options.steps if uses_ig else None,
            "ig_rule": options.ig_rule if uses_ig else None,
            "prune": options.prune,
            "threshold": options.threshold,
            "threshold_on": options.threshold_on if options.threshold is not None else None,
            "tau": tau,
            "top_n": options.top_n,
        },
        "ablation": "corrupt",
        "seed": options.seed,
        "faithfulness": [report.as_dict() for report in reports],
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("persona-circuits", "torch", "transformer-lens", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
