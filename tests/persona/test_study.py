"""The whole study on a tiny model: files, names, resuming, bytes, few axes, and what it says to bad input."""

import csv
import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import DATA, ROOT
from tests_numbers import unfound_numbers
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from persona_circuits.circuit.errors import FileError, OptionError, TaskError
from persona_circuits.circuit.model import load_model
from persona_circuits.circuit.storage import DamagedState
from persona_circuits.persona.behaviour import measure_pairs
from persona_circuits.persona.data import load_items
from persona_circuits.persona.study import (
    STAGES,
    Context,
    StudyFile,
    StudyFiles,
    StudyOptions,
    axes_of,
    derived_bias,
    load_plan,
    run_study,
    shown,
    some_of,
    with_bias,
)
from persona_circuits.persona.study import run as engine

TINY = DATA / "tiny-gpt2"
OPTIONS = {"n_resamples": 100, "max_pairs": 4, "n_random": 1, "steps": 2, "gate_steps": 2, "least_mass": 0.0}
PEOPLE = [(" happy", " sad"), (" calm", " angry"), (" bold", " shy"), (" kind", " tired")]
ASKED = {
    "drink": (" tea", " milk", " coffee"),
    "pet": (" dogs", " cats", " red"),
    "colour": (" red", " green", " blue"),
}


def rows(**more):
    """Every persona pair meets every question, in two wordings; strong and mild by persona, bias by question."""
    found = []
    for (i, (a, b)), (question, (first, second, third)), late in itertools.product(
        enumerate(PEOPLE), ASKED.items(), (False, True)
    ):
        question_text = f"the best {question} is" if late else f"the {question} is"
        clean, corrupt = (
            f"she is a very{who} cook. {question_text}" if late else f"you are a{who} cook. now {question_text}"
            for who in (a, b)
        )
        found.append(
            {
                "id": f"{i}-{question}-{late}",
                "clean": clean,
                "corrupt": corrupt,
                "answers": [first],
                "wrong_answers": [second],
                "candidates": [first, second, third],
                "persona_a": a.strip(),
                "persona_b": b.strip(),
                "question": question,
                "split": "train" if i % 2 else "test",
                "contrast": "strong" if i < 2 else "mild",
                "bias": "high" if question == "pet" else "low",
                "placement": "late" if late else "early",
                "domain": question,
                **more,
            }
        )
    return found


def worded():
    """Every persona pair and question in two wordings of one length, with neutral prompts."""
    found = []
    sides = ("clean", "corrupt")
    early = [row for row in rows() if row["placement"] == "early"]
    early += [
        row | {"id": f"more-{row['id']}", "question": "food"} | {s: row[s].replace("drink", "food") for s in sides}
        for row in early if row["question"] == "drink"
    ]  # fmt: skip
    for row, ask in itertools.product(early, ("now the", "here the")):
        prompts = {side: row[side].replace("now the", ask) for side in sides}
        more = {"wording": ask, "n_tokens": 9, "neutral": f"you are a person. {ask} {row['question']} is"}
        found.append(row | prompts | more | {"id": f"{ask}-{row['id']}"})
    return found


def written(path, content):
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return StudyFile.at(str(path), path.name)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    controls = [
        row | {"id": f"c{i}", "control": "paraphrase", "corrupt": row["clean"].replace("cook", "judge")}
        for i, row in enumerate(rows())
        if i % 2 == 0
    ]
    variants = [
        row | {"id": f"{name}-{row['id']}", "variant": name, "base": row["id"]}
        | {side: row[side].replace(" cook", word) for side in ("clean", "corrupt")}
        for row in rows() if row["placement"] == "early"
        for name, word in (("identity", " cook"), ("mention", " cook and"), ("same", " cook"))
    ]  # fmt: skip
    framed = [
        row | {"id": f"{name}-{row['id']}", "variant": name, "base": row["id"]}
        | {side: row[side].replace("you are", words) for side in ("clean", "corrupt")}
        for row in rows() if row["placement"] == "early"
        for name, words in (("you", "you are"), ("again", "you are"), ("friend", "he is"), ("book", "now it is"))
    ]  # fmt: skip
    return StudyFiles(
        written(folder / "pairs.jsonl", rows()),
        written(folder / "controls.jsonl", controls),
        written(folder / "variants.jsonl", variants),
        written(folder / "prior.jsonl", rows(control="prior")),
        frames=written(folder / "frames.jsonl", framed),
        wordings=written(folder / "wordings.jsonl", worded()),
    )


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    both = [
        {"id": "1", "says": "there are pairs", "number": "behaviour.all.n", "is": ">=", "value": 1},
        {"id": "2", "says": "nothing of that name", "number": "behaviour.all.nonsense", "is": ">=", "value": 1},
    ]
    path.write_text(json.dumps(both))
    return load_plan(path, label="plan.json")


