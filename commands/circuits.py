"""Finding a circuit: discover."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from persona_circuits.commands.options import (
    LATEST,
    AblationName,
    AlignOption,
    BarOption,
    BatchOption,
    DeviceOption,
    DtypeOption,
    FittingOption,
    JsonOption,
    MaxMemoryOption,
    Method,
    MetricName,
    ModelOption,
    PairsOption,
    Prune,
    RandomOption,
    SeedOption,
    WhereOption,
)
from persona_circuits.commands.printing import print_discovery, write_results
from persona_circuits.commands.terminal import (
    conditions_of,
    errors_as_exit_codes,
    fitted_task,
    in_processes,
    load,
    model_name,
    progress_bars,
    read_task,
    refuse_idle,
    require,
)

__all__ = []


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
    with errors_as_exit_codes() as kept, in_processes() as first:
        by_score = prune != "acdc"
        sized = target_faithfulness is not None or prune in ("top-n", "greedy")
        refuse_idle(
            context,
            (by_score, "a --prune that goes by scores", ["method"]),
            (by_score and method == "eap-ig", "scores of --method eap-ig", ["steps", "ig_rule"]),
            (prune in ("acdc", "eap-acdc"), "--prune acdc or eap-acdc", ["candidates"]),
            (not sized, "a --threshold", ["threshold_on"]),
        )
        from persona_circuits.circuit.discovery import Options
        from persona_circuits.circuit.storage import check_output_folder, working_folder

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
            where=conditions_of(where),
        ).checked()
        name, task = model_name(model, pairs), read_task(pairs)
        quiet = read_task(null) if null else None
        check_output_folder(out)
        state = out / "acdc.state"
        kept.append(lambda: f"what is searched so far is kept in {state}" if state.exists() else "")
        with progress_bars() as stage, working_folder(out):
            loaded = load(stage, name, revision, device, dtype, max_memory)
            from persona_circuits.circuit.discovery import discover as search

            task, quiet = (fitted_task(one, loaded, align, fitting) for one in (task, quiet))
            found = search(loaded, task, options, null=quiet, state=state, stage=stage)
            if first:
                stage("files and picture")
                write_results(found, out, strongest)
        if first:
            print_discovery(found, out, as_json)
        require(found.reports[-1].circuit.ratio_of_means, min_faithfulness)
