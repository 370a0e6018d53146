"""Completions and all that is known of them on their way to a reward."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.records import columns_of, with_columns
from pipeline.errors import UserError
from pipeline.lm.generation import Completion
from pipeline.lm.kept import keep_samples, kept_samples
from pipeline.lm.scored import check_columns, score_completions
from reward_models import RewardError, Scores, checked

MESSAGES = [{"role": "user", "content": "two and two?"}]
PROMPTS = [
    with_columns("one and one?", {"solution": "2", "level": 1}),
    with_columns(MESSAGES, {"solution": "4"}),
    "what else?",
]
COMPLETIONS = [
    Completion("one and one?", (3,), (4, 5, 2), " 2", True, columns_of(PROMPTS[0])),
    Completion("user: two and two?", (3, 6), (7,), " five", False, columns_of(PROMPTS[1])),
    Completion("what else?", (8,), (9, 2), " more", True),
]


def test_a_reward_gets_columns_ids_and_ends() -> None:
    def score(solution: Any, level: Any, completion_ids: Any, ended: Any, completions: Any) -> Any:
        assert solution == ["2", "4", None] and level == [1, None, None]
        assert completion_ids == [[4, 5, 2], [7], [9, 2]] and ended == [True, False, True]
        assert completions == [" 2", " five", " more"]
        return [[1.0, 0.0, 1.0], [0.5], [0.0, 0.25]]

    scores = Scores([2.0, 0.5, 0.25], [[1.0, 0.0, 1.0], [0.5], [0.0, 0.25]])
    assert score_completions(score, COMPLETIONS) == scores
    assert score_completions(checked(score), COMPLETIONS) == scores


def test_a_reward_that_tells_nothing_apart_is_told_of_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def drawn(texts: list[str]) -> list[Completion]:
        return [Completion("x", (3,), (4,), text, True) for text in texts]

    different = drawn([str(number) for number in range(8)])
    for function, completions, told in (
        (lambda completions: [0.5] * 8, different, True),
        (lambda completions: [0.5] * 7 + [1.0], different, False),
        (lambda completions: [0.5] * 8, drawn(["same"] * 8), False),  # of equal texts it is right
        (lambda completions: [0.5] * 3, different[:3], False),  # which may be chance
    ):
        reward = checked(function, f"flat-{id(function)}")
        score_completions(reward, completions)
        line = "scored all of the first 8 completions 0.5; as long as it does not tell them apart"
        assert (line in capsys.readouterr().err) == told
        score_completions(reward, completions)
        assert capsys.readouterr().err == ""


def test_columns_are_looked_for_before_any_work() -> None:
    check_columns(lambda completions, solution: [], PROMPTS)
    with pytest.raises(UserError, match="nothing for 'answer'; there are .*, level, solution"):
        check_columns(lambda completions, answer: [], PROMPTS)
    with pytest.raises(RewardError, match="nothing for 'answer'"):
        score_completions(lambda completions, answer: [], COMPLETIONS)


def test_prompts_with_columns_are_prompts_still(tmp_path: Path) -> None:
    text, talk, plain = PROMPTS
    assert text == "one and one?" and hash(text) == hash("one and one?") and talk == MESSAGES
    assert with_columns("plain", {}) == "plain" and columns_of(plain) == {}
    for prompt in (text, talk):
        for again in (copy.deepcopy(prompt), pickle.loads(pickle.dumps(prompt))):
            assert again == prompt and columns_of(again) == columns_of(prompt)
    keep_samples(tmp_path / "kept.jsonl", COMPLETIONS)
    read = kept_samples(tmp_path / "kept.jsonl", PROMPTS)
    assert read is not None and read == COMPLETIONS
    assert [completion.columns for completion in read] == [c.columns for c in COMPLETIONS]
