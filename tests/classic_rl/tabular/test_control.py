"""Control: the book's figures, FrozenLake's exact optimum, and the rules all methods share."""

from __future__ import annotations

from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP, from_arrays, from_gymnasium
from classic_rl.schedules import Exponential, Linear
from classic_rl.tabular.control import (
    double_q_learning,
    expected_sarsa,
    monte_carlo_control,
    q_learning,
    sarsa,
)
from classic_rl.tabular.evaluation import finite_horizon_values
from classic_rl.tabular.exploration import UCB, EpsilonGreedy, Softmax
from classic_rl.tabular.planning import value_iteration
from classic_rl.tabular.rollouts import evaluate
from classic_rl.tabular.textbook import MaximisationBias

ALL = [monte_carlo_control, sarsa, expected_sarsa, q_learning, double_q_learning]
SEEDS = range(5)


# --- Cliff walking, Sutton & Barto 2018, example 6.6 ---


def greedy_path(policy: np.ndarray) -> list[tuple[int, int]]:
    """The cells (row, column) of CliffWalking that a policy walks through, the start included."""
    mdp = from_gymnasium("CliffWalking-v1", 1.0)
    s, path = 36, [36]
    while not mdp.terminal[s] and len(path) < 50:
        s = mdp.outcomes(s, int(policy[s]))[0][1]
        path.append(s)
    return [divmod(s, 12) for s in path]


def test_cliff_walking_safe_path_against_cliff_edge() -> None:
    """ε = 0.1, α = 0.5, γ = 1, 500 episodes: SARSA walks round along the top, Q-learning along
    the edge (the optimal 13 steps), yet SARSA earns more while learning: −25 against −50."""
    env = gym.make("CliffWalking-v1")
    options = {"explore": EpsilonGreedy(0.1), "alpha": 0.5, "gamma": 1.0, "episodes": 500}
    safe = [sarsa(env, seed=seed, **options) for seed in SEEDS]
    edge = [q_learning(env, seed=seed, **options) for seed in SEEDS]
    for learned in safe:
        path = greedy_path(learned.policy)
        assert path[-1] == (3, 11)
        assert len(path) - 1 == 17
        assert {column for row, column in path if row == 2} <= {0, 1, 10, 11}
    for learned in edge:
        path = greedy_path(learned.policy)
        assert path == [(3, 0), *[(2, column) for column in range(12)], (3, 11)]
    assert np.mean([run.returns[100:].mean() for run in safe]) == pytest.approx(-27, abs=5)
    assert np.mean([run.returns[100:].mean() for run in edge]) == pytest.approx(-49, abs=6)


def test_expected_sarsa_earns_more_than_sarsa_on_the_cliff() -> None:
    """Sutton & Barto 2018, figure 6.3: expected SARSA is above SARSA, above Q-learning."""
    cliff = from_gymnasium("CliffWalking-v1", 1.0)
    options = {"explore": EpsilonGreedy(0.1), "alpha": 0.5, "episodes": 500}
    earned = [
        np.mean([method(cliff, seed=seed, **options).returns[100:].mean() for seed in range(10)])
        for method in (expected_sarsa, sarsa, q_learning)
    ]
    assert earned[0] > earned[1] + 3 > earned[2] + 15


# --- Maximisation bias, Sutton & Barto 2018, example 6.7 ---


def left_fraction(method) -> np.ndarray:
    """How many of 1,000 runs go left in each of 300 episodes, ``(300,)``; the best is 0.05."""
    epsilon_greedy = EpsilonGreedy(0.1)

    def explore(q_row, state, step, uniform):
        return epsilon_greedy(q_row[:2] if state == 0 else q_row, state, step, uniform)

    env, left = MaximisationBias(), np.zeros(300)
    for seed in range(1_000):
        run = method(env, explore=explore, alpha=0.1, gamma=1.0, episodes=300, seed=seed)
        left += run.lengths == 2
    return left / 1_000


def test_double_q_learning_removes_the_maximisation_bias() -> None:
    """Figure 6.5 (ε = 0.1, α = 0.1, γ = 1): Q-learning first learns to go left far more often than
    right, and is still above the optimal 5 % after 300 episodes; double Q-learning hardly is."""
    single, double = left_fraction(q_learning), left_fraction(double_q_learning)
    assert single[0] == pytest.approx(0.5, abs=0.06)  # ties are broken evenly
    assert double[0] == pytest.approx(0.5, abs=0.06)
    assert single[:60].max() > 0.7
    assert double[10:].max() < 0.5
    assert single[-50:].mean() < 0.3
    assert double[-50:].mean() < 0.12
    assert (single[20:] > double[20:]).all()


