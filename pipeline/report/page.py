"""The report: index.html (self-contained), report.md, the pictures as PNG, results.json and .csv.

Everything in it is computed from what the stages wrote; training time files may be missing (an
own reward has no reward/metrics.json, a checkpoint from elsewhere no training curves), and then
that part of the report is left out. Only compare/results.json must be there.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from common import files
from common.words import clock
from pipeline.compare import columns
from pipeline.compare.methods import Method, shown
from pipeline.compare.wording import beta_text, number, percent
from pipeline.config import Experiment
from pipeline.report import interactive, plotting, verdict
from pipeline.report.outputs import Outputs, load
from pipeline.report.pictures import pictures
from pipeline.report.templating import template

SAMPLES = 12  # prompts in the page without its script, and in report.md
CARDS = 6
COPIED = ("results.json", "results.csv")

Described = tuple[Method, Mapping[str, Any]]


def run(experiment: Experiment) -> verdict.Verdict:
    """Write the report of ``experiment`` to ``output_dir/report``, replacing an older one.

    Returns:
        what it says first.

    Raises:
        UserError: compare/results.json is missing or is not what the compare stage writes.
    """
    context = build(load(experiment), experiment.name)
    compare = experiment.stage_dir("compare")
    context["copied"] = [name for name in COPIED if (compare / name).is_file()]
    with files.new_folder(experiment.stage_dir("report")) as folder:
        for name in ("index.html", "report.md"):
            files.write_text(folder / name, template(name).render(context))
        for picture in context["pictures"].values():
            (folder / f"{picture.name}.png").write_bytes(picture.png)
        for name in context["copied"]:
            shutil.copyfile(compare / name, folder / name)
    return context["verdict"]


def build(outputs: Outputs, name: str) -> dict[str, Any]:
    """Return the templates' context: the verdict, tables of text, pictures and samples."""
    results, details = outputs.results, outputs.details
    policies = shown(results)
    methods = [(method, results["methods"][method.name]) for method in policies]
    seconds = {s: r["seconds"] for s, r in outputs.stages.items() if r.get("seconds")}
    drawn = pictures(outputs)
    found = verdict.judge(results, details, seconds)
    main = columns.shown([row for _, row in methods])
    every = columns.shown([row for _, row in methods], main=False)
    script = source("report.js")
    return {
        "name": name,
        "question": question(policies),
        "colour": plotting.variables(policies),
        "reference": next((m.title for m in policies if m.kind == "reference"), "the reference"),
        "cards": cards(methods, found),
        "points": interactive.points(results),
        "answers": interactive.explorer(outputs),
        "script": Markup(script),
        "script_hash": script_hash(script),
        "beta": beta_text(results["beta"]),
        "methods": methods,
        "prompts": results.get("prompts"),
        "samples_per_prompt": results.get("samples_per_prompt"),
        "best_of_n": details.get("best_of_n"),
        "verdict": found,
        "columns": main,
        "groups": groups(main),
        "all_columns": every if len(every) > len(main) else [],
        "all_groups": groups(every),
        "pictures": drawn,
        "training": [key for key in drawn if key.startswith(("training_", "gold_kl"))],
        "samples": samples(outputs.samples, policies),
        "optimum": details.get("optimum") or [],
        "efficiency": efficiency(results),
        "j_star": details.get("j_star"),
        "j_star_ci": details.get("j_star_ci"),
        "kl_cap": details.get("kl_cap"),
        "judges": judges(outputs.reward),
        "agreement": outputs.reward.get("proxy_gold_correlation"),
        "judge_is_proxy": bool(details.get("judge_is_proxy")),
        "made": made(outputs.stages),
    }


def question(policies: Sequence[Method]) -> str:
    """Return what the report answers: ``PPO or DPO?``, or ``Which of 7 policies?``."""
    titles = [m.title for m in policies if m.kind in ("trained", "checkpoint")]
    if len(titles) < 2:
        return f"Is {titles[0]} better?" if titles else "Compared"
    if len(titles) > 4:
        return f"Which of {len(titles)} policies?"
    return f"{', '.join(titles[:-1])} or {titles[-1]}?"


def cards(methods: Sequence[Described], found: verdict.Verdict) -> list[Described]:
    """Return the policies to show large: all of a few; of many the reference and the best."""
    if len(methods) <= CARDS:
        return list(methods)
    best = {name: place for place, name in enumerate([found.ship, *found.order])}
    first = [(m, row) for m, row in methods if m.kind == "reference"]
    others = [(m, row) for m, row in methods if m.kind != "reference"]
    others.sort(key=lambda item: (best.get(item[0].name, CARDS), -(item[1].get("optimality") or 0)))
    return first + others[: CARDS - len(first)]


def groups(shown_columns: Sequence[columns.Column]) -> list[tuple[str, int]]:
    """Return the names of the table's groups of columns, and how many columns each spans."""
    found = itertools.groupby(shown_columns, key=lambda column: column.group)
    return [(name, len(list(members))) for name, members in found]


def source(name: str) -> str:
    """Return one of the templates' files as it stands."""
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def script_hash(script: str) -> str:
    """Return what the page's Content-Security-Policy knows its own script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def samples(rows: Sequence[Mapping[str, Any]], policies: Sequence[Method]) -> list[dict[str, Any]]:
    """Return the first `SAMPLES` prompts with every policy's completion.

    ``shade`` is a completion's reward on a scale from −100 (lowest shown) to 100 (highest).
    """
    rows = rows[:SAMPLES]
    rewards = [value for row in rows for value in (row.get("rewards") or {}).values()]
    largest = max((abs(value) for value in rewards), default=0.0) or 1.0
    shown = []
    for row in rows:
        lines = []
        for method in policies:
            if method.name not in (row.get("completions") or {}):
                continue
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
        shown.append({"prompt": interactive.prompt_text(row.get("prompt", "")), "lines": lines})
    return shown


def efficiency(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each policy's KL efficiency: the least KL that buys its reward, over the KL it spent.

    None where no reweighting of the reference's samples has that reward.
    """
    rows = []
    for method in shown(results):
        numbers = results["methods"][method.name]
        share, kl = numbers.get("kl_efficiency"), numbers.get("kl")
        if "kl_efficiency" in numbers and kl is not None and method.kind != "reference":
            least = None if share is None else share * kl
            row = {"method": method, "reward": numbers.get("reward"), "kl": kl, "least": least}
            floor = numbers.get("kl_efficiency_at_least") if share is None else None
            rows.append(row | {"share": share, "at_least": floor})
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
