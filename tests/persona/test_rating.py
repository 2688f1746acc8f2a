"""Ratings: answers are read strictly, likelihoods are the model's, and both have a control that can show they fail."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import DATA, ROOT
from tests_loopback import KEY, serving
from typer.testing import CliRunner

from persona_circuits.circuit.errors import FileError, OptionError, TaskError
from persona_circuits.cli import app
from persona_circuits.persona.data import Persona, Question, load_templates, read_personas, read_questions
from persona_circuits.persona.responses import (
    Exchange,
    Journal,
    Response,
    Sampling,
    endpoint,
    exchanges,
    parsed,
    rate_offline,
    rate_remotely,
    rater_prompt,
    respond,
    summarise_ratings,
    write_ratings,
    write_responses,
)
from persona_circuits.persona.responses.options import EndpointOptions

PEOPLE = [Persona(word, (f"you are a {word} cook.",)) for word in ("happy", "sad", "calm")]
ASKED = [Question(name, (f"you like {name}?",), ()) for name in ("red", "blue")]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def raw(tiny):
    return load_templates("raw", tiny.tokenizer)[0]


@pytest.fixture(scope="module")
def said(tiny, raw, tmp_path_factory):
    with Journal(tmp_path_factory.mktemp("said") / "j") as journal:
        return respond(tiny, exchanges(PEOPLE, ASKED), raw, journal, sampling=Sampling(max_new_tokens=5)).responses


def reply(persona, question, text):
    exchange = Exchange(persona, 0, question, 0, 0, f"You are {persona}." if persona else "", f"{question}?")
    return Response(exchange, text, "stop", "m")


@pytest.mark.parametrize("answer", ["Rating: 2", "Rating: 2\n", "  Rating:2 ", "\nRating:   2\n\n"])
def test_a_rating_and_nothing_else_is_read(answer):
    assert parsed(answer) == 2


@pytest.mark.parametrize(
    "answer",
    ["", "2", "rating: 2", "Rating: 4", "Rating: -1", "Rating: 2.5", "Rating: 2/3", "Rating: 23",
     "I would say Rating: 2", "Rating: 2 because", "Rating: 2\nRating: 3", "Rating: N", "**Rating: 2**",
     "Rating: two", "Rating: ²"],
)  # fmt: skip
def test_anything_else_is_not_guessed_at(answer):
    assert parsed(answer) is None


def judge(text, turn):
    """3 where the reply names the persona, else 1; and answers that are no rating for questions on tea."""
    if "Question:\n<question>\ntea?" in text:
        return ("say", "It is hard to say. Rating: 3")
    persona = re.search(r"<persona>\nYou are (\w+)\.", text)[1]
    shown = re.search(r"<reply>\n(.*)\n</reply>", text)[1]
    return ("say", f"Rating: {3 if persona in shown else 1}")


def test_the_autorater(tmp_path):
    responses = [reply(who, q, f"I, {who}, say so") for who in ("cook", "judge") for q in ("red", "tea")]
    responses += [reply("cook", "blue", "so"), reply("", "red", "plain")]
    with serving() as server, Journal(tmp_path / "j") as journal:
        server.plan = judge
        place = endpoint("toy", EndpointOptions(base_url=server.url, api_key=KEY))
        found = rate_remotely(place, responses, journal)
        assert [one.rating for one in found.rated] == [3, None, 3, None, 1]
        assert [one.control for one in found.rated] == [1, None, 1, None, 1]
        assert found.unparsable == 4  # two on tea, each with its control
        assert found.left_out == {"no persona's text": 1}
        assert found.rated[1].said == "It is hard to say. Rating: 3"
        assert {body["temperature"] for body in server.bodies} == {0.0}
        n = len(server.seen)
        assert n == 10
        again = rate_remotely(place, responses, journal)
        assert len(server.seen) == n
        assert again.rated == found.rated
        assert {one.control for one in rate_remotely(place, responses, journal, control=False).rated} == {None}
    whole, (cook, judged) = summarise_ratings(found, n_resamples=50)
    assert (whole.n, whole.unrated, whole.above_control) == (5, 2, pytest.approx(2 / 3))
    assert (cook.rating.value, cook.control.value, cook.above_control) == (2, 1, 0.5)
    assert (judged.n, judged.unrated, judged.rating.value) == (2, 1, 3)


def test_a_request_that_fails_is_counted_and_no_rating(tmp_path):
    responses = [reply("cook", q, "x") for q in ("red", "blue")]
    with serving() as server, Journal(tmp_path / "j") as journal:
        server.plan = lambda text, turn: 400 if "blue?" in text else ("say", "Rating: 0")
        found = rate_remotely(endpoint("toy", EndpointOptions(base_url=server.url, api_key=KEY)), responses, journal)
    assert [one.rating for one in found.rated] == [0, None]
    assert [one.control for one in found.rated] == [None, None]  # of a single persona there is no other
    assert (found.unparsable, sum(found.failures.values())) == (0, 1)
    with Journal(tmp_path / "j") as journal, pytest.raises(TaskError, match="nothing can be rated"):
        rate_remotely(
            endpoint("toy", EndpointOptions(base_url="http://localhost/v1", api_key=KEY)),
            [reply("", "red", "x")],
            journal,
        )


def test_a_reply_cannot_fill_in_the_prompt_itself(tmp_path):
    with serving() as server, Journal(tmp_path / "j") as journal:
        server.plan = lambda text, turn: ("say", "Rating: 1")
        rate_remotely(
            endpoint("toy", EndpointOptions(base_url=server.url, api_key=KEY)),
            [reply("cook", "red", "{persona}{question}")],
            journal,
        )
        assert "<reply>\n{persona}{question}\n</reply>" in server.seen[0]
        assert server.seen[0].count("You are cook.") == 1


def test_the_shipped_prompt_and_one_s_own(tmp_path):
    assert all(f"{{{name}}}" in rater_prompt() for name in ("persona", "question", "reply"))
    assert rater_prompt().rstrip().endswith("Rating: N")
    (tmp_path / "p.txt").write_text("{persona} {question} {reply}")
    assert rater_prompt(tmp_path / "p.txt") == "{persona} {question} {reply}"
    (tmp_path / "p.txt").write_text("{persona} {reply}")
    with pytest.raises(OptionError, match="question"):
        rater_prompt(tmp_path / "p.txt")
    with pytest.raises(FileError, match="cannot be read"):
        rater_prompt(tmp_path / "none.txt")


def likelihood(model, system, response):
    """Log probability of a response's own ids behind a raw prompt, a token at a time."""
    prompt = (f"{system}\n" if system else "") + f"Q: {response.exchange.user}\nA:"
    ids, total = model.tokenizer(prompt)["input_ids"], 0.0
    for token in response.ids:
        total += model.logits(torch.tensor([ids]))[0, -1].log_softmax(-1)[token].item()
        ids = [*ids, token]
    return total