@pytest.fixture(scope="module")
def model():
    return load_model(TINY, label="tiny")


@pytest.fixture(scope="module")
def done(model, files, plan, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    study = run_study(model, files, out, options=StudyOptions(compact=True, **OPTIONS), plans=[plan])
    return out, study


pytestmark = pytest.mark.slow


def test_every_stage_gives_numbers_and_files(done):
    out, study = done
    assert [stage.name for stage in study.stages] == list(STAGES)
    assert all(stage.numbers and not stage.reused for stage in study.stages)
    record = json.loads((out / "numbers.json").read_text())
    assert list(record["numbers"]) == list(study.numbers)
    assert len((out / "numbers.csv").read_text().splitlines()) == 1 + len(study.numbers)
    for name in ("behaviour/groups.csv", "contrasts/variants/pairs.csv", "causes/pairs.csv", "where/probe/probes.csv"):
        assert (out / name).is_file()
    for name in ("where/lens/curves.csv", "where/persistence/persistence.csv", "steering/readout/outcomes.csv"):
        assert (out / name).is_file()
    for name in ("circuit.json", "real_circuits_1.json", "graph.png", "prior/comparison.json", "acdc/circuit.json"):
        assert (out / "circuit" / name).is_file()
    assert (out / "patch/movers.csv").is_file()
    assert (out / "frames/friend/circuit.json").is_file()
    assert (out / "frames/frames.png").is_file()


def test_a_compact_study_keeps_tables_circuits_and_a_few_pictures(done, model, files, tmp_path):
    out, _ = done
    study = run_study(model, files, tmp_path, options=StudyOptions(**OPTIONS), only=["causes"])
    assert {path.name for path in (tmp_path / "causes").iterdir()} > {"explain.json", "explain.html", "pairs.csv"}
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".json", ".csv", ".png", ".md"}
    assert (out / "causes/pairs.csv").read_bytes() == (tmp_path / "causes/pairs.csv").read_bytes()
    assert not (out / "causes/explain.json").exists()
    assert not (out / "circuit/acdc/graph.png").exists()
    assert study.stages[0].numbers == next(one for one in done[1].stages if one.name == "causes").numbers


def test_every_name_is_in_the_documentation(done):
    """Names are documented as patterns such as ``behaviour.G.n``: a part in capitals stands for any part or parts."""
    _, study = done
    text = (ROOT / "docs" / "study.md").read_text()
    heads = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    patterns = [pattern for head in heads for pattern in _patterns(head)]
    for name in study.numbers:
        assert any(re.fullmatch(pattern, name) for pattern in patterns), name


def _patterns(head):
    """``a.b``, ``.c`` in one cell: the second has the first's beginning."""
    named, base = re.findall(r"`([^`]+)`", head), ""
    for name in named:
        if name.startswith("."):
            stem = base.split(".")
            whole = ".".join([*stem[: len(stem) - 1 if len(stem) > 2 else 2], name[1:]])
            candidates = [whole, base + name]
        else:
            base, candidates = name, [name]
        for one in candidates:
            parts = [r"[\w+.]+" if re.fullmatch(r"[A-Z]\d?", part) else _part(part) for part in one.split(".")]
            yield r"\.".join(parts)


def _part(part):
    return re.sub(r"\b[A-Z]\d?(?=_)|(?<=_)[A-Z]\d?(?![a-z])", r"[\\w+]+", re.escape(part).replace(r"\_", "_"))


@pytest.fixture(scope="module")
def whole(model, files, tmp_path_factory):
    """Three stages with all of their files."""
    out = tmp_path_factory.mktemp("whole")
    stages = ["behaviour", "causes", "steering"]
    return out, run_study(model, files, out, options=StudyOptions(**OPTIONS), only=stages).numbers


