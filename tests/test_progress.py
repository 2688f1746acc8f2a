"""Progress as a user sees it: a line a minute in a log, by a clock of the test's own; bars on a terminal."""

import io

import pytest

from persona_circuits.commands import progress
from persona_circuits.commands.progress import MinuteLines


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def log():
    clock, said = Clock(), []
    return clock, said, MinuteLines(clock, said.append)


def test_a_line_a_minute_says_how_far_it_is_and_what_is_left(log):
    clock, said, lines = log
    tell = lines.stage("eap-ig scores")
    for done in range(1, 13):
        clock.now += 20.0
        tell(done, 40)
    assert said == [
        "eap-ig scores: 3 of 40, 60 s so far, about 12.3 min left",
        "eap-ig scores: 6 of 40, 2 min so far, about 11.3 min left",
        "eap-ig scores: 9 of 40, 3 min so far, about 10.3 min left",
        "eap-ig scores: 12 of 40, 4 min so far, about 9.33 min left",
    ]


def test_a_stage_that_reports_nothing_is_said_to_be_at_work(log):
    clock, said, lines = log
    lines.beat()
    lines.stage("loading a model")
    clock.now = 59.0
    lines.beat()
    assert not said
    clock.now = 61.0
    lines.beat()
    lines.beat()
    assert said == ["loading a model: 61 s so far"]
    lines.stage("scores")
    clock.now = 100.0
    lines.beat()
    clock.now = 130.0
    lines.beat()
    assert said[1:] == ["scores: 69 s so far"]


def test_the_heart_beats_by_itself(monkeypatch, capsys):
    """Without a report of the work: the clock leaps, and a line is there."""
    import threading

    told = threading.Event()
    monkeypatch.setattr("persona_circuits.commands.terminal.say", lambda text, err: (print(text), told.set()))
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    with progress.progress_bars() as stage:
        stage("loading\x1b a model")
        clock.now = 61.0
        assert told.wait(20)
    assert capsys.readouterr().out == "loading\\u001b a model: 61 s so far\n"


def test_a_terminal_has_bars_with_what_is_left(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "200")
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    with progress.progress_bars() as stage:
        tell = stage("scores")
        clock.now = 30.0
        tell(1, 4)
    assert "scores" in screen.getvalue()
    assert "about 90 s left" in screen.getvalue()


def test_of_several_processes_one_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with progress.progress_bars() as stage:
        stage("scores")(1, 4)
    assert capsys.readouterr().err == ""
