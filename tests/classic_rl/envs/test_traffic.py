"""TrafficLight: what the crossing can never do, what it pays, and the controllers."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from classic_rl.envs import FixedCycle, LongestQueue, TrafficLight
from classic_rl.envs.traffic import BOTH, EAST_WEST, KEEP, NORTH_SOUTH
from classic_rl.errors import ProblemError

actions = st.lists(st.integers(0, 3), min_size=1, max_size=80)
# Short requests held for long, so that lights do change.
held = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12)), min_size=1, max_size=15)


@given(held, st.integers(1, 6), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_the_physics_holds_whatever_is_asked(holds, min_green, yellow, seed) -> None:
    env = TrafficLight(min_green=min_green, yellow=yellow)
    env.reset(seed=seed)
    lights, conflicts, departed = [], 0, 0
    for action in (action for action, times in holds for _ in range(times)):
        before = env.queues
        observation, reward, terminated, truncated, info = env.step(action)
        conflicts += action == BOTH
        north, east, south, west = env.greens
        # Conflicting greens never; an axis has its light in common.
        assert not (north or south) or not (east or west)
        assert north == south and east == west
        lights.append("N" if north else "E" if east else "y")
        # Vehicles are neither lost nor made, and only cross on green, one an approach.
        assert info["queue"] == sum(env.queues) == info["arrived"] - info["departed"]
        assert 0 <= info["departed"] - departed <= sum(env.greens)
        departed = info["departed"]
        for green, old, new in zip(env.greens, before, env.queues, strict=True):
            assert new >= old - green
        assert reward == pytest.approx(-info["queue"] * 2 / 60 - (action == BOTH))
        assert info["conflicts"] == conflicts
        assert observation in env.observation_space
        assert not terminated and not truncated
    phases = re.findall(r"N+|E+|y+", "".join(lights))
    for phase, following in zip(phases, phases[1:], strict=False):
        # All but the last phase are complete.
        if phase[0] == "y":
            assert len(phase) == yellow
        else:
            assert len(phase) >= min_green and following[0] == "y"
    greens = [phase[0] for phase in phases if phase[0] != "y"]
    assert greens == [("N", "E")[k % 2] for k in range(len(greens))]
    assert info["switches"] == sum(phase[0] == "y" for phase in phases)


@given(actions, st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_asking_for_both_costs_and_changes_nothing(asked, seed) -> None:
    """A twin that asks for nothing instead sees the same and is paid the penalty more."""
    env, twin = TrafficLight(conflict_penalty=2.5), TrafficLight(conflict_penalty=2.5)
    env.reset(seed=seed)
    twin.reset(seed=seed)
    for action in asked:
        seen, reward, *_ = env.step(action)
        other, twin_reward, *_ = twin.step(KEEP if action == BOTH else action)
        np.testing.assert_array_equal(seen, other)
        assert reward == pytest.approx(twin_reward - 2.5 * (action == BOTH))


def test_one_seed_one_trajectory() -> None:
    def trajectory(env: TrafficLight, seed: int) -> np.ndarray:
        first, _ = env.reset(seed=seed)
        steps = (env.step(1 + (k // 15) % 2) for k in range(600))
        return np.array([first] + [observation for observation, *_ in steps])

    env = TrafficLight()
    first = trajectory(env, 7)
    np.testing.assert_array_equal(first, trajectory(env, 7))
    np.testing.assert_array_equal(first, trajectory(TrafficLight(), 7))
    assert not np.array_equal(first, trajectory(env, 8))


def test_the_observation_by_hand() -> None:
    """No arrivals but in the east, one step at a time, from the documented scales."""
    env = TrafficLight(rates=(0, 5, 0, 0), swing=0, min_green=2, yellow=2)
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation, [0] * 8 + [1, 0, 0, 0])
    for elapsed, yellow, axis in ((1, 0, 0), (2, 0, 0), (1, 1, 0), (2, 1, 0), (1, 0, 1)):
        observation, _, _, _, info = env.step(EAST_WEST)
        assert observation[1] == pytest.approx(min(info["queue"] / 40, 1))
        assert observation[11] == pytest.approx(elapsed / 60)
        assert list(observation[8:11]) == [axis == 0, axis == 1, yellow]
    assert info["departed"] == 1
    # The first vehicle to come has gone; the longest waiting came in the first step as well.
    assert observation[5] == pytest.approx(5 / 60)


def test_a_vehicle_that_meets_green_does_not_wait() -> None:
    env = TrafficLight(rates=(0.02, 0, 0.02, 0), swing=0)
    env.reset(seed=0)
    for _ in range(300):
        _, reward, _, _, info = env.step(KEEP)
    assert info["arrived"] == info["departed"] > 5
    assert reward == 0


def test_arrivals_are_poisson_at_the_stated_rates() -> None:
    """Chi-squared over 20,000 steps of an approach; refused once in 10,000 seeds if true."""
    env = TrafficLight(rates=(0.7, 0, 0, 0), swing=0)
    env.reset(seed=2)
    steps, arrived, counts = 20_000, 0, np.zeros(5)
    for _ in range(steps):
        info = env.step(KEEP)[4]
        counts[min(info["arrived"] - arrived, 4)] += 1
        arrived = info["arrived"]
    odds = stats.poisson.pmf(range(4), 0.7)
    expected = np.append(odds, 1 - odds.sum()) * steps
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert stats.chi2.sf(statistic, 4) > 1e-4


def test_the_rush_changes_sides() -> None:
    """Over a period each approach has its mean rate; the axes swing against one another."""
    env = TrafficLight()
    env.reset(seed=0)
    rates = env.rates_at(np.arange(env.period))
    np.testing.assert_allclose(rates.mean(axis=0), env.rates, atol=1e-12)
    np.testing.assert_allclose(rates.max(axis=0), 1.6 * env.rates, rtol=1e-3)
    relative = rates / env.rates - 1
    np.testing.assert_allclose(relative[:, 0], -relative[:, 1], atol=1e-12)
    np.testing.assert_allclose(relative[:, :2], relative[:, 2:], atol=1e-12)


def test_the_fixed_cycle_keeps_its_time() -> None:
    env = TrafficLight(yellow=3)
    observation, _ = env.reset(seed=0)
    lights = ""
    for _ in range(100):
        observation, *_ = env.step(FixedCycle(green=10)(observation))
        lights += "N" if env.greens[0] else "E" if env.greens[1] else "y"
    assert lights == ((("N" * 10 + "yyy") + ("E" * 10 + "yyy")) * 4)[:100]


def test_the_longest_queue_is_asked_for() -> None:
    observation = np.zeros(12, dtype=np.float32)
    assert LongestQueue()(observation) == KEEP
    observation[2] = 0.1
    assert LongestQueue()(observation) == NORTH_SOUTH
    observation[3] = 0.2
    assert LongestQueue()(observation) == EAST_WEST


def serve_until_empty(observation: np.ndarray) -> int:
    """Changes only when nobody waits on the axis that has green."""
    axis = 0 if observation[8] else 1
    own, other = observation[axis:4:2].sum(), observation[1 - axis : 4 : 2].sum()
    return (EAST_WEST, NORTH_SOUTH)[axis] if own == 0 and other > 0 else KEEP


def waited(policy: Callable[[np.ndarray], int], seeds: range) -> float:
    """Mean vehicle-minutes of waiting in an episode of 600 steps (20 minutes)."""
    env, total = TrafficLight(), 0.0
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        for _ in range(600):
            observation, reward, *_ = env.step(policy(observation))
            total -= float(reward)
    return total / len(seeds)


def test_control_matters() -> None:
    """Seeds 0 to 39: about 86 < 119 < 186 vehicle-minutes, with standard errors of 1 to 6."""
    seeds = range(40)
    best, longest = waited(serve_until_empty, seeds), waited(LongestQueue(), seeds)
    fixed = min(waited(FixedCycle(green), seeds) for green in (8, 12, 20))
    assert best < 0.85 * longest
    assert longest < 0.85 * fixed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rates": (1, 1, 1)}, "rates: (1, 1, 1) must be four numbers"),
        ({"rates": (1, 1, 1, -1)}, "must be four numbers"),
        ({"rates": (1, 1, 1, float("nan"))}, "must be four numbers"),
        ({"swing": 1.5}, "swing: 1.5 is not between 0 and 1"),
        ({"period": 0}, "period: 0 is less than one step"),
        ({"min_green": 0}, "min_green: 0 is less than one step"),
        ({"yellow": 0}, "yellow: 0 is less than one step"),
        ({"conflict_penalty": -1.0}, "conflict_penalty: -1.0 must be at least 0"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ProblemError, match=re.escape(message)) as error:
        TrafficLight(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("green", [0, 61])
def test_a_fixed_cycle_out_of_range(green: int) -> None:
    with pytest.raises(ProblemError, match="between 1 and 60"):
        FixedCycle(green)


def test_the_text_shows_light_and_queues() -> None:
    env = TrafficLight(rates=(0, 3, 0, 0), swing=0, render_mode="ansi")
    env.reset(seed=0)
    env.step(KEEP)
    shown = str(env.render())
    assert "north-south green for 1 steps" in shown
    assert re.search(
        rf"east +{env.queues[1]} waiting, longest +2 s  {'o' * env.queues[1]}\n", shown
    )
