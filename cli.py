"""The command line: parses, calls the public API, prints, and sets the exit code.

Exit codes: 0 done; 1 a demanded bar such as --min-faithfulness was missed; 2 bad
input, or a place that cannot be written; 130 Ctrl-C; 143 SIGTERM. Heavy imports
happen inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
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
AblationName = Literal["corrupt", "neutral", "zero", "mean", "span-mean", "optimal"]
MetricName = Literal["persona-divergence", "logit-diff", "prob-diff", "kl"]
ExportFormat = Literal[
    "eap-ig",
    "graphml",
    "dot",
    "nodes",
    "auto-circuit",
    "auto-circuit-pairs",
    "mib",
    "mib-nodes",
    "mib-circuits",
]
Dtype = Literal["float32", "bfloat16-weights", "bfloat16", "float16", "float64"]

ModelOption = Annotated[
    str | None, typer.Option("--model", help="Hugging Face folder or hub name. (default: the model that is shipped)")
]
PairsOption = Annotated[
    Path | None,
    typer.Option("--pairs", help="Prompt pairs: JSON Lines, or auto-circuit's JSON. (default: the shipped model's)"),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps; balanced: over all GPUs.")]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        help="Of weights and computation; bfloat16-weights holds the weights in half the room and computes in float32.",
    ),
]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory", help="Take so many prompts and circuits at a time that weights and work stay below, e.g. 8GiB."
    ),
]
BatchOption = Annotated[int, typer.Option("--batch-size", help="Prompts per pass.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of random circuits, random scores and bootstraps.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
RandomOption = Annotated[int, typer.Option("--n-random", help="Random circuits of the same size to compare with.")]
BarOption = Annotated[
    float | None, typer.Option("--min-faithfulness", help="Exit with 1 if faithfulness is below this bar.")
]
CircuitArgument = Annotated[Path, typer.Argument(help="circuit.json, its folder, or EAP-IG's JSON.")]
PositionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--positions",
        help="persona-end, question-end, question-word or prompt-end; may be repeated. (default: all there are)",
    ),
]
PersonasOption = Annotated[
    Path | None,
    typer.Option(
        "--personas",
        help="JSON Lines, CSV, or assistant-axis JSON (file or folder). (default: the shipped model's; with --model "
        "datasets/vector_personas.jsonl)",
    ),
]
QuestionsOption = Annotated[
    Path | None,
    typer.Option(
        "--questions",
        help="JSON Lines, CSV, or assistant-axis JSON. (default: the shipped model's; with --model "
        "datasets/vector_questions.jsonl)",
    ),
]
TemplateOption = Annotated[
    str | None,
    typer.Option("--template", help="raw, chat, or a file. (default: chat if the tokenizer has one, else raw)"),
]
WordingsOption = Annotated[int, typer.Option("--wordings", help="Wordings of each persona; 0: all.")]
QuestionWordingsOption = Annotated[int, typer.Option("--question-wordings", help="Wordings of each question; 0: all.")]
SamplesOption = Annotated[int, typer.Option("--samples", help="Responses to every prompt.")]
MaxQuestionsOption = Annotated[int | None, typer.Option("--max-questions", help="The first so many questions.")]
BaselineOption = Annotated[
    str | None, typer.Option("--baseline", help="Persona to compare with. (default: 'default', or no persona at all)")
]
MaxNewOption = Annotated[int, typer.Option("--max-new-tokens", help="Tokens of a response at most.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="Of sampling; 0: the most likely token.")]
TopPOption = Annotated[float, typer.Option("--top-p", help="Sample among the tokens that hold this share.")]
StopOption = Annotated[
    list[str] | None,
    typer.Option("--stop", help="Text that ends a response; may be repeated. (default: \\n, none for chat)"),
]
EndpointOption = Annotated[
    str | None, typer.Option("--endpoint-model", help="Ask this model of an OpenAI-compatible endpoint.")
]
UrlOption = Annotated[
    str | None, typer.Option("--base-url", help="The endpoint's address. (default: $OPENAI_BASE_URL, else OpenAI's)")
]
KeyOption = Annotated[
    str | None,
    typer.Option("--api-key", help="Better left to $OPENAI_API_KEY: other users of a machine see options."),
]
ConcurrencyOption = Annotated[int, typer.Option("--concurrency", help="Requests to the endpoint at a time.")]
RetriesOption = Annotated[int, typer.Option("--max-retries", help="More tries after 429, 5xx and cut connections.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", help="Seconds to wait for an answer to begin or go on.")]
DeadlineOption = Annotated[
    float, typer.Option("--deadline", help="Seconds for the whole of an answer, with all tries; then it has failed.")
]
BytesOption = Annotated[int, typer.Option("--max-bytes", help="Bytes of a reply at most; then it has failed.")]
LimitOption = Annotated[
    Literal["max_tokens", "max_completion_tokens"],
    typer.Option("--limit-field", help="What the endpoint calls the limit of an answer's length."),
]
AlignOption = Annotated[
    Literal["equal", "right"],
    typer.Option("--align", help="equal: prompts of one length; right: unequal personas, aligned on the common end."),
]
WhereOption = Annotated[
    list[str] | None, typer.Option("--where", help="Only pairs with this value, KEY=VALUE; may be repeated.")
]
FittingOption = Annotated[
    bool, typer.Option("--fitting", help="Go on with the pairs that fit the model; the others are counted.")
]
LATEST = Path("runs/discover")
LONGEST_NAME, LONGEST_CELL, LONGEST_LINE = 60, 400, 2000  # characters shown: of a row's name, a cell, a line
ASKING = ("base_url", "api_key", "concurrency", "max_retries", "timeout", "deadline", "max_bytes", "limit_field")
"""Options of asking an endpoint, by their parameters' names."""
RUNNING = ("device", "dtype", "revision", "batch_size")
"""Of running a model here."""


@app.command()
def discover(
    context: typer.Context,
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
    target_faithfulness: Annotated[
        float | None,
        typer.Option(help="Instead of a size: the smallest circuit by |score| that reaches it on the training pairs."),
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Nested circuits over thresholds too: size against faithfulness.")
    ] = False,
    metric: Annotated[MetricName, typer.Option(help="What the circuit is to explain.")] = "persona-divergence",
    ablation: Annotated[AblationName, typer.Option(help="What an edge outside the circuit carries.")] = "corrupt",
    align: AlignOption = "equal",
    null: Annotated[
        Path | None,
        typer.Option("--null", help="Pairs of paraphrases of one persona: what D is where there is nothing."),
    ] = None,
    by_span: Annotated[
        bool, typer.Option("--by-span", help="Scores by part of the prompt too, and where the contrast persists.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Points of EAP-IG.")] = 5,
    ig_rule: Annotated[Literal["midpoint", "authors"], typer.Option(help="Where EAP-IG's points lie.")] = "midpoint",
    activations: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option("--activations", help="Format of matrix products of the scores; what it costs is printed."),
    ] = "float32",
    candidates: Annotated[
        int | None,
        typer.Option(
            help="Edges that ACDC tries per pass; the result is the same. (default: what fits one, at most 8; GPU: 128)"
        ),
    ] = None,
    train_split: Annotated[
        str | None, typer.Option(help="Pairs to search on. (default: train, or all if no split is named)")
    ] = None,
    eval_split: Annotated[
        str | None, typer.Option(help="Pairs to measure on. (default: test, or all if no split is named)")
    ] = None,
    where: WhereOption = None,
    n_random: RandomOption = 10,
    min_faithfulness: BarOption = None,
    strongest: Annotated[int, typer.Option(min=1, help="Edges to draw at most.")] = 150,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    max_memory: MaxMemoryOption = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search for the circuit of a set of prompt pairs, measure it on held-out pairs, write files and a picture."""
    with _errors() as kept, _processes() as first:
        by_score = prune != "acdc"
        sized = target_faithfulness is not None or prune in ("top-n", "greedy")
        _refuse_idle(
            context,
            (by_score, "a --prune that goes by scores", ["method"]),
            (by_score and method == "eap-ig", "scores of --method eap-ig", ["steps", "ig_rule"]),
            (prune in ("acdc", "eap-acdc"), "--prune acdc or eap-acdc", ["candidates"]),
            (not sized, "a --threshold", ["threshold_on"]),
        )
        from circuit.discovery import Options
        from circuit.storage import check_output_folder, working_folder

        options = Options(
            method=method,
            prune=prune,
            threshold=threshold,
            threshold_on=threshold_on,
            top_n=top_n,
            target_faithfulness=target_faithfulness,
            sweep=sweep,
            metric=metric,
            ablation=ablation,
            align=align,
            by_span=by_span,
            activations=activations,
            steps=steps,
            ig_rule=ig_rule,
            seed=seed,
            batch_size=batch_size,
            candidates=candidates,
            n_random=n_random,
            train_split=train_split,
            eval_split=eval_split,
            where=_conditions(where),
        ).checked()
        name, task = _model_name(model, pairs), _load_task(pairs)
        quiet = _load_task(null) if null else None
        check_output_folder(out)
        state = out / "acdc.state"
        kept.append(lambda: f"what is searched so far is kept in {state}" if state.exists() else "")
        with _progress() as stage, working_folder(out):
            loaded = _load(stage, name, revision, device, dtype, max_memory)
            from circuit.discovery import discover as search

            task, quiet = (_fitted(one, loaded, align, fitting) for one in (task, quiet))
            found = search(loaded, task, options, null=quiet, state=state, stage=stage)
            if first:
                stage("files and picture")
                _write_results(found, out, strongest)
        if first:
            _print_discovery(found, out, as_json)
        _require(found.reports[-1].circuit.ratio_of_means, min_faithfulness)


@app.command()
def evaluate(
    context: typer.Context,
    circuit: CircuitArgument = LATEST,
    pairs: PairsOption = None,
    model: Annotated[
        str | None, typer.Option(help="Hugging Face folder or hub name. (default: the one the circuit names)")
    ] = None,
    metric: Annotated[
        MetricName | None, typer.Option(help="What the circuit is to explain. (default: the circuit's)")
    ] = None,
    ablation: Annotated[
        AblationName | None, typer.Option(help="What an edge outside the circuit carries. (default: the circuit's)")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Pairs to measure on. (default: test, or all)")] = None,
    where: WhereOption = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by", help="Measure on every value of this key of the pairs; may be repeated. (default: the usual)"
        ),
    ] = None,
    null: Annotated[
        Path | None,
        typer.Option(
            "--null",
            help="Pairs of paraphrases of one persona: |D| within twice their spread is flat. (default: the shipped "
            "model's, for it)",
        ),
    ] = None,
    orders: Annotated[
        int, typer.Option("--orders", min=0, help="Random orders in which ACDC's search is repeated; 0: none.")
    ] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few random circuits, permutations and edges: seconds instead of minutes.")
    ] = False,
    only_faithfulness: Annotated[
        bool, typer.Option("--only-faithfulness", help="No tests beyond faithfulness and random circuits.")
    ] = False,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Write the answer into the circuit's file.")] = True,
    n_random: RandomOption = 10,
    min_faithfulness: BarOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the report to this JSON file too.")] = None,
    tables: Annotated[
        Path | None, typer.Option("--tables", help="Folder for every table as CSV, and figures; made if not there.")
    ] = None,
    strongest: Annotated[int, typer.Option(min=1, help="Edges of the run's picture, where it is drawn again.")] = 150,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    max_memory: MaxMemoryOption = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put a circuit to the test: faithfulness, hypothesis tests, completeness, stability, single pairs, transfer."""
    with _errors() as kept, _processes() as first:
        _refuse_idle(
            context,
            (not only_faithfulness, "an evaluation without --only-faithfulness", ["by", "orders", "quick"]),
            (save, "a picture that is drawn again, without --no-save", ["strongest"]),
        )
        from circuit.errors import OptionError
        from circuit.files import read_circuit
        from circuit.storage import check_output_file, check_output_folder, settle, write_json

        settle(circuit if circuit.is_dir() else circuit.parent)
        stored = read_circuit(circuit)
        searched = (stored.record or {}).get("method", {}).get("prune") in ("acdc", "eap-acdc")
        _refuse_idle(
            context,
            (stored.record is not None, "a circuit.json; what else is read is never written", ["save"]),
            (searched, "a circuit found by ACDC", ["orders"]),
        )
        name = model or stored.model_name()
        if name is None:
            raise OptionError(f"{circuit} does not say which model it is of; give --model")
        if only_faithfulness and (left := [one for one, given in (("--null", null), ("--tables", tables)) if given]):
            raise OptionError(f"{left[0]} has no effect with --only-faithfulness; leave one of them out")
        task = _load_task(pairs or _own_pairs(stored.record))
        quiet = None if only_faithfulness else _null_task(null, name)
        if tables is not None:
            check_output_folder(tables)
        for path in (stored.path if save and stored.record is not None else None, out):
            if path is not None:
                check_output_file(path)
        state = _state_beside(stored.path)
        kept.append(lambda: f"what is measured so far is kept in {state}" if _begun(state) else "")
        about = stored.record or {"task": {"metric": "persona-divergence", "align": "equal"}, "ablation": "corrupt"}
        setting = {"metric": metric or about["task"]["metric"], "ablation": ablation or about["ablation"]}
        conditions = dict(_conditions(where)) or about["task"].get("where", {})
        with _progress() as stage:
            loaded = _load(stage, name, revision or _revision(stored.record, model), device, dtype, max_memory)
            _warn_of_other_weights(stored.record, loaded)
            from circuit.discovery import ablation_for, evaluate_on, split_of

            how = {"align": about["task"]["align"], "batch_size": batch_size, "seed": seed, "stage": stage}
            searched = _searched_task(stored.record, task)
            few = fitting or bool(about["task"].get("unfit"))
            same = searched is task
            task, quiet = (_fitted(one, loaded, how["align"], few) for one in (task, quiet))
            searched = task if same else _fitted(searched, loaded, how["align"], few)
            chosen = task.where(**conditions)
            chosen = chosen.of_split(split_of(chosen, split, "test"))
            shared = _shared_with_search(stored.record, searched, chosen, loaded)
            more = {"n_random": n_random, "scores": stored.scores}
            report = evaluate_on(loaded, task, stored.circuit, split=split, where=conditions, **more, **setting, **how)
            results = None
            if not only_faithfulness:
                from circuit.battery import battery

                made = ablation_for(
                    setting["ablation"], loaded, task, metric=setting["metric"], where=conditions, **how
                )
                results = battery(
                    loaded,
                    chosen,
                    stored.circuit,
                    metric=setting["metric"],
                    ablation=made,
                    by=by,
                    search=searched,
                    record=stored.record,
                    null=quiet,
                    n_orders=orders,
                    quick=quick,
                    state=state,
                    **how,
                )
        record = stored.record
        if save and first and record is not None:
            from circuit.battery import with_evaluation

            stamp = {"model": loaded.name, "fingerprint": loaded.fingerprint, "where": conditions, **setting}
            stamp |= {"align": how["align"], "seed": seed, "quick": quick}
            record = with_evaluation(record, task, report.split, report, results, shared, **stamp)
            _save_evaluation(record, stored, strongest)
        found = {**report.as_dict(), **({"stability": _stability(results), **results.as_dict()} if results else {})}
        found |= task.counts
        found |= {} if shared is None else {"held_out": shared.held_out, "shared": shared.as_dict()}
        if out is not None and first:
            write_json(found, out)
        if tables is not None and first:
            from circuit.files import replace_folder
            from persona.battery_files import write_battery

            with replace_folder(tables) as staging:
                write_battery(results, staging, title=_title(record) or f"{circuit}, {task.source}")
        if first and as_json:
            typer.echo(json.dumps(found))
        elif first:
            _print_report(report, as_json=False)
            if results is not None:
                _print_battery(results, record)
            if shared is not None and shared.note:
                _say(f"\n{shared.note}")
        _require(report.circuit.ratio_of_means, min_faithfulness)


def _shared_with_search(record: dict[str, Any] | None, searched: Any, chosen: Any, model: Any) -> Any:
    """What the pairs have in common with those that the circuit was found on; None where these are not known."""
    from circuit.overlap import overlap_of_tasks

    if record is None or searched is None or searched.sha256 != record["task"]["sha256"]:
        return None
    found_on = searched.where(**record["task"].get("where", {})).of_split(record["task"]["split"])
    return overlap_of_tasks(found_on, chosen, model)


