"""Every scorer and pruner on the same pairs: how many edges they need, and what those are worth on pairs held out.

    python benchmarks/methods.py --page docs/methods.md
    python benchmarks/methods.py --model FOLDER --pairs FILE --page docs/methods.md

A row is a whole ``discover``: the smallest circuit that reaches f of .8 on the training pairs, measured on the
test pairs beside random circuits of its own size; beside its size are those for .5 and .9. CMD is over the standard
shares of edges, on the test pairs. Stability is the mean Jaccard of circuits of that size over 100 resamples of the
training pairs' personas and questions. Passes are those of a pair's scores, in forward passes, by their operations; CPU
seconds are of the process, scoring and pruning together, measuring left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tables import markdown_table, replace_section

from persona_circuits.circuit.assessment import CurveOptions, curve_study
from persona_circuits.circuit.attribution import Scoring
from persona_circuits.circuit.choices import BY_ROW
from persona_circuits.circuit.cost import runs_of_scores
from persona_circuits.circuit.discovery import Discovery, Options, discover
from persona_circuits.circuit.discovery.stages import set_up
from persona_circuits.circuit.errors import PersonaCircuitsError
from persona_circuits.circuit.evaluation import Rule, pair_scores
from persona_circuits.circuit.evaluation.curves import Spread, smallest
from persona_circuits.circuit.evaluation.curves.sweep_files import f_by_size
from persona_circuits.circuit.evaluation.stability import stability_report
from persona_circuits.circuit.figures import Chart, Curve, png_bytes
from persona_circuits.circuit.model import Model, load_model
from persona_circuits.circuit.progress import untold_stage
from persona_circuits.circuit.reporting.curves import COLOURS
from persona_circuits.circuit.task import MODEL, Task, encode, load_task, resolve
from persona_circuits.circuit.task.shipped_files import PAIRS

SCORERS = ("eap", "relp", "gim", "atp-star", "clean-corrupted", "ceap", "eap-ig", "eap-ig-activations")
TARGET, BESIDE = 0.8, (0.5, 0.9)
STEPS = 5
LEARN = "eap-ig, learned gates"
FINISH = 0.002
"""Share of |D| that an edge must be worth after an exact finish."""
OTHERS: dict[str, dict[str, Any]] = {
    "mean of eap-ig, gim": {"method": "mean-of", "of": ("eap-ig", "gim")},
    LEARN: {"prune": "learn"},
    "eap-ig, finish": {"finish": FINISH},
    f"{LEARN}, finish": {"prune": "learn", "finish": FINISH},
}
COLUMNS = (
    "model",
    "pairs",
    "method",
    "edges at .5",
    "at .8",
    "at .9",
    "of",
    "f, training",
    "f, held out",
    "95 % interval",
    "median of ratios",
    "random, matched",
    "CMD",
    "stability",
    "passes",
    "CPU s",
)


class Kept:
    """Rows by what they are of, in a file if there is one: a run that was stopped goes on."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: dict[str, Any] = json.loads(path.read_text()) if path and path.exists() else {}

    def of(self, key: str, make: Callable[[], Any]) -> Any:
        """What is kept, else what is made now."""
        if key not in self.rows:
            self.rows[key] = make()
            if self.path:
                self.path.write_text(json.dumps(self.rows, indent=1))
        return self.rows[key]


def rows_of(model: Model, task: Task, args: argparse.Namespace, kept: Kept) -> list[list[str]]:
    """Every method on one model, the control last."""
    same: dict[str, Any] = {"target_faithfulness": TARGET, "n_random": args.n_random, "steps": STEPS}
    key, scorers = _key(model, task, args), _scorers(args)
    asked = {name: {"method": name} for name in scorers} | OTHERS | {"random": {"method": "random"}}
    curves = {name: _curve(name, model, task, args, kept) for name in (*scorers, "random")}
    rows = []
    for name, options in asked.items():
        if name in args.without:
            continue
        steps = {"train_steps": args.train_steps} if options.get("prune") == "learn" else {}
        wanted = Options(**same, **options, **steps)
        cmd = curves[name]["cmd"] if name in curves else None
        rows.append(kept.of(f"{key} {wanted!r}", lambda n=name, w=wanted, c=cmd: _row(n, model, task, w, c)))
        print(*rows[-1], sep=" | ", flush=True)
    return rows


