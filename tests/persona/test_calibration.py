"""Calibrated verdicts: rates by simulation, planted causes with and without a persona, files that are read again."""

import dataclasses
import json

import numpy as np
import pytest
from test_explain import PLANTED, call, lines, rows_of
from test_wordings import measure

from persona_circuits.circuit.errors import FileError, OptionError
from persona_circuits.models.planted import OPTIONS, write_planted
from persona_circuits.models.planted.vocabulary import PERSONAS
from persona_circuits.persona.data import load_items
from persona_circuits.persona.explanation import (
    CLAIMS,
    Calibration,
    Explained,
    ExplainOptions,
    Numbers,
    Verdict,
    cuts_of,
    explain,
    load_calibration,
    rates_of,
    write_calibration,
)
from persona_circuits.persona.explanation.calibration import Cut, calibrated, cluster_of, half_of, withheld_of
from persona_circuits.persona.explanation.causal import Outcome
from persona_circuits.persona.explanation.inside import Inside
from persona_circuits.persona.explanation.verdicts import Null

QUICK = {"n_resamples": 50, "by": ("pair",)}


BASE = measure(np.eye(3)[:2])
SEEN = Inside((0, 0), 1, {}, (), 0.0, (), 0.0, 0.0, 0.0, None)


def explained(strength, who, *, name="bottleneck", agrees=True, control="paraphrase", number=0):
    x = float(strength)
    numbers = Numbers(x, 1.0, 1.0, True, x, x, 0.0, None, 0.0, 1.0, None, x, 0.0)
    pair = dataclasses.replace(BASE.item.pair, id=f"{who}/{number}", persona_a=who, persona_b=who)
    item = dataclasses.replace(BASE.item, pair=pair, axes={"control": control})
    one = dataclasses.replace(BASE, item=item)
    return Explained({}, one, SEEN, numbers, 1.0, Verdict(name, ""), Outcome("steering", agrees, {}), None)


def controls(rng, n, heavy=False):
    """Persona pairs of one row, and of four rows, whose strengths share half of their variance."""
    draw = rng.standard_cauchy if heavy else rng.normal
    own = [(float(draw()), rows) for rows in (1, 4) for _ in range(n)]
    tag = rng.integers(1 << 60)
    return [explained(abs(a + draw()), f"p{tag}/{i}", number=j) for i, (a, rows) in enumerate(own) for j in range(rows)]


def calibration(cuts, **more):
    return Calibration("model", "limits", False, True, Null(), cuts, ("paraphrase: p",), **more)


@pytest.mark.parametrize("heavy", [False, True])
def test_fresh_controls_have_a_verdict_no_more_often_than_promised_and_not_never(heavy):
    """Over 60 calibrations: new persona pairs, whose rows are alike, are given the verdict in at most 5 %."""
    rng, shares = np.random.default_rng(0), []
    for _ in range(60):
        made = calibration(cuts_of(controls(rng, 15, heavy=heavy)))
        fresh = [calibrated(one, made) for one in controls(rng, 15, heavy=heavy)]
        (rate,) = [one for one in rates_of(fresh) if one.verdict == "bottleneck" and one.kind == "all"]
        shares.append(rate.share)
        assert made.cuts["bottleneck"].promise <= 0.05
    assert 0.01 < np.mean(shares) <= 0.05 + 2 * np.std(shares) / 60**0.5


def test_without_calibration_the_same_controls_have_it_always():
    rates = {one.verdict: one.share for one in rates_of(controls(np.random.default_rng(1), 10)) if one.kind == "all"}
    assert rates["bottleneck"] == 1.0
    assert set(rates) == set(CLAIMS)


def test_with_few_persona_pairs_nothing_is_promised_whatever_their_rows():
    few = cuts_of([explained(0.1, f"p{i}", number=j) for i in range(18) for j in range(20)])
    assert all(cut.least is None and cut.promise == pytest.approx(1 / 19) for cut in few.values())
    enough = cuts_of([explained(0.1, f"p{i}") for i in range(19)])
    assert enough["bottleneck"].least == np.nextafter(0.1, 1)
    assert enough["bottleneck"].promise == pytest.approx(0.05)
    assert enough["cancellation"].least == 0.0  # no control has it, so none needs a threshold
    made = calibration(few)
    assert not made.gives("bottleneck")
    given = calibrated(explained(9.0, "new"), made)
    assert given.verdict.name == "undecided"
    assert "not given on this model" in given.verdict.why


