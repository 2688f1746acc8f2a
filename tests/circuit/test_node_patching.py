"""Node patching against module hooks on bare Hugging Face models, and against the edge-by-edge patched forward."""

from contextlib import contextmanager

import pytest
import torch
from families import DATA, FAMILIES, network_of
from transformers import AutoTokenizer

from persona_circuits.circuit.forward import patched_logits, patched_nodes, patched_stream, portions, prepare
from persona_circuits.circuit.model import wrap_model
from persona_circuits.circuit.task import Row, batches

LENGTH = 7


class Bare:
    """A Hugging Face network whose module outputs are replaced by tensors of another run; no line of the engine."""

    def __init__(self, network, kind):
        self.network = network
        self.n_heads = network.config.num_attention_heads
        body = network.transformer if kind == "gpt2" else network.model
        self.layers = body.h if kind == "gpt2" else body.layers
        self.norm = body.ln_f if kind == "gpt2" else body.norm
        self.attn = "attn" if kind == "gpt2" else "self_attn"
        self.out = "c_proj" if kind == "gpt2" else "o_proj"

    def module(self, kind, layer):
        """The module, and whether it is its input that is the site."""
        if kind == "stream":
            return (self.norm if layer == len(self.layers) else self.layers[layer]), True
        attention = getattr(self.layers[layer], self.attn)
        if kind == "head":
            return getattr(attention, self.out), True
        return (attention if kind == "attn" else self.layers[layer].mlp), False

    @contextmanager
    def hooked(self, kind, layer, change):
        module, is_input = self.module(kind, layer)
        if is_input:
            handle = module.register_forward_pre_hook(lambda _m, args: (change(args[0]), *args[1:]))
        else:
            handle = module.register_forward_hook(
                lambda _m, _a, out: (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)
            )
        try:
            yield
        finally:
            handle.remove()

    def patched(self, ids, other, site, places):
        """Logits of ``ids`` with the site's tensor taken from ``other``'s run at these places."""
        kind, layer, head = site
        seen = []
        with torch.no_grad():
            with self.hooked(kind, layer, lambda x: (seen.append(x.clone()), x)[1]):
                self.network(other)

            def change(x):
                x = x.clone()
                width = x.shape[-1] // self.n_heads
                some = slice(head * width, (head + 1) * width) if kind == "head" else slice(None)
                x[:, places, some] = seen[0][:, places, some]
                return x

            with self.hooked(kind, layer, change):
                return self.network(ids).logits[:, -1]


def prompts(seed=0, rows=2):
    return torch.randint(1, 60, (2, rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def made(name):
    """The bare network, the model around a second copy of it, and the two runs of two pairs."""
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny-gpt2")
    model = wrap_model(network_of(FAMILIES[name]).double(), tokenizer, name=name)
    a, b = prompts()
    rows = [Row(i, tuple(a[i].tolist()), tuple(b[i].tolist()), (1,), (2,)) for i in range(len(a))]
    return network_of(FAMILIES[name]).double(), model, prepare(model, batches(rows, 8, "cpu")[0])


def mask(places, count=1):
    where = torch.zeros(count, 2, LENGTH, dtype=torch.bool)
    where[:, :, places] = True
    return where


def nodes_of(graph, site):
    kind, layer, head = site
    chosen = torch.zeros(1, graph.n_src, dtype=torch.bool)
    heads = graph.heads_of(layer)
    chosen[0, {"head": heads.start + head, "attn": heads, "mlp": graph.mlp_of(layer)}[kind]] = True
    return chosen


@pytest.mark.parametrize("name", ["gpt2", "llama3.2"])
def test_every_site_is_the_tensor_replaced_at_the_modules_output(name):
    """GPT-2 and a grouped-query Llama, in float64; llama3.2's keys and values are shared by two query heads each."""
    network, model, item = made(name)
    bare, (a, b) = Bare(network, name), prompts()
    close = {"atol": 1e-10, "rtol": 1e-10} if name == "gpt2" else {"atol": 2e-5, "rtol": 2e-5}  # Llama's norms: float32
    sites = [("head", layer, head) for layer in (0, 1) for head in range(4)]
    sites += [(kind, layer, 0) for kind in ("attn", "mlp") for layer in (0, 1)]
    moved = []
    for places in (list(range(LENGTH)), [LENGTH - 1], [1, 3]):
        for site in sites:
            expected = bare.patched(a, b, site, places)
            found = patched_nodes(model, item, nodes_of(model.graph, site), mask(places))[0]
            torch.testing.assert_close(found, expected, **close)
            moved.append(float((expected - item.clean.logits).abs().max()))
        for layer in range(3):
            expected = bare.patched(a, b, ("stream", layer, 0), places)
            found = patched_stream(model, item, layer, mask(places))[0]
            torch.testing.assert_close(found, expected, **close)
    assert min(moved[: len(sites)]) > 1e-3  # every site does something


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "neox, parallel"])
def test_a_patched_node_is_all_its_outgoing_edges_cut(name):
    """Sets of nodes too: the same numbers as the patched forward in which every reader has a stream of its own."""
    _, model, item = made(name)
    graph = model.graph
    generator = torch.Generator().manual_seed(0)
    some = torch.rand(6, graph.n_src, generator=generator) < 0.3
    chosen = torch.cat([torch.eye(graph.n_src, dtype=torch.bool), some])
    found = patched_nodes(model, item, chosen, mask(slice(None), len(chosen)))
    kept = torch.from_numpy(graph.valid.copy()) & ~chosen[:, :, None]
    torch.testing.assert_close(found, patched_logits(model, item, kept), atol=1e-6, rtol=1e-6)


def test_everything_is_the_other_run_and_nothing_is_this_one():
    _, model, item = made("gpt2")
    every, none = (
        torch.ones(1, model.graph.n_src, dtype=torch.bool),
        torch.zeros(1, model.graph.n_src, dtype=torch.bool),
    )
    torch.testing.assert_close(patched_nodes(model, item, every, mask(slice(None)))[0], item.corrupt.logits)
    torch.testing.assert_close(patched_nodes(model, item, none, mask(slice(None)))[0], item.clean.logits)
    torch.testing.assert_close(patched_nodes(model, item, every, mask([]))[0], item.clean.logits)
    last = patched_stream(model, item, model.graph.n_layers, mask([LENGTH - 1]))[0]
    torch.testing.assert_close(last, item.corrupt.logits)
    before = patched_stream(model, item, model.graph.n_layers, mask(list(range(LENGTH - 1))))[0]
    torch.testing.assert_close(before, item.clean.logits)


def test_patches_of_one_pass_do_not_see_each_other():
    _, model, item = made("llama3.2")
    chosen = torch.eye(model.graph.n_src, dtype=torch.bool)
    where = torch.rand(len(chosen), 2, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.5
    together = patched_nodes(model, item, chosen, where)
    for some in portions(len(chosen), 1):
        torch.testing.assert_close(patched_nodes(model, item, chosen[some], where[some]), together[some])
