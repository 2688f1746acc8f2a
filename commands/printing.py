"""Tables of circuits and searches for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_circuits.circuit.printable import signed
from persona_circuits.circuit.table import Column, Table
from persona_circuits.commands.terminal import print_table, print_tables, say

if TYPE_CHECKING:
    from persona_circuits.circuit.discovery import Discovery
    from persona_circuits.circuit.pruning import Finished

__all__ = ["print_calibration", "print_discovery", "print_tests", "say_where"]


def print_tests(results: Any, record: dict[str, Any] | None, resampled: str) -> None:
    from persona_circuits.circuit.reporting import evaluations_table, transfer_table

    if results.tests is not None:
        _print_tests(results.tests)
    if results.completeness is not None:
        say(f"\ncompleteness: {results.completeness.sentence}")
        say(f"intervals over {resampled}")
        say(f"backup: {results.completeness.backup.sentence}")
    _print_stability(results.searched, (record or {}).get("stability"))
    if results.pairs is not None:
        from persona_circuits.circuit.reporting import pair_tables

        print_tables(pair_tables(results.pairs))
    print_tables(transfer_table(key, parts) for key, parts in results.transfer.items())
    known = evaluations_table(record or {})
    if len(known.rows) > 1:
        print_table(known)


def _print_tests(tests: Any) -> None:
    columns = (
        Column("test", "test"),
        Column("circuit", "decision"),
        Column("statistic", "statistic", ".3f"),
        Column("p", "p", ".4f"),
        Column("p (Holm)", "p_holm", ".4f"),
        Column("could have shown", "could_show"),
    )
    rows = tests.rows()
    title = f"hypothesis tests on {tests.n_pairs} pairs, level {rows and tests.outcomes[0].alpha:g}"
    verdicts = [f"{row['test']}: {row['says']}" for row in rows]
    print_table(Table(title, columns, rows, 2, [f"tested over {tests.resampled}", *verdicts]))


def _print_stability(searched: Any, known: dict[str, Any] | None) -> None:
    from persona_circuits.circuit.reporting import stability_table

    if searched.report is None:
        verdict = {True: "unstable", False: "stable", None: "unknown"}[(known or {}).get("unstable")]
        earlier = f"found earlier, in the circuit's file: {verdict}" if known else f"not known; {searched.reason}"
        say(f"\nstability: {earlier}")
        return
    print_table(stability_table(searched.report))
    if searched.certificate is not None:
        say(f"certificate: {searched.certificate.sentence}")


def _print_signal(discovery: Discovery, where: str) -> None:
    """The effect and the evidence for it: interval, p, reversed pairs, probability of the answers, paraphrases."""
    signal, unit = discovery.signal, discovery.record["task"]["unit"]
    shown = (
        ""
        if signal is None or signal.interval is None
        else f" [{signed(signal.interval.low)}, {signed(signal.interval.high)}]"
    )
    say(f"divergence  {signed(discovery.divergence)} {unit}{shown} on {where}")
    if signal is not None:
        p = "" if signal.p is None else f"p {signal.p:.2g}, "
        null = "" if signal.sigma_0 is None else f", paraphrases {signal.sigma_0:.3g} (sigma_0)"
        say(f"            {p}{signal.reversed} reversed, {signal.mass:.2g} of the probability on the answers{null}")
        say(f"            {signal.sentence}")


def print_discovery(discovery: Discovery) -> None:
    from persona_circuits.circuit import reporting

    _print_search(discovery)
    _print_edges(discovery)
    if discovery.certificate is not None:
        say(f"certificate {discovery.certificate.sentence}")
    if discovery.missed is not None:
        say(f"missed      {discovery.missed.sentence}")
    if discovery.null is not None:
        _print_null_run(discovery)
    if discovery.spans is not None:
        _print_spans(discovery)
    if discovery.sweep is not None:
        print_table(reporting.sweep_table(discovery.sweep))
    for report in discovery.reports:
        print_table(reporting.faithfulness_table(report))
    if discovery.shared is not None and discovery.shared.note:
        say(f"\n{discovery.shared.note}")
    if discovery.paths is not None:
        print_table(reporting.path_table(discovery.paths))
    if discovery.sets is not None:
        print_table(reporting.set_table(discovery.sets))
    if discovery.opened is not None:
        print_tables(reporting.neuron_tables(discovery.opened))
    if discovery.heads is not None:
        print_tables(reporting.head_tables(discovery.heads))
    say("")


def _print_search(discovery: Discovery) -> None:
    """The effect, how the edges were chosen, how many there are, and the cost of the search."""
    from persona_circuits.circuit.reporting import completeness_lines

    counts, task = discovery.record["counts"], discovery.record["task"]
    _print_signal(discovery, f"{task['n_pairs']} pairs ({task['split']})")
    if discovery.reused is not None:
        say(f"scores      used again, of {discovery.reused}; --scores new makes them anew")
    if discovery.tau is not None:
        say(f"threshold   {discovery.tau:.4g} {task['unit']}")
    if discovery.completeness is not None:
        say("\n".join(completeness_lines(discovery.completeness)))
    if discovery.smallest is not None:
        _print_smallest(discovery)
    if discovery.finished is not None:
        _print_finish(discovery.finished, task["unit"])
    say(
        f"circuit     {counts['edges']:,} of {counts['graph_edges']:,} edges, "
        f"{counts['nodes']:,} of {counts['graph_nodes']:,} nodes"
    )
    if discovery.at_parts is not None:
        about, parts = discovery.record["spans"], discovery.at_parts
        here = ", ".join(
            f"{name} {int(mask.sum()):,}" for name, mask in zip(parts.spans.names, parts.mask, strict=True)
        )
        say(f"at parts    {about['edges']:,} of {about['graph_edges']:,} edges at parts of the prompt: {here}")
    if not len(discovery.circuit):
        say("the circuit is empty: no path from input to logits is left; lower --threshold or raise --top-n")
    if discovery.acdc_cost:
        tried = discovery.acdc_cost
        say(
            f"ACDC        {tried['passes']:,} passes, {tried['evaluated']:,} circuits tried, "
            f"{tried['wasted']:,} of them for nothing"
        )
    if discovery.cost is not None:
        cost = discovery.cost
        say(
            f"activations {cost.activations}: r {cost.correlation:.5f} with float32 on {cost.n_prompts} prompts, "
            f"largest difference {cost.largest:.2g} of the largest score"
        )


def say_where(out: Path) -> None:
    """Where the picture is, and the page, if there is one."""
    for what, name in (("picture", "graph.svg"), ("page", "page.html")):
        if (out / name).exists():
            say(f"{what:<12}{out / name}")


def _print_finish(done: Finished, unit: str) -> None:
    say(
        f"finish      {done.gone:,} edges went, {done.back:,} came back; mean |m - m(full)| {done.loss_before:.4g} -> "
        f"{done.loss:.4g} {unit}; {done.passes:,} passes, {done.evaluated:,} circuits tried"
    )
    settled = f"at the end no single change pays: every edge is worth {done.tau:.4g} {unit} or more"
    say(settled if done.settled else "note: it stopped before every edge was settled")


def _print_smallest(discovery: Discovery) -> None:
    least = discovery.smallest
    assert least is not None
    if not least.reached:
        from persona_circuits.circuit.reporting import size_table

        say(
            f"target      no circuit of up to {least.most:,} edges reaches f {least.target:g} on the pairs searched "
            f"on; the best of them, f {least.faithfulness:.3f} with the first {least.n:,} edges by |score|, is kept; "
            f"--target-faithfulness {least.target:g} looks among all edges"
        )
        print_table(size_table(least))
        say("")
        return
    order = "gate" if discovery.record["method"]["prune"] == "learn" else "|score|"
    say(
        f"target      f >= {least.target:g}: {least.faithfulness:.3f} with the first {least.n:,} edges by {order}, "
        f"of {len(least.tried):,} sizes tried"
    )
    faithfulness = discovery.reports[-1].circuit.ratio_of_means
    if discovery.confirmed is not None and faithfulness is not None:
        say(f"held out    {faithfulness:.3f}: {'confirmed' if discovery.confirmed else 'not confirmed'}")
    if least.relapses:
        shown = ", ".join(f"{n:,}" for n in least.relapses[:5])
        say(f"note: f does not grow steadily; larger sizes that miss the target: {shown}")


def _print_null_run(discovery: Discovery) -> None:
    null = discovery.null
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


def _print_spans(discovery: Discovery) -> None:
    spans = discovery.spans
    assert spans is not None
    rows = []
    for i, layer in enumerate([*map(str, range(len(spans.entry) - 1)), "logits"]):
        cells = zip(spans.entry[i], spans.persistence[i], strict=True)
        rows.append((layer, *(f"{entry:.2f} / {stays:+.2f}" for entry, stays in cells)))
    print_table(Table("share of |score| read there / causal persistence", ("layer", *spans.names), rows))


def _print_edges(discovery: Discovery) -> None:
    from persona_circuits.circuit.reporting import strongest_edges

    columns = [Column("edge", "edge"), Column("score", "score", lambda score: signed(score, 4))]
    if discovery.certificate is not None:
        columns.append(Column("certificate", lambda edge: {True: "stays", False: "abstains"}[edge["stays"]]))
    if edges := strongest_edges(discovery):
        print_table(Table("strongest edges", columns, edges))


def print_calibration(rows: list[Any]) -> None:
    columns = (
        Column("planted model", "planted"),
        Column("scores", "method"),
        Column("recovered exactly by", lambda row: ", ".join(x.prune for x in row.recoveries if x.exact) or "none"),
        Column("true edges", "n_true"),
        Column("AUROC", "auroc", ".3f"),
        Column("average precision", "average_precision", ".3f"),
    )
    print_table(Table("planted models", columns, rows, 3))
    for row in rows:
        if row.note and row.method != "random":
            say(f"{row.planted}, {row.method}: {row.note}")
