"""Training batches: documents of the persona world as token ids, with their answers marked.

A batch depends on the seed and the step alone, so a resumed training sees exactly
what an uninterrupted one would have seen.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor

from persona_circuits.models.world.text import Answer, document, ordinary_document
from persona_circuits.models.world.tokenizer import END
from persona_circuits.models.world.world import World

__all__ = ["Batch", "BatchMaker"]

# Length of a batch's documents, and how often it is drawn.
LENGTHS = {40: 0.3, 64: 0.5, 112: 0.2}
ORDINARY_SHARE = 0.07
N_OPTIONS = 4


@dataclass(frozen=True)
class Batch:
    """Documents of one length. `answer_*` belong to the answers, in order.

    `text` marks the positions whose next token is real text and no answer.
    `answer_rows` counts through the flattened batch: the answer is the next token.
    """

    ids: Int[Tensor, "batch pos"]
    text: Bool[Tensor, "batch pos"]
    answer_rows: Int[Tensor, " n"]
    answer_options: Int[Tensor, "n option"]
    answer_targets: Float[Tensor, "n option"]


class BatchMaker:
    """Draws batches of a world's documents; remembers the tokens of lines that it has seen."""

    def __init__(self, world: World, tokenizer: Tokenizer, *, seed: int, tokens: int, exact: bool) -> None:
        """`tokens` per batch; `exact` puts the distribution in place of the drawn answer as target."""
        self._world, self._tokenizer = world, tokenizer
        self._seed, self._tokens, self._exact = seed, tokens, exact
        self._known: dict[str, list[int]] = {}
        self._end: int = tokenizer.get_vocab()[END]
        self._line_feed = self._ids("\n")[0]

    def batch(self, step: int) -> Batch:
        """The batch for one step."""
        rng = random.Random(f"{self._seed}/{step}")
        length = rng.choices(list(LENGTHS), list(LENGTHS.values()))[0]
        documents = [self._document(rng, length) for _ in range(self._tokens // length)]
        return self._stacked(documents, length)

    def _document(self, rng: random.Random, length: int) -> tuple[list[int], dict[int, Answer]]:
        start = [self._end] if rng.random() < 0.5 else []
        room = length - len(start)
        answers: dict[int, Answer] = {}
        if rng.random() < ORDINARY_SHARE:
            ids = self._ordinary(rng, room)
        else:
            ids, answers = self._asking(rng, room)
        return start + ids + [self._end], {place + len(start): answer for place, answer in answers.items()}

    def _ordinary(self, rng: random.Random, room: int) -> list[int]:
        ids: list[int] = []
        for line in ordinary_document(self._world, rng):
            added = ([self._line_feed] if ids else []) + self._ids(line)
            if len(ids) + len(added) > room:
                break
            ids += added
        return ids

    def _asking(self, rng: random.Random, room: int) -> tuple[list[int], dict[int, Answer]]:
        ids: list[int] = []
        answers: dict[int, Answer] = {}
        while not answers:
            ids = []
            waiting: list[int] = []
            for item in islice(document(self._world, rng), 100):
                if isinstance(item, Answer):
                    ids += [*waiting, *self._ids(f" {item.word}")]
                    answers[len(ids) - 1], waiting = item, []
                    continue
                waiting += ([self._line_feed] if ids or waiting else []) + self._ids(item)
                if len(ids) + len(waiting) + 1 > room:
                    break
        return ids, answers

    def _stacked(self, documents: list[tuple[list[int], dict[int, Answer]]], length: int) -> Batch:
        ids = torch.full((len(documents), length), self._end)
        text = torch.zeros(ids.shape, dtype=torch.bool)
        rows, options, targets = [], [], []
        for index, (tokens, answers) in enumerate(documents):
            shown = tokens[:length]
            ids[index, : len(shown)] = torch.tensor(shown)
            text[index, : len(shown) - 1] = True
            for place, answer in answers.items():
                text[index, place - 1] = False
                rows.append(index * length + place - 1)
                options.append(self._padded([self._ids(f" {word}")[0] for word in answer.words], 0))
                targets.append(self._padded(self._target(answer), 0.0))
        return Batch(ids, text, torch.tensor(rows), torch.tensor(options), torch.tensor(targets))

    def _target(self, answer: Answer) -> list[float]:
        if self._exact:
            return list(answer.probabilities)
        return [float(word == answer.word) for word in answer.words]

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text).ids
        return self._known[text]

    @staticmethod
    def _padded(values: list, filling: float) -> list:
        return values + [filling] * (N_OPTIONS - len(values))
