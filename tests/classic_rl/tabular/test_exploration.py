"""Exploration rules and schedules: exact probabilities, ties, draws and bad settings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classic_rl.errors import ProblemError
from classic_rl.schedules import Constant, Exponential, Linear, Schedule, as_schedule, checked
from classic_rl.tabular.exploration import UCB, EpsilonGreedy, Follow, Greedy, Softmax

# The middle of each of 10,000 equal stretches of [0, 1): frequencies over them are exact to 1e-4.
EVENLY = (np.arange(10_000) + 0.5) / 10_000

rows = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=5)


def frequencies(explore, row: list[float], step: int = 0) -> np.ndarray:
    """How often each action is chosen when the draws cover [0, 1) evenly."""
    chosen = [explore(row, 0, step, float(u)) for u in EVENLY]
    return np.bincount(chosen, minlength=len(row)) / len(EVENLY)


@given(rows, st.sampled_from([0.0, 0.1, 0.37, 1.0]))
def test_epsilon_greedy_chooses_as_often_as_it_says(row: list[float], epsilon: float) -> None:
    explore = EpsilonGreedy(epsilon)
    probabilities = explore.probabilities(row, 0, 0)
    best = np.array(row) == max(row)
    np.testing.assert_allclose(
        probabilities, epsilon / len(row) + (1 - epsilon) * best / best.sum()
    )
    np.testing.assert_allclose(frequencies(explore, row), probabilities, atol=1e-3)


@given(rows, st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 2**32 - 1))
def test_actions_drawn_ahead_are_those_of_single_calls(
    row: list[float], epsilon: float, seed: int
) -> None:
    explore = EpsilonGreedy(Linear(epsilon, 0.0, 20))
    draws = np.random.default_rng(seed).random(40)
    ahead = explore.random_actions(draws, 5, len(row))
    single = [explore(row, 0, 5 + i, float(u)) for i, u in enumerate(draws)]
    assert all(a in (-1, b) for a, b in zip(ahead, single, strict=True))
    assert ((ahead == -1) == (draws >= explore.epsilon.over(5, 40))).all()


def test_greedy_breaks_ties_evenly() -> None:
    np.testing.assert_allclose(
        frequencies(Greedy(), [1.0, 0.0, 1.0, 1.0]), [1 / 3, 0, 1 / 3, 1 / 3], atol=1e-3
    )


@given(rows, st.sampled_from([0.05, 1.0, 10.0]), st.floats(-1e6, 1e6))
def test_softmax_is_the_boltzmann_distribution(row: list[float], tau: float, shift: float) -> None:
    explore = Softmax(tau)
    expected = np.exp((np.array(row) - max(row)) / tau)
    np.testing.assert_allclose(explore.probabilities(row, 0, 0), expected / expected.sum())
    np.testing.assert_allclose(
        frequencies(explore, row), explore.probabilities(row, 0, 0), atol=1e-3
    )
    # Only differences count, however large the values are.
    shifted = explore.probabilities([q + shift for q in row], 0, 0)
    np.testing.assert_allclose(shifted, expected / expected.sum(), atol=1e-6)


def test_softmax_cooled_to_zero_is_greedy() -> None:
    assert Softmax(Linear(1.0, 0.0, 10)).probabilities([0.0, 3.0, 1.0], 0, 10) == [0.0, 1.0, 0.0]


def test_ucb_tries_everything_then_follows_its_bound() -> None:
    explore = UCB(2.0)
    row = [0.0, 1.0, 0.5]
    assert sorted(explore(row, 7, t, 0.0) for t in range(3)) == [0, 1, 2]
    assert explore(row, 7, 3, 0.0) == 1  # all counts equal: the best value has the best bound
    # Sutton & Barto 2018, equation 2.10, with N(s) = 4 and N(s, 1) = 2.
    bound = [q + 2 * math.sqrt(math.log(4) / n) for q, n in zip(row, (1, 2, 1), strict=True)]
    assert explore.bounds(row, 7) == pytest.approx(bound)
    assert explore.probabilities(row, 7, 4) == [0.0, 0.0, 1.0]
    assert explore.counts == {7: [1, 2, 1]}
    assert explore.probabilities(row, 8, 4) == [1 / 3] * 3  # a state of its own


def test_ucb_finds_the_best_arm() -> None:
    """A bandit of three normal arms: all but a few of 2,000 pulls go to the best one."""
    rng = np.random.default_rng(0)
    explore, means, q = UCB(1.0), [0.0, 0.5, 1.0], [0.0, 0.0, 0.0]
    for t in range(2_000):
        arm = explore(q, 0, t, rng.random())
        q[arm] += (rng.normal(means[arm]) - q[arm]) / explore.counts[0][arm]
    assert explore.counts[0][2] > 1_800
    assert min(explore.counts[0]) >= 5


def test_follow_plays_the_policy() -> None:
    assert Follow(np.array([2, 0]), 2, 3)(None, 0, 0, 0.99) == 2
    policy = np.array([[0.2, 0.0, 0.8], [0.0, 1.0, 0.0]])
    chosen = [Follow(policy, 2, 3)(None, 0, 0, float(u)) for u in EVENLY[::100]]
    assert np.bincount(chosen).tolist() == [20, 0, 80]


@pytest.mark.parametrize(
    "schedule",
    [Linear(0.9, 0.1, 7), Exponential(1.0, 0.05, 30.0), Constant(0.3), Linear(0, 1, 0.5)],
)
def test_schedules_over_many_steps_are_their_single_values(schedule: Schedule) -> None:
    assert schedule.over(3, 50).tolist() == [schedule(step) for step in range(3, 53)]


def test_schedules_at_known_points() -> None:
    linear = Linear(1.0, 0.2, 8)
    assert [linear(s) for s in (0, 4, 8, 100)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    exponential = Exponential(1.0, 0.2, 10.0)
    assert [exponential(s) for s in (0, 10, 1e9)] == pytest.approx([1.0, 0.2 + 0.8 / math.e, 0.2])
    assert as_schedule(0.25)(12) == 0.25
    assert as_schedule(linear) is linear


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EpsilonGreedy(1.1), r"epsilon: 1.1 is outside \[0, 1\]"),
        (lambda: EpsilonGreedy(-0.1), r"epsilon: -0.1 is outside \[0, 1\]"),
        (lambda: EpsilonGreedy(math.nan), "epsilon: nan is outside"),
        (lambda: EpsilonGreedy(Linear(1.0, -0.5, 10)), "epsilon: -0.5 is outside"),
        (lambda: Softmax(0.0), r"temperature: 0.0 is outside \(0, inf\]"),
        (lambda: UCB(-1.0), "UCB: c -1.0 must be"),
        (lambda: Linear(1.0, 0.0, 0), "Linear: steps 0 must be above 0"),
        (lambda: Exponential(1.0, 0.0, -3), "Exponential: decay -3 must be above 0"),
        (lambda: checked("alpha", 0.0, 0, 1, low_open=True), r"alpha: 0.0 is outside \(0, 1\]"),
        (lambda: Follow(np.array([0, 3]), 2, 3), "policy: expected whole numbers from 0 to 2"),
        (lambda: Follow(np.array([0.0, 1.0]), 2, 3), "policy: expected whole numbers"),
        (lambda: Follow(np.zeros((2, 3)), 2, 3), "policy: every row must be a distribution"),
        (lambda: Follow(np.zeros(5, dtype=int), 2, 3), r"policy: shape \(5,\), expected \(2,\)"),
    ],
)
def test_bad_settings_are_one_line(make, message: str) -> None:
    with pytest.raises(ProblemError, match=message) as problem:
        make()
    assert "\n" not in str(problem.value)
