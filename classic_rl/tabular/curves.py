"""What tabular trainings look like over time: learning curves, and moments of a Q-table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from classic_rl.pictures import plots
from classic_rl.pictures.grid_plots import Snapshot
from classic_rl.tabular.experience import Learned

PANELS = 6  # of the Q-table's picture strip
POINTS, WINDOW = 100, 0.05  # of a learning curve, and the part of the training that each averages


def learning_curve(
    learned: Sequence[Learned], by_episodes: bool, best: float | None, *, title: str
) -> Figure:
    """Mean return of training episodes, with a band over seeds; ``best`` is drawn as a line."""
    ends = [
        np.arange(1, len(one.returns) + 1) if by_episodes else np.cumsum(one.lengths)
        for one in learned
    ]
    total = min(int(end[-1]) for end in ends)
    grid = np.linspace(0, total, POINTS + 1)[1:]
    y = np.stack(
        [
            plots.moving_mean(end, one.returns, grid, total * WINDOW)
            for end, one in zip(ends, learned, strict=True)
        ]
    )
    known = np.isfinite(y).all(axis=0)
    name = f"mean of {len(learned)} seeds" if len(learned) > 1 else "one seed"
    figure = plots.curves(
        {name: (grid[known], y[:, known])},
        title=title,
        xlabel="episodes" if by_episodes else "environment steps",
        ylabel="return while exploring",
        level=None if best is None else (best, "optimum"),
        ylim=_readable(y[:, known], best),
    )
    if total >= 10_000:
        figure.axes[0].xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k")
    return figure


def snapshots_by_steps(learned: Learned, by_episodes: bool) -> list[Snapshot]:
    """The snapshots of a training with environment steps beside them."""
    if not by_episodes:
        return learned.snapshots
    steps = np.concatenate([[0], np.cumsum(learned.lengths)])
    return [(int(steps[done]), table) for done, table in learned.snapshots]


def selection(frames: Sequence[Snapshot]) -> list[Snapshot]:
    """A few of many snapshots, the first and last included, closer together at the beginning."""
    spread = np.linspace(0, 1, PANELS) ** 2 * (len(frames) - 1)
    return [frames[i] for i in np.unique(np.ceil(spread).astype(int))]


def _readable(y: np.ndarray, best: float | None) -> tuple[float, float] | None:
    """Limits that leave out the first episodes' far lower returns; None where there are none."""
    low, high = float(np.quantile(y, 0.1)), float(y.max())
    high = high if best is None else max(high, best)
    margin = 0.08 * (high - low)
    return None if y.min() > low - 3 * (high - low) else (low - 2 * margin, high + margin)
