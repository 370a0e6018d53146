r"""Proximal policy optimisation (Schulman et al. 2017).

Collect T steps of N environments with the current policy, estimate advantages, then take several
epochs of minibatch steps on

.. math:: L = -\min\big(r\hat A, \mathrm{clip}(r, 1\pm\epsilon)\hat A\big)
              + c_v \tfrac12 (V - \hat R)^2 - c_e H[\pi]

with the same `gae`, `clipped_surrogate` and `value_loss` that the language-model PPO in
`pipeline.ppo` uses. The numbers at the comments are those of Huang et al. 2022, "The 37
Implementation Details of PPO".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from classic_rl.advantages import gae
from classic_rl.deep.adam import Adam
from classic_rl.deep.networks import Activation, clip_gradient, flatten_parameters
from classic_rl.deep.normalization import RewardScaler
from classic_rl.deep.policies import ActorCritic
from classic_rl.deep.reference import reference_of
from classic_rl.deep.rollout import Collector, Rollout
from classic_rl.deep.run import OnLog, Result, Run, RunConfig, torch_threads, updates
from classic_rl.deep.settings import check_range
from classic_rl.envs.environments import make_vector
from classic_rl.errors import ProblemError
from classic_rl.losses import (
    clip_active,
    clipped_surrogate,
    explained_variance,
    kl_estimate,
    value_loss,
)


@dataclass(frozen=True)
class PPOConfig(RunConfig):
    """PPO's settings.

    Args:
        n_envs: N, environments in step. n_steps: T, steps of each between updates.
        epochs: passes over a rollout. minibatch_size: the most steps that an optimiser step
            averages over; a rollout is cut into equal minibatches.
        learning_rate: of Adam. anneal: bring it to 0 linearly over the run.
        gamma, lam: discount and GAE's λ. cliprange: ε. anneal_cliprange: bring it to 0 as well.
        dual_clip: see `clipped_surrogate`.
        cliprange_value: clip of the value function; None: none.
        value_coef, entropy_coef: c_v and c_e. max_grad_norm: global gradient norm; 0: unlimited.
        target_kl: stop a rollout's updates beyond this KL from its policy (nats); None: never.
        kl_coef: β of a penalty on leaving the environment's reference policy, see
            `classic_rl.deep.reference`; 0: none.
        normalize_advantages: zero mean and unit variance in every minibatch.
        normalize_observations, normalize_rewards: by running statistics.
        hidden, activation, log_std: see `ActorCritic`.
    """

    n_envs: int = 8
    n_steps: int = 128
    epochs: int = 8
    minibatch_size: int = 256
    learning_rate: float = 1e-3
    anneal: bool = True
    gamma: float = 0.99
    lam: float = 0.95
    cliprange: float = 0.2
    anneal_cliprange: bool = False
    dual_clip: float | None = None
    cliprange_value: float | None = None
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    max_grad_norm: float = 0.5
    target_kl: float | None = None
    kl_coef: float = 0.0
    normalize_advantages: bool = True
    normalize_observations: bool = False
    normalize_rewards: bool = False
    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"
    log_std: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "n_envs", "epochs", "minibatch_size", low=1)
        check_range(self, "n_steps", low=2)  # one may be the reset between two episodes
        check_range(self, "learning_rate", "cliprange", "cliprange_value", low=0, open_low=True)
        check_range(self, "gamma", "lam", low=0, high=1)
        check_range(self, "value_coef", "entropy_coef", "max_grad_norm", "kl_coef", low=0)
        check_range(self, "target_kl", low=0, open_low=True)
        check_range(self, "dual_clip", low=1, open_low=True)
        if self.kl_coef and self.normalize_rewards:
            raise ProblemError("normalize_rewards: would change the meaning of kl_coef; use one")


def train(
    config: PPOConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    on_log: OnLog | None = None,
) -> Result:
    """Train; see `Run` for ``out``, ``resume`` and ``on_log``."""
    with torch_threads(config.threads):
        return _train(config, Run("ppo", config, out, resume=resume, on_log=on_log))


def _train(config: PPOConfig, run: Run) -> Result:
    envs = make_vector(config.env_id, config.n_envs, config.env_kwargs)
    reference = reference_of(envs, config.env_id) if config.kl_coef else None
    torch.manual_seed(config.seed)
    policy = ActorCritic(
        envs.single_observation_space,
        envs.single_action_space,
        hidden=config.hidden,
        activation=config.activation,
        log_std=config.log_std,
        normalize=config.normalize_observations,
    )
    # 3: Adam's epsilon 1e-5, not the library's 1e-8.
    optimizer = Adam(flatten_parameters(policy), config.learning_rate, eps=1e-5)
    scaler = RewardScaler(config.n_envs, config.gamma) if config.normalize_rewards else None
    collector = Collector(envs, policy, config.n_steps, run.segment_seed(), scaler)
    kept = {"optimizer": optimizer} | ({"rewards": scaler} if scaler is not None else {})
    for left in updates(run, policy, kept, collector):
        optimizer.learning_rate = config.learning_rate * (left if config.anneal else 1.0)  # 4
        cliprange = config.cliprange * (left if config.anneal_cliprange else 1.0)
        rollout = collector.collect()
        if reference is not None:  # r - β (log π - log π_ref)
            ref_logps = reference.logps(rollout.observations, rollout.actions)
            rollout.rewards -= config.kl_coef * kl_estimate(rollout.logps, ref_logps)
        metrics = update(policy, optimizer, rollout, config, cliprange, collector.rng)
        run.log(collector.steps, policy, collector.episodes, **metrics)
    envs.close()
    return run.result(policy, collector.episodes, collector.steps)


def update(
    policy: ActorCritic,
    optimizer: Adam,
    rollout: Rollout,
    config: PPOConfig,
    cliprange: float,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Improve ``policy`` on one rollout; return the diagnostics of the last epoch."""
    gradient = optimizer.parameters.grad
    assert gradient is not None
    batch = make_batch(rollout, config)
    size = len(batch.returns)
    parts: list[Loss] = []
    stopped = False
    for _ in range(config.epochs):
        order = torch.from_numpy(rng.permutation(size))  # 6: a new order every epoch
        pieces = math.ceil(size / config.minibatch_size)
        shuffled = [column[order].tensor_split(pieces) for column in batch]
        parts = []
        for columns in zip(*shuffled, strict=True):
            loss = loss_of(policy, Batch(*columns), config, cliprange)
            gradient.zero_()
            loss.total.backward()
            if config.max_grad_norm:  # 11
                clip_gradient(gradient, config.max_grad_norm)
            optimizer.step()
            parts.append(loss)
        if config.target_kl is not None and _kl(parts) > config.target_kl:
            stopped = True
            break
    return _diagnostics(parts, batch, cliprange) | {"stopped_early": float(stopped)}


