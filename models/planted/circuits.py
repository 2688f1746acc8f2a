"""Transformers whose weights are written by hand, so that the circuit from persona to preference is known.

Nothing is trained. Each builder below says, in order, which component writes what
into which subspace; the edges that it names are the circuit.

A *feature* is one direction of the residual stream: ``+1`` on one coordinate, ``-1``
on the next. So every write has mean zero, and the layer norm takes nothing away.

    steady   +-512, put there by the position embedding, which is no node: it sets the norm's scale
    who      the persona: about +1 at words of persona A, about -1 at those of B, 0 elsewhere
    mark     1 at every persona word, A's or B's: a key that does not tell them apart
    topic    1 at the word that is asked about; `lean` 1 where that word also has a fashion of its own
    start    1 at the first word;  cue  1 at the last one;  place  position / 8
    answer   what the unembedding reads: l(plain) = 6 + answer, l(golden) = 6 - answer, l(usual) = 6.5
    spare    nobody reads it
    taste, custom, echo, loud    kept between components

``usual`` is the option that everyone chooses whose answer is weaker than 0.5.

The norm. With s = 512 sqrt(2/32) = 128 as its weight, a norm gives feature x as

    x / sqrt(1 + (sum of the other features squared) / 512^2)

Those squares sum to less than 100 in the models here, so a read is linear to 2e-4, and
less of that moves with the persona: no edge that is not named here moves the
divergence by as much as 0.1 %.

Attention. A head's query is a constant, so its attention is a softmax over what its
keys read. A persona word is found by `mark`, which both personas' words carry: query
and key edges from `input` then carry nothing, and persona words may stand anywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from transformers import GPT2LMHeadModel

from persona_circuits.circuit.graph import INPUT, LOGITS, Graph, parse_edge
from persona_circuits.circuit.model import DTYPES, Model, wrap_model
from persona_circuits.circuit.storage import replace_folder, write_bytes, write_json, write_text
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import PromptPair, Task
from persona_circuits.models.planted.network import FOUND, Hand
from persona_circuits.models.planted.vocabulary import (
    EARLY,
    LATE,
    OPTIONS,
    PERSONAS,
    PLAIN_TOPIC,
    TOKENIZER_SETTINGS,
    TOPICS,
    build_tokenizer,
)

__all__ = ["Planted", "planted_models", "write_planted"]


NAMES = ("copy", "two-hop", "prior", "cancel", "keys", "saturated", "weak", "bottleneck")
"""In the order in which they are told of."""


@dataclass(frozen=True)
class Planted:
    """A model with a known circuit, and prompt pairs on which it runs.

    ``true_edges`` carry the persona: corrupting any one of them alone moves the mean
    persona divergence D by more than 1 % of |D|, corrupting any other by less than
    0.1 %. ``prior_edges`` carry what every persona shares. ``cause`` is why the
    personas' choices collapse, or ``no collapse``. ``control_pairs`` are for the
    test that ``control`` describes; most models have none.
    """

    name: str
    about: str
    cause: str
    true_edges: frozenset[str]
    pairs: tuple[PromptPair, ...]
    build: Callable[[], GPT2LMHeadModel]
    prior_edges: frozenset[str] = frozenset()
    control: str = ""
    control_pairs: tuple[PromptPair, ...] = ()

    @property
    def true_nodes(self) -> tuple[str, ...]:
        """The sources at either end of a true edge: ``input`` first, then layer order."""
        ends = {end for edge in map(parse_edge, self.true_edges) for end in (edge.src, edge.dst)} - {INPUT, LOGITS}
        order = sorted(ends, key=lambda node: (node.layer, node.kind == "mlp", node.head))
        return ("input", *map(str, order))

    @property
    def task(self) -> Task:
        """The pairs as a task; its hash is that of the file that ``write_planted`` writes."""
        return Task(self.pairs, f"planted:{self.name}", hashlib.sha256(_jsonl(self.pairs).encode()).hexdigest())

    def circuit(self, graph: Graph) -> Circuit:
        """The true edges as a circuit of the model's graph."""
        return Circuit.of(graph, self.true_edges)

    def model(self, *, dtype: str = "float32") -> Model:
        """The model, freshly built and ready for the engine."""
        network = self.build().to(DTYPES[dtype])
        return wrap_model(network, build_tokenizer(), name=f"planted:{self.name}", copy=False)


