"""A transformer wired by hand: features, readers and writers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from persona_circuits.models.planted.vocabulary import (
    N_POSITIONS,
    OPTIONS,
    PERSONAS,
    PLAIN_TOPIC,
    STRENGTHS,
    TOPICS,
    vocabulary_of,
)

__all__ = ["D_MODEL", "FOUND", "STEADY", "Hand"]

FEATURES = (
    *("steady", "who", "mark", "topic", "lean", "start", "cue", "place"),
    *("taste", "custom", "echo", "loud", "answer", "spare"),
)
D_MODEL = 32
N_INNER = 8
STEADY = 512.0
FOUND = 30.0  # attention logit of what a head looks for; all else is at 0 and gets e^-30


class Hand:
    """A GPT-2 of zeros with embeddings, norms and unembedding in place, to be written by hand."""

    def __init__(self, *, n_layers: int, n_heads: int, strengths: tuple[float, ...] = STRENGTHS) -> None:
        self.network = _zeros(n_layers, n_heads)
        self.d_head = D_MODEL // n_heads
        self.n_neurons = [0] * n_layers
        with torch.no_grad():
            self._embed(strengths)
            self._norms()
            self._unembed()

    def head(
        self,
        layer: int,
        head: int,
        *,
        attends: Mapping[str, float],
        reads: Mapping[str, float],
        writes: Mapping[str, float],
    ) -> None:
        """A head whose attention is softmax(sum of attends x features) and that moves sum of reads x features."""
        attn = self.network.transformer.h[layer].attn
        first = head * self.d_head
        with torch.no_grad():
            attn.c_attn.bias[first] = self.d_head**0.5
            attn.c_attn.weight[:, D_MODEL + first] += _reader(attends)
            attn.c_attn.weight[:, 2 * D_MODEL + first] += _reader(reads)
            attn.c_proj.weight[first] += _writer(writes)

    def linear(self, layer: int, *, reads: Mapping[str, float], writes: Mapping[str, float]) -> None:
        """MLP neurons that make x itself, for x above -16: relu(x + 16) - 16."""
        self._neuron(layer, reads, 16.0, writes)
        self._neuron(layer, {}, 1.0, _scaled(writes, -16.0))

    def step(self, layer: int, *, reads: Mapping[str, float], writes: Mapping[str, float], width: float) -> None:
        """MLP neurons that make clip(x / width, -1, 1): (relu(x + width) - relu(x - width)) / width - 1."""
        self._neuron(layer, reads, width, _scaled(writes, 1 / width))
        self._neuron(layer, reads, -width, _scaled(writes, -1 / width))
        self._neuron(layer, {}, 1.0, _scaled(writes, -1.0))

    def _neuron(self, layer: int, reads: Mapping[str, float], bias: float, writes: Mapping[str, float]) -> None:
        mlp, place = self.network.transformer.h[layer].mlp, self.n_neurons[layer]
        self.n_neurons[layer] += 1
        with torch.no_grad():
            mlp.c_fc.weight[:, place] = _reader(reads)
            mlp.c_fc.bias[place] = bias
            mlp.c_proj.weight[place] = _writer(writes)

    def _embed(self, strengths: tuple[float, ...]) -> None:
        ids = vocabulary_of()
        words = self.network.transformer.wte.weight
        for (persona_a, persona_b), strength in zip(PERSONAS, strengths, strict=True):
            words[ids[persona_a]] = _writer({"mark": 1, "who": strength})
            words[ids[persona_b]] = _writer({"mark": 1, "who": -strength})
        for topic in TOPICS:
            words[ids[topic]] = _writer({"topic": 1, "lean": 1})
        words[ids[PLAIN_TOPIC]] = _writer({"topic": 1})
        words[ids["listen"]] = _writer({"start": 1})
        words[ids["the"]] = _writer({"cue": 1})
        for position in range(N_POSITIONS):
            self.network.transformer.wpe.weight[position] = _writer({"steady": STEADY, "place": position / 8})

    def _norms(self) -> None:
        network = self.network.transformer
        for norm in (*(n for block in network.h for n in (block.ln_1, block.ln_2)), network.ln_f):
            norm.weight.fill_(STEADY * (2 / D_MODEL) ** 0.5)

    def _unembed(self) -> None:
        ids, rows = vocabulary_of(), self.network.lm_head.weight
        plain, golden, usual = (ids[option.strip()] for option in OPTIONS)
        rows[plain] = _reader({"steady": 6 / STEADY, "answer": 1})
        rows[golden] = _reader({"steady": 6 / STEADY, "answer": -1})
        rows[usual] = _reader({"steady": 6.5 / STEADY})


def _zeros(n_layers: int, n_heads: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=len(vocabulary_of()),
        n_positions=N_POSITIONS,
        n_embd=D_MODEL,
        n_layer=n_layers,
        n_head=n_heads,
        n_inner=N_INNER,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        architectures=["GPT2LMHeadModel"],
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        network = GPT2LMHeadModel(config).eval()
    for weight in network.parameters():
        weight.detach().zero_()
    return network


def _reader(features: Mapping[str, float]) -> torch.Tensor:
    """The vector, ``[d_model]``, whose product with a normed stream is the weighted sum of the features."""
    return _writer(features) / 2


def _writer(features: Mapping[str, float]) -> torch.Tensor:
    """The vector, ``[d_model]``, that adds these amounts of the features to the stream."""
    vector = torch.zeros(D_MODEL)
    for name, amount in features.items():
        place = 2 * FEATURES.index(name)
        vector[place], vector[place + 1] = amount, -amount
    return vector


def _scaled(features: Mapping[str, float], factor: float) -> dict[str, float]:
    return {name: factor * amount for name, amount in features.items()}
