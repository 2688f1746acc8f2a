import json

import pytest
import torch
from conftest import CRAFTGPT, DATA, ROOT

from persona_circuits.circuit.errors import TaskError
from persona_circuits.circuit.task import (
    answer_id,
    batches,
    encode,
    fitting,
    load_task,
    prompt_faults,
    token_ids,
    token_offsets,
    unknown_pieces,
    with_swap_rows,
)

GOOD = {"clean": "you are happy", "corrupt": "you are sad", "answers": [" red"], "wrong_answers": [" blue"]}


def write(tmp_path, *items, name="pairs.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(item if isinstance(item, str) else json.dumps(item) for item in items))
    return path


@pytest.fixture
def good(tiny_task):
    pair = tiny_task.pairs[0]
    return {
        "clean": pair.clean,
        "corrupt": pair.corrupt,
        "answers": list(pair.answers),
        "wrong_answers": list(pair.wrong_answers),
    }


def test_json_lines_with_all_keys(tmp_path):
    extra = {"id": "a", "persona_a": "x", "persona_b": "y", "question": 3, "split": "train", "domain": "ignored"}
    pair = load_task(write(tmp_path, GOOD | extra, "", GOOD | {"id": "b", "split": "test"})).pairs[0]
    assert (pair.id, pair.persona_a, pair.question, pair.split, pair.line) == ("a", "x", "3", "train", 1)
    assert pair.answers == (" red",)


def test_auto_circuits_json_unchanged(tiny_task):
    raw = json.loads((DATA / "tiny_pairs.json").read_text())["prompts"]
    assert [pair.clean for pair in tiny_task.pairs] == [item["clean"] for item in raw]


def test_ids_default_to_the_line(tmp_path):
    other = {**GOOD, "clean": "another prompt"}
    assert [pair.id for pair in load_task(write(tmp_path, GOOD, "", other)).pairs] == ["1", "3"]


def test_every_fault_is_listed_with_its_line_in_one_error(tmp_path):
    path = write(
        tmp_path,
        GOOD,
        "{broken",
        {**GOOD, "answers": []},
        "[1]",
        {**GOOD, "clean": 5, "wrong_answers": "blue"},
        {**GOOD, "split": ["x"]},
        {**GOOD, "id": "1"},
    )
    with pytest.raises(TaskError) as caught:
        load_task(path)
    message = str(caught.value)
    for part in (
        "7 fault(s)",
        "line 2: not JSON",
        "line 3: 'answers' must be a non-empty list",
        "line 4: expected an object with clean, corrupt, answers, wrong_answers, got a list",
        "line 5: 'clean' must be",
        "line 5: 'wrong_answers' must be",
        "line 6: 'split' must be",
        "line 7: id '1' is already used in line 1",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("", "pairs.jsonl", "holds no pairs"),
        ('{"prompts": 3}', "pairs.json", "must be a list"),
        ('{"prompts": [', "pairs.json", "line 1: not JSON"),
        ('{"other": []}', "pairs.json", 'expected {"prompts"'),
        ('{"prompts": []}', "pairs.json", "holds no pairs"),
    ],
)
def test_files_that_are_no_task(tmp_path, text, name, says):
    with pytest.raises(TaskError, match=says):
        load_task(write(tmp_path, text, name=name))


def test_missing_and_undecodable_files(tmp_path):
    with pytest.raises(TaskError, match=r"cannot be read \(No such file"):
        load_task(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(TaskError, match="not UTF-8"):
        load_task(tmp_path / "latin.jsonl")


def test_splits(tmp_path):
    task = load_task(write(tmp_path, GOOD | {"split": "train"}, GOOD | {"split": "test"}, GOOD))
    assert task.splits == ("train", "test")
    assert len(task.of_split("train").pairs) == 1
    assert len(task.of_split("all").pairs) == 3
    with pytest.raises(TaskError, match="its splits are: train, test"):
        task.of_split("dev")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: {**p, "corrupt": p["corrupt"] + " red"}, "the clean prompt has 14 tokens and the corrupt one 15"),
        (lambda p: {**p, "answers": [" red blue"]}, "answer ' red blue' is 2 tokens here"),
        (lambda p: {**p, "wrong_answers": [" blue", " red"]}, "is both an answer and a wrong answer"),
        (
            lambda p: {**p, "clean": " ".join([p["clean"]] * 4), "corrupt": " ".join([p["corrupt"]] * 4)},
            "context holds 32",
        ),
    ],
)
def test_pairs_that_do_not_fit_the_model(tmp_path, tiny, good, change, says):
    with pytest.raises(TaskError, match=says) as caught:
        encode(load_task(write(tmp_path, good, change(good))), tiny)
    assert "line 2 (id 2)" in str(caught.value)
    assert "line 1" not in str(caught.value)


