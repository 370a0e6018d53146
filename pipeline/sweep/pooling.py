"""A sweep's seeds pooled: one comparison a β, with intervals over seeds and prompts.

A comparison has the form of results.json and details.json, so that the verdict, the columns and the
pictures of a comparison read it. A policy under further axes (`over`) is an entry of its own there,
under a name such as ``ppo, ppo.total_episodes = 512``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from pipeline.compare import best_of_n
from pipeline.compare.frontier import Array
from pipeline.compare.intervals import over_seeds, ratio
from pipeline.compare.yardstick import Yardstick
from pipeline.sweep.results import CHOICE, REFERENCE, Measured, Numbers
from pipeline.sweep.trials import Trial

# Metrics whose own intervals and errors are those of one seed, and are made anew over all.
_OF_ONE_SEED = ("_se", "_ci")
_POINT = ("beta", "reward", "kl", "floor_kl", "floor_reward")


class Pooling:
    """Pools the seeds of finished trials; what was computed once is kept while it stays the same.

    Args:
        resamples, seed: of the intervals' bootstrap. frontier_betas: where the frontier is drawn.
        shared: whether all seeds have one SFT model and rewards, so that their reference samples
            are of one distribution.
        looks: the policies' records by name: title, marker, colours. A trial knows of its own
            policy alone, and so cannot choose colours that differ.
    """

    def __init__(
        self,
        resamples: int,
        seed: int,
        frontier_betas: Sequence[float],
        shared: bool,
        looks: Mapping[str, Numbers],
    ) -> None:
        self.bootstrap, self.frontier_betas, self.shared = (resamples, seed), frontier_betas, shared
        self.looks = looks
        self._made: dict[tuple[Any, ...], Any] = {}

    def comparisons(self, found: Mapping[Trial, Measured]) -> list[dict[str, Any]]:
        """One comparison a β and pool, with every policy's seeds pooled."""
        parts: dict[tuple[Any, ...], dict[Trial, Measured]] = {}
        for trial, measured in found.items():
            for beta in trial.betas:
                parts.setdefault((beta, trial.pool), {})[trial] = measured
        pools: dict[tuple[Any, ...], dict[int, Measured]] = {}
        for trial, measured in found.items():
            pools.setdefault(trial.pool, {}).setdefault(trial.seed, measured)
        return [
            {"pool": list(pool), **self._comparison(beta, trials, pools[pool])}
            for (beta, pool), trials in sorted(parts.items(), key=lambda item: item[0][0])
        ]

    def _comparison(
        self, beta: float, trials: Mapping[Trial, Measured], pool: Mapping[int, Measured]
    ) -> dict[str, Any]:
        """The policies at one β.

        Args:
            pool: a trial of each seed, for the reference, of which all have the same samples.
        """
        groups: dict[str, dict[int, tuple[Trial, Measured]]] = {}
        for trial, measured in trials.items():
            groups.setdefault(trial.label(), {})[trial.seed] = (trial, measured)
        first = next(iter(trials.values()))
        references = {seed: measured.reference for seed, measured in pool.items()}
        key = ("scale", beta, tuple(pool), _hash(np.concatenate(list(references.values()), axis=1)))
        scale = self._once(key, lambda: _Scale(references, beta, self.frontier_betas, self.shared))
        methods: dict[str, dict[str, Any]] = {}
        spread: dict[str, dict[str, float]] = {}
        gains: dict[str, dict[int, Array]] = {}
        policies = []
        for label, seeds in groups.items():
            each = [m.results["methods"][t.policy] for t, m in seeds.values()]
            each = [_at(row, beta) for row in each]
            methods[label], spread[label] = mean(each), deviation(each)
            rewards = {seed: m.reward for seed, (_, m) in seeds.items()}
            kls = {seed: m.kl for seed, (_, m) in seeds.items()}
            over = {s: rewards[s] - scale.base(s) for s in seeds}
            methods[label] |= self._gain("reward", over) | {"optimality": None}
            measured = {"reward": rewards}
            if methods[label]["kl"] is not None:  # of every seed
                gains[label] = {s: over[s] - beta * kls[s] for s in seeds}
                methods[label] |= self._gain("objective", gains[label])
                methods[label] |= self._placed(gains[label], scale)
                measured["kl"] = kls
            for name, values in measured.items():
                methods[label][f"{name}_ci"] = self._mean(np.array(list(values.values())))[1]
            policy = next(iter(seeds.values()))[0].policy
            look = self.looks[policy]
            title = look["title"] + label.removeprefix(policy)
            policies.append({**look, "name": label, "title": title, "beta": beta, "seed": None})
        before, after = self._beside(first, pool, scale, methods)
        return {
            "beta": beta,
            "policies": [*before, *policies, *after],
            "methods": methods,
            "spread": spread,
            "seeds": {label: sorted(seeds) for label, seeds in groups.items()},
            "optimality_by_seed": {
                label: {str(s): ratio(g, scale.room(s)) for s, g in by_seed.items()}
                for label, by_seed in gains.items()
            }
            if scale.bounded
            else {},
            "differences": list(self._differences(gains, scale)),
            "frontier": scale.frontier(),
            "prompts": len(first.prompts),
            "samples_per_prompt": first.results["samples_per_prompt"],
            "reference_samples": sum(rewards.shape[1] for rewards in references.values()),
            "best_of_n": first.details.get("best_of_n"),
            "judge_is_proxy": bool(first.details.get("judge_is_proxy")),
        }

    def _beside(
        self,
        first: Measured,
        pool: Mapping[int, Measured],
        scale: _Scale,
        methods: dict[str, dict[str, Any]],
    ) -> tuple[list[Any], list[Any]]:
        """Put the reference and best-of-n, over all seeds, into ``methods``; their records, before
        and after."""
        before, after = [], []
        for look in first.results["policies"]:
            name = look["name"]
            if look["kind"] not in (REFERENCE, CHOICE):
                continue
            row = mean([_at(m.results["methods"][name], scale.beta) for m in pool.values()])
            rewards = {seed: m.reference.mean(axis=1) for seed, m in pool.items()}
            if look["kind"] == REFERENCE:
                before.append(look)
                row |= _worth(rewards, 0.0)
            else:
                after.append(look)
                n = first.details["best_of_n"]
                rewards = {seed: _best_of(m.reference, n) for seed, m in pool.items()}
                cost = scale.beta * best_of_n.kl_bound(n)
                over = {s: values - scale.base(s) for s, values in rewards.items()}
                gain = {s: values - cost for s, values in over.items()}
                row |= _worth(rewards, cost)
                row |= self._gain("reward", over) | self._gain("objective", gain)
                row |= self._placed(gain, scale, lower_bound=True)
            methods[name] = row
        return before, after

    def _gain(self, name: str, gain: Mapping[int, Array]) -> dict[str, Any]:
        """A gain over the reference, over all seeds, with its interval."""
        value, interval = self._mean(np.array(list(gain.values())))
        return {f"{name}_gain": value, f"{name}_gain_ci": interval}

    def _placed(
        self, gain: Mapping[int, Array], scale: _Scale, lower_bound: bool = False
    ) -> dict[str, Any]:
        """The share of the possible gain, over all seeds, with its interval.

        Args:
            gain: over the reference, by seed: ``(P,)`` each. lower_bound: it is known to be low.
        """
        if not scale.bounded:
            return {"optimality": None, "optimality_ci": None, "optimality_bound": None}
        gains, room = np.array(list(gain.values())), np.array([scale.room(s) for s in gain])
        value, interval = self._over_seeds(gains, room)
        bound = None if scale.trusted else "at most" if (value or 0.0) >= 0 else "at least"
        if lower_bound:
            bound = "at least" if scale.trusted else "unclear"
        return {"optimality": value, "optimality_ci": interval, "optimality_bound": bound}

    def _differences(
        self, gains: Mapping[str, Mapping[int, Array]], scale: _Scale
    ) -> Iterable[dict[str, Any]]:
        """Every two policies, paired by prompt and by seed; ``agree`` counts the seeds in which
        the first is above where it is above over all, else below."""
        for (first, one), (second, other) in combinations(gains.items(), 2):
            seeds = sorted(one.keys() & other.keys())
            if not seeds:
                continue
            less = {seed: one[seed] - other[seed] for seed in seeds}
            grid = np.array(list(less.values()))
            total, interval = self._mean(grid)
            agree = sum(float(values.mean()) * (total or 0.0) > 0 for values in less.values())
            yield {
                "first": first,
                "second": second,
                **self._placed(less, scale),
                "objective": total,
                "objective_ci": interval,
                "seeds": len(seeds),
                "agree": agree,
            }

    def _mean(self, grid: Array) -> tuple[float | None, Any]:
        """The mean of ``grid`` ``(S, P)`` over seeds and prompts, and its interval."""
        return self._over_seeds(grid, np.ones_like(grid))

    def _over_seeds(self, gain: Array, room: Array) -> tuple[float | None, Any]:
        """Σ gain / Σ room, ``(S, P)`` each, and its interval over seeds and prompts."""
        key = ("over seeds", _hash(gain), _hash(room))
        return self._once(key, lambda: over_seeds(gain, room, *self.bootstrap))

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What ``make`` makes, for the same ``key`` not again."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class _Scale:
    """The two ends of the scale of optimality at one β, by seed.

    Args:
        pool: the reference's rewards by seed. betas: of the frontier.
        shared: they are of one distribution, and all count for every seed.
    """

    def __init__(
        self, pool: Mapping[int, Array], beta: float, betas: Sequence[float], shared: bool
    ) -> None:
        self.beta, self.bounded = beta, beta > 0  # at β = 0 more reward is always better
        if shared:
            together = np.concatenate([pool[seed] for seed in sorted(pool)], axis=1)
            self._sticks = dict.fromkeys(pool, Yardstick.of(together, beta, betas))
        else:
            self._sticks = {s: Yardstick.of(rewards, beta, betas) for s, rewards in pool.items()}
        self._each = list({id(stick): stick for stick in self._sticks.values()}.values())
        self.trusted = all(stick.trusted for stick in self._each)

    def base(self, seed: int) -> Array:
        """The reference's objective, by prompt."""
        return self._sticks[seed].rewards.mean(axis=1)

    def room(self, seed: int) -> Array:
        """What can be gained over it, by prompt."""
        room = self._sticks[seed].room
        assert room is not None
        return room

    def frontier(self) -> list[dict[str, Any]]:
        """The frontier's points; over several SFT models the mean of theirs."""
        curves = [stick.frontier() for stick in self._each]
        if len(curves) == 1:
            return curves[0]
        return [
            {
                **{name: float(np.mean([p[name] for p in points])) for name in _POINT},
                "trusted": all(point["trusted"] for point in points),
            }
            for points in zip(*curves, strict=True)
        ]


