"""Both estimates against their definitions, by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.compare.estimates import (
    Array,
    Samples,
    corrected,
    covariance,
    effective_sample_size,
    plain,
    shares,
)
from pipeline.compare.trust import judged_optimum
from tests.pipeline.compare.enumerated import enumerate_language_model

RNG = np.random.default_rng(0)
REWARDS = RNG.normal(0.0, 2.0, (5, 16))
TWO = Samples(REWARDS, 0.3 * RNG.normal(size=REWARDS.shape), (10, 6))


def test_plain_estimates_by_hand_and_with_large_rewards() -> None:
    rewards = np.array([[0.0, math.log(3.0)]])
    for shift in (0.0, 5000.0):
        samples = Samples.of_reference(rewards + shift)
        found = plain(samples, 1.0)
        assert found.objective[0] == pytest.approx(shift + math.log(2.0))
        assert found.reward[0] == pytest.approx(shift + 0.75 * math.log(3.0))
        assert found.kl[0] == pytest.approx(0.75 * math.log(3.0) - math.log(2.0))
        assert shares(samples, 1.0)[0] == pytest.approx([0.25, 0.75])
        assert effective_sample_size(samples, 1.0)[0] == pytest.approx(1 / (0.0625 + 0.5625))


def without(samples: Samples, left_out: int | None, beta: float) -> tuple[Array, Array]:
    """log Z and R* from the weighted means, without one column; each part keeps its share."""
    mean, gain, start = np.zeros(5), np.zeros(5), 0
    top = samples.log_weights(beta).max()
    weights = np.exp(samples.log_weights(beta) - top)
    for size in samples.parts:
        kept = [i for i in range(start, start + size) if i != left_out]
        share = size / sum(samples.parts)
        mean = mean + share * weights[:, kept].mean(axis=1)
        gain = gain + share * (weights * samples.rewards)[:, kept].mean(axis=1)
        start += size
    return top + np.log(mean), gain / mean


@pytest.mark.parametrize("samples", [Samples.of_reference(REWARDS), TWO], ids=["one", "two"])
@pytest.mark.parametrize("beta", [0.3, 1.0, 5.0])
def test_the_correction_is_a_jackknife_within_parts(samples: Samples, beta: float) -> None:
    log_z, reward = without(samples, None, beta)
    start = 0
    expected = [log_z.copy(), reward.copy()]
    for size in samples.parts:
        each = [without(samples, i, beta) for i in range(start, start + size)]
        for k, whole in enumerate((log_z, reward)):
            expected[k] -= (size - 1) * (np.mean([one[k] for one in each], axis=0) - whole)
        start += size
    found = corrected(samples, beta)
    np.testing.assert_allclose(found.objective, beta * expected[0])
    np.testing.assert_allclose(found.reward, expected[1])
    np.testing.assert_allclose(found.kl, expected[1] / beta - expected[0], atol=1e-12)


def test_one_sample_of_all_the_weight_is_corrected_without_rounding() -> None:
    """At β → 0 the jackknife of a maximum: r₁ + (n − 1)/n·(r₁ − r₂) (Quenouille 1956)."""
    found = corrected(Samples.of_reference(np.array([[0.0, 1.0, 5.0, 9.0]])), 0.01)
    assert found.reward[0] == pytest.approx(9.0 + 3 / 4 * 4.0)


def test_the_covariance_form_by_its_definition() -> None:
    """Cov of reward and exp(r/β) on one half over the mean exp(r/β) of the other."""
    beta = 1.5
    halves = (REWARDS[:, :8], REWARDS[:, 8:])
    expected = np.zeros(5)
    for ours, theirs in (halves, halves[::-1]):
        for i in range(5):
            both = np.cov(ours[i], np.exp(ours[i] / beta))[0, 1]
            expected[i] += (ours[i].mean() + both / np.exp(theirs[i] / beta).mean()) / 2
    found = covariance(Samples.of_reference(REWARDS), beta)
    np.testing.assert_allclose(found.reward, expected)
    np.testing.assert_allclose(found.objective, found.reward - beta * found.kl)


def test_the_same_half_twice_is_the_plain_estimate_but_for_bessels_correction() -> None:
    """So the path integral of R is log Z: the rule's error is below a thousandth."""
    half = REWARDS[:, :8]
    twice = Samples.of_reference(np.hstack([half, half]))
    for beta in (1.0, 3.0):
        first, second = plain(twice, beta), covariance(twice, beta)
        base = half.mean(axis=1)
        np.testing.assert_allclose(second.reward - base, (first.reward - base) * 8 / 7)
        np.testing.assert_allclose(
            second.objective - base, (first.objective - base) * 8 / 7, atol=1e-3
        )


def test_the_two_estimates_are_biased_to_either_side_of_the_truth() -> None:
    model = enumerate_language_model(prompts=200)
    beta = 1.0
    exact = model.reward(model.optimal(beta))
    samples = Samples.of_reference(model.sample(16, seed=0))
    low, middle, high = (
        float(estimate(samples, beta).reward.mean()) for estimate in (plain, corrected, covariance)
    )
    # Seeds 0–4: −0.61 to −0.42, −0.22 to +0.10, and above +6.
    assert low < exact - 0.2 and high > exact + 1.0 and abs(middle - exact) < exact - low


def test_a_mixture_of_itself_is_the_reference() -> None:
    split = Samples(REWARDS, np.zeros_like(REWARDS), (10, 6))
    np.testing.assert_allclose(
        plain(split, 1.0).objective, plain(Samples.of_reference(REWARDS), 1.0).objective
    )


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="two samples"):
        corrected(Samples.of_reference(REWARDS[:, :1]), 1.0)
    with pytest.raises(ValueError, match="four samples"):
        covariance(Samples.of_reference(REWARDS[:, :3]), 1.0)


@pytest.mark.filterwarnings("error")
def test_rewards_far_apart_have_no_second_estimate_and_warn_of_nothing() -> None:
    rewards = 1e30 * np.random.default_rng(0).normal(size=(40, 16))
    found = judged_optimum(Samples.of_reference(rewards), 1.0)
    for judged in (found.reward, found.kl, found.objective):
        assert judged.second is None and not judged.trusted and np.isfinite(judged.value)
