"""Probe environments: every algorithm passes them, and each fails when its piece is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from classic_rl import a2c, advantages, dqn, ppo, reinforce
from classic_rl.deep.policies import ActorCritic, QNetwork
from classic_rl.deep.probes import GAMMA, PROBES, MDPEnv, failures
from classic_rl.deep.replay import Replay, Transitions
from classic_rl.deep.rollout import Stepper
from classic_rl.errors import ProblemError
from classic_rl.mdp import from_function

TOLERANCE = 0.1


@dataclass
class Algorithm:
    """How an algorithm is run on a probe."""

    module: Any
    config: Callable[..., Any]
    settings: dict[str, Any]

    def wrong(self, probe: str, seed: int = 0) -> list[str]:
        """Train on the probe of this name; what was learned wrongly."""
        env_id = PROBES[probe].env_id
        config = self.config(env_id=env_id, seed=seed, gamma=GAMMA, **self.settings)
        return failures(self.module.train(config).policy, PROBES[probe], TOLERANCE)


SMALL: dict[str, Any] = {"hidden": (16,), "learning_rate": 2e-2}
ALGORITHMS = {
    "ppo": Algorithm(ppo, ppo.PPOConfig, SMALL | {"total_steps": 2000, "n_steps": 16, "epochs": 4}),
    "a2c": Algorithm(
        a2c,
        a2c.A2CConfig,
        SMALL | {"total_steps": 2400, "n_envs": 8, "n_steps": 4, "optimizer": "adam"},
    ),
    "reinforce": Algorithm(
        reinforce,
        reinforce.ReinforceConfig,
        SMALL | {"total_steps": 1000, "estimator": "gae", "value_steps": 10},
    ),
}
ALGORITHMS["dqn"] = Algorithm(
    dqn,
    dqn.DQNConfig,
    SMALL
    | {
        "total_steps": 2000,
        "n_envs": 8,
        "learning_starts": 100,
        "batch_size": 64,
        "tau": 0.1,
        "epsilon_end": 0.2,
    },
)
POLICY_GRADIENT = ["ppo", "a2c", "reinforce"]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_probe_is_passed(name: str) -> None:
    """Seed 0 of eight tried: no value was off by more than 0.03, no share below 0.98."""
    assert {probe: ALGORITHMS[name].wrong(probe) for probe in PROBES} == {
        probe: [] for probe in PROBES
    }


def with_gae(change: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch, Any], None]:
    """A mutation that puts ``change(rewards, values, next_values, **settings)`` in gae's place."""
    return lambda patch, module: patch.setattr(module, "gae", change)


def no_value_loss(patch: pytest.MonkeyPatch, module: Any) -> None:
    """Nothing is learned from the value's error."""
    patch.setattr(module, "value_loss", lambda values, *_: 0.0 * values)


def blind(patch: pytest.MonkeyPatch, module: Any) -> None:
    """The network sees zeros."""
    patch.setattr(ActorCritic, "scale", lambda self, seen: np.zeros_like(seen))


