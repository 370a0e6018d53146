"""Does the frontier's interval hold the truth, and is what it distrusts untrustworthy?

    OMP_NUM_THREADS=1 python benchmarks/frontier_coverage.py
    … --picture docs/images/frontier-trust.png

100 random problems whose completions can be enumerated, so that the optimum is known. A problem is
a population of 300 prompts with 16 to 1,000 completions each; 32 or 64 prompts are drawn from it,
and 32, 64 or 128 samples a prompt. Seven kinds take turns:

    gauss   normal rewards, prompts alike in spread
    wide    … prompts that differ in spread (log-normal)
    heavy   rewards with exponential tails, or Student's t with three degrees of freedom
    rare    the best completion has a probability of 3·10⁻⁵ to 0.03, its reward is 3 to 8 sd up
    pass    rewards 0 and 1 (a check), pass rates that differ by prompt
    alike   all prompts nearly the same, so that nothing hides a bias
    tokens  a four-token language model, rewards that add up over tokens

Ten β a problem, 0.1 to 5 times the reward's sd within prompts. An estimate at a β is *bad* where
its bias, over 30 fresh draws, is more than its standard deviation (an unbiased interval would hold
the truth in 83 of 100), and *good* where it is below half of that.

A trained policy stands for the refinement: the optimum at 0.7·β with noise in its logits, of which
8 or 32 samples are drawn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.compare import estimates, refine
from pipeline.compare.estimates import Array, Index, Samples
from pipeline.compare.trust import Judged, JudgedOptimum, judged_optimum

KINDS = ("gauss", "wide", "heavy", "rare", "pass", "alike", "tokens")
POPULATION = 300
BETAS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
REDRAWS = 30
QUANTITIES = {"reward": "R*", "kl": "K*", "objective": "J*"}


@dataclass(frozen=True)
class Problem:
    """A population of prompts, every completion of each: probabilities and rewards ``(M, Y)``."""

    kind: str
    probabilities: Array
    rewards: Array

    @property
    def spread(self) -> float:
        """The rewards' standard deviation within a prompt, mean over prompts."""
        mean = (self.probabilities * self.rewards).sum(axis=1, keepdims=True)
        variance = (self.probabilities * (self.rewards - mean) ** 2).sum(axis=1)
        return float(np.sqrt(variance).mean()) or 1.0

    def optimum(self, beta: float) -> dict[str, float]:
        """R*, K* and J*, exactly."""
        logs = self.rewards / beta
        top = logs.max(axis=1)
        weights = self.probabilities * np.exp(logs - top[:, None])
        z = weights.sum(axis=1)
        reward = (weights * self.rewards).sum(axis=1) / z
        log_z = top + np.log(z)
        kl = reward / beta - log_z
        values = {"reward": reward, "kl": kl, "objective": beta * log_z}
        return {name: float(value.mean()) for name, value in values.items()}

    def tilted(self, beta: float, noise: Array) -> Array:
        """A policy ``(M, Y)`` near the optimum at ``beta``: π_ref·exp(r/β + noise), normalised."""
        logs = np.log(self.probabilities) + self.rewards / beta + noise
        policy = np.exp(logs - logs.max(axis=1, keepdims=True))
        return np.maximum(policy / policy.sum(axis=1, keepdims=True), 1e-300)


def draw(rng: np.random.Generator, policy: Array, count: int) -> Index:
    """Completions ``(P, count)`` drawn from ``policy`` ``(P, Y)``, by their index."""
    rows, width = policy.shape
    sums = policy.cumsum(axis=1)
    sums /= sums[:, -1:]
    apart = 2.0 * np.arange(rows)[:, None]
    found = np.searchsorted((sums + apart).ravel(), (rng.random((rows, count)) + apart).ravel())
    return np.minimum(found.reshape(rows, count) - width * np.arange(rows)[:, None], width - 1)


