"""REINFORCE: what weighs the actions, whole episodes, learning, resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from classic_rl.deep.evaluation import evaluate
from classic_rl.deep.policies import ActorCritic
from classic_rl.deep.policy_file import load_policy
from classic_rl.deep.rollout import Rollout
from classic_rl.deep.settings import load_config
from classic_rl.envs.environments import make_for_networks
from classic_rl.errors import ProblemError
from classic_rl.reinforce import (
    EpisodePlayer,
    ReinforceConfig,
    actor_parameters,
    critic_parameters,
    score_weights,
    train,
)

QUICK = ReinforceConfig(total_steps=1500, n_episodes=4, hidden=(16,), value_steps=3)


def two_episodes() -> Rollout:
    """Rewards 1, 2, 4 and then 8, 16, the second cut off by a time limit; V is 10, 20, ..."""
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    ended = torch.tensor([[False, False], [False, True], [True, False]])
    values = torch.tensor([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]])
    return Rollout(
        observations=torch.zeros(3, 2, 1),
        actions=torch.zeros(3, 2, dtype=torch.long),
        logps=torch.zeros(3, 2),
        values=values,
        next_values=torch.cat([values[1:], torch.full((1, 2), 70.0)]),
        rewards=torch.tensor([[1.0, 8.0], [2.0, 16.0], [4.0, 0.0]]),
        terminated=ended & torch.tensor([True, False]),
        ended=ended,
        mask=mask,
    )


@pytest.mark.parametrize(
    ("estimator", "baseline", "expected"),
    [  # γ = 1/2: the returns-to-go are 3, 4, 4 and 16, 16
        ("reinforce", "none", [[3, 16], [3, 16], [3, 0]]),
        ("reinforce", "mean", [[3 - 16, 16 - 3], [3 - 16, 16 - 3], [3 - 16, 0]]),
        ("reinforce", "value", [[3 - 10, 16 - 20], [3 - 10, 16 - 20], [3 - 10, 0]]),
        ("gpomdp", "none", [[3, 16], [4, 16], [4, 0]]),
        ("gpomdp", "mean", [[3 - 16, 16 - 3], [4 - 16, 16 - 4], [4, 0]]),  # alone at the end
        ("gpomdp", "value", [[3 - 10, 16 - 20], [4 - 30, 16 - 40], [4 - 50, 0]]),
        # δ = 6, -3, -46 and 8, 6; the time limit bootstraps 60, the termination nothing.
        ("gae", "value", [[6 - 0.75 - 2.875, 9.5], [-3 - 11.5, 6], [-46, 0]]),
    ],
)
def test_weights_by_hand(estimator, baseline, expected) -> None:
    weights, _ = score_weights(two_episodes(), estimator, baseline, gamma=0.5, lam=0.5)
    assert weights.tolist() == expected


def test_state_discount_and_targets_by_hand() -> None:
    weights, targets = score_weights(
        two_episodes(), "gpomdp", "none", gamma=0.5, discount_states=True
    )
    assert weights.tolist() == [[3, 16], [2, 8], [1, 0]]
    assert targets.tolist() == [[3, 16], [4, 16], [4, 0]]


def test_player_plays_what_the_environment_pays() -> None:
    """Replaying the recorded actions from the same seed gives the same episodes."""
    player = EpisodePlayer("CartPole-v1", {}, 3, seed=5)
    torch.manual_seed(0)
    policy = ActorCritic(player.observation_space, player.action_space, hidden=(8,))
    rollout = player.play(policy)
    seeds = np.random.default_rng(5)
    for i in range(3):
        env = make_for_networks("CartPole-v1")
        env.reset(seed=int(seeds.integers(2**31)))
        seen, t, ended = env.reset()[0], 0, False
        while not ended:
            np.testing.assert_array_equal(rollout.observations[t, i].numpy(), seen)
            assert rollout.mask[t, i]
            seen, reward, terminated, truncated, _ = env.step(int(rollout.actions[t, i]))
            ended = terminated or truncated
            assert float(rollout.rewards[t, i]) == reward
            assert bool(rollout.terminated[t, i]) == terminated
            assert bool(rollout.ended[t, i]) == ended
            assert float(rollout.next_values[t, i]) == pytest.approx(
                float(policy.values(seen[None])[0]), abs=1e-6
            )
            t += 1
        assert not rollout.mask[t:, i].any() and not rollout.rewards[t:, i].any()
        assert player.episodes.lengths[i] == t and player.episodes.returns[i] == t
    assert player.steps == sum(player.episodes.lengths)


def test_same_seed_same_curve_and_another_seed_another() -> None:
    first, again, other = (train(replace(QUICK, seed=s)) for s in (3, 3, 4))
    assert first.curve == again.curve and first.episodes == again.episodes
    assert first.curve != other.curve
    assert set(first.curve) == {"steps", "episode_return", "entropy", "explained_variance"}


class Killed(Exception):
    pass


def test_killed_and_resumed_ends_equal(tmp_path: Path) -> None:
    config = replace(QUICK, checkpoint_every=500)
    whole = train(config)

    def kill(steps: int, metrics) -> None:
        if steps > 1200:
            raise Killed

    with pytest.raises(Killed):
        train(config, out=tmp_path, on_log=kill)
    resumed = train(config, out=tmp_path, resume=True)
    assert resumed.curve == whole.curve and resumed.episodes == whole.episodes
    for name, tensor in whole.policy.state_dict().items():
        assert torch.equal(tensor, resumed.policy.state_dict()[name])
    with pytest.raises(ProblemError, match="its gamma is 0.99, this run's is 0.5"):
        train(replace(config, gamma=0.5), out=tmp_path, resume=True)


def test_saved_policy_plays_the_same(tmp_path: Path) -> None:
    result = train(QUICK)
    result.save(tmp_path)
    policy, env_id, _ = load_policy(tmp_path)
    before, after = (evaluate(p, env_id, 5, seed=1) for p in (result.policy, policy))
    assert before.returns.tolist() == after.returns.tolist()


@pytest.mark.parametrize("baseline", ["none", "mean", "value"])
def test_critic_learns_only_where_it_is_used(baseline) -> None:
    untrained = train(replace(QUICK, total_steps=1, learning_rate=1e-12, baseline="none")).policy
    trained = train(replace(QUICK, baseline=baseline)).policy
    assert isinstance(untrained, ActorCritic) and isinstance(trained, ActorCritic)
    same = torch.equal(critic_parameters(untrained), critic_parameters(trained))
    assert same == (baseline != "value")


def test_critic_of_images_shares_the_body_and_trains_its_head() -> None:
    space = gym.spaces.Box(0, 1, (10, 10, 4), np.float32)
    policy = ActorCritic(space, gym.spaces.Discrete(3), hidden=(8,))
    actor, critic = actor_parameters(policy), critic_parameters(policy)
    assert len(critic) == 8 + 1
    assert len(actor) + len(critic) == sum(p.numel() for p in policy.parameters())


@pytest.mark.parametrize("estimator", ["reinforce", "gpomdp", "gae"])
def test_continuous_actions(estimator) -> None:
    result = train(replace(QUICK, env_id="Pendulum-v1", total_steps=800, estimator=estimator))
    assert np.isfinite(result.curve["entropy"]).all()
    assert result.policy.state_dict()["log_std"].item() != 0


def test_solves_cartpole(root: Path) -> None:
    """Half the committed steps, seed 0; seeds 0 to 4 gave 489 to 500, and 500 after all of them."""
    config = load_config(ReinforceConfig, root / "configs/classic/reinforce-CartPole-v1.yaml")
    result = train(replace(config, total_steps=75_000))
    assert evaluate(result.policy, "CartPole-v1", 20, seed=1000).returns.mean() >= 400
    assert result.curve["entropy"][-1] < result.curve["entropy"][0] - 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "a2c"}, "estimator: 'a2c' is none of reinforce, gpomdp, gae"),
        ({"baseline": "best"}, "baseline: 'best' is none of none, mean, value"),
        ({"estimator": "gae", "baseline": "mean"}, "gae needs baseline value, not mean"),
        ({"baseline": "mean", "n_episodes": 1}, "n_episodes must be above 1"),
        ({"n_episodes": 0}, "n_episodes: 0 must be at least 1"),
        ({"gamma": 1.5}, "gamma: 1.5 must be at least 0 and at most 1"),
        ({"learning_rate": 0.0}, "learning_rate: 0.0 must be above 0"),
        ({"env_id": "CartPoll-v1"}, "no such environment; did you mean CartPole-v1"),
    ],
)
def test_bad_settings_are_one_line(settings, message) -> None:
    with pytest.raises(ProblemError, match=message) as caught:
        train(ReinforceConfig(**settings))
    assert "\n" not in str(caught.value)


def test_configs_load(root: Path) -> None:
    files = sorted((root / "configs/classic").glob("reinforce-*.yaml"))
    assert files
    for file in files:
        config = load_config(ReinforceConfig, file)
        assert file.stem == f"reinforce-{config.env_id.replace('/', '-')}"
