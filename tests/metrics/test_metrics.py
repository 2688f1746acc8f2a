import pytest
import torch

from persona_circuits.metrics import METRICS, Targets, kl, logit_diff, persona_divergence, prob_diff


@pytest.fixture
def logits():
    return torch.randn(4, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets(logits):
    answers = torch.tensor([[0, 1], [2, -1], [3, -1], [4, 5]])
    wrong = torch.tensor([[2], [0], [1], [6]])
    return Targets(answers, wrong, logits.roll(1, 0))


@pytest.mark.parametrize("name", METRICS)
def test_one_number_per_prompt_unreduced(name, logits, targets):
    values = METRICS[name](logits, targets)
    assert values.shape == (4,)
    for i in range(4):
        one = Targets(targets.answers[i : i + 1], targets.wrong_answers[i : i + 1], targets.reference[i : i + 1])
        torch.testing.assert_close(METRICS[name](logits[i : i + 1], one)[0], values[i])


def test_padding_does_not_count(logits):
    padded = logit_diff(logits[:1], torch.tensor([[3, -1, -1]]), torch.tensor([[5, -1]]))
    assert padded.item() == pytest.approx((logits[0, 3] - logits[0, 5]).item())
    two = logit_diff(logits[:1], torch.tensor([[3, 4]]), torch.tensor([[5]]))
    assert two.item() == pytest.approx(((logits[0, 3] + logits[0, 4]) / 2 - logits[0, 5]).item())


def test_margin_is_free_of_the_normaliser(logits, targets):
    shifted = METRICS["logit-diff"](logits + 7.0, targets)
    torch.testing.assert_close(shifted, METRICS["logit-diff"](logits, targets))


def test_margin_changes_sign_with_the_answers(logits, targets):
    forward = logit_diff(logits, targets.answers, targets.wrong_answers)
    torch.testing.assert_close(logit_diff(logits, targets.wrong_answers, targets.answers), -forward)


def test_divergence_is_free_of_any_prior_and_antisymmetric():
    under_a, under_b, prior = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    d = persona_divergence(under_a, under_b)
    torch.testing.assert_close(persona_divergence(under_a + prior, under_b + prior), d)
    torch.testing.assert_close(persona_divergence(under_b, under_a), -d)
    torch.testing.assert_close(persona_divergence(-under_b, -under_a), d)
    assert (persona_divergence(under_a, under_a) == 0).all()


def test_probability_difference_is_bounded(logits, targets):
    values = prob_diff(10 * logits, targets.answers, targets.wrong_answers)
    assert (values.abs() <= 1).all()


def test_kl_is_zero_only_at_itself_and_matches_torch(logits):
    other = logits.roll(1, 0)
    torch.testing.assert_close(kl(logits, logits), torch.zeros(4))
    expected = torch.nn.functional.kl_div(
        other.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(kl(logits, other), expected)
    assert (kl(logits, other) > 0).all()


def test_kl_has_no_gradient_at_the_reference(logits, targets):
    here = logits.clone().requires_grad_()
    same = Targets(targets.answers, targets.wrong_answers, logits)
    (gradient,) = torch.autograd.grad(METRICS["kl"](here, same).sum(), here)
    assert gradient.abs().max() < 1e-6
    assert METRICS["kl"].flat_at_clean
