import json

import pytest
import torch
from conftest import CRAFTGPT, DATA, ROOT

from circuit.errors import TaskError
from circuit.task import batches, encode, load_task, token_ids, unknown_pieces, with_swap_rows

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
