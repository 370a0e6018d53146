"""Rollouts: autoreset rows are masked, ends are told apart, and nothing depends on luck."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from classic_rl.deep.normalization import ObservationScaler, RewardScaler, RunningMoments
from classic_rl.deep.policies import ActorCritic
from classic_rl.deep.rollout import Collector
from classic_rl.envs.environments import make, make_vector


class Counter(gym.Env):
    """Counts its steps and pays them. Episode k lasts 2 + k steps and ends by termination and
    truncation in turn. The observation is (steps in the episode, episode)."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self) -> None:
        self.episode, self.taken = -1, 0

    def _observation(self) -> np.ndarray:
        return np.array([self.taken, self.episode], np.float32)

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.episode, self.taken = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        over, terminates = self.taken == 2 + self.episode, self.episode % 2 == 0
        reward = float(self.taken)
        return self._observation(), reward, over and terminates, over and not terminates, {}


def counters(n_envs: int) -> SyncVectorEnv:
    return SyncVectorEnv([Counter] * n_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


def policy_for(envs: Any, seed: int = 0, **settings: Any) -> ActorCritic:
    torch.manual_seed(seed)
    return ActorCritic(envs.single_observation_space, envs.single_action_space, **settings)


def test_the_row_after_an_end_is_masked_and_no_step() -> None:
    collector = Collector(counters(2), policy_for(counters(2)), n_steps=14, seed=0)
    rollout = collector.collect()
    # Episodes of 2, 3, 4 steps: each end is followed by one reset row.
    real = [1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1]
    assert rollout.mask[:, 1].int().tolist() == real
    assert np.flatnonzero(rollout.ended[:, 1]).tolist() == [1, 5, 10]
    assert np.flatnonzero(rollout.terminated[:, 1]).tolist() == [1, 10]
    taken = rollout.observations[:, 1, 0][rollout.mask[:, 1]].tolist()
    assert taken == [0, 1, 0, 1, 2, 0, 1, 2, 3, 0, 1]
    assert rollout.rewards[:, 1].tolist() == [1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2]
    assert collector.steps == 2 * sum(real)
    assert collector.episodes.lengths == [2, 2, 3, 3, 4, 4]
    assert collector.episodes.returns == [3, 3, 6, 6, 10, 10]
    assert collector.episodes.steps == [4, 4, 10, 10, 18, 18]


def test_next_values_are_of_the_state_each_step_led_to() -> None:
    envs = counters(1)
    policy = policy_for(envs)
    collector = Collector(envs, policy, n_steps=9, seed=0)
    rollout = collector.collect()
    for t in range(9):
        if rollout.mask[t, 0]:
            taken, episode = rollout.observations[t, 0].tolist()
            following = policy.values(np.array([[taken + 1, episode]], np.float32))
            assert rollout.next_values[t, 0].item() == pytest.approx(following[0], abs=1e-6)
    again = collector.collect()  # the next rollout goes on where this one stopped
    assert again.observations[0, 0].tolist() == collector_state_after(9)
    torch.testing.assert_close(rollout.next_values[-1], again.values[0])


def collector_state_after(rows: int) -> list[float]:
    """(steps, episode) of a Counter after so many rows of NEXT_STEP autoreset."""
    episode = taken = 0
    for _ in range(rows):
        if taken == 2 + episode:
            episode, taken = episode + 1, 0
        else:
            taken += 1
    return [taken, episode]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1"])
def test_logps_and_values_are_torch_s(env_id: str) -> None:
    """What numpy computed while acting is what the learner will see: all ratios are 1."""
    envs = make_vector(env_id, 4)
    policy = policy_for(envs)
    rollout = Collector(envs, policy, n_steps=40, seed=1).collect()
    outputs, values = policy(rollout.observations.flatten(0, 1))
    logps, _ = policy.log_probs(outputs, rollout.actions.flatten(0, 1))
    torch.testing.assert_close(logps, rollout.logps.flatten(), atol=1e-5, rtol=0)
    torch.testing.assert_close(values, rollout.values.flatten(), atol=1e-5, rtol=0)


def test_the_array_cartpole_is_the_same_as_the_single_one() -> None:
    envs = make_vector("CartPole-v1", 3)
    collector = Collector(envs, policy_for(envs), n_steps=60, seed=3)
    rollout = collector.collect()
    env = make("CartPole-v1")
    env.reset()
    compared = 0
    for t in range(59):
        if rollout.mask[t, 0]:
            env.unwrapped.state = tuple(rollout.observations[t, 0].double().tolist())  # type: ignore[attr-defined]
            env.unwrapped.steps_beyond_terminated = None  # type: ignore[attr-defined]
            observation, reward, terminated, _, _ = env.step(int(rollout.actions[t, 0]))
            np.testing.assert_allclose(observation, rollout.observations[t + 1, 0], atol=1e-6)
            assert (reward, terminated) == (rollout.rewards[t, 0], rollout.terminated[t, 0])
            compared += terminated
    assert compared >= 2


def test_a_seed_fixes_the_rollout_to_the_bit() -> None:
    envs = make_vector("Pendulum-v1", 2)
    collector = Collector(envs, policy_for(envs), n_steps=30, seed=5)
    first = collector.collect()
    collector.restart(6)
    other = collector.collect()
    collector.restart(5)
    again = collector.collect()
    assert torch.equal(first.observations, again.observations)
    assert torch.equal(first.actions, again.actions)
    assert not torch.equal(first.observations, other.observations)


def test_sampled_actions_follow_the_softmax() -> None:
    policy = policy_for(make_vector("Acrobot-v1", 1))
    with torch.no_grad():
        policy.get_parameter("actor_head.bias").copy_(torch.tensor([1.0, 0.0, -1.0]))
    observations = np.zeros((20_000, 6), np.float32)
    acted = policy.act(observations, np.random.default_rng(0))
    expected = torch.softmax(torch.tensor([1.0, 0.0, -1.0]), -1).numpy()
    frequencies = np.bincount(acted.actions, minlength=3) / len(observations)
    np.testing.assert_allclose(frequencies, expected, atol=0.015)  # four standard errors
    np.testing.assert_allclose(acted.logps, np.log(expected)[acted.actions], atol=1e-5)
    assert (policy.act(observations).actions == 0).all()  # greedy


def test_continuous_actions_are_moved_to_the_range_and_clipped() -> None:
    policy = policy_for(make_vector("Pendulum-v1", 1))  # torques in [-2, 2]
    inside = policy.for_environment(np.array([[-3.0], [-0.5], [0.0], [0.25], [9.0]], np.float32))
    assert inside[:, 0].tolist() == [-2.0, -1.0, 0.0, 0.5, 2.0]


def test_running_moments_are_those_of_all_rows() -> None:
    rows = np.random.default_rng(0).normal(3.0, 2.0, (100, 4))
    moments = RunningMoments((4,))
    for part in np.split(rows, [1, 7, 40]):
        moments.update(part)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, rows.var(0), rtol=1e-4)
    scaler = ObservationScaler((4,))
    scaler.moments = moments
    scaled = scaler(rows)
    np.testing.assert_allclose(scaled.std(0), 1, rtol=1e-3)
    assert scaler(np.full((1, 4), 1e6)).max() == 10


