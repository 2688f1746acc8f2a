"""The behavioural study: its statistics, what it reads, what it measures, and what it writes."""

import csv
import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from conftest import DATA, ROOT
from scipy import stats

from persona_circuits.circuit.errors import FileError, OptionError, TaskError
from persona_circuits.persona.behaviour import (
    StudyOptions,
    collapse_figures,
    collapse_record,
    divergence_by_placement,
    group_table,
    measure_pairs,
    study_collapse,
    summarise,
    write_collapse,
)
from persona_circuits.persona.data import (
    Neutral,
    load_items,
    load_neutral,
    neutral_prompts,
    sign_flip,
    two_way_difference,
    two_way_mean,
)

DATASETS = ROOT / "datasets"
QUICK = StudyOptions(n_resamples=200)


@pytest.fixture(scope="module")
def world():
    from persona_circuits.circuit.model import load_model

    return load_model(ROOT / "models" / "persona-world")


@pytest.fixture(scope="module")
def study(world):
    """The shipped model on the test pairs, with controls and neutral wordings."""
    return study_collapse(
        world,
        load_items(DATASETS / "pairs_test.jsonl", label="datasets/pairs_test.jsonl"),
        controls=load_items(DATASETS / "pairs_controls.jsonl", label="datasets/pairs_controls.jsonl"),
        neutral=load_neutral(DATASETS / "questions.jsonl"),
        options=QUICK,
    )


@pytest.fixture(scope="module")
def generator():
    """What the persona world itself says of the test pairs, in the file's order."""
    rows = [json.loads(line) for line in (DATASETS / "pairs_test.jsonl").read_text().splitlines()]
    return [{**row["generator"], "prior_level": row["prior_level"]} for row in rows]


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(**more):
    base = {"clean": "You are A.\nQ: Tea?\nA:", "corrupt": "You are B.\nQ: Tea?\nA:", "question": "tea"}
    return {**base, "answers": [" yes"], "wrong_answers": [" no"], **more}


# Statistics


def crossed(effect, n=20):
    """A value per cell of n personas by n questions, and the names of both."""
    first, second = zip(*itertools.product(range(n), range(n)), strict=True)
    return (
        [float(effect[i, j]) for i, j in zip(first, second, strict=True)],
        list(map(str, first)),
        list(map(str, second)),
    )


@pytest.mark.parametrize("kind", ["persona", "question"])
def test_the_interval_is_as_wide_as_the_clusters_make_it(kind):
    """Where one factor alone varies, the mean's standard error is that of its n levels, not of the n^2 cells."""
    levels = np.random.default_rng(0).normal(size=20)
    effect = np.tile(levels[:, None] if kind == "persona" else levels[None], (1, 20) if kind == "persona" else (20, 1))
    values, first, second = crossed(effect)
    found = two_way_mean(values, first, second, n_resamples=4000)
    assert found.value == pytest.approx(levels.mean())
    width = 2 * stats.t.ppf(0.975, 19) * levels.std(ddof=1) / math.sqrt(20)
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    cells = [str(i) for i in range(len(values))]
    naive = two_way_mean(values, cells, ["q"] * len(values), n_resamples=1000)
    assert (naive.high - naive.low) < (found.high - found.low) / 3


def test_intervals_are_seeded_and_absent_where_nothing_can_be_drawn_differently():
    values, first, second = crossed(np.random.default_rng(1).normal(size=(6, 6)), 6)
    same = [two_way_mean(values, first, second, seed=3, n_resamples=300) for _ in range(2)]
    assert same[0] == same[1] != two_way_mean(values, first, second, seed=4, n_resamples=300)
    assert two_way_mean([1.0, 3.0], ["a", "a"], ["q", "q"]).low is None
    assert two_way_mean([], [], []) is None
    shares = [1.0, 0.0, 1.0, 1.0]
    wide = two_way_mean(shares, list("abcd"), list("pqrs"))
    ends = two_way_mean(shares, list("abcd"), list("pqrs"), within=(0.0, 1.0))
    assert wide.high > 1 == ends.high
    assert (ends.value, ends.low) == (wide.value, max(0.0, wide.low))


