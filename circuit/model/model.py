"""A transformer written as a sum of nodes.

TransformerLens' bridge holds the model with its own weights and numerics. This package takes each block apart into what
an edge needs: the norm before attention, the query, key and value projections of each head, the attention itself given
those three, each head's result, and the MLP. With them

    residual stream = embeddings + sum of head results + attention biases + sum of MLP outputs

and the stream into any head or MLP can be changed on its own. Nothing here depends on a model family's name: at load
the blocks are put together again and must give the host's logits, otherwise the model is refused.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from persona_circuits.circuit.cost import Architecture, Budget, architecture_of
from persona_circuits.circuit.errors import ModelError, first_line
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model.block import Block, Context, take_apart
from persona_circuits.circuit.model.mixed_precision import HALF_PRECISION, Upcasting
from persona_circuits.circuit.model.norm import Pullback, direct
from persona_circuits.circuit.model.origin import Origin
from persona_circuits.circuit.model.rules import Rules
from persona_circuits.circuit.model.stubs import Body, Stop, returning_nothing, seeing, stop, stubbed_forward
from persona_circuits.circuit.model.weights import text_config_of
from persona_circuits.circuit.task import Forms, FormTable, form_table

__all__ = ["BFLOAT16_WEIGHTS", "Model", "OwnLogits", "fixed_bytes", "placed_on", "trial_run", "unpadded"]

SCRATCH_BYTES = 1 << 28
"""Memory kept on a CPU between patched passes."""
ROUNDING = {torch.float32: 2e-4, torch.float64: 1e-9}
"""How far two ways to compute the same logits may differ, relative to the largest; a tenth in half precision."""
N_CONTEXTS = 4
"""Contexts of unpadded rows, each of one length, that a model keeps."""
BFLOAT16_WEIGHTS = "bfloat16-weights"
"""The format with weights in half precision and every computation in float32."""


class Model:
    """A causal language model with its graph, its tokenizer and its blocks.

    Built by ``load_model``. ``graph`` gives the nodes, ``blocks`` the layers,
    ``device`` is where the weights lie, ``dtype`` what is computed in, ``fingerprint`` tells models of
    one name apart. ``budget`` is None where memory has no limit but the device's. ``notes`` is what the host library
    had to say while it read the files, ``origin`` the quantised file that the weights are from, where that is known.
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
        host = text_config_of(bridge.original_model.config)
        self.blocks = tuple(take_apart(block, i, self.graph, name, host) for i, block in enumerate(bridge.blocks))
        weight = next(bridge.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.budget: Budget | None = None
        self.notes: tuple[str, ...] = ()
        self.origin: Origin | None = None
        self._contexts: dict[tuple[int, bool], Context] = {}
        self._scratch: Tensor | None = None
        self.rules: Rules | None = None
        self._reads_forms = False
        self.upcasting = _upcast_parts(bridge) if in_float32 and weight.dtype in HALF_PRECISION else None
        if self.upcasting is not None:
            self.dtype = torch.float32
            self.blocks = tuple(_upcast_block(block, self.upcasting) for block in self.blocks)

    def under(self, rules: Rules) -> Model:
        """The same model with these backward rules; no number of its forward pass changes."""
        other = self.with_blocks([replace(block, rules=rules) for block in self.blocks])
        other.rules = rules
        return other

    def with_blocks(self, blocks: Sequence[Block]) -> Model:
        """The same model with other blocks in place of its own."""
        other = copy.copy(self)
        other.blocks = tuple(blocks)
        return other

    def scratch(self, *shape: int) -> Tensor:
        """Uninitialised scratch memory, valid until the next call.

        On a CPU, where fresh pages cost as much as writing to them, it is reused between calls, up to
        ``SCRATCH_BYTES``, unless a memory limit is set.
        """
        size = math.prod(shape)
        fresh = {"device": self.device, "dtype": self.dtype}
        if self.device.type != "cpu" or self.budget is not None or size * self.dtype.itemsize > SCRATCH_BYTES:
            return torch.empty(shape, **fresh)
        if self._scratch is None or self._scratch.numel() < size:
            self._scratch = torch.empty(size, **fresh)
        return self._scratch[:size].view(shape)

    def architecture(self) -> Architecture:
        """The sizes, for estimates; keys and values are counted once per query head, as they are stored.

        Raises:
            ModelError: the configuration does not say them.
        """
        return architecture_of(self.bridge.original_model, self.name)

    def forget(self) -> None:
        """Free the memory that ``scratch`` keeps, for measurements of memory."""
        self._scratch = None

    @property
    def format(self) -> str:
        """The name of the format, one of ``DTYPES``."""
        return BFLOAT16_WEIGHTS if self.upcasting is not None else str(self.dtype).removeprefix("torch.")

    def logits(
        self, tokens: Int[Tensor, "batch pos"], padding: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch pos vocab"]:
        """The host's own forward pass, no part of this module involved; ``padding`` as for ``start``."""
        with torch.no_grad():
            return self.bridge.original_model(tokens, **placed_on(self.bridge.original_model, tokens, padding)).logits

    def start(
        self,
        tokens: Int[Tensor, "batch pos"],
        padding: Int[Tensor, " batch"] | None = None,
        forms: FormTable | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_model"], Context]:
        """The stream into the first block, and the context of every layer.

        The host runs with attention and MLPs stubbed to zero: as far as the first block for the stream, and for
        the context, of one row, once for every length. ``padding`` is the number of tokens on the left of
        each row that are none: they are masked and not counted in positions. Without
        it rows have one length, the context is that of any one row, and fits any
        number of them. With ``forms`` what stands after the prompts are branches, each of which sees its own alone.

        Raises
        ------
        ModelError
            There are branches, and this architecture does not take them.
        """
        if forms is not None and forms.n_read > 1:
            self._check_forms()
            return self._start_of_branches(tokens, padding, forms)
        if padding is None or not bool(padding.any()):
            stream, context = self._probe(tokens, None, stream_only=True)[0], self._context_of_length(tokens[:1])
            return stream, context if forms is None else replace(context, forms=forms)
        stream, contexts = self._probe(tokens, padding)
        return stream, Context(
            tuple({k: seeing(v) for k, v in layer.items()} for layer in contexts), len(tokens), forms
        )

    def _start_of_branches(
        self, tokens: Int[Tensor, "batch pos"], padding: Int[Tensor, " batch"] | None, forms: FormTable
    ) -> tuple[Float[Tensor, "batch pos d_model"], Context]:
        """The host sees a chain after each prompt; its masks become those of branches, positions are given to it."""
        stream, contexts = self._probe(tokens, padding, forms)

        def branched(value: Any) -> Any:
            square = isinstance(value, Tensor) and value.dim() == 4 and value.shape[-1] == value.shape[-2]
            return seeing(forms.branched(value)) if square else value

        return stream, Context(
            tuple({k: branched(v) for k, v in layer.items()} for layer in contexts), len(tokens), forms
        )

    def _check_forms(self) -> None:
        """Check, once, that the host reads branches side by side as it reads them one by one.

        Raises:
            ModelError: they are not.
        """
        if self._reads_forms:
            return
        tokens, padding = (x.to(self.device) for x in trial_run(self.bridge.original_model, self.device))
        tokens, (a, b, c) = tokens[:, :5], range(3)
        some = Forms(("one", "other"), (((a, b, c),), ((b, a), (c,))))
        ends = [tokens.new_tensor(node).expand(2, -1) for node in ((), *some.nodes)]
        forced = torch.cat([tokens, tokens.new_tensor(some.forced).expand(2, -1)], 1)
        forms = form_table([some, some], self.device)
        self._reads_forms = True  # read by the passes of this check
        try:
            with torch.no_grad():
                one_by_one = [self.logits(torch.cat([tokens, end], 1), padding)[:, -1] for end in ends]
                together = self.forward(forced, padding, forms)[:, -forms.n_read :]
            same = self._gap(torch.stack(one_by_one, 1), together) <= ROUNDING.get(self.dtype, 0.1)
        except (RuntimeError, TypeError, ValueError, IndexError):
            same = False
        self._reads_forms = same
        if not same:
            raise ModelError(
                f"{self.name}: this architecture does not read forms of several tokens side by side (its positions or "
                "masks are its own); give 'forms' of one token each"
            )

    def _context_of_length(self, tokens: Int[Tensor, "1 pos"]) -> Context:
        """The context of a row without padding; contexts of the last few lengths are kept."""
        key = (tokens.shape[1], torch.is_autocast_enabled(self.device.type))
        if key not in self._contexts:
            if len(self._contexts) == N_CONTEXTS:
                del self._contexts[next(iter(self._contexts))]
            self._contexts[key] = Context(self._probe(tokens, None)[1])
        return self._contexts[key]

    def _probe(
        self,
        tokens: Int[Tensor, "batch pos"],
        padding: Int[Tensor, " batch"] | None,
        forms: FormTable | None = None,
        *,
        stream_only: bool = False,
    ) -> tuple[Float[Tensor, "batch pos d_model"], tuple[dict[str, Any], ...]]:
        first: list[Tensor] = []
        contexts: list[dict[str, Any]] = []

        def attention_stub(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
            hidden = kwargs.pop("hidden_states", args[0] if args else None)
            contexts.append(kwargs)
            return torch.zeros_like(hidden), None

        stubs: dict[Any, Callable[..., Any]] = {self.bridge.ln_final: stop}
        for block in self.blocks:
            stubs |= {block.bridge.attn: attention_stub, block.bridge.mlp: returning_nothing(block.mlp_returns)}

        def seen(_module: Any, _inputs: Any, out: Tensor) -> None:
            first.append(out)
            if stream_only:
                raise Stop

        hook = self.bridge.blocks[0].hook_in.register_forward_hook(seen)
        try:
            with stubbed_forward(stubs), torch.no_grad(), contextlib.suppress(Stop):
                self.bridge.original_model(tokens, **placed_on(self.bridge.original_model, tokens, padding, forms))
        finally:
            hook.remove()
        return first[0], tuple(contexts)

    def positions(
        self,
        tokens: Int[Tensor, "batch pos"],
        padding: Int[Tensor, " batch"] | None = None,
        forms: FormTable | None = None,
    ) -> Tensor:
        """What the stream into the first block contains besides token embeddings: learned positions, if any.

        ``[batch, pos, d_model]``, or zeros of that shape for models that rotate queries and keys instead.
        """
        part = getattr(self.bridge, "pos_embed", None)
        outputs: list[Tensor] = []
        hook = part.register_forward_hook(lambda _m, _i, out: outputs.append(out)) if part is not None else None
        try:
            stream, _ = self._probe(tokens, padding, None if forms is None or forms.n_read == 1 else forms)
        finally:
            if hook is not None:
                hook.remove()
        return outputs[0].expand_as(stream) if outputs else torch.zeros_like(stream)

    def normed(self, resid: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """What the final norm makes of a stream, on the device of the unembedding."""
        norm = direct if self.rules is None else self.rules.norm
        with contextlib.nullcontext() if self.upcasting is None else self.upcasting.on(self.bridge.ln_final):
            return norm(self.bridge.ln_final)(resid.to(self.bridge.unembed.W_U.device))

    def unembed(self, resid: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """Final norm and unembedding, with whatever the host does to logits after it: a scale, a soft cap.

        The host's own head is run, with its body stubbed to give the normed stream.
        """
        network, normed = self.bridge.original_model, self.normed(resid)
        rows = normed.reshape(1, -1, normed.shape[-1])
        with stubbed_forward({network.base_model: lambda *_, **__: Body(rows)}):
            logits = network(inputs_embeds=rows, use_cache=False).logits
        return logits.view(*normed.shape[:-1], -1).to(resid.device)

    def answer(
        self, resid: Float[Tensor, "*rows pos d_model"], forms: FormTable | None
    ) -> Float[Tensor, "*rows vocab"] | Float[Tensor, "*rows events"]:
        """The logits of the answer, of the final stream at the last positions; where they are sets of forms, options
        are after the vocabulary."""
        if forms is None:
            return self.unembed(resid[..., -1, :])
        logits = self.unembed(resid[..., -forms.n_read :, :])
        if logits.shape[-1] != self.n_vocab:
            raise ModelError(
                f"{self.name}: {logits.shape[-1]:,} logits for {self.n_vocab:,} embeddings; options can have no 'forms'"
            )
        if logits.dim() == 3 and len(logits) != len(forms):  # copies of the batch, one after the other
            return forms.read(logits.unflatten(0, (-1, len(forms)))).flatten(0, 1)
        return forms.read(logits)

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        padding: Int[Tensor, " batch"] | None = None,
        forms: FormTable | None = None,
    ) -> Float[Tensor, "batch pos vocab"]:
        """The same logits as ``logits``, from the parts; with ``forms`` of the tokens after the prompts too."""
        resid, context = self.start(tokens, padding, forms)
        for block in self.blocks:
            normed = block.attn_norm(resid)
            q, k, v = (block.project(slot, normed) for slot in "qkv")
            z = block.attention(q, k, v, context)
            attn = block.attn_out(z)
            mlp = block.mlp(resid if block.parallel else resid + attn)
            resid = resid + attn + mlp
        return self.unembed(resid)

    def check_decomposition(self, own: OwnLogits | None = None) -> None:
        """Compare the parts put together with the host, and both with the network's own logits before the change.

        Raises:
            ModelError: the logits differ by more than the format's rounding explains.
        """
        tokens, padding = trial_run(self.bridge.original_model, self.device)
        bound = ROUNDING.get(self.dtype, 0.1)
        try:
            with torch.no_grad():
                host, rebuilt = self.logits(tokens), self.forward(tokens)
                padded = None if own is None else self.forward(tokens, padding)
        except (RuntimeError, AttributeError, TypeError, ValueError, IndexError) as error:
            raise ModelError(
                f"{self.name}: the blocks of this architecture cannot be taken apart into heads and MLPs "
                f"({first_line(error)})"
            ) from error
        if own is not None and padded is not None:
            # The reference is less precise: float64 norms ran in float32, half precision ran throughout.
            than, why = (
                "Hugging Face's own network",
                "TransformerLens does not compute all that this configuration asks",
            )
            self._compare(own.plain, host[: len(own.plain)], own.bound, "held by TransformerLens", than, why)
            if bool(own.padded.isfinite().all()):  # eager attention of float64 gives NaN where rows are padded
                self._compare(own.padded, own.without_padding(padded), own.bound, "with padded rows", than, why)
        why = "its residual stream is not a plain sum of nodes"
        self._compare(host, rebuilt, bound, "put together from heads and MLPs", "it does as a whole", why)

    def _gap(self, expected: Tensor, actual: Tensor) -> float:
        scale = float(expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny))
        return float((expected - actual).abs().max()) / scale

    def _compare(self, expected: Tensor, actual: Tensor, bound: float, how: str, than: str, why: str) -> None:
        gap = self._gap(expected, actual)
        if not gap <= bound:
            raise ModelError(
                f"{self.name}: {how} the model gives other logits than {than} (relative difference {gap:.2g}, "
                f"allowed {bound:.2g}); {why}, so circuits in it would be wrong"
            )


@dataclass(frozen=True)
class OwnLogits:
    """A network's logits of the trial's first rows, and of all rows left-padded, before any part was replaced."""

    plain: Float[Tensor, "first pos vocab"]
    padded: Float[Tensor, "rows vocab"]
    padding: Int[Tensor, " batch"]
    bound: float

    def without_padding(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "rows vocab"]:
        """The rows that are not padding."""
        return unpadded(logits, self.padding)


def trial_run(network: Any, device: torch.device) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]:
    """Two rows of random tokens, and the number of padding tokens of each for a padded run."""
    config = network.config.get_text_config()
    length = min(8, int(getattr(config, "max_position_embeddings", 0) or 8))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, int(config.vocab_size), (2, length), generator=generator)
    return tokens.to(device), torch.tensor([0, length // 3], device=device)


def placed_on(
    network: Any,
    tokens: Int[Tensor, "batch pos"],
    padding: Int[Tensor, " batch"] | None,
    forms: FormTable | None = None,
) -> dict[str, Any]:
    """The host's arguments for rows that are left-padded or end in branches; the defaults for plain rows."""
    if forms is not None:
        padding = tokens.new_zeros(len(tokens)) if padding is None else padding
    elif padding is None or not bool(padding.any()):
        return {"use_cache": False}
    chain = torch.arange(tokens.shape[1], device=tokens.device) if forms is None else forms.chain(tokens.shape[1])
    places = chain - padding[:, None]
    placed = {"use_cache": False, "attention_mask": (places >= 0).long()}
    takes = inspect.signature(type(network).forward).parameters
    return placed | ({"position_ids": places.clamp(min=0)} if "position_ids" in takes else {})


def unpadded(logits: Float[Tensor, "batch pos vocab"], padding: Int[Tensor, " batch"]) -> Float[Tensor, "rows vocab"]:
    return logits[torch.arange(logits.shape[1], device=logits.device) >= padding[:, None]]


def fixed_bytes(model: Model) -> int:
    """Bytes of the weights, each storage once, and of the float32 copy of the largest part that runs at a time."""
    network = model.bridge.original_model
    own = [tensor for block in model.blocks for tensor in (*block.weights.values(), block.W_O)]
    tensors = [*network.parameters(), *network.buffers(), *own]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    if model.upcasting is None:
        return sum(storages.values())
    ends = [part for name in ("embed", "unembed") if (part := getattr(model.bridge, name, None)) is not None]
    largest = max(sum(weight.numel() for weight in part.parameters()) for part in (*model.bridge.blocks, *ends))
    return sum(storages.values()) + largest * 4


def _upcast_parts(bridge: Any) -> Upcasting:
    """Upcast every part of a model while it runs, and weights that belong to no part permanently."""
    upcasting = Upcasting()
    ends = [getattr(bridge, name, None) for name in ("embed", "pos_embed", "ln_final", "unembed")]
    parts = [*bridge.blocks, *(part for part in ends if part is not None)]
    for part in parts:
        upcasting.while_it_runs(part)
    inside = {id(weight) for part in parts for weight in part.parameters()}
    network = bridge.original_model
    for weight in (*network.parameters(), *network.buffers()):
        if id(weight) not in inside and weight.dtype in HALF_PRECISION:
            weight.data = weight.data.float()
    return upcasting


def _upcast_block(block: Block, upcasting: Upcasting) -> Block:
    """The block with weights upcast while it runs; the form of its norm is found again, now without rounding."""
    pullback = None
    if block.pullback is not None:
        like = torch.zeros(1, device=block.W_O.device)
        with upcasting.on(block.bridge):
            pullback = Pullback.of_block(block, like)
    return replace(block, upcasting=upcasting, pullback=pullback)
