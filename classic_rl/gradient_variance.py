r"""How noisy the policy gradient estimators are, and what the exact gradient is.

`measure` holds a policy fixed and estimates its gradient again and again from N fresh episodes,
by every estimator on the same episodes. Each :math:`\hat g` then has a variance, the trace of its
covariance :math:`E\|\hat g - E\hat g\|^2`, and a bias, its mean's distance from that of an unbiased
one (Greensmith et al. 2004; Schulman et al. 2016, section 3). `exact_policy_gradient` is the
judge on problems small enough to solve.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import spsolve
from torch import nn

from classic_rl.deep.adam import Adam
from classic_rl.deep.policies import ActorCritic
from classic_rl.deep.rollout import Rollout
from classic_rl.errors import ProblemError
from classic_rl.losses import explained_variance, policy_gradient
from classic_rl.mdp import MDP
from classic_rl.reinforce import (
    Baseline,
    EpisodePlayer,
    Estimator,
    actor_parameters,
    check_estimator,
    critic_parameters,
    fit_values,
    score_weights,
)
from classic_rl.tabular.evaluation import action_values, policy_evaluation, under_policy


class Weighing(NamedTuple):
    """An estimator as `score_weights` takes it."""

    estimator: Estimator
    baseline: Baseline
    lam: float = 1.0


UNBIASED = "GPOMDP, value"  # the least noisy estimator without a bias: the others' yardstick
ESTIMATORS: Mapping[str, Weighing] = {
    "REINFORCE": Weighing("reinforce", "none"),
    "REINFORCE, mean": Weighing("reinforce", "mean"),
    "REINFORCE, value": Weighing("reinforce", "value"),
    "GPOMDP": Weighing("gpomdp", "none"),
    "GPOMDP, mean": Weighing("gpomdp", "mean"),
    UNBIASED: Weighing("gpomdp", "value"),
    "GAE 0.99": Weighing("gae", "value", 0.99),
    "GAE 0.95": Weighing("gae", "value", 0.95),
    "GAE 0.9": Weighing("gae", "value", 0.9),
    "GAE 0": Weighing("gae", "value", 0.0),
}


@dataclass(frozen=True)
class GradientNoise:
    """The result of `measure`; arrays ``(K,)`` in the order of the K ``names``.

    Args:
        variance: trace of the covariance of a gradient from ``n_episodes`` episodes.
        variance_error: standard error of that.
        squared_norm: :math:`\\|E\\hat g\\|^2`, the noise of the measurement taken out.
        squared_bias: :math:`\\|E\\hat g - E\\hat g_{unbiased}\\|^2`, likewise; may fall below 0.
        bias_error: standard error of that.
        mean_gradient: ``(K, P)`` over the policy's P weights.
        entropy: of the policy, nats a step. explained_variance: of the critic, on fresh episodes.
    """

    names: list[str]
    n_episodes: int
    variance: np.ndarray
    variance_error: np.ndarray
    squared_norm: np.ndarray
    squared_bias: np.ndarray
    bias_error: np.ndarray
    mean_gradient: np.ndarray
    entropy: float
    explained_variance: float

    @property
    def relative(self) -> np.ndarray:
        """Variance over the squared norm of the unbiased mean ``(K,)``: noise to signal.

        NaN where the gradient is below the noise; the gradient of a perfect policy is 0.
        """
        signal = self.squared_norm[self.names.index(UNBIASED)]
        return self.variance / (signal if signal > 0 else np.nan)


def measure(
    policy: ActorCritic,
    env_id: str,
    *,
    n_episodes: int = 16,
    batches: int = 100,
    gamma: float = 0.99,
    estimators: Mapping[str, Weighing] = ESTIMATORS,
    critic_batches: int = 20,
    seed: int = 0,
    env_kwargs: Mapping[str, Any] | None = None,
) -> GradientNoise:
    """Estimate the gradient ``batches`` times from ``n_episodes`` episodes by each estimator.

    All estimate the gradient of the discounted return, so the factor γ^t is kept. The critic is
    fitted to the fixed policy first, on ``critic_batches * n_episodes`` episodes of its own; the
    ``policy`` given stays as it is.

    Args:
        policy: any, trained or fresh. gamma: discount. seed: of everything random.
        estimators: by name; `UNBIASED` must be one of them.
    """
    if UNBIASED not in estimators:
        raise ProblemError(f"estimators: {UNBIASED!r} must be among them, the others' yardstick")
    if batches < 2 or critic_batches < 1:
        raise ProblemError(
            f"batches: {batches} and critic_batches: {critic_batches} must be at least 2 and 1"
        )
    for weighing in estimators.values():
        check_estimator(weighing.estimator, weighing.baseline, n_episodes)
    policy = copy.deepcopy(policy)
    player = EpisodePlayer(env_id, env_kwargs, n_episodes, seed)
    actor = actor_parameters(policy)
    _fit_critic(policy, player, critic_batches, gamma)
    gradients, entropies, fits = [], [], []
    for _ in range(batches):
        rollout = player.play(policy)
        estimates, entropy, fit = _gradients(policy, actor, rollout, estimators, gamma)
        gradients.append(estimates)
        entropies.append(entropy)
        fits.append(fit)
    player.close()
    return _summary(
        list(estimators),
        np.stack(gradients, 1),
        n_episodes,
        float(np.mean(entropies)),
        float(np.mean(fits)),
    )


def exact_policy_gradient(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    r"""The gradient of :math:`J = E[\sum_t \gamma^t r_t]` by the logits of a softmax table.

    The policy gradient theorem (Sutton & Barto 2018, section 13.2; Sutton et al. 2000, theorem 1)
    with :math:`\partial\log\pi(a|s)/\partial\theta_{s,b} = 1_{a=b} - \pi(b|s)`:

    .. math:: \frac{\partial J}{\partial\theta_{s,a}}
              = d(s)\,\pi(a|s)\,\big(Q^\pi(s,a) - V^\pi(s)\big), \qquad
              d = (I - \gamma P_\pi^\top)^{-1} d_0

    Args:
        policy: probabilities ``(S, A)``.

    Returns:
        ``(S, A)``, zero in terminal states.
    """
    chain, _ = under_policy(mdp, policy)  # γ P_π
    visits = np.asarray(spsolve(sp.csc_array(sp.eye_array(mdp.n_states) - chain.T), mdp.start))  # d
    values = policy_evaluation(mdp, policy)
    advantages = action_values(mdp, values) - values[:, None]  # Q - V
    gradient = visits[:, None] * policy * advantages
    return np.where(mdp.terminal[:, None], 0.0, gradient)


def _fit_critic(policy: ActorCritic, player: EpisodePlayer, batches: int, gamma: float) -> None:
    """Monte Carlo regression, with a step size that falls to zero so that V settles."""
    optimizer = Adam(critic_parameters(policy), 1e-2)
    for batch in range(batches):
        optimizer.learning_rate = 1e-2 * (1 - batch / batches)
        rollout = player.play(policy)
        _, returns = score_weights(rollout, "gpomdp", "none", gamma=gamma)
        fit_values(policy, optimizer, rollout, returns, 50, player.rng)


def _gradients(
    policy: ActorCritic,
    actor: nn.Parameter,
    rollout: Rollout,
    estimators: Mapping[str, Weighing],
    gamma: float,
) -> tuple[np.ndarray, float, float]:
    """ĝ by each estimator ``(K, P)``, the mean entropy, the critic's explained variance."""
    real = rollout.mask
    assert actor.grad is not None
    outputs, _ = policy(rollout.observations[real])
    logps, entropies = policy.log_probs(outputs, rollout.actions[real])
    estimates = []
    for weighing in estimators.values():
        weights, _ = score_weights(
            rollout,
            weighing.estimator,
            weighing.baseline,
            gamma=gamma,
            lam=weighing.lam,
            discount_states=True,
        )
        surrogate = -policy_gradient(logps, weights[real]).sum() / real.shape[1]
        actor.grad.zero_()
        surrogate.backward(retain_graph=True)
        estimates.append(actor.grad.numpy().copy())
    _, returns = score_weights(rollout, "gpomdp", "none", gamma=gamma)
    fit = explained_variance(rollout.values[real], returns[real])
    return np.stack(estimates), entropies.mean().item(), float(fit)


