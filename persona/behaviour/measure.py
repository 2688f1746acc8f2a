"""What a model answers under two personas: every measure of one pair, over all candidates of its question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from persona_circuits import metrics
from persona_circuits.circuit import parallel
from persona_circuits.circuit.errors import TaskError, listed
from persona_circuits.circuit.forward import run
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.progress import Progress, untold
from persona_circuits.circuit.task import FormTable, PromptPair, Reader, Row, Task, batches, encode, fitting
from persona_circuits.persona.data import ItemFile, Neutral, neutral_prompts
from persona_circuits.persona.data.items import Item
from persona_circuits.persona.data.words import Words, mean_words, top_words

__all__ = ["Answer", "PairMeasure", "fitting_items", "measure_pairs", "measured"]

LOW_MASS = 0.2


@dataclass(frozen=True)
class NeutralPrior:
    """What the model prefers under no persona, over ``n`` wordings other than the pair's.

    ``margin`` is b0, between the pair's two tokens. ``lead`` is how far the most likely
    candidate stands above the mean of the others: the strength of the generic prior,
    whether or not the default is one of the two tokens. Both in logits.
    """

    n: int
    margin: float
    lead: float


@dataclass(frozen=True)
class PairMeasure:
    """One pair's measures; logits and nats.

    ``divergence`` is D, ``prior`` b, ``prior_dominance`` PDR (nan where both are 0),
    ``required_gain`` g* (infinite where D = 0). ``jensen_shannon`` is over the candidates
    and so is ``soft_collapse``; ``choice_a`` and ``choice_b`` are the most likely
    candidates, the first in a tie. ``mass_*`` are the candidates' share of all
    probability, ``log_probs_*`` the candidates' log probabilities over the whole vocabulary; ``words`` the most
    likely tokens, whatever the candidates, ``left_out`` the forms of the options that are not counted. ``order_spread``
    is the spread of the margin over ``n_orders`` orders of listed options, None where there is no list;
    ``row_divergences`` the D of each row that was averaged.
    """

    item: Item
    divergence: float
    prior: float
    prior_dominance: float
    required_gain: float
    jensen_shannon: float
    jensen_shannon_vocabulary: float
    soft_collapse: float
    choice_a: str
    choice_b: str
    mass_a: float
    mass_b: float
    log_probs_a: tuple[float, ...]
    log_probs_b: tuple[float, ...]
    neutral: NeutralPrior | None
    words: Words = ()
    left_out: tuple[str, ...] = ()
    order_spread: float | None = None
    n_orders: int = 1
    row_divergences: tuple[float, ...] = ()

    @property
    def collapses(self) -> bool:
        """Both personas choose the same of all candidates."""
        return self.choice_a == self.choice_b

    @property
    def agrees(self) -> bool:
        """Both personas lean to the same of the two declared tokens: |b| >= |D|/2."""
        return abs(self.prior) >= abs(self.divergence) / 2

    def log_probs(self, side: str, order: Sequence[str], names: Sequence[str] | None = None) -> list[float]:
        """Under persona ``a`` or ``b``, in this order of candidates; ``names`` are what the candidates stand for."""
        values = self.log_probs_a if side == "a" else self.log_probs_b
        by_name = dict(zip(names or self.item.candidates, values, strict=True))
        return [by_name[name] for name in order]

    @property
    def low_mass(self) -> bool:
        """Under either persona the candidates hold less than a fifth of the probability."""
        return min(self.mass_a, self.mass_b) < LOW_MASS


def measure_pairs(
    model: Model,
    items: Sequence[Item],
    *,
    source: str = "the pairs",
    neutral: Sequence[Neutral] = (),
    batch_size: int = 32,
    progress: Progress | None = None,
    alike: bool = False,
    align: str = "equal",
) -> tuple[PairMeasure, ...]:
    """Ask every item under both personas, and its question without one where ``neutral`` has other wordings.

    Parameters
    ----------
    source
        What messages call the items.
    progress
        Called with the number of prompts done and of all.
    alike
        An item's two prompts may be the same, as where only its prior is wanted.
    align
        ``right`` takes prompts of unequal length: only what follows their ends is read.

    Raises
    ------
    TaskError
        A prompt or candidate does not fit the tokenizer; see ``circuit.task.batching.encode``.
    """
    asked = [neutral_prompts(item, tuple(neutral)) for item in items]
    every_neutral = [(item, prompt) for item, many in zip(items, asked, strict=True) for prompt in many]
    extra = {(prompt, item.candidates): (item, prompt) for item, prompt in every_neutral}
    everything = [*items, *(item for item, _ in extra.values())]
    pairs = [_asking(item, item.pair.clean, item.pair.corrupt, item.pair.id) for item in items]
    rows = list(encode(Task(tuple(pairs), source, ""), model, alike=alike, align=align))
    plain = [_asking(item, prompt, prompt, f"{item.pair.id}, neutral") for item, prompt in extra.values()]
    bare = encode(Task(tuple(plain), source, ""), model, alike=True)
    pairs, rows = pairs + plain, rows + [replace(row, index=row.index + len(rows)) for row in bare]
    ids = _candidate_ids(pairs, rows, everything, source)
    answers = _answers(model, rows, ids, batch_size, progress or untold)
    known = dict(zip(extra, answers[len(items) :], strict=True))
    return tuple(
        measured(item, answer, [known[prompt, item.candidates] for prompt in many])
        for item, answer, many in zip(items, answers, asked, strict=False)
    )


def check_items(found: ItemFile, reader: Reader, *, split: str = "all", align: str = "equal") -> None:
    """That the items of a split fit a tokenizer, all their candidates with them.

    Raises:
        TaskError: some do not; all faults are listed.
    """
    encode(_task_of(found.of_split(split)), reader, align=align)


def fitting_items(found: ItemFile, model: Model, *, split: str = "all", align: str = "equal") -> ItemFile:
    """The items that fit a model, all their candidates with them; ``source`` then says how many do.

    Raises:
        TaskError: none fits.
    """
    chosen = found.of_split(split)
    fit = {pair.id for pair in fitting(_task_of(chosen), model, align=align).pairs}
    return chosen.only([item for item in chosen.items if item.pair.id in fit])


def _task_of(items: ItemFile) -> Task:
    asked = (_asking(item, item.pair.clean, item.pair.corrupt, item.pair.id) for item in items.items)
    return Task(tuple(asked), items.source, items.sha256)


@dataclass(frozen=True, eq=False)
class Answer:
    """Log probabilities of one pair's candidates under both prompts, how far the whole distributions differ, words."""

    log_probs: Float[Tensor, "2 candidate"]
    jensen_shannon_vocabulary: float
    words: Words = ()
    left_out: tuple[str, ...] = ()


