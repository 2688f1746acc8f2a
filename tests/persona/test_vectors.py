"""Persona vectors: exactly the response's tokens, centred geometry, what is cached, and models side by side."""

import json

import numpy as np
import pytest
import torch
from conftest import DATA, ROOT
from safetensors import safe_open
from safetensors.numpy import save
from transformers import AutoTokenizer
from typer.testing import CliRunner

from persona_circuits.circuit.errors import FileError, OptionError, TaskError
from persona_circuits.cli import app
from persona_circuits.persona.data import Persona, Question, load_templates, read_personas, read_questions
from persona_circuits.persona.responses import (
    Exchange,
    Journal,
    Response,
    Sampling,
    exchanges,
    read_responses,
    respond,
    spoken_tokens,
)
from persona_circuits.persona.streams import chosen_layer, mean_streams, on_streams
from persona_circuits.persona.vectors import (
    Compared,
    PersonaVectors,
    assistant_axis,
    axis_positions,
    compare_models,
    cosines,
    geometry_of,
    persona_vectors,
    principal_components,
    read_vectors,
    reliability,
    tree,
    write_vectors,
)
from persona_circuits.persona.vectors import vectors as module

WORDS = ["happy", "sad", "calm", "angry"]
PEOPLE = [Persona(word, (f"you are a {word} cook.", f"you are very {word}.")) for word in WORDS]
ASKED = [Question(name, (f"you like {name}?",), ()) for name in ("red", "blue", "tea", "cats", "dogs")]


def plain_streams(model, ids):
    """The stream after every block at every position, by the engine's own parts: an oracle without hooks."""
    resid, context = model.start(torch.tensor([list(ids)]))
    found = []
    for block in model.blocks:
        normed = block.attn_norm(resid)
        z = block.attention(*(block.project(slot, normed) for slot in "qkv"), context)
        after = resid + block.attn_out(z)
        resid = after + block.mlp(resid if block.parallel else after)
        found.append(resid[0])
    return torch.stack(found)


def answer(persona, question, text, **more):
    return Response(
        Exchange(persona, 0, question, 0, 0, f"you are {persona}.", f"you like {question}?"), text, "stop", "m", **more
    )


@pytest.fixture(scope="module")
def raw(tiny):
    return load_templates("raw", tiny.tokenizer)[0]


@pytest.fixture(scope="module")
def said(tiny, raw, tmp_path_factory):
    with Journal(tmp_path_factory.mktemp("said") / "j") as journal:
        wanted = exchanges(PEOPLE, ASKED, wordings=0)
        return respond(tiny, wanted, raw, journal, sampling=Sampling(max_new_tokens=5)).responses


def made(means, **more):
    """Vectors out of thin air."""
    means = np.asarray(means, dtype=np.float64)
    means = means[:, None] if means.ndim == 2 else means
    n = len(means)
    options = {"halves": np.stack([means, means])} | more
    names = tuple(more.pop("personas", [f"p{i}" for i in range(n)]))
    options.pop("personas", None)
    return PersonaVectors(names, ("q", "r"), means, options["halves"], (2,) * n, (9,) * n, (5.0,) * n, "m", "f", {})


def test_the_span_is_precisely_the_response(tiny, said):
    for one in said:
        row = spoken_tokens(one, tiny)
        assert row.ids[: row.start] == one.prompt_ids
        assert row.ids[row.start :] == one.ids
        assert tiny.tokenizer.decode(row.ids[row.start :]) == one.text


def test_a_vector_is_the_mean_over_the_response_s_tokens_and_no_others(tiny64, raw, tmp_path):
    with Journal(tmp_path / "j") as journal:
        wanted = exchanges(PEOPLE[:2], ASKED[:3], baseline=False)
        said = respond(tiny64, wanted, raw, journal, sampling=Sampling(max_new_tokens=4)).responses
    found = persona_vectors(tiny64, said)
    for i, name in enumerate(found.personas):
        own = [one for one in said if one.exchange.persona == name]
        expected = [plain_streams(tiny64, (*one.prompt_ids, *one.ids))[:, len(one.prompt_ids) :].mean(1) for one in own]
        np.testing.assert_allclose(found.means[i], torch.stack(expected).mean(0), atol=1e-12)
        np.testing.assert_allclose(found.halves[0, i], torch.stack(expected[::2]).mean(0), atol=1e-12)
        np.testing.assert_allclose(found.halves[1, i], torch.stack(expected[1::2]).mean(0), atol=1e-12)


