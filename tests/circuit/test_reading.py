import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from persona_circuits.circuit.errors import FileError, PersonaCircuitsError, TaskError, listed
from persona_circuits.circuit.graph import Graph, parse_node
from persona_circuits.circuit.io import faults_of, read_circuit, write_scores
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import (
    DamagedState,
    Kind,
    NotJson,
    json_lines,
    parse_json,
    read_bytes,
    read_json,
    read_state,
    read_tensors,
    read_text,
    reading,
    state_metadata,
    table_kind,
)
from persona_circuits.circuit.task import load_task

NOTES = Kind("note", TaskError)
PAIR = {"clean": "A b", "corrupt": "C b", "answers": [" x"], "wrong_answers": [" y"]}


def test_text_loses_its_mark_and_windows_ends_of_lines_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffa\r\nb\u2028c\u0085d\rend \ufeff\n".encode())
    assert read_text(path, NOTES) == "a\nb\u2028c\u0085d\rend \ufeff\n"


def test_what_cannot_be_read_is_one_sentence_with_the_noun(tmp_path):
    for path, says in (
        (tmp_path / "none", "note .*none cannot be read \\(No such file or directory\\); check the path"),
        (tmp_path, "cannot be read \\(Is a directory\\)"),
        ("a\0b", "cannot be read \\(embedded null byte\\)"),
        (tmp_path / ("n" * 300), "cannot be read \\(File name too long\\)"),
    ):
        with pytest.raises(TaskError, match=says):
            read_bytes(path, NOTES)
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(TaskError, match=r"is not UTF-8 text \(byte 3\); save it as UTF-8"):
        read_text(tmp_path / "latin", NOTES)
    with pytest.raises(TaskError, match=r"^note mine cannot be read"):
        read_bytes(tmp_path / "none", NOTES, label="mine")


def test_size_and_lines_are_bounded(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x\n" * 50)
    monkeypatch.setattr(reading, "MAX_BYTES", 99)
    with pytest.raises(TaskError, match="more than 99 bytes"):
        read_bytes(tmp_path / "a", NOTES)
    monkeypatch.setattr(reading, "MAX_BYTES", 100)
    monkeypatch.setattr(reading, "MAX_LINES", 49)
    with pytest.raises(TaskError, match="more than 49 lines"):
        read_text(tmp_path / "a", NOTES)
    monkeypatch.setattr(reading, "MAX_LINES", 50)
    assert len(read_text(tmp_path / "a", NOTES)) == 100


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("[" * 65 + "]" * 65, ["it is nested more than 64 levels deep"]),
        ("[" * 100_000, ["it is nested more than 64 levels deep"]),
        ('{"a":' * 1000 + "1" + "}" * 1000, ["it is nested more than 64 levels deep"]),
        ('{"a": [1, NaN], "b": {"c": -Infinity}}', ["a[1]: NaN is no number", "b.c: -Infinity is no number"]),
        ('{"a": 1e999}', ["a: 1e999 is too large for a number"]),
        ("9" * 5000, ["a whole number of 5,000 digits; at most 100 are read"]),
        ('[{"a": 1, "a": 2}]', ["[0]: the key 'a' stands twice in an object"]),
        ('{"x": "\\ud800"}', ["x: half of a surrogate pair, which is no character"]),
        ('{"\\udc00": 1}', ["half of a surrogate pair, which is no character"]),
        ("nope", ["Expecting value"]),
        ("", ["Expecting value"]),
    ],
)
def test_what_is_no_json_is_told_with_its_places(text, faults):
    with pytest.raises(NotJson) as caught:
        parse_json(text)
    assert caught.value.faults == faults


def test_what_is_json_is_read():
    assert parse_json("[" * 64 + "]" * 64)
    assert parse_json("9" * 100) == int("9" * 100)
    assert parse_json("-" + "9" * 100) == -int("9" * 100)
    assert parse_json('["\\ud83d\\ude00", 1e308, 5e-324, -0.0, "\u2028", "NaN"]') == [
        "😀",
        1e308,
        5e-324,
        0,
        "\u2028",
        "NaN",
    ]
    assert parse_json(json.dumps([[1]] * 1000)) == [[1]] * 1000


def test_json_lines_are_split_at_line_feeds_only():
    faults = []
    found = list(json_lines('{"a": "x\u2028y"}\n\n"\u0085"\n{bad\n[1e999, NaN]\n', faults))
    assert found == [(1, {"a": "x\u2028y"}), (3, "\u0085")]
    assert faults == [
        "line 4: not JSON (Expecting property name enclosed in double quotes at column 2)",
        "line 5: not JSON ([0]: 1e999 is too large for a number)",
        "line 5: not JSON ([1]: NaN is no number)",
    ]


