"""Completions to scores: the one place where a reward is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipeline.data.records import Prompt, columns_of
from pipeline.errors import UserError
from pipeline.lm.generation import Completion
from reward_models import RewardCall, RewardError, Scores, checked
from reward_models.arguments import ENDED, IDS


def score_completions(reward: Callable[..., Any], completions: Sequence[Completion]) -> Scores:
    """What ``reward`` says of the completions: their texts, with all that is known of them.

    The columns are those of the prompts' rows (None where one's lacks a column that another has),
    ``completion_ids`` and ``ended``.

    Raises:
        RewardError: the reward fails, or says nothing of a completion; of the reward's own kind.
    """
    rows = [completion.columns for completion in completions]
    columns: dict[str, list[Any]] = {
        name: [row.get(name) for row in rows] for name in column_names(rows)
    }
    columns[IDS] = [list(completion.completion_ids) for completion in completions]
    columns[ENDED] = [completion.ended for completion in completions]
    call = reward if isinstance(reward, RewardCall) else checked(reward)
    prompts = [completion.prompt for completion in completions]
    return call.scores(prompts, [completion.text for completion in completions], **columns)


def check_columns(reward: Callable[..., Any], prompts: Iterable[Prompt]) -> None:
    """See, before any work, that the prompts have the columns that ``reward`` asks for.

    Raises:
        UserError: one of them is not there, or is called like what every reward is given.
    """
    try:
        checked(reward).check_columns(column_names(map(columns_of, prompts)))
    except RewardError as error:
        raise UserError(str(error)) from error


def column_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of all rows' columns, each once."""
    return list(dict.fromkeys(name for row in rows for name in row))