def test_offline_ratings_are_differences_of_log_likelihoods(tiny, raw, said):
    found = rate_offline(tiny, said, raw, batch_size=3)
    assert len(found.rated) == 6
    assert found.left_out == {"no persona's text": 2}
    others = {"happy": "sad", "sad": "calm", "calm": "happy"}
    for one in found.rated:
        response = one.response
        own, plain, other = (
            likelihood(tiny, system, response)
            for system in (response.exchange.system, "", f"you are a {others[response.exchange.persona]} cook.")
        )
        assert one.rating == pytest.approx(own - plain, abs=1e-4)
        assert one.control == pytest.approx(other - plain, abs=1e-4)
        assert one.per_token == pytest.approx(one.rating / len(response.ids))
    with pytest.raises(OptionError, match="another template"):
        rate_offline(tiny, said, load_templates("raw", tiny.tokenizer, cue="So:")[0])
    worded = rate_offline(tiny, said, raw, neutral="you are a cook.")
    assert worded.rated[0].rating == pytest.approx(
        likelihood(tiny, said[2].exchange.system, said[2]) - likelihood(tiny, "you are a cook.", said[2]), abs=1e-4
    )


def test_what_cannot_be_rated_offline_is_counted(tiny, raw):
    long = reply("happy", "red", " you" * 30)
    said = [reply("happy", "red", " tea"), reply("sad", "red", ""), long, reply("", "red", " tea")]
    found = rate_offline(tiny, [*said, reply("sad", "red", " xyzzy")], raw)
    assert len(found.rated) == 1
    assert found.left_out == {"no persona's text": 1, "empty": 1, "not in this tokenizer's words": 1, "too long": 1}
    with pytest.raises(TaskError, match="no response of a persona"):
        rate_offline(tiny, [long], raw)