def test_an_answer_that_merges_with_the_prompt_is_a_fault(craftgpt, tmp_path):
    prompt = "_[inst] you are a {} person. how do you feel?_[/inst] i am hap"
    pair = {
        "clean": prompt.format("happy"),
        "corrupt": prompt.format("sad"),
        "answers": ["py"],
        "wrong_answers": [" not"],
    }
    with pytest.raises(TaskError, match=r"merges with the prompt's last token|tokens here"):
        encode(load_task(write(tmp_path, pair)), craftgpt)


def test_two_bos_tokens_are_a_fault_and_one_in_the_text_is_not_doubled(tiny, good, tmp_path, monkeypatch):
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny-gpt2", bos_token="<b>")
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<b> $A", special_tokens=[("<b>", bos)])
    monkeypatch.setattr(tiny, "tokenizer", tokenizer)
    monkeypatch.setattr(tiny, "n_vocab", len(tokenizer))
    good = {**good, "answers": [" tea"], "wrong_answers": [" blue"]}
    row = encode(load_task(write(tmp_path, good)), tiny)[0]
    assert row.clean[0] == bos
    assert bos not in row.clean[1:2]
    own = {**good, "clean": "<b>" + good["clean"], "corrupt": "<b>" + good["corrupt"]}
    assert encode(load_task(write(tmp_path, own)), tiny)[0].clean.count(bos) == row.clean.count(bos)
    twice = {**good, "clean": "<b><b>" + good["clean"], "corrupt": "<b><b>" + good["corrupt"]}
    with pytest.raises(TaskError, match="two BOS"):
        encode(load_task(write(tmp_path, twice)), tiny)


def test_text_that_the_tokenizer_cannot_write_would_make_two_personas_one(craftgpt, tmp_path):
    """Without the check both prompts are one and the same to the model, persona and all: D is zero and nobody knows."""
    pair = {
        "clean": "_[inst] you are a happy Zürich. how is the weather?_[/inst] the weather is",
        "corrupt": "_[inst] you are a sad Zürich. how is the weather?_[/inst] the weather is",
        "answers": [" nice"],
        "wrong_answers": [" not"],
    }
    assert token_ids(pair["clean"], craftgpt) == token_ids(pair["corrupt"], craftgpt)
    with pytest.raises(TaskError, match=r"2 fault(.|\n)*line 1(.|\n)*cannot write 'you are a happy Zürich"):
        encode(load_task(write(tmp_path, pair)), craftgpt)
    known = {key: value.replace("Zürich", "person") for key, value in pair.items() if isinstance(value, str)}
    assert len(encode(load_task(write(tmp_path, pair | known)), craftgpt)) == 1
    assert not unknown_pieces("a b", token_ids("a b", craftgpt), craftgpt)  # its unknown token also writes spaces


def test_a_word_that_the_tokenizer_cannot_write_is_a_fault(tiny, good, tmp_path):
    with pytest.raises(TaskError, match="cannot write 'xyzzy'"):
        encode(load_task(write(tmp_path, {**good, "clean": good["clean"].replace(" ", " xyzzy ", 1)})), tiny)


def test_answers_are_the_token_in_its_context_not_at_index_zero(tiny, tiny_task):
    for pair, row in zip(tiny_task.pairs, encode(tiny_task, tiny), strict=True):
        assert tiny.tokenizer.decode(list(row.clean)) == pair.clean
        assert tiny.tokenizer.decode([*row.clean, row.answers[0]]) == pair.clean + pair.answers[0]


def test_swap_rows_are_the_pairs_from_the_other_side(tiny, tiny_task):
    rows = encode(tiny_task, tiny)
    both = with_swap_rows(rows)
    assert [row.index for row in both] == list(range(2 * len(rows)))
    assert (both[1].clean, both[1].answers) == (rows[0].corrupt, rows[0].wrong_answers)