# --- FrozenLake ---


def success(mdp: MDP, policy: np.ndarray | None, limit: int) -> float:
    """The exact probability of reaching the goal within the time limit."""
    return float(mdp.start @ finite_horizon_values(mdp.with_gamma(1.0), policy, limit))


@pytest.mark.parametrize(
    ("name", "limit", "gamma", "steps", "alpha", "floor"),
    [
        ("FrozenLake-v1", 100, 0.99, 200_000, 0.2, 0.70),
        ("FrozenLake8x8-v1", 200, 0.999, 1_000_000, 0.5, 0.84),
    ],
)
def test_slippery_frozen_lake(
    name: str, limit: int, gamma: float, steps: int, alpha: float, floor: float
) -> None:
    """On each of five seeds the greedy policy is within 0.01 of the exact success rate of
    value iteration's at the same γ (with γ = 0.99 the best stationary one on 4×4; on 8×8 a search
    over policies finds 0.8936), and above the floor in 1,000 episodes of the real environment
    (three standard errors: 0.04)."""
    mdp = from_gymnasium(name, gamma)
    best = success(mdp, value_iteration(mdp).policy, limit)
    assert best == pytest.approx({100: 0.7402, 200: 0.8857}[limit], abs=1e-4)
    env = gym.make(name)
    assert env.spec and env.spec.max_episode_steps == limit
    for seed in SEEDS:
        learned = q_learning(
            mdp,
            explore=EpsilonGreedy(Linear(1.0, 0.1, steps)),
            alpha=Linear(alpha, 0.001, steps),
            steps=steps,
            max_steps=limit,
            seed=seed,
        )
        assert success(mdp, learned.policy, limit) > best - 0.01
        assert evaluate(env, learned.policy, episodes=1_000, seed=seed).mean() > floor


@pytest.mark.parametrize("size", ["4x4", "8x8"])
def test_deterministic_frozen_lake_is_always_solved(size: str) -> None:
    """Through gymnasium itself; values of 1 at first make the greedy policy try everything."""
    env = gym.make("FrozenLake-v1", map_name=size, is_slippery=False)
    for seed in SEEDS:
        learned = q_learning(
            env, explore=EpsilonGreedy(0.1), alpha=0.5, gamma=0.95, steps=20_000, seed=seed,
            initial=1.0,
        )  # fmt: skip
        assert evaluate(env, learned.policy, episodes=100, seed=seed).mean() == 1.0


# --- What all methods share ---


def ring() -> MDP:
    """Five states in a row: left costs nothing and pays 0.2 at the far left end, right slips and
    pays 1 at the far right end. Going right everywhere is best at γ = 0.95."""
    transitions, rewards = np.zeros((5, 2, 5)), np.zeros((5, 2, 5))
    for s in range(1, 4):
        transitions[s, 0, s - 1] = 1.0
        transitions[s, 1, s + 1], transitions[s, 1, s - 1] = 0.8, 0.2
    rewards[1, :, 0], rewards[3, :, 4] = 0.2, 1.0
    transitions[[0, 4], :, [0, 4]] = 1.0
    return from_arrays(transitions, rewards, 0.95, start=2, terminal=[0, 4])


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize(
    "explore",
    [EpsilonGreedy(Exponential(1.0, 0.05, 2_000.0)), Softmax(Linear(1.0, 0.02, 10_000)), UCB(0.5)],
    ids=["epsilon-greedy", "softmax", "ucb"],
)
def test_every_method_finds_the_optimum_with_every_exploration(method, explore) -> None:
    mdp = ring()
    best = value_iteration(mdp)
    assert best.policy[1:4].tolist() == [1, 1, 1]
    for seed in SEEDS:
        learned = method(mdp, explore=explore, alpha=0.1, steps=20_000, seed=seed)
        assert learned.policy[1:4].tolist() == [1, 1, 1]
        assert learned.action_values.shape == (5, 2)
    assert not getattr(explore, "counts", None)  # training counts on a copy


@pytest.mark.parametrize("method", [q_learning, double_q_learning])
def test_off_policy_values_are_the_optimal_ones(method) -> None:
    """Exploring at random all the time, both still learn Q*."""
    mdp = ring()
    learned = method(
        mdp, explore=EpsilonGreedy(1.0), alpha=Linear(0.3, 0.001, 100_000), steps=100_000, seed=0
    )
    np.testing.assert_allclose(learned.action_values, value_iteration(mdp).action_values, atol=0.02)


class Treadmill(gym.Env):
    """One state and reward 1 a step, for ever or for one step only."""

    observation_space = gym.spaces.Discrete(1)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, ends: bool) -> None:
        self.ends = ends

    def reset(self, *, seed=None, options=None):
        return 0, {}

    def step(self, action):
        return 0, 1.0, self.ends, False, {}


