"""Compile four RASP programs with tracr (arXiv:2301.05062) and write their weights as plain arrays.

    VENV/bin/python benchmarks/tracr/compile_programs.py [FILE]

Runs in tracr's own environment (``make tracr-compile``), in float64, and writes programs.npz: for every program its
weights by tracr's names, its vocabulary, and what tracr itself puts out at every position of random inputs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
from tracr.compiler import compiling, lib
from tracr.rasp import rasp

BOS, PAD = "begin", "pad"
N_INPUTS = 100
THRIFTY, LAVISH = ("frugal", "modest"), ("lavish", "grand")
PERSONAS = (*THRIFTY, *LAVISH)
TOPICS = ("gift", "house", "meal")


def balance() -> rasp.SOp:
    """Share of ``frugal`` among the words so far, less that of ``lavish``."""
    return lib.make_pair_balance(rasp.tokens, "frugal", "lavish")


def majority() -> rasp.SOp:
    """``plain`` where ``frugal`` was said more often than ``lavish``: a step of the balance."""
    return rasp.categorical(rasp.Map(lambda share: "plain" if share > 0 else "golden", balance())).named("majority")


def answer() -> rasp.SOp:
    """``plain`` or ``golden`` by persona word and topic, which two heads fetch; for a house it is the other way."""
    taste = _fetched(PERSONAS, lambda word: "thrift" if word in THRIFTY else "luxury")
    topic = _fetched(TOPICS, lambda word: word)
    table = {
        (taste, topic): (taste == "thrift") != (topic == "house") for taste in ("thrift", "luxury") for topic in TOPICS
    }
    names = {True: "plain", False: "golden"}
    return rasp.SequenceMap(lambda x, y: names.get(table.get((x, y)), "neither"), taste, topic).named("answer")


def pointer() -> rasp.SOp:
    """The word at the place that the persona word tells: a thrifty one takes index 3, a lavish one index 4."""
    place = _fetched(PERSONAS, lambda word: 3 if word in THRIFTY else 4, none=0)
    return rasp.Aggregate(rasp.Select(rasp.indices, place, rasp.Comparison.EQ), rasp.tokens).named("pointer")


def _fetched(words, value, none="none"):
    """At every position the value of the one word of ``words`` before it."""
    values = rasp.Map(lambda word: value(word) if word in words else none, rasp.tokens)
    found = rasp.Map(lambda word: word in words, rasp.tokens)
    return rasp.Aggregate(rasp.Select(found, rasp.tokens, lambda key, _: key), values)


PROGRAMS = {
    "balance": (balance, {"frugal", "lavish", "and", "the"}, 6),
    "majority": (majority, {"frugal", "lavish", "and", "the"}, 6),
    "answer": (answer, {*PERSONAS, *TOPICS, "i", "am", "want", "the"}, 6),
    "pointer": (pointer, {*PERSONAS, "i", "am", "pen", "pearl", "cup", "ring", "the"}, 6),
}


def arrays(program: rasp.SOp, words: set[str], length: int) -> dict[str, np.ndarray]:
    """Weights, vocabulary, inputs and outputs of one compiled program."""
    model = compiling.compile_rasp_to_model(program, words, length, causal=True, compiler_bos=BOS, compiler_pad=PAD)
    params = {module: {k: np.asarray(v, np.float64) for k, v in one.items()} for module, one in model.params.items()}
    flat = {f"{module}/{name}": value for module, one in params.items() for name, value in one.items()}
    assert not any(value.any() for name, value in flat.items() if name.endswith("/b"))
    encoding = model.input_encoder.encoding_map
    vocabulary = sorted(encoding, key=encoding.get)
    outputs = getattr(model.output_encoder, "encoding_map", {"": 0})
    outputs = [str(value) for value in sorted(outputs, key=outputs.get)]
    reads = [model.residual_labels.index(f"{program.label}:{value}".rstrip(":")) for value in outputs]
    drawn = np.random.default_rng(0).choice([encoding[word] for word in sorted(words)], (N_INPUTS, length))
    inputs = np.concatenate([np.full((N_INPUTS, 1), encoding[BOS]), drawn], axis=1)
    output = model.forward(params, inputs).transformer_output.output
    return {
        **{name: value for name, value in flat.items() if not name.endswith("/b")},
        "vocabulary": np.array(vocabulary),
        "outputs": np.array(outputs),
        "reads": np.array(reads),
        "n_heads": np.array(model.model_config.num_heads),
        "tokens": inputs,
        "expected": np.asarray(output)[..., reads],
    }


def main() -> None:
    """Compile all, write one file."""
    jax.config.update("jax_enable_x64", True)
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "programs.npz"
    found = {}
    for name, (program, words, length) in PROGRAMS.items():
        for key, value in arrays(program(), words, length).items():
            found[f"{name}/{key}"] = value
    np.savez_compressed(file, **found)
    print(f"{file}: {', '.join(PROGRAMS)}, {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
