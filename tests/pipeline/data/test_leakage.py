"""No text, near-duplicate or rater in two of the splits that something is learnt or measured on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from pipeline.config import load_experiment
from pipeline.data import embedded
from pipeline.data.leakage import (
    NEAR,
    in_halves,
    linked_groups,
    near_groups,
    shingles,
    sides_of,
    take_groups,
)
from pipeline.data.records import RatedText
from pipeline.data.splits import ExperimentData, load_data
from pipeline.data.tally import listening

LONG = "one two three four five six seven eight"


def rated(*texts: str, batch: int | None = None) -> list[RatedText]:
    return [RatedText(text, 1.0, (), batch) for text in texts]


def all_shingles(texts: Sequence[str]) -> set[int]:
    return set().union(*map(shingles, texts)) if texts else set()


def leaks(data: ExperimentData) -> list[str]:
    """Every pair of splits that share a near-duplicate (or the same text), or a batch of raters."""
    rated = {
        "proxy": data.half("proxy"),
        "gold": data.half("gold"),
        "test": data.classifier_test,
    }
    texts = {name: [text.text for text in part] for name, part in rated.items()}
    found = []
    for one, other in combinations(rated, 2):
        batches = [{t.batch for t in rated[n]} - {None} for n in (one, other)]
        if batches[0] & batches[1]:
            found.append(f"{one} and {other}: raters")
    texts |= {
        "heldout": [str(t) for t in data.heldout],
        "prompts": list(map(str, data.eval_prompts)),
    }
    demonstrations = [str(text) for text in data.demonstrations]
    pairs = [
        (texts[one], texts[other], f"{one} and {other}") for one, other in combinations(texts, 2)
    ]
    pairs += [(demonstrations, texts[n], f"demonstrations and {n}") for n in ("test", "heldout")]
    found += [
        f"{name}: near-duplicates" for a, b, name in pairs if all_shingles(a) & all_shingles(b)
    ]
    return found


@pytest.mark.assets
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_leaks_between_proxy_gold_and_test(root: Path, seed: int) -> None:
    config = load_experiment(root / "configs" / "quickstart.yaml", [f"seed={seed}"])
    data = load_data(config)
    assert leaks(data) == []
    assert len({text.batch for text in data.classifier_test}) > 30
    sizes = [len(data.half("proxy")), len(data.half("gold"))]
    assert abs(sizes[0] - sizes[1]) < 0.02 * sum(sizes)


@pytest.mark.assets
def test_a_leak_is_found(root: Path) -> None:
    """What the check must see: a near-duplicate, and a batch, of the test's in the proxy's half."""
    data = load_data(load_experiment(root / "configs" / "quickstart.yaml"))
    long = next(t for t in data.classifier_test if len(t.text.split()) > NEAR + 6)
    words = " ".join(long.text.split()[2:])
    near = RatedText(f"Quite so {words.upper()}", 1.0)
    same = RatedText("A text of its own that nobody wrote", 1.0, (), long.batch)
    for added, what in ((near, "near-duplicates"), (same, "raters")):
        mixed = replace(data, proxy=[*data.proxy, added])
        assert f"proxy and test: {what}" in leaks(mixed)


@pytest.mark.assets
def test_all_movie_snippets_are_grouped_in_seconds() -> None:
    texts = list({text.text: text for text in embedded.ratings()}.values())
    start = time.process_time()
    groups = near_groups(texts, "movies")
    linked_groups(texts, groups)
    assert time.process_time() - start < 5
    assert 10 < len(texts) - len(set(groups.values())) < 100


def test_near_duplicates_share_eight_words_or_all_of_few() -> None:
    texts = rated(
        *(f"{LONG} nine", f"Zero, {LONG.upper()}!", "one two three four five six seven 8 nine"),
        *("Short one", "another"),
    )
    groups = near_groups(texts, "texts")
    first, second, third, *_ = (groups[text.text] for text in texts)
    assert first == second != third
    assert len(set(groups.values())) == 4
    assert shingles("Short one") == shingles("short, ONE!")


def test_phrases_that_link_much_of_the_data_are_no_duplicates() -> None:
    """As in long reviews: what many texts share would leave nothing to split."""
    texts = rated(*(f"{LONG} {number}" for number in range(40)))
    with listening() as lines:
        groups = near_groups(texts, "reviews")
    assert len(set(groups.values())) == 40
    assert "8 words in a row link more than a tenth" in lines[0]


def test_groups_stay_together_and_texts_of_their_own_alternate() -> None:
    alone = rated(*"abcdefg")
    single = {text.text: index for index, text in enumerate(alone)}
    test, rest = take_groups(alone, single, sides_of(alone, single, 0), 2)
    assert [text.text for text in test] == ["a", "b"]
    halves = in_halves(rest, single, sides_of(rest, single, 0))
    assert [[text.text for text in half] for half in halves] == [["c", "e", "g"], ["d", "f"]]
    batches = [t for n in range(6) for t in rated(f"{n} x", f"{n} y", batch=n)]
    near = {text.text: index for index, text in enumerate(batches)}
    near["1 x"] = near["0 x"]  # batches 0 and 1 belong together through it
    groups = linked_groups(batches, near)
    sides = sides_of(batches, groups, 0)
    test, rest = take_groups(batches, groups, sides, 3)
    assert {text.batch for text in test} == {0, 1}
    assert [[text.batch for text in half] for half in in_halves(rest, groups, sides)] == [
        [2, 2, 4, 4],
        [3, 3, 5, 5],
    ]


def test_praise_and_criticism_are_divided_each_by_itself() -> None:
    """Batches of one side alone, as in the movie reviews: one part of them could be all praise."""
    batches = [
        RatedText(f"{n} {which}", 2.0 if n < 12 else -2.0, batch=n)
        for n in range(20)
        for which in "xy"
    ]
    groups = {text.text: text.batch or 0 for text in batches}
    sides = sides_of(batches, groups, 0.0)
    test, rest = take_groups(batches, groups, sides, 20)
    for part in (test, *in_halves(rest, groups, sides)):
        assert sum(text.rating > 0 for text in part) == pytest.approx(0.6 * len(part), abs=1)


def test_texts_too_many_to_search_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.leakage.MOST_SEARCHED", 50)
    with listening() as lines:
        groups = near_groups(rated(f"{LONG} one", f"{LONG} two"), "reviews")
    assert len(set(groups.values())) == 2
    assert "only equal texts count as near-duplicates" in lines[0]