def _key(model: Model, task: Task, args: argparse.Namespace) -> str:
    """What a model's kept results are of."""
    return f"{model.fingerprint} {task.sha256} {len(task)} {args.n_random}"


def _scorers(args: argparse.Namespace) -> tuple[str, ...]:
    return tuple(name for name in SCORERS if name not in args.without)


def _curve(name: str, model: Model, task: Task, args: argparse.Namespace, kept: Kept) -> dict[str, Any]:
    """A scorer's faithfulness on held-out pairs by share of edges, and its CMD; of random ones the means."""

    def made() -> dict[str, Any]:
        options = CurveOptions(scorers=(name,), orders=("absolute",), n_random=args.n_random)
        report = curve_study(model, task, options).report
        (line,) = report.bands or report.curves
        shares, means = [point.share for point in line.points], [_mean(point.faithfulness) for point in line.points]
        return {"cmd": _mean(line.cmd), "shares": shares, "f": means, "pairs": report.n_pairs}

    return kept.of(f"{_key(model, task, args)} curve {name}", made)


def _mean(value: Spread | float | None) -> float | None:
    return value.mean if isinstance(value, Spread) else value


def figure(model: Model, task: Task, args: argparse.Namespace, kept: Kept) -> Chart:
    """f on held-out pairs against the share of edges kept in the order of |score|: every scorer, and random orders."""
    lines = []
    for i, name in enumerate(_scorers(args)):
        curve = _curve(name, model, task, args, kept)
        dash = "solid" if i < len(COLOURS) else "dash"
        lines.append(Curve(name, curve["shares"], curve["f"], colour=COLOURS[i % len(COLOURS)], dash=dash))
    random = _curve("random", model, task, args, kept)
    lines.append(Curve("random", random["shares"], random["f"], colour="#8a8a8a", dash="dot"))
    title = f"{Path(model.name).name}: faithfulness by share of edges, {random['pairs']} held-out pairs"
    return f_by_size(lines, title, "share of edges kept")


def _row(name: str, model: Model, task: Task, options: Options, cmd: float | None) -> list[str]:
    """A method's smallest circuit on one model, as cells."""
    begun, spent = time.process_time(), 0.0

    def stage(what: str) -> Callable[[int, int], None]:
        nonlocal spent
        if what.startswith("faithfulness on") and not spent:  # measuring begins
            spent = time.process_time() - begun
        return lambda *_: None

    found = discover(model, task, options, stage=stage)
    spent = spent or time.process_time() - begun
    train, held_out = found.reports[0].circuit, found.reports[-1]
    f, interval = held_out.circuit, held_out.circuit.interval
    sizes, stable = _more(model, task, options, found)
    tokens = max(len(row.clean) for row in encode(task, model))
    cost = [runs_of_scores(model.architecture(), tokens, one, steps=STEPS) for one in options.of or (options.method,)]
    return [
        *(name, sizes[0], f"{len(found.circuit):,}", sizes[1], f"{found.circuit.graph.n_edges:,}"),
        *(_number(train.ratio_of_means), _number(f.ratio_of_means)),
        "" if interval is None else f"{interval.low:.2f} to {interval.high:.2f}",
        *(_number(f.median_of_ratios), _number(held_out.random_mean), _number(cmd), stable),
        *("0" if name == "random" else f"{2 * sum(cost):.0f}", f"{spent:.0f}"),
    ]


