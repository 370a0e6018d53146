"""The report's pictures with their words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from pipeline.compare.methods import shown
from pipeline.compare.wording import beta_text
from pipeline.report import figures, plotting
from pipeline.report.outputs import Outputs
from pipeline.report.plotting import Picture


@dataclass(frozen=True)
class Family:
    """Trainers that log alike.

    Attributes:
        name: of the picture. title, caption: its words.
        key: a policy that logged one of these belongs to it.
        panels: title → names of the metric, of which the first that is there is drawn. What each
            means: docs/ppo-metrics.md, and TRL's pages on its trainers.
    """

    name: str
    title: str
    caption: str
    key: Sequence[str]
    panels: Mapping[str, Sequence[str]]


FAMILIES = (
    Family(
        "training_rollouts",
        "On-policy training",
        "Measured on training prompts, one point a log event.",
        ("objective/scores", "rewards/proxy/mean"),
        {
            "score: mean reward of the rollout": ("objective/scores", "rewards/proxy/mean"),
            "KL from the reference (nats)": ("objective/kl_exact",),
            "entropy (nats)": ("objective/entropy",),
            "clip fraction": ("policy/clipfrac_avg",),
            "explained variance of the value": ("val/explained_variance",),
        },
    ),
    Family(
        "training_pairs",
        "Training on pairs",
        "Measured on training pairs. A chosen answer whose log-probability falls while pairs are"
        " ordered better is pushed down less than the rejected one, not up.",
        ("rewards/margins", "rewards/accuracies"),
        {
            "loss": ("loss",),
            "pairs ordered right": ("rewards/accuracies",),
            "reward margin, chosen − rejected": ("rewards/margins",),
            "log-probability of the chosen (nats)": ("logps/chosen",),
        },
    ),
    Family(
        "training_texts",
        "Training on texts",
        "Measured on demonstrations, or on chosen samples.",
        ("loss",),
        {"loss (nats a token)": ("loss",)},
    ),
)
"""A policy belongs to the first whose key it logged."""


def pictures(outputs: Outputs) -> dict[str, Picture]:
    """Draw every picture whose numbers are there."""
    results, details, history = outputs.results, outputs.details, outputs.histories
    policies = shown(results)
    seconds = {s: r["seconds"] for s, r in outputs.stages.items() if r.get("seconds")}
    same = bool(details.get("judge_is_proxy"))
    reference = next((m.title for m in policies if m.kind == "reference"), "the reference")
    drawn: list[tuple[str, str, str, Figure | None]] = [
        (
            "reward_kl",
            "Reward against KL",
            _plane_words(outputs),
            figures.reward_kl(results, details, history),
        ),
        (
            "optimality",
            "How much of the possible gain",
            f"The objective of each policy on a scale from {reference} (0\u00a0%) to the optimum"
            " (100\u00a0%), with its 95\u00a0% interval.",
            figures.optimality(results),
        ),
        (
            "cost",
            "What it cost",
            "Up is better, left is cheaper. Rewards are counted as training asked for them, pairs"
            " included; time is that of the policy's own stage.",
            figures.cost(results, seconds),
        ),
        (
            "proxy_gold",
            "Reward against judge",
            "Small dots are single completions, large marks are means. Progress goes up as well"
            " as right; a line that goes right but not up is reward hacking.",
            figures.proxy_gold(results, outputs.samples, same),
        ),
        *_gold_kl(outputs),
        (
            "calibration",
            "Calibration of the classifiers",
            "Of the texts that a classifier calls positive with 80\u00a0% probability,"
            " 80\u00a0% should be."
            " Larger dots hold more texts.",
            figures.calibration(outputs.reward),
        ),
        (
            "optimum",
            "The optimum as N doubles",
            "The estimate of the best possible objective is low when N is small; it can be trusted"
            " where it has settled.",
            figures.optimum(details, results),
        ),
        *_training(outputs),
    ]
    own = own_colours(results)
    return {
        name: Picture(
            name, title, words, Markup(plotting.svg(figure, name, own)), plotting.png(figure)
        )
        for name, title, words, figure in drawn
        if figure is not None
    }


def own_colours(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the policies' CSS variables and their light colours."""
    policies = shown(results)
    names = plotting.variables(policies)
    return {names[method.name]: method.colour for method in policies}


