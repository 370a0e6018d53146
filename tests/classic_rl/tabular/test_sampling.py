"""Worlds: sampled steps follow the exact model, and every implementation gives the same run."""

from __future__ import annotations

import sys
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from classic_rl import tabular
from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP, from_arrays, from_gymnasium
from classic_rl.schedules import Exponential, Linear
from classic_rl.tabular.batched import q_learning_many
from classic_rl.tabular.control import q_learning
from classic_rl.tabular.evaluation import finite_horizon_values, policy_evaluation
from classic_rl.tabular.experience import Learned
from classic_rl.tabular.exploration import EpsilonGreedy
from classic_rl.tabular.rollouts import evaluate
from classic_rl.tabular.sampling import GymnasiumWorld, Simulator


def random_mdp(seed: int, n_states: int = 6, n_actions: int = 3) -> MDP:
    """A random MDP with random starts, a terminal that pays and a reward for each transition."""
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.full(n_states, 0.4), size=(n_states, n_actions))
    rewards = rng.normal(size=(n_states, n_actions, n_states))
    transitions[-1], rewards[-1] = np.eye(n_states)[-1], 2.0
    start = rng.dirichlet(np.ones(n_states))
    start[-1] = 0.0
    return from_arrays(
        transitions, rewards, 0.9, start=start / start.sum(), terminal=[n_states - 1]
    )