def test_numbers_are_those_of_the_stages_own_files(whole):
    out, numbers = whole
    assert all((out / number.source).is_file() for number in numbers.values() if number.source)
    collapse = json.loads((out / "behaviour/collapse.json").read_text())
    summary = collapse["groups"][0]["summary"]
    assert numbers["behaviour.all.n"].value == summary["n"] == 12  # the held-out pairs
    assert numbers["behaviour.all.divergence"].value == pytest.approx(summary["divergence"]["value"], abs=1e-5)
    assert numbers["behaviour.all.divergence"].p == pytest.approx(summary["p_zero"], abs=1e-5)
    assert numbers["behaviour.sigma_0"].value == pytest.approx(collapse["sigma_0"], abs=1e-5)
    explained = json.loads((out / "causes/explain.json").read_text())
    shares = [numbers[f"causes.all.{name}"].value for name in (
        "no_collapse", "prior_dominance", "cancellation", "weak_or_transient", "bottleneck", "not_a_preference",
        "reversed", "undecided")]  # fmt: skip
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)
    assert explained["groups"][0]["n"] == numbers["causes.all.n"].value
    steered = json.loads((out / "steering/mean/steer.json").read_text())
    layer = numbers["steering.mean.layer"].value
    (bound,) = [one for one in steered["bounds"] if one["layers"] == [layer]]
    assert numbers["steering.mean.gain"].value == pytest.approx(bound["outcome"]["gain"], abs=1e-5)


def test_numbers_of_the_circuit_are_in_its_file(done):
    out, study = done
    numbers, circuit = study.numbers, json.loads((out / "circuit/circuit.json").read_text())
    assert numbers["circuit.edges"].value == circuit["counts"]["edges"]
    held_out = circuit["faithfulness"][-1]
    assert numbers["circuit.f.test"].value == pytest.approx(held_out["circuit"]["ratio_of_means"], abs=1e-5)
    (evaluation,) = circuit["evaluations"]
    assert evaluation["transfer"].keys() >= {"contrast", "bias", "placement", "domain"}
    passed = [one["decision"] for one in evaluation["tests"]["outcomes"]].count("passed")
    assert numbers["circuit.test.passed"].value == passed


def test_levels_and_their_differences_belong_together(done):
    numbers = done[1].numbers
    for axis, first, second in (
        ("contrast", "strong", "mild"),
        ("bias", "high", "low"),
        ("placement", "late", "early"),
    ):
        for key in ("divergence", "collapse"):
            gap = numbers[f"contrasts.{axis}.{first}_minus_{second}.{key}"]
            levels = [numbers[f"contrasts.{axis}.{level}.{key}"].value for level in (first, second)]
            assert gap.value == pytest.approx(levels[0] - levels[1], abs=1e-5)
            assert 0 < gap.p <= gap.p_holm <= 1
    assert numbers["contrasts.domain.spread.divergence"].p is not None
    tests = sum(one.p is not None for name, one in numbers.items() if name.startswith(("contrasts.", "variants.")))
    assert numbers["contrasts.n_tests"].value == tests


def test_a_variant_that_is_no_other_changes_nothing(done):
    """The positive control is the other variant, which does."""
    numbers = done[1].numbers
    assert numbers["variants.same.divergence_ratio"].value == 1
    assert numbers["variants.same.divergence_difference"].p == 1
    assert numbers["variants.mention.divergence_ratio"].value != 1
    assert "variants.identity.divergence_difference" not in numbers


def test_a_frame_that_is_no_other_changes_nothing_and_has_the_same_circuit(done):
    numbers = done[1].numbers
    assert numbers["frames.again.divergence_ratio"].value == 1
    assert numbers["frames.again.correlation"].value == pytest.approx(1)
    assert numbers["frames.again.divergence_difference"].p == 1
    assert numbers["frames.again.edges_jaccard"].value == 1
    assert numbers["frames.again.f.of_you"].value == numbers["frames.you.f.own"].value
    assert numbers["frames.friend.divergence_ratio"].value != 1
    ratio = numbers["frames.friend.divergence"].value / numbers["frames.you.divergence"].value
    assert numbers["frames.friend.divergence_ratio"].value == pytest.approx(ratio, abs=1e-5)
    assert "frames.book.f.own" not in numbers  # not among those that are searched
    assert "frames.you.divergence_ratio" not in numbers


