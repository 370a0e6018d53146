"""The statistics against SciPy and by hand, drawn once and drawn again and again."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.judging import measures
from pipeline.judging.measures import difference, estimate
from reward_models import measure


def once(statistic: measures.Statistic, units: int) -> float:
    return float(statistic(np.ones((1, units)))[0])


def texts(count: int = 60, seed: int = 0) -> tuple[list[float], list[float], list[bool]]:
    """Scores (some of them equal), ratings and labels."""
    rng = np.random.default_rng(seed)
    ratings = np.round(rng.normal(size=count), 1)
    scores = np.round(ratings + rng.normal(size=count), 1)
    return scores.tolist(), ratings.tolist(), (ratings > 0).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_each_agrees_with_its_plain_form(seed: int) -> None:
    scores, ratings, positive = texts(seed=seed)
    n = len(scores)
    assert once(measures.spearman(scores, ratings), n) == pytest.approx(
        stats.spearmanr(scores, ratings)[0]
    )
    assert once(measures.pearson(scores, ratings), n) == pytest.approx(
        stats.pearsonr(scores, ratings)[0]
    )
    assert once(measures.auc(scores, positive), n) == pytest.approx(measure.auc(scores, positive))
    assert once(measures.accuracy(scores, positive), n) == measure.accuracy(scores, positive)
    error = measure.calibration(scores, positive)["ece"]
    assert once(measures.calibration_error(scores, positive), n) == pytest.approx(error)


def test_a_draw_counts_as_the_drawn_texts_would() -> None:
    """What the bootstrap sees is the plain statistic of the texts that it drew."""
    scores, ratings, positive = texts(30)
    drawn = np.random.default_rng(3).integers(0, 30, 30)
    counts = np.bincount(drawn, minlength=30)[None].astype(float)
    s, r, p = ([column[i] for i in drawn] for column in (scores, ratings, positive))
    assert measures.spearman(scores, ratings)(counts)[0] == pytest.approx(stats.spearmanr(s, r)[0])
    assert measures.auc(scores, positive)(counts)[0] == pytest.approx(measure.auc(s, p))
    assert measures.calibration_error(scores, positive)(counts)[0] == pytest.approx(
        measure.calibration(s, p)["ece"]
    )


def test_values_by_hand() -> None:
    assert once(measures.auc([3, 1, 2, 2], [True, False, True, False]), 4) == 3.5 / 4
    assert once(measures.accuracy([2, -1, 0, 5], [True, True, False, False]), 4) == 1.5 / 4
    assert once(measures.ratio([1, 2], [2, 2]), 2) == 0.75
    assert measures.quantile_ranks([5.0, 1.0, 5.0]).tolist() == pytest.approx([2 / 3, 1 / 6, 2 / 3])


def test_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = estimate(measures.ratio(values, np.ones(400)), 400)
    assert found is not None and found.interval is not None
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.interval[0] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.interval[1] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_same_arguments_same_numbers_however_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, ratings, _ = texts(200)
    first = estimate(measures.spearman(scores, ratings), 200)
    assert first == estimate(measures.spearman(scores, ratings), 200)
    assert first is not None and first.interval is not None
    monkeypatch.setattr(measures, "_HELD", 777)
    less = estimate(measures.spearman(scores, ratings), 200)
    assert less is not None and less.interval == pytest.approx(first.interval)


def test_what_is_not_defined_is_none() -> None:
    assert estimate(measures.pearson([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), 3) is None
    assert estimate(measures.spearman([1.0, 2.0, 3.0], [0.1 + 0.2] * 3), 3) is None
    assert estimate(measures.pearson([1e9 + 0.1] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]), 5) is None
    assert estimate(measures.ratio([], []), 0) is None
    alone = estimate(measures.accuracy([1.0], [True]), 1)
    assert alone == measures.Estimate(1.0, None)


def test_scores_of_any_scale_have_a_correlation() -> None:
    ratings = [1.0, 2.0, 3.0, 5.0]
    for factor in (1e-12, 1.0, 1e12):
        scores = [factor * rating for rating in ratings]
        found = estimate(measures.pearson(scores, ratings), 4)
        assert found is not None and found.value == pytest.approx(1.0)


def test_a_difference_is_of_the_same_draws() -> None:
    scores, ratings, _ = texts()
    same = difference(measures.spearman(scores, ratings), measures.spearman(scores, ratings))
    assert estimate(same, len(scores)) == measures.Estimate(0.0, (0.0, 0.0))


def test_calibration_error_by_chance_is_what_noise_alone_makes() -> None:
    """A calibrated judge's error is about it; an overconfident one's is far above."""
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 2, 500)
    labels = (rng.random(500) < 1 / (1 + np.exp(-margins))).tolist()
    chance = measures.calibration_error_by_chance(margins.tolist())
    error = once(measures.calibration_error(margins.tolist(), labels), 500)
    over = once(measures.calibration_error((4 * margins).tolist(), labels), 500)
    assert 0.01 < chance < 0.06
    assert error < 2 * chance < over
    found = estimate(measures.calibration_error(margins.tolist(), labels), 500)
    assert found is not None and found.interval is not None
    assert found.interval[0] <= found.value <= found.interval[1]
