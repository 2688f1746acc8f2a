"""A whole study of one model: every stage in a row, its numbers in one table, predictions held against them, a report.

1. every stage runs by the public function that its command uses and writes into its own folder, together with
   ``stage.json``: its numbers, notes, and the SHA-256 of all that it depends on;
2. a stage whose folder holds that SHA-256 is not run again;
3. what a model or a file does not allow is a note and no error, and its numbers are absent;
4. the numbers of all stages, plans of predictions, and the report are written anew after every stage;
5. a stage that is stopped keeps what it has done in ``work/STAGE``, which goes when the stage is finished;
6. where the options have little probability, nothing but behaviour is studied (``--least-mass``).

Nothing that is written depends on the clock: the same study gives the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import FileError, OptionError
from persona_circuits.circuit.figures import picked, plain, write_csv
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Stage, untold_stage
from persona_circuits.circuit.storage import Kind, read_json, replace_folder, tell_damaged, write_json, write_text
from persona_circuits.persona.study.context import Context, StudyFiles
from persona_circuits.persona.study.cost import told
from persona_circuits.persona.study.numbers import Number, StageNumbers, number_rows
from persona_circuits.persona.study.options import StudyOptions
from persona_circuits.persona.study.predictions import Plan, outcome_records, outcomes
from persona_circuits.persona.study.report import report
from persona_circuits.persona.study.stages import (
    run_across,
    run_attention,
    run_behaviour,
    run_causes,
    run_circuit,
    run_contrasts,
    run_frames,
    run_gates,
    run_patch,
    run_prediction,
    run_prior,
    run_steering,
    run_where,
)
from persona_circuits.persona.study.values import StageResult, Study

__all__ = ["STAGES", "run_study"]

STAGES: Mapping[str, Callable[[Context, Path], StageNumbers]] = {
    "behaviour": run_behaviour,
    "contrasts": run_contrasts,
    "frames": run_frames,
    "across": run_across,
    "attention": run_attention,
    "prediction": run_prediction,
    "causes": run_causes,
    "prior": run_prior,
    "where": run_where,
    "gates": run_gates,
    "circuit": run_circuit,
    "steering": run_steering,
    "patch": run_patch,
}
RECORDS = ("stage", "circuit", "real_circuits_1", "summary", "comparison", "specificity", "calibration")
PICTURES = (
    *("divergence-by-prior", "frames", "levels-divergence", "levels-collapse", "verdicts", "signal", "persistence"),
    *("lens-divergence", "probe-identity", "probe-preference", "graph", "difference", "specificity"),
    *("gain", "flips", "movers", "across", "attention", "prediction", "prior", "gates"),
)
"""What a compact study keeps besides tables: records of circuits, and the pictures that say most."""
SEARCHES = ("acdc", "smallest", "specificity", "frames", "gates")
"""Of these folders it keeps no picture of a graph."""
COLOURS = 128
"""Of a compact study's pictures."""


def run_study(
    model: Model,
    files: StudyFiles,
    out: str | Path,
    *,
    options: StudyOptions | None = None,
    only: Sequence[str] = (),
    plans: Sequence[Plan] = (),
    stage: Stage | None = None,
) -> Study:
    """Run what is not finished, and write ``numbers.json``, ``numbers.csv``, ``predictions.*`` and ``report.md``.

    Parameters
    ----------
    only
        The stages to run; others count where they are finished. All, if empty.
    stage
        Called when a part of the work begins, with its name; gives the function that is called with its progress.

    Returns
    -------
    The named numbers, the predictions held against them, and which stages were run.

    Raises
    ------
    OptionError
        There is no such stage, or a number among the options is out of range.
    TaskError
        A file is malformed; all its faults are listed.
    FileError
        A folder of ``out`` holds something else than a stage, or cannot be written.
    """
    options, out, stage = (options or StudyOptions()).checked(), Path(out), stage or untold_stage
    if unknown := [name for name in only if name not in STAGES]:
        raise OptionError(f"--only: {unknown[0]!r} is not one of {', '.join(STAGES)}")
    context = Context(model, files, options, stage)
    for name in STAGES:
        _finished(out / name, name, "")  # a folder that is no stage is refused before the first one runs
    known = {name: _finished(out / name, name, context.digest(name)) for name in STAGES}
    results = {name: result for name, result in known.items() if result is not None}
    study = _written(results, context, plans, out) if results else None
    for name in [name for name in STAGES if name not in results and (not only or name in only)]:
        if low := _too_little(results, options):
            results["behaviour"] = replace(results["behaviour"], notes=(*results["behaviour"].notes, low))
            study = _written(results, context, plans, out)
            break
        results[name] = _run(name, context, out / name)
        study = _written(results, context, plans, out)
    return study or _written(results, context, plans, out)