def test_the_personas_tokens_in_one_frame_are_put_into_another(done):
    """Into the first layer all that differs is put: D comes over whole. The frame alone brings none of it."""
    out, study = done
    rows = list(csv.DictReader((out / "across/across.csv").open()))
    shares = {(row["frame"], int(row["layer"]), row["what"]): float(row["value"]) for row in rows}
    assert shares["you", 0, "share"] == pytest.approx(1, abs=1e-4)
    assert {name for name, *_ in shares} == {"you", "friend", "book"}
    assert shares["friend", 0, "share"] == pytest.approx(1, abs=1e-4)  # the words that differ are the same there
    assert shares["friend", 0, "null"] == pytest.approx(0, abs=1e-4)
    assert shares["book", 0, "null"] != pytest.approx(0, abs=1e-2)  # it is longer, and this model adds places to words
    assert shares["friend", 3, "share"] == pytest.approx(0, abs=1e-4)  # behind the last block nothing reads them
    layer = int(study.numbers["across.layer"].value)
    assert study.numbers["across.friend.share"].value == pytest.approx(shares["friend", layer, "share"], abs=1e-5)


def test_raised_attention_is_a_mask_of_numbers_in_the_models_own_forward(done):
    """Against the modules of transformers, which are given the mask; as it is, D is that of the measures."""
    out, study = done
    own = AutoModelForCausalLM.from_pretrained(TINY, attn_implementation="eager", dtype=torch.float64)
    tokens = AutoTokenizer.from_pretrained(TINY)
    lines = [row for row in csv.DictReader((out / "attention/pairs.csv").open()) if row["of"] == "pairs"]
    pairs = {row["id"]: row for row in rows()}
    assert len(lines) == study.numbers["attention.1.collapse"].n
    for line in lines:
        pair = pairs[line["id"]]
        a, b = (tokens(pair[side])["input_ids"] for side in ("clean", "corrupt"))
        differ = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        ids = [tokens(pair[key][0])["input_ids"][0] for key in ("answers", "wrong_answers")]
        for name, boost in (("before", 0), ("1", 1), ("2", 2)):
            mask = torch.full((len(a), len(a)), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)
            mask[differ[-1] + 1 :, differ[0] : differ[-1] + 1] += boost
            margins = [
                torch.sub(*own(torch.tensor([x]), attention_mask=mask[None, None]).logits[0, -1, ids]) for x in (a, b)
            ]
            assert float(line[f"D {name}"]) == pytest.approx(float(margins[0] - margins[1]), abs=1e-4)
    before, after = (sum(float(line[f"D {name}"]) for line in lines) for name in ("before", "2"))
    assert study.numbers["attention.2.divergence_ratio"].value == pytest.approx(after / before, abs=1e-4)
    assert study.numbers["attention.2.elsewhere.divergence_ratio"].value != pytest.approx(after / before, abs=1e-3)
    assert study.numbers["attention.before.paraphrase.collapse"].n == study.numbers["attention.2.paraphrase.collapse"].n


def test_collapse_without_the_default_is_what_the_log_probabilities_say(done, model, files):
    """By hand, from the public measures of the same rows and of their neutral prompts."""
    out, study = done
    items = {item.pair.id: item for item in load_items(files.wordings.path).items}
    lines = list(csv.DictReader((out / "prior/pairs.csv").open()))
    assert len(lines) == study.numbers["prior.bias.collapse"].n == 8
    collapsed = []
    for line in lines:
        item = items[line["id"]]
        other = next(one for one in items.values() if one.question == item.question
                     and one.pair.row["wording"] != item.pair.row["wording"])  # fmt: skip
        asked = replace(other, pair=replace(other.pair, clean=other.pair.neutral, corrupt=other.pair.neutral))
        (own,), (default,) = measure_pairs(model, [item]), measure_pairs(model, [asked], alike=True)
        a, b = (np.subtract(side, default.log_probs_a).argmax() for side in (own.log_probs_a, own.log_probs_b))
        collapsed.append(a == b)
        assert float(line["collapse"]) == own.collapses
        assert float(line["collapse_bias"]) == (a == b)
    assert study.numbers["prior.bias.collapse"].value == pytest.approx(np.mean(collapsed), abs=1e-5)
    assert study.numbers["prior.direction.before.collapse"].value == study.numbers["prior.bias.before.collapse"].value


