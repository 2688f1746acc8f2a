"""Models from a folder, from the hub, or already in memory. Only this package knows the host library."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from persona_circuits.circuit.catalogue import fetched
from persona_circuits.circuit.cost import PROCESS_BYTES, Budget, architecture_of
from persona_circuits.circuit.errors import ModelError, first_line
from persona_circuits.circuit.model.checkpoint import (
    check_folder,
    check_keys,
    check_place,
    check_weights,
    lacks_tokenizer,
    stored_tensors,
)
from persona_circuits.circuit.model.float64 import Wide
from persona_circuits.circuit.model.gguf import (
    as_dense,
    check_gguf,
    gguf_in,
    gguf_refusal,
    origin_of_gguf,
    without_bars,
)
from persona_circuits.circuit.model.hub import hub_refusal
from persona_circuits.circuit.model.in_memory import name_of, network_in, own_copy
from persona_circuits.circuit.model.mixed_precision import HALF_PRECISION, Upcasting
from persona_circuits.circuit.model.model import (
    BFLOAT16_WEIGHTS,
    Model,
    OwnLogits,
    fixed_bytes,
    placed_on,
    trial_run,
    unpadded,
)
from persona_circuits.circuit.model.origin import Origin, origin_of
from persona_circuits.circuit.model.stubs import nothing_collected, nothing_installed, quiet
from persona_circuits.circuit.model.unloaded import left_unloaded
from persona_circuits.circuit.model.weights import (
    expand_grouped_heads,
    fingerprint_of,
    fresh_buffers,
    restore_buffers,
    set_buffer,
    text_part,
)

__all__ = [
    "DTYPES",
    "host_options",
    "load_model",
    "load_reader",
    "load_skeleton",
    "origin_at",
    "wrap_model",
    "write_dense",
]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "bfloat16-weights": torch.bfloat16,
}


@nothing_collected()
def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    label: str | None = None,
    max_memory: int | None = None,
) -> Model:
    """Load a causal language model by hub name or from a local folder, without gradients.

    Parameters
    ----------
    name
        A Hugging Face folder or a GGUF file, or a folder that holds one (nothing is fetched for any of them); the name
        of a model that ``persona-circuits get`` has fetched; or a hub name such as ``gpt2``. The weights of a GGUF
        file are dequantised.
    revision
        Branch, tag or commit on the hub. The model's ``revision`` is then the commit that was loaded.
    device
        ``auto`` (CUDA if there is any, else CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``balanced``: the layers
        over all GPUs, as the host library divides them. The state of a run then lies on the first of them.
    dtype
        ``float32`` (use it for attribution), ``bfloat16-weights`` (weights rounded and stored in bfloat16, everything
        computed in float32), or ``bfloat16``, ``float16``, ``float64`` for weights and computation alike.
    label
        The name that results give the model, if not ``name``.
    max_memory
        Bytes that weights and work may take together; scores and circuits take so many prompts at
        a time that the predicted peak stays below it. Loading itself may exceed it.

    Returns
    -------
    The model, taken apart into heads and MLPs, and checked against its own logits.

    Raises
    ------
    ModelError
        The folder holds no model, the hub refuses, the device is absent, the weights exceed
        ``max_memory``, or the model cannot be written as a sum of nodes.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    where = None if device == "balanced" else _device(device)
    spread = "balanced" if where is None else None
    place = _place_of(str(name))
    network, tokenizer, notes = _load_pretrained(place, revision, DTYPES[dtype], spread)
    if dtype == BFLOAT16_WEIGHTS:
        restore_buffers(network)
    where = where or next(network.parameters()).device
    commit = getattr(network.config, "_commit_hash", None) or revision
    how: dict[str, Any] = {"revision": commit, "device": where, "max_memory": max_memory}
    how |= {"in_float32": dtype == BFLOAT16_WEIGHTS, "copy": False}
    model = wrap_model(network, tokenizer, name=label or str(name), **how)
    model.notes = (*notes, *model.notes)
    model.origin = place.origin()
    return model


def load_skeleton(name: str | Path, *, revision: str | None = None) -> tuple[Any, Any]:
    """The network of a model on the meta device, from its configuration alone, and its tokenizer or None.

    Raises:
        ModelError: there is no configuration, the hub refuses, or it is no causal language model.
    """
    from transformers import AutoModelForCausalLM

    place = _place_of(str(name))
    config, tokenizer = _read(place, revision)
    with _reading(place, revision, "configuration"), torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config.get_text_config(decoder=True), trust_remote_code=False)
    if place.local and any(Path(place.name).glob("*.safetensors")):
        _check_stored(place, config)
    return network, tokenizer