def test_every_kind_keeps_the_level_by_itself():
    """One kind that always has the verdict is not hidden among a hundred that never do."""
    many = [explained(0.0, f"p{i}", name="undecided") for i in range(100)]
    odd = [explained(5.0, f"s{i}", control="same-side") for i in range(4)]
    cut = cuts_of([*many, *odd])["bottleneck"]
    assert cut.least == np.nextafter(5.0, 6)
    assert withheld_of(rates_of(odd)) == ("bottleneck",)
    assert withheld_of(rates_of(many)) == ()


def test_a_verdict_needs_its_own_test_and_strength_and_other_verdicts_stay():
    made = calibration({name: Cut(1.0, 0.0, 0.04, 30, 30) for name in CLAIMS})
    assert calibrated(explained(2.0, "a"), made).verdict.name == "bottleneck"
    assert calibrated(explained(0.9, "a"), made).verdict.name == "undecided"
    assert "causal test" in calibrated(explained(2.0, "a", agrees=False), made).verdict.why
    assert calibrated(explained(0.0, "a", name="not a preference"), made).verdict.name == "not a preference"
    withheld = dataclasses.replace(made, withheld=("bottleneck",))
    assert calibrated(explained(2.0, "a"), withheld).verdict.name == "undecided"


def test_rates_are_by_persona_pair_with_exact_limits():
    rows = [explained(1.0, "a", number=i, name="bottleneck" if i == 0 else "undecided") for i in range(4)]
    rows += [explained(1.0, who) for who in "bcd"]
    (rate,) = [one for one in rates_of(rows) if one.verdict == "bottleneck" and one.kind == "all"]
    assert (rate.pairs, rate.n, rate.clusters) == (4, 7, 4)
    assert rate.share == pytest.approx((0.25 + 3) / 4)
    assert rate.lower == pytest.approx(0.2486, abs=1e-4)  # 3 of 4
    assert rate.upper == 1.0  # 3.25 counts as 4 of 4
    none = [explained(1.0, who, name="undecided") for who in "abcdefghij"]
    assert rates_of(none)[0].upper == pytest.approx(1 - 0.05**0.1)


def test_a_calibration_comes_back_from_its_file_as_it_was(tmp_path):
    cuts = cuts_of(controls(np.random.default_rng(2), 20))
    held = rates_of(controls(np.random.default_rng(3), 3))
    made = calibration(cuts, held_out=held, withheld=("reversed",))
    write_calibration(made, tmp_path / "c.json")
    again = load_calibration(tmp_path / "c.json")
    assert dataclasses.replace(again, source="", sha256="") == made
    record = json.loads((tmp_path / "c.json").read_text())
    record["cuts"].pop("reversed")
    (tmp_path / "c.json").write_text(json.dumps(record | {"null": {"n": -1}, "average": 1}))
    with pytest.raises(FileError) as caught:
        load_calibration(tmp_path / "c.json")
    assert all(word in str(caught.value) for word in ("3 fault", "'average'", "'null'", "'reversed'"))


# Models with planted causes. Controls are prompts of one persona that differ in a word without a meaning to the model

NULL = "listen . today i am {persona} , as you {word} . which gift do you want ? i want the"
WORDS = ("want", "would", "robin", "name", "please")


def files(tmp_path, name):
    """A planted model's pairs, and 40 controls, each of a persona pair of its own."""
    people = [word for words in PERSONAS for word in words]
    quiet = [
        {"clean": NULL.format(persona=person, word="see"), "corrupt": NULL.format(persona=person, word=word)}
        | {"answers": OPTIONS[:1], "wrong_answers": OPTIONS[1:2], "candidates": OPTIONS, "control": kind}
        | {"persona_a": f"{person} {word}", "persona_b": f"{person} {word}", "question": "which gift"}
        for kind, words in (("paraphrase", WORDS[:3]), ("irrelevant", WORDS[3:]))
        for person in people
        for word in words
    ]
    study = lines(tmp_path / "pairs.jsonl", rows_of(PLANTED[name].pairs))
    return study, lines(tmp_path / "controls.jsonl", quiet)


