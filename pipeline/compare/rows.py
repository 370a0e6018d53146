"""All metrics of a policy, by their names in results.json: `docs/metrics.md` lists them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.compare import best_of_n, training
from pipeline.compare.answers import Answers
from pipeline.compare.evaluate import Evaluation, Metrics, objective_by_prompt, summarise
from pipeline.compare.gains import Bootstrap, Slopes, against, at_equal_length, gain
from pipeline.compare.intervals import Array, ratio
from pipeline.compare.yardstick import Yardstick


@dataclass(frozen=True)
class Scale:
    """What all policies are measured on.

    Attributes:
        sft: π_ref's samples.
        beta: price of a nat of KL. best_of_n: n of best-of-n.
        text_samples: see :func:`pipeline.compare.evaluate.summarise`.
        yardstick: the optimum and the frontier.
        bootstrap: how intervals are made.
        reward_slopes, gold_slopes: what one character more goes with, over all policies.
    """

    sft: Evaluation
    beta: float
    best_of_n: int
    text_samples: int
    yardstick: Yardstick
    bootstrap: Bootstrap
    reward_slopes: Slopes
    gold_slopes: Slopes

    def optimality(self, gained: Array | None, lower_bound: bool = False) -> Metrics:
        """The share of the possible gain that ``gained`` ``(P,)`` is; None where there is neither.

        Args:
            lower_bound: the gain itself is known to be low, as that of best-of-n.
        """
        drawn = self.bootstrap
        return self.yardstick.optimality(
            gained, drawn.resamples, drawn.seed, lower_bound=lower_bound
        )


def of_policy(
    evaluation: Evaluation, scale: Scale, folder: Path | None
) -> tuple[Metrics, Array | None]:
    """The metrics of a policy that was sampled from, and its objective by prompt.

    Args:
        folder: of the stage that trained it; None where no stage did.
    """
    row = summarise(evaluation, scale.beta, scale.text_samples)
    row |= fluency(evaluation, scale.bootstrap)
    row |= training.records(folder) | training.per_answer(1)
    objective = objective_by_prompt(evaluation, scale.beta)
    return row | _compared(Answers(evaluation), row, objective, scale), objective


def of_best_of_n(scale: Scale) -> tuple[Metrics, Array]:
    """The same of best-of-n. Its fluency would need more samples judged than are."""
    n = scale.best_of_n
    row, objective = best_of_n.measure(scale.sft, n, scale.beta, scale.text_samples)
    row |= {"fluency": None, "fluency_ci": None}
    row |= training.records(None) | training.per_answer(n)
    return row | _compared(Answers(scale.sft, n), row, objective, scale, True), objective


def fluency(evaluation: Evaluation, bootstrap: Bootstrap) -> Metrics:
    """Perplexity of the answers by the fluency model: exp of its nats over its tokens."""
    value = ends = None
    if evaluation.fluency_nll is not None and evaluation.fluency_tokens is not None:
        each = evaluation.fluency_samples or 1
        nats, tokens = (
            np.asarray(values, dtype=np.float64).reshape(-1, each).sum(axis=1)
            for values in (evaluation.fluency_nll, evaluation.fluency_tokens)
        )
        value, ends = ratio(nats, tokens), bootstrap.ratio(nats, tokens)
    return {
        "fluency": None if value is None else math.exp(min(value, 700)),
        "fluency_ci": ends and tuple(math.exp(min(end, 700)) for end in ends),
    }


def _compared(
    answers: Answers,
    row: Metrics,
    objective: Array | None,
    scale: Scale,
    lower_bound: bool = False,
) -> Metrics:
    """What it is beside SFT and the optimum."""
    sft, bootstrap = Answers(scale.sft), scale.bootstrap
    made = against(answers, sft, bootstrap)
    base = objective_by_prompt(scale.sft, scale.beta)
    gained = None if objective is None or base is None else objective - base
    made |= gain("objective", gained, bootstrap) | scale.optimality(gained, lower_bound)
    made |= scale.yardstick.efficiency(row["reward"], row["kl"])
    ours = answers.evaluation
    for name, scores, slopes in (
        ("reward", ours.proxy, scale.reward_slopes),
        ("gold", ours.gold, scale.gold_slopes),
    ):
        made |= at_equal_length(name, answers, sft, scores, slopes, bootstrap)
    return made