def test_the_first_token_is_in_also_in_raw_format(tmp_path):
    """One-word answers of a raw prompt: skipping the first token of the response leaves nothing at all."""
    from persona_circuits.circuit.model import load_model

    world = load_model(ROOT / "models" / "persona-world")
    template = load_templates("raw", world.tokenizer)[0]
    people, asked = read_personas(ROOT / "datasets/personas.jsonl"), read_questions(ROOT / "datasets/questions.jsonl")
    with Journal(tmp_path / "j") as journal:
        wanted = exchanges(people[:3], asked, max_questions=2, baseline=False)
        how = Sampling(max_new_tokens=4, temperature=0.0, stop=("\n",))
        said = respond(world, wanted, template, journal, sampling=how).responses
    assert {len(one.ids) for one in said} == {1}
    found = persona_vectors(world, said)
    assert found.n_tokens == (2, 2, 2)
    at_word = [plain_streams(world, (*one.prompt_ids, *one.ids))[:, -1] for one in said[:2]]
    np.testing.assert_allclose(found.means[0], torch.stack(at_word).mean(0), atol=1e-4)
    elsewhere = [Response(one.exchange, one.text, "stop", "another") for one in said]  # the same as text alone
    np.testing.assert_allclose(persona_vectors(world, elsewhere, template).means, found.means, atol=1e-5)


def test_a_text_from_elsewhere_is_tokenized_behind_its_prompt(tiny, raw):
    row = spoken_tokens(answer("happy", "tea", " red"), tiny, raw)
    prompt = tiny.tokenizer("you are happy.\nQ: you like tea?\nA:")["input_ids"]
    assert list(row.ids) == tiny.tokenizer("you are happy.\nQ: you like tea?\nA: red")["input_ids"]
    assert list(row.ids[: row.start]) == prompt
    assert not row.merged


def test_a_response_that_merges_with_its_prompt_keeps_its_first_token(tmp_path):
    """The prompt ends in a space that the tokenizer puts into the response's first token."""
    from persona_circuits.circuit.model import load_model

    world = load_model(ROOT / "models" / "persona-world")
    tokenizer = world.tokenizer
    (tmp_path / "t.txt").write_text("{persona}\nQ: {question}\nA: {cue}")
    template = load_templates(str(tmp_path / "t.txt"), tokenizer, cue="")[0]
    row = spoken_tokens(answer("x", "y", "fruit and cake"), world, template)
    assert row.merged
    assert tokenizer.decode(row.ids[row.start :]) == " fruit and cake"
    assert tokenizer.decode(row.ids[: row.start]).endswith("A:")


def test_no_second_bos_in_front_of_a_response(tiny):
    from tokenizers.processors import TemplateProcessing

    from persona_circuits.circuit.model import wrap_model

    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny-gpt2")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<end> $A", special_tokens=[("<end>", 0)])
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }} {% endfor %}"
    network = tiny.bridge.original_model
    model = wrap_model(network.__class__(network.config), tokenizer, name="bos")
    for spec in ("chat", "raw"):
        row = spoken_tokens(answer("happy", "tea", " red"), model, load_templates(spec, tokenizer)[0])
        assert row.ids[0] == 0
        assert 0 not in row.ids[1:]
        assert row.start < len(row.ids)
    twice = answer("happy", "tea", " red", fingerprint=tiny.fingerprint, prompt_ids=(0, 0, 4), ids=(5,))
    with pytest.raises(TaskError, match="two BOS"):
        persona_vectors(tiny, [twice, twice])


