"""PPO's losses against hand-computed values and against what the estimators estimate."""

from __future__ import annotations

import math

import pytest
import torch

from classic_rl.losses import (
    categorical_entropy,
    clip_active,
    clipped_surrogate,
    explained_variance,
    gaussian_entropy,
    kl_estimate,
    policy_gradient,
    value_loss,
)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.4, True),  # a good action may gain no more than 1 + ε
        (0.5, 2.0, -1.0, False),
        (1.5, -2.0, 3.0, False),  # a bad action made likelier is paid for in full
        (0.5, -2.0, 1.6, True),
    ],
)
def test_clipped_surrogate(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)
    advantages = torch.tensor([advantage])
    value = clipped_surrogate(log_ratio, advantages, 0.2)
    assert value.item() == pytest.approx(loss, abs=1e-6)
    assert clip_active(log_ratio, advantages, 0.2).item() is clipped
    value.sum().backward()
    expected = 0.0 if clipped else -advantage * ratio
    assert log_ratio.grad is not None
    assert log_ratio.grad.item() == pytest.approx(expected, abs=1e-6)


def test_value_loss_takes_the_larger_of_clipped_and_plain() -> None:
    values, old = torch.tensor([3.0, 1.1]), torch.tensor([1.0, 1.0])
    returns = torch.tensor([4.0, 0.0])
    plain = value_loss(values, returns, old, None)
    clipped = value_loss(values, returns, old, 0.5)
    assert plain.tolist() == pytest.approx([0.5, 0.605])
    assert clipped.tolist() == pytest.approx([0.5 * 2.5**2, 0.605])


def test_kl_estimators_against_the_exact_kl() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3])
    exact = float((p * (p / q).log()).sum())
    expected = {k: float((p * kl_estimate(p.log(), q.log(), k)).sum()) for k in ("k1", "k2", "k3")}
    assert expected["k1"] == pytest.approx(exact, abs=1e-6)
    assert expected["k3"] == pytest.approx(exact, abs=1e-6)
    assert expected["k2"] != pytest.approx(exact, abs=1e-3)  # biased, by design
    assert (kl_estimate(p.log(), q.log(), "k3") >= 0).all()


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((3,), 7.0), returns) == pytest.approx(0.0)
    assert explained_variance(returns, torch.ones(3)) == 0.0


def test_dual_clip_bounds_the_loss_of_bad_actions_only() -> None:
    """Ye et al. 2020, equation 5: at most -c A where A < 0."""
    log_ratio = torch.tensor([math.log(8.0)] * 2)
    advantages = torch.tensor([-2.0, 2.0])
    assert clipped_surrogate(log_ratio, advantages, 0.2).tolist() == pytest.approx([16.0, -2.4])
    dual = clipped_surrogate(log_ratio, advantages, 0.2, dual_clip=3.0)
    assert dual.tolist() == pytest.approx([6.0, -2.4])


def test_surrogate_at_ratio_one_has_the_policy_gradient() -> None:
    """And both are the finite differences of E[A] under a softmax policy, taken exactly."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def expected_advantage(at: torch.Tensor) -> float:
        return float(torch.softmax(at.detach(), -1) @ advantages)

    probabilities = torch.softmax(logits, -1).detach()
    logps = torch.log_softmax(logits, -1)
    (simple,) = torch.autograd.grad(
        probabilities @ policy_gradient(logps, advantages), logits, retain_graph=True
    )
    log_ratio = logps - logps.detach()
    (surrogate,) = torch.autograd.grad(
        probabilities @ clipped_surrogate(log_ratio, advantages, 0.2), logits
    )
    step = 1e-6
    for i in range(3):
        shift = step * torch.eye(3, dtype=torch.float64)[i]
        slope = expected_advantage(logits + shift) - expected_advantage(logits - shift)
        assert -simple[i].item() == pytest.approx(slope / (2 * step), abs=1e-8)
        assert -surrogate[i].item() == pytest.approx(slope / (2 * step), abs=1e-8)


def test_entropies_against_torch_distributions() -> None:
    logits = torch.tensor([[0.3, -0.2, 0.5], [5.0, 0.0, -torch.inf]])
    log_probs = torch.log_softmax(logits, -1)
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(categorical_entropy(log_probs), expected)
    log_std = torch.tensor([[0.0, -1.0], [2.0, 0.5]])
    normal = torch.distributions.Normal(torch.zeros(2, 2), log_std.exp())
    torch.testing.assert_close(gaussian_entropy(log_std), normal.entropy().sum(-1))
