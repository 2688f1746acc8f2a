"""Gradients at the stream of every slot, from a backward pass to activations alone.

Neither copies of the stream for every head nor gradients of parameters are taken: autograd gives the gradients
at q, k and v, at the MLPs' inputs and at the last stream, and what is missing, a head's projection and the norm
before it, is one matrix product for all heads (``circuit.model.loading.Pullback``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit.forward import Run
from persona_circuits.circuit.graph import SLOTS
from persona_circuits.circuit.model import Model

__all__ = ["Ends", "differentiated", "gradients_at_slots"]


@dataclass(frozen=True, eq=False)
class Ends:
    """One differentiated run, without its autograd graph.

    ``streams[l]`` enters layer l's attention. ``gradients`` are those with respect to q, k and v of all layers
    in turn, to the MLPs' inputs and to the last stream, followed by ``Block.along`` of
    those at q, k and v: all are linear in the differentiated value, with the batch as their first axis.
    """

    streams: Sequence[Float[Tensor, "batch pos d_model"]]
    gradients: Sequence[Tensor]

    def of_layer(self, layer: int) -> tuple[Sequence[Tensor], Sequence[Tensor], Tensor]:
        """At q, k and v, what lies along the norm of these, and at the MLP's input."""
        n, each = len(self.streams), slice(3 * layer, 3 * layer + 3)
        return self.gradients[each], self.gradients[4 * n + 1 :][each], self.gradients[3 * n + layer]

    def late(self, n: int) -> Ends:
        """The last ``n`` positions, or the one that there is."""
        return Ends([x[:, -n:] for x in self.streams], [x[:, -n:] for x in self.gradients])

    @property
    def last(self) -> Float[Tensor, "batch _ d_model"]:
        """At the last stream."""
        return self.gradients[4 * len(self.streams)]


def differentiated(model: Model, at: Run, value: Float[Tensor, ""], *, retain: bool = False) -> Ends:
    """Gradients of ``value``, made of the run's logits, at what the run's nodes read; ``retain`` keeps the graph."""
    reads = [x for layer in at.qkv for x in layer] + [*at.mids, at.streams[-1]]
    derivatives = list(torch.autograd.grad(value, reads, retain_graph=retain))
    with torch.no_grad():
        for block, projected in zip(model.blocks, at.qkv, strict=True):
            gradients = derivatives[3 * block.layer : 3 * block.layer + 3]
            derivatives += [block.along(*each) for each in zip(SLOTS, gradients, projected, strict=True)]
    return Ends([stream.detach() for stream in at.streams[:-1]], derivatives)


def gradients_at_slots(
    model: Model, ends: Ends, *, max_bytes: int
) -> Iterator[tuple[slice, Float[Tensor, "slot batch pos d_model"]]]:
    """Gradients at the stream of every slot, in the slots' order, a layer's or fewer at a time.

    A tensor is valid until the next one is requested, which may reuse its memory.

    Parameters
    ----------
    ends
        A run and its gradients.
    max_bytes
        Bound on the memory of a layer's slots at a time; at least one slot is taken.
    """
    graph, buffer = model.graph, ends.last.new_empty(0)
    for block in model.blocks:
        layer, begin = block.layer, graph.head_slots_of(block.layer).start
        stream, (projected, along, mid) = ends.streams[layer], ends.of_layer(layer)
        # Autograd keeps about four copies of a gradient in the backward pass of a norm.
        width = max(1, max_bytes // (stream.nbytes * (1 if block.pullback else 4)))
        for some in _slots_together(projected, mid, graph.n_heads, width):
            places = (mid if some.start == 3 * graph.n_heads else projected[some.start // graph.n_heads]).shape[1]
            shape = some.stop - some.start, len(mid), places, model.d_model
            if buffer.numel() < math.prod(shape):
                buffer = stream.new_empty(min(width, 3 * graph.n_heads + 1) * stream.numel())
            out = buffer[: math.prod(shape)].view(shape)
            n_projected = min(some.stop, 3 * graph.n_heads) - some.start
            if n_projected:
                block.slot_gradients(projected, along, stream[:, -places:], out[:n_projected], some.start)
            if n_projected < len(out):
                out[-1] = mid
            yield slice(begin + some.start, begin + some.stop), out
    yield slice(graph.n_dst - 1, graph.n_dst), ends.last[None]


def _slots_together(projected: Sequence[Tensor], mid: Tensor, n_heads: int, width: int) -> Iterator[slice]:
    """A layer's slots, from 0, as many at a time as ``width`` and of one number of positions."""
    places = [gradient.shape[1] for gradient in projected for _ in range(n_heads)] + [mid.shape[1]]
    start = 0
    for stop in range(1, len(places) + 1):
        if stop == len(places) or places[stop] != places[start] or stop - start == width:
            yield slice(start, stop)
            start = stop
