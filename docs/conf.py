"""The documentation as a site: ``make site`` writes ``build/site``, and any warning fails it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "docs" / "make"))

import lessons  # noqa: E402

lessons.write(ROOT)

project = "rlhf-pipeline"
author = "the authors of rlhf-pipeline"
root_doc = "index"
exclude_patterns = ["make"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # `make notebooks` runs them: minutes
nb_output_stderr = "remove"  # bars and remarks of libraries; what a lesson says, it prints
html_theme = "furo"
html_title = project
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
default_role = "code"
suppress_warnings = ["ref.python"]  # of a name that two modules have in a signature: PPOConfig
_PART = re.compile(r"^> (.+)$")  # of a long list of arguments: a heading among them
_LESSON = re.compile(r"\]\((?:\.\./)+notebooks/(\w+)\.py\)")


def _argument_headings(*event: Any) -> None:
    """Turn the lines ``> Reward`` in a docstring into headings with arguments of their own."""
    lines: list[str] = event[-1]
    if not any(map(_PART.match, lines)):
        return
    made: list[str] = []
    for line in lines:
        part = _PART.match(line)
        if part:
            made += [f".. rubric:: {part[1]}", "", "Args:"]
        elif line.strip() != "Args:":
            made.append(line)
    lines[:] = made


def _links_out(app: Any, page: str, text: list[str]) -> None:
    """The pages of what stands beside ``docs/`` in the checkout, and can be read there too."""
    up = "../" * page.count("/")
    text[0] = _LESSON.sub(rf"]({up}lessons/\1.ipynb)", text[0])
    if page == "README":
        text[0] = text[0].replace("](../CONTRIBUTING.md)", "](contributing.md)")


def setup(app: Any) -> None:
    """Register the two."""
    app.connect("autodoc-process-docstring", _argument_headings, priority=100)
    app.connect("source-read", _links_out)
