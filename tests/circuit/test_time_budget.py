"""What is left out where time is short: by arithmetic, with a clock of the test's own, and on a tiny model."""

import re
import sys
from functools import partial

import pytest
from conftest import DATA
from typer.testing import CliRunner

from persona_circuits import cli
from persona_circuits.circuit.assessment import EvaluationOptions, evaluate_circuit, evaluating
from persona_circuits.circuit.assessment import budget as module
from persona_circuits.circuit.assessment.budget import SAFE, Clock, Workload, pace_of, plan, spread_over
from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import seconds_of
from persona_circuits.circuit.progress import untold

WORK = Workload(100, 10, tests=150, search=2000)


def test_all_of_it_where_there_is_time():
    found = plan(WORK, seconds=1e6, pace=0.1)
    assert (found.n_pairs, found.n_random, found.tested, found.searched) == (100, 10, True, True)
    assert found.left_out == ()


def test_the_plan_fits_and_grows_with_the_time():
    before = None
    for seconds in (1.0, 5.0, 20.0, 60.0, 120.0, 600.0, 3600.0, 36000.0):
        found = plan(WORK, seconds, 0.1)
        least = found.n_pairs == module.FEW and not found.n_random
        assert least or 0.1 * found.passes(WORK) <= SAFE * seconds
        if before is not None:
            assert found.passes(WORK) >= before.passes(WORK)
        before = found
    assert before.left_out == ()


TESTS, SEARCH = "tests beyond faithfulness", "the search repeated on resampled pairs"


@pytest.mark.parametrize(
    ("seconds", "left_out"),
    [
        (1.0, ("96 of 100 pairs", "10 of 10 random circuits", TESTS, SEARCH)),
        (60.0, ("78 of 100 pairs", TESTS, SEARCH)),
        (600.0, ("79 of 100 pairs", SEARCH)),
    ],
)
def test_what_tells_most_comes_first_and_the_rest_is_named(seconds, left_out):
    assert plan(WORK, seconds, 0.1).left_out == left_out


def test_a_pace_is_seconds_by_passes():
    times = iter([10.0, 16.0])
    assert pace_of(lambda: None, 12, clock=lambda: next(times)) == 0.5


def test_pairs_are_drawn_and_always_the_same(tiny_task):
    few = spread_over(tiny_task, 3)
    assert few.pairs == spread_over(tiny_task, 3).pairs
    assert [pair for pair in tiny_task.pairs if pair in few.pairs] == list(few.pairs)
    assert len(few.pairs) == 3
    assert spread_over(tiny_task, 8) is tiny_task


def test_curves_say_beforehand_how_long_they_take(tiny, tiny_task, monkeypatch):
    """By the passes that they make, with a pass of a second: two of the scores' plain runs are counted in full."""
    from persona_circuits.circuit.assessment import CurveOptions, curve_study, curves
    from persona_circuits.circuit.cost import runs_of_scores

    monkeypatch.setattr(curves, "seconds_a_pass", lambda *_: 1.0)
    names = []
    options = CurveOptions(scorers=("eap", "random"), n_random=2)
    curve_study(tiny, tiny_task, options, stage=lambda name: (names.append(name), untold)[1])
    scored = 32 * runs_of_scores(tiny.architecture(), 8, "eap", steps=5)
    circuits = (2 + 2) * 10 * 16 * 1.8
    said = re.search(r"all of it, about ([\d.]+) min", names[0])
    assert float(said[1]) == pytest.approx((scored + circuits) / 60, rel=0.05)
    assert not any("about" in name for name in names[1:])


def test_evaluate_says_beforehand_how_long_all_tests_take(tiny, tiny_task, found, monkeypatch):
    monkeypatch.setattr(evaluating, "pace_of", lambda measure, _passes: (measure(), 0.01)[1])
    names = []
    options = EvaluationOptions(quick=True, n_random=0)
    evaluate_circuit(tiny, found, tiny_task, options, stage=lambda name: (names.append(name), untold)[1])
    assert [name for name in names if "all tests, about 12 s" in name] == names[1:2]


@pytest.mark.parametrize(("text", "seconds"), [("2m", 120), ("90s", 90), ("1.5h", 5400), (" 7 ", 7), ("3 min", 180)])
def test_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-3", "0", "2 days", "1e3"])
def test_no_times(text):
    with pytest.raises(OptionError, match="is no time; write one such as 2m"):
        seconds_of(text)


@pytest.fixture(scope="module")
def found(tiny, tiny_task):
    return discover(tiny, tiny_task, Options(threshold=0.003, n_random=0, steps=2))


class Time:
    """A clock of the test's own."""

    now = 0.0

    def __call__(self):
        return self.now


