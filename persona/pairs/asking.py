"""Preferences and candidates that a model declares itself, on wordings that no pair asks.

1. One wording of every question is set aside for asking; a question with a single wording is left out.
2. Every persona that meets another is asked it, in the format of the pairs.
3. With ``mine``, the candidates are the model's own: its most likely first tokens under the personas of the training
   split, without function words. Case variants are joined, and so is what follows an article: where the
   answer goes on with " a" or " the", what is likely after that is counted, too.
4. A persona prefers the candidate that it raises most above the mean over all personas asked, in logits: the
   model's answer less what it would answer to anybody.
5. Pairs are built of the other wordings. Their rows say ``declared``: ``model``.

Choosing by what the model says makes D above zero likely on the wording that was asked, which is why no pair
has it; on other wordings D can still fail.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.model import Model, of_prompts
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.progress import Progress, untold
from persona_circuits.circuit.task import token_ids
from persona_circuits.persona.data import Persona, Question, Template, Words, examples_without, mean_words, top_words
from persona_circuits.persona.pairs.matching import Case, leak_finder
from persona_circuits.persona.pairs.options import PairOptions
from persona_circuits.persona.pairs.report import Built
from persona_circuits.persona.pairs.splits import Meeting, training_meetings
from persona_circuits.persona.streams import grouped

__all__ = ["AskedModel", "ask_model", "joined_candidates", "lifts", "marked"]

N_FIRST = 60
"""Tokens of a prompt that candidates are mined from."""
N_MINED = 6
ARTICLES = ("a", "an", "the", "my", "some")
FUNCTION_WORDS = frozenset(
    """
    a an the my your his her its our their this that these those some any all every each no not i you he she it we they
    me him us them who what which when where why how there here and or but if so as than then because of in on at to
    for with from by about into over under up down out off is am are was were be been being do does did have has had
    can could will would should may might must shall very more most much many too also just only always never often
    one two three probably usually definitely simply really called something anything someone anyone
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class AskedModel:
    """What a model declared: the questions less the wording asked, each with its ``prefers`` and ``options``.

    ``words`` is what it is most likely to say; ``wordings`` the wording that each question was asked in; ``meetings``
    the persona pairs whose answers gave the candidates, empty where nothing was mined.
    """

    questions: tuple[Question, ...]
    words: Words
    wordings: Mapping[str, str]
    meetings: frozenset[tuple[str, str]]
    mined: bool
    left_out: tuple[str, ...]

    def about(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "candidates": "mined" if self.mined else "of the source",
            "wordings": dict(self.wordings),
            "declared": {q.id: dict(q.prefers) for q in self.questions},
            "left_out": list(self.left_out),
            "words": [list(word) for word in self.words],
        }


def ask_model(
    model: Model,
    met: Sequence[Meeting],
    questions: Sequence[Question],
    template: Template,
    *,
    mine: bool = False,
    options: PairOptions | None = None,
    progress: Progress | None = None,
) -> AskedModel:
    """Let a model declare what each persona prefers and, with ``mine``, among which candidates.

    Parameters
    ----------
    met
        The persona pairs, as ``persona.pairs.splits.meetings`` gives them.
    options
        The seed and the share held out, which say whose answers candidates may be mined from.

    Raises
    ------
    OptionError
        The template lists the options, so that an order of them would declare.
    TaskError
        No question has a second wording.
    """
    options = options or PairOptions()
    if template.style.lists:
        raise OptionError(f"--format {template.name} lists its options, whose order answers, too; use another format")
    several = [q for q in questions if len(q.wordings) > 1 and (mine or q.options)]
    if not several:
        raise TaskError("to ask the model, a question needs a wording to ask and another for the pairs; add wordings")
    people = list({person.name: person for pair in met for person in pair}.values())
    training = training_meetings(met, options)
    trained = {person.name for pair in training for person in pair}
    places = {q.id: _place(q, options.seed) for q in several}
    top: list[Words] = []
    declared: list[Question] = []
    for done, question in enumerate(several, 1):
        prompts = [_prompt(person, question, places[question.id], template) for person in people]
        logits = _last(model, prompts)
        top += [top_words(row, model.tokenizer) for row in logits]
        rest = [i for i in range(len(question.wordings)) if i != places[question.id]]
        if mine:
            tables = _tables(model, prompts, logits)
            words = joined_candidates([table for p, table in zip(people, tables, strict=True) if p.name in trained])
            scores = [{word: math.log(max(table.get(word, 0.0), 1e-9)) for word in words} for table in tables]
        else:
            words, scores = question.options, _of_options(model, prompts, logits, question.options)
        raised = lifts(scores)
        prefers = {
            person.name: max(own, key=lambda word: own[word]) for person, own in zip(people, raised, strict=True) if own
        }
        declared.append(replace(question.keeping(rest), options=tuple(words), prefers=prefers, affinities={}))
        (progress or untold)(done, len(several))
    pairs = frozenset((a.name, b.name) for a, b in training) if mine else frozenset()
    asked = {q.id: q.wordings[places[q.id]] for q in several}
    left_out = tuple(q.id for q in questions if q.id not in asked)
    return AskedModel(tuple(q for q in declared if len(q.options) > 1), mean_words(top), asked, pairs, mine, left_out)