def _null_task(null: Path | None, model: str) -> Any:
    """Paraphrases of one persona: those of the file, or the shipped ones for the shipped model."""
    from circuit.shipped import CONTROLS, MODEL

    if null is not None:
        return _load_task(null)
    return _load_task(CONTROLS).where(control="paraphrase") if model == MODEL else None


def _searched_task(record: dict[str, Any] | None, task: Any) -> Any:
    """The whole pair file of the circuit's search; None where other pairs are asked for and its stability is known.

    Where that file is not here it is the task in hand, and the reason is given later.
    """
    from circuit.errors import TaskError

    if record is None or task.sha256 == record["task"]["sha256"]:
        return task
    if "stability" in record and not record["stability"]["quick"]:
        return None
    try:
        return _load_task(record["task"]["source"])
    except TaskError:
        return task


def _stability(results: Any) -> dict[str, Any]:
    report = results.searched.report
    return {"reason": results.searched.reason} if report is None else report.as_dict()


def _state_beside(path: Path) -> Path | None:
    """Where a circuit's evaluation is kept until it is whole; None where nothing can be written beside the file."""
    from circuit.errors import WriteError
    from circuit.storage import check_output_file

    state = path.with_name(f"{path.name}.state")
    try:
        check_output_file(state)
    except WriteError:
        return None
    return state


def _begun(state: Path | None) -> bool:
    return state is not None and any(state.parent.glob(f"{glob.escape(state.name)}*"))


def _save_evaluation(record: dict[str, Any], stored: Any, strongest: int) -> None:
    """The answer into the circuit's file; where pictures of it lie beside it, they are drawn again with its marks."""
    from circuit.draw import draw as picture
    from circuit.files import read_circuit, write_circuit
    from circuit.storage import replace_folder

    with replace_folder(stored.path.parent) as staging:
        write_circuit(record, staging / stored.path.name)
        marked = read_circuit(staging / stored.path.name)
        for name in ("graph.svg", "graph.png") if marked.fringe is not None else ():
            if stored.path.with_name(name).exists():
                how = {"scores": marked.scores, "strongest": strongest, "title": _title(record)}
                picture(marked.circuit, staging / name, fringe=marked.fringe, **how)


def _print_battery(results: Any, record: dict[str, Any] | None) -> None:
    from circuit import battery_tables as tables

    tests = results.tests
    rows = [
        (
            *(row["test"], row["decision"], _shown(row["statistic"], 3), _shown(row["p"], 4), _shown(row["p_holm"], 4)),
            *(row["could_show"], row["says"]),
        )
        for row in tests.rows()
    ]
    title = f"hypothesis tests on {tests.n_pairs} pairs, level {rows and tests.outcomes[0].alpha:g}"
    columns = ("test", "circuit", "statistic", "p", "p (Holm)", "could have shown")
    _print_table(title, columns, [row[:6] for row in rows], texts=2)
    _say(f"tested over {tests.resampled}")
    for row in rows:
        _say(f"{row[0]}: {row[6]}")
    _say(f"\ncompleteness: {results.completeness.sentence}")
    _say(f"intervals over {tests.resampled}")
    _say(f"backup: {results.completeness.backup.sentence}")
    _print_stability(results.searched, (record or {}).get("stability"))
    _print_pairs(results.pairs)
    for key, parts in results.transfer.items():
        columns = ("on" if key == "pairs" else key, *tables.TRANSFER)
        title = "transfer: all of these pairs" if key == "pairs" else f"transfer by {key}"
        _print_table(title, columns, tables.transfer_rows(parts), texts=2)
        _say(f"intervals over {_drawn(part.interval for part in parts)}")
    rows = tables.evaluation_rows(record or {})
    if len(rows) > 1:
        _print_table("all evaluations in the circuit's file", tables.EVALUATIONS, rows, texts=4)


def _print_stability(searched: Any, known: dict[str, Any] | None) -> None:
    from circuit import battery_tables as tables

    if searched.report is None:
        verdict = {True: "unstable", False: "stable", None: "unknown"}[(known or {}).get("unstable")]
        earlier = f"found earlier, in the circuit's file: {verdict}" if known else f"not known; {searched.reason}"
        _say(f"\nstability: {earlier}")
        return
    title = f"stability: {searched.report.rule}, {searched.report.n_pairs} pairs searched on"
    _print_table(title, tables.STABILITY, tables.stability_rows(searched.report), texts=1)
    _say(searched.report.sentence)
    for note in searched.report.notes:
        _say(f"note: {note}")


def _print_pairs(view: Any) -> None:
    from circuit import battery_tables as tables

    title = f"pair by pair; flat: |D| within {view.null:.3g} ({view.null_source})"
    _print_table(title, tables.AVERAGES, tables.average_rows(view), texts=1)
    for title, columns, rows, texts in (
        ("distribution", tables.QUANTILES, tables.quantile_rows(view), 1),
        ("worst pairs", tables.WORST, tables.worst_rows(view), 3),
        ("groups of pairs", tables.GROUPS, tables.group_rows(view), 2),
    ):
        if rows:
            _print_table(title, columns, rows, texts=texts)
    if len(view.groups) > 1:
        _say(f"intervals over {_drawn(group.interval for group in view.groups)}")
    for note in view.notes:
        _say(f"note: {note}")


def _drawn(intervals: Iterable[Any]) -> str:
    """What intervals were drawn over, each way once."""
    return ", or ".join(dict.fromkeys(one.by for one in intervals if one is not None)) or "nothing: there is none"


def _shown(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:.{places}f}"


