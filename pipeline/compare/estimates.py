"""Two estimates of the optimum at one β from weighted samples, a prompt at a time.

The optimum π* ∝ π_ref·exp(r/β) has Z = E_ref exp(r/β), J* = β·log Z, R* = E_π*[r] and
K* = KL(π*‖π_ref) = R*/β − log Z. Samples come from π_ref, or from π_ref and a policy
(:mod:`pipeline.compare.refine`); each has the weight exp(r/β)·π_ref/q, q what it was drawn from.

First estimate (:func:`corrected`): weighted means, which are biased towards π_ref in 1/n, with that
bias taken off by a stratified jackknife (Quenouille 1956; Efron & Stein 1981).

Second estimate (:func:`covariance`): the covariance form of Monteiro Paes et al. 2026 (arXiv
2605.07105), the gain of the optimum as a covariance under π_ref,

    R* − E_ref[r] = Cov_ref(r, exp(r/β)) / E_ref[exp(r/β)],

with the numerator from one half of the samples and the denominator from the other, and the mean of
both ways round. With the same samples in both places it would be the first estimate once more,
digit for digit; across halves the numerator is unbiased and 1/Ẑ is biased high (Jensen), where the
first estimate is biased low.
J* follows by thermodynamic integration (Kirkwood 1935; Gelman & Meng 1998): d log Z/dλ = R at
λ = 1/β, hence log Z = ∫₀^{1/β} R(λ) dλ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.intp]

# Points of the Gauss–Legendre rule along the path from π_ref to the optimum. R(λ) is smooth:
# of 64 rewards with sd 1 they integrate a weighted mean back to β·log Z within 1e-4 at β = 0.1.
_PATH, _PATH_WEIGHTS = np.polynomial.legendre.leggauss(12)
# What exp can underflow to; a half that has no weight at all is divided by it.
_TINY = 1e-300


@dataclass(frozen=True)
class Samples:
    """n completions a prompt with their rewards, and how likely each was to be drawn.

    Attributes:
        rewards: ``(P, n)``.
        log_density: ``(P, n)`` log q/π_ref of each, q the density it was drawn from; 0 for π_ref.
        parts: columns by the policy that they come from, π_ref first; they add up to n.
    """

    rewards: Array
    log_density: Array
    parts: tuple[int, ...]

    @classmethod
    def of_reference(cls, rewards: Array) -> Samples:
        """Samples of π_ref alone."""
        return cls(rewards, np.zeros_like(rewards), (rewards.shape[1],))

    def log_weights(self, beta: float) -> Array:
        """Log exp(r/β)·π_ref/q, ``(P, n)``."""
        return self.rewards / beta - self.log_density

    def halves(self) -> tuple[Samples, Samples]:
        """Half of each part's columns, and the other half; an odd one out is left out."""
        first, second, start = [], [], 0
        for size in self.parts:
            half = size // 2
            first += range(start, start + half)
            second += range(start + half, start + 2 * half)
            start += size
        return self._columns(first), self._columns(second)

    def _columns(self, index: list[int]) -> Samples:
        sizes = tuple(size // 2 for size in self.parts)
        return Samples(self.rewards[:, index], self.log_density[:, index], sizes)

    def strata(self) -> Iterator[tuple[slice, float]]:
        """Each part's columns and the share of the samples that it is."""
        start = 0
        for size in self.parts:
            yield slice(start, start + size), size / sum(self.parts)
            start += size


@dataclass(frozen=True)
class Optimum:
    """The optimum a prompt, each ``(P,)``: reward R*, KL K* in nats, objective J* = R* − β·K*."""

    reward: Array
    kl: Array
    objective: Array

    @classmethod
    def at(cls, beta: float, reward: Array, log_z: Array) -> Optimum:
        """From R* and log Z a prompt."""
        return cls(reward, reward / beta - log_z, beta * log_z)


def shares(samples: Samples, beta: float) -> Array:
    """Each sample's share of π*, the self-normalised weights: ``(P, n)``, rows sum to 1."""
    logs = samples.log_weights(beta)
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def effective_sample_size(samples: Samples, beta: float) -> Array:
    """Samples that count under π*, 1/Σw² a prompt (Kong 1992): ``(P,)``, from 1 to n."""
    return 1.0 / np.square(shares(samples, beta)).sum(axis=1)


def plain(samples: Samples, beta: float) -> Optimum:
    """The weighted means as they are: R* and K* are biased towards π_ref, J* is biased low."""
    weights, top = _scaled(samples, beta)
    mean = weights.mean(axis=1)
    reward = (weights * samples.rewards).mean(axis=1) / mean
    return Optimum.at(beta, reward, top + np.log(mean))


def corrected(samples: Samples, beta: float) -> Optimum:
    """The weighted means less their bias in 1/n, by a jackknife within each part.

    With θ̂ the plain estimate and θ̂₋ᵢ that without sample i of a part of n_s samples (the part
    keeps its share), θ̂ − Σ_s (n_s − 1)·(mean_i θ̂₋ᵢ − θ̂). By concavity of the log, J* only rises.

    Raises:
        ValueError: a part has fewer than two samples.
    """
    if min(samples.parts) < 2:
        raise ValueError(f"a jackknife needs two samples a part, found {samples.parts}")
    weights, top = _scaled(samples, beta)
    gains = weights * samples.rewards
    mean = weights.mean(axis=1)
    log_mean, reward = np.log(mean), gains.mean(axis=1) / mean
    log_bias, reward_bias = np.zeros_like(top), np.zeros_like(top)
    for columns, share in samples.strata():
        largest = weights[:, columns].argmax(axis=1)
        means = _left_out(weights, largest, columns, share)
        rewards = _left_out(gains, largest, columns, share) / means
        left = means.shape[1] - 1
        log_bias += left * (np.log(means).mean(axis=1) - log_mean)
        reward_bias += left * (rewards.mean(axis=1) - reward)
    return Optimum.at(beta, reward - reward_bias, top + log_mean - log_bias)


def _scaled(samples: Samples, beta: float) -> tuple[Array, Array]:
    """Weights over each prompt's largest ``(P, n)``, and the log of that largest ``(P,)``."""
    logs = samples.log_weights(beta)
    top = logs.max(axis=1)
    # Below _TINY a weight says nothing, and a mean over such alone would have no log.
    return np.maximum(np.exp(logs - top[:, None]), _TINY), top


def _left_out(values: Array, largest: Index, columns: slice, share: float) -> Array:
    """The mean over all parts without each sample of one, ``(P, n_s)``.

    Args:
        largest: the part's sample of the largest weight. What is left without it is added up, for
            taken off the sum it would leave rounding errors alone.
    """
    part = values[:, columns]
    others = values.copy()
    others[:, columns] = 0.0
    rest = part.sum(axis=1, keepdims=True) - part
    rows = np.arange(len(part))
    without = part.copy()
    without[rows, largest] = 0.0
    rest[rows, largest] = without.sum(axis=1)
    return others.mean(axis=1, keepdims=True) + share / (part.shape[1] - 1) * rest


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is no estimate: see `trust`
def covariance(samples: Samples, beta: float) -> Optimum:
    """The second estimate: the covariance form across halves; the module's docstring has it.

    Raises:
        ValueError: a part has fewer than four samples.
    """
    if min(samples.parts) < 4:
        raise ValueError(f"halves need four samples a part, found {samples.parts}")
    halves = samples.halves()
    reward = _across(halves, 1.0 / beta)
    steps = (_PATH + 1.0) / (2.0 * beta)
    lengths = _PATH_WEIGHTS / (2.0 * beta)
    log_z = sum(length * _across(halves, at) for at, length in zip(steps, lengths, strict=True))
    return Optimum.at(beta, reward, np.asarray(log_z))


def _across(halves: tuple[Samples, Samples], inverse: float) -> Array:
    """R at 1/β = ``inverse`` by the covariance form, both ways round: ``(P,)``."""
    total = np.zeros(len(halves[0].rewards))
    for ours, theirs in (halves, halves[::-1]):
        logs = [half.rewards * inverse - half.log_density for half in (ours, theirs)]
        top = np.maximum(logs[0].max(axis=1), logs[1].max(axis=1))[:, None]
        weights, size = np.exp(logs[0] - top), ours.parts[0]
        base = ours.rewards[:, :size].mean(axis=1)
        away = ours.rewards - base[:, None]
        # The mean is of the same samples as π_ref's part of the weights, which takes 1/size of
        # their covariance away (Bessel's correction, for the part that it concerns).
        within = (weights[:, :size] * away[:, :size]).sum(axis=1) / (size - 1)
        shared = within / weights.shape[1]
        numerator = (weights * away).mean(axis=1) + shared
        total += base + numerator / np.maximum(np.exp(logs[1] - top).mean(axis=1), _TINY)
    return total / 2
