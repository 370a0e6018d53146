"""What a reward function's parameters get: what their names say, or one line and nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from reward_models import RewardError, checked

PROMPT, COMPLETION = "a kettle", " sings"
SCORES = {"prompt": 1.0, "completion": 2.0, "both": 3.0}


def scored(texts: list[str]) -> list[float]:
    """Which text it was."""
    kinds = {PROMPT: "prompt", COMPLETION: "completion", PROMPT + COMPLETION: "both"}
    return [SCORES[kinds[text]] for text in texts]


def trl(completions: Any, **kwargs: Any) -> list[float]:
    assert kwargs == {"prompts": [PROMPT]}
    return scored(completions)


def trlx(samples: Any, prompts: Any, outputs: Any, **kwargs: Any) -> list[float]:
    assert (samples, prompts, kwargs) == ([PROMPT + COMPLETION], [PROMPT], {})
    return scored(outputs)


def trlx_samples(samples: Any, **kwargs: Any) -> list[float]:
    return scored(samples)


def swapped(responses: Any, queries: Any) -> list[float]:
    assert queries == [PROMPT]
    return scored(responses)


def swapped_by_position(completions: Any, prompts: Any, /) -> list[float]:
    assert prompts == [PROMPT]
    return scored(completions)


def by_name(*, outputs: Any, inputs: Any) -> list[float]:
    assert inputs == [PROMPT]
    return scored(outputs)


def all_by_name(**kwargs: Any) -> list[float]:
    assert kwargs == {"prompts": [PROMPT], "completions": [COMPLETION]}
    return scored(kwargs["completions"])


def optional(completions: Any, prompts: Any = None, p: float = 0.5, *, solution: Any = None) -> Any:
    assert (prompts, p, solution) == ([PROMPT], 0.5, None)
    return scored(completions)


class Scorer:
    def __call__(self, response: Any, prompt: Any) -> list[float]:
        assert prompt == [PROMPT]
        return scored(response)


@pytest.mark.parametrize(
    ("function", "gets"),
    [
        (lambda prompts, completions: scored(completions), "completion"),
        (lambda completions: scored(completions), "completion"),
        (lambda _prompts, completions: scored(completions), "completion"),
        (lambda _, completions: scored(completions), "completion"),
        (lambda _, __: scored(__), "completion"),
        (lambda a, b: scored(b), "completion"),
        (lambda p, c: scored(c), "completion"),
        (lambda c, p: scored(c), "completion"),
        (lambda x, y: scored(y), "completion"),
        (lambda *texts: scored(texts[1]), "completion"),
        (lambda *args, **kwargs: scored(kwargs["completions"]), "completion"),
        (trl, "completion"),
        (trlx, "completion"),
        (trlx_samples, "both"),
        (swapped, "completion"),
        (swapped_by_position, "completion"),
        (by_name, "completion"),
        (all_by_name, "completion"),
        (optional, "completion"),
        (Scorer(), "completion"),
    ],
)
def test_every_parameter_gets_what_its_name_says(function: Callable[..., Any], gets: str) -> None:
    assert checked(function)([PROMPT], [COMPLETION]) == [SCORES[gets]]


def trl_with_a_column(completions: Any, solution: Any, **kwargs: Any) -> list[float]:
    return scored(completions)


def openrlhf(queries: Any, prompts: Any, labels: Any) -> list[float]:
    return scored(queries)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (trl_with_a_column, "'solution'"),
        (openrlhf, "'queries'"),
        (lambda prompts, completions, answer: [], "'answer'"),
        (lambda prompts, completions, *, level: [], "'level'"),
        (lambda texts, labels: [], "'texts'"),
        (lambda prompts, references: [], "'references'"),
        (lambda prompts, samples: [], "'samples'"),
        (lambda text: [], "'text'"),
        (lambda data_source, solution_str, ground_truth, extra_info=None: [], "'data_source'"),
        (lambda prompts, completions, c: [], "'c'"),
        (lambda prompts: [], "would not get the completions"),
        (lambda t, **kwargs: [], "would not get the completions"),
        (lambda prompts, *rest: [], "would not get the completions"),
        (lambda: [], "would not get the completions"),
    ],
)
def test_what_there_is_nothing_for_is_one_line(function: Callable[..., Any], names: str) -> None:
    with pytest.raises(RewardError) as error:
        checked(function, "mine.py:score")
    message = str(error.value)
    assert message.startswith("reward mine.py:score: takes (")
    assert names in message
    assert "\n" not in message
