"""Every family of causal language models, all weights trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.pipeline.families.promises import hold_outcome, listed
from tests.pipeline.families.tiny import families


@pytest.mark.parametrize("kind", listed())
def test_what_is_promised(kind: str, tmp_path: Path) -> None:
    hold_outcome(kind, "all", tmp_path)


def test_the_list_is_of_the_installed_transformers() -> None:
    assert len(listed()) >= 150
    assert set(listed()) <= set(families())


def test_the_page_names_every_family() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert not [kind for kind in listed() if kind not in page]
