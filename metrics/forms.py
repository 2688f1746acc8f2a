"""Options that are several texts, and texts that are several tokens.

An option is a set of forms ("cake", "a cake", "tiramisu" in four tokens). Its value is the log of the summed
probability of its forms, each the product of its tokens' probabilities along itself:

    v(option) = log sum over forms f of  p(f_1 | prompt) p(f_2 | prompt f_1) ...

in logits of the answer's place, that is, plus the log of the softmax's normaliser there; an option of one form of one
token has that token's logit. What is left of the first tokens' probability stays with these, so that the options and
the vocabulary together are a distribution, of which all that is said of next tokens can be said.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from persona_circuits.metrics.divergences import RULED_OUT

__all__ = ["with_options"]


def with_options(
    logits: Float[Tensor, "*lead batch read vocab"],
    places: Int[Tensor, "batch form step"],
    tokens: Int[Tensor, "batch form step"],
    options: Int[Tensor, "batch form"],
    n_options: int,
) -> Float[Tensor, "*lead batch events"]:
    """Logits of the vocabulary at the answer's place, less what the forms take, and then of the options.

    Parameters
    ----------
    logits
        At every position that a token of a form is read from.
    places
        From which of these each token is read; a row's first tokens all from the answer's place.
    tokens
        The forms, -1 after the end of each. No form begins another one.
    options
        Whose form it is; -1: nobody's, as where other rows have more forms.

    Returns
    -------
    ``vocab + n_options`` columns; a token that is a form as it stands, and an option without a form, are ruled out.
    """
    lead, real = logits.shape[:-3], tokens >= 0
    later = real & (torch.arange(tokens.shape[-1], device=tokens.device) > 0)
    which = (places * logits.shape[-1] + tokens.clamp(min=0)).flatten(1)
    values = logits.flatten(-2).gather(-1, which.expand(*lead, *which.shape)).unflatten(-1, tokens.shape[1:])
    totals = logits.logsumexp(-1).gather(-1, places.flatten(1).expand(*lead, *which.shape))
    steps = values.masked_fill(~real, 0.0) - totals.unflatten(-1, tokens.shape[1:]).masked_fill(~later, 0.0)
    forms = steps.sum(-1)
    belongs = options[:, None] == torch.arange(n_options, device=options.device)[:, None]
    summed = forms[..., None, :].masked_fill(~belongs, RULED_OUT).logsumexp(-1)
    return torch.cat([_rest(logits, places, tokens[..., 0], options, forms - values[..., 0]), summed], -1)


def _rest(
    logits: Float[Tensor, "*lead batch read vocab"],
    places: Int[Tensor, "batch form step"],
    first: Int[Tensor, "batch form"],
    options: Int[Tensor, "batch form"],
    log_share: Float[Tensor, "*lead batch form"],
) -> Float[Tensor, "*lead batch vocab"]:
    """At the answer's place, every token less the share of it that goes on to a form."""
    lead, vocab = logits.shape[:-3], logits.shape[-1]
    at = places[:, :1, :1].expand(*lead, -1, 1, vocab)
    answer = logits.gather(-2, at)[..., 0, :]
    share = log_share.exp() * (options >= 0)
    taken = torch.zeros_like(answer).scatter_add(-1, first.clamp(min=0).expand(share.shape), share)
    most = 1 - 4 * torch.finfo(logits.dtype).eps
    left = answer + torch.log1p(-taken.clamp(max=most))
    return torch.where(taken > most, torch.full_like(left, RULED_OUT), left)
