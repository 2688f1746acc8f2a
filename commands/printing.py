"""Tables of circuits and searches for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_circuits.circuit.printable import signed
from persona_circuits.commands.terminal import print_table, say, shown_text

if TYPE_CHECKING:
    from persona_circuits.circuit.discovery import Discovery
    from persona_circuits.circuit.evaluation import FaithfulnessReport
    from persona_circuits.circuit.pruning import Finished

__all__ = [
    "picture_title",
    "print_battery",
    "print_calibration",
    "print_discovery",
    "print_report",
    "say_where",
    "write_results",
]


def print_battery(results: Any, record: dict[str, Any] | None, resampled: str) -> None:
    from persona_circuits.circuit.reporting import evaluation_tables as tables

    if results.tests is not None:
        _print_tests(results.tests)
    if results.completeness is not None:
        say(f"\ncompleteness: {results.completeness.sentence}")
        say(f"intervals over {resampled}")
        say(f"backup: {results.completeness.backup.sentence}")
    _print_stability(results.searched, (record or {}).get("stability"))
    if results.pairs is not None:
        _print_pairs(results.pairs)
    for key, parts in results.transfer.items():
        named = ("on" if key == "pairs" else key, *tables.TRANSFER)
        title = "transfer: all of these pairs" if key == "pairs" else f"transfer by {key}"
        print_table(title, named, tables.transfer_rows(parts), texts=2)
        say(f"faithfulness is a ratio of means; intervals over {_drawn(part.interval for part in parts)}")
    rows = tables.evaluation_rows(record or {})
    if len(rows) > 1:
        print_table("all evaluations in the circuit's file", tables.EVALUATIONS, rows, texts=4)
        say(f"faithfulness is a ratio of means; intervals over {tables.evaluated_over(record or {})}")


def _print_tests(tests: Any) -> None:
    answered = [
        (
            row["test"],
            row["decision"],
            shown_text(row["statistic"], 3),
            shown_text(row["p"], 4),
            shown_text(row["p_holm"], 4),
            row["could_show"],
            row["says"],
        )
        for row in tests.rows()
    ]
    title = f"hypothesis tests on {tests.n_pairs} pairs, level {answered and tests.outcomes[0].alpha:g}"
    columns = ("test", "circuit", "statistic", "p", "p (Holm)", "could have shown")
    print_table(title, columns, [row[:6] for row in answered], texts=2)
    say(f"tested over {tests.resampled}")
    for row in answered:
        say(f"{row[0]}: {row[6]}")


def _print_stability(searched: Any, known: dict[str, Any] | None) -> None:
    from persona_circuits.circuit.reporting import evaluation_tables as tables

    if searched.report is None:
        verdict = {True: "unstable", False: "stable", None: "unknown"}[(known or {}).get("unstable")]
        earlier = f"found earlier, in the circuit's file: {verdict}" if known else f"not known; {searched.reason}"
        say(f"\nstability: {earlier}")
        return
    title = f"stability: {searched.report.rule}, {searched.report.n_pairs} pairs searched on"
    print_table(title, tables.STABILITY, tables.stability_rows(searched.report), texts=1)
    say(searched.report.sentence)
    for note in searched.report.notes:
        say(f"note: {note}")
    if searched.certificate is not None:
        say(f"certificate: {searched.certificate.sentence}")


def _print_pairs(view: Any) -> None:
    from persona_circuits.circuit.reporting import evaluation_tables as tables

    title = f"pair by pair; flat: |D| within {view.null:.3g} ({view.null_source})"
    print_table(title, tables.AVERAGES, tables.average_rows(view), texts=1)
    for title, columns, rows, texts in (
        ("distribution", tables.QUANTILES, tables.quantile_rows(view), 1),
        ("worst pairs", tables.WORST, tables.worst_rows(view), 3),
        ("groups of pairs", tables.GROUPS, tables.group_rows(view), 2),
    ):
        if rows:
            print_table(title, columns, rows, texts=texts)
    if len(view.groups) > 1:
        say(f"faithfulness is a ratio of means; intervals over {_drawn(group.interval for group in view.groups)}")
    for note in view.notes:
        say(f"note: {note}")


def _drawn(intervals: Iterable[Any]) -> str:
    """What intervals were drawn over, each way once."""
    return ", or ".join(dict.fromkeys(one.by for one in intervals if one is not None)) or "nothing: there is none"


def write_results(found: Discovery, out: Path, strongest: int | None) -> None:
    """All files of a discovery, moved into place together."""
    found.write(out, strongest=strongest)


def picture_title(record: dict[str, Any] | None) -> str:
    from persona_circuits.circuit.reporting import title_of

    return title_of(record)


def _print_signal(found: Discovery, where: str) -> None:
    """The effect with what speaks for it: interval, p, reversed pairs, probability of the answers, paraphrases."""
    signal, unit = found.signal, found.record["task"]["unit"]
    shown = (
        ""
        if signal is None or signal.interval is None
        else f" [{signed(signal.interval.low)}, {signed(signal.interval.high)}]"
    )
    say(f"divergence  {signed(found.divergence)} {unit}{shown} on {where}")
    if signal is not None:
        p = "" if signal.p is None else f"p {signal.p:.2g}, "
        null = "" if signal.sigma_0 is None else f", paraphrases {signal.sigma_0:.3g} (sigma_0)"
        say(f"            {p}{signal.reversed} reversed, {signal.mass:.2g} of the probability on the answers{null}")
        say(f"            {signal.sentence}")


def print_discovery(found: Discovery) -> None:
    from persona_circuits.circuit.reporting import completeness_lines

    counts, task = found.record["counts"], found.record["task"]
    _print_signal(found, f"{task['n_pairs']} pairs ({task['split']})")
    if found.reused is not None:
        say(f"scores      used again, of {found.reused}; --scores new makes them anew")
    if found.tau is not None:
        say(f"threshold   {found.tau:.4g} {task['unit']}")
    if found.completeness is not None:
        say("\n".join(completeness_lines(found.completeness)))
    if found.smallest is not None:
        _print_smallest(found)
    if found.finished is not None:
        _print_finish(found.finished, task["unit"])
    say(
        f"circuit     {counts['edges']:,} of {counts['graph_edges']:,} edges, "
        f"{counts['nodes']:,} of {counts['graph_nodes']:,} nodes"
    )
    if found.at_parts is not None:
        about, parts = found.record["spans"], found.at_parts
        here = ", ".join(
            f"{name} {int(kept.sum()):,}" for name, kept in zip(parts.spans.names, parts.mask, strict=True)
        )
        say(f"at parts    {about['edges']:,} of {about['graph_edges']:,} edges at parts of the prompt: {here}")
    if not len(found.circuit):
        say("the circuit is empty: no path from input to logits is left; lower --threshold or raise --top-n")
    if found.acdc_cost:
        tried = found.acdc_cost
        say(
            f"ACDC        {tried['passes']:,} passes, {tried['evaluated']:,} circuits tried, "
            f"{tried['wasted']:,} of them for nothing"
        )
    if found.cost is not None:
        cost = found.cost
        say(
            f"activations {cost.activations}: r {cost.correlation:.5f} with float32 on {cost.n_prompts} prompts, "
            f"largest difference {cost.largest:.2g} of the largest score"
        )
    _print_edges(found)
    if found.certificate is not None:
        say(f"certificate {found.certificate.sentence}")
    if found.missed is not None:
        say(f"missed      {found.missed.sentence}")
    if found.null is not None:
        _print_null_run(found)
    if found.spans is not None:
        _print_spans(found)
    if found.sweep is not None:
        from persona_circuits.circuit.reporting import drawn_by_split, sweep_columns, sweep_rows

        title = "nested circuits; * no smaller one here is as close to the whole model on the pairs searched on"
        print_table(title, sweep_columns(found.sweep), sweep_rows(found.sweep), texts=0)
        say(f"f is a ratio of means, median of the pairs' own; intervals {drawn_by_split(found.sweep)}")
    for report in found.reports:
        print_report(report)
    if found.shared is not None and found.shared.note:
        say(f"\n{found.shared.note}")
    if found.paths is not None:
        _print_paths(found.paths)
    if found.sets is not None:
        _print_sets(found.sets)
    say("")


def say_where(out: Path) -> None:
    """Where the picture is, and the page, if there is one."""
    for what, name in (("picture", "graph.svg"), ("page", "page.html")):
        if (out / name).exists():
            say(f"{what:<12}{out / name}")


def _print_paths(found: Any) -> None:
    from persona_circuits.circuit.reporting import PATHS, path_rows

    title = f"strongest paths from input to logits, each kept alone, on {found.n_pairs} pairs ({found.split})"
    print_table(title, PATHS, path_rows(found), texts=1)
    say("share of D: (m(path) - m(empty)) / (m(full) - m(empty)), a ratio of means; shares do not add up")
    say(f"intervals over {found.drawn_over}; other heads: the same path through others of the same layers")


def _print_sets(found: Any) -> None:
    from persona_circuits.circuit.reporting import SETS, set_rows

    title = f"named sets of nodes on {found.n_pairs} pairs ({found.split}): what leaves them cut, and they alone"
    print_table(title, SETS, set_rows(found), texts=1)
    say("edges: the circuit's that leave the set; lost without, alone: shares of D in the whole model, ratios of means")
    say(f"intervals over {found.drawn_over}; random: as many heads of each layer, MLPs of any")


def _print_finish(done: Finished, unit: str) -> None:
    say(
        f"finish      {done.gone:,} edges went, {done.back:,} came back; mean |m - m(full)| {done.loss_before:.4g} -> "
        f"{done.loss:.4g} {unit}; {done.passes:,} passes, {done.evaluated:,} circuits tried"
    )
    settled = f"at the end no single change pays: every edge is worth {done.tau:.4g} {unit} or more"
    say(settled if done.settled else "note: it stopped before every edge was settled")


def _print_smallest(found: Discovery) -> None:
    least = found.smallest
    assert least is not None
    order = "gate" if found.record["method"]["prune"] == "learn" else "|score|"
    say(
        f"target      f >= {least.target:g}: {least.faithfulness:.3f} with the first {least.n:,} edges by {order}, "
        f"of {len(least.tried):,} sizes tried"
    )
    held = found.reports[-1].circuit.ratio_of_means
    if found.confirmed is not None and held is not None:
        say(f"held out    {held:.3f}: {'confirmed' if found.confirmed else 'not confirmed'}")
    if least.relapses:
        shown = ", ".join(f"{n:,}" for n in least.relapses[:5])
        say(f"note: f does not grow steadily; larger sizes that miss the target: {shown}")


def _print_null_run(found: Discovery) -> None:
    null = found.null
    assert null is not None
    known = {name: value for name, value in null.as_dict().items() if isinstance(value, float)}
    shown = {name: f"{known[name]:.3g}" if name in known else "unknown" for name in null.as_dict()}
    within = f"{null.within:.0%}" if null.within is not None else "unknown"
    say(
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
    print_table("share of |score| read there / causal persistence", ("layer", *spans.names), rows, texts=1)


def _print_edges(found: Discovery) -> None:
    from persona_circuits.circuit.reporting import strongest_edges

    edges = strongest_edges(found)
    if edges:
        sure = found.certificate is not None
        marks = {True: ("stays",), False: ("abstains",), None: ()}
        rows = [(item["edge"], signed(item["score"], 4), *marks[item.get("stays")]) for item in edges]
        print_table("strongest edges", ("edge", "score", *(["certificate"] if sure else [])), rows, texts=1)


def print_report(report: FaithfulnessReport) -> None:
    from persona_circuits.circuit.reporting import faithfulness_rows

    title = f"faithfulness on {report.n_pairs} pairs ({report.split})"
    ends = f"m = {report.metric}: full {signed(report.m_full)}, empty {signed(report.m_empty)}"
    if report.n_reversed is not None:
        ends += f"; {report.n_reversed} reversed"
    columns = ("", "edges", "m", "faithfulness", "95 % interval", "mean of ratios", "median of ratios")
    print_table(f"{title}, {ends}", columns, faithfulness_rows(report), texts=1)
    say(f"faithfulness is a ratio of means; intervals over {report.resampled}")
    for warning in filter(None, (report.caution, report.reversal)):
        say(warning)


def print_calibration(rows: list[Any]) -> None:
    columns = ("planted model", "scores", "recovered exactly by", "true edges", "AUROC", "average precision")
    cells = []
    for row in rows:
        exact = ", ".join(recovery.prune for recovery in row.recoveries if recovery.exact) or "none"
        numbers = (str(row.n_true), f"{row.auroc:.3f}", f"{row.average_precision:.3f}")
        cells.append((row.planted, row.method, exact, *numbers))
    print_table("planted models", columns, cells, texts=3)
    for row in rows:
        if row.note and row.method != "random":
            say(f"{row.planted}, {row.method}: {row.note}")
