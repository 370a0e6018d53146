"""A policy against SFT: gains, win rates, and rewards at equal length.

All of it is made of one number a prompt, and paired: a drawn prompt brings the samples of both
along, so that a hard prompt, hard for both, is no noise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.compare.answers import Answers, Scores
from pipeline.compare.evaluate import Evaluation, Metrics, standard_error
from pipeline.compare.intervals import Array, bootstrap_interval, mean_interval, ratio_interval

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Bootstrap:
    """How 95 % intervals over prompts are made: so many resamples, drawn with this seed."""

    resamples: int
    seed: int

    def mean(self, values: Array) -> Interval:
        """Of the mean of ``(P,)``."""
        return mean_interval(values, self.resamples, self.seed)

    def ratio(self, above: Array, below: Array) -> Interval:
        """Of the mean of ``above`` over the mean of ``below``."""
        return ratio_interval(above, below, self.resamples, self.seed)


def against(policy: Answers, sft: Answers, bootstrap: Bootstrap) -> Metrics:
    """Gains and win rates by reward and gold, and what each part of the reward says."""
    ours, theirs = policy.evaluation, sft.evaluation
    row: Metrics = {}
    for name, values, base in (
        ("reward", ours.proxy, theirs.proxy),
        ("gold", ours.gold, theirs.gold),
    ):
        row |= gain(name, policy.expected(values) - sft.expected(base), bootstrap)
        won = policy.win_rate(values, sft.grid(base))
        row |= _mean(f"win_rate_{name}", won, bootstrap)
    parts = {
        name: _part(policy, sft, values, theirs.parts[name], bootstrap)
        for name, values in ours.parts.items()
        if name in theirs.parts
    }
    return row | {"parts": parts}


def gain(name: str, by_prompt: Array | None, bootstrap: Bootstrap) -> Metrics:
    """The mean of a gain a prompt, ``(P,)``, and its interval, under its names; None of None."""
    if by_prompt is None:
        return {f"{name}_gain": None, f"{name}_gain_ci": None}
    return _mean(f"{name}_gain", by_prompt, bootstrap)


def _mean(name: str, by_prompt: Array, bootstrap: Bootstrap) -> Metrics:
    """Over the prompts that have a number."""
    there = by_prompt[np.isfinite(by_prompt)]
    value = float(there.mean()) if len(there) else None
    return {name: value, f"{name}_ci": bootstrap.mean(there)}


def _part(
    policy: Answers, sft: Answers, values: Scores, theirs: Scores, bootstrap: Bootstrap
) -> dict[str, Any]:
    means, share = policy.expected(values), policy.share(values)
    there = means[np.isfinite(means)]
    return {
        "mean": float(there.mean()) if len(there) else None,
        "mean_se": standard_error(there[:, None]),
        **_mean("win_rate", policy.win_rate(values, sft.grid(theirs)), bootstrap),
        "share": float(share.mean()),
    }


# --- At equal length --------------------------------------------------------------------------


@dataclass(frozen=True)
class Slopes:
    """How much a score grows with an answer's length, from answers of one policy to one prompt.

    Attributes:
        products: ``(P,)`` Σ (length − mean)(score − mean), over all policies' samples, each less
            the means of its policy and prompt. squares: ``(P,)`` Σ (length − mean)².
    """

    products: Array
    squares: Array

    @classmethod
    def of(cls, policies: Iterable[tuple[Evaluation, Scores]]) -> Slopes:
        """From the samples of each policy and their scores."""
        products, squares = 0.0, 0.0
        for evaluation, scores in policies:
            answers = Answers(evaluation)
            length, score = _centred(answers.grid(characters(evaluation))), answers.grid(scores)
            products = products + (length * _centred(score)).sum(axis=1)
            squares = squares + np.square(length).sum(axis=1)
        return cls(np.asarray(products), np.asarray(squares))


def characters(evaluation: Evaluation) -> list[float]:
    """The lengths of the texts, in a unit that does not depend on a tokenizer."""
    return [float(len(text)) for text in evaluation.texts]


def at_equal_length(
    name: str, policy: Answers, sft: Answers, scores: Scores, slopes: Slopes, bootstrap: Bootstrap
) -> Metrics:
    """The mean score if the policy's answers were as long as SFT's: R − b·(L − L_SFT).

    b = Σ products / Σ squares of ``slopes`` is what one character more goes with among answers of
    one policy to one prompt; so nothing that policies or prompts differ in enters it. The idea is
    that of length-controlled AlpacaEval (Dubois et al. 2024), whose regression has a term for
    length too and predicts at no difference of length; here the score itself is regressed.

    Returns:
        ``length_controlled_<name>`` and its interval, which covers the choice of prompts for b as
        well; None where no two answers of a policy to a prompt differ in length.
    """
    value = policy.expected(scores)
    longer = policy.expected(characters(policy.evaluation)) - sft.expected(
        characters(sft.evaluation)
    )
    key = f"length_controlled_{name}"
    if not slopes.squares.sum() > 0:
        return {key: None, f"{key}_ci": None}
    columns = (value, longer, slopes.products, slopes.squares)
    interval = bootstrap_interval(_controlled, columns, bootstrap.resamples, bootstrap.seed, 0.95)
    return {key: float(_controlled(*columns)), f"{key}_ci": interval}


def _controlled(
    value: Array, longer: Array, products: Array, squares: Array, axis: int = -1
) -> Array:
    below = squares.sum(axis=axis)
    slope = np.where(below > 0, products.sum(axis=axis) / np.where(below > 0, below, 1.0), np.nan)
    return value.mean(axis=axis) - slope * longer.mean(axis=axis)


def _centred(grid: Array) -> Array:
    return grid - grid.mean(axis=1, keepdims=True)
