"""The sweep's report: index.html (self-contained), its pictures as PNG, and the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from common import files
from common.words import clock
from pipeline.compare.columns import COLUMNS
from pipeline.compare.wording import interval, number
from pipeline.report import plotting
from pipeline.report.plotting import Picture
from pipeline.report.templating import template
from pipeline.report.verdict import Verdict, judge
from pipeline.sweep import figures

Numbers = Mapping[str, Any]
OPTIMALITY = next(column for column in COLUMNS if column.key == "optimality")


def write(folder: Path, sweep: Numbers) -> Path:
    """Write the report of ``sweep``, the content of sweep.json, to ``folder/report``."""
    context = build(sweep)
    with files.new_folder(folder / "report") as made:
        files.write_text(made / "index.html", template("sweep.html").render(context))
        for picture in context["pictures"]:
            (made / f"{picture.name}.png").write_bytes(picture.png)
        for name in ("sweep.json", "sweep.csv"):
            if (folder / name).is_file():
                files.write_bytes(made / name, (folder / name).read_bytes())
    return folder / "report" / "index.html"


def build(sweep: Numbers) -> dict[str, Any]:
    """The template's context."""
    looks = figures.policies(sweep["comparisons"])
    return {
        "name": sweep["name"],
        "sweep": sweep,
        "colours": [(f"p{i}", p["colour"], p["dark"]) for i, p in enumerate(looks.values())],
        "pictures": list(pictures(sweep)),
        "comparisons": [
            {
                "title": title(sweep, c),
                "verdict": verdict(c),
                "rows": list(table(c)),
                "prompts": c["prompts"],
            }
            for c in sweep["comparisons"]
        ],
        "failed": [row for row in sweep["trials"] if row["state"] == "failed"],
    }


def title(sweep: Numbers, found: Numbers) -> str:
    """β, and the further axes that tell a comparison from others at this β."""
    first, *measured = found["pool"]
    shared = sweep["comparisons"][0]["pool"][0]
    parts = [f"β = {found['beta']:g}", *([] if first == shared else [first]), *measured]
    return ", ".join(parts)


# --- Words ----------------------------------------------------------------------------------------


def verdict(found: Numbers) -> Verdict:
    """Which policy to ship at one β, by the rules of a comparison, and whether the seeds agree."""
    seeds = {
        name: {int(seed): value for seed, value in by_seed.items() if value is not None}
        for name, by_seed in found["optimality_by_seed"].items()
    }
    return judge(found, found, seeds=seeds)


# --- Tables and pictures --------------------------------------------------------------------------


def table(found: Numbers) -> Iterator[list[str]]:
    """A row a policy: title, seeds, reward, KL, optimality, judge, seconds, queries."""
    for look in found["policies"]:
        row = found["methods"][look["name"]]
        kind, seeds = look["kind"], found["seeds"].get(look["name"])
        share = f"{OPTIMALITY.value(row)} {interval(row.get('optimality_ci'))}".strip()
        seconds, queries = row.get("train_seconds"), row.get("train_reward_queries")
        yield [
            look["title"],
            "–" if seeds is None else str(len(seeds)),
            number(row.get("reward")),
            ("≤ " if kind == "choice" else "") + number(row.get("kl")),
            "–" if kind == "reference" else share,
            number(row.get("gold")),
            "–" if seconds is None else clock(seconds),
            "–" if queries is None else f"{queries:,.0f}",
        ]


def pictures(sweep: Numbers) -> Iterator[Picture]:
    """Every picture whose numbers are there; reward against KL for each pool of references."""
    comparisons = sweep["comparisons"]
    looks = figures.policies(comparisons)
    own = {f"p{i}": look["colour"] for i, look in enumerate(looks.values())}

    def picture(name: str, title: str, caption: str, figure: Figure | None) -> Iterator[Picture]:
        if figure is not None:
            svg = Markup(plotting.svg(figure, name, own))
            yield Picture(name, title, caption, svg, plotting.png(figure))

    pools = list(dict.fromkeys(tuple(c["pool"]) for c in comparisons))
    for index, pool in enumerate(pools):
        mine = [c for c in comparisons if tuple(c["pool"]) == pool]
        where = f" ({', '.join(pool)})" if len(pools) > 1 else ""
        yield from picture(
            "reward_kl" if index == 0 else f"reward_kl_{index + 1}",
            f"Reward against KL{where}",
            "Up is better, right is dearer. A line is a policy over β: means over seeds with their"
            " 95 % intervals over seeds and prompts; faint marks are single seeds. Stars are"
            " the optimum at each β. Where too few samples tell, the frontier is dotted: it is at"
            " least so high, and an open star's β has an optimum that is worth at least as much."
            " Of best-of-n only an upper bound of its KL is known.",
            figures.reward_kl(mine, sweep["rows"]),
        )
    yield from picture(
        "optimality",
        "How much of the possible gain, over β",
        "0 % is the reference, 100 % the best that any method can reach at that β;"
        " 95 % intervals over seeds and prompts.",
        figures.optimality(comparisons),
    )
    yield from picture(
        "queries",
        "How much of the possible gain, for what training asked",
        "Reward queries are completions that the reward scored while the policy was trained.",
        figures.queries(comparisons) if any(t["over"] for t in sweep["trials"]) else None,
    )
