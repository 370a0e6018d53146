"""The laws of Gao et al. 2022 are found again in curves made from them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.overoptimise.fits import Fit, Law, fit, fit_with_intervals

D = np.linspace(0, 3, 13)


def made(law: Law, alpha: float, beta: float) -> np.ndarray:
    """The law written out by hand."""
    if law == "bon":
        return D * (alpha - beta * D)
    return np.array([d * (alpha - beta * math.log(d)) if d > 0 else 0.0 for d in D])


@pytest.mark.parametrize("law", ["bon", "rl"])
def test_without_noise_the_coefficients_are_exact(law: Law) -> None:
    found = fit(law, D, made(law, 1.3, 0.4))
    assert found is not None
    assert (found.alpha, found.beta) == pytest.approx((1.3, 0.4))
    assert found(D) == pytest.approx(made(law, 1.3, 0.4))


@pytest.mark.parametrize("law", ["bon", "rl"])
def test_with_noise_the_intervals_hold_them(law: Law) -> None:
    """95 % intervals, over 100 seeds: the true numbers are in at least 85 of them each."""
    held = np.zeros(2)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        prompts = made(law, 1.3, 0.4) + 0.5 * rng.normal(size=(40, len(D)))
        draws = [(D, prompts[rows].mean(axis=0)) for rows in rng.integers(40, size=(200, 40))]
        found = fit_with_intervals(law, D, prompts.mean(axis=0), draws)
        assert found is not None and found.alpha_ci is not None and found.beta_ci is not None
        assert found.alpha == pytest.approx(1.3, abs=0.3)
        held += [
            found.alpha_ci[0] <= 1.3 <= found.alpha_ci[1],
            found.beta_ci[0] <= 0.4 <= found.beta_ci[1],
        ]
    assert (held >= 85).all(), held


@pytest.mark.parametrize("law", ["bon", "rl"])
def test_the_peak_is_where_the_law_is_highest(law: Law) -> None:
    found = Fit(law, 1.3, 0.4)
    assert found.peak is not None
    near = found(found.peak + np.array([-1e-3, 0.0, 1e-3]))
    assert near[1] == near.max()
    assert Fit(law, 1.3, -0.1).peak is None  # it only rises
    assert Fit(law, -1.0, 0.4).peak is None  # it only falls


def test_too_few_points_are_no_fit() -> None:
    assert fit("bon", np.array([0.0, 1.0, 1.0]), np.array([0.0, 1.0, 1.0])) is None
