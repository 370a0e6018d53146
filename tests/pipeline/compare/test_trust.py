"""What is trusted holds the truth, and what is not is not worth it: on enumerated problems."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.frontier_coverage import KINDS, Point, lowest, measure
from pipeline.compare.estimates import Samples
from pipeline.compare.trust import DISAGREE, SETTLED, UNSETTLED, _judge, judged_optimum
from tests.pipeline.compare.enumerated import enumerate_language_model

QUANTITIES = ("reward", "kl", "objective")


@pytest.fixture(scope="module")
def points() -> list[Point]:
    """Six problems of each kind at ten β; `benchmarks/frontier_coverage.py` has a hundred."""
    made: list[Point] = []
    for number in range(6 * len(KINDS)):
        made += measure(np.random.default_rng([7, number]), number, redraws=12)
    return made


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_trusted_interval_holds_the_truth(points: list[Point], name: str) -> None:
    """Of 42 problems at their hardest trusted β. Seeds 7–11: 36 to 42."""
    hardest = lowest(points, name)
    assert len(hardest) >= 40
    assert sum(point.covers(name) for point in hardest) >= 0.8 * len(hardest)


@pytest.mark.parametrize("name", QUANTITIES)
def test_what_is_bad_is_not_trusted_and_most_of_what_is_good_is(
    points: list[Point], name: str
) -> None:
    # Seeds 7–11: 2 to 15 % of the bad, 63 to 73 % of the good.
    bad = [p.trusted(name) for p in points if abs(p.bias[name]) > 1]
    good = [p.trusted(name) for p in points if abs(p.bias[name]) < 0.5]
    assert len(bad) > 30 and sum(bad) <= 0.2 * len(bad)
    assert len(good) > 150 and sum(good) >= 0.55 * len(good)


def test_a_policy_makes_most_other_points_trusted_and_right(points: list[Point]) -> None:
    # Seeds 7–11: 79 to 84 % of them, of which 98 % or more hold the truth; the error falls to a
    # fifth to two fifths.
    rest = [p for p in points if not p.trusted("objective")]
    refined = [p for p in rest if p.trusted("objective", refined=True)]
    assert len(refined) > 0.7 * len(rest)
    assert sum(p.covers("objective", refined=True) for p in refined) >= 0.88 * len(refined)
    errors = [
        np.mean([p.error("objective", judged.objective.value) for p, judged in each])
        for each in ([(p, p.found) for p in rest], [(p, p.refined) for p in rest])
    ]
    assert errors[1] < 0.6 * errors[0]


def test_each_reason_by_hand() -> None:
    values = np.arange(40.0)  # the interval is 19.5 ± 3.74
    half = 3.74
    settled = _judge(values, SETTLED * half - 0.01, values + 0.9 * half)
    assert settled.trusted and settled.because is None
    assert (settled.value, settled.second) == pytest.approx((19.5, 19.5 + 0.9 * half))
    assert _judge(values, SETTLED * half + 0.01, values).because == UNSETTLED
    assert _judge(values, -SETTLED * half - 0.01, values).because == UNSETTLED
    assert _judge(values, 0.0, values + 1.1 * half).because == DISAGREE
    assert _judge(values, 0.0, None).because == DISAGREE


def test_an_interval_holds_both_estimates_and_the_last_change() -> None:
    values = np.arange(40.0)
    low, high = _judge(values, 0.0, values).interval or (0.0, 0.0)
    wider = _judge(values, 0.5, values).interval
    assert wider == pytest.approx((low, high + 0.5))
    assert _judge(values, -0.5, values).interval == pytest.approx((low - 0.5, high))
    assert _judge(values, 0.0, values + 2.0).interval == pytest.approx((low, high + 2.0))


def test_an_optimum_that_is_not_trusted_is_the_plain_one_which_is_low() -> None:
    model = enumerate_language_model(prompts=40)
    rewards = model.sample(32, seed=0)
    found = judged_optimum(Samples.of_reference(rewards), 0.1)
    exact = model.objective(model.optimal(0.1), 0.1)
    assert not found.objective.trusted
    assert found.by_prompt.mean() < min(found.objective.value, exact)
    assert (found.by_prompt <= rewards.max(axis=1)).all()
