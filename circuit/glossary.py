"""The words of tables and figures: a plain label for each symbol, and what it says; docs/glossary.md is made of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["TERMS", "Term", "explained", "glossary_page", "labelled"]


class Term(NamedTuple):
    """A plain label, empty where the name is plain itself, and one sentence."""

    label: str
    says: str


TERMS = {
    "D": Term("persona effect", "log odds of A's answer against B's under persona A, less the same under B; logits"),
    "b": Term("prior", "log odds of A's answer against B's, averaged over both personas: what no persona decides"),
    "|b|": Term("prior", "size of b, the log odds of A's answer against B's averaged over both personas"),
    "PDR": Term("prior's share", "|b| / (|b| + |D|/2), median of the pairs; from 1/2 on both personas choose alike"),
    "g*": Term("required gain", "2|b| / |D|: how much the persona effect must grow for the personas to choose apart"),
    "gain > g*": Term("", "share of pairs whose persona effect has grown beyond the required gain g*"),
    "gain": Term("", "D steered by D unsteered; in explain the required gain g*"),
    "sigma_0": Term(
        "paraphrase spread", "spread of D between two wordings of one persona; |D| below twice that is no signal"
    ),
    "mass": Term("on options", "probability of the question's options together; below .2 the question is at fault"),
    "collapse": Term("", "share of pairs where both personas give one answer, of all options of the question"),
    "agree": Term("same side", "share of pairs where both personas prefer the same of the two declared answers"),
    "as foretold": Term("", "of pairs with D > 0, the share that part exactly where the gain is above g*"),
    "parted": Term("", "share of pairs in which A's margin is above zero and B's below"),
    "b moves": Term("prior moves", "mean absolute change of the prior b; logits"),
    "covariance": Term("", "gains of directions drawn with the covariance of the model's own activity, least to most"),
    "KL": Term("", "divergence of the answers on neutral prompts from those of the unchanged model; nats"),
    "signal": Term(
        "",
        "distance of the streams of A and B by that of any two prompts, at persona and answer; the most of any layer",
    ),
    "eta": Term(
        "readout alignment",
        "cosine of the difference of A's and B's streams with the gradient of the margin, at the answer",
    ),
    "kappa": Term("cancellation", "1 - |sum| / sum of |contributions|; at 1 what is written to the logits cancels"),
    "access": Term("", "how much |D| falls as attention on the persona is turned down: d ln|D| / dc"),
    "halves": Term(
        "reliability", "cosine of a persona's vectors from questions of even and odd place: what is not noise"
    ),
    "halves agree": Term(
        "reliability", "cosine of a persona's vectors from questions of even and odd place, averaged over personas"
    ),
    "identified": Term(
        "", "share of personas whose half is nearest to its own other half; chance is one in their number"
    ),
    "slots": Term("inputs", "what reads the stream: queries, keys and values of heads, MLPs, logits"),
    "m": Term("", "the metric, mean over pairs, higher for the clean prompt's persona"),
    "faithfulness": Term("", "(m - m(empty)) / (m(full) - m(empty)): 1 as the whole model, 0 as no edge at all"),
    "mean of ratios": Term("", "each pair's own faithfulness, averaged; pairs of little effect can carry it away"),
    "median of ratios": Term("", "the median of the pairs' own faithfulness"),
    "CPR": Term("", "area under faithfulness over the share of edges; no upper bound"),
    "CMD": Term("", "area between faithfulness and 1; 0 is best"),
    "AUROC": Term("", "chance that an edge of the circuit scores above one that is not in it"),
    "mean Jaccard": Term("", "edges in both of two circuits, of those in either; mean over resampled pairs"),
    "score": Term("", "change of the metric if this edge alone is corrupted; negative: it carries persona A"),
}


def labelled(name: str) -> str:
    """A column's name with its plain label, the symbol in parentheses: a word a line, so that columns stay narrow."""
    label = TERMS[name].label if name in TERMS else ""
    return "\n".join([*label.split(), f"({name})"]) if label else name


def explained(names: Iterable[str]) -> list[str]:
    """A line on each of the names that the glossary knows, each once."""
    return [f"  {name}: {TERMS[name].says}" for name in dict.fromkeys(names) if name in TERMS]


def glossary_page() -> str:
    """``docs/glossary.md``."""
    head = (
        "# Glossary\n\nThe words of tables and figures. Plain labels stand first, symbols in parentheses; "
        "\n`persona-circuits COMMAND --explain` puts these lines under every table.\n\n"
        "| in tables | plain label | what it says |\n|---|---|---|\n"
    )
    rows = (
        f"| {_cell(name)} | {term.label or name.replace('|', '')} | {_cell(term.says)} |\n"
        for name, term in TERMS.items()
    )
    return head + "".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
