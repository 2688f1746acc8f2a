"""The command line: parses, calls the public API, prints, and sets the exit code.

Exit codes: 0 done; 1 a demanded bar such as --min-faithfulness was missed; 2 bad
input. Heavy imports happen inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from circuit.discovery import Discovery
    from circuit.faithfulness import FaithfulnessReport

app = typer.Typer(
    help="Find, test and draw the circuit that carries a persona into a preference.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Method = Literal["eap", "eap-ig", "exact", "random"]
Prune = Literal["threshold", "top-n", "greedy", "acdc", "eap-acdc"]
MetricName = Literal["persona-divergence", "logit-diff", "prob-diff", "kl"]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]

ModelOption = Annotated[
    str | None, typer.Option("--model", help="Hugging Face folder or hub name. (default: the model that is shipped)")
]
PairsOption = Annotated[
    Path | None,
    typer.Option("--pairs", help="Prompt pairs: JSON Lines, or auto-circuit's JSON. (default: the shipped model's)"),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Format of the weights; float32 for attribution.")]
BatchOption = Annotated[int, typer.Option("--batch-size", help="Prompts per pass.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of random circuits, random scores and bootstraps.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
RandomOption = Annotated[int, typer.Option("--n-random", help="Random circuits of the same size to compare with.")]
BarOption = Annotated[
    float | None, typer.Option("--min-faithfulness", help="Exit with 1 if faithfulness is below this bar.")
]
CircuitArgument = Annotated[Path, typer.Argument(help="circuit.json, its folder, or EAP-IG's JSON.")]
LATEST = Path("runs/discover")


@app.command()
def discover(
    model: ModelOption = None,
    pairs: PairsOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = LATEST,
    method: Annotated[Method, typer.Option(help="How edges are scored.")] = "eap-ig",
    prune: Annotated[Prune, typer.Option(help="How the circuit is chosen.")] = "threshold",
    threshold: Annotated[
        float | None, typer.Option(help="For threshold, acdc, eap-acdc. (default: 0.003 of the divergence)")
    ] = None,
    threshold_on: Annotated[
        Literal["score", "share"], typer.Option(help="Threshold in the metric's units, or as a share of |D|.")
    ] = "share",
    top_n: Annotated[int | None, typer.Option(help="Edges to keep, for top-n and greedy.")] = None,
    metric: Annotated[MetricName, typer.Option(help="What the circuit is to explain.")] = "persona-divergence",
    steps: Annotated[int, typer.Option(help="Points of EAP-IG.")] = 5,
    ig_rule: Annotated[Literal["midpoint", "authors"], typer.Option(help="Where EAP-IG's points lie.")] = "midpoint",
    candidates: Annotated[int, typer.Option(help="Edges that ACDC tries per pass; the result is the same.")] = 8,
    train_split: Annotated[
        str | None, typer.Option(help="Pairs to search on. (default: train, or all if no split is named)")
    ] = None,
    eval_split: Annotated[
        str | None, typer.Option(help="Pairs to measure on. (default: test, or all if no split is named)")
    ] = None,
    n_random: RandomOption = 10,
    min_faithfulness: BarOption = None,
    strongest: Annotated[int, typer.Option(min=1, help="Edges to draw at most.")] = 150,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    as_json: JsonOption = False,
) -> None:
    """Search for the circuit of a set of prompt pairs, measure it on held-out pairs, write files and a picture."""
    with _errors():
        from circuit.discovery import Options
        from circuit.files import check_output_folder

        options = Options(
            method=method,
            prune=prune,
            threshold=threshold,
            threshold_on=threshold_on,
            top_n=top_n,
            metric=metric,
            steps=steps,
            ig_rule=ig_rule,
            seed=seed,
            batch_size=batch_size,
            candidates=candidates,
            n_random=n_random,
            train_split=train_split,
            eval_split=eval_split,
        ).checked()
        name, task = _model_name(model, pairs), _load_task(pairs)
        check_output_folder(out)
        with _progress() as stage:
            loaded = _load(stage, name, revision, device, dtype)
            from circuit.discovery import discover as search

            found = search(loaded, task, options, stage=stage)
            stage("files and picture")
            _write_results(found, out, strongest)
        _print_discovery(found, out, as_json)
        _require(found.reports[-1].circuit.ratio_of_means, min_faithfulness)


@app.command()
def evaluate(
    circuit: CircuitArgument = LATEST,
    pairs: PairsOption = None,
    model: Annotated[
        str | None, typer.Option(help="Hugging Face folder or hub name. (default: the one the circuit names)")
    ] = None,
    metric: Annotated[
        MetricName | None, typer.Option(help="What the circuit is to explain. (default: the circuit's)")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Pairs to measure on. (default: test, or all)")] = None,
    n_random: RandomOption = 10,
    min_faithfulness: BarOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the report to this JSON file too.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    as_json: JsonOption = False,
) -> None:
    """Measure a circuit's faithfulness on prompt pairs, beside its complement and random circuits."""
    with _errors():
        from circuit.errors import OptionError
        from circuit.files import read_circuit, write_json

        stored = read_circuit(circuit)
        name = model or stored.model_name()
        if name is None:
            raise OptionError(f"{circuit} does not say which model it is of; give --model")
        task = _load_task(pairs or _own_pairs(stored.record))
        about = stored.record["task"]["metric"] if stored.record else "persona-divergence"
        with _progress() as stage:
            loaded = _load(stage, name, revision, device, dtype)
            _warn_of_other_weights(stored.record, loaded)
            from circuit.discovery import evaluate_on

            report = evaluate_on(
                loaded,
                task,
                stored.circuit,
                metric=metric or about,
                split=split,
                batch_size=batch_size,
                n_random=n_random,
                seed=seed,
                stage=stage,
            )
        if out is not None:
            write_json(report.as_dict(), out)
        _print_report(report, as_json)
        _require(report.circuit.ratio_of_means, min_faithfulness)


