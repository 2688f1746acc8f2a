"""Responses: which are asked for, how they are drawn, that none depends on its batch, and that none is lost."""

import json

import numpy as np
import pytest
import torch
from conftest import DATA, ROOT
from tests_loopback import serving
from transformers import AutoTokenizer, Gemma2Config, GPTNeoXConfig, LlamaConfig, Qwen3Config

from persona_circuits.circuit.errors import FileError, OptionError, TaskError
from persona_circuits.persona.data import Persona, Question, Template, load_templates, read_personas, read_questions
from persona_circuits.persona.responses import (
    EndpointError,
    Exchange,
    Journal,
    Response,
    Responses,
    Sampling,
    continuations,
    endpoint,
    exchanges,
    read_responses,
    rendered,
    respond,
    respond_remotely,
    summarise,
    summary_table,
    write_response_study,
    write_responses,
)
from persona_circuits.persona.responses import generate as module
from persona_circuits.persona.responses.options import EndpointOptions

PEOPLE = [
    Persona("cook", ("you are a happy cook.", "you are a calm and happy cook.")),
    Persona("pilot", ("you are a pilot.", "you are a very tired pilot.")),
]
ASKED = [Question(name, (f"you like {name}?", f"do you like {name}?"), ()) for name in ("red", "blue", "tea")]
CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
GREEDY = Sampling(max_new_tokens=8, temperature=0.0)


@pytest.fixture
def raw(tiny):
    return load_templates("raw", tiny.tokenizer)[0]


def generated(model, template, path, *, people=PEOPLE, sampling=None, **options):
    wanted = exchanges(people, ASKED, wordings=0, question_wordings=0)
    with Journal(path) as journal:
        return respond(model, wanted, template, journal, sampling=sampling or Sampling(max_new_tokens=6), **options)


def ids_of(found):
    return [one.ids for one in found.responses]


def test_every_persona_meets_every_question_and_so_does_nobody():
    found = exchanges(PEOPLE, ASKED)
    assert [(item.persona, item.question) for item in found] == [
        (name, asked.id) for name in ("default", "cook", "pilot") for asked in ASKED
    ]
    assert {item.system for item in found if item.persona == "default"} == {""}
    assert len(exchanges(PEOPLE, ASKED, wordings=0, question_wordings=0, samples=3)) == (1 + 2 + 2) * 3 * 2 * 3
    assert len(exchanges(PEOPLE, ASKED, wordings=2, max_questions=2, baseline=False)) == 2 * 2 * 2
    own = [*PEOPLE, Persona("default", ("you are a person.",))]
    assert {item.system for item in exchanges(own, ASKED) if item.persona == "default"} == {"you are a person."}
    for option in ({"wordings": -1}, {"question_wordings": -1}, {"samples": 0}, {"max_questions": 0}):
        with pytest.raises(OptionError, match="must be at least"):
            exchanges(PEOPLE, ASKED, **option)


def test_prompts_raw_and_chat(tiny, raw):
    assert rendered(raw, "you are a cook.", "you like tea?") == "you are a cook.\nQ: you like tea?\nA:"
    assert rendered(raw, "", "you like tea?") == "Q: you like tea?\nA:"
    assert rendered(raw, "", "you like tea?", cue="So") == "Q: you like tea?\nSo"
    inline = Template("inline", "<{persona} {question}>{cue}")
    assert rendered(inline, "be kind.", "hi?") == "<be kind. hi?>"
    assert rendered(inline, "", "hi?") == "<hi?>"
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny-gpt2")
    tokenizer.chat_template = CHATML
    chat = load_templates("chat", tokenizer)[0]
    assert rendered(chat, "be kind.", "hi?") == "<system>be kind.</><user>hi?</><bot>"
    assert rendered(chat, "", "hi?") == "<user>hi?</><bot>"
    tokenizer.chat_template = NO_SYSTEM
    chat = load_templates("chat", tokenizer)[0]
    assert rendered(chat, "be kind.", "hi?") == "<user>be kind.\n\nhi?</><bot>"
    assert rendered(chat, "", "hi?") == "<user>hi?</><bot>"


