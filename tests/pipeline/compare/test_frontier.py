"""The optimum, the frontier and KL efficiency against a language model that is enumerated."""

from __future__ import annotations

import itertools
from dataclasses import asdict

import numpy as np
import pytest

from pipeline.compare import best_of_n, frontier
from pipeline.compare.estimates import Samples, corrected, effective_sample_size, plain
from pipeline.compare.frontier import PolicySamples
from pipeline.compare.intervals import ratio
from pipeline.compare.trust import DISAGREE, FEW_PROMPTS, FEW_SAMPLES, UNSETTLED
from tests.pipeline.compare.enumerated import enumerate_language_model

MODEL = enumerate_language_model(prompts=40)
BETA = 1.3


def test_the_enumeration_is_a_distribution_and_pi_star_its_best_policy() -> None:
    np.testing.assert_allclose(MODEL.probabilities.sum(1), 1.0)
    best = MODEL.optimal(BETA)
    j_star = MODEL.objective(best, BETA)
    log_z = np.log((MODEL.probabilities * np.exp(MODEL.rewards / BETA)).sum(1))
    assert j_star == pytest.approx(BETA * log_z.mean())
    rng = np.random.default_rng(1)
    for size in (0.01, 0.3):
        other = best * np.exp(size * rng.normal(size=best.shape))
        assert MODEL.objective(other / other.sum(1, keepdims=True), BETA) < j_star


def test_estimates_converge_to_the_enumerated_optimum() -> None:
    # Seeds 0–4: all three within 0.02, the effective sample size within 3 %.
    rewards = MODEL.sample(20_000, seed=0)
    for beta in (0.7, BETA, 4.0):
        best = MODEL.optimal(beta)
        found = frontier.optimum(rewards, beta)
        point = found.point()
        assert point.trusted and found.found.objective.trusted
        for ours, exact in (
            (float(found.by_prompt.mean()), MODEL.objective(best, beta)),
            (point.reward, MODEL.reward(best)),
            (point.kl, MODEL.kl(best)),
        ):
            assert ours == pytest.approx(exact, abs=0.05)
        # Effective sample size: N / E_ref[(π*/π_ref)²].
        second = (best**2 / MODEL.probabilities).sum(1)
        assert point.ess / rewards.shape[1] == pytest.approx(float((1 / second).mean()), rel=0.1)


def test_few_samples_bias_the_optimum_low_and_doubling_shows_it() -> None:
    rewards = MODEL.sample(4096, seed=0)
    rows = frontier.doubling(rewards, BETA)
    assert [row.n for row in rows] == [2**k for k in range(3, 13)]
    exact = MODEL.objective(MODEL.optimal(BETA), BETA)
    # Merging two blocks can only raise the mean of their logs (Jensen).
    assert all(a.j_star <= b.j_star for a, b in itertools.pairwise(rows))
    assert rows[0].j_star < exact - 0.05  # seeds 0–4: 0.19 low
    assert abs(rows[0].corrected - exact) < 0.3 * (exact - rows[0].j_star)
    alone = Samples.of_reference(rewards)
    assert rows[-1].j_star == float(plain(alone, BETA).objective.mean())
    assert rows[-1].corrected == float(corrected(alone, BETA).objective.mean())
    assert all(1 <= row.ess <= row.n for row in rows)


@pytest.mark.parametrize(
    ("samples", "sizes"), [(2, [2]), (8, [8]), (12, [8, 12]), (32, [8, 16, 32]), (5, [5])]
)
def test_doubling_ends_with_all_samples(samples: int, sizes: list[int]) -> None:
    rewards = MODEL.sample(samples, seed=0)
    assert [row.n for row in frontier.doubling(rewards, BETA)] == sizes


def test_doubling_averages_disjoint_blocks() -> None:
    rewards = MODEL.sample(16, seed=3)
    halves = [
        plain(Samples.of_reference(rewards[:, part]), 1.0).objective.mean()
        for part in (slice(8), slice(8, 16))
    ]
    assert frontier.doubling(rewards, 1.0)[0].j_star == pytest.approx(np.mean(halves))


