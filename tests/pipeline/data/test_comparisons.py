"""Comparisons of raters, rankings as pairs, and how own pairs are divided."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import embedded
from pipeline.data.comparisons import divided, of_raters, pair_ceiling
from pipeline.data.preferences import Pair, load_preferences
from pipeline.data.rankings import pair_rows
from pipeline.data.records import RatedText, Row
from pipeline.errors import UserError


def batch(number: int, *ratings: tuple[float, ...]) -> list[RatedText]:
    return [
        RatedText(f"text {number}/{i}", float(np.mean(each)), each, number)
        for i, each in enumerate(ratings)
    ]


TEXTS = [
    *batch(0, (3, 1, 0), (1, 1, 0), (-2, 4, 0)),
    *batch(1, (1, -1), (2, -1), (-4, 3)),
    RatedText("nobody's", 2.0, (2.0, 2.0, 2.0)),
]


def test_a_comparison_is_one_raters_and_ties_are_dropped() -> None:
    found = of_raters(TEXTS, most=10, seed=0)
    counts = Counter((c.group, c.rater) for c in found)
    assert counts == {(0, 0): 3, (0, 1): 2, (1, 0): 3, (1, 1): 2}  # rater 2 of batch 0 saw no odds
    by_text = {text.text: text for text in TEXTS}
    for c in found:
        assert c.rater is not None and c.texts is not None
        better, worse = by_text[str(c.chosen)], by_text[str(c.rejected)]
        assert better.batch == worse.batch == c.group
        assert better.ratings[c.rater] - worse.ratings[c.rater] == c.difference
        assert c.difference is not None and c.difference > 0
        assert c.texts == (better, worse)


def test_no_rater_gives_more_than_asked_and_the_seed_decides_which() -> None:
    assert max(Counter((c.group, c.rater) for c in of_raters(TEXTS, 2, 0)).values()) == 2
    assert of_raters(TEXTS, 1, 3) == of_raters(TEXTS, 1, 3)
    drawn = {tuple(str(c.chosen) for c in of_raters(TEXTS, 1, seed)) for seed in range(8)}
    assert len(drawn) > 1


def test_the_ceiling_is_the_others_of_that_pair() -> None:
    texts = batch(0, (2, 1, 1, -4), (0, 0, 1, 4))
    first = [c for c in of_raters(texts, 9, 0) if c.rater == 0]
    # Of the others one agrees, one is undecided, one disagrees by far.
    assert pair_ceiling(first) == {"one_other": 0.5, "others_mean": 0.0}
    assert pair_ceiling([]) is None


@pytest.mark.assets
def test_thirty_movie_snippets_in_a_row_share_their_raters_and_no_more() -> None:
    """Deviations by place correlate within a batch, and not across its end; see docs/data.md."""
    texts = embedded.ratings()
    assert [t.batch for t in texts[28:32]] == [0, 0, 1, 1] and texts[-1].batch == 353
    deviations = [np.asarray(t.ratings) - t.rating for t in texts]

    def correlation(offset: int) -> float:
        """Of the places' mean deviations in neighbouring fives, at one place of all batches."""
        pairs = []
        for start in range(offset, len(texts) - 10, 30):
            both = deviations[start : start + 10]
            if len({len(each) for each in both}) == 1:
                pairs.append((np.mean(both[:5], axis=0), np.mean(both[5:], axis=0)))
        one, other = (np.concatenate(side) for side in zip(*pairs, strict=True))
        return float(np.corrcoef(one, other)[0, 1])

    # The standard error is below 0.04 at the end of a batch, and 0.02 elsewhere.
    assert all(correlation(offset) > 0.5 for offset in (0, 5, 10, 15, 20))
    assert abs(correlation(25)) < 0.2


@pytest.mark.assets
def test_a_batch_of_movie_snippets_is_nearly_all_praise_or_all_criticism() -> None:
    """Why comparisons within batches say little about good against bad; see the docs."""
    texts = embedded.ratings()
    batches = np.array([text.batch for text in texts])
    ratings = np.array([text.rating for text in texts])
    means = np.array([ratings[batches == number].mean() for number in range(354)])
    positive = np.array([(ratings[batches == number] > 0).mean() for number in range(354)])
    assert np.sum((positive > 0.2) & (positive < 0.8)) == 3
    between = 1 - np.var(ratings - means[batches]) / np.var(ratings)
    assert between == pytest.approx(0.83, abs=0.005)


@pytest.mark.assets
@pytest.mark.parametrize("kind", ["product-reviews", "editorials", "tweets"])
def test_the_other_kinds_tell_no_rater(kind: str) -> None:
    assert {text.batch for text in embedded.ratings(kind)} == {None}


# --- Rankings -------------------------------------------------------------------------------------


def pairs_of(**values: object) -> list[tuple[str, str]]:
    rows = pair_rows(Row("f.jsonl, line 1", {"prompt": "x", **values}))
    return [(row.values["chosen"], row.values["rejected"]) for row in rows]


def test_a_ranking_makes_every_pair() -> None:
    answers = ["a", "b", "c", "d"]
    expected = {("d", "c"), ("d", "a"), ("d", "b"), ("c", "a"), ("c", "b"), ("a", "b")}
    for ranking in ("D > C > A > B", "d>c>a>b", [3, 2, 0, 1]):
        assert set(pairs_of(completions=answers, ranking=ranking)) == expected
    assert len(pairs_of(completions=answers)) == 6
    assert pairs_of(completions=["best", "worst"]) == [("best", "worst")]
    tied = pairs_of(completions=["a", "b", "c"], ranking="C > A = B")
    assert tied == [("c", "a"), ("c", "b")]


@pytest.mark.parametrize(
    "ranking", ["D > C > A", "D > C > A > A", "E > A > B > C", [1, 2, 3, 4], [0, 1, 2], 7, "best"]
)
def test_a_wrong_ranking_is_one_line(ranking: object) -> None:
    with pytest.raises(UserError, match=r"line 1: column 'ranking' must name each of the 4") as e:
        pairs_of(completions=["a", "b", "c", "d"], ranking=ranking)
    assert "\n" not in str(e.value)


def test_rankings_are_read_as_preferences(tmp_path: Path) -> None:
    path = tmp_path / "ranked.jsonl"
    first = '{"prompt": "Say a word.", "completions": ["fine", "poor", "bad"], "ranking": "A>B=C"}'
    path.write_text(f"{first}\n")
    assert [(p["chosen"], p["rejected"]) for p in load_preferences(str(path))] == [
        ("fine", "poor"),
        ("fine", "bad"),
    ]
    path.write_text('{"prompt": "x", "completions": ["a", "b"], "ranking": "A = B"}\n')
    with pytest.raises(UserError, match="no ranking prefers"):
        load_preferences(str(path))


# --- Own pairs ------------------------------------------------------------------------------------


def test_own_pairs_are_divided_by_prompt() -> None:
    pairs = [Pair("", f"Prompt {n // 3}{'!' * (n % 3)}", "good", "bad") for n in range(90)]
    made = divided(pairs, 0, "own.jsonl")
    groups = [{c.group for c in part} for part in (made.proxy, made.gold, made.test)]
    assert [len(part) for part in groups] == [14, 13, 3]
    assert not groups[0] & groups[1] and not (groups[0] | groups[1]) & groups[2]
    assert len(made.proxy) + len(made.gold) + len(made.test) == 90
    with pytest.raises(UserError, match="has 2 different prompts"):
        divided(pairs[:6], 0, "own.jsonl")
