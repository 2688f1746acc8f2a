"""Finding a circuit: discover."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.circuit.choices import RULED, STEPPED
from persona_circuits.circuit.discovery.options import Options
from persona_circuits.circuit.options import Option
from persona_circuits.commands.index import given_command
from persona_circuits.commands.options import LATEST, Drawn, JsonOption, Loading, OutOption, Source
from persona_circuits.commands.printing import print_discovery, say_where
from persona_circuits.commands.signature import But, with_options
from persona_circuits.commands.terminal import (
    errors_as_exit_codes,
    fitted_task,
    in_processes,
    load,
    progress_bars,
    read_task,
    refuse_idle,
    require,
    show,
)

__all__: list[str] = []


@dataclass(frozen=True)
class Given:
    """What a search may use, and the bar that it must reach."""

    scores: Annotated[
        str | None,
        Option(
            "Run whose scores are pruned again; new: compute them anew. (default: those of the same search, if they "
            "lie in the output folder or beside it)"
        ),
    ] = None
    null: Annotated[Path | None, Option("Pairs of paraphrases of one persona: the size of D without signal.")] = None
    groups: Annotated[
        Path | None, Option("Named sets of nodes, a file of the page: what each carries, without and alone.")
    ] = None
    min_faithfulness: Annotated[float | None, Option("Exit with 1 if faithfulness is below this bar.")] = None


@dataclass(frozen=True)
class Pictures:
    """What is drawn of a circuit."""

    report: Annotated[
        bool, Option("One page that explains the circuit too: page.html, with --sweep, and what its nodes do.")
    ] = False
    strongest: Drawn = None


@with_options
def discover(
    context: typer.Context,
    *,
    source: Source,
    out: OutOption = LATEST,
    options: Annotated[Options, But(force=False)],
    given: Given,
    pictures: Pictures,
    loading: Loading,
    as_json: JsonOption = False,
) -> None:
    """Search for the circuit of a set of prompt pairs, measure it on held-out pairs, write files and a picture."""
    with errors_as_exit_codes() as kept, in_processes() as first:
        _refuse_idle(context, options)
        from persona_circuits.circuit.io import read_groups
        from persona_circuits.circuit.storage import check_output_folder, working_folder

        options = options.checked()
        if pictures.report and options.prune != "acdc" and options.resolution == "edge":
            options = replace(options, sweep=True)
        name, task = source.name(), read_task(source.pairs)
        quiet = read_task(given.null) if given.null else None
        check_output_folder(out)
        kept.append(lambda: _kept_in(out))
        with progress_bars() as stage, working_folder(out):
            from persona_circuits.circuit.discovery import check_pairs
            from persona_circuits.circuit.discovery import discover as search

            splits = (options.train_split, "train"), (options.eval_split, "test")
            fits: dict[str, Any] = {"where": options.where, "align": options.align}
            loaded = load(stage, name, loading, lambda reader: check_pairs(task, reader, *splits, **fits))

            named = read_groups(given.groups, loaded.graph) if given.groups else None
            task, quiet = (fitted_task(item, loaded, options.align, loading.fitting) for item in (task, quiet))
            settings: dict[str, Any] = {"null": quiet, "groups": named, "scores": given.scores, "state": out}
            discovery = search(loaded, task, options, **settings, stage=stage)
            if first:
                stage("files and picture")
                discovery.write(out, strongest=pictures.strongest)
                if pictures.report:
                    _write_page(loaded, task, discovery, out, given.groups, given_command(context), stage)
        if first:
            from persona_circuits.circuit.reporting import summary

            show(as_json, lambda: summary(discovery), lambda: print_discovery(discovery), out=out)
            if not as_json:
                say_where(out)
        require(discovery.reports[-1].circuit.ratio_of_means, given.min_faithfulness)


def _write_page(
    model: Any, task: Any, discovery: Any, out: Path, groups: Path | None, command: str, stage: Any
) -> None:
    """The page of what was just written, with what its nodes do."""
    from persona_circuits.circuit.page import page_html, page_of_run
    from persona_circuits.circuit.storage import write_text
    from persona_circuits.commands.pages import PAGE, write_inside

    about = discovery.record["task"]
    write_inside(model, task.where(**about["where"]), discovery.circuit, out, align=about["align"], stage=stage)
    write_text(page_html(page_of_run(out, groups=groups, command=command)), out / PAGE)


def _kept_in(out: Path) -> str:
    """What a stopped search leaves for the next one."""
    states = {"scores.state": "the scores of all edges are", "acdc.state": "what is searched so far is"}
    states |= {"finish.state": "the finish so far is", "neurons.state": "what is known of neurons so far is"}
    return ", ".join(f"{what} kept in {out / name}" for name, what in states.items() if (out / name).exists())


def _refuse_idle(context: typer.Context, options: Options) -> None:
    by_score = options.prune != "acdc"
    sized = options.target_faithfulness is not None or options.prune in ("top-n", "greedy", "learn")
    sized = sized or options.sized_by_default
    methods = {options.method, *options.of}
    exact = options.prune in ("acdc", "eap-acdc") or options.finish is not None
    refuse_idle(
        context,
        (by_score, "a --prune by scores", ["method", "scores", "weigh"]),
        (by_score and bool(methods & {*STEPPED}), f"scores of --method {', '.join(STEPPED)}", ["steps"]),
        (by_score and bool(methods & {*RULED}), f"scores of --method {', '.join(RULED)}", ["ig_rule"]),
        (by_score and options.method == "mean-of", "--method mean-of", ["of", "normalise"]),
        (exact, "--prune acdc or eap-acdc, or --finish", ["candidates"]),
        (options.prune == "learn", "--prune learn", ["train_steps", "nodes_first"]),
        (not sized, "a --threshold", ["threshold_on"]),
        (bool(options.neurons), "--neurons", ["neuron_share"]),
        (options.resolution == "edge", "--resolution edge: with span scores are by part anyway,", ["by_span"]),
    )
