"""What training logged, of one policy or of several beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from pipeline.report.plotting import WIDTH, styled

Rows = Sequence[Mapping[str, Any]]
Points = list[tuple[int, float]]


@styled
def curves(
    histories: Mapping[str, tuple[Rows, str]], panels: Mapping[str, Sequence[str]]
) -> Figure | None:
    """Draw training curves under each other over the optimizer step; None without numbers.

    Args:
        histories: a policy's name for people → its metrics.jsonl and its colour.
        panels: title → names of the metric, the first that is there is drawn; a panel without
            numbers is left out.
    """
    logged: dict[str, dict[str, Points]] = {}
    for title, names in panels.items():
        found = {who: _series(rows, names) for who, (rows, _) in histories.items()}
        if found := {who: points for who, points in found.items() if points}:
            logged[title] = found
    if not logged:
        return None
    several = len({who for found in logged.values() for who in found}) > 1
    height = 0.55 + 1.15 * len(logged) + (0.35 if several else 0)
    drawn = Figure(figsize=(WIDTH, height), layout="constrained")
    column = drawn.subplots(len(logged), 1, sharex=True, squeeze=False)[:, 0]
    handles: dict[str, Any] = {}
    for axes, (title, found) in zip(column, logged.items(), strict=True):
        axes.set_title(title, fontsize=9.5, pad=3)
        for who, points in found.items():
            few = "o" if len(points) < 3 else None
            (handles[who],) = axes.plot(
                *zip(*points, strict=True), color=histories[who][1], marker=few, lw=1.5
            )
        axes.margins(y=0.15)
        axes.locator_params(axis="y", nbins=4)
    column[-1].set_xlabel("optimizer step")
    if several:
        drawn.legend(
            list(handles.values()), list(handles), loc="outside upper left", ncols=4,
            handlelength=1.2, columnspacing=1.0, fontsize=8.5,
        )  # fmt: skip
    return drawn


def _series(rows: Rows, names: Sequence[str]) -> Points:
    for name in names:
        points = [
            (row["step"], row[name])
            for row in rows
            if isinstance(row.get(name), int | float) and "step" in row
        ]
        if points:
            return points
    return []
