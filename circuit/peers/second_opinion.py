"""A second opinion: auto-circuit recomputes what a run found, in an environment of its own.

1. The pairs become token ids here, so that both programs see the same; auto-circuit gets the same folder of weights.
2. Both score all edges: EAP, and EAP-IG with the same points. auto-circuit has no EAP-IG; its own
   parts (patched model, mask gradient) are put together to it, and its own integrated
   gradients over masks, another quantity, stand beside it.
3. Both measure the circuit: m(full), m(empty), m(C) and the faithfulness they make.

Edges are compared by name after translation (``circuit.peers.autocircuit``). auto-circuit needs
TransformerLens 2 and numpy 1; ``make peers`` builds its environment.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit.attribution import eap, eap_ig
from persona_circuits.circuit.discovery import split_of
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.figures import picked
from persona_circuits.circuit.forward import measure, prepare
from persona_circuits.circuit.io import StoredCircuit, read_scores
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.peers.autocircuit import autocircuit_name, from_prune_scores, read_autocircuit_scores
from persona_circuits.circuit.peers.options import CrosscheckOptions
from persona_circuits.circuit.peers.process import PEER_METRICS, AutoCircuit, autocircuit_rows, check_model
from persona_circuits.circuit.progress import untold_stage
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import replace_folder, write_json
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.table import Column, Table
from persona_circuits.circuit.task import Batch, Task, batches, encode, with_swap_rows, without_forms
from persona_circuits.metrics import METRICS, Metric

__all__ = [
    "CONVENTIONS",
    "agreement",
    "agreement_table",
    "circuit_table",
    "compare_with_file",
    "crosscheck",
    "write_crosscheck",
]

FORMAT = "persona-circuits/crosscheck"
EQUAL = 1e-6  # of the larger one: two means of m that differ by less differ by float32's rounding alone
CONVENTIONS = (
    ("edge", "a0.h1->a2.h3<q>", "A0.1->A2.3.Q"),
    ("ends", "input, logits", "Resid Start, Resid End"),
    ("input", "token embedding; positions cancel at equal length", "stream before block 0"),
    ("sign", "gradient of m", "gradient of -m; turned"),
    ("average", "mean over rows", "sum over batches of the mean in a batch; divided by their share of rows"),
    ("EAP-IG", "points between the embeddings", "none; put together here from its patched model"),
    ("mask IG", "none", "all masks at k/n together, k = 0..n: another quantity, divided by n + 1"),
    ("circuit", "edges that are not kept carry the corrupt run", "the same (tree patch, resample)"),
    ("persona-divergence", "every pair in both directions", "gets both rows"),
)


@dataclass(frozen=True)
class Agreement:
    """Two programs' scores of all edges.

    ``largest_difference`` is of edge ``at``, in units of the metric, ``relative`` the same as a share of the largest
    |score| here; ``pearson`` and ``spearman`` are None where a side is constant. ``same_sign`` is the share of edges
    above a thousandth of the largest |score| whose signs agree, ``top`` how many of our strongest ``n_top`` edges are
    among theirs. ``same_quantity`` says whether both compute the same thing, so that they should agree.
    """

    what: str
    same_quantity: bool
    n_edges: int
    pearson: float | None
    spearman: float | None
    same_sign: float
    largest: float
    largest_difference: float
    relative: float
    at: str
    top: int
    n_top: int


@dataclass(frozen=True)
class CircuitAgreement:
    """The circuit in both programs: mean metrics, and the faithfulness that they make (None where it is undefined)."""

    n_edges: int
    ours: dict[str, float | None]
    theirs: dict[str, float | None]


@dataclass(frozen=True)
class Crosscheck:
    """The whole comparison; ``scores`` by method and program, for the file."""

    model: dict[str, Any]
    pairs: dict[str, Any]
    metric: str
    points: tuple[float, ...]
    scores: tuple[Agreement, ...]
    circuit: CircuitAgreement
    versions: dict[str, str]
    seconds: dict[str, float]
    notes: tuple[str, ...]
    values: Mapping[str, Scores]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the edges."""
        return {
            "format": FORMAT,
            "version": 1,
            **picked(self, "model", "pairs", "metric"),
            "points": list(self.points),
            "conventions": [{"what": what, "here": here, "auto-circuit": there} for what, here, there in CONVENTIONS],
            "scores": [asdict(item) for item in self.scores],
            "circuit": asdict(self.circuit),
            "versions": self.versions,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }

    def edges(self) -> list[dict[str, Any]]:
        """A row for every edge: its name here and there, and every score."""
        graph = next(iter(self.values.values())).graph
        return [
            {
                "edge": str(edge),
                "auto-circuit": autocircuit_name(edge),
                **{name: scores.values[graph.index(edge)].item() for name, scores in self.values.items()},
            }
            for edge in graph.edges()
        ]


