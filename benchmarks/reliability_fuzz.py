"""Damaged and hostile files for every reader: what each makes of valid files that were mutated.

A mutated file may be read or refused, with a ``PersonaCircuitsError`` of bounded length; anything else is a bug.
``READERS`` are the readers with a valid file each, ``mutations`` the strategy that damages it, ``outcome`` what came
of one file, and ``table`` the counts for docs/reliability.md. tests/test_fuzz.py asks the same of the same files.

python benchmarks/reliability_fuzz.py [--examples 10000] [--only "pair file"]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from persona_circuits.circuit.catalogue import ORIGIN_FILE
from persona_circuits.circuit.errors import PersonaCircuitsError
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.io import circuit_record, faults_of, read_circuit, read_groups, read_scores
from persona_circuits.circuit.model import Origin, origin_of
from persona_circuits.circuit.page import circuit_page, page_faults, page_html, read_page
from persona_circuits.circuit.page.run import read_sweep
from persona_circuits.circuit.page.verdicts import read_verdicts
from persona_circuits.circuit.peers import check_model, prune_scores, read_autocircuit_scores, read_submission
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import DamagedState, read_state, state_metadata
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import load_task
from persona_circuits.persona.bridge import fingerprint_of, read_movers, read_neuron_mlps, read_nodes
from persona_circuits.persona.data import (
    load_examples,
    load_items,
    load_neutral,
    load_templates,
    load_tokenizer,
    read_answers,
    read_contrast,
    read_personas,
    read_questions,
)
from persona_circuits.persona.explanation import CLAIMS, load_calibration, load_thresholds
from persona_circuits.persona.pairs import read_neutral_wordings, read_rules, vary
from persona_circuits.persona.responses import Journal, rater_prompt, read_responses
from persona_circuits.persona.study import load_plan
from persona_circuits.persona.study import run as study
from persona_circuits.persona.vectors import directions, read_vectors

__all__ = ["LONGEST", "READERS", "Reader", "mutations", "outcome", "table"]

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 4000
"""Characters of a message."""
GRAPH = Graph(2, 2)


@dataclass(frozen=True)
class Reader:
    """A reader by the name of its file; ``kind`` is text, csv, json, jsonl or tensors, ``valid`` a file that it reads.

    Tensors are ``{"arrays": …, "metadata": …}``, JSON a value, JSON Lines a list of them, everything else a text.
    """

    name: str
    kind: str
    file: str
    valid: Any
    read: Callable[[Path], Any]


def table(examples: int = 10_000, only: Sequence[str] = (), tell: Callable[[str], None] | None = None) -> str:
    """A Markdown table: of every reader how many mutated files it was given, read and refused, and how many bugs."""
    rows = ["| reader | inputs | read | refused | tracebacks |", "|---|---|---|---|---|"]
    total: Counter[str] = Counter()
    for reader in READERS:
        if not only or reader.name in only:
            counts, bugs = counted(reader, examples)
            total += counts
            rows.append(_row(reader.name, counts))
            if tell is not None:
                tell(rows[-1])
                for bug in bugs:
                    tell(f"    {bug}")
    return "\n".join([*rows, _row("all", total)])


def _row(name: str, counts: Counter[str]) -> str:
    numbers = (counts.total(), counts["read"], counts["refused"], counts["traceback"])
    return f"| {name} | {' | '.join(f'{number:,}' for number in numbers)} |"


def counted(reader: Reader, examples: int) -> tuple[Counter[str], list[str]]:
    """Outcomes of so many mutated files, the same at every call, and the bugs that were found, each once."""
    counts: Counter[str] = Counter()
    bugs: dict[str, None] = {}
    with tempfile.TemporaryDirectory() as folder:

        @settings(
            max_examples=examples,
            database=None,
            derandomize=True,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(mutations(reader))
        def each(content: bytes) -> None:
            try:
                counts[outcome(reader, content, Path(folder))] += 1
            except Exception as error:  # every one of them is a bug that is counted
                counts["traceback"] += 1
                bugs[f"{type(error).__name__}: {error}"[:200]] = None

        each()
    return counts, list(bugs)


def outcome(reader: Reader, content: bytes, folder: Path) -> str:
    """``read`` or ``refused``; any other exception of the reader passes through.

    Raises:
        AssertionError: the reader refuses the file with a message that is too long or cannot be printed.
    """
    path = folder / reader.file
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DamagedState)
            reader.read(path)
    except PersonaCircuitsError as error:
        message = str(error)
        assert message.strip(), "the message is empty"
        assert len(message) < LONGEST, f"the message has {len(message)} characters"
        message.encode("utf-8")
        return "refused"
    return "read"


def encoded(reader: Reader, value: Any, *, ascii_only: bool = False) -> bytes:
    """A value of a reader's kind as its file."""
    if reader.kind == "tensors":
        from safetensors.torch import save

        return save(
            {name: tensor.clone().contiguous() for name, tensor in value["arrays"].items()}, value["metadata"] or None
        )
    if reader.kind == "json":
        return _json(value, ascii_only)
    if reader.kind == "jsonl":
        return b"\n".join(_json(row, ascii_only) for row in value) + b"\n"
    return value.encode("utf-8")


