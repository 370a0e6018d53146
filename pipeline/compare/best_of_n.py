"""Best-of-N: the completion of highest reward of n that π_ref wrote. It needs no training.

It is measured on the samples of π_ref that the optimum is estimated from: N a prompt, given as
their rewards ``(P, N)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline.compare.evaluate import Evaluation, Metrics, mean, variety
from pipeline.compare.intervals import Array

KL_NOTE = "upper bound log n − (n−1)/n, so its objective is a lower bound"
_NO_VARIETY: Metrics = dict.fromkeys(("distinct_1", "distinct_2", "self_bleu", "self_bleu_se"))


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


def reverse_kl_bound(n: int) -> float:
    """Upper bound on KL(π_ref‖best-of-n): n − 1 − log n nats, met where :func:`kl_bound` is.

    The rank u of a sample among all, uniform under π_ref, has the density n·u^(n−1) under
    best-of-n, and E[log 1/(n·u^(n−1))] = n − 1 − log n; a text tells no more than its rank.
    """
    return n - 1 - math.log(n)


def pick(rewards: Array, start: int, n: int) -> int:
    """Index of the first of the highest of ``rewards[start : start + n]``."""
    return start + int(np.argmax(rewards[start : start + n]))


def measure(reference: Evaluation, n: int, beta: float, text_samples: int) -> tuple[Metrics, Array]:
    """Metrics of taking the best of ``n`` π_ref samples by proxy, and its objective a prompt.

    Each is the expectation over all draws of n from the N samples there are. It is no policy with
    next-token probabilities: perplexity is None, and its KL is an upper bound, so that the
    objective and all that follows from it are lower bounds. Distinct-n and self-BLEU are taken over
    the best of disjoint blocks of n samples, and None where there are fewer blocks than
    ``text_samples``.
    """
    rewards = reference.grid(reference.proxy)
    chances = weights(rewards, n)

    def expected(values: Sequence[float]) -> Array:
        return (chances * reference.grid(values)).sum(axis=1)

    reward, kl = expected(reference.proxy), kl_bound(n)
    blocks = rewards.shape[1] // n
    texts = [
        reference.texts[prompt * rewards.shape[1] + pick(row, block * n, n)]
        for prompt, row in enumerate(rewards)
        for block in range(min(blocks, text_samples))
    ]
    comparable = blocks >= text_samples
    metrics = {
        **mean("reward", reward[:, None]),
        "proxy_positive": float(expected([float(score > 0) for score in reference.proxy]).mean()),
        **mean("gold", expected(reference.gold)[:, None]),
        **mean("gold_positive", expected([float(s > 0) for s in reference.gold])[:, None]),
        **{"kl": kl, "kl_se": None, "kl_sampled": None, "kl_sampled_se": None},
        **{"reverse_kl": reverse_kl_bound(n), "reverse_kl_se": None, "reverse_kl_samples": None},
        **mean("objective", (reward - beta * kl)[:, None]),
        "perplexity": None,
        **(variety(texts, text_samples) if comparable else _NO_VARIETY),
        **mean("length", expected(reference.lengths)[:, None]),
        **mean("ended", expected(reference.ended)[:, None]),
        "samples": len(reference.texts),
        "prompts": len(reference.prompts),
    }
    return metrics, reward - beta * kl
