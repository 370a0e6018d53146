r"""The two laws of Gao et al. 2022, "Scaling Laws for Reward Model Overoptimization", section 3.1.

With :math:`d = \sqrt{KL(\pi \| \pi_{ref})}` the gain in gold reward over π_ref is

.. math:: R_{bon}(d) = d\,(\alpha - \beta d), \qquad R_{RL}(d) = d\,(\alpha - \beta \log d)

Both are linear in α and β: they are found by least squares, without an intercept, as d = 0 is π_ref
itself. This β is a coefficient of the law, not the price of KL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Law = Literal["bon", "rl"]
LEVEL = 0.95


@dataclass(frozen=True)
class Fit:
    """α and β of a law. Intervals are 95 %, None where there were no draws to take them from."""

    law: Law
    alpha: float
    beta: float
    alpha_ci: tuple[float, float] | None = None
    beta_ci: tuple[float, float] | None = None

    def __call__(self, d: Array) -> Array:
        """The gain at √KL ``d``, which is 0 at 0."""
        return _columns(self.law, np.asarray(d, dtype=np.float64)) @ np.array(
            [self.alpha, self.beta]
        )

    @property
    def peak(self) -> float | None:
        """√KL where the law turns down: α / 2β, or exp(α/β − 1); None where it never does."""
        if self.beta <= 0 or self.alpha <= 0:
            return None
        exponent = self.alpha / self.beta - 1
        if self.law == "bon":
            return self.alpha / (2 * self.beta)
        return math.exp(exponent) if exponent < 700 else None

    def to_json(self) -> dict[str, Any]:
        """All numbers, the peak's KL in nats too."""
        peak = self.peak
        return {
            "law": "d(alpha - beta d)" if self.law == "bon" else "d(alpha - beta log d)",
            "alpha": self.alpha,
            "alpha_ci": self.alpha_ci,
            "beta": self.beta,
            "beta_ci": self.beta_ci,
            "peak_root_kl": peak if peak is not None and peak < 1e6 else None,
        }


def _columns(law: Law, d: Array) -> Array:
    """What α and β are multiplied by at each d: ``(K, 2)``."""
    second = d * d if law == "bon" else d * np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -second], axis=-1)


def fit(law: Law, d: Array, gain: Array) -> Fit | None:
    """Least squares through points ``(K,)``; None where fewer than two different d are above 0."""
    d, gain = np.asarray(d, dtype=np.float64), np.asarray(gain, dtype=np.float64)
    if len(np.unique(d[d > 0])) < 2:
        return None
    (alpha, beta), *_ = np.linalg.lstsq(_columns(law, d), gain, rcond=None)
    return Fit(law, float(alpha), float(beta))


def fit_with_intervals(
    law: Law, d: Array, gain: Array, draws: list[tuple[Array, Array]]
) -> Fit | None:
    """:func:`fit`, with percentile intervals of the same fit to each of ``draws``.

    The points of a curve share their prompts and samples, so their residuals are not independent;
    draws that resample prompts, and recompute the whole curve, are honest of that.

    Args:
        draws: pairs of d and gain as they would have been with other prompts.
    """
    best = fit(law, d, gain)
    fitted = [made for made in (fit(law, *draw) for draw in draws) if made is not None]
    if best is None or not fitted:
        return best
    edges = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    alpha, beta = (
        tuple(float(edge) for edge in np.quantile([getattr(f, name) for f in fitted], edges))
        for name in ("alpha", "beta")
    )
    return Fit(law, best.alpha, best.beta, alpha, beta)  # type: ignore[arg-type]
