"""Scores are computed once: saved with their inputs, and reused by a search that would compute the same.

They are in ``scores.state`` of the search's folder as soon as they are made, and in its ``scores.safetensors`` at the
end. Either says, in its metadata, in which weights, on which prompts and by which method they were made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from persona_circuits.circuit import parallel
from persona_circuits.circuit.choices import STEPPED
from persona_circuits.circuit.discovery.values import Setting
from persona_circuits.circuit.errors import FileError, OptionError
from persona_circuits.circuit.io import made_of, read_scores, write_scores
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.task import Row
from persona_circuits.metrics import METRICS

__all__ = ["NEW", "SCORES", "STATE", "digest_of", "keep", "made", "scores_at", "scores_near"]

SCORES, STATE = "scores.safetensors", "scores.state"
NEW = "new"
"""The value of ``scores`` with which nothing is reused."""
MOST_RUNS = 200
"""Most folders beside the search's own to look into."""
WORDS = {"model": "weights", "dtype": "number format", "pairs": "pairs", "scores": "method"}


def made(setting: Setting) -> dict[str, Any] | None:
    """What determines the scores of a search, as plain values; None where that is unknown."""
    options = setting.options
    known = METRICS.get(setting.metric.name) is setting.metric
    if options.prune == "acdc" or options.by_span or options.certify is not None or not known:
        return None
    own = {options.method, *options.of}
    steps = {"steps": options.steps, "ig_rule": options.ig_rule} if own & {*STEPPED} else {}
    if options.method == "mean-of":
        steps |= {"of": list(options.of), "normalise": options.normalise}
    if options.weigh != "pairs":
        steps |= {"weigh": options.weigh}
    drawn = {"seed": options.seed} if "random" in own or options.ablation == "optimal" else {}
    return {
        "model": setting.model.fingerprint,
        "dtype": setting.model.format,
        "metric": setting.metric.name,
        "pairs": digest_of(setting.train.rows),
        "scores": options.method,
        "ablation": options.ablation,
        "activations": options.activations,
        **steps,
        **drawn,
    }


def digest_of(rows: tuple[Row, ...]) -> str:
    """Of prompts and answers as tokens, whatever file they stand in."""

    def parts(row: Row) -> tuple[object, ...]:
        forms = () if row.forms is None else (row.forms.forms,)
        return (row.clean, row.corrupt, row.answers, row.wrong_answers, row.neutral, *forms)

    return hashlib.sha256(repr(list(map(parts, rows))).encode()).hexdigest()


def scores_near(folder: Path | None, setting: Setting) -> tuple[Scores, Path] | None:
    """The scores that this very search would make, and their file, in its folder or one beside it."""
    description = made(setting)
    if folder is None or description is None:
        return None
    first = (
        next((path for path in _places(folder) if _made_of(path) == description), None) if parallel.is_first() else None
    )
    path = parallel.gathered({"path": first} if first else {}).get("path")
    try:
        return None if path is None else (read_scores(path), path)
    except FileError:
        return None


def _places(folder: Path) -> Iterator[Path]:
    """Where scores may lie."""
    yield from (folder / SCORES, folder / STATE)
    yield from islice(sorted(folder.absolute().parent.glob(f"*/{SCORES}")), MOST_RUNS)


def _made_of(path: Path) -> Mapping[str, Any] | None:
    try:
        return made_of(path) if path.is_file() else None
    except FileError:
        return None


def scores_at(run: Path, setting: Setting) -> tuple[Scores, Path]:
    """The scores of a run, which must be those that this search would make.

    Raises:
        OptionError: they are of other weights, pairs or another method, or this search makes no such scores.
        FileError: there are none.
    """
    description = made(setting)
    if description is None:
        raise OptionError(
            "--scores has no effect here: --prune acdc has no scores, --by-span and --certify need them in parts, and "
            "those of a metric of one's own are not told apart; leave it out"
        )
    path = run / SCORES if run.is_dir() else run
    scores, own = read_scores(path), made_of(path)
    if own is None:
        raise OptionError(f"{path} does not say what its scores were made of; leave --scores out to make them again")
    for key in sorted(description.keys() | own.keys(), key=[*description, *own].index):
        if own.get(key) != description.get(key):
            plain = key in ("model", "pairs")
            shown = "" if plain else f" ({_shown(own.get(key))}, and here {_shown(description.get(key))})"
            raise OptionError(
                f"the scores of {path} are of other {WORDS.get(key, key)} than this search's{shown}; leave --scores "
                "out to make them anew"
            )
    return scores, path


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def keep(scores: Scores | None, folder: Path | None, setting: Setting) -> None:
    """Write scores that were just made, for the next search, before anything else is done with them."""
    if scores is None or folder is None or not parallel.is_first() or (description := made(setting)) is None:
        return
    write_scores(scores, folder / STATE, made=json.loads(json.dumps(description)))