def crosscheck(
    model: Model,
    folder: str | Path,
    stored: StoredCircuit,
    task: Task,
    python: str | Path,
    options: CrosscheckOptions,
    *,
    stage: Callable[[str], Any] | None = None,
) -> Crosscheck:
    """Score and measure a run's circuit here and in auto-circuit, on the same weights and token ids, in float32.

    Parameters
    ----------
    model, folder
        The model, and the Hugging Face folder it was loaded from.
    stored, task
        The run's circuit, and the pairs to use.
    python
        The interpreter of auto-circuit's environment (``peers_python``).
    stage
        Called with the name of what begins.

    Raises
    ------
    ModelError, OptionError, TaskError
        auto-circuit cannot take this model, this metric or these pairs; the message says why.
    PersonaCircuitsError
        auto-circuit's process ended.
    """
    options = options.checked()
    stage = stage or untold_stage
    metric, steps, points = _plan(stored, options)
    check_model(folder)
    if stored.circuit.graph != model.graph:
        raise OptionError(f"the circuit is not of {model.name}'s graph; give the model it was found in with --model")
    split = options.split or (stored.record or {}).get("task", {}).get("split") or split_of(task, None, "train")
    without_forms(task.pairs, "auto-circuit")
    every = encode(task.of_split(split), model)
    chosen = every[: options.n_pairs or len(every)]
    rows = with_swap_rows(chosen) if metric.swap_rows else tuple(chosen)
    peer_rows = autocircuit_rows(rows, metric)
    groups = batches(rows, options.batch_size, model.device)
    stage("scores and circuit here")
    values, own_faithfulness = _own_numbers(model, groups, metric, stored.circuit, steps, points)
    with AutoCircuit(python) as peer:
        stage("auto-circuit: loading")
        loaded = peer.load(folder, peer_rows, batch_size=options.batch_size)
        replies = _peer_numbers(peer, stored.circuit, PEER_METRICS[metric.name], points, options, stage)
    values |= {
        f"auto-circuit {name}": from_prune_scores(_arrays(reply["scores"])) for name, reply in replies[0].items()
    }
    agreements, notes = _agreements(values, stored, method_complete=len(chosen) == len(every), split=split)
    return Crosscheck(
        model={"name": model.name, "fingerprint": model.fingerprint, "dtype": model.format},
        pairs={"source": task.source, "sha256": task.sha256, "split": split, "n_pairs": len(chosen), "of": len(every)},
        metric=metric.name,
        points=points,
        scores=agreements,
        circuit=CircuitAgreement(len(stored.circuit), own_faithfulness, replies[1]),
        versions=loaded["versions"],
        seconds={name: reply["seconds"] for name, reply in replies[0].items()},
        notes=notes,
        values=values,
    )


def agreement(what: str, ours: Scores, theirs: Scores, *, same_quantity: bool = True, n_top: int = 100) -> Agreement:
    """How well two sets of scores of one graph agree, over all edges.

    Raises:
        OptionError: they are of different graphs.
    """
    from scipy.stats import rankdata

    if ours.graph != theirs.graph:
        raise OptionError(f"{what}: the scores are of different graphs, {ours.graph} and {theirs.graph}")
    valid = ours.graph.valid
    a, b = ours.values[valid], theirs.values[valid]
    src, dst = np.nonzero(valid)
    worst, largest = int(np.abs(a - b).argmax()), float(np.abs(a).max())
    strong = np.abs(a) > 1e-3 * largest
    n_top = min(n_top, len(a))
    best = [set(np.lexsort((np.arange(len(x)), -np.abs(x)))[:n_top].tolist()) for x in (a, b)]
    difference = float(abs(a[worst] - b[worst]))
    return Agreement(
        what=what,
        same_quantity=same_quantity,
        n_edges=len(a),
        pearson=_correlation(a, b),
        spearman=_correlation(rankdata(a), rankdata(b)),
        same_sign=float((np.sign(a) == np.sign(b))[strong].mean()) if strong.any() else 1.0,
        largest=largest,
        largest_difference=difference,
        relative=difference / largest if largest else 0.0,
        at=str(ours.graph.edge(int(src[worst]), int(dst[worst]))),
        top=len(best[0] & best[1]),
        n_top=n_top,
    )


def compare_with_file(stored: StoredCircuit, path: str | Path) -> Agreement:
    """A run's own scores against a file of auto-circuit's scores; the scale is theirs, so look at the correlations.

    Raises:
        OptionError: the run has no scores of all edges.
        FileError: a file cannot be used.
    """
    file = stored.path.parent / "scores.safetensors"
    if not file.is_file():
        raise OptionError(f"there is no {file} to compare with; discover writes one where it scores edges")
    return agreement(f"the run's scores, {Path(path).name}", read_scores(file), read_autocircuit_scores(path))


