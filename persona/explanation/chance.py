"""How well the persona's difference aligns with the readout of tokens that have nothing to do with the pair.

Streams have few strong directions, so cosines with a readout are not those of random directions,
1 / sqrt(d_model): on one model they are six times smaller, on another as large. The null is
therefore the model's own: eta at the answer's final stream for pairs of tokens drawn from the vocabulary,
the pair's own answers left out, with the same gradient of the same final norm.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from persona_circuits.circuit.model import Model
from persona_circuits.persona.explanation.runs import Both

__all__ = ["N_TOKEN_PAIRS", "chance_alignment"]

N_TOKEN_PAIRS = 256
ROUNDING = 1e-6  # of a cosine in float32


def chance_alignment(model: Model, both: Both, *, seed: int = 0) -> Float[Tensor, " batch"]:
    """Root mean square of eta over random pairs of tokens; 0 where no other token is moved but by rounding."""
    tokens = torch.randint(
        both.clean.logits.shape[-1], (N_TOKEN_PAIRS, 2), generator=torch.Generator().manual_seed(seed)
    )
    unembed = model.bridge.unembed.W_U
    first, second = (unembed[:, ids.to(unembed.device)].T for ids in tokens.T)
    directions = (first - second).to(both.clean.streams[-1])
    gap = both.difference(len(both.clean.streams) - 1)[:, -1].double()
    gradients = torch.stack([_through_norm(model, run.streams[-1][:, -1], directions) for run in both.runs]).mean(0)
    cosine = torch.nn.functional.cosine_similarity(gradients, gap[:, None], dim=-1).cpu()
    drawn = _others(tokens, both)
    squares = torch.where(drawn, cosine.square(), 0.0).sum(1) / drawn.sum(1).clamp(min=1)
    return torch.where(squares.sqrt() > ROUNDING, squares.sqrt(), 0.0)


def _others(tokens: Int[Tensor, "pair 2"], both: Both) -> Tensor:
    """Bool ``[batch, pair]``: two tokens, neither of them an answer of the row."""
    answers = torch.cat([both.batch.answers, both.batch.wrong_answers], dim=1).cpu()
    own = (tokens[None, :, :, None] == answers[:, None, None, :]).any(-1).any(-1)
    return ~own & (tokens[:, 0] != tokens[:, 1])


def _through_norm(
    model: Model, final: Float[Tensor, "batch d_model"], directions: Float[Tensor, "pair d_model"]
) -> Float[Tensor, "batch pair d_model"]:
    """Gradients of what reads the normed stream along these directions, with respect to the stream."""
    with torch.enable_grad():
        stream = final[:, None].expand(-1, len(directions), -1).detach().clone().requires_grad_(True)
        (gradients,) = torch.autograd.grad((model.normed(stream) * directions).sum(), stream)
    return gradients.double()
