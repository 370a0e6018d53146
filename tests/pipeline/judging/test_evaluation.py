"""What is told of a reward, and what is not and why."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from pipeline.data.records import RatedText
from pipeline.data.toy import toy_texts
from pipeline.judging import PEOPLE
from pipeline.judging.evaluation import (
    Scale,
    against_people,
    agreement,
    by_length,
    cautions,
    held_out_account,
    worst_judged,
)
from pipeline.judging.texts import quarters

SCALE = Scale(0.0, 0.5)


def noisy(texts: list[RatedText], noise: float = 1.0, seed: int = 0) -> list[float]:
    """Scores of a reward that sees the ratings through noise."""
    rng = np.random.default_rng(seed)
    return [text.rating + float(rng.normal(0, noise)) for text in texts]


def told(account: dict[str, Any], scores: dict[str, list[float]], **log_odds: bool) -> str:
    return "\n".join(cautions(account, scores, log_odds, unseen=["proxy"]))


def test_a_perfect_and_a_reversed_reward() -> None:
    texts = toy_texts(200, seed=0)
    ratings = [text.rating for text in texts]
    best = against_people(texts, ratings, SCALE, log_odds=True)
    worst = against_people(texts, [-rating for rating in ratings], SCALE, log_odds=True)
    for name in ("accuracy", "auc", "spearman", "pearson"):
        assert best[name]["value"] == pytest.approx(1.0), name
        assert best[name]["interval"] == [pytest.approx(1.0)] * 2
        assert worst[name]["value"] == pytest.approx(0.0 if name in ("accuracy", "auc") else -1.0)
    assert best["texts"] == 200 > best["decided"]
    assert sum(row["texts"] for row in best["bins"]) == best["decided"]


def test_scale_does_not_matter_where_no_number_means_positive() -> None:
    texts = toy_texts(100, seed=0)
    scores = noisy(texts)
    plain = against_people(texts, scores, SCALE, log_odds=False)
    moved = against_people(texts, [1e6 * s - 3e7 for s in scores], SCALE, log_odds=False)
    assert plain["accuracy"] is None and plain["ece"] is None and "bins" not in plain
    for name in ("auc", "spearman"):
        assert plain[name] == moved[name]
    assert plain["pearson"]["value"] == pytest.approx(moved["pearson"]["value"])


def test_what_is_not_defined_is_said() -> None:
    texts = toy_texts(60, seed=0)
    scores = {"proxy": [0.25] * 60, "mine": noisy(texts)}
    account = held_out_account(texts, scores, SCALE, {"proxy": True, "mine": False})
    row = account["rewards"]["proxy"]
    assert row["spearman"] is None and row["pearson"] is None
    assert row["auc"]["value"] == 0.5
    assert account["agreement"]["spearman"][0][1] is None
    said = told(account, scores, proxy=True, mine=False)
    assert "proxy gives every held-out text the same score" in said
    assert "Only 60 held-out texts" in said
    assert "What mine learnt from is not compared" in said
    assert "The scores of mine are no log-odds" in said


def test_classes_without_raters() -> None:
    rng = np.random.default_rng(0)
    texts = [RatedText(f"text {i}", float(i % 2)) for i in range(40)]
    scores = {"mine": [text.rating + float(rng.normal()) for text in texts]}
    account = held_out_account(texts, scores, Scale(0.5, 0.5), {"mine": True})
    assert account["one_person"] is None and account["pairwise"] is None
    assert account["rewards"]["mine"]["decided"] == 40
    assert "no single raters" in told(account, scores, mine=True)


def test_texts_of_one_side_are_said() -> None:
    texts = [RatedText(f"text {i}", 1.0 + i / 40) for i in range(40)]
    scores = {"mine": noisy(texts)}
    account = held_out_account(texts, scores, SCALE, {"mine": True})
    row = account["rewards"]["mine"]
    assert row["auc"] is None and row["accuracy"] is None and row["spearman"] is not None
    assert "on one side of data.positive_above" in told(account, scores, mine=True)


def test_a_handful_of_texts() -> None:
    texts = toy_texts(3, seed=1)
    account = held_out_account(texts, {"mine": noisy(texts)}, SCALE, {"mine": True})
    assert account["pairwise"]["pairs"] == 3 and account["pairwise"]["units"] == 1
    assert by_length(texts, [5, 6, 7], {"mine": noisy(texts)}, SCALE, {"mine": True}) == []
    alone = held_out_account(texts[:1], {"mine": [1.0]}, SCALE, {"mine": True})
    assert alone["rewards"]["mine"]["spearman"] is None


def test_a_better_reward_is_nearer_to_the_ceiling() -> None:
    texts = toy_texts(300, seed=0)
    scores = {"good": noisy(texts, 0.5), "bad": noisy(texts, 4.0)}
    account = held_out_account(texts, scores, SCALE, {"good": True, "bad": True})
    rows = account["pairwise"]["rewards"]
    ceiling = account["pairwise"]["another_rater"]["value"]
    assert rows["bad"]["agreement"]["value"] < rows["good"]["agreement"]["value"]
    assert rows["good"]["gap"]["value"] == pytest.approx(
        rows["good"]["agreement"]["value"] - ceiling
    )
    # The reward of little noise is as good as one more rater, or better; the other is not.
    assert rows["bad"]["gap"]["interval"][1] < 0 < rows["good"]["gap"]["interval"][1]


def test_agreement_matrix_is_symmetric_and_holds_people() -> None:
    texts = toy_texts(50, seed=0)
    scores = {"a": noisy(texts), "b": [-s for s in noisy(texts)]}
    found = agreement(texts, scores)
    matrix = np.array(found["spearman"])
    assert found["names"] == ["a", "b", PEOPLE]
    assert np.allclose(matrix, matrix.T) and np.allclose(np.diag(matrix), 1)
    assert matrix[0, 1] == pytest.approx(-1)


def test_the_worst_judged_texts_are_those_that_were_swapped() -> None:
    texts = [RatedText(f"text {i}", float(i)) for i in range(20)]
    scores = [100.0 * i for i in range(20)]
    scores[0], scores[19] = scores[19], scores[0]
    found = worst_judged(texts, scores, count=1)
    [high], [low] = found["too_high"], found["too_low"]
    assert (high["text"], high["score"]) == ("text 0", 1900.0)
    assert (low["text"], low["rating"]) == ("text 19", 19.0)
    assert high["place_by_score"] == 0.975 and high["place_by_people"] == 0.025
    right = worst_judged(texts, [100.0 * i for i in range(20)])
    assert right == {"too_high": [], "too_low": []}


def test_quarters_keep_equal_lengths_together() -> None:
    lengths = [8] * 30 + [9] * 10 + [10] * 10 + [20] * 10
    found = quarters(lengths)
    assert [(least, most, len(places)) for least, most, places in found] == [
        (8, 8, 30), (9, 10, 20), (20, 20, 10),
    ]  # fmt: skip
    assert sorted(place for *_, places in found for place in places) == list(range(60))
    assert quarters([7] * 100) == [(7, 7, list(range(100)))]


@pytest.mark.slow
def test_ten_thousand_texts() -> None:
    rng = np.random.default_rng(0)
    ratings = rng.normal(size=(10_605, 10)) + rng.normal(0, 2, 10_605)[:, None]
    texts = [RatedText(str(i), float(r.mean()), tuple(r)) for i, r in enumerate(ratings)]
    start = time.monotonic()
    account = held_out_account(texts, {"mine": noisy(texts)}, SCALE, {"mine": True})
    assert time.monotonic() - start < 120
    low, high = account["rewards"]["mine"]["auc"]["interval"]
    assert 0 < high - low < 0.02
