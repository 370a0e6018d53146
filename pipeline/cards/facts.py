"""What is known of a finished policy: gathered from the files that its stages wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import read_json
from pipeline.cards.known import Named, base, data, without_place
from pipeline.cards.settings import settings_yaml
from pipeline.compare.methods import SFT
from pipeline.config import Experiment
from pipeline.config.stages import Stage, find_stage

SAMPLES = 3


@dataclass(frozen=True)
class Facts:
    """What a card says of a policy.

    Attributes:
        name: of the experiment and the policy. stage: its name. method: how it was trained; empty
            for the SFT model. title: of the method, for people.
        base, data, prompts, pairs: what it was made of; None where it was not.
        as_it_is: whether the base is π_ref itself, without fine-tuning on demonstrations.
        reward, gold: what was optimised, and what judged, in words; None of the SFT model.
        judge_is_proxy: whether the two are one.
        beta: what a nat of KL cost it; None of a method that pays for none.
        seed: of its training. trained: which weights, in words.
        cost: of cost.json. settings: YAML that makes it again. versions: of packages. commit: of
            this project.
        rows: measured numbers by policy: SFT's, this one's, best-of-n's; empty before a comparison.
        results: the rest of results.json. samples: prompts, with SFT's and its own completions.
    """

    name: str
    stage: str
    method: str
    title: str
    base: Named
    data: Named
    beta: float | None
    seed: int
    trained: str
    as_it_is: bool = False
    prompts: Named | None = None
    pairs: Named | None = None
    reward: str | None = None
    gold: str | None = None
    judge_is_proxy: bool = False
    cost: Mapping[str, Any] = field(default_factory=dict)
    settings: str = ""
    versions: Mapping[str, Any] = field(default_factory=dict)
    commit: str | None = None
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    samples: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def own(self) -> Mapping[str, Any]:
        """Its own measured numbers; empty before a comparison."""
        return self.rows.get(self.stage, {})


def gather(experiment: Experiment, stage: Stage) -> Facts:
    """The facts of a finished stage's policy: its record's, and of a comparison that read it."""
    view, folder = experiment.of(stage.name), experiment.stage_dir(stage.name)
    record = _read(folder / "stage.json")
    section, own = view.model, view.data
    rows, results, samples = _compared(experiment, stage, record)
    details = _read(experiment.stage_dir("compare") / "details.json") if rows else {}
    source, judge = view.reward.source, view.reward.gold
    return Facts(
        name=f"{experiment.name} {stage.name}",
        stage=stage.name,
        method=stage.method,
        title=find_stage(stage.section).title or SFT.title,
        base=base(section.model_name_or_path, section.model_revision),
        data=data(own.dataset_name),
        prompts=data(own.prompts_name) if own.prompts_name else None,
        pairs=data(own.preferences_name) if own.preferences_name and stage.from_pairs else None,
        reward=_reward(source, own.dataset_name) if stage.method else None,
        gold=_judge(judge, source, own.dataset_name) if stage.method else None,
        judge_is_proxy=bool(details.get("judge_is_proxy")),
        beta=view.beta if "beta" in stage.reads else None,
        seed=view.seed,
        trained=_trained(view, stage),
        as_it_is=view.sft.skip,
        cost=_read(folder / "cost.json"),
        settings=settings_yaml(record.get("config") or {}, stage),
        versions=record.get("versions") or {},
        commit=(record.get("git") or {}).get("commit"),
        rows=rows,
        results=results,
        samples=samples,
    )


def _trained(view: Experiment, stage: Stage) -> str:
    """Which weights were trained."""
    model, named = view.model, view.model.policy_modules if stage.method else None
    if view.sft.skip and not stage.method:
        return "nothing"
    upper = model.trainable_layers and f"the upper {model.trainable_layers} layers"
    if model.use_peft:
        return f"LoRA adapters of rank {model.lora_r}" + (f" on {upper}" if upper else "")
    modules = f" ({', '.join(named)})" if named else ""
    return f"{upper or 'all weights'}{modules}"


def _reward(source: Any, dataset: str) -> str:
    """What is optimised, or judges, in words."""
    if isinstance(source, list):
        parts = [f"{part.weight:g} × {_reward(part.source, dataset)}" for part in source]
        return " + ".join(parts)
    if source == "sentiment":
        return f"a classifier trained on half of the rated texts of {without_place(dataset)}"
    if source == "pairwise":
        return f"a model trained on half of the comparisons of {without_place(dataset)}"
    return without_place(source)


def _judge(gold: Any, source: Any, dataset: str) -> str:
    if gold is not None:
        return _reward(gold, dataset).replace("half of", "another half of")
    named = [part.source for part in source] if isinstance(source, list) else [source]
    if any(name in ("sentiment", "pairwise") for name in named):
        return "of the same kind, trained on the other half: nothing was optimised against it"
    return "the reward itself: nothing of its own tells progress from exploitation"


def _compared(
    experiment: Experiment, stage: Stage, record: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[tuple[str, str, str]]]:
    """The comparison's numbers and samples, where it is finished and measured this very policy."""
    folder = experiment.stage_dir("compare")
    about, results = _read(folder / "stage.json"), _read(folder / "results.json")
    read = (about.get("inputs") or {}).get("upstream", {}).get(stage.name)
    same = read is not None and read == record.get("fingerprint")
    rows = results.get("methods") or {}
    if about.get("status") != "finished" or not same or stage.name not in rows:
        return {}, {}, []
    shown = {name: rows[name] for name in (SFT.name, stage.name, "best_of_n") if name in rows}
    samples = []
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    for row in [json.loads(line) for line in lines[:SAMPLES] if line]:
        prompt, made = row["prompt"], row["completions"]
        if stage.name in made:
            samples.append((_text(prompt), made.get(SFT.name, ""), made[stage.name]))
    return shown, results, samples


def _text(prompt: Any) -> str:
    """A prompt that may be a conversation, as text."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def _read(path: Path) -> dict[str, Any]:
    """A file's object; empty where there is no such file."""
    return read_json(path) if path.is_file() else {}
