"""Samples on disk before they are scored: a reward that fails costs no sampling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from common.files import write_text
from pipeline.data.records import Prompt, columns_of
from pipeline.lm.generation import Completion
from reward_models.interface import ChatPrompt


def keep_samples(path: Path, completions: Sequence[Completion]) -> None:
    """Write them, a line each, without the columns of the prompts' rows, which may be anything."""
    names = [field.name for field in fields(Completion) if field.name != "columns"]
    rows = (
        json.dumps({name: getattr(completion, name) for name in names}, ensure_ascii=False)
        for completion in completions
    )
    write_text(path, "".join(f"{row}\n" for row in rows))


def kept_samples(path: Path, prompts: Sequence[Prompt]) -> list[Completion] | None:
    """What :func:`keep_samples` wrote; None where there is nothing.

    Args:
        prompts: of each completion; a conversation's messages and the columns of a prompt's row
            are not in the file.
    """
    if not path.is_file():
        return None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    completions = []
    for row, prompt in zip(rows, prompts, strict=True):
        for name in ("prompt_ids", "completion_ids"):
            row[name] = tuple(row[name])
        if not isinstance(prompt, str):
            row["prompt"] = ChatPrompt(row["prompt"], prompt)
        completions.append(Completion(**row, columns=columns_of(prompt)))
    return completions
