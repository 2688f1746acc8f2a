"""A transformer written as a sum of nodes. The only module that knows the host library.

TransformerLens' bridge holds the model with its own weights and numerics. This
module takes each block apart into what an edge needs: the norm before attention,
the query, key and value projections of each head, the attention itself given
those three, each head's result, and the MLP. With them

    residual stream = embeddings + sum of head results + attention biases + sum of MLP outputs

and the stream into any head or MLP can be changed on its own. Nothing here
depends on a model family's name: at load the blocks are put together again and
must give the logits that Hugging Face's own network gave before anything of it was replaced, otherwise the model
is refused.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuit.budget import PROCESS_BYTES, Budget
from circuit.checkpoint import check_finite, check_folder, check_keys, check_place, lacks_tokenizer, stored_tensors
from circuit.errors import ModelError, first_line
from circuit.estimate import Architecture, architecture_of
from circuit.float64 import Wide
from circuit.graph import SLOTS, Graph
from circuit.held import SHORT, Held

__all__ = ["DTYPES", "NEURON_HOOKS", "Block", "Context", "Model", "load_model", "load_reader", "load_skeleton"]

EPSILONS = ("eps", "variance_epsilon", "epsilon")
"""What the constant under a norm's root is called, in torch and in the host's models."""
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "bfloat16-weights": torch.bfloat16,
}
ROOM_BYTES = 1 << 28
"""As much memory is kept on a CPU between patched passes."""
N_CONTEXTS = 4
"""Contexts of whole rows, each of one length, that a model keeps."""
CACHED_BYTES = 1 << 18
"""From this size on a CPU takes streams one by one, which stay in its cache; smaller ones together, in fewer calls."""
NEURON_HOOKS = {"post": "out", "pre": "in", "gate": "gate"}
"""Places inside an MLP: what its down projection reads, and what its up and its gate projection write."""
HELD = "bfloat16-weights"
"""The format whose weights are short and whose every computation is in float32."""


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
        A Hugging Face folder (nothing is fetched) or a hub name such as ``gpt2``.
    revision
        Branch, tag or commit on the hub. The model's ``revision`` is then the commit that was loaded.
    device
        ``auto`` (CUDA if there is any, else CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or
        ``balanced``: the layers over all GPUs, as the host library divides them. The state
        of a run then lies on the first of them.
    dtype
        ``float32`` (use it for attribution), ``bfloat16-weights`` (weights rounded and held in
        bfloat16, everything computed in float32), or ``bfloat16``, ``float16``, ``float64`` for
        weights and computation alike.
    label
        The name that results give the model, if not ``name``.
    max_memory
        Bytes that weights and work may take together; scores and circuits take so many prompts at
        a time that the predicted peak stays below it. Loading itself is not held to it.

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
    network, tokenizer, notes = _load_pretrained(str(name), revision, DTYPES[dtype], spread)
    if dtype == HELD:
        _restore_buffers(network)
    where = where or next(network.parameters()).device
    commit = getattr(network.config, "_commit_hash", None) or revision
    how = {"revision": commit, "device": where, "in_float32": dtype == HELD, "max_memory": max_memory}
    model = wrap_model(network, tokenizer, name=label or str(name), **how)
    model.notes = (*notes, *model.notes)
    return model


def load_skeleton(name: str | Path, *, revision: str | None = None) -> tuple[Any, Any]:
    """The network of a model on the meta device, from its configuration alone, and its tokenizer or None.

    Raises:
        ModelError: there is no configuration, the hub refuses, or it is no causal language model.
    """
    from transformers import AutoModelForCausalLM

    where = str(name)
    config, tokenizer = load_reader(where, revision=revision)
    with _reading(where, revision, "configuration", local=True), torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config.get_text_config(decoder=True), trust_remote_code=False)
    if Path(where).is_dir() and any(Path(where).glob("*.safetensors")):
        _check_stored(where, config)
    return network, tokenizer


def load_reader(name: str, *, revision: str | None = None, need_tokenizer: bool = False) -> tuple[Any, Any]:
    """The configuration and the tokenizer of a model, no weights; None for a tokenizer that cannot be read.

    Raises:
        ModelError: there is no configuration or, with ``need_tokenizer``, no tokenizer, or the hub refuses.
    """
    from transformers import AutoConfig, AutoTokenizer

    local = check_place(name)
    if local:
        check_folder(Path(name), weights=False)
    options = _reading_options(revision, local)
    try:
        with _reading(name, revision, "tokenizer", local=local):
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except ModelError:
        if need_tokenizer:
            raise
        tokenizer = None
    with _reading(name, revision, "configuration", local=local):
        return AutoConfig.from_pretrained(name, **options), tokenizer


def wrap_model(
    network: Any,
    tokenizer: Any,
    *,
    name: str,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    in_float32: bool = False,
    max_memory: int | None = None,
) -> Model:
    """A ``Model`` around a Hugging Face causal language model that is already in memory.

    The network is switched to evaluation mode, to eager attention, and its
    parameters to ``requires_grad=False``. With ``in_float32`` weights in a shorter format
    stay so, and everything is computed in float32.

    Raises:
        ModelError: it cannot be written as a sum of nodes.
    """
    network = _text_part(network, name)
    check_finite(network, name)
    fingerprint = _fingerprint(network)
    if network.dtype == torch.float64 and network._can_set_experts_implementation():
        network.set_experts_implementation("eager")  # the host's fused product has no float64
    own = _own_logits(network, name, device, in_float32=in_float32)
    wide = Wide() if network.dtype == torch.float64 else None
    if wide is not None:
        _widen_buffers(network, wide)
    _expand_grouped_heads(network, name)
    arch = architecture_of(network, name) if max_memory is not None else None
    bridge, said = _bridge_of(network, tokenizer, name, device)
    bridge.eval().requires_grad_(False)
    if wide is not None:
        wide.while_they_run(dict.fromkeys([*bridge.modules(), *network.modules()]))
    try:
        model = Model(bridge, tokenizer, name, revision, fingerprint, in_float32=in_float32)
    except (ValueError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"{name}: the attention of this architecture does not come apart into heads ({first_line(error)})"
        ) from error
    model.check_decomposition(own)
    model.notes = tuple(said)
    if max_memory is not None and arch is not None:
        process = PROCESS_BYTES if model.device.type == "cpu" else 0
        model.budget = Budget(max_memory, _fixed_bytes(model) + process, arch, model.format, process)
    return model


def _bridge_of(network: Any, tokenizer: Any, name: str, device: torch.device | str) -> tuple[Any, list[str]]:
    """The host library's model around the network, and what it had to say."""
    from transformer_lens.model_bridge import TransformerBridge

    network.config.architectures = network.config.architectures or [type(network).__name__]
    try:
        with _quiet() as said, _nothing_installed():
            bridge = TransformerBridge.boot_transformers(
                name,
                hf_model=network,
                tokenizer=tokenizer,
                device=str(device),
                dtype=network.dtype,
            )
    except (ValueError, NotImplementedError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"{name}: TransformerLens cannot hold this model ({first_line(error)}); "
            "see its list of supported architectures"
        ) from error
    return bridge, said