@pytest.mark.parametrize("name", ["copy", "prior"])
def test_planted_causes_are_given_where_controls_do_not_have_them(name, tmp_path):
    study, quiet = map(load_items, files(tmp_path, name))
    model = PLANTED[name].model()
    found = explain(model, study, controls=quiet, calibration="new", options=ExplainOptions(**QUICK))
    assert {row.verdict.name for row in found.pairs} == {PLANTED[name].cause}
    rates = {rate.verdict: rate for rate in found.rates if rate.kind == "all"}
    assert rates[PLANTED[name].cause].pairs == 0
    assert all(rates[verdict].share <= 0.05 for verdict in CLAIMS if found.calibration.gives(verdict))
    write_calibration(found.calibration, tmp_path / "c.json")
    again = explain(model, study, calibration=load_calibration(tmp_path / "c.json"), options=ExplainOptions(**QUICK))
    assert [row.verdict.name for row in again.pairs] == [row.verdict.name for row in found.pairs]
    assert again.rates == found.rates


def test_what_a_calibration_was_made_of_must_fit(tmp_path):
    study, quiet = map(load_items, files(tmp_path, "copy"))
    model = PLANTED["copy"].model()
    options = ExplainOptions(causal=False, **QUICK)
    with pytest.raises(OptionError, match="there are none; give them with --null"):
        explain(model, study, calibration="new", options=options)
    made = explain(model, study, controls=quiet, calibration="new", options=options).calibration
    with pytest.raises(OptionError, match="another --causal"):
        explain(model, study, calibration=made, options=ExplainOptions(**QUICK))
    with pytest.raises(OptionError, match="another model"):
        explain(PLANTED["prior"].model(), study, calibration=made, options=options)


def test_halves_share_no_persona_pair_and_have_half_of_every_kind():
    items = [explained(0, f"p{i}", number=j).item for i in range(20) for j in range(3)]
    items += [explained(0, f"s{i}", control="same-side").item for i in range(10)]
    half = half_of(items, seed=1)
    assert sum(name.startswith("paraphrase") for name in half) == 10
    assert sum(name.startswith("same-side") for name in half) == 5
    assert half != half_of(items, seed=2)
    assert {cluster_of(item) in half for item in items if item.pair.persona_a == "p3"} in ({True}, {False})


def test_averaged_rows_have_one_verdict_and_a_test_on_all_of_them(tmp_path):
    study = load_items(lines(tmp_path / "pairs.jsonl", rows_of(PLANTED["prior"].pairs, question="q")))
    how = {**QUICK, "by": ("question",)}
    found = explain(PLANTED["prior"].model(), study, options=ExplainOptions(average=True, **how))
    assert len(study.items) == 12
    assert len(found.pairs) == len({item.pair.answers + item.personas for item in study.items}) < 12
    assert {row.verdict.name for row in found.pairs} == {"prior dominance"}
    assert all(row.outcome.agrees for row in found.pairs)
    single = explain(PLANTED["prior"].model(), study, options=ExplainOptions(**how)).pairs
    for row in found.pairs:
        own = [one for one in single if one.item.personas == row.item.personas]
        assert f"agrees on {len(own)} of {len(own)} rows" in row.outcome.why or len(own) == 1
        for name in ("divergence", "signal_answer", "alignment", "mass"):
            wanted = np.mean([getattr(one.numbers, name) for one in own])
            tolerance = {"signal_answer": 0.2}.get(name, 1e-5)  # a maximum over layers
            assert getattr(row.numbers, name) == pytest.approx(wanted, rel=tolerance)


def test_the_command_sets_and_reads_a_calibration(tmp_path):
    study, quiet = files(tmp_path, "copy")
    write_planted(PLANTED["copy"], tmp_path / "copy")
    given = ["--model", tmp_path / "copy", "--pairs", study, "--calibration", tmp_path / "c.json", "--no-causal"]
    given += ["--out", tmp_path / "out"]
    refused = call("explain", *given)
    assert refused.exit_code == 2
    assert "give them with --null" in refused.stderr
    assert not (tmp_path / "c.json").exists()
    for said in ("set on half of the controls", "calibration "):
        done = call("explain", *given, "--null", quiet)
        assert done.exit_code == 0, done.output
        assert "how often controls that it was not set on" in done.output
        assert said in done.output
    assert "set on half" not in done.output
    assert load_calibration(tmp_path / "c.json").cuts["no collapse"].clusters == 20
    assert (tmp_path / "out" / "rates.csv").is_file()
