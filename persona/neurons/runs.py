"""MLP neurons read at a position of every prompt, and the model run with some of them changed.

A position is a token (``persona-end`` …) or the mean over the tokens of a part (``persona-mean``,
``question-mean``). A set of neurons is changed at the position's tokens, or at every token:

    zero   0
    mean   the neuron's mean over the fitting prompts' values there
    swap   what it is in the pair's other prompt, at the token as far from the end of the place; a
           token that has no such partner keeps its own value

Many sets share a pass: rows are copies of the prompts, one after the other, and the pass is taken
up at the first layer that any set changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from persona_circuits import metrics
from persona_circuits.circuit.errors import ModelError, OptionError
from persona_circuits.circuit.forward import run
from persona_circuits.circuit.model import Model, of_prompts
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.progress import Progress
from persona_circuits.persona.data import POSITIONS, Example, ExampleFile, Placed
from persona_circuits.persona.explanation import replay
from persona_circuits.persona.streams import grouped, id_table

__all__ = ["NEURON_POSITIONS", "Change", "Neurons", "Readings", "ablated", "neurons_of", "read_neurons", "tokens_at"]

NEURON_POSITIONS = (*POSITIONS, "persona-mean", "question-mean")
ROWS = 256  # of one pass with changed neurons


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons that are looked at, layer after layer: of each its layer, and its number there."""

    hook: str
    layers: Int[np.ndarray, " neuron"]
    numbers: Int[np.ndarray, " neuron"]

    def __len__(self) -> int:
        return len(self.layers)

    def name(self, place: int) -> str:
        """``m3.n17``: neuron 17 of layer 3's MLP."""
        return f"m{self.layers[place]}.n{self.numbers[place]}"

    def own(self, layer: int) -> slice:
        """The slice of one layer's neurons among all."""
        first, last = np.searchsorted(self.layers, [layer, layer + 1])
        return slice(int(first), int(last))


@dataclass(frozen=True, eq=False)
class Readings:
    """Activations at the position of every prompt, and their mean over all tokens of all prompts (``everywhere``)."""

    values: Float[np.ndarray, "example neuron"]
    everywhere: Float[np.ndarray, " neuron"]

    @property
    def differences(self) -> Float[np.ndarray, "pair neuron"]:
        """A - B of every pair."""
        return self.values[::2] - self.values[1::2]


def neurons_of(model: Model, hook: str, layers: Sequence[int] = ()) -> Neurons:
    """The neurons of these layers, of all if none is named.

    Raises:
        ModelError: a layer has no such neurons.
        OptionError: there is no such layer.
    """
    n_layers = len(model.blocks)
    for layer in layers:
        if not 0 <= layer < n_layers:
            raise OptionError(f"--layer {layer} is not one of 0 to {n_layers - 1}")
    chosen = sorted(set(layers)) or list(range(n_layers))
    try:
        counts = [model.blocks[layer].n_neurons(hook) for layer in chosen]
    except ModelError as error:
        raise ModelError(f"{model.name}: {error}") from error
    return Neurons(hook, np.repeat(chosen, counts), np.concatenate([np.arange(count) for count in counts]))


