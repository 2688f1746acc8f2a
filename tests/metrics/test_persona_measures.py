"""Identities of the persona measures, on random logits and on those of real models."""

import json
import math

import pytest
import torch
from conftest import ROOT

from persona_circuits import metrics
from persona_circuits.metrics import (
    cancellation,
    candidate_logits,
    candidate_mass,
    centred,
    choice_information,
    choice_shares,
    effective_preferences,
    entropy,
    hard_collapse,
    jensen_shannon,
    kl,
    logit_diff,
    modal_share,
    neutral_prior,
    paraphrase_null,
    persona_divergence,
    persona_margin,
    prior,
    prior_dominance,
    prob_diff,
    required_gain,
    soft_collapse,
    variance_shares,
)

N_CANDIDATES = 4


def random_case(dtype):
    """Logits of two personas on 300 questions, some with strong priors, and their candidates; pA, pB come first."""
    generator = torch.Generator().manual_seed(0)
    prior_part = 4 * torch.randn(1, 300, 23, generator=generator)
    logits = (prior_part + 2 * torch.randn(2, 300, 23, generator=generator)).to(dtype)
    candidates = torch.rand(300, 23, generator=generator).argsort(-1)[:, :N_CANDIDATES]
    return logits, candidates


def model_case(model, path):
    """The same from a model and a pair file."""
    from persona_circuits.circuit.task import batches, encode, load_task

    task = load_task(path)
    extra = [json.loads(line) for line in path.read_text().splitlines()]
    rows = encode(task, model)[:80]
    logits, candidates = torch.zeros(2, len(rows), model.bridge.cfg.d_vocab, dtype=model.dtype), []
    for batch in batches(rows, 16, model.device):
        for side, tokens in enumerate((batch.clean, batch.corrupt)):
            logits[side, list(batch.indices)] = model.logits(tokens)[:, -1].float()
    for row, item in zip(rows, extra, strict=False):
        two = [*row.answers, *row.wrong_answers]
        more = [i for word in item.get("candidates", []) if (i := model.tokenizer(word)["input_ids"][-1]) not in two]
        candidates.append([*two, *more, -1, -1, -1][:N_CANDIDATES])
    return logits, torch.tensor(candidates)


@pytest.fixture(scope="module", params=["random float32", "random float64", "persona-world", "craftgpt"])
def case(request):
    kind = request.param
    if kind == "persona-world":
        from persona_circuits.circuit.model import load_model

        return model_case(load_model(ROOT / "models" / "persona-world"), ROOT / "datasets" / "pairs_test.jsonl")
    if kind == "craftgpt":
        model = request.getfixturevalue("craftgpt")
        return model_case(model, ROOT / "datasets" / "craftgpt_weather.jsonl")
    return random_case(getattr(torch, kind.split()[1]))


@pytest.fixture
def margins(case):
    """m(x_A) and m(x_B)."""
    logits, candidates = case
    return tuple(persona_margin(side, candidates[:, 0], candidates[:, 1]) for side in logits)


@pytest.fixture
def choices(case):
    """Candidate logits of every question: [question, persona, candidate]."""
    logits, candidates = case
    return torch.stack([candidate_logits(side, candidates) for side in logits], -2)