def test_another_template_is_read_behind_its_own_prompts(tiny, said):
    """By hand: the same text after the prompt of a template that it was not made with."""
    from persona_circuits.persona.responses import open_template, rendered

    other = open_template("raw", tiny.tokenizer, cue="so i say")
    found = persona_vectors(tiny, said, other, anew=True)
    one = next(row for row in said if row.exchange.persona == found.personas[0])
    row = spoken_tokens(one, tiny, other, anew=True)
    prompt = rendered(other, one.exchange.system, one.exchange.user)
    assert prompt != one.prompt
    assert list(row.ids) == tiny.tokenizer(prompt + one.text)["input_ids"]
    assert not np.allclose(found.means, persona_vectors(tiny, said, other).means)
    same = open_template("raw", tiny.tokenizer)
    np.testing.assert_array_equal(persona_vectors(tiny, said, same, anew=True).means, persona_vectors(tiny, said).means)


def test_a_reference_is_compared_persona_by_persona():
    from persona_circuits.persona.vectors import Compared, likeness

    rng = np.random.default_rng(0)
    table, noise = rng.normal(size=(2, 4, 6))
    own, other = (
        Compared("m", names, values, 0)
        for names, values in ((("a", "b", "c", "d"), table), (("d", "c", "b"), (table + 0.1 * noise)[[3, 2, 1]]))
    )
    found = likeness(own, other)
    assert [one.persona for one in found] == ["b", "c", "d"]
    for one, place in zip(found, (1, 2, 3), strict=True):
        beside = (table + 0.1 * noise)[place]
        assert one.raw == pytest.approx(np.corrcoef(np.r_[table[place], -table[place]], np.r_[beside, -beside])[0, 1])
    with pytest.raises(TaskError, match="no persona in common"):
        likeness(own, Compared("n", ("e",), table[:1], 0))
    with pytest.raises(TaskError, match="have no cosine"):
        likeness(own, Compared("n", ("a",), table[:1, :3], 0))


def test_responses_of_another_model_need_a_template(tiny):
    with pytest.raises(OptionError, match="--template"):
        persona_vectors(tiny, [answer("happy", "tea", " red"), answer("sad", "tea", " red")])


def test_questions_weigh_alike_and_only_shared_ones_count(tiny64, raw):
    said = [answer("happy", "tea", " red"), answer("happy", "tea", " blue"), answer("happy", "red", " tea")]
    said += [answer("sad", "tea", " red"), answer("sad", "red", " red"), answer("sad", "dogs", " red")]
    found = persona_vectors(tiny64, said, raw)
    assert found.questions == ("tea", "red")
    assert found.n_responses == (3, 2)
    rows = [spoken_tokens(one, tiny64, raw) for one in said[:3]]
    at = [plain_streams(tiny64, row.ids)[:, row.start :].mean(1) for row in rows]
    np.testing.assert_allclose(found.means[0], ((at[0] + at[1]) / 2 + at[2]) / 2, atol=1e-12)


def test_what_cannot_be_read_is_left_out_and_counted(tiny, raw):
    long = " you" * 40
    said = [answer(name, q, " red") for name in ("happy", "sad") for q in ("tea", "red")]
    said += [answer("happy", "blue", ""), answer("happy", "tea", "  "), answer("sad", "tea", long)]
    said += [answer("sad", "tea", " xyzzy")]
    found = persona_vectors(tiny, said, raw)
    assert found.left_out == {"empty": 2, "not in this tokenizer's words": 1, "too long": 1}
    assert found.n_responses == (2, 2)
    with pytest.raises(TaskError, match="two personas or more"):
        persona_vectors(tiny, said[:2], raw)
    with pytest.raises(TaskError, match=r"got 1; 1 responses are left out: not in this tokenizer's words"):
        persona_vectors(tiny, [said[0], said[-1]], raw)
    with pytest.raises(TaskError, match="no question that every persona"):
        persona_vectors(tiny, [said[0], said[3]], raw)


def test_no_vector_depends_on_its_batch(tiny, said):
    one, many = (persona_vectors(tiny, said, batch_size=size).means for size in (1, 64))
    np.testing.assert_allclose(one, many, atol=2e-5)