def read_neurons(
    model: Model,
    examples: Sequence[Example],
    neurons: Neurons,
    position: str,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Readings:
    """Every neuron at the position of every prompt, in float64.

    Raises:
        OptionError: a prompt has no such position.
    """
    places = [tokens_at(example.placed, position) for example in examples]
    if empty := [example for example, at in zip(examples, places, strict=True) if not at]:
        raise OptionError(
            f"--position {position}: {len(empty)} of {len(examples)} prompts have no such place, such as "
            f"{empty[0].placed.text[:60]!r}; choose another, or build the file with the pairs command"
        )
    values = np.empty((len(examples), len(neurons)))
    everywhere = np.zeros(len(neurons))
    done = 0
    for group in grouped([len(example.placed.ids) for example in examples], batch_size):
        tokens = torch.tensor([examples[i].placed.ids for i in group], device=model.device)
        share = torch.zeros(tokens.shape, dtype=torch.float64)
        for row, i in enumerate(group):
            share[row, places[i]] = 1 / len(places[i])
        with torch.no_grad():
            for layer, activations in _passing(model, tokens, neurons):
                span = neurons.own(layer)
                values[group, span] = torch.einsum("bp,bpn->bn", share, activations).numpy()
                everywhere[span] += activations.mean(1).sum(0).numpy()
        done += len(group)
        if progress is not None:
            progress(done, len(examples))
    return Readings(values, everywhere / len(examples))


def tokens_at(placed: Placed, position: str) -> list[int]:
    """The tokens of a position; none where the prompt does not have it."""
    if position in POSITIONS:
        return [placed.places[position]] if position in placed.places else []
    return list(range(*{"persona-mean": placed.persona_tokens, "question-mean": placed.question_tokens}[position]))


class Change(NamedTuple):
    """How neurons are changed, and where (None: at every token); ``means`` is what ``mean`` puts in their place."""

    kinds: Sequence[str]
    position: str | None
    means: Float[np.ndarray, " neuron"]


def ablated(
    model: Model,
    found: ExampleFile,
    neurons: Neurons,
    sets: Bool[np.ndarray, "set neuron"],
    change: Change,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, "kind set pair"]]:
    """D of every pair as it is, and with each set of neurons changed in both of its prompts."""
    kinds = change.kinds
    before = np.empty(len(found.items))
    after = np.empty((len(kinds), len(sets), len(found.items)))
    firsts, seconds = found.examples[::2], found.examples[1::2]
    lengths = [(len(a.placed.ids), len(b.placed.ids)) for a, b in zip(firsts, seconds, strict=True)]
    codes = [sorted(set(lengths)).index(two) for two in lengths]
    layers = sorted({int(layer) for layer in neurons.layers[sets.any(0)]})
    done = 0
    for group in grouped(codes, batch_size):
        both = [_Side(model, [side[i] for i in group], neurons, layers, change.position) for side in (firsts, seconds)]
        before[group] = (both[0].margin - both[1].margin).numpy()
        for k, kind in enumerate(kinds):
            for rows in np.array_split(np.arange(len(sets)), -(-len(sets) * len(group) // ROWS)):
                a, b = (x.changed(sets[rows], kind, change.means, y) for x, y in (both, reversed(both)))
                after[k][rows[:, None], group] = (a - b).numpy()
        done += len(group)
        if progress is not None:
            progress(done, len(found.items))
    return before, after


class _Side:
    """The prompts of one side of some pairs, all of one length: their run, and runs with neurons changed."""

    def __init__(
        self, model: Model, examples: Sequence[Example], neurons: Neurons, layers: Sequence[int], position: str | None
    ) -> None:
        self.model, self.neurons, self.layers = model, neurons, layers
        self.tokens = torch.tensor([x.placed.ids for x in examples], device=model.device)
        self.places = [
            list(range(len(x.placed.ids))) if position is None else tokens_at(x.placed, position) for x in examples
        ]
        self.answers = [id_table([x.sides[turn] for x in examples]) for turn in (0, 1)]
        self.values: dict[int, Tensor] = {}
        with torch.no_grad(), ExitStack() as hooks:
            for layer in layers:
                hooks.enter_context(model.blocks[layer].on_neurons(neurons.hook, _keeping(self.values, layer)))
            stream, self.context = model.start(self.tokens)
            whole = run(model, stream, self.context, contributions=False)
        self.stream = whole.streams[layers[0]]
        self.margin = self._margin(whole.logits)

    def changed(
        self, sets: Bool[np.ndarray, "set neuron"], kind: str, means: Float[np.ndarray, " neuron"], other: _Side
    ) -> Float[Tensor, "set row"]:
        """m of every prompt under every set."""
        partner, here = self._partners(other) if kind == "swap" else (None, self._inside())
        with torch.no_grad(), ExitStack() as hooks:
            for layer in self.layers:
                span = self.neurons.own(layer)
                chosen = torch.as_tensor(sets[:, span])
                if not chosen.any():
                    continue
                target = torch.as_tensor(means[span]) * (kind == "mean")
                if partner is not None:
                    values = other.values[layer]
                    target = values[torch.arange(len(values), device=values.device)[:, None], partner.to(values.device)]
                change = _setting(chosen, here, target)
                hooks.enter_context(self.model.blocks[layer].on_neurons(self.neurons.hook, change))
            stream = self.stream.repeat(len(sets), 1, 1)
            logits = replay(self.model, stream, self.context, layer=self.layers[0])
        return self._margin(logits).view(len(sets), -1)

    def _margin(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
        copies = len(logits) // len(self.tokens)
        values = metrics.logit_diff(logits.double().cpu(), *(ids.repeat(copies, 1) for ids in self.answers))
        check_finite(values.view(copies, -1).T, of_prompts(self.model, self.tokens), "margins")
        return values

    def _inside(self) -> Bool[Tensor, "row pos"]:
        inside = torch.zeros(self.tokens.shape, dtype=torch.bool)
        for row, places in enumerate(self.places):
            inside[row, places] = True
        return inside

    def _partners(self, other: _Side) -> tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
        """Every token's partner in the other prompt, counted from the end of the place, and whether it has one."""
        partner = torch.zeros(self.tokens.shape, dtype=torch.int64)
        inside = torch.zeros(self.tokens.shape, dtype=torch.bool)
        for row, (tokens, partners) in enumerate(zip(self.places, other.places, strict=True)):
            n = min(len(tokens), len(partners))
            partner[row, tokens[len(tokens) - n :]] = torch.tensor(partners[len(partners) - n :], dtype=torch.int64)
            inside[row, tokens[len(tokens) - n :]] = True
        return partner, inside


def _passing(model: Model, tokens: Int[Tensor, "batch pos"], neurons: Neurons) -> Iterator[tuple[int, Tensor]]:
    """Each layer's neurons in one pass, ``[batch, pos, neuron]`` in float64 on the CPU."""
    by_layer: dict[int, Tensor] = {}
    layers = sorted({int(layer) for layer in neurons.layers})
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(model.blocks[layer].on_neurons(neurons.hook, _keeping(by_layer, layer)))
        replay(model, *model.start(tokens))
    for layer in layers:
        values = by_layer.pop(layer).double().cpu()
        check_finite(values, of_prompts(model, tokens), "neurons")
        yield layer, values


def _keeping(by_layer: dict[int, Tensor], layer: int) -> Callable[[Tensor], None]:
    def keep(values: Tensor) -> None:
        by_layer[layer] = values

    return keep


def _setting(
    chosen: Bool[Tensor, "set neuron"], here: Bool[Tensor, "row pos"], target: Tensor
) -> Callable[[Tensor], Tensor]:
    """Put the target in the place of the chosen neurons; rows are copies of the prompts, one per set."""

    def change(values: Tensor) -> Tensor:
        copies = values.view(len(chosen), len(here), *values.shape[1:])
        cut = chosen[:, None, None, :].to(values.device) & here[None, :, :, None].to(values.device)
        return torch.where(cut, target.to(values.device, values.dtype), copies).view(values.shape)

    return change