def close(a, b, tolerance=2e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_margin_is_the_logit_difference_and_free_of_the_normaliser(case, margins):
    logits, candidates = case
    close(margins[0], logit_diff(logits[0], candidates[:, :1], candidates[:, 1:2]))
    close(margins[0], persona_margin(logits[0].log_softmax(-1), candidates[:, 0], candidates[:, 1]))
    both = persona_margin(logits, *(candidates[:, i].expand(2, -1) for i in (0, 1)))
    close(both, torch.stack(margins), 0.0)


def test_divergence_is_antisymmetric(case, margins):
    d = persona_divergence(*margins)
    assert torch.equal(persona_divergence(*reversed(margins)), -d)
    swapped = [persona_margin(side, case[1][:, 1], case[1][:, 0]) for side in case[0]]
    assert torch.equal(persona_divergence(*swapped), -d)
    assert torch.equal(persona_divergence(*reversed(swapped)), d)
    assert (d != 0).any()


def test_divergence_of_a_persona_from_itself_is_zero(margins):
    for margin in margins:
        assert (persona_divergence(margin, margin) == 0).all()


def test_divergence_ignores_token_priors_and_persona_shifts(case, margins):
    logits, candidates = case
    generator = torch.Generator().manual_seed(3)
    token_prior = torch.randn(1, *logits.shape[1:], generator=generator).to(logits.dtype)
    persona_shift = torch.randn(2, logits.shape[1], 1, generator=generator).to(logits.dtype)
    moved = [persona_margin(side, candidates[:, 0], candidates[:, 1]) for side in logits + token_prior + persona_shift]
    close(persona_divergence(*moved), persona_divergence(*margins))
    assert ((prior(*moved) - prior(*margins)).abs() > 0.1).any()  # the prior, however, moved


def test_swap_rows_average_to_half_the_divergence(margins):
    at_a, at_b = margins
    row, swapped_row = at_a, -at_b  # under B, with pB for pA
    close((row + swapped_row) / 2, persona_divergence(at_a, at_b) / 2)


def test_margins_are_prior_plus_and_minus_half_the_divergence(margins):
    b, d = prior(*margins), persona_divergence(*margins)
    close(b + d / 2, margins[0])
    close(b - d / 2, margins[1])
    close(prior(*reversed(margins)), b, 0.0)
    close(prior(-margins[0], -margins[1]), -b, 0.0)


@pytest.mark.parametrize("extra_prior", [0.0, 1.5])
def test_prior_dominance_is_at_least_half_exactly_where_the_pair_agrees(margins, extra_prior):
    margins = [margin + extra_prior for margin in margins]
    b, d = prior(*margins), persona_divergence(*margins)
    share = prior_dominance(b, d)
    clear = ((b.abs() - d.abs() / 2).abs() > 1e-4) & (d != 0)
    agrees = torch.sign(margins[0]) == torch.sign(margins[1])
    assert torch.equal((share >= 0.5)[clear], agrees[clear])
    assert clear.sum() > 50
    assert not extra_prior or 0 < agrees[clear].sum() < clear.sum()
    assert ((share >= 0) & (share <= 1)).all()


def test_above_the_required_gain_the_pair_parts_and_below_it_agrees(margins):
    b, d = prior(*margins), persona_divergence(*margins)
    gain = required_gain(b, d)
    sure = (b.abs() > 1e-3) & (d.abs() > 1e-3)
    for factor, parts in ((1.01, True), (0.99, False)):
        effect = factor * gain * d / 2
        assert (((b + effect) * (b - effect) < 0)[sure] == parts).all()
    assert torch.equal((gain >= 1)[sure], (prior_dominance(b, d) >= 0.5)[sure])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_of_the_scale(dtype):
    b, d = torch.tensor([[2.0, 0.0, 0.0, 1.0]], dtype=dtype), torch.tensor([[0.0, 3.0, 0.0, 2.0]], dtype=dtype)
    expected = torch.tensor([[1.0, 0.0, torch.nan, 0.5]], dtype=dtype)
    torch.testing.assert_close(prior_dominance(b, d), expected, equal_nan=True)
    expected = torch.tensor([[torch.inf, 0.0, torch.nan, 1.0]], dtype=dtype)
    torch.testing.assert_close(required_gain(b, d), expected, equal_nan=True)


def test_neutral_prior_is_the_mean_over_wordings(case):
    logits, candidates = case
    wordings = persona_margin(logits, *(candidates[:, i].expand(2, -1) for i in (0, 1))).T
    close(neutral_prior(wordings), wordings.sum(-1) / 2)
    assert neutral_prior(torch.zeros(2, 0)).isnan().all()


def test_paraphrase_null_does_not_depend_on_which_paraphrase_comes_first(margins):
    d = persona_divergence(*margins)
    signs = torch.where(torch.arange(len(d)) % 3 == 0, -1.0, 1.0).to(d.dtype)
    close(paraphrase_null(signs * d), paraphrase_null(d))
    close(paraphrase_null(3 * d), 3 * paraphrase_null(d))
    assert paraphrase_null(torch.zeros(5)) == 0
    generator = torch.Generator().manual_seed(5)
    assert paraphrase_null(2 * torch.randn(20_000, generator=generator)).item() == pytest.approx(2, rel=0.02)
    assert paraphrase_null(torch.zeros(0)).isnan()


def test_candidate_distributions_pad_with_nothing(case, choices):
    logits, candidates = case
    narrow = candidate_logits(logits[0], candidates[:, :2])
    padding = torch.full_like(candidates[:, :1], -1)
    wide = candidate_logits(logits[0], torch.cat([candidates[:, :2], padding], -1))
    assert wide[:, -1].isneginf().all()
    close(wide.softmax(-1)[:, :2], narrow.softmax(-1))
    close(entropy(wide), entropy(narrow))
    other = candidate_logits(logits[1], torch.cat([candidates[:, :2], padding], -1))
    close(kl(wide, other), kl(narrow, candidate_logits(logits[1], candidates[:, :2])))
    close(soft_collapse(torch.stack([wide, other], -2)), soft_collapse(choices[:, :, :2]))


def test_candidate_mass_is_a_share_of_the_vocabulary(case):
    logits, candidates = case
    mass = candidate_mass(logits, candidates.expand(2, -1, -1))
    assert ((mass > 0) & (mass <= 1)).all()
    two = candidate_mass(logits[0], candidates[:, :2])
    assert (two <= mass[0] + 1e-6).all()
    close(two, logits[0].softmax(-1).gather(-1, candidates[:, :2]).sum(-1))
    everything = torch.arange(logits.shape[-1]).expand(logits.shape[1], -1)
    close(candidate_mass(logits[0], everything), torch.ones_like(two))
    apart = prob_diff(logits[0], candidates[:, :1], candidates[:, 1:2])
    assert (apart.abs() <= two + 1e-6).all()


def test_information_of_two_personas_is_jensen_shannon(choices):
    close(choice_information(choices), jensen_shannon(choices[:, 0], choices[:, 1]))


def test_jensen_shannon_is_symmetric_bounded_and_zero_at_itself(case, choices):
    for a, b in ((choices[:, 0], choices[:, 1]), tuple(case[0])):
        js = jensen_shannon(a, b)
        close(js, jensen_shannon(b, a))
        assert ((js >= 0) & (js <= math.log(2))).all()
        assert (js <= (kl(a, b) + kl(b, a)) / 4 + 1e-5).all()  # Lin 1991, theorem 3: JS <= J/4
        close(jensen_shannon(a, a), torch.zeros_like(js), 1e-6)
        assert (kl(a, a) == 0).all()
        assert (kl(a, b) >= -1e-5).all()


def test_jensen_shannon_against_the_definition(choices):
    p, q = choices.softmax(-1).unbind(-2)
    m = (p + q) / 2
    expected = sum((torch.xlogy(side, side) - torch.xlogy(side, m)).sum(-1) for side in (p, q)) / 2
    close(jensen_shannon(choices[:, 0], choices[:, 1]), expected)
    disjoint = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
    assert jensen_shannon(disjoint[0], disjoint[1]).item() == pytest.approx(math.log(2))
    assert kl(disjoint[0], disjoint[1]).isinf()


def test_divergences_have_finite_gradients_beside_padding():
    logits = torch.tensor([[1.0, 0.5, -torch.inf]], requires_grad=True)
    other = torch.tensor([[0.0, 1.0, -torch.inf]])
    for function in (kl, jensen_shannon):
        (gradient,) = torch.autograd.grad(function(logits, other).sum(), logits)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_information_over_many_personas_is_bounded(choices):
    finite = ~choices.isneginf().flatten(0, 1).any(0)
    many = choices[..., finite].flatten(0, 1)[:60].view(6, 10, -1)  # ten personas, however they came about
    information = choice_information(many)
    assert ((information >= 0) & (information <= math.log(many.shape[-1]) + 1e-6)).all()
    soft = soft_collapse(many)
    assert ((soft >= 0) & (soft <= 1)).all()
    shuffled = many[:, torch.randperm(10, generator=torch.Generator().manual_seed(1))]
    close(choice_information(shuffled), information)
    doubled = torch.cat([many, many], -2)
    close(choice_information(doubled), information)
    close(modal_share(doubled), modal_share(many))
    close(effective_preferences(doubled), effective_preferences(many))


def test_the_same_persona_twice_is_a_full_collapse(choices):
    same = choices[:, :1].expand_as(choices)
    assert hard_collapse(same).all()
    for measure, value in ((soft_collapse, 1.0), (modal_share, 1.0), (effective_preferences, 1.0)):
        close(measure(same), torch.full_like(measure(same), value))
    close(choice_information(same), torch.zeros_like(choice_information(same)))


def test_hard_collapse_is_a_modal_share_of_one(choices):
    collapsed = hard_collapse(choices)
    assert torch.equal(collapsed, modal_share(choices) == 1)
    assert torch.equal(collapsed, (effective_preferences(choices) - 1).abs() < 1e-6)
    assert 0 < collapsed.sum() < len(collapsed)
    close(choice_shares(choices).sum(-1), torch.ones_like(modal_share(choices)))


def test_over_the_two_tokens_collapse_is_the_pairs_agreement(choices, margins):
    clear = (margins[0] != 0) & (margins[1] != 0)
    within = hard_collapse(choices[..., :2])
    assert torch.equal(within[clear], (torch.sign(margins[0]) == torch.sign(margins[1]))[clear])


def test_personas_that_say_everything_do_not_collapse():
    sure = 50 * torch.eye(4)
    assert choice_information(sure).item() == pytest.approx(math.log(4), rel=1e-5)
    assert soft_collapse(sure).item() == pytest.approx(0, abs=1e-5)
    assert effective_preferences(sure).item() == pytest.approx(4)
    assert modal_share(sure).item() == pytest.approx(0.25)
    assert not hard_collapse(sure)


def test_a_third_candidate_hides_collapse_from_the_two_tokens():
    logits = torch.tensor([[1.0, 0.0, 5.0], [0.0, 1.0, 5.0]])
    assert hard_collapse(logits)
    assert not hard_collapse(logits[:, :2])


def test_ties_choose_the_first_and_one_persona_has_nothing_to_tell():
    assert choice_shares(torch.zeros(3, 2)).tolist() == [1, 0]
    assert hard_collapse(torch.zeros(2, 2))
    one = torch.tensor([[1.0, 2.0]])
    assert hard_collapse(one)
    assert choice_information(one) == 0
    assert soft_collapse(one).isnan()
    assert soft_collapse(torch.zeros(3, 1)).isnan()


def test_variance_shares_add_up_and_match_the_two_by_two_table(choices, margins):
    shares = variance_shares(choices[..., :2])
    close(shares.prior + shares.persona, torch.ones_like(shares.prior))
    b, d = prior(*margins), persona_divergence(*margins)
    expected = b.square() / (b.square() + d.square() / 4)
    torch.testing.assert_close(shares.prior, expected, rtol=1e-3, atol=1e-3)


def test_variance_shares_know_pure_priors_and_pure_personas():
    generator = torch.Generator().manual_seed(2)
    generic = torch.randn(5, 1, 4, generator=generator).expand(5, 7, 4)
    close(variance_shares(generic).prior, torch.ones(5))
    opposed = torch.randn(5, 3, 4, generator=generator)
    close(variance_shares(torch.cat([opposed, -opposed], -2)).persona, torch.ones(5))
    shifted = generic + torch.randn(5, 7, 1, generator=generator)
    close(variance_shares(shifted).prior, torch.ones(5))
    close(centred(shifted), centred(generic))
    assert variance_shares(torch.ones(2, 3)).prior.isnan()
    assert variance_shares(torch.randn(1, 4, generator=generator)).prior == 1


def test_cancellation():
    values = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], [1.0, -2.0, 1.0], [0.0, 0.0, 0.0], [3.0, -1.0, 0.0]])
    close(cancellation(values), torch.tensor([0.0, 0.0, 1.0, 0.0, 0.5]))
    assert cancellation(torch.zeros(0)) == 0
    random = torch.randn(50, 9, generator=torch.Generator().manual_seed(4))
    kappa = cancellation(random)
    assert ((kappa >= 0) & (kappa <= 1)).all()
    close(cancellation(-2 * random), kappa)


def test_the_public_names_are_complete():
    assert set(metrics.__all__) >= {"jensen_shannon", "variance_shares", "prior_dominance", "soft_collapse"}
    assert sorted(metrics.__all__) == metrics.__all__
