"""Every family of causal language models, LoRA adapters trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.families.promises import hold_outcome, listed


@pytest.mark.parametrize("kind", listed())
def test_what_is_promised(kind: str, tmp_path: Path) -> None:
    hold_outcome(kind, "lora", tmp_path)
