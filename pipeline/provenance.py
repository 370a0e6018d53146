"""What a result depends on: its inputs' fingerprint, and where and with what it was made."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from common.words import flatten
from pipeline.config import OVER_SFT, PAIRWISE, Experiment, RewardPart, stages
from pipeline.config.choices import left_out, trains
from pipeline.config.content import checkpoint_hash, content_hash
from pipeline.config.hub import HUB_KEYS
from pipeline.worlds import ACCUMULATED, ROWS, same_batch
from reward_models.loading import kind_of

_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "rlhf-pipeline")
Record = dict[str, Any]
"""What a stage's stage.json holds."""

ELSEWHERE = "compare.policies."
"""What keys begin with that name checkpoints from elsewhere."""

# What PPO's settings were where a config left them unset, before their defaults were others.
_FORMER: dict[str, Any] = {"ppo.lam": 0.95}

# How the embedded texts are divided. Another number where the same config divides them otherwise:
# what was made before may have learnt from texts that are held out now.
_DIVISION = 2


def _plain(value: Any) -> Any:
    """The value with 1.0 written as 1, so that the two are one setting."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def named_files(experiment: Experiment) -> dict[str, str | None]:
    """The config keys that may name something on this machine, and what they name."""
    model, data, reward = experiment.model, experiment.data, experiment.reward
    fluency = experiment.compare.fluency_model
    return {
        "model.model_name_or_path": model.model_name_or_path,
        "data.dataset_name": data.dataset_name,
        "data.prompts_name": data.prompts_name,
        "data.preferences_name": data.preferences_name,
        **_sources("reward.source", reward.source),
        **_sources("reward.gold", reward.gold),
        "reward.encoder": None if reward.encoder == OVER_SFT else reward.encoder,
        "compare.fluency_model": None if fluency == "base" else fluency,
        **{f"{ELSEWHERE}{name}": path for name, path in experiment.compare.policies.items()},
    }


def _sources(key: str, named: str | list[RewardPart] | None) -> dict[str, str | None]:
    """What a reward names, each of its parts under a key of its own."""
    if not isinstance(named, list):
        return {key: named}
    return {f"{key}[{index}].source": part.source for index, part in enumerate(named)}


def upstream(
    experiment: Experiment, there: Container[str] | None = None
) -> dict[str, tuple[str, ...]]:
    """The stages whose output each stage reads: those of the table, and what the reward needs.

    Args:
        there: the stages whose output is or will be there; None is all that the config asks for.
    """
    section, out = experiment.reward, left_out(experiment)
    over_sft = trains(experiment, "reward") and section.encoder == OVER_SFT
    from_sft = over_sft or section.normalizes()
    known: dict[str, tuple[str, ...]] = {}
    for stage in experiment.stages():
        if stage.name not in out:
            taken = (s for s in stage.takes if s not in out and (there is None or s in there))
            known[stage.name] = (*stage.needs, *taken)
    return known | ({"reward": ("sft",)} if from_sft else {})


def _configured(experiment: Experiment, name: str) -> stages.Stage:
    """A stage of the table as this config has it."""
    stage = experiment.stage(name)
    if name == "sft" and experiment.sft.skip:
        stage = replace(stage, reads=("model", "sft.skip", "seed"))
    if name == "reward" and experiment.reward.normalizes():  # on samples for PPO's prompts
        reads = (*stage.reads, "generation.max_new_tokens")
        unread = tuple(key for key in stage.unread if key != "data.train_prompts")
        stage = replace(stage, reads=reads, unread=unread, whether=())
    if name == "reward" and PAIRWISE in experiment.reward.sources():  # on the user's own pairs
        unread = tuple(key for key in stage.unread if key not in stages.OWN_PAIRS)
        stage = replace(stage, unread=unread)
    if experiment.shares(name):  # made from another seed; see `_other_division`
        stage = replace(stage, unread=(*stage.unread, "seed", "data.seed"))
    return stage


def _keys(stage: stages.Stage) -> Callable[[str], bool]:
    """Which dotted keys of the config decide the stage's output."""

    def is_read(key: str) -> bool:
        if key.rpartition(".")[2] in HUB_KEYS:  # where the result goes changes nothing in it
            return False
        return _within(key, stage.reads) and not _within(key, stage.unread)

    return is_read