def random_problem(rng: np.random.Generator, kind: str) -> Problem:
    """A problem of ``kind``; see the head of this file."""
    width = 256 if kind == "tokens" else int(rng.choice([16, 64, 250, 1000]))
    shape = (POPULATION, width)
    rows = 1 if kind == "alike" else POPULATION
    chances = rng.dirichlet(np.full(width, rng.choice([0.1, 1.0])), rows) + 1e-12
    chances = np.repeat(chances, POPULATION // rows, axis=0)
    chances /= chances.sum(axis=1, keepdims=True)
    offset = rng.normal(0.0, rng.uniform(0.2, 1.5), (POPULATION, 1))
    rewards = offset + rng.normal(size=shape)
    if kind == "wide":
        rewards = offset + rng.normal(size=shape) * np.exp(rng.normal(0.0, 0.7, (POPULATION, 1)))
    elif kind == "heavy":
        tails = rng.exponential(1.0, shape) if rng.random() < 0.5 else rng.standard_t(3, shape)
        rewards = offset + tails
    elif kind == "rare":
        best = 10 ** rng.uniform(-4.5, -1.5) * np.exp(rng.normal(0.0, 0.5, POPULATION))
        chances[:, 1:] *= ((1 - best) / chances[:, 1:].sum(axis=1))[:, None]
        chances[:, 0], rewards[:, 0] = best, offset[:, 0] + rng.uniform(3.0, 8.0)
    elif kind == "pass":
        skill = rng.uniform(0.1, 2.0)
        rate = rng.beta(skill, skill * rng.uniform(1.0, 10.0), (POPULATION, 1))
        rewards = (rng.random(shape) < rate).astype(np.float64)
    elif kind == "alike":
        rewards = rng.normal(size=width) + 0.1 * rng.normal(size=shape)
    elif kind == "tokens":
        chances, rewards = _tokens(rng, offset)
    return Problem(kind, chances, rewards)


def _tokens(rng: np.random.Generator, offset: Array) -> tuple[Array, Array]:
    letters, length = 4, 4
    spelled = np.array(np.unravel_index(np.arange(letters**length), (letters,) * length))
    tables = rng.dirichlet(np.ones(letters), (POPULATION, length))
    values = rng.normal(0.0, 0.7, (POPULATION, length, letters))
    chances, rewards = np.ones((POPULATION, 256)), offset + np.zeros((POPULATION, 256))
    for place, token in enumerate(spelled):
        chances *= tables[:, place, token]
        rewards += values[:, place, token]
    return chances, rewards


@dataclass
class Point:
    """What was found at one β of one problem."""

    problem: int
    kind: str
    beta: float
    unit: float
    truth: dict[str, float]
    found: JudgedOptimum
    refined: JudgedOptimum
    plain: dict[str, float]
    bias: dict[str, float] = field(default_factory=dict)

    def covers(self, name: str, refined: bool = False) -> bool:
        """Whether the interval holds the truth."""
        judged = getattr(self.refined if refined else self.found, name)
        slack = 1e-7 * (1.0 + abs(self.truth[name]))
        low, high = judged.interval
        return low - slack <= self.truth[name] <= high + slack

    def trusted(self, name: str, refined: bool = False) -> bool:
        """Whether the estimate says that it can be trusted."""
        return getattr(self.refined if refined else self.found, name).trusted

    def error(self, name: str, value: float) -> float:
        """Its distance from the truth: in nats for K*, else in the reward's sd."""
        unit = 1.0 if name == "kl" else self.unit
        return abs(value - self.truth[name]) / unit


def measure(rng: np.random.Generator, number: int, redraws: int = REDRAWS) -> list[Point]:
    """All β of one random problem; ``redraws`` fresh draws tell the bias (0: it is not told)."""
    problem = random_problem(rng, KINDS[number % len(KINDS)])
    prompts, samples = int(rng.choice([32, 64])), int(rng.choice([32, 64, 128]))
    few = int(rng.choice([8, 32]))
    noise = rng.normal(0.0, 0.5, problem.rewards.shape)
    rows = rng.integers(POPULATION, size=(redraws + 1, prompts))
    drawn = [draw(rng, problem.probabilities[each], samples) for each in rows]
    rewards = [
        np.take_along_axis(problem.rewards[each], index, 1)
        for each, index in zip(rows, drawn, strict=True)
    ]
    points = []
    for scale in BETAS:
        beta = scale * problem.spread
        alone = Samples.of_reference(rewards[0])
        policy = problem.tilted(0.7 * beta, noise)[rows[0]]
        index = draw(rng, policy, few)
        logratio = np.log(policy) - np.log(problem.probabilities[rows[0]])
        trained = refine.PolicySamples(
            "trained",
            np.take_along_axis(problem.rewards[rows[0]], index, 1),
            np.take_along_axis(logratio, index, 1),
            np.take_along_axis(logratio, drawn[0], 1),
        )
        plain = estimates.plain(alone, beta)
        point = Point(
            number, problem.kind, scale, problem.spread, problem.optimum(beta),
            judged_optimum(alone, beta),
            judged_optimum(refine.mixture(rewards[0], trained), beta),
            {name: float(getattr(plain, name).mean()) for name in QUANTITIES},
        )  # fmt: skip
        fresh = [estimates.corrected(Samples.of_reference(each), beta) for each in rewards[1:]]
        for name in QUANTITIES if fresh else ():
            values = np.array([getattr(each, name).mean() for each in fresh])
            off = float(values.mean()) - point.truth[name]
            point.bias[name] = off / max(float(values.std(ddof=1)), 1e-9)
        points.append(point)
    return points


def lowest(points: list[Point], name: str) -> list[Point]:
    """Each problem's trusted point of least β, the hardest of those that count."""
    best: dict[int, Point] = {}
    for point in sorted(points, key=lambda point: -point.beta):
        if point.trusted(name):
            best[point.problem] = point
    return list(best.values())


def _row(title: str, cells: list[str]) -> str:
    return f"{title:34s}" + "".join(f"{cell:>14s}" for cell in cells)


def _share(hits: list[bool]) -> str:
    return f"{sum(hits)} of {len(hits)}" if hits else "–"


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):.3f}" if values else "–"


