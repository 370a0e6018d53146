"""The account's pictures: each a matplotlib Figure, or None where its numbers are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from pipeline.judging.measures import quantile_ranks
from pipeline.report.plotting import PALETTE, WIDTH, Picture, figure, png, styled, svg

# The rewards' colours, of light pages; judging.css has those of dark ones as --s0 to --s4. None is
# a colour of `plotting.svg`, which puts variables of its own in the place of those.
SERIES = ("#0d68b9", "#cc5a04", "#04876c", "#8b4b9f", "#7b8695")
MARKERS = "osD^v"
_LONGEST = 22  # characters of a name in a picture
_MOST_POINTS = 1000

Account = Mapping[str, Any]


def pictures(account: Account) -> dict[str, Picture]:
    """Draw every picture whose numbers are there."""
    drawn: list[tuple[str, str, str, Figure | None]] = [
        (
            "pairwise",
            "Two texts, one rater: who sides with the rater?",
            "How often a rater of held-out texts prefers the one that scores higher. Band: how"
            " often another rater sides with the first. Dashed: how often the mean of the others"
            " does. Lines are 95\u00a0% intervals.",
            pairwise(account),
        ),
        (
            "scatter",
            "Score against people",
            "Each dot is a held-out text; its place among all by score, and its mean rating. Dots"
            " far from the rise are the worst-judged texts below.",
            scatter(account),
        ),
        (
            "calibration",
            "Calibration",
            "Of the texts that a reward calls positive with 80\u00a0% probability, 80\u00a0% should"
            " be. Larger dots hold more texts. Only rewards that give log-odds say a probability.",
            calibration(account),
        ),
        (
            "domains",
            "Other domains",
            "AUC: how often a text that people find good scores above one that they find bad;"
            " 50\u00a0% is chance. Nothing was retrained for the other domains.",
            along(account, account["by_domain"], [row["domain"] for row in account["by_domain"]]),
        ),
        (
            "lengths",
            "By length",
            f"The same AUC on quarters of the held-out texts by length, in {account['unit']}.",
            along(
                account,
                account["by_length"],
                [_span(row, account["unit"]) for row in account["by_length"]],
            ),
        ),
    ]
    return {
        name: Picture(name, title, words, Markup(themed(svg(figure, name))), png(figure))
        for name, title, words, figure in drawn
        if figure is not None
    }


def themed(text: str) -> str:
    """The picture with the page's variables for the rewards' colours."""
    for index, colour in enumerate(SERIES):
        text = text.replace(colour, f"var(--s{index})")
    return text


def shown(name: str) -> str:
    """A name as a picture shows it: short, without what its font lacks, and no mathematics."""
    name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    font = get_font(findfont("DejaVu Sans"))
    return "".join(c if font.get_char_index(ord(c)) else "·" for c in name).replace("$", r"\$")


def look(index: int) -> tuple[str, str]:
    """Colour and marker of the reward with this number."""
    return SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]


@styled
def pairwise(account: Account) -> Figure | None:
    """Agreement with a held-out rater, beside that of another rater."""
    found = account["pairwise"]
    if found is None or found["another_rater"] is None:
        return None
    rows = list(found["rewards"].items())
    drawn, axes = figure(0.75 + 0.36 * len(rows))
    ceiling, others = found["another_rater"], found["mean_of_others"]
    low, high = ceiling["interval"] or (ceiling["value"], ceiling["value"])
    axes.axvspan(low, high, color=PALETTE["soft"], alpha=0.25, lw=0)
    axes.axvline(ceiling["value"], color=PALETTE["soft"], lw=1)
    if others is not None:
        axes.axvline(others["value"], color=PALETTE["ink"], lw=1.2, ls="--")
    for at, (_, row) in enumerate(rows):
        _mark(axes, row["agreement"], len(rows) - 1 - at, at)
    axes.set_yticks(range(len(rows)), [shown(name) for name, _ in reversed(rows)])
    axes.tick_params(axis="y", labelcolor=PALETTE["ink"])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(False, axis="y")
    _percents(axes, "x")
    axes.set_xlabel("sides with a held-out rater")
    return drawn


def _mark(axes: Axes, value: Mapping[str, Any] | None, at: float, index: int) -> None:
    """A value with its interval, lying."""
    if value is None:
        return
    colour, marker = look(index)
    if value["interval"]:
        axes.plot(value["interval"], [at, at], color=colour, lw=1.6)
    axes.plot([value["value"]], [at], marker=marker, ms=6.5, color=colour, lw=0)


@styled
def scatter(account: Account) -> Figure | None:
    """Each reward's places of the texts against their mean ratings, a panel a reward."""
    ratings, rewards = account["scores"]["rating"], account["scores"]["rewards"]
    if len(ratings) < 2:
        return None
    across = min(2, len(rewards))
    down = -(-len(rewards) // across)
    drawn = Figure(figsize=(WIDTH, 0.45 + 1.9 * down), layout="constrained")
    panels = drawn.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    step = -(-len(ratings) // _MOST_POINTS)
    for index, (axes, (name, scores)) in enumerate(zip(panels, rewards.items(), strict=False)):
        colour, _ = look(index)
        places = quantile_ranks(scores)
        axes.scatter(ratings[::step], places[::step], s=7, color=colour, alpha=0.35, linewidths=0)
        axes.axvline(account["positive_above"], color=PALETTE["soft"], lw=0.8, ls=":")
        axes.set_title(shown(name), fontsize=9.5, pad=3)
    for axes in panels[len(rewards) :]:
        axes.set_visible(False)
    _percents(panels[0], "y")
    drawn.supxlabel("mean human rating", color=PALETTE["soft"], fontsize=9.5)
    drawn.supylabel("place by score", color=PALETTE["soft"], fontsize=9.5)
    return drawn


@styled
def calibration(account: Account) -> Figure | None:
    """The share of positive texts against the probability that a reward gives."""
    rows = [
        (index, name, row["bins"])
        for index, (name, row) in enumerate(account["rewards"].items())
        if row.get("bins")
    ]
    if not rows:
        return None
    drawn, axes = figure(3.3)
    axes.plot([0, 1], [0, 1], color=PALETTE["soft"], lw=1.2, ls="--", label="perfect")
    largest = max(b["texts"] for _, _, bins in rows for b in bins)
    for index, name, bins in rows:
        colour, marker = look(index)
        x, y = [b["predicted"] for b in bins], [b["positive"] for b in bins]
        axes.plot(x, y, color=colour, lw=1.4, label=shown(name))
        sizes = [12 + 110 * b["texts"] / largest for b in bins]
        axes.scatter(x, y, s=sizes, color=colour, marker=marker, alpha=0.75, linewidths=0)
    _percents(axes, "x")
    _percents(axes, "y")
    axes.set_xlabel("probability of positive, as the reward says")
    axes.set_ylabel("share positive, as people say")
    axes.legend(loc="best", handlelength=1.6)
    return drawn


@styled
def along(account: Account, rows: Sequence[Account], labels: Sequence[str]) -> Figure | None:
    """AUC of every reward along ``rows``, with its intervals."""
    names = list(account["rewards"])
    values = {name: [row["rewards"][name]["auc"] for row in rows] for name in names}
    if not any(value for column in values.values() for value in column):
        return None
    drawn, axes = figure(2.8 + 0.2 * -(-len(names) // 3))
    for index, name in enumerate(names):
        colour, marker = look(index)
        shift = 0.5 * ((index + 0.5) / len(names) - 0.5)
        for at, value in enumerate(values[name]):
            if value is not None and value["interval"]:
                axes.plot([at + shift] * 2, value["interval"], color=colour, lw=1.4)
        there = [(at + shift, v["value"]) for at, v in enumerate(values[name]) if v is not None]
        if there:
            axes.plot(
                *zip(*there, strict=True), color=colour, marker=marker, ms=5.5, lw=0,
                label=shown(name),
            )  # fmt: skip
    axes.set_xticks(range(len(rows)), [label.replace("-", "\n") for label in labels])
    axes.tick_params(axis="x", labelcolor=PALETTE["ink"])
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.grid(False, axis="x")
    low, high = axes.get_ylim()
    if low <= 0.56:
        axes.axhline(0.5, color=PALETTE["soft"], lw=1, ls=":")
    axes.set_ylim(low, min(high, 1.0) + 0.001)
    _percents(axes, "y")
    axes.set_ylabel("AUC")
    drawn.legend(loc="outside lower center", ncols=min(len(names), 3))
    return drawn


def _span(row: Mapping[str, Any], unit: str) -> str:
    return f"{row['from']} to {row['to']}" if row["from"] < row["to"] else f"{row['from']}"


def _percents(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
