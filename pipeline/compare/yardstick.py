"""What policies are measured against: the optimum at β, the frontier, and how far to trust them.

Where J* is not trusted its estimate is the plain one, which is low (Jensen). What is divided by the
room up to it is then a bound: of a gain its share is at most so much, of a loss at least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.compare.estimates import Array
from pipeline.compare.evaluate import Evaluation
from pipeline.compare.frontier import (
    Best,
    curve,
    doubling,
    kl_cap,
    kl_efficiency,
    kl_efficiency_at_least,
    optimum,
)
from pipeline.compare.intervals import ratio, ratio_interval, skewed_mean_interval
from pipeline.compare.refine import PolicySamples

Numbers = dict[str, Any]


def helpers(evaluations: Mapping[str, Evaluation], reference: str) -> list[PolicySamples]:
    """The policies whose samples can refine the optimum.

    Those whose log-ratio to π_ref is known of each of their own samples and of each of π_ref's
    (``compare.reverse_kl_samples`` as large as ``compare.reference_samples``).

    Args:
        reference: the name of π_ref.
    """
    every = evaluations[reference].samples_per_prompt
    made = []
    for name, found in evaluations.items():
        if name == reference or found.ref_samples != every:
            continue
        if found.logratio is None or found.ref_logratio is None:
            continue
        theirs = np.asarray(found.ref_logratio, dtype=np.float64).reshape(-1, every)
        own = found.grid(found.logratio)
        if np.isfinite(own).all() and not np.isnan(theirs).any():
            made.append(PolicySamples(name, found.grid(found.proxy), own, theirs))
    return made


@dataclass(frozen=True)
class Yardstick:
    """The two ends of the scale of optimality, and the frontier.

    Attributes:
        rewards: ``(P, N)`` of π_ref's samples.
        beta: price of a nat of KL.
        best: the optimum at β; None at β = 0, where more reward is always better.
        points: the optimum at each β of the curve, sorted.
    """

    rewards: Array
    beta: float
    best: Best | None
    points: list[Best]

    @classmethod
    def of(
        cls,
        rewards: Array,
        beta: float,
        betas: Sequence[float],
        policies: Sequence[PolicySamples] = (),
    ) -> Yardstick:
        """Estimate all of it; ``policies`` help where π_ref's samples do not suffice.

        Args:
            betas: of the curve. β belongs on it too: it is the point that policies aim at.
        """
        ours = [beta] if beta > 0 else []
        best = optimum(rewards, beta, policies) if ours else None
        return cls(rewards, beta, best, curve(rewards, [*betas, *ours], policies))

    @property
    def room(self) -> Array | None:
        """The most that a policy can gain in the objective, by prompt ``(P,)``; None at β = 0."""
        return None if self.best is None else self.best.by_prompt - self.rewards.mean(axis=1)

    @property
    def trusted(self) -> bool:
        """Whether J* is to be trusted; an optimum that is not there is."""
        return self.best is None or self.best.found.objective.trusted

    def optimality(
        self, gain: Array | None, resamples: int, seed: int, *, lower_bound: bool = False
    ) -> Numbers:
        """The share of the room that ``gain`` ``(P,)`` is, its interval, and whether it is a bound.

        Args:
            lower_bound: the gain itself is known to be low, as that of best-of-n.
        """
        room = self.room
        if gain is None or room is None:
            return {"optimality": None, "optimality_ci": None, "optimality_bound": None}
        value = ratio(gain, room)
        bound = None
        if value is not None and lower_bound:
            bound = "at least" if self.trusted else "unclear"
        elif value and not self.trusted:  # 0 is 0 of any room
            bound = "at most" if value > 0 else "at least"
        interval = ratio_interval(gain, room, resamples, seed)
        return {"optimality": value, "optimality_ci": interval, "optimality_bound": bound}

    def efficiency(self, reward: float, kl: float | None) -> Numbers:
        """K*(R)/KL, or a floor of it where no trusted point has so high a reward."""
        if kl is None:
            return {"kl_efficiency": None, "kl_efficiency_at_least": None}
        return {
            "kl_efficiency": kl_efficiency(self.points, reward, kl),
            "kl_efficiency_at_least": kl_efficiency_at_least(self.points, reward, kl),
        }

    def frontier(self) -> list[Numbers]:
        """The rows of the frontier in results.json."""
        return [asdict(best.point()) for best in self.points]

    def details(self) -> Numbers:
        """The two ends of the scale, for details.json, and how far to trust the upper one."""
        made: Numbers = {
            "objective_ref": float(self.rewards.mean()),
            "j_star": None, "j_star_ci": None, "j_star_2": None, "trusted": None,
            "untrusted_because": None, "refined_with": None, "optimum": [],
            "kl_cap": kl_cap(self.rewards.shape[1]),
        }  # fmt: skip
        if self.best is None:
            return made
        found, each = self.best.found.objective, self.best.by_prompt
        return made | {
            "j_star": float(each.mean()),
            "j_star_ci": found.interval if found.trusted else skewed_mean_interval(each),
            "j_star_2": found.second,
            "trusted": found.trusted,
            "untrusted_because": found.because,
            "refined_with": self.best.refined_with,
            "optimum": [asdict(row) for row in doubling(self.rewards, self.beta)],
        }
