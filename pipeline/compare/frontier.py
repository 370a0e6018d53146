"""The best that any method could do: the optimum of KL-regularised RL, and where to trust it.

For J_β(π) = E[r] − β·KL(π‖π_ref) the optimum is known in closed form (Korbak et al. 2022;
Rafailov et al. 2023):

    π*(y|x) = π_ref(y|x)·exp(r(x,y)/β) / Z_x,   Z_x = E_{y∼π_ref} exp(r(x,y)/β)
    J*_β    = β·E_x log Z_x

Every expectation here is estimated from the same N samples of π_ref a prompt, given as their
rewards ``(P, N)``: P prompts, N samples; where these are too few at a β, from them and the samples
of the best policy so far (:mod:`pipeline.compare.refine`). Each point of the curve is estimated
twice (:mod:`pipeline.compare.estimates`), has an interval, and says whether it is to be trusted
(:mod:`pipeline.compare.trust`). All KLs are in nats per completion, rewards in the reward's own
unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.compare import refine
from pipeline.compare.estimates import Array, Samples, corrected, effective_sample_size, plain
from pipeline.compare.intervals import Interval
from pipeline.compare.refine import PolicySamples
from pipeline.compare.trust import JudgedOptimum, judged_optimum

# The first row of the doubling table: fewer samples than this say little about a log of a mean.
FIRST_DOUBLING = 8


@dataclass(frozen=True)
class Doubling:
    """J*_β as ``n`` samples a prompt estimate it; see :func:`doubling`.

    Attributes:
        j_star: the plain estimate, biased low. corrected: less its bias in 1/n.
        ess: effective sample size, mean over prompts.
    """

    n: int
    j_star: float
    corrected: float
    ess: float


def doubling(rewards: Array, beta: float) -> list[Doubling]:
    """J*_β from 8, 16, 32, … N samples a prompt, to see whether it has settled.

    Each n averages the estimates of all disjoint blocks of n samples, so that rows differ by bias
    and not by the luck of the first n.
    """
    prompts, samples = rewards.shape
    sizes = [FIRST_DOUBLING]
    while sizes[-1] * 2 <= samples:
        sizes.append(sizes[-1] * 2)
    sizes = sorted({n for n in sizes if n < samples} | {samples})
    rows = []
    for n in sizes:
        blocks = rewards[:, : samples // n * n].reshape(prompts * (samples // n), n)
        each = Samples.of_reference(blocks)
        rows.append(
            Doubling(
                n,
                float(plain(each, beta).objective.mean()),
                float(corrected(each, beta).objective.mean()),
                float(effective_sample_size(each, beta).mean()),
            )
        )
    return rows


def kl_cap(samples: int) -> float:
    """The largest KL that a reweighting of ``samples`` samples can show: log N nats."""
    return math.log(samples)


@dataclass(frozen=True)
class FrontierPoint:
    """The optimum at one β: a row of the frontier in results.json.

    Attributes:
        reward, kl: R* and K*, less their bias. reward_ci, kl_ci: their 95 % intervals.
        reward_2, kl_2: the second estimate; None where it has none.
        ess: effective sample size a prompt behind them, mean over prompts.
        trusted: whether R* and K* are both to be trusted; of one that is not the floor is
            drawn instead.
        untrusted_because: why it is not, in words.
        refined_with: the policy whose samples were added; None where π_ref's are all.
        floor_kl, floor_reward: a point of the floor (:func:`floor`): of policies at this KL the
            best has at least this reward, on average over samples.
    """

    beta: float
    reward: float
    kl: float
    ess: float
    reward_ci: Interval | None
    kl_ci: Interval | None
    reward_2: float | None
    kl_2: float | None
    trusted: bool
    untrusted_because: str | None
    refined_with: str | None
    floor_kl: float
    floor_reward: float


def floor(samples: Samples, beta: float) -> tuple[float, float]:
    """KL and reward of the plain estimate at ``beta``: a point of a curve that is on average no
    higher than the frontier, however few the samples.

    The frontier is F(K) = min_β [J*(β) + β·K]. With Ĵ the plain estimate, which is low by
    Jensen, E min_β [Ĵ(β) + β·K] ≤ min_β [E Ĵ(β) + β·K] ≤ F(K) for every K. And Ĵ is convex with
    Ĵ'(β) = −K̂, as J* is, so that the minimum lies at (K̂, R̂) itself.
    """
    found = plain(samples, beta)
    return max(0.0, float(found.kl.mean())), float(found.reward.mean())


@dataclass(frozen=True)
class Best:
    """The optimum at one β, from the samples that it took."""

    beta: float
    samples: Samples
    found: JudgedOptimum
    refined_with: str | None

    @property
    def by_prompt(self) -> Array:
        """J* a prompt, ``(P,)``."""
        return self.found.by_prompt

    def point(self) -> FrontierPoint:
        """The row of results.json."""
        reward, kl = self.found.reward, self.found.kl
        floor_kl, floor_reward = floor(self.samples, self.beta)
        return FrontierPoint(
            beta=self.beta,
            reward=reward.value,
            # A KL is ≥ 0; at a large β only rounding could say otherwise.
            kl=max(kl.value, 0.0),
            ess=float(effective_sample_size(self.samples, self.beta).mean()),
            reward_ci=reward.interval,
            kl_ci=kl.interval,
            reward_2=reward.second,
            kl_2=kl.second,
            trusted=reward.trusted and kl.trusted,
            untrusted_because=reward.because or kl.because,
            refined_with=self.refined_with,
            floor_kl=floor_kl,
            floor_reward=floor_reward,
        )


Enough = Callable[[JudgedOptimum], bool]


def optimum(rewards: Array, beta: float, policies: Sequence[PolicySamples] = ()) -> Best:
    """The optimum at ``beta``, J* first of all: refined where π_ref's samples do not carry J*."""
    return _best(rewards, beta, policies, lambda found: found.objective.trusted)


