r"""REINFORCE and its heirs: the policy gradient from whole episodes.

Play N episodes with the current policy, weigh every action by what came of it, take one step along
(Sutton & Barto 2018, chapter 13)

.. math:: \hat g = \frac1N \sum_{i=1}^N \sum_t \nabla \log\pi(a_t|s_t)\, \Psi_t

The estimators differ in :math:`\Psi_t` alone (Schulman et al. 2016, section 2; `score_weights`):
each drops noise that the one before it carries, and `classic_rl.gradient_variance` measures how
much. The first two are unbiased, with any baseline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from classic_rl.advantages import discounted_returns, gae
from classic_rl.deep.adam import Adam
from classic_rl.deep.networks import Activation, flatten_parameters
from classic_rl.deep.policies import ActorCritic
from classic_rl.deep.rollout import Episodes, Rollout
from classic_rl.deep.run import OnLog, Result, Run, RunConfig, torch_threads, updates
from classic_rl.deep.settings import check_range
from classic_rl.envs.environments import make_for_networks
from classic_rl.errors import ProblemError
from classic_rl.losses import explained_variance, policy_gradient, value_loss

Estimator = Literal["reinforce", "gpomdp", "gae"]
Baseline = Literal["none", "mean", "value"]
VALUE_BATCH = 256  # steps that one optimiser step of the critic averages over


@dataclass(frozen=True)
class ReinforceConfig(RunConfig):
    """Settings of the episodic policy gradient.

    Args:
        estimator, baseline: what weighs the actions, see `score_weights`.
        n_episodes: N, episodes an update.
        learning_rate: of the policy's Adam. anneal: bring it to 0 linearly over the run.
        value_learning_rate: of the critic's Adam. value_steps: its steps an update; the critic is
            trained only where something uses it.
        gamma: discount. lam: GAE's λ.
        discount_states: keep the factor γ^t, see `score_weights`.
        entropy_coef: reward for entropy, in reward a nat and step.
        hidden, activation, log_std: see `ActorCritic`.
    """

    estimator: Estimator = "gpomdp"
    baseline: Baseline = "value"
    n_episodes: int = 16
    learning_rate: float = 1e-2
    anneal: bool = True
    value_learning_rate: float = 1e-2
    value_steps: int = 20
    gamma: float = 0.99
    lam: float = 0.95
    discount_states: bool = False
    entropy_coef: float = 0.0
    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"
    log_std: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "n_episodes", "value_steps", low=1)
        check_range(self, "learning_rate", "value_learning_rate", low=0, open_low=True)
        check_range(self, "gamma", "lam", low=0, high=1)
        check_range(self, "entropy_coef", low=0)
        check_estimator(self.estimator, self.baseline, self.n_episodes)


def train(
    config: ReinforceConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    on_log: OnLog | None = None,
) -> Result:
    """Train; see `Run` for ``out``, ``resume`` and ``on_log``."""
    with torch_threads(config.threads):
        return _train(config, Run("reinforce", config, out, resume=resume, on_log=on_log))


def _train(config: ReinforceConfig, run: Run) -> Result:
    torch.manual_seed(config.seed)
    player = EpisodePlayer(config.env_id, config.env_kwargs, config.n_episodes)
    policy = ActorCritic(
        player.observation_space,
        player.action_space,
        hidden=config.hidden,
        activation=config.activation,
        log_std=config.log_std,
    )
    # Two optimisers: the critic takes many steps an update, the actor the one that is on-policy.
    optimizers = {
        "actor": Adam(actor_parameters(policy), config.learning_rate),
        "critic": Adam(critic_parameters(policy), config.value_learning_rate),
    }
    player.restart(run.segment_seed())
    for left in updates(run, policy, optimizers, player):
        if config.anneal:
            optimizers["actor"].learning_rate = config.learning_rate * left
        metrics = update(policy, optimizers, player.play(policy), config, player.rng)
        run.log(player.steps, policy, player.episodes, **metrics)
    player.close()
    return run.result(policy, player.episodes, player.steps)


def update(
    policy: ActorCritic,
    optimizers: Mapping[str, Adam],
    rollout: Rollout,
    config: ReinforceConfig,
    rng: np.random.Generator,
) -> dict[str, float]:
    """One step of the policy on N whole episodes, then the critic's steps; the diagnostics."""
    weights, targets = score_weights(
        rollout,
        config.estimator,
        config.baseline,
        gamma=config.gamma,
        lam=config.lam,
        discount_states=config.discount_states,
    )
    real, n_episodes = rollout.mask, rollout.mask.shape[1]
    outputs, _ = policy(rollout.observations[real])
    logps, entropies = policy.log_probs(outputs, rollout.actions[real])
    # The gradient of this loss is minus ĝ: a sum over each episode's steps, a mean over episodes.
    surrogate = policy_gradient(logps, weights[real]).sum() / n_episodes
    loss = surrogate - config.entropy_coef * entropies.sum() / n_episodes
    _descend(optimizers["actor"], loss)
    metrics = {
        "entropy": entropies.mean().item(),
        "explained_variance": float(explained_variance(rollout.values[real], targets[real])),
    }
    # After the policy: a baseline that had seen these episodes would depend on their actions.
    if config.baseline == "value":
        fit_values(policy, optimizers["critic"], rollout, targets, config.value_steps, rng)
    return metrics