def _json(value: Any, ascii_only: bool) -> bytes:
    """As ``json.dumps``, NaN and infinity included; half a surrogate pair as its bytes, which are no UTF-8."""
    text = json.dumps(value, ensure_ascii=ascii_only)
    for mark, token in RAW.items():
        text = text.replace(json.dumps(mark), token)
    return text.encode("utf-8", "surrogatepass")


RAW = {
    "<huge float>": "1e999",
    "<huge integer>": "9" * 5000,
    "<nested>": "[" * 1000 + "]" * 1000,
    "<nested objects>": '{"a":' * 1000 + "1" + "}" * 1000,
    "<surrogate>": '"\\ud800"',
    "<twice>": '{"a": 1, "a": 2}',
}
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 2.0, 0.5, -1.5, 10**18, 2**63, 10**99, 1e308, 5e-324),
    *(
        "",
        " ",
        "a",
        "x" * 5000,
        "a0.h0",
        "m0",
        "m99999999999",
        "a1٣.h0",
        "input",
        "logits",
        "input->m0",
        "\ufeff",
        "\u2028",
    ),
    *("[/]", "\x1b[31m", "=1+1", "{persona}", "{", "%s", "\x00", "../../etc", "1e999", "<none>"),
    *([], {}, [1], ["a"], [[]], [None], {"a": 1}, {"": ""}, [0, 0], [3, 1], [1, 2, 3], {"tokens": [0, 10**30]}),
    *(float("nan"), float("inf"), -float("inf"), *RAW),
)
ODD_BYTES = (
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xc2\x85", b"\x1b[2J", b"\r", b"\r\n"),
    *(b"\n", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b";", b"\t", b":", b"NaN", b"Infinity", b"1e999", b"\\ud83d"),
    *(b"9" * 400, b"[" * 400, b'{"a":' * 400, b"{%", b"{{ 1 / 0 }}", b"null", b"-", b"GGUF", b"x" * 3000),
)
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool, torch.complex64),
)


def mutations(reader: Reader) -> SearchStrategy[bytes]:
    """Files made of the reader's valid one: its values changed, then perhaps its bytes."""
    changed = _changed_tensors(reader) if reader.kind == "tensors" else _changed_values(reader)
    return st.one_of(changed, changed, _changed_bytes(st.just(encoded(reader, reader.valid))), _changed_bytes(changed))


def _changed_values(reader: Reader) -> SearchStrategy[bytes]:
    if reader.kind not in ("json", "jsonl"):
        return _changed_text(encoded(reader, reader.valid))
    places = list(_places(reader.valid))
    own = st.sampled_from([_at(reader.valid, place) for place in places])

    @st.composite
    def changed(draw: Any) -> bytes:
        value = deepcopy(reader.valid)
        for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
            value = _changed_at(value, draw(st.sampled_from(places)), draw(HOW), draw(ODD | own))
        return encoded(reader, value if reader.kind == "json" else _rows(value), ascii_only=draw(st.booleans()))

    return changed()


HOW = st.sampled_from(("put", "put", "put", "drop", "rename", "repeat", "wrap"))
ODD = (
    st.sampled_from(ODD_VALUES)
    | st.text(max_size=8).map(lambda text: text.replace("\ud800", ""))
    | st.integers()
    | st.floats()
)


