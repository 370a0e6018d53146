"""What a config value names, by its content."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.content import content_hash


def test_a_module_is_found_where_python_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere_content.py").write_text("def f(): ...")
    assert content_hash("elsewhere_content:f") is None
    monkeypatch.syspath_prepend(tmp_path)
    before = content_hash("elsewhere_content:f")
    (tmp_path / "elsewhere_content.py").write_text("def f(): return 1")
    assert before is not None and content_hash("elsewhere_content:f") not in (None, before)


def test_files_that_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = content_hash(str(tmp_path))
    (tmp_path / "README.md").write_text("a card")
    assert content_hash(str(tmp_path)) != before
    assert content_hash(str(tmp_path), without=("README.md",)) == before
