"""Every reader of files, given valid files that were damaged: it reads or refuses them, and never fails otherwise.

The files and what is asked of them are those of benchmarks/reliability_fuzz.py. A run of 10,000 files for each reader:
PERSONA_CIRCUITS_FUZZ=10000 python -m pytest tests/test_fuzz.py
"""

import contextlib
import json
import os
import shutil
import sys
from dataclasses import replace

import pytest
from conftest import DATA, ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persona_circuits.circuit.errors import ModelError, PersonaCircuitsError
from persona_circuits.circuit.storage import parse_json
from persona_circuits.persona.data import load_tokenizer

sys.path.insert(0, str(ROOT / "benchmarks"))

from reliability_fuzz import READERS, counted, encoded, mutations, outcome, table

EXAMPLES = int(os.environ.get("PERSONA_CIRCUITS_FUZZ", "200"))
FAST = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

BY_NAME = pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)


@BY_NAME
def test_the_valid_file_is_read(reader, tmp_path):
    content = encoded(reader, reader.valid)
    assert outcome(reader, content, tmp_path) == "read"
    if reader.kind != "tensors":  # Windows' line ends and byte order mark change nothing
        assert outcome(reader, b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"), tmp_path) == "read"


@BY_NAME
def test_a_damaged_file_is_read_or_refused_in_a_sentence(reader, tmp_path):
    @FAST
    @given(content=mutations(reader))
    def each(content):
        outcome(reader, content, tmp_path)

    each()


@BY_NAME
def test_a_folder_an_empty_file_or_no_file_is_no_bug(reader, tmp_path):
    outcome(reader, b"", tmp_path)
    (tmp_path / reader.file).unlink()
    (tmp_path / "folder" / reader.file).mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "folder"):
        with contextlib.suppress(PersonaCircuitsError):
            reader.read(folder / reader.file)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_damaged_tokenizer_is_refused_in_a_sentence(name, tmp_path):
    folder = shutil.copytree(DATA / "tiny-gpt2", tmp_path / "model")
    whole = json.loads((folder / name).read_text())
    odd = ["", "[]", "null", "\0", '{"a":' * 2000, *(json.dumps({**whole, key: {"a": [1]}}) for key in list(whole)[:9])]
    refused = []
    for text in odd:
        (folder / name).write_text(text)
        try:
            load_tokenizer(str(folder))
        except ModelError as error:
            refused.append(str(error))
    assert len(refused) > 5
    assert all(str(folder) in message and "\n" not in message for message in refused), refused


def test_bugs_are_counted():
    def breaks(path):
        return 1 / len(path.read_bytes().strip())

    broken = replace(READERS[0], read=breaks)
    counts, bugs = counted(broken, 60)
    assert counts["traceback"]
    assert bugs == ["ZeroDivisionError: division by zero"]


def test_the_table_counts_every_file():
    lines = table(5, only=["contrast", "plan of predictions"]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| contrast", "| plan of predictions", "| all"]
    counts = [[int(cell.strip(" |")) for cell in line.split(" | ")[1:]] for line in lines[2:]]
    assert all(row[0] == row[1] + row[2] and row[3] == 0 for row in counts)
    assert counts[2][0] == counts[0][0] + counts[1][0]


SCALARS = st.none() | st.booleans() | st.integers(-(10**90), 10**90) | st.text()


@FAST
@given(st.recursive(SCALARS, lambda part: st.lists(part) | st.dictionaries(st.text(), part)))
def test_what_is_json_is_read_as_python_reads_it(value):
    text = json.dumps(value)
    assert parse_json(text) == json.loads(text)
