r"""The reward of prefixes as critic.

A reward that scores text scores a beginning too, and that says something of the whole before the
value head has learned anything:

.. math:: V(s_t) = a_k\, r(x, y_{<t}) + b_k + \mathrm{head}(s_t)

with a and b of t's group k of positions by least squares of the returns. V is a function of the
state, so with λ = 1 it is a baseline and leaves the optimum where it is (Williams 1992); below 1
the policy trusts V, as it trusts any critic. The head learns what the line leaves.

The fit is of earlier rollouts only, so that no advantage has its own noise taken out of it; the
first rollout alone is fitted on itself, 2 numbers a group from all its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.lm.generation import Completion, completion_text
from pipeline.ppo.rollout import ReduceSum

GROUPS = 32
"""Most groups of positions. Neighbouring positions have almost the same line, and in a group every
completion that reaches it gives one point or more: 64 completions are enough for a fit whatever the
response's length, and a checkpoint holds 160 numbers."""
KEPT = 0.8
"""Weight of the former rollouts when one is added: a memory of five, since the policy moves."""
LEAST = 8
"""Weighted tokens of a group below which the line of all groups together is used."""


class PrefixCritic:
    """Lines from prefix scores to returns, fitted over rollouts.

    Attributes:
        sums: ``(K, 5)`` float64 for each group of positions: of 1, x, y, x² and x·y over its
            tokens, x a prefix's score and y a return; all that the least squares need.
    """

    def __init__(self, response_length: int) -> None:
        """``response_length`` positions are divided into at most `GROUPS` groups of like size."""
        self.response_length = response_length
        self.sums = torch.zeros(min(GROUPS, response_length), 5, dtype=torch.float64)

    def lines(self) -> Tensor:
        """``(K, 2)`` float64: a and b of every group.

        Where the scores of a group do not differ, a is 0 and b the mean.
        """
        everything = self.sums.sum(0, keepdim=True)
        n, x, y, xx, xy = torch.where(self.sums[:, :1] < LEAST, everything, self.sums).unbind(1)
        n = n.clamp(min=1e-12)
        mean, target = x / n, y / n
        variance, covariance = xx / n - mean.square(), xy / n - mean * target
        differ = variance > 1e-9 * (xx / n).clamp(min=1e-12)
        slope = torch.where(differ, covariance / torch.where(differ, variance, 1.0), 0.0)
        return torch.stack([slope, target - slope * mean], dim=1)

    def values(
        self, scores: Tensor, returns: Tensor, mask: Tensor, reduce_sum: ReduceSum
    ) -> Tensor:
        """The lines' values of a rollout, which is then taken into the fit.

        Args:
            scores: of every prefix. returns: what the lines are to predict. mask: real tokens. All
                ``(B, T)``. reduce_sum: over processes.
        """
        new = self._sums_of(scores, returns, mask, reduce_sum)
        if not bool(self.sums[:, 0].any()):
            self.sums = new
            return self._at(scores, mask)
        values = self._at(scores, mask)
        self.sums = KEPT * self.sums + new
        return values

    def beyond(self, scores: Tensor) -> Tensor:
        """The last group's line at the scores ``(B,)`` of texts cut off; 0 before any fit.

        To be asked before :meth:`values` takes in the rollout, whose returns this value is in.
        """
        slope, shift = self.lines()[-1].to(scores.device).unbind()
        return (slope * scores.double() + shift).to(scores.dtype)

    def _groups(self, steps: int) -> Tensor:
        positions = torch.arange(steps).clamp(max=self.response_length - 1)
        return positions * len(self.sums) // self.response_length

    def _sums_of(
        self, scores: Tensor, returns: Tensor, mask: Tensor, reduce_sum: ReduceSum
    ) -> Tensor:
        x, y = (torch.where(mask, each, 0.0).double() for each in (scores, returns))
        columns = torch.stack([mask.double(), x, y, x * x, x * y], dim=-1).sum(0)  # (T, 5)
        groups = self._groups(mask.shape[1]).to(mask.device)
        empty = columns.new_zeros(self.sums.shape)
        return reduce_sum(empty.index_add(0, groups, columns)).cpu()

    def _at(self, scores: Tensor, mask: Tensor) -> Tensor:
        slopes, shifts = self.lines()[self._groups(mask.shape[1])].to(scores.device).unbind(1)
        values = slopes * scores.double() + shifts
        return torch.where(mask, values, 0.0).to(scores.dtype)


def prefixes(
    completions: Sequence[Completion], tokenizer: PreTrainedTokenizerBase, every: int
) -> tuple[list[Completion], Tensor]:
    """The states of ``completions`` as completions that have not ended, each once.

    Args:
        every: of each ``every`` positions the first one's text stands for all.

    Returns:
        the prefixes, and ``(B, T)`` each position's index among them (0 beyond the end). The whole
        completion is none: nothing is decided there.
    """
    steps = max(len(c.completion_ids) for c in completions)
    index = torch.zeros(len(completions), steps, dtype=torch.long)
    found: dict[tuple[Any, ...], int] = {}
    made: list[Completion] = []
    for row, completion in enumerate(completions):
        length = len(completion.completion_ids)
        for start in range(0, length, every):
            ids = completion.completion_ids[:start]
            text = completion_text(tokenizer, completion.prompt_ids, ids)
            row_of = id(completion.columns) if completion.columns else None
            place = found.setdefault((completion.prompt, text, ids, row_of), len(made))
            if place == len(made):
                made.append(replace(completion, completion_ids=ids, text=text, ended=False))
            index[row, start : min(start + every, length)] = place
    return made, index
