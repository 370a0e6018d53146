"""The report's pictures: each a matplotlib Figure, or None where the numbers for it are missing.

`reward_kl_over` and `plane` (with `Spot`) are for pages of several comparisons, such as a sweep's.
"""

from pipeline.report.figures.marks import calibration, gold_kl, proxy_gold
from pipeline.report.figures.plane import Spot, plane
from pipeline.report.figures.reward import mean_frontier, reward_kl, reward_kl_over
from pipeline.report.figures.scale import cost, optimality, optimum
from pipeline.report.figures.training import curves

__all__ = [
    "Spot",
    "calibration",
    "cost",
    "curves",
    "gold_kl",
    "mean_frontier",
    "optimality",
    "optimum",
    "plane",
    "proxy_gold",
    "reward_kl",
    "reward_kl_over",
]
