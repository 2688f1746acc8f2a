"""The question that a circuit answers, and the answer with its uncertainty, as sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_circuits.circuit.printable import signed
from persona_circuits.circuit.subgraph import Circuit

__all__ = ["answer_of"]


def answer_of(record: Mapping[str, Any], summary: Mapping[str, Any], circuit: Circuit) -> dict[str, str]:
    """``question``, ``answer`` and ``caution``, each a sentence or two; the last is empty where there is nothing."""
    share = f"{len(circuit):,} of {circuit.graph.n_edges:,} edges ({len(circuit) / circuit.graph.n_edges:.2%})"
    if not record:
        return {"question": "", "answer": f"The circuit keeps {share}; its file says nothing else.", "caution": ""}
    task, reports = record["task"], record.get("faithfulness", [])
    model = Path(record["model"]["name"]).name
    question = (
        f"Which edges of {model} carry what tells the two prompts of a pair apart into the answer "
        f"({task['metric']}, {signed(task['divergence'])} {task['unit']} on {task['n_pairs']} pairs)?"
    )
    if not len(circuit):
        lost = "The circuit is empty: at this threshold no path from input to logits is left."
        return {"question": question, "answer": lost, "caution": "Lower --threshold, or raise --top-n."}
    return {"question": question, "answer": _answer(share, reports, summary), "caution": _caution(record, reports)}


def _answer(share: str, reports: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    if not reports or reports[-1]["circuit"]["ratio_of_means"] is None:
        return f"The circuit keeps {share}; how much of the effect that is was not measured, or is undefined."
    report = reports[-1]
    circuit, interval, random = report["circuit"], report["circuit"]["interval"], report["random_mean"]
    held = "held-out pairs" if summary.get("held_out", report["split"] == "test") else f"pairs ({report['split']})"
    between = f" (95 % interval {interval['low']:.2f} to {interval['high']:.2f})" if interval else " (no interval)"
    against = "" if random is None else f" Random circuits of the same size and shape keep {random:.2f}"
    spread = "" if random is None or report["random_sd"] is None else f" ± {report['random_sd']:.2f}"
    rest = f"; all the other edges keep {report['complement']['ratio_of_means']:.2f}" if against else ""
    return f"{share} keep {circuit['ratio_of_means']:.2f}{between} of the effect on {report['n_pairs']} {held}." + (
        f"{against}{spread}{rest}." if against else ""
    )


def _caution(record: Mapping[str, Any], reports: Sequence[Mapping[str, Any]]) -> str:
    """Reasons not to take the answer at face value."""
    cautions = []
    interval = reports[-1]["circuit"]["interval"] if reports else None
    if interval and interval["high"] - interval["low"] > 0.5:
        cautions.append(
            f"The interval is wide: {reports[-1]['n_pairs']} pairs do not tell how faithful the circuit is."
        )
    gap = reports[-1].get("random_gap_interval") if reports else None
    if gap and gap["low"] <= 0:
        cautions.append("The interval of the lead over random circuits reaches zero.")
    stability = record.get("stability")
    if stability and stability["unstable"]:
        cautions.append(
            f"Unstable: other samples of pairs would select other edges (mean Jaccard {stability['jaccard']:.2f})."
        )
    return " ".join(cautions)
