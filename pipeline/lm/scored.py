"""Completions to scores: the one place where a reward is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipeline.data.forms import one_of_each
from pipeline.data.records import Prompt, columns_of
from pipeline.errors import UserError
from pipeline.lm.generation import Completion
from pipeline.output.console import say
from reward_models import RewardError, Scores, checked
from reward_models.arguments import ENDED, IDS

_ENOUGH = 8
"""Different texts, from which on scores that are all the same are no chance."""
_looked_at: set[str] = set()


def score_completions(reward: Callable[..., Any], completions: Sequence[Completion]) -> Scores:
    """What ``reward`` says of the completions: their texts, with all that is known of them.

    The columns are those of the prompts' rows (None where one's lacks a column that another has),
    ``completion_ids`` and ``ended``.

    Raises:
        RewardError: the reward fails, or says nothing of a completion; of the reward's own kind.
    """
    prompts, texts, columns = _given(completions)
    call = checked(reward)
    scores = call.scores(prompts, texts, **columns)
    _tell_if_all_the_same(call.label, texts, scores.total)
    return scores


def _tell_if_all_the_same(label: str, texts: Sequence[str], scores: Sequence[float]) -> None:
    """Say it where a reward does not tell the completions of its first call apart."""
    if label in _looked_at or len(set(texts)) < _ENOUGH:
        return
    _looked_at.add(label)
    if len(set(scores)) == 1:
        say(
            f"warning: {label}: scored all of the first {len(texts)} completions {scores[0]:g}; as "
            "long as it does not tell them apart, nothing is learned from it"
        )


def applicable_scores(
    reward: Callable[..., Any], completions: Sequence[Completion]
) -> list[float | None]:
    """The same of a reward that need not say something of each: None where it does not apply."""
    prompts, texts, columns = _given(completions)
    return checked(reward).partial_scores(prompts, texts, **columns)[0]


def _given(
    completions: Sequence[Completion],
) -> tuple[list[str], list[str], dict[str, list[Any]]]:
    """Prompts, texts and columns, as a reward takes them."""
    rows = [completion.columns for completion in completions]
    columns: dict[str, list[Any]] = {
        name: [row.get(name) for row in rows] for name in column_names(rows)
    }
    columns[IDS] = [list(completion.completion_ids) for completion in completions]
    columns[ENDED] = [completion.ended for completion in completions]
    prompts = [completion.prompt for completion in completions]
    return prompts, [completion.text for completion in completions], columns


def check_columns(reward: Callable[..., Any], prompts: Iterable[Prompt]) -> None:
    """See, before any work, that the prompts have the columns that ``reward`` asks for.

    Raises:
        UserError: one of them is not there, or is called like what every reward is given.
    """
    try:
        looked_at = one_of_each(prompts) if isinstance(prompts, Sequence) else prompts
        checked(reward).check_columns(column_names(map(columns_of, looked_at)))
    except RewardError as error:
        raise UserError(str(error)) from error


def column_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of all rows' columns, each once."""
    return list(dict.fromkeys(name for row in rows for name in row))
