"""The endpoint client against a real HTTP server on loopback: it answers, delays, errs, and cuts connections."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from conftest import ROOT
from tests_loopback import KEY, serving

from persona_circuits.circuit.errors import FileError, OptionError
from persona_circuits.circuit.storage import DamagedState
from persona_circuits.persona.responses import Chat, EndpointError, Journal, ask, endpoint
from persona_circuits.persona.responses.options import EndpointOptions


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with serving() as state:
        yield state


def place(server, **options):
    return endpoint("toy", EndpointOptions(base_url=server.url, api_key=options.pop("key", KEY), **options))


def chats(n, **options):
    return [Chat((("system", "You are kind."), ("user", f"question {i}")), 20, **options) for i in range(n)]


def test_answers_come_in_the_order_of_the_requests_and_are_kept(server, tmp_path):
    server.plan = lambda text, turn: 0.02 * (9 - int(text.split()[-1]))  # the first are the slowest
    seen = []
    with Journal(tmp_path / "j.jsonl") as journal:
        found = ask(place(server), chats(10), journal, progress=lambda done, total: seen.append((done, total)))
    assert [answer.text for answer in found.answers] == [f"echo: question {i}" for i in range(10)]
    assert {answer.model for answer in found.answers} == {"toy-served"}
    assert (found.asked, found.remembered, dict(found.failures)) == (10, 0, {})
    assert seen == [(i, 10) for i in range(1, 11)]
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 10


def test_a_second_run_asks_nothing_twice(server, tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        first = ask(place(server), chats(5), journal)
    with Journal(tmp_path / "j.jsonl") as journal:
        second = ask(place(server), chats(8), journal)
    assert second.answers[:5] == first.answers
    assert (second.asked, second.remembered) == (3, 5)
    assert sorted(server.seen) == sorted(f"question {i}" for i in range(8))


def test_equal_requests_are_asked_once_but_samples_apart(server, tmp_path):
    same = chats(1) * 3
    with Journal(tmp_path / "j.jsonl") as journal:
        found = ask(place(server), [*same, *chats(1, sample=1)], journal)
    assert [answer.text for answer in found.answers] == ["echo: question 0"] * 4
    assert len(server.seen) == 2


@pytest.mark.parametrize("option", [{"temperature": 0.5}, {"seed": 3}, {"top_p": 0.9}, {"stop": ("x",)}])
def test_what_is_asked_is_part_of_the_key(server, option):
    plain, other = chats(1)[0], chats(1, **option)[0]
    assert plain.digest(place(server)) != other.digest(place(server))
    assert plain.digest(place(server)) != plain.digest(endpoint("other", EndpointOptions(base_url=server.url)))
    assert plain.digest(place(server)) == plain.digest(place(server, key="another", concurrency=2))


def test_what_is_sent(server, tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        ask(place(server), chats(1, temperature=None, seed=7, stop=("\n",)), journal)
        ask(place(server, limit_field="max_completion_tokens"), chats(1, top_p=0.5), journal)
    messages = [{"role": "system", "content": "You are kind."}, {"role": "user", "content": "question 0"}]
    assert server.bodies[0] == {"messages": messages, "model": "toy", "max_tokens": 20, "seed": 7, "stop": ["\n"]}
    last = {"max_completion_tokens": 20, "temperature": 1.0, "top_p": 0.5}
    assert server.bodies[1] == {"messages": messages, "model": "toy", **last}
    assert server.keys[0] == f"Bearer {KEY}"


def test_concurrency_is_bounded_and_used(server, tmp_path):
    server.plan = lambda text, turn: 0.05
    with Journal(tmp_path / "j.jsonl") as journal:
        ask(place(server, concurrency=3), chats(12), journal)
    assert server.most_busy == 3


@pytest.mark.parametrize("fault", [429, 500, 503])
def test_a_passing_error_is_tried_again(server, tmp_path, fault):
    server.plan = lambda text, turn: fault if turn <= 2 else None
    with Journal(tmp_path / "j.jsonl") as journal:
        found = ask(place(server, max_retries=2), chats(2), journal)
    assert [answer.text for answer in found.answers] == ["echo: question 0", "echo: question 1"]
    assert len(server.seen) == 6


@pytest.mark.parametrize("fault", ["cut", "half"])
def test_a_cut_connection_is_tried_again(server, tmp_path, fault):
    server.plan = lambda text, turn: fault if turn == 1 else None
    with Journal(tmp_path / "j.jsonl") as journal:
        found = ask(place(server, max_retries=1), chats(1), journal)
    assert found.answers[0].text == "echo: question 0"
    assert len(server.seen) == 2


def test_a_late_answer_is_tried_again(server, tmp_path):
    server.plan = lambda text, turn: 1.0 if turn == 1 else None
    with Journal(tmp_path / "j.jsonl") as journal:
        found = ask(place(server, max_retries=1, timeout=0.2), chats(1), journal)
    assert found.answers[0].text == "echo: question 0"


@pytest.mark.parametrize(("fault", "says"), [(503, "status 503"), ("cut", r"no answer after 2 tries")])
def test_an_error_that_stays_ends_the_run_and_keeps_what_there_is(server, tmp_path, fault, says):
    server.plan = lambda text, turn: fault if text == "question 3" else None
    with Journal(tmp_path / "j.jsonl") as journal, pytest.raises(EndpointError, match=says) as caught:
        ask(place(server, max_retries=1, concurrency=1), chats(6), journal)
    assert "3 answers are kept" in str(caught.value)
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 3
    server.plan = lambda text, turn: None
    with Journal(tmp_path / "j.jsonl") as journal:
        assert ask(place(server), chats(6), journal).asked == 3
    assert server.seen.count("question 0") == 1


def test_nobody_there(tmp_path):
    gone = endpoint("toy", EndpointOptions(base_url="http://127.0.0.1:9/v1", max_retries=0))
    with Journal(tmp_path / "j.jsonl") as journal, pytest.raises(EndpointError, match="no answer after 1 tries"):
        ask(gone, chats(1), journal)


@pytest.mark.parametrize(("status", "says"), [(401, "OPENAI_API_KEY"), (403, "allowed"), (404, "/v1")])
def test_a_refusal_ends_the_run_at_once(server, tmp_path, status, says):
    server.plan = lambda text, turn: status
    with Journal(tmp_path / "j.jsonl") as journal, pytest.raises(EndpointError, match=says):
        ask(place(server, concurrency=2), chats(40), journal)
    assert len(server.seen) <= 4


def test_a_request_that_fails_alone_is_counted_and_asked_again_another_time(server, tmp_path):
    faults = {"question 1": 400, "question 2": "html", "question 3": "empty"}
    server.plan = lambda text, turn: faults.get(text)
    with Journal(tmp_path / "j.jsonl") as journal:
        found = ask(place(server), chats(6), journal)
    assert [answer is None for answer in found.answers] == [False, True, True, True, False, False]
    assert sum(found.failures.values()) == 3
    assert any(reason.startswith("status 400") for reason in found.failures)
    server.plan = lambda text, turn: None
    with Journal(tmp_path / "j.jsonl") as journal:
        assert ask(place(server), chats(6), journal).asked == 3


def test_a_server_that_only_fails_is_left_alone(server, tmp_path):
    server.plan = lambda text, turn: "html"
    with Journal(tmp_path / "j.jsonl") as journal, pytest.raises(EndpointError, match=r"first \d+ requests all failed"):
        ask(place(server, concurrency=4), chats(200), journal)
    assert len(server.seen) < 30


def test_an_answer_without_text_is_an_empty_answer(server, tmp_path):
    server.plan = lambda text, turn: "null"
    with Journal(tmp_path / "j.jsonl") as journal:
        assert ask(place(server), chats(1), journal).answers[0].text == ""


def test_the_key_is_nowhere(server, tmp_path, caplog, capfd):
    """Not in files, logs, messages or the repr, though the server sends it back in answers and in errors."""
    caplog.set_level(logging.DEBUG)
    faults = {"question 0": "leak", "question 1": 400, "question 2": None}
    server.plan = lambda text, turn: faults.get(text, 401)
    messages = []
    with Journal(tmp_path / "j.jsonl") as journal:
        found = ask(place(server), chats(3), journal)
        messages += [*found.failures, *(answer.text for answer in found.answers if answer)]
        with pytest.raises(EndpointError) as caught:
            ask(place(server, concurrency=1), chats(5), journal)
        shown = caught.value
        while shown is not None:
            messages += [str(shown), repr(shown)]
            shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)
    messages += [repr(place(server)), (tmp_path / "j.jsonl").read_text(), caplog.text, *capfd.readouterr()]
    assert server.keys[0].endswith(KEY)  # it was in use
    assert caplog.records  # and something was logged
    assert sum("[key]" in text for text in messages) >= 3  # the places where it would have been
    assert not [text for text in messages if KEY in text]


@pytest.mark.parametrize("key", ["sk-a\nsk-b", "sk a", "sk-ä", "sk-\x00"])
def test_a_key_that_no_header_may_hold_is_refused_without_being_shown(key):
    with pytest.raises(OptionError) as caught:
        endpoint("toy", EndpointOptions(base_url="http://localhost/v1", api_key=key))
    assert "sk" not in str(caught.value)


def test_key_and_address_come_from_the_environment_and_options_go_first():
    env = {"OPENAI_API_KEY": "from-env\n", "OPENAI_BASE_URL": "http://env.example/v1"}
    assert endpoint("toy", environment=env).key == "from-env"
    assert endpoint("toy", environment=env).base_url == "http://env.example/v1"
    given = endpoint("toy", EndpointOptions(base_url="http://given.example/v1", api_key="given"), environment=env)
    assert (given.key, given.base_url) == ("given", "http://given.example/v1")
    with pytest.raises(EndpointError, match="OPENAI_API_KEY"):
        endpoint("toy", environment={})
    assert endpoint("toy", EndpointOptions(base_url="http://localhost:8000/v1"), environment={}).key == ""


def test_what_an_address_holds_beside_the_address_is_not_shown():
    made = endpoint("toy", EndpointOptions(base_url="http://me:pw@host.example:80/v1/?api_key=abc", api_key="k"))
    assert made.address == "http://host.example:80/v1"
    assert (
        endpoint("toy", EndpointOptions(base_url="http://[::1]:8000/v1", api_key="k")).address == "http://[::1]:8000/v1"
    )


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1"])
def test_an_address_that_is_none(url):
    with pytest.raises(OptionError, match="http address"):
        endpoint("toy", EndpointOptions(base_url=url, api_key="k"))


@pytest.mark.parametrize(
    ("option", "says"),
    [({"concurrency": 0}, "concurrency"), ({"max_retries": -1}, "max-retries"), ({"timeout": 0.0}, "timeout"),
     ({"limit_field": "tokens"}, "max_completion_tokens")],
)  # fmt: skip
def test_options_out_of_range(option, says):
    with pytest.raises(OptionError, match=says):
        endpoint("toy", EndpointOptions(base_url="http://localhost/v1", api_key="k", **option))


def test_without_the_client_the_message_says_how_to_get_it(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with Journal(tmp_path / "j.jsonl") as journal, pytest.raises(OptionError, match=r"persona-circuits\[api\]"):
        ask(place(server), chats(1), journal)


def test_a_torn_last_line_is_passed_over_and_the_next_begins_after_it(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.add("a", {"text": "é"})
        journal.add("b", {"text": "2"})
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            assert journal.get("a") == {"text": "é"}
            complete = whole[:cut].endswith(b"}")
            assert (journal.get("b") is None) != complete
            assert journal.torn == (0 if complete or whole[:cut].endswith(b"\n") else 1)
            journal.add("c", {"text": "3"})
        with Journal(path) as journal:
            assert journal.get("c") == {"text": "3"}
            assert journal.get("a") == {"text": "é"}


def test_damaged_entries_are_told_of_and_not_used(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"key": "a", "text": "1", "ids": [1]}\n{"key": "b", "text": 5}\n' + '{"key": ' + "[" * 2000 + "\n")
    with pytest.warns(DamagedState, match=r"1 line of .*j\.jsonl cannot be read"):
        journal = Journal(path)
    with journal:
        assert journal.torn == 1
        assert journal.get("a", text=str, ids=list) == {"text": "1", "ids": [1]}
        assert journal.get("a", text=str, finish=str) is None
        assert journal.get("b", text=str) is None


def test_a_file_that_is_no_journal_is_not_written_into(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("some\nnotes\n")
    with pytest.raises(FileError, match="no journal"):
        Journal(path)
    assert path.read_text() == "some\nnotes\n"
    with pytest.raises(FileError, match="cannot be used"):
        Journal(tmp_path)


CHILD = """
    import sys
    from persona_circuits.persona.responses import Chat, EndpointOptions, Journal, ask, endpoint
    place = endpoint("toy", EndpointOptions(base_url=sys.argv[1], api_key="k", concurrency=2))
    with Journal(sys.argv[2]) as journal:
        ask(place, [Chat((("system", "You are kind."), ("user", f"question {i}")), 20) for i in range(40)], journal)
