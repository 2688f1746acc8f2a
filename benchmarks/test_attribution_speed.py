"""Attribution against the passes it is made of, side by side: a GPT-2-small shape with random weights.

    make bench

8 pairs of 24 tokens, vocabulary 5000, 32,491 edges. The floor is two forward passes and one
backward pass of the bare Hugging Face model with frozen parameters. Times are only comparable
within one run; no test asserts them.
"""

import pytest
import torch


@pytest.fixture(scope="module")
def subject():
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from circuit.model import wrap_model
    from circuit.shipped import MODEL, resolve
    from circuit.task import Batch

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=5000, bos_token_id=0, eos_token_id=0)
    bare = GPT2LMHeadModel(config).eval().requires_grad_(False)
    model = wrap_model(GPT2LMHeadModel(config), AutoTokenizer.from_pretrained(resolve(MODEL)), name="gpt2-shape")
    clean = torch.randint(0, 5000, (8, 24))
    corrupt = clean.clone()
    corrupt[:, 3:6] = torch.randint(0, 5000, (8, 3))
    answers, wrong = torch.randint(0, 2500, (8, 1)), torch.randint(2500, 5000, (8, 1))
    return bare, model, Batch(tuple(range(8)), clean, corrupt, answers, wrong)


@pytest.mark.benchmark(group="attribution, 8 pairs of 24 tokens")
def test_floor_two_forwards_one_backward(benchmark, subject):
    bare, _, batch = subject

    def passes():
        with torch.no_grad():
            bare(batch.corrupt)
        embedded = bare.transformer.wte(batch.clean).requires_grad_()
        logits = bare(inputs_embeds=embedded).logits[:, -1]
        margin = logits.gather(1, batch.answers) - logits.gather(1, batch.wrong_answers)
        torch.autograd.grad(margin.sum(), embedded)

    benchmark.pedantic(passes, rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="attribution, 8 pairs of 24 tokens")
def test_eap(benchmark, subject):
    from circuit.attribution import eap
    from metrics import METRICS

    _, model, batch = subject
    benchmark.pedantic(lambda: eap(model, [batch], METRICS["logit-diff"]), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="attribution, 8 pairs of 24 tokens")
def test_eap_ig_of_five_steps(benchmark, subject):
    from circuit.attribution import eap_ig
    from metrics import METRICS

    _, model, batch = subject
    benchmark.pedantic(lambda: eap_ig(model, [batch], METRICS["logit-diff"], steps=5), rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group="one circuit, 8 pairs of 24 tokens")
def test_bare_forward(benchmark, subject):
    bare, _, batch = subject
    with torch.no_grad():
        benchmark.pedantic(lambda: bare(batch.clean), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="one circuit, 8 pairs of 24 tokens")
@pytest.mark.parametrize("n_edges", [200, 3000, 30000])
def test_one_circuit(benchmark, subject, n_edges):
    from circuit.faithfulness import random_circuits
    from circuit.patching import patched_logits, prepare

    _, model, batch = subject
    item = prepare(model, batch)
    mask = torch.from_numpy(random_circuits(model.graph, n_edges, 1, seed=0)[0].mask.copy())[None]
    benchmark.pedantic(lambda: patched_logits(model, item, mask), rounds=5, warmup_rounds=1)