def table(points: list[Point]) -> list[str]:
    """Coverage, judgement, both estimates and the refinement, as lines."""
    return [*coverage(points), *judgement(points), *errors(points), *refinement(points)]


def coverage(points: list[Point]) -> list[str]:
    """How often intervals hold the truth, by quantity."""
    trusted = {n: [p for p in points if p.trusted(n)] for n in QUANTITIES}
    hardest = [_share([p.covers(n) for p in lowest(points, n)]) for n in QUANTITIES]
    rest = [_share([p.covers(n) for p in points if not p.trusted(n)]) for n in QUANTITIES]
    kinds = {
        kind: [_share([p.covers(n) for p in trusted[n] if p.kind == kind]) for n in QUANTITIES]
        for kind in KINDS
    }
    return [
        "95 % interval holds the truth          R*            K*            J*",
        _row("problems, at the least trusted β", hardest),
        _row("trusted points", [_share([p.covers(n) for p in trusted[n]]) for n in QUANTITIES]),
        *(_row(f"   {kind}", cells) for kind, cells in kinds.items()),
        _row("points not trusted", rest),
    ]


def judgement(points: list[Point]) -> list[str]:
    """How often bad points are trusted, and good ones are not."""
    told = [p for p in points if p.bias]
    bad = [_share([p.trusted(n) for p in told if abs(p.bias[n]) > 1]) for n in QUANTITIES]
    good = [_share([not p.trusted(n) for p in told if abs(p.bias[n]) < 0.5]) for n in QUANTITIES]
    return [
        "the judgement",
        _row("bad points called trusted", bad),
        _row("good points called untrusted", good),
    ]


def errors(points: list[Point]) -> list[str]:
    """Both estimates' mean errors where they are trusted."""
    trusted = {n: [p for p in points if p.trusted(n)] for n in QUANTITIES}

    def mean(value: Callable[[Point, str], float]) -> list[str]:
        return [_mean([p.error(n, value(p, n)) for p in trusted[n]]) for n in QUANTITIES]

    return [
        "mean error at trusted points (K* in nats, else in sd of the reward)",
        _row("first estimate", mean(lambda p, n: getattr(p.found, n).value)),
        _row("… without its correction", mean(lambda p, n: p.plain[n])),
        _row("second estimate", mean(lambda p, n: getattr(p.found, n).second)),
    ]