def test_batches_never_mix_lengths_and_lose_nothing(tiny, tiny_task):
    rows = encode(tiny_task, tiny)
    made = batches(rows, 3, torch.device("cpu"))
    assert sorted(i for batch in made for i in batch.indices) == list(range(len(rows)))
    assert all(len(batch) <= 3 for batch in made)
    assert len({batch.clean.shape[1] for batch in made}) > 1


def test_answers_of_unequal_number_are_padded_with_minus_one(tiny, good, tmp_path):
    task = load_task(write(tmp_path, {**good, "answers": [" red", " tea"], "wrong_answers": [" blue"]}, {**good}))
    batch = batches(encode(task, tiny), 8, "cpu")[0]
    assert batch.answers.shape == (2, 2)
    assert batch.answers[1, 1] == -1


def test_the_shipped_pairs_for_the_chat_model_fit_it(craftgpt):
    task = load_task(ROOT / "datasets" / "craftgpt_weather.jsonl")
    assert len(encode(task, craftgpt)) == len(task.pairs) >= 24
    assert set(task.splits) == {"train", "test"}
    train, test = task.of_split("train").pairs, task.of_split("test").pairs
    assert not {p.question for p in train} & {p.question for p in test}
    assert CRAFTGPT.name == "craftgpt-5m"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: {**p, "corrupt": p["clean"]}, "clean and corrupt are the same tokens, so nothing can differ"),
        (lambda p: {**p, "answers": [" blue", " blue"]}, "answer ' blue' stands 2 times on one side"),
        (lambda p: {**p, "neutral": p["clean"] + " red"}, "the clean prompt has 14 tokens and the neutral one 15"),
    ],
)
def test_prompts_and_answers_that_are_the_same_are_a_fault(tmp_path, tiny, good, change, says):
    with pytest.raises(TaskError, match=says):
        encode(load_task(write(tmp_path, change(good))), tiny)


def test_prompts_may_be_alike_where_that_is_asked_for(tmp_path, tiny, good):
    (row,) = encode(load_task(write(tmp_path, {**good, "corrupt": good["clean"]})), tiny, alike=True)
    assert row.clean == row.corrupt