def joined_candidates(tables: Sequence[Mapping[str, float]], n: int = N_MINED) -> tuple[str, ...]:
    """The ``n`` words with the largest mean probability over several prompts, of tables from word to probability."""
    total: dict[str, float] = {}
    for table in tables:
        for word, probability in table.items():
            total[word] = total.get(word, 0.0) + probability
    return tuple(sorted(total, key=lambda word: (-total[word], word))[:n])


def lifts(scores: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """By how much each persona's log probability of each candidate is above the mean over personas."""
    if not scores:
        return []
    means = {word: sum(row[word] for row in scores) / len(scores) for word in scores[0]}
    return [{word: value - means[word] for word, value in row.items()} for row in scores]


def marked(built: Built, asked: AskedModel) -> Built:
    """The pairs with ``declared``: ``model``, and what was asked in the report.

    Where candidates were mined, a test pair of two personas whose answers gave the candidates is left out.
    """
    seen = asked.meetings

    def kept(row: Mapping[str, Any]) -> bool:
        return row.get("split") != "test" or (row["persona_a"], row["persona_b"]) not in seen

    rows = tuple({**row, "declared": "model"} for row in built.rows if kept(row))
    null = built.null and replace(built.null, rows=tuple({**row, "declared": "model"} for row in built.null.rows))
    return replace(built, rows=rows, null=null, about={**built.about, "asked": asked.about()})


def _place(question: Question, seed: int) -> int:
    """The wording that is asked: by chance, but never the one that the source sets aside for testing."""
    places = [i for i in range(len(question.wordings)) if i != question.held_out]
    return random.Random(f"{seed}/asked/{question.id}").choice(places)


def _prompt(persona: Persona, question: Question, place: int, template: Template) -> str:
    filler = examples_without(question.options, template.style.examples) if template.style.examples else ""
    case = Case(persona, persona, question, place, template, filler, leak_finder(question.options))
    return case.prompt(persona.wordings[0]).text


def last_logits(
    model: Model, prompts: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[list[int], Float[Tensor, "batch vocab"]]]:
    """Prompts of one length by their places, with the logits after each, in float64 on the CPU."""
    for group in grouped([len(ids) for ids in prompts], batch_size):
        tokens = torch.tensor([list(prompts[i]) for i in group], device=model.device)
        logits = model.logits(tokens)[:, -1].cpu().double()
        check_finite(logits, of_prompts(model, tokens))
        yield group, logits


def _last(model: Model, prompts: Sequence[str]) -> list[Float[Tensor, " vocab"]]:
    """The logits after each prompt."""
    rows: dict[int, Tensor] = {}
    for group, logits in last_logits(model, [token_ids(prompt, model) for prompt in prompts], len(prompts)):
        rows |= dict(zip(group, logits, strict=True))
    return [rows[place] for place in range(len(prompts))]


def _tables(model: Model, prompts: Sequence[str], logits: Sequence[Tensor]) -> list[dict[str, float]]:
    """Per prompt: the probability of each word that may be a candidate, at once or after the likeliest article."""
    firsts = [top_words(row, model.tokenizer, N_FIRST) for row in logits]
    articles = [_likeliest_article(words) for words in firsts]
    longer = [prompt + article for prompt, (article, _) in zip(prompts, articles, strict=True)]
    nexts = [top_words(row, model.tokenizer, N_FIRST) for row in _last(model, longer)]
    tables = []
    for words, (_, share), behind in zip(firsts, articles, nexts, strict=True):
        table: dict[str, float] = {}
        for factor, some in ((1.0, words), (share, behind)):
            for text, probability in some:
                if word := _as_candidate(text):
                    table[word] = table.get(word, 0.0) + factor * probability
        tables.append(table)
    return tables


def _likeliest_article(words: Words) -> tuple[str, float]:
    """The article that is likeliest as the first token, with its probability; none where there is none."""
    return next(
        ((text, p) for text, p in words if text.startswith(" ") and text.strip().lower() in ARTICLES), (" the", 0.0)
    )


def _as_candidate(text: str) -> str:
    """A token as a candidate, in lower case; empty where it is a piece of a word, a function word or no word."""
    word = text.strip()
    whole = text.startswith(" ") and word.isalpha() and len(word) > 2
    return word.lower() if whole and word.lower() not in FUNCTION_WORDS else ""


def _of_options(
    model: Model, prompts: Sequence[str], logits: Sequence[Tensor], options: Sequence[str]
) -> list[dict[str, float]]:
    """Per prompt: the log probability of every option that is one token after all of them."""
    ids = {option: {_one_token(model, prompt, option) for prompt in prompts} for option in options}
    usable = {option: tokens.pop() for option, tokens in ids.items() if len(tokens) == 1 and None not in tokens}
    rows = [row.log_softmax(-1) for row in logits]
    return [{option: float(row[token]) for option, token in usable.items() if token is not None} for row in rows]


def _one_token(model: Model, prompt: str, option: str) -> int | None:
    before = token_ids(prompt, model)
    after = token_ids(prompt + ("" if prompt[-1:].isspace() else " ") + option, model)
    return after[-1] if len(after) == len(before) + 1 and after[:-1] == before else None