def score_weights(
    rollout: Rollout,
    estimator: Estimator,
    baseline: Baseline,
    *,
    gamma: float,
    lam: float = 1.0,
    discount_states: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""What each action's score :math:`\nabla\log\pi(a_t|s_t)` is multiplied by.

    With the reward-to-go :math:`G_t = \sum_{k \ge t} \gamma^{k-t} r_k`:

    ===========  ================================  ================================================
    estimator    :math:`\Psi_t`                    what it takes
    ===========  ================================  ================================================
    reinforce    :math:`G_0 - b_0`                 Williams 1992: all that the episode paid
    gpomdp       :math:`G_t - b_t`                 Baxter & Bartlett 2001; Sutton & Barto 2018,
                                                   equation 13.11: what came after the action
    gae          :math:`\hat A_t(\gamma,\lambda)`  Schulman et al. 2016: λ < 1 takes the critic's
                                                   word for what comes later; biased by its errors
    ===========  ================================  ================================================

    The baseline :math:`b_t` is 0 (``"none"``), the mean of the other episodes' returns at step t
    (``"mean"``; of the others, because an episode's own return would bias it), or the learned
    :math:`V(s_t)` (``"value"``).

    The gradient of the discounted return has :math:`\gamma^t` before the last two, which
    ``discount_states`` keeps. Practice drops it, so that late steps count as much as early ones;
    what is followed then is no gradient of any objective (Nota & Thomas 2020).

    An episode cut off by a time limit ends there for the first two, as if the limit were part of
    the problem; the third asks the critic what would have followed.

    Args:
        rollout: whole episodes ``(T, N)``, each begun in row 0.

    Returns:
        Ψ and the critic's targets, ``(T, N)``, zero outside the mask.
    """
    if estimator == "gae":
        weights, targets = gae(
            rollout.rewards,
            rollout.values,
            rollout.next_values,
            terminated=rollout.terminated,
            ended=rollout.ended,
            mask=rollout.mask,
            gamma=gamma,
            lam=lam,
            time_dim=0,
        )
    else:
        targets = discounted_returns(rollout.rewards, rollout.ended, gamma, time_dim=0)
        if estimator == "reinforce":
            every = torch.ones_like(rollout.mask)
            base = _baseline(baseline, targets[:1], rollout.values[:1], every[:1])
            weights = (targets[:1] - base).expand_as(targets)  # G_0 - b_0
        else:
            weights = targets - _baseline(baseline, targets, rollout.values, rollout.mask)
    if discount_states and estimator != "reinforce":
        weights = weights * gamma ** torch.arange(len(weights), dtype=weights.dtype)[:, None]
    return weights * rollout.mask, targets


def _baseline(kind: Baseline, returns: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """b of each step, ``(T, N)`` as all arguments."""
    if kind == "none":
        return torch.zeros_like(returns)
    if kind == "value":
        return values
    # The mean over the other episodes that are still going at step t; 0 where there is none.
    others = (mask.sum(1, keepdim=True) - 1).clamp(min=1)
    kept = returns * mask
    return (kept.sum(1, keepdim=True) - kept) / others


def fit_values(
    policy: ActorCritic,
    optimizer: Adam,
    rollout: Rollout,
    targets: Tensor,
    steps: int,
    rng: np.random.Generator,
) -> None:
    """Take ``steps`` steps of regression of V(s_t) on ``targets``, each on random steps."""
    observations, wanted = rollout.observations[rollout.mask], targets[rollout.mask]
    for _ in range(steps):
        batch = torch.from_numpy(rng.integers(len(wanted), size=min(VALUE_BATCH, len(wanted))))
        _, values = policy(observations[batch])
        loss = value_loss(values, wanted[batch], values, None).mean()
        _descend(optimizer, loss)


def _descend(optimizer: Adam, loss: Tensor) -> None:
    gradient = optimizer.parameters.grad
    assert gradient is not None
    gradient.zero_()
    loss.backward()
    optimizer.step()


def actor_parameters(policy: ActorCritic) -> nn.Parameter:
    """Everything that the action probabilities depend on, as one vector."""
    return _flat(p for name, p in policy.named_parameters() if not name.startswith("critic"))


def critic_parameters(policy: ActorCritic) -> nn.Parameter:
    """The rest: all of the critic, or its head alone where it looks through the actor's body."""
    return _flat(p for name, p in policy.named_parameters() if name.startswith("critic"))


def _flat(parameters: Iterable[nn.Parameter]) -> nn.Parameter:
    return flatten_parameters(nn.ParameterList(parameters))


def check_estimator(estimator: Estimator, baseline: Baseline, n_episodes: int) -> None:
    """Raise a ProblemError for estimators that do not exist or miss something they need."""
    for name, value, known in (
        ("estimator", estimator, get_args(Estimator)),
        ("baseline", baseline, get_args(Baseline)),
    ):
        if value not in known:
            raise ProblemError(f"{name}: {value!r} is none of {', '.join(known)}")
    if estimator == "gae" and baseline != "value":
        raise ProblemError(f"estimator: gae needs baseline value, not {baseline}")
    if baseline == "mean" and n_episodes < 2:
        raise ProblemError(
            "baseline: mean is that of the other episodes; n_episodes must be above 1"
        )


class EpisodePlayer:
    """Play whole episodes, one in each of N environments.

    A vector environment would begin new episodes in place of those that ended early, and stopping
    at a fixed number of steps would prefer short episodes: both bias what is learned from.

    Args:
        env_id, env_kwargs: the environment. n_episodes: N. seed: of everything random.
    """

    def __init__(
        self, env_id: str, env_kwargs: Mapping[str, Any] | None, n_episodes: int, seed: int = 0
    ) -> None:
        self.envs: list[gym.Env] = [
            make_for_networks(env_id, env_kwargs) for _ in range(n_episodes)
        ]
        self.observation_space = self.envs[0].observation_space
        self.action_space = self.envs[0].action_space
        self.episodes = Episodes()
        self.steps = 0
        self.restart(seed)

    def restart(self, seed: int) -> None:
        """Go on from ``seed`` alone, as a resumed run does."""
        self.rng = np.random.default_rng(seed)
        for env in self.envs:
            env.reset(seed=int(self.rng.integers(2**31)))

    def play(self, policy: ActorCritic) -> Rollout:
        """N episodes as ``(T, N)``, T the longest; rows after an episode's end are masked out."""
        n_episodes = len(self.envs)
        current = np.stack([env.reset()[0] for env in self.envs])
        playing = np.arange(n_episodes)
        observations, steps = [current.copy()], []
        while len(playing):
            actions, logps, _ = policy.act(policy.scale(current[playing]), self.rng)
            rewards, ends = np.zeros(n_episodes, np.float32), np.zeros((2, n_episodes), bool)
            for i, action in zip(playing, policy.for_environment(actions), strict=True):
                current[i], rewards[i], ends[0, i], ends[1, i], _ = self.envs[i].step(action)
            mask = np.zeros(n_episodes, bool)
            mask[playing] = True
            steps.append((_spread(actions, mask), _spread(logps, mask), rewards, *ends, mask))
            playing = playing[~(ends[0] | ends[1])[playing]]
            observations.append(current.copy())
        return self._rollout(policy, np.stack(observations), steps)

    def close(self) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()

    def _rollout(
        self, policy: ActorCritic, observations: np.ndarray, steps: list[tuple[np.ndarray, ...]]
    ) -> Rollout:
        actions, logps, rewards, terminated, truncated, mask = (
            torch.from_numpy(np.stack(column)) for column in zip(*steps, strict=True)
        )
        lengths = mask.sum(0)
        self.steps += int(lengths.sum())
        self.episodes.steps += [self.steps] * len(lengths)
        self.episodes.returns += rewards.double().sum(0).tolist()
        self.episodes.lengths += lengths.tolist()
        # An ended episode keeps showing its final observation, so next_values are right there too.
        flat = policy.scale(observations.reshape(-1, *observations.shape[2:]))
        seen = torch.from_numpy(flat).reshape(observations.shape)
        values = torch.from_numpy(policy.values(flat)).reshape(observations.shape[:2])
        return Rollout(
            observations=seen[:-1],
            actions=actions,
            logps=logps,
            values=values[:-1],
            next_values=values[1:],
            rewards=rewards,
            terminated=terminated,
            ended=terminated | truncated,
            mask=mask,
        )


def _spread(rows: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``rows`` of the episodes in ``mask`` at their places among all, zero elsewhere."""
    spread = np.zeros((len(mask), *rows.shape[1:]), rows.dtype)
    spread[mask] = rows
    return spread