def planted_models() -> tuple[Planted, ...]:
    """All planted models; nothing is built before it is asked for."""
    by_name = {planted.name: planted for planted in (*_without_collapse(), *_with_collapse())}
    return tuple(by_name[name] for name in NAMES)


def _without_collapse() -> tuple[Planted, ...]:
    """The persona reaches the answer: by a copy, in two hops, through keys, through a step."""
    return (
        Planted(
            "copy",
            "One head moves the persona to the answer.",
            "no collapse",
            frozenset({"input->a1.h1<v>", "a1.h1->logits"}),
            _pairs(EARLY),
            _copy,
        ),
        Planted(
            "two-hop",
            "An MLP turns the persona into a taste where it stands; a later head moves the taste to the answer.",
            "no collapse",
            frozenset({"input->m0", "m0->a1.h3<v>", "a1.h3->logits"}),
            _pairs(EARLY),
            _two_hop,
        ),
        Planted(
            "keys",
            "An MLP makes persona A's word a louder key than the first word; another head supplies the value.",
            "no collapse",
            frozenset({"input->m0", "m0->a1.h0<k>", "input->a0.h1<v>", "a0.h1->a1.h0<v>", "a1.h0->logits"}),
            _pairs(EARLY),
            _keys,
        ),
        Planted(
            "saturated",
            "A step function carries the persona, flat at both; a decoy beside it is steep at both but equal at both.",
            "no collapse",
            frozenset({"input->a0.h1<v>", "a0.h1->m1", "m1->logits"}),
            _pairs(EARLY),
            _saturated,
        ),
    )


def _with_collapse() -> tuple[Planted, ...]:
    """It does not, each of them for another reason."""
    return (
        Planted(
            "prior",
            "A head and an MLP carry the persona; beside them a path from the topic adds three times as much for all.",
            "prior dominance",
            frozenset({"input->a0.h1<v>", "a0.h1->m1", "m1->logits"}),
            _pairs(EARLY),
            _prior,
            prior_edges=frozenset({"input->a0.h0<v>", "a0.h0->m2", "m2->logits"}),
            control="the same persona asked about a topic without a prior: only prior edges carry the difference",
            control_pairs=_topic_pairs(),
        ),
        Planted(
            "cancel",
            "Two heads of different layers move the persona to the answer with opposite signs; a tenth is left.",
            "cancellation",
            frozenset({"input->a1.h0<v>", "a1.h0->logits", "input->a2.h1<v>", "a2.h1->logits"}),
            _pairs(EARLY),
            _cancel,
        ),
        Planted(
            "weak",
            "One head moves the persona to the answer, but its attention fades with the distance.",
            "weak or transient",
            frozenset({"input->a1.h1<v>", "a1.h1->logits"}),
            _pairs(EARLY),
            _weak,
            control="the persona stated after the question: the divergence is restored",
            control_pairs=_pairs(LATE),
        ),
        Planted(
            "bottleneck",
            "The persona arrives in full where the answer is made, but the MLP that reads it lets little through.",
            "bottleneck",
            frozenset({"input->a0.h1<v>", "a0.h1->m1", "m1->logits"}),
            _pairs(EARLY),
            _bottleneck,
        ),
    )


def write_planted(planted: Planted, folder: str | Path) -> None:
    """Save the model (Hugging Face layout), ``pairs.jsonl`` and ``truth.json`` into ``folder``.

    ``control_pairs`` go into ``control.jsonl`` where the model has any.

    Raises:
        FileError: the folder cannot be written.
    """
    with replace_folder(folder) as staging:
        _save_network(planted.build(), staging)
        build_tokenizer().backend_tokenizer.save(str(staging / "tokenizer.json"))
        write_json(
            TOKENIZER_SETTINGS | {"tokenizer_class": "PreTrainedTokenizerFast"}, staging / "tokenizer_config.json"
        )
        write_text(_jsonl(planted.pairs), staging / "pairs.jsonl")
        if planted.control_pairs:
            write_text(_jsonl(planted.control_pairs), staging / "control.jsonl")
        write_json(_truth(planted), staging / "truth.json")


def _copy() -> GPT2LMHeadModel:
    """who -> a1.h1 -> answer."""
    net = Hand(n_layers=2, n_heads=2)
    net.head(1, 1, attends={"mark": FOUND}, reads={"who": 1}, writes={"answer": 1})
    # Bystanders: the persona goes where nobody reads it, the topic to nobody either.
    net.head(0, 0, attends={"mark": FOUND}, reads={"who": 1}, writes={"spare": 1})
    net.linear(0, reads={"who": 1}, writes={"spare": 1})
    net.head(1, 0, attends={"topic": FOUND}, reads={"topic": 1}, writes={"spare": 1})
    return net.network


