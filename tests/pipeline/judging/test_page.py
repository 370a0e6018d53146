"""The page: valid, self-contained, and what texts and names say stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from pipeline.data.records import RatedText
from pipeline.data.toy import in_batches, toy_texts
from pipeline.judging import evaluation, page, probes
from pipeline.judging.evaluation import Scale, by_length, held_out_account
from pipeline.judging.pictures import SERIES, pictures, shown
from pipeline.report.plotting import PALETTE

EVIL = "<script>alert(1)</script> \"&' {{ 7 * 7 }} $x_1$ </style>"
VOID = {"meta", "br", "link", "img", "input"}
SCALE = Scale(0.0, 0.5)


def account_of(
    texts: list[RatedText], scores: dict[str, list[float]], log_odds: bool = True
) -> dict[str, Any]:
    """An account as the command makes it, of scores that are given."""
    odds = dict.fromkeys(scores, log_odds)
    account = held_out_account(texts, scores, SCALE, odds)
    probed = probes.load_probes()
    results = {
        name: probes.results(probed, [0.0] * sum(2 * len(p.pairs) for p in probed))
        for name in scores
    }
    lengths = [len(text.text.split()) for text in texts]
    return {
        "experiment": EVIL, "data": "toy", "unit": "words", "positive_above": 0.0,
        "neutral_margin": 0.5,
        "cautions": evaluation.cautions(account, scores, odds, []),
        "judges": [
            {"name": name, "source": EVIL, "described": None, "log_odds": log_odds,
             "unseen": False}
            for name in scores
        ],
        **account,
        "by_length": by_length(texts, lengths, scores, SCALE, odds),
        "by_domain": [{"domain": "tweets", "texts": len(texts), **account}],
        "probes": [
            {"probe": probe.title, "says": probe.says, "pairs": len(probe.pairs),
             "rewards": {name: results[name][at] for name in scores}}
            for at, probe in enumerate(probed)
        ],
        "scores": {"rating": [text.rating for text in texts], "rewards": scores},
    }  # fmt: skip


def render(account: dict[str, Any]) -> str:
    return page.render(account, pictures(account))


class Reader(HTMLParser):
    """Collects tags and attributes, and checks that every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html() -> str:
    texts = [RatedText(f"{EVIL} {t.text}", t.rating, t.ratings) for t in toy_texts(120, seed=0)]
    scores = [text.rating for text in texts]
    return render(account_of(texts, {EVIL: scores[::-1], "b": scores}))


def test_text_stays_text(html: str) -> None:
    read = Reader(html)
    assert not {"script", "iframe", "object", "link", "base", "img"} & set(read.tags)
    names = [name for name, _ in read.attributes]
    assert not [name for name in names if name.startswith("on") or name == "src"]
    assert read.tags.count("style") == 1 + html.count("<svg")
    assert EVIL in read.text and "7 * 7" in read.text
    assert len(read.ids) == len(set(read.ids))


def test_nothing_is_fetched_and_every_colour_is_defined(html: str) -> None:
    links = re.findall(r'<a href="([^"]+)"', html)
    outside = html
    for link in links:
        outside = outside.replace(f'"{link}"', "")
    outside = re.sub(r'xmlns(:\w+)?="[^"]*"|<!DOCTYPE[^>]*>', "", outside)
    outside = re.sub(r"<metadata>.*?</metadata>", "", outside, flags=re.DOTALL)
    assert not re.search(r"@import|https?://|url\((?!#)", outside)
    assert "default-src 'none'" in html
    used = set(re.findall(r"var\(--([\w-]+)\)", html))
    assert used <= set(re.findall(r"--([\w-]+):", html)), "a colour that is not defined is black"


def test_rewards_have_colours_of_their_own(html: str) -> None:
    assert not set(SERIES) & set(PALETTE.values())
    for index in (0, 1):
        assert f"var(--s{index})" in html[html.index("<svg") :]


def test_sections_follow_the_numbers(html: str) -> None:
    for heading in ("Beside another person", "What a score means", "Where it holds", "Probes"):
        assert f"<h2>{heading}</h2>" in html
    texts = [RatedText(f"text {i}", 2.0 * (i % 2) - 1) for i in range(12)]
    few = account_of(texts, {"only": [0.5] * 12}, log_odds=False) | {"by_domain": []}
    read = Reader(render(few))
    assert "Beside another person" not in read.text and "Where it holds" not in read.text
    assert "A good text scores above a bad one: only 50\u00a0% of the time." in read.text


def test_twelve_rewards_and_one_text() -> None:
    texts = toy_texts(40, seed=0)
    scores = {f"reward {i} {'x' * 40}": [text.rating + i for text in texts] for i in range(12)}
    Reader(render(account_of(texts, scores)))
    alone = account_of(texts[:1], {"only": [1.0]}) | {"by_domain": []}
    assert "cannot tell" in Reader(render(alone)).text


def test_the_note_names_what_one_persons_interval_draws() -> None:
    texts = toy_texts(60, seed=0)
    scores = {"mine": [text.rating for text in texts]}
    said = "(one person's over 2 batches of texts with the same raters)"
    assert said in render(account_of(in_batches(texts), scores))
    assert "same raters)" not in render(account_of(texts, scores))


def test_names_in_pictures() -> None:
    assert shown("proxy") == "proxy"
    assert shown("x" * 50) == "x" * 21 + "…"
    assert shown("a$b$ 日本") == r"a\$b\$ ··"


def test_terminal_lines() -> None:
    texts = toy_texts(120, seed=0)
    account = account_of(texts, {"proxy": [text.rating for text in texts]})
    first, last = page.lines(account)
    assert first.startswith("proxy · accuracy 100\u00a0% [100 to 100\u00a0%] · AUC 1.00")
    assert first.endswith("probes 0 of 92")
    assert last.startswith("one person · sides with another rater")