class Batch(NamedTuple):
    """Steps to learn from; every tensor begins ``(B,)``."""

    observations: Tensor
    actions: Tensor
    logps: Tensor  # log π_old, of the policy that acted
    values: Tensor  # its V
    advantages: Tensor
    returns: Tensor


def make_batch(rollout: Rollout, config: PPOConfig) -> Batch:
    """Advantages and returns of a rollout, and its real steps as one batch."""
    advantages, returns = gae(  # 5
        rollout.rewards,
        rollout.values,
        rollout.next_values,
        terminated=rollout.terminated,
        ended=rollout.ended,
        mask=rollout.mask,
        gamma=config.gamma,
        lam=config.lam,
        time_dim=0,
    )
    # Masked rows (the resets between episodes) leave the batch here.
    real = rollout.mask.flatten()
    columns = (rollout.observations, rollout.actions, rollout.logps, rollout.values)
    return Batch(*(column.flatten(0, 1)[real] for column in (*columns, advantages, returns)))


class Loss(NamedTuple):
    """The loss of one minibatch and what it was made of."""

    total: Tensor  # scalar
    policy: Tensor  # scalar
    value: Tensor  # scalar
    entropy: Tensor  # scalar
    log_ratio: Tensor  # (B,)
    advantages: Tensor  # (B,), normalised where that is on


def loss_of(policy: ActorCritic, batch: Batch, config: PPOConfig, cliprange: float) -> Loss:
    """PPO's loss on a minibatch: clipped surrogate, value error, entropy bonus."""
    outputs, values = policy(batch.observations)
    logps, entropies = policy.log_probs(outputs, batch.actions)
    log_ratio = logps - batch.logps
    advantages = batch.advantages
    if config.normalize_advantages and len(advantages) > 1:  # 7
        std, mean = torch.std_mean(advantages)
        advantages = (advantages - mean) / (std + 1e-8)
    surrogate = clipped_surrogate(log_ratio, advantages, cliprange, config.dual_clip).mean()  # 8
    error = value_loss(values, batch.returns, batch.values, config.cliprange_value).mean()  # 9
    entropy = entropies.mean()
    total = surrogate + config.value_coef * error
    if config.entropy_coef:
        total = total - config.entropy_coef * entropy  # 10
    return Loss(total, surrogate, error, entropy, log_ratio, advantages)


def _kl(parts: Sequence[Loss]) -> float:
    """KL from the rollout's policy by k3 (Schulman 2020): (r - 1) - log r."""
    with torch.no_grad():
        log_ratio = torch.cat([part.log_ratio for part in parts])
        return float((log_ratio.expm1() - log_ratio).mean())  # 12


def _diagnostics(parts: Sequence[Loss], batch: Batch, cliprange: float) -> dict[str, float]:
    with torch.no_grad():
        means = torch.stack([torch.stack(part[1:4]) for part in parts]).mean(0).tolist()
        log_ratio = torch.cat([part.log_ratio for part in parts])
        advantages = torch.cat([part.advantages for part in parts])
        clipped = clip_active(log_ratio, advantages, cliprange).float().mean()
    return dict(zip(("policy_loss", "value_loss", "entropy"), means, strict=True)) | {
        "kl": _kl(parts),
        "clip_fraction": float(clipped),
        "explained_variance": float(explained_variance(batch.values, batch.returns)),
    }
