"""All metrics of a policy, by their names in results.json: `docs/metrics.md` lists them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.compare import best_of_n, frontier, training
from pipeline.compare.answers import Answers
from pipeline.compare.evaluate import Evaluation, Metrics, objective_by_prompt, summarise
from pipeline.compare.frontier import Array
from pipeline.compare.gains import Bootstrap, Slopes, against, at_equal_length, gain


@dataclass(frozen=True)
class Scale:
    """What all policies are measured on.

    Attributes:
        sft: π_ref's samples.
        beta: price of a nat of KL. best_of_n: n of best-of-n.
        text_samples: see :func:`pipeline.compare.evaluate.summarise`.
        lowest_beta: down to it the frontier is trusted to say what a reward costs.
        bootstrap: how intervals are made.
        reward_slopes, gold_slopes: what one character more goes with, over all policies.
    """

    sft: Evaluation
    beta: float
    best_of_n: int
    text_samples: int
    lowest_beta: float
    bootstrap: Bootstrap
    reward_slopes: Slopes
    gold_slopes: Slopes

    @property
    def room(self) -> Array | None:
        """The most that any policy can gain in the objective, by prompt; None at β = 0, where
        more reward is always better."""
        rewards = self.sft.grid(self.sft.proxy)
        if self.beta <= 0:
            return None
        return frontier.optimum(rewards, self.beta) - rewards.mean(axis=1)


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
    return row | _compared(Answers(scale.sft, n), row, objective, scale), objective


def fluency(evaluation: Evaluation, bootstrap: Bootstrap) -> Metrics:
    """Perplexity of the answers by the fluency model: exp of its nats over its tokens."""
    value = ends = None
    if evaluation.fluency_nll is not None and evaluation.fluency_tokens is not None:
        each = evaluation.fluency_samples or 1
        nats, tokens = (
            np.asarray(values, dtype=np.float64).reshape(-1, each).sum(axis=1)
            for values in (evaluation.fluency_nll, evaluation.fluency_tokens)
        )
        value, ends = frontier.ratio(nats, tokens), bootstrap.ratio(nats, tokens)
    return {
        "fluency": None if value is None else math.exp(min(value, 700)),
        "fluency_ci": ends and tuple(math.exp(min(end, 700)) for end in ends),
    }


def share(gained: Array | None, room: Array | None, bootstrap: Bootstrap) -> Metrics:
    """The share of the possible gain, and its interval; None each where there is neither."""
    if gained is None or room is None:
        return {"optimality": None, "optimality_ci": None}
    interval = bootstrap.ratio(gained, room)
    return {"optimality": frontier.ratio(gained, room), "optimality_ci": interval}


def _compared(answers: Answers, row: Metrics, objective: Array | None, scale: Scale) -> Metrics:
    """What it is beside SFT and the optimum."""
    sft, bootstrap = Answers(scale.sft), scale.bootstrap
    made = against(answers, sft, bootstrap)
    base = objective_by_prompt(scale.sft, scale.beta)
    gained = None if objective is None or base is None else objective - base
    made |= gain("objective", gained, bootstrap) | share(gained, scale.room, bootstrap)
    rewards, kl = scale.sft.grid(scale.sft.proxy), row["kl"]
    made["kl_efficiency"] = (
        None
        if kl is None
        else frontier.kl_efficiency(rewards, row["reward"], kl, scale.lowest_beta)
    )
    ours = answers.evaluation
    for name, scores, slopes in (
        ("reward", ours.proxy, scale.reward_slopes),
        ("gold", ours.gold, scale.gold_slopes),
    ):
        made |= at_equal_length(name, answers, sft, scores, slopes, bootstrap)
    return made