@app.command()
def specificity(
    circuits: Annotated[list[Path], typer.Argument(help="Two or more circuits, one per contrast: run folders.")],
    names: Annotated[
        str | None, typer.Option("--names", help="Names of the contrasts, with commas. (default: the folders')")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Hugging Face folder or hub name. (default: the one they name)")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Pairs to measure on. (default: test, or all)")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for specificity.json, CSV and heat map.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    max_memory: MaxMemoryOption = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ablate every circuit on every contrast: each should break its own and leave the others."""
    with _errors():
        from circuit.errors import OptionError
        from circuit.files import check_output_folder, read_circuit, replace_folder

        stored = [read_circuit(path) for path in circuits]
        labels = names.split(",") if names else [path.parent.name if path.is_file() else path.name for path in circuits]
        if len(stored) < 2 or len(set(labels)) != len(stored):
            raise OptionError("specificity needs two or more circuits with names of their own; give --names a,b,c")
        records = [one.record for one in stored]
        tasks = [_load_task(_own_pairs(record)) for record in records]
        if other := next((one for one in stored if one.circuit.graph != stored[0].circuit.graph), None):
            raise OptionError(f"{other.path} is a circuit of another graph than {stored[0].path}; give one model's")
        if out is not None:
            check_output_folder(out)
        with _progress() as stage:
            pinned = _revision(records[0], model)
            loaded = _load(stage, model or records[0]["model"]["name"], pinned, device, dtype, max_memory)
            from circuit.discovery import ablation_for, pairs_of, split_of
            from circuit.transfer import specificity as matrix
            from circuit.uncertainty import Clusters
            from metrics import METRICS

            contrasts, clusters = {}, {}
            for label, one, every in zip(labels, stored, tasks, strict=True):
                _warn_of_other_weights(one.record, loaded)
                about = one.record["task"]
                task = _fitted(every, loaded, about["align"], fitting or bool(about.get("unfit")))
                how = {"align": about["align"], "batch_size": batch_size}
                conditions = about.get("where", {})
                chosen = task.where(**conditions)
                chosen = chosen.of_split(split_of(chosen, split, "test"))
                more = {"metric": about["metric"], "where": conditions, "train_split": about["split"], "stage": stage}
                made = ablation_for(one.record["ablation"], loaded, task, **more, **how)
                pairs = pairs_of(loaded, chosen, METRICS[about["metric"]], ablation=made, **how)
                contrasts[label] = (one.circuit, pairs, METRICS[about["metric"]])
                clusters[label] = Clusters.of(chosen.pairs)
            tell = stage("every circuit on every contrast")
            found = matrix(loaded, contrasts, clusters=clusters, seed=seed, progress=tell)
        if out is not None:
            from persona.span_figures import write_specificity

            with replace_folder(out) as staging:
                write_specificity(found, staging)
        _print_specificity(found, as_json)


def _print_specificity(found: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
        return
    cells = {(cell.circuit, cell.contrast): cell for cell in found.cells}
    rows = []
    for circuit in found.names:
        row = [circuit]
        for contrast in found.names:
            cell = cells[circuit, contrast]
            bounds = f" ({cell.interval.low:.2f} to {cell.interval.high:.2f})" if cell.interval else ""
            row.append("undefined" if cell.left is None else f"{cell.left:.2f}{bounds}")
        rows.append(row)
    columns = ("ablated circuit of", *(f"left of {name}" for name in found.names))
    _print_table("what is left of a contrast when a circuit is ablated", columns, rows, texts=1)
    for text in found.findings:
        _say(text)


@app.command()
def curves(
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Argument(help="circuit.json or its folder: its model, pairs and settings; its scores are one scorer."),
    ] = None,
    scorers: Annotated[
        str,
        typer.Option(
            help="Comma-separated: eap, eap-ig, exact, random; or scores.safetensors, a run's folder, a submission to "
            "MIB."
        ),
    ] = "eap,eap-ig,random",
    level: Annotated[
        Literal["edge", "node", "both"], typer.Option(help="What is kept: edges, or nodes with all edges among them.")
    ] = "edge",
    order: Annotated[
        Literal["absolute", "signed", "both"],
        typer.Option(help="Largest |score| first, or first what lowers the metric most when it is corrupted."),
    ] = "both",
    model: Annotated[
        str | None,
        typer.Option("--model", help="Hugging Face folder or hub name. (default: the run's, else the shipped one)"),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option("--pairs", help="Prompt pairs. (default: the run's, else the shipped model's)")
    ] = None,
    metric: Annotated[
        MetricName | None, typer.Option(help="What is to be explained. (default: the run's, else persona-divergence)")
    ] = None,
    ablation: Annotated[
        AblationName | None, typer.Option(help="What a cut edge carries. (default: the run's, else corrupt)")
    ] = None,
    align: Annotated[
        Literal["equal", "right"] | None, typer.Option(help="As in discover. (default: the run's, else equal)")
    ] = None,
    steps: Annotated[int, typer.Option(help="Points of EAP-IG.")] = 5,
    train_split: Annotated[str | None, typer.Option(help="Pairs to score on. (default: train, or all)")] = None,
    split: Annotated[str | None, typer.Option(help="Pairs to measure on. (default: test, or all)")] = None,
    where: WhereOption = None,
    n_random: Annotated[int, typer.Option(help="Random orders of the scorer random.")] = 10,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("runs/curves"),
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    max_memory: MaxMemoryOption = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Faithfulness over circuits of all sizes, for any number of scorers: CPR, CMD, tables and figures."""
    with _errors(), _processes() as first:
        from circuit.curve_study import CurveOptions, curve_study, read_scorer
        from circuit.files import check_output_folder, read_circuit

        stored = read_circuit(run) if run else None
        own = stored.record if stored is not None else None
        about = own or {"task": {"metric": "persona-divergence", "align": "equal"}, "ablation": "corrupt"}
        conditions = _conditions(where) or tuple(about["task"].get("where", {}).items() if pairs is None else ())
        named, given = _scorers(scorers, read_scorer)
        fitted = (ablation or about["ablation"]) in ("mean", "span-mean", "optimal")
        _refuse_idle(
            context,
            ("eap-ig" in named, "the scorer eap-ig", ["steps"]),
            ("random" in named, "the scorer random", ["n_random"]),
            (fitted or bool(set(named) - {"random"}), "a scorer that is run, or constants, on these", ["train_split"]),
        )
        if stored is not None and (scores := _all_scores(stored)) is not None:
            given = {_run_name(stored): scores, **given}
        options = CurveOptions(
            scorers=named,
            levels=("edge", "node") if level == "both" else (level,),
            orders=("absolute", "signed") if order == "both" else (order,),
            metric=metric or about["task"]["metric"],
            ablation=ablation or about["ablation"],
            align=align or about["task"]["align"],
            where=conditions,
            steps=steps,
            n_random=n_random,
            train_split=train_split,
            eval_split=split,
            batch_size=batch_size,
            seed=seed,
        ).checked()
        name = model or (stored.model_name() if stored is not None else None)
        task = _load_task(pairs or (_own_pairs(own) if own else None))
        check_output_folder(out)
        with _progress() as stage:
            loaded = _load(
                stage, _model_name(name, pairs) if own is None else str(name), revision, device, dtype, max_memory
            )
            _warn_of_other_weights(own, loaded)
            task = _fitted(task, loaded, options.align, fitting or bool(about["task"].get("unfit")))
            marks = {"circuit": stored.circuit} if stored is not None else None
            study = curve_study(loaded, task, options, given=given, marks=marks, stage=stage)
            if first:
                stage("files and figures")
                _write_curves(study, out)
        if first:
            _print_curves(study, out, as_json)


def _scorers(text: str, read: Callable[[str], Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names of methods, and what was read from files and folders, by a name made of their path."""
    from circuit.errors import OptionError

    named, given = [], {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        path = Path(item)
        if not path.exists():
            named.append(item)
            continue
        plain = path.stem in ("scores", "importances") or path.is_dir()
        name = path.absolute().parent.name if plain and not path.is_dir() else path.absolute().stem
        if name in given:
            raise OptionError(f"--scorers names two sources called {name}; rename one of the files or folders")
        given[name] = read(item)
    return tuple(named), given


def _run_name(stored: Any) -> str:
    return f"run {stored.path.absolute().parent.name}"


def _write_curves(study: Any, out: Path) -> None:
    from circuit.files import replace_folder
    from persona.curve_figures import write_curves

    about = study.about
    with replace_folder(out) as staging:
        write_curves(study, staging, title=f"{Path(about['model']['name']).name}: {study.report.metric}")


def _print_curves(study: Any, out: Path, as_json: bool) -> None:
    from circuit import curve_tables as tables

    if as_json:
        typer.echo(json.dumps({"out": str(out), **study.as_dict()}))
        return
    from circuit.overlap import Overlap

    report = study.report
    _say(f"scored on   {study.about['scored_on']}; measured on {report.n_pairs} pairs ({report.split})")
    _say(f"m           {report.metric}: full {report.m_full:+.3f}, empty {report.m_empty:+.3f}")
    _say(f"intervals   over {report.resampled}")
    for level, n in report.n_units.items():
        title = f"faithfulness by share of {n:,} {level}s"
        _print_table(title, tables.CURVES, tables.curve_rows(report, level), texts=2)
        _print_table("edges left without dead ends", tables.SIZES, tables.size_rows(report, level), texts=2)
        _print_table("areas over the share", tables.AREAS, tables.area_rows(report, level), texts=2)
    _say("MIB takes CPR from the signed order and CMD from the absolute one; CPR has no upper bound")
    for mark in report.marks:
        f = "undefined" if mark.faithfulness is None else f"{mark.faithfulness:.3f}"
        _say(f"{mark.name:<12}{mark.n_edges:,} edges, {100 * mark.share:.2g} %: f {f}")
    if report.m_full < report.m_empty:
        _say("reversed: m(full) is below m(empty); see whether clean and corrupt are the wrong way round")
    shared = Overlap(**study.about["shared"])
    if shared.note:
        _say(f"\n{shared.note}")
    _say(f"\nwritten to  {out}/")


@app.command()
def compare(
    context: typer.Context,
    a: Annotated[Path, typer.Argument(help="Circuit A: circuit.json, its folder, or EAP-IG's JSON.")],
    b: Annotated[Path, typer.Argument(help="Circuit B, of a model of the same shape.")],
    out: Annotated[Path | None, typer.Option("--out", help="Write all of it to this JSON file too.")] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw the difference: .svg, .png, .pdf or .dot.")
    ] = None,
    pairs_a: Annotated[Path | None, typer.Option(help="Pairs of A. (default: those its file names)")] = None,
    pairs_b: Annotated[Path | None, typer.Option(help="Pairs of B. (default: those its file names)")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Model to measure both in. (default: those that the files name)")
    ] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Compare the files only; run no model.")] = False,
    n_draws: Annotated[int, typer.Option(help="Draws of every kind of chance.")] = 200,
    n_random: RandomOption = 10,
    strongest: Annotated[int, typer.Option(min=1, help="Edges to draw at most.")] = 200,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    max_memory: MaxMemoryOption = None,
    batch_size: BatchOption = 32,
    as_json: JsonOption = False,
) -> None:
    """Compare two circuits: overlap and scores against chance, opposite signs, each on the other's pairs."""
    with _errors():
        measured = ["pairs_a", "pairs_b", "model", "n_random", "device", "dtype", "max_memory", "batch_size"]
        _refuse_idle(
            context,
            (not no_model, "a model that is run, without --no-model", measured),
            (picture is not None, "a --picture", ["strongest"]),
        )
        from circuit.comparison import compare as side_by_side
        from circuit.comparison import cross_faithfulness, draw_difference, read_side
        from circuit.draw import check_picture
        from circuit.storage import check_output_file, write_json

        sides = read_side(a), read_side(b)
        if out is not None:
            check_output_file(out)
        if picture is not None:
            check_picture(picture)
        with _progress() as stage:
            found = side_by_side(*sides, n_draws=n_draws, seed=seed, progress=stage("random circuits"))
            if not no_model:
                grounds, notes = _grounds(sides, (pairs_a, pairs_b), model, stage, (device, dtype, max_memory))
                numbers = {"batch_size": batch_size, "n_random": n_random, "seed": seed}
                found = found.with_cross(cross_faithfulness(*sides, grounds, stage=stage, **numbers), notes)
            if picture is not None:
                draw_difference(found, picture, strongest=strongest)
        if out is not None:
            write_json(found.as_dict(), out)
        _print_comparison(found, [path for path in (out, picture) if path], as_json)


def _grounds(
    sides: Sequence[Any],
    pairs: Sequence[Path | None],
    model: str | None,
    stage: Callable[[str], Any],
    where: tuple[str, str, str | None],
) -> tuple[list[Any], list[str]]:
    """What either side's circuit was found on, where pairs and model are here, and notes on what is not."""
    from circuit.comparison import Ground
    from circuit.errors import ModelError, TaskError

    grounds: list[Any] = []
    notes: list[str] = []
    models: dict[str, Any] = {}
    for letter, side, given in zip("AB", sides, pairs, strict=True):
        if side.record is None:
            notes.append(f"nothing is measured on {letter}'s pairs: {side.name} does not say how it was found")
            continue
        name, source = model or side.record["model"]["name"], given or _own_pairs(side.record)
        try:
            task = _load_task(source)
            if name not in models:
                models[name] = _load(stage, name, side.record["model"]["revision"], *where)
            about = side.record["task"]
            task = _fitted(task, models[name], about["align"], bool(about.get("unfit")))
        except (TaskError, ModelError) as error:
            if given is not None or model is not None:
                raise
            reason = str(error).splitlines()[0]
            notes.append(f"nothing is measured on {letter}'s pairs: {reason}; see --pairs-a, --pairs-b and --model")
            continue
        if task.sha256 != side.record["task"]["sha256"]:
            notes.append(f"{task.source} is not, byte for byte, the file that {letter} was found on")
        if models[name].fingerprint != side.record["model"]["fingerprint"]:
            notes.append(f"{letter} was found in other weights than {models[name].name} has")
        grounds.append(Ground(letter, models[name], task, side.record))
    return grounds, notes


def _print_comparison(found: Any, written: Sequence[Path], as_json: bool) -> None:
    from circuit import comparison_tables as tables

    if as_json:
        typer.echo(json.dumps({"written": [str(path) for path in written], **found.as_dict()}))
        return
    for letter, side in (("A", found.a), ("B", found.b)):
        task = side.record["task"] if side.record else None
        about = f": {task['metric']} on {task['n_pairs']} pairs of {task['source']} ({task['split']})" if task else ""
        _say(f"{letter}           {side.name}{about}")
    if found.settings:
        _print_table("warning: not found alike", tables.SETTINGS, tables.setting_rows(found), texts=3)
    n_draws = found.edges.random.n if found.edges.random else 0
    _print_table(f"overlap, chance over {n_draws} draws", tables.OVERLAP, tables.overlap_rows(found), texts=1)
    if found.correlations:
        _print_table("rank correlation", tables.CORRELATIONS, tables.correlation_rows(found), texts=1)
        _print_table("edges of opposite sign", tables.SIGNS, tables.sign_rows(found), texts=1)
    for title, opposite in (("strongest shared edges", False), ("strongest edges of opposite sign", True)):
        if rows := tables.edge_rows(found, opposite=opposite):
            _print_table(title, tables.EDGES, rows, texts=2)
    for letter in "AB":
        if rows := tables.own_rows(found, letter):
            _print_table(f"strongest edges of {letter} alone", tables.EDGES, rows, texts=2)
    if found.cross:
        _print_table("each circuit on each one's held-out pairs", tables.CROSS, tables.cross_rows(found), texts=2)
    for note in found.notes:
        _say(f"note: {note}")
    for path in written:
        _say(f"written to  {path}")


@app.command()
def draw(
    out: Annotated[Path, typer.Option("--out", help="Picture to write: .svg, .png, .pdf or .dot.")],
    circuit: CircuitArgument = LATEST,
    strongest: Annotated[int, typer.Option(min=1, help="Edges to draw at most.")] = 150,
    title: Annotated[str | None, typer.Option(help="Line above the picture. (default: the model's name)")] = None,
) -> None:
    """Draw a circuit: layers upward from input to logits, edges by strength and sign."""
    with _errors():
        from circuit.draw import check_picture
        from circuit.draw import draw as picture
        from circuit.files import read_circuit

        check_picture(out)
        stored = read_circuit(circuit)
        heading = title if title is not None else _title(stored.record)
        how = {"scores": stored.scores, "strongest": strongest, "title": heading}
        report = picture(stored.circuit, out, fringe=stored.fringe, **how)
        _say(f"{out}: {report.shown} of {report.total} edges drawn")


@app.command()
def validate(
    files: Annotated[
        list[Path], typer.Argument(help="circuit.json, real_circuits_1.json, scores.safetensors or EAP-IG's JSON.")
    ],
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
            _say(f"{path}: {'valid' if not faults else f'{len(faults)} fault(s)'}", err=bool(faults))
            for fault in faults:
                _say(f"  {fault}", err=True)
    raise typer.Exit(2 if faulty else 0)


@app.command()
def export(
    to: Annotated[
        ExportFormat,
        typer.Option(help="Format to write."),
    ],
    out: Annotated[Path, typer.Option("--out", help="File to write; for mib* the folder, named TASK_MODEL.")],
    circuit: CircuitArgument = LATEST,
) -> None:
    """Write a circuit as EAP-IG's JSON, GraphML, DOT, nodes; auto-circuit's scores or pairs; a submission to MIB."""
    with _errors():
        from circuit import files

        check = files.check_output_folder if to.startswith("mib") else files.check_output_file
        check(out)
        stored = files.read_circuit(circuit)
        if to == "eap-ig":
            files.write_eap_ig(stored.circuit, _all_scores(stored), out)
        elif to == "graphml":
            files.write_graphml(stored.circuit, stored.scores, out)
        elif to == "nodes":
            files.write_nodes(stored.circuit, out)
        elif to == "auto-circuit":
            from circuit.peer_files import write_autocircuit_scores

            write_autocircuit_scores(_every_score(stored), out)
        elif to == "auto-circuit-pairs":
            from circuit.peer_files import write_autocircuit_pairs

            source = _load_task(_own_pairs(stored.record))
            write_autocircuit_pairs(source.of_split((stored.record or {})["task"]["split"]), out)
        elif to.startswith("mib"):
            _export_mib(stored, to, out)
        else:
            from circuit.draw import draw as picture

            picture(stored.circuit, out, scores=stored.scores, strongest=max(1, len(stored.circuit)), fmt="dot")
        _say(str(out))


def _export_mib(stored: Any, to: str, out: Path) -> None:
    """Importances of edges or of nodes, or the nine circuits; all scores of the run are needed."""
    from circuit import mib
    from circuit.curves import NodeScores
    from circuit.errors import OptionError
    from circuit.shipped import resolve

    scores, name = _every_score(stored), stored.model_name()
    if name is None:
        raise OptionError(f"{stored.path} does not say which model it is of, and MIB's files name its d_model")
    width = mib.stream_width(resolve(name))
    if to == "mib-circuits":
        mib.write_circuits(scores, out, d_model=width)
    else:
        mib.write_importances(NodeScores.of(scores) if to == "mib-nodes" else scores, out, d_model=width)


@app.command()
def crosscheck(
    context: typer.Context,
    run: CircuitArgument = LATEST,
    pairs: PairsOption = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Hugging Face folder. (default: the one the circuit names)")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Pairs to use. (default: those searched on)")] = None,
    n_pairs: Annotated[int, typer.Option(help="Pairs at most; 0: all of them.")] = 32,
    steps: Annotated[int | None, typer.Option(help="Points of EAP-IG. (default: the run's, else 5)")] = None,
    mask_ig: Annotated[bool, typer.Option(help="auto-circuit's own integrated gradients too.")] = True,
    scores: Annotated[
        Path | None, typer.Option(help="Do not run auto-circuit; compare with its scores in this .safetensors.")
    ] = None,
    peers: Annotated[
        Path | None,
        typer.Option(help="auto-circuit's environment. (default: $PERSONA_CIRCUITS_PEERS, else what make peers makes)"),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Exit with 1 if a difference exceeds this share of the largest score.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the results. (default: the run's)")] = None,
    batch_size: BatchOption = 16,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Have auto-circuit compute a run's scores and its circuit's faithfulness again, and compare edge by edge."""
    with _errors():
        run_there = ["pairs", "model", "split", "n_pairs", "steps", "mask_ig", "peers", "out", "batch_size"]
        _refuse_idle(context, (scores is None, "a run of auto-circuit, without --scores", run_there))
        from circuit.crosscheck import CrosscheckOptions, compare_with_file, write_crosscheck
        from circuit.crosscheck import crosscheck as check
        from circuit.errors import OptionError
        from circuit.files import check_output_folder, read_circuit
        from circuit.peer_process import check_model, peers_python
        from circuit.shipped import resolve

        stored = read_circuit(run)
        if scores is not None:
            _print_agreements([found := compare_with_file(stored, scores)], as_json)
            _require_agreement([found], tolerance)
            return
        name = model or stored.model_name()
        if name is None:
            raise OptionError(f"{run} does not say which model it is of; give --model")
        options = CrosscheckOptions(split, n_pairs, batch_size, steps, mask_ig).checked()
        check_model(resolve(name))
        python, task = peers_python(peers), _load_task(pairs or _own_pairs(stored.record))
        folder = out or stored.path.parent
        check_output_folder(out or folder.absolute())
        with _progress() as stage:
            loaded = _load(stage, name, None, "cpu", "float32")
            _warn_of_other_weights(stored.record, loaded)
            task = _fitted(task, loaded, "equal", fitting or bool((stored.record or {"task": {}})["task"].get("unfit")))
            result = check(loaded, resolve(name), stored, task, python, options, stage=stage)
        write_crosscheck(result, folder)
        _print_crosscheck(result, folder, as_json)
        _require_agreement(result.scores, tolerance)


def _print_crosscheck(result: Any, folder: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"out": str(folder), **result.as_dict()}))
        return
    from circuit.crosscheck import CONVENTIONS, circuit_rows

    pairs = result.pairs
    _say(f"pairs       {pairs['n_pairs']} of {pairs['of']} ({pairs['split']}) of {pairs['source']}")
    _say(f"there       {', '.join(f'{name} {version}' for name, version in result.versions.items())}")
    _print_agreements(result.scores, as_json=False)
    title = f"circuit of {result.circuit.n_edges:,} edges, {result.metric}"
    _print_table(title, ("", "here", "auto-circuit", "difference"), circuit_rows(result), texts=1)
    _print_table("conventions", ("", "here", "auto-circuit"), CONVENTIONS, texts=3)
    for note in result.notes:
        _say(f"note: {note}")
    _say(f"written to  {folder / 'crosscheck.json'}, {folder / 'crosscheck.csv'}")


def _print_agreements(agreements: Sequence[Any], as_json: bool) -> None:
    from dataclasses import asdict

    from circuit.crosscheck import AGREEMENT_COLUMNS, agreement_rows

    if as_json:
        typer.echo(json.dumps([asdict(item) for item in agreements]))
        return
    _print_table("scores of all edges, here and there", AGREEMENT_COLUMNS, agreement_rows(agreements), texts=1)


def _require_agreement(agreements: Sequence[Any], tolerance: float | None) -> None:
    if tolerance is None:
        return
    far = [item for item in agreements if item.same_quantity and not item.relative <= tolerance]
    for item in far:
        _say(f"{item.what}: {item.relative:.2g} of the largest score at {item.at}, above {tolerance:g}", err=True)
    if far:
        raise typer.Exit(1)


@app.command()
def bench(
    context: typer.Context,
    model: ModelOption = None,
    pairs: PairsOption = None,
    n_pairs: Annotated[int, typer.Option(help="Pairs of one length, in one batch.")] = 8,
    rounds: Annotated[int, typer.Option(help="Timed rounds of each step.")] = 3,
    steps: Annotated[int, typer.Option(help="Points of EAP-IG.")] = 5,
    edges: Annotated[int, typer.Option(help="Edges of the random circuit.")] = 200,
    acdc_edges: Annotated[int, typer.Option(help="Edges that ACDC tries, spread over the graph; 0: none.")] = 96,
    candidates: Annotated[
        int | None,
        typer.Option(help="Edges that ACDC tries per pass. (default: as many as share one, at most 8; GPU: 128)"),
    ] = None,
    share: Annotated[float, typer.Option(help="ACDC's threshold as a share of |m(full) - m(empty)|.")] = 0.003,
    out: Annotated[Path | None, typer.Option("--out", help="Write the report to this JSON file too.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time scores, a circuit and ACDC on a model of your own against bare forward and backward passes."""
    with _errors():
        _refuse_idle(context, (acdc_edges > 0, "--acdc-edges above 0", ["candidates", "share"]))
        import os

        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the memory counter's notes, read when torch is loaded
        from circuit.bench import BenchOptions
        from circuit.storage import check_output_file, write_json

        options = BenchOptions(n_pairs, rounds, steps, edges, acdc_edges, candidates, share, seed).checked()
        name, task = _model_name(model, pairs), _load_task(pairs)
        if out is not None:
            check_output_file(out)
        from circuit.bench import bench as measure

        with _progress() as stage:
            where = {"revision": revision, "device": device, "dtype": dtype}
            report = measure(name, task, options, stage=stage, **where)
        if out is not None:
            write_json(report.as_dict(), out)
        _print_bench(report, as_json)


def _print_bench(report: Any, as_json: bool) -> None:
    from circuit.bench import COLUMNS, acdc_row, bench_rows

    if as_json:
        typer.echo(json.dumps(report.as_dict()))
        return
    place, pairs = report.machine, report.pairs
    _say(f"{place['name']}, {place['threads']} thread(s), torch {place['versions']['torch']}")
    title = f"{report.model['name']}, {report.model['dtype']}, {pairs['n_pairs']} pairs of {pairs['n_tokens']} tokens"
    _print_table(title, COLUMNS, bench_rows(report), texts=1)
    if report.acdc is not None:
        _say(f"\n{acdc_row(report)}")


@app.command()
def models(as_json: JsonOption = False) -> None:
    """List the model families that the tests cover, and what came of each check."""
    with _errors():
        from circuit.inspection import supported_families

        found = supported_families()
        if as_json:
            typer.echo(json.dumps(found, indent=2))
            return
        checks = list(found["families"][0]["checks"])
        sign = {"passed": "yes", "skipped": "-", "failed": "no"}
        cells = [
            (one["name"], one["examples"], *(sign.get(one["checks"][check], "?") for check in checks))
            for one in found["families"]
        ]
        _print_table("tested", ("family", "models", *map(str, range(1, len(checks) + 1))), cells, texts=2)
        _say("\n".join(f"{i}  {check}" for i, check in enumerate(checks, 1)))
        refused = [(one["name"], one["examples"], one["reason"]) for one in found["refused"]]
        _print_table("refused", ("family", "models", "reason"), refused, texts=3)
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        _say(
            f"\nrandom weights in each architecture; with {versions}. Any other model is tried, and refused\n"
            "with the reason if it does not come apart: persona-circuits inspect MODEL"
        )


@app.command()
def inspect(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Hugging Face folder or hub name.")],
    pairs: Annotated[Path | None, typer.Option("--pairs", help="Prompt pairs to check against the tokenizer.")] = None,
    align: AlignOption = "equal",
    config_only: Annotated[
        bool, typer.Option("--config-only", help="Read the configuration and no weights; the check is left out.")
    ] = False,
    tokens: Annotated[int, typer.Option(help="Tokens of a prompt. (with --pairs: the longest)")] = 64,
    prompts: Annotated[int, typer.Option(help="Prompt pairs, both directions. (with --pairs: the file's)")] = 400,
    on: Annotated[str, typer.Option("--on", help="GPU: RTX 4090, A100 80GB, H100 80GB or H200.")] = "H200",
    max_memory: MaxMemoryOption = None,
    price: Annotated[
        float | None, typer.Option("--price", min=0.0, help="What an hour of that GPU costs: prices of every step.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    write_fitting: Annotated[
        Path | None, typer.Option("--write-fitting", help="Pair file to write: those of --pairs that fit, .jsonl.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print a model's shape and graph, what each method would cost, and whether a pair file fits; 1 if it does not."""
    with _errors():
        _refuse_idle(
            context,
            (pairs is not None, "--pairs", ["align"]),
            (pairs is None, "prompts that no --pairs tell", ["tokens", "prompts"]),
            (not as_json, "the table, without --json", ["price"]),
        )
        from circuit.budget import parse_bytes
        from circuit.errors import OptionError
        from circuit.inspection import inspect_model
        from circuit.shipped import resolve

        if write_fitting is not None and pairs is None:
            raise OptionError("--write-fitting needs --pairs, the file of which the fitting pairs are written")
        _refuse_revision(resolve(model), revision)
        task = _load_task(pairs) if pairs else None
        limit = None if max_memory is None else parse_bytes(max_memory)
        options = {"tokens": tokens, "prompts": prompts, "device": on, "align": align, "revision": revision}
        found = inspect_model(
            resolve(model), label=model, config_only=config_only, task=task, max_memory=limit, **options
        )
        if as_json:
            typer.echo(json.dumps(found.as_dict(), indent=2))
        else:
            _print_inspection(found, price)
        if write_fitting is not None:
            _write_fitting(resolve(str(pairs)), found.pairs, write_fitting)
        if found.comes_apart is False or (found.pairs and found.pairs.fault and write_fitting is None):
            raise typer.Exit(1)


def _write_fitting(path: str, fit: Any, out: Path) -> None:
    """The rows of a pair file that fit, all their keys with them, as JSON Lines."""
    from circuit.errors import TaskError
    from circuit.storage import write_text
    from circuit.task import load_task
    from persona.items import raw_pairs

    if not fit.fitting:
        raise TaskError(f"no pair of {fit.source} fits, so {out} is not written; choose other wordings")
    rows, wanted = raw_pairs(path), set(fit.fitting)
    lines = [json.dumps(rows[pair.line]) for pair in load_task(path).pairs if pair.id in wanted]
    write_text("".join(f"{line}\n" for line in lines), out)
    _say(f"written to  {out}: {len(lines):,} of {fit.n_pairs:,} pairs", err=True)


def _print_inspection(found: Any, price: float | None) -> None:
    arch, graph = found.architecture, found.graph
    _say(
        f"{arch.name}: {arch.layers} layers, {arch.heads} heads of width {arch.d_head} ({arch.kv_heads} key-value), "
        f"width {arch.d_model}, MLP {arch.d_mlp}, vocabulary {arch.vocab:,}, context {found.n_context or 'unknown'}\n"
        f"parameters {arch.parameters / 1e9:.3g} G; {graph.n_src:,} sources, {graph.n_dst:,} slots, "
        f"{graph.n_edges:,} edges{' if attention and MLP are not parallel' if found.comes_apart is None else ''}"
    )
    says = {None: "not tried: only the configuration was read", True: "yes", False: found.fault}
    _say(f"comes apart into nodes: {says[found.comes_apart]}")
    _print_costs(found, price)
    if found.pairs is not None:
        fit = found.pairs
        fine = f"{fit.n_pairs:,} pairs of {fit.source} fit, {fit.longest} tokens at most"
        _say(f"\npairs: {fit.fault or fine}")
        if fit.repeated:
            _say(f"note: {fit.repeated} rows say the same as others before them; they are left out everywhere")


def _print_costs(found: Any, price: float | None) -> None:
    """Memory, time and, if an hour has a price, money for every step in every format."""
    from circuit.estimate import weight_bytes

    rows = []
    for dtype, steps in found.costs.items():
        for i, one in enumerate(steps):
            fits = one.prompts_at_once > 0
            head = (dtype, f"{weight_bytes(found.architecture, dtype) / 1e9:.3g}") if i == 0 else ("", "")
            money = () if price is None else (f"{one.seconds / 3600 * price:,.2f}" if fits else "-",)
            size, at_once = f"{one.bytes_per_prompt / 1e9:.3g}", f"{one.prompts_at_once:,}" if fits else "none fits"
            rows.append((*head, one.step, size, at_once, _duration(one.seconds) if fits else "-", *money))
    columns = ("format", "weights, GB", "step", "per prompt, GB", "prompts at once", "time")
    title = f"estimated for {found.prompts:,} prompts of {found.tokens} tokens on one {found.device.name}"
    title += "" if found.limit is None else f" within {found.limit / 1e9:.3g} GB"
    _print_table(title, (*columns, *(() if price is None else ("cost",))), rows, texts=3)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.3g} h"


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
    align: Annotated[
        Literal["equal", "right"],
        typer.Option(help="right: where no paraphrases have equal token length, the nearest; see --null."),
    ] = "equal",
    null: Annotated[
        Path | None,
        typer.Option(
            help="Also write pairs of two paraphrases of one persona. (default with --align right: beside --out)"
        ),
    ] = None,
    neutral: Annotated[
        bool, typer.Option("--neutral", help="Add the question under no persona to every pair, for --ablation neutral.")
    ] = False,
    neutral_wordings: Annotated[
        Path | None, typer.Option(help="One neutral wording a line, for --neutral. (default: see docs/pairs.md)")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of splits, order, wordings and filler.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Build prompt pairs for a model's tokenizer from personas, questions and templates."""
    with _errors():
        from circuit.shipped import MODEL, resolve
        from circuit.storage import check_output_file
        from persona import sources
        from persona.neutral import read_neutral_wordings
        from persona.pair_files import default_null, default_report, write_pairs
        from persona.pairs import PairOptions, build_pairs
        from persona.prompts import load_tokenizer
        from persona.templates import load_templates

        options = PairOptions(
            seed=seed,
            max_pairs=max_pairs,
            per_question=per_question,
            test_share=test_share,
            leaks=leaks,
            filler=filler,
            align=align,
            neutral=neutral or neutral_wordings is not None,
            null=null is not None or align == "right",
        ).checked()
        people, asked = sources.read_personas(resolve(str(personas))), sources.read_questions(resolve(str(questions)))
        if answers is not None:
            asked = sources.with_answers(asked, sources.read_answers(answers), people)
        meetings = contrast if contrast in ("all", "opposed") else sources.read_contrast(contrast)
        nobody = read_neutral_wordings(neutral_wordings) if neutral_wordings is not None else ()
        check_output_file(out, makes_folder=True)
        for path in (report or default_report(out), (null or default_null(out)) if options.null else None):
            if path is not None:
                check_output_file(path, makes_folder=True)
        reader = load_tokenizer(model or MODEL)
        forms = load_templates(resolve(template), reader.tokenizer, cue=cue)
        built = build_pairs(people, asked, reader, forms, contrast=meetings, options=options, neutral_wordings=nobody)
        given = {"personas": str(personas), "questions": str(questions), "answers": answers and str(answers)}
        files = write_pairs(built, out, report, null, pairs=str(out), sources=given | {"contrast": contrast})
        _print_built(built, files, as_json)


def _print_built(built: Any, files: dict[str, Path], as_json: bool) -> None:
    found = built.report()
    if as_json:
        typer.echo(json.dumps({**{name: str(path) for name, path in files.items()}, **found}))
        return
    splits = ", ".join(f"{name} {count}" for name, count in found["kept_by_split"].items())
    _say(f"kept        {found['kept']:,} pairs{f' ({splits})' if splits else ''}")
    _say(f"held out    {found['splits']['held_out']}")
    if found["unequal"]["pairs"]:
        _say(f"unequal     {found['unequal']['pairs']:,} pairs, by {_by_tokens(found['unequal'])}")
    if "null" in found:
        _print_null(found["null"])
    if "neutral" in found:
        counts = ", ".join(f"{len(texts):,} of {source}" for source, texts in found["neutral"].items())
        _say(f"neutral     wordings: {counts}")
    if built.dropped:
        rows = [(item.reason, item.examples[0], f"{item.count:,}") for item in built.dropped]
        _print_table("dropped", ("reason", "for example", "combinations"), rows, texts=2)
    for why, count in found["not_tried"].items():
        _say(f"not tried   {count:,} combinations {why}")
    for key, says in (
        ("leaks", "options in a persona's text"),
        ("candidates_left_out", "options that are no candidate here"),
        ("wordings_left_out", "wordings left out"),
    ):
        if found[key]:
            _say(f"note        {len(found[key]):,} {says}; see the report")
    _say(f"written to  {', '.join(map(str, files.values()))}")


def _print_null(null: dict[str, Any]) -> None:
    counts = f"{null['equal']:,} of equal length, {null['unequal']:,} of unequal"
    by = f", by {_by_tokens(null)}" if null["by_tokens"] else ""
    _say(f"null        {null['pairs']:,} pairs of one persona's paraphrases ({counts}{by})")
    for kind, count in null["pairs_without"].items():
        if count:
            _say(f"note        {count:,} pair(s) have no null pair of {kind} length of their own")
    for why, names in null["personas_without"].items():
        shown = ", ".join([*names[:5], *(["…"] if len(names) > 5 else [])])
        _say(f"note        {len(names):,} persona(s) have not {why}: {shown}")


def _by_tokens(counts: dict[str, Any]) -> str:
    gaps = [int(gap) for gap in counts["by_tokens"]]
    return f"{gaps[0]} to {gaps[-1]} tokens" if gaps[0] != gaps[-1] else f"{gaps[0]} token(s)"


@app.command()
def vary(
    pairs: Annotated[Path, typer.Option("--pairs", help="Prompt pairs, JSON Lines with ids.")],
    rules: Annotated[Path, typer.Option("--rules", help="JSON: variants by name, each a list of substitutions.")],
    out: Annotated[Path, typer.Option("--out", help="Pair file to write, .jsonl.")],
    model: ModelOption = None,
    split: Annotated[str | None, typer.Option(help="Pairs of one split only.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say the same pairs in other ways: late, repeated, intense, as a mention, by rules of substitution."""
    with _errors():
        from circuit.shipped import MODEL, resolve
        from circuit.storage import check_output_file, working_folder
        from persona.pair_files import write_rows
        from persona.prompts import load_tokenizer
        from persona.variants import read_rules, vary

        named = read_rules(resolve(str(rules)))
        check_output_file(out, makes_folder=True)
        found = vary(resolve(str(pairs)), named, load_tokenizer(model or MODEL), split=split)
        with working_folder(out.parent):
            write_rows(found.rows, out)
        bases = len(found.rows) // len(named)
        if as_json:
            dropped = {reason: list(ids) for reason, ids in found.dropped.items()}
            typer.echo(json.dumps({"out": str(out), "bases": bases, "variants": list(named), "dropped": dropped}))
            return
        _say(f"kept        {bases:,} bases in {len(named)} variants: {', '.join(named)}")
        if found.dropped:
            rows = [(reason, ids[0], f"{len(ids):,}") for reason, ids in found.dropped.items()]
            _print_table("dropped", ("reason", "for example", "bases"), rows, texts=2)
        _say(f"written to  {out}")


@app.command("prior-pairs")
def prior_pairs(
    pairs: Annotated[Path, typer.Option("--pairs", help="Persona pairs, whose prompts are met another way.")],
    neutral: Annotated[
        Path, typer.Option("--neutral", help="Wordings without a persona, JSON Lines; they tell a question's default.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Pair file to write, .jsonl.")],
    model: ModelOption = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="What was dropped and why. (default: beside --out)")
    ] = None,
    min_lead: Annotated[
        float, typer.Option(help="Logits by which a default must lead the other option under no persona.")
    ] = 1.0,
    max_pairs: Annotated[int, typer.Option(help="Pairs to write at most, per split.")] = 64,
    seed: Annotated[int, typer.Option("--seed", help="Of the order.")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    as_json: JsonOption = False,
) -> None:
    """Pair the prompts of a persona for the generic prior: one persona, two questions with other defaults."""
    with _errors():
        from circuit.shipped import MODEL, resolve
        from circuit.storage import check_output_file
        from persona.items import load_items, load_neutral
        from persona.pair_files import default_report
        from persona.prior_pairs import PriorOptions, build_prior_pairs, write_prior_pairs

        options = PriorOptions(min_lead, max_pairs, batch_size, seed).checked()
        items = load_items(resolve(str(pairs)), label=str(pairs))
        wordings = load_neutral(resolve(str(neutral)))
        check_output_file(out, makes_folder=True)
        check_output_file(report or default_report(out), makes_folder=True)
        with _progress() as stage:
            loaded = _load(stage, model or MODEL, revision, device, dtype)
            built = build_prior_pairs(loaded, items, wordings, options=options, progress=stage("defaults"))
        beside = write_prior_pairs(built, out, report)
        _print_prior_pairs(built, out, beside, as_json)


def _print_prior_pairs(built: Any, out: Path, beside: Path, as_json: bool) -> None:
    found = built.report()
    if as_json:
        typer.echo(json.dumps({"out": str(out), "report": str(beside), **found}))
        return
    splits = ", ".join(f"{name} {count}" for name, count in found["kept_by_split"].items())
    forms = ", ".join(f"{name} {count}" for name, count in found["kept_by_form"].items())
    _say(f"kept        {found['kept']:,} pairs{f' ({splits})' if splits else ''}; form: {forms}")
    lead, contrast = found["mean_lead"], found["mean_expected"]
    _say(f"no persona  a default leads by {lead:.2f} logits on average; contrast {contrast:.2f}")
    if found["dropped"]:
        rows = [(item["reason"], item["examples"][0], f"{item['count']:,}") for item in found["dropped"]]
        _print_table("dropped", ("reason", "for example", "rows or meetings"), rows, texts=2)
    _say(f"written to  {out}, {beside}")


@app.command()
def collapse(
    context: typer.Context,
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
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure where personas collapse into one answer: divergence, prior, collapse and mass of every pair."""
    with _errors(), _processes() as first:
        _refuse_idle(context, (neutral is not None or pairs is None, "--neutral", ["bias_cut"]))
        from circuit.files import check_output_folder, replace_folder
        from persona.behaviour import fitting_items
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
            if fitting:
                items, more = (one and fitting_items(one, loaded) for one in (items, more))
            study = study_collapse(
                loaded, items, controls=more, neutral=wordings, options=options, progress=stage("asking")
            )
            if first:
                stage("files and figures")
                with replace_folder(out) as staging:
                    write_collapse(study, staging)
        if first:
            _print_collapse(study, out, as_json)


@app.command()
def explain(
    model: ModelOption = None,
    pairs: PairsOption = None,
    controls: Annotated[
        Path | None,
        typer.Option("--controls", help="More pairs, of which the controls are taken; paraphrases give sigma_0."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="pair, question, … any key of the rows; may be repeated. (default: question)"),
    ] = None,
    thresholds: Annotated[
        Path | None, typer.Option("--thresholds", help="Thresholds, JSON, fixed before the run. (default: shipped)")
    ] = None,
    causal: Annotated[bool, typer.Option(help="Run the causal test that goes with each verdict.")] = True,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/explain"
    ),
    split: Annotated[
        str, typer.Option(help="Pairs to explain; controls are taken of every split of --controls.")
    ] = "all",
    n_resamples: Annotated[int, typer.Option(help="Draws of bootstraps and permutations.")] = 2000,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say why each pair collapses or not: numbers, a verdict by fixed thresholds, and a causal test of it."""
    with _errors():
        from circuit.files import check_output_folder, replace_folder
        from persona.explain import ExplainOptions, load_pair_file
        from persona.explain import explain as explain_pairs
        from persona.explain_files import write_explanation
        from persona.verdicts import load_thresholds

        options = ExplainOptions(tuple(by or ("question",)), split, batch_size, n_resamples, causal, seed).checked()
        limits, name, shipped = load_thresholds(thresholds), _model_name(model, pairs), pairs is None
        files = [
            _path_and_name(given, default if shipped else None)
            for given, default in ((pairs, "datasets/pairs_test.jsonl"), (controls, "datasets/pairs_controls.jsonl"))
        ]
        study, more = (load_pair_file(path, label=label) if path else None for path, label in files)
        check_output_folder(out)
        with _progress() as stage:
            loaded = _load(stage, name, revision, device, dtype)
            if fitting:
                study, more = (one and one.fitting(loaded) for one in (study, more))
            found = explain_pairs(loaded, study, controls=more, thresholds=limits, options=options, stage=stage)
            stage("files and figures")
            with replace_folder(out) as staging:
                write_explanation(found, staging)
        _print_explanation(found, out, as_json)


def _print_explanation(found: Any, out: Path, as_json: bool) -> None:
    from persona.explain_files import confusion_rows, explain_record, group_rows, table_columns

    if as_json:
        record = explain_record(found)
        del record["pairs"]
        typer.echo(json.dumps({"out": str(out), **record}))
        return
    parts = {"all": [found.overall], **{key: [g for g in found.groups if g.by == key] for key in found.options.by}}
    for key, groups in (parts | {"control": found.controls}).items():
        if groups:
            title = f"why personas collapse in {found.model}" if key == "all" else f"by {key}"
            _print_table(title, table_columns(key), group_rows(groups), texts=2)
    columns, rows = confusion_rows(found)
    if rows:
        _print_table("verdicts by what the generator sets", columns, rows, texts=1)
        given = found.agreement
        kappa = "undefined" if given.kappa is None else f"{given.kappa:.3f}"
        _say(
            f"agreement   {given.share:.3f} of {given.n} pairs (by chance {given.chance:.3f}), "
            f"Cohen's kappa {kappa}, permutation p {given.p:.2g}"
        )
    if found.sigma_0 is not None:
        _say(f"sigma_0     {found.sigma_0:.3f} logits over {found.n_paraphrases} paraphrase pairs")
    _say(f"thresholds  {found.thresholds.source}, sha256 {found.thresholds.sha256[:12]}…")
    for note in found.notes:
        _say(f"note: {note}")
    _say(f"written to  {out}/")


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
        _say(
            f"sigma_0     {study.sigma_0:.3f} logits over {study.n_paraphrases} paraphrase pairs; "
            "last column: D and collapse of paraphrases"
        )
    for note in study.notes:
        _say(f"note: {note}")
    _say(f"written to  {out}/")


@app.command()
def probe(
    model: ModelOption = None,
    pairs: PairsOption = None,
    test_pairs: Annotated[
        Path | None, typer.Option("--test-pairs", help="Pairs of a second file, held out as 'split'.")
    ] = None,
    personas: Annotated[
        Path | None, typer.Option(help="Personas with traits and wordings, as for pairs. (default: the shipped ones)")
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(help="identity, trait or preference; may be repeated. (default: all there are)"),
    ] = None,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(help="question, template, wording, persona or split; may be repeated. (default: all there are)"),
    ] = None,
    positions: PositionsOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/probe"
    ),
    split: Annotated[str, typer.Option(help="Pairs to use.")] = "all",
    every: Annotated[int, typer.Option(help="Probe behind every so many blocks, the last always.")] = 1,
    folds: Annotated[int, typer.Option(help="Folds at most; no group is in two of them.")] = 5,
    penalty: Annotated[float, typer.Option(help="C of the logistic regression: smaller is a stronger penalty.")] = 0.1,
    repeats: Annotated[int, typer.Option(help="Shuffles of the labels, and control tasks.")] = 3,
    n_resamples: Annotated[int, typer.Option(help="Draws of bootstraps and permutations.")] = 500,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Probe every layer for who the persona is, its traits and its preference, with controls; RSA, CKA and noise."""
    with _errors():
        from circuit.files import check_output_folder, replace_folder
        from persona.examples import load_examples
        from persona.probe import ProbeOptions, study_probes
        from persona.probe_files import write_probes
        from persona.sources import read_personas

        options = ProbeOptions(
            targets=tuple(targets or ()),
            hold_outs=tuple(hold_out or ()),
            positions=tuple(positions or ()),
            every=every,
            folds=folds,
            penalty=penalty,
            repeats=repeats,
            n_resamples=n_resamples,
            batch_size=batch_size,
            seed=seed,
        ).checked()
        name = _model_name(model, pairs)
        path, label = _path_and_name(pairs, "datasets/pairs_test.jsonl")
        people, _ = _path_and_name(personas, "datasets/personas.jsonl" if pairs is None else None)
        who = read_personas(people) if people else ()
        check_output_folder(out)
        with _progress() as stage:
            loaded = _load(stage, name, revision, device, dtype)
            found = load_examples(path or "", loaded, label=label, split=split, personas=who, fitting=fitting)
            test = test_pairs and load_examples(test_pairs, loaded, personas=who, fitting=fitting)
            study = study_probes(loaded, found, test=test, personas=who, options=options, stage=stage)
            stage("files and figures")
            with replace_folder(out) as staging:
                write_probes(study, staging)
        _print_probes(study, out, as_json)


def _print_probes(study: Any, out: Path, as_json: bool) -> None:
    from persona.probe_files import GEOMETRY, TABLE, geometry_rows, probe_record, probe_rows

    if as_json:
        typer.echo(json.dumps({"out": str(out), **probe_record(study)}))
        return
    title = f"probes of {study.model}: {study.n_examples} prompts, {study.n_personas} personas"
    _print_table(f"{title}, {study.n_questions} questions", TABLE, probe_rows(study), texts=4)
    _print_table("geometry of personas, at the layer of their largest share", GEOMETRY, geometry_rows(study), texts=2)
    for note in study.notes:
        _say(f"note: {note}")
    _say(f"written to  {out}/")


@app.command()
def lens(
    model: ModelOption = None,
    pairs: PairsOption = None,
    tokens: Annotated[
        tuple[str, str] | None,
        typer.Option("--tokens", help="Two words, the first persona's and the second's, for the pairs' own answers."),
    ] = None,
    positions: PositionsOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/lens"
    ),
    split: Annotated[str, typer.Option(help="Pairs to read.")] = "all",
    n_resamples: Annotated[int, typer.Option(help="Draws of the bootstraps.")] = 2000,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read preferences off every layer (logit lens), say where they are decided, and which nodes write them."""
    with _errors():
        from circuit.files import check_output_folder, replace_folder
        from persona.examples import load_examples
        from persona.lens import LensOptions, study_lens
        from persona.lens_files import write_lens

        options = LensOptions(tuple(positions or ()), batch_size, n_resamples, seed).checked()
        name = _model_name(model, pairs)
        path, label = _path_and_name(pairs, "datasets/pairs_test.jsonl")
        check_output_folder(out)
        with _progress() as stage:
            loaded = _load(stage, name, revision, device, dtype)
            found = load_examples(path or "", loaded, label=label, split=split, tokens=tokens, fitting=fitting)
            study = study_lens(loaded, found, tokens=tokens, options=options, progress=stage("reading layers"))
            stage("files and figures")
            with replace_folder(out) as staging:
                write_lens(study, staging)
        _print_lens(study, out, as_json)


def _print_lens(study: Any, out: Path, as_json: bool) -> None:
    from persona.lens_files import COMPONENTS, TABLE, component_rows, curve_rows, decision_lines, lens_record

    if as_json:
        typer.echo(json.dumps({"out": str(out), **lens_record(study)}))
        return
    title = f"logit lens of {study.model} at {study.positions[-1]}, {len(study.items)} pairs"
    _print_table(title, TABLE, curve_rows(study), texts=1)
    for line in decision_lines(study):
        _say(line)
    if study.attribution.conserved:
        _print_table("direct logit attribution of D, the largest", COMPONENTS, component_rows(study), texts=1)
        _say(f"conserved   the parts sum to D within {study.attribution.error:.1e} logits on every pair")
    for note in study.notes:
        _say(f"note: {note}")
    _say(f"written to  {out}/")


@app.command()
def patch(
    context: typer.Context,
    model: ModelOption = None,
    pairs: PairsOption = None,
    at: Annotated[
        str, typer.Option("--at", help="What is patched, of stream, attn, mlps, heads, head-parts; or none.")
    ] = "stream,attn,mlps,heads",
    parts: Annotated[
        Literal["spans", "named", "positions"],
        typer.Option("--parts", help="Parts of the prompt: the file's, named single tokens, or every position."),
    ] = "spans",
    senders: Annotated[
        str, typer.Option("--from", help="Nodes that paths start at, such as a5.h2,m3. (default: all that reach --to)")
    ] = "",
    receivers: Annotated[
        str, typer.Option("--to", help="Where direct paths end, such as 'a9.h10<v>,m4,logits'; a head is its q, k, v.")
    ] = "",
    ablate: Annotated[str, typer.Option("--ablate", help="Heads to ablate, such as a9.h10,a10.h5.")] = "",
    ablate_top: Annotated[
        int | None, typer.Option("--ablate-top", help="Ablate the first so many persona movers instead.")
    ] = None,
    ablation: Annotated[AblationName, typer.Option(help="What ablated heads write.")] = "corrupt",
    n_random: Annotated[
        int, typer.Option("--n-random", help="Random sets of as many heads in the same layers to compare with.")
    ] = 100,
    negligible: Annotated[
        float, typer.Option("--negligible", help="Share of D up to which a head is no mover.")
    ] = 0.01,
    null: Annotated[
        Path | None, typer.Option("--null", help="Pairs of paraphrases of one persona: how large D is without signal.")
    ] = None,
    align: AlignOption = "equal",
    train_split: Annotated[
        str | None, typer.Option(help="Pairs to patch. (default: train, or all if no split is named)")
    ] = None,
    eval_split: Annotated[
        str | None, typer.Option(help="Pairs to ablate on. (default: test, or all if no split is named)")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/patch"
    ),
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Patch streams, heads, MLPs and paths from one persona's run into the other's; rank the heads that carry it."""
    with _errors():
        cut = bool(ablate) or ablate_top is not None
        _refuse_idle(
            context,
            (cut, "--ablate or --ablate-top", ["ablation", "n_random", "eval_split"]),
            ("heads" in _names(at), "--at heads", ["negligible"]),
        )
        from circuit.files import check_output_folder, replace_folder
        from persona.activation_patching import PatchOptions, study_patching
        from persona.patch_files import write_patch

        options = PatchOptions(
            at=() if at.strip() == "none" else _names(at),
            parts=parts,
            senders=_names(senders),
            receivers=_names(receivers),
            ablate=_names(ablate),
            ablate_top=ablate_top,
            ablation=ablation,
            n_random=n_random,
            align=align,
            negligible=negligible,
            batch_size=batch_size,
            seed=seed,
        ).checked()
        name = _model_name(model, pairs)
        quiet = _load_task(null) if null else None
        check_output_folder(out)
        with _progress() as stage:
            loaded = _load(stage, name, revision, device, dtype)
            found, held_out = _two_splits(loaded, pairs, train_split, eval_split, align if fitting else None)
            quiet = _fitted(quiet, loaded, align, fitting)
            study = study_patching(loaded, found, held_out, options=options, null=quiet, stage=stage)
            stage("files and figures")
            with replace_folder(out) as staging:
                write_patch(study, staging)
        _print_patch(study, out, as_json)


def _names(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _two_splits(
    model: Any, pairs: Path | None, train: str | None, test: str | None, fit: str | None
) -> tuple[Any, Any]:
    """The pairs to search on and those to test on; one and the same where the file names no splits.

    With ``fit``, an alignment, those of them that fit the model.
    """
    from circuit.discovery import split_of
    from circuit.shipped import PAIRS, resolve
    from persona.examples import load_examples

    task, name = _load_task(pairs), PAIRS if pairs is None else str(pairs)
    first, second = split_of(task, train, "train"), split_of(task, test, "test")
    how = {"label": name, "fitting": fit is not None, "align": fit}
    found = load_examples(resolve(name), model, split=first, **how)
    return found, found if second == first else load_examples(resolve(name), model, split=second, **how)


def _print_patch(study: Any, out: Path, as_json: bool) -> None:
    from persona.patch_files import (
        MOVERS,
        PATHS,
        ablation_lines,
        mover_rows,
        patch_record,
        path_rows,
        stream_rows,
        stream_table,
    )

    if as_json:
        typer.echo(json.dumps({"out": str(out), **patch_record(study)}))
        return
    mean = study.mean_divergence
    ends = "" if mean.low is None else f" ({mean.low:+.3f} to {mean.high:+.3f})"
    _say(f"divergence  {mean.value:+.3f} logits{ends} on {len(study.items)} pairs")
    if study.below_null is not None:
        count = int(study.below_null.sum())
        _say(f"null        |D| is below 2 sigma_0 = {2 * study.null.sigma_0:.3f} on {count} pairs")
    if rows := stream_rows(study):
        _print_table("share of D that comes with the residual stream", stream_table(study), rows, texts=1)
    if rows := mover_rows(study):
        count = sum(one.is_mover for one in study.movers)
        _print_table(f"persona movers: {count} of {len(study.movers)} heads, at the answer", MOVERS, rows, texts=2)
    if rows := path_rows(study):
        _print_table("direct paths, the largest to each receiver, and together", PATHS, rows, texts=2)
    for line in ablation_lines(study):
        _say(line)
    _say(f"passes      {study.passes} forward passes, {study.runs} prompts in them")
    for note in study.notes:
        _say(f"note: {note}")
    _say(f"written to  {out}/")


@app.command()
def study(
    model: ModelOption = None,
    pairs: PairsOption = None,
    controls: Annotated[
        Path | None, typer.Option("--controls", help="More pairs, of which the controls are taken (key 'control').")
    ] = None,
    variants: Annotated[
        Path | None, typer.Option("--variants", help="Pairs said in other ways: keys 'variant' and 'base'.")
    ] = None,
    prior_pairs: Annotated[
        Path | None, typer.Option("--prior-pairs", help="Pairs for the generic prior, of the prior-pairs command.")
    ] = None,
    personas: Annotated[
        Path | None, typer.Option(help="Personas with traits and wordings, for probes. (default: the shipped ones)")
    ] = None,
    plan: Annotated[
        list[Path] | None, typer.Option("--plan", help="Predictions, JSON, made before the run; may be repeated.")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help="Stages to run, apart by commas; see docs/study.md. (default: all)")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Of the circuits, as a share of |D|.")] = 0.003,
    target_faithfulness: Annotated[float, typer.Option(help="Of the smallest circuit.")] = 0.9,
    max_pairs: Annotated[
        int, typer.Option(help="Pairs at most where many circuits are tried; four times as many are steered.")
    ] = 16,
    n_random: Annotated[int, typer.Option(help="Random circuits beside each faithfulness.")] = 3,
    probe_every: Annotated[int, typer.Option(help="Probe behind every so many blocks.")] = 2,
    n_resamples: Annotated[int, typer.Option(help="Draws of bootstraps and permutations.")] = 2000,
    quick: Annotated[bool, typer.Option("--quick", help="The least of everything, to see that it runs.")] = False,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="All pairs, and the tests as evaluate makes them: hours on a CPU.")
    ] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="Keep tables, circuits and a few pictures: what can be committed.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/study"
    ),
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    as_json: JsonOption = False,
) -> None:
    """Run every stage on one model: behaviour, causes, probes, circuits, steering; numbers, predictions, report."""
    with _errors() as kept:
        from circuit.files import check_output_folder
        from persona.study import StudyOptions, run_study
        from persona.study_predictions import load_plan

        options = StudyOptions(
            n_resamples=n_resamples,
            n_random=n_random,
            max_pairs=max_pairs,
            threshold=threshold,
            target=target_faithfulness,
            probe_every=probe_every,
            quick=quick,
            thorough=thorough,
            compact=compact,
            seed=seed,
            batch_size=batch_size,
        ).checked()
        name = _model_name(model, pairs)
        files = _study_files(pairs, controls, variants, prior_pairs, personas)
        plans = [load_plan(path) for path in plan or ()]
        check_output_folder(out)
        stages = tuple(part.strip() for part in only.split(",")) if only else ()
        kept.append(lambda: f"the stages that were finished are kept in {out}")
        with _progress() as stage:
            loaded = _load(stage, name, revision, device, dtype)
            found = run_study(loaded, files, out, options=options, only=stages, plans=plans, stage=stage)
        _print_study(found, out, as_json)


def _study_files(pairs: Path | None, *others: Path | None) -> Any:
    """The files of a study, the shipped model's where no pairs are given."""
    from persona.study import StudyFile, StudyFiles

    shipped = ("study_world", "study_world_controls", "study_world_variants", "pairs_prior", "personas")
    found = []
    for given, default in zip((pairs, *others), shipped, strict=True):
        path, label = _path_and_name(given, f"datasets/{default}.jsonl" if pairs is None else None)
        found.append(None if path is None else StudyFile.at(path, label))
    return StudyFiles(*found)


def _print_study(found: Any, out: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"out": str(out), **found.record()}))
        return
    rows = [
        (one.name, f"{len(one.numbers):,}", "finished before" if one.reused else "run", str(len(one.notes)))
        for one in found.stages
    ]
    _print_table(f"study of {found.model}", ("stage", "numbers", "", "notes"), rows, texts=1)
    for plan, outcomes in found.plans:
        cells = [(one.id, one.outcome, "; ".join(one.why)) for one in outcomes]
        _print_table(f"predictions of {plan.source}", ("id", "outcome", "numbers"), cells, texts=3)
    for one in found.stages:
        for note in one.notes:
            _say(f"note: {one.name}: {note}")
    if found.missing:
        _say(f"not run     {', '.join(found.missing)}")
    _say(f"written to  {out}/: numbers.json, numbers.csv, report.md, a folder per stage")


@app.command()
def respond(
    context: typer.Context,
    model: ModelOption = None,
    personas: PersonasOption = None,
    questions: QuestionsOption = None,
    template: TemplateOption = None,
    cue: Annotated[str | None, typer.Option(help="What the response follows. (default: the template's)")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/responses"
    ),
    wordings: WordingsOption = 1,
    question_wordings: QuestionWordingsOption = 1,
    samples: SamplesOption = 1,
    max_questions: MaxQuestionsOption = None,
    baseline: BaselineOption = None,
    max_new_tokens: MaxNewOption = 48,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 1.0,
    stop: StopOption = None,
    endpoint_model: EndpointOption = None,
    base_url: UrlOption = None,
    api_key: KeyOption = None,
    concurrency: ConcurrencyOption = 8,
    max_retries: RetriesOption = 8,
    timeout: TimeoutOption = 120.0,
    deadline: DeadlineOption = 900.0,
    max_bytes: BytesOption = 4 * 2**20,
    limit_field: LimitOption = "max_tokens",
    system_turn: Annotated[bool, typer.Option(help="Persona as system turn of an endpoint, or before the user's.")] = (
        True
    ),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the responses.")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    as_json: JsonOption = False,
) -> None:
    """Have a model, here or behind an endpoint, answer questions as every persona; goes on where it was stopped."""
    with _errors() as kept:
        _refuse_idle(
            context,
            (endpoint_model is not None, "--endpoint-model", [*ASKING, "system_turn"]),
            (endpoint_model is None, "a model that is run here", ["cue", *RUNNING]),
            (temperature > 0, "--temperature above 0", ["top_p"]),
        )
        from circuit.errors import OptionError
        from circuit.storage import check_output_file, check_output_folder
        from persona.endpoint import Journal, endpoint
        from persona.responses import Sampling, respond_remotely

        if endpoint_model and (model or template):
            raise OptionError("--endpoint-model asks an endpoint, --model and --template are of a local one: choose")
        plan = {"wordings": wordings, "question_wordings": question_wordings, "samples": samples}
        plan |= {"max_questions": max_questions}
        wanted, sources = _exchanges(model or endpoint_model, personas, questions, baseline, **plan)
        sampling = Sampling(max_new_tokens, temperature, top_p, seed, _texts(stop)).checked()
        check_output_folder(out)
        check_output_file(out / "journal.jsonl", makes_folder=True)
        kept.append(lambda: _journalled(out))
        if endpoint_model:
            place = endpoint(
                endpoint_model,
                base_url=base_url,
                key=api_key,
                concurrency=concurrency,
                max_retries=max_retries,
                timeout=timeout,
                deadline=deadline,
                max_bytes=max_bytes,
                limit=limit_field,
            )
            with _progress() as stage, Journal(out / "journal.jsonl") as journal:
                tell = stage(f"asking {endpoint_model}")
                found = respond_remotely(
                    place, wanted, journal, sampling=sampling, system_turn=system_turn, progress=tell
                )
            about = {"model": endpoint_model, "address": place.address, "system_turn": system_turn}
        else:
            with _progress() as stage:
                loaded = _load(stage, _shipped_or(model), revision, device, dtype)
                found, about = _respond_here(loaded, wanted, template, cue, sampling, out, batch_size, stage, stop)
        _write_responses(found, about | {"sources": sources}, out, baseline, as_json)


@app.command()
def vectors(
    context: typer.Context,
    model: ModelOption = None,
    responses: Annotated[
        Path | None,
        typer.Option("--responses", help="responses.jsonl of the respond command. (default: made here, as it would)"),
    ] = None,
    personas: PersonasOption = None,
    questions: QuestionsOption = None,
    template: TemplateOption = None,
    cue: Annotated[str | None, typer.Option(help="What the response follows. (default: the template's)")] = None,
    layer: Annotated[int | None, typer.Option(help="Block, from 0, behind which the vectors are shown.")] = None,
    layer_fraction: Annotated[
        float | None, typer.Option(help="The same as a share of the blocks; all are read and kept. (default: 0.5)")
    ] = None,
    compare_with: Annotated[
        list[Path] | None, typer.Option("--compare", help="Folder of another model's vectors; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/vectors"
    ),
    wordings: WordingsOption = 1,
    question_wordings: QuestionWordingsOption = 1,
    samples: SamplesOption = 1,
    max_questions: MaxQuestionsOption = None,
    baseline: BaselineOption = None,
    max_new_tokens: MaxNewOption = 48,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 1.0,
    stop: StopOption = None,
    n_permutations: Annotated[int, typer.Option(help="Of personas, when models are compared.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of responses and permutations.")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    as_json: JsonOption = False,
) -> None:
    """Mean activations of a model as every persona: cosines, components, assistant axis, other models beside."""
    with _errors() as kept:
        said_here = ["personas", "questions", "wordings", "question_wordings", "samples", "max_questions"]
        said_here += ["max_new_tokens", "temperature", "top_p", "stop"]
        _refuse_idle(
            context,
            (responses is None, "responses made here, without --responses", said_here),
            (temperature > 0, "--temperature above 0", ["top_p"]),
            (bool(compare_with), "--compare", ["n_permutations"]),
        )
        from circuit.shipped import resolve
        from circuit.storage import check_output_file, check_output_folder, replace_folder
        from persona.response_files import read_responses
        from persona.responses import Sampling, baseline_of, open_template
        from persona.streams import chosen_layer
        from persona.vector_files import geometry_of, read_vectors, write_vectors
        from persona.vectors import persona_vectors

        plan = {"wordings": wordings, "question_wordings": question_wordings, "samples": samples}
        plan |= {"max_questions": max_questions}
        sampling = Sampling(max_new_tokens, temperature, top_p, seed, _texts(stop)).checked()
        others = [read_vectors(path) for path in compare_with or ()]
        said = None if responses is None else read_responses(responses)
        wanted, about = ((), {}) if said else _exchanges(model, personas, questions, baseline, **plan)
        check_output_folder(out)
        check_output_folder(out / "cache")
        check_output_file(out / "journal.jsonl", makes_folder=True)
        kept.append(lambda: _journalled(out))
        with _progress() as stage:
            loaded = _load(stage, _shipped_or(model), revision, device, dtype)
            at = chosen_layer(loaded.graph.n_layers, layer, layer_fraction)
            if said is None:
                made, record = _respond_here(loaded, wanted, template, cue, sampling, out, batch_size, stage, stop)
                said, about = made.responses, record | {"sources": about}
            else:
                about = {"responses": str(responses)}
            form = open_template(template and resolve(template), loaded.tokenizer, cue=cue)
            reading = stage("reading the residual stream")
            found = persona_vectors(loaded, said, form, cache=out / "cache", batch_size=batch_size, progress=reading)
            geometry = geometry_of(found, at, baseline_of(found.personas, baseline))
            comparison = _compared(geometry, others, layer_fraction, n_permutations, seed) if others else None
            stage("files and figures")
            with replace_folder(out) as staging:
                write_vectors(geometry, about, staging, comparison=comparison)
        _print_vectors(geometry, comparison, out, about, as_json)


def _compared(geometry: Any, others: Sequence[Any], fraction: float | None, n_permutations: int, seed: int) -> Any:
    """This model's personas beside the others', each at the layer that it was studied at, or all at one fraction."""
    from persona.streams import chosen_layer
    from persona.vector_comparison import compare_models
    from persona.vector_files import StoredVectors

    own = StoredVectors(geometry.vectors, geometry.layer, geometry.baseline).compared()
    layers = [None if fraction is None else chosen_layer(side.vectors.n_layers, None, fraction) for side in others]
    sides = [own, *(side.compared(at) for side, at in zip(others, layers, strict=True))]
    return compare_models(sides, n_permutations=n_permutations, seed=seed)


def _print_vectors(geometry: Any, comparison: Any, out: Path, about: dict[str, Any], as_json: bool) -> None:
    from persona import vector_files as files

    if as_json:
        typer.echo(json.dumps({"out": str(out), **files.vector_record(geometry, about, comparison)}))
        return
    found = geometry.vectors
    title = f"{len(found.personas)} persona vectors of {found.model} behind block {geometry.layer}, "
    title += f"{len(found.questions)} questions"
    _print_table(title, files.TABLE, files.persona_rows(geometry), texts=3)
    _print_table("by layer (* shown above)", files.LAYERS, files.layer_rows(geometry), texts=1)
    if comparison is not None:
        title = f"how alike models arrange {len(comparison.personas)} personas"
        _print_table(title, files.COMPARED, files.comparison_rows(comparison), texts=1)
    for note in geometry.notes:
        _say(f"note: {note}")
    _say(f"written to  {out}/")


@app.command()
def steer(
    context: typer.Context,
    model: ModelOption = None,
    pairs: PairsOption = None,
    fit: Annotated[
        Path | None,
        typer.Option(
            "--fit", help="Pairs to fit directions on. (default: the train split, or the shipped train pairs)"
        ),
    ] = None,
    direction: Annotated[
        str | None,
        typer.Option(
            help="personas, pooled, pair, readout, a folder of vectors, or FILE.safetensors:NAME[:ROW], as a probe's. "
            "(default: personas if all are fitted on, else pooled)"
        ),
    ] = None,
    toward: Annotated[str | None, typer.Option(help="With a folder of vectors: the persona to steer to.")] = None,
    away: Annotated[str | None, typer.Option(help="And the one to steer away from.")] = None,
    layers: Annotated[
        list[int] | None,
        typer.Option("--layer", help="Block, from 0, to add behind; may be repeated. (default: four, evenly)"),
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="All layers at once, not one at a time.")] = False,
    positions: Annotated[
        Literal["prompt-end", "all"], typer.Option(help="The prompt's last token and all after it, or all tokens.")
    ] = "prompt-end",
    strengths: Annotated[
        str, typer.Option(help="Above 0, apart by commas; each is used with both signs.")
    ] = "0.5,1,2,4",
    ablate: Annotated[bool, typer.Option(help="Also take the direction out, from each layer on.")] = True,
    n_controls: Annotated[int, typer.Option(help="Random directions of either kind to compare with.")] = 3,
    kl_bound: Annotated[float, typer.Option(help="Bound on the mean KL on neutral prompts, in nats.")] = 0.1,
    neutral: Annotated[
        Path | None,
        typer.Option(help="Neutral prompts, one a line. (default: the pairs' without the persona)"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Pairs to steer. (default: test, or all if no split is named)")
    ] = None,
    max_pairs: Annotated[int, typer.Option(help="Pairs to steer at most, evenly taken.")] = 48,
    generate: Annotated[int, typer.Option(min=0, help="Pairs whose prompts are continued, before and after.")] = 8,
    max_new_tokens: MaxNewOption = 48,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    stop: StopOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/steer"
    ),
    n_resamples: Annotated[int, typer.Option(help="Draws of the bootstraps.")] = 2000,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add a direction to the residual stream: persona effect, KL, flips against the required gain, what is said."""
    with _errors():
        _refuse_idle(
            context,
            (generate > 0, "--generate above 0", ["max_new_tokens", "temperature", "top_p", "stop"]),
            (temperature > 0, "--temperature above 0", ["top_p"]),
            (layers is None or len(set(layers)) > 1, "more than one --layer", ["together"]),
        )
        from dataclasses import replace

        from circuit.files import check_output_folder, replace_folder
        from persona.directions import default_kind
        from persona.examples import load_examples
        from persona.responses import Sampling
        from persona.steered_text import generate_steered
        from persona.steering import SteerOptions, some_pairs, study_steering
        from persona.steering_files import write_steering
        from persona.streams import chosen_layer

        numbers = _numbers(strengths)
        sampling = Sampling(max_new_tokens, temperature, top_p, seed, _texts(stop)).checked()
        name, named = _model_name(model, pairs), _named_two(toward, away)
        asked, fitted, splits = _steered_and_fitted(pairs, fit, split)
        plain = _lines(neutral)
        check_output_folder(out)
        with _progress() as stage:
            loaded = _load(stage, name, revision, device, dtype)
            n = loaded.graph.n_layers
            chosen = tuple(layers or (chosen_layer(n, None, share) for share in (0.25, 0.5, 0.75, 0.9)))
            options = SteerOptions(
                chosen,
                numbers,
                positions,
                together,
                ablate,
                n_controls,
                kl_bound,
                n_resamples,
                seed,
                batch_size,
            ).checked()
            here = load_examples(asked[0] or "", loaded, label=asked[1], split=splits[0], fitting=fitting)
            there = load_examples(fitted[0] or "", loaded, label=fitted[1], split=splits[1], fitting=fitting)
            kind = direction or default_kind(there.examples, here.examples)
            study = study_steering(
                loaded,
                some_pairs(here, max_pairs),
                there,
                kind,
                options,
                toward=named,
                neutral=plain,
                progress=stage("steering"),
            )
            texts = ()
            if generate:
                telling = stage("texts before and after")
                if stop is None and not loaded.tokenizer.chat_template:
                    sampling = replace(sampling, stop=("\n",))
                texts = generate_steered(
                    loaded, study, study.streams, n_pairs=generate, sampling=sampling, progress=telling
                )
            stage("files and figures")
            about = {"pairs": asked[1], "split": splits[0], "fitted_on": fitted[1], "fitting_split": splits[1]}
            with replace_folder(out) as staging:
                write_steering(study, texts, about, staging)
        _print_steering(study, texts, about, out, as_json)


def _steered_and_fitted(pairs: Path | None, fit: Path | None, split: str | None) -> Any:
    """Paths and names of the pairs to steer and to fit on, and the split of each."""
    from circuit.task import load_task

    asked = _path_and_name(pairs, "datasets/pairs_test.jsonl")
    known = load_task(asked[0] or "").splits
    steered = split or ("test" if "test" in known else "all")
    if fit is not None or pairs is None:
        return asked, _path_and_name(fit, "datasets/pairs_train.jsonl"), (steered, "all")
    return asked, asked, (steered, "train" if "train" in known and steered != "train" else "all")


def _numbers(text: str) -> tuple[float, ...]:
    from circuit.errors import OptionError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"--strengths {text!r} are not numbers apart by commas, such as 0.5,1,2") from error


def _named_two(toward: str | None, away: str | None) -> tuple[str, str] | None:
    from circuit.errors import OptionError

    if (toward is None) != (away is None):
        raise OptionError("--toward and --away go together: a direction leads from one persona to the other")
    return None if toward is None or away is None else (toward, away)


def _lines(path: Path | None) -> tuple[str, ...]:
    from circuit.errors import FileError
    from circuit.reading import Kind, read_text

    if path is None:
        return ()
    kind = Kind("list of neutral prompts", expected="one prompt a line")
    lines = [line for line in read_text(path, kind).split("\n") if line.strip()]
    if not lines:
        raise FileError(f"{path} is empty; expected one prompt a line")
    return tuple(line.replace("\\n", "\n") for line in lines)


def _print_steering(study: Any, texts: Any, about: dict[str, Any], out: Path, as_json: bool) -> None:
    from persona import steering_files as files

    if as_json:
        typer.echo(json.dumps({"out": str(out), **files.steering_record(study, texts, about)}))
        return
    title = f"steering {study.model} along {study.directions.kind}, {len(study.prompts)} pairs"
    _print_table(f"{title}, at {study.options.positions}", files.TABLE, files.outcome_rows(study), texts=1)
    title = f"largest strength with KL within {study.options.kl_bound:g} nats"
    _print_table(title, files.BOUNDS, files.bound_rows(study), texts=1)
    if texts:
        where = "+".join(map(str, texts[0].layers))
        title = f"{len(texts)} texts, steered behind layer {where}; perplexity is the unsteered model's"
        _print_table(title, files.TEXTS, files.text_rows(texts), texts=1)
    for note in study.notes:
        _say(f"note: {note}")
    _say(f"written to  {out}/")


@app.command()
def neurons(
    model: ModelOption = None,
    pairs: PairsOption = None,
    test_pairs: Annotated[
        Path | None,
        typer.Option("--test-pairs", help="Held-out pairs. (default: those of --pairs whose split is not train)"),
    ] = None,
    null: Annotated[
        Path | None,
        typer.Option("--null", help="Pairs of two wordings of one persona ('control': 'paraphrase'), as pairs writes."),
    ] = None,
    layer: Annotated[list[int] | None, typer.Option("--layer", help="May be repeated. (default: all)")] = None,
    hook: Annotated[
        Literal["post", "pre", "gate"],
        typer.Option(help="What the MLP's down projection reads; what its up or gate projection writes."),
    ] = "post",
    position: Annotated[
        str,
        typer.Option(help="persona-end, question-end, question-word, prompt-end; persona-mean, question-mean."),
    ] = "prompt-end",
    pool: Annotated[
        Literal["mean", "rms"],
        typer.Option(help="mean: A is of one kind throughout; rms: any two personas, in whatever order."),
    ] = "mean",
    top_k: Annotated[int, typer.Option("--top-k", help="Neurons to select.")] = 20,
    level: Annotated[float, typer.Option("--level", help="Of false discoveries.")] = 0.05,
    ablation: Annotated[
        list[str] | None, typer.Option("--ablation", help="zero, mean or swap; may be repeated. (default: all)")
    ] = None,
    at: Annotated[
        Literal["position", "all"], typer.Option("--ablate-at", help="Change neurons at the position, or everywhere.")
    ] = "position",
    n_random: Annotated[int, typer.Option("--n-random", help="Random sets of neurons to ablate.")] = 100,
    max_pairs: Annotated[int, typer.Option("--max-pairs", help="Held-out pairs to ablate on.")] = 32,
    min_group: Annotated[int, typer.Option("--min-group", help="Pairs of a group in cross-validation, at least.")] = 4,
    n_draws: Annotated[int, typer.Option("--n-draws", help="Draws of the null.")] = 200,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/neurons"
    ),
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the MLP neurons that tell two personas apart: a null, cross-validation, ablation beside random ones."""
    with _errors():
        from circuit.files import check_output_folder, replace_folder
        from persona.examples import load_examples
        from persona.neuron_files import write_neurons
        from persona.neurons import NeuronOptions, held_out_files, study_neurons

        options = NeuronOptions(
            layers=tuple(layer or ()),
            hook=hook,
            position=position,
            pool=pool,
            top_k=top_k,
            level=level,
            kinds=("zero", "mean", "swap") if ablation is None else tuple(dict.fromkeys(ablation)),
            everywhere=at == "all",
            n_random=n_random,
            max_pairs=max_pairs,
            least=min_group,
            n_draws=n_draws,
            batch_size=batch_size,
            seed=seed,
        ).checked()
        name = _model_name(model, pairs)
        shipped = pairs is None
        files = {
            "pairs": _path_and_name(pairs, "datasets/pairs_train.jsonl"),
            "held_out": _path_and_name(test_pairs, "datasets/pairs_test.jsonl" if shipped else None),
            "null": _path_and_name(null, "datasets/pairs_controls.jsonl" if shipped else None),
        }
        check_output_folder(out)
        with _progress() as stage:
            loaded = _load(stage, name, revision, device, dtype)
            found = {
                key: load_examples(path, loaded, label=label, fitting=fitting)
                for key, (path, label) in files.items()
                if path
            }
            study = study_neurons(loaded, *held_out_files(**found), options=options, stage=stage)
            stage("files and figures")
            with replace_folder(out) as staging:
                write_neurons(study, staging)
        _print_neurons(study, out, as_json)


def _print_neurons(study: Any, out: Path, as_json: bool) -> None:
    from persona.neuron_files import headline, neuron_record, tables

    if as_json:
        typer.echo(json.dumps({"out": str(out), **neuron_record(study)}))
        return
    _say(headline(study))
    for title, columns, rows, texts in tables(study):
        _print_table(title, columns, rows, texts=texts)
    if study.ablations:
        _say(f"intervals   {study.clusters}")
    for note in study.notes:
        _say(f"note: {note}")
    _say(f"written to  {out}/")


@app.command()
def bridge(
    context: typer.Context,
    circuit: Annotated[
        Path, typer.Argument(help="circuit.json, its folder, EAP-IG's JSON, or a list of nodes.")
    ] = LATEST,
    model: Annotated[
        str | None, typer.Option(help="Hugging Face folder or hub name. (default: the one the circuit names)")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option("--pairs", help="Pairs for directions and test. (default: the circuit's)")
    ] = None,
    test_pairs: Annotated[
        Path | None,
        typer.Option("--test-pairs", help="Held-out pairs. (default: those of --pairs whose split is not train)"),
    ] = None,
    movers: Annotated[
        Path | None, typer.Option("--movers", help="patch.json, or its folder. (default: the largest writers here)")
    ] = None,
    neurons: Annotated[Path | None, typer.Option("--neurons", help="neurons.json, or its folder.")] = None,
    position: Annotated[
        str, typer.Option(help="persona-end, question-end, question-word or prompt-end.")
    ] = "prompt-end",
    layer: Annotated[
        int | None, typer.Option("--layer", help="Where nodes are listed and movers taken. (default: the last)")
    ] = None,
    direction: Annotated[
        str, typer.Option(help="personas, pooled, pair, or a file, as for steer. (default: by the pairs)")
    ] = "",
    toward: Annotated[str | None, typer.Option("--toward", help="Persona of a file of vectors.")] = None,
    away: Annotated[str | None, typer.Option("--away", help="Persona of a file of vectors, the other end.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", help="Movers to take where no file names them.")] = 10,
    n_random: Annotated[int, typer.Option("--n-random", help="Random sets of nodes.")] = 1000,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/bridge"
    ),
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """From persona vectors to a circuit: who writes the vector, the circuit's share, overlap with other findings."""
    with _errors():
        _refuse_idle(context, (movers is None, "movers that are found here, without --movers", ["top_k"]))
        from circuit.errors import OptionError
        from circuit.files import check_output_folder, replace_folder
        from circuit.shipped import PAIRS
        from persona import bridge_files as files
        from persona.bridge import BridgeOptions, build_bridge
        from persona.examples import load_examples
        from persona.neurons import held_out_files

        options = BridgeOptions(
            position, layer, direction, _named_two(toward, away), top_k, n_random, batch_size, seed
        ).checked()
        stored = files.read_nodes(circuit)
        name = model or (stored.record["model"]["name"] if stored.record else None)
        if name is None and pairs is not None:
            raise OptionError(f"{stored.path} does not say which model it is of; give --model")
        given = str(pairs) if pairs is not None else _own_pairs(stored.record) if stored.record or model else PAIRS
        check_output_folder(out)
        with _progress() as stage:
            loaded = _load(stage, _shipped_or(name), revision, device, dtype)
            _warn_of_other_weights(stored.record, loaded)
            named = stored.of(loaded.graph)
            sets = {
                "movers": files.read_movers(movers, loaded.graph) if movers else None,
                "neurons": files.read_neuron_mlps(neurons, loaded.graph) if neurons else None,
            }
            from circuit.shipped import resolve

            found = load_examples(resolve(given), loaded, label=given, fitting=fitting)
            held = load_examples(test_pairs, loaded, fitting=fitting) if test_pairs else None
            fit, measured, _ = held_out_files(found, held)
            study = build_bridge(loaded, named, fit, measured, options=options, stage=stage, **sets)
            stage("files and figures")
            with replace_folder(out) as staging:
                files.write_bridge(study, staging)
        _print_bridge(study, out, as_json)
        for path in (movers, neurons):
            if path and files.fingerprint_of(path) not in ("", loaded.fingerprint):
                _say(f"note: {path} is of other weights than {loaded.name} has", err=True)


def _print_bridge(study: Any, out: Path, as_json: bool) -> None:
    from persona import bridge_files as files

    if as_json:
        typer.echo(json.dumps({"out": str(out), **files.bridge_record(study)}))
        return
    _say(f"direction   {study.direction}, at {study.options.position}; {len(study.pairs)} pairs")
    title = "share of the vector's projection that the circuit's nodes write, beside random sets of nodes"
    _print_table(title, files.LAYERS, files.layer_rows(study), texts=1)
    _print_table(f"largest writers behind block {study.layer}", files.NODES, files.node_rows(study), texts=1)
    _print_table("overlap of sets of nodes", files.OVERLAPS, files.overlap_rows(study), texts=1)
    _say(f"movers      {study.movers.source}")
    _say(f"conserved   the parts sum to the projection within {study.error:.1e} of the largest stream")
    _say(f"intervals   {study.clusters}")
    for note in study.notes:
        _say(f"note: {note}")
    _say(f"written to  {out}/")


@app.command()
def rate(
    context: typer.Context,
    responses: Annotated[
        Path, typer.Option("--responses", help="responses.jsonl of the respond command, or lines like it.")
    ] = Path("runs/responses/responses.jsonl"),
    model: Annotated[
        str | None,
        typer.Option("--model", help="Rate offline by this model's own likelihoods. (default: the shipped model)"),
    ] = None,
    template: TemplateOption = None,
    cue: Annotated[str | None, typer.Option(help="What the response follows. (default: the template's)")] = None,
    neutral: Annotated[str, typer.Option(help="Text in the persona's place to compare with, offline.")] = "",
    endpoint_model: EndpointOption = None,
    rater_prompt: Annotated[
        Path | None, typer.Option("--rater-prompt", help="Has {persona}, {question}, {reply}. (default: our own)")
    ] = None,
    control: Annotated[bool, typer.Option(help="Have each response rated as another persona's too.")] = True,
    max_answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a rater's answer at most.")] = 16,
    base_url: UrlOption = None,
    api_key: KeyOption = None,
    concurrency: ConcurrencyOption = 8,
    max_retries: RetriesOption = 8,
    timeout: TimeoutOption = 120.0,
    deadline: DeadlineOption = 900.0,
    max_bytes: BytesOption = 4 * 2**20,
    limit_field: LimitOption = "max_tokens",
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/rate"
    ),
    n_resamples: Annotated[int, typer.Option(help="Draws of the bootstraps.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstraps.")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    as_json: JsonOption = False,
) -> None:
    """Rate how much of a persona shows in responses: by a model behind an endpoint, or offline by likelihoods."""
    with _errors() as kept:
        _refuse_idle(
            context,
            (endpoint_model is not None, "--endpoint-model", [*ASKING, "rater_prompt", "control", "max_answer_tokens"]),
            (endpoint_model is None, "a model that is run here", ["cue", "neutral", *RUNNING]),
        )
        from circuit.errors import OptionError
        from circuit.shipped import resolve
        from circuit.storage import check_output_file, check_output_folder, replace_folder
        from persona import rating
        from persona.endpoint import Journal, endpoint
        from persona.rating_files import write_ratings
        from persona.response_files import read_responses
        from persona.responses import open_template

        if endpoint_model and (model or template):
            raise OptionError("--endpoint-model asks an endpoint, --model and --template are of a local one: choose")
        said = read_responses(responses)
        check_output_folder(out)
        check_output_file(out / "journal.jsonl", makes_folder=True)
        kept.append(lambda: _journalled(out))
        about: dict[str, Any] = {"responses": str(responses)}
        with _progress() as stage:
            if endpoint_model:
                place = endpoint(
                    endpoint_model,
                    base_url=base_url,
                    key=api_key,
                    concurrency=concurrency,
                    max_retries=max_retries,
                    timeout=timeout,
                    deadline=deadline,
                    max_bytes=max_bytes,
                    limit=limit_field,
                )
                prompt = rating.rater_prompt(rater_prompt)
                about |= {"model": endpoint_model, "address": place.address, "prompt": prompt}
                with Journal(out / "journal.jsonl") as journal:
                    tell = stage(f"asking {endpoint_model}")
                    found = rating.rate_remotely(
                        place,
                        said,
                        journal,
                        prompt=prompt,
                        control=control,
                        max_tokens=max_answer_tokens,
                        progress=tell,
                    )
            else:
                loaded = _load(stage, _shipped_or(model), revision, device, dtype)
                form = open_template(template and resolve(template), loaded.tokenizer, cue=cue)
                about |= {"model": loaded.name, "fingerprint": loaded.fingerprint, "template": form.about()}
                about |= {"neutral": neutral}
                tell = stage("likelihoods")
                found = rating.rate_offline(loaded, said, form, neutral=neutral, batch_size=batch_size, progress=tell)
            whole, each = rating.summarise_ratings(found, n_resamples=n_resamples, seed=seed)
            stage("files and figures")
            with replace_folder(out) as staging:
                write_ratings(found, (whole, *each), about, staging)
        _print_ratings(found, (whole, *each), about, out, as_json)


def _print_ratings(found: Any, summary: Any, about: dict[str, Any], out: Path, as_json: bool) -> None:
    from persona.rating_files import TABLE, rating_record, rating_rows

    if as_json:
        typer.echo(json.dumps({"out": str(out), **rating_record(found, summary, about)}))
        return
    title = f"{len(found.rated):,} responses rated by {found.rater} ({found.unit})"
    _print_table(title, TABLE, rating_rows(summary), texts=1)
    if found.unparsable:
        _say(f"unparsable  {found.unparsable:,} answers of the rater are no rating; they are not guessed at")
    for kind, counts in (("failed", found.failures), ("left out", found.left_out)):
        for reason, count in counts.items():
            _say(f"{kind:<11} {count:,}: {reason}")
    _say(f"written to  {out}/")


def _exchanges(
    model: str | None, personas: Path | None, questions: Path | None, baseline: str | None, **plan: Any
) -> Any:
    """What is asked, and of which files it is made: the shipped model's own, or the general ones of any other."""
    from circuit.shipped import resolve
    from persona.responses import baseline_of, exchanges
    from persona.sources import read_personas, read_questions

    kind = "" if model is None else "vector_"
    names = [
        str(given) if given else f"datasets/{kind}{what}.jsonl"
        for given, what in ((personas, "personas"), (questions, "questions"))
    ]
    people, asked = read_personas(resolve(names[0])), read_questions(resolve(names[1]))
    wanted = exchanges(people, asked, **plan)
    baseline_of([item.persona for item in wanted], baseline)
    return wanted, dict(zip(("personas", "questions"), names, strict=True)) | plan


def _respond_here(
    loaded: Any,
    wanted: Any,
    template: str | None,
    cue: str | None,
    sampling: Any,
    out: Path,
    batch_size: int,
    stage: Callable[[str], Any],
    stop: list[str] | None,
) -> Any:
    """The local model's responses, kept in the folder's journal, and what they were made with."""
    from dataclasses import asdict, replace

    from circuit.shipped import resolve
    from persona.endpoint import Journal
    from persona.responses import open_template
    from persona.responses import respond as answer

    form = open_template(template and resolve(template), loaded.tokenizer, cue=cue)
    if stop is None and not form.chat:
        sampling = replace(sampling, stop=("\n",))
    with Journal(out / "journal.jsonl") as journal:
        tell = stage("responses")
        found = answer(loaded, wanted, form, journal, sampling=sampling, batch_size=batch_size, progress=tell)
    about = {"model": loaded.name, "fingerprint": loaded.fingerprint, "template": form.about()}
    return found, about | {"sampling": asdict(sampling)}


def _write_responses(found: Any, about: dict[str, Any], out: Path, baseline: str | None, as_json: bool) -> None:
    from circuit.files import replace_folder
    from persona.response_files import TABLE, summarise, summary_rows, write_response_study

    with replace_folder(out) as staging:
        write_response_study(found, about, staging, baseline=baseline)
    summaries = summarise(found.responses, baseline)
    counts = {"made": found.made, "remembered": found.remembered, "failures": dict(found.failures)}
    if as_json:
        typer.echo(json.dumps({"out": str(out), "n": len(found.responses), **counts, **about}))
        return
    _print_table(f"{len(found.responses):,} responses of {about['model']}", TABLE, summary_rows(summaries), texts=2)
    _say(f"made now    {found.made:,}; remembered {found.remembered:,}")
    for reason, count in found.failures.items():
        _say(f"failed      {count:,}: {reason}")
    _say(f"written to  {out}/")


def _journalled(out: Path) -> str:
    """How many answers a stopped command leaves for the next."""
    path = out / "journal.jsonl"
    n = path.read_bytes().count(b"\n") if path.is_file() else 0
    return f"{n:,} answers are kept in {path}" if n else ""


def _texts(stop: list[str] | None) -> tuple[str, ...]:
    """Stop texts as they were meant: a shell makes it hard to give a line feed."""
    return tuple(text.replace("\\n", "\n") for text in stop or ())


def _shipped_or(model: str | None) -> str:
    from circuit.shipped import MODEL

    return MODEL if model is None else model


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


def _fitted(task: Any, model: Any, align: str, fitting: bool) -> Any:
    """The task, or the pairs of it that fit; rows that are not used are told of. None stays None."""
    from circuit import ranks
    from circuit.task import fitting as those_that_fit

    if task is None:
        return None
    found = those_that_fit(task, model, align=align) if fitting else task
    for note in found.notes if ranks.is_first() else ():
        _say(f"note: {found.source}: {note}", err=True)
    return found


def _conditions(where: Sequence[str] | None) -> tuple[tuple[str, str], ...]:
    """``KEY=VALUE`` taken apart."""
    from circuit.errors import OptionError

    found = [tuple(item.split("=", 1)) for item in where or ()]
    if wrong := next((item for item, parts in zip(where or (), found, strict=True) if len(parts) != 2), None):
        raise OptionError(f"--where {wrong!r} must be KEY=VALUE, such as domain=food")
    return tuple((key.strip(), value.strip()) for key, value in found)


def _own_pairs(record: dict[str, Any] | None) -> str:
    from circuit.errors import OptionError

    if record is None:
        raise OptionError("the circuit does not say which pairs it was found on; give --pairs")
    return str(record["task"]["source"])


def _revision(record: dict[str, Any] | None, other_model: str | None) -> str | None:
    """The commit that a circuit was found in, unless another model is asked for."""
    return record["model"]["revision"] if record is not None and other_model is None else None


def _load(
    stage: Callable[[str], Any],
    name: str,
    revision: str | None,
    device: str,
    dtype: str,
    max_memory: str | None = None,
) -> Any:
    stage(f"loading {name}")
    from circuit.budget import parse_bytes
    from circuit.model import load_model
    from circuit.shipped import resolve

    _refuse_revision(resolve(name), revision)
    limit = None if max_memory is None else parse_bytes(max_memory)
    model = load_model(resolve(name), revision=revision, device=device, dtype=dtype, label=name, max_memory=limit)
    for note in model.notes:
        typer.echo(f"note: {note}", err=True)
    return model


def _write_results(found: Discovery, out: Path, strongest: int) -> None:
    """All files of a discovery, moved into place together."""
    from circuit.files import replace_folder
    from persona.discovery_files import write_discovery

    with replace_folder(out) as staging:
        write_discovery(found, staging, strongest=strongest)


def _title(record: dict[str, Any] | None) -> str:
    from persona.discovery_files import title_of

    return title_of(record)


def _all_scores(stored: Any) -> Any:
    """The scores of every edge where they lie beside the circuit, else those of the circuit's own edges."""
    from circuit.files import read_scores

    beside = stored.path.parent / "scores.safetensors"
    if stored.record is None or not beside.is_file():
        return stored.scores
    scores = read_scores(beside)
    return scores if scores.graph == stored.circuit.graph else stored.scores


def _every_score(stored: Any) -> Any:
    from circuit.errors import OptionError

    scores = _all_scores(stored)
    if scores is None:
        raise OptionError(f"{stored.path} has no scores; write those of a run that scored its edges")
    return scores


def _warn_of_other_weights(record: dict[str, Any] | None, model: Any) -> None:
    if record and record["model"]["fingerprint"] != model.fingerprint:
        _say(
            f"note: the circuit was found in {record['model']['name']} with other weights than {model.name} has; "
            "this measures a transfer",
            err=True,
        )


def _print_discovery(found: Discovery, out: Path, as_json: bool) -> None:
    from circuit.report import completeness_lines, summary

    if as_json:
        typer.echo(json.dumps({"out": str(out), **summary(found)}))
        return
    counts, task = found.record["counts"], found.record["task"]
    _say(f"divergence  {found.divergence:+.3f} {task['unit']} on {task['n_pairs']} pairs ({task['split']})")
    if found.tau is not None:
        _say(f"threshold   {found.tau:.4g} {task['unit']}")
    if found.completeness is not None:
        _say("\n".join(completeness_lines(found.completeness)))
    if found.smallest is not None:
        _print_smallest(found)
    _say(
        f"circuit     {counts['edges']:,} of {counts['graph_edges']:,} edges, "
        f"{counts['nodes']:,} of {counts['graph_nodes']:,} nodes"
    )
    if not len(found.circuit):
        _say("the circuit is empty: no path from input to logits is left; lower --threshold or raise --top-n")
    if found.acdc_cost:
        cost = found.acdc_cost
        _say(
            f"ACDC        {cost['passes']:,} passes, {cost['evaluated']:,} circuits tried, "
            f"{cost['wasted']:,} of them for nothing"
        )
    if found.cost is not None:
        cost = found.cost
        _say(
            f"activations {cost.activations}: r {cost.correlation:.5f} with float32 on {cost.n_prompts} prompts, "
            f"largest difference {cost.largest:.2g} of the largest score"
        )
    _print_edges(found)
    if found.null is not None:
        _print_null_run(found)
    if found.spans is not None:
        _print_spans(found)
    if found.sweep is not None:
        from circuit.curve_tables import sweep_columns, sweep_rows

        title = "nested circuits; * no smaller one here is as close to the whole model on the pairs searched on"
        _print_table(title, sweep_columns(found.sweep), sweep_rows(found.sweep), texts=0)
    for report in found.reports:
        _print_report(report, as_json=False)
    if found.shared is not None and found.shared.note:
        _say(f"\n{found.shared.note}")
    _say(f"\nwritten to  {out}/")


def _print_smallest(found: Discovery) -> None:
    least = found.smallest
    assert least is not None
    _say(
        f"target      f >= {least.target:g}: {least.faithfulness:.3f} with the first {least.n:,} edges by |score|, "
        f"of {len(least.tried):,} sizes tried"
    )
    held = found.reports[-1].circuit.ratio_of_means
    if found.confirmed is not None and held is not None:
        _say(f"held out    {held:.3f}: {'confirmed' if found.confirmed else 'not confirmed'}")
    if least.relapses:
        shown = ", ".join(f"{n:,}" for n in least.relapses[:5])
        _say(f"note: f does not grow steadily; larger sizes that miss the target: {shown}")


def _print_null_run(found: Discovery) -> None:
    null = found.null
    assert null is not None
    known = {name: value for name, value in null.as_dict().items() if isinstance(value, float)}
    shown = {name: f"{known[name]:.3g}" if name in known else "unknown" for name in null.as_dict()}
    within = f"{null.within:.0%}" if null.within is not None else "unknown"
    _say(
        f"\nnull run    {null.n_equal} paraphrases of equal length: sigma_0 {shown['sigma_0']}; "
        f"{null.n_unequal} of unequal length: {shown['unequal']}, {within} of them within 2 sigma_0\n"
        f"            |D| with difference in length: rho {shown['gap_correlation']}, p {shown['p_gap']}; "
        f"unequal ones spread more: p {shown['p_larger']}; shifted: p {shown['p_shift']}"
    )


def _print_spans(found: Discovery) -> None:
    spans = found.spans
    assert spans is not None
    rows = []
    for i, layer in enumerate([*map(str, range(len(spans.entry) - 1)), "logits"]):
        cells = zip(spans.entry[i], spans.persistence[i], strict=True)
        rows.append((layer, *(f"{entry:.2f} / {stays:+.2f}" for entry, stays in cells)))
    _print_table("share of |score| read there / causal persistence", ("layer", *spans.names), rows, texts=1)


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
    if report.n_reversed is not None:
        ends += f"; {report.n_reversed} reversed"
    columns = ("", "edges", "m", "faithfulness", "95 % interval", "mean of ratios", "median of ratios")
    _print_table(f"{title}, {ends}", columns, faithfulness_rows(report), texts=1)
    _say(f"faithfulness is a ratio of means; intervals over {report.resampled}")
    if report.reversal:
        _say(report.reversal)


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
            _say(f"{row.planted}, {row.method}: {row.note}")


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> None:
    """A title and a table whose first ``texts`` columns are text and whose others are numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(
            _cell(column, LONGEST_CELL), justify="left" if i < texts else "right", no_wrap=i == 0 or i >= texts
        )
    for row in rows:
        table.add_row(*(_cell(cell, LONGEST_CELL if i else LONGEST_NAME) for i, cell in enumerate(row)))
    _say(f"\n{title}")
    _console().print(table)


def _cell(text: str, most: int) -> Any:
    """A cell as it reads: no markup, nothing that a terminal obeys, on one line, not without end."""
    from rich.text import Text

    from circuit.printable import one_line

    return Text(one_line(text, most))


def _say(text: object, *, err: bool = False) -> None:
    """Every line that is printed goes this way: what a terminal would obey is shown, endless lines are cut."""
    from circuit.printable import shortened, visible

    lines = visible(text).split("\n")
    typer.echo("\n".join(shortened(line, LONGEST_LINE) for line in lines), err=err)


def _refuse_idle(context: typer.Context, *rules: tuple[bool, str, Sequence[str]]) -> None:
    """Refuse options that were given and would do nothing.

    A rule is whether there is what its options act on, what that is, and the options by their parameters' names.
    """
    from circuit.errors import OptionError

    flags = {one.name: one.opts[0] for one in context.command.params}
    for there, what, names in rules:
        for name in names if not there else ():
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                raise OptionError(f"{flags[name]} has no effect here: it is for {what}; leave one of them out")


def _refuse_revision(model: str, revision: str | None) -> None:
    """A folder has no revisions."""
    from circuit.errors import OptionError

    if revision is not None and Path(model).is_dir():
        raise OptionError(
            f"--revision has no effect here: it is for a model of the hub, and {model} is a folder; leave it out"
        )


def _require(value: float | None, bar: float | None) -> None:
    if bar is not None and (value is None or value < bar):
        shown = "undefined" if value is None else f"{value:.3f}"
        _say(f"faithfulness {shown} is below the bar of {bar:g}", err=True)
        raise typer.Exit(1)


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Bars on standard error, one per stage; nothing where standard error is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from circuit.printable import one_line

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    hidden = not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0"
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as bars:

        def stage(name: str) -> Callable[[int, int], None]:
            for task in bars.tasks:
                if task.total is None:
                    bars.update(task.id, total=1, completed=1)
            task_id = bars.add_task(one_line(name, 80), total=None)
            return lambda done, total: bars.update(task_id, completed=done, total=total)

        yield stage


@contextlib.contextmanager
def _errors() -> Iterator[list[Callable[[], str]]]:
    """A user's error is one message on standard error and exit code 2; a bug keeps its traceback.

    Ctrl-C and SIGTERM are a line and 130 or 143. What the block puts into the list that it is given says then what
    is kept for the next run, or nothing.
    """
    from circuit.errors import PersonaCircuitsError

    rank = int(os.environ.get("RANK", "0"))
    who = f"rank {rank}: " if rank else ""
    kept: list[Callable[[], str]] = []
    with _signals() as came, _damage_told():
        try:
            yield kept
        except BaseException as error:
            if came or isinstance(error, KeyboardInterrupt):
                _say(f"{who}{_stopped(kept)}", err=True)
                raise typer.Exit(128 + (came or [signal.SIGINT])[0]) from None
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                place = error.filename or "a temporary file"
                _say(f"{who}error: cannot write {place}: {error.strerror}; free some space", err=True)
            elif isinstance(error, PersonaCircuitsError):
                _say(f"{who}error: {error}", err=True)
            else:
                raise
            raise typer.Exit(2) from None


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM end the block with ``_Stopped``; which came is in the list. A second ends the process."""
    came: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        came.append(number)
        signal.signal(number, signal.SIG_DFL)
        raise _Stopped

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for number in ours:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        for number in ours:
            signal.signal(number, before[number])


class _Stopped(BaseException):
    """A signal came. No KeyboardInterrupt, of which typer says something of its own."""


def _stopped(kept: Sequence[Callable[[], str]]) -> str:
    """What a stopped command leaves, and how to go on."""
    if said := "; ".join(filter(None, (tell() for tell in kept))):
        return f"stopped: {said}; the same command goes on from there"
    return "stopped: no file is half-written; the same command begins anew"


@contextlib.contextmanager
def _damage_told() -> Iterator[None]:
    """A saved state that cannot be used is a note on standard error; other warnings are as they were."""
    import warnings

    from circuit.reading import DamagedState

    plainly = warnings.showwarning

    def told(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, DamagedState):
            _say(f"note: {message}", err=True)
        else:
            plainly(message, category, *place)

    with warnings.catch_warnings():
        warnings.simplefilter("always", DamagedState)
        warnings.showwarning = told
        yield


@contextlib.contextmanager
def _processes() -> Iterator[bool]:
    """Where torchrun started several processes they share the prompts; true in the one that prints and writes."""
    from circuit import ranks

    with ranks.processes():
        yield ranks.is_first()


def main() -> None:
    """Entry point of the console script."""
    try:
        with _errors():
            app()
    except typer.Exit as end:
        sys.exit(end.exit_code)


if __name__ == "__main__":
    main()
