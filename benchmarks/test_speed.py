"""The engine against the passes it is made of, and peers beside it in the same run: shapes with random weights.

    make bench

No test asserts a time. Peaks are those of torch's allocator beyond what was held when a step
began, from one more round of it (``circuit.profiling.meter``), here and in auto-circuit's process alike.
Before every round of a step the step that it is compared with runs once: the ratio is the
median over such pairs, so that a machine that slows down slows both.
"""

from dataclasses import replace

import numpy as np
import pytest
from shapes import GPT2, GPT2_64, GROUPED, SMALL, SMOLLM2, rows_of
from steps import (
    LOGIT_DIFF,
    AcdcRun,
    Beside,
    acdc_text,
    all_edges_in_order,
    circuit_sizes,
    full_forwards,
    kl_threshold,
    many_circuits,
    one_circuit,
    single_edges,
)

from persona_circuits.circuit.attribution import eap, eap_ig, exact
from persona_circuits.circuit.evaluation import random_circuits
from persona_circuits.circuit.forward import measure, prepare
from persona_circuits.circuit.peers import agreement, from_prune_scores
from persona_circuits.circuit.profiling import acdc_sample, bare_forward, bare_passes
from persona_circuits.circuit.scores import Scores

SHAPES = (GPT2, GPT2_64, GROUPED, SMOLLM2, SMALL)
STEPS = 5
PEER_STEPS = 3
LATE_EDGES = 748  # those into the logits, the last MLP and three heads of the last layer
SAMPLE = 24  # edges that ACDC and exact patching try on large shapes; auto-circuit's ACDC half of them


def on(*shapes):
    """Run a benchmark on these shapes."""
    names = [shape.name.replace(" ", "-") for shape in shapes]
    return pytest.mark.parametrize("subject", shapes, indirect=True, ids=names)


@on(*SHAPES)
def test_floor(keep, subject):
    keep(subject, "floor", "two forwards and one backward, bare", floor(subject).step, rounds=5)


@on(*SHAPES)
def test_eap(keep, subject):
    what = f"EAP, all {subject.model.graph.n_edges:,} edges"
    keep(subject, "EAP", what, own_eap(subject), rounds=4, beside=floor(subject))


@on(GPT2)
def test_eap_with_nothing_shared(keep, subject):
    """Pairs that differ from the first token on: no position is run once for both."""
    model, batch = subject.model, differing_at_once(subject)
    step = lambda: eap(model, [batch], LOGIT_DIFF)  # noqa: E731
    keep(subject, "EAP, nothing shared", "EAP, prompts that begin apart", step, rounds=4, beside=floor(subject))


@on(GPT2, GROUPED, SMOLLM2, SMALL)
def test_eap_ig(keep, subject):
    step = own_eap_ig(subject, STEPS)
    keep(subject, "EAP-IG", f"EAP-IG, {STEPS} steps", step, rounds=3, beside=floor(subject, STEPS))


@on(GPT2, GROUPED, SMOLLM2, SMALL)
def test_forward(keep, subject):
    keep(subject, "forward", "one forward, bare", forward(subject).step, rounds=5)


@on(GPT2, GROUPED, SMOLLM2, SMALL)
def test_prepare(keep, subject):
    def step():
        prepare(subject.model, subject.batch)

    what = "clean and corrupt run, kept for circuits"
    keep(subject, "prepare", what, step, rounds=4, beside=forward(subject, 2))


@pytest.mark.parametrize("place", [0, 2, 4])
@on(GPT2, GROUPED, SMOLLM2, SMALL)
def test_one_circuit(keep, subject, place):
    size = circuit_sizes(subject.model)[place]
    step = one_circuit(subject.model, subject.item, size)
    keep(subject, f"circuit {place}", f"one circuit of {size:,} edges", step, rounds=4, beside=forward(subject))


@on(GPT2)
def test_one_circuit_with_nothing_shared(keep, subject):
    size = circuit_sizes(subject.model)[4]
    step = one_circuit(subject.model, prepare(subject.model, differing_at_once(subject)), size)
    what = f"one circuit of {size:,} edges, prompts that begin apart"
    keep(subject, "circuit 4, nothing shared", what, step, rounds=4, beside=forward(subject))


@on(GPT2, GROUPED, SMALL)
def test_hundred_circuits(keep, subject):
    sizes = circuit_sizes(subject.model)
    step = many_circuits(subject.model, subject.item, sizes, 20)
    what = f"one of 100 circuits, 20 each of {', '.join(f'{size:,}' for size in sizes)} edges"
    keep(subject, "circuits", what, step, rounds=1, peak=False, beside=forward(subject), per=100)


@on(GPT2, GROUPED, SMALL)
def test_exact_sample(keep, subject):
    edges = acdc_sample(subject.model.graph, SAMPLE)
    step = single_edges(subject.model, subject.item, edges)
    what = f"exact patching, one of {len(edges)} edges spread over the graph"
    keep(subject, "exact", what, step, rounds=2, peak=False, beside=forward(subject), per=len(edges))


