"""A transformer written as a sum of nodes. The only module that knows the host library.

TransformerLens' bridge holds the model with its own weights and numerics. This module takes each block apart into what
an edge needs: the norm before attention, the query, key and value projections of each head, the attention itself given
those three, each head's result, and the MLP. With them

    residual stream = embeddings + sum of head results + attention biases + sum of MLP outputs

and the stream into any head or MLP can be changed on its own. Nothing here depends on a model family's name: at load
the blocks are put together again and must give the logits that Hugging Face's own network gave before any of its parts
was replaced, otherwise the model is refused.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from persona_circuits.circuit.errors import ModelError, first_line
from persona_circuits.circuit.graph import SLOTS, Graph
from persona_circuits.circuit.model.mixed_precision import HALF_PRECISION, Upcasting
from persona_circuits.circuit.model.norm import Pullback, frozen_gain, norm_of
from persona_circuits.circuit.model.rules import Rules
from persona_circuits.circuit.model.stubs import returning, stubbed_forward, unchanged
from persona_circuits.circuit.task import FormTable

__all__ = ["NEURON_HOOKS", "Block", "Context", "take_apart"]

CACHED_BYTES = 1 << 18
"""On a CPU larger streams are processed one by one, so that they stay in its cache; smaller ones together."""
NEURON_HOOKS = {"post": "out", "pre": "in", "gate": "gate"}
"""Places inside an MLP: what its down projection reads, and what its up and its gate projection write."""


@dataclass(frozen=True)
class Context:
    """What the host hands to each layer's attention besides the residual stream: masks, rotations.

    ``n_rows`` is one where all rows have the same length, and the batch size where rows are padded. ``forms`` says what
    is read at the last positions, where that is more than the last one.
    """

    per_layer: tuple[dict[str, Any], ...]
    n_rows: int = 1
    forms: FormTable | None = None

    @property
    def n_read(self) -> int:
        """The number of last positions at which logits are read."""
        return 1 if self.forms is None else self.forms.n_read

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
        with contextlib.nullcontext() if self.upcasting is None else self.upcasting.on(self.bridge):
            if home == here:
                return function(self, *args)
            return function(self, *(x.to(here) if isinstance(x, Tensor) else x for x in args)).to(home)

    return moved


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
    """The backward pass of the norm before attention, where the norm has a known form."""
    mlp_returns: int = 0
    """How many values the host's MLP returns in a tuple; 0: a tensor."""
    upcasting: Upcasting | None = None
    """Set where the weights are in half precision and the computation in float32."""
    rules: Rules | None = None
    """Backward rules that replace the gradient; None: the plain gradient."""

    @_where_the_layer_is
    def attn_norm(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The norm before attention; the identity where the model has none."""
        return self._norm("ln1", x)

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
        if not large or self.upcasting is not None or streams.dtype in HALF_PRECISION or not self._plain(streams, out):
            out[:, :, heads] = self.project_each(slot, self.attn_norm(streams), heads).to(out)
            return
        # One head at a time its normed stream stays in the cache, and no weights are gathered.
        places, norm = out.flatten(0, 1), norm_of(self.bridge, "ln1")
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
    def project_each(
        self, slot: str, normed: Float[Tensor, "some rows pos d_model"], heads: Int[Tensor, " some"]
    ) -> Float[Tensor, "rows pos some d_head"]:
        """Queries, keys or values of some heads from the normed stream of each."""
        count, rows, pos, d_model = normed.shape
        weights, bias = self.weights[slot], self.biases[slot]
        every = count == self.n_heads
        out = torch.bmm(normed.reshape(count, rows * pos, d_model), self._upcast(weights if every else weights[heads]))
        if bias is not None:
            out = out + self._upcast(bias[heads])[:, None]
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
        all that the context has. With queries of the last positions alone, the result is of these positions too.
        """
        attn, n_queries = self.bridge.attn, q.shape[1]
        if before is not None:
            k, v = (_after(kept, x) for kept, x in zip(before, (k, v), strict=True))
        if (missing := k.shape[1] - n_queries) > 0:
            # The host wants a query at every position; the results of these are dropped.
            q = torch.nn.functional.pad(q, (0, 0, 0, 0, missing, 0))
        if self.rules is not None:
            q, k, v = self.rules.projected(q, k, v)
        flat = {slot: x.flatten(-2) for slot, x in zip("qkv", (q, k, v), strict=True)}
        stubs = {getattr(attn, slot): returning(x) for slot, x in flat.items()}
        stubs[attn.o] = unchanged
        with stubbed_forward(stubs), self.rules.in_attention(attn) if self.rules else contextlib.nullcontext():
            out = attn(hidden_states=flat["q"], **context.of_layer(self.layer, len(q)))
        z = out[0] if isinstance(out, tuple) else out
        return z[:, -n_queries:].contiguous().unflatten(-1, (self.n_heads, -1))

    @_where_the_layer_is
    def attn_out(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
        """What attention as a whole adds to the stream, its bias and a norm after it included."""
        return self._scaled(self._norm("ln1_post", self.bridge.attn.o(z.flatten(-2))))

    @_where_the_layer_is
    def head_results(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "head batch pos d_model"]:
        """What each head adds to the stream; the bias belongs to no head.

        Where a norm follows attention, a head's share is its result after that norm
        with the scale that the norm has in this run.
        """
        batch, pos, heads, _ = z.shape
        results = torch.bmm(_by_head(z), self._upcast(self.W_O)).view(heads, batch, pos, -1)
        if self._normed_after:
            results = results * frozen_gain(self.bridge.ln1_post, self.bridge.attn.o(z.flatten(-2)))
        return results

    @_where_the_layer_is
    def head_readers(
        self, z: Float[Tensor, "batch pos head d_head"], direction: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos head d_head"]:
        """A direction of the stream pulled back to each head's z: products with z equal those with head results."""
        if self._normed_after:
            direction = direction * frozen_gain(self.bridge.ln1_post, self.bridge.attn.o(z.flatten(-2)))
        return torch.einsum("hed,bpd->bphe", self._upcast(self.W_O), direction)

    def write_head_results(
        self,
        z: Float[Tensor, "batch pos head d_head"],
        out: Float[Tensor, "head batch pos d_model"],
        *,
        less_than: Float[Tensor, "head batch pos d_model"] | None = None,
    ) -> None:
        """Write ``head_results``, or ``less_than`` minus them, into ``out``; without a copy where possible."""
        if not self._plain(z, out) or self._normed_after:
            results = self.head_results(z)
            out.copy_(results if less_than is None else less_than - results)
        elif less_than is None:
            torch.bmm(_by_head(z), self._upcast(self.W_O), out=out.flatten(1, 2))
        else:
            out.copy_(less_than).flatten(1, 2).baddbmm_(_by_head(z), self._upcast(self.W_O), alpha=-1)

    def write_head_changes(
        self,
        before: Float[Tensor, "batch pos head d_head"],
        after: Float[Tensor, "batch pos head d_head"],
        out: Float[Tensor, "head batch pos d_model"],
    ) -> None:
        """Write head results after minus those before into ``out``: one product, unless a norm follows attention."""
        if self._plain(before, out) and not self._normed_after:
            torch.bmm(_by_head(after - before), self._upcast(self.W_O), out=out.flatten(1, 2))
        else:
            torch.sub(self.head_results(after), self.head_results(before), out=out)

    def _plain(self, x: Tensor, out: Tensor) -> bool:
        """Whether a product of ``x`` and this layer's weights can be written into ``out`` as it is."""
        dtype = torch.float32 if self.upcasting is not None else self.W_O.dtype
        same = x.device == out.device == self.W_O.device and x.dtype == out.dtype == dtype
        return same and not torch.is_autocast_enabled(x.device.type)

    @property
    def _normed_after(self) -> bool:
        """Whether a norm follows attention."""
        return "ln1_post" in self.bridge.submodules

    @property
    def has_attn_bias(self) -> bool:
        """Whether attention adds something that belongs to no head."""
        parts = [self.bridge.attn.o, *([self.bridge.ln1_post] if self._normed_after else [])]
        return any(getattr(part.original_component, "bias", None) is not None for part in parts)

    def along(
        self,
        slot: str,
        gradient: Float[Tensor, "batch pos head d_head"],
        projected: Float[Tensor, "batch _ head d_head"],
    ) -> Float[Tensor, "batch pos head"]:
        """What ``slot_gradients`` needs besides the gradient at its heads' q, k or v: of that run, linear in it."""
        frozen = self.rules is not None and self.rules.freeze_norms
        if frozen or self.pullback is None or not self._plain(gradient, gradient):
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
            weights = self._upcast(self.weights[slot][some])
            if not plain or (parts is None and "ln1" in self.bridge.submodules):
                here.copy_(self._slot_gradients(_by_head(gradient), weights.transpose(1, 2), x))
            elif parts is None or self.pullback is None:
                torch.bmm(_by_head(gradient), weights.transpose(1, 2), out=here.flatten(1, 2))
            else:
                self.pullback.write(slot, gradient, along[i][:, :, some], parts, weights, here, some)

    @_where_the_layer_is
    def _slot_gradients(self, gradient: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        """The same gradients by autograd, for any norm."""
        normed = torch.bmm(gradient, weights).view(len(gradient), *x.shape)
        if "ln1" not in self.bridge.submodules:
            return normed
        with torch.enable_grad():
            each = x.detach().expand_as(normed).clone().requires_grad_()
            return torch.autograd.grad(self.attn_norm(each), each, normed)[0]

    @_where_the_layer_is
    def mlp(self, x: Float[Tensor, "*rows pos d_model"]) -> Float[Tensor, "*rows pos d_model"]:
        """The MLP block from the residual stream to what it adds, its norms included."""
        normed = self._mlp_norm(x)
        with self.rules.in_mlp(self.bridge.mlp) if self.rules else contextlib.nullcontext():
            out = self.bridge.mlp(normed.flatten(0, -3))  # experts take rows, positions and nothing before them
        out = (out[0] if isinstance(out, tuple) else out).view(normed.shape)
        return self._scaled(self._norm("ln2_post", out))

    @_where_the_layer_is
    def mlp_norm(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """What the MLP's projections read of a stream."""
        return self._mlp_norm(x)

    def _mlp_norm(self, x: Tensor) -> Tensor:
        has_own_norm = "ln2" in self.bridge.submodules
        return self._norm("ln2", x) if has_own_norm else self.attn_norm(x) if self.parallel else x

    @_where_the_layer_is
    def mlp_gain(self, written: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows _"]:
        """The factor between what the down projection writes and what enters the stream, in this run."""
        if "ln2_post" not in self.bridge.submodules:
            return torch.full_like(written[..., :1], self.scale)
        return self._scaled(frozen_gain(self.bridge.ln2_post, written))

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
                "what its down projection writes; its neurons cannot be told apart"
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

    def _norm(self, name: str, x: Tensor) -> Tensor:
        if self.rules is None or name not in self.bridge.submodules:
            return norm_of(self.bridge, name)(x)
        return self.rules.norm(getattr(self.bridge, name))(x)

    def _scaled(self, written: Tensor) -> Tensor:
        return written if self.scale == 1.0 else written * self.scale

    def _upcast(self, weight: Tensor) -> Tensor:
        return weight if self.upcasting is None else weight.float()


def take_apart(block: Any, layer: int, graph: Graph, name: str, config: Any) -> Block:
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


def _by_head(x: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "head rows d_head"]:
    return x.permute(2, 0, 1, 3).reshape(x.shape[2], -1, x.shape[3])


def _after(kept: Float[Tensor, "batch before head d_head"], x: Float[Tensor, "rows pos head d_head"]) -> Tensor:
    """``x`` after what is kept of the positions before it, repeated where ``x`` is several copies of the batch."""
    copies = len(x) // len(kept)
    return torch.cat([kept.to(x) if copies == 1 else kept.to(x).repeat(copies, 1, 1, 1), x], 1)


def _replaced(value: Tensor | None, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A module's inputs with another first one; None to leave them."""
    return None if value is None else (value, *inputs[1:])