@app.command()
def draw(
    out: Annotated[Path, typer.Option("--out", help="Picture to write: .svg, .png, .pdf or .dot.")],
    circuit: CircuitArgument = LATEST,
    strongest: Annotated[int, typer.Option(min=1, help="Edges to draw at most.")] = 150,
    title: Annotated[str | None, typer.Option(help="Line above the picture. (default: the model's name)")] = None,
) -> None:
    """Draw a circuit: layers upward from input to logits, edges by strength and sign."""
    with _errors():
        from circuit.draw import draw as picture
        from circuit.files import read_circuit

        stored = read_circuit(circuit)
        heading = title if title is not None else _title(stored.record)
        report = picture(stored.circuit, out, scores=stored.scores, strongest=strongest, title=heading)
        typer.echo(f"{out}: {report.shown} of {report.total} edges drawn")


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="circuit.json, real_circuits_1.json or EAP-IG's JSON.")],
    against: Annotated[
        Path | None, typer.Option("--against", help="A circuit.json: nodes must be of its model's graph.")
    ] = None,
) -> None:
    """Check circuit files and name every fault with its place."""
    with _errors():
        from circuit.files import faults_of, read_circuit

        graph = read_circuit(against).circuit.graph if against else None
        faulty = 0
        for path in files:
            faults = faults_of(path, graph)
            faulty += bool(faults)
            typer.echo(f"{path}: {'valid' if not faults else f'{len(faults)} fault(s)'}", err=bool(faults))
            for fault in faults:
                typer.echo(f"  {fault}", err=True)
    raise typer.Exit(2 if faulty else 0)


@app.command()
def export(
    to: Annotated[Literal["eap-ig", "graphml", "dot", "nodes"], typer.Option(help="Format to write.")],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    circuit: CircuitArgument = LATEST,
) -> None:
    """Write a circuit in another format: EAP-IG's JSON, GraphML, DOT, or the list of nodes."""
    with _errors():
        from circuit import files

        stored = files.read_circuit(circuit)
        if to == "eap-ig":
            files.write_eap_ig(stored.circuit, _all_scores(stored), out)
        elif to == "graphml":
            files.write_graphml(stored.circuit, stored.scores, out)
        elif to == "nodes":
            files.write_nodes(stored.circuit, out)
        else:
            from circuit.draw import draw as picture

            picture(stored.circuit, out, scores=stored.scores, strongest=max(1, len(stored.circuit)), fmt="dot")
        typer.echo(str(out))


