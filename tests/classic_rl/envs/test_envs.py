"""What holds for every environment of classic_rl: gymnasium's own check, drawing, the exact P."""

from __future__ import annotations

import importlib
import warnings
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scipy import stats

import classic_rl.envs
from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP, from_gymnasium

IDS = [
    "classic_rl/GridWorld3x4-v0",
    "classic_rl/GridWorld4x4-v0",
    "classic_rl/TokenMDP-v0",
    "classic_rl/TrafficLight-v0",
]

WITHOUT_PICTURES = ["classic_rl/Recommender-v0", "classic_rl/Bidding-v0"]


@pytest.mark.parametrize("env_id", [*IDS, *WITHOUT_PICTURES])
def test_gymnasium_finds_nothing_wrong(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id).unwrapped)


@pytest.mark.parametrize("env_id", IDS)
def test_the_picture_shows_the_state(env_id: str) -> None:
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    assert isinstance(first, np.ndarray) and first.dtype == np.uint8
    height, width, colours = first.shape
    assert height >= 150 and width >= 150 and colours == 3
    again = env.render()
    np.testing.assert_array_equal(first, again)
    for _ in range(10):
        if env.step(2)[2]:
            break
    assert not np.array_equal(first, np.asarray(env.render()))


def test_rendering_without_a_mode_says_what_to_do() -> None:
    env = gym.make(IDS[0]).unwrapped
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


@pytest.mark.parametrize(
    "make",
    [
        lambda mode: classic_rl.envs.GridWorld(render_mode=mode),
        lambda mode: classic_rl.envs.TokenMDP(2, 2, lambda y: 0.0, render_mode=mode),
        lambda mode: classic_rl.envs.TrafficLight(render_mode=mode),
    ],
)
def test_unknown_render_mode(make) -> None:
    with pytest.raises(ProblemError, match="'human' is unknown: use one of ansi, rgb_array"):
        make("human")


@pytest.mark.parametrize("env_id", IDS)
def test_unknown_action(env_id: str) -> None:
    env = gym.make(env_id).unwrapped
    env.reset(seed=0)
    for action in (-1, 4):
        with pytest.raises(ProblemError, match="not among 0 to 3"):
            env.step(action)


def test_reloading_registers_nothing_twice() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(classic_rl.envs)
    assert all(env_id in gym.registry for env_id in IDS)


@pytest.mark.parametrize("env_id", IDS[:3])
def test_an_ended_episode_asks_for_reset(env_id: str) -> None:
    env = gym.make(env_id).unwrapped
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    env.action_space.seed(0)
    while not env.step(env.action_space.sample())[2]:
        pass
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


def sampled(env: gym.Env, steps: int, seed: int) -> tuple[Counter, Counter]:
    """Counts of (state, action, next state, reward) and of the first states, actions uniform."""
    env.action_space.seed(seed)
    state, _ = env.reset(seed=seed)
    transitions, firsts = Counter(), Counter([int(state)])
    for _ in range(steps):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        transitions[int(state), int(action), int(following), float(reward)] += 1
        state = following
        if terminated or truncated:
            state, _ = env.reset()
            firsts[int(state)] += 1
    return transitions, firsts


def chi_squared_p(observed: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """p-value of all the multinomials together; statistics and degrees of freedom add up."""
    statistic, freedom = 0.0, 0
    for seen, odds in zip(observed, expected, strict=True):
        wanted = odds * seen.sum()
        if wanted.min() >= 5:  # the usual rule for the chi-squared approximation
            statistic += float(((seen - wanted) ** 2 / wanted).sum())
            freedom += len(odds) - 1
    assert freedom > 0
    return float(stats.chi2.sf(statistic, freedom))


def assert_matches(transitions: Counter, firsts: Counter, mdp: MDP) -> None:
    observed, expected = [], []
    unseen = dict(transitions)
    for state in range(mdp.n_states):
        for action in range(mdp.n_actions):
            outcomes = mdp.outcomes(state, action)
            seen = np.array([unseen.pop((state, action, s, r), 0) for _, s, r in outcomes])
            if len(outcomes) > 1 and seen.sum() > 0:
                observed.append(seen)
                expected.append(np.array([p for p, _, _ in outcomes]))
    assert not unseen, f"transitions that the MDP does not have: {unseen}"
    if (mdp.start > 0).sum() > 1:
        possible = np.flatnonzero(mdp.start)
        observed.append(np.array([firsts[int(s)] for s in possible]))
        expected.append(mdp.start[possible])
    assert set(firsts) <= set(np.flatnonzero(mdp.start))
    if observed:
        # A true model is refused once in 10,000 seeds; a slip wrong by 0.05 gives below 1e-20.
        assert chi_squared_p(observed, expected) > 1e-4


def starts_anywhere() -> gym.Env:
    """Three starts, and terminals of other names."""
    layout = ["S.A", ".#S", "SB."]
    return classic_rl.envs.GridWorld(layout, slip=0.3, rewards={"A": 5.0, "B": -2.0})


MODELLED = {
    "3x4": lambda: classic_rl.envs.GridWorld("3x4", slip=0.2, step_reward=-0.04),
    "4x4": lambda: classic_rl.envs.GridWorld("4x4", slip=0.5, step_reward=-0.01),
    "several starts": starts_anywhere,
    "tokens": lambda: gym.make(IDS[2]),
    "frozen lake": lambda: gym.make("FrozenLake-v1"),
    "cliff": lambda: gym.make("CliffWalking-v1"),
}


@pytest.mark.parametrize("name", MODELLED)
def test_sampled_transitions_match_the_exact_model(name: str) -> None:
    env = MODELLED[name]()
    assert_matches(*sampled(env, steps=20_000, seed=1), from_gymnasium(env, 0.9))


def test_the_chi_squared_test_notices_a_slip_wrong_by_a_twentieth() -> None:
    env = classic_rl.envs.GridWorld("3x4", slip=0.25)
    other = classic_rl.envs.GridWorld("3x4", slip=0.2)
    with pytest.raises(AssertionError):
        assert_matches(*sampled(env, steps=20_000, seed=1), other.mdp(0.9))