def test_the_difference_of_two_groups_uses_the_same_draws():
    values, first, second = crossed(np.random.default_rng(2).normal(size=(8, 8)), 8)
    twice = [*values, *(value + 1 for value in values)]
    late = [False] * len(values) + [True] * len(values)
    found = two_way_difference(twice, late, first * 2, second * 2, n_resamples=200)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
    assert two_way_difference(values, [True] * len(values), first, second) is None


def test_sign_flip_against_all_signs():
    rng = np.random.default_rng(5)
    values, clusters = rng.normal(0.5, 1, size=24), [str(i % 8) for i in range(24)]
    sums = np.array([values[i::8].sum() for i in range(8)])
    signs = np.array(list(itertools.product((-1, 1), repeat=8)))
    exact = np.mean(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9)
    found = sign_flip(list(values), clusters, n_resamples=20_000)
    t = stats.ttest_1samp(sums / 3, 0).pvalue  # of the clusters' means, the same size each
    assert found == pytest.approx(max(exact, t), abs=0.01)


def additive(rng, pairs, n_questions):
    """D of every persona pair under every question: the effects of both personas and of the question, and its own."""
    n = 1 + max(max(pair) for pair in pairs)
    persona, question = rng.normal(size=n), 0.5 * rng.normal(size=n_questions)
    rows = [(a, b, q) for a, b in pairs for q in range(n_questions)]
    values = [persona[a] + persona[b] + question[q] + 0.5 * rng.normal() for a, b, q in rows]
    return values, [(f"p{a}", f"p{b}") for a, b, _ in rows], [f"q{q}" for *_, q in rows]


@pytest.mark.slow
@pytest.mark.parametrize(("n_personas", "cover", "level"), [(4, 0.85, 0.13), (8, 0.88, 0.1), (30, 0.9, 0.1)])
def test_coverage_and_level_where_persona_pairs_share_personas(n_personas, cover, level):
    """Every persona pair as a cluster of its own covers half and rejects a third to a half of the true nulls."""
    pairs = list(itertools.combinations(range(n_personas), 2))
    if n_personas == 30:
        pairs = [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))[:40]]
    rng, trials, covered, rejected = np.random.default_rng(7), 100, 0, 0
    for seed in range(trials):
        values, personas, questions = additive(rng, pairs, 4)
        found = two_way_mean(values, personas, questions, n_resamples=200, seed=seed)
        covered += found.low <= 0 <= found.high
        rejected += sign_flip(values, personas, questions, n_resamples=199, seed=seed) <= 0.05
    assert covered / trials >= cover
    assert rejected / trials <= level


def test_one_persona_pair_is_flipped_per_question():
    values, personas, questions = (
        [1.0, 1.1, 0.9, 1.2, 1.0, 0.8] * 2,
        [("a", "b")] * 12,
        [f"q{i % 6}" for i in range(12)],
    )
    assert sign_flip(values, personas, questions, n_resamples=1999) == pytest.approx(2 / 64, abs=0.015)
    assert sign_flip(values, personas, n_resamples=99) == 1


def test_sign_flip_is_never_zero_and_even_under_the_null():
    assert sign_flip([5.0] * 40, [str(i) for i in range(40)], n_resamples=499) == 1 / 500
    assert sign_flip([0.0, 0.0], ["a", "b"]) == 1
    assert sign_flip([], []) is None
    rng = np.random.default_rng(6)
    names = [str(i) for i in range(30)]
    ps = [sign_flip(rng.normal(size=30).tolist(), names, n_resamples=199, seed=i) for i in range(300)]
    assert np.mean(np.array(ps) <= 0.1) == pytest.approx(0.1, abs=0.05)
    one_cluster = sign_flip([5.0] * 40, ["a"] * 40)  # forty values, one persona pair: no evidence
    assert one_cluster == 1


# What is read


