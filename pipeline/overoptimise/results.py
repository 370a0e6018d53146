"""What the pieces say: every curve, fit and gap, as the page shows them and results.json holds."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.overoptimise.curves import (
    Curve,
    against,
    best_of_n_curve,
    describe,
    mean_curve,
    ppo_curve,
)
from pipeline.overoptimise.grid import HOWS, Array, How, Proxy, Size
from pipeline.overoptimise.work import Work


def results(work: Work) -> dict[str, Any]:
    """Everything measured.

    Returns:
        ``best_of_n`` and ``ppo``: by size and by how proxies were combined what
        :func:`~pipeline.overoptimise.curves.describe` gives; for PPO with ``betas``, the curves'.
        ``against``: by size and by how, what it is worth against the single proxy at the largest n.
        ``agreement``: by size, the mean correlation of a single proxy with gold over the samples.
    """
    section, seed = work.section, work.experiment.seed
    resamples = work.experiment.compare.bootstrap
    gold = work.gold_scale()(work.scores(None))
    best: dict[str, Any] = {}
    compared: dict[str, Any] = {}
    agreement: dict[str, float] = {}
    for size in dict.fromkeys(section.sizes):
        members = [work.scores(proxy) for proxy in work.members(size)]
        agreement[str(size)] = float(np.mean([correlation(m, gold) for m in members]))
        curves = {how: best_curve(work, size, how, gold) for how in HOWS}
        best[str(size)] = {how: describe([c], resamples, seed) for how, c in curves.items()}
        compared[str(size)] = {
            how: against(curves["single"], curve, resamples, seed) for how, curve in curves.items()
        }
    return {
        "settings": work.section.model_dump(mode="json"),
        "ratings": len(work.texts(Proxy("all", 0))),
        "prompts": len(work.data.eval_prompts),
        "validation_prompts": len(work.data.validation_prompts),
        "best_of_n": best,
        "against": compared,
        "agreement": agreement,
        "ppo": _ppo(work, resamples, seed),
    }


def correlation(one: Array, other: Array) -> float:
    """Pearson's over all samples."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def best_curve(work: Work, size: Size, how: How, gold: Array) -> Curve:
    """Best-of-n by the proxies of ``size`` combined ``how``; single: the mean of each one's own."""
    if how == "single":
        members = [work.scores(proxy) for proxy in work.members(size)]
        scaled = [scale(m) for scale, m in zip(work.scales(size), members, strict=True)]
        return mean_curve([best_of_n_curve(m, gold) for m in scaled])
    return best_of_n_curve(work.combined(size, how), gold)


def _ppo(work: Work, resamples: int, seed: int) -> dict[str, Any]:
    """Of each size and combination, the runs at every β with their common fits."""
    section = work.section
    found: dict[str, Any] = {}
    for size in section.ppo_sizes if section.betas else ():
        for how in section.ppo_rewards:
            curves = [ppo_curve(work.evaluations(size, how, beta)) for beta in section.betas]
            described = describe(curves, resamples, seed)
            found.setdefault(str(size), {})[how] = {"betas": section.betas, **described}
    return found
