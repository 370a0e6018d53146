from __future__ import annotations

import math

import pytest

from pipeline.compare.texts import distinct, self_bleu


def test_distinct_by_hand() -> None:
    # Words the cat the dog / the cat: 3 of 6; pairs the-cat cat-the the-dog / the-cat: 3 of 4.
    texts = ["The cat the dog", "the  cat\n"]
    assert distinct(texts, 1) == pytest.approx(3 / 6)
    assert distinct(texts, 2) == pytest.approx(3 / 4)
    assert distinct(["alone", ""], 2) is None


def test_no_bigram_spans_two_texts() -> None:
    assert distinct(["a b", "b a", "a b"], 2) == pytest.approx(2 / 3)


def test_self_bleu_is_the_mean_of_sacrebleus_sentence_bleu() -> None:
    texts = [
        "the film is good and the cast is good",
        "The film is  bad and the plot is dull",
        "a good film",
        "the the the",
    ]
    # sacrebleu 2.6.0: sentence_bleu(text, others, tokenize="none", use_effective_order=True).
    scores = [24.274588585366175, 23.356898886410015, 34.66806371753173, 34.66806371753173]
    assert self_bleu(texts) == pytest.approx(sum(scores) / 400)


def test_the_ends_of_self_bleu() -> None:
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1.0)
    assert self_bleu(["one"] * 2) == pytest.approx(1.0)
    assert self_bleu(["a b", "c d", "e f"]) == 0.0
    assert self_bleu(["a b"]) is None


def test_self_bleu_of_empty_answers() -> None:
    assert self_bleu(["", " "]) == 1.0  # a policy that says nothing has collapsed
    assert self_bleu(["", "a b"]) == 0.0


def test_a_text_is_no_reference_of_itself() -> None:
    # Twice the same beside a third: the two find each other, the third finds nobody.
    assert self_bleu(["a b c d", "a b c d", "x y"]) == pytest.approx(2 / 3)


def test_matches_are_clipped_by_the_reference_that_has_most() -> None:
    # "a a a" against "a a" and "a": two of three words, one of two pairs, none of one triple,
    # whose precision is smoothed to 1/2. "a" has half the words of the closest: brevity e^(1 − 2).
    found = self_bleu(["a a a", "a a", "a"])
    of_long = (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3)
    assert found == pytest.approx((of_long + 1.0 + math.exp(-1)) / 3)
