"""Steered passes: a direction added to, or taken out of, the stream."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit.errors import OptionError, TaskError, listed
from persona_circuits.circuit.model import Model, of_prompts
from persona_circuits.circuit.model.finite import Name, check_finite
from persona_circuits.persona.data import ExampleFile, without_persona
from persona_circuits.persona.steering.results import SINGLE_TOKENS, Cell, Changes, SteeredPrompts
from persona_circuits.persona.streams import Change, grouped, on_streams
from persona_circuits.persona.vectors import place_of

T = TypeVar("T")

__all__ = ["added", "chosen_pairs", "evenly", "some_pairs", "steered_logits", "steered_prompts", "without_direction"]


def steered_prompts(
    file: ExampleFile, model: Model, neutral: Sequence[str] = (), *, position: str = "prompt-end"
) -> SteeredPrompts:
    """The prompts of a file's pairs, each with a neutral one: the given ones in turn, or its own without its persona.

    A pair in which no persona is found has the neutral prompt of another. A neutral prompt without the named
    position is steered at its end.

    Raises:
        TaskError: no neutral prompt is given or found, or a given one cannot be put to the model.
    """
    from persona_circuits.circuit.task import prompt_faults, token_ids

    firsts, seconds = file.examples[::2], file.examples[1::2]
    if neutral:
        texts = tuple(neutral[i % len(neutral)] for i in range(len(firsts)))
        plainly = tuple(tuple(token_ids(text, model)) for text in texts)
        at_fault = dict.fromkeys(zip(texts, plainly, strict=True))
        at = [len(ids) - 1 for ids in plainly]
        faults = [f"{text[:80]!r}: {fault}" for text, ids in at_fault for fault in prompt_faults([*ids], model)]
        if faults:
            raise TaskError(listed(f"neutral prompts cannot be put to {model.name}:", faults))
    else:
        taken_out = [without_persona(item.placed, model) for item in firsts]
        available = [item for item in taken_out if item is not None]
        if not available:
            raise TaskError(
                f"in no pair of {file.source} a persona was found that could be left out; give prompts with --neutral"
            )
        filled = [item or available[i % len(available)] for i, item in enumerate(taken_out)]
        texts, plainly = tuple(item.text for item in filled), tuple(item.ids for item in filled)
        at = [item.places.get(position, len(item.ids) - 1) for item in filled]
    return SteeredPrompts(
        (tuple(item.placed.ids for item in firsts), tuple(item.placed.ids for item in seconds)),
        plainly,
        (tuple(item.answers for item in firsts), tuple(item.others for item in firsts)),
        (texts, tuple(item.placed.text for item in seconds)),
        tuple((a.persona, b.persona) for a, b in zip(firsts, seconds, strict=True)),
        tuple(item.question for item in firsts),
        (*at, *(place_of(item, position) for item in (*firsts, *seconds))),
        tuple((item.placed.persona, item.placed.question) for item in firsts),
    )


def some_pairs(file: ExampleFile, n: int) -> ExampleFile:
    """At most ``n`` of the pairs, evenly taken.

    Raises:
        OptionError: ``n`` is below 1.
    """
    if n < 1:
        raise OptionError(f"max-pairs is {n}; it must be at least 1")
    every = len(file.items)
    if n >= every:
        return file
    return chosen_pairs(file, evenly(range(every), n))


def chosen_pairs(file: ExampleFile, places: Sequence[int]) -> ExampleFile:
    """The file with these of its pairs alone."""
    examples = tuple(file.examples[2 * i + side] for i in places for side in (0, 1))
    return replace(file, items=tuple(file.items[i] for i in places), examples=examples)


def evenly(values: Sequence[T], n: int) -> list[T]:
    """At most ``n`` of these, evenly taken."""
    places = np.linspace(0, len(values) - 1, min(n, len(values))).round().astype(int)
    return [values[place] for place in np.unique(places)]


def added(
    vectors: Mapping[int, Float[Tensor, "batch d_model"]], positions: str, places: Sequence[int] = ()
) -> dict[int, Change]:
    """Changes that add each row's vector after the named blocks: at all positions, at the last, or at one per row."""

    def change(vector: Tensor) -> Change:
        def add(stream: Tensor) -> Tensor:
            more = vector.to(stream.device, stream.dtype)[:, None]
            if positions == "all":
                return stream + more
            if positions != "prompt-end":
                here = torch.tensor(places, device=stream.device)[:, None] == torch.arange(
                    stream.shape[1], device=stream.device
                )
                return stream + more * here[..., None]
            return torch.cat([stream[:, :-1], stream[:, -1:] + more], dim=1)

        return add

    return {layer: change(vector) for layer, vector in vectors.items()}


def without_direction(vectors: Mapping[int, Float[Tensor, "batch d_model"]]) -> dict[int, Change]:
    """Changes that take each row's direction out of the stream, at every position."""

    def change(vector: Tensor) -> Change:
        unit = vector / vector.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(vector.dtype).tiny)

        def remove(stream: Tensor) -> Tensor:
            along = unit.to(stream.device, stream.dtype)
            return stream - torch.einsum("bpd,bd->bp", stream, along)[..., None] * along[:, None]

        return remove

    return {layer: change(vector) for layer, vector in vectors.items()}


def steered_logits(
    model: Model,
    prompts: Sequence[Sequence[int]],
    n_variants: int,
    changes: Changes,
    *,
    only_last: bool,
    batch_size: int,
) -> Iterator[tuple[list[Cell], Float[Tensor, "batch vocab"]]]:
    """Logits after each prompt, at the output, under every variant.

    Parameters
    ----------
    changes
        What is changed in the rows of a batch, given as ``(variant, prompt)``.
    only_last
        The changes touch the last token alone. All before it is then run once per prompt and
        kept in the model's own cache, and a variant costs one token.

    Yields
    ------
    Cells ``(variant, prompt)`` and their logits in float64 on the CPU, in batches of one length.
    """
    for group in grouped([len(ids) for ids in prompts], batch_size):
        tokens = torch.tensor([list(prompts[i]) for i in group], device=model.device)
        before = _cache_of(model, tokens[:, :-1]) if only_last and tokens.shape[1] > 1 else None
        most = batch_size if before is None else batch_size * SINGLE_TOKENS
        at_a_time = max(1, most // len(group))
        for first in range(0, n_variants, at_a_time):
            variants = range(first, min(first + at_a_time, n_variants))
            cells = [(v, i) for i in group for v in variants]
            rows = (tokens if before is None else tokens[:, -1:]).repeat_interleave(len(variants), dim=0)
            with on_streams(model, changes(cells)):
                logits = _last(model, rows, before, len(variants))
            check_finite(logits, partial(_called, of_prompts(model, prompts), cells))
            yield cells, logits  # the changes end here: the caller may run the model in between


def _called(name: Name, cells: Sequence[tuple[int, int]], row: int) -> str:
    return name(cells[row][1])


def _cache_of(model: Model, tokens: Tensor) -> Any:
    with torch.no_grad():
        return model.bridge.original_model(tokens, use_cache=True).past_key_values


def _last(model: Model, tokens: Tensor, cache: Any, repeats: int) -> Float[Tensor, "batch vocab"]:
    """Logits of the last token, run on a copy of the cache: the host model appends to the one that it is given."""
    if cache is None:
        return model.logits(tokens)[:, -1].float().cpu().double()
    repeated = copy.deepcopy(cache)
    repeated.batch_repeat_interleave(repeats)
    with torch.no_grad():
        out = model.bridge.original_model(tokens, past_key_values=repeated, use_cache=True)
    return out.logits[:, -1].float().cpu().double()