def test_candidates_and_axes_are_read_by_line(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n" + json.dumps(pair(candidates=[" no", " yes", " tea"], placement="late", prior_level=2)) + "\n")
    (item,) = load_items(path).items
    assert item.candidates == (" no", " yes", " tea")
    assert item.axes == {"placement": "late", "prior_level": "2"}
    assert item.control == "none"
    (plain,) = load_items(written(path, pair(persona_a="x", persona_b="a"))).items
    assert plain.candidates == (" yes", " no")
    assert plain.persona_pair == "a / x"


def test_all_faults_of_the_extra_keys_are_listed(tmp_path):
    path = written(
        tmp_path / "pairs.jsonl",
        pair(candidates=[" yes"], id="one"),
        pair(candidates="yes", id="two", corrupt="another prompt"),
        pair(candidates=[" no", " yes", " no"], placement=["late"], id="three", corrupt="a third prompt"),
    )
    with pytest.raises(TaskError) as caught:
        load_items(path)
    text = str(caught.value)
    assert "4 fault(s)" in text
    for part in ("line 1 (id one): ' no' is an answer but no candidate", "line 2", "listed twice", "'placement'"):
        assert part in text


def test_auto_circuit_files_are_read():
    items = load_items(DATA / "tiny_pairs.json").items
    assert [item.candidates for item in items] == [(*i.pair.answers, *i.pair.wrong_answers) for i in items]


def test_neutral_prompts_leave_out_the_persona_and_the_pairs_own_wording(tmp_path):
    wordings = tuple(Neutral("tea", text) for text in ("Tea?", "Would you like tea?", "Some tea?"))
    for extra in ({}, {"clean": "It rains.\nYou are A.\nQ: Tea?\nA:", "corrupt": "It rains.\nYou are B.\nQ: Tea?\nA:"}):
        (item,) = load_items(written(tmp_path / "pairs.jsonl", pair(**extra))).items
        assert neutral_prompts(item, wordings) == ("Q: Would you like tea?\nA:", "Q: Some tea?\nA:")
    given = (Neutral("tea", "Tea?", "Tea? Say:"), Neutral("tea", "Drink?", "Drink? Say:"), Neutral("food", "F?", "F?"))
    assert neutral_prompts(item, given) == ("Drink? Say:",)


def test_rows_with_a_neutral_prompt_are_neutral_wordings(tmp_path):
    """What both prompts end in, from a sentence's beginning on, is the wording; an equal letter before it is not."""
    asked = ("For tea I say", "My tea is")
    rows = [
        {"question": "tea", "neutral": f"I am nobody with cats. {ask}", "clean": f"I am A with rats. {ask}"}
        for ask in asked
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_neutral(path)
    assert found == tuple(Neutral("tea", ask, f"I am nobody with cats. {ask}") for ask in asked)
    own = pair(clean="I am A with hats. My tea is", corrupt="I am B with mats. My tea is")
    (item,) = load_items(written(tmp_path / "pairs.jsonl", own)).items
    assert neutral_prompts(item, found) == ("I am nobody with cats. For tea I say",)
    path.write_text(json.dumps({"question": "tea", "neutral": "Tea!", "clean": "Tea?"}))
    with pytest.raises(TaskError, match="do not end in the same words"):
        load_neutral(path)


def test_no_neutral_prompt_is_made_where_the_persona_stands_with_the_question(tmp_path):
    rows = pair(clean="You are A. Tea? I say", corrupt="You are B. Tea? I say")
    (item,) = load_items(written(tmp_path / "pairs.jsonl", rows)).items
    assert neutral_prompts(item, (Neutral("tea", "Tea?"), Neutral("tea", "Some tea?"))) == ()


def test_faults_of_neutral_wordings_are_listed(tmp_path):
    path = tmp_path / "neutral.jsonl"
    path.write_text('{"question": "q", "wording": "A?", "prompt": "B?"}\n[]\n{"id": "q", "wordings": [1]}\nno\n')
    with pytest.raises(TaskError, match=r"4 fault\(s\)"):
        load_neutral(path)
    with pytest.raises(TaskError, match="cannot be read"):
        load_neutral(tmp_path / "absent.jsonl")
    with pytest.raises(TaskError, match="empty"):
        load_neutral(written(path))


# What is measured


def test_measures_are_those_of_the_definition(tiny):
    items = load_items(DATA / "tiny_pairs.json").items
    done = []
    measures = measure_pairs(tiny, items, batch_size=3, progress=lambda *seen: done.append(seen))
    assert done[-1] == (len(items), len(items))
    for item, found in zip(items, measures, strict=True):
        log_probs = [
            tiny.logits(torch.tensor([tiny.tokenizer(text)["input_ids"]]))[0, -1].double().log_softmax(-1)
            for text in (item.pair.clean, item.pair.corrupt)
        ]
        ids = [tiny.tokenizer(item.pair.clean + text)["input_ids"][-1] for text in item.candidates]
        n = len(item.pair.answers)
        m_a, m_b = ((side[ids[:n]].mean() - side[ids[n:]].mean()).item() for side in log_probs)
        assert found.divergence == pytest.approx(m_a - m_b, abs=1e-5)
        assert found.prior == pytest.approx((m_a + m_b) / 2, abs=1e-5)
        assert found.mass_a == pytest.approx(log_probs[0][ids].exp().sum().item(), abs=1e-6)
        assert found.log_probs_b == pytest.approx(log_probs[1][ids].tolist(), abs=1e-5)
        assert found.agrees == (m_a * m_b >= 0)
        assert found.choice_a == item.candidates[int(log_probs[0][ids].argmax())]


def test_measures_do_not_depend_on_the_batch(tiny):
    items = load_items(DATA / "tiny_pairs.json").items
    alone, together = (measure_pairs(tiny, items, batch_size=size) for size in (1, 32))
    for a, b in zip(alone, together, strict=True):
        assert a.divergence == pytest.approx(b.divergence, abs=1e-5)


def test_exchanging_personas_and_tokens_keeps_the_divergence(world, tmp_path):
    raw = [json.loads(line) for line in (DATASETS / "pairs_test.jsonl").read_text().splitlines()[:12]]
    turned = [
        {**row, "clean": row["corrupt"], "corrupt": row["clean"]}
        | {"answers": row["wrong_answers"], "wrong_answers": row["answers"]}
        for row in raw
    ]
    forward, backward = (
        measure_pairs(world, load_items(written(tmp_path / "pairs.jsonl", *rows)).items) for rows in (raw, turned)
    )
    for a, b in zip(forward, backward, strict=True):
        assert b.divergence == pytest.approx(a.divergence, abs=1e-5)
        assert b.prior == pytest.approx(-a.prior, abs=1e-5)
        assert (b.choice_a, b.choice_b) == (a.choice_b, a.choice_a)


def test_a_candidate_of_two_tokens_is_refused_with_its_line(world, tmp_path):
    row = json.loads((DATASETS / "pairs_test.jsonl").read_text().splitlines()[0])
    row["candidates"].append(" unheard-of")
    items = load_items(written(tmp_path / "pairs.jsonl", row)).items
    with pytest.raises(TaskError, match=r"line 1 .*unheard-of"):
        measure_pairs(world, items)


@pytest.mark.slow
def test_divergence_follows_the_generators(study, generator):
    found = [row.measure.divergence for row in study.pairs]
    assert np.corrcoef(found, [truth["divergence"] for truth in generator])[0, 1] > 0.9


def test_collapse_by_prior_level_is_the_generators(study, generator):
    levels = {group.value: group.summary for group in study.groups if group.axis == "prior_level"}
    assert sorted(levels) == ["0", "1", "2", "3"]
    for level, summary in levels.items():
        truth = [row["collapses"] for row in generator if str(row["prior_level"]) == level]
        assert summary.n == len(truth)
        assert summary.collapse.value == pytest.approx(np.mean(truth), abs=0.05)
    assert levels["0"].collapse.value < 0.05
    assert levels["3"].collapse.value == 1


def test_the_third_candidate_is_what_the_personas_collapse_into(study):
    """Over the two declared tokens alone no pair would seem to collapse."""
    assert study.overall.summary.agree < 0.05
    assert study.overall.summary.collapse.value > 0.25


def test_neutral_wordings_find_the_generic_prior(study, world):
    for row in study.pairs:
        assert row.bias_source == "neutral"
        assert row.bias == row.measure.item.axes["bias"]
        expected = (0.0, 1.0, 2.2, 5.5)[int(row.measure.item.axes["prior_level"])]
        assert row.measure.neutral.lead == pytest.approx(expected, abs=0.6)
        assert row.measure.neutral.n == 4


def test_paraphrases_are_no_signal_and_personas_are(study):
    assert 0 < study.sigma_0 < 0.1
    assert study.n_paraphrases == 40
    paraphrase = study.overall.paraphrase
    assert paraphrase.collapse.value == 1
    assert paraphrase.p_zero > 0.05
    assert paraphrase.no_signal > 0.9
    own = study.overall.summary
    assert own.p_zero == 1 / 201
    assert own.no_signal == 0
    assert own.divergence.low > 3
    assert [group.value for group in study.controls] == ["paraphrase", "irrelevant", "neighbour"]
    assert all(abs(group.summary.divergence.value) < 0.05 for group in study.controls)


def test_the_control_beside_a_group_is_of_the_same_value_where_there_is_one(study):
    for group in study.groups:
        if group.axis in ("bias", "placement"):
            assert group.paraphrase_matched
            assert group.paraphrase.n < 40
        if group.axis == "contrast":
            assert not group.paraphrase_matched
            assert group.paraphrase.n == 40


def test_questions_are_summed_up_over_their_personas(study):
    assert sum(question.n for question in study.questions) == 120
    for question in study.questions:
        if question.modal_share is not None:
            assert 1 / question.n_personas <= question.modal_share <= 1
            assert 0 <= question.prior_share <= 1
            assert (question.effective_preferences == pytest.approx(1)) == (question.modal_share == 1)
    high, low = ([q.soft_collapse for q in study.questions if q.bias == bias] for bias in ("high", "low"))
    assert np.mean(high) > np.mean(low) + 0.1


def test_without_controls_and_neutral_wordings_nothing_is_invented(world):
    plain = study_collapse(
        world, load_items(DATASETS / "pairs_demo.jsonl"), options=StudyOptions("test", n_resamples=50)
    )
    assert len(plain.pairs) == 16
    assert plain.sigma_0 is None
    assert plain.overall.paraphrase is None
    assert plain.overall.summary.no_signal is None
    assert {(row.bias, row.bias_source) for row in plain.pairs} == {("low", "file")}
    assert plain.placement is None
    assert any("paraphrase" in note for note in plain.notes)


def test_a_bare_file_on_another_model(tiny, tmp_path):
    rows = json.loads((DATA / "tiny_pairs.json").read_text())["prompts"]
    rows[0]["answers"], rows[0]["wrong_answers"] = rows[0]["wrong_answers"], rows[0]["answers"]
    (tmp_path / "pairs.json").write_text(json.dumps({"prompts": rows}))
    bare = study_collapse(tiny, load_items(tmp_path / "pairs.json"), options=QUICK)
    assert {row.bias for row in bare.pairs} == {"unknown"}
    assert bare.groups == ()
    assert len(bare.questions) == len(bare.pairs)
    assert "divergence-by-prior" in collapse_figures(bare)
    assert any("below 0.2" in note for note in bare.notes)
    turned = sum(row.measure.divergence < 0 for row in bare.pairs)
    assert turned
    assert any(f"D is below zero on {turned} of {len(bare.pairs)} pairs" in note for note in bare.notes)
    few = dataclasses.replace(bare.pairs[0].measure.item.pair, persona_a="x", persona_b="y")
    item = dataclasses.replace(bare.pairs[0].measure.item, pair=few)
    alone = summarise([dataclasses.replace(bare.pairs[0].measure, item=item)] * 3, QUICK, model="none")
    assert any("1 persona pair(s) only" in note for note in alone.notes)
    assert alone.overall.summary.p_zero == 1
    json.dumps(collapse_record(bare), allow_nan=False)


def test_the_real_chat_model(craftgpt):
    """Against the numbers in datasets/CRAFTGPT.md."""
    pairs = load_items(DATASETS / "craftgpt_weather.jsonl")
    for split, mean_d, agree, low in (("train", 3.99, 22 / 56, 49 / 56), ("test", 2.20, 14 / 24, 16 / 24)):
        summary = study_collapse(craftgpt, pairs, options=StudyOptions(split, n_resamples=50)).overall.summary
        assert summary.divergence.value == pytest.approx(mean_d, abs=0.01)
        assert summary.agree == pytest.approx(agree)
        assert summary.collapse.value == pytest.approx(agree)
        assert summary.low_mass == pytest.approx(low)


def test_reversed_pairs_are_a_class_of_their_own(study):
    measures = [dataclasses.replace(study.pairs[0].measure, divergence=d) for d in (-3.0, 0.01, 3.0)]
    paraphrase = study.control_pairs[0].measure
    null = [dataclasses.replace(paraphrase, divergence=d) for d in (0.1, -0.1)]
    rows = summarise([*measures, *null], QUICK, model="none").pairs
    assert [row.outcome for row in rows] == ["reversed", "no signal", "apart"]


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"n_resamples": 0}, {"seed": -1}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(OptionError, match="must be at least"):
        StudyOptions(**wrong).checked()


def test_a_file_of_controls_alone_is_refused(world):
    with pytest.raises(OptionError, match="controls only"):
        study_collapse(world, load_items(DATASETS / "pairs_controls.jsonl"))
    with pytest.raises(TaskError, match="no pair of split 'dev'"):
        study_collapse(world, load_items(DATASETS / "pairs_demo.jsonl"), options=StudyOptions("dev"))


# What is written


def test_the_same_study_gives_the_same_bytes(study, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_collapse(study, tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    pictures = [f"{name}.png" for name in sorted(collapse_figures(study))]
    assert names == ["collapse.html", "collapse.json", *pictures, "groups.csv", "pairs.csv", "questions.csv"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with pytest.raises(FileError):
        write_collapse(study, tmp_path / "absent")


def test_tables_and_record_agree(study, tmp_path):
    write_collapse(study, tmp_path)
    record = json.loads((tmp_path / "collapse.json").read_text())
    assert record["format"] == "persona-circuits/collapse"
    assert [source["source"] for source in record["sources"]] == [
        "datasets/pairs_test.jsonl",
        "datasets/pairs_controls.jsonl",
    ]
    for name in ("pairs", "questions", "groups"):
        rows = list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines()))
        assert len(rows) == len(record[name])
    rows = list(csv.DictReader((tmp_path / "pairs.csv").read_text().splitlines()))
    assert len(rows) == 240
    for row, item in zip(rows, record["pairs"], strict=True):
        assert float(row["divergence"]) == item["divergence"]
        assert row["collapses"] == str(item["collapses"])
        assert all(len(item[side]) == len(item["candidates"]) for side in ("log_probs_a", "log_probs_b"))


def test_what_is_undefined_is_null_and_empty(study, tmp_path):
    measure = dataclasses.replace(
        study.pairs[0].measure, divergence=0.0, prior=0.0, prior_dominance=math.nan, required_gain=math.inf
    )
    flat = summarise([measure], QUICK, model="none")
    assert flat.overall.summary.dominance is None
    write_collapse(flat, tmp_path)
    (pair_record,) = json.loads((tmp_path / "collapse.json").read_text())["pairs"]
    (line,) = csv.DictReader((tmp_path / "pairs.csv").read_text().splitlines())
    for name in ("prior_dominance", "required_gain"):
        assert pair_record[name] is None
        assert line[name] == ""


def test_the_table_has_paraphrases_beside_what_has_them(study):
    table = group_table(study)
    rows, place = table.cells(), table.labels.index("paraphrases")
    assert rows[0][0] == "all"
    assert rows[0][place].endswith(", 1.00")
    assert rows[-1][place] == ""


def test_figures_hold_the_studys_numbers(study):
    figures = {name: figure.panels[0].marks for name, figure in collapse_figures(study).items()}
    assert list(figures) == ["divergence-by-prior", "divergence-by-persona", "divergence-by-placement"]
    by_prior = {mark.name: mark for mark in figures["divergence-by-prior"][::-1]}
    points = [mark for name, mark in by_prior.items() if name.startswith(("apart", "collapse ("))]
    assert sum(len(mark.x) for mark in points) == 120
    line = by_prior["personas choose alike below (|b| = |D|/2)"]
    assert abs(line.y[1]) == pytest.approx(2 * line.x[1])
    heat = figures["divergence-by-persona"][0]
    assert np.array(heat.values).shape == (len(heat.rows), len(heat.columns))
    assert len(heat.columns) == len(study.questions)
    cell = [row.measure for row in study.pairs if row.measure.item.question == heat.columns[0]]
    first = cell[0].item.pair.persona_a
    mean = np.mean([m.divergence for m in cell if first in (m.item.pair.persona_a, m.item.pair.persona_b)])
    assert heat.values[heat.rows.index(first)][0] == pytest.approx(mean)
    assert sum(len(spread.values) for spread in figures["divergence-by-placement"]) == 120


def test_pairs_in_both_placements_are_drawn_against_each_other(study):
    first = study.pairs[0]
    item = first.measure.item
    late = dataclasses.replace(item, axes={**item.axes, "placement": "late"})
    turned = dataclasses.replace(first, measure=dataclasses.replace(first.measure, item=late, divergence=1.0))
    both = dataclasses.replace(study, pairs=(first, turned))
    points = divergence_by_placement(both).panels[0].marks[0]
    assert (list(points.x), list(points.y)) == ([first.measure.divergence], [1.0])


def test_the_page_is_one_file_that_needs_no_network(study, tmp_path):
    write_collapse(study, tmp_path)
    page = (tmp_path / "collapse.html").read_text()
    assert page.count("Plotly.newPlot(") >= 3
    assert 'src="http' not in page
    assert "<title>Persona collapse:" in page


def uneven(tmp_path):
    """Pairs whose personas have unlike numbers of tokens, and a neutral prompt of their own."""
    rows = [json.loads(line) for line in (DATASETS / "pairs_test.jsonl").read_text().splitlines()[:4]]
    for row in rows:
        row["neutral"] = row["corrupt"]
        head, _, tail = row["corrupt"].partition("\n")
        row["corrupt"] = f"{head}\n{head}\n{tail}"
    path = tmp_path / "uneven.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_items(path)


def test_prompts_of_unequal_length_are_asked_where_right_is_said(world, tmp_path):
    found = uneven(tmp_path)
    with pytest.raises(TaskError, match="tokens"):
        study_collapse(world, found, options=QUICK)
    study = study_collapse(world, found, options=dataclasses.replace(QUICK, align="right"))
    for row in study.pairs:
        pair, measure = row.measure.item.pair, row.measure
        for prompt, given in ((pair.clean, measure.log_probs_a), (pair.corrupt, measure.log_probs_b)):
            tokens = torch.tensor([world.tokenizer(prompt)["input_ids"]])
            own = world.bridge.original_model(tokens).logits[0, -1].double().log_softmax(-1)
            ids = [world.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in measure.item.candidates]
            assert given == pytest.approx(own[ids].tolist(), abs=1e-4)
        assert measure.neutral.n == 1
        assert measure.neutral.margin == pytest.approx(_margin_of(world, pair, pair.neutral), abs=1e-4)


def _margin_of(world, pair, prompt):
    logits = world.bridge.original_model(torch.tensor([world.tokenizer(prompt)["input_ids"]])).logits[0, -1]
    sides = [
        logits[[world.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts]].mean()
        for texts in (pair.answers, pair.wrong_answers)
    ]
    return (sides[0] - sides[1]).item()


def test_sigma_0_has_an_interval_and_a_number_that_a_stray_paraphrase_does_not_move(study):
    d = np.array([row.measure.divergence for row in study.control_pairs if row.measure.item.control == "paraphrase"])
    around = study.sigma_0_interval
    assert study.sigma_0 == pytest.approx(around.value) == pytest.approx(np.sqrt(np.mean(d**2)))
    assert around.low < study.sigma_0 < around.high
    assert study.sigma_0_median == pytest.approx(np.median(np.abs(d)) / stats.norm.ppf(0.75))