@app.command("ground-truth")
def ground_truth(
    steps: Annotated[int, typer.Option(help="Points of EAP-IG.")] = 5,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Run every scorer and pruner on the planted models, whose circuits are known by construction."""
    with _errors():
        from circuit.ground_truth import calibrate
        from models.planted import planted_models

        with _progress() as stage:
            rows = calibrate(planted_models(), steps=steps, seed=seed, progress=stage("planted models"))
        _print_calibration(rows, as_json)


@app.command()
def pairs(
    personas: Annotated[Path, typer.Option(help="Personas: JSON Lines, CSV, or assistant-axis JSON (file or folder).")],
    questions: Annotated[Path, typer.Option(help="Questions: JSON Lines, CSV, or a file of the Anthropic evals.")],
    out: Annotated[Path, typer.Option("--out", help="Pair file to write, .jsonl.")],
    model: ModelOption = None,
    template: Annotated[str, typer.Option(help="raw, chat (the tokenizer's own), or a file.")] = "raw",
    cue: Annotated[str | None, typer.Option(help="What the answer follows. (default: the template's)")] = None,
    contrast: Annotated[str, typer.Option(help="all, opposed, or a CSV file persona_a,persona_b.")] = "all",
    answers: Annotated[
        Path | None, typer.Option(help="CSV persona,question,option: preferences that the questions do not hold.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="What was dropped and why. (default: beside --out)")
    ] = None,
    max_pairs: Annotated[int, typer.Option(help="Pairs to write at most.")] = 1000,
    per_question: Annotated[int | None, typer.Option(help="Pairs of one question at most, per split.")] = None,
    test_share: Annotated[float, typer.Option(help="Share of persona pairs and wordings held out; 0: none.")] = 0.2,
    leaks: Annotated[
        Literal["drop", "keep", "only"], typer.Option(help="Pairs with an option in a persona's text.")
    ] = "drop",
    filler: Annotated[int, typer.Option(help="Filler sentences per prompt, from the template's list.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of splits, order, wordings and filler.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Build prompt pairs for a model's tokenizer from personas, questions and templates."""
    with _errors():
        from circuit.files import check_output_folder
        from circuit.shipped import MODEL, resolve
        from persona import sources
        from persona.pairs import PairOptions, build_pairs, write_pairs
        from persona.prompts import load_tokenizer
        from persona.templates import load_templates

        options = PairOptions(
            seed=seed,
            max_pairs=max_pairs,
            per_question=per_question,
            test_share=test_share,
            leaks=leaks,
            filler=filler,
        ).checked()
        people, asked = sources.read_personas(resolve(str(personas))), sources.read_questions(resolve(str(questions)))
        if answers is not None:
            asked = sources.with_answers(asked, sources.read_answers(answers), people)
        meetings = contrast if contrast in ("all", "opposed") else sources.read_contrast(contrast)
        for path in filter(None, (out, report)):
            check_output_folder(path.parent)
            path.parent.mkdir(parents=True, exist_ok=True)
        reader = load_tokenizer(model or MODEL)
        forms = load_templates(resolve(template), reader.tokenizer, cue=cue)
        built = build_pairs(people, asked, reader, forms, contrast=meetings, options=options)
        given = {"personas": str(personas), "questions": str(questions), "answers": answers and str(answers)}
        beside = write_pairs(built, out, report, pairs=str(out), sources=given | {"contrast": contrast})
        _print_built(built, out, beside, as_json)


def _print_built(built: Any, out: Path, beside: Path, as_json: bool) -> None:
    found = built.report()
    if as_json:
        typer.echo(json.dumps({"out": str(out), "report": str(beside), **found}))
        return
    splits = ", ".join(f"{name} {count}" for name, count in found["kept_by_split"].items())
    typer.echo(f"kept        {found['kept']:,} pairs{f' ({splits})' if splits else ''}")
    typer.echo(f"held out    {found['splits']['held_out']}")
    if built.dropped:
        rows = [(item.reason, item.examples[0], f"{item.count:,}") for item in built.dropped]
        _print_table("dropped", ("reason", "for example", "combinations"), rows, texts=2)
    for why, count in found["not_tried"].items():
        typer.echo(f"not tried   {count:,} combinations {why}")
    for key, says in (
        ("leaks", "options in a persona's text"),
        ("candidates_left_out", "options that are no candidate here"),
        ("wordings_left_out", "wordings left out"),
    ):
        if found[key]:
            typer.echo(f"note        {len(found[key]):,} {says}; see the report")
    typer.echo(f"written to  {out}, {beside}")


@app.command()
def collapse(
    model: ModelOption = None,
    pairs: PairsOption = None,
    controls: Annotated[
        Path | None, typer.Option("--controls", help="More pairs, of which the controls are taken (key 'control').")
    ] = None,
    neutral: Annotated[
        Path | None, typer.Option("--neutral", help="Wordings without a persona, JSON Lines; for b0 and the bias bin.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/collapse"
    ),
    split: Annotated[
        str, typer.Option(help="Pairs to study; controls are taken of every split of --controls.")
    ] = "all",
    bias_cut: Annotated[
        float, typer.Option(help="Bias is high where the default leads by so many logits under no persona.")
    ] = 1.5,
    n_resamples: Annotated[int, typer.Option(help="Draws of bootstraps and permutations.")] = 2000,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    as_json: JsonOption = False,
) -> None:
    """Measure where personas collapse into one answer: divergence, prior, collapse and mass of every pair."""
    with _errors():
        from circuit.files import check_output_folder, replace_folder
        from persona.collapse import StudyOptions, study_collapse
        from persona.collapse_files import write_collapse
        from persona.items import load_items, load_neutral

        options = StudyOptions(split, batch_size, n_resamples, bias_cut, seed).checked()
        name = _model_name(model, pairs)
        shipped = pairs is None
        files = [
            _path_and_name(given, default if shipped else None)
            for given, default in (
                (pairs, "datasets/pairs_test.jsonl"),
                (controls, "datasets/pairs_controls.jsonl"),
                (neutral, "datasets/questions.jsonl"),
            )
        ]
        items, more = (load_items(path, label=label) if path else None for path, label in files[:2])
        wordings = load_neutral(files[2][0]) if files[2][0] else ()
        check_output_folder(out)
        with _progress() as stage:
            loaded = _load(stage, name, revision, device, dtype)
            study = study_collapse(
                loaded, items, controls=more, neutral=wordings, options=options, progress=stage("asking")
            )
            stage("files and figures")
            with replace_folder(out) as staging:
                write_collapse(study, staging)
        _print_collapse(study, out, as_json)


def _path_and_name(given: Path | None, default: str | None) -> tuple[str | None, str | None]:
    """Where a file lies and what results call it; the shipped default where none is given."""
    from circuit.shipped import resolve

    name = default if given is None else str(given)
    return (None, None) if name is None else (resolve(name), name)


def _print_collapse(study: Any, out: Path, as_json: bool) -> None:
    from persona.collapse_files import TABLE, collapse_record, group_rows

    if as_json:
        record = collapse_record(study)
        del record["pairs"], record["questions"]
        typer.echo(json.dumps({"out": str(out), **record}))
        return
    _print_table(f"persona collapse of {study.model}", TABLE, group_rows(study), texts=1)
    if study.sigma_0 is not None:
        typer.echo(
            f"sigma_0     {study.sigma_0:.3f} logits over {study.n_paraphrases} paraphrase pairs; "
            "last column: D and collapse of paraphrases"
        )
    for note in study.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"written to  {out}/")


def _model_name(model: str | None, pairs: Path | None) -> str:
    from circuit.errors import OptionError
    from circuit.shipped import MODEL

    if model is not None and pairs is None:
        raise OptionError("--model needs --pairs: the pairs that are shipped are written for the shipped model")
    return MODEL if model is None else model


def _load_task(pairs: Path | str | None) -> Any:
    from circuit.shipped import PAIRS, resolve
    from circuit.task import load_task

    name = PAIRS if pairs is None else str(pairs)
    return load_task(resolve(name), label=name)


def _own_pairs(record: dict[str, Any] | None) -> str:
    from circuit.errors import OptionError

    if record is None:
        raise OptionError("the circuit does not say which pairs it was found on; give --pairs")
    return str(record["task"]["source"])


def _load(stage: Callable[[str], Any], name: str, revision: str | None, device: str, dtype: str) -> Any:
    stage(f"loading {name}")
    from circuit.model import load_model
    from circuit.shipped import resolve

    return load_model(resolve(name), revision=revision, device=device, dtype=dtype, label=name)


def _write_results(found: Discovery, out: Path, strongest: int) -> None:
    """All files of a discovery, moved into place together."""
    from circuit import files
    from circuit.draw import draw as picture
    from circuit.report import summary

    with files.replace_folder(out) as staging:
        files.write_circuit(found.record, staging / "circuit.json")
        files.write_nodes(found.circuit, staging / "real_circuits_1.json")
        if found.scores is not None:
            files.write_scores(found.scores, staging / "scores.safetensors")
        for suffix in ("svg", "png"):
            path = staging / f"graph.{suffix}"
            picture(found.circuit, path, scores=found.scores, strongest=strongest, title=_title(found.record))
        files.write_json(summary(found), staging / "summary.json")


def _title(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    return f"{Path(record['model']['name']).name}: {record['task']['metric']}, {Path(record['task']['source']).name}"


def _all_scores(stored: Any) -> Any:
    """The scores of every edge where they lie beside the circuit, else those of the circuit's own edges."""
    from circuit.files import read_scores

    beside = stored.path.parent / "scores.safetensors"
    if stored.record is None or not beside.is_file():
        return stored.scores
    scores = read_scores(beside)
    return scores if scores.graph == stored.circuit.graph else stored.scores


def _warn_of_other_weights(record: dict[str, Any] | None, model: Any) -> None:
    if record and record["model"]["fingerprint"] != model.fingerprint:
        typer.echo(
            f"note: the circuit was found in {record['model']['name']} with other weights than {model.name} has; "
            "this measures a transfer",
            err=True,
        )


def _print_discovery(found: Discovery, out: Path, as_json: bool) -> None:
    from circuit.report import summary

    if as_json:
        typer.echo(json.dumps({"out": str(out), **summary(found)}))
        return
    counts, task = found.record["counts"], found.record["task"]
    typer.echo(f"divergence  {found.divergence:+.3f} {task['unit']} on {task['n_pairs']} pairs ({task['split']})")
    if found.tau is not None:
        typer.echo(f"threshold   {found.tau:.4g} {task['unit']}")
    typer.echo(
        f"circuit     {counts['edges']:,} of {counts['graph_edges']:,} edges, "
        f"{counts['nodes']:,} of {counts['graph_nodes']:,} nodes"
    )
    if not len(found.circuit):
        typer.echo("the circuit is empty: no path from input to logits is left; lower --threshold or raise --top-n")
    if found.acdc_cost:
        cost = found.acdc_cost
        typer.echo(
            f"ACDC        {cost['passes']:,} passes, {cost['evaluated']:,} circuits tried, "
            f"{cost['wasted']:,} of them for nothing"
        )
    _print_edges(found)
    for report in found.reports:
        _print_report(report, as_json=False)
    if not found.held_out:
        typer.echo("\nnot held out: the circuit was measured on pairs that it was found on; name splits in the file")
    typer.echo(f"\nwritten to  {out}/")


def _print_edges(found: Discovery) -> None:
    from circuit.report import strongest_edges

    edges = strongest_edges(found)
    if edges:
        rows = [(item["edge"], f"{item['score']:+.4f}") for item in edges]
        _print_table("strongest edges", ("edge", "score"), rows, texts=1)


def _print_report(report: FaithfulnessReport, as_json: bool) -> None:
    from circuit.report import faithfulness_rows

    if as_json:
        typer.echo(json.dumps(report.as_dict()))
        return
    title = f"faithfulness on {report.n_pairs} pairs ({report.split})"
    ends = f"m = {report.metric}: full {report.m_full:+.3f}, empty {report.m_empty:+.3f}"
    columns = ("", "edges", "m", "faithfulness", "95 % interval", "mean of ratios")
    _print_table(f"{title}, {ends}", columns, faithfulness_rows(report), texts=1)


def _print_calibration(rows: list[Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([row.as_dict() for row in rows]))
        return
    columns = ("planted model", "scores", "recovered exactly by", "true edges", "AUROC", "average precision")
    cells = []
    for row in rows:
        exact = ", ".join(recovery.prune for recovery in row.recoveries if recovery.exact) or "none"
        numbers = (str(row.n_true), f"{row.auroc:.3f}", f"{row.average_precision:.3f}")
        cells.append((row.planted, row.method, exact, *numbers))
    _print_table("planted models", columns, cells, texts=3)
    for row in rows:
        if row.note and row.method != "random":
            typer.echo(f"{row.planted}, {row.method}: {row.note}")


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> None:
    """A title and a table whose first ``texts`` columns are text and whose others are numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < texts else "right", no_wrap=i == 0 or i >= texts)
    for row in rows:
        table.add_row(*row)
    typer.echo(f"\n{title}")
    _console().print(table)


def _require(value: float | None, bar: float | None) -> None:
    if bar is not None and (value is None or value < bar):
        shown = "undefined" if value is None else f"{value:.3f}"
        typer.echo(f"faithfulness {shown} is below the bar of {bar:g}", err=True)
        raise typer.Exit(1)


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Bars on standard error, one per stage; nothing where standard error is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:

        def stage(name: str) -> Callable[[int, int], None]:
            for task in bars.tasks:
                if task.total is None:
                    bars.update(task.id, total=1, completed=1)
            task_id = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task_id, completed=done, total=total)

        yield stage


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """A user's error is one message on standard error and exit code 2; a bug keeps its traceback."""
    from circuit.errors import PersonaCircuitsError

    try:
        yield
    except PersonaCircuitsError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
