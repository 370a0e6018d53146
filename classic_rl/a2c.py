r"""A2C, the synchronous advantage actor-critic (Mnih et al. 2016, without the asynchrony).

Take T steps in each of N environments, estimate the advantages with the critic's help, take one
step on

.. math:: L = -\log\pi(a|s)\,\hat A + c_v \tfrac12 (V - \hat R)^2 - c_e H[\pi]

and begin again: no episode need end, and no step is used twice. λ = 1 gives the n-step returns of
the paper, λ < 1 weighs them (Schulman et al. 2016). `classic_rl.ppo` is this with several clipped
steps on every rollout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from classic_rl.advantages import gae
from classic_rl.deep.adam import Adam
from classic_rl.deep.networks import Activation, clip_gradient, flatten_parameters
from classic_rl.deep.policies import ActorCritic
from classic_rl.deep.rollout import Collector, Rollout
from classic_rl.deep.run import OnLog, Result, Run, RunConfig, torch_threads, updates
from classic_rl.deep.settings import check_range
from classic_rl.envs.environments import make_vector
from classic_rl.errors import ProblemError
from classic_rl.losses import explained_variance, policy_gradient, value_loss


@dataclass(frozen=True)
class A2CConfig(RunConfig):
    """A2C's settings.

    Args:
        n_envs: N, environments in step. n_steps: T, steps of each between updates.
        optimizer: ``"rmsprop"`` as in the paper, or ``"adam"``.
        learning_rate: of the optimiser. anneal: bring it to 0 linearly over the run.
        gamma, lam: discount and GAE's λ.
        value_coef, entropy_coef: c_v and c_e. max_grad_norm: global gradient norm; 0: unlimited.
        normalize_observations: by running statistics.
        hidden, activation, log_std: see `ActorCritic`.
    """

    n_envs: int = 16
    n_steps: int = 8
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    learning_rate: float = 3e-3
    anneal: bool = True
    gamma: float = 0.99
    lam: float = 0.95
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    max_grad_norm: float = 0.5
    normalize_observations: bool = False
    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"
    log_std: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "n_envs", low=1)
        check_range(self, "n_steps", low=2)  # one step could be nothing but resets
        check_range(self, "learning_rate", low=0, open_low=True)
        check_range(self, "gamma", "lam", low=0, high=1)
        check_range(self, "value_coef", "entropy_coef", "max_grad_norm", low=0)
        if self.optimizer not in ("rmsprop", "adam"):
            raise ProblemError(f"optimizer: {self.optimizer!r} is none of rmsprop, adam")


def train(
    config: A2CConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    on_log: OnLog | None = None,
) -> Result:
    """Train; see `Run` for ``out``, ``resume`` and ``on_log``."""
    with torch_threads(config.threads):
        return _train(config, Run("a2c", config, out, resume=resume, on_log=on_log))


def _train(config: A2CConfig, run: Run) -> Result:
    envs = make_vector(config.env_id, config.n_envs, config.env_kwargs)
    torch.manual_seed(config.seed)
    policy = ActorCritic(
        envs.single_observation_space,
        envs.single_action_space,
        hidden=config.hidden,
        activation=config.activation,
        log_std=config.log_std,
        normalize=config.normalize_observations,
    )
    parameters = flatten_parameters(policy)
    rule = RMSProp if config.optimizer == "rmsprop" else Adam
    optimizer = rule(parameters, config.learning_rate, eps=1e-5)
    collector = Collector(envs, policy, config.n_steps, run.segment_seed())
    for left in updates(run, policy, {"both": optimizer}, collector):
        if config.anneal:
            optimizer.learning_rate = config.learning_rate * left
        metrics = update(policy, optimizer, collector.collect(), config)
        run.log(collector.steps, policy, collector.episodes, **metrics)
    envs.close()
    return run.result(policy, collector.episodes, collector.steps)


def update(
    policy: ActorCritic,
    optimizer: Adam | RMSProp,
    rollout: Rollout,
    config: A2CConfig,
) -> dict[str, float]:
    """One step of actor and critic on a rollout; return its diagnostics."""
    gradient = optimizer.parameters.grad
    assert gradient is not None
    advantages, returns = gae(
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
    real = rollout.mask
    advantages, returns = advantages[real], returns[real]
    outputs, values = policy(rollout.observations[real])
    logps, entropies = policy.log_probs(outputs, rollout.actions[real])
    actor = policy_gradient(logps, advantages).mean()
    critic = value_loss(values, returns, rollout.values[real], None).mean()
    entropy = entropies.mean()
    loss = actor + config.value_coef * critic - config.entropy_coef * entropy
    gradient.zero_()
    loss.backward()
    if config.max_grad_norm:
        clip_gradient(gradient, config.max_grad_norm)
    optimizer.step()
    with torch.no_grad():
        means = torch.stack([actor, critic, entropy]).tolist()
    return dict(zip(("policy_loss", "value_loss", "entropy"), means, strict=True)) | {
        "explained_variance": float(explained_variance(rollout.values[real], returns))
    }


class RMSProp:
    """RMSProp over one flat parameter (Hinton 2012, lecture 6e), as the paper's A3C uses it.

    Unlike Adam it has no momentum: a step follows the newest rollout alone.

    Args:
        parameters: a vector with its gradient. learning_rate: may be changed between steps.
        eps: added to the root of the second moment. decay: of the second moment.
    """

    def __init__(
        self,
        parameters: nn.Parameter,
        learning_rate: float,
        eps: float = 1e-5,
        decay: float = 0.99,
    ) -> None:
        self.parameters, self.learning_rate = parameters, learning_rate
        self.eps, self.decay = eps, decay
        self.second = torch.zeros_like(parameters)

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters by their gradient."""
        gradient = self.parameters.grad
        assert gradient is not None
        self.second.lerp_(gradient * gradient, 1 - self.decay)  # v = ρ v + (1 - ρ) g²
        # θ = θ - α g / (√v + ε)
        root = self.second.sqrt().add_(self.eps)
        self.parameters.addcdiv_(gradient, root, value=-self.learning_rate)

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs."""
        return {"second": self.second}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`."""
        self.second.copy_(state["second"])