def _asking(item: Item, clean: str, corrupt: str, name: str) -> PromptPair:
    """Two prompts with all candidates of the item, the declared wrong answers last."""
    pair = item.pair
    rest = tuple(text for text in item.candidates if text not in pair.wrong_answers)
    answers = (rest, pair.wrong_answers)
    return PromptPair(clean, corrupt, *answers, id=name, forms=pair.forms, line=pair.line, unit=pair.unit)


def _candidate_ids(
    pairs: Sequence[PromptPair], rows: Sequence[Row], items: Sequence[Item], source: str
) -> list[list[int]]:
    """Token ids of every row's candidates, in the item's order."""
    table, faults = [], []
    for pair, row, item in zip(pairs, rows, items, strict=True):
        texts, ids = (*pair.answers, *pair.wrong_answers), (*row.answers, *row.wrong_answers)
        id_of = dict(zip(texts, ids, strict=True))
        table.append([id_of[text] for text in item.candidates])
        if len(set(ids)) < len(ids):
            faults.append(f"{pair.place}: two candidates are the same token")
    if faults:
        raise TaskError(listed(f"{source} has {len(faults)} fault(s):", faults))
    return table


def _answers(
    model: Model, rows: Sequence[Row], ids: Sequence[Sequence[int]], batch_size: int, progress: Progress
) -> list[Answer]:
    answers: dict[int, Answer] = {}
    for batch in batches(parallel.share(rows), batch_size, model.device, uneven=False):
        same = torch.equal(batch.clean, batch.corrupt)
        clean = _last_logits(model, batch.clean, batch.clean_padding, batch.forms)
        other = clean if same else _last_logits(model, batch.corrupt, batch.corrupt_padding, batch.forms)
        logits = torch.stack([clean, other])
        check_finite(logits.transpose(0, 1), batch.name)
        distances = metrics.jensen_shannon(*logits)
        for place, index in enumerate(batch.indices):
            candidates = torch.tensor(ids[index]).expand(2, -1)
            log_probs = metrics.candidate_logits(logits[:, place].log_softmax(-1), candidates)
            forms = rows[index].forms
            names = None if forms is None else dict(enumerate(forms.names, model.n_vocab))
            words = mean_words([top_words(row, model.tokenizer, names=names) for row in logits[:, place]])
            left_out = () if forms is None else forms.left_out
            answers[index] = Answer(log_probs, distances[place].item(), words, left_out)
        progress(len(answers), len(rows))
    answers = parallel.gathered(answers)
    return [answers[index] for index in range(len(rows))]