def test_thresholds_of_verdicts_are_set_on_half_of_the_controls(done):
    out, study = done
    numbers, made = study.numbers, json.loads((out / "causes/calibration.json").read_text())
    assert {name.split(": ")[0] for name in made["training"]} == {"paraphrase", "same side"}
    assert all(
        numbers[f"causes.rate.{kind}.all"].value <= 0.05 for kind in ("bottleneck", "cancellation", "no_collapse")
    )
    assert numbers["causes.cut.bottleneck.given"].value == (made["cuts"]["bottleneck"]["least"] is not None)


def test_a_stage_that_is_stopped_keeps_what_it_has(model, files, tmp_path):
    """The scores of the first frame are not made again, and the files are those of a study that was not stopped."""
    how = {"options": StudyOptions(compact=True, **OPTIONS), "only": ["frames"]}
    whole = run_study(model, files, tmp_path / "whole", **how)
    seen = []

    def stopping(part):
        seen.append(part)
        if "faithfulness on train" in part:
            raise KeyboardInterrupt
        return lambda *_: None

    with pytest.raises(KeyboardInterrupt):
        run_study(model, files, tmp_path / "out", stage=stopping, **how)
    assert (tmp_path / "out/work/frames/you/scores.state").is_file()
    parts = []
    again = run_study(model, files, tmp_path / "out", stage=lambda part: parts.append(part) or (lambda *_: None), **how)
    assert sum("scores" in part for part in parts) == sum("scores" in part for part in seen) + 1  # again and friend
    assert not (tmp_path / "out/work").exists()
    assert again.numbers == whole.numbers


def test_where_keeps_the_streams_that_were_exchanged(model, files, tmp_path, monkeypatch):
    how = {"options": StudyOptions(compact=True, **OPTIONS), "only": ["where"]}
    whole = run_study(model, files, tmp_path / "whole", **how)

    def stopping(part):
        if "fitting probes" in part:
            raise KeyboardInterrupt
        return lambda *_: None

    with pytest.raises(KeyboardInterrupt):
        run_study(model, files, tmp_path / "out", stage=stopping, **how)
    assert (tmp_path / "out/work/where/where.state").is_file()
    monkeypatch.setattr("persona_circuits.circuit.evaluation.spans._moved", lambda *_: pytest.fail("made again"))
    assert run_study(model, files, tmp_path / "out", **how).numbers == whole.numbers
    assert not (tmp_path / "out/work").exists()


def test_a_low_mass_stops_before_the_long_stages_and_says_what_to_change(model, files, tmp_path):
    how = {"options": StudyOptions(**OPTIONS | {"least_mass": 1.0}), "only": ["behaviour", "frames"]}
    parts = []
    study = run_study(model, files, tmp_path, stage=lambda part: parts.append(part) or (lambda *_: None), **how)
    assert "frames" in study.missing
    assert "--least-mass 1" in study.stages[0].notes[-1]
    assert "persona-circuits formats" in (tmp_path / "report.md").read_text()
    assert re.match(r"behaviour \(about .*, [\d.]+ GiB\): asking", parts[0])


def test_a_second_run_computes_nothing_and_writes_the_same(done, model, files, plan, monkeypatch):
    out, _ = done
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(engine, "_run", lambda *_: pytest.fail("a finished stage was run again"))
    study = run_study(model, files, out, options=StudyOptions(compact=True, **OPTIONS), plans=[plan])
    assert all(stage.reused for stage in study.stages)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_same_study_same_bytes(done, model, files, plan, tmp_path):
    out, _ = done
    stages = ["contrasts", "frames", "patch"]
    run_study(model, files, tmp_path, options=StudyOptions(compact=True, **OPTIONS), only=stages, plans=[plan])
    for path in sorted(path for stage in stages for path in (out / stage).rglob("*") if path.is_file()):
        assert (tmp_path / path.relative_to(out)).read_bytes() == path.read_bytes(), path


