"""Responses: what a model says under each persona's text to each question, from this machine or an endpoint.

    personas x wordings x questions x samples -> exchanges -> responses

The local model generates from its own token ids, and the response keeps the ids: nothing is
tokenized a second time, so the response's span is known to the token. Prompts are grouped by
length, nothing is padded, and the random numbers of a response come from the seed and its own
prompt, so an answer does not depend on the batch it was made in (but for ties within the
rounding of a batched matrix product). Every response is in the journal as soon as it is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from persona_circuits.circuit.errors import OptionError, TaskError, listed
from persona_circuits.circuit.model import Model, of_prompts
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.progress import Progress, untold
from persona_circuits.circuit.storage import is_whole
from persona_circuits.circuit.task import lost_differences, prompt_faults, token_ids
from persona_circuits.persona.data import Template
from persona_circuits.persona.responses.journal import Journal
from persona_circuits.persona.responses.options import Sampling
from persona_circuits.persona.responses.plan import Exchange, Response, Responses, Said, rendered
from persona_circuits.persona.responses.remote import Chat, Endpoint, EndpointError, ask
from persona_circuits.persona.streams import grouped

__all__ = ["continuations", "respond", "respond_remotely"]

Changed = Callable[[int], contextlib.AbstractContextManager[None]]


def respond(
    model: Model,
    wanted: Sequence[Exchange],
    template: Template,
    journal: Journal,
    *,
    sampling: Sampling | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Responses:
    """Responses of the local model, from the journal where it has them.

    Returns
    -------
    The responses, in the order of what was wanted.

    Raises
    ------
    OptionError
        A number is out of range.
    TaskError
        A prompt starts with two BOS tokens or leaves no room in the model's context; all are listed.
    """
    how = (sampling or Sampling()).checked()
    if batch_size < 1:
        raise OptionError(f"batch-size is {batch_size}; it must be at least 1")
    prompts = [rendered(template, item.system, item.user) for item in wanted]
    ids = _prompt_ids(prompts, model)
    _check_words(wanted, prompts, ids, model)
    keys = [_digest(model, row, item.sample, how) for row, item in zip(ids, wanted, strict=True)]
    todo = [(key, row) for key, row in dict(zip(keys, ids, strict=True)).items() if _kept(journal, key) is None]
    total, done = len(set(keys)), len(set(keys)) - len(todo)
    for group in grouped([len(row) for _, row in todo], batch_size):
        batch = dict(todo[i] for i in group)
        for key, answer in zip(batch, continuations(model, [*batch.values()], how, keys=[*batch]), strict=True):
            journal.add(key, {"text": answer.text, "finish": answer.finish, "ids": list(answer.ids)})
        done += len(batch)
        (progress or untold)(done, total)
    responses = []
    for item, prompt, row, key in zip(wanted, prompts, ids, keys, strict=True):
        kept = _kept(journal, key)
        assert kept is not None, "every key was answered above"
        about = (model.name, model.fingerprint, prompt, tuple(row), tuple(kept["ids"]))
        responses.append(Response(item, kept["text"], kept["finish"], *about))
    return Responses(tuple(responses), len(todo), total - len(todo), {})


def _kept(journal: Journal, key: str) -> dict[str, Any] | None:
    """A response as the journal has it; None where a line of it is damaged, so that it is made again."""
    entry = journal.get(key, text=str, finish=str, ids=list)
    return entry if entry is not None and all(map(is_whole, entry["ids"])) else None


def respond_remotely(
    place: Endpoint,
    wanted: Sequence[Exchange],
    journal: Journal,
    *,
    sampling: Sampling | None = None,
    system_turn: bool = True,
    progress: Progress | None = None,
) -> Responses:
    """Responses of an endpoint. Without ``system_turn`` the persona's text heads the user's turn.

    Exchanges that failed on their own are left out of the responses and counted.

    Raises:
        EndpointError: the endpoint ends the run, or nothing at all was answered.
        OptionError: a number is out of range, or the ``openai`` package is absent.
    """
    how = (sampling or Sampling()).checked()
    requests = [
        Chat(
            _messages(item, system_turn),
            how.max_new_tokens,
            how.temperature,
            how.top_p if how.top_p < 1 else None,
            seed=_seed(how.seed, item),
            stop=how.stop,
            sample=item.sample,
        )
        for item in wanted
    ]
    result = ask(place, requests, journal, progress=progress)
    if wanted and not any(result.answers):
        why = next(iter(result.failures))
        raise EndpointError(f"{place.address}, model {place.model}: all {len(wanted)} requests failed: {why}")
    responses = tuple(
        Response(item, answer.text, answer.finish, answer.model or place.model)
        for item, answer in zip(wanted, result.answers, strict=True)
        if answer is not None
    )
    return Responses(responses, result.asked, result.remembered, result.failures)


def continuations(
    model: Model,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    keys: Sequence[str],
    changed: Changed | None = None,
) -> list[Said]:
    """Continue prompts of one length, all in step, with the model's own key-value cache.

    Parameters
    ----------
    prompts
        Token ids, rows of one length.
    keys
        What each row's random numbers are drawn from; equal keys draw equal numbers.
    changed
        Called with the position of the first token of each pass; the pass runs within the
        context it returns. For steering.
    """
    steps = sampling.max_new_tokens
    if model.n_context:
        steps = min(steps, model.n_context - len(prompts[0]))
    draws = np.stack([_uniform(key, steps) for key in keys])
    ends = _end_ids(model)
    rows: list[list[int]] = [[] for _ in prompts]
    results: list[Said | None] = [None] * len(prompts)
    tokens, past, first = torch.tensor([list(row) for row in prompts], device=model.device), None, 0
    for step in range(steps):
        with changed(first) if changed else contextlib.nullcontext():
            logits, past = _next_logits(model, tokens, past)
        first += tokens.shape[1]
        chosen = _drawn(logits, draws[:, step], sampling)
        for i, token in enumerate(chosen):
            if results[i] is not None:
                continue
            if token in ends:
                results[i] = Said(tuple(rows[i]), model.tokenizer.decode(rows[i]), "stop")
            else:
                rows[i].append(token)
                results[i] = _stopped(rows[i], sampling.stop, model.tokenizer)
        if all(results):
            break
        tokens = torch.tensor(chosen, device=model.device)[:, None]
    return [s or Said(tuple(row), model.tokenizer.decode(row), "length") for s, row in zip(results, rows, strict=True)]


def _messages(item: Exchange, system_turn: bool) -> tuple[tuple[str, str], ...]:
    if not item.system:
        return (("user", item.user),)
    if system_turn:
        return (("system", item.system), ("user", item.user))
    return (("user", f"{item.system}\n\n{item.user}"),)


def _prompt_ids(prompts: Sequence[str], model: Model) -> list[tuple[int, ...]]:
    rows, faults = [], []
    for prompt in prompts:
        ids = token_ids(prompt, model)
        wrong = prompt_faults(ids, model)
        if not ids:
            wrong = ["the prompt is empty"]
        elif model.n_context and len(ids) == model.n_context:
            wrong = [f"the prompt fills the context of {model.n_context} tokens; nothing can be said"]
        faults += [f"{fault}: {prompt[:80]!r}" for fault in wrong]
        rows.append(tuple(ids))
    if faults:
        faults = list(dict.fromkeys(faults))
        raise TaskError(listed(f"{len(faults)} prompt(s) cannot be put to {model.name}:", faults))
    return rows


def _check_words(
    wanted: Sequence[Exchange], prompts: Sequence[str], ids: Sequence[tuple[int, ...]], model: Model
) -> None:
    """The tokenizer can write what prompts differ in; those with a persona's turn are not held against those without.

    Raises:
        TaskError: it cannot; all such texts are listed.
    """
    faults: list[str] = []
    for with_persona in (True, False):
        rows = zip(wanted, prompts, ids, strict=True)
        faults += lost_differences({text: row for item, text, row in rows if bool(item.system) == with_persona}, model)
    if faults:
        raise TaskError(listed(f"these personas and questions cannot be put to {model.name}:", faults))


def _digest(model: Model, ids: Sequence[int], sample: int, sampling: Sampling) -> str:
    whole = [model.fingerprint, str(model.dtype), list(ids), sample, vars(sampling)]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _seed(seed: int, item: Exchange) -> int:
    """A seed per sample that an endpoint may honour; 31 bits, which all of them take."""
    whole = json.dumps([seed, item.system, item.user, item.sample])
    return int.from_bytes(hashlib.sha256(whole.encode()).digest()[:4], "big") >> 1


def _uniform(key: str, n: int) -> Float[np.ndarray, " n"]:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big")
    return np.random.default_rng(seed).random(n)


def _next_logits(model: Model, tokens: Int[Tensor, "batch pos"], past: Any) -> tuple[Float[Tensor, "batch vocab"], Any]:
    with torch.no_grad():
        out = model.bridge.original_model(tokens, past_key_values=past, use_cache=True)
    logits = out.logits[:, -1].float().cpu().double()
    check_finite(logits, of_prompts(model, tokens))
    return logits, out.past_key_values


def _drawn(logits: Float[Tensor, "batch vocab"], draws: Float[np.ndarray, " batch"], sampling: Sampling) -> list[int]:
    """The most likely token, or the one in whose slice of [0, 1) the row's random number falls."""
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    p = (logits / sampling.temperature).softmax(-1)
    order = None
    if sampling.top_p < 1:  # the fewest most likely tokens that together hold top_p
        p, order = p.sort(descending=True, stable=True)
        p = p.masked_fill(p.cumsum(-1) - p >= sampling.top_p, 0.0)
    heap = p.cumsum(-1)
    place = torch.searchsorted(heap, torch.from_numpy(draws)[:, None] * heap[:, -1:], right=True)
    place = place.clamp(max=p.shape[-1] - 1)
    return (place if order is None else order.gather(-1, place))[:, 0].tolist()


def _stopped(ids: Sequence[int], stops: Sequence[str], tokenizer: Any) -> Said | None:
    """The continuation up to the first stop text, if there is one: only tokens that begin before it."""
    text = tokenizer.decode(ids)
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    if not places:
        return None
    cut = min(places)
    n = next(n for n in range(len(ids) + 1) if len(tokenizer.decode(ids[:n])) >= cut)
    return Said(tuple(ids[:n]), text[:cut], "stop")


def _end_ids(model: Model) -> set[int]:
    config = getattr(model.bridge.original_model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    own = [] if named is None else [named] if isinstance(named, int) else list(named)
    return {i for i in (*own, model.tokenizer.eos_token_id) if i is not None}
