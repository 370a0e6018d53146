"""How varied texts are. Words are what whitespace separates, in lower case."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

LONGEST = 4
"""Words in the longest n-grams that BLEU counts."""

_Gram = tuple[str, ...]


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct-n (Li et al. 2016): different word n-grams over all word n-grams of all texts.

    The figure falls as there is more text, so compare it only between equal numbers of samples of
    like length.

    Returns:
        a share, or None when no text has n words.
    """
    grams = [gram for text in texts for gram in _grams(_words(text), n)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """Self-BLEU (Zhu et al. 2018): mean BLEU of each text with all others as its references.

    Sentence BLEU of n-grams up to four words, as many as the text has (effective order), smoothed
    exponentially where an order has no match: what ``sacrebleu.sentence_bleu(text, others,
    tokenize="none")`` gives of texts in lower case, over 100. An empty text counts 1 where another
    is empty too, else 0. It grows with the number of texts: compare it between equal numbers.

    Returns:
        0 to 1, where 1 means that all are the same; None of fewer than two texts.
    """
    if len(texts) < 2:
        return None
    words = [_words(text) for text in texts]
    counts = [[Counter(_grams(row, n)) for row in words] for n in range(1, LONGEST + 1)]
    most = [_two_highest(of_order) for of_order in counts]
    lengths = [len(row) for row in words]
    scores = []
    for i, length in enumerate(lengths):
        others = lengths[:i] + lengths[i + 1 :]
        if length == 0:
            scores.append(float(0 in others))
            continue
        matches = [
            sum(min(count, _of_others(highest[gram], i)) for gram, count in of_order[i].items())
            for of_order, highest in zip(counts, most, strict=True)
        ]
        scores.append(_bleu(matches, length, min(others, key=lambda n: (abs(n - length), n))))
    return sum(scores) / len(scores)


def _bleu(matches: Sequence[int], length: int, reference: int) -> float:
    """Sentence BLEU from the clipped matches of each order; ``reference`` is the closest length."""
    if not any(matches):
        return 0.0
    logs, smooth = [], 1.0
    for n, matched in enumerate(matches, start=1):
        total = length - n + 1
        if total < 1:
            break
        if not matched:
            smooth *= 2
        logs.append(math.log((matched or 1 / smooth) / total))
    brevity = min(0.0, 1 - reference / length)
    return math.exp(brevity + sum(logs) / len(logs))


def _two_highest(counts: Sequence[Counter[_Gram]]) -> dict[_Gram, tuple[int, int, int]]:
    """Of each n-gram the highest count, whose it is, and the second highest."""
    found: dict[_Gram, tuple[int, int, int]] = {}
    for i, of_text in enumerate(counts):
        for gram, count in of_text.items():
            first, whose, second = found.get(gram, (0, -1, 0))
            found[gram] = (count, i, first) if count > first else (first, whose, max(second, count))
    return found


def _of_others(highest: tuple[int, int, int], i: int) -> int:
    first, whose, second = highest
    return second if whose == i else first


def _words(text: str) -> list[str]:
    return text.lower().split()


def _grams(words: Sequence[str], n: int) -> list[_Gram]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))
