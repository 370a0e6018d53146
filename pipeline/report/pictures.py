"""The report's pictures with their words."""

from __future__ import annotations

from markupsafe import Markup
from matplotlib.figure import Figure

from pipeline.compare.methods import BEST_OF_N, DPO, PPO, SFT
from pipeline.report import figures, plotting
from pipeline.report.outputs import Outputs
from pipeline.report.plotting import Picture

# Title → metric. What each means: docs/ppo-metrics.md, and TRL's pages on its trainers.
PPO_PANELS = {
    "score: mean reward of the rollout": "objective/scores",
    "KL from the reference (nats)": "objective/kl_exact",
    "entropy (nats)": "objective/entropy",
    "clip fraction": "policy/clipfrac_avg",
    "explained variance of the value": "val/explained_variance",
}
SFT_PANELS = {"SFT loss (nats a token)": "loss"}
DPO_PANELS = {
    "DPO loss": "loss",
    "pairs ordered right": "rewards/accuracies",
    "reward margin, chosen − rejected": "rewards/margins",
}
# Method, caption, panels.
TRAINING = (
    (PPO, "Measured on training prompts, one point a log event.", PPO_PANELS),
    (DPO, "Measured on training pairs.", DPO_PANELS),
    (SFT, "Measured on demonstrations.", SFT_PANELS),
)


def _optimum(beta: float) -> str:
    """What the frontier tells about this β."""
    if beta == 0:
        return "At β = 0 right costs nothing, so no point of it is the best."
    return (
        "All points on one dashed line are worth the same at this β; the one that touches the"
        f" frontier is the best that {PPO.title} and {DPO.title} could reach."
    )


def pictures(outputs: Outputs) -> dict[str, Picture]:
    """Draw every picture whose numbers are there."""
    results, details, history = outputs.results, outputs.details, outputs.histories
    same = bool(details.get("judge_is_proxy"))
    drawn: list[tuple[str, str, str, Figure | None]] = [
        (
            "reward_kl",
            "Reward against KL",
            "Up is better, right is dearer. No method can be above the optimal frontier, which is"
            f" estimated from the reference's own samples. {_optimum(results['beta'])} Of"
            f" {BEST_OF_N.title} only an upper bound of its KL is known (arrow).",
            figures.reward_kl(results, details, history.get(PPO.name, [])),
        ),
        (
            "optimality",
            "How much of the possible gain",
            f"The objective of each method on a scale from {SFT.title} (0\u00a0%) to the optimum"
            " (100\u00a0%), with its 95\u00a0% interval over prompts.",
            figures.optimality(results["methods"]),
        ),
        (
            "proxy_gold",
            "Reward against judge",
            "Small dots are single completions, large marks are means. Progress goes up as well"
            " as right; a line that goes right but not up is reward hacking.",
            figures.proxy_gold(results, outputs.samples, same),
        ),
        (
            "gold_kl",
            "Reward and judge as PPO trained",
            "At evaluations on validation prompts, with the judge's 95\u00a0% interval. A judge"
            " that falls while the reward rises is over-optimisation. It is an audit after the"
            " fact, with errors of its own, and no early warning.",
            figures.gold_kl(history.get(PPO.name, [])),
        ),
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
            figures.optimum(details, results["methods"]),
        ),
        *(
            (
                f"training_{method.name}",
                f"{method.title} while it trained",
                words,
                figures.curves(history.get(method.name, []), panels, method.colour),
            )
            for method, words, panels in TRAINING
        ),
    ]
    return {
        name: Picture(name, title, words, Markup(plotting.svg(figure, name)), plotting.png(figure))
        for name, title, words, figure in drawn
        if figure is not None
    }