def _two_hop() -> GPT2LMHeadModel:
    """who -> m0 -> taste (at the persona word) -> a1.h3 -> answer."""
    net = Hand(n_layers=2, n_heads=4)
    net.linear(0, reads={"who": 1}, writes={"taste": 1})
    net.head(1, 3, attends={"mark": FOUND}, reads={"taste": 1}, writes={"answer": 1})
    # Bystanders: taste reaches the answer's position, and the persona does, but in `spare`.
    net.head(1, 0, attends={"mark": FOUND}, reads={"taste": 1}, writes={"spare": 1})
    net.head(1, 2, attends={"mark": FOUND}, reads={"who": 1}, writes={"spare": -1})
    net.linear(1, reads={"taste": 1, "spare": 1}, writes={"echo": 1})
    return net.network


def _prior() -> GPT2LMHeadModel:
    """who -> a0.h1 -> taste -> m1 -> answer +-1;  lean -> a0.h0 -> custom -> m2 -> answer +3 for everyone."""
    net = Hand(n_layers=3, n_heads=2)
    net.head(0, 1, attends={"mark": FOUND}, reads={"who": 1}, writes={"taste": 1})
    net.linear(1, reads={"taste": 1}, writes={"answer": 1})
    net.head(0, 0, attends={"topic": FOUND}, reads={"lean": 1}, writes={"custom": 1})
    net.linear(2, reads={"custom": 1}, writes={"answer": 3})
    # Bystander: a later head fetches the persona as well.
    net.head(1, 0, attends={"mark": FOUND}, reads={"who": 1}, writes={"spare": 1})
    return net.network


def _cancel() -> GPT2LMHeadModel:
    """who -> a1.h0 -> answer, times 3;  who -> a2.h1 -> answer, times -2.7. kappa = 1 - 0.3/5.7."""
    net = Hand(n_layers=3, n_heads=2)
    net.head(1, 0, attends={"mark": FOUND}, reads={"who": 1}, writes={"answer": 3})
    net.head(2, 1, attends={"mark": FOUND}, reads={"who": 1}, writes={"answer": -2.7})
    # Bystanders.
    net.head(0, 0, attends={"mark": FOUND}, reads={"who": 1}, writes={"spare": 1})
    net.linear(1, reads={"spare": 1}, writes={"echo": 1})
    return net.network


def _keys() -> GPT2LMHeadModel:
    """who -> m0 -> loud -> key of a1.h0;  who -> a0.h1 -> taste -> value of a1.h0 -> answer.

    a1.h0 chooses between the persona word, at 2 loud, and the first word, at 0, whose
    value is -1. So it gives A 0.88 (+1) + 0.12 (-1) = 0.76 and B -1 wherever it looks.
    """
    net = Hand(n_layers=3, n_heads=2)
    net.linear(0, reads={"who": 1}, writes={"loud": 1})
    net.head(0, 1, attends={"mark": FOUND}, reads={"who": 1}, writes={"taste": 1})
    net.head(
        1, 0, attends={"mark": FOUND, "start": FOUND, "loud": 2}, reads={"taste": 1, "start": -1}, writes={"answer": 1}
    )
    # Bystanders: a head that reads taste and loud but writes where nobody reads.
    net.head(2, 0, attends={"mark": FOUND}, reads={"taste": 1, "loud": 1}, writes={"spare": 1})
    return net.network


def _saturated() -> GPT2LMHeadModel:
    """who -> a0.h1 -> taste -> m1 -> answer +-1, by a step;  who -> a0.h0 -> echo -> m2 -> answer 0, by a sawtooth.

    The step has slope 0 at taste = +-1. The sawtooth, echo - step(echo), has slope 1 at
    echo = +-1 and value 0 at both. So the gradient at either prompt is wrong about both.
    Persona words are of equal strength here, so that the sawtooth is 0 for each of them.
    """
    net = Hand(n_layers=3, n_heads=2, strengths=(1.0, 1.0, 1.0, 1.0))
    net.head(0, 1, attends={"mark": FOUND}, reads={"who": 1}, writes={"taste": 1})
    net.step(1, reads={"taste": 1}, writes={"answer": 1}, width=0.6)
    net.head(0, 0, attends={"mark": FOUND}, reads={"who": 1}, writes={"echo": 1})
    net.linear(2, reads={"echo": 1}, writes={"answer": 1})
    net.step(2, reads={"echo": 1}, writes={"answer": -1}, width=0.6)
    return net.network


