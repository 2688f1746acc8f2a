"""What the two runs of a pair show inside the model.

    signal        at the persona's last token, between it and the answer (mean over places), and at
                  the answer, per layer: |h_A - h_B| against what two arbitrary prompts of the
                  file differ there, sqrt(2 E|h - mean h|^2). 1: as much as any two prompts; what is in every
                  prompt alike is in neither number
    alignment     eta(l) = cos(h_A - h_B, grad of m) at the answer, the gradient averaged over both runs; ``chance`` is
                  its root mean square for random pairs of tokens in the final stream (``chance``)
    contributions of every node into the logits, under A minus under B: the edges into the logits
    cancellation  kappa of those (``metrics.cancellation``); the two sides' sums
    access        dD/dc, c an amount added to all attention logits on the persona (a central difference)

Contributions are exact: the final norm is linear but for one scale per run, and each run keeps
its own (``persona.lens.study.read_out``). They and what is no node's (biases) add up to D, unless the
logits are bent after the norm (a soft cap); ``conservation`` is the error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from persona_circuits import metrics
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.progress import Progress, untold
from persona_circuits.circuit.storage import Kept, packed, unpacked
from persona_circuits.circuit.task import Row, batches
from persona_circuits.persona.explanation.chance import chance_alignment
from persona_circuits.persona.explanation.runs import Both, both_of, can_come_nearer, margins, nearer, replay
from persona_circuits.persona.lens import read_out

__all__ = ["PLACES", "Inside", "look_inside"]

PLACES = ("persona", "between", "answer")
STEP = 0.5  # of the central difference, in attention logits
ROUNDING = 1e-9


@dataclass(frozen=True)
class Inside:
    """One pair; layers count from what enters the first block to what the final norm reads.

    ``persona`` is the first and the last place at which the prompts differ. A place that a
    pair does not have has signal 0. ``contributions`` are in the order of the graph's
    sources; ``remainder`` is what no node contributes, ``conservation`` the error of the
    sum, ``slope`` dD/dc, None where the model's attention takes no mask of numbers.
    """

    persona: tuple[int, int]
    n_tokens: int
    signal: Mapping[str, tuple[float, ...]]
    alignment: tuple[float, ...]
    chance: float
    contributions: tuple[float, ...]
    remainder: float
    conservation: float
    cancellation: float
    slope: float | None

    @property
    def sides(self) -> tuple[float, float]:
        """The sums of the contributions above and below zero."""
        return (sum((x for x in self.contributions if x > 0), 0.0), sum((x for x in self.contributions if x < 0), 0.0))

    @property
    def stronger_side(self) -> float:
        """The larger of the two, without its sign."""
        return max(self.sides[0], -self.sides[1])

    def most(self, place: str) -> float:
        """The largest signal of any layer at a place."""
        return max(self.signal[place])


def look_inside(
    model: Model,
    rows: Sequence[Row],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> tuple[Inside, ...]:
    """Both runs of every row with their gradients, and four more for ``slope``.

    Parameters
    ----------
    rows
        Encoded pairs of equal length each; ``index`` is the place among the results.
    kept
        What a stopped study did; what is done here is added.
    """
    kept = kept or Kept(None, "")
    spread = _Spread(model.graph.n_layers + 1, model.d_model, kept.part("spread"))
    by_row: dict[int, Inside] = {}
    gaps: dict[int, Tensor] = {}
    for batch in batches(rows, batch_size, model.device):
        done = kept.part(f"inside {batch.place}")
        if not done:
            both = both_of(model, batch, gradients=True)
            done = {"pairs": packed([asdict(inside) for inside in _of_batch(model, both)]), "gaps": _gaps(both).numpy()}
            spread.add(both)
            kept.add({f"inside {batch.place}": done, "spread": spread.arrays()})
        gaps |= dict(zip(batch.indices, torch.from_numpy(done["gaps"]), strict=True))
        by_row |= {i: _restored(inside) for i, inside in zip(batch.indices, unpacked(done["pairs"]), strict=True)}
        (progress or untold)(len(by_row), len(rows))
    scale = spread.of_two()
    return tuple(_with_signal(by_row[row.index], gaps[row.index], scale) for row in rows)


class _Spread:
    """Sums from which the spread of the streams at each place and layer follows, of all prompts; ``known`` go on."""

    def __init__(self, n_layers: int, d_model: int, known: Mapping[str, NDArray[np.float64]]) -> None:
        n = len(PLACES)
        sizes = {"sums": (n, n_layers, d_model), "squares": (n, n_layers), "counts": (n,)}
        arrays = {name: known.get(name, np.zeros(size)) for name, size in sizes.items()}
        self.sums, self.squares, self.counts = (torch.from_numpy(array.copy()) for array in arrays.values())

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """The sums so far."""
        arrays = {"sums": self.sums, "squares": self.squares, "counts": self.counts}
        return {name: value.numpy().copy() for name, value in arrays.items()}

    def add(self, both: Both) -> None:
        for place, marked in enumerate(_places(both)):
            for run in both.runs:
                values = torch.stack([stream[marked] for stream in run.streams]).cpu().double()
                self.sums[place] += values.sum(1)
                self.squares[place] += values.square().sum((1, 2))
                self.counts[place] += values.shape[1]

    def of_two(self) -> Float[Tensor, "place layer"]:
        """sqrt(2 E|h - mean h|^2); 0 where all prompts are alike but for rounding."""
        n = self.counts.clamp(min=1)[:, None]
        whole = self.squares / n
        spread = whole - (self.sums / n[..., None]).square().sum(-1)
        return torch.where(spread > ROUNDING * whole, 2 * spread, 0.0).clamp(min=0).sqrt()


def _places(both: Both) -> tuple[Tensor, ...]:
    """Bool ``[batch, pos]`` for each of ``PLACES``."""
    places = torch.arange(both.inside.shape[1], device=both.inside.device)
    return places == both.end[:, None], both.between, (places == len(places) - 1).expand_as(both.inside)


def _gaps(both: Both) -> Float[Tensor, "batch place layer"]:
    """Root mean square over the places of |h_A - h_B|; 0 where a row has no such place."""
    layers = range(len(both.clean.streams))
    squares = torch.stack([both.difference(layer).double().square().sum(-1) for layer in layers])
    means = [(squares * marked).sum(-1) / marked.sum(-1).clamp(min=1) for marked in _places(both)]
    return torch.stack(means).sqrt().permute(2, 0, 1).cpu()


def _of_batch(model: Model, both: Both) -> list[Inside]:
    """All but the signal, which needs every batch."""
    alignment, chance = _alignment(both), chance_alignment(model, both)
    own, whole = _contributions(model, both)
    slope = _slope(model, both)
    d = (margins(both.clean.logits, both.batch) - margins(both.corrupt.logits, both.batch)).double().cpu()
    kappa = metrics.cancellation(own)
    first = both.inside.int().argmax(1)
    return [
        Inside(
            persona=(int(first[place]), int(both.end[place])),
            n_tokens=both.inside.shape[1],
            signal={},
            alignment=tuple(alignment[place].tolist()),
            chance=chance[place].item(),
            contributions=tuple(own[place].tolist()),
            remainder=(whole[place] - own[place].sum()).item(),
            conservation=(whole[place] - d[place]).item(),
            cancellation=kappa[place].item(),
            slope=None if slope is None else slope[place].item(),
        )
        for place in range(len(both.batch))
    ]


def _alignment(both: Both) -> Float[Tensor, "batch layer"]:
    assert both.gradients is not None, "look_inside asks for gradients"
    differences = torch.stack([both.difference(layer)[:, -1] for layer in range(len(both.clean.streams))])
    cosine = torch.nn.functional.cosine_similarity(differences.double(), both.gradients[:, :, -1].double(), dim=-1)
    return cosine.T.cpu()


def _contributions(model: Model, both: Both) -> tuple[Float[Tensor, "batch src"], Float[Tensor, " batch"]]:
    """Every node's part of the margin under A minus under B, and the same of the whole final stream."""
    parts, wholes = [], []
    for run in both.runs:
        final = run.streams[-1][:, -1]
        direction = read_out(model, final, both.batch.answers, both.batch.wrong_answers).double()
        parts.append(torch.einsum("sbd,bd->bs", run.contributions[:, :, -1].double(), direction))
        wholes.append((final.double() * direction).sum(1))
    return (parts[0] - parts[1]).cpu(), (wholes[0] - wholes[1]).cpu()


def _slope(model: Model, both: Both) -> Float[Tensor, " batch"] | None:
    """dD/dc by a central difference."""
    if not can_come_nearer(both.clean.context):
        return None
    ends = []
    for boost in (STEP, -STEP):
        a, b = (
            margins(replay(model, run.streams[0], nearer(run.context, both, boost)), both.batch) for run in both.runs
        )
        ends.append(a - b)
    slope = ((ends[0] - ends[1]).double() / (2 * STEP)).cpu()
    check_finite(slope, both.batch.name, "margins")
    return slope


def _restored(record: Mapping[str, Any]) -> Inside:
    """From its JSON, in which tuples are lists."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
    }
    return Inside(**fields)


def _with_signal(inside: Inside, gaps: Float[Tensor, "place layer"], scale: Float[Tensor, "place layer"]) -> Inside:
    signal = torch.where(scale > 0, gaps / scale.masked_fill(scale == 0, 1.0), 0.0)
    return replace(inside, signal={name: tuple(signal[place].tolist()) for place, name in enumerate(PLACES)})