SMALL = {"vocab_size": 62, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 0}
SMALL |= {"eos_token_id": 0, "intermediate_size": 48, "max_position_embeddings": 64}
FAMILIES = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gemma2, sliding window": Gemma2Config(
        **SMALL, num_key_value_heads=2, head_dim=8, sliding_window=4, pad_token_id=0
    ),
    "neox": GPTNeoXConfig(**SMALL),
}


def slowly(model, prompt, steps):
    """One token at a time, everything before it run again: no cache, no batch."""
    ids = list(prompt)
    for _ in range(steps):
        token = int(model.logits(torch.tensor([ids]))[0, -1].argmax())
        if token in (0,):
            break
        ids.append(token)
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_changes_nothing_in_any_family(family):
    from transformers import AutoModelForCausalLM

    from persona_circuits.circuit.model import wrap_model

    torch.manual_seed(1)
    network = AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="eager").double()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.normal_(mean=1.0 if "norm" in name and weight.dim() == 1 else 0.0, std=0.3)
    model = wrap_model(network, AutoTokenizer.from_pretrained(DATA / "tiny-gpt2"), name=family)
    prompts = torch.randint(2, 62, (4, 7), generator=torch.Generator().manual_seed(0)).tolist()
    said = continuations(model, prompts, GREEDY, keys=["a"] * 4)
    assert [one.ids for one in said] == [slowly(model, prompt, 8) for prompt in prompts]
    assert len({one.ids for one in said}) > 1


def test_greedy_responses_are_hugging_faces(tiny, raw, tmp_path):
    found = generated(tiny, raw, tmp_path / "j", sampling=GREEDY)
    assert {one.finish for one in found.responses} >= {"length"}
    for one in found.responses[::3]:
        assert one.ids == slowly(tiny, one.prompt_ids, 8)
        assert list(one.prompt_ids) == tiny.tokenizer(one.prompt)["input_ids"]
        assert one.text == tiny.tokenizer.decode(one.ids)


def test_no_answer_depends_on_its_batch(tiny, raw, tmp_path):
    runs = [generated(tiny, raw, tmp_path / f"{size}", batch_size=size) for size in (1, 3, 64)]
    assert ids_of(runs[0]) == ids_of(runs[1]) == ids_of(runs[2])
    assert len({len(one.prompt_ids) for one in runs[0].responses}) > 3
    alone = generated(tiny, raw, tmp_path / "alone", people=PEOPLE[1:])
    of_pilot = [one for one in runs[0].responses if one.exchange.persona == "pilot"]
    assert [one for one in alone.responses if one.exchange.persona == "pilot"] == of_pilot


def test_seeds_and_samples(tiny, raw, tmp_path):
    again = [generated(tiny, raw, tmp_path / name) for name in "ab"]
    assert ids_of(again[0]) == ids_of(again[1])
    other = generated(tiny, raw, tmp_path / "c", sampling=Sampling(max_new_tokens=6, seed=1))
    assert ids_of(other) != ids_of(again[0])
    wanted = exchanges(PEOPLE[:1], ASKED, samples=2, baseline=False)
    with Journal(tmp_path / "d") as journal:
        found = respond(tiny, wanted, raw, journal, sampling=Sampling(max_new_tokens=6))
    assert any(a.ids != b.ids for a, b in zip(found.responses[::2], found.responses[1::2], strict=True))


def test_tokens_are_drawn_from_the_model_s_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    draws = np.random.default_rng(0).random(20000)
    rows = logits.expand(len(draws), -1)

    def shares(**options):
        return np.bincount(module._drawn(rows, draws, Sampling(**options)), minlength=4) / len(draws)

    np.testing.assert_allclose(shares(temperature=1.0), logits[0].softmax(-1), atol=0.01)
    np.testing.assert_allclose(shares(temperature=0.5), (2 * logits[0]).softmax(-1), atol=0.01)
    np.testing.assert_array_equal(shares(temperature=0.0), [1, 0, 0, 0])
    p = logits[0].softmax(-1)  # .64, .24, .09, .03: 0.7 is held by the first two
    np.testing.assert_allclose(shares(temperature=1.0, top_p=0.7), [*(p[:2] / p[:2].sum()), 0, 0], atol=0.01)
    assert shares(temperature=1.0, top_p=0.6)[0] == 1