@on(GPT2, GROUPED, SMALL)
def test_acdc_one_at_a_time(keep, subject):
    beside = sequential(subject)
    n_edges = round(1 / beside.times)
    what = "ACDC one edge at a time through all layers, one edge"
    keep(subject, "sequential", what, beside.step, rounds=1, peak=False, beside=forward(subject), per=n_edges)


@on(GPT2, GROUPED, SMALL)
def test_acdc_sample(keep, subject):
    run = own_acdc(subject, acdc_sample(subject.model.graph, SAMPLE))
    what = f"ACDC, one of {len(run.edges)} edges spread over the graph"
    keep(
        subject,
        "ACDC",
        what,
        remembered(subject, "ACDC", run),
        rounds=2,
        peak=False,
        beside=sequential(subject),
        per=len(run.edges),
    )
    keep.info["agreement"] = acdc_text(subject.found["ACDC"], len(run.edges))


@on(GPT2)
def test_acdc_passes(keep, subject):
    """How many passes a search takes where a pass is what costs: as many candidates as on a GPU; 1 % of KL."""
    edges = all_edges_in_order(subject.model)[:LATE_EDGES]
    run = replace(own_acdc(subject, edges), candidates=128, tau=kl_threshold(subject.item, 1e-2))
    what = f"ACDC, 128 candidates a pass, one of the last {len(edges)} edges"
    keep(subject, "ACDC passes", what, remembered(subject, "ACDC passes", run), rounds=1, peak=False, per=len(edges))
    keep.info["agreement"] = acdc_text(subject.found["ACDC passes"], len(edges))


@on(SMALL)
def test_acdc_of_all_edges(keep, subject):
    run = own_acdc(subject, all_edges_in_order(subject.model))
    step, what = remembered(subject, "ACDC of all", run), f"ACDC, all {len(run.edges):,} edges"
    every = replace(sequential(subject), name=f"{len(run.edges)} edges one at a time")
    every = replace(every, times=every.times * len(run.edges))
    keep(subject, "ACDC of all", what, step, rounds=3, beside=every)
    keep.info["agreement"] = acdc_text(subject.found["ACDC of all"], len(run.edges))


@on(SMALL)
def test_exact_of_all_edges(keep, subject):
    n_edges = subject.model.graph.n_edges

    def step():
        exact(subject.model, [subject.batch], LOGIT_DIFF)

    what = f"exact patching, one of all {n_edges:,} edges"
    keep(subject, "exact of all", what, step, rounds=3, beside=forward(subject), per=n_edges)


# --- peers, in the same run --------------------------------------------------------------------


@on(GPT2, SMALL)
def test_autocircuit_eap(keep, subject):
    own = Beside("EAP here", own_eap(subject))
    peak = subject.autocircuit.ask(do="eap", memory=True)["peak_bytes"]
    rounds = 2 if subject.shape is SMALL else 1
    peer_step(keep, subject, "auto-circuit: EAP", {"do": "eap"}, own, rounds=rounds, peak_bytes_there=peak)
    keep.info["agreement"] = scores_text(subject, "EAP")


@on(SMALL)
def test_autocircuit_ig(keep, subject):
    """Its own integrated gradients: as many points, all masks at once, so another quantity."""
    own = Beside(f"EAP-IG here, {PEER_STEPS} steps", own_eap_ig(subject, PEER_STEPS))
    what = f"auto-circuit: its integrated gradients, {PEER_STEPS} points"
    peer_step(keep, subject, what, {"do": "mask-ig", "samples": PEER_STEPS - 1}, own, rounds=1)
    keep.info["agreement"] = scores_text(subject, "EAP-IG") + "; another quantity"


@on(SMALL)
def test_autocircuit_eap_ig(keep, subject):
    """EAP-IG put together from its parts, at the same points."""
    points = [(k + 0.5) / STEPS for k in range(STEPS)]
    own = Beside(f"EAP-IG here, {STEPS} steps", own_eap_ig(subject, STEPS))
    what = f"auto-circuit: EAP-IG from its parts, {STEPS} steps"
    peer_step(keep, subject, what, {"do": "eap-ig", "shares": points}, own, rounds=2)
    keep.info["agreement"] = scores_text(subject, "EAP-IG")


@pytest.mark.parametrize("place", [0, 4])
@on(GPT2, SMALL)
def test_autocircuit_circuit(keep, subject, place):
    """Its call also runs the corrupt prompts, which the engine does once for all circuits (``prepare``)."""
    size = circuit_sizes(subject.model)[place]
    circuit = random_circuits(subject.model.graph, size, 1, seed=0)[0]
    own = Beside("this circuit here", one_circuit(subject.model, subject.item, size))
    request = {"do": "circuit", "edges": [str(edge) for edge in circuit.edges()]}
    rounds = 2 if subject.shape.name == SMALL.name else 1  # eight seconds each on the large shape
    peer_step(keep, subject, f"auto-circuit: one circuit of {size:,} edges", request, own, rounds=rounds)
    ours = measure(subject.model, [subject.item], [circuit.mask], LOGIT_DIFF).mean()
    keep.info["agreement"] = f"m differs by {abs(ours - subject.found['reply']['mean']):.1e} of {abs(ours):.2g}"


