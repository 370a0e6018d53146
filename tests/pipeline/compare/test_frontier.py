"""The optimum is tested against a language model small enough to enumerate."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pytest

from pipeline.compare import best_of_n, frontier
from pipeline.compare.frontier import Array


@dataclass(frozen=True)
class Enumerated:
    """Every completion of a table language model: its probability and its reward, ``(P, Y)``."""

    probabilities: Array
    rewards: Array

    def optimal(self, beta: float) -> Array:
        """π* itself, from its definition."""
        weights = self.probabilities * np.exp(self.rewards / beta)
        return weights / weights.sum(1, keepdims=True)

    def reward(self, policy: Array) -> float:
        return float((policy * self.rewards).sum(1).mean())

    def kl(self, policy: Array) -> float:
        return float((policy * np.log(policy / self.probabilities)).sum(1).mean())

    def objective(self, policy: Array, beta: float) -> float:
        return self.reward(policy) - beta * self.kl(policy)

    def sample(self, count: int, seed: int) -> Array:
        """Rewards of ``count`` samples a prompt, ``(P, count)``."""
        rng = np.random.default_rng(seed)
        rows = [
            rng.choice(r, size=count, p=p)
            for p, r in zip(self.probabilities, self.rewards, strict=True)
        ]
        return np.array(rows, dtype=np.float64)


def enumerate_language_model(prompts: int = 3, seed: int = 0) -> Enumerated:
    """Tokens a, b and EOS; at most 4 tokens; random next-token tables and random rewards."""
    rng = np.random.default_rng(seed)
    eos, longest = 2, 4
    completions = [
        (*body, eos)
        for length in range(longest)
        for body in itertools.product((0, 1), repeat=length)
    ] + list(itertools.product((0, 1), repeat=longest))
    probabilities = np.ones((prompts, len(completions)))
    for prompt in range(prompts):
        tables: dict[tuple[int, ...], Array] = {}
        for y, completion in enumerate(completions):
            for t, token in enumerate(completion):
                table = tables.setdefault(completion[:t], rng.dirichlet(np.ones(3)))
                probabilities[prompt, y] *= table[token]
    rewards = rng.normal(0.5, 2.0, probabilities.shape)
    return Enumerated(probabilities, rewards)


MODEL = enumerate_language_model()
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


def test_sampled_estimates_converge_to_the_enumerated_optimum() -> None:
    # Seeds 0–5: J*, R* and K* within 0.024, the effective sample size within 5 %.
    rewards = MODEL.sample(200_000, seed=0)
    for beta in (0.7, BETA, 4.0):
        best = MODEL.optimal(beta)
        point = frontier.frontier_point(rewards, beta)
        assert float(frontier.optimum(rewards, beta).mean()) == pytest.approx(
            MODEL.objective(best, beta), abs=0.05
        )
        assert point.reward == pytest.approx(MODEL.reward(best), abs=0.05)
        assert point.kl == pytest.approx(MODEL.kl(best), abs=0.05)
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
    assert rows[0].j_star < exact - 0.05  # seeds 0–5: 0.10 to 0.13 low
    assert rows[-1].j_star == float(frontier.optimum(rewards, BETA).mean())
    assert all(1 <= row.ess <= row.n for row in rows)


@pytest.mark.parametrize(
    ("samples", "sizes"), [(2, [2]), (8, [8]), (12, [8, 12]), (32, [8, 16, 32]), (5, [5])]
)
def test_doubling_ends_with_all_samples(samples: int, sizes: list[int]) -> None:
    rewards = MODEL.sample(samples, seed=0)
    assert [row.n for row in frontier.doubling(rewards, BETA)] == sizes


def test_doubling_averages_disjoint_blocks() -> None:
    rewards = MODEL.sample(16, seed=3)
    halves = [frontier.optimum(rewards[:, part], 1.0).mean() for part in (slice(8), slice(8, 16))]
    assert frontier.doubling(rewards, 1.0)[0].j_star == pytest.approx(np.mean(halves))


def test_log_partition_by_hand_and_with_large_rewards() -> None:
    rewards = np.array([[0.0, math.log(3.0)]])
    assert frontier.log_partition(rewards, 1.0)[0] == pytest.approx(math.log(2.0))
    assert frontier.optimal_weights(rewards, 1.0)[0] == pytest.approx([0.25, 0.75])
    assert frontier.log_partition(rewards + 5000.0, 1.0)[0] == pytest.approx(5000 + math.log(2.0))
    assert frontier.effective_sample_size(rewards, 1.0)[0] == pytest.approx(1 / (0.0625 + 0.5625))


def test_the_frontier_is_sorted_monotone_and_capped() -> None:
    rewards = MODEL.sample(64, seed=0)
    points = frontier.frontier(rewards, [5.0, 0.001, 1.0, 1.0, 1e7])
    assert [p.beta for p in points] == [0.001, 1.0, 5.0, 1e7]
    assert all(a.reward > b.reward and a.kl > b.kl for a, b in itertools.pairwise(points))
    assert points[0].kl <= frontier.kl_cap(64) + 1e-9
    assert points[0].reward == pytest.approx(rewards.max(1).mean())
    assert points[-1].kl == pytest.approx(0.0, abs=1e-6)
    # One prompt whose best sample is alone: all the weight on it is exactly log N away.
    alone = frontier.frontier_point(np.arange(64.0)[None], 0.01)
    assert alone.kl == pytest.approx(math.log(64))


def test_kl_efficiency_is_one_on_the_frontier_and_less_inside() -> None:
    rewards = MODEL.sample(64, seed=0)
    for beta in (0.5, 1.0, 3.0):
        point = frontier.frontier_point(rewards, beta)
        assert frontier.least_kl(rewards, point.reward, 0.1) == pytest.approx(point.kl, rel=1e-6)
        assert frontier.kl_efficiency(rewards, point.reward, point.kl * 4, 0.1) == pytest.approx(
            0.25
        )


def test_kl_efficiency_is_none_where_it_is_not_defined() -> None:
    rewards = MODEL.sample(64, seed=0)
    base, top = float(rewards.mean()), frontier.frontier_point(rewards, 0.5).reward
    assert frontier.least_kl(rewards, base, 0.5) == pytest.approx(0.0, abs=1e-6)
    assert frontier.kl_efficiency(rewards, base, 0.0, 0.5) is None
    assert frontier.kl_efficiency(rewards, base - 0.01, 1.0, 0.5) is None
    assert frontier.kl_efficiency(rewards, top + 0.01, 1.0, 0.5) is None
    equal = np.ones((3, 4))
    assert frontier.kl_efficiency(equal, 1.0, 0.0, 0.5) is None


def test_optimality_is_zero_for_the_reference_and_one_for_pi_star() -> None:
    rewards = MODEL.sample(100_000, seed=0)
    base, best = rewards.mean(1), frontier.optimum(rewards, BETA)
    star = MODEL.optimal(BETA)
    kl = (star * np.log(star / MODEL.probabilities)).sum(1)
    objective = (star * MODEL.rewards).sum(1) - BETA * kl
    assert frontier.ratio(base - base, best - base) == 0.0
    # Seeds 0–5 are within 0.005.
    assert frontier.ratio(objective - base, best - base) == pytest.approx(1.0, abs=0.03)


def test_optimality_of_any_other_policy_is_below_one() -> None:
    rewards = MODEL.sample(100_000, seed=1)
    base, best = float(rewards.mean()), float(frontier.optimum(rewards, BETA).mean())
    for beta in (0.3, 5.0):  # optimal, but for another β
        gain = MODEL.objective(MODEL.optimal(beta), BETA) - base
        found = frontier.ratio(np.array([gain]), np.array([best - base]))
        assert found is not None and found < 0.9


def test_there_is_no_optimality_where_nothing_can_be_gained() -> None:
    rewards = np.full((4, 8), 0.3)
    room = frontier.optimum(rewards, 0.7) - rewards.mean(1)
    assert frontier.ratio(np.zeros(4), room) is None
    assert frontier.ratio_interval(np.zeros(4), room, 50, seed=0) is None


def test_the_bootstrap_interval_covers() -> None:
    """A 95 % interval from 40 prompts holds the truth about 95 times in 100."""
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        room = rng.gamma(4.0, 1.0, 40)
        gain = 0.6 * room + rng.normal(0.0, 0.5, 40)
        low, high = frontier.ratio_interval(gain, room, 200, seed=trial) or (0.0, 0.0)
        hits += low <= 0.6 <= high
    assert 170 <= hits <= 199


def test_the_bootstrap_is_deterministic_and_narrows() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.normal(1.0, 1.0, 20), rng.normal(1.0, 1.0, 2000)
    assert frontier.mean_interval(few, 300, seed=5) == frontier.mean_interval(few, 300, seed=5)
    widths = [np.ptp(frontier.mean_interval(v, 300, seed=5) or ()) for v in (few, many)]
    # 1/√P: a tenth; and a normal mean's interval is 2·1.96·σ/√P wide.
    assert widths[1] < widths[0] / 5
    assert widths[1] == pytest.approx(2 * 1.96 / math.sqrt(2000), rel=0.2)
    # The reference's own interval is a point: its luck cancels.
    assert frontier.ratio_interval(np.zeros(20), np.ones(20), 50, seed=0) == (0.0, 0.0)


def test_an_interval_against_one_computed_from_its_definition() -> None:
    """BCa as Efron & Tibshirani (1993, eq. 14.9–14.15) define it, from draws of our own."""
    values = np.random.default_rng(1).exponential(1.0, 30)
    rng = np.random.default_rng(2)
    draws = np.sort(values[rng.integers(30, size=(100_000, 30))].mean(1))
    normal = NormalDist()
    bias = normal.inv_cdf(float((draws < values.mean()).mean()))
    left_out = (values.sum() - values) / 29
    skew = left_out.mean() - left_out
    acceleration = float((skew**3).sum() / (6 * (skew**2).sum() ** 1.5))
    ends = []
    for z in (-1.959964, 1.959964):
        moved = bias + (bias + z) / (1 - acceleration * (bias + z))
        ends.append(float(np.quantile(draws, normal.cdf(moved))))
    found = frontier.mean_interval(values, 20_000, seed=0)
    # The ends of 20,000 draws vary by about 0.004.
    assert found == pytest.approx(ends, abs=0.015)
    plain = np.quantile(draws, [0.025, 0.975])
    assert ends[0] > plain[0] + 0.015 and ends[1] > plain[1] + 0.03, "not the plain percentiles"
    # Where there is the same room for every prompt, the ratio is the mean in another unit.
    assert frontier.ratio_interval(values, np.full(30, 2.0), 20_000, seed=0) == pytest.approx(
        [end / 2 for end in found or ()]
    )


def test_prompts_are_drawn_in_pairs() -> None:
    """A gain that is a fixed share of the room has no luck of its own."""
    room = np.random.default_rng(0).gamma(2.0, 1.0, 25)
    assert frontier.ratio_interval(0.4 * room, room, 200, seed=0) == pytest.approx((0.4, 0.4))


def test_draws_without_room_are_left_out_of_an_interval() -> None:
    room = np.array([0.0, 0.0, 0.0, 1.0])  # 32 % of the draws hold no prompt with room
    low, high = frontier.ratio_interval(np.array([0.1, 0.0, 0.0, 0.5]), room, 200, seed=0) or (
        math.nan,
        math.nan,
    )
    # 0.5 and a tenth for each time that the first prompt comes with it.
    assert low == 0.5 and 0.6 <= high <= 0.8


def test_one_prompt_has_no_interval() -> None:
    assert frontier.mean_interval(np.ones(1), 50, seed=0) is None
    assert frontier.ratio_interval(np.ones(1), np.ones(1), 50, seed=0) is None


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
