"""The report: index.html (self-contained), report.md, the pictures as PNG, and results.json.

Everything in it is computed from what the stages wrote; training time files may be missing (an
own reward has no reward/metrics.json, a checkpoint from elsewhere no training curves), and then
that part of the report is left out. Only compare/results.json must be there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from pipeline.errors import UserError
from pipeline.output import files
from pipeline.report import figures, plotting, verdict
from pipeline.report.verdict import METHODS, NAMES
from pipeline.report.wording import beta_text, interval, markdown, number, percent, signed, written
from pipeline.runner import clock
from pipeline.stages.tracking import read_metrics

if TYPE_CHECKING:
    from pipeline.config import Experiment

STAGES = ("sft", "reward", "ppo", "dpo", "compare")
SAMPLES = 12

# key → heading, what it is and its unit, how it is written.
COLUMNS: tuple[tuple[str, str, str, Any], ...] = (
    ("gold_positive", "judge positive", "share of completions the judge calls positive", percent),
    ("gold", "judge", "the judge's mean mark (logits when it is a classifier)", number),
    ("reward", "reward", "mean of the reward that was optimised, in its own unit", number),
    ("kl", "KL", "distance from the SFT model, nats a completion", number),
    ("objective", "objective", "reward − β·KL, what PPO and DPO both maximise", number),
    ("optimality", "optimality", "share of the possible gain in the objective", percent),
    ("perplexity", "perplexity", "on held-out human texts; lower remembers more", "digits 1"),
    ("distinct_1", "distinct-1", "different words over all words", number),
    ("distinct_2", "distinct-2", "different word pairs over all pairs; low repeats", number),
    ("length", "length", "tokens a completion", "digits 1"),
    ("ended", "ended", "share of completions that stop by themselves", percent),
)
PPO_PANELS = {
    "score: mean reward of the rollout": ["objective/scores"],
    "KL from the reference (nats)": ["objective/kl"],
    "entropy (nats)": ["objective/entropy", "policy/entropy_avg"],
    "clip fraction": ["policy/clipfrac_avg"],
    "explained variance of the value": ["val/explained_variance", "value/explained_variance"],
}
SFT_PANELS = {"SFT loss (nats a token)": ["loss"]}
DPO_PANELS = {
    "DPO loss": ["loss"],
    "pairs ordered right": ["rewards/accuracies"],
    "reward margin, chosen − rejected": ["rewards/margins"],
}


@dataclass(frozen=True)
class Found:
    """What the stages left behind; everything but ``results`` may be empty."""

    results: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A drawn figure and its words."""

    name: str
    title: str
    caption: str
    svg: Markup
    png: bytes


def run(experiment: Experiment) -> None:
    """Write the report of ``experiment`` to ``output_dir/report``, replacing an older one.

    Raises:
        UserError: compare/results.json is missing or is not what the compare stage writes.
    """
    found = load(experiment)
    context = build(found, experiment.name)
    environment = _environment()
    with files.new_folder(experiment.stage_dir("report")) as folder:
        for template in ("index.html", "report.md"):
            text = environment.get_template(f"{template}.j2").render(context)
            files.write_text(folder / template, text)
        for picture in context["pictures"].values():
            (folder / f"{picture.name}.png").write_bytes(picture.png)
        shutil.copyfile(experiment.stage_dir("compare") / "results.json", folder / "results.json")


def load(experiment: Experiment) -> Found:
    """Read everything that the stages of ``experiment`` wrote for the report."""
    path = experiment.stage_dir("compare") / "results.json"
    if not path.is_file():
        raise UserError(f"{path}: not there; run the compare stage before the report")
    results = _json(path)
    if not isinstance(results.get("methods"), dict) or "beta" not in results:
        raise UserError(f"{path}: not a comparison's results; run the compare stage again")
    compare = experiment.stage_dir("compare")
    return Found(
        results=results,
        details=_json(compare / "details.json"),
        reward=_json(experiment.stage_dir("reward") / "metrics.json"),
        samples=_jsonl(compare / "samples.jsonl"),
        histories={
            stage: read_metrics(experiment.stage_dir(stage) / "metrics.jsonl")
            for stage in ("sft", "ppo", "dpo")
        },
        stages={stage: _json(experiment.stage_dir(stage) / "stage.json") for stage in STAGES},
    )