def test_a_json_file_lists_all_of_its_faults(tmp_path):
    (tmp_path / "a").write_text('{"a": NaN,\n "b": [1e999]}')
    with pytest.raises(TaskError, match=r"(?s)note .*a has 2 fault\(s\):\n  a: NaN is no number\n  b\[0\]: 1e999"):
        read_json(tmp_path / "a", NOTES)
    (tmp_path / "a").write_text('{"a":\n nope}')
    with pytest.raises(FileError, match=r"file .* is not JSON: Expecting value at line 2, column 2; expected a song"):
        read_json(tmp_path / "a", Kind("file", expected="a song"))


def test_messages_are_short_and_can_be_printed():
    assert len(str(TaskError("x" * 200_000 + "end"))) <= 3500
    assert str(TaskError("x" * 200_000 + "end")).endswith("end")
    assert len(listed("faults:", ["y" * 200_000] * 100)) < 20 * 310
    assert str(FileError("caf\udce9.json is not there")) == "caf\\udce9.json is not there"


def test_tables_are_told_from_json():
    assert table_kind("name,wording\na,b") == "a table separated by commas"
    assert table_kind("\n\nname;wording, too") == "a table separated by semicolons"
    assert table_kind("a\tb;c") == "a table separated by tabs"
    assert table_kind(' {"a": 1, "b": 2}') == table_kind("[1, 2]") == table_kind("text") == table_kind("") == ""


FORMATS = [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", [*FORMATS, torch.int64, torch.int32, torch.uint8, torch.bool], ids=str)
def test_tensors_of_every_format_are_read(tmp_path, dtype):
    tensor = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.25, 0.0]]).to(dtype)
    save_file({"w": tensor, "other": torch.zeros(3)}, tmp_path / "a.safetensors", metadata={"about": "b"})
    found = read_tensors(tmp_path / "a.safetensors", NOTES, only=("w", "absent"))
    assert found.names == ("other", "w")
    assert found.metadata == {"about": "b"}
    assert [*found.arrays] == ["w"]
    assert (found.arrays["w"].astype(np.float64) == tensor.double().numpy()).all()


def test_files_of_tensors_that_are_not_read_are_named_and_never_opened(tmp_path):
    for name, content, says in (
        ("a.pt", b"PK\x03\x04", "is a PyTorch pickle, which is not read"),
        ("a.PTH", b"", "is a PyTorch pickle"),
        ("a.bin", b"", "save_file"),
        ("a.safetensors", b"\x80\x02}q\x00.", "is a PyTorch pickle"),
        ("a.gguf", b"", r"is GGUF.* stack its vectors"),
        ("b.safetensors", b"GGUF\x03", "is GGUF"),
        ("a.npz", b"", "NumPy's format"),
        ("c.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("d.safetensors", b"", "cannot be read"),
        ("e.safetensors", b"\xff" * 64, "cannot be read"),
        ("f.safetensors", (2).to_bytes(8, "little") + b"{}", None),
    ):
        (tmp_path / name).write_bytes(content)
        if says is None:
            assert read_tensors(tmp_path / name, NOTES).names == ()
        else:
            with pytest.raises(TaskError, match=says):
                read_tensors(tmp_path / name, NOTES)
    save_file({"c": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "g.safetensors")
    with pytest.raises(TaskError, match="complex"):
        read_tensors(tmp_path / "g.safetensors", NOTES)


def test_a_state_is_used_only_where_it_is_whole(tmp_path):
    from safetensors.numpy import save

    path, arrays = tmp_path / "state", {"a": np.arange(40.0), "b": np.ones((2, 2), bool)}
    content = save(arrays, metadata=state_metadata("mine", arrays))
    assert read_state(path, "mine") == {}
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_state(path, "mine")
        assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in arrays.items()}
        assert read_state(path, "another") == {}
    at = content.index(np.arange(40.0).tobytes()) + 100
    for damaged in (content[:-1], b"torn", content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]):
        path.write_bytes(damaged)
        with pytest.warns(DamagedState, match="is damaged .* its work starts again"):
            assert read_state(path, "mine") == {}


