"""Reach beyond π_ref's samples with those of a trained policy.

At a small β nearly all weight of the optimum lies where π_ref seldom goes, and a policy that was
trained for it often does. Samples of both together are samples of their mixture, and all of them
are weighted by it: multiple importance sampling with the balance heuristic (Veach & Guibas 1995),

    q = (N·π_ref + m·π) / (N + m),   weight = π_ref·exp(r/β) / q.

Z stays unbiased whatever π is. π_ref's share makes the mixture defensive (Hesterberg 1995; Owen &
Zhou 2000): no weight exceeds (N + m)/N·exp(r/β), what a policy never writes is still seen as often
as before, and a bad policy costs no more than its m samples. The yardstick should not depend on
what is measured with it, so :mod:`pipeline.compare.frontier` refines only where π_ref's samples
alone are not enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.compare.estimates import Array, Samples
from pipeline.compare.trust import FEWEST_SAMPLES


@dataclass(frozen=True)
class PolicySamples:
    """m samples a prompt of a policy π, and how likely it and π_ref find them and π_ref's own.

    Log-ratios are log π(y|x) − log π_ref(y|x) in nats, summed over the completion's tokens, EOS
    included: of the tokens that were sampled, not the KL along the path.

    Attributes:
        name: the policy's.
        rewards: ``(P, m)``.
        logratio: ``(P, m)`` of its own samples.
        reference_logratio: ``(P, N)`` of π_ref's.
    """

    name: str
    rewards: Array
    logratio: Array
    reference_logratio: Array

    def objective(self, beta: float) -> float:
        """J_β(π) as its own samples have it."""
        return float((self.rewards - beta * self.logratio).mean())


def best(policies: Sequence[PolicySamples], beta: float) -> PolicySamples | None:
    """The policy with the highest objective at ``beta``; None of none.

    J*_β − J_β(π) = β·KL(π‖π*), so it is the one nearest to the optimum.
    """
    usable = [p for p in policies if p.rewards.shape[1] >= FEWEST_SAMPLES]
    return max(usable, key=lambda policy: policy.objective(beta), default=None)


def mixture(rewards: Array, policy: PolicySamples) -> Samples:
    """π_ref's samples and ``policy``'s as samples of their mixture.

    An odd one out on either side is left out, so that halves have the mixture's shares.

    Args:
        rewards: ``(P, N)`` of π_ref's samples, in the order of ``policy.reference_logratio``.
    """
    many, few = rewards.shape[1] // 2 * 2, policy.rewards.shape[1] // 2 * 2
    together = np.hstack([rewards[:, :many], policy.rewards[:, :few]])
    logratio = np.hstack([policy.reference_logratio[:, :many], policy.logratio[:, :few]])
    total = many + few
    density = np.logaddexp(np.log(many / total), np.log(few / total) + logratio)
    return Samples(together, density, (many, few))
