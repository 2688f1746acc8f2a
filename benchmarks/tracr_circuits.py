"""Circuits that tracr compiled, as ground truth: which scorers and pruners find the edges that the programs use.

    python benchmarks/tracr_circuits.py --page docs/methods.md

AUROC and average precision are of |score| over all edges, on the training pairs; "over .01" are the edges that score
.01 of |D| or more, less dead ends, and the circuit at .8 is the smallest, by |score| or by gates, that keeps .8 of the
effect. Before, noise of ``FLOOR`` times |D| is added to every score, and ranks are means over 30 draws: smaller scores
come of the norm that the converted model has and tracr's has not, and of rounding; they would rank edges whose
gradient is 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from methods import FINISH, LEARN, SCORERS, STEPS, TARGET
from sklearn.metrics import average_precision_score, roc_auc_score
from tables import markdown_table, replace_section
from tracr_models import Compiled, compiled_programs

from persona_circuits.circuit.attribution import Scoring, random_scores, score
from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.discovery.stages import set_up
from persona_circuits.circuit.errors import PersonaCircuitsError
from persona_circuits.circuit.evaluation.curves import smallest
from persona_circuits.circuit.forward import divergence, prepare
from persona_circuits.circuit.progress import untold_stage
from persona_circuits.circuit.pruning import threshold
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit

COLUMNS = (
    *("program", "method", "AUROC", "average precision"),
    *("over .01", "of them true", "edges at .8", "of them true", "true edges", "edges"),
)
SHARE, FLOOR, N_DRAWS = 0.01, 3e-6, 30
SCORED = (*SCORERS, "exact", "random")
SEARCHED: dict[str, dict[str, Any]] = {
    LEARN: {"prune": "learn", "target_faithfulness": TARGET},
    "random, learned gates": {"method": "random", "prune": "learn", "target_faithfulness": TARGET},
    "random, finish": {"method": "random", "finish": FINISH, "target_faithfulness": TARGET},
    "acdc": {"prune": "acdc", "threshold": SHARE},
}


def rows_of(program: Compiled) -> Iterator[tuple[str, ...]]:
    """Every method on one program, random scores last."""
    model = program.model()
    truth = Circuit.of(model.graph, program.true_edges)
    setting = set_up(model, program.task, Options(target_faithfulness=TARGET).checked(), untold_stage)
    runs, metric = setting.train.runs, setting.metric
    span = abs(divergence([prepare(model, batch) for batch in runs.batches], metric))
    known = str(len(truth)), f"{model.graph.n_edges:,}"
    searches = [(name, *_searched(program, options, truth)) for name, options in SEARCHED.items()]
    for name in SCORED:
        if name == "random":
            yield from ((program.name, one, *[""] * 4, *cells, *known) for one, *cells in searches)
            draws = [random_scores(model.graph, seed=seed) for seed in range(N_DRAWS)]
        else:
            draws = floored(score(model, runs.batches, metric, Scoring(name, STEPS)), FLOOR * span)
        least = smallest(model, runs, metric, draws[0], TARGET).circuit
        over = ("", "") if name == "random" else _against(threshold(draws[0], SHARE * span), truth)
        ranks = [f"{number:.3f}" for number in np.mean([ranking(draw, truth) for draw in draws], axis=0)]
        yield program.name, name, *ranks, *over, *_against(least, truth), *known


def floored(scores: Scores, floor: float) -> list[Scores]:
    """The scores with noise of this standard deviation, ``N_DRAWS`` times."""
    return [
        Scores(scores.graph, scores.values + floor * random_scores(scores.graph, seed=seed).values)
        for seed in range(N_DRAWS)
    ]


def ranking(scores: Scores, truth: Circuit) -> tuple[float, float]:
    """AUROC and average precision of |score| over all edges."""
    valid = scores.graph.valid
    true, strength = truth.mask[valid], np.abs(scores.values[valid])
    return float(roc_auc_score(true, strength)), float(average_precision_score(true, strength))


def _searched(program: Compiled, options: dict[str, Any], truth: Circuit) -> tuple[str, str]:
    found = discover(program.model(), program.task, Options(**options, n_random=0, steps=STEPS))
    return _against(found.circuit, truth)


def _against(found: Circuit, truth: Circuit) -> tuple[str, str]:
    """How many edges it has, and how many of them are true."""
    return str(len(found)), str(int((found.mask & truth.mask).sum()))


def main(argv: list[str] | None = None) -> int:
    """Print the table; 2 for bad input."""
    parser = argparse.ArgumentParser(description="Scorers and pruners on circuits that tracr compiled.")
    parser.add_argument("--program", action="append", help="balance, majority, answer or pointer; may be repeated")
    parser.add_argument("--write", type=Path, help="write the models as folders below this one, and no table")
    parser.add_argument("--page", type=Path, help="write the table into this page, between its marks")
    parser.add_argument("--section", default="tracr", help="name of the marks")
    args = parser.parse_args(argv)
    try:
        programs = [one for one in compiled_programs() if one.name in (args.program or [one.name])]
        if args.write:
            for program in programs:
                program.write(args.write / program.name)
            return 0
        rows = [row for program in programs for row in rows_of(program)]
        edges = [f"- `{one.name}`: {', '.join(f'`{edge}`' for edge in sorted(one.true_edges))}." for one in programs]
        text = f"{markdown_table(COLUMNS, rows, texts=2)}\n\nTrue edges:\n\n" + "\n".join(edges)
        print(text)
        if args.page:
            replace_section(args.page, args.section, text)
    except PersonaCircuitsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
