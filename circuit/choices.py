"""The names that options may have: methods, pruners, metrics, ablations, number formats.

Each name is explained where it is implemented; this list loads none of that.
"""

from __future__ import annotations

__all__ = [
    "ABLATIONS",
    "ACTIVATIONS",
    "ALIGNMENTS",
    "AT_CLEAN",
    "BY_ROW",
    "DTYPE_NAMES",
    "ENSEMBLES",
    "FRAMES",
    "GRADIENTS",
    "IG_RULES",
    "LEVELS",
    "METHODS",
    "METRIC_NAMES",
    "ORDERS",
    "PLAIN_GRADIENTS",
    "PROMPT_FORMATS",
    "PRUNERS",
    "RESOLUTIONS",
    "RULED",
    "SEARCH_METHODS",
    "STEPPED",
    "THRESHOLD_UNITS",
    "WEIGHINGS",
]

GRADIENTS = ("eap", "eap-ig", "eap-ig-activations", "clean-corrupted", "ceap", "relp", "gim")
"""Ways to score edges by gradients, or by what backward rules make of them: their scores are sums over positions."""
PLAIN_GRADIENTS = ("eap", "eap-ig", "clean-corrupted", "relp", "gim")
"""Those of them that take a source's whole change times gradients at some runs: neurons are scored so too."""
METHODS = (*GRADIENTS, "atp-star", "exact", "random")
SEARCH_METHODS = (*METHODS, "mean-of")
"""What a search may score with: ``mean-of`` several of the others."""
ENSEMBLES = ("scale", "rank")
AT_CLEAN = ("eap", "relp", "gim", "atp-star")
"""Those whose gradient is that at the clean run alone."""
BY_ROW = (*GRADIENTS, "atp-star", "exact")
"""Those with scores of single pairs."""
"""How edges are scored: ``circuit.attribution``."""
RULED = ("eap-ig", "eap-ig-activations")
"""Those that take an integral by a rule."""
STEPPED = (*RULED, "ceap")
"""Those that go in steps."""
IG_RULES = ("midpoint", "authors")
ACTIVATIONS = ("float32", "bfloat16")
"""Formats of the matrix products of scores."""
PRUNERS = ("threshold", "top-n", "greedy", "acdc", "eap-acdc", "learn")
"""How a circuit is chosen: ``circuit.pruning``."""
RESOLUTIONS = ("edge", "span")
"""Whether a circuit keeps an edge everywhere, or at named parts of the prompt."""
WEIGHINGS = ("pairs", "couples")
"""How pairs count in the scores: by their own effect, or every couple of personas alike."""
THRESHOLD_UNITS = ("score", "share")
METRIC_NAMES = ("persona-divergence", "logit-diff", "prob-diff", "kl")
"""The keys of ``metrics.METRICS``."""
ABLATIONS = ("corrupt", "neutral", "zero", "mean", "span-mean", "optimal")
"""What an edge outside the circuit carries: ``circuit.forward.ablation``."""
ALIGNMENTS = ("equal", "right")
"""Of a pair's prompts: of one length, or aligned on their common end."""
LEVELS = ("edge", "node")
ORDERS = ("absolute", "signed")
"""What curves keep of a graph, and in which order of the scores."""
DTYPE_NAMES = ("float32", "bfloat16-weights", "bfloat16", "float16", "float64")
"""The keys of ``circuit.model.DTYPES``."""
PROMPT_FORMATS = ("cue", "first-person", "interview", "few-shot", "chat-cue", "options", "letters")
"""Ways to put a question whose answer is one word: ``persona.data.formats``."""
FRAMES = ("you", "again", "friend", "book", "past", "not", "nobody")
"""Of whom a persona is said: ``persona.pairs.frames``."""
