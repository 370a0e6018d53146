"""PPO's losses against hand-computed values and against what the estimators estimate."""

from __future__ import annotations

import math

import pytest
import torch

from classic_rl.losses import (
    clip_active,
    clipped_surrogate,
    explained_variance,
    kl_estimate,
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
