"""The page: index.html (self-contained), its pictures as PNG, and results.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from common import files
from pipeline.compare.wording import number, signed
from pipeline.overoptimise import figures
from pipeline.overoptimise.figures import COLOURS, DARK, TITLES
from pipeline.overoptimise.grid import HOWS
from pipeline.overoptimise.results import results
from pipeline.overoptimise.work import Work
from pipeline.report import plotting
from pipeline.report.plotting import Picture
from pipeline.report.templating import template


def write(work: Work) -> Path:
    """Write the page of finished work and return its path."""
    found = results(work)
    context = build(found, work.experiment.name)
    with files.new_folder(work.folder / "report") as folder:
        files.write_text(folder / "index.html", template("overoptimise.html").render(context))
        for picture in context["pictures"]:
            (folder / f"{picture.name}.png").write_bytes(picture.png)
        files.write_json(folder / "results.json", found)
    return work.folder / "report" / "index.html"


def build(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The template's context, from what results.json holds."""
    best, runs = found["best_of_n"], found["ppo"]
    return {
        "name": name,
        "found": found,
        "colours": [(how, COLOURS[how], DARK[how]) for how in HOWS],
        "samples": found["settings"]["samples"],
        "verdict": list(verdict(found)),
        "pictures": list(pictures(best, runs)),
        "gaps": _gap_rows(found),
        "fits": [*_fit_rows("best-of-n", best), *_fit_rows("PPO", runs)],
        "sizes": [(_ratings(size), number(value)) for size, value in found["agreement"].items()],
    }


def _ratings(size: str) -> str:
    return "all ratings" if size == "all" else f"{size} ratings"


# -- words -----------------------------------------------------------------------------------------


def ends(value: Any, ci: Any) -> str:
    """A number with its interval."""
    return signed(value) + (f" [{signed(ci[0])} to {signed(ci[1])}]" if ci else "")


def verdict(found: Mapping[str, Any]) -> Iterator[str]:
    """What the numbers say, a sentence each."""
    n, members = found["settings"]["samples"], found["settings"]["members"]
    for size, hows in found["best_of_n"].items():
        last = hows["single"]["curves"][0]["points"][-1]
        side = _side(last["gap_ci"], "below the proxy", "above the proxy", "as high, to the noise")
        yield (
            f"Best of {n}, single proxy of {_ratings(size)}: the proxy gains"
            f" {signed(last['proxy'])}, gold {signed(last['gold'])}. Gold is {side}: the gap is"
            f" {ends(last['gap'], last['gap_ci'])}."
        )
        other = found["against"][size]["uncertainty"]
        over, gap, gold = (
            _side(other[f"{name}_ci"], more, less, "the same, to the noise")
            for name, more, less in (
                ("overstated_saved", "less than a single proxy's", "more than a single proxy's"),
                ("gap_saved", "smaller", "larger"),
                ("gold_gained", "higher", "lower"),
            )
        )
        yield (
            f"With the uncertainty penalty, {members} proxies of {_ratings(size)}: what the reward"
            f" claims above gold, {ends(other['overstated'], other['overstated_ci'])}, is {over};"
            f" the gap of the gains over π_ref is {gap} (single's less its:"
            f" {ends(other['gap_saved'], other['gap_saved_ci'])}); gold is {gold} (its less"
            f" single's: {ends(other['gold_gained'], other['gold_gained_ci'])})."
        )
    turned = [
        f"{method}, {_ratings(size)}, {TITLES[how]}" + (f", β = {beta:g}" if beta else "")
        for method, kind in (("best-of-n", "best_of_n"), ("PPO", "ppo"))
        for size, hows in found[kind].items()
        for how, described in hows.items()
        for beta, curve in zip(described.get("betas", [None]), described["curves"], strict=True)
        if curve["turn"] is not None
    ]
    if turned:
        yield f"Gold turned down in: {'; '.join(turned)}."
    else:
        yield "Gold did not turn down in any curve, as far as these go."