def test_other_options_run_a_stage_again(model, files, tmp_path):
    how = {"only": ["behaviour"]}
    first = run_study(model, files, tmp_path, options=StudyOptions(**OPTIONS), **how)
    assert first.missing == tuple(name for name in STAGES if name != "behaviour")
    again = run_study(model, files, tmp_path, options=StudyOptions(**OPTIONS), **how)
    assert again.stages[0].reused
    other = run_study(model, files, tmp_path, options=StudyOptions(**OPTIONS | {"seed": 1}), **how)
    assert not other.stages[0].reused
    assert (tmp_path / "behaviour" / "collapse.html").is_file()


def test_predictions_are_held_against_the_numbers(done):
    out, study = done
    ((_, found),) = study.plans
    assert [one.outcome for one in found] == ["supported", "not tested"]
    (record,) = json.loads((out / "predictions.json").read_text())["plans"]
    assert record["counts"]["supported"] == 1
    assert (out / "predictions.csv").read_text().startswith("plan,id,outcome,says,why\n")


def test_the_report_has_its_headings_and_its_pictures(done):
    out, _ = done
    text = (out / "report.md").read_text()
    for heading in ("Goal", "Data", "Method", "Results", "Analysis", "Next Steps", "Main Takeaways"):
        assert f"\n## {heading}\n" in text
        assert "TO WRITE" in text
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(pictures) > 10
    assert all((out / picture).is_file() for picture in pictures)
    assert "### Example 1" in text
    assert "supported" in text


def test_the_numbers_of_the_report_are_in_the_results(done):
    out, _ = done
    results = [out / "numbers.json", *out.rglob("*.json"), *out.rglob("*.csv")]
    text = re.sub("TO WRITE.*", "", (out / "report.md").read_text())
    assert unfound_numbers(text, results) == []
    broken = text.replace(shown(done[1].numbers["behaviour.all.divergence"]), "777.77", 1)
    assert [one.number for one in unfound_numbers(broken, results)] == ["777.77"]


def test_one_pair_without_anything_is_studied_too(model, tmp_path):
    bare = {key: rows()[0][key] for key in ("clean", "corrupt", "answers", "wrong_answers")}
    file = written(tmp_path / "one.jsonl", [bare])
    study = run_study(model, StudyFiles(file), tmp_path / "out", options=StudyOptions(quick=True, least_mass=0.0))
    notes = {stage.name: " ".join(stage.notes) for stage in study.stages}
    assert study.numbers["behaviour.all.n"].value == 1
    assert "no axis on which its pairs differ" in notes["contrasts"]
    assert "no file of variants" in notes["contrasts"]
    assert "no prior pairs" in notes["circuit"]
    assert "what could not be done" in (tmp_path / "out" / "report.md").read_text().lower()


def test_a_stage_that_cannot_run_says_why(model, tmp_path):
    """Prompts of unequal length: no circuit, no explanation; behaviour refuses as well, and all of it is said."""
    row = rows()[0] | {"corrupt": "you are a very sad cook. now the best drink is"}
    file = written(tmp_path / "unequal.jsonl", [row])
    study = run_study(model, StudyFiles(file), tmp_path / "out", options=StudyOptions(quick=True), only=["causes"])
    assert not study.numbers
    assert "tokens" in study.stages[0].notes[0]


def test_bias_is_derived_from_other_wordings(model, tmp_path):
    neutral = {"early": "you are a cook. now the drink is", "late": "she is a cook. the best drink is"}
    content = [row | {"neutral": neutral[row["placement"]]} for row in rows() if row["question"] == "drink"]
    for row in content:
        del row["bias"]
    file = load_items(written(tmp_path / "x.jsonl", content).path)
    bias = derived_bias(model, file)
    ids = {key: model.tokenizer(text)["input_ids"] for key, text in neutral.items()}
    tea, milk = (model.tokenizer(word)["input_ids"][0] for word in (" tea", " milk"))
    import torch

    margins = {}
    for key, tokens in ids.items():
        logits = model.logits(torch.tensor([tokens]))[0, -1]
        margins[key] = abs(float(logits[tea] - logits[milk]))
    larger = max(margins, key=margins.get)
    for item in with_bias(file, bias).items:  # a row's bias is that of the other wording
        assert item.axes["bias"] == ("low" if item.axes["placement"] == larger else "high")
    assert bias.own == 0
    assert bias.cut == pytest.approx(sum(margins.values()) / 2, abs=1e-4)
    alone = load_items(written(tmp_path / "y.jsonl", content[::2]).path)
    assert derived_bias(model, alone).own == len(content) // 2
    assert derived_bias(model, load_items(written(tmp_path / "z.jsonl", rows()).path)) is None


