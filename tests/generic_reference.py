"""An edge-by-edge reference for any Hugging Face decoder, from its layers' own submodules.

Nothing of the project is used. Every edge has a weight alpha, 1 for the current value of the source
and 0 for the corrupt one, and autograd reaches all of them. For every query head the layer's attention
runs once with that head's queries, keys and values in the places of the projections' outputs, so that
grouped keys and values are read per query head, and with the other heads masked before the output
projection. Where a norm stands behind a component, a head's share is its result times the factor that
the norm has for the whole in the same run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where the submodules of one layer are; ``first`` and ``second`` are the norms before attention and MLP."""

    attn: Any
    mlp: Any
    first: Callable[[Tensor], Tensor]
    second: Callable[[Tensor], Tensor]
    behind_attn: Any
    behind_mlp: Any
    out: Any
    joint: str


def _same(x: Tensor) -> Tensor:
    return x


def layout_of(layer: Any) -> Layout:
    """The submodules by the names that Hugging Face gives them."""
    parts = dict(layer.named_children())
    attn = next(parts[name] for name in ("self_attn", "attn", "attention") if name in parts)
    attn = getattr(attn, "attention", attn)  # GPT-Neo wraps it
    first = next((parts[name] for name in ("input_layernorm", "ln_1") if name in parts), _same)
    if "pre_feedforward_layernorm" in parts:
        second, behind = parts["pre_feedforward_layernorm"], ("post_attention_layernorm", "post_feedforward_layernorm")
    elif "post_feedforward_layernorm" in parts:
        second, behind = _same, ("post_attention_layernorm", "post_feedforward_layernorm")
    else:
        second = next((parts[name] for name in ("post_attention_layernorm", "ln_2") if name in parts), first)
        behind = ("", "")
    out = next(getattr(attn, n) for n in ("o_proj", "out_proj", "c_proj", "dense") if hasattr(attn, n))
    joint = next((n for n in ("c_attn", "qkv_proj", "query_key_value") if hasattr(attn, n)), "")
    return Layout(attn, parts["mlp"], first, second, parts.get(behind[0]), parts.get(behind[1]), out, joint)


