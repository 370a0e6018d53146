"""The map that the documents draw: every file, module and link they name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.checkout import ROOT

PACKAGES = ("pipeline", "classic_rl", "reward_models", "common")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
QUESTIONS = re.findall(
    r"^\| ([^|]+\?) \| `([^`]+)` \| `([^`]+)` \| `([^`]+)` \|$",
    (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def names_in(path: Path) -> set[str]:
    """Functions and classes that a Python file defines, methods included."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module of ours, or something that one holds."""
    parts = dotted.split(".")
    for depth in range(len(parts), 0, -1):
        stem = ROOT.joinpath(*parts[:depth])
        module = (
            stem.with_suffix(".py") if stem.with_suffix(".py").is_file() else stem / "__init__.py"
        )
        if module.is_file():
            rest = parts[depth:]
            return not rest or rest[0] in module.read_text(encoding="utf-8")
    return False


def test_ten_questions_are_answered() -> None:
    assert len(QUESTIONS) == 10


@pytest.mark.parametrize(("question", "folder", "file", "name"), QUESTIONS, ids=lambda x: x[:30])
def test_each_answer_is_there(question: str, folder: str, file: str, name: str) -> None:
    path = ROOT / file
    assert path.parent == ROOT / folder
    if path.suffix == ".py":
        assert name in names_in(path), question
    else:
        assert name in path.read_text(encoding="utf-8"), question


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http:", "https:", "#", "mailto:")):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_named_files_and_modules_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    folders = "|".join([*PACKAGES, "docs", "configs", "tests", "benchmarks"])
    for name in re.findall(rf"(?<![\w./])(?:{folders})/[\w./-]*\w/?", text):
        environment = re.search(r"-v\d+$", name)  # an id such as classic_rl/TrafficLight-v0
        assert environment or (ROOT / name).exists(), name
    packages = "|".join(PACKAGES)
    for name in re.findall(rf"`((?:{packages})\.[\w.]+)(?:\(.*?\))?`", text):
        assert exists(name) or (ROOT / name).exists(), name
