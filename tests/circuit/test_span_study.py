from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import DATA

from persona_circuits.circuit.attribution import Scoring, eap_ig, score_parts
from persona_circuits.circuit.evaluation import entry_shares, persistence, span_rows, span_study
from persona_circuits.circuit.forward import prepare
from persona_circuits.circuit.statistics import PairSample
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS

DIVERGENCE = METRICS["persona-divergence"]


@pytest.fixture(scope="module")
def groups(tiny64, tiny_task):
    return batches(with_swap_rows(encode(tiny_task, tiny64)), 4, "cpu")


def test_persistence_is_what_the_hosts_own_pass_gives_with_the_other_prompts_stream(tiny64, groups):
    """The oracle is a hook on the Hugging Face model's own layer."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(DATA / "tiny-gpt2").double()
    names = ("before", "contrast", "after", "last")
    values, _ = persistence(tiny64, (prepare(tiny64, b) for b in groups), DIVERGENCE, names, PairSample())
    for layer, name in ((1, "contrast"), (2, "after"), (2, "last")):
        moved = whole = 0.0
        for batch in groups:
            clean, corrupt = (network(t, output_hidden_states=True) for t in (batch.clean, batch.corrupt))
            inside = (batch.spans == batch.span_names.index(name))[..., None]

            def swap(_module, args, kwargs, inside=inside, other=corrupt.hidden_states[layer]):
                hidden = args[0] if args else kwargs["hidden_states"]
                new = torch.where(inside, other, hidden)
                return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

            hook = network.transformer.h[layer].register_forward_pre_hook(swap, with_kwargs=True)
            patched = network(batch.clean).logits[:, -1]
            hook.remove()
            margins = [
                (x.gather(1, batch.answers) - x.gather(1, batch.wrong_answers)).sum().item()
                for x in (clean.logits[:, -1], corrupt.logits[:, -1], patched)
            ]
            whole += margins[0] - margins[1]
            moved += margins[0] - margins[2]
        assert values[layer, names.index(name)] == pytest.approx(moved / whole, rel=1e-8)


def test_the_contrast_starts_at_the_tokens_that_differ_and_ends_at_the_last(tiny64, tiny_task, groups):
    several = [b for b in groups if (b.clean != b.corrupt)[:, :-1].any()]
    values, intervals = persistence(
        tiny64, (prepare(tiny64, b) for b in groups), DIVERGENCE, ("before", "contrast", "after", "last"), PairSample()
    )
    assert several
    np.testing.assert_allclose(values[:, 0], 0.0, atol=1e-12)
    np.testing.assert_allclose(values[-1], [0, 0, 0, 1], atol=1e-12)
    assert values[0].sum() == pytest.approx(values[0, 1] + values[0, 3], abs=1e-12)
    assert intervals[-1][3].low == pytest.approx(1.0)


def test_entry_shares_add_up_and_follow_the_scores(tiny64, groups):
    parts = score_parts(tiny64, groups, DIVERGENCE, Scoring(steps=2), by="span")
    entry, from_input = entry_shares(parts)
    np.testing.assert_allclose(np.nansum(entry, axis=1), 1.0)
    assert from_input.sum() == pytest.approx(1.0)
    readers = {"m1", *(f"a1.h{head}" for head in range(4))}
    edges = [edge for edge in tiny64.graph.edges() if str(edge.dst) in readers]
    by_hand = [sum(abs(float(part[tiny64.graph.index(edge)])) for edge in edges) for part in parts.values]
    np.testing.assert_allclose(entry[1], np.array(by_hand) / sum(by_hand))


def test_rows_of_a_study_are_plain_and_complete(tiny64, groups):
    parts = score_parts(tiny64, groups, DIVERGENCE, Scoring(steps=2), by="span")
    study = span_study(tiny64, parts, [prepare(tiny64, b) for b in groups], DIVERGENCE)
    rows = study.rows()
    assert len(rows) == 4 * len(study.names)
    assert rows[-1]["layer"] == "logits"
    circuit = Circuit.of(tiny64.graph, ["input->m0", "m0->logits"])
    kept = span_rows(parts, circuit.mask)
    whole = eap_ig(tiny64, groups, DIVERGENCE, steps=2)
    assert {row["edge"]: row["score"] for row in kept} == pytest.approx(
        {e: whole[e] for e in ("input->m0", "m0->logits")}
    )


def test_no_divergence_gives_no_persistence(tiny64, groups):
    same = [replace(b, corrupt=b.clean) for b in groups]
    values, intervals = persistence(tiny64, [prepare(tiny64, b) for b in same], DIVERGENCE, ("last",), PairSample())
    assert np.isnan(values).all()
    assert intervals[0][0] is None
