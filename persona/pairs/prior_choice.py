"""The model's own leaning under a neutral prompt, and who leans otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from persona_circuits.circuit.errors import TaskError
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.task import PromptPair, beyond_embedding, token_ids, without_end
from persona_circuits.persona.data import ItemFile, Neutral, neutral_prompts
from persona_circuits.persona.data.items import Item
from persona_circuits.persona.pairs.asking import last_logits
from persona_circuits.persona.pairs.matching import Drop

__all__ = ["REASONS", "Asked", "leanings_of", "study_items"]

REASONS = {
    "no other wording": "the default is unknown: --neutral has no wording of the question but the row's own",
    "only one question": "the two personas are asked one question only in this split",
    "same default": "both questions have the same default",
    "unequal length": "the two prompts differ in token length",
    "other text before the question": "the two prompts differ before the question: another wording or other filler",
    "no other option": "every option but the default is preferred by one of the personas and not the other",
    "options in part the same": "one question has one of the other's two options, so its lift would not cancel",
    "weak default": "without a persona the default leads the other option by less than --min-lead",
    "prior of the words": "without a persona the contrast is below --min-lead: the default leads as much after "
    "the other question, so its prior is not the question's",
    "does not fit the model": "a word is not one token after the other question's prompt",
    "asked already": "the same persona and questions are in another pair",
}


class Asked:
    """A row of the pair file: its prompts by persona, what the personas prefer, and how the model leans without one."""

    def __init__(self, item: Item, leaning: Mapping[str, float], model: Model) -> None:
        pair = item.pair
        self.item, self.leaning, self.model = item, leaning, model
        self.options = tuple(text for text in item.candidates if text in leaning)
        self.question, self.split = pair.question, pair.split
        self.personas = (pair.persona_a, pair.persona_b)
        self.prompts = dict(zip(self.personas, (pair.clean, pair.corrupt), strict=True))
        self.ids = {persona: token_ids(prompt, model) for persona, prompt in self.prompts.items()}
        self.starts = dict(zip(self.personas, _starts(pair, *self.ids.values()), strict=True))
        self.preferred = (set(pair.answers), set(pair.wrong_answers))
        self.default = max(self.options, key=lambda text: leaning[text])

    def lead(self, other: str) -> float:
        """Logits by which the default leads the other option without a persona."""
        return self.leaning[self.default] - self.leaning[other]

    def balances(self, other: str) -> bool:
        """Whether default and other option are both preferred, by one persona each, or by neither."""
        default, another = ([text in side for side in self.preferred] for text in (self.default, other))
        return sum(default) == sum(another) and (default != another or not any(default))

    def other(self) -> str:
        """The other option: step 4 of the module."""
        rest = [text for text in self.options if text != self.default and self.balances(text)]
        if not rest:
            raise Drop("no other option", self.question)
        return min(rest, key=lambda text: self.leaning[text])


def study_items(items: ItemFile) -> list[Item]:
    """The rows with two personas and a question, controls left out.

    Raises:
        TaskError: there are none.
    """
    rows = [
        item
        for item in items.items
        if item.control == "none" and item.pair.question and item.pair.persona_a != item.pair.persona_b
    ]
    if not rows:
        raise TaskError(
            f"{items.source} has no pair that names its question and two personas "
            "('question', 'persona_a', 'persona_b'); build one with persona-circuits pairs"
        )
    return rows


def leanings_of(
    model: Model, items: Sequence[Item], neutral: Sequence[Neutral], batch_size: int, progress: Progress
) -> dict[int, dict[str, float]]:
    """Per item with another wording: mean log probability without a persona of every option of the whole file.

    An option that is not one token after one of the prompts is left out.
    """
    wordings = tuple(neutral)
    prompts = {place: own for place, item in enumerate(items) if (own := neutral_prompts(item, wordings))}
    unique = list(dict.fromkeys(prompt for own in prompts.values() for prompt in own))
    options = list(dict.fromkeys(text for item in items for text in item.candidates))
    known = _log_probs(model, unique, options, batch_size, progress)
    return {
        place: {
            text: float(np.mean([known[prompt][text] for prompt in own]))
            for text in options
            if all(text in known[prompt] for prompt in own)
        }
        for place, own in prompts.items()
    }


def _log_probs(
    model: Model, prompts: Sequence[str], options: Sequence[str], batch_size: int, progress: Progress
) -> dict[str, dict[str, float]]:
    """Per prompt: log probability over the whole vocabulary of every option that is one token there."""
    ids = [token_ids(prompt, model) for prompt in prompts]
    known: dict[str, dict[str, float]] = {}
    for group, logits in last_logits(model, ids, batch_size):
        for i, row in zip(group, logits.log_softmax(-1), strict=True):
            answers = _answer_ids(prompts[i], ids[i], options, model)
            known[prompts[i]] = {text: float(row[token]) for text, token in answers.items()}
        progress(len(known), len(prompts))
    return known


def _answer_ids(prompt: str, ids: list[int], options: Sequence[str], model: Model) -> dict[str, int]:
    """The options that are one token after the prompt; the rule is ``circuit.task.answer_id``'s, for many at once."""
    own_bos = bool(model.tokenizer.bos_token) and prompt.startswith(model.tokenizer.bos_token)
    texts = [prompt + text for text in options]
    joined = model.tokenizer(texts, add_special_tokens=not own_bos)["input_ids"]
    joined = [without_end(list(after), text, model.tokenizer) for text, after in zip(texts, joined, strict=True)]
    return {
        text: after[-1]
        for text, after in zip(options, joined, strict=True)
        if len(after) == len(ids) + 1 and after[:-1] == ids and not beyond_embedding(after[-1:], model)
    }


def _starts(pair: PromptPair, clean: Sequence[int], corrupt: Sequence[int]) -> tuple[int, int]:
    """The first token of either prompt's question; where the file has no spans, the first one after the personas."""
    spans = [next((s.start for s in side if s.name == "question"), None) for side in (pair.spans, pair.corrupt_spans)]
    if spans[0] is not None and spans[1] is not None:
        return spans[0], spans[1]
    shared = 0
    while shared < min(len(clean), len(corrupt)) and clean[-1 - shared] == corrupt[-1 - shared]:
        shared += 1
    return len(clean) - shared, len(corrupt) - shared
