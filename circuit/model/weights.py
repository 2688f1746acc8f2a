"""The network's own weights: a fingerprint, the text part, grouped heads."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import torch
from torch import Tensor

from persona_circuits.circuit.errors import ModelError, first_line
from persona_circuits.circuit.model.mixed_precision import HALF_PRECISION
from persona_circuits.circuit.model.stubs import quiet

__all__ = [
    "expand_grouped_heads",
    "fingerprint_of",
    "fresh_buffers",
    "restore_buffers",
    "set_buffer",
    "text_config_of",
    "text_part",
]


def fingerprint_of(network: Any) -> str:
    """SHA-256 over the names, the shapes and 64 evenly spaced values of every weight."""
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // 64)].float().cpu().numpy()
        digest.update(f"{name}{tuple(weight.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()


def restore_buffers(network: Any) -> None:
    """Set constants that no file holds, such as the scale of embeddings, to their unrounded float32 values."""
    fresh = fresh_buffers(network, torch.float32)
    for name, buffer in network.named_buffers():
        if buffer.dtype in HALF_PRECISION and name in fresh:
            set_buffer(network, name, fresh[name].float().to(buffer.device))


def set_buffer(network: Any, name: str, value: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    setattr(network.get_submodule(owner), last, value)


def fresh_buffers(network: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """The constants of a new network of the same configuration, without allocating its weights."""
    from accelerate import init_empty_weights

    config = copy.deepcopy(network.config)
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.dtype = dtype
    with quiet(), init_empty_weights(include_buffers=False):
        return dict(type(network)(config).named_buffers())


def text_part(network: Any, name: str) -> Any:
    """The causal language model inside a model of several modalities, with its own weights; any other as it is."""
    config = network.config.get_text_config(decoder=True)
    if config is network.config:
        return network
    from transformers import AutoModelForCausalLM

    try:
        body = network.get_decoder()
        with torch.device("meta"):
            text = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        if type(body) is not type(text.base_model):
            raise TypeError(f"its text part is a {type(body).__name__}")
        setattr(text, text.base_model_prefix, body)
        text.set_output_embeddings(network.get_output_embeddings())
    except (ValueError, AttributeError, TypeError, NotImplementedError) as error:
        raise ModelError(
            f"{name}: a model of several modalities whose text part is no language model by itself "
            f"({first_line(error)}); give a text model"
        ) from error
    text.config.architectures = [type(text).__name__]
    body.config._attn_implementation = "eager"
    text.generation_config = network.generation_config
    return text


def expand_grouped_heads(network: Any, name: str) -> None:
    """Give every query head its own copy of its group's key and value weights: the same function, plain heads."""
    config = text_config_of(network.config)
    heads = getattr(config, "num_attention_heads", None)
    groups = getattr(config, "num_key_value_heads", None)
    if not heads or not groups or groups == heads:
        return
    if heads % groups:
        raise ModelError(f"{name}: {heads} query heads do not divide into groups of {groups} key-value heads")
    repeat = heads // groups
    for module in network.modules():
        if getattr(module, "num_key_value_groups", 1) == 1:
            continue
        if hasattr(module, "k_proj"):
            for projection in (module.k_proj, module.v_proj):
                _repeat_rows(projection, 0, groups, repeat)
        elif hasattr(module, "qkv_proj"):
            _repeat_rows(module.qkv_proj, heads * module.head_dim, 2 * groups, repeat)
        else:
            continue
        norm = getattr(module, "k_norm", None)
        if norm is not None and getattr(norm, "weight", None) is not None and norm.weight.numel() > module.head_dim:
            norm.weight = torch.nn.Parameter(_repeated(norm.weight, groups, repeat))
        module.num_key_value_groups = 1
        if hasattr(module, "num_key_value_heads"):
            module.num_key_value_heads = heads
    config.num_key_value_heads = heads


def _repeat_rows(linear: Any, start: int, groups: int, repeat: int) -> None:
    """Repeat each of the ``groups`` heads that follow the first ``start`` rows."""
    for name in ("weight", "bias"):
        rows = getattr(linear, name)
        if rows is not None:
            both = torch.cat([rows.detach()[:start], _repeated(rows[start:], groups, repeat)])
            setattr(linear, name, torch.nn.Parameter(both))
    linear.out_features = linear.weight.shape[0]


def _repeated(weight: Tensor, groups: int, repeat: int) -> Tensor:
    return weight.detach().unflatten(0, (groups, -1)).repeat_interleave(repeat, dim=0).flatten(0, 1).contiguous()


def text_config_of(config: Any) -> Any:
    return getattr(config, "text_config", None) or config