def blind_actor(patch: pytest.MonkeyPatch, module: Any) -> None:
    """The policy's weights are trained on zeros, the value's on what was seen."""
    forward = ActorCritic.forward

    def half(self: ActorCritic, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return forward(self, torch.zeros_like(seen))[0], forward(self, seen)[1]

    patch.setattr(ActorCritic, "forward", half)


def beyond_the_end(*columns: Any, terminated: torch.Tensor, **rest: Any) -> Any:
    return advantages.gae(*columns, terminated=torch.zeros_like(terminated), **rest)


def limit_as_end(*columns: Any, terminated: torch.Tensor, ended: torch.Tensor, **rest: Any) -> Any:
    return advantages.gae(*columns, terminated=ended, ended=ended, **rest)


def undiscounted(*columns: Any, gamma: float, **rest: Any) -> Any:
    return advantages.gae(*columns, gamma=1.0, **rest)


def myopic(*columns: Any, gamma: float, **rest: Any) -> Any:
    return advantages.gae(*columns, gamma=0.0, **rest)


def scaled_by(factor: float) -> Callable[..., Any]:
    """Advantages times ``factor``, returns as they are."""

    def change(*columns: Any, **settings: Any) -> Any:
        estimates, returns = advantages.gae(*columns, **settings)
        return factor * estimates, returns

    return change


# What is broken, how, and the first probe that must fail; the one before it must still pass.
MUTATIONS = {
    "no value loss": (no_value_loss, "constant reward"),
    "bootstraps past a termination": (with_gae(beyond_the_end), "constant reward"),
    "observations zeroed": (blind, "reward by observation"),
    "discount forgotten": (with_gae(undiscounted), "two-step discount"),
    "no future": (with_gae(myopic), "two-step discount"),
    "time limit taken for an end": (with_gae(limit_as_end), "time limit"),
    "advantages zeroed": (with_gae(scaled_by(0.0)), "reward by action"),
    "advantages negated": (with_gae(scaled_by(-1.0)), "reward by action"),
    "policy learns blindly": (blind_actor, "reward by both"),
}


@pytest.mark.parametrize("broken", MUTATIONS)
@pytest.mark.parametrize("name", POLICY_GRADIENT)
def test_probe_fails_when_its_piece_is_broken(
    name: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate, probe = MUTATIONS[broken]
    mutate(monkeypatch, ALGORITHMS[name].module)
    must_fail(name, probe)


def must_fail(name: str, probe: str) -> None:
    """``probe`` is failed, the one before it passed."""
    assert ALGORITHMS[name].wrong(probe)
    earlier = list(PROBES)[: list(PROBES).index(probe)]
    assert not earlier or not ALGORITHMS[name].wrong(earlier[-1])


def with_batch(change: Callable[[Transitions], Transitions]) -> Callable[[Any], None]:
    """A mutation of every batch that replay gives."""
    sample = Replay.sample
    return lambda patch: patch.setattr(
        Replay, "sample", lambda self, *args: change(sample(self, *args))
    )


def blind_network(patch: pytest.MonkeyPatch) -> None:
    """The network sees zeros."""
    patch.setattr(QNetwork, "scale", lambda self, seen: np.zeros_like(seen))


def separable_network(patch: pytest.MonkeyPatch) -> None:
    """Which action is better may not depend on the state: Q(s, a) = V(s) + A(a)."""
    forward, action_values = QNetwork.forward, QNetwork.action_values

    def of_torch(self: QNetwork, seen: torch.Tensor) -> torch.Tensor:
        q, blind = forward(self, seen), forward(self, torch.zeros_like(seen))
        return q.mean(-1, keepdim=True) + blind - blind.mean(-1, keepdim=True)

    def of_numpy(self: QNetwork, seen: np.ndarray) -> np.ndarray:
        q, blind = action_values(self, seen), action_values(self, np.zeros_like(seen))
        return q.mean(-1, keepdims=True) + blind - blind.mean(-1, keepdims=True)

    patch.setattr(QNetwork, "forward", of_torch)
    patch.setattr(QNetwork, "action_values", of_numpy)


def every_end_terminates(patch: pytest.MonkeyPatch) -> None:
    """Time limits are reported as terminations."""
    step = Stepper.step

    def changed(self: Stepper, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        rewards, _, ended, real = step(self, actions)
        return rewards, ended, ended, real

    patch.setattr(Stepper, "step", changed)


Q_MUTATIONS = {
    "no loss": (with_batch(lambda b: b._replace(weights=0 * b.weights)), "constant reward"),
    "bootstraps past a termination": (
        with_batch(lambda b: b._replace(discounts=np.full_like(b.discounts, GAMMA))),
        "constant reward",
    ),
    "observations zeroed": (blind_network, "reward by observation"),
    "discount forgotten": (
        with_batch(lambda b: b._replace(discounts=np.sign(b.discounts))),
        "two-step discount",
    ),
    "target without the next value": (
        with_batch(lambda b: b._replace(discounts=0 * b.discounts)),
        "two-step discount",
    ),
    "time limit taken for an end": (every_end_terminates, "time limit"),
    "another action's value learned": (
        with_batch(lambda b: b._replace(actions=1 - b.actions)),
        "reward by action",
    ),
    "actions rated blindly": (separable_network, "reward by both"),
}


@pytest.mark.parametrize("broken", Q_MUTATIONS)
def test_probe_fails_when_a_piece_of_q_learning_is_broken(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate, probe = Q_MUTATIONS[broken]
    mutate(monkeypatch)
    must_fail("dqn", probe)


def test_answers_are_those_worked_out_by_hand() -> None:
    values = {name: probe.values.tolist() for name, probe in PROBES.items()}
    expected = {
        "constant reward": [1],
        "reward by observation": [-1, 1],
        "two-step discount": [GAMMA, 1],
        "time limit": [1],  # (1 - γ) + (1 - γ) γ + ... without an end
        "reward by action": [1],
        "reward by both": [1, 1],
    }
    for name, wanted in expected.items():
        assert values[name] == pytest.approx(wanted, abs=1e-6)
    assert [p.actions.tolist() for p in PROBES.values()] == [
        [-1],
        [-1, -1],
        [-1, -1],
        [-1],
        [1],
        [0, 1],
    ]


def test_mdp_env_draws_what_the_mdp_says() -> None:
    """10,000 steps from state 0, frequencies within 4 standard errors; seed 0."""
    odds = (0.2, 0.3, 0.5)
    mdp = from_function(
        lambda s, a: [(p, k, float(k)) for k, p in enumerate(odds)],
        3,
        1,
        GAMMA,
        start=np.array([0.25, 0.75, 0.0]),
        terminal=[2],
    )
    env = MDPEnv(mdp)
    env.reset(seed=0)
    first = np.array([env.reset()[0].argmax() for _ in range(10_000)])
    assert abs((first == 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 10_000)
    drawn = np.zeros(3)
    for _ in range(10_000):
        env.state = 0
        seen, reward, terminated, truncated, _ = env.step(0)
        assert reward == seen.argmax() and terminated == (reward == 2) and not truncated
        drawn += seen / 10_000
    assert (np.abs(drawn - odds) < 4 * np.sqrt(np.multiply(odds, 0.5) / 10_000)).all()
    assert env.mdp(0.5).gamma == 0.5


def test_mdp_env_is_a_gymnasium_environment() -> None:
    from gymnasium.utils.env_checker import check_env

    check_env(gym.make(PROBES["reward by both"].env_id).unwrapped, skip_render_check=True)


def test_mdp_env_refuses_what_it_cannot_show() -> None:
    mdp = from_function(lambda s, a: [(1.0, 1, 0.0)], 2, 1, GAMMA, terminal=[1])
    with pytest.raises(ProblemError, match=r"observations: shape \(3, 1\).*2 states"):
        MDPEnv(mdp, np.zeros((3, 1)))
    mdp.rewards[1] = 1.0
    with pytest.raises(ProblemError, match="terminal states are never paid"):
        MDPEnv(mdp)