def _weak() -> GPT2LMHeadModel:
    """who -> a1.h1 -> answer, but the last word competes for its attention: persona word 4.5 - 0.7 distance, cue 0."""
    net = Hand(n_layers=2, n_heads=2)
    net.head(
        1, 1, attends={"mark": FOUND + 4.5, "cue": FOUND, "place": 8 * 0.7}, reads={"who": 1}, writes={"answer": 1}
    )
    # Bystanders.
    net.head(0, 0, attends={"mark": FOUND}, reads={"who": 1}, writes={"spare": 1})
    net.linear(0, reads={"who": 1}, writes={"spare": 1})
    return net.network


def _bottleneck() -> GPT2LMHeadModel:
    """who -> a0.h1 -> taste, times 6 -> m1 -> answer: a step of +-0.1 with slope 0.002 beyond."""
    net = Hand(n_layers=3, n_heads=2)
    net.head(0, 1, attends={"mark": FOUND}, reads={"who": 1}, writes={"taste": 6})
    net.step(1, reads={"taste": 1}, writes={"answer": 0.1}, width=0.1)
    net.linear(1, reads={"taste": 1}, writes={"answer": 0.002})
    # Bystander: all of it is read once more, for nothing.
    net.linear(2, reads={"taste": 1}, writes={"spare": 1})
    return net.network


def _pairs(templates: tuple[str, ...]) -> tuple[PromptPair, ...]:
    """Every pair of persona words in every template, turn about with A and with B as the clean prompt."""
    cases = [(template, words) for template in templates for words in PERSONAS]
    return tuple(_pair(i, template, words, TOPICS[i % len(TOPICS)]) for i, (template, words) in enumerate(cases))


def _pair(index: int, template: str, words: tuple[str, str], topic: str) -> PromptPair:
    turn = 1 if index % 2 else -1
    (persona_a, plain), (persona_b, golden) = list(zip(words, OPTIONS[:2], strict=True))[::turn]
    return PromptPair(
        clean=template.format(persona=persona_a, topic=topic),
        corrupt=template.format(persona=persona_b, topic=topic),
        answers=(plain,),
        wrong_answers=(golden,),
        id=str(index),
        persona_a=persona_a,
        persona_b=persona_b,
        question=f"which {topic}",
        split="test" if index % 4 == 3 else "train",
        line=index + 1,
    )


def _topic_pairs() -> tuple[PromptPair, ...]:
    """One persona, two topics: clean with a prior towards plain, corrupt without."""
    return tuple(
        PromptPair(
            clean=EARLY[i % len(EARLY)].format(persona=word, topic=TOPICS[i % len(TOPICS)]),
            corrupt=EARLY[i % len(EARLY)].format(persona=word, topic=PLAIN_TOPIC),
            answers=OPTIONS[:1],
            wrong_answers=OPTIONS[1:2],
            id=str(i),
            persona_a=word,
            persona_b=word,
            question=f"which {TOPICS[i % len(TOPICS)]} or {PLAIN_TOPIC}",
            line=i + 1,
        )
        for i, word in enumerate(word for words in PERSONAS for word in words)
    )


def _save_network(network: GPT2LMHeadModel, folder: Path) -> None:
    """What ``save_pretrained`` writes, without its progress bar."""
    network.config.save_pretrained(folder)
    write_bytes(save(network.state_dict(), metadata={"format": "pt"}), folder / "model.safetensors")


def _jsonl(pairs: tuple[PromptPair, ...]) -> str:
    keys = ("id", "clean", "corrupt", "answers", "wrong_answers", "persona_a", "persona_b", "question", "split")
    lines = ({key: value for key in keys if (value := getattr(pair, key))} for pair in pairs)
    return "".join(json.dumps(line | {"candidates": OPTIONS}) + "\n" for line in lines)


def _truth(planted: Planted) -> dict[str, object]:
    return {
        "name": planted.name,
        "about": planted.about,
        "cause": planted.cause,
        "nodes": list(planted.true_nodes),
        "edges": sorted(planted.true_edges),
        "prior_edges": sorted(planted.prior_edges),
        "control": planted.control,
    }