"""


def test_a_killed_run_loses_nothing(server, tmp_path):
    server.plan = lambda text, turn: 0.03
    path = tmp_path / "j.jsonl"
    code = [sys.executable, "-c", textwrap.dedent(CHILD), server.url, str(path)]
    child = subprocess.Popen(code, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while (not path.exists() or path.read_bytes().count(b"\n") < 6) and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = {json.loads(line)["text"][6:] for line in path.read_text().splitlines() if line.endswith("}")}
    assert 6 <= len(kept) < 40
    before = len(server.seen)
    with Journal(path) as journal:
        found = ask(place(server, key="k"), chats(40), journal)
    assert [answer.text for answer in found.answers] == [f"echo: question {i}" for i in range(40)]
    again = server.seen[before:]
    assert not kept & set(again)
    assert len(again) == 40 - len(kept)


def drip(server, *, gap, n=10_000):
    """Has the server send a reply that never ends: a space at a time."""

    def act(handler, what, text, body):
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(n))
        handler.end_headers()
        for _ in range(n):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(gap)

    server.act = act


def test_an_answer_that_never_ends_is_given_up_at_the_deadline(server, tmp_path):
    drip(server, gap=0.02)  # each wait is far below the timeout, all of them together are not
    begun = time.monotonic()
    with Journal(tmp_path / "j.jsonl") as journal:
        found = ask(place(server, deadline=0.4, timeout=30.0), chats(2), journal)
    assert time.monotonic() - begun < 5
    assert found.answers == (None, None)
    assert dict(found.failures) == {"no whole answer within 0.4 s": 2}


def test_a_server_that_never_answers_is_given_up_at_the_deadline_with_all_its_tries(server, tmp_path):
    server.plan = lambda text, turn: 20.0
    begun = time.monotonic()
    with Journal(tmp_path / "j.jsonl") as journal:
        found = ask(place(server, deadline=0.5, timeout=0.2, max_retries=8), chats(1), journal)
    assert time.monotonic() - begun < 5
    assert dict(found.failures) == {"no whole answer within 0.5 s": 1}


def test_an_answer_that_is_too_large_fails_alone_and_is_asked_once(server, tmp_path):
    server.plan = lambda text, turn: ("say", "x" * 5000) if text == "question 1" else None
    with Journal(tmp_path / "j.jsonl") as journal:
        found = ask(place(server, max_bytes=2000, max_retries=3), chats(3), journal)
    assert [answer is None for answer in found.answers] == [False, True, False]
    assert dict(found.failures) == {"the reply is larger than 2,000 bytes": 1}
    assert server.seen.count("question 1") == 1


def test_a_compressed_answer_is_not_unpacked(server, tmp_path):
    def act(handler, what, text, body):
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", "5")
        handler.end_headers()
        handler.wfile.write(b"12345")

    server.act = act
    with Journal(tmp_path / "j.jsonl") as journal:
        found = ask(place(server), chats(1), journal)
    assert dict(found.failures) == {"the reply is compressed, which was not asked for": 1}


def test_what_was_answered_before_the_end_is_kept_though_others_are_on_their_way(server, tmp_path):
    server.plan = lambda text, turn: {"question 0": 0.4, "question 1": 401}.get(text)
    with Journal(tmp_path / "j.jsonl") as journal, pytest.raises(EndpointError, match="1 answers are kept"):
        ask(place(server, concurrency=2), chats(6), journal)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stalled_server_does_not_hold_a_stopped_command(server, tmp_path, number):
    server.plan = lambda text, turn: 60.0 if len(server.seen) > 3 else None
    command = [sys.executable, str(ROOT / "cli.py"), "respond", "--endpoint-model", "toy", "--base-url", server.url]
    command += ["--api-key", KEY, "--out", str(tmp_path / "out"), "--max-questions", "3", "--concurrency", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "out" / "journal.jsonl"
    ready = time.monotonic() + 90
    while len(server.seen) < 5 and time.monotonic() < ready and child.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    begun = time.monotonic()
    child.send_signal(number)
    _, says = child.communicate(timeout=60)
    assert time.monotonic() - begun < 10
    assert child.returncode == 128 + number
    assert "Traceback" not in says
    lines = [line for line in says.splitlines() if line.strip()]
    kept = len(journal.read_text().splitlines())
    assert kept >= 1
    assert lines == [f"stopped: {kept} answers are kept in {journal}; the same command goes on from there"]
