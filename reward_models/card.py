"""The model card of a trained reward: a README.md that people and the Hugging Face hub read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import read_json, write_text
from reward_models.interface import RewardError

ADAPTER_CONFIG = "adapter_config.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# A measured number: its name on the hub, and in words.
_FIGURES = {
    "accuracy": ("accuracy", "accuracy: which side of the limit people put the text on"),
    "auc": ("roc_auc", "area under the ROC curve, of the same"),
    "correlation": ("pearsonr", "Pearson correlation with the mean human rating"),
    "ece": ("ece", "expected calibration error of its probability"),
    "pair_accuracy": ("pairwise_accuracy", "accuracy on held-out pairs"),
}
_NOT_FOR = """\
- No measure of truth, safety or worth of a text, and none of those who write: it repeats what \
its raters felt about short texts, with their taste and their mistakes.
- Texts of another kind, language or length than it was trained on: its scores there mean nothing \
until they are measured.
- A reward without a judge beside it: a policy that is optimised against it long enough finds what \
it gets wrong (Gao et al. 2022). Watch a judge that is not optimised against, and the KL."""


@dataclass(frozen=True)
class Facts:
    """What a card says that is not in the model's folder.

    Attributes:
        name: Of the model.
        trained_on: In words: which texts, how many, rated by whom.
        base_model: What it was made of: a hub id, or words where it is on no hub.
        dataset: The same for its data.
        license: As the hub calls it; None where it is not known.
        measured: Numbers of `reward/metrics.json` for this model: ``accuracy``, ``auc``, ….
        ceiling: How often one person agrees with the mean of the others, where known.
        texts: How many held-out texts these were measured on.
        settings: What it was trained with, by name.
    """

    name: str
    trained_on: str
    base_model: str
    dataset: str
    license: str | None = None
    measured: Mapping[str, Any] | None = None
    ceiling: float | None = None
    texts: int | None = None
    settings: Mapping[str, Any] | None = None


def write_card(folder: Path, facts: Facts) -> None:
    """Write ``README.md`` into a reward's folder, in place of any other.

    Raises:
        RewardError: The folder holds no model.
    """
    # It takes a moment to import, and who only calls a reward needs no card.
    from huggingface_hub import EvalResult, ModelCardData

    if not (folder / "config.json").is_file():
        raise RewardError(f"{folder}: holds no model (config.json is missing), so it has no card")
    config = read_json(folder / "config.json")
    adapter = (folder / ADAPTER_CONFIG).is_file()
    measured = _figures(facts)
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=facts.dataset if _HUB_ID.fullmatch(facts.dataset) else "held-out",
            dataset_name=facts.dataset,
            dataset_split="held out",
            metric_type=_FIGURES[key][0],
            metric_name=_FIGURES[key][1],
            metric_value=value,
        )
        for key, value in measured.items()
    ]
    data = ModelCardData(
        license=facts.license,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-classification",
        tags=["reward-model", "rlhf"],
        base_model=_if_hub_id(facts.base_model),
        datasets=_if_hub_id(facts.dataset),
        metrics=[_FIGURES[key][0] for key in measured] or None,
        model_name=facts.name if results else None,
        eval_results=results or None,
    )
    body = "\n\n".join(_body(facts, config, adapter, measured))
    write_text(folder / "README.md", f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def _figures(facts: Facts) -> dict[str, float]:
    """The numbers that a card shows, of those that were measured."""
    given = dict(facts.measured or {})
    pairs = given.get("pairs")
    if isinstance(pairs, Mapping):
        given["pair_accuracy"] = pairs.get("accuracy")
    return {key: float(given[key]) for key in _FIGURES if isinstance(given.get(key), int | float)}


def _if_hub_id(name: str) -> str | None:
    return name if _HUB_ID.fullmatch(name) else None


def _body(
    facts: Facts, config: Mapping[str, Any], adapter: bool, measured: Mapping[str, float]
) -> list[str]:
    """The card's text, in paragraphs."""
    labels = [name for _, name in sorted((config.get("id2label") or {}).items())]
    one = len(labels) < 2
    score = "its one output" if one else "log P(positive) − log P(negative)"
    parts = [
        f"# {facts.name}",
        "A reward model: it scores how good people would find a text. Its score is "
        f"{score}; higher is better.",
        "## What it was trained on",
        facts.trained_on,
        f"Base model: {facts.base_model}. Data: {facts.dataset}."
        + ("" if facts.license else " Its licence is that of these two."),
        "## What it gives",
        "One number." if one else f"Labels: {', '.join(f'`{name}`' for name in labels)}.",
        "## How to load it",
        _loading(adapter, one),
        "## How good it is",
        *_quality(facts, measured),
        "## What it must not be used for",
        _NOT_FOR,
    ]
    if facts.settings:
        rows = "\n".join(f"{name}: {value}" for name, value in facts.settings.items())
        parts += ["## Settings", f"```\n{rows}\n```"]
    return parts


def _loading(adapter: bool, one: bool) -> str:
    lines = [
        "```python",
        "from reward_models import load_reward",
        "",
        'reward = load_reward("path/to/this/folder")',
        'reward(["the film about love"], [" is truly wonderful"])  # a list of one number',
        "```",
    ]
    if adapter:
        lines += [
            "",
            "These are LoRA adapters and a score layer; the language model they belong to is named "
            "in `adapter_config.json`, and must be there.",
        ]
    else:
        apply = ', function_to_apply="none"' if one else ""
        lines += [
            "",
            "With transformers alone:",
            "",
            "```python",
            "from transformers import pipeline",
            "",
            f'classify = pipeline("text-classification", model="path/to/this/folder"{apply})',
            'classify("the film about love is truly wonderful")',
            "```",
        ]
    return "\n".join(lines)


def _quality(facts: Facts, measured: Mapping[str, float]) -> Sequence[str]:
    if not measured:
        return ["It was not measured against people."]
    on = "" if facts.texts is None else f" on {facts.texts:,} texts"
    rows = [f"| {_FIGURES[key][1]} | {value:.3f} |" for key, value in measured.items()]
    table = "\n".join([f"| measured against people{on} held out | |", "| --- | --- |", *rows])
    if facts.ceiling is None:
        return [table]
    return [
        table,
        f"One person against the mean of the others has an accuracy of {facts.ceiling:.3f} there.",
    ]
