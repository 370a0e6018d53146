"""A made-up comparison of many policies, in the shape that the compare stage writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

# Marker, and colours that are readable as text on a light and on a dark page.
LOOKS = (
    ("o", "#66717f", "#9aa6b5"), ("D", "#0b67b8", "#5aaef2"), ("s", "#c25400", "#f2954a"),
    ("v", "#8a4a9e", "#c79ad6"), ("P", "#a3246a", "#ee83b8"), ("X", "#6b5b00", "#cdb93a"),
    ("<", "#1f6f8b", "#6cc5df"), (">", "#9c3a2a", "#f0937f"), ("p", "#3f5fbf", "#93a9f5"),
    ("h", "#4d7c0f", "#a3d65c"), ("d", "#7a4a21", "#d6a878"), ("*", "#5b3fa0", "#b39cf0"),
    ("^", "#007a60", "#3fc09d"),
)  # fmt: skip
# name, title, kind, method, β, KL, reward, queries, seconds
ROWS = (
    ("sft", "SFT", "reference", None, None, 0.0, 1.0, None, None),
    ("ppo", "PPO", "trained", "ppo", 0.5, 1.05, 4.0, 32768, 402.0),
    ("dpo", "DPO", "trained", "dpo", 0.5, 0.74, 3.05, 6144, 188.0),
    ("dpo-low", "DPO β=0.1", "trained", "dpo", 0.1, 1.9, 3.9, 6144, 190.0),
    ("dpo-high", "DPO β=2", "trained", "dpo", 2.0, 0.3, 2.0, 6144, 187.0),
    ("ipo", "IPO", "trained", "ipo", 0.5, 0.8, 3.1, 6144, 181.0),
    ("kto", "KTO", "trained", "kto", 0.5, 0.55, 2.6, 6144, 150.0),
    ("rloo", "RLOO", "trained", "rloo", 0.5, 0.98, 3.8, 32768, 350.0),
    ("grpo", "GRPO", "trained", "grpo", 0.5, 1.6, 4.2, 32768, 360.0),
    ("rejection", "Rejection", "trained", "rejection", 0.5, 0.6, 2.9, 16384, 90.0),
    ("theirs", "theirs", "checkpoint", None, None, 2.6, 3.4, None, None),
    ("other-family", "Other family", "checkpoint", None, None, None, 3.3, None, None),
    ("best_of_n", "Best-of-N", "choice", None, None, 1.2, 4.1, 0, 0.0),
)
FRONTIER = (
    (0.05, 3.4, 5.37, 1.2), (0.1, 3.1, 5.35, 2.1), (0.2, 2.6, 5.28, 2.9), (0.35, 2.1, 5.12, 4.2),
    (0.5, 1.75, 5.0, 6.0), (0.7, 1.4, 4.85, 9.1), (1.0, 1.0, 4.65, 15.0), (1.5, 0.66, 4.1, 24.0),
    (2.0, 0.45, 3.7, 33.0), (3.0, 0.26, 3.0, 44.0), (5.0, 0.12, 2.2, 55.0), (10.0, 0.04, 1.6, 62.0),
)  # fmt: skip
BETA, BEST = 0.5, 4.125
NASTY = "<script>document.title='owned'</script></script><!-- <script> \u2028 ' \" & \\ 映画"


def results() -> dict[str, Any]:
    """The content of results.json: π_ref, nine trained, two from elsewhere, best-of-n."""
    policies, methods = [], {}
    for (name, title, kind, method, beta, kl, reward, queries, seconds), looks in zip(
        ROWS, LOOKS, strict=True
    ):
        policies.append(
            {
                "name": name, "title": title, "kind": kind, "method": method or "", "beta": beta,
                "seed": 0, "stage": name if kind in ("trained", "reference") else None,
                "marker": looks[0], "colour": looks[1], "dark": looks[2],
            }
        )  # fmt: skip
        objective = None if kl is None else reward - BETA * kl
        share = None if objective is None else (objective - 1) / (BEST - 1)
        half = 0.0 if name == "sft" else 0.06
        gold = 0.9 + 0.75 * (reward - 1) - (2.6 if name == "grpo" else 0)
        methods[name] = {
            "reward": reward, "reward_se": 0.11, "gold": gold, "gold_se": 0.1,
            "gold_positive": 1 / (1 + math.exp(-gold)), "kl": kl,
            "kl_se": None if kl is None else 0.04, "objective": objective, "optimality": share,
            "optimality_ci": None if share is None else [share - half, share + half],
            "optimality_bound": "at least" if kind == "choice" else None,
            "kl_efficiency": None if kl is None else 0.5, "perplexity": 75.0 + 3 * (kl or 0),
            "distinct_1": 0.4, "distinct_2": 0.86 - 0.03 * (kl or 0),
            "self_bleu": 0.2 + 0.05 * (kl or 0), "length": 18.5, "ended": 0.4,
            "samples": 512, "train_reward_queries": queries, "train_seconds": seconds,
        }  # fmt: skip
    frontier = [
        {
            "beta": b, "kl": k, "reward": r, "ess": e, "trusted": e >= 2.0,
            "reward_ci": [r - 0.15 - 0.4 / e, r + 0.15 + 0.4 / e],
            "kl_ci": [0.9 * k, 1.1 * k], "kl_2": 1.02 * k, "reward_2": r - 0.3 / e,
            "untrusted_because": None if e >= 2 else "it still moves as the samples double",
        }
        for b, k, r, e in FRONTIER
    ]  # fmt: skip
    return {
        "beta": BETA, "policies": policies, "methods": methods, "frontier": frontier,
        "prompts": 64, "samples_per_prompt": 8, "reference_samples": 64,
    }  # fmt: skip


def details() -> dict[str, Any]:
    """The content of details.json."""
    doubling = [(2, 2.1), (4, 2.9), (8, 3.5), (16, 3.9), (32, 4.05), (64, 4.125)]
    return {
        "optimum": [{"n": n, "j_star": j, "ess": n / 4} for n, j in doubling],
        "kl_cap": math.log(64), "best_of_n": 8, "judge_is_proxy": False, "objective_ref": 1.0,
        "j_star": BEST, "j_star_ci": [3.9, 4.3], "trusted": True, "differences": [],
    }  # fmt: skip


def answers(count: int) -> list[dict[str, Any]]:
    """``count`` rows of samples_all.jsonl; the first has markup in it."""
    rng = np.random.default_rng(0)
    words = ["a", "warm", "funny", "film", "that", "never", "quite", "decides", "to", "stay"]
    names = [row[0] for row in ROWS if row[2] != "choice"]
    rows = []
    for at in range(count):
        text = " ".join(rng.choice(words, size=18))
        rows.append(
            {
                "prompt": f"the film {at // len(names)} is", "policy": names[at % len(names)],
                "sample": 0, "text": NASTY if at == 0 else f" {text} .",
                "reward": float(rng.normal()), "gold": float(rng.normal()),
                "kl": None if at % 7 == 0 else float(rng.exponential()), "length": 19,
                "ended": True,
            }
        )  # fmt: skip
    return rows


def samples(prompts: int = 64) -> list[dict[str, Any]]:
    """Rows of samples.jsonl."""
    rng, found = np.random.default_rng(1), results()["methods"]
    rows = []
    for at in range(prompts):
        drawn = {n: rng.normal(size=2) @ np.array([[1.8, 1.5], [0, 0.9]]) for n in found}
        rows.append(
            {
                "prompt": f"the film {at} is",
                "completions": {n: f" what {n} said of {at} ." if at else NASTY for n in found},
                "rewards": {n: float(v[0] + found[n]["reward"]) for n, v in drawn.items()},
                "gold": {n: float(v[1] + found[n]["gold"]) for n, v in drawn.items()},
            }
        )  # fmt: skip
    return rows


def examples() -> list[dict[str, Any]]:
    """The content of examples.json: one of each kind, with markup in one."""
    kinds = ("improved", "degraded", "disagreement", "suspected_hacking")
    return [
        {
            "prompt": f"the story {at}", "kind": kind,
            "policy": None if kind == "disagreement" else "ppo",
            "completions": {"sft": " it is .", "ppo": NASTY, "dpo": " a fine one ."},
            "rewards": {"sft": 0.1, "ppo": 3.0, "dpo": 1.0},
            "gold": {"sft": 0.2, "ppo": -1.0, "dpo": 1.5},
            "kl": {"sft": 0.0, "ppo": 2.0, "dpo": None},
        }
        for at, kind in enumerate(kinds)
    ]  # fmt: skip


def history(name: str, steps: int = 48) -> list[dict[str, Any]]:
    """metrics.jsonl of an on-policy or of a DPO-like policy."""
    rng = np.random.default_rng(len(name))
    final: Any = {row[0]: row for row in ROWS}[name]
    rows = []
    for step in range(1, steps + 1):
        t = 1 - math.exp(-step / 15)
        noise = rng.normal(size=6)
        if name in ("ppo", "rloo", "grpo"):
            rows.append({
                "step": step,
                "objective/scores": 1 + (final[6] - 1) * t + 0.25 * noise[0],
                "objective/kl_exact": max(0.0, final[5] * t + 0.06 * noise[1]),
                "objective/entropy": 58 - 14 * t + noise[2],
            })  # fmt: skip
        else:
            rows.append({
                "step": step, "loss": 0.69 - 0.1 * t + 0.01 * noise[0],
                "rewards/accuracies": 0.5 + 0.2 * t + 0.02 * noise[1],
                "rewards/margins": 0.6 * t, "logps/chosen": -60 - 6 * t + noise[2],
            })  # fmt: skip
    return rows


def fill(folder: Path, count: int = 600) -> None:
    """Write the comparison's files and the histories below ``folder``."""
    compare = folder / "compare"
    compare.mkdir(parents=True)
    for name, value in (
        ("results.json", results()), ("details.json", details()), ("examples.json", examples())
    ):  # fmt: skip
        (compare / name).write_text(json.dumps(value), encoding="utf-8")
    for name, rows in (("samples.jsonl", samples()), ("samples_all.jsonl", answers(count))):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (compare / name).write_text("".join(lines), encoding="utf-8")
    (compare / "results.csv").write_text("policy,reward\nppo,4.0\n", encoding="utf-8")
    for name in ("ppo", "rloo", "grpo", "dpo", "ipo", "kto"):
        (folder / name).mkdir()
        lines = [json.dumps(row) + "\n" for row in history(name)]
        (folder / name / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