def _best_of(rewards: Array, n: int) -> Array:
    """Best-of-n's expected reward by prompt."""
    return (best_of_n.weights(rewards, n) * rewards).sum(axis=1)


def _worth(rewards: Mapping[int, Array], cost: float) -> dict[str, float]:
    """Reward and objective over all seeds; ``cost`` is β·KL."""
    reward = float(np.mean([values.mean() for values in rewards.values()]))
    return {"reward": reward, "objective": reward - cost}


def _at(row: Numbers, beta: float) -> dict[str, Any]:
    """A trial's metrics with the objective at ``beta``, which need not be the trial's own; what
    else depends on it is left out."""
    kept = {k: v for k, v in row.items() if not k.startswith(("objective", "optimality"))}
    kl = row.get("kl")
    return kept | {"objective": None if kl is None else row["reward"] - beta * kl}


def mean(each: Sequence[Numbers]) -> dict[str, Any]:
    """Mean of every number that all of ``each`` have; None where one of them has none."""
    made: dict[str, Any] = {}
    for key in dict.fromkeys(key for row in each for key in row):
        values = [row.get(key) for row in each]
        if key.endswith(_OF_ONE_SEED) or any(isinstance(v, list | dict | str) for v in values):
            continue
        made[key] = None if None in values else _mean_of(values)
    return made


def _mean_of(values: Sequence[Any]) -> float | int:
    """The mean, whole where all of ``values`` are, as queries and tokens are."""
    mean = statistics.fmean(values)
    return round(mean) if all(isinstance(value, int) for value in values) else mean


def deviation(each: Sequence[Numbers]) -> dict[str, float]:
    """Standard deviation over seeds of every number; nothing from one seed."""
    if len(each) < 2:
        return {}
    return {
        key: statistics.stdev(row[key] for row in each)
        for key, value in mean(each).items()
        if value is not None
    }


def _hash(values: Array) -> int:
    return hash(values.tobytes())