def test_the_end_token_and_a_stop_text_end_a_response_and_are_no_part_of_it(tmp_path):
    from persona_circuits.circuit.model import load_model

    model = load_model(ROOT / "models" / "persona-world")
    template = load_templates("raw", model.tokenizer)[0]
    people, asked = read_personas(ROOT / "datasets/personas.jsonl"), read_questions(ROOT / "datasets/questions.jsonl")
    wanted = exchanges(people[:3], asked, max_questions=4)

    def run(name, **options):
        with Journal(tmp_path / name) as journal:
            return respond(model, wanted, template, journal, sampling=Sampling(temperature=0.0, **options)).responses

    for one in run("word", max_new_tokens=8, stop=("\n",)):
        assert (one.finish, len(one.ids)) == ("stop", 1)
        assert one.text in model.tokenizer.decode(one.ids)
        assert one.text.strip() in {word for question in asked[:4] for word in question.options}
    long = run("long", max_new_tokens=8)
    assert {one.finish for one in long} == {"length"}
    assert all("\n" in one.text and len(one.ids) == 8 for one in long)
    newline = model.tokenizer("\n")["input_ids"][0]
    model.bridge.original_model.generation_config.eos_token_id = [0, newline]
    ended = run("eos", max_new_tokens=9)
    assert {(one.finish, len(one.ids)) for one in ended} == {("stop", 1)}


def test_a_stop_text_inside_a_token_and_across_tokens(tiny):
    said = module._stopped
    ids = tiny.tokenizer("you like tea . you like red", add_special_tokens=False)["input_ids"]
    whole = tiny.tokenizer.decode(ids)
    assert said(ids, ("nowhere",), tiny.tokenizer) is None
    for stop in (whole[3:9], whole[5:7], whole[:4]):
        found = said(ids, ("nowhere", stop), tiny.tokenizer)
        assert found.text == whole[: whole.index(stop)]
        assert tiny.tokenizer.decode(found.ids).startswith(found.text)
        assert len(tiny.tokenizer.decode(found.ids[:-1])) < len(found.text) or not found.ids


def test_a_prompt_never_starts_with_two_bos_tokens(tiny, tmp_path):
    """A tokenizer that adds a BOS, and a chat template that writes one: the classic double BOS."""
    from tokenizers.processors import TemplateProcessing

    from persona_circuits.circuit.model import wrap_model

    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny-gpt2")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<end> $A", special_tokens=[("<end>", 0)])
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    model = wrap_model(tiny.bridge.original_model.__class__(tiny.bridge.original_model.config), tokenizer, name="bos")
    assert tokenizer("you like tea?")["input_ids"][0] == 0
    people = [Persona("cook", ("you are.",))]
    for spec in ("chat", "raw"):
        template = load_templates(spec, tokenizer)[0]
        with Journal(tmp_path / spec) as journal:
            found = respond(model, exchanges(people, ASKED[:1]), template, journal, sampling=Sampling(max_new_tokens=2))
        for one in found.responses:
            assert one.prompt_ids[0] == 0
            assert one.prompt_ids[1] != 0
    twice = tmp_path / "twice.txt"
    twice.write_text("<end><end>{persona}\n{question}\n{cue}")
    with Journal(tmp_path / "x") as journal, pytest.raises(TaskError, match="two BOS"):
        respond(model, exchanges(people, ASKED[:1]), load_templates(str(twice), tokenizer)[0], journal)