def test_what_has_been_read_is_not_read_again(tiny, tiny64, said, tmp_path, monkeypatch):
    first = persona_vectors(tiny, said, cache=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == len(first.personas)
    more = [*said, answer("shy", "red", " red", fingerprint=tiny.fingerprint, prompt_ids=(4, 5), ids=(6,))]
    monkeypatch.setattr(module, "mean_streams", None)
    again = persona_vectors(tiny, said, cache=tmp_path)
    np.testing.assert_array_equal(again.means, first.means)
    with pytest.raises(TypeError):  # a new persona, and fewer shared questions: everything is new
        persona_vectors(tiny, more, cache=tmp_path)
    other = [Response(**{**vars(one), "fingerprint": tiny64.fingerprint}) for one in said]
    with pytest.raises(TypeError):  # the same tokens in other weights
        persona_vectors(tiny64, other, cache=tmp_path)


def test_mean_streams_of_marked_positions(tiny64):
    tokens = torch.randint(2, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    inside = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0, 1], [1] * 9, [0] * 8 + [1]], dtype=torch.bool)
    found = mean_streams(tiny64, tokens, inside)
    for row in range(3):
        expected = plain_streams(tiny64, tokens[row].tolist())[:, inside[row]].mean(1)
        torch.testing.assert_close(found[row], expected, atol=1e-12, rtol=0)
    with pytest.raises(RuntimeError, match="inside"), on_streams(tiny64, {1: _fail}):
        tiny64.logits(tokens)
    torch.testing.assert_close(mean_streams(tiny64, tokens, inside), found)  # no hook is left behind


def _fail(_stream):
    raise RuntimeError("inside")


def test_layers_by_number_and_by_fraction():
    assert [chosen_layer(12, None, share) for share in (0.01, 0.5, 0.66, 1.0)] == [0, 5, 7, 11]
    assert [chosen_layer(n, None, 0.5) + 1 for n in (1, 3, 5, 7, 30)] == [1, 2, 3, 4, 15]  # halves go up
    assert chosen_layer(12, 3, None) == 3
    assert chosen_layer(6, None, None) == 2
    for options in ((3, 0.5), (12, None), (-1, None), (None, 0.0), (None, 1.1)):
        with pytest.raises(OptionError):
            chosen_layer(12, *options)


def test_cosines_are_of_centred_vectors():
    """A stream that all personas share makes plain cosines 1; centred ones tell opposites apart."""
    common = 100.0 * np.ones(8)
    own = np.zeros((4, 8))
    own[0, 0], own[1, 0], own[2, 1], own[3, 1] = 1, -1, 1, -1
    plain = (common + own) / np.linalg.norm(common + own, axis=1, keepdims=True)
    assert (plain @ plain.T).min() > 0.999
    expected = np.kron(np.eye(2), [[1, -1], [-1, 1]])
    np.testing.assert_allclose(cosines(common + own), expected, atol=1e-12)
    np.testing.assert_allclose(cosines(own), expected, atol=1e-12)
    assert np.isnan(cosines(np.vstack([own, np.zeros(8)]))[4]).all()


def test_the_assistant_axis_and_places_on_it():
    found = made([[4.0, 0, 0], [0, 1, 0], [0, -1, 0], [3, 0, 9]], personas=["default", "a", "b", "c"])
    np.testing.assert_allclose(assistant_axis(found, "default")[0], [3, 0, -3])
    places = axis_positions(found, "default", 0)
    np.testing.assert_allclose(places[0], 1)
    np.testing.assert_allclose(places[1:].mean(), 0, atol=1e-12)
    axis, others = np.array([3, 0, -3]), np.array([1, 0, 3])
    np.testing.assert_allclose(places[3], (np.array([3, 0, 9]) - others) @ axis / (axis @ axis))


def test_components_are_scikit_learns():
    from sklearn.decomposition import PCA

    x = np.random.default_rng(0).normal(size=(9, 20)) * np.arange(1, 21)
    for without in (None, 4):
        kept = x if without is None else np.delete(x, without, axis=0)
        expected = PCA().fit(kept)
        found = principal_components(x, without=without)
        n = len(found.explained)
        assert n == len(kept) - 1
        np.testing.assert_allclose(found.explained, expected.explained_variance_ratio_[:n], atol=1e-12)
        np.testing.assert_allclose(abs(found.scores), abs(expected.transform(x)[:, :n]), atol=1e-8)
        assert (found.axes[np.arange(n), abs(found.axes).argmax(1)] > 0).all()