def test_the_frontier_is_sorted_and_says_what_cannot_be_trusted() -> None:
    rewards = MODEL.sample(64, seed=0)
    points = frontier.frontier(rewards, [5.0, 0.01, 1.0, 1.0, 2.0])
    assert [p.beta for p in points] == [0.01, 1.0, 2.0, 5.0]
    known = [p for p in points if p.trusted]
    assert len(known) >= 2 and points[-1] in known
    assert all(a.reward > b.reward and a.kl > b.kl for a, b in itertools.pairwise(known))
    for point in known:
        assert point.untrusted_because is None and point.refined_with is None
        for value, ends in ((point.reward, point.reward_ci), (point.kl, point.kl_ci)):
            assert ends is not None and ends[0] < value < ends[1]
        assert point.reward_2 is not None and point.kl_2 is not None
    assert not points[0].trusted and points[0].untrusted_because in (UNSETTLED, DISAGREE)
    # A reward that no sample has is no estimate.
    assert points[0].reward_2 is None or points[0].reward_2 <= rewards.max()
    assert points[0].ess == pytest.approx(
        effective_sample_size(Samples.of_reference(rewards), 0.01).mean()
    )


def test_few_prompts_and_few_samples_are_never_trusted() -> None:
    few = frontier.frontier(MODEL.sample(64, seed=0)[:29], [5.0])[0]
    assert (few.trusted, few.untrusted_because) == (False, FEW_PROMPTS)
    assert few.reward_ci is not None
    short = frontier.frontier(MODEL.sample(3, seed=0), [5.0])[0]
    assert (short.trusted, short.untrusted_because, short.reward_2) == (False, FEW_SAMPLES, None)
    one = frontier.frontier(np.arange(64.0)[None], [0.01])[0]
    assert not one.trusted and one.reward_ci is None


def test_equal_rewards_are_an_exact_frontier() -> None:
    point = frontier.frontier(np.full((40, 8), 0.3), [0.5])[0]
    assert point.trusted and point.reward == pytest.approx(0.3) and point.kl < 1e-9
    assert point.reward_ci == pytest.approx((0.3, 0.3))


def test_the_plain_kl_is_capped_by_log_n() -> None:
    alone = Samples.of_reference(np.arange(64.0)[None])
    assert float(plain(alone, 0.01).kl[0]) == pytest.approx(frontier.kl_cap(64))


def test_kl_efficiency_is_one_on_the_frontier_and_less_inside() -> None:
    points = frontier.curve(MODEL.sample(64, seed=0), [2.0, 5.0])
    assert all(best.point().trusted for best in points)
    for best in points:
        point = best.point()
        assert frontier.least_kl(points, point.reward) == pytest.approx(point.kl, rel=1e-6)
        found = frontier.kl_efficiency(points, point.reward, point.kl * 4)
        assert found == pytest.approx(0.25)
    # Of π* itself at a β between the points.
    best = MODEL.optimal(3.0)
    found = frontier.kl_efficiency(points, MODEL.reward(best), MODEL.kl(best))
    assert found == pytest.approx(1.0, abs=0.15)  # seeds 0–4: 0.93 to 1.04


def test_kl_efficiency_is_none_where_it_is_not_defined() -> None:
    rewards = MODEL.sample(64, seed=0)
    points = frontier.curve(rewards, [2.0, 5.0])
    base, top = float(rewards.mean()), points[0].point()
    assert frontier.least_kl(points, base) == pytest.approx(0.0, abs=1e-6)
    assert frontier.kl_efficiency(points, base, 0.0) is None
    assert frontier.kl_efficiency(points, base - 0.01, 1.0) is None
    assert frontier.kl_efficiency(points, top.reward + 0.01, 1.0) is None
    # Beyond the last trusted point there is a floor, and only there.
    assert frontier.kl_efficiency_at_least(points, top.reward + 0.01, 2.0) == top.kl / 2.0
    assert frontier.kl_efficiency_at_least(points, top.reward - 0.01, 2.0) is None
    assert frontier.kl_efficiency_at_least(points, top.reward + 0.01, 0.0) is None