def with_tokenizer(tiny, monkeypatch, pattern=None, **more):
    """The tiny model with the tokenizer changed: other special tokens, and what is put around every text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny-gpt2", **more)
    if pattern:
        names = [name for name in pattern.split() if name != "$A"]
        special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=pattern, special_tokens=special)
    monkeypatch.setattr(tiny, "tokenizer", tokenizer)
    return tokenizer


def test_an_eos_that_the_tokenizer_appends_is_none_of_the_prompts_tokens(tiny, good, tmp_path, monkeypatch):
    task = load_task(write(tmp_path, good))
    plain = encode(task, tiny)
    tokenizer = with_tokenizer(tiny, monkeypatch, "$A <e>", eos_token="<e>")
    assert tokenizer(good["clean"])["input_ids"][-1] == tokenizer.eos_token_id
    assert encode(task, tiny) == plain
    ids = token_ids(good["clean"], tiny)
    assert tokenizer.eos_token_id not in ids
    assert len(token_offsets(good["clean"], ids, tiny)) == len(ids)
    assert token_ids(good["clean"] + "<e>", tiny) == [*ids, tokenizer.eos_token_id]  # the text's own stays


def test_an_eos_is_dropped_and_a_bos_in_front_is_not(tiny, good, monkeypatch):
    tokenizer = with_tokenizer(tiny, monkeypatch, "<b> $A <e>", bos_token="<b>", eos_token="<e>")
    plain = tokenizer(good["clean"], add_special_tokens=False)["input_ids"]
    assert token_ids(good["clean"], tiny) == [tokenizer.bos_token_id, *plain]
    assert token_ids("<b>" + good["clean"], tiny) == [tokenizer.bos_token_id, *plain]


def test_an_appended_token_that_is_bos_as_well_is_dropped_too(tiny, good, monkeypatch):
    tokenizer = with_tokenizer(tiny, monkeypatch, "<e> $A <e>", bos_token="<e>", eos_token="<e>")
    plain = tokenizer(good["clean"], add_special_tokens=False)["input_ids"]
    assert token_ids(good["clean"], tiny) == [tokenizer.eos_token_id, *plain]


def test_a_bos_inside_a_prompt_is_a_fault_unless_a_turn_begins_there(tiny, good, monkeypatch):
    tokenizer = with_tokenizer(tiny, monkeypatch, "<b> $A", bos_token="<b>", eos_token="<e>")
    monkeypatch.setattr(tiny, "n_vocab", len(tokenizer))
    for text, fine in (
        (good["clean"], True),
        ("system: be kind.\n<b>" + good["clean"], False),
        ("you are<e><b>" + good["clean"], True),
        ("you are<e>\n<b>" + good["clean"], True),
        ("you are<e>\n<b>be<b>" + good["clean"], False),
    ):
        faults = prompt_faults(token_ids(text, tiny), tiny)
        assert (faults == []) is fine
        assert fine or faults[0].startswith("a prompt holds BOS inside, at token ")


@pytest.mark.parametrize(
    "change",
    [
        lambda p: {**p, "clean": "<p> " + p["clean"], "corrupt": "<p> " + p["corrupt"]},
        lambda p: {**p, "answers": ["<p>"]},
        lambda p: {**p, "neutral": p["clean"].replace("happy", "<p>")},
    ],
)
def test_tokens_beyond_the_embedding_are_named(tiny, good, tmp_path, monkeypatch, change):
    tokenizer = with_tokenizer(tiny, monkeypatch)
    tokenizer.add_tokens(["<p>"], special_tokens=True)
    new = tokenizer.convert_tokens_to_ids("<p>")
    assert new == tiny.n_vocab
    task = load_task(write(tmp_path, good, change(good)))
    with pytest.raises(TaskError, match=rf"token <p> \(id {new}\) is beyond the model's {new} embeddings") as caught:
        encode(task, tiny)
    assert "line 1" not in str(caught.value)


def test_a_tokenizer_that_keeps_spaces_with_the_word_before_gets_advice_that_fits(tiny):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "so", "so ", "I ", "feel ", "happy", "happy ", " "]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+ ?"), "isolated")
    reader = replace_tokenizer(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>"))
    for prompt, answer, says in (
        ("I feel so", " happy", "move the answer's space to the end of the prompt"),
        ("I feel so", "happy", "start it with a space or change the cue"),
    ):
        faults = []
        assert answer_id(prompt, token_ids(prompt, reader), answer, reader, faults) is None
        assert says in faults[0]
    faults = []
    prompt = "I feel so "
    assert answer_id(prompt, token_ids(prompt, reader), "happy", reader, faults) == words.index("happy")
    assert not faults


def replace_tokenizer(tokenizer):
    from persona_circuits.persona.data import TokenizerOnly

    return TokenizerOnly(tokenizer)


def test_those_that_fit_are_kept_and_the_others_counted(tiny, good, tmp_path):
    long = {**good, "corrupt": good["corrupt"] + " red"}
    several = {**good, "answers": [" red blue", " tea cats"]}
    prompts = {"prompts": [good, long, several, {**good, "clean": good["corrupt"], "corrupt": good["clean"]}]}
    task = load_task(write(tmp_path, prompts, name="pairs.json"))
    with pytest.raises(TaskError) as caught:
        encode(task, tiny)
    said = str(caught.value)
    assert "2 of 4 pairs do not, 3 fault(s)" in said
    assert "prompt 2 (id 2): the clean prompt has" in said
    assert "line" not in said
    assert "to go on with the 2 that fit, use --fitting, or write them with inspect --write-fitting" in said
    found = fitting(task, tiny)
    assert ([pair.id for pair in found.pairs], found.unfit, found.counts) == (["1", "4"], 2, {"unfit": 2})
    assert found.notes == ("2 of 4 pairs do not fit and are left out",)
    assert fitting(found, tiny) == found
    assert len(encode(found, tiny)) == 2
    assert len(fitting(task, tiny, align="right").pairs) == 2  # their ends differ
    with pytest.raises(TaskError, match="2 of 2 pairs do not") as caught:
        fitting(load_task(write(tmp_path, long, several)), tiny)
    assert "--fitting" not in str(caught.value)
