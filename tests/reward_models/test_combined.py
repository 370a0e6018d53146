"""Several rewards as one: scaling, what does not apply, dense rewards, columns."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import pytest

from reward_models import RewardCall, RewardError, Scores, checked
from reward_models.combined import How, Part, Scale, combined

PROMPTS, COMPLETIONS = ["", "", ""], ["a", "b", "c"]


def fixed(*scores: Any) -> RewardCall:
    """A reward that says these of the first completions, whatever they are."""
    return checked(lambda prompts, completions: list(scores[: len(completions)]), "fixed")


def asked(parts: list[Part], how: How = "sum", k: float = 1.0, **columns: Any) -> Scores:
    return checked(combined(parts, how, k)).scores(PROMPTS, COMPLETIONS, **columns)


def test_each_combination_by_hand() -> None:
    parts = [Part("a", fixed(1.0, 4.0, -2.0)), Part("b", fixed(3.0, 4.0, 0.0))]
    assert asked(parts, "mean").total == [2.0, 4.0, -1.0]
    assert asked(parts, "min").total == [1.0, 4.0, -2.0]
    assert asked(parts, "pessimistic", 2.0).total == [0.0, 4.0, -3.0]
    assert asked(parts, "pessimistic", 0.0).total == asked(parts, "mean").total
    weighted = [replace(parts[0], weight=2.0), replace(parts[1], weight=-1.0)]
    scores = asked(weighted)
    assert scores.total == [-1.0, 4.0, -4.0]
    assert scores.parts == {"a": [1.0, 4.0, -2.0], "b": [3.0, 4.0, 0.0]}
    assert scores.tokens is None


def test_a_part_is_clipped_then_shifted_and_scaled_and_shown_as_it_was() -> None:
    scale = Scale((-1.0, 5.0), mean=2.0, deviation=4.0)
    part = Part("a", fixed(10.0, 4.0, -3.0), 2.0, scale)
    scores = asked([part])
    assert scores.total == [1.5, 1.0, -1.5]
    assert scores.parts["a"] == [10.0, 4.0, -3.0]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("sum", [1.0, 5.0, 5.0]),
        ("mean", [1.0, 2.5, 5.0]),
        ("min", [1.0, 2.0, 5.0]),
        ("pessimistic", [1.0, 2.0, 5.0]),  # of 2 and 3: 2.5 − 0.5
    ],
)
def test_what_does_not_apply_is_left_out_of_that_completion(
    how: How, expected: list[float]
) -> None:
    parts = [Part("a", fixed(1.0, 2.0, None)), Part("b", fixed(None, 3.0, 5.0))]
    scores = asked(parts, how)
    assert scores.total == expected
    assert scores.parts == {"a": [1.0, 2.0, None], "b": [None, 3.0, 5.0]}


def test_a_completion_that_nothing_scores_is_named() -> None:
    parts = [Part("a", fixed(1.0, None, 2.0)), Part("b", fixed(1.0, None, 2.0))]
    with pytest.raises(RewardError, match="completion 1 .* as None, so no reward applies"):
        asked(parts)
    # A part that is only shown scores nothing.
    with pytest.raises(RewardError, match="completion 1"):
        asked([parts[0], Part("shown", fixed(1.0, 1.0, 1.0), weight=0.0)])


def test_a_weight_of_zero_only_shows_a_part() -> None:
    parts = [Part("a", fixed(1.0, 2.0, 3.0)), Part("b", fixed(9.0, 9.0, 9.0), weight=0.0)]
    scores = asked(parts)
    assert scores.total == [1.0, 2.0, 3.0] and scores.parts["b"] == [9.0, 9.0, 9.0]


IDS = [[5, 6], [7], [8, 9, 10]]
ROWS = [[1.0, 2.0], [3.0], [0.0, 0.0, 6.0]]


def test_dense_and_single_scores_go_together() -> None:
    dense = Part("dense", fixed(*ROWS), 2.0, Scale(mean=1.0, deviation=2.0))
    end = Part("end", fixed(10.0, None, 30.0), 0.5)
    scores = asked([dense, end], completion_ids=IDS)
    # 2·(x − 1)/2 = x − 1 at the last token, and half of the single score there too.
    assert scores.tokens == [[1.0, 6.0], [2.0], [0.0, 0.0, 20.0]]
    assert scores.total == [7.0, 2.0, 20.0]
    assert scores.parts == {"dense": [3.0, 3.0, 6.0], "end": [10.0, None, 30.0]}
    mean = asked([Part("dense", fixed(*ROWS)), Part("end", fixed(1.0, 1.0, 1.0))], "mean")
    assert mean.tokens == [[0.5, 1.5], [2.0], [0.0, 0.0, 3.5]]


def test_a_dense_part_may_not_apply() -> None:
    dense = Part("dense", fixed([1.0, 2.0], None, [0.0, 0.0, 6.0]))
    end = Part("end", fixed(None, 5.0, 1.0))
    scores = asked([dense, end], completion_ids=IDS)
    assert scores.tokens == [[1.0, 2.0], [5.0], [0.0, 0.0, 7.0]]


@pytest.mark.parametrize(
    ("how", "scale", "expected"),
    [
        ("min", Scale(), "of which there is no min; combine by sum or mean"),
        ("pessimistic", Scale(), "of which there is no pessimistic"),
        ("sum", Scale((-1.0, 1.0)), "clip is for one number a completion"),
    ],
)
def test_what_has_no_meaning_for_dense_rewards_is_refused(
    how: How, scale: Scale, expected: str
) -> None:
    parts = [Part("dense", fixed(*ROWS), 1.0, scale), Part("end", fixed(1.0, 1.0, 1.0))]
    with pytest.raises(RewardError, match=expected):
        asked(parts, how, completion_ids=IDS)


def test_parts_get_the_columns_that_they_ask_for() -> None:
    def right(completions: list[str], answer: list[str]) -> list[float]:
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    reward = checked(combined([Part("right", checked(right)), Part("one", fixed(1.0, 1.0, 1.0))]))
    assert reward.needed_columns() == {"answer"}
    assert reward(PROMPTS, COMPLETIONS, answer=["a", "x", "c"], other=[1, 2, 3]) == [2.0, 1.0, 2.0]
    reward.check_columns(["answer", "other"])
    with pytest.raises(RewardError, match="right: .*nothing for 'answer'"):
        reward.check_columns(["other"])


def test_a_mistake_of_a_part_names_it_and_its_completion() -> None:
    wrong = Part("wrong", fixed(1.0, math.nan, 1.0))
    with pytest.raises(RewardError, match="reward fixed: scored completion 1 .* as nan") as error:
        asked([Part("a", fixed(1.0, 1.0, 1.0)), wrong])
    assert "\n" not in str(error.value)


def test_what_is_no_combination() -> None:
    one = fixed(1.0, 1.0, 1.0)
    for parts in ([], [Part("a", one), Part("a", one)]):
        with pytest.raises(ValueError, match="at least one reward, each with a name"):
            combined(parts)
    with pytest.raises(ValueError, match="how must be"):
        combined([Part("a", one)], "median")  # type: ignore[arg-type]


def test_limits_are_those_of_each_source() -> None:
    """Together the two take longer than the time that each may take."""

    def slow(completions: list[str]) -> list[float]:
        time.sleep(0.2)
        return [1.0] * len(completions)

    reward = checked(combined([Part("a", checked(slow)), Part("b", checked(slow))]))
    assert reward.limited(0.35, 0)(["p"], ["c"]) == [2.0]
    with pytest.raises(RewardError, match="no answer in 0.1 s"):
        reward.limited(0.1, 0)(["p"], ["c"])
