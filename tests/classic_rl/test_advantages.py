"""Identities that advantage estimation must satisfy (Schulman et al. 2016)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from classic_rl.advantages import (
    completion_gae,
    discounted_returns,
    gae,
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


def test_a_row_that_was_cut_off_goes_on_with_the_value_beyond() -> None:
    """By hand, γ = 0.5, λ = 0.5: row 0 is cut off where V is 8, row 1 ended after one token."""
    rewards = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    values = torch.tensor([[4.0, 6.0], [1.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    beyond = torch.tensor([8.0, 0.0])
    advantages, returns = completion_gae(rewards, values, mask, 0.5, 0.5, beyond)
    # δ₁ = 2 + 0.5·8 − 6 = 0, δ₀ = 1 + 0.5·6 − 4 = 0; row 1: δ₀ = 3 − 1 = 2.
    assert advantages.tolist() == [[0.0, 0.0], [2.0, 0.0]]
    assert returns.tolist() == [[4.0, 6.0], [3.0, 0.0]]
    beyond[0] = 12.0  # δ₁ = 2, of which a quarter reaches the first token
    advantages, _ = completion_gae(rewards, values, mask, 0.5, 0.5, beyond)
    assert advantages.tolist() == [[0.5, 2.0], [2.0, 0.0]]
    plain = completion_gae(rewards, values, mask, 0.5, 0.5)
    for ours, theirs in zip(
        completion_gae(rewards, values, mask, 0.5, 0.5, torch.zeros(2)), plain, strict=True
    ):
        assert torch.equal(ours, theirs)


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


# Time-major rollouts of environments: T = 7 steps of N = 3. Column 0 terminates at step 2 and is
# truncated at step 5, column 1 is truncated at step 3, column 2 runs on.
TERMINATED = torch.zeros(7, 3, dtype=torch.bool)
TERMINATED[2, 0] = True
TRUNCATED = torch.zeros(7, 3, dtype=torch.bool)
TRUNCATED[5, 0] = TRUNCATED[3, 1] = True
ENDED = TERMINATED | TRUNCATED


def environment_rollout() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    rewards, values, next_values = torch.randn(3, 7, 3, generator=generator, dtype=torch.float64)
    return rewards, values, next_values


def by_hand(rewards, values, next_values, gamma: float, lam: float) -> torch.Tensor:
    """GAE as its definition has it: for each step, the sum of (γλ)^l δ to the episode's end."""
    advantages = torch.zeros_like(rewards)
    for column in range(rewards.shape[1]):
        for start in range(len(rewards)):
            weight = 1.0
            for t in range(start, len(rewards)):
                future = 0.0 if TERMINATED[t, column] else next_values[t, column]
                delta = rewards[t, column] + gamma * future - values[t, column]
                advantages[start, column] += weight * delta
                if ENDED[t, column]:
                    break
                weight *= gamma * lam
    return advantages


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_gae_of_environments_is_its_definition(lam: float) -> None:
    rollout = environment_rollout()
    advantages, returns = gae(
        *rollout, terminated=TERMINATED, ended=ENDED, gamma=0.9, lam=lam, time_dim=0
    )
    torch.testing.assert_close(advantages, by_hand(*rollout, gamma=0.9, lam=lam))
    torch.testing.assert_close(returns, advantages + rollout[1])


def test_gae_of_environments_at_lambda_one_is_return_minus_value() -> None:
    """For values that agree with one another: V(s') of a step is V(s) of the next row."""
    rewards, values, next_values = environment_rollout()
    next_values[:-1] = torch.where(ENDED[:-1], next_values[:-1], values[1:])
    advantages, _ = gae(
        rewards, values, next_values, terminated=TERMINATED, ended=ENDED, gamma=0.9, lam=1.0,
        time_dim=0,
    )  # fmt: skip
    cut = TRUNCATED.clone()
    cut[-1] = ~ENDED[-1]
    bootstrap = torch.where(cut, next_values, 0.0)
    returns = discounted_returns(rewards, ENDED, 0.9, bootstrap, time_dim=0)
    torch.testing.assert_close(advantages, returns - values)


def test_truncation_bootstraps_and_termination_does_not() -> None:
    rewards, values, next_values = environment_rollout()
    settings = {"terminated": TERMINATED, "ended": ENDED, "time_dim": 0, "gamma": 0.9, "lam": 0.5}
    before, _ = gae(rewards, values, next_values, **settings)
    changed, _ = gae(rewards, values, next_values + ENDED, **settings)
    difference = changed - before
    # One more behind the truncation is γ more at it, and fades by γλ before it ...
    assert difference[5, 0] == pytest.approx(0.9)
    assert difference[4, 0] == pytest.approx(0.9 * 0.45)
    assert difference[3, 1] == pytest.approx(0.9)
    # ... and stops at the episode's beginning; behind a termination there is nothing.
    assert not difference[:3, 0].any() and not difference[:, 2].any()


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.floats(0, 1), st.floats(0.1, 1))
@settings(max_examples=60, deadline=None)
def test_gae_with_a_mask_is_gae_of_the_unpadded_rows(lengths, lam: float, gamma: float) -> None:
    """Episodes laid into one row with gaps between them, against each alone."""
    generator = torch.Generator().manual_seed(sum(lengths))
    parts = [torch.randn(3, n, generator=generator, dtype=torch.float64) for n in lengths]
    gap = torch.full((3, 2), torch.nan, dtype=torch.float64)
    row = torch.cat([piece for part in parts for piece in (part, gap)], dim=1)
    real = torch.cat([torch.arange(n + 2) < n for n in lengths])
    ends = torch.cat([torch.arange(n + 2) == n - 1 for n in lengths])
    terminated = ends & (torch.arange(len(ends)) % 2 == 0)  # some end for good, some are cut off
    ours, _ = gae(
        *row.nan_to_num(7.0), terminated=terminated, ended=ends, mask=real, gamma=gamma, lam=lam
    )
    alone = [
        gae(*part, terminated=t[:n], ended=e[:n], gamma=gamma, lam=lam)[0]
        for part, n, t, e in zip(
            parts,
            lengths,
            terminated.split([n + 2 for n in lengths]),
            ends.split([n + 2 for n in lengths]),
            strict=True,
        )
    ]
    torch.testing.assert_close(ours[real], torch.cat(alone))
    assert not ours[~real].any()
