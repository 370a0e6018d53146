"""The report: index.html (self-contained), report.md, the pictures as PNG, and results.json.

Everything in it is computed from what the stages wrote; training time files may be missing (an
own reward has no reward/metrics.json, a checkpoint from elsewhere no training curves), and then
that part of the report is left out. Only compare/results.json must be there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from common import files
from common.words import clock
from pipeline.compare import columns
from pipeline.compare.methods import present
from pipeline.compare.wording import beta_text, number, percent
from pipeline.config import Experiment
from pipeline.report import verdict
from pipeline.report.outputs import Outputs, load
from pipeline.report.pictures import TRAINING, pictures
from pipeline.report.templating import template

SAMPLES = 12


def run(experiment: Experiment) -> None:
    """Write the report of ``experiment`` to ``output_dir/report``, replacing an older one.

    Raises:
        UserError: compare/results.json is missing or is not what the compare stage writes.
    """
    context = build(load(experiment), experiment.name)
    with files.new_folder(experiment.stage_dir("report")) as folder:
        for name in ("index.html", "report.md"):
            files.write_text(folder / name, template(name).render(context))
        for picture in context["pictures"].values():
            (folder / f"{picture.name}.png").write_bytes(picture.png)
        shutil.copyfile(experiment.stage_dir("compare") / "results.json", folder / "results.json")


def build(outputs: Outputs, name: str) -> dict[str, Any]:
    """Return the templates' context: the verdict, tables of text, pictures and samples."""
    results, details = outputs.results, outputs.details
    methods = [(method, results["methods"][method.name]) for method in present(results["methods"])]
    seconds = {s: r["seconds"] for s, r in outputs.stages.items() if r.get("seconds")}
    drawn = pictures(outputs)
    return {
        "name": name,
        "beta": beta_text(results["beta"]),
        "methods": methods,
        "prompts": results.get("prompts"),
        "samples_per_prompt": results.get("samples_per_prompt"),
        "best_of_n": details.get("best_of_n"),
        "verdict": verdict.judge(results, details, seconds),
        "columns": columns.shown(row for _, row in methods),
        "pictures": drawn,
        "training": [key for m, *_ in TRAINING if (key := f"training_{m.name}") in drawn],
        "samples": samples(outputs.samples),
        "optimum": details.get("optimum") or [],
        "efficiency": efficiency(results["methods"]),
        "j_star": details.get("j_star"),
        "j_star_ci": details.get("j_star_ci"),
        "kl_cap": details.get("kl_cap"),
        "judges": judges(outputs.reward),
        "agreement": outputs.reward.get("proxy_gold_correlation"),
        "judge_is_proxy": bool(details.get("judge_is_proxy")),
        "made": made(outputs.stages),
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
        for method in present(row.get("completions") or {}):
            reward = (row.get("rewards") or {}).get(method.name)
            lines.append(
                {
                    "method": method,
                    "text": str(row["completions"][method.name]).strip(),
                    "reward": reward,
                    "gold": (row.get("gold") or {}).get(method.name),
                    "shade": 0 if reward is None else round(100 * reward / largest),
                }
            )
        shown.append({"prompt": _prompt(row.get("prompt", "")), "lines": lines})
    return shown


def efficiency(methods: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each method's KL efficiency: the least KL that buys its reward, over the KL it spent.

    None where no reweighting of the reference's samples has that reward.
    """
    rows = []
    for method in present(methods):
        numbers = methods[method.name]
        share, kl = numbers.get("kl_efficiency"), numbers.get("kl")
        if "kl_efficiency" in numbers and kl is not None and not method.reference:
            least = None if share is None else share * kl
            row = {"method": method, "reward": numbers.get("reward"), "kl": kl, "least": least}
            rows.append(row | {"share": share})
    return rows


def judges(reward: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return a row of text for the proxy, the gold judge and a single person, as measured."""
    rows = []
    labels = {"proxy": "reward (proxy)", "gold": "judge (gold)", "one_rater": "one person"}
    for key, label in labels.items():
        marks = reward.get(key) or {}
        cells = [
            percent(marks.get("accuracy")),
            number(marks.get("correlation")),
            number(marks.get("ece"), 3),
        ]
        if set(cells) != {"–"}:
            rows.append((label, cells))
    return rows


def made(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return how the result was made: a row a stage, the settings, the versions.

    ``stages`` holds each stage's stage.json, empty where it has none.
    """
    rows: list[tuple[str, str, str]] = []
    last: Mapping[str, Any] = {}
    for stage, record in stages.items():
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
        "total": clock(sum(r.get("seconds") or 0 for r in stages.values())),
        "settings": [(key, value) for key, value in settings.items() if value not in (None, "")],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "config": _config(last.get("config") or {}),
        "model": _get(last, "config", "model", "model_name_or_path"),
        "data": _get(last, "config", "data", "dataset_name"),
    }


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
