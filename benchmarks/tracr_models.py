"""Circuits that tracr compiled, as GPT-2 models that the engine holds, with the edges that their programs use.

tracr's models have no norm and read a residual stream x. Here the stream is (x, -x, M, -M), so that its mean is 0, and
the norm, with weight M sqrt(2 / width), gives x / sqrt(1 + |x|^2 / M^2): x itself but for 1e-6. Every writer writes W
and -W, every reader reads W / 2 and -W / 2. Weights are those of ``tracr/programs.npz`` (``make tracr-compile``).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from persona_circuits.circuit.graph import Edge, Graph
from persona_circuits.circuit.model import DTYPES, Model, wrap_model
from persona_circuits.circuit.storage import replace_folder, write_json, write_text
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import PromptPair, Task

PROGRAMS = Path(__file__).parent / "tracr" / "programs.npz"
STEADY = 2048.0
TOLERANCE = 1e-6
THRIFTY, LAVISH = ("frugal", "modest"), ("lavish", "grand")
Array = NDArray[np.float64]


class Run(NamedTuple):
    """What sources write ``[positions, d]``, the stream into every layer, heads' attention ``[query, key]``."""

    wrote: dict[str, Array]
    streams: list[Array]
    attention: dict[str, Array]


@dataclass(frozen=True)
class Compiled:
    """A compiled program, a ``GroundTruth``: tracr's own ``arrays``, and prompts with ``{}`` for either persona."""

    name: str
    arrays: dict[str, NDArray]
    couples: tuple[tuple[str, str, str], ...]

    @cached_property
    def outputs(self) -> list[str]:
        """What each logit is of; a program of one number answers ``plain`` as it grows, ``golden`` as it falls."""
        names = self.arrays["outputs"].tolist()
        return ["plain", "golden"] if names == [""] else names

    @cached_property
    def unembedding(self) -> Array:
        """``[d, outputs]``."""
        reads = self.arrays["reads"]
        rows = np.eye(len(self.arrays["token_embed/embeddings"][0]))[reads].T
        return rows if len(reads) > 1 else np.concatenate([rows, -rows], axis=1)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """tracr's words by their ids, then answers that are no words of the prompts."""
        words = self.arrays["vocabulary"].tolist()
        return {word: i for i, word in enumerate([*words, *(name for name in self.outputs if name not in words)])}

    @cached_property
    def n_layers(self) -> int:
        return sum(name.endswith("attn/query/w") for name in self.arrays)

    @cached_property
    def task(self) -> Task:
        """Pairs; the answer is the output that the clean persona raises most, tracr's weights saying which."""
        pairs = []
        for i, (frame, thrifty, lavish) in enumerate(self.couples):
            a, b = (thrifty, lavish) if i % 2 else (lavish, thrifty)
            clean, corrupt = (f"begin {frame.format(word)} the" for word in (a, b))
            rise = self._said(clean) - self._said(corrupt)
            answer, wrong = (f" {self.outputs[place]}" for place in (rise.argmax(), rise.argmin()))
            split = "test" if i % 4 == 3 else "train"
            names = {"persona_a": a, "persona_b": b, "question": frame, "id": str(i), "line": i + 1, "split": split}
            pairs.append(PromptPair(clean=clean, corrupt=corrupt, answers=(answer,), wrong_answers=(wrong,), **names))
        return Task(tuple(pairs), f"tracr:{self.name}", hashlib.sha256(repr(pairs).encode()).hexdigest())

    @cached_property
    def true_edges(self) -> frozenset[str]:
        """Edges by which the program moves what differs between a pair's prompts.

        A slot reads a source where its weights in tracr's model make something else of what the source writes in either
        prompt: queries and keys in the scores against the clean prompt's other side, values in what the head writes
        with the attention of either prompt, ``logits`` at the last position. Of those edges count the ones from which
        ``logits`` is reached.
        """
        graph = Graph(self.n_layers, int(self.arrays["n_heads"]))
        read = {edge for pair in self.task.pairs for edge in self._differing(graph, pair)}
        return frozenset(Circuit.of(graph, read).without_dead_ends().edge_names())

    def model(self, *, dtype: str = "float32") -> Model:
        """The converted model, freshly built and ready for the engine."""
        return wrap_model(self.network().to(DTYPES[dtype]), self.tokenizer, name=f"tracr:{self.name}", copy=False)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token a word."""
        tokenizer = Tokenizer(WordLevel(self.vocabulary, unk_token="pad"))
        tokenizer.pre_tokenizer = Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="pad", pad_token="pad")

    def write(self, folder: Path) -> None:
        """A model folder for the command line, with ``pairs.jsonl`` and ``truth.json`` in it."""
        keys = ("id", "clean", "corrupt", "answers", "wrong_answers", "persona_a", "persona_b", "question", "split")
        lines = [json.dumps({key: getattr(pair, key) for key in keys}) for pair in self.task.pairs]
        with replace_folder(folder) as staging:
            self.network().float().save_pretrained(staging)
            self.tokenizer.save_pretrained(staging)
            write_text("\n".join((*lines, "")), staging / "pairs.jsonl")
            write_json({"name": self.name, "edges": sorted(self.true_edges)}, staging / "truth.json")

    def network(self) -> GPT2LMHeadModel:
        """tracr's weights as a GPT-2, in float64."""
        tokens, positions = self.arrays["token_embed/embeddings"], self.arrays["pos_embed/embeddings"]
        n_heads, d = int(self.arrays["n_heads"]), tokens.shape[1]
        key_size = self.arrays["transformer/layer_0/attn/query/w"].shape[1] // n_heads
        d_head = max(key_size, -(-(2 * d + 2) // n_heads))
        width = n_heads * d_head
        config = GPT2Config(
            vocab_size=len(self.vocabulary),
            n_positions=len(positions),
            n_embd=width,
            n_layer=self.n_layers,
            n_head=n_heads,
            n_inner=self.arrays["transformer/layer_0/mlp/linear_1/w"].shape[1],
            activation_function="relu",
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            network = GPT2LMHeadModel(config).double().eval()
        written = np.vstack([np.eye(d), -np.eye(d), np.zeros((width - 2 * d, d))])
        spread = np.kron(np.eye(n_heads), np.eye(key_size, d_head))
        steady = np.zeros(width)
        steady[2 * d : 2 * d + 2] = STEADY, -STEADY
        parts = {
            "transformer.wte.weight": tokens @ written.T,
            "transformer.wpe.weight": positions @ written.T + steady,
            "lm_head.weight": self.unembedding.T @ written.T / 2,
        }
        for layer in range(self.n_layers):
            parts |= self._layer(layer, written, spread, (d_head / key_size) ** 0.5)
        answers = [self.vocabulary[word] for word in self.outputs]
        with torch.no_grad():
            for name, weight in network.named_parameters():
                weight.fill_(STEADY * (2 / width) ** 0.5 if "ln_" in name and name.endswith("weight") else 0)
            for name, value in parts.items():
                rows = answers if name.startswith("lm_head") else slice(len(value))
                network.get_parameter(name)[rows] = torch.tensor(value)
        return network

    def _layer(self, layer: int, written: Array, spread: Array, scale: float) -> dict[str, Array]:
        """GPT-2's parameters of one layer; tracr has a direction that is 1 everywhere in place of biases."""
        query, key, value, result, first, second = self._weights(layer)
        reads, here = written / 2, f"transformer.h.{layer}"
        return {
            f"{here}.attn.c_attn.weight": np.concatenate(
                [reads @ query @ spread * scale, reads @ key @ spread, reads @ value @ spread], axis=1
            ),
            f"{here}.attn.c_proj.weight": spread.T @ result @ written.T,
            f"{here}.mlp.c_fc.weight": reads @ first,
            f"{here}.mlp.c_proj.weight": second @ written.T,
        }

    def _weights(self, layer: int) -> list[Array]:
        names = (*("attn/query", "attn/key", "attn/value", "attn/linear"), *("mlp/linear_1", "mlp/linear_2"))
        return [self.arrays[f"transformer/layer_{layer}/{name}/w"] for name in names]

    def _said(self, text: str) -> Array:
        """tracr's logits at the last position."""
        return sum(self._run(text).wrote.values())[-1] @ self.unembedding

    def _run(self, text: str) -> Run:
        """tracr's model, written out."""
        ids = [self.vocabulary[word] for word in text.split()]
        stream = self.arrays["token_embed/embeddings"][ids] + self.arrays["pos_embed/embeddings"][: len(ids)]
        run, later = Run({"input": stream}, [], {}), np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
        for layer in range(self.n_layers):
            first, second = self._weights(layer)[-2:]
            run.streams.append(stream)
            for i, (query, key, value, result) in enumerate(self._heads(layer)):
                weights = softmax((stream @ query) @ (stream @ key).T / query.shape[1] ** 0.5 + later, axis=-1)
                run.attention[f"a{layer}.h{i}"] = weights
                run.wrote[f"a{layer}.h{i}"] = weights @ stream @ value @ result
            run.wrote[f"m{layer}"] = np.maximum(sum(run.wrote.values()) @ first, 0) @ second
            stream = sum(run.wrote.values())
        return run

    def _heads(self, layer: int) -> list[tuple[Array, ...]]:
        """Query, key, value ``[d, key_size]`` and result ``[key_size, d]`` of every head."""
        *read, result = self._weights(layer)[:4]
        n = int(self.arrays["n_heads"])
        return list(zip(*(np.split(weight, n, axis=1) for weight in read), np.split(result, n), strict=True))

    def _differing(self, graph: Graph, pair: PromptPair) -> Iterator[str]:
        """Edges whose slot reads something else of the source in either prompt."""
        clean, corrupt = self._run(pair.clean), self._run(pair.corrupt)
        for edge in Circuit.full(graph).edges():
            change = corrupt.wrote[str(edge.src)] - clean.wrote[str(edge.src)]
            if edge.dst.kind == "head":
                read = self._into_head(edge, change, clean, corrupt)
            else:
                last = edge.dst.kind == "logits"
                read = change[-1] @ self.unembedding if last else change @ self._weights(edge.dst.layer)[-2]
            if np.abs(read).max() > TOLERANCE:
                yield str(edge)

    def _into_head(self, edge: Edge, change: Array, clean: Run, corrupt: Run) -> Array:
        """What a change of a source is to a head's scores or, for a value, to what it writes."""
        query, key, value, result = self._heads(edge.dst.layer)[edge.dst.head]
        stream, head = clean.streams[edge.dst.layer], str(edge.dst)
        if edge.slot == "v":
            return np.stack([run.attention[head] @ change @ value @ result for run in (clean, corrupt)])
        asks, told = (change, stream) if edge.slot == "q" else (stream, change)
        return np.tril((asks @ query) @ (told @ key).T)


def compiled_programs(file: Path = PROGRAMS) -> tuple[Compiled, ...]:
    """All programs of the file, with their pairs."""
    with np.load(file) as stored:
        found = {name: stored[name] for name in stored.files}
    return tuple(
        Compiled(
            name, {key.partition("/")[2]: value for key, value in found.items() if key.startswith(f"{name}/")}, pairs
        )
        for name, pairs in zip(("balance", "majority", "answer", "pointer"), _all_couples(), strict=True)
    )


def _all_couples() -> tuple[tuple[tuple[str, str, str], ...], ...]:
    """Prompts of every program: of ``majority``, those in which one word decides."""
    frames = list(_shares())
    even = [words for words in frames if words.count("frugal") == words.count("lavish")]
    shares = (tuple((" ".join(words), "frugal", "lavish") for words in some[:32]) for some in (frames, even))
    return (*shares, _answer(), _pointer())


def _shares() -> Iterator[list[str]]:
    draw = random.Random(0)
    for i in range(200):
        words = [draw.choice(("frugal", "lavish", "and", "the")) for _ in range(5)]
        words[i % 5] = "{}"
        yield words


def _answer() -> tuple[tuple[str, str, str], ...]:
    frames = ("i am {{}} want {}", "want {} i am {{}}", "i want {} am {{}}")
    topics = ("gift", "house", "meal")
    return tuple((f.format(t), a, b) for f, t, a, b in itertools.product(frames, topics, THRIFTY, LAVISH))


def _pointer() -> tuple[tuple[str, str, str], ...]:
    things = itertools.permutations(("pen", "pearl", "cup", "ring"), 2)
    return tuple((f"i am {{}} {x} {y}", a, b) for (x, y), a, b in itertools.product(things, THRIFTY, LAVISH))