def test_personas_that_the_tokenizer_cannot_write_are_refused(tiny, raw, tmp_path):
    """To the model they would all be one persona, and all their answers one answer."""
    people = [Persona(word, (f"you are a {word}.",)) for word in ("pirate", "wizard")]
    with Journal(tmp_path / "j") as journal, pytest.raises(TaskError, match="cannot write 'pirate'") as error:
        respond(tiny, exchanges(people, ASKED[:1], baseline=False), raw, journal)
    assert "cannot write 'wizard'" in str(error.value)


def test_a_prompt_that_fills_the_context(tiny, raw, tmp_path):
    n = tiny.n_context
    one = len(tiny.tokenizer("you you")["input_ids"]) - len(tiny.tokenizer("you")["input_ids"])
    asked = Exchange("default", 0, "q", 0, 0, "", "")
    for words in range(1, n):
        item = Exchange(**{**vars(asked), "user": " ".join(["you"] * words)})
        length = len(tiny.tokenizer(rendered(raw, "", item.user))["input_ids"])
        with Journal(tmp_path / f"{words}") as journal:
            if length < n:
                found = respond(tiny, [item], raw, journal, sampling=Sampling(max_new_tokens=99, temperature=0.0))
                assert len(found.responses[0].ids) <= n - length
            else:
                with pytest.raises(TaskError, match=f"context of {n} tokens|context holds {n}"):
                    respond(tiny, [item], raw, journal)
    assert one >= 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_new_tokens": 0}, "max-new-tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.1}, "top-p"),
        ({"seed": -1}, "seed"),
        ({"stop": ("",)}, "stop text is empty"),
    ],
)
def test_options_out_of_range(options, says):
    with pytest.raises(OptionError, match=says):
        Sampling(**options).checked()