def _rows(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    """The ways to every value inside a value, itself first."""
    yield before
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(part, (*before, key))


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def _changed_at(value: Any, place: tuple[Any, ...], how: str, odd: Any) -> Any:
    """The value with another at a place, or without it; as it is where the place is gone by now."""
    if not place:
        return deepcopy(odd) if how == "put" else value
    holder = value
    try:
        for key in place[:-1]:
            holder = holder[key]
        own = holder[place[-1]]
        if how == "put":
            holder[place[-1]] = deepcopy(odd)
        elif how == "wrap":
            holder[place[-1]] = [own]
        elif how == "repeat" and isinstance(holder, list):
            holder.append(deepcopy(own))
        elif how == "rename" and isinstance(holder, dict):
            holder[str(odd)[:20]] = holder.pop(place[-1])
        else:
            del holder[place[-1]]
    except (KeyError, IndexError, TypeError):
        pass
    return value


def _changed_text(content: bytes) -> SearchStrategy[bytes]:
    """Lines dropped, repeated, cut, or put in another order."""
    lines = content.split(b"\n")
    return st.lists(st.sampled_from([*lines, *ODD_BYTES]), max_size=len(lines) + 2).map(b"\n".join)


def _changed_bytes(contents: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    """A few bytes flipped, a piece cut out, something put in, or the end lost."""

    @st.composite
    def changed(draw: Any) -> bytes:
        content = bytearray(draw(contents))
        for _ in range(draw(st.sampled_from((1, 1, 1, 2, 4)))):
            at = draw(st.integers(0, max(0, len(content) - 1)))
            kind = draw(st.sampled_from(("flip", "put", "cut", "end", "again")))
            if kind == "flip" and content:
                content[at] ^= draw(st.integers(1, 255))
            elif kind == "put":
                content[at:at] = draw(st.sampled_from(ODD_BYTES) | st.binary(max_size=6))
            elif kind == "cut":
                del content[at : at + draw(st.integers(1, 20))]
            elif kind == "again":
                content[at:at] = content[at : at + draw(st.integers(1, 50))]
            elif kind == "end":
                del content[at:]
        return bytes(content)

    return changed()


def _changed_tensors(reader: Reader) -> SearchStrategy[bytes]:
    names = list(reader.valid["arrays"])

    @st.composite
    def changed(draw: Any) -> bytes:
        arrays, metadata = dict(reader.valid["arrays"]), dict(reader.valid["metadata"])
        for _ in range(draw(st.integers(1, 2))):
            name, kind = (
                draw(st.sampled_from(names)),
                draw(st.sampled_from(("dtype", "shape", "value", "drop", "add", "about"))),
            )
            if kind == "about" and metadata:
                key = draw(st.sampled_from(list(metadata)))
                metadata[key] = _changed_about(metadata[key], draw(st.integers(0, 200)), draw(HOW), draw(ODD))
            elif name in arrays:
                arrays = _changed_array(arrays, name, kind, draw(st.integers(0, 200)))
        return encoded(reader, {"arrays": arrays, "metadata": metadata})

    return changed()


def _changed_array(arrays: dict[str, Any], name: str, kind: str, number: int) -> dict[str, Any]:
    tensor = arrays[name]
    if kind == "dtype":
        return {**arrays, name: tensor.to(torch.float32).to(DTYPES[number % len(DTYPES)])}
    if kind == "shape":
        flat = tensor.reshape(-1)
        twice = torch.cat([flat, flat]).reshape(2, *tensor.shape)
        shapes = (flat, flat[:1], flat[:0], tensor[None], torch.zeros(()), twice)
        return {**arrays, name: shapes[number % len(shapes)]}
    if kind == "value" and tensor.numel():
        flat = tensor.clone().reshape(-1)
        if flat.dtype.is_floating_point:
            flat[number % len(flat)] = (float("nan"), float("inf"), 1e30, 0.0)[number % 4]
        elif flat.dtype != torch.bool:
            flat[number % len(flat)] = (-1, 0, 2_000, 2**40)[number % 4] if flat.dtype == torch.int64 else 0
        return {**arrays, name: flat.reshape(tensor.shape)}
    if kind == "drop":
        return {other: tensor for other, tensor in arrays.items() if other != name}
    return {**arrays, f"{name}\u2028{number}": tensor}


def _changed_about(text: str, number: int, how: str, odd: Any) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text[: number % (len(text) + 1)]
    places = list(_places(value))
    return _json(_changed_at(value, places[number % len(places)], how, odd), True).decode("utf-8", "replace")


PAIR = {
    "id": "home-0",
    "clean": "you are a happy cook. you choose red or blue? answer:",
    "corrupt": "you are a sad cook. you choose red or blue? answer:",
    "answers": [" blue"],
    "wrong_answers": [" red"],
    "persona_a": "monk",
    "persona_b": "king",
    "question": "home",
    "split": "train",
    "candidates": [" blue", " red", " green"],
    "domain": "home",
    "template": "t",
    "wording_a": 0,
    "neutral": "you are a very cook. you choose red or blue? answer:",
    "spans": {side: {"persona": {"tokens": [0, 6]}, "question": {"tokens": [6, 12]}} for side in ("clean", "corrupt")},
}
FORMS = {" blue": [" blue", " a blue"], " red": [" red or green"]}
PAIRS = [PAIR, PAIR | {"id": "home-1", "split": "test", "forms": FORMS}]
PROMPTS = [{key: row[key] for key in ("clean", "corrupt", "answers", "wrong_answers")} for row in PAIRS]
PERSONAS = [
    {
        "id": "monk",
        "descriptions": ["You are a monk.", "You live in a cell."],
        "traits": {"calm": 1.5},
        "opposite": "king",
    },
    {"name": "king", "wordings": ["You are a king."], "held_out_description": 0},
]
QUESTIONS = [
    {
        "id": "home",
        "wordings": ["Which home?", "Name a home."],
        "options": ["hut", "palace"],
        "prefers": {"monk": "hut"},
    },
    {
        "id": "tea",
        "wordings": ["Tea?"],
        "options": [{"word": "yes", "affinity": {"calm": 1}}, {"word": "no"}],
        "cue": "A:",
    },
    {"question": "What is good?", "id": 7},
]
ROLE = {"instruction": [{"pos": "Be a monk.", "neg": "Be a king."}], "questions": ["What is good?"]}
EVALS = [{"question": "Is it true?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}]
RESPONSE = {
    **{
        "persona": "monk",
        "wording": 0,
        "question": "home",
        "question_wording": 0,
        "sample": 0,
        "system": "You are a monk.",
    },
    **{"user": "Which home?", "response": "A hut.", "finish": "stop", "model": "m", "fingerprint": "f", "prompt": "p"},
    **{"prompt_ids": [1, 2], "ids": [3]},
}
PLAN = [
    {"id": "a", "says": "it is large", "number": "D", "is": ">=", "value": 1},
    {"id": "b", "says": "both", "all": [{"number": "D", "is": "between", "value": [0, 1]}], "else": "undecided"},
]
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
NEUTRALS = [{"id": "q", "wordings": ["a", "b"]}, {"question": "q", "wording": "a", "prompt": "a:"}]
NUMBER = {"value": 1.5, "low": 1.0, "high": 2.0, "n": 3, "what": "a number", "source": "behaviour"}
MOVERS = {
    "format": "persona-circuits/patch",
    "model": {"name": "m", "fingerprint": "f"},
    "movers": [{"head": "a0.h1", "is_mover": True}, {"head": "a1.h0", "is_mover": False}],
}
CALIBRATION = {
    "format": "persona-circuits/calibration",
    "version": 1,
    "fingerprint": "f",
    "thresholds": "t",
    "average": False,
    "causal": True,
    "null": {"n": 2, "sigma_0": 0.5, "signal_answer": 0.1, "stronger_side": None},
    "cuts": {name: {"least": 0.5, "rate": 0.0, "promise": 0.05, "n": 19, "clusters": 19} for name in CLAIMS},
    "training": ["paraphrase: a / a"],
    "held_out": [
        {"verdict": CLAIMS[0], "kind": "all", "pairs": 0, "n": 9, "clusters": 9}
        | {"share": 0.0, "lower": 0.0, "upper": 0.3}
    ],
    "withheld": [],
}
NEURONS = {
    "format": "persona-circuits/neurons",
    "model": {"name": "m", "fingerprint": "f"},
    "selected": [{"layer": 0, "neuron": 5}],
    "layers": [{"layer": 0}, {"layer": 1}],
}
VECTORS = {
    **{"personas": ["monk", "king"], "questions": ["home", "tea"], "n_responses": [2, 2], "n_tokens": [9, 8]},
    **{
        "prompt_lengths": [5.0, 5.5],
        "model": "m",
        "fingerprint": "f",
        "left_out": {"empty": 1},
        "layer": 1,
        "baseline": None,
    },
}


def _record() -> dict[str, Any]:
    """A circuit.json: a shipped one's history with a circuit of two layers."""
    known = json.loads((ROOT / "logs/first_study/persona-world/circuit/circuit.json").read_text("utf-8"))
    kept = {key: value for key, value in known.items() if key not in ("counts", "nodes", "edges", "stability")}
    kept["model"] = kept["model"] | {"n_layers": 2, "n_heads": 2, "parallel": False}
    circuit = Circuit.of(GRAPH, ["input->a0.h1<v>", "a0.h1->m1", "m1->logits"])
    return json.loads(json.dumps(circuit_record(circuit, _scores(), kept)))


def _scores() -> Scores:
    return Scores(GRAPH, np.random.default_rng(0).normal(size=GRAPH.valid.shape))


def _eap_ig() -> dict[str, Any]:
    edges = {name: {"score": score, "in_graph": score > 0} for name, score in _scores().as_dict().items()}
    nodes = {name: {"in_graph": True} for name in (*map(str, GRAPH.src_nodes), "logits")}
    config = {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    return {"cfg": config, "nodes": nodes, "edges": edges}


def _mib_nodes() -> dict[str, Any]:
    content = _eap_ig()
    return content | {
        "nodes": {name: {"in_graph": True, "score": 0.5} for name in content["nodes"]},
        "edges": {name: {"score": 0.0, "in_graph": True} for name in content["edges"]},
    }


def _stage() -> dict[str, Any]:
    return {"stage": "behaviour", "inputs": "d", "notes": ["n"], "extras": {"a": [1]}, "numbers": {"D": NUMBER}}


def _arrays(arrays: dict[str, Any], metadata: dict[str, str] | None = None) -> dict[str, Any]:
    return {"arrays": {name: torch.as_tensor(array) for name, array in arrays.items()}, "metadata": metadata or {}}


def _state() -> dict[str, Any]:
    arrays = {"mask": GRAPH.valid.copy(), "values": np.array([1.0, 2.0])}
    return _arrays(arrays, state_metadata("search", arrays))


def _vectors() -> dict[str, Any]:
    means = np.random.default_rng(1).normal(size=(2, 2, 4)).astype(np.float32)
    return _arrays({"means": means, "halves": np.stack([means, means])}, {"about": json.dumps(VECTORS)})


@cache
def _tiny() -> Any:
    return load_tokenizer(str(ROOT / "tests/data/tiny-gpt2"))


def _read_circuit(path: Path) -> None:
    """``validate`` and the commands must be of one mind."""
    faults, failure = faults_of(path), None
    try:
        read_circuit(path)
    except PersonaCircuitsError as error:
        failure = error
    assert bool(faults) == (failure is not None), f"validate finds {faults[:2]}, and reading says {failure}"
    if failure is not None:
        raise failure


def _read_scores(path: Path) -> None:
    faults, failure = faults_of(path), None
    try:
        read_scores(path)
    except PersonaCircuitsError as error:
        failure = error
    assert bool(faults) == (failure is not None), f"validate finds {faults[:2]}, and reading says {failure}"
    if failure is not None:
        raise failure


def _read_journal(path: Path) -> None:
    with Journal(path) as journal:
        journal.get("k", text=str, finish=str, ids=list)
        journal.get("l", text=str, finish=str, model=str)


def _read_template(path: Path) -> None:
    values = {"persona": "P", "filler": "F", "question": "Q", "options": "a or b", "cue": "A:"}
    for template in load_templates(str(path), None):
        template.render(values)


def _read_chat_template(path: Path) -> None:
    from persona_circuits.circuit.storage import Kind, read_text

    tokenizer = deepcopy(_tiny().tokenizer)
    tokenizer.chat_template = read_text(path, Kind("chat template"))
    values = {"persona": "P", "filler": "", "question": "Q", "options": "a or b", "cue": "A:"}
    load_templates("chat", tokenizer)[0].render(values)


def _origin() -> dict[str, Any]:
    return Origin("tiny.gguf", "0" * 64, "Q4_1", "PyPI tiny==1.0.0", "MIT").as_dict()


GROUPS = {"format": "persona-circuits/groups", "version": 1, "groups": {"movers": ["a0.h1", "m1"], "rest": ["input"]}}
POINT = {
    "tau": 0.5,
    "asked": 3,
    "n_edges": 2,
    "faithfulness": {"test": 0.5},
    "intervals": {"test": {"low": 0.1, "high": 0.9}},
    "medians": {"test": 0.4},
}
EXPLAINED = {
    "format": "persona-circuits/explain",
    "version": 1,
    "model": {"name": "m", "fingerprint": "0" * 64},
    "sources": [{"source": "pairs.jsonl", "sha256": "0" * 64}],
    "null": {"n": 8, "sigma_0": 0.04},
    "tests": {},
    "groups": [],
    "resampled": "pairs",
}


def _page_text() -> str:
    """A page of two edges."""
    page = circuit_page(Circuit.of(GRAPH, ("input->m0", "m0->logits")))
    return page_html(page.data)


READERS: tuple[Reader, ...] = (
    Reader("pair file", "jsonl", "pairs.jsonl", PAIRS, load_task),
    Reader("groups of nodes", "json", "groups.json", GROUPS, partial(read_groups, graph=GRAPH)),
    Reader("sweep of a run", "json", "sweep.json", {"points": [POINT]}, read_sweep),
    Reader("verdicts of explain", "json", "explain.json", EXPLAINED, read_verdicts),
    Reader("page of a circuit", "text", "page.html", _page_text(), lambda path: page_faults(read_page(path))),
    Reader("pair file, an array", "json", "pairs.json", PAIRS, load_task),
    Reader("pair file, auto-circuit's", "json", "prompts.json", {"prompts": PROMPTS}, load_task),
    Reader("pair file with candidates", "jsonl", "items.jsonl", PAIRS, load_items),
    Reader(
        "pair file against a tokenizer",
        "jsonl",
        "examples.jsonl",
        PAIRS,
        lambda path: load_examples(path, _tiny(), takes_forms=True),
    ),
    Reader("neutral wordings by question", "jsonl", "neutral.jsonl", NEUTRALS, load_neutral),
    Reader(
        "list of neutral wordings", "text", "neutral.txt", "You are a person.\nYou are here.\n", read_neutral_wordings
    ),
    Reader("circuit.json", "json", "circuit.json", _record(), _read_circuit),
    Reader("EAP-IG's JSON", "json", "graph.json", _eap_ig(), _read_circuit),
    Reader("note of a model's origin", "json", ORIGIN_FILE, _origin(), lambda path: origin_of(path.parent)),
    Reader("list of nodes", "json", "nodes.json", {"nodes": ["input", "a0.h1", "m1"]}, read_nodes),
    Reader("nodes of a circuit", "json", "circuit-of.json", _eap_ig(), lambda path: read_nodes(path).of(GRAPH)),
    Reader("submission to MIB, edges", "json", "importances.json", _eap_ig(), read_submission),
    Reader("submission to MIB, nodes", "json", "importances-of-nodes.json", _mib_nodes(), read_submission),
    Reader(
        "scores.safetensors",
        "tensors",
        "scores.safetensors",
        _arrays({"graph": np.array([2, 2, 0]), "scores": _scores().values.copy()}),
        _read_scores,
    ),
    Reader(
        "auto-circuit's scores",
        "tensors",
        "peer.safetensors",
        _arrays(prune_scores(_scores())),
        read_autocircuit_scores,
    ),
    Reader("state of a search", "tensors", "acdc.state", _state(), lambda path: read_state(path, "search")),
    Reader(
        "auto-circuit's config.json",
        "json",
        "config.json",
        {"model_type": "gpt2", "num_attention_heads": 2, "scale_attn_weights": True},
        lambda path: check_model(path.parent),
    ),
    Reader("personas", "jsonl", "personas.jsonl", PERSONAS, read_personas),
    Reader(
        "personas, CSV",
        "csv",
        "personas.csv",
        'name,wording\nmonk,"You are a monk, so."\nking,You are a king.\n',
        read_personas,
    ),
    Reader("personas, assistant-axis", "json", "role.json", ROLE, read_personas),
    Reader(
        "personas, Anthropic's evals",
        "jsonl",
        "evals.jsonl",
        EVALS,
        lambda path: (read_personas(path), read_questions(path)),
    ),
    Reader("questions", "jsonl", "questions.jsonl", QUESTIONS, read_questions),
    Reader(
        "questions, CSV",
        "csv",
        "questions.csv",
        "id,wording,options,prefers\nhome,Which home?,hut|palace,monk=hut|king=palace\n",
        read_questions,
    ),
    Reader("questions, assistant-axis", "json", "role-questions.json", ROLE, read_questions),
    Reader("answers", "csv", "answers.csv", "persona,question,option\nmonk,home,hut\nking,home,palace\n", read_answers),
    Reader("contrast", "csv", "contrast.csv", "persona_a,persona_b\nmonk,king\nmonk,actor\n", read_contrast),
    Reader("template", "text", "template.txt", "{persona}\n{filler}\nQ: {question}\n{options}\n{cue}", _read_template),
    Reader(
        "template, JSON",
        "json",
        "template.json",
        {"template": "{persona}\n{question}\n{cue}", "cue": "A:", "filler": ["So."], "neutral": ["You are."]},
        _read_template,
    ),
    Reader(
        "templates with cues",
        "json",
        "templates.json",
        {"cues": [{"before_question": "Q: ", "answer_cue": "A:"}], "filler": ["So.", "Then."]},
        _read_template,
    ),
    Reader("chat template", "text", "chat.jinja", CHAT, _read_chat_template),
    Reader("rules of vary", "json", "rules.json", {"plain": [], "late": [["You (.*?)\\.", "\\1 you."]]}, read_rules),
    Reader("pair file of vary", "jsonl", "vary.jsonl", PAIRS, lambda path: vary(path, {"plain": ()}, _tiny())),
    Reader("responses", "jsonl", "responses.jsonl", [RESPONSE, RESPONSE | {"persona": "king"}], read_responses),
    Reader(
        "journal",
        "jsonl",
        "journal.jsonl",
        [
            {"key": "k", "text": "a", "finish": "stop", "ids": [1]},
            {"key": "l", "text": "b", "finish": "stop", "model": "m"},
        ],
        _read_journal,
    ),
    Reader(
        "vectors.safetensors", "tensors", "vectors.safetensors", _vectors(), lambda path: read_vectors(path).compared()
    ),
    Reader(
        "direction file",
        "tensors",
        "direction.safetensors",
        _arrays({"w": np.ones((2, 4), np.float32)}),
        lambda path: directions._array(path, "w", None, (2, 4)),
    ),
    Reader("rater's prompt", "text", "rater.txt", "Persona: {persona}\n{question}\n{reply}\nRating: N\n", rater_prompt),
    Reader("patch.json", "json", "patch.json", MOVERS, lambda path: (fingerprint_of(path), read_movers(path, GRAPH))),
    Reader(
        "neurons.json",
        "json",
        "neurons.json",
        NEURONS,
        lambda path: (fingerprint_of(path), read_neuron_mlps(path, GRAPH)),
    ),
    Reader(
        "thresholds",
        "json",
        "thresholds.json",
        json.loads((ROOT / "persona/explanation/thresholds.json").read_text("utf-8")),
        load_thresholds,
    ),
    Reader("calibration", "json", "calibration.json", CALIBRATION, load_calibration),
    Reader("plan of predictions", "json", "plan.json", PLAN, load_plan),
    Reader(
        "stage of a study", "json", "stage.json", _stage(), lambda path: study._finished(path.parent, "behaviour", "d")
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, reader by reader; 1 if there is a bug."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, default=10_000, help="files for each reader")
    parser.add_argument("--only", action="append", default=[], help="a reader's name; may be repeated")
    options = parser.parse_args(argv)
    text = table(options.examples, options.only, tell=lambda line: print(line, file=sys.stderr, flush=True))
    print(text)
    return int(not text.endswith("| 0 |"))


if __name__ == "__main__":
    sys.exit(main())
