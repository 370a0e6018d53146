"""Whether an estimate of the optimum can be trusted, and its 95 % interval.

Nothing in π_ref's samples shows a completion that none of them is; what they do show is whether
the estimate still depends on how many they are. A quantity (R*, K* or J*) is trusted when

1. there are at least 30 prompts, below which an interval of a skewed mean is too narrow;
2. the last doubling of the samples moved it by at most a quarter of its interval's half-width;
3. the second estimate, whose bias has the other sign, lies inside its interval.

Both estimates have an interval, of a mean over prompts (:mod:`pipeline.compare.intervals`), and a
quantity's interval holds both: their biases have different signs, so the truth lies between what
they tend to. The end of the first towards which the last doubling moved is moved by as much again,
for what the correction has left.
docs/frontier.md says how well it tells: a floor on the effective sample size and Pareto's k of the
weights, which were tried beside it, found hardly a bad point that 2 and 3 had not.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.compare.estimates import Array, Optimum, Samples, corrected, covariance, plain
from pipeline.compare.intervals import Interval, skewed_mean_interval

FEWEST_PROMPTS = 30
# Halves of halves: the jackknife needs two samples, on either half of a part.
FEWEST_SAMPLES = 4
# Largest share of the half-width by which the last doubling may have moved an estimate.
SETTLED = 0.25

FEW_SAMPLES = f"fewer than {FEWEST_SAMPLES} samples a prompt"
FEW_PROMPTS = f"fewer than {FEWEST_PROMPTS} prompts"
UNSETTLED = "it still moves as the samples double"
DISAGREE = "the second estimate is outside its interval"


@dataclass(frozen=True)
class Judged:
    """One quantity of the optimum.

    Attributes:
        value: the mean over prompts, less its bias.
        interval: at 95 %; None from one prompt.
        second: the second estimate; None where it has none, or one that no reward could give.
        because: why it is not trusted; None where it is.
    """

    value: float
    interval: Interval | None
    second: float | None
    because: str | None

    @property
    def trusted(self) -> bool:
        """Whether the value may be drawn and built on."""
        return self.because is None


@dataclass(frozen=True)
class JudgedOptimum:
    """The optimum at one β: R*, K* in nats, J*.

    Attributes:
        by_prompt: J* a prompt, ``(P,)``. Where J* is not trusted it is the plain estimate, which is
            known to be low (Jensen), so that what is divided by it is known to be high.
    """

    reward: Judged
    kl: Judged
    objective: Judged
    by_prompt: Array


def judged_optimum(samples: Samples, beta: float) -> JudgedOptimum:
    """Estimate the optimum at ``beta`` twice, and say of each number whether to trust it."""
    if min(samples.parts) < FEWEST_SAMPLES:
        return _unjudged(plain(samples, beta))
    first, second = corrected(samples, beta), covariance(samples, beta)
    halves = [corrected(half, beta) for half in samples.halves()]
    top = float(samples.rewards.max())
    # A half without weight makes the other's reward as good as infinite.
    possible = float(second.reward.mean()) <= top
    kinds = {}
    for name in ("reward", "kl", "objective"):
        values = getattr(first, name)
        moved = values - (getattr(halves[0], name) + getattr(halves[1], name)) / 2
        other = getattr(second, name) if possible else None
        kinds[name] = _judge(values, float(moved.mean()), other)
    low = plain(samples, beta).objective
    trusted = kinds["objective"].trusted
    return JudgedOptimum(**kinds, by_prompt=first.objective if trusted else low)


def _unjudged(found: Optimum) -> JudgedOptimum:
    """With too few samples for a second look: the numbers, none of them trusted."""
    kinds = {
        name: Judged(float(values.mean()), skewed_mean_interval(values), None, FEW_SAMPLES)
        for name in ("reward", "kl", "objective")
        for values in [getattr(found, name)]
    }
    return JudgedOptimum(**kinds, by_prompt=found.objective)


def _judge(values: Array, moved: float, second: Array | None) -> Judged:
    """Judge a mean over prompts by its values a prompt, by its last change, and by another's."""
    value, interval = float(values.mean()), skewed_mean_interval(values)
    other = None if second is None else float(second.mean())
    if interval is None or len(values) < FEWEST_PROMPTS:
        return Judged(value, interval, other, FEW_PROMPTS)
    # Equal rewards leave an interval of no width, and rounding errors.
    slack = 1e-7 * (1.0 + abs(value))
    half = (interval[1] - interval[0]) / 2
    because = None
    if abs(moved) > SETTLED * half + slack:
        because = UNSETTLED
    elif other is None or abs(other - value) > half + slack:
        because = DISAGREE
    low, high = interval[0] + min(moved, 0.0), interval[1] + max(moved, 0.0)
    if because is None and second is not None:
        around = skewed_mean_interval(second) or interval
        low, high = min(low, around[0]), max(high, around[1])
    return Judged(value, (low, high), other, because)