def test_a_far_off_baseline_is_no_component_of_its_own():
    x = np.random.default_rng(0).normal(size=(10, 30))
    x[0, 0] += 1000
    assert principal_components(x).explained[0] > 0.99
    assert principal_components(x, without=0).explained[0] < 0.5


def test_reliability_of_signal_of_noise_and_of_one_question():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(12, 1, 40)) + 50
    true = made(signal, halves=np.stack([signal, signal]) + 0.1 * rng.normal(size=(2, 12, 1, 40)))
    noise = made(signal, halves=50 + rng.normal(size=(2, 12, 1, 40)))
    assert reliability(true, 0).own > 0.97
    assert reliability(true, 0).identified == 1
    assert abs(reliability(noise, 0).own) < 0.2
    assert reliability(noise, 0).identified < 0.4
    assert abs(reliability(true, 0).others) < 0.2
    single = made(signal, halves=np.stack([signal, np.full_like(signal, np.nan)]))
    assert np.isnan(reliability(single, 0).own)


def test_the_most_reliable_layer_is_where_halves_tell_personas_apart():
    from persona_circuits.persona.vectors import most_reliable_layer

    rng = np.random.default_rng(0)
    signal, noise = rng.normal(size=(5, 1, 8)), rng.normal(size=(2, 5, 3, 8))
    halves = signal[None] + noise * np.array([3.0, 0.1, 0.5])[None, None, :, None]
    found = made(halves.mean(0), halves=halves)
    assert most_reliable_layer(found) == 1
    one_question = made(halves.mean(0), halves=np.stack([halves[0], np.full_like(halves[0], np.nan)]))
    assert most_reliable_layer(one_question) is None


def test_the_tree_joins_what_is_alike():
    x = np.eye(6)[[0, 0, 1, 1, 2, 2]] + 0.01 * np.eye(6)[[3, 4, 3, 4, 3, 4]]
    merges = tree(x + 7)
    assert sorted(sorted(map(int, row[:2])) for row in merges[:3]) == [[0, 1], [2, 3], [4, 5]]
    assert merges[:3, 2].max() < 0.01 < 1 < merges[3:, 2].min()
    with pytest.raises(TaskError):
        tree(np.ones((3, 4)))


def test_models_that_arrange_personas_alike_and_models_that_do_not():
    rng = np.random.default_rng(0)
    names = tuple(f"p{i}" for i in range(14))
    x = rng.normal(size=(14, 20))
    turned = 30 * x @ np.linalg.qr(rng.normal(size=(25, 20)))[0].T + 5  # other dimension, scale and origin
    other = rng.normal(size=(14, 9))
    found = compare_models(
        [Compared("a", names, x, 1), Compared("b", names, turned, 2), Compared("c", names, other, 3)]
    )
    assert found.similarity[0, 1] == pytest.approx(1)
    assert found.p[0, 1] == pytest.approx(1 / 2001)
    assert abs(found.similarity[0, 2]) < 0.4
    assert found.p[0, 2] > 0.01
    pair = compare_models([Compared("a", names, x, 1), Compared("b", names, turned, 2)])
    np.testing.assert_allclose(pair.scores[0], pair.scores[1], atol=1e-9)
    alone = principal_components(x)
    np.testing.assert_allclose(pair.explained[: len(alone.explained)], alone.explained, atol=1e-12)
    np.testing.assert_allclose(pair.by_model[0, :5], alone.explained[:5], atol=1e-12)
    np.testing.assert_allclose(found.scores.mean(0).T @ found.scores.mean(0), np.diag(found.explained) * 3, atol=1e-9)


def test_only_shared_personas_are_compared_whatever_their_order():
    rng = np.random.default_rng(1)
    names, x = tuple("abcdef"), rng.normal(size=(6, 8))
    order = [3, 5, 0, 1, 2, 4]
    shuffled = Compared("b", (*(names[i] for i in order), "z"), np.vstack([x[order], 9 * np.ones(8)]), 0)
    found = compare_models([Compared("a", names, x, 0), shuffled])
    assert found.personas == names
    assert found.similarity[0, 1] == pytest.approx(1)
    with pytest.raises(TaskError, match="3 personas in common"):
        compare_models([Compared("a", names, x, 0), Compared("b", tuple("abcxyz"), x, 0)])