def _last_logits(
    model: Model, tokens: Int[Tensor, "batch pos"], padding: Int[Tensor, " batch"] | None, forms: FormTable | None
) -> Float[Tensor, "batch events"]:
    """In float64 on the CPU, so that no measure adds rounding of its own."""
    if forms is None:
        return model.logits(tokens, padding)[:, -1].cpu().double()
    with torch.no_grad():
        result = run(model, *model.start(tokens, padding, forms), contributions=False, answer_only=True)
    return result.logits.cpu().double()


def measured(item: Item, answer: Answer, neutral: Sequence[Answer]) -> PairMeasure:
    """The measures of an item, of what was answered and of what is answered without a persona."""
    log_probs = answer.log_probs
    margin_a, margin_b = _margins(item, log_probs)
    d, b = metrics.persona_divergence(margin_a[None], margin_b[None])[0], metrics.prior(margin_a, margin_b)
    choices = [item.candidates[i] for i in log_probs.argmax(-1).tolist()]
    mass = log_probs.exp().sum(-1).clamp(max=1.0).tolist()
    return PairMeasure(
        item=item,
        divergence=d.item(),
        prior=b.item(),
        prior_dominance=metrics.prior_dominance(b, d).item(),
        required_gain=metrics.required_gain(b, d).item(),
        jensen_shannon=metrics.choice_information(log_probs).item(),
        jensen_shannon_vocabulary=answer.jensen_shannon_vocabulary,
        soft_collapse=metrics.soft_collapse(log_probs).item(),
        choice_a=choices[0],
        choice_b=choices[1],
        mass_a=mass[0],
        mass_b=mass[1],
        log_probs_a=tuple(log_probs[0].tolist()),
        log_probs_b=tuple(log_probs[1].tolist()),
        neutral=_neutral_prior(item, neutral),
        words=answer.words,
        left_out=answer.left_out,
    )


def _margins(item: Item, log_probs: Float[Tensor, "2 candidate"]) -> Float[Tensor, 2]:
    places = {text: place for place, text in enumerate(item.candidates)}
    sides = [[places[text] for text in texts] for texts in (item.pair.answers, item.pair.wrong_answers)]
    return metrics.logit_diff(log_probs, *(torch.tensor(side).expand(2, -1) for side in sides))


def _neutral_prior(item: Item, answers: Sequence[Answer]) -> NeutralPrior | None:
    if not answers:
        return None
    log_probs = torch.stack([answer.log_probs[0] for answer in answers])
    margins = torch.stack([_margins(item, row.expand(2, -1))[0] for row in log_probs])
    ordered = log_probs.mean(0).sort(descending=True).values
    return NeutralPrior(len(answers), metrics.neutral_prior(margins).item(), (ordered[0] - ordered[1:].mean()).item())