def refinement(points: list[Point]) -> list[str]:
    """What a policy's samples change where π_ref's alone are not trusted."""
    rest = {n: [p for p in points if not p.trusted(n)] for n in QUANTITIES}
    made = {n: [p for p in rest[n] if p.trusted(n, True)] for n in QUANTITIES}

    def mean(value: Callable[[Point, str], float]) -> list[str]:
        return [_mean([p.error(n, value(p, n)) for p in rest[n]]) for n in QUANTITIES]

    gained = [_share([p.trusted(n, True) for p in rest[n]]) for n in QUANTITIES]
    right = [_share([p.covers(n, True) for p in made[n]]) for n in QUANTITIES]
    return [
        "refinement, where π_ref's samples alone are not trusted",
        _row("points that it makes trusted", gained),
        _row("… whose interval holds the truth", right),
        _row("mean error, π_ref's samples", mean(lambda p, n: p.plain[n])),
        _row("… less their bias", mean(lambda p, n: getattr(p.found, n).value)),
        _row("… with a policy's", mean(lambda p, n: getattr(p.refined, n).value)),
    ]


def picture(points: list[Point], path: Path) -> None:
    """The frontiers of the first normal, rare and heavy problem, true and estimated."""
    import matplotlib.pyplot as plt

    from classic_rl.pictures.plots import SOFT, STYLE

    with plt.rc_context(STYLE):
        drawn, panels = plt.subplots(1, 3, figsize=(9.6, 3.2), layout="constrained")
        for axes, kind in zip(panels, ("gauss", "rare", "heavy"), strict=True):
            first = next(p.problem for p in points if p.kind == kind)
            _panel(axes, [p for p in points if p.problem == first], SOFT)
            axes.set_title(kind)
            axes.set_xlabel("KL (nats)")
        panels[0].set_ylabel("mean reward")
        panels[0].legend(loc="lower right", fontsize=7.5)
        drawn.savefig(path, dpi=150)


def _panel(axes: Any, points: list[Point], soft: str) -> None:
    """One problem: the truth, both estimates where they are trusted, and the refined rest."""
    truth = np.array([(p.truth["kl"], p.truth["reward"]) for p in points]).T
    axes.plot(*truth, color="#2f3b4a", lw=1.6, label="truth", zorder=1)

    def marked(
        found: list[JudgedOptimum], marker: str, colour: str, label: str, fill: bool = True
    ) -> None:
        at = np.array([(j.kl.value, j.reward.value) for j in found]).reshape(-1, 2).T
        axes.errorbar(
            *at, xerr=_ends([j.kl for j in found]), yerr=_ends([j.reward for j in found]),
            fmt=marker, color=colour, mfc=colour if fill else "white", ms=4, lw=0.8, label=label,
            zorder=3,
        )  # fmt: skip

    known = [p.found for p in points if _both(p.found)]
    rest = [p for p in points if not _both(p.found)]
    marked(known, "o", "#1a69b5", "first estimate, 95 %")
    second = np.array([(j.kl.second, j.reward.second) for j in known]).reshape(-1, 2).T
    hollow = {"ls": "", "mfc": "none"}
    axes.plot(*second, **hollow, marker="^", color="#1a69b5", ms=6, label="second estimate")
    refined = [p.refined for p in rest if _both(p.refined)]
    marked(refined, "D", "#bf5600", "… with a policy's samples", fill=False)
    lost = np.array([(p.plain["kl"], p.plain["reward"]) for p in rest]).reshape(-1, 2).T
    axes.plot(*lost, ls="", marker="x", color=soft, ms=5, label="π_ref's alone: not trusted")


def _ends(found: list[Judged]) -> Array:
    """How far the interval reaches below and above each value, ``(2, n)``."""
    ends = [np.abs(np.subtract(each.interval or each.value, each.value)) for each in found]
    return np.array(ends).reshape(-1, 2).T


def _both(found: JudgedOptimum) -> bool:
    return found.reward.trusted and found.kl.trusted


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="also draw three frontiers")
    arguments = parser.parse_args()
    start = time.perf_counter()
    points: list[Point] = []
    for number in range(arguments.problems):
        points += measure(np.random.default_rng([arguments.seed, number]), number)
    print(f"{arguments.problems} problems, {len(points)} points, seed {arguments.seed}")
    print("\n".join(table(points)))
    print(f"{time.perf_counter() - start:.0f} s")
    if arguments.picture:
        picture(points, arguments.picture)


if __name__ == "__main__":
    main()
