"""Intervals hold the truth as often as they say, over prompts and over seeds."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from pipeline.compare.intervals import (
    mean_interval,
    over_seeds,
    ratio,
    ratio_interval,
    skewed_mean_interval,
)


def test_there_is_no_optimality_where_nothing_can_be_gained() -> None:
    room = np.array([1e-17, -1e-17, 0.0, 1e-16])  # of equal rewards only rounding is left
    assert ratio(np.zeros(4), room) is None
    assert ratio_interval(np.zeros(4), room, 50, seed=0) is None


def test_the_bootstrap_interval_covers() -> None:
    """A 95 % interval from 40 prompts holds the truth about 95 times in 100."""
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        room = rng.gamma(4.0, 1.0, 40)
        gain = 0.6 * room + rng.normal(0.0, 0.5, 40)
        low, high = ratio_interval(gain, room, 200, seed=trial) or (0.0, 0.0)
        hits += low <= 0.6 <= high
    assert 170 <= hits <= 199


def test_the_bootstrap_is_deterministic_and_narrows() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.normal(1.0, 1.0, 20), rng.normal(1.0, 1.0, 2000)
    assert mean_interval(few, 300, seed=5) == mean_interval(few, 300, seed=5)
    widths = [np.ptp(mean_interval(v, 300, seed=5) or ()) for v in (few, many)]
    # 1/√P: a tenth; and a normal mean's interval is 2·1.96·σ/√P wide.
    assert widths[1] < widths[0] / 5
    assert widths[1] == pytest.approx(2 * 1.96 / math.sqrt(2000), rel=0.2)
    # The reference's own interval is a point: its luck cancels.
    assert ratio_interval(np.zeros(20), np.ones(20), 50, seed=0) == (0.0, 0.0)


def test_an_interval_against_one_computed_from_its_definition() -> None:
    """BCa as Efron & Tibshirani (1993, eq. 14.9–14.15) define it, from draws of our own."""
    values = np.random.default_rng(1).exponential(1.0, 30)
    rng = np.random.default_rng(2)
    draws = np.sort(values[rng.integers(30, size=(100_000, 30))].mean(1))
    normal = NormalDist()
    bias = normal.inv_cdf(float((draws < values.mean()).mean()))
    left_out = (values.sum() - values) / 29
    skew = left_out.mean() - left_out
    acceleration = float((skew**3).sum() / (6 * (skew**2).sum() ** 1.5))
    ends = []
    for z in (-1.959964, 1.959964):
        moved = bias + (bias + z) / (1 - acceleration * (bias + z))
        ends.append(float(np.quantile(draws, normal.cdf(moved))))
    found = mean_interval(values, 20_000, seed=0)
    # The ends of 20,000 draws vary by about 0.004.
    assert found == pytest.approx(ends, abs=0.015)
    plain = np.quantile(draws, [0.025, 0.975])
    assert ends[0] > plain[0] + 0.015 and ends[1] > plain[1] + 0.03, "not the plain percentiles"
    # Where there is the same room for every prompt, the ratio is the mean in another unit.
    assert ratio_interval(values, np.full(30, 2.0), 20_000, seed=0) == pytest.approx(
        [end / 2 for end in found or ()]
    )


def test_prompts_are_drawn_in_pairs() -> None:
    """A gain that is a fixed share of the room has no luck of its own."""
    room = np.random.default_rng(0).gamma(2.0, 1.0, 25)
    assert ratio_interval(0.4 * room, room, 200, seed=0) == pytest.approx((0.4, 0.4))


def test_draws_without_room_are_left_out_of_an_interval() -> None:
    room = np.array([0.0, 0.0, 0.0, 1.0])  # 32 % of the draws hold no prompt with room
    low, high = ratio_interval(np.array([0.1, 0.0, 0.0, 0.5]), room, 200, seed=0) or (
        math.nan,
        math.nan,
    )
    # 0.5 and a tenth for each time that the first prompt comes with it.
    assert low == 0.5 and 0.6 <= high <= 0.8


def test_one_prompt_has_no_interval() -> None:
    assert mean_interval(np.ones(1), 50, seed=0) is None
    assert ratio_interval(np.ones(1), np.ones(1), 50, seed=0) is None


def test_the_skewed_interval_is_students_without_skew_and_moves_with_it() -> None:
    even = np.concatenate([np.arange(20.0), -np.arange(20.0)])
    half = 2.0226909 * even.std(ddof=1) / math.sqrt(40)  # t of 39 degrees of freedom
    assert skewed_mean_interval(even) == pytest.approx((-half, half))
    assert skewed_mean_interval(np.ones(1)) is None
    assert skewed_mean_interval(np.full(9, 2.5)) == (2.5, 2.5)
    skewed = np.random.default_rng(0).exponential(1.0, 40)
    low, high = skewed_mean_interval(skewed) or (0.0, 0.0)
    assert high - skewed.mean() > 1.15 * (skewed.mean() - low)
    # Its ends are where the cubic of Student's t is Student's t of the level.
    spread = skewed.std()
    skew = ((skewed - skewed.mean()) ** 3).mean() / spread**3 / math.sqrt(40)
    for end, expected in ((low, 2.0226909), (high, -2.0226909)):
        t = (skewed.mean() - end) * math.sqrt(39) / spread
        cubic = t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6
        assert cubic == pytest.approx(expected)


def test_the_skewed_interval_covers_a_skewed_mean() -> None:
    """Of log-normal values: 93 in 100 with 40 prompts, where Student's t holds 90."""
    rng = np.random.default_rng(0)
    truth, hits, plain = math.exp(0.5), 0, 0
    for _ in range(2000):
        values = np.exp(rng.normal(size=40))
        low, high = skewed_mean_interval(values) or (0.0, 0.0)
        hits += low <= truth <= high
        half = 2.0227 * values.std(ddof=1) / math.sqrt(40)
        plain += abs(values.mean() - truth) <= half
    assert hits / 2000 > 0.91 and hits > plain + 20


