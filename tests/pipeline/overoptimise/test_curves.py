"""Best-of-n curves against all subsets, and where gold is said to turn down."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from pipeline.overoptimise.curves import (
    Curve,
    against,
    best_of_n_curve,
    describe,
    mean_curve,
    numbers,
    ppo_curve,
    turn,
)


def test_the_numbers_are_powers_of_two_and_all() -> None:
    assert numbers(2) == [1, 2]
    assert numbers(8) == [1, 2, 4, 8]
    assert numbers(11) == [1, 2, 4, 8, 11]


def test_best_of_n_equals_the_average_over_all_subsets() -> None:
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(2, 3, 6))
    proxy[0, :3] = proxy[0, 3]  # equal scores share
    curve = best_of_n_curve(proxy, gold)
    for k, n in enumerate(numbers(6)):
        for prompt in range(3):
            best = []
            for subset in combinations(range(6), n):
                top = max(proxy[prompt, i] for i in subset)
                tied = [i for i in subset if proxy[prompt, i] == top]
                best.append((top, np.mean(gold[prompt, tied])))
            expected = np.mean(best, axis=0)
            assert curve.proxy[prompt, k] == pytest.approx(expected[0])
            assert curve.gold[prompt, k] == pytest.approx(expected[1])
    assert curve.kl[:, 1] == pytest.approx(np.log(2) - 0.5)
    d, proxy_gain, gold_gain = curve.draw()
    assert d[0] == proxy_gain[0] == gold_gain[0] == 0


def falling(fall: float, noise: float) -> Curve:
    """Forty prompts; gold rises for three points and is ``fall`` lower at the last."""
    rng = np.random.default_rng(0)
    means = np.array([0.0, 1.0, 2.0, 2.0 - fall])
    gold = rng.normal(size=(40, 1)) + means + noise * rng.normal(size=(40, 4))
    kl = np.tile([0.0, 1.0, 2.0, 4.0], (40, 1))
    return Curve("bon", kl, gold + kl, gold)


def test_gold_turns_down_only_beyond_the_noise() -> None:
    assert turn(falling(fall=1.0, noise=0.3)) == 2
    assert turn(falling(fall=0.05, noise=0.3)) is None
    assert turn(falling(fall=-1.0, noise=0.3)) is None


def test_described_points_hold_gains_and_intervals() -> None:
    curve = falling(fall=1.0, noise=0.3)
    found = describe([curve, curve], resamples=50, seed=0)
    last = found["curves"][0]["points"][-1]
    assert last["root_kl"] == pytest.approx(2.0)
    assert last["gap"] == pytest.approx(last["proxy"] - last["gold"]) == pytest.approx(4.0)
    assert last["gold_ci"][0] < last["gold"] < last["gold_ci"][1]
    assert found["fits"]["gold"]["alpha_ci"][0] < found["fits"]["gold"]["alpha"]


def test_curves_are_compared_prompt_by_prompt() -> None:
    curve, better = falling(fall=1.0, noise=0.3), falling(fall=0.0, noise=0.3)
    same = against(curve, curve, resamples=20, seed=0)
    assert (same["gap_saved"], same["gap_saved_ci"]) == (0, (0, 0))
    assert (same["gold_gained"], same["gold_gained_ci"]) == (0, (0, 0))
    assert (same["overstated"], same["overstated_saved"]) == (pytest.approx(4.0), 0)
    found = against(curve, Curve("bon", better.kl, curve.proxy, better.gold), 20, seed=0)
    assert found["gold_gained"] == pytest.approx(1.0)
    assert found["gap_saved_ci"] == pytest.approx((1.0, 1.0))  # the noise is the same and cancels


def test_a_ppo_run_is_a_curve_of_its_evaluations() -> None:
    rows = [
        {"step": 0, "kl": [0.0, 0.0], "scores": [1.0, 3.0], "gold": [0.0, 1.0]},
        {"step": 4, "kl": [1.0, 3.0], "scores": [2.0, 5.0], "gold": [0.0, 2.0]},
    ]
    d, proxy, gold = ppo_curve(rows).draw()
    assert d == pytest.approx([0.0, 2**0.5])
    assert proxy == pytest.approx([0.0, 1.5])
    assert gold == pytest.approx([0.0, 0.5])


def test_the_mean_of_curves_is_taken_prompt_by_prompt() -> None:
    one, other = falling(1.0, 0.3), falling(-1.0, 0.3)
    mean = mean_curve([one, other])
    assert mean.gold == pytest.approx((one.gold + other.gold) / 2)