def test_files_come_back_and_are_the_same_bytes(tiny, said, tmp_path):
    found = persona_vectors(tiny, said)
    geometry = geometry_of(found, 1, "default")
    for name in "ab":
        (tmp_path / name).mkdir()
        write_vectors(geometry, {"responses": "x"}, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    stored = read_vectors(tmp_path / "a")
    np.testing.assert_allclose(stored.vectors.means, found.means, atol=1e-5)
    assert (stored.layer, stored.baseline) == (1, "default")
    assert (stored.vectors.personas, stored.vectors.questions) == (found.personas, found.questions)
    assert stored.compared().layer == 1
    np.testing.assert_array_equal(stored.compared(2).vectors, stored.vectors.at(2))
    (tmp_path / "a" / "vectors.safetensors").write_bytes(b"not this")
    with pytest.raises(FileError, match=r"cannot be read .*; expected the vectors\.safetensors"):
        read_vectors(tmp_path / "a")


def test_what_a_file_of_vectors_says_of_itself_is_checked(tiny, said, tmp_path):
    write_vectors(geometry_of(persona_vectors(tiny, said), 1, "default"), {"responses": "x"}, tmp_path)
    path = tmp_path / "vectors.safetensors"
    with safe_open(path, framework="numpy") as file:
        arrays, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    for change, says in (
        ({"layer": 99}, "layer must be one of"),
        ({"layer": 1.0}, "layer must be one of"),
        ({"baseline": "nobody"}, "baseline must be"),
        ({"personas": ["a"]}, "personas has 1 entries"),
        ({"personas": "abc"}, "personas is not the list"),
        ({"n_tokens": None}, "n_tokens is not the list"),
        ({"model": 3}, "must be text"),
        ({"left_out": []}, "left_out must be counts"),
    ):
        path.write_bytes(save(arrays, {**about, "about": json.dumps(json.loads(about["about"]) | change)}))
        with pytest.raises(FileError, match=says):
            read_vectors(path)
    arrays["means"][0, 0, 0] = np.nan
    path.write_bytes(save(arrays, about))
    with pytest.raises(FileError, match="nan or infinity"):
        read_vectors(path)


def test_too_few_personas_have_no_geometry():
    with pytest.raises(TaskError, match="fewer than three"):
        geometry_of(made([[1.0, 0], [0, 1]]), 0, None)


def test_notes_tell_of_a_baseline_of_another_length():
    from dataclasses import replace

    found = made(np.random.default_rng(0).normal(size=(4, 6)), personas=["default", "a", "b", "c"])
    assert not geometry_of(found, 0, "default").notes
    short = replace(found, prompt_lengths=(4.0, 9.0, 9.0, 9.0), left_out={"empty": 3})
    notes = " ".join(geometry_of(short, 0, "default").notes)
    assert "4.0 tokens" in notes
    assert "3 responses are left out: empty" in notes
    assert "tokens" not in " ".join(geometry_of(short, 0, None).notes)


@pytest.fixture
def files(tmp_path):
    lines = [json.dumps({"name": p.name, "wordings": list(p.wordings)}) for p in PEOPLE]
    (tmp_path / "people.jsonl").write_text("\n".join(lines))
    lines = [json.dumps({"id": q.id, "wordings": list(q.wordings)}) for q in ASKED]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    return ["--personas", tmp_path / "people.jsonl", "--questions", tmp_path / "asked.jsonl", "--max-new-tokens", 5]


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands(files, tmp_path):
    tiny = ["--model", DATA / "tiny-gpt2"]
    done = call("respond", *tiny, *files, "--out", tmp_path / "r")
    assert done.exit_code == 0, done.output
    assert "25 responses" in done.stdout
    assert "persona-circuits respond" in (tmp_path / "r" / "index.html").read_text()
    assert len(read_responses(tmp_path / "r" / "responses.jsonl")) == 25
    assert "remembered 25" in call("respond", *tiny, *files, "--out", tmp_path / "r").stdout
    done = call("vectors", *tiny, "--responses", tmp_path / "r" / "responses.jsonl", "--out", tmp_path / "v")
    assert done.exit_code == 0, done.output
    done = call("vectors", *tiny, *files, "--out", tmp_path / "w", "--compare", tmp_path / "v", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["layer"] in range(3)
    assert record["comparison"]["similarity"][0][1] == pytest.approx(1, abs=1e-5)
    assert all(one["raw"] == pytest.approx(1) for one in record["cosines_beside"][0])
    made = tmp_path / "w" / "responses.jsonl"
    assert len(read_responses(made)) == 25
    held = ["vectors", *tiny, "--responses", made, "--reference", tmp_path / "v", "--min-cosine", 0.999]
    assert call(*held, "--out", tmp_path / "y").exit_code == 0
    done = call(*held, "--cue", "so i say", "--out", tmp_path / "y")
    assert done.exit_code == 1, done.output
    assert "is below the bar of 0.999" in done.stderr
    assert (tmp_path / "y" / "vectors.safetensors").is_file()
    assert {path.name for path in (tmp_path / "w").iterdir()} >= {"vectors.safetensors", "models.png", "vectors.html"}
    for options, says in (
        (["--layer", 9], "layer 9"),
        (["--layer", 1, "--layer-fraction", 0.5], "not both"),
        (["--baseline", "nobody"], "nobody"),
        (["--compare", tmp_path], "cannot be read"),
        (["--responses", tmp_path / "none.jsonl"], "--personas has no effect here"),
        (["--template", "chat"], "no chat template"),
    ):
        done = call("vectors", *tiny, *files, "--out", tmp_path / "x", *options)
        assert done.exit_code == 2, done.output
        assert says in done.stderr, done.stderr


def test_built_in_personas_and_questions():
    people = read_personas(ROOT / "datasets" / "vector_personas.jsonl")
    asked = read_questions(ROOT / "datasets" / "vector_questions.jsonl")
    assert len(people) >= 20
    assert len(asked) >= 18
    assert {len(persona.wordings) for persona in people} == {4}
    assert "default" in {persona.name for persona in people}
    assert not [question for question in asked if question.options]
    texts = [text for one in (*people, *asked) for text in one.wordings]
    assert len(set(texts)) == len(texts)


def test_role_files_of_assistant_axis(tiny, tmp_path):
    role = {"instruction": [{"pos": "you are a cook."}, {"pos": ""}], "questions": ["you like tea?"], "eval_prompt": ""}
    for name in ("cook", "judge", "default"):
        (tmp_path / f"{name}.json").write_text(json.dumps(role))
    (tmp_path / "q.jsonl").write_text('{"question": "you like tea?", "id": 0}\n{"question": "you like red?", "id": 1}')
    wanted = exchanges(read_personas(tmp_path), read_questions(tmp_path / "q.jsonl"), wordings=0)
    assert {item.persona for item in wanted} == {"cook", "judge", "default"}
    assert {item.system for item in wanted} == {"you are a cook."}


def test_a_real_model_s_moods_lie_where_they_should(craftgpt, tmp_path):
    """Two glad moods are nearer to each other than to two sad ones, after the last but one block."""
    template = load_templates(str(ROOT / "datasets" / "vector_craftgpt_template.json"), craftgpt.tokenizer)[0]
    people = read_personas(ROOT / "datasets" / "vector_craftgpt_personas.jsonl")
    asked = read_questions(ROOT / "datasets" / "vector_craftgpt_questions.jsonl")
    chosen = [one for one in people if one.name in ("happy", "cheerful", "sad", "lonely")]
    with Journal(tmp_path / "j") as journal:
        wanted = exchanges(chosen, asked, baseline=False)
        said = respond(craftgpt, wanted, template, journal, sampling=Sampling(max_new_tokens=24)).responses
    found = persona_vectors(craftgpt, said)
    table = dict(zip(found.personas, cosines(found.at(4)), strict=True))
    at = found.personas.index
    assert table["happy"][at("cheerful")] > 0.5
    assert table["sad"][at("lonely")] > 0.2
    assert table["happy"][at("sad")] < -0.4