def test_some_of_takes_evenly(files, model):
    context = Context(model, files, StudyOptions(), lambda _: lambda a, b: None)
    few = some_of(context.main_task, 4)
    places = [context.main_task.pairs.index(pair) for pair in few.pairs]
    assert places == [0, 8, 15, 23]
    assert some_of(context.main_task, 99) == context.main_task
    assert set(axes_of(context.main)) == {"contrast", "bias", "placement", "domain"}


def test_bad_input_is_one_sentence(model, files, tmp_path):
    with pytest.raises(OptionError, match="'everything' is not one of behaviour"):
        run_study(model, files, tmp_path / "a", only=["everything"])
    for wrong, says in (
        ({"n_resamples": 0}, "--n-resamples must be at least 1, got 0"),
        ({"threshold": 0.0}, "threshold 0"),
        ({"quick": True, "thorough": True}, "contradict"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(OptionError, match=says):
            StudyOptions(**wrong).checked()
    (tmp_path / "b" / "behaviour").mkdir(parents=True)
    (tmp_path / "b" / "behaviour" / "mine.txt").write_text("keep me")
    with pytest.raises(FileError, match="no stage of a study"):
        run_study(model, files, tmp_path / "b", options=StudyOptions(**OPTIONS), only=["behaviour"])
    assert (tmp_path / "b" / "behaviour" / "mine.txt").read_text() == "keep me"
    with pytest.raises(TaskError, match="cannot be read"):
        StudyFile.at(str(tmp_path / "none.jsonl"))
    with pytest.raises(TaskError, match="fault"):
        run_study(model, replace(files, pairs=written(tmp_path / "bad.jsonl", [{"clean": "x"}])), tmp_path / "c")


def test_the_command_prints_what_it_did(files, tmp_path):
    from persona_circuits.cli import app

    arguments = ["study", "--model", TINY, "--pairs", files.pairs.path, "--quick", "--only", "behaviour"]
    call = CliRunner().invoke(app, [*map(str, arguments), "--out", str(tmp_path / "out")])
    assert call.exit_code == 0, call.output
    assert "behaviour" in call.stdout
    assert f"not run     {', '.join(name for name in STAGES if name != 'behaviour')}" in call.stdout
    call = CliRunner().invoke(app, ["study", "--model", str(TINY), "--out", str(tmp_path / "no")])
    assert call.exit_code == 2
    assert "--model needs --pairs" in call.stderr
    call = CliRunner().invoke(app, [*map(str, arguments), "--plan", str(tmp_path / "none.json")])
    assert call.exit_code == 2
    assert "cannot be read" in call.stderr


def test_a_damaged_stage_is_told_of_and_run_again(tmp_path):
    record = {"stage": "s", "inputs": "d", "notes": ["n"], "extras": {"a": [1]}}
    record |= {"numbers": {"D": {"value": 1.5, "what": "w"}}}
    record |= {"content": engine._digest_of(record)}
    path = tmp_path / "stage.json"
    path.write_text(json.dumps(record))
    found = engine._finished(tmp_path, "s", "d")
    assert (found.numbers["D"].value, found.extras, found.reused) == (1.5, {"a": [1]}, True)
    assert engine._finished(tmp_path, "s", "other") is None
    for damaged in (
        json.dumps(record | {"extras": {"a": [2]}}),
        json.dumps(record)[:-9],
        json.dumps([record]),
        json.dumps(record | {"numbers": [1]}),
        "[" * 5000,
        "\x00",
    ):
        path.write_text(damaged)
        with pytest.warns(DamagedState, match="is damaged .* its work starts again"):
            assert engine._finished(tmp_path, "s", "d") is None
