"""The rules, one by one, and how their arguments are checked."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from reward_models import RewardError, checked, load_reward
from reward_models.rules import KNOWN, rule


def scores(name: str, completions: list[str], arguments: Any = None, **columns: Any) -> list[float]:
    reward = load_reward(f"rules:{name}", arguments=arguments)
    return reward(columns.pop("prompts", [""] * len(completions)), completions, **columns)


def test_length() -> None:
    texts = ["one two three", "one", "a b c d e f", " "]
    arguments = {"shortest": 2, "longest": 4, "slope": 0.5}
    assert scores("length", texts, arguments) == [0.0, -0.5, -1.0, -1.0]
    assert scores("length", texts, {"longest": 2, "unit": "characters"}) == [-11, -1, -9, 0]
    ids = [[1, 2], [3], [4, 5, 6, 7], [8]]
    by_tokens = {"longest": 2, "unit": "tokens"}
    assert scores("length", texts, by_tokens, completion_ids=ids) == [0.0, 0.0, -2.0, 0.0]
    assert load_reward("rules:length", arguments=by_tokens).needed_columns() == {"completion_ids"}


def test_repetition() -> None:
    # "x y x y x": trigrams xyx, yxy, xyx; one of three is a repeat.
    assert scores("repetition", ["x y x Y x", "x y", ""]) == pytest.approx([-1 / 3, 0.0, 0.0])
    assert scores("repetition", ["a a a a"], {"n": 1}) == [-0.75]


def test_ended_is_asked_of_the_caller() -> None:
    assert scores("ended", ["a", "b"], ended=[True, False]) == [1.0, 0.0]
    with pytest.raises(RewardError, match="nothing for 'ended'"):
        scores("ended", ["a", "b"])


@pytest.mark.parametrize(
    ("words", "text", "count"),
    [
        (["art"], "the art of Art, not a start", 2),
        (["as an ai"], "As an AI I cannot; as an aid", 1),
        (["c++"], "C++ and c+", 1),
        (["!"], "wow!!", 2),
        (["坏"], "这部电影很坏很坏的", 2),
        (["плохо"], "плохо, Плохо, неплохо", 2),
        (["naïve"], "a NAÏVE plot", 1),
    ],
)
def test_banned_words_are_whole_and_in_any_case(words: list[str], text: str, count: int) -> None:
    assert scores("banned", [text], {"words": words}) == [-count]


def test_patterns_and_wanted_words() -> None:
    arguments = {"words": ["great"], "patterns": [r"\d{4}", "^Yes"]}
    assert scores("banned", ["great 1999 2001", "yes"], arguments) == [-3.0, 0.0]
    assert scores("contains", ["Yes, great", "1", "in 1999"], arguments) == pytest.approx(
        [2 / 3, 0.0, 1 / 3]
    )


def test_vader_is_the_packages_compound_score() -> None:
    pytest.importorskip("vaderSentiment")
    good, bad, both = scores("vader", ["VADER is smart, handsome, and funny!", "awful", "the"])
    assert good == 0.8439  # the example of the package's README
    assert bad < 0 and both == 0
    whole, alone = (
        scores("vader", [" fun"], {"read": read}, prompts=["not"])[0]
        for read in ("text", "completion")
    )
    assert whole < 0 < alone


def test_vader_without_its_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(RewardError, match="not installed: pip install vaderSentiment") as error:
        load_reward("rules:vader")
    assert str(error.value).startswith("reward rules:vader: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "arguments", "expected"),
    [
        ("rules:lenght", {}, "no such rule; did you mean rules:length?"),
        ("rules:score", {}, "there are length, repetition, ended, banned, contains, vader"),
        ("rules:length", {}, "every length is allowed; give shortest or longest"),
        ("rules:length", {"longest": 1, "shortest": 2}, "0 <= shortest <= longest"),
        ("rules:length", {"longest": "9"}, "argument longest is '9'; expected a whole number"),
        ("rules:length", {"longest": True}, "argument longest is True; expected a whole number"),
        ("rules:length", {"longest": 9, "unit": "word"}, "expected 'words', 'characters' or"),
        ("rules:length", {"longset": 9}, "no argument 'longset'; it takes shortest, longest"),
        (
            "rules:length",
            {"longest": 9, "slope": float("nan")},
            "slope is nan; expected a finite number",
        ),
        ("rules:repetition", {"n": 0}, "n must be at least 1"),
        ("rules:ended", {"n": 0}, "no argument 'n'; it takes none"),
        ("rules:banned", {}, "needs words or patterns"),
        ("rules:banned", {"words": "junk"}, "argument words is 'junk'; expected a list"),
        ("rules:banned", {"words": ["a", " "]}, "words holds an empty one"),
        ("rules:banned", {"patterns": ["(a"]}, "'(a' is no regular expression"),
        ("rules:banned", {"patterns": ["a*"]}, "'a*' matches every text"),
    ],
)
def test_mistakes_are_one_line(spec: str, arguments: Any, expected: str) -> None:
    with pytest.raises(RewardError) as error:
        rule(spec, arguments)
    message = str(error.value)
    assert expected in message and message.startswith(f"reward {spec}: ") and "\n" not in message


STRANGE = ["", "\0", "\ud800", "👍" * 50, "a" * 10_000, "a b " * 3000, "\u202eabc", "\r\n\t", "٣"]
ARGUMENTS: dict[str, Any] = {
    "length": {"longest": 9},
    "banned": {"words": ["a", "👍"], "patterns": [r"\s+"]},
    "contains": {"words": ["a", "👍"]},
}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_strange_texts_get_finite_scores(name: str) -> None:
    if name == "vader":
        pytest.importorskip("vaderSentiment")
    reward = checked(rule(f"rules:{name}", ARGUMENTS.get(name, {})))
    columns = {"ended": [True] * len(STRANGE)}
    assert len(reward(STRANGE, STRANGE, **columns)) == len(STRANGE)  # refuses what is not finite