def assert_same(a: Learned, b: Learned) -> None:
    np.testing.assert_array_equal(a.action_values, b.action_values)
    np.testing.assert_array_equal(a.returns, b.returns)
    np.testing.assert_array_equal(a.lengths, b.lengths)
    assert [done for done, _ in a.snapshots] == [done for done, _ in b.snapshots]
    for (_, mine), (_, other) in zip(a.snapshots, b.snapshots, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_sampled_steps_follow_the_exact_model() -> None:
    """Chi-squared over every state and action at once (20,000 draws each)."""
    mdp = random_mdp(0)
    world = Simulator(mdp)
    rng = np.random.default_rng(1)
    statistic, freedom = 0.0, 0
    for s in range(mdp.n_states - 1):
        for a in range(mdp.n_actions):
            outcomes = mdp.outcomes(s, a)
            reward_of = {s2: r for _, s2, r in outcomes}
            counts = np.zeros(mdp.n_states)
            for u in rng.random(20_000):
                s2, r, ended = world.step(s, a, u)
                assert r == reward_of[s2] and ended == mdp.terminal[s2]
                counts[s2] += 1
            expected = np.zeros(mdp.n_states)
            for p, s2, _ in outcomes:
                expected[s2] = p * 20_000
            likely = expected > 5
            statistic += ((counts - expected)[likely] ** 2 / expected[likely]).sum()
            freedom += likely.sum() - 1
    assert stats.chi2.sf(statistic, freedom) > 1e-3
    starts = np.bincount(world.starts(rng.random(20_000)), minlength=mdp.n_states)
    assert stats.chisquare(starts[:-1], mdp.start[:-1] * 20_000).pvalue > 1e-3


def test_termination_leads_to_the_extra_state_and_truncation_does_not() -> None:
    world = GymnasiumWorld(TimeLimit(gym.make("CliffWalking-v1"), 2), seed=0)
    assert world.terminal_values == {48: 0.0}
    s = world.start(0.5)
    assert (s, world.step(s, 0, 0.5)) == (36, (24, -1, False))
    assert world.step(24, 0, 0.5) == (12, -1, True)  # truncated: an ordinary state
    world = GymnasiumWorld(gym.make("CliffWalking-v1"), seed=0)
    s = world.start(0.5)
    for action in [0] + [1] * 11:
        s, _, ended = world.step(s, action, 0.5)
        assert not ended
    assert world.step(s, 2, 0.5) == (48, -1, True)


cases = given(
    seed=st.integers(0, 10_000),
    epsilon=st.sampled_from([0.0, 0.2, 1.0, Linear(1.0, 0.0, 2_000), Exponential(1.0, 0.1, 500.0)]),
    options=st.fixed_dictionaries(
        {
            "alpha": st.just(Linear(0.5, 0.01, 2_000)),
            "steps": st.just(2_300),
            "initial": st.sampled_from([0.0, 3.0]),
            "max_steps": st.sampled_from([3, 10_000]),
            "record": st.sampled_from([0, 700]),
        }
    ),
)


def plain_run(seed: int, epsilon, options: dict[str, Any]) -> Learned:
    """The loop of every explorer: a function is not an EpsilonGreedy."""
    explore = EpsilonGreedy(epsilon)
    return q_learning(random_mdp(seed), explore=lambda *of: explore(*of), seed=seed, **options)


@settings(max_examples=20, deadline=None)
@cases
def test_tight_and_batched_loops_equal_the_plain_one(seed: int, epsilon, options) -> None:
    """Bit for bit: the table, every episode and every snapshot."""
    plain, explore = plain_run(seed, epsilon, options), EpsilonGreedy(epsilon)
    assert_same(plain, q_learning(random_mdp(seed), explore=explore, seed=seed, **options))
    batch = q_learning_many(random_mdp(seed), explore=explore, seeds=[seed + 1, seed], **options)
    assert_same(plain, batch[1])


@settings(max_examples=20, deadline=None)
@cases
def test_the_compiled_loop_equals_the_plain_one(seed: int, epsilon, options) -> None:
    pytest.importorskip("numba", reason="the compiled loop needs numba")
    compiled = q_learning(
        random_mdp(seed), explore=EpsilonGreedy(epsilon), seed=seed, compiled=True, **options
    )
    assert_same(plain_run(seed, epsilon, options), compiled)


def test_counting_by_episodes_is_the_same_in_both_loops() -> None:
    explore = EpsilonGreedy(0.3)
    options = {"alpha": 0.2, "episodes": 900, "record": 100, "seed": 4}
    plain = q_learning(random_mdp(3), explore=lambda *of: explore(*of), **options)
    assert len(plain.returns) == 900
    assert [done for done, _ in plain.snapshots] == list(range(0, 901, 100))
    np.testing.assert_array_equal(plain.snapshots[-1][1], plain.action_values)
    assert_same(plain, q_learning(random_mdp(3), explore=explore, **options))


@pytest.mark.parametrize("explore", [EpsilonGreedy(0.1), lambda *of: EpsilonGreedy(0.1)(*of)])
def test_an_environment_and_its_table_give_the_same_run(explore) -> None:
    """CliffWalking draws nothing itself, so learning on either must be bit for bit the same."""
    options = {"explore": explore, "alpha": 0.5, "episodes": 60, "seed": 1, "max_steps": 300}
    env = q_learning(gym.make("CliffWalking-v1"), gamma=0.9, **options)
    table = q_learning(from_gymnasium("CliffWalking-v1", 0.9), **options)
    assert_same(env, table)


def test_evaluation_agrees_with_the_exact_value() -> None:
    mdp = random_mdp(5)
    rng = np.random.default_rng(0)
    for policy in (rng.integers(3, size=6), rng.dirichlet(np.ones(3), size=6)):
        exact = mdp.start @ policy_evaluation(mdp, policy)
        returns = evaluate(mdp, policy, episodes=4_000, seed=0, gamma=0.9)
        assert abs(returns.mean() - exact) < 4 * returns.std() / np.sqrt(len(returns))


def test_evaluation_in_gymnasium_agrees_with_the_table_and_its_time_limit() -> None:
    mdp = from_gymnasium("FrozenLake-v1", 1.0)
    policy = np.array([0, 3, 3, 3, 0, 0, 0, 0, 3, 1, 0, 0, 0, 2, 1, 0])  # optimal for γ = 0.99
    exact = float(mdp.start @ finite_horizon_values(mdp, policy, 100))
    assert exact == pytest.approx(0.7402, abs=1e-4)
    for env in (gym.make("FrozenLake-v1"), mdp):
        returns = evaluate(env, policy, episodes=3_000, seed=1, max_steps=100)
        assert abs(returns.mean() - exact) < 4 * np.sqrt(exact * (1 - exact) / 3_000)


def test_progress_is_reported_to_the_end() -> None:
    for counted in ({"steps": 5_000}, {"episodes": 70}):
        seen: list[tuple[int, int]] = []
        options: dict[str, Any] = {"alpha": 0.1, "seed": 0, **counted}
        options["on_progress"] = lambda *at, seen=seen: seen.append(at)
        q_learning(random_mdp(0), explore=EpsilonGreedy(0.1), **options)
        (total,) = counted.values()
        assert seen[-1] == (total, total)
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})


