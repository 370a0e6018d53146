"""The interface of what draws completions: tokens of prompts in, tokens of completions out.

The trainer computes the log-probability of every token again, with the weights that it trains, so
no engine needs to know anything of PPO. What an engine says of its own log-probabilities is used to
measure how far its distribution μ is from the policy's, and to correct for it
(``PPOConfig.importance_cap``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from common.words import first_line
from pipeline.errors import UserError

_ABOVE_ZERO = 1e-3  # log-probabilities that rounding may leave


@dataclass(frozen=True)
class Request:
    """What is to be drawn: a completion after each of B prompts, this process's part of a rollout.

    Attributes:
        prompt_ids: the prompts' tokens, ready to be continued.
        max_new_tokens: longest completion, EOS included.
        temperature: divides the logits; nothing else (top-k, penalties) may change them.
        stop: tokens that end a completion; the one that does is its last token.
        seed: this draw's, the same on all processes.
        first: number of the first row among all processes' rows, so that ``(seed, first + i)`` is
            a seed of row i's own.
        draws: ``(B, max_new_tokens)`` numbers in [0, 1), one a token, on the CPU; by them rows are
            the same however they are batched. An engine with seeds of its own leaves them.
        step: optimizer steps that the policy has taken.
    """

    prompt_ids: Sequence[tuple[int, ...]]
    max_new_tokens: int
    temperature: float
    stop: frozenset[int]
    seed: int
    first: int
    draws: Tensor
    step: int


@dataclass(frozen=True)
class Drawn:
    """B completions.

    Attributes:
        tokens: of each, at least one; what is after the first stop token is cut off.
        logps: the engine's log-probability of each of them at the request's temperature, natural
            logarithm; ``None`` where it does not tell, and nothing is corrected.
    """

    tokens: Sequence[Sequence[int]]
    logps: Sequence[Sequence[float]] | None = None


Sampler = Callable[[Request], "Drawn | Sequence[Sequence[int]]"]


@runtime_checkable
class Engine(Protocol):
    """A sampler with a copy of the policy's weights.

    One that draws elsewhere, from weights that an update does not touch, says so by an attribute
    ``beside = True``: ``PPOConfig.overlap`` then calls it in a thread of its own, one call at a
    time, and never beside :meth:`load`.
    """

    def begin(self, policy: nn.Module, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
        """Before any work: refuse in one line what cannot draw from this policy.

        Called again where steps are counted anew, or a checkpoint's weights are put back: what was
        made of a step's weights before is not to be used again.

        Args:
            longest: tokens of the longest sequence, prompt and completion.
        """
        ...

    def load(self, policy: nn.Module, step: int) -> None:
        """Take over the policy's weights, which are there when this returns.

        Called by the first process alone, before it asks for what a step's weights draw.
        """
        ...

    def __call__(self, request: Request) -> Drawn:
        """Draw completions from the weights of the last :meth:`load`."""
        ...


class Called:
    """A plain callable as an engine: what it draws from is its own affair."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def begin(self, policy: nn.Module, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
        """Nothing to check."""

    def load(self, policy: nn.Module, step: int) -> None:
        """Nothing to load."""

    def __call__(self, request: Request) -> Drawn:
        """Call it, and take plain lists of tokens too."""
        drawn = self._sampler(request)
        return drawn if isinstance(drawn, Drawn) else Drawn(drawn)


def checked(drawn: Drawn, request: Request, vocabulary: int) -> Drawn:
    """What an engine drew, as plain numbers, if that can be completions of the prompts.

    A row of a tensor would do for most of what comes, but a tensor is equal to a stop token and yet
    not found among them.

    Raises:
        UserError: it cannot; the line names the completion.
    """
    try:
        tokens = [[index(token) for token in _listed(row)] for row in drawn.tokens]
        logps = drawn.logps
        if logps is not None:
            logps = [[float(logp) for logp in _listed(row)] for row in logps]
    except (TypeError, ValueError) as error:
        raise UserError(
            "sampler: what it returns are no lists of token numbers, one for each prompt"
            f" ({first_line(error)}); return such, or Drawn(tokens, logps)"
        ) from error
    rows = len(request.prompt_ids)
    if len(tokens) != rows:
        raise UserError(
            f"sampler: {len(tokens)} completions of {rows} prompts; return one for each"
        )
    if logps is not None and len(logps) != rows:
        raise UserError(
            f"sampler: log-probabilities of {len(logps)} completions where there are {rows}"
        )
    for row, ids in enumerate(tokens):
        problem = _problem(ids, request.max_new_tokens, vocabulary)
        if problem is None and logps is not None:
            problem = _problem_of_logps(logps[row], len(ids))
        if problem is not None:
            raise UserError(f"sampler: completion {row} {problem}")
    return Drawn(tokens, logps)


def _listed(row: Any) -> Any:
    """A row of a tensor or an array as a list."""
    return row.tolist() if hasattr(row, "tolist") else row


def _problem(tokens: Sequence[int], most: int, vocabulary: int) -> str | None:
    if not 0 < len(tokens) <= most:
        return f"has {len(tokens)} tokens; return 1 to {most}, the stop token included"
    wrong = next((t for t in tokens if not 0 <= t < vocabulary), None)
    if wrong is not None:
        return f"has token {wrong}, but the model's vocabulary is 0 to {vocabulary - 1}"
    return None


def _problem_of_logps(logps: Sequence[float], tokens: int) -> str | None:
    if len(logps) != tokens:
        return f"has {tokens} tokens and {len(logps)} log-probabilities"
    wrong = next((x for x in logps if not (math.isfinite(x) and x <= _ABOVE_ZERO)), None)
    return None if wrong is None else f"has a log-probability of {wrong}"