def _more(model: Model, task: Task, options: Options, found: Discovery) -> tuple[list[str], str]:
    """Sizes at the other faithfulnesses, and the stability at this one; empty where scores alone do not give them."""
    if options.prune == "learn" or options.finish is not None or found.scores is None or found.smallest is None:
        return [""] * len(BESIDE), ""
    setting = set_up(model, task, options.checked(), untold_stage)
    runs, metric = setting.train.runs, setting.metric
    sizes = [f"{len(smallest(model, runs, metric, found.scores, at).circuit):,}" for at in BESIDE]
    if options.method not in BY_ROW:
        return sizes, ""
    pairs = pair_scores(model, runs.batches, metric, Scoring(options.method, STEPS))
    rule, clusters = Rule("top-n", n=found.smallest.n), setting.train.clusters
    stable = stability_report(pairs, found.circuit, rule, clusters=clusters, n_resamples=100)
    return sizes, _number(stable.jaccard)


def table(results: dict[tuple[str, str], list[list[str]]]) -> str:
    """All models' rows as Markdown, and below what they say of EAP-IG."""
    cells = [(*key, *row) for key, rows in results.items() for row in rows]
    said = [
        claims(model, [dict(zip(COLUMNS[2:], row, strict=True)) for row in rows])
        for (model, _), rows in results.items()
    ]
    return f"{markdown_table(COLUMNS, cells, texts=3)}\n\n" + "\n".join(said)


def claims(model: str, rows: list[dict[str, str]]) -> str:
    """Who needs at most half of EAP-IG's edges at f of .8, and whose CMD is below its, by the table's own numbers."""
    base = next(row for row in rows if row["method"] == "eap-ig")
    sizes = {row["method"]: int(row["at .8"].replace(",", "")) for row in rows}
    halves = [f"{name} ({n:,})" for name, n in sizes.items() if 2 * n <= sizes["eap-ig"]]
    below = [f"{row['method']} ({row['CMD']})" for row in rows if row["CMD"] and float(row["CMD"]) < float(base["CMD"])]
    return (
        f"- {model}: at most half of the {sizes['eap-ig']:,} edges of eap-ig at .8 need {', '.join(halves) or 'none'}; "
        f"a CMD below its {base['CMD']} have {', '.join(below) or 'none'}."
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def main(argv: list[str] | None = None) -> int:
    """Print the table; 2 for bad input."""
    parser = argparse.ArgumentParser(description="Every scorer and pruner on the same pairs.")
    parser.add_argument("--model", action="append", help="folder, name or hub name; may be repeated")
    parser.add_argument("--pairs", action="append", help="pair file, one for each model")
    parser.add_argument("--max-pairs", type=int, help="of each split, the first")
    parser.add_argument("--without", action="append", default=[], help="method to leave out; may be repeated")
    parser.add_argument("--train-steps", type=int, default=200, help="of learned gates")
    parser.add_argument("--n-random", type=int, default=10)
    parser.add_argument("--page", type=Path, help="write the table into this page, between its marks")
    parser.add_argument("--section", default="methods", help="name of the marks")
    parser.add_argument("--figures", type=Path, help="folder for a picture of f against edges for every model")
    parser.add_argument("--kept", type=Path, help="file in which rows are kept, so that a stopped run goes on")
    args = parser.parse_args(argv)
    models, pairs = args.model or [MODEL], args.pairs or [PAIRS]
    if len(models) != len(pairs):
        parser.error("give a --pairs for every --model")
    results, kept = {}, Kept(args.kept)
    try:
        for name, file in zip(models, pairs, strict=True):
            model, task = load_model(resolve(name), label=Path(name).name), load_task(resolve(file))
            if args.max_pairs is not None:
                task = replace(task, pairs=sum((task.of_split(one).pairs[: args.max_pairs] for one in task.splits), ()))
            key = (Path(name).name, Path(file).stem)
            results[key] = rows_of(model, task, args, kept)
            print(table({key: results[key]}), flush=True)
            if args.figures:
                picture = png_bytes(figure(model, task, args, kept))
                (args.figures / f"methods-{key[0]}.png").write_bytes(picture)
    except PersonaCircuitsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.page:
        replace_section(args.page, args.section, table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
