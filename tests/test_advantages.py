"""Identities that advantage estimation must satisfy (Schulman et al. 2016)."""

from __future__ import annotations

import pytest
import torch

from classic_rl.advantages import (
    completion_gae,
    masked_mean,
    masked_whiten,
    mean_and_variance,
    moments,
)


@pytest.fixture
def rollout() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(3, 5, generator=generator)
    values = torch.randn(3, 5, generator=generator)
    mask = torch.arange(5)[None] < torch.tensor([5, 3, 1])[:, None]
    return rewards, values, mask


def test_gae_at_lambda_one_is_return_minus_value(rollout) -> None:
    rewards, values, mask = rollout
    gamma = 0.9
    advantages, returns = completion_gae(rewards, values, mask, gamma, lam=1.0)
    for row, length in enumerate((5, 3, 1)):
        for t in range(length):
            expected = sum(gamma ** (k - t) * rewards[row, k] for k in range(t, length))
            assert returns[row, t] == pytest.approx(float(expected), abs=1e-5)
            assert advantages[row, t] == pytest.approx(float(expected - values[row, t]), abs=1e-5)


def test_gae_at_lambda_zero_is_the_td_error(rollout) -> None:
    rewards, values, mask = rollout
    advantages, _ = completion_gae(rewards, values, mask, gamma=0.9, lam=0.0)
    for row, length in enumerate((5, 3, 1)):
        for t in range(length):
            following = values[row, t + 1] if t + 1 < length else 0.0
            delta = rewards[row, t] + 0.9 * following - values[row, t]
            assert advantages[row, t] == pytest.approx(float(delta), abs=1e-6)


def test_nothing_behind_the_mask_reaches_a_result(rollout) -> None:
    rewards, values, mask = rollout
    expected = completion_gae(rewards, values, mask)
    spoiled = completion_gae(
        torch.where(mask, rewards, torch.nan), torch.where(mask, values, torch.nan), mask
    )
    for ours, theirs in zip(expected, spoiled, strict=True):
        assert torch.equal(ours, theirs)
        assert not ours[~mask].any()


def test_masked_mean_is_over_masked_tokens_only() -> None:
    values = torch.tensor([[1.0, 2.0, torch.nan], [6.0, torch.inf, 0.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(values, mask) == pytest.approx(3.0)
    assert masked_mean(values, torch.zeros_like(mask)) == 0.0


def test_moments_of_parts_add_up_to_the_whole(rollout) -> None:
    values, _, mask = rollout
    parts = moments(values[:1], mask[:1]) + moments(values[1:], mask[1:])
    mean, variance = mean_and_variance(parts)
    assert mean == pytest.approx(float(values[mask].mean()), abs=1e-6)
    assert variance == pytest.approx(float(values[mask].var(unbiased=False)), abs=1e-6)
    whitened = masked_whiten(values, mask, mean.float(), variance.float())
    assert whitened[mask].mean() == pytest.approx(0.0, abs=1e-5)
    assert whitened[mask].std(unbiased=False) == pytest.approx(1.0, abs=1e-3)
    assert not whitened[~mask].any()