def _side(ci: Any, above: str, below: str, neither: str) -> str:
    """Which side of 0 a whole interval is on."""
    if ci is None:
        return neither
    return above if ci[0] > 0 else below if ci[1] < 0 else neither


def _gap_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """What each reward gains at the largest n, and what it is worth against the single proxy."""
    rows = []
    for size, hows in found["best_of_n"].items():
        for how in HOWS:
            first, *_, last = hows[how]["curves"][0]["points"]
            other = found["against"][size][how]
            gained = ends(other["gold_gained"], other["gold_gained_ci"])
            rows.append(
                [
                    f"{_ratings(size)}, {TITLES[how]}",
                    f"{signed(first['level'])} → {signed(last['level'])}",
                    ends(last["gold"], last["gold_ci"]),
                    ends(last["gap"], last["gap_ci"]),
                    ends(other["overstated"], other["overstated_ci"]),
                    "–" if how == "single" else gained,
                ]
            )
    return rows


def _fit_rows(method: str, sizes: Mapping[str, Any]) -> Iterator[list[str]]:
    """Curve, law, α, β, where the law peaks, and where the measured gold turned down."""
    for size, hows in sizes.items():
        for how, described in hows.items():
            curves = described["curves"]
            furthest = max(point["root_kl"] for c in curves for point in c["points"])
            for name in ("gold", "proxy"):
                fit = described["fits"][name]
                if fit is None:
                    continue
                peak = fit["peak_root_kl"]
                beyond = "" if peak is None or peak <= furthest else " (beyond)"
                turns = [c["points"][c["turn"]] for c in curves if c["turn"] is not None]
                seen = ", ".join(number(point["root_kl"]) for point in turns)
                yield [
                    f"{method}, {_ratings(size)}, {TITLES[how]}: {name}",
                    "d(α − βd)" if fit["law"].endswith("beta d)") else "d(α − β log d)",
                    ends(fit["alpha"], fit["alpha_ci"]),
                    ends(fit["beta"], fit["beta_ci"]),
                    "never" if peak is None else number(peak) + beyond,
                    (seen or "did not turn down") if name == "gold" else "–",
                ]


# -- pictures --------------------------------------------------------------------------------------


def pictures(best: Mapping[str, Any], runs: Mapping[str, Any]) -> Iterator[Picture]:
    """A picture a size for best-of-n, one a size and reward for PPO, and the gaps."""
    top = _highest(best)
    for size, hows in best.items():
        yield _picture(
            f"best-of-n-{size}",
            f"Best-of-n, proxies of {_ratings(size)}",
            "Solid is gold with its 95\u00a0% interval, dashed what was optimised. Points are"
            " n = 1, 2, 4, …; all from one set of samples.",
            figures.best_of_n(hows, top),
        )
    top = _highest(runs)
    for size, hows in runs.items():
        for how, described in hows.items():
            yield _picture(
                f"ppo-{size}-{how}",
                f"PPO, {TITLES[how]} of {_ratings(size)}",
                "Filled marks are gold with its 95\u00a0% interval, open ones the reward that was"
                " optimised, at evaluations along the way; lines are the fitted laws.",
                figures.ppo(described, how, top),
            )
    yield _picture(
        "gaps",
        "The gap at the largest n",
        "The proxy's gain that the judge does not confirm; 95\u00a0% intervals over prompts.",
        figures.gaps(best),
    )


def _highest(sizes: Mapping[str, Any]) -> float:
    values = [
        point[name]
        for hows in sizes.values()
        for described in hows.values()
        for curve in described["curves"]
        for point in curve["points"]
        for name in ("proxy", "gold")
    ]
    return max(values, default=1.0)


def _picture(name: str, title: str, caption: str, figure: Figure) -> Picture:
    svg = Markup(plotting.svg(figure, name, COLOURS))
    return Picture(name, title, caption, svg, plotting.png(figure))