def test_graphs_are_bounded_and_whole(tmp_path):
    assert Graph(126, 128).n_src == 16_255  # Llama 3.1 405B
    for shape, says in (
        ((2000, 40), "at most 1,000,000,000"),
        ((10**30, 1), "at most"),
        ((2, True), "whole number, got True"),
    ):
        with pytest.raises(PersonaCircuitsError, match=says):
            Graph(*shape)
    for name in ("m" + "9" * 5000, "m\u0663", "a0.h1\n"):
        with pytest.raises(PersonaCircuitsError, match="is not a node name"):
            parse_node(name)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"n_layers": 2000, "n_heads": 40}, "at most 1,000,000,000"),
        ({"n_layers": 2.0, "n_heads": 2}, "whole numbers n_layers and n_heads"),
        ({"n_layers": True, "n_heads": 2}, "whole numbers"),
        ({"n_layers": 0, "n_heads": 2}, "at least one layer"),
        ({"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": "no"}, "true or false"),
    ],
)
def test_a_graph_in_a_file_asks_for_no_more_than_is_held(tmp_path, config, says):
    path = tmp_path / "g.json"
    path.write_text(json.dumps({"cfg": config, "nodes": {}, "edges": {}}))
    assert says in faults_of(path)[0]
    with pytest.raises(FileError, match=says.split()[0]):
        read_circuit(path)


def test_validate_knows_scores_and_numbers_that_are_none(tmp_path):
    graph = Graph(2, 2)
    write_scores(Scores(graph, np.zeros(graph.valid.shape)), tmp_path / "scores.safetensors")
    assert faults_of(tmp_path / "scores.safetensors", graph) == []
    assert "expected 3 layers" in faults_of(tmp_path / "scores.safetensors", Graph(3, 2))[0]
    values = torch.zeros(graph.valid.shape, dtype=torch.float64)
    values[0, 0] = float("nan")
    save_file({"graph": torch.tensor([2, 2, 0]), "scores": values}, tmp_path / "bad.safetensors")
    assert "the score of input->a0.h0<q> is nan" in faults_of(tmp_path / "bad.safetensors")[0]
    (tmp_path / "bad.json").write_text(
        '{"cfg": {"n_layers": 1, "n_heads": 1}, "nodes": {}, "edges": {"m0->logits": {"in_graph": true, "score": NaN}}}'
    )
    assert "edges.m0->logits.score: NaN is no number" in faults_of(tmp_path / "bad.json")[0]


def test_pairs_are_read_with_a_mark_with_separators_and_as_an_array(tmp_path):
    text = json.dumps(PAIR, ensure_ascii=False)
    odd = json.dumps(PAIR | {"clean": "A\u2028b"}, ensure_ascii=False)
    for name, content in (
        ("plain.jsonl", f"{text}\n{odd}\n"),
        ("mark.jsonl", f"\ufeff{text}\n{odd}\n"),
        ("windows.jsonl", f"{text}\r\n{odd}\r\n"),
        ("array.json", f"[{text},\n{odd}]"),
        ("pretty.json", json.dumps([PAIR, PAIR | {"clean": "A\u2028b"}], indent=2)),
        ("prompts.JSON", json.dumps({"prompts": [PAIR, PAIR | {"clean": "A\u2028b"}]})),
    ):
        (tmp_path / name).write_bytes(content.encode())
        pairs = load_task(tmp_path / name).pairs
        assert [pair.clean for pair in pairs] == ["A b", "A\u2028b"], name
        assert [pair.line for pair in pairs] == [1, 2]


def test_null_is_read_as_no_key_where_a_key_may_be_absent(tmp_path):
    row = PAIR | dict.fromkeys(("id", "persona_a", "split", "neutral", "spans", "question"))
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (pair,) = load_task(tmp_path / "a.jsonl").pairs
    assert (pair.id, pair.split, pair.neutral, pair.spans) == ("1", "", "", ())
    (tmp_path / "a.jsonl").write_text(json.dumps(PAIR | {"clean": None}))
    with pytest.raises(TaskError, match="'clean' must be a non-empty string"):
        load_task(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "eap.csv",
            "clean,corrupted,correct_idx,incorrect_idx\na,b,1,2\n" * 900,
            r"separated by commas \(EAP-IG's, .*token ids",
        ),
        ("p.tsv", "clean\tcorrupt\n" * 5, "separated by tabs"),
        ("tracr.json", json.dumps({"prompts": [{"clean": [[1, 2]], "corrupt": [[3]]}] * 900}), "prompts as tokens"),
    ],
)
def test_what_is_no_pair_file_is_one_sentence(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(TaskError, match=says) as caught:
        load_task(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert "one JSON object per line" in str(caught.value)


@pytest.mark.slow
def test_a_hundred_thousand_lines_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(PAIR)}\n" * 100_000)
    faults = []
    assert sum(1 for _ in reading.read_json_lines(tmp_path / "a.jsonl", NOTES, faults)) == 100_000
    assert not faults