def _written(results: Mapping[str, StageResult], context: Context, plans: Sequence[Plan], out: Path) -> Study:
    """The study as far as it is, with its numbers, plans and report in files."""
    stages = tuple(results[name] for name in STAGES if name in results)
    missing = tuple(name for name in STAGES if name not in results)
    model = context.model
    study = Study(model.name, model.fingerprint, context.files, context.options, stages, missing, ())
    study = replace(study, plans=tuple((plan, outcomes(plan, study.numbers)) for plan in plans))
    context.stage("numbers and report")
    with replace_folder(out) as staging:
        _write(study, report(study, context, out), staging)
    return study


def _too_little(results: Mapping[str, StageResult], options: StudyOptions) -> str:
    """What to change where the model would hardly say one of the options; nothing where it would."""
    mass = results["behaviour"].numbers.get("behaviour.all.mass") if "behaviour" in results else None
    if mass is None or mass.value >= options.least_mass:
        return ""
    return (
        f"stopped: the options have a probability of {mass.value:.2g} on average, less than --least-mass "
        f"{options.least_mass:g}, so their order may say nothing of a preference; put the questions in a format in "
        "which the model would say one (persona-circuits formats), or go on with --least-mass 0"
    )


def _run(name: str, context: Context, folder: Path) -> StageResult:
    """One stage in a staging folder of its name, which takes the place of the old one when it is done."""
    outer, context.work = context.stage, folder.parent / "work" / name
    estimate = told(name, context)
    with replace_folder(folder.parent) as staging:
        place = staging / name
        place.mkdir()
        context.stage = lambda part: outer(f"{name}{estimate.pop() if estimate else ''}: {part}")
        try:
            numbers = StageNumbers()
            with numbers.attempt(name):
                numbers = STAGES[name](context, place)
        finally:
            context.stage = outer
        if context.options.compact:
            _compact(place)
        entries = {key: number.as_dict() for key, number in numbers.numbers.items()}
        record = {"stage": name, "inputs": context.digest(name), "notes": numbers.notes}
        whole = plain({**record, "extras": numbers.extras, "numbers": entries})
        write_json({**whole, "content": _digest_of(whole)}, place / "stage.json")
    shutil.rmtree(context.work, ignore_errors=True)
    with contextlib.suppress(OSError):  # another stage may have been stopped too
        context.work.parent.rmdir()
    finished = _finished(folder, name, context.digest(name))
    assert finished is not None, "a stage that was just written is finished"
    return StageResult(name, finished.numbers, finished.notes, finished.extras, reused=False)


def _compact(folder: Path) -> None:
    """Only what a compact study keeps, its pictures in a palette: a third of the bytes, the same to the eye."""
    from PIL import Image

    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if not _is_kept(path):
            path.unlink()
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                plain_colours = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            plain_colours.save(path, optimize=True)


def _is_kept(path: Path) -> bool:
    """Whether a compact study keeps this file."""
    if path.suffix == ".png":
        return path.stem in PICTURES and not (path.stem == "graph" and {*SEARCHES} & {*path.parts})
    return path.suffix == ".csv" or (path.suffix == ".json" and path.stem in RECORDS)


def _finished(folder: Path, name: str, digest: str) -> StageResult | None:
    """A stage that was finished with these inputs; None if it was not.

    Raises:
        FileError: the folder holds something else, which must not be written over.
    """
    if not folder.exists():
        return None
    path = folder / "stage.json"
    if not path.is_file():
        if folder.is_dir() and not any(folder.iterdir()):
            return None
        raise FileError(f"{folder} is no stage of a study: it has no stage.json; choose another --out, or move it away")
    try:
        record = read_json(path, Kind("stage"))
        if record["stage"] != name or record["inputs"] != digest:
            return None
        if record.get("content", _digest_of(record)) != _digest_of(record):
            raise ValueError("it has been changed since it was written")
        numbers = {key: Number(**number) for key, number in record["numbers"].items()}
        return StageResult(name, numbers, tuple(record["notes"]), record["extras"], reused=True)
    except (FileError, ValueError, KeyError, TypeError, AttributeError) as error:
        tell_damaged(path, error)
        return None


def _digest_of(record: Mapping[str, Any]) -> str:
    """SHA-256 of what a stage found, so that a damaged file is not taken for it."""
    content = {key: record[key] for key in ("extras", "notes", "numbers")}
    as_read = json.loads(json.dumps(content))  # keys that are numbers become text
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def _write(study: Study, text: str, out: Path) -> None:
    write_json(study.record(), out / "numbers.json")
    write_csv(number_rows(study.numbers), out / "numbers.csv")
    if study.plans:
        records = [outcome_records(plan, judged) for plan, judged in study.plans]
        write_json({"format": "persona-circuits/predictions", "version": 1, "plans": records}, out / "predictions.json")
        rows = [
            {"plan": plan.source, **picked(outcome, "id", "outcome", "says"), "why": "; ".join(outcome.why)}
            for plan, judged in study.plans
            for outcome in judged
        ]
        write_csv(rows, out / "predictions.csv")
    write_text(text, out / "report.md")