@dataclass(frozen=True)
class Context:
    """What the host hands to each layer's attention besides the residual stream: masks, rotations.

    ``n_rows`` is the number of rows that it tells apart: one where all rows have one
    length, the batch's where rows are padded.
    """

    per_layer: tuple[dict[str, Any], ...]
    n_rows: int = 1

    def of_layer(self, layer: int, rows: int) -> dict[str, Any]:
        """The arguments of one layer for ``rows`` rows: the batch, or whole copies of it one after the other."""
        if self.n_rows == 1:
            return self.per_layer[layer]
        return {name: self._tiled(value, rows // self.n_rows) for name, value in self.per_layer[layer].items()}

    def _tiled(self, value: Any, copies: int) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(self._tiled(item, copies) for item in value)
        per_row = isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == self.n_rows
        return value.repeat(copies, *[1] * (value.dim() - 1)) if per_row and copies > 1 else value


def _where_the_layer_is(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run on the layer's device and give the result back where the first tensor came from."""

    @functools.wraps(function)
    def moved(self: Block, *args: Any) -> Tensor:
        home = next(value.device for value in args if isinstance(value, Tensor))
        here = self.W_O.device
        with contextlib.nullcontext() if self.held is None else self.held.long(self.bridge):
            if home == here:
                return function(self, *args)
            return function(self, *(x.to(here) if isinstance(x, Tensor) else x for x in args)).to(home)

    return moved


@dataclass(frozen=True, eq=False)
class Pullback:
    """Gradients taken back through heads' projections W and the norm before them.

    The norm is y = w n + b, n = c / r, r = sqrt(mean(c^2) + eps), with c = x, or x less its mean. A
    gradient g at what a head projects is at its stream, with u = w (W g),

        (u - mean(u) - n mean(n u)) / r

    where the second term is there if the norm centres. Both means are taken where g is, in d_head numbers
    and not in d_model: mean(u) = g . mean(w W), and mean(n u) d_model = g . (projected - shift), as the head
    projects W^T (w n) + shift. Autograd gives the same from a copy of x for every head.
    """

    weight: Float[Tensor, " d_model"]
    eps: float
    centred: bool
    means: dict[str, Float[Tensor, "head d_head"]] = field(default_factory=dict, repr=False)
    shifts: dict[str, Float[Tensor, "head d_head"]] = field(default_factory=dict, repr=False)

    @classmethod
    def of_block(cls, block: Block, like: Tensor) -> Pullback | None:
        """That of a block which has a norm before attention; None where the norm has no form that is known."""
        form = cls.of(block.bridge.ln1, block.W_O.shape[-1], like)
        with torch.no_grad():
            return None if form is None else form.of_projections(block)

    def of_projections(self, block: Block) -> Pullback:
        """The same with what the projections behind the norm make of its parts."""
        zero = block.attn_norm(torch.zeros(1, 1, len(self.weight)).to(self.weight))
        shifts = {slot: block.project(slot, zero)[0, 0] for slot in SLOTS}
        return replace(
            self,
            means={
                s: torch.einsum("d,hdk->hk", self.weight, w.to(zero)) / len(zero[0, 0])
                for s, w in block.weights.items()
            },
            shifts=shifts,
        )

    def along(
        self,
        slot: str,
        gradient: Float[Tensor, "batch pos head d_head"],
        projected: Float[Tensor, "batch _ head d_head"],
    ) -> Float[Tensor, "batch pos head"]:
        """mean(n u) of every head."""
        return (gradient * (projected - self.shifts[slot])).sum(-1) / len(self.weight)

    def write(
        self,
        slot: str,
        gradient: Float[Tensor, "batch pos head d_head"],
        along: Float[Tensor, "batch pos head"],
        x: tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos 1"]],
        weights: Float[Tensor, "head d_model d_head"],
        out: Float[Tensor, "head batch pos d_model"],
        some: slice,
    ) -> None:
        """Some heads' gradients at their streams, into ``out``; ``x`` is what ``parts`` makes of these."""
        normed, rate = x
        heads, d_model, d_head = weights.shape
        # One more column, for the mean: the product subtracts it.
        matrix = weights.new_empty(heads, d_model, d_head + self.centred)
        torch.mul(weights, self.weight[:, None], out=matrix[..., :d_head])
        vectors = gradient.new_empty(heads, *normed.shape[:-1], d_head + self.centred)
        gradient = gradient * rate[..., None]
        vectors[..., :d_head] = gradient.permute(2, 0, 1, 3)
        if self.centred:
            matrix[..., d_head] = -1.0
            vectors[..., d_head] = (gradient * self.means[slot][some]).sum(-1).permute(2, 0, 1)
        torch.bmm(vectors.flatten(1, 2), matrix.transpose(1, 2), out=out.flatten(1, 2))
        out.addcmul_(normed, (along * rate).permute(2, 0, 1)[..., None], value=-1)

    def project(
        self,
        slot: str,
        x: Float[Tensor, "row d_model"],
        weights: Float[Tensor, "d_model d_head"],
        head: int,
        out: Float[Tensor, "row d_head"],
    ) -> None:
        """What a head projects of its own stream, without the normed stream; for a norm that does not centre."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        torch.mm(x, weights * self.weight[:, None], out=out)
        out.mul_((length.square() / x.shape[-1] + self.eps).rsqrt()).add_(self.shifts[slot][head])

    def parts(self, x: Float[Tensor, "*rows d_model"]) -> tuple[Tensor, Tensor]:
        """``n`` and 1 / r."""
        centred = x - x.mean(-1, keepdim=True) if self.centred else x
        rate = (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return centred * rate, rate

    @classmethod
    def of(cls, norm: Any, d_model: int, like: Tensor) -> Pullback | None:
        """The form of a norm, found by trying: what gives its values on random streams; None where none does."""
        module = norm.original_component
        eps = _epsilon(module)
        own = getattr(module, "weight", None)
        ones = torch.ones(d_model, device=like.device, dtype=like.dtype)
        x = torch.randn(4, d_model, generator=torch.Generator().manual_seed(0)).to(like) * 3 + 1
        with torch.no_grad():
            expected, shift = norm(x), norm(torch.zeros_like(x))
            for weight in (ones,) if own is None else (own.detach(), own.detach() + 1):
                for centred in (True, False):
                    form = cls(weight.to(like), eps or 0.0, centred)
                    found = weight * form.parts(x)[0] + shift
                    if eps is not None and bool(((found - expected).abs() <= 1e-5 * expected.abs().max()).all()):
                        return form
        return None


@dataclass(frozen=True, eq=False)
class Block:
    """One layer, taken apart. Every function takes any number of rows, on any device.

    Shapes: ``W_Q``, ``W_K``, ``W_V`` are ``[head, d_model, d_head]``, ``W_O`` is
    ``[head, d_head, d_model]``, biases ``[head, d_head]``. ``scale`` is the factor, if the
    model has one, by which attention and MLP enter the stream; ``W_O`` has it in it.
    """

    bridge: Any
    layer: int
    parallel: bool
    n_heads: int
    weights: dict[str, Float[Tensor, "head d_model d_head"]] = field(repr=False)
    biases: dict[str, Float[Tensor, "head d_head"] | None] = field(repr=False)
    W_O: Float[Tensor, "head d_head d_model"] = field(repr=False)
    scale: float = 1.0
    pullback: Pullback | None = None
    """The norm before attention taken back, where it is one that can be written out."""
    mlp_returns: int = 0
    """How many values the host's MLP returns in a tuple; 0: a tensor."""
    held: Held | None = None
    """Where the weights are shorter than what is computed with them."""

    @_where_the_layer_is
    def attn_norm(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The norm before attention; the identity where the model has none."""
        return _apply(self.bridge, "ln1", x)

    @_where_the_layer_is
    def project(self, slot: str, normed: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos head d_head"]:
        """Queries, keys or values of all heads from one shared, normed stream."""
        out = getattr(self.bridge.attn, slot)(normed)
        return out.unflatten(-1, (self.n_heads, -1)) if out.dim() == 3 else out

    def project_own(
        self,
        slot: str,
        streams: Float[Tensor, "some rows pos d_model"],
        heads: Int[Tensor, " some"],
        out: Float[Tensor, "rows pos head d_head"],
    ) -> None:
        """Queries, keys or values of some heads, each of which reads its own stream, into their places in ``out``."""
        large = streams.device.type == "cpu" and streams[0].nbytes >= CACHED_BYTES
        if not large or self.held is not None or streams.dtype in SHORT or not self._plain(streams, out):
            out[:, :, heads] = self._project_each(slot, self.attn_norm(streams), heads).to(out)
            return
        # One head at a time its normed stream stays in the cache, and no weights are gathered.
        places, norm = out.flatten(0, 1), _norm_of(self.bridge, "ln1")
        weights, bias = self.weights[slot], self.biases[slot]
        for stream, head in zip(streams.flatten(1, 2), heads.tolist(), strict=True):
            place = places[:, head]
            if self.pullback is not None and not self.pullback.centred:
                self.pullback.project(slot, stream, weights[head], head, place)
            elif bias is None:
                torch.mm(norm(stream), weights[head], out=place)
            else:
                torch.addmm(bias[head], norm(stream), weights[head], out=place)

    @_where_the_layer_is
    def _project_each(
        self, slot: str, normed: Float[Tensor, "some rows pos d_model"], heads: Int[Tensor, " some"]
    ) -> Float[Tensor, "rows pos some d_head"]:
        count, rows, pos, d_model = normed.shape
        weights, bias = self.weights[slot], self.biases[slot]
        every = count == self.n_heads
        out = torch.bmm(normed.reshape(count, rows * pos, d_model), self._long(weights if every else weights[heads]))
        if bias is not None:
            out = out + self._long(bias[heads])[:, None]
        return out.view(count, rows, pos, -1).permute(1, 2, 0, 3)

    @_where_the_layer_is
    def attention(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch pos head d_head"],
        v: Float[Tensor, "batch pos head d_head"],
        context: Context,
        before: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "batch query head d_head"]:
        """The host's own attention, given q, k, v as projected (before any rotation or q/k norm).

        ``before`` are keys and values of the positions before those of ``k`` and ``v``, where these are not
        all that the context has. Queries may be those of the last positions alone; so is then what comes back.
        """
        attn, n_queries = self.bridge.attn, q.shape[1]
        if before is not None:
            k, v = (_behind(held, x) for held, x in zip(before, (k, v), strict=True))
        if (missing := k.shape[1] - n_queries) > 0:
            # The host wants a query at every place; what these see is thrown away.
            q = torch.nn.functional.pad(q, (0, 0, 0, 0, missing, 0))
        flat = {slot: x.flatten(-2) for slot, x in zip("qkv", (q, k, v), strict=True)}
        stubs = {getattr(attn, slot): _returning(x) for slot, x in flat.items()}
        stubs[attn.o] = _identity
        with _stubbed(stubs):
            out = attn(hidden_states=flat["q"], **context.of_layer(self.layer, len(q)))
        z = out[0] if isinstance(out, tuple) else out
        return z[:, -n_queries:].contiguous().unflatten(-1, (self.n_heads, -1))

    @_where_the_layer_is
    def attn_out(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
        """What attention as a whole adds to the stream, its bias and a norm behind it included."""
        return self._scaled(_apply(self.bridge, "ln1_post", self.bridge.attn.o(z.flatten(-2))))

    @_where_the_layer_is
    def head_results(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "head batch pos d_model"]:
        """What each head adds to the stream; the bias belongs to no head.

        Where a norm follows attention, a head's share is its result after that norm
        with the scale that the norm has in this run.
        """
        batch, pos, heads, _ = z.shape
        results = torch.bmm(_by_head(z), self._long(self.W_O)).view(heads, batch, pos, -1)
        if self._normed_behind:
            results = results * _frozen_gain(self.bridge.ln1_post, self.bridge.attn.o(z.flatten(-2)))
        return results

    def write_head_results(
        self,
        z: Float[Tensor, "batch pos head d_head"],
        out: Float[Tensor, "head batch pos d_model"],
        *,
        less_than: Float[Tensor, "head batch pos d_model"] | None = None,
    ) -> None:
        """``head_results`` into ``out``, or ``less_than`` less them; without a copy where it can be had without."""
        if not self._plain(z, out) or self._normed_behind:
            results = self.head_results(z)
            out.copy_(results if less_than is None else less_than - results)
        elif less_than is None:
            torch.bmm(_by_head(z), self._long(self.W_O), out=out.flatten(1, 2))
        else:
            out.copy_(less_than).flatten(1, 2).baddbmm_(_by_head(z), self._long(self.W_O), alpha=-1)

    def write_head_changes(
        self,
        before: Float[Tensor, "batch pos head d_head"],
        after: Float[Tensor, "batch pos head d_head"],
        out: Float[Tensor, "head batch pos d_model"],
    ) -> None:
        """Head results after less those before, into ``out``: one product, unless a norm follows attention."""
        if self._plain(before, out) and not self._normed_behind:
            torch.bmm(_by_head(after - before), self._long(self.W_O), out=out.flatten(1, 2))
        else:
            torch.sub(self.head_results(after), self.head_results(before), out=out)

    def _plain(self, x: Tensor, out: Tensor) -> bool:
        """Whether a product of ``x`` and this layer's weights can be written into ``out`` as it is."""
        dtype = torch.float32 if self.held is not None else self.W_O.dtype
        same = x.device == out.device == self.W_O.device and x.dtype == out.dtype == dtype
        return same and not torch.is_autocast_enabled(x.device.type)

    @property
    def _normed_behind(self) -> bool:
        """Whether a norm follows attention."""
        return "ln1_post" in self.bridge.submodules

    @property
    def has_attn_bias(self) -> bool:
        """Whether attention adds something that belongs to no head."""
        parts = [self.bridge.attn.o, *([self.bridge.ln1_post] if self._normed_behind else [])]
        return any(getattr(part.original_component, "bias", None) is not None for part in parts)

    def along(
        self,
        slot: str,
        gradient: Float[Tensor, "batch pos head d_head"],
        projected: Float[Tensor, "batch _ head d_head"],
    ) -> Float[Tensor, "batch pos head"]:
        """What ``slot_gradients`` needs besides the gradient at its heads' q, k or v: of that run, linear in it."""
        if self.pullback is None or not self._plain(gradient, gradient):
            return gradient.new_zeros(gradient.shape[:-1])
        return self.pullback.along(slot, gradient, projected)

    def slot_gradients(
        self,
        gradients: Sequence[Float[Tensor, "batch _ head d_head"]],
        along: Sequence[Float[Tensor, "batch _ head"]],
        x: Float[Tensor, "batch pos d_model"],
        out: Float[Tensor, "slot batch pos d_model"],
        start: int = 0,
    ) -> None:
        """Gradients at heads' own streams, into ``out``, from those at their q, k and v.

        W g taken back through the norm before attention, at the stream ``x`` of that run; ``along`` is the
        method's of that name, for q, k and v. Slots are the q of every head, then k, then v; ``out``
        is as many of them as it is long, from ``start`` on.
        """
        plain = self._plain(gradients[0], out)
        parts = self.pullback.parts(x.detach()) if plain and self.pullback is not None else None
        for i, slot in enumerate(SLOTS):
            some = slice(max(start - i * self.n_heads, 0), min(start + len(out) - i * self.n_heads, self.n_heads))
            if some.start >= some.stop:
                continue
            begin = i * self.n_heads + some.start - start
            here, gradient = out[begin : begin + some.stop - some.start], gradients[i][:, :, some]
            weights = self._long(self.weights[slot][some])
            if not plain or (parts is None and "ln1" in self.bridge.submodules):
                here.copy_(self._slot_gradients(_by_head(gradient), weights.transpose(1, 2), x))
            elif parts is None or self.pullback is None:
                torch.bmm(_by_head(gradient), weights.transpose(1, 2), out=here.flatten(1, 2))
            else:
                self.pullback.write(slot, gradient, along[i][:, :, some], parts, weights, here, some)

    @_where_the_layer_is
    def _slot_gradients(self, gradient: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        """The same by autograd, for any norm."""
        normed = torch.bmm(gradient, weights).view(len(gradient), *x.shape)
        if "ln1" not in self.bridge.submodules:
            return normed
        with torch.enable_grad():
            each = x.detach().expand_as(normed).clone().requires_grad_()
            return torch.autograd.grad(self.attn_norm(each), each, normed)[0]

    @_where_the_layer_is
    def mlp(self, x: Float[Tensor, "*rows pos d_model"]) -> Float[Tensor, "*rows pos d_model"]:
        """The MLP block from the residual stream to what it adds, its norms included."""
        has_own_norm = "ln2" in self.bridge.submodules
        normed = _apply(self.bridge, "ln2", x) if has_own_norm else self.attn_norm(x) if self.parallel else x
        out = self.bridge.mlp(normed.flatten(0, -3))  # experts take rows, positions and nothing before them
        out = (out[0] if isinstance(out, tuple) else out).view(normed.shape)
        return self._scaled(_apply(self.bridge, "ln2_post", out))

    @contextlib.contextmanager
    def on_neurons(self, hook: str, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        """Within the block this layer's neurons, ``[*rows, pos, neuron]``, go through a function whenever ``mlp`` runs.

        It returns what takes their place, or None to leave them. ``hook`` is one of ``NEURON_HOOKS``: ``post`` is
        what the down projection reads, ``pre`` what the up projection writes, ``gate`` what the gate's projection
        writes before its activation.

        Raises:
            ModelError: this layer has no such place.
        """
        module = self._neurons(hook)
        if hook == "post":
            handle = module.register_forward_pre_hook(lambda _module, inputs: _replaced(change(inputs[0]), inputs))
        else:
            handle = module.register_forward_hook(lambda _module, _inputs, out: change(out))
        try:
            yield
        finally:
            handle.remove()

    def n_neurons(self, hook: str) -> int:
        """How many neurons there are at this place; found by running the MLP on a row of random numbers.

        Raises:
            ModelError: this layer has no such place, or what the down projection writes is not what the MLP gives.
        """
        x = torch.randn(1, 1, self.W_O.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        x = x.to(device=self.W_O.device, dtype=self.W_O.dtype)
        seen: list[Tensor] = []
        read: list[Tensor] = []
        with torch.no_grad(), self.on_neurons(hook, seen.append), self.on_neurons("post", read.append):
            out = self.bridge.mlp(x)
        out = out[0] if isinstance(out, tuple) else out
        with torch.no_grad():
            whole = len(seen) == 1 and len(read) == 1 and torch.allclose(self.bridge.mlp.out(read[0]), out)
        if not whole:
            raise ModelError(
                f"layer {self.layer}: the MLP does not run through a {NEURON_HOOKS[hook]!r} projection once and give "
                "what its down projection writes; its neurons cannot be told"
            )
        return int(seen[0].shape[-1])

    def _neurons(self, hook: str) -> Any:
        """The projection that reads or writes the neurons, as the host library names it."""
        mlp = self.bridge.mlp
        if hasattr(mlp.original_component, "experts"):
            raise ModelError(
                f"layer {self.layer} is a mixture of experts: which neurons run depends on the token, so they have no "
                "mean over prompts; choose a layer with one MLP"
            )
        if "out" not in mlp.submodules or NEURON_HOOKS[hook] not in mlp.submodules:
            what = "gate" if hook == "gate" and "out" in mlp.submodules else "separate up and down projections"
            other = "; use --hook post or --hook pre" if what == "gate" else ""
            raise ModelError(f"layer {self.layer}: the MLP has no {what}{other}")
        return getattr(mlp, NEURON_HOOKS[hook])

    def _scaled(self, written: Tensor) -> Tensor:
        return written if self.scale == 1.0 else written * self.scale

    def _long(self, weight: Tensor) -> Tensor:
        return weight if self.held is None else weight.float()


class Model:
    """A causal language model with its graph, its tokenizer and its blocks.

    Built by ``load_model``. ``graph`` gives the nodes, ``blocks`` the layers,
    ``device`` is where the weights lie, ``dtype`` what is computed in, ``fingerprint`` tells models of
    one name apart. ``budget`` is None where memory has no limit but the device's. ``notes`` is what the host library
    had to say while it read the files.
    """

    def __init__(
        self,
        bridge: Any,
        tokenizer: Any,
        name: str,
        revision: str | None,
        fingerprint: str,
        *,
        in_float32: bool = False,
    ) -> None:
        config = bridge.cfg
        parallel = bool(getattr(config, "parallel_attn_mlp", False))
        self.bridge = bridge
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        self.fingerprint = fingerprint
        self.graph = Graph(int(config.n_layers), int(config.n_heads), parallel)
        self.d_model = int(config.d_model)
        self.n_context = int(getattr(config, "n_ctx", 0) or 0) or None
        self.n_vocab = int(bridge.original_model.get_input_embeddings().weight.shape[0])
        host = _text_config(bridge.original_model.config)
        self.blocks = tuple(_take_apart(block, i, self.graph, name, host) for i, block in enumerate(bridge.blocks))
        weight = next(bridge.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.budget: Budget | None = None
        self.notes: tuple[str, ...] = ()
        self._contexts: dict[tuple[int, bool], Context] = {}
        self._room: Tensor | None = None
        self.held = _hold(bridge) if in_float32 and weight.dtype in SHORT else None
        if self.held is not None:
            self.dtype = torch.float32
            self.blocks = tuple(_held_block(block, self.held) for block in self.blocks)

    def room(self, *shape: int) -> Tensor:
        """Uninitialised memory for work that is over before it is asked for again.

        On a CPU, whose fresh pages cost as much as what is written into them, it is kept from one time to the next,
        up to ``ROOM_BYTES``, unless memory has a limit of its own.
        """
        size = math.prod(shape)
        fresh = {"device": self.device, "dtype": self.dtype}
        if self.device.type != "cpu" or self.budget is not None or size * self.dtype.itemsize > ROOM_BYTES:
            return torch.empty(shape, **fresh)
        if self._room is None or self._room.numel() < size:
            self._room = torch.empty(size, **fresh)
        return self._room[:size].view(shape)

    def architecture(self) -> Architecture:
        """The sizes, for estimates; keys and values are counted once per query head, as they are held.

        Raises:
            ModelError: the configuration does not say them.
        """
        return architecture_of(self.bridge.original_model, self.name)

    def forget(self) -> None:
        """Let go of the memory that ``room`` keeps, as who measures memory has to."""
        self._room = None

    @property
    def format(self) -> str:
        """The name of the format, one of ``DTYPES``."""
        return HELD if self.held is not None else str(self.dtype).removeprefix("torch.")

    def logits(
        self, tokens: Int[Tensor, "batch pos"], padding: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch pos vocab"]:
        """The host's own forward pass, no part of this module involved; ``padding`` as for ``start``."""
        with torch.no_grad():
            return self.bridge.original_model(tokens, **self._placed(tokens, padding)).logits

    def start(
        self, tokens: Int[Tensor, "batch pos"], padding: Int[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], Context]:
        """The stream into the first block, and the context of every layer.

        The host runs with attention and MLPs stubbed to zero: as far as the first block for the stream, and for
        the context, of one row, once for every length. ``padding`` is the number of tokens on the left of
        each row that are none: they are masked and not counted in positions. Without
        it rows have one length, the context is that of any one row, and fits any
        number of them.
        """
        if padding is None or not bool(padding.any()):
            return self._probe(tokens, None, stream_only=True)[0], self._context_of_length(tokens[:1])
        stream, contexts = self._probe(tokens, padding)
        return stream, Context(tuple({k: _seeing(v) for k, v in layer.items()} for layer in contexts), len(tokens))

    def _context_of_length(self, tokens: Int[Tensor, "1 pos"]) -> Context:
        """The context of a row without padding; those of the last few lengths are kept."""
        key = (tokens.shape[1], torch.is_autocast_enabled(self.device.type))
        if key not in self._contexts:
            if len(self._contexts) == N_CONTEXTS:
                del self._contexts[next(iter(self._contexts))]
            self._contexts[key] = Context(self._probe(tokens, None)[1])
        return self._contexts[key]

    def _probe(
        self, tokens: Int[Tensor, "batch pos"], padding: Int[Tensor, " batch"] | None, *, stream_only: bool = False
    ) -> tuple[Float[Tensor, "batch pos d_model"], tuple[dict[str, Any], ...]]:
        first: list[Tensor] = []
        contexts: list[dict[str, Any]] = []

        def attention_stub(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
            hidden = kwargs.pop("hidden_states", args[0] if args else None)
            contexts.append(kwargs)
            return torch.zeros_like(hidden), None

        stubs: dict[Any, Callable[..., Any]] = {self.bridge.ln_final: _stop}
        for block in self.blocks:
            stubs |= {block.bridge.attn: attention_stub, block.bridge.mlp: _returning_nothing(block.mlp_returns)}

        def seen(_module: Any, _inputs: Any, out: Tensor) -> None:
            first.append(out)
            if stream_only:
                raise _Stop

        hook = self.bridge.blocks[0].hook_in.register_forward_hook(seen)
        try:
            with _stubbed(stubs), torch.no_grad(), contextlib.suppress(_Stop):
                self.bridge.original_model(tokens, **self._placed(tokens, padding))
        finally:
            hook.remove()
        return first[0], tuple(contexts)

    def _placed(self, tokens: Int[Tensor, "batch pos"], padding: Int[Tensor, " batch"] | None) -> dict[str, Any]:
        return _placed(self.bridge.original_model, tokens, padding)

    def positions(self, tokens: Int[Tensor, "batch pos"], padding: Int[Tensor, " batch"] | None = None) -> Tensor:
        """What the stream into the first block holds besides the tokens: learned positions, where there are any.

        ``[batch, pos, d_model]``, or zeros of that shape for models that rotate queries and keys instead.
        """
        part = getattr(self.bridge, "pos_embed", None)
        found: list[Tensor] = []
        hook = part.register_forward_hook(lambda _m, _i, out: found.append(out)) if part is not None else None
        try:
            stream, _ = self._probe(tokens, padding)
        finally:
            if hook is not None:
                hook.remove()
        return found[0].expand_as(stream) if found else torch.zeros_like(stream)

    def unembed(self, resid: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """Final norm and unembedding, with whatever the host does to logits behind it: a scale, a soft cap.

        The host's own head is run, with its body stubbed to give the normed stream.
        """
        network = self.bridge.original_model
        with contextlib.nullcontext() if self.held is None else self.held.long(self.bridge.ln_final):
            normed = _direct(self.bridge.ln_final)(resid.to(self.bridge.unembed.W_U.device))
        rows = normed.reshape(1, -1, normed.shape[-1])
        with _stubbed({network.base_model: lambda *_, **__: _Body(rows)}):
            logits = network(inputs_embeds=rows, use_cache=False).logits
        return logits.view(*normed.shape[:-1], -1).to(resid.device)

    def forward(
        self, tokens: Int[Tensor, "batch pos"], padding: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch pos vocab"]:
        """The same logits as ``logits``, from the parts."""
        resid, context = self.start(tokens, padding)
        for block in self.blocks:
            normed = block.attn_norm(resid)
            q, k, v = (block.project(slot, normed) for slot in "qkv")
            z = block.attention(q, k, v, context)
            attn = block.attn_out(z)
            mlp = block.mlp(resid if block.parallel else resid + attn)
            resid = resid + attn + mlp
        return self.unembed(resid)

    def check_decomposition(self, own: OwnLogits | None = None) -> None:
        """Put the parts together and compare with the host, and both with the network's own logits of before.

        Raises:
            ModelError: the logits differ by more than the format's rounding explains.
        """
        tokens, padding = _trial(self.bridge.original_model, self.device)
        bound = {torch.float32: 2e-4, torch.float64: 1e-9}.get(self.dtype, 0.1)
        try:
            with torch.no_grad():
                host, ours = self.logits(tokens), self.forward(tokens)
                padded = None if own is None else self.forward(tokens, padding)
        except (RuntimeError, AttributeError, TypeError, ValueError, IndexError) as error:
            raise ModelError(
                f"{self.name}: the blocks of this architecture cannot be taken apart into heads and MLPs "
                f"({first_line(error)})"
            ) from error
        if own is not None and padded is not None:
            # In float64 the network's own norms were still in float32, in short formats all of it was.
            than, why = (
                "Hugging Face's own network",
                "TransformerLens does not compute all that this configuration asks",
            )
            self._compare(own.plain, host, own.bound, "held by TransformerLens", than, why)
            if bool(own.padded.isfinite().all()):  # eager attention of float64 gives NaN where rows are padded
                self._compare(own.padded, own.without_padding(padded), own.bound, "with padded rows", than, why)
        why = "its residual stream is not a plain sum of nodes"
        self._compare(host, ours, bound, "put together from heads and MLPs", "it does as a whole", why)

    def _compare(self, expected: Tensor, found: Tensor, bound: float, how: str, than: str, why: str) -> None:
        scale = float(expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny))
        gap = float((expected - found).abs().max()) / scale
        if not gap <= bound:
            raise ModelError(
                f"{self.name}: {how} the model gives other logits than {than} (relative difference {gap:.2g}, "
                f"allowed {bound:.2g}); {why}, so circuits in it would be wrong"
            )


@dataclass(frozen=True)
class OwnLogits:
    """What a network gave for the trial's rows, whole and padded on the left, before anything of it was replaced."""

    plain: Float[Tensor, "batch pos vocab"]
    padded: Float[Tensor, "rows vocab"]
    padding: Int[Tensor, " batch"]
    bound: float

    def without_padding(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "rows vocab"]:
        """The rows that are no padding."""
        return _unpadded(logits, self.padding)


def _own_logits(network: Any, name: str, device: torch.device | str, *, in_float32: bool) -> OwnLogits:
    """Run the network as Hugging Face made it, in eager attention; with ``in_float32`` its weights are long then."""
    network.eval().requires_grad_(False)
    if not any("_hf_hook" in vars(part) for part in network.modules()):
        network.to(device)  # else it lies on several devices
    held, short = Held(), network.dtype in SHORT
    parts = [part for part in network.modules() if part._parameters] if in_float32 and short else []
    hooks = [hook for part in parts for hook in held.while_it_runs(part)]
    tokens, padding = _trial(network, next(network.parameters()).device)
    try:
        network.set_attn_implementation("eager")
        with torch.no_grad():
            rows = [network(tokens, **_placed(network, tokens, pad)).logits for pad in (None, padding)]
    except (RuntimeError, AttributeError, TypeError, ValueError, IndexError) as error:
        raise ModelError(
            f"{name}: the model does not run on {len(tokens)} rows of tokens ({first_line(error)})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not bool(rows[0].isfinite().all()):
        short_name = str(network.dtype).removeprefix("torch.")
        raise ModelError(f"{name}: its logits are not finite in {short_name}; load it in float32")
    return OwnLogits(rows[0], _unpadded(rows[1], padding), padding, 0.1 if short and not in_float32 else 2e-4)


def _trial(network: Any, device: torch.device) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]:
    """Two rows of random tokens, and how many of each are padding where rows are to be padded."""
    config = network.config.get_text_config()
    length = min(8, int(getattr(config, "max_position_embeddings", 0) or 8))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, int(config.vocab_size), (2, length), generator=generator)
    return tokens.to(device), torch.tensor([0, length // 3], device=device)


def _placed(network: Any, tokens: Int[Tensor, "batch pos"], padding: Int[Tensor, " batch"] | None) -> dict[str, Any]:
    """The host's arguments for rows that are padded on the left; nothing special where none is."""
    if padding is None or not bool(padding.any()):
        return {"use_cache": False}
    places = torch.arange(tokens.shape[1], device=tokens.device) - padding[:, None]
    placed = {"use_cache": False, "attention_mask": (places >= 0).long()}
    takes = inspect.signature(type(network).forward).parameters
    return placed | ({"position_ids": places.clamp(min=0)} if "position_ids" in takes else {})


def _unpadded(logits: Float[Tensor, "batch pos vocab"], padding: Int[Tensor, " batch"]) -> Float[Tensor, "rows vocab"]:
    return logits[torch.arange(logits.shape[1], device=logits.device) >= padding[:, None]]


def _fingerprint(network: Any) -> str:
    """SHA-256 over the names, the shapes and 64 evenly spaced values of every weight."""
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // 64)].float().cpu().numpy()
        digest.update(f"{name}{tuple(weight.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()


def _fixed_bytes(model: Model) -> int:
    """What the weights take, each storage once, and the long copy of the largest part that runs at a time."""
    network = model.bridge.original_model
    own = [tensor for block in model.blocks for tensor in (*block.weights.values(), block.W_O)]
    tensors = [*network.parameters(), *network.buffers(), *own]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    if model.held is None:
        return sum(storages.values())
    ends = [part for name in ("embed", "unembed") if (part := getattr(model.bridge, name, None)) is not None]
    largest = max(sum(weight.numel() for weight in part.parameters()) for part in (*model.bridge.blocks, *ends))
    return sum(storages.values()) + largest * 4


def _hold(bridge: Any) -> Held:
    """Every part of a model long while it runs; weights that are in none of them long for good."""
    held = Held()
    ends = [getattr(bridge, name, None) for name in ("embed", "pos_embed", "ln_final", "unembed")]
    parts = [*bridge.blocks, *(part for part in ends if part is not None)]
    for part in parts:
        held.while_it_runs(part)
    inside = {id(weight) for part in parts for weight in part.parameters()}
    network = bridge.original_model
    for weight in (*network.parameters(), *network.buffers()):
        if id(weight) not in inside and weight.dtype in SHORT:
            weight.data = weight.data.float()
    return held


def _held_block(block: Block, held: Held) -> Block:
    """The block with weights that are long while it runs; its norm is written out again, now unrounded."""
    pullback = None
    if block.pullback is not None:
        like = torch.zeros(1, device=block.W_O.device)
        with held.long(block.bridge):
            pullback = Pullback.of_block(block, like)
    return replace(block, held=held, pullback=pullback)


def _take_apart(block: Any, layer: int, graph: Graph, name: str, config: Any) -> Block:
    parts = set(block.submodules)
    lacking = {"attn", "mlp"} - parts
    if lacking or not all(hasattr(block.attn, part) for part in "qkvo"):
        what = " and ".join(sorted(lacking)) or "separate q, k, v and o projections"
        raise ModelError(
            f"{name}: layer {layer} has no {what}; circuits need a transformer in which every layer has "
            "attention with heads and an MLP"
        )
    attn = block.attn
    biases = {slot: _head_bias(attn, slot, graph.n_heads) for slot in "qkv"}
    weights = {"q": attn.W_Q, "k": attn.W_K, "v": attn.W_V}
    if any(weight.shape[0] != graph.n_heads for weight in weights.values()):
        raise ModelError(
            f"{name}: layer {layer} has {weights['k'].shape[0]} key-value heads for {graph.n_heads} query heads "
            "and they could not be expanded to one each"
        )
    scale = float(getattr(config, "residual_multiplier", None) or 1.0)
    shared = (block, layer, graph.parallel, graph.n_heads, weights, biases)
    own = Block(*shared, (attn.W_O * scale).contiguous(), scale, None, _mlp_returns(block, attn.W_O, layer, name))
    return replace(own, pullback=Pullback.of_block(own, attn.W_O)) if "ln1" in parts else own


def _mlp_returns(block: Any, like: Tensor, layer: int, name: str) -> int:
    try:
        with torch.no_grad():
            out = block.mlp(like.new_zeros(1, 1, like.shape[-1]))
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise ModelError(
            f"{name}: layer {layer} has no MLP that is a function of the residual stream alone ({first_line(error)}); "
            "circuits need one whose output is added to the stream"
        ) from error
    return len(out) if isinstance(out, tuple) else 0


def _head_bias(attn: Any, slot: str, n_heads: int) -> Tensor | None:
    bias = getattr(getattr(attn, slot), "bias", None)
    return None if bias is None else bias.view(n_heads, -1)


def _apply(bridge: Any, norm: str, x: Tensor) -> Tensor:
    return _norm_of(bridge, norm)(x)


def _norm_of(bridge: Any, name: str) -> Callable[[Tensor], Tensor]:
    """The norm of that name, the identity where a block has none."""
    return _direct(getattr(bridge, name)) if name in bridge.submodules else _identity


def _direct(norm: Any) -> Callable[[Tensor], Tensor]:
    """The norm; torch's own layer norm itself, as the host spells it out in five passes over memory."""
    return norm.original_component if type(norm.original_component) is torch.nn.LayerNorm else norm


def _by_head(x: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "head rows d_head"]:
    return x.permute(2, 0, 1, 3).reshape(x.shape[2], -1, x.shape[3])


def _behind(held: Float[Tensor, "batch before head d_head"], x: Float[Tensor, "rows pos head d_head"]) -> Tensor:
    """``x`` with what is held of the positions before it, which is of one batch where ``x`` is of copies of it."""
    copies = len(x) // len(held)
    return torch.cat([held.to(x) if copies == 1 else held.to(x).repeat(copies, 1, 1, 1), x], 1)


def _frozen_gain(norm: Any, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
    """The factor by which a root-mean-square norm multiplies each coordinate of ``x``.

    Such a norm is r(x) w x with one number r = 1 / sqrt(mean(x^2) + eps) per row. Its weight w is what it gives
    for a large constant vector; r is then the exact ratio of two parallel vectors. Where x is zero, or so
    small that its square is, there is no ratio, and r is computed: 1 / sqrt(eps) at zero.
    """
    weight = norm(torch.full_like(x[..., :1, :].reshape(-1, x.shape[-1])[:1], 1e4)).view(-1)
    direction = weight * x
    squares, tiny = direction.square().sum(-1, keepdim=True), torch.finfo(x.dtype).tiny
    scale = (norm(x) * direction).sum(-1, keepdim=True) / squares.clamp(min=tiny)
    # The least eps is that with which zero has a root in the format.
    eps = _epsilon(norm.original_component) or tiny
    own = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt().to(x.dtype)
    return torch.where(squares < tiny, own, scale) * weight


def _epsilon(norm: torch.nn.Module) -> float | None:
    """The constant under a norm's root, None where it has none by a name that is known."""
    return next((float(value) for name in EPSILONS if (value := getattr(norm, name, None)) is not None), None)


def _replaced(value: Tensor | None, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A module's inputs with another first one; None to leave them."""
    return None if value is None else (value, *inputs[1:])


def _seeing(value: Any) -> Any:
    """A mask ``[batch, 1, query, key]`` in which padding sees itself; anything else as it is.

    A query that sees nothing has no softmax: what it gives (nan, in some formats) would
    be multiplied by zero weights later and still spoil every row.
    """
    if not (isinstance(value, Tensor) and value.dim() == 4 and value.shape[-1] == value.shape[-2]):
        return value
    own = torch.eye(value.shape[-1], dtype=torch.bool, device=value.device)
    if value.dtype == torch.bool:
        return value | (own & ~value.any(-1, keepdim=True))
    blind = value.amax(-1, keepdim=True) <= torch.finfo(torch.float16).min
    return value.masked_fill(own & blind, 0.0)


class _Body:
    """What a host's body gives its head: the last hidden state, and None for all else that it may ask for."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: Any) -> Any:
        return self.last_hidden_state if place == 0 else () if isinstance(place, slice) else None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Stop(Exception):
    """Ends the host's forward pass once the context is known."""


def _stop(*_: Any, **__: Any) -> None:
    raise _Stop


def _identity(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


def _returning_nothing(count: int) -> Callable[..., Any]:
    """Zeros in the shape of the input, as the first of ``count`` values of a tuple if that is not 0."""

    def stub(x: Tensor, *_: Any, **__: Any) -> Any:
        return (torch.zeros_like(x), *[None] * (count - 1)) if count else torch.zeros_like(x)

    return stub


def _returning(x: Tensor) -> Callable[..., Tensor]:
    return lambda *_, **__: x


@contextlib.contextmanager
def _stubbed(stubs: dict[Any, Callable[..., Any]]) -> Iterator[None]:
    """Put other functions in the place of modules' ``forward``, and take them out again."""
    try:
        for module, stub in stubs.items():
            module.__dict__["forward"] = stub
        yield
    finally:
        for module in stubs:
            module.__dict__.pop("forward", None)


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
    name: str, revision: str | None, dtype: torch.dtype, device_map: str | None = None
) -> tuple[Any, Any, tuple[str, ...]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local = check_place(name)
    if local:
        check_folder(Path(name))
    options = _reading_options(revision, local)
    with _reading(name, revision, "tokenizer", local=local) as of_tokenizer:
        _refuse_adapter(name, revision, local)
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    with _reading(name, revision, local=local) as of_weights:
        how = {"dtype": dtype, "attn_implementation": "eager", "device_map": device_map}
        how |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        network, info = AutoModelForCausalLM.from_pretrained(name, **how, **options)
    check_keys(name, network, info)
    return network, tokenizer, tuple(dict.fromkeys([*of_tokenizer, *of_weights]))


def _reading_options(revision: str | None, local: bool) -> dict[str, Any]:
    """What every reading of the host library is told: no code of the model's own is run, and nobody is asked."""
    return {"revision": revision, "local_files_only": local, "trust_remote_code": False}


@contextlib.contextmanager
def _reading(name: str, revision: str | None, part: str = "", *, local: bool) -> Iterator[list[str]]:
    """What the host library raises while it reads a model's files is the files' fault; the reason in one sentence."""
    try:
        with _quiet() as said:
            yield said
    except ModelError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            reason = f"model {name} needs code of its own, which is not run; give a model that the host library knows"
        elif not local and "named model.safetensors" in str(error):
            reason = (
                f"model {name} has no model.safetensors on the hub; pickled weights are not read, as they may run "
                "code: choose a --revision that has safetensors, or convert them and give the folder"
            )
        elif local and part == "tokenizer" and lacks_tokenizer(Path(name)):
            reason = f"model folder {name} has no tokenizer files; expected tokenizer.json beside the weights"
        else:
            reason = None if local else _hub_refusal(error, name, revision)
        source = "the folder" if local else "the hub (or its local cache)"
        what = f"the {part} of {name}" if part else f"model {name}"
        raise ModelError(reason or f"{what} cannot be loaded from {source}: {first_line(error)}") from error


def _refuse_adapter(name: str, revision: str | None, local: bool) -> None:
    """An adapter on the hub would be applied, or not, as a library happens to be installed."""
    from transformers.utils import find_adapter_config_file

    if not local and find_adapter_config_file(name, revision=revision):
        raise ModelError(
            f"model {name} holds a LoRA adapter, which is not applied; merge it into its base model "
            "(merge_and_unload of peft), save the result and give its folder"
        )


def _check_stored(folder: str, config: Any) -> None:
    """Hold the heads of a folder's files against the model, as loading would, without the weights."""
    from transformers import AutoModelForCausalLM

    if getattr(config, "quantization_config", None) is not None:
        return  # what is stored then are not the model's own weights
    with torch.device("meta"):
        stored = {key: torch.empty(shape) for key, shape in stored_tensors(Path(folder)).items()}
    how = {"output_loading_info": True, "ignore_mismatched_sizes": True, "device_map": "meta"}
    with _reading(folder, None, local=True):
        with torch.device("meta"):
            kind = type(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
        network, info = kind.from_pretrained(None, config=config, state_dict=stored, **how)
    check_keys(folder, network, info)


def _restore_buffers(network: Any) -> None:
    """Constants that no file holds, such as the scale of embeddings, as they are in float32 and not rounded."""
    fresh = _fresh_buffers(network, torch.float32)
    for name, buffer in network.named_buffers():
        if buffer.dtype in SHORT and name in fresh:
            _set_buffer(network, name, fresh[name].float().to(buffer.device))


def _widen_buffers(network: Any, wide: Wide) -> None:
    """Constants that no file holds computed anew in float64, where what is there is the same number rounded."""
    with wide.on():
        fresh = _fresh_buffers(network, torch.float64)
    for name, buffer in dict(network.named_buffers()).items():
        if buffer.is_floating_point() and name in fresh and fresh[name].shape == buffer.shape:
            whole = fresh[name].to(buffer.device, torch.float64)
            if torch.allclose(whole, buffer.double(), rtol=1e-6, atol=0):
                _set_buffer(network, name, whole)


def _set_buffer(network: Any, name: str, value: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    setattr(network.get_submodule(owner), last, value)


def _fresh_buffers(network: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """The constants of a new network of the same configuration, whose weights are not made."""
    from accelerate import init_empty_weights

    config = copy.deepcopy(network.config)
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.dtype = dtype
    with _quiet(), init_empty_weights(include_buffers=False):
        return dict(type(network)(config).named_buffers())


def _hub_refusal(error: BaseException, name: str, revision: str | None) -> str | None:
    """What the hub refused and what to do about it; None where the hub had no part in it."""
    from huggingface_hub import constants, errors, get_token

    # The host library wraps the hub's errors in its own, with other words.
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    has_token = bool(get_token())
    if is_any(errors.GatedRepoError):
        page = f"https://huggingface.co/{name}"
        grant = (
            f"the token in use has no access: ask for it at {page} with the token's account, and give a fine-grained "
            "token the right to read gated repositories"
            if has_token
            else f"accept its terms at {page}, make a read token at https://huggingface.co/settings/tokens, and set "
            "HF_TOKEN to it"
        )
        return f"model {name} is gated; {grant}"
    if is_any(errors.RevisionNotFoundError):
        return f"model {name} has no revision {revision!r} on the hub; give a branch, a tag or a commit of it"
    if is_any(errors.RepositoryNotFoundError):
        private = "or the token in use may not see it" if has_token else "or it is private: then set HF_TOKEN"
        return f"there is no model {name} on the hub, {private}; check the spelling, which is owner/name"
    if constants.HF_HUB_OFFLINE or is_any(errors.OfflineModeIsEnabled):
        return (
            f"model {name} is not, or not whole, in the local cache, and HF_HUB_OFFLINE forbids fetching it; run "
            f"'hf download {name}' where there is a network, unset HF_HUB_OFFLINE, or give a folder"
        )
    if is_any(errors.LocalEntryNotFoundError, ConnectionError):
        return (
            f"the hub cannot be reached and model {name} is not in the local cache; check the network "
            "(HTTPS_PROXY, HF_ENDPOINT), or give a folder"
        )
    if (refused := next((one for one in chain if isinstance(one, errors.HfHubHTTPError)), None)) is not None:
        return f"the hub did not give model {name} ({first_line(refused)}); wait and try again"
    return None


def _text_part(network: Any, name: str) -> Any:
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


def _expand_grouped_heads(network: Any, name: str) -> None:
    """Give every query head its own copy of its group's key and value weights: the same function, plain heads."""
    config = _text_config(network.config)
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
    """Repeat what lies behind the first ``start`` rows, ``groups`` heads one after the other."""
    for name in ("weight", "bias"):
        rows = getattr(linear, name)
        if rows is not None:
            both = torch.cat([rows.detach()[:start], _repeated(rows[start:], groups, repeat)])
            setattr(linear, name, torch.nn.Parameter(both))
    linear.out_features = linear.weight.shape[0]


def _repeated(weight: Tensor, groups: int, repeat: int) -> Tensor:
    return weight.detach().unflatten(0, (groups, -1)).repeat_interleave(repeat, dim=0).flatten(0, 1).contiguous()


def _text_config(config: Any) -> Any:
    return getattr(config, "text_config", None) or config


@contextlib.contextmanager
def _nothing_installed() -> Iterator[None]:
    """Keep the host library from looking for an image processor: where it finds none, it runs pip to get one.

    Nor does it load the tokenizer a second time, which would not be the revision that is pinned.
    """
    from transformer_lens.model_bridge.sources.transformers import source

    load, configure = source.load_modality_processor, source.configure_tokenizer
    source.load_modality_processor = lambda *_, **__: None
    source.configure_tokenizer = lambda tokenizer, *_, **__: tokenizer
    try:
        yield
    finally:
        source.load_modality_processor, source.configure_tokenizer = load, configure


class _Kept(logging.Handler):
    """Keeps what is said instead of showing it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.notes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        # The report of missing and surplus weights is what ``check_keys`` refuses by.
        if "LOAD REPORT" not in text and text not in self.notes:
            self.notes.append(text)


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep what the libraries have to say while a model loads, but for progress and what is deprecated in them."""
    import warnings

    from transformers.utils import logging as hf_logging

    bars, level, kept = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity(), _Kept()
    loggers = [logging.getLogger(name) for name in (None, "transformers", "transformer_lens")]
    before = [logger.handlers for logger in loggers]
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_warning()
    for logger in loggers:
        logger.handlers = [kept]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield kept.notes
    finally:
        kept.notes.extend(" ".join(str(one.message).split()) for one in caught)
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers = handlers
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
