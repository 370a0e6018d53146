"""Calling a reward: whatever it returns or raises is floats, or one line."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from reward_models import RewardError, Scores, calling, checked
from reward_models.combined import Part, combined

PROMPTS = ["the film about love", "a movie about war", "this story about jazz"]
COMPLETIONS = [
    " is very wonderful and the cast is warm",
    " is dull",
    " is quite moving with a clever plot",
]


@pytest.mark.parametrize(
    "result",
    [
        [1, 2.5, True],
        (1.0, 2.5, 1.0),
        np.array([1.0, 2.5, 1.0], dtype=np.float32),
        torch.tensor([1.0, 2.5, 1.0], requires_grad=True),
        torch.tensor([[1.0], [2.5], [1.0]], dtype=torch.bfloat16),
        [np.float32(1), torch.tensor(2.5), torch.tensor([1])],
    ],
)
def test_whatever_holds_numbers_becomes_floats(result: object) -> None:
    scores = checked(lambda prompts, completions: result)(PROMPTS, COMPLETIONS)
    assert scores == [1.0, 2.5, 1.0]
    assert all(type(score) is float for score in scores)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ([1.0, 2.0], "returned 2 scores for 3 completions"),
        ([1.0] * 4, "returned 4 scores for 3 completions"),
        ([1.0, math.nan, 2.0], "scored completion 1 (' is dull') as nan"),
        ([1.0, 2.0, -math.inf], "scored completion 2"),
        ([1.0, "2.0", 3.0], "scored completion 1 (' is dull') as '2.0'"),
        ([1.0, None, 3.0], "completion 1 (' is dull') as None"),
        ([1.0, [2.0, 3.0], 3.0], "completion 1 (' is dull') as [2.0, 3.0]"),
        ([1.0, 1j, 3.0], "completion 1"),
        ([1.0, 10**400, 3.0], "completion 1 (' is dull') as inf"),
        (torch.tensor([0.0, float("nan"), 0.0]), "completion 1"),
        (1.0, "returned float"),
        (torch.tensor(1.0), "returned Tensor"),
        (None, "returned NoneType"),
        ("abc", "returned str"),
        ({0: 1.0, 1: 2.0, 2: 3.0}, "returned dict"),
    ],
)
def test_a_wrong_result_names_function_and_completion(result: object, expected: str) -> None:
    reward = checked(lambda prompts, completions: result, "mine.py:score")
    with pytest.raises(RewardError) as error:
        reward(PROMPTS, COMPLETIONS)
    assert expected in str(error.value)
    assert "mine.py:score" in str(error.value)
    assert "\n" not in str(error.value)


IDS = [[5, 6, 2], [2], [5, 2]]
DENSE = [[1.0, -0.5, 2.0], [0.25], [3.0, 0.0]]


@pytest.mark.parametrize(
    "result",
    [
        DENSE,
        [tuple(row) for row in DENSE],
        [np.array(row) for row in DENSE],
        [torch.tensor(row, requires_grad=True) for row in DENSE],
        Scores([2.5, 0.25, 3.0], DENSE),
    ],
)
@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_a_list_a_token_is_a_dense_reward(result: Any, batch_size: int | None) -> None:
    def score(prompts: Any, completions: Any, completion_ids: Any) -> Any:
        first = IDS.index(completion_ids[0])
        part = slice(first, first + len(completion_ids))
        if isinstance(result, Scores):
            assert result.tokens is not None
            return Scores(result.total[part], result.tokens[part])
        return result[part]

    reward = replace(checked(score), batch_size=batch_size)
    assert reward.scores(PROMPTS, COMPLETIONS, completion_ids=IDS) == Scores(
        [2.5, 0.25, 3.0], DENSE
    )


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ([[1.0] * 3, [1.0] * 2, [1.0] * 2], "completion 1 .* as 2 numbers, and it has 1 tokens"),
        (torch.zeros(3, 3), "completion 1 .* as 3 numbers"),
        ([[1.0] * 3, 1.0, [1.0] * 2], "completion 1 .* as one number"),
        ([[1.0, math.nan, 1.0], [1.0], [1.0] * 2], "completion 0 .* as nan"),
        ([[1.0, None, 1.0], [1.0], [1.0] * 2], "completion 0 .* as None"),
        ([[1.0, [2.0, 3.0], 1.0], [1.0], [1.0] * 2], "completion 0 .* as .2.0, 3.0"),
        (Scores([2.5, 1.0, 3.0], DENSE), "tokens of completion 1 .* sum to 0.25, and its total"),
        (Scores([2.5, 0.25], DENSE[:2]), "returned 2 scores for 3"),
        (Scores([2.5, math.inf, 1.0]), "completion 1 .* as inf"),
        (Scores([1.0] * 3, None, {"length": [1.0, math.nan, 0.0]}), "length: scored completion 1"),
        (Scores([1.0] * 3, None, {"length": [1.0]}), "length: returned 1 scores"),
        (Scores([1.0, None, 1.0]), "scored completion 1 .* as None, so no reward"),  # type: ignore
    ],
)
def test_wrong_dense_rewards_and_scores_name_the_completion(result: Any, says: str) -> None:
    with pytest.raises(RewardError, match=says) as error:
        checked(lambda prompts, completions: result)(PROMPTS, COMPLETIONS, completion_ids=IDS)
    assert error.value.returned is not None and "\n" not in str(error.value)


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_scores_keep_their_parts_and_none_is_for_rewards_of_several(
    batch_size: int | None,
) -> None:
    def score(prompts: Any, completions: list[str]) -> Scores:
        lengths = [float(len(text)) for text in completions]
        short = [None if len(text) > 20 else 1.0 for text in completions]
        return Scores(lengths, None, {"length": [*lengths], "short": short})

    reward = replace(checked(score), batch_size=batch_size)
    lengths = [len(text) for text in COMPLETIONS]
    assert reward.scores(PROMPTS, COMPLETIONS) == Scores(
        [*lengths], None, {"length": [*lengths], "short": [None, 1.0, None]}
    )
    part = replace(checked(lambda completions: [1.0, None, 2.0]), batch_size=None)
    assert part.partial_scores(PROMPTS, COMPLETIONS) == ([1.0, None, 2.0], None)
    dense = checked(lambda completions: [DENSE[0], None, DENSE[2]])
    assert dense.partial_scores(PROMPTS, COMPLETIONS, completion_ids=IDS) == (
        [2.5, None, 3.0],
        [DENSE[0], [], DENSE[2]],
    )


@pytest.mark.parametrize("culprit", [0, 1, 6, 12])
def test_a_call_that_raises_names_the_completion_that_makes_it(culprit: int) -> None:
    def score(prompts: list[str], completions: list[str]) -> list[float]:
        return [1 / int(text) for text in completions]

    completions = ["1"] * 13
    completions[culprit] = "0"
    with pytest.raises(RewardError) as error:
        checked(score)(["p"] * 13, completions)
    message = str(error.value)
    assert f"on completion {culprit} ('0')" in message
    assert "score: raised ZeroDivisionError: division by zero (test_calling.py, line" in message
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_a_call_that_raises_only_on_many_says_so() -> None:
    def score(prompts: list[str], completions: list[str]) -> list[float]:
        if len(completions) > 5:
            raise MemoryError("too\nmany")
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match="too .*on 8 completions together") as error:
        checked(score)(["p"] * 8, ["c"] * 8)
    assert "\n" not in str(error.value)


def test_the_function_gets_copies_and_the_guard_lets_interrupts_pass() -> None:
    def greedy(prompts: list[str], completions: list[str]) -> list[float]:
        completions.clear()
        return [0.0] * len(prompts)

    kept = list(COMPLETIONS)
    checked(greedy)(PROMPTS, kept)
    assert kept == COMPLETIONS

    def interrupted(prompts: list[str], completions: list[str]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checked(interrupted)(PROMPTS, COMPLETIONS)


def test_a_call_that_may_pass_is_made_again_with_the_same_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[list[str], list[str]]] = []
    waits: list[float] = []
    said: list[str] = []
    monkeypatch.setattr(calling.time, "sleep", waits.append)

    def score(prompts: list[str], completions: list[str]) -> list[float]:
        calls.append((prompts, completions))
        if len(calls) < 3:
            raise ConnectionError("refused\nby the peer")
        return [1.0] * len(completions)

    reward = replace(checked(score), retries=2, warn=said.append)
    assert reward(PROMPTS, COMPLETIONS) == [1.0, 1.0, 1.0]
    assert calls == [(PROMPTS, COMPLETIONS)] * 3 and waits == [1.0, 2.0]
    assert [line.split(" (")[0] for line in said] == ["reward score: ConnectionError: refused"] * 2
    assert said[0].endswith("; try 2 of 3 in 1 s") and said[1].endswith("; try 3 of 3 in 2 s")


def test_a_reward_of_rewards_says_once_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling.time, "sleep", lambda seconds: None)

    def away(prompts: list[str], completions: list[str]) -> list[float]:
        raise TimeoutError("no answer")

    one = combined([Part("away", checked(away))])
    both = replace(checked(one, "both"), retries=1, warn=lambda line: None)
    with pytest.raises(RewardError) as error:
        both(PROMPTS, COMPLETIONS)
    message = str(error.value)
    assert message.startswith(
        "reward both: failed 2 times, at last with reward away: raised TimeoutError: no answer ("
    )
    assert message.count("see that what it calls answers") == 1 and "RewardError" not in message


def test_a_call_that_hangs_ends_and_a_reward_is_wrapped_once() -> None:
    end = threading.Event()

    def score(prompts: list[str], completions: list[str]) -> list[float]:
        end.wait(30)
        return []

    reward = replace(checked(score), timeout=0.05)
    assert checked(reward) is reward
    with pytest.raises(RewardError, match="raised TimeoutError: no answer in 0.05 s; see"):
        reward(PROMPTS, COMPLETIONS)
    end.set()