def _summary(
    names: list[str], gradients: np.ndarray, n_episodes: int, entropy: float, fit: float
) -> GradientNoise:
    """The statistics of gradients ``(K, B, P)``, B batches each."""
    gradients = gradients.astype(np.float64)
    mean = gradients.mean(1)
    variance, variance_error, squared_norm, _ = _moments(gradients)
    # Differences on the same episodes: what both have in common cancels.
    differences = gradients - gradients[names.index(UNBIASED)]
    _, _, squared_bias, bias_error = _moments(differences)
    return GradientNoise(
        names,
        n_episodes,
        variance,
        variance_error,
        squared_norm,
        squared_bias,
        bias_error,
        mean,
        entropy,
        fit,
    )


def _moments(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    r"""Of ``(K, B, P)``: trace of the covariance and its error, squared norm of the mean and its.

    :math:`\|\bar g\|^2` is too large by the variance of the mean, which is taken off.
    """
    n_batches = samples.shape[1]
    mean = samples.mean(1, keepdims=True)
    distances = np.square(samples - mean).sum(-1)  # (K, B)
    variance = distances.sum(1) / (n_batches - 1)
    variance_error = distances.std(1, ddof=1) / np.sqrt(n_batches)
    squared_norm = np.square(mean).sum((1, 2)) - variance / n_batches
    # By the delta method the error of ‖ḡ‖² is that of 2 g·ḡ; at ḡ = 0 that of the part taken off.
    along = (samples * mean).sum(-1)
    norm_error = np.sqrt(4 * along.var(1, ddof=1) / n_batches + 2 * np.square(variance / n_batches))
    return variance, variance_error, squared_norm, norm_error