def test_nothing_rests_on_a_point_that_is_not_trusted() -> None:
    rewards = MODEL.sample(64, seed=0)
    points = frontier.curve(rewards, [0.01, 2.0, 5.0])
    reach = frontier.reach(points)
    assert reach is not None and reach.beta == 2.0
    beyond = points[0].point().reward
    assert frontier.kl_efficiency(points, beyond, 9.0) is None
    assert frontier.kl_efficiency_at_least(points, beyond, 9.0) == points[1].point().kl / 9.0
    none = frontier.curve(rewards[:20], [2.0, 5.0])
    assert frontier.reach(none) is None and frontier.least_kl(none, float(rewards.mean())) is None
    assert frontier.kl_efficiency_at_least(none, beyond, 9.0) is None


def trained(beta: float, seed: int, ours: int, theirs: int) -> tuple[PolicySamples, np.ndarray]:
    """π* of ``beta`` as a policy, and π_ref's rewards; both from one enumeration."""
    policy = MODEL.optimal(beta)
    logratio = np.log(policy) - np.log(MODEL.probabilities)
    own, reference = (
        MODEL.draw(chances, count, seed + i)
        for i, (chances, count) in enumerate(((policy, ours), (MODEL.probabilities, theirs)))
    )
    rewards, ratios = (
        [np.take_along_axis(table, index, 1) for index in (own, reference)]
        for table in (MODEL.rewards, logratio)
    )
    return PolicySamples("ppo", rewards[0], *ratios), rewards[1]


def test_a_policy_extends_the_frontier_where_the_reference_fails() -> None:
    policy, rewards = trained(0.3, seed=0, ours=16, theirs=32)
    beta = 0.25
    alone, refined = (frontier.optimum(rewards, beta, each) for each in ((), (policy,)))
    assert not alone.found.objective.trusted and alone.refined_with is None
    assert refined.found.objective.trusted and refined.refined_with == "ppo"
    exact = MODEL.objective(MODEL.optimal(beta), beta)
    error = [abs(float(best.by_prompt.mean()) - exact) for best in (alone, refined)]
    assert error[1] < error[0] / 10  # seeds 0–4: below 0.007 in place of 0.5 to 0.8
    row = asdict(frontier.frontier(rewards, [beta], (policy,))[0])
    assert row["trusted"] and row["refined_with"] == "ppo"
    # Where π_ref's samples are enough, the yardstick knows nothing of what is measured with it.
    assert frontier.frontier(rewards, [5.0], (policy,)) == frontier.frontier(rewards, [5.0])


def test_optimality_is_zero_for_the_reference_and_one_for_pi_star() -> None:
    rewards = MODEL.sample(20_000, seed=0)
    base, best = rewards.mean(1), frontier.optimum(rewards, BETA).by_prompt
    star = MODEL.optimal(BETA)
    kl = (star * np.log(star / MODEL.probabilities)).sum(1)
    objective = (star * MODEL.rewards).sum(1) - BETA * kl
    assert ratio(base - base, best - base) == 0.0
    # Seeds 0–4 are within 0.005.
    assert ratio(objective - base, best - base) == pytest.approx(1.0, abs=0.03)


