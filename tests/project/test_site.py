"""The reference on the site names every module of what is a library by itself, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "docs" / "api"
LIBRARIES = ("classic_rl/tabular", "classic_rl/deep", "classic_rl/envs", "reward_models")


def modules(folder: str) -> set[str]:
    """Dotted names of the modules below a folder, packages left out."""
    found = (ROOT / folder).rglob("*.py")
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in found
        if not path.name.startswith("__")
    }


def test_every_module_of_a_library_is_in_the_reference() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in API.glob("*.md"))
    named = re.findall(r"^\.\. automodule:: (\S+)$", pages, re.M)
    assert len(named) == len(set(named))
    there = set().union(*map(modules, (*LIBRARIES, "pipeline/ppo")))
    assert there - set(named) == set()
    assert set(named) - there <= modules("classic_rl")
