"""What a config value names, by its content."""

from __future__ import annotations

import os
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


def test_content_hash(tmp_path: Path) -> None:
    assert content_hash("toy") is content_hash("owner/name") is content_hash(None) is None
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.txt").write_text("one", encoding="utf-8")
    first = content_hash(str(folder))
    (folder / ".hidden").write_text("x", encoding="utf-8")
    assert content_hash(str(folder)) == first
    (folder / "sub" / "a.txt").write_text("two", encoding="utf-8")
    assert content_hash(str(folder)) != first
    large = tmp_path / "large"
    with large.open("wb") as stream:
        stream.truncate(65 * 2**20)
    sparse = content_hash(str(large))
    with large.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"x")
    assert content_hash(str(large)) != sparse