def build(found: Found, name: str) -> dict[str, Any]:
    """Return the templates' context: the verdict, tables of text, pictures and samples."""
    methods = {key: found.results["methods"][key] for key in METHODS if _has(found, key)}
    seconds = {s: r["seconds"] for s, r in found.stages.items() if r.get("seconds")}
    return {
        "name": name,
        "beta": beta_text(found.results["beta"]),
        "names": NAMES,
        "methods": methods,
        "prompts": found.results.get("prompts"),
        "samples_per_prompt": found.results.get("samples_per_prompt"),
        "best_of_n": found.details.get("best_of_n"),
        "verdict": verdict.judge(found.results, found.details, seconds),
        "columns": [c for c in COLUMNS if any(m.get(c[0]) is not None for m in methods.values())],
        "pictures": pictures(found),
        "samples": samples(found.samples),
        "optimum": found.details.get("optimum") or [],
        "efficiency": efficiency(found),
        "j_star": found.details.get("j_star"),
        "j_star_ci": found.details.get("j_star_ci"),
        "kl_cap": found.details.get("kl_cap"),
        "judges": judges(found.reward),
        "agreement": found.reward.get("proxy_gold_correlation"),
        "judge_is_proxy": bool(found.details.get("judge_is_proxy")),
        "made": made(found),
    }


def pictures(found: Found) -> dict[str, Picture]:
    """Draw every picture whose numbers are there."""
    results, details, history = found.results, found.details, found.histories
    same = bool(details.get("judge_is_proxy"))
    drawn: list[tuple[str, str, str, Figure | None]] = [
        (
            "reward_kl",
            "Reward against KL",
            "Up is better, right is dearer. No method can be above the optimal frontier, which is"
            " estimated from the reference's own samples. All points on one dashed line are worth"
            " the same at this β; the one that touches the frontier is the best that PPO and DPO"
            " could reach. Of Best-of-N only an upper bound of its KL is known (arrow).",
            figures.reward_kl(results, details, history.get("ppo", [])),
        ),
        (
            "optimality",
            "How much of the possible gain",
            "The objective of each method on a scale from SFT (0\u00a0%) to the optimum"
            " (100\u00a0%), with its 95\u00a0% interval over prompts.",
            figures.optimality(results["methods"]),
        ),
        (
            "proxy_gold",
            "Reward against judge",
            "Small dots are single completions, large marks are means. Progress goes up as well"
            " as right; a line that goes right but not up is reward hacking.",
            figures.proxy_gold(results, found.samples, same),
        ),
        (
            "calibration",
            "Calibration of the classifiers",
            "Of the texts that a classifier calls positive with 80\u00a0% probability,"
            " 80\u00a0% should be."
            " Larger dots hold more texts.",
            figures.calibration(found.reward),
        ),
        (
            "optimum",
            "The optimum as N doubles",
            "The estimate of the best possible objective is low when N is small; it can be trusted"
            " where it has settled.",
            figures.optimum(details, results["methods"]),
        ),
        (
            "training_ppo",
            "PPO while it trained",
            "Measured on training prompts, one point a log event.",
            figures.curves(history.get("ppo", []), PPO_PANELS, "ppo"),
        ),
        (
            "training_dpo",
            "DPO while it trained",
            "Measured on training pairs; dashed is held out.",
            figures.curves(history.get("dpo", []), DPO_PANELS, "dpo"),
        ),
        (
            "training_sft",
            "SFT while it trained",
            "Measured on demonstrations; dashed is held out.",
            figures.curves(history.get("sft", []), SFT_PANELS, "sft", "ink"),
        ),
    ]
    return {
        name: Picture(name, title, words, Markup(plotting.svg(figure, name)), plotting.png(figure))
        for name, title, words, figure in drawn
        if figure is not None
    }


