"""What a reward function's parameters get: what their names say, or one line and nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from reward_models import ChatPrompt, RewardError, checked
from reward_models.combined import Part, combined

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


def openrlhf(queries: Any, prompts: Any, labels: Any) -> list[float]:
    return scored(queries)


def trl_with_a_trainer(completions: Any, trainer_state: Any, **kwargs: Any) -> list[float]:
    return scored(completions)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (trl_with_a_trainer, "'trainer_state' is what only TRL's trainers have"),
        (openrlhf, "would not get the completions"),
        (lambda texts, labels: [], "would not get the completions"),
        (lambda prompts, references: [], "would not get the completions"),
        (lambda prompts, samples: [], "would not get the completions"),
        (lambda text: [], "would not get the completions"),
        (lambda data_source, solution_str, extra_info=None: [], "would not get the completions"),
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


COLUMNS = {"solution": ["b"], "level": [3], "completion_ids": [[7, 2]], "ended": [True]}


def accuracy(completions: Any, solution: Any, log_extra: Any = None, **kwargs: Any) -> list[float]:
    """As TRL's own."""
    assert (solution, log_extra) == (["b"], None)
    left = {"prompts": [PROMPT]} | {k: v for k, v in COLUMNS.items() if k != "solution"}
    assert kwargs == left
    return scored(completions)


def of_tokens(completion_ids: Any, **kwargs: Any) -> list[float]:
    """As TRL's `get_repetition_penalty_reward`."""
    assert completion_ids == [[7, 2]]
    return scored(kwargs["completions"])


def tokens_alone(completion_ids: Any, ended: Any) -> list[float]:
    assert ended == [True]
    return [float(len(ids)) for ids in completion_ids]


def with_default(completions: Any, level: Any = None, other: Any = 4) -> list[float]:
    assert (level, other) == ([3], 4)
    return scored(completions)


def of_a_column_by_position(completions: Any, level: Any, prompts: Any, /) -> list[float]:
    assert (level, prompts) == ([3], [PROMPT])
    return scored(completions)


def after_a_default(completions: Any, weight: Any = 2.0, prompts: Any = None, /) -> list[float]:
    assert (weight, prompts) == (2.0, [PROMPT])
    return scored(completions)


def graded(completions: Any, weight: float, solution: Any) -> list[float]:
    assert (weight, solution) == (0.5, ["b"])
    return scored(completions)


class Judge:
    """A service's client, say."""

    def judge(self, level: Any, completions: Any) -> list[float]:
        assert level == [3]
        return scored(completions)

    @classmethod
    def of_class(cls, solution: Any, completion: Any) -> list[float]:
        assert solution == ["b"]
        return scored(completion)


def swapping(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that shows the parameters of what it wraps and takes them in another order."""

    @functools.wraps(function)
    def call(prompts: Any, completions: Any) -> Any:
        return function(completions, prompts)

    return call


def passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


@pytest.mark.parametrize(
    ("function", "score"),
    [
        (accuracy, 2.0),
        (of_tokens, 2.0),
        (tokens_alone, 2.0),
        (with_default, 2.0),
        (of_a_column_by_position, 2.0),
        (after_a_default, 2.0),
        (functools.partial(graded, weight=0.5), 2.0),
        (functools.partial(lambda weight, completions, level: scored(completions), 1.0), 2.0),
        (Judge().judge, 2.0),
        (Judge.of_class, 2.0),
        (swapping(swapped), 2.0),
        (passing_on(swapped), 2.0),
        (lambda *texts: scored(texts[1]), 2.0),
        (lambda **kwargs: scored(kwargs["completions"]), 2.0),
    ],
)
def test_columns_arrive_by_name(function: Callable[..., Any], score: float) -> None:
    reward = checked(function)
    reward.check_columns({"solution", "level"})
    assert reward([PROMPT], [COMPLETION], **COLUMNS) == [score]


@pytest.mark.parametrize(
    ("function", "columns", "says"),
    [
        (
            lambda completions, solution, **kwargs: [],
            {"level"},
            "nothing for 'solution'; there are",
        ),
        (lambda prompts, completions, *, level: [], (), "nothing for 'level'"),
        (lambda prompts, completions, c: [], (), "nothing for 'c'"),
        (lambda completions, ended: [], {"ended"}, "'ended' is both"),
        (lambda completions, **kwargs: [], {"completion_ids"}, "'completion_ids' is both"),
        (lambda completions, prompts: [], {"prompts"}, "'prompts' is both"),
        (lambda prompts, outputs: [], {"outputs"}, "'outputs' may be"),
        (lambda x, y: [], {"y"}, "'y' may be"),
        (lambda samples, **kwargs: [], {"samples"}, "'samples' may be"),
        (
            combined([Part("a", checked(lambda completions, level: []))]),
            {"solution"},
            "for 'level'",
        ),
    ],
)
def test_columns_that_do_not_fit_are_refused_before_any_call(
    function: Callable[..., Any], columns: Any, says: str
) -> None:
    with pytest.raises(RewardError, match=says) as error:
        checked(function).check_columns(columns)
    assert "\n" not in str(error.value)


def test_what_is_not_there_at_a_call_is_one_line_and_lists_what_is() -> None:
    reward = checked(lambda completions, solution: [1.0], "mine.py:score")
    assert reward.needed_columns() == {"solution"}
    with pytest.raises(RewardError) as error:
        reward([PROMPT], [COMPLETION], level=[1], ended=[True])
    assert str(error.value) == (
        "reward mine.py:score: takes (completions, solution), and there is nothing for 'solution'; "
        "there are prompts, completions, ended, level: give it a default, or one of these names"
    )


def test_a_column_called_like_a_list_is_meant_beside_the_plain_name() -> None:
    def score(completions: Any, question: Any, **kwargs: Any) -> list[float]:
        return [float(completions == [COMPLETION] and question == ["of the row"])]

    assert checked(score)([PROMPT], [COMPLETION], question=["of the row"]) == [1.0]


def test_a_function_for_messages_gets_them() -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "sing"}]
    prompts = [ChatPrompt("as the policy writes it", messages), PROMPT]
    seen: list[Any] = []

    def annotated(prompts: Any, completions: list[list[dict[str, str]]]) -> list[float]:
        seen.append((prompts, completions))
        return [1.0, 2.0]

    def plain(prompts: Any, completions: Any) -> list[float]:
        seen.append((prompts, completions))
        return [1.0, 2.0]

    for reward in (checked(annotated), checked(plain, messages=True)):
        assert reward(prompts, [" la", " sings"]) == [1.0, 2.0]
        assert seen.pop() == (
            [messages, [{"role": "user", "content": PROMPT}]],
            [[{"role": "assistant", "content": text}] for text in (" la", " sings")],
        )
    for reward in (checked(annotated, messages=False), checked(plain)):
        assert reward(prompts, [" la", " sings"]) == [1.0, 2.0]
        assert seen.pop() == (prompts, [" la", " sings"])


def test_a_function_for_messages_that_gets_text_is_told_of_them() -> None:
    def trl_of_messages(completions: Any, **kwargs: Any) -> list[float]:
        return [float(len(completion[0]["content"])) for completion in completions]

    with pytest.raises(RewardError, match="format: chat"):
        checked(trl_of_messages)([PROMPT], [COMPLETION])
    assert checked(trl_of_messages, messages=True)([PROMPT], [COMPLETION]) == [6.0]


def test_a_class_is_no_function() -> None:
    with pytest.raises(RewardError, match="reward Scorer: is a class; make an object of it"):
        checked(Scorer)