@pytest.mark.parametrize("method", ALL)
def test_truncation_bootstraps_and_termination_does_not(method) -> None:
    """Reward 1 for ever is worth 1 / (1 − γ) = 5, however often the episode is cut short."""
    options = {"explore": EpsilonGreedy(0.5), "alpha": 0.1, "gamma": 0.8, "seed": 0}
    cut = method(TimeLimit(Treadmill(ends=False), 3), episodes=4_000, **options)
    np.testing.assert_allclose(cut.action_values, 5.0, atol=0.05)
    assert (cut.lengths == 3).all() and (cut.returns == 3).all()
    own = method(Treadmill(ends=False), episodes=4_000, max_steps=3, **options)
    np.testing.assert_array_equal(own.action_values, cut.action_values)
    ended = method(Treadmill(ends=True), episodes=4_000, **options)
    np.testing.assert_allclose(ended.action_values, 1.0, atol=0.05)


@pytest.mark.parametrize("method", ALL)
def test_a_terminal_state_is_worth_its_own_reward(method) -> None:
    """Rewards of states (Russell & Norvig): one step from state 0, which pays 1, to a terminal that
    pays 4: Q = 1 + 0.5 · 4, and the episode earned 5."""
    mdp = from_arrays(
        np.array([[[0.0, 1.0]], [[0.0, 1.0]]]), np.array([[1.0], [4.0]]), 0.5, terminal=[1]
    )
    learned = method(mdp, explore=EpsilonGreedy(0.1), alpha=0.5, episodes=200, seed=0)
    np.testing.assert_allclose(learned.action_values, [[3.0], [4.0]])
    assert (learned.returns == 5.0).all()


@pytest.mark.parametrize("method", ALL)
def test_the_same_seed_gives_the_same_run(method) -> None:
    env = gym.make("FrozenLake-v1")
    options = {"explore": EpsilonGreedy(0.5), "alpha": 0.1, "gamma": 0.9, "episodes": 200}
    one, two, other = (method(env, seed=seed, **options) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.action_values, two.action_values)
    np.testing.assert_array_equal(one.lengths, two.lengths)
    assert not np.array_equal(one.lengths, other.lengths)


def test_on_one_action_expected_sarsa_and_sarsa_and_q_learning_are_td() -> None:
    """With a single action there is nothing to choose, and all three targets are one."""
    transitions = np.random.default_rng(0).dirichlet(np.ones(4), size=(4, 1))
    mdp = from_arrays(transitions, np.arange(4.0)[:, None], 0.9, terminal=[3])
    options = {"explore": EpsilonGreedy(0.1), "alpha": 0.1, "episodes": 300, "seed": 0}
    tables = [
        method(mdp, **options).action_values for method in (sarsa, expected_sarsa, q_learning)
    ]
    np.testing.assert_allclose(tables[1], tables[0], rtol=1e-12)
    np.testing.assert_array_equal(tables[2], tables[0])


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, r"alpha: 0.0 is outside \(0, 1\]"),
        ({"alpha": 1.01}, "alpha: 1.01 is outside"),
        ({"alpha": Linear(0.5, -0.1, 10)}, "alpha: -0.1 is outside"),
        ({"steps": 0}, "steps: 0 must be a whole number of at least 1"),
        ({"steps": None, "episodes": 0}, "episodes: 0 must be a whole number of at least 1"),
        ({"episodes": 5}, "give either episodes or steps"),
        ({"gamma": 1.5}, r"gamma: 1.5 is outside \(0, 1\]"),
        ({"max_steps": 0}, "max_steps: 0 must be"),
        ({"seed": -1}, "seed: -1 must be"),
        ({"record": -1}, "record: -1 must be"),
        ({"initial": np.zeros(3)}, r"initial: shape \(3,\), expected a number or \(5, 2\)"),
        ({"initial": np.nan}, "initial: every entry must be finite"),
    ],
)
def test_bad_settings_are_one_line(method, change: dict, message: str) -> None:
    options = {"explore": EpsilonGreedy(0.1), "alpha": 0.1, "steps": 10, "seed": 0, **change}
    with pytest.raises(ProblemError, match=message) as problem:
        method(ring(), **options)
    assert "\n" not in str(problem.value)


def test_expected_sarsa_needs_probabilities() -> None:
    with pytest.raises(ProblemError, match="expected SARSA needs a rule with probabilities"):
        expected_sarsa(ring(), explore=cast(Any, lambda *of: 0), alpha=0.1, steps=10, seed=0)