def test_a_run_goes_on_where_it_was_stopped(tiny, raw, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killer(done, total):
        if done >= 5:
            raise Killed

    whole = generated(tiny, raw, tmp_path / "whole", batch_size=1)
    with pytest.raises(Killed):
        generated(tiny, raw, tmp_path / "part", batch_size=1, progress=killer)
    kept = len((tmp_path / "part").read_text().splitlines())
    assert kept >= 5
    rest = generated(tiny, raw, tmp_path / "part", batch_size=4)
    assert rest.responses == whole.responses
    assert (rest.made, rest.remembered) == (whole.made - kept, kept)
    monkeypatch.setattr(module, "continuations", None)  # nothing is made a second time
    assert generated(tiny, raw, tmp_path / "part").responses == whole.responses


def test_other_settings_and_other_weights_are_not_taken_from_the_journal(tiny, tiny64, raw, tmp_path):
    first = generated(tiny, raw, tmp_path / "j")
    assert generated(tiny, raw, tmp_path / "j").made == 0
    assert generated(tiny, raw, tmp_path / "j", sampling=Sampling(max_new_tokens=5)).made == first.made
    assert generated(tiny64, raw, tmp_path / "j").made == first.made


def test_responses_of_an_endpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    wanted = exchanges(PEOPLE, ASKED, samples=2)
    with serving() as server, Journal(tmp_path / "j") as journal:
        place = endpoint("toy", EndpointOptions(base_url=server.url, api_key="k"))
        found = respond_remotely(place, wanted, journal, sampling=Sampling(seed=3))
        roles = {tuple(message["role"] for message in body["messages"]) for body in server.bodies}
        assert roles == {("user",), ("system", "user")}
        assert len({body["seed"] for body in server.bodies}) == len(wanted)
        assert [one.text for one in found.responses] == [f"echo: {item.user}" for item in wanted]
        again = respond_remotely(place, wanted, journal, sampling=Sampling(seed=3))
        assert (again.made, again.remembered) == (0, len(wanted))
        assert again.responses == found.responses
        folded = respond_remotely(place, wanted[-1:], journal, system_turn=False)
        assert folded.responses[0].text == f"echo: {PEOPLE[1].wordings[0]}\n\n{ASKED[-1].wordings[0]}"
        server.plan = lambda text, turn: 400 if "red" in text else None
        part = respond_remotely(place, wanted, journal, sampling=Sampling(seed=4))
        assert {one.exchange.question for one in part.responses} == {"blue", "tea"}
        assert sum(part.failures.values()) == 6
        server.plan = lambda text, turn: 400
        for n in (3, len(wanted)):
            with pytest.raises(EndpointError, match="all"):
                respond_remotely(place, wanted[:n], journal, sampling=Sampling(seed=5))


def said(persona, question, text, finish="stop"):
    return Response(Exchange(persona, 0, question, 0, 0, persona, question), text, finish, "toy")


def test_the_summary_of_responses(tmp_path):
    found = [
        said("default", "a", " Tea."),
        said("default", "b", "no"),
        said("cook", "a", "Tea. "),
        said("cook", "b", "a b c"),
    ]
    found += [said("pilot", "a", "", "length"), said("pilot", "c", "x")]
    default, cook, pilot = summarise(found)
    assert (cook.n, cook.words, cook.ended, cook.empty, cook.distinct, cook.unlike_baseline) == (2, 2, 1, 0, 1, 0.5)
    assert default.unlike_baseline is None
    assert (pilot.ended, pilot.empty, pilot.unlike_baseline) == (0.5, 0.5, 1)  # question c was not put to the baseline
    assert summarise(found, "cook")[0].unlike_baseline == 0.5
    assert {one.unlike_baseline for one in summarise(found[2:])} == {None}
    with pytest.raises(OptionError, match="nobody"):
        summarise(found, "nobody")
    assert summary_table("said", [cook]).cells()[0][:4] == ("cook", "Tea.", "2", "2.0")
    for name in "ab":
        (tmp_path / name).mkdir()
        write_response_study(Responses(tuple(found), 6, 0, {}), {"model": "toy"}, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert {path.name for path in (tmp_path / "a").iterdir()} >= {"responses.jsonl", "personas.csv", "length.png"}


def test_files_come_back_as_they_went(tiny, raw, tmp_path):
    found = generated(tiny, raw, tmp_path / "j")
    write_responses(found.responses, tmp_path / "r.jsonl")
    assert read_responses(tmp_path / "r.jsonl") == found.responses
    foreign = {"persona": "cook", "question": "q", "user": "you like tea?", "response": " not much"}
    (tmp_path / "f.jsonl").write_text(json.dumps(foreign))
    assert read_responses(tmp_path / "f.jsonl")[0].exchange.system == ""


def test_files_at_fault(tmp_path):
    lines = [
        "[]",
        '{"persona": "a"}',
        "{",
        '{"persona": "a", "question": "q", "user": "u", "response": "r", "ids": [1.5]}',
        '{"persona": "a", "question": "q", "user": "u", "response": "r", "sample": "x"}',
        '{"persona": "a", "question": "q", "user": "u", "response": "r", "model": 3}',
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    with pytest.raises(TaskError) as caught:
        read_responses(tmp_path / "r.jsonl")
    assert all(f"line {number}:" in str(caught.value) for number in range(1, 7))
    with pytest.raises(FileError, match="cannot be read"):
        read_responses(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(TaskError, match="holds no responses"):
        read_responses(tmp_path / "empty.jsonl")


def test_a_real_chat_model_answers(craftgpt, tmp_path):
    (tmp_path / "t.txt").write_text("_[inst] {persona} {question}_[/inst]{cue}")
    template = load_templates(str(tmp_path / "t.txt"), craftgpt.tokenizer, cue="")[0]
    people = [Persona(word, (f"you are a {word} person.",)) for word in ("happy", "sad")]
    asked = [Question("weather", ("how do you feel about the weather?",), ())]
    with Journal(tmp_path / "j") as journal:
        found = respond(craftgpt, exchanges(people, asked), template, journal, sampling=Sampling(temperature=0.0))
    texts = {one.exchange.persona: one.text for one in found.responses}
    assert texts["happy"] == " i feel happy and enjoy the sunshine on the warm days."
    assert len(set(texts.values())) == 3
    assert {one.finish for one in found.responses} == {"stop"}