@on(GPT2, SMALL)
def test_autocircuit_acdc_sample(keep, subject):
    autocircuit_acdc(keep, subject, acdc_sample(subject.model.graph, SAMPLE // 2), "one of", " spread over the graph")


@on(SMALL)
def test_autocircuit_acdc_of_all_edges(keep, subject):
    autocircuit_acdc(keep, subject, all_edges_in_order(subject.model), "one of all")


@on(GPT2, SMALL)
def test_transformerlens_eap(keep, subject):
    from transformerlens_scores import scores_of

    rows = rows_of(subject.batch)
    subject.bridge  # noqa: B018  loading is no part of the time

    def step():
        subject.found["reply"] = scores_of(subject.bridge, rows)

    what, own = "TransformerLens: EAP, one pair at a time", Beside("EAP here", own_eap(subject))
    keep(subject, what, what, step, rounds=1, peak=False, beside=own)
    theirs = Scores.of(subject.model.graph, subject.found["reply"])
    keep.info["agreement"] = scores_text(subject, "EAP", theirs)


@on(SMALL)
def test_the_steps_do_what_they_say(subject):
    """A benchmark of the wrong thing is worthless: samples spread over the layers, circuits have their sizes."""
    graph = subject.model.graph
    sample = acdc_sample(graph, 12, runs=3)
    layers = {graph.slot_layer(graph.index(edge)[1]) for edge in sample}
    assert len(sample) == len(set(sample)) == min(12, graph.n_edges)
    assert len(layers) > 1
    for size in circuit_sizes(subject.model):
        assert len(random_circuits(graph, size, 1, seed=0)[0]) == size


# --- what is timed beside what -------------------------------------------------------------------


def floor(subject, times=1):
    """Two bare forwards and a backward, as many times."""
    name = "floor" if times == 1 else f"({times} × floor)"
    return Beside(name, bare_passes(subject.bare, subject.batch), times)


def forward(subject, times=1):
    """Bare forward passes."""
    return Beside("forward" if times == 1 else f"({times} × forward)", bare_forward(subject.bare, subject.batch), times)


def differing_at_once(subject):
    """The same pairs with another first token in the corrupt prompts."""
    corrupt = subject.batch.corrupt.clone()
    corrupt[:, 0] = (subject.batch.clean[:, 0] + 1) % subject.shape.vocab
    return replace(subject.batch, corrupt=corrupt)


def sequential(subject):
    """One edge at a time through all layers, on a smaller sample; the ratio is per edge."""
    edges = acdc_sample(subject.model.graph, SAMPLE // 2)
    return Beside("one at a time", full_forwards(subject.model, subject.item, edges), 1 / len(edges))


def remembered(subject, name, step):
    """The step, its result kept to be compared with a peer's."""

    def run():
        subject.found[name] = step()

    return run


def own_eap(subject):
    return remembered(subject, "EAP", lambda: eap(subject.model, [subject.batch], LOGIT_DIFF))


def own_eap_ig(subject, steps):
    return remembered(subject, "EAP-IG", lambda: eap_ig(subject.model, [subject.batch], LOGIT_DIFF, steps=steps))


def own_acdc(subject, edges):
    return AcdcRun(subject.model, subject.item, edges, subject.tau)


def autocircuit_acdc(keep, subject, edges, of, where=""):
    """Both programs' ACDC on the same edges in the same order with the same threshold."""
    names = [str(edge) for edge in edges]
    own = Beside("ACDC here", remembered(subject, "ACDC", own_acdc(subject, edges)), 1 / len(names))
    request = {"do": "acdc", "edges": names, "tau": subject.tau}
    what = f"auto-circuit: ACDC, {of} {len(names):,} edges{where}"
    peer_step(keep, subject, what, request, own, rounds=1, per=len(names))
    index, changes = subject.model.graph.index, subject.found["ACDC"].changes
    kept = {name for name in names if not changes[index(name)] < subject.tau}
    apart = kept ^ set(subject.found["reply"]["kept"])
    keep.info["agreement"] = f"{len(names) - len(apart)} of {len(names)} decisions alike, {len(kept)} kept"


def peer_step(keep, subject, what, request, own, **options):
    """Time one of auto-circuit's jobs beside the engine's own; the reply goes to ``subject.found``."""
    peer = subject.autocircuit

    def step():
        subject.found["reply"] = peer.ask(**request)

    keep(subject, what, what, step, peak=False, beside=own, **options)


def scores_text(subject, name, theirs=None):
    """How far a peer's scores are from ours."""
    if theirs is None:
        found = subject.found["reply"]["scores"]
        theirs = from_prune_scores({module: np.array(values) for module, values in found.items()})
    found = agreement(name, subject.found[name], theirs)
    pearson = "undefined" if found.pearson is None else f"{found.pearson:.6f}"
    return f"Pearson {pearson}, largest difference {found.relative:.0e} of the largest score"