class Pair(gym.Env):
    """Two numbers as an observation, as in Blackjack."""

    observation_space = gym.spaces.MultiDiscrete([3, 3])
    action_space = gym.spaces.Discrete(2)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            lambda: gym.make("CartPole-v1"),
            "CartPole-v1: tabular methods need Discrete observations",
        ),
        (lambda: gym.make("MountainCarContinuous-v0"), "need Discrete observations"),
        (Pair, "Pair: tabular methods need Discrete observations counted from 0"),
        (lambda: "FrozenLake-v1", "env: 'FrozenLake-v1' is neither a gymnasium environment nor"),
    ],
)
def test_other_spaces_are_refused(env, message: str) -> None:
    with pytest.raises(ProblemError, match=message) as problem:
        q_learning(env(), explore=EpsilonGreedy(0.1), alpha=0.1, gamma=0.9, steps=10, seed=0)
    assert "\n" not in str(problem.value)


def test_continuous_actions_are_refused() -> None:
    env = gym.make("FrozenLake-v1").unwrapped
    env.action_space = gym.spaces.Box(-1, 1)
    with pytest.raises(ProblemError, match="need Discrete actions"):
        GymnasiumWorld(env, seed=0)


def test_an_episode_cannot_start_at_its_end() -> None:
    mdp = from_arrays(np.ones((1, 1, 1)), np.zeros((1, 1)), 0.9, terminal=[0])
    with pytest.raises(ProblemError, match="cannot start in a terminal state"):
        Simulator(mdp)


def test_many_seeds_refuse_what_they_cannot_do() -> None:
    options = {"alpha": 0.1, "steps": 10}
    greedy = EpsilonGreedy(0.1)
    with pytest.raises(ProblemError, match="need an MDP"):
        q_learning_many(cast(Any, gym.make("FrozenLake-v1")), seeds=[0], explore=greedy, **options)
    with pytest.raises(ProblemError, match="seeds: give at least one"):
        q_learning_many(random_mdp(0), seeds=[], explore=greedy, **options)


def test_compiled_refuses_what_it_cannot_do() -> None:
    pytest.importorskip("numba", reason="the compiled loop needs numba")
    options: dict[str, Any] = {"alpha": 0.1, "seed": 0, "compiled": True, "gamma": 0.9}
    with pytest.raises(ProblemError, match="compiled: needs an MDP"):
        q_learning(gym.make("FrozenLake-v1"), explore=EpsilonGreedy(0.1), steps=10, **options)
    with pytest.raises(ProblemError, match="compiled: needs steps"):
        q_learning(random_mdp(0), explore=EpsilonGreedy(0.1), episodes=10, **options)


def test_missing_numba_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delattr(tabular, "compiled_learning", raising=False)
    monkeypatch.delitem(sys.modules, "classic_rl.tabular.compiled_learning", raising=False)
    with pytest.raises(ProblemError, match="compiled=True needs numba: pip install numba"):
        q_learning(
            random_mdp(0), explore=EpsilonGreedy(0.1), alpha=0.1, seed=0, steps=10, compiled=True
        )