def test_the_shipped_model_finds_its_own_answers_likelier_as_the_persona_that_gave_them(tmp_path):
    from persona_circuits.circuit.model import load_model

    world = load_model(ROOT / "models" / "persona-world")
    template = load_templates("raw", world.tokenizer)[0]
    people, asked = read_personas(ROOT / "datasets/personas.jsonl"), read_questions(ROOT / "datasets/questions.jsonl")
    with Journal(tmp_path / "j") as journal:
        wanted = exchanges(people[:48:6], asked, max_questions=8)
        how = Sampling(max_new_tokens=3, temperature=1.0, stop=("\n",))
        said = respond(world, wanted, template, journal, sampling=how).responses
    whole, each = summarise_ratings(rate_offline(world, said, template), n_resamples=200)
    assert whole.rating.low > 0 > whole.control.value
    assert whole.above_control > 0.5
    assert len(each) == 8
    shuffled = [  # another persona's answers to the same questions, as mere texts
        Response(other.exchange, one.text, one.finish, "shuffled")
        for one, other in zip(said[8:], said[:-8], strict=True)
    ]
    wrong, _ = summarise_ratings(rate_offline(world, shuffled, template), n_resamples=20)
    assert wrong.rating.value < whole.rating.value


def test_summaries_of_what_is_not_rated():
    from persona_circuits.persona.responses import Rated, Ratings

    rated = tuple(Rated(reply(who, "red", "x"), value, None) for who, value in (("a", None), ("b", 2.0), ("b", 1.0)))
    whole, (first, second) = summarise_ratings(Ratings("r", "u", rated, 1, {}, {}), n_resamples=20)
    assert (first.rating, first.unrated, second.rating.value) == (None, 1, 1.5)
    assert (whole.rating.value, whole.above_control) == (1.5, None)


def test_files_are_the_same_bytes(tiny, raw, said, tmp_path):
    found = rate_offline(tiny, said, raw)
    whole, each = summarise_ratings(found, n_resamples=20)
    for name in "ab":
        (tmp_path / name).mkdir()
        write_ratings(found, (whole, *each), {"responses": "x"}, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    assert np.isclose(
        json.loads((tmp_path / "a" / "rating.json").read_text())["all"]["rating"]["value"], whole.rating.value
    )


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command(tiny, said, tmp_path):
    write_responses(said, tmp_path / "r.jsonl")
    given = ["rate", "--responses", tmp_path / "r.jsonl", "--n-resamples", 20]
    done = call(*given, "--model", DATA / "tiny-gpt2", "--out", tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert "6 responses rated" in done.stdout
    assert "persona-circuits rate" in (tmp_path / "a" / "index.html").read_text()
    assert "no persona's text" in done.stdout
    with serving() as server:
        server.plan = lambda text, turn: ("say", "Rating: 2" if "red?" in text else f"no idea, {KEY}")
        remote = [
            *given,
            "--endpoint-model",
            "toy",
            "--base-url",
            server.url,
            "--api-key",
            KEY,
            "--out",
            tmp_path / "b",
        ]
        done = call(*remote)
        asked = len(server.seen)
        assert done.exit_code == 0, done.output
        assert "unparsable  6" in done.stdout
        record = json.loads(call(*remote, "--json").stdout)
        assert len(server.seen) == asked > 6
        server.plan = lambda text, turn: 401
        refused = call(
            *given, "--endpoint-model", "other", "--base-url", server.url, "--api-key", KEY, "--out", tmp_path / "c"
        )
    assert (record["unparsable"], record["all"]["rating"]["value"]) == (6, 2)
    assert refused.exit_code == 2
    assert "status 401" in refused.stderr
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [
        content for content in [*written, done.output.encode(), refused.output.encode()] if KEY.encode() in content
    ]
    for options, says in (
        (["--endpoint-model", "x", "--model", "y"], "choose"),
        (["--responses", tmp_path / "none"], "cannot be read"),
        (["--endpoint-model", "x", "--base-url", "nowhere"], "http address"),
        (["--model", DATA / "tiny-gpt2", "--template", "chat"], "no chat template"),
    ):
        failed = call(*given, "--out", tmp_path / "x", *options)
        assert failed.exit_code == 2, failed.output
        assert says in failed.stderr, failed.stderr
