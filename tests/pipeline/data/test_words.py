"""Words where blanks divide them and where none do."""

from __future__ import annotations

import pytest

from pipeline.config import Experiment
from pipeline.data.words import WORDS, first_words, same_but_for_form, unit_of


@pytest.mark.parametrize(
    ("text", "count", "first_two"),
    [
        ("One two, three.", 3, "One two,"),
        ("这个台灯质量很差。", 4, "这个台灯"),
        ("质量很差，外观漂亮。", 4, "质量很差，"),
        ("とても良いです", 4, "とても良"),
        ("สินค้าดีมาก", 2, "สินค้าดีมาก"),  # four letters with the marks on them are a word
        ("I bought 这个 lamp", 4, "I bought"),
        ("한국어는 빈칸이 있다", 3, "한국어는 빈칸이"),
        ("", 0, ""),
    ],
)
def test_words(text: str, count: int, first_two: str) -> None:
    assert WORDS.count(text) == count
    assert first_words(text, 2) == first_two
    assert WORDS.count(first_two) == min(2, count)


def test_tokens_are_the_policys() -> None:
    unit = unit_of(Experiment.model_validate({
        "model": {"model_name_or_path": "toy"}, "data": {"unit": "tokens"},
    }))  # fmt: skip
    text = "the film is good"
    assert unit.name == "tokens" and unit.count(text) >= 4
    parts = [unit.first(text, n) for n in range(1, unit.count(text) + 1)]
    assert parts[-1] == text
    assert [unit.count(part) for part in parts] == list(range(1, unit.count(text) + 1))


def test_doubles_are_told_by_letters_and_their_marks() -> None:
    assert same_but_for_form("It is GOOD!") == same_but_for_form(" it is - good")
    assert same_but_for_form("कि") != same_but_for_form("की")  # the vowels are marks
    assert same_but_for_form("😀😀") != same_but_for_form("!!")