def crossed(
    rng: np.random.Generator, seeds: int, prompts: int, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """Gain and room ``(S, P)``: prompts differ, seeds differ by ``spread``, each pair a little."""
    room = np.repeat(rng.gamma(4.0, 1.0, (1, prompts)), seeds, axis=0)
    share = 0.6 + spread * rng.normal(size=(seeds, 1)) + 0.2 * rng.normal(size=(1, prompts))
    return (share + 0.2 * rng.normal(size=(seeds, prompts))) * room, room


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.3])
def test_an_interval_over_three_seeds_covers(spread: float) -> None:
    """Whatever share of the luck is the seeds'. Seeds 0–4: 92 to 97 of 100."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        gain, room = crossed(rng, 3, 40, spread)
        _, (low, high) = over_seeds(gain, room, 100, 0)  # type: ignore[misc]
        hits += low <= 0.6 <= high
    assert 0.88 <= hits / 400 <= 0.99


def test_seeds_that_agree_cost_little_and_seeds_that_differ_much() -> None:
    widths = []
    for spread in (0.0, 0.3):
        gain, room = crossed(np.random.default_rng(1), 3, 40, spread)
        _, (low, high) = over_seeds(gain, room, 100, 0)  # type: ignore[misc]
        widths.append(high - low)
    assert widths[1] > 4 * widths[0]
    one = ratio_interval(gain[0], room[0], 400, 0)
    assert one is not None and widths[0] < 1.2 * (one[1] - one[0])


def test_one_seed_falls_back_to_prompts() -> None:
    gain, room = crossed(np.random.default_rng(0), 1, 25, 0.0)
    assert over_seeds(gain, room, 200, 3) == (
        ratio(gain[0], room[0]), ratio_interval(gain[0], room[0], 200, 3),
    )  # fmt: skip
    assert over_seeds(gain, room[0], 200, 3) == over_seeds(gain, room, 200, 3)
    assert over_seeds(gain, 0 * room, 200, 3) == (None, None)


def test_two_methods_are_paired_by_prompt_and_seed() -> None:
    """A difference that is the same everywhere has no luck, however wide each method's is."""
    gain, room = crossed(np.random.default_rng(0), 3, 20, 0.3)
    value, interval = over_seeds((gain + 0.1 * room) - gain, room, 100, 0)
    assert value == pytest.approx(0.1) and interval == pytest.approx((0.1, 0.1))


def test_an_interval_over_seeds_by_hand() -> None:
    """Two seeds, two prompts, no interaction: V = var(seeds)/2 + var(prompts)/2."""
    gain = np.array([[0.0, 1.0], [4.0, 5.0]])
    value, interval = over_seeds(gain, np.ones(2), 100, 0)
    by_seed, by_prompt = 8.0 / 2, 0.5 / 2
    freedom = (by_seed + by_prompt) ** 2 / (by_seed**2 + by_prompt**2)
    assert value == 2.5 and 1.0 < freedom < 1.2
    # Student's t at 1 degree of freedom is 12.7, at 1.2 degrees 9.2.
    half = (interval[1] - interval[0]) / 2 / math.sqrt(by_seed + by_prompt)  # type: ignore[index]
    assert 9.2 < half < 12.71