def _best(rewards: Array, beta: float, policies: Sequence[PolicySamples], enough: Enough) -> Best:
    alone = Samples.of_reference(rewards)
    found = judged_optimum(alone, beta)
    policy = None if enough(found) else refine.best(policies, beta)
    if policy is not None:
        together = refine.mixture(rewards, policy)
        refined = judged_optimum(together, beta)
        if enough(refined):
            return Best(beta, together, refined, policy.name)
    return Best(beta, alone, found, None)


def _both(found: JudgedOptimum) -> bool:
    return found.reward.trusted and found.kl.trusted


def curve(
    rewards: Array, betas: Sequence[float], policies: Sequence[PolicySamples] = ()
) -> list[Best]:
    """The optimum at each of ``betas``, sorted by β: reward and KL fall along the list."""
    return [_best(rewards, beta, policies, _both) for beta in sorted(set(betas))]


def frontier(
    rewards: Array, betas: Sequence[float], policies: Sequence[PolicySamples] = ()
) -> list[FrontierPoint]:
    """The rows of the frontier in results.json; see :func:`curve`."""
    return [best.point() for best in curve(rewards, betas, policies)]


def reach(points: Sequence[Best]) -> Best | None:
    """The point of least β down to which every point is trusted; None where the last is not."""
    lowest = None
    for best in sorted(points, key=lambda best: best.beta, reverse=True):
        if not _both(best.found):
            break
        lowest = best
    return lowest


def least_kl(points: Sequence[Best], reward: float) -> float | None:
    """K*(R): the least KL that any policy pays for the mean reward ``reward``.

    Solves R*(β) = R for β by bisection (R* falls as β grows), which unlike interpolation between
    a few points of a convex curve does not overstate K*, on the samples of the last point that is
    trusted (:func:`reach`).

    Returns:
        nats, or None outside the range from E_ref[r] to that point's R*, beyond which the samples
        do not carry the estimate.
    """
    lowest = reach(points)
    if lowest is None:
        return None
    samples = lowest.samples
    base = float(samples.rewards[:, : samples.parts[0]].mean())
    if not base <= reward <= float(corrected(samples, lowest.beta).reward.mean()):
        return None
    low = math.log(lowest.beta)
    # R*(β) − E_ref[r] is about Var(r)/β for large β, so this β is as good as infinite.
    high = max(low, math.log(1e9 * (1.0 + float(np.ptp(samples.rewards)))))
    for _ in range(60):
        middle = (low + high) / 2
        if float(corrected(samples, math.exp(middle)).reward.mean()) > reward:
            low = middle
        else:
            high = middle
    return max(0.0, float(corrected(samples, math.exp(low)).kl.mean()))


def kl_efficiency(points: Sequence[Best], reward: float, kl: float) -> float | None:
    """K*(R(π)) / KL(π): the share of a policy's KL that its reward was worth; 1 is optimal.

    Returns:
        None when the KL is 0, or the reward is where no point is trusted (:func:`least_kl`).
    """
    needed = least_kl(points, reward)
    return needed / kl if needed is not None and kl > 0 else None


def kl_efficiency_at_least(points: Sequence[Best], reward: float, kl: float) -> float | None:
    """A floor of :func:`kl_efficiency` for a reward above all points that are trusted.

    K*(R) rises with R, so a policy beyond the last of them needs at least that one's KL. None
    where the efficiency itself is known, or nothing is trusted.
    """
    lowest = reach(points)
    if lowest is None or kl <= 0 or reward <= lowest.found.reward.value:
        return None
    return max(0.0, lowest.found.kl.value) / kl
