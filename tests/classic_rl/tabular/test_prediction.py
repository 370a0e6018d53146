"""Prediction: the book's random walk, identities between the methods, and exact values."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP, from_arrays
from classic_rl.tabular.evaluation import policy_evaluation
from classic_rl.tabular.prediction import (
    Prediction,
    monte_carlo_prediction,
    n_step_td,
    td0,
    td_lambda,
)
from classic_rl.tabular.textbook import random_walk

STAY = np.zeros(7, dtype=int)


def small_mdp(seed: int) -> tuple[MDP, np.ndarray]:
    """A random MDP whose terminal state pays 1.5, and a stochastic policy for it."""
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.ones(5), size=(5, 2))
    rewards = rng.normal(size=(5, 2, 5))
    transitions[-1], rewards[-1] = np.eye(5)[-1], 1.5
    mdp = from_arrays(transitions, rewards, 0.9, terminal=[4])
    return mdp, rng.dirichlet(np.ones(2), size=5)


def errors(method, alpha: float) -> np.ndarray:
    """Root mean square error after 0 to 100 episodes, averaged over 100 runs: ``(101,)``."""
    truth = np.arange(1, 6) / 6
    curves = []
    for seed in range(100):
        run = method(
            random_walk(5), STAY, alpha=alpha, episodes=100, seed=seed, initial=0.5, record=1
        )
        values = np.array([values[1:6] for _, values in run.snapshots])
        curves.append(np.sqrt(((values - truth) ** 2).mean(axis=1)))
    return np.mean(curves, axis=0)


def test_random_walk_error_curves() -> None:
    """Sutton & Barto 2018, example 6.2, right figure: TD lies below Monte Carlo for the α's shown.

    Heights read from the figure: both begin at 0.236 (exact: values of 1/2); TD with α = 0.05 ends
    near 0.03, with 0.15 near 0.07; Monte Carlo with α = 0.01 is near 0.13, with 0.03 near 0.06.
    """
    td = {alpha: errors(td0, alpha) for alpha in (0.05, 0.1, 0.15)}
    mc = {alpha: errors(monte_carlo_prediction, alpha) for alpha in (0.01, 0.02, 0.03, 0.04)}
    for curve in (*td.values(), *mc.values()):
        assert curve[0] == pytest.approx(np.sqrt(np.mean((np.arange(1, 6) / 6 - 0.5) ** 2)))
    assert td[0.05][100] == pytest.approx(0.035, abs=0.01)
    assert td[0.15][100] == pytest.approx(0.075, abs=0.01)
    assert mc[0.01][100] == pytest.approx(0.13, abs=0.015)
    assert mc[0.03][100] == pytest.approx(0.065, abs=0.015)
    # TD's lowest error is below Monte Carlo's, and each TD curve passes below all of Monte Carlo's.
    lowest = min(curve.min() for curve in mc.values())
    assert all(curve.min() < lowest for curve in td.values())
    assert all((td[0.05][50:] < curve[50:]).all() for curve in mc.values())


def test_random_walk_values() -> None:
    """Sutton & Barto 2018, example 6.2: the true values are 1/6 to 5/6."""
    walk = random_walk(5)
    truth = np.array([0, 1, 2, 3, 4, 5, 0]) / 6
    np.testing.assert_allclose(policy_evaluation(walk, STAY), truth, atol=1e-9)
    average = monte_carlo_prediction(walk, STAY, episodes=20_000, seed=0)
    np.testing.assert_allclose(average.values, truth, atol=0.02)


@pytest.mark.parametrize(
    ("method", "extra"),
    [
        (monte_carlo_prediction, {}),
        (monte_carlo_prediction, {"alpha": 0.002}),
        (td0, {"alpha": 0.005}),
        (n_step_td, {"n": 3, "alpha": 0.005}),
        (td_lambda, {"lam": 0.8, "alpha": 0.003}),
    ],
)
def test_every_method_finds_the_exact_values(method, extra: dict) -> None:
    mdp, policy = small_mdp(1)
    run = method(mdp, policy, episodes=15_000, seed=0, **extra)
    np.testing.assert_allclose(run.values, policy_evaluation(mdp, policy), atol=0.15)
    assert run.values[4] == 1.5


def predict(method, **extra) -> Prediction:
    mdp, policy = small_mdp(2)
    return method(mdp, policy, episodes=200, seed=3, record=20, initial=0.3, max_steps=6, **extra)


def test_one_step_and_lambda_zero_are_td0() -> None:
    plain = predict(td0, alpha=0.1)
    np.testing.assert_array_equal(plain.values, predict(n_step_td, n=1, alpha=0.1).values)
    np.testing.assert_allclose(plain.values, predict(td_lambda, lam=0.0, alpha=0.1).values, 1e-12)
    assert [done for done, _ in plain.snapshots] == list(range(0, 201, 20))


def test_long_n_is_every_visit_monte_carlo() -> None:
    """Without repeated states in an episode the first visit is every visit."""
    line = from_arrays(
        np.eye(6)[[[1], [2], [3], [4], [5], [5]]], np.arange(6.0)[:, None], 0.9, terminal=[5]
    )
    policy = np.zeros(6, dtype=int)
    options = {"alpha": 0.3, "episodes": 7, "seed": 0}
    monte_carlo = monte_carlo_prediction(line, policy, **options)
    # The targets of n-step TD beyond the end are the whole return.
    np.testing.assert_allclose(n_step_td(line, policy, n=99, **options).values, monte_carlo.values)


def test_traces_add_up_to_the_lambda_return() -> None:
    """Sutton & Barto 2018, sections 12.1 and 12.2: while the values stand still (here α is tiny),
    TD(λ) adds up to α Σ_t [G_t^λ − V(S_t)]."""
    lam, alpha, gamma = 0.7, 1e-7, 0.9
    rewards = [1.0, -2.0, 0.5, 3.0]
    states = [0, 1, 0, 2, 3]  # state 0 is met twice
    first = np.array([0.4, -0.3, 0.8, 0.0])

    class Script(gym.Env):
        observation_space = gym.spaces.Discrete(4)
        action_space = gym.spaces.Discrete(1)

        def reset(self, *, seed=None, options=None):
            self.t = 0
            return states[0], {}

        def step(self, action):
            self.t += 1
            return states[self.t], rewards[self.t - 1], self.t == 4, False, {}

    policy = np.zeros(4, dtype=int)
    run = td_lambda(
        Script(), policy, lam=lam, alpha=alpha, gamma=gamma, episodes=1, seed=0, initial=first
    )
    expected = np.zeros(4)
    G = 0.0
    for t in reversed(range(4)):
        # G_t^λ = R + γ [(1 − λ) V(S') + λ G_{t+1}^λ]   (12.2, written recursively)
        following = 0.0 if t == 3 else (1 - lam) * first[states[t + 1]] + lam * G
        G = rewards[t] + gamma * following
        expected[states[t]] += G - first[states[t]]
    np.testing.assert_allclose((run.values - first) / alpha, expected, atol=1e-5)


METHODS = [
    (monte_carlo_prediction, {"alpha": 0.05}),
    (td0, {"alpha": 0.05}),
    (n_step_td, {"n": 4, "alpha": 0.05}),
    (td_lambda, {"lam": 0.9, "alpha": 0.05}),
]


class Treadmill(gym.Env):
    """One state, reward 1 a step; it never ends by itself unless told to after `ends` steps."""

    observation_space = gym.spaces.Discrete(1)
    action_space = gym.spaces.Discrete(1)

    def __init__(self, ends: float = np.inf) -> None:
        self.ends = ends

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return 0, {}

    def step(self, action):
        self.t += 1
        return 0, 1.0, self.t >= self.ends, False, {}


@pytest.mark.parametrize(("method", "extra"), METHODS)
def test_truncation_bootstraps_and_termination_does_not(method, extra: dict) -> None:
    """Reward 1 for ever is worth 1 / (1 − γ) = 5, however often the episode is cut short."""
    policy = np.zeros(1, dtype=int)
    options = {"gamma": 0.8, "episodes": 2_000, "seed": 0, **extra}
    cut = method(TimeLimit(Treadmill(), 3), policy, **options)
    assert cut.values[0] == pytest.approx(5.0, abs=1e-3)
    own = method(Treadmill(), policy, max_steps=3, **options)
    assert own.values[0] == cut.values[0]
    ended = method(Treadmill(ends=1), policy, **options)
    assert ended.values[0] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: predict(td0, alpha=0.0), r"alpha: 0.0 is outside \(0, 1\]"),
        (lambda: predict(td0, alpha=1.5), "alpha: 1.5 is outside"),
        (lambda: predict(n_step_td, n=0, alpha=0.1), "n: 0 must be a whole number of at least 1"),
        (lambda: predict(n_step_td, n=2.5, alpha=0.1), "n: 2.5 must be a whole number"),
        (lambda: predict(td_lambda, lam=1.2, alpha=0.1), r"lam: 1.2 is outside \[0, 1\]"),
        (lambda: td0(random_walk(5), STAY, alpha=0.1, episodes=0, seed=0), "episodes: 0 must be"),
        (lambda: td0(random_walk(5), STAY[:3], alpha=0.1, episodes=1, seed=0), "policy: shape"),
        (lambda: td0(random_walk(5), STAY, alpha=0.1, seed=0), "give either episodes or steps"),
        (lambda: td0(Treadmill(), STAY[:1], alpha=0.1, seed=0, episodes=1), "gamma: a gymnasium"),
    ],
)
def test_bad_settings_are_one_line(call, message: str) -> None:
    with pytest.raises(ProblemError, match=message) as problem:
        call()
    assert "\n" not in str(problem.value)