class GenericReference:
    """A decoder taken apart; ``parallel`` says that the MLP reads the stream that attention reads."""

    def __init__(self, network: Any, *, parallel: bool) -> None:
        self.network, self.parallel = network, parallel
        self.config = config = network.config.get_text_config()
        body = network.get_decoder()
        self.body = body
        self.layers = next(getattr(body, name) for name in ("layers", "h") if hasattr(body, name))
        self.last_norm = next(
            getattr(body, name)
            for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm")
            if hasattr(body, name)
        )
        self.heads = config.num_attention_heads
        self.groups = getattr(config, "num_key_value_heads", None) or self.heads
        self.scale = getattr(config, "residual_multiplier", None) or 1.0
        self.layouts = [layout_of(layer) for layer in self.layers]
        self.n_src = 1 + len(self.layers) * (self.heads + 1)

    def plain(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Every source's output and the last position's logits, with no edge corrupted."""
        return self.run(ids, None, None)

    def gradients(
        self, ids: Tensor, start: Tensor, score: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits, and the gradient of their score at every slot's stream; ``start`` is the stream into layer 0."""
        inputs: list[Tensor] = []

        def seen(x: Tensor) -> Tensor:
            inputs.append(x.clone())
            return inputs[-1]

        _, logits = self.run(ids, None, None, start=start.detach().requires_grad_(), seen=seen)
        return logits.detach(), torch.autograd.grad(score(logits), inputs)

    def run(
        self,
        ids: Tensor,
        corrupt: Tensor | None,
        alpha: Tensor | None,
        *,
        start: Tensor | None = None,
        seen: Callable[[Tensor], Tensor] = _same,
    ) -> tuple[Tensor, Tensor]:
        """Outputs ``[src, batch, pos, d_model]`` and logits, with ``alpha`` ``[src, slot]`` on the edges.

        ``start`` takes the place of the stream into the first layer, and what ``seen`` gives that of every stream read.
        """
        stream, contexts = self._contexts(ids)
        stream = stream if start is None else start
        values, fixed, slot = [stream], torch.zeros_like(stream), 0

        def read(n: int, at: int) -> Tensor:
            return seen(mixed(n, at))

        def mixed(n: int, at: int) -> Tensor:
            if alpha is None or corrupt is None:
                return fixed + torch.stack(values[:n]).sum(0)
            # Not the whole less what is cut: what is cut from zeros would be rounding.
            kept = torch.einsum("s,sbpd->bpd", alpha[:n, at], torch.stack(values[:n]))
            return fixed + kept + torch.einsum("s,sbpd->bpd", 1.0 - alpha[:n, at], corrupt[:n])

        for layout, context in zip(self.layouts, contexts, strict=True):
            before = len(values)
            streams = [[read(before, slot + i * self.heads + h) for h in range(self.heads)] for i in range(3)]
            results, bias = self._attention(layout, streams, context)
            slot += 3 * self.heads
            if self.parallel:
                values, mlp_in = [*values, *results], read(before, slot)
                fixed = fixed + bias
            else:
                values, fixed = [*values, *results], fixed + bias
                mlp_in = read(len(values), slot)
            values.append(self._mlp(layout, mlp_in))
            slot += 1
        return torch.stack(values), self._logits(read(len(values), slot)[:, -1])

    def _attention(self, layout: Layout, streams: list[list[Tensor]], context: Any) -> tuple[list[Tensor], Tensor]:
        queries, keys, own = (
            [self._projected(layout, i, layout.first(x)) for x in of_heads] for i, of_heads in enumerate(streams)
        )
        share = self.heads // self.groups
        results, bias = [], None
        for head in range(self.heads):
            # In each group the keys and values of one of its query heads; in this head's group its own.
            chosen = [head if head // share == g else g * share for g in range(self.groups)]
            q = torch.cat([self._block(queries[j], j, self.heads) for j in range(self.heads)], -1)
            k, v = (
                torch.cat([self._block(x[j], g, self.groups) for g, j in enumerate(chosen)], -1) for x in (keys, own)
            )
            result, bias = self._run(layout, head, (q, k, v), context)
            results.append(result)
        assert bias is not None
        if layout.behind_attn is not None:
            whole = sum(results) + bias
            # Of zeros there is no quotient: the factor is that of something small beside the norm's constant.
            whole = torch.where((whole == 0.0).all(-1, keepdim=True), 1e-9, whole)
            gain = layout.behind_attn(whole) / whole
            results, bias = [x * gain for x in results], bias * gain
        return [x * self.scale for x in results], bias * self.scale

    def _run(self, layout: Layout, head: int, qkv: tuple[Tensor, ...], context: Any) -> tuple[Tensor, Tensor]:
        """One head's result and the bias of the output projection."""
        args, kwargs = context
        project = layout.out.forward

        def masked(z: Tensor) -> Tensor:
            width = z.shape[-1] // self.heads
            mask = torch.zeros(z.shape[-1], dtype=z.dtype)
            mask[head * width : (head + 1) * width] = 1.0
            return project(z * mask)

        stubs: dict[Any, Callable[..., Any]] = {layout.out: masked}
        if layout.joint:
            stubs[getattr(layout.attn, layout.joint)] = lambda _: self._joined(layout, qkv)
        else:
            for name, x in zip(("q_proj", "k_proj", "v_proj"), qkv, strict=True):
                stubs[getattr(layout.attn, name)] = lambda _, x=x: x.clone()
        with _replaced(stubs):
            out = layout.attn(*args, **kwargs)
        result = out[0] if isinstance(out, tuple) else out
        bias = project(torch.zeros(1, 1, self._width_of(layout), dtype=result.dtype)).expand_as(result)
        return result - bias, bias

    def _width_of(self, layout: Layout) -> int:
        weight = layout.out.weight
        return weight.shape[0] if type(layout.out).__name__ == "Conv1D" else weight.shape[1]

    def _projected(self, layout: Layout, index: int, normed: Tensor) -> Tensor:
        """Queries, keys or values of all heads or groups, one after the other."""
        if not layout.joint:
            return getattr(layout.attn, ("q_proj", "k_proj", "v_proj")[index])(normed)
        both = getattr(layout.attn, layout.joint)(normed)
        if layout.joint == "query_key_value":  # per head: q, k, v
            return both.unflatten(-1, (self.heads, 3, -1))[..., index, :].flatten(-2)
        unit = both.shape[-1] // (self.heads + 2 * self.groups)
        return both.split([self.heads * unit, self.groups * unit, self.groups * unit], -1)[index]

    def _joined(self, layout: Layout, qkv: tuple[Tensor, ...]) -> Tensor:
        if layout.joint != "query_key_value":
            return torch.cat(qkv, -1)
        return torch.stack([x.unflatten(-1, (self.heads, -1)) for x in qkv], -2).flatten(-3)

    def _block(self, x: Tensor, place: int, count: int) -> Tensor:
        return x.unflatten(-1, (count, -1))[..., place, :]

    def _mlp(self, layout: Layout, x: Tensor) -> Tensor:
        out = layout.mlp(layout.second(x))
        out = out[0] if isinstance(out, tuple) else out
        return (out if layout.behind_mlp is None else layout.behind_mlp(out)) * self.scale

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.network.get_output_embeddings()(self.last_norm(x))
        logits = logits * (getattr(self.config, "logit_scale", None) or 1.0)
        logits = logits / (getattr(self.config, "logits_scaling", None) or 1.0)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits

    def _contexts(self, ids: Tensor) -> tuple[Tensor, list[Any]]:
        """The stream into the first layer, and how the host calls each layer's attention."""
        streams: list[Tensor] = []
        calls: list[Any] = []

        def first(_: Any, args: Any, kwargs: Any) -> None:
            streams.append(args[0] if args else kwargs["hidden_states"])

        hooks = [self.layers[0].register_forward_pre_hook(first, with_kwargs=True)]
        for layout in self.layouts:
            keep = lambda _, args, kwargs: calls.append((args, kwargs))  # noqa: E731
            hooks.append(layout.attn.register_forward_pre_hook(keep, with_kwargs=True))
        try:
            with torch.no_grad():
                self.body(ids, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return streams[0].detach(), calls


@contextlib.contextmanager
def _replaced(stubs: dict[Any, Callable[..., Any]]) -> Iterator[None]:
    try:
        for module, stub in stubs.items():
            module.__dict__["forward"] = stub
        yield
    finally:
        for module in stubs:
            module.__dict__.pop("forward", None)