def load_reader(name: str, *, revision: str | None = None, need_tokenizer: bool = False) -> tuple[Any, Any]:
    """The configuration and the tokenizer of a model, no weights; None for a tokenizer that cannot be read.

    Raises:
        ModelError: there is no configuration or, with ``need_tokenizer``, no tokenizer, or the hub refuses.
    """
    return _read(_place_of(name), revision, need_tokenizer=need_tokenizer)


def write_dense(file: Path, folder: Path) -> Origin:
    """Write what a GGUF file holds, dequantised to float32, as a Hugging Face folder, which must exist.

    Raises:
        ModelError: the file cannot be read.
    """
    place = _place_of(str(file))
    network, tokenizer, _ = _load_pretrained(place, None, torch.float32)
    with quiet():
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    origin = place.origin()
    assert origin is not None
    return origin


def origin_at(name: str | Path) -> Origin | None:
    """The quantised file that the weights of the model of that name come from; None where that is not known.

    Raises:
        ModelError: the note of it in the model's folder is faulty.
    """
    return _place_of(str(name)).origin()


def host_options(name: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """The name under which the host library reads the weights of that model, and with what options.

    Raises:
        ModelError: there is no such model.
    """
    place = _place_of(name)
    return place.name, place.options(revision) | (as_dense() if place.gguf is not None else {})


@dataclass(frozen=True)
class _Place:
    """Where a model is read: ``name`` is a folder where ``local``, else on the hub; ``gguf`` the file in it."""

    name: str
    local: bool
    gguf: Path | None = None

    def origin(self) -> Origin | None:
        if self.gguf is not None:
            return origin_of_gguf(self.gguf)
        return origin_of(Path(self.name)) if self.local else None

    def options(self, revision: str | None) -> dict[str, Any]:
        """Options of every call of the host library: no code of the model's own runs, and the user is asked nothing."""
        file = {} if self.gguf is None else {"gguf_file": self.gguf.name}
        return {"revision": revision, "local_files_only": self.local, "trust_remote_code": False, **file}


def _place_of(name: str) -> _Place:
    """Where the model of that name is, however it is given; local files take precedence."""
    folder = None if Path(name).exists() else fetched(name)
    name = name if folder is None else str(folder)
    if (gguf := gguf_in(name)) is not None:
        check_gguf(gguf)
        return _Place(str(gguf.parent), True, gguf)
    return _Place(name, check_place(name))


def _read(place: _Place, revision: str | None, *, need_tokenizer: bool = False) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    if place.local and place.gguf is None:
        check_folder(Path(place.name), weights=False)
    options = place.options(revision)
    try:
        with _reading(place, revision, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(place.name, **options)
    except ModelError:
        if need_tokenizer or place.gguf is not None:
            raise
        tokenizer = None
    with _reading(place, revision, "configuration"):
        return AutoConfig.from_pretrained(place.name, **options), tokenizer


@nothing_collected()
def wrap_model(
    network: Any,
    tokenizer: Any = None,
    *,
    name: str | None = None,
    revision: str | None = None,
    device: torch.device | str | None = None,
    in_float32: bool = False,
    max_memory: int | None = None,
    copy: bool = True,
) -> Model:
    """A ``Model`` of a causal language model that is already in memory; the caller's stays as it was.

    Parameters
    ----------
    network
        A Hugging Face model, or a TransformerBridge whose weights are as Hugging Face has them.
    tokenizer
        Of the model; a bridge's own by default.
    name
        What results call it; by default where it was loaded from.
    device
        Where it runs; by default where its weights are.
    in_float32
        Half-precision weights stay so in memory, and everything is computed in float32.
    max_memory
        As for ``load_model``.
    copy
        With False no copy is made, which saves the memory of the weights: the caller's network itself is taken apart.
        It is then in evaluation mode with eager attention and ``requires_grad=False``, TransformerLens' wrappers
        stand around its parts, which renames its weights, and keys and values of grouped queries are repeated.

    Returns
    -------
    The model, on ``device``.

    Raises
    ------
    ModelError
        It cannot be written as a sum of nodes, cannot be copied, or has no tokenizer.
    """
    tokenizer = tokenizer or getattr(network, "tokenizer", None)
    if tokenizer is None:
        raise ModelError("the model's tokenizer is needed too: wrap_model(network, tokenizer)")
    name = name or name_of(network)
    network = own_copy(network, name) if copy else network_in(network)
    device = next(network.parameters()).device if device is None else device
    network = text_part(network, name)
    check_weights(network, name)
    fingerprint = fingerprint_of(network)
    if network.dtype == torch.float64 and network._can_set_experts_implementation():
        network.set_experts_implementation("eager")  # the host's fused product has no float64
    own = _own_logits(network, name, device, in_float32=in_float32)
    wide = Wide() if network.dtype == torch.float64 else None
    if wide is not None:
        _widen_buffers(network, wide)
    expand_grouped_heads(network, name)
    arch = architecture_of(network, name) if max_memory is not None else None
    bridge, notes = _bridge_of(network, tokenizer, name, device)
    for part in bridge.modules():  # ``eval`` would come to each by every name that the bridge has for it
        part.training = False
    bridge.requires_grad_(False)
    if wide is not None:
        wide.while_they_run(dict.fromkeys([*bridge.modules(), *network.modules()]))
    try:
        model = Model(bridge, tokenizer, name, revision, fingerprint, in_float32=in_float32)
    except (ValueError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"{name}: the attention of this architecture does not come apart into heads ({first_line(error)})"
        ) from error
    model.check_decomposition(own)
    model.notes = tuple(notes)
    if max_memory is not None and arch is not None:
        process = PROCESS_BYTES if model.device.type == "cpu" else 0
        model.budget = Budget(max_memory, fixed_bytes(model) + process, arch, model.format, process)
    return model


def _bridge_of(network: Any, tokenizer: Any, name: str, device: torch.device | str) -> tuple[Any, list[str]]:
    """The host library's model around the network, and what it had to say."""
    with left_unloaded():
        from transformer_lens.model_bridge import TransformerBridge

    network.config.architectures = network.config.architectures or [type(network).__name__]
    try:
        with quiet() as notes, nothing_installed():
            bridge = TransformerBridge.boot_transformers(
                name, hf_model=network, tokenizer=tokenizer, device=str(device), dtype=network.dtype
            )
    except (ValueError, NotImplementedError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"{name}: TransformerLens cannot hold this model ({first_line(error)}); "
            "see its list of supported architectures"
        ) from error
    return bridge, notes


def _own_logits(network: Any, name: str, device: torch.device | str, *, in_float32: bool) -> OwnLogits:
    """Run the network as Hugging Face made it, in eager attention; with ``in_float32`` with upcast weights."""
    network.eval().requires_grad_(False)
    if not any("_hf_hook" in vars(part) for part in network.modules()):
        network.to(device)  # else it lies on several devices
    upcasting, is_half = Upcasting(), network.dtype in HALF_PRECISION
    parts = [part for part in network.modules() if part._parameters] if in_float32 and is_half else []
    hooks = [hook for part in parts for hook in upcasting.while_it_runs(part)]
    tokens, padding = trial_run(network, next(network.parameters()).device)
    try:
        network.set_attn_implementation("eager")
        with torch.no_grad():
            padded = network(tokens, **placed_on(network, tokens, padding)).logits
            plain = padded[:1]  # the first row has no padding; float64 gives NaN where rows are padded
            if not bool(padded.isfinite().all()):
                plain = network(tokens, **placed_on(network, tokens, None)).logits
    except (RuntimeError, AttributeError, TypeError, ValueError, IndexError) as error:
        raise ModelError(
            f"{name}: the model does not run on {len(tokens)} rows of tokens ({first_line(error)})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not bool(plain.isfinite().all()):
        short_name = str(network.dtype).removeprefix("torch.")
        raise ModelError(f"{name}: its logits are not finite in {short_name}; load it in float32")
    return OwnLogits(plain, unpadded(padded, padding), padding, 0.1 if is_half and not in_float32 else 2e-4)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {name!r} cannot be used here ({first_line(error)}); use --device auto or cpu"
        ) from error
    if device.type == "meta":
        raise ModelError("device 'meta' is not one that computes; use --device auto, cpu, cuda or mps")
    return device


def _load_pretrained(
    place: _Place, revision: str | None, dtype: torch.dtype, device_map: str | None = None
) -> tuple[Any, Any, tuple[str, ...]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name, options = place.name, place.options(revision)
    if place.gguf is not None:
        options |= as_dense()
    elif place.local:
        check_folder(Path(name))
    with _reading(place, revision, "tokenizer") as of_tokenizer:
        _refuse_adapter(name, revision, place.local)
        tokenizer = AutoTokenizer.from_pretrained(name, **place.options(revision))
    with _reading(place, revision) as of_weights, left_unloaded("scipy.optimize"):
        how = {"dtype": dtype, "attn_implementation": "eager", "device_map": device_map}
        how |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        network, info = AutoModelForCausalLM.from_pretrained(name, **how, **options)
    check_keys(name, network, info)
    return network, tokenizer, tuple(dict.fromkeys([*of_tokenizer, *of_weights]))


@contextlib.contextmanager
def _reading(place: _Place, revision: str | None, part: str = "") -> Iterator[list[str]]:
    """What the host library raises while it reads a model's files becomes a ``ModelError`` of one sentence."""
    name, local = place.name, place.local
    try:
        with quiet() as notes, contextlib.nullcontext() if place.gguf is None else without_bars():
            yield notes
    except ModelError:
        raise
    except Exception as error:
        reason: str | None
        if "trust_remote_code" in str(error):
            reason = f"model {name} needs code of its own, which is not run; give a model that the host library knows"
        elif not local and "named model.safetensors" in str(error):
            reason = (
                f"model {name} has no model.safetensors on the hub; pickled weights are not read, as they may run "
                "code: choose a --revision that has safetensors, or convert them and give the folder"
            )
        elif place.gguf is not None:
            reason = gguf_refusal(place.gguf)
        elif local and part == "tokenizer" and lacks_tokenizer(Path(name)):
            reason = f"model folder {name} has no tokenizer files; expected tokenizer.json beside the weights"
        else:
            reason = None if local else hub_refusal(error, name, revision)
        source = "the hub (or its local cache)" if not local else "the folder" if place.gguf is None else "the file"
        shown = place.gguf or name
        what = f"the {part} of {shown}" if part else f"model {shown}"
        raise ModelError(reason or f"{what} cannot be loaded from {source}: {first_line(error)}") from error


def _refuse_adapter(name: str, revision: str | None, local: bool) -> None:
    """Whether an adapter on the hub is applied would depend on which libraries are installed."""
    from transformers.utils import find_adapter_config_file

    if not local and find_adapter_config_file(name, revision=revision):
        raise ModelError(
            f"model {name} holds a LoRA adapter, which is not applied; merge it into its base model "
            "(merge_and_unload of peft), save the result and give its folder"
        )


def _check_stored(place: _Place, config: Any) -> None:
    """Compare the headers of a folder's files with the model, as loading would, without the weights."""
    from transformers import AutoModelForCausalLM

    if getattr(config, "quantization_config", None) is not None:
        return  # what is stored then are not the model's own weights
    with torch.device("meta"):
        stored = {key: torch.empty(shape) for key, shape in stored_tensors(Path(place.name)).items()}
    how = {"output_loading_info": True, "ignore_mismatched_sizes": True, "device_map": "meta"}
    with _reading(place, None):
        with torch.device("meta"):
            kind = type(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
        network, info = kind.from_pretrained(None, config=config, state_dict=stored, **how)
    check_keys(place.name, network, info)


def _widen_buffers(network: Any, wide: Wide) -> None:
    """Recompute constants that no file holds in float64, where the present value is the same number rounded."""
    with wide.on():
        fresh = fresh_buffers(network, torch.float64)
    for name, buffer in dict(network.named_buffers()).items():
        if buffer.is_floating_point() and name in fresh and fresh[name].shape == buffer.shape:
            whole = fresh[name].to(buffer.device, torch.float64)
            if torch.allclose(whole, buffer.double(), rtol=1e-6, atol=0):
                set_buffer(network, name, whole)
