"""Where the finished policy of a stage lies in the stage's folder."""

from __future__ import annotations

from pathlib import Path

MODEL, ADAPTER = "model", "adapter"
"""A whole model; LoRA adapters alone, see `model.save`."""
ADAPTER_CONFIG = "adapter_config.json"


def is_policy(folder: Path) -> bool:
    """Whether ``folder`` holds a model or adapters."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG))


def policy_folder(stage: Path) -> Path:
    """Where the policy of a stage's folder is loaded from: its model, else its adapters."""
    model, adapter = stage / MODEL, stage / ADAPTER
    return adapter if is_policy(adapter) and not is_policy(model) else model
