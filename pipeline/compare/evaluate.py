"""Samples a checkpoint once; every metric is computed from those samples.

:func:`evaluate_policy` calls the models and keeps what they said about each sample. The functions
below it are arithmetic on that, so that a metric can be added or checked without a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.compare.frontier import Array
from pipeline.data.records import Prompt
from pipeline.lm.generation import Completion, sample
from pipeline.lm.kept import keep_samples, kept_samples
from pipeline.lm.paths import completion_kl
from pipeline.lm.positions import check_prompts
from pipeline.lm.scored import check_columns, score_completions
from pipeline.lm.scoring import text_nll
from pipeline.output.terminal import progress
from reward_models import RewardFunction

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What one policy made of P prompts, m samples each; sample s of prompt i is at i·m + s.

    Attributes:
        prompts: the P prompts as text.
        samples_per_prompt: m.
        texts: completions, without EOS.
        lengths: their tokens, EOS included.
        ended: whether each ended by EOS rather than by the length limit.
        proxy: their reward, the one that was optimised.
        gold: the judge's score, which was not.
        kl: KL(π‖π_ref) along each path, nats per completion; empty where it was not measured.
        nll: total nats of the held-out texts under the policy. nll_tokens: their tokens.
    """

    prompts: list[str]
    samples_per_prompt: int
    texts: list[str]
    lengths: list[int]
    ended: list[bool]
    proxy: list[float]
    gold: list[float]
    kl: list[float]
    nll: float
    nll_tokens: int

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON can hold them; floats keep every bit."""
        return asdict(self)

    def grid(self, values: Sequence[float]) -> Array:
        """One value a sample, laid out as ``(P, m)``."""
        return np.asarray(values, dtype=np.float64).reshape(-1, self.samples_per_prompt)


def evaluate_policy(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reference: PreTrainedModel,
    prompts: Sequence[Prompt],
    heldout: Sequence[str],
    *,
    proxy: RewardFunction,
    gold: RewardFunction,
    samples_per_prompt: int,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    label: str,
    kept: Path,
) -> Evaluation:
    """Sample ``policy`` at temperature 1 and score the samples.

    Args:
        reference: π_ref. The policy itself there means KL 0, which needs no forward pass.
        heldout: texts for perplexity.
        proxy, gold: score completions; the same object scores once.
        batch_size: completions generated, and scored, at once.
        label: opens the lines of progress.
        kept: file that holds the samples until everything is measured; read where it is there.

    Raises:
        UserError: a prompt leaves the model no room for a completion, or has not the columns that
            a reward asks for.
    """
    check_prompts(policy, tokenizer, prompts, max_new_tokens, "evaluation")
    for reward in (proxy, gold):
        check_columns(reward, prompts)
    rows = [prompt for prompt in prompts for _ in range(samples_per_prompt)]
    completions = kept_samples(kept, rows)
    if completions is None:
        completions = sample(
            policy,
            tokenizer,
            prompts,
            samples_per_prompt=samples_per_prompt,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
            label=f"{label}: sampling",
        )
        keep_samples(kept, completions)
    scores = score(proxy, completions, batch_size, f"{label}: reward")
    judged = scores if gold is proxy else score(gold, completions, batch_size, f"{label}: gold")
    if policy is reference:
        kl = [0.0] * len(completions)
    else:
        kl = completion_kl(policy, reference, completions, label=f"{label}: KL")
    nll, nll_tokens = text_nll(policy, tokenizer, heldout)
    return Evaluation(
        prompts=[c.prompt for c in completions[::samples_per_prompt]],
        samples_per_prompt=samples_per_prompt,
        texts=[c.text for c in completions],
        lengths=[len(c.completion_ids) for c in completions],
        ended=[c.ended for c in completions],
        proxy=scores,
        gold=judged,
        kl=kl,
        nll=nll,
        nll_tokens=nll_tokens,
    )


def score(
    reward: RewardFunction, completions: Sequence[Completion], batch_size: int, label: str
) -> list[float]:
    """Their rewards, ``batch_size`` a call, with progress: it may be a slow service."""
    starts = range(0, len(completions), batch_size)
    scores: list[float] = []
    for start in progress(starts, label):
        scores += score_completions(reward, completions[start : start + batch_size]).total
    return scores


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct-n (Li et al. 2016): different word n-grams over all word n-grams of all texts.

    Words are what whitespace separates, in lower case. The figure falls as there is more text, so
    compare it only between equal numbers of samples of like length.

    Returns:
        a share, or None when no text has n words.
    """
    grams: list[tuple[str, ...]] = []
    for text in texts:
        words = text.lower().split()
        grams += zip(*(words[i:] for i in range(n)), strict=False)
    return len(set(grams)) / len(grams) if grams else None


def perplexity(nll: float, tokens: int) -> float | None:
    """exp(nats a token); None without tokens or beyond what a float holds."""
    if tokens == 0 or nll / tokens > 700:
        return None
    return math.exp(nll / tokens)


def standard_error(grid: Array) -> float | None:
    """Standard error of the mean of ``grid`` ``(P, m)`` over prompts; None from one prompt.

    Samples of one prompt are alike, so the prompts are the independent draws: P of them, not P·m.
    """
    means = grid.mean(axis=1)
    return float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None


def objective_by_prompt(evaluation: Evaluation, beta: float) -> Array:
    """Each prompt's part of J_β(π) = E[r] − β·KL(π‖π_ref): ``(P,)``."""
    rewards, kl = evaluation.grid(evaluation.proxy), evaluation.grid(evaluation.kl)
    return (rewards - beta * kl).mean(axis=1)


def summarise(evaluation: Evaluation, beta: float, text_samples: int) -> Metrics:
    """The metrics of one policy, by their names in results.json.

    Args:
        text_samples: distinct-n is taken over the first this many samples of each prompt, so that
            policies of which more samples were drawn are not at a disadvantage.
    """
    rewards, gold = evaluation.grid(evaluation.proxy), evaluation.grid(evaluation.gold)
    kl = evaluation.grid(evaluation.kl)
    m = evaluation.samples_per_prompt
    texts = [text for i, text in enumerate(evaluation.texts) if i % m < text_samples]
    return {
        "reward": float(rewards.mean()),
        "reward_se": standard_error(rewards),
        "proxy_positive": float((rewards > 0).mean()),
        "gold": float(gold.mean()),
        "gold_se": standard_error(gold),
        "gold_positive": float((gold > 0).mean()),
        "gold_positive_se": standard_error((gold > 0).astype(np.float64)),
        "kl": float(kl.mean()),
        "kl_se": standard_error(kl),
        "objective": float(objective_by_prompt(evaluation, beta).mean()),
        "perplexity": perplexity(evaluation.nll, evaluation.nll_tokens),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "length": float(np.mean(evaluation.lengths)),
        "ended": float(np.mean(evaluation.ended)),
        "samples": len(evaluation.texts),
    }