def samples(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the first `SAMPLES` prompts with every method's completion.

    ``shade`` is a completion's reward on a scale from −100 (lowest shown) to 100 (highest).
    """
    rows = rows[:SAMPLES]
    rewards = [value for row in rows for value in (row.get("rewards") or {}).values()]
    largest = max((abs(value) for value in rewards), default=0.0) or 1.0
    shown = []
    for row in rows:
        lines = []
        for method in METHODS:
            if method not in (row.get("completions") or {}):
                continue
            reward = (row.get("rewards") or {}).get(method)
            lines.append(
                {
                    "method": method,
                    "text": str(row["completions"][method]).strip(),
                    "reward": reward,
                    "gold": (row.get("gold") or {}).get(method),
                    "shade": 0 if reward is None else round(100 * reward / largest),
                }
            )
        shown.append({"prompt": _prompt(row.get("prompt", "")), "lines": lines})
    return shown


def efficiency(found: Found) -> list[dict[str, Any]]:
    """Return each method's KL efficiency: the least KL that buys its reward, over the KL it spent.

    None where no reweighting of the reference's samples has that reward.
    """
    rows = []
    for name in METHODS[1:]:
        method = found.results["methods"].get(name) or {}
        share, kl = method.get("kl_efficiency"), method.get("kl")
        if "kl_efficiency" in method and kl is not None:
            least = None if share is None else share * kl
            row = {"method": name, "reward": method.get("reward"), "kl": kl, "least": least}
            rows.append(row | {"share": share})
    return rows


def judges(reward: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return a row of text for the proxy, the gold judge and a single person, as measured."""
    rows = []
    labels = {"proxy": "reward (proxy)", "gold": "judge (gold)", "one_rater": "one person"}
    for key, label in labels.items():
        found = reward.get(key) or {}
        cells = [
            percent(found.get("accuracy")),
            number(found.get("correlation")),
            number(found.get("ece"), 3),
        ]
        if set(cells) != {"–"}:
            rows.append((label, cells))
    return rows


def made(found: Found) -> dict[str, Any]:
    """Return how the result was made: a row a stage, the settings, the versions."""
    rows, last = [], {}
    for stage, record in found.stages.items():
        if record:
            last = record
            took = record.get("seconds")
            memory = record.get("peak_memory_gib")
            rows.append(
                (
                    stage,
                    "–" if took is None else clock(took),
                    "–" if memory is None else f"{memory:.1f} GiB",
                )
            )
    git = last.get("git") or {}
    commit = git.get("commit") or "–"
    settings = {
        "seed": last.get("seed"),
        "commit": commit + (" (with changes)" if git.get("changed") else ""),
        "machine": ", ".join(
            str(part)
            for part in (
                last.get("accelerator"),
                f"{last['cores']} cores" if last.get("cores") else None,
                last.get("platform"),
            )
            if part
        ),
        "finished": last.get("finished"),
    }
    versions = {k: v for k, v in (last.get("versions") or {}).items() if v}
    return {
        "stages": rows,
        "total": clock(sum(r.get("seconds") or 0 for r in found.stages.values())),
        "settings": [(key, value) for key, value in settings.items() if value not in (None, "")],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "config": _config(last.get("config") or {}),
        "model": _get(last, "config", "model", "model_name_or_path"),
        "data": _get(last, "config", "data", "dataset_name"),
        "reward": _get(last, "config", "reward", "source"),
    }


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report", "templates"),
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "md": markdown,
        "num": number,
        "signed": signed,
        "percent": percent,
        "interval": interval,
        "written": written,
    }
    return environment


def _has(found: Found, method: str) -> bool:
    return isinstance(found.results["methods"].get(method), dict)


def _get(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _config(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The resolved config as dotted keys, without the long lists."""
    rows = []
    for key, value in config.items():
        if isinstance(value, dict):
            rows += [(f"{key}.{name}", shown) for name, shown in _config(value)]
        else:
            rows.append((key, json.dumps(value, ensure_ascii=False)))
    return rows


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, list):
        return "\n".join(f"{m.get('role')}: {m.get('content')}" for m in prompt)
    return str(prompt)


def _json(path: Path) -> dict[str, Any]:
    """A file's object; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = files.read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); run its stage again") from None
    return value if isinstance(value, dict) else {}


def _jsonl(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    # Not splitlines(): generated text may hold characters that it, but not JSON, breaks at.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]
