"""Best-of-N: the completion of highest reward of n that π_ref wrote. It needs no training.

It is measured on the samples of π_ref that the optimum is estimated from: N a prompt, given as
their rewards ``(P, N)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline.compare.evaluate import Evaluation, Metrics, distinct, standard_error
from pipeline.compare.frontier import Array

KL_NOTE = "upper bound log n − (n−1)/n, so its objective is a lower bound"


def weights(rewards: Array, n: int) -> Array:
    """The chance of each of the N samples to be the best of n drawn without replacement.

    The sample of rank k (1 is the worst) wins C(k−1, n−1) of the C(N, n) draws. Equal rewards
    share their chances, as a fair coin between them would. A sum of weight times any quantity is
    the unbiased estimate of that quantity's expectation under best-of-n: its reward, its gold
    score, its length.

    Returns:
        ``(P, N)``, rows sum to 1.

    Raises:
        ValueError: n is above N.
    """
    samples = rewards.shape[1]
    if not 1 <= n <= samples:
        raise ValueError(f"the best of {n} cannot be taken from {samples} samples")
    draws = math.comb(samples, n)
    by_rank = np.array([math.comb(k, n - 1) / draws for k in range(samples)])
    chances = np.empty_like(rewards)
    for row, values in zip(chances, rewards, strict=True):
        order = np.argsort(values, kind="stable")
        _, group, size = np.unique(values[order], return_inverse=True, return_counts=True)
        row[order] = (np.bincount(group, by_rank) / size)[group]
    return chances


def kl_bound(n: int) -> float:
    """Upper bound on KL(best-of-n‖π_ref): log n − (n−1)/n nats (Beirami et al. 2024).

    Best-of-n has no next-token distribution of its own, so the KL along the path that other
    policies are measured by does not exist for it. The bound is met where equal rewards and
    repeated samples are rare; elsewhere J_β from it is too low, never too high.
    """
    return math.log(n) - (n - 1) / n


def pick(rewards: Array, start: int, n: int) -> int:
    """Index of the first of the highest of ``rewards[start : start + n]``."""
    return start + int(np.argmax(rewards[start : start + n]))


def measure(reference: Evaluation, n: int, beta: float, text_samples: int) -> tuple[Metrics, Array]:
    """Metrics of taking the best of ``n`` π_ref samples by proxy, and its objective a prompt.

    Each is the expectation over all draws of n from the N samples there are. It is no policy with
    next-token probabilities: perplexity is None, and its KL is an upper bound, so that the
    objective and all that follows from it are lower bounds. Distinct-n is taken over the best of
    disjoint blocks of n samples, and None where there are fewer blocks than ``text_samples``.
    """
    rewards = reference.grid(reference.proxy)
    chances = weights(rewards, n)

    def expected(values: Sequence[float]) -> Array:
        return (chances * reference.grid(values)).sum(axis=1)

    positive = expected([float(score > 0) for score in reference.gold])
    reward, gold = expected(reference.proxy), expected(reference.gold)
    kl = kl_bound(n)
    blocks = rewards.shape[1] // n
    texts = [
        reference.texts[prompt * rewards.shape[1] + pick(row, block * n, n)]
        for prompt, row in enumerate(rewards)
        for block in range(min(blocks, text_samples))
    ]
    comparable = blocks >= text_samples
    metrics = {
        "reward": float(reward.mean()),
        "reward_se": standard_error(reward[:, None]),
        "proxy_positive": float(expected([float(score > 0) for score in reference.proxy]).mean()),
        "gold": float(gold.mean()),
        "gold_se": standard_error(gold[:, None]),
        "gold_positive": float(positive.mean()),
        "gold_positive_se": standard_error(positive[:, None]),
        "kl": kl,
        "kl_se": None,
        "objective": float((reward - beta * kl).mean()),
        "perplexity": None,
        "distinct_1": distinct(texts, 1) if comparable else None,
        "distinct_2": distinct(texts, 2) if comparable else None,
        "length": float(expected(reference.lengths).mean()),
        "ended": float(expected(reference.ended).mean()),
        "samples": len(reference.texts),
    }
    return metrics, reward - beta * kl
