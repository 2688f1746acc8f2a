"""A copy of the caller's model, so that taking it apart leaves the original as it was."""

from __future__ import annotations

import copy
from typing import Any

import torch

from persona_circuits.circuit.errors import ModelError, first_line
from persona_circuits.circuit.model.model import trial_run

__all__ = ["name_of", "network_in", "own_copy"]

WRAPPED = "._original_component"
"""What the host library puts into the names of weights that it wraps."""


def network_in(given: Any) -> Any:
    """The Hugging Face network, of a TransformerBridge the one inside.

    Raises:
        ModelError: it is neither.
    """
    network = getattr(given, "original_model", given)
    if not hasattr(network, "config") or not hasattr(network.config, "get_text_config"):
        raise ModelError(
            f"a {type(given).__name__} cannot be wrapped; give a Hugging Face causal language model or a "
            "TransformerBridge (of a HookedTransformer, the Hugging Face model that it was made from)"
        )
    return network


def name_of(given: Any) -> str:
    """What results call it where nobody says: where it was loaded from, else its class."""
    network = network_in(given)
    return str(getattr(network.config, "_name_or_path", "")) or type(network).__name__


def own_copy(given: Any, name: str) -> Any:
    """A network of its own with the same weights.

    Raises:
        ModelError: it cannot be copied, or a bridge no longer computes what its network did.
    """
    network = network_in(given)
    try:
        return copy.deepcopy(network) if network is given else _of_bridge(network, name)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ModelError(
            f"{name}: the model cannot be copied ({first_line(error)}); with copy=False it is taken apart itself"
        ) from error


def _of_bridge(wrapped: Any, name: str) -> Any:
    """A network made anew from the configuration, with the weights that the bridge's holds."""
    weights = {key.replace(WRAPPED, ""): value for key, value in wrapped.state_dict().items()}
    first = next(iter(weights.values()))
    fresh = type(wrapped)(copy.deepcopy(wrapped.config)).to(dtype=wrapped.dtype, device=first.device)
    own = fresh.state_dict()
    if missing := [key for key in own if key not in weights or own[key].shape != weights[key].shape]:
        raise ModelError(
            f"{name}: the bridge holds no weight {missing[0]} as Hugging Face has it; give the Hugging Face model that "
            "it was made from"
        )
    fresh.load_state_dict({key: weights[key] for key in own})
    fresh.eval()
    tokens, _ = trial_run(fresh, first.device)
    with torch.no_grad():
        unwrapped_logits, wrapped_logits = (module(tokens, use_cache=False).logits for module in (fresh, wrapped))
    gap = float((unwrapped_logits - wrapped_logits).abs().max() / wrapped_logits.abs().max().clamp(min=1e-9))
    if not gap <= (1e-3 if unwrapped_logits.dtype in (torch.float32, torch.float64) else 0.1):
        raise ModelError(
            f"{name}: the bridge gives other logits than its weights do in Hugging Face's network (relative difference "
            f"{gap:.2g}), as after enable_compatibility_mode; give the Hugging Face model that it was made from"
        )
    return fresh