def _within(key: str, parts: tuple[str, ...]) -> bool:
    return any(key == part or key.startswith(f"{part}.") for part in parts)


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """A config as dotted keys of today, 1.0 written as 1 and an empty section not at all.

    The items of a list of sections have keys of their own: ``reward.source[0].weight``.
    """
    settings = {key: value for key, value in _items(flatten(_plain(config))).items() if value != {}}
    if "pairs.hard_labels" in settings:
        settings["pairs.labels"] = "hard" if settings.pop("pairs.hard_labels") else "sampled"
    return settings


def _items(settings: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for index, item in enumerate(value):
                made |= flatten(item, f"{key}[{index}].")
        else:
            made[key] = value
    return made


def stage_inputs(
    experiment: Experiment,
    records: Mapping[str, Record | None] | None = None,
    there: Container[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Everything that decides each stage's output, by stage.

    Each value holds `config` (the settings it reads, by dotted key), `content` (hashes of local
    files they name) and `upstream` (fingerprints of the stages it builds on).

    Args:
        records: the stage.json of stages in place. One that was made from the same, if under other
            words (a renamed file, a setting that is new), counts by its own fingerprint, so that
            what was made from it stays valid.
        there: see `upstream`.
    """
    hash_of = cache(content_hash)
    inputs: dict[str, dict[str, Any]] = {}
    prints: dict[str, str] = {}
    for name, needs in upstream(experiment, there).items():
        stage, own = _configured(experiment, name), experiment.of(name)
        settings = _settings(own.model_dump(mode="json"))
        hashes = {
            key: checkpoint_hash(str(named)) if key.startswith(ELSEWHERE) else hash_of(named)
            for key, named in named_files(own).items()
        }
        reads = _keys(stage)
        made: dict[str, Any] = {
            "config": {
                key: value is not None if key in stage.whether else value
                for key, value in settings.items()
                if reads(key)
            },
            "content": {
                key: digest
                for key, digest in hashes.items()
                if digest is not None and reads(key) and key not in stage.whether
            },
            "upstream": {need: prints[need] for need in needs},
        }
        if reads("data.dataset_name") and experiment.data.dataset_name.startswith("embedded:"):
            made["division"] = _DIVISION
        record = (records or {}).get(name)
        same = record is not None and not differences(experiment, name, record, made)
        prints[name] = record_print(record) if record and same else fingerprint(made)
        inputs[name] = made
    return inputs


def fingerprint(inputs: dict[str, Any]) -> str:
    """sha256 over the canonical JSON of a stage's inputs."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def record_print(record: Record) -> str:
    """The fingerprint that a stage.json was written with."""
    return str(record.get("fingerprint") or fingerprint(record["inputs"]))


def downstream(experiment: Experiment, stage: str) -> list[str]:
    """The stages made from this one's output, directly or not, in order."""
    reached = {stage}
    known = upstream(experiment)
    for name, needs in known.items():  # in order, so one pass is enough
        if reached.intersection(needs):
            reached.add(name)
    return [name for name in known if name in reached and name != stage]


@dataclass(frozen=True)
class Difference:
    """Something that a stage in place was made from and that is another now.

    Attributes:
        part: `method`, `config`, `content`, `division` or `upstream`.
        key: of the setting, the file's or data set's setting, or the stage.
        before, now: the two values; UNSET where there is none.
    """

    part: str
    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        if self.part in ("config", "method"):
            return f"{self.key} = {self.before!r}, the config now has {self.now!r}"
        if self.part == "content":
            return f"another content of the file that {self.key} names"
        if self.part == "division":
            return f"texts of {self.key} that an earlier release divided otherwise"
        return f"the output of an earlier {self.key}"


class _Unset:
    """No value, where None is one."""

    def __repr__(self) -> str:
        return "unset"


UNSET = _Unset()


def differences(
    experiment: Experiment, stage: str, record: Record, now: dict[str, Any]
) -> list[Difference]:
    """What the stage of ``record`` was made from and is another in the inputs ``now``.

    A setting that the record's release did not have was at its default. A file counts by its
    content, wherever it lies; by its name where one of the two has no hash of it.
    """
    old_content, content = record["inputs"].get("content", {}), now["content"]
    found = {
        key: Difference("content", key, old_content[key], content[key])
        for key in content
        if key in old_content and old_content[key] != content[key]
    }
    table = _configured(experiment, stage)
    trained_by = _method(record, stage)
    if table.method not in ("", trained_by):  # whose settings are others altogether
        return [Difference("method", f"policies.{stage}.method", trained_by, table.method)]
    reads = _keys(table)
    recorded = _settings(_read(record, table))
    default = _settings(Experiment().model_dump(mode="json"))
    listed = {key.partition("[")[0] for key in recorded}  # a list in place of the default
    before = {key: value for key, value in default.items() if key not in listed} | recorded
    if any(isinstance(value, dict) for value in record["inputs"]["config"].values()):
        before = _FORMER | before  # a release that recorded whole sections
    old = {key: value for key, value in before.items() if reads(key)}
    new = now["config"]
    changed: list[Difference] = []
    for key in dict.fromkeys([*old, *new]):
        was, is_now = old.get(key, UNSET), new.get(key, UNSET)
        if key in table.whether and not isinstance(was, bool):
            was = was is not None
        moved = key in content and key in old_content and _form(was) == _form(is_now)
        if was != is_now and not moved and key not in found:
            changed.append(Difference("config", key, was, is_now))
    changed = _without_division(experiment, table, record, changed)
    older, newer = record["inputs"].get("upstream", {}), now["upstream"]
    built = [
        Difference("upstream", name, older.get(name, UNSET), newer.get(name, UNSET))
        for name in dict.fromkeys([*older, *newer])
        if older.get(name) != newer.get(name)
    ]
    divided = [record["inputs"].get("division", UNSET), now.get("division", UNSET)]
    if divided[0] != divided[1] and not changed:  # of another data set it says nothing
        built.append(Difference("division", "data.dataset_name", *divided))
    return [*changed, *found.values(), *built, *_other_division(experiment, stage, record)]


def _other_division(experiment: Experiment, stage: str, record: Record) -> list[Difference]:
    """The seed that divides the data, where another experiment's stage had another.

    What that one learned from would be what this one is compared on.
    """
    table = _configured(experiment, stage)
    if not experiment.shares(stage) or not _keys(table)("data.dataset_name"):
        return []
    before = flatten(_read(record, table))
    own = before.get("data.seed")
    divided = before.get("seed") if own is None else own
    if divided in (None, experiment.data_seed):
        return []
    return [Difference("config", "data.seed", divided, experiment.data_seed)]


def trainer_settings(record: Record, stage: stages.Stage) -> dict[str, Any] | None:
    """What ``stage``'s section held when it was made; None where the record does not keep that."""
    config = record.get("config")
    return None if config is None else dict(config.get(stage.section) or {})


def _without_division(
    experiment: Experiment, stage: stages.Stage, record: Record, changed: list[Difference]
) -> list[Difference]:
    """``changed`` less what only divides the same batches over another number of processes."""
    division = {f"{stage.section}.{name}" for name in (ROWS, ACCUMULATED)}
    before = trainer_settings(record, stage)
    if before is None or not any(difference.key in division for difference in changed):
        return changed
    now = experiment.of(stage.name).trainer_args(stage.section)
    if not same_batch(stage, before, record.get("processes"), now):
        return changed
    return [difference for difference in changed if difference.key not in division]


def _read(record: Record, stage: stages.Stage) -> dict[str, Any]:
    """The config that a stage was made with; its inputs alone where the record keeps no more."""
    return record.get("config") or record["inputs"]["config"]


def _method(record: Record, stage: str) -> str:
    """The method that a policy's stage in place was trained by: before policies, of its name."""
    policies = record.get("config", {}).get("policies") or {}
    return (policies.get(stage) or {}).get("method") or stage


def _form(name: Any) -> tuple[str, str]:
    """How what a config value names is read: by its endings, and the function in it."""
    path, colon, function = str(name).rpartition(":")
    if colon and kind_of(str(name)) == "function":
        return ".py", function
    return "".join(Path(str(name)).suffixes).lower(), ""


def origin() -> dict[str, Any]:
    """Versions, git commit and machine, for the record."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "git": _git(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "accelerator": _accelerator(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _accelerator() -> str | None:
    """The name of the GPU, when torch is in use and there is one."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None


def _git() -> dict[str, Any] | None:
    """Commit of the checkout this code is in, and whether it has changes; None outside of one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"commit": git("rev-parse", "HEAD"), "changed": changed}
    except (OSError, subprocess.SubprocessError):
        return None