def test_a_clock_ends_what_the_next_step_would_take_beyond_the_end():
    now = Time()
    clock = Clock(10.0, now)

    def steps(*seconds):
        for one in clock.over(seconds):
            now.now += one
        return "done"

    assert clock.within("first", lambda: steps(1.0, 1.0)) == "done"
    assert clock.within("too long", lambda: steps(1.0), seconds=9.0) is None
    assert now.now == 2.0
    assert clock.within("slower than thought", lambda: steps(1.0, 3.0, 3.0, 3.0)) is None
    assert now.now == 9.0  # 2 + 1 + 3 + 3: another step of 3 would end at 12
    assert clock.within("short", lambda: steps(0.5)) == "done"
    now.now = 10.5
    assert clock.within("too late", lambda: steps(0.0)) is None
    assert clock.left_out == ["too long", "slower than thought", "too late"]


def test_reports_of_progress_are_steps_and_an_endless_clock_ends_nothing():
    now, told = Time(), []

    def work(progress):
        for i in range(1, 7):
            now.now += 4.0
            progress(i, 6)
        return "done"

    def stage(name):
        return lambda done, total: told.append((name, done, total))

    for clock, most in ((Clock(10.0, now), 2), (Clock(None, now), 6)):
        told.clear()
        progress = clock.watched(stage)("scores")
        assert (clock.within("scores", partial(work, progress)) == "done") is (most == 6)
        assert told == [("scores", done, 6) for done in range(1, most + 1)]


def test_a_machine_that_gets_slower_keeps_the_time_all_the_same(tiny, tiny_task, found, monkeypatch):
    """What is planned by a fast pass is ended where passes get slow: tests one by one, and more pairs."""
    now = Time()

    class Slow(Clock):
        def __init__(self, seconds):
            super().__init__(seconds, now)

        def step(self):
            now.now += 3.0
            super().step()

    monkeypatch.setattr(evaluating, "Clock", Slow)
    monkeypatch.setattr(evaluating, "pace_of", lambda measure, _passes: (measure(), 1e-9)[1])
    done = evaluate_circuit(tiny, found, tiny_task, EvaluationOptions(budget=30.0, n_random=3))
    assert now.now <= 30.0
    assert done.report.n_pairs == 8
    assert done.results.pairs is None
    assert done.results.searched.reason == "left out by --budget"
    assert "pair by pair" in done.notes[-1]
    assert "pairs" not in done.as_dict()
    assert done._repr_html_()


@pytest.mark.parametrize(("pace", "n", "tested"), [(1e-9, 8, True), (200.0, 6, False)])
def test_evaluate_does_what_fits_and_says_the_rest(tiny, tiny_task, found, monkeypatch, pace, n, tested):
    monkeypatch.setattr(evaluating, "pace_of", lambda measure, _passes: (measure(), pace)[1])
    done = evaluate_circuit(tiny, found, tiny_task, EvaluationOptions(budget=2e4, n_random=3))
    assert done.report.n_pairs == n
    assert (done.results is not None) is tested
    said = [note for note in done.notes if note.startswith("left out by --budget: ")]
    assert bool(said) is not tested
    if said:
        assert "2 of 8 pairs" in said[0]
        assert "tests beyond faithfulness" in said[0]


def test_quick_tests_take_no_more_passes_than_are_planned_for(tiny, tiny_task, found, monkeypatch):
    from persona_circuits.circuit.forward import patched

    passes = []
    plain = patched.patched_logits
    for name, one in list(sys.modules.items()):
        if name.startswith("persona_circuits.") and getattr(one, "patched_logits", None) is plain:
            monkeypatch.setattr(one, "patched_logits", lambda *a, **k: _counted(passes, plain, a, k))
    evaluate_circuit(tiny, found, tiny_task, EvaluationOptions(quick=True, n_random=0, metric="logit-diff"))
    assert 20 * len(tiny_task) < sum(passes) <= evaluating.QUICK_PASSES * len(tiny_task)


def _counted(passes, plain, given, how):
    found = plain(*given, **how)
    passes.append(found.shape[0] * found.shape[1])
    return found


def test_both_commands_take_it(tmp_path):
    def call(*arguments):
        done = CliRunner().invoke(cli.app, [str(one) for one in arguments])
        assert done.exit_code == 0, done.output
        return done

    run = ["--model", DATA / "tiny-gpt2", "--pairs", DATA / "tiny_pairs.json", "--n-random", "0", "--steps", "2"]
    for name in "ab":
        call("discover", *run, "--threshold", "0.05", "--out", tmp_path / name)
    done = call("evaluate", tmp_path / "a", "--budget", "0.01s", "--no-save")
    assert "left out by --budget: 6 of 8 pairs" in done.stderr
    assert "hypothesis" not in done.stdout
    done = call("compare", tmp_path / "a", tmp_path / "b", "--budget", "0.01s")
    assert "left out by --budget: 198 of 200 draws of chance" in done.stdout
    assert "left out by --budget, on A's pairs: all of it" in done.stdout
