"""The report of a study: the write-up's headings filled with its numbers, and plain gaps where a person must think."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_circuits.circuit.figures import markdown_code
from persona_circuits.circuit.printable import visible
from persona_circuits.circuit.table import markdown_cell
from persona_circuits.persona.explanation import VERDICTS
from persona_circuits.persona.study.context import AXES, Context
from persona_circuits.persona.study.numbers import Number, Numbers, slug

if TYPE_CHECKING:
    from persona_circuits.persona.study.values import Study

__all__ = ["report", "shown"]

GOAL = (
    "A persona collapses on a question where the model's most likely answer is the same under two personas that "
    "should answer apart. The persona divergence D, in logits, is what the persona does to the two declared answers; "
    "the prior b is what both personas share. This study asks where personas collapse, why, and which part of the "
    "model is involved."
)
METHODS = {
    "behaviour": ("collapse", "every pair under both personas: D, b, choices among all candidates, controls beside"),
    "contrasts": ("collapse, explain", "levels of the pairs' axes against each other, and variants of one pair"),
    "frames": ("vary, collapse, discover", "the same persona said of somebody else, a paraphrase beside; circuits"),
    "causes": ("explain", "a verdict per pair by thresholds fixed beforehand, and its causal test"),
    "where": ("probe, lens", "probes, the logit lens and causal persistence, by layer and position"),
    "circuit": ("discover, evaluate, compare, specificity", "circuits for D and for the prior, and their tests"),
    "steering": ("steer", "the personas' mean difference and the readout added to the stream, random ones beside"),
    "patch": ("patch", "heads patched from one persona's run into the other's, the first movers ablated"),
}


def report(study: Study, context: Context, out: Path) -> str:
    """The whole text, Markdown; pictures are named relative to ``out``."""
    numbers, extras = study.numbers, {stage.name: stage.extras for stage in study.stages}
    parts = [
        f"# Persona collapse in {Path(study.model).name}",
        "TO WRITE: an executive summary of 200 to 300 words that leads with the finding.",
        _headlines(numbers),
        "## Goal",
        GOAL,
        "TO WRITE: why this model, and what was expected.",
        "## Data",
        *_data(study, context, extras.get("behaviour", {}), extras.get("causes", {})),
        "## Method",
        *_method(study),
        "## Results",
        *_results(numbers, extras, out),
        "## Analysis",
        *_analysis(study, numbers),
        "## Next Steps",
        "TO WRITE: how persona control might be improved here, and what to run on a larger model. The same study:",
        "    persona-circuits study --model MODEL --pairs PAIRS --null CONTROLS --out DIR --device cuda",
        "## Main Takeaways",
        "TO WRITE: three to five sentences, each with its number and its interval.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def shown(number: Number | None, *, interval: bool = True) -> str:
    """A number as the report writes it, with its interval if it has one; a dash where it is absent."""
    if number is None:
        return "–"
    text = _digits(number.value)
    if interval and number.low is not None and number.high is not None:
        return f"{text} ({_digits(number.low)} to {_digits(number.high)})"
    return text


def _digits(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    size = abs(value)
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 0.1 else f"{value:.3g}"


def _headlines(numbers: Numbers) -> str:
    """The numbers that a summary should not leave out."""
    wanted = {
        "mean D": "behaviour.all.divergence",
        "mean D of paraphrases": "behaviour.paraphrase.divergence",
        "collapse rate": "behaviour.all.collapse",
        "of the pairs that collapse, verdict prior dominance": "causes.collapsed.prior_dominance",
        "causal tests that agree with their verdict": "causes.test.all",
        "verdicts that the generator confirms": "causes.truth.share",
        "edges of the circuit": "circuit.edges",
        "its faithfulness on held-out pairs": "circuit.f.test",
        "gain of steering within the KL bound": "steering.mean.gain",
    }
    return "\n".join(f"- {text}: {shown(numbers[name])}" for text, name in wanted.items() if name in numbers)


def _data(study: Study, context: Context, behaviour: Mapping[str, Any], causes: Mapping[str, Any]) -> Iterator[str]:
    rows = [(role, file["source"], file["sha256"][:12]) for role, file in study.files.as_dict().items() if file]
    yield _table(("role", "file", "SHA-256"), rows)
    items = context.main
    yield f"{len(items)} pairs of the study; splits: {_counts(item.pair.split for item in items)}."
    axes = {axis: _counts(item.axes.get(axis, "") for item in items) for axis in AXES}
    yield _table(("axis", "values"), [(axis, text) for axis, text in axes.items() if text])
    verdicts = causes.get("verdicts", {})
    for place, example in enumerate(behaviour.get("examples", ()), 1):
        yield from _example(place, example, verdicts.get(example["id"]))


def _example(place: int, example: Mapping[str, Any], verdict: Sequence[str] | None) -> Iterator[str]:
    kind = "the personas differ" if example["kind"] == "apart" else "the personas collapse"
    yield (
        f"### Example {place}: {kind} ({markdown_code(example['id'])})\n\n"
        f"Declared: {_quoted(example['answers'])} under A, {_quoted(example['wrong_answers'])} under B. "
        f"D {example['divergence']:+.2f}, b {example['prior']:+.2f}."
        + (f" Verdict: {verdict[0]} ({verdict[1]})." if verdict else "")
    )
    for letter, side in zip("AB", example["sides"], strict=True):
        quoted = "\n".join(f"    {line}" for line in visible(side["prompt"]).removesuffix("\n").split("\n"))
        top = ", ".join(f"{markdown_code(text)} {p:.3f}" for text, p in side["top"])
        name = markdown_cell(side["persona"])
        yield f"Persona {letter}{f' ({name})' if name else ''}; most likely: {top}"
        yield quoted


def _method(study: Study) -> Iterator[str]:
    rows = [(name, f"`{command}`" if command else "", says) for name, (command, says) in METHODS.items()]
    yield _table(("stage", "commands", "what"), rows)
    options = study.options
    yield (
        f"Intervals are 95 % ({options.n_resamples:,} draws), over personas and questions that pairs share; seed "
        f"{options.seed}. Circuits: EAP-IG with {options.steps} points, threshold {options.threshold:g} of |D|, found "
        "on train and measured on test. `docs/study.md` says what every number is."
        + (" **A quick run: few draws, few random circuits.**" if options.quick else "")
    )
    notes = [f"- {stage.name}: {note}" for stage in study.stages for note in stage.notes]
    if study.missing:
        notes.append(f"- not run: {', '.join(study.missing)}")
    if notes:
        yield "What could not be done, and what a reader must know:\n\n" + "\n".join(notes)
    yield "TO WRITE: why these experiments and not others."


def _results(numbers: Numbers, extras: Mapping[str, Mapping[str, Any]], out: Path) -> Iterator[str]:
    yield "### Behaviour"
    groups = _parts(numbers, "behaviour", 1, ".n")
    columns = ("n", "divergence", "collapse", "agree", "own", "pdr", "required_gain", "choice_information", "mass")
    yield _grid(numbers, "behaviour", groups, columns)
    yield _figures(out, "behaviour")
    yield "### Contrasts"
    levels = _parts(numbers, "contrasts", 2, ".n")
    yield _grid(numbers, "contrasts", levels, ("n", "divergence", "collapse", "prior_abs", "required_gain"))
    yield _tested(numbers, "contrasts.", ("_minus_", ".spread."))
    yield _figures(out, "contrasts")
    if variants := _parts(numbers, "variants", 1, ".n"):
        yield "### Variants"
        compared = ("n", "divergence", "divergence_ratio", "collapse", "access", "signal_persona", "signal_answer")
        yield _grid(numbers, "variants", variants, compared)
        yield _tested(numbers, "variants.", ("_difference",))
    if frames := _parts(numbers, "frames", 1, ".n"):
        yield "### Frames"
        shown_of = ("n", "divergence", "divergence_ratio", "correlation", "collapse", "mass", "edges", "f.own",
                    "f.of_you", "f.random", "edges_jaccard", "nodes_jaccard")  # fmt: skip
        yield _grid(numbers, "frames", frames, shown_of)
        yield _tested(numbers, "frames.", ("_difference", "_shared_exchanged"))
        yield _figures(out, "frames")
    yield "### Where"
    yield from _where(numbers, out)
    yield "### Circuit"
    yield from _circuit(numbers, extras.get("circuit", {}), out)
    yield "### Steering"
    yield _grid(numbers, "steering", ("mean", "mean_random", "readout", "readout_random"),
                ("layer", "strength", "kl", "gain", "parted", "flipped", "ablated"))  # fmt: skip
    yield _list(numbers, "steering.gain_test.", "steering.unsteered.")
    yield _figures(out, "steering/mean")
    yield "### Persona movers"
    yield _list(numbers, "patch.movers", "patch.mover.", "patch.ablated.")
    yield _figures(out, "patch")


def _where(numbers: Numbers, out: Path) -> Iterator[str]:
    probes = _parts(numbers, "where.probe", 3, ".balanced")
    columns = ("balanced", "chance", "layer", "selectivity", "shuffled", "task", "dropped", "length")
    yield _grid(numbers, "where.probe", probes, columns)
    singles = ("where.lens.pivot", "where.lens.jump", "where.lens.stable_from", "where.lens.choice", "where.lens.from.")
    yield _list(numbers, *singles, "where.persistence.answer_half", "where.persistence.contrast_half")
    parts = ("before", "contrast", "after", "last")
    rows = _by_layer(numbers, {f"at: {part}": f"where.persistence.{part}" for part in parts}
                     | {"lens D": "where.lens.divergence", "eta": "where.eta"}
                     | {f"signal: {k}": f"where.signal.{k}" for k in ("persona", "between", "answer")})  # fmt: skip
    yield rows
    for folder in ("where/persistence", "where/lens", "where/probe"):
        yield _figures(out, folder)


def _circuit(numbers: Numbers, extras: Mapping[str, Any], out: Path) -> Iterator[str]:
    rows = [
        (text, *(shown(numbers.get(name)) for name in names))
        for text, names in (
            ("threshold", [f"circuit.{key}" for key in ("edges", "edges_share", "f.train", "f.test")]),
            ("smallest", [f"circuit.smallest.{key}" for key in ("edges", "share", "f.train", "f.test")]),
            ("ACDC after EAP", [f"circuit.acdc.{key}" for key in ("edges", "share", "f.train", "f.test")]),
            ("prior", [f"circuit.prior.{key}" for key in ("edges", "edges_share", "f.train", "f.test")]),
        )
        if names[0] in numbers
    ]
    yield _table(("circuit", "edges", "share of all", "f, train", "f, test"), rows) if rows else ""
    yield _list(numbers, "circuit.f.complement", "circuit.f.random", "circuit.f.above_random", "circuit.complete.")
    tests = [name for name in ("equivalence", "independence", "sufficiency", "necessity", "minimality")
             if f"circuit.test.{name}" in numbers]  # fmt: skip
    tested = [(name, shown(numbers[f"circuit.test.{name}"]), _p(numbers[f"circuit.test.{name}"]),
              _passed(numbers.get(f"circuit.test.{name}.passed"))) for name in tests]  # fmt: skip
    yield _table(("test", "statistic", "p", "passed"), tested) if tested else ""
    transfer = _parts(numbers, "circuit.transfer", 2, ".holds")
    cells = [(name, *(shown(numbers.get(f"circuit.transfer.{name}{end}")) for end in ("", ".outside")),
              _passed(numbers.get(f"circuit.transfer.{name}.holds"))) for name in transfer]  # fmt: skip
    yield _table(("transfer to", "f", "best outside", "holds"), cells) if cells else ""
    yield _list(numbers, "circuit.transfer.holds", "circuit.transfer.n", "circuit.stability.", "circuit.specificity.")
    prior = [name for name in numbers if name.startswith("circuit.prior.") and ".f." not in name]
    yield _list(numbers, *(name for name in prior if name.split(".")[2] not in ("edges", "nodes", "heads", "mlps")))
    yield _list(numbers, "circuit.prior.f.")
    if nodes := extras.get("nodes"):
        yield f"Nodes: `{' '.join(nodes)}`"
        edges = [(f"`{edge['edge']}`", f"{edge['score']:+.4f}") for edge in extras.get("strongest_edges", ())]
        yield _table(("strongest edge", "score"), edges)
    yield _picture(out, "circuit/graph.png", "The circuit of the persona")
    yield _picture(out, "circuit/prior/difference.png", "The circuits of persona (A) and prior (B)")


def _analysis(study: Study, numbers: Numbers) -> Iterator[str]:
    yield "### Why pairs collapse"
    subjects = [
        name.removeprefix("causes.").removesuffix(".n")
        for name in numbers
        if name.startswith("causes.") and name.endswith(".n") and name != "causes.truth.n"
    ]
    columns = ("n", *(slug(verdict) for verdict in VERDICTS))
    yield _grid(numbers, "causes", subjects, columns, interval=False)
    yield _list(numbers, "causes.test.", "causes.truth.", *(f"causes.all.{key}" for key in (
        "signal_persona", "signal_answer", "alignment", "access", "kappa")))  # fmt: skip
    for plan, results in study.plans:
        counts = ", ".join(f"{name} {n}" for name, n in Counter(result.outcome for result in results).items())
        yield f"### Predictions of {plan.source}\n\n{counts}."
        rows = [(r.id, r.says, r.outcome, "; ".join(f"`{why}`" for why in r.why)) for r in results]
        yield _table(("id", "prediction", "outcome", "numbers"), rows)
    if not study.plans:
        yield "No plan of predictions was given (`--plan`)."
    yield "TO WRITE: why persona signals fail to affect preferences here; what speaks against the explanation."


def _parts(numbers: Numbers, prefix: str, depth: int, end: str) -> list[str]:
    """The subjects of ``depth`` parts after a prefix that have a number with this end."""
    subjects = [name.removeprefix(f"{prefix}.").removesuffix(end) for name in numbers
             if name.startswith(f"{prefix}.") and name.endswith(end)]  # fmt: skip
    return [name for name in subjects if name.count(".") == depth - 1 and "_minus_" not in name]


def _grid(
    numbers: Numbers, prefix: str, subjects: Sequence[str], columns: Sequence[str], *, interval: bool = True
) -> str:
    """A row per subject, a column per measure; columns and rows without a number are left out."""
    kept = [c for c in columns if any(f"{prefix}.{subject}.{c}" in numbers for subject in subjects)]
    rows = [
        (subject.replace(".", " "), *(shown(numbers.get(f"{prefix}.{subject}.{c}"), interval=interval) for c in kept))
        for subject in subjects
        if any(f"{prefix}.{subject}.{c}" in numbers for c in kept)
    ]
    return _table((prefix, *kept), rows) if rows else f"No numbers of `{prefix}`."


def _tested(numbers: Numbers, prefix: str, marks: Sequence[str]) -> str:
    """Differences with their p, corrected too."""
    rows = [
        (name.removeprefix(prefix), shown(number), _p(number), "" if number.p_holm is None else f"{number.p_holm:.3g}")
        for name, number in numbers.items()
        if name.startswith(prefix) and number.p is not None and any(mark in name for mark in marks)
    ]
    return _table(("difference", "value", "p", "p (Holm)"), rows) if rows else ""


def _by_layer(numbers: Numbers, curves: Mapping[str, str]) -> str:
    """A row per layer."""
    known = {text: name for text, name in curves.items() if f"{name}.0" in numbers}
    n = max((int(part) for name in known.values() for key in numbers if key.startswith(f"{name}.")
             if (part := key.removeprefix(f"{name}.")).isdigit()), default=-1)  # fmt: skip
    rows = [
        (str(layer), *(shown(numbers.get(f"{name}.{layer}"), interval=False) for name in known.values()))
        for layer in range(n + 1)
    ]
    return _table(("layer", *known), rows) if rows else ""


def _list(numbers: Numbers, *prefixes: str) -> str:
    """A line per number whose name is one of these, or begins with one that ends in a dot."""
    lines = [
        f"- `{name}` {shown(number)}{f', p {_p(number)}' if number.p is not None else ''}: {number.what}"
        for prefix in prefixes
        for name, number in numbers.items()
        if name == prefix or (prefix.endswith(".") and name.startswith(prefix))
    ]
    return "\n".join(lines)


def _figures(out: Path, folder: str) -> str:
    """All pictures of a stage's folder, by name."""
    names = sorted(path.name for path in (out / folder).glob("*.png") if path.name not in ("graph.png",))
    return "\n\n".join(_picture(out, f"{folder}/{name}", Path(name).stem.replace("-", " ")) for name in names)


def _picture(out: Path, path: str, text: str) -> str:
    return f"![{text}]({path})" if (out / path).is_file() else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[markdown_cell(cell) for cell in row] for row in rows]
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in cells)])


def _counts(values: Iterator[str]) -> str:
    counts = Counter(values)
    return ", ".join(f"{value} {n}" for value, n in sorted(counts.items()) if value) or ""


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(map(markdown_code, texts))


def _p(number: Number) -> str:
    return "" if number.p is None else f"{number.p:.3g}"


def _passed(number: Number | None) -> str:
    return "" if number is None else "yes" if number.value else "no"
