"""What a result depends on: its inputs' fingerprint, and where and with what it was made."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from common.words import flatten
from pipeline.config import OVER_SFT, Experiment, stages

_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "rlhf-pipeline")
# Files above this are known by their size and both ends: hashing tens of GB at every start would
# cost more than it tells.
_WHOLE = 64 * 2**20
_END = 2**20


def _plain(value: Any) -> Any:
    """The value with 1.0 written as 1, so that the two are one setting."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _hash_file(path: Path) -> str:
    """sha256 of a file's content (of size, first and last MiB when it is large)."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= _WHOLE:
            digest.update(stream.read())
        else:
            digest.update(f"{size}:".encode() + stream.read(_END))
            stream.seek(size - _END)
            digest.update(stream.read())
    return digest.hexdigest()


def content_hash(name: str | None) -> str | None:
    """sha256 of what a config value names on this machine; None when it names nothing here.

    ``name`` is a file, a folder, or a Python function as `file.py:function` or `module:function`.
    """
    if not name or name.startswith("embedded:") or name in ("toy", "sentiment"):
        return None
    path = Path(name).expanduser()
    if not path.exists() and ":" in name:
        module = name.rpartition(":")[0]
        path = Path(module) if module.endswith(".py") else Path(module.replace(".", "/") + ".py")
    if path.is_file():
        return _hash_file(path)
    if not path.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        relative = file.relative_to(path)
        if not any(part.startswith(".") for part in relative.parts):
            digest.update(f"{relative.as_posix()}\0{_hash_file(file)}\n".encode())
    return digest.hexdigest()


def _contents(experiment: Experiment, sections: tuple[str, ...]) -> dict[str, str]:
    """Hashes of the local files that these sections name, by config key."""
    model, data, reward = experiment.model, experiment.data, experiment.reward
    named = {
        "model.model_name_or_path": model.model_name_or_path,
        "data.dataset_name": data.dataset_name,
        "data.prompts_name": data.prompts_name,
        "data.preferences_name": data.preferences_name,
        "reward.source": reward.source,
        "reward.gold": reward.gold,
        "reward.encoder": None if reward.encoder == OVER_SFT else reward.encoder,
    }
    hashes = {
        key: content_hash(name) for key, name in named.items() if key.split(".")[0] in sections
    }
    return {key: value for key, value in hashes.items() if value is not None}


def upstream(experiment: Experiment) -> dict[str, tuple[str, ...]]:
    """The stages whose output each stage reads: those of the table, and of a shared encoder."""
    section = experiment.reward
    trained = "sentiment" in (section.source, section.gold)
    needs = {stage.name: stage.needs for stage in stages.STAGES}
    return needs | ({"reward": ("sft",)} if trained and section.encoder == OVER_SFT else {})


def stage_inputs(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Everything that decides each stage's output, by stage.

    Each value holds `config` (the sections it reads), `content` (hashes of local files they name)
    and `upstream` (fingerprints of the stages it builds on).
    """
    dumped = _plain(experiment.model_dump(mode="json"))
    needs = upstream(experiment)
    inputs: dict[str, dict[str, Any]] = {}
    for stage in stages.STAGES:
        inputs[stage.name] = {
            "config": {part: dumped[part] for part in stage.reads},
            "content": _contents(experiment, stage.reads),
            "upstream": {name: fingerprint(inputs[name]) for name in needs[stage.name]},
        }
    return inputs


def fingerprint(inputs: dict[str, Any]) -> str:
    """sha256 over the canonical JSON of a stage's inputs."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def downstream(experiment: Experiment, stage: str) -> list[str]:
    """The stages made from this one's output, directly or not, in order."""
    reached = {stage}
    known = upstream(experiment)
    for name, needs in known.items():  # in order, so one pass is enough
        if reached.intersection(needs):
            reached.add(name)
    return [name for name in known if name in reached and name != stage]


def first_difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs first between two inputs of one stage, in words."""
    for part in ("config", "content", "upstream"):
        old, new = flatten(before.get(part, {})), flatten(now.get(part, {}))
        for key in dict.fromkeys([*old, *new]):
            if old.get(key) == new.get(key) and (key in old) == (key in new):
                continue
            if part == "config":
                was, is_now = (repr(tree[key]) if key in tree else "unset" for tree in (old, new))
                return f"{key} = {was}, the config now has {is_now}"
            if part == "content":
                return f"another content of the file that {key} names"
            return f"the output of an earlier {key}"
    return "other inputs"


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