def _plane_words(outputs: Outputs) -> str:
    results = outputs.results
    policies = shown(results)
    words = [
        "Up is better, right is dearer. No policy can be above the optimal frontier, which is"
        " estimated from the reference's own samples."
    ]
    choice = "".join(
        f" Of {method.title} only an upper bound of its KL is known (arrow)."
        for method in policies
        if method.kind == "choice"
    )
    missing = [m.title for m in policies if results["methods"][m.name].get("kl") is None]
    if missing:
        choice += f" Without a KL, and so without a place: {', '.join(missing)}."
    rows = results.get("frontier") or []
    if any(row.get("reward_ci") for row in rows):
        words.append("Its band is the 95\u00a0% interval.")
    if any(row.get("reward_2") is not None for row in rows):
        words.append("Dashed beside it is a second estimate, made in another way.")
    known = [row for row in rows if row.get("trusted") is not False]
    low = len(known) < len(rows) and all(row.get("floor_reward") is not None for row in rows)
    if low:
        words.append(
            "Where too few samples carry the weight to tell it is dotted: there it is at least so"
            " high (on average over samples), and what lies above the dots is not ruled out."
        )
    elif rows and not known:
        why = rows[0].get("untrusted_because") or "too few samples carry its weight"
        return f"Up is better, right is dearer. The optimal frontier is not drawn: {why}.{choice}"
    if len(known) < len(rows) and not low:
        words.append("It ends where too few samples carry the weight to tell.")
    if results["beta"] == 0:
        words.append("At β = 0 right costs nothing, so no point of it is the best.")
    elif any(row.get("trusted") is False and row["beta"] == results["beta"] for row in rows):
        words.append(
            "The open star has the objective that the best at this β has at least."
            if low
            else "Where the best at this β lies is not known."
        )
    elif rows:
        words.append(
            "All points on one dashed line are worth the same at"
            f" β = {beta_text(results['beta'])}; the one that touches the frontier is the best that"
            " any method can reach."
        )
    return " ".join(words) + choice


def _gold_kl(outputs: Outputs) -> list[tuple[str, str, str, Figure | None]]:
    """Of each policy that was evaluated with the judge while it trained."""
    drawn = []
    for method in shown(outputs.results):
        figure = figures.gold_kl(outputs.histories.get(method.name, []))
        if figure is not None:
            drawn.append(
                (
                    f"gold_kl_{method.name}" if drawn else "gold_kl",
                    f"Reward and judge as {method.title} trained",
                    "At evaluations on validation prompts, with the judge's 95\u00a0% interval. A"
                    " judge that falls while the reward rises is over-optimisation. It is an audit"
                    " after the fact, with errors of its own, and no early warning.",
                    figure,
                )
            )
    return drawn


def _training(outputs: Outputs) -> list[tuple[str, str, str, Figure | None]]:
    """A picture a family of trainers, its policies beside each other."""
    members: dict[str, dict[str, Any]] = {family.name: {} for family in FAMILIES}
    for method in shown(outputs.results):
        rows = outputs.histories.get(method.name) or []
        logged = {name for row in rows for name in row}
        for family in FAMILIES:
            if logged & set(family.key):
                members[family.name][method.title] = (rows, method.colour)
                break
    return [
        (
            family.name,
            f"{family.title}: {', '.join(members[family.name])}",
            family.caption,
            figures.curves(members[family.name], family.panels),
        )
        for family in FAMILIES
        if members[family.name]
    ]