def test_rewards_are_divided_by_the_spread_of_returns() -> None:
    rng = np.random.default_rng(0)
    scaler, returns, seen = RewardScaler(2, gamma=0.5, clip=100), np.zeros(2), []
    for t in range(50):
        real = np.array([True, t % 5 != 0])  # the second environment resets in every fifth step
        rewards = rng.normal(size=2) * real
        returns = 0.5 * returns + rewards
        seen += returns[real].tolist()
        scaled = scaler(rewards, ended=np.array([False, t % 5 == 4]), real=real)
        np.testing.assert_allclose(
            scaled, rewards / np.std([0.0, *seen]), rtol=0.05 if t > 9 else 9
        )
        returns[1] *= t % 5 != 4
    np.testing.assert_allclose(scaled, rewards / np.std(seen), rtol=1e-3)


@pytest.mark.parametrize("env_id", ["classic_rl/TokenMDP-v0", "MinAtar/Breakout-v1"])
def test_discrete_and_image_observations(env_id: str) -> None:
    if env_id.startswith("MinAtar/"):
        pytest.importorskip("minatar", reason="MinAtar is an extra")
    envs = make_vector(env_id, 2)
    rollout = Collector(envs, policy_for(envs), n_steps=12, seed=0).collect()
    if env_id.startswith("MinAtar/"):
        assert rollout.observations.shape == (12, 2, 10, 10, 4)
    else:  # one-hot
        assert torch.equal(rollout.observations.sum(-1), torch.ones(12, 2))
    assert torch.isfinite(rollout.values).all()
