"""A reader's test: from the index, in at most three clicks, to the answer of twenty questions.

The questions stand in docs/README.md: question, page and heading, words that the answer has.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.checkout import ROOT

DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(([^)\s#]+\.md)(?:#[^)\s]*)?\)")
ROW = re.compile(r"^\| (.+?) \| \[.+?\]\(([^)#]+)(?:#([^)]+))?\) \| (.+?) \|$", re.M)
QUESTIONS = ROW.findall(
    (DOCS / "README.md").read_text(encoding="utf-8").split("## Twenty questions")[1]
)
CLICKS = 3


def links(page: Path) -> set[Path]:
    """The pages that a page links to in its text; its menu does not count."""
    found = LINK.findall(page.read_text(encoding="utf-8"))
    return {(page.parent / link).resolve() for link in found if "://" not in link}


def distances() -> dict[Path, int]:
    """Clicks from the index to each page."""
    reached = {DOCS / "index.md": 0}
    edge = list(reached)
    while edge:
        page = edge.pop(0)
        for target in sorted(links(page) - set(reached)):
            if target.is_file() and target.is_relative_to(DOCS):
                reached[target] = reached[page] + 1
                edge.append(target)
    return reached


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def section(page: Path, name: str) -> str:
    """The text below the heading with this anchor; the whole page without one. KeyError: none."""
    text = re.sub(
        r"^```.*?^```", lambda m: m[0].replace("\n#", "\n "), page.read_text(), flags=re.M | re.S
    )
    if not name:
        return text
    heads = list(re.finditer(r"^(#+) (.+)$", text, re.M))
    for i, head in enumerate(heads):
        if anchor(head[2]) == name:
            rest = (h.start() for h in heads[i + 1 :] if len(h[1]) <= len(head[1]))
            return text[head.start() : next(rest, len(text))]
    raise KeyError(f"{page.name}: no heading #{name}")


def test_there_are_twenty() -> None:
    assert len(QUESTIONS) == 20
    assert len({question for question, *_ in QUESTIONS}) == 20
    assert len({(page, head) for _, page, head, _ in QUESTIONS}) == 20


@pytest.mark.parametrize(("question", "page", "head", "words"), QUESTIONS)
def test_the_answer_is_near(question: str, page: str, head: str, words: str) -> None:
    path = (DOCS / page).resolve()
    assert distances()[path] <= CLICKS, question
    text = section(path, head)
    keys = re.findall(r"`([^`]+)`", words)
    assert len(keys) >= 2
    assert [key for key in keys if key not in text] == [], question


def test_every_page_is_near() -> None:
    near = distances()
    pages = set(DOCS.rglob("*.md")) - set((DOCS / "api").glob("*")) - {DOCS / "contributing.md"}
    far = {page.name: near.get(page) for page in pages if near.get(page, 99) > CLICKS}
    assert far == {}


def test_what_is_not_there_is_found_out() -> None:
    with pytest.raises(KeyError, match="no heading #absent"):
        section(DOCS / "index.md", "absent")


def test_glossary_terms_are_there() -> None:
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    terms = set(re.findall(r"^(\w[^\n]*)\n  ", text, re.M))
    used = set(re.findall(r"\{term\}`([^`]+)`", text))
    assert len(terms) > 25 and used <= terms
