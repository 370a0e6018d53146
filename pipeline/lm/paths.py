"""What language models say along whole completions: KL, log-ratios, log-likelihoods.

In the comparison a policy and its reference often differ in their upper layers only, because the
lower ones were frozen. Layers that are equal to the bit run once for both (:class:`Pair`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.errors import UserError
from pipeline.lm.generation import Completion
from pipeline.lm.hardware import autocast
from pipeline.lm.models import base_of, decoder_layers
from pipeline.lm.route import decoder_of, hidden_states, lm_head
from pipeline.lm.scoring import (
    TokenBatch,
    by_length,
    logits_chunk,
    predicting_states,
    token_logps,
    token_statistics,
)
from pipeline.lm.trunk import SplitDecoder

# What two configs may differ in without another computation.
_NAMES = {"_name_or_path", "name_or_path", "transformers_version", "architectures"}


@dataclass(frozen=True)
class PathStatistics:
    """What two models say of each completion; nats a completion.

    Attributes:
        kl: the exact KL between the next-token distributions, summed along the path.
        logratio: log of the writer's probability of the completion over the other's.
    """

    kl: list[float]
    logratio: list[float]


def shared_layers(first: PreTrainedModel, second: PreTrainedModel) -> int:
    """How many decoder layers, from the lowest, compute the same in both; 0 where not even
    what is below them is equal."""
    if first is second or type(first) is not type(second) or _settings(first) != _settings(second):
        return 0
    if _dtypes(first) != _dtypes(second):  # autocast may differ
        return 0
    try:
        layers = decoder_layers(first), decoder_layers(second)
    except UserError:
        return 0
    below = [
        [
            module
            for name, module in decoder_of(model).named_children()
            if module is not own and "norm" not in type(module).__name__.lower()
        ]
        for model, own in zip((first, second), layers, strict=True)
    ]
    if not all(_equal(one, other) for one, other in zip(*below, strict=True)):
        return 0
    equal = [_equal(one, other) for one, other in zip(*layers, strict=True)]
    return equal.index(False) if False in equal else len(equal) - 1


def _settings(model: PreTrainedModel) -> dict[str, Any]:
    return {k: v for k, v in model.config.to_dict().items() if k not in _NAMES}


def _dtypes(model: PreTrainedModel) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


def _equal(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(
        value.dtype == theirs[name].dtype and torch.equal(value, theirs[name])
        for name, value in ours.items()
    )


class Pair:
    """Two models on the same tokens; lower layers that are equal in both run once."""

    def __init__(self, first: nn.Module, second: nn.Module, longest: int) -> None:
        """``longest`` is the longest sequence to expect, in tokens."""
        self.models = first, second
        bases = base_of(first), base_of(second)
        plain = (first, second) == bases  # adapters act in layers that look alike
        cut = shared_layers(*bases) if plain else 0
        halves = [SplitDecoder.build(base, cut, longest) for base in bases] if cut else []
        self._halves = [half for half in halves if half is not None]

    def hidden_states(self, sequences: Tensor) -> tuple[Tensor, Tensor]:
        """Both models' final hidden states ``(B, L, d)`` of ``(B, L)`` tokens."""
        first, second = self.models
        if len(self._halves) < 2:
            with autocast(first):
                states = hidden_states(first, sequences)
            with autocast(second):
                return states, hidden_states(second, sequences)
        with autocast(first):
            lower = self._halves[0].lower(sequences)
            return self._halves[0].upper(lower), self._halves[1].upper(lower)


@torch.no_grad()
def path_statistics(
    writer: nn.Module,
    other: nn.Module,
    completions: Sequence[Completion],
    *,
    batch_size: int = 64,
    temperature: float = 1.0,
    label: str | None = None,
) -> PathStatistics:
    """Exact KL(writer‖other) along each path, and the log-ratio of the path itself.

    Both sum over completion tokens, EOS included. Over y ~ writer each has the mean
    KL(writer‖other); the first is far less noisy.

    Args:
        completions: sampled from ``writer``.
    """
    lengths = [len(c.prompt_ids) + len(c.completion_ids) for c in completions]
    device, pair = base_of(writer).device, Pair(writer, other, max(lengths, default=0))
    heads, chunk = (lm_head(writer), lm_head(other)), logits_chunk(device)
    totals = torch.zeros(2, len(completions), dtype=torch.float64)
    for index in by_length(lengths, batch_size, label):
        batch = TokenBatch.collate([completions[i] for i in index], 0, device)
        states = pair.hidden_states(batch.sequences)
        with autocast(writer):
            ours, theirs = (predicting_states(s, batch)[batch.mask] for s in states)
            targets = batch.completion_ids[batch.mask]
            found = token_statistics(ours, theirs, *heads, targets, temperature, chunk)
        totals[0, torch.tensor(index)] = _sums(found.exact_kl, batch)
        totals[1, torch.tensor(index)] = _sums(found.logps - found.ref_logps, batch)
    return PathStatistics(*totals.tolist())


def completion_kl(
    policy: nn.Module,
    reference: nn.Module,
    completions: Sequence[Completion],
    *,
    batch_size: int = 64,
    temperature: float = 1.0,
    label: str | None = None,
) -> list[float]:
    """The one definition of KL: exact KL(π‖π_ref) along each sampled path, nats per completion.

    The sum over completion tokens (EOS included) of the exact KL between the two next-token
    distributions. Its mean over y ~ π is KL(π‖π_ref) without the log-ratio's noise.

    Args:
        completions: sampled from ``policy``.
    """
    return path_statistics(
        policy, reference, completions, batch_size=batch_size, temperature=temperature, label=label
    ).kl


@torch.no_grad()
def completion_nll(
    model: nn.Module,
    completions: Sequence[Completion],
    *,
    batch_size: int = 64,
    label: str | None = None,
) -> list[float]:
    """−log p(completion | prompt) of each under ``model``, in nats; 0 where there are no tokens."""
    filled = [i for i, c in enumerate(completions) if c.completion_ids]
    lengths = [len(completions[i].prompt_ids) + len(completions[i].completion_ids) for i in filled]
    device, head = base_of(model).device, lm_head(model)
    totals = torch.zeros(len(completions), dtype=torch.float64)
    for chosen in by_length(lengths, batch_size, label):
        index = [filled[i] for i in chosen]
        batch = TokenBatch.collate([completions[i] for i in index], 0, device)
        with autocast(model):
            hidden = predicting_states(hidden_states(model, batch.sequences), batch)[batch.mask]
            targets = batch.completion_ids[batch.mask]
            logps = token_logps(hidden, head, targets, 1.0, logits_chunk(device))
        totals[torch.tensor(index)] = -_sums(logps, batch)
    return totals.tolist()


def _sums(per_token: Tensor, batch: TokenBatch) -> Tensor:
    """``(N,)`` numbers of the batch's tokens, summed over each completion: ``(B,)`` float64."""
    grid = torch.zeros(batch.mask.shape, device=per_token.device)
    grid[batch.mask] = per_token.float()
    return grid.sum(1).double().cpu()
