r"""Deep Q-learning (Mnih et al. 2015), with what made it better since.

Act :math:`\epsilon`-greedily in N environments, keep what happened, and every few steps move the
network on a batch of it towards a target that a slower copy of the network computes,

.. math:: y = R + d\, Q_{\theta^-}(s', a^*), \quad
          a^* = \arg\max_a Q_{\theta}(s', a), \qquad
          L = w\, \tfrac12 \big(y - Q_\theta(s, a)\big)^2

where R, d and w are the n-step return, its discount and the importance weight that
`classic_rl.deep.replay` gives.

What makes it reliable. On CartPole the usual settings fail less by diverging than by being slow and
short-sighted: the pole stays up and the cart creeps off the track a few hundred steps later, where
in half of all states the values of the two actions are about 5 % apart or less. Greedy returns
after 50,000 steps, the worst and the best of seeds 0 to 4, one setting changed at a time from those
of ``configs/classic/dqn-CartPole-v1.yaml`` with batches of 256, which give 500 on all five:

- *Values must travel far.* An update carries them n steps back, and no faster than the target
  network follows: n = 10, with n = 3 468 to 500, with n = 1 85 to 500.
- *The horizon must reach the end of the track*: gamma 0.998, with 0.99 489 to 500.
- *The mean, not the median.* Falls are rare and cost everything. Beyond an error of 1 Huber's loss
  counts signs only, as the median does, and plays them down: 372 to 500. The squared error believes
  them. Where single rewards are near a hundred, as LunarLander's, Huber's is the better.
- *Large, steep updates, and smooth units*: a learning rate of 5e-3 falling to 0, with 1e-3 391 to
  500; tanh, with relu 433 to 500.
- *Replay*: 88 to 443 without it. The target network is for other settings: here 500 without it too,
  but with two layers of 128 relu units, n = 3, gamma 0.99, Huber's loss and a learning rate of 1e-3
  values pass 70,000 without it and the return is 9.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor
from torch.nn.functional import huber_loss, mse_loss

from classic_rl.deep.adam import Adam
from classic_rl.deep.networks import Activation, clip_gradient, flatten_parameters
from classic_rl.deep.policies import QNetwork
from classic_rl.deep.policy_file import policy_tensors, restore_policy
from classic_rl.deep.replay import Replay, Transitions
from classic_rl.deep.rollout import Episodes, Stepper
from classic_rl.deep.run import OnLog, Result, Run, RunConfig, below, torch_threads, with_prefix
from classic_rl.deep.settings import check_range
from classic_rl.envs.environments import make_vector
from classic_rl.errors import ProblemError
from classic_rl.schedules import Linear

LOGS = 100  # points of a run's curve


@dataclass(frozen=True)
class DQNConfig(RunConfig):
    """DQN's settings.

    Args:
        n_envs: N, environments in step.
        buffer_size: steps that the replay memory keeps, of all environments together.
        learning_starts: steps before the first update. update_every: steps for each update.
        batch_size: transitions an update averages over.
        learning_rate: of Adam. anneal: bring it to 0 linearly over the run.
        gamma: discount. n_step: n, rewards that a target sums before it bootstraps.
        epsilon_start, epsilon_end, exploration_fraction: the share of random actions falls linearly
            from one to the other during this fraction of the run, and stays.
        tau, target_every: every so many updates, move the target network this far to the network:
            1 copies it now and then, a small tau at every update makes it a moving average.
        target_network: False bootstraps from the network itself. replay: False learns from the
            newest steps only, each time from those that came since the update before. Both show
            what they are for.
        double: choose the next action by the network, not by the target network.
        dueling: see `QNetwork`.
        prioritized: draw transitions by their TD errors to the power ``priority_alpha``; the
            importance weights' exponent goes from ``priority_beta`` to 1 over the run.
        huber: errors beyond 1 count linearly, not squared.
        max_grad_norm: global gradient norm; 0: unlimited.
        hidden, activation: see `QNetwork`.
    """

    n_envs: int = 16
    buffer_size: int = 100_000
    learning_starts: int = 1_000
    update_every: int = 8
    batch_size: int = 256
    learning_rate: float = 1e-3
    anneal: bool = True
    gamma: float = 0.99
    n_step: int = 1
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    exploration_fraction: float = 0.2
    tau: float = 0.02
    target_every: int = 1
    target_network: bool = True
    replay: bool = True
    double: bool = True
    dueling: bool = False
    prioritized: bool = False
    priority_alpha: float = 0.6
    priority_beta: float = 0.4
    huber: bool = True
    max_grad_norm: float = 10.0
    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "n_envs", "update_every", "batch_size", "n_step", "target_every", low=1)
        check_range(self, "learning_rate", "priority_alpha", low=0, open_low=True)
        check_range(self, "tau", "exploration_fraction", low=0, high=1, open_low=True)
        check_range(self, "gamma", "epsilon_start", "epsilon_end", "priority_beta", low=0, high=1)
        check_range(self, "max_grad_norm", low=0)
        if self.learning_starts < self.n_step * self.n_envs:
            raise ProblemError(
                f"learning_starts: {self.learning_starts} must be at least n_step x n_envs = "
                f"{self.n_step * self.n_envs}, or there is nothing to learn from"
            )


def train(
    config: DQNConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    on_log: OnLog | None = None,
) -> Result:
    """Train; see `Run` for ``out``, ``resume`` and ``on_log``."""
    with torch_threads(config.threads):
        return _train(config, Run("dqn", config, out, resume=resume, on_log=on_log))


def _train(config: DQNConfig, run: Run) -> Result:
    envs = make_vector(config.env_id, config.n_envs, config.env_kwargs)
    learner = Learner(config, envs)
    stepper = Stepper(envs, run.segment_seed())
    policy, replay = learner.policy, learner.replay
    exploring = config.exploration_fraction * config.total_steps
    epsilon = Linear(config.epsilon_start, config.epsilon_end, exploring)
    _restore(run, learner, stepper)
    while stepper.steps < config.total_steps:
        if run.checkpoint_due(stepper.steps):
            run.checkpoint(*_state(learner, stepper))
            replay.cut()
            stepper.restart(run.segment_seed())
        seen, rate = stepper.observations, epsilon(stepper.steps)
        actions = policy.act(policy.scale(seen), stepper.rng, rate).actions
        outcome = stepper.step(policy.for_environment(actions))
        replay.add(seen, actions, *outcome, stepper.observations)

        left = max(1.0 - stepper.steps / config.total_steps, 0.0)
        learner.optimizer.learning_rate = config.learning_rate * (left if config.anneal else 1.0)
        beta = 1.0 - left * (1.0 - config.priority_beta)
        metrics: dict[str, Tensor] = {}
        due = (stepper.steps - config.learning_starts) // config.update_every - learner.updates
        for _ in range(due):
            if config.replay:
                batch = replay.sample(config.batch_size, stepper.rng, beta)
            else:
                batch = replay.latest(max(config.update_every, config.n_envs))
            metrics = learner.update(batch)
        if metrics and stepper.steps * LOGS >= config.total_steps * len(run.curve["steps"]):
            means = {name: float(metric) for name, metric in metrics.items()}
            run.log(stepper.steps, policy, stepper.episodes, epsilon=rate, **means)
    envs.close()
    return run.result(policy, stepper.episodes, stepper.steps)


class Learner:
    """The network, its slower copy, the optimiser and the replay memory."""

    def __init__(self, config: DQNConfig, envs: VectorEnv) -> None:
        self.config = config
        space = envs.single_observation_space
        torch.manual_seed(config.seed)
        self.policy = QNetwork(
            space,
            envs.single_action_space,
            hidden=config.hidden,
            activation=config.activation,
            dueling=config.dueling,
        )
        self.target = copy.deepcopy(self.policy) if config.target_network else self.policy
        self.parameters = flatten_parameters(self.policy)  # θ
        self.target_parameters = (  # θ⁻
            flatten_parameters(self.target) if config.target_network else self.parameters
        )
        self.optimizer = Adam(self.parameters, config.learning_rate, eps=1e-5)
        self.replay = Replay(
            config.buffer_size,
            space,
            config.n_envs,
            n_step=config.n_step,
            gamma=config.gamma,
            alpha=config.priority_alpha if config.prioritized else 0.0,
        )
        self.updates = 0

    def targets(self, batch: Transitions) -> np.ndarray:
        """y, ``(B,)``: nothing flows back through it, so it is computed in numpy."""
        following = self.policy.scale(batch.next_observations)
        q = self.target.action_values(following)
        # Double Q-learning (van Hasselt et al. 2016, equation 4): who chooses the action does not
        # rate it, or noise that is chosen for being high would be believed.
        chooser = self.policy.action_values(following) if self.config.double else q
        best = chooser.argmax(-1)
        return batch.returns + batch.discounts * q[np.arange(len(q)), best]  # R + d Q_θ⁻(s', a*)

    def update(self, batch: Transitions) -> dict[str, Tensor]:
        """One step on a batch; return its mean loss and action value."""
        config, gradient = self.config, self.parameters.grad
        assert gradient is not None
        targets = torch.from_numpy(self.targets(batch))
        values = self.policy(torch.from_numpy(self.policy.scale(batch.observations)))
        q = values.gather(-1, torch.from_numpy(batch.actions)[:, None]).squeeze(-1)  # Q_θ(s, a)
        if config.huber:
            losses = huber_loss(q, targets, reduction="none")
        else:
            losses = 0.5 * mse_loss(q, targets, reduction="none")
        loss = (torch.from_numpy(batch.weights) * losses).mean()
        gradient.zero_()
        loss.backward()
        if config.max_grad_norm:
            clip_gradient(gradient, config.max_grad_norm)
        self.optimizer.step()
        self.updates += 1
        with torch.no_grad():
            self.replay.prioritize(batch.indices, (targets - q).numpy())  # δ = y - Q
            if config.target_network and self.updates % config.target_every == 0:
                self.target_parameters.lerp_(self.parameters, config.tau)  # θ⁻ += τ (θ - θ⁻)
        return {"loss": loss.detach(), "action_value": q.detach().mean()}

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs."""
        arrays = {name: torch.from_numpy(array) for name, array in self.replay.state().items()}
        tensors = (
            with_prefix("policy", policy_tensors(self.policy))
            | with_prefix("optimizer", self.optimizer.state())
            | with_prefix("replay", arrays)
        )
        if self.config.target_network:
            tensors |= with_prefix("target", policy_tensors(self.target))
        return tensors

    def restore(self, tensors: Mapping[str, Tensor], updates: int, origin: str) -> None:
        """Undo `state`; ``origin`` is named in errors."""
        restore_policy(self.policy, below("policy", tensors), origin)
        if self.config.target_network:
            restore_policy(self.target, below("target", tensors), origin)
        self.optimizer.restore(below("optimizer", tensors))
        self.replay.restore({name: t.numpy() for name, t in below("replay", tensors).items()})
        self.updates = updates


def _state(learner: Learner, stepper: Stepper) -> tuple[dict[str, Tensor], dict[str, Any]]:
    about = {"steps": stepper.steps, "episodes": asdict(stepper.episodes)}
    return learner.state(), about | {"updates": learner.updates}


def _restore(run: Run, learner: Learner, stepper: Stepper) -> None:
    restored = run.restore()
    if restored is None:
        return
    tensors, state = restored
    learner.restore(tensors, state["updates"], str(run.path))
    stepper.steps, stepper.episodes = state["steps"], Episodes(**state["episodes"])
    learner.replay.cut()
    stepper.restart(run.segment_seed())
