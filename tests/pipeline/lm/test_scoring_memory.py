"""What the logits of a chunk take: the bytes that docs/scaling.md plans with."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pipeline.lm.scoring import token_logps, token_logps_and_entropy, token_statistics

TOKENS, CHUNK, VOCABULARY, WIDTH = 256, 128, 4096, 8
TARGETS = torch.arange(TOKENS)


def bytes_a_logit(work: Callable[[], object]) -> float:
    """The most memory that ``work`` holds at once beyond what was there, by a chunk's logits."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events: Any = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most / (CHUNK * VOCABULARY)


def learn(
    function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]], head: nn.Linear
) -> float:
    def work() -> None:
        hidden = torch.ones(TOKENS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            made = function(hidden, head, TARGETS, 1.0, CHUNK)
        torch.stack([made] if isinstance(made, torch.Tensor) else list(made)).sum().backward()

    work()  # makes what stays, the head's gradient
    return bytes_a_logit(work)


def test_the_plan_s_bytes_a_logit_are_measured(root: Path) -> None:
    plan = (root / "docs" / "scaling.md").read_text(encoding="utf-8")
    row = next(line for line in plan.splitlines() if line.startswith("| logits |"))
    both, frozen_head, entropy = (
        int(re.search(words, row)[1])  # type: ignore[index]
        for words in (r"(\d+) · 2048 V", r"(\d+) bytes with a frozen", r"(\d+) with an entropy")
    )
    frozen = nn.Linear(WIDTH, VOCABULARY, bias=False).bfloat16().requires_grad_(False)
    trained = nn.Linear(WIDTH, VOCABULARY, bias=False)
    hidden = torch.ones(TOKENS, WIDTH, dtype=torch.bfloat16)

    def score() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            token_statistics(hidden, hidden, frozen, frozen, TARGETS, 1.0, CHUNK)

    assert bytes_a_logit(score) == pytest.approx(both, abs=0.6)
    assert learn(token_logps, trained) == pytest.approx(both, abs=0.6)
    assert learn(token_logps, frozen) == pytest.approx(frozen_head, abs=0.6)
    assert learn(token_logps_and_entropy, trained) == pytest.approx(entropy, abs=0.6)