def test_optimality_of_any_other_policy_is_below_one() -> None:
    rewards = MODEL.sample(20_000, seed=1)
    base, best = float(rewards.mean()), float(frontier.optimum(rewards, BETA).by_prompt.mean())
    for beta in (0.3, 5.0):  # optimal, but for another β
        gain = MODEL.objective(MODEL.optimal(beta), BETA) - base
        found = ratio(np.array([gain]), np.array([best - base]))
        assert found is not None and found < 0.9


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_against_every_subset(n: int) -> None:
    rng = np.random.default_rng(n)
    rewards = rng.integers(0, 4, (3, 5)).astype(float)  # ties are likely
    other = rng.normal(size=(3, 5))
    weights = best_of_n.weights(rewards, n)
    np.testing.assert_allclose(weights.sum(1), 1.0)
    for row, values, weight in zip(rewards, other, weights, strict=True):
        expected_reward, expected_other = [], []
        for subset in itertools.combinations(range(5), n):
            top = max(row[i] for i in subset)
            expected_reward.append(top)
            # A fair coin between the tied best.
            expected_other.append(np.mean([values[i] for i in subset if row[i] == top]))
        assert weight @ row == pytest.approx(np.mean(expected_reward))
        if len(set(row)) == len(row) or n in (1, 5):
            assert weight @ values == pytest.approx(np.mean(expected_other))


def test_tied_samples_share_their_chances() -> None:
    weights = best_of_n.weights(np.array([[1.0, 2.0, 2.0, 0.0]]), 2)
    # Of six pairs the 2s win five; the 1 wins one, against the 0.
    np.testing.assert_allclose(weights, [[1 / 6, 5 / 12, 5 / 12, 0.0]])


def test_best_of_n_needs_n_samples() -> None:
    with pytest.raises(ValueError, match="best of 9"):
        best_of_n.weights(np.zeros((2, 8)), 9)


def test_the_kl_bound_of_best_of_n_holds_and_is_met_by_many_completions() -> None:
    n = 4
    assert best_of_n.kl_bound(1) == 0.0
    for completions, slack in ((5, 1.0), (4000, 0.002)):
        # Equally likely completions, all rewards different: best-of-n in closed form.
        rank = np.arange(1, completions + 1) / completions
        chance = rank**n - (rank - 1 / completions) ** n
        exact = float((chance * np.log(chance * completions)).sum())
        assert exact <= best_of_n.kl_bound(n) <= exact + slack


def test_the_floor_is_below_the_frontier_on_average_however_few_the_samples() -> None:
    """E min_β [Ĵ(β) + β·K] ≤ min_β [J*(β) + β·K]: Ĵ is low by Jensen; docs/frontier.md."""
    betas = np.geomspace(0.05, 30.0, 60)
    kls = np.array([0.05, 0.2, 0.5, 1.0, 1.5])
    truth = [MODEL.objective(MODEL.optimal(beta), beta) for beta in betas]
    exact = (np.array(truth)[:, None] + betas[:, None] * kls).min(axis=0)
    for samples in (2, 4, 16):
        found = []
        for seed in range(40):
            drawn = Samples.of_reference(MODEL.sample(samples, seed))
            estimates = np.array([plain(drawn, beta).objective.mean() for beta in betas])
            found.append((estimates[:, None] + betas[:, None] * kls).min(axis=0))
        mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(40)
        assert (mean <= exact + 2 * error).all(), (samples, mean - exact)
    assert (mean < exact - 2 * error)[-1]


def test_the_plain_points_are_the_floor() -> None:
    """min_β' [Ĵ(β') + β'·K̂(β)] lies at β' = β and is R̂(β)."""
    samples = Samples.of_reference(MODEL.sample(6, seed=0))
    betas = np.geomspace(0.05, 30.0, 400)
    estimates = np.array([plain(samples, beta).objective.mean() for beta in betas])
    before = (0.0, float(samples.rewards.mean()))
    for beta in (4.0, BETA, 0.4):
        kl, reward = frontier.floor(samples, beta)
        assert reward == pytest.approx(float((estimates + betas * kl).min()), abs=1e-3)
        assert kl > before[0] and reward > before[1]
        before = kl, reward
    point = frontier.frontier(samples.rewards, [BETA])[0]
    assert (point.floor_kl, point.floor_reward) == frontier.floor(samples, BETA)
    assert point.floor_reward - BETA * point.floor_kl == pytest.approx(
        float(plain(samples, BETA).objective.mean())
    )