def write_crosscheck(result: Crosscheck, folder: str | Path) -> None:
    """Write ``crosscheck.json``, and ``crosscheck.csv`` with a row for every edge.

    Raises:
        FileError: the folder cannot be written.
    """
    rows = result.edges()
    with replace_folder(folder) as staging:
        write_json(result.as_dict(), staging / "crosscheck.json")
        with (staging / "crosscheck.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


AGREEMENTS = (
    Column("", "what"),
    Column("Pearson", "pearson", ".6f", "undefined"),
    Column("Spearman", "spearman", ".4f", "undefined"),
    Column("difference", "largest_difference", ".1e"),
    Column("relative", "relative", ".1e"),
    Column("at", "at"),
    Column("top edges", lambda item: f"{item.top}/{item.n_top}"),
)


def agreement_table(agreements: Sequence[Agreement]) -> Table:
    """A row per set of scores."""
    return Table("scores of all edges, here and there", AGREEMENTS, agreements)


def circuit_table(result: Crosscheck) -> Table:
    """A row each for m(full), m(empty), m(C) and f: here, there, and the difference."""
    names = {"full": "m(full)", "empty": "m(empty)", "circuit": "m(circuit)", "faithfulness": "faithfulness"}
    columns = (
        "",
        Column("here", 1, "+.5f", "undefined"),
        Column("auto-circuit", 2, "+.5f", "undefined"),
        Column("difference", lambda row: None if None in row else abs(row[1] - row[2]), ".1e"),
    )
    rows = [(name, result.circuit.ours[key], result.circuit.theirs[key]) for key, name in names.items()]
    return Table(f"circuit of {result.circuit.n_edges:,} edges, {result.metric}", columns, rows)


def _plan(stored: StoredCircuit, options: CrosscheckOptions) -> tuple[Metric, int, tuple[float, ...]]:
    """The metric, and EAP-IG's points as shares of the way from corrupt to clean."""
    record = stored.record or {}
    if record.get("ablation", "corrupt") != "corrupt":
        raise OptionError(
            f"the circuit was found with ablation {record['ablation']}; "
            "the second opinion covers the corrupt run's values only"
        )
    metric = METRICS[record.get("task", {}).get("metric", "persona-divergence")]
    method = record.get("method", {})
    steps = options.steps or method.get("steps") or 5
    offset = 0.0 if method.get("ig_rule") == "authors" else 0.5
    return metric, steps, tuple((k + offset) / steps for k in range(steps))


def _own_numbers(
    model: Model, groups: Sequence[Batch], metric: Metric, circuit: Circuit, steps: int, points: Sequence[float]
) -> tuple[dict[str, Scores], dict[str, float | None]]:
    rule = "authors" if points[0] == 0.0 else "midpoint"
    scores = {"EAP": eap(model, groups, metric), "EAP-IG": eap_ig(model, groups, metric, steps=steps, rule=rule)}
    masks = [c.mask for c in (Circuit.full(model.graph), Circuit.empty(model.graph), circuit)]
    full, empty, m = measure(model, (prepare(model, group) for group in groups), masks, metric).mean(axis=1)
    return scores, _faithfulness(float(full), float(empty), float(m))


def _peer_numbers(
    peer: AutoCircuit,
    circuit: Circuit,
    metric: str,
    points: Sequence[float],
    options: CrosscheckOptions,
    stage: Callable[[str], Any],
) -> tuple[dict[str, dict[str, Any]], dict[str, float | None]]:
    stage("auto-circuit: EAP")
    replies = {"EAP": peer.ask(do="eap", metric=metric)}
    stage("auto-circuit: EAP-IG")
    replies["EAP-IG"] = peer.ask(do="eap-ig", shares=[*points], metric=metric)
    if options.mask_ig:
        stage("auto-circuit: mask IG")
        replies["mask IG"] = peer.ask(do="mask-ig", samples=len(points), metric=metric)
    stage("auto-circuit: circuit")
    means = peer.ask(do="means", metric=metric)
    m = peer.ask(do="circuit", edges=[str(edge) for edge in circuit.edges()], metric=metric)["mean"]
    return replies, _faithfulness(means["full"], means["empty"], m)


def _faithfulness(full: float, empty: float, m: float) -> dict[str, float | None]:
    span = full - empty
    return {
        "full": full,
        "empty": empty,
        "circuit": m,
        "faithfulness": (m - empty) / span if abs(span) > EQUAL * max(abs(full), abs(empty)) else None,
    }


def _agreements(
    values: Mapping[str, Scores], stored: StoredCircuit, *, method_complete: bool, split: str
) -> tuple[tuple[Agreement, ...], tuple[str, ...]]:
    agreements = [agreement(name, values[name], values[f"auto-circuit {name}"]) for name in ("EAP", "EAP-IG")]
    if "auto-circuit mask IG" in values:
        agreements.append(
            agreement(
                "EAP-IG here, mask IG there", values["EAP-IG"], values["auto-circuit mask IG"], same_quantity=False
            )
        )
    record, notes = stored.record or {}, []
    own = {"eap": "EAP", "eap-ig": "EAP-IG"}.get(record.get("method", {}).get("scores") or "")
    file = stored.path.parent / "scores.safetensors"
    if own is None or not file.is_file():
        notes.append("the run has no EAP or EAP-IG scores of its own to compare; they were computed again here")
    elif not method_complete or record["task"]["split"] != split:
        notes.append("the run's own scores are over all pairs of its split; to compare them too use --n-pairs 0")
    else:
        agreements.append(agreement(f"the run's {own}", read_scores(file), values[f"auto-circuit {own}"]))
    return tuple(agreements), tuple(notes)


def _arrays(scores: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array(values, dtype=np.float64) for name, values in scores.items()}


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else None
