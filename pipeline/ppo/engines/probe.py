"""Whether two copies of a policy are one: the same few sequences, scored by both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pipeline.lm.generation import Completion, end_tokens, sample_tokens
from pipeline.lm.hardware import autocast
from pipeline.lm.models import base_of
from pipeline.lm.route import hidden_states, lm_head
from pipeline.lm.scoring import TokenBatch, logits_chunk, predicting_states, token_logps

_SEQUENCES, _TOKENS = 4, 12
# A change of the policy is told from rounding when the slope's standard error is below this.
_CERTAIN = 0.2


def sequences(
    policy: nn.Module, tokenizer: PreTrainedTokenizerBase, longest: int
) -> list[tuple[int, ...]]:
    """A few sequences that the policy draws, each from a first token that begins no other."""
    known = base_of(policy).config.get_text_config().vocab_size
    first = [(known * k // _SEQUENCES,) for k in range(_SEQUENCES)]
    steps = max(1, min(_TOKENS, longest - 1))
    drawn = sample_tokens(
        policy, tokenizer, first, max_new_tokens=steps, temperature=1.0, batch_size=len(first),
        seed=0,
    )  # fmt: skip
    stop = end_tokens(policy)
    made = []
    for start, row in zip(first, drawn, strict=True):
        end = next((i + 1 for i, token in enumerate(row) if token in stop), len(row))
        made.append((*start, *row[:end]))
    return made


@torch.no_grad()
def scored(policy: nn.Module, rows: Sequence[Sequence[int]], temperature: float = 1.0) -> Tensor:
    """log π of every token but the first of each row, one after the other, ``(N,)`` on the CPU."""
    documents = [Completion("", tuple(row[:1]), tuple(row[1:]), "", True) for row in rows]
    device, head = base_of(policy).device, lm_head(policy)
    batch = TokenBatch.collate(documents, 0, device)
    was_training = policy.training
    policy.eval()
    try:
        with autocast(policy):
            hidden = predicting_states(hidden_states(policy, batch.sequences), batch)[batch.mask]
            targets = batch.completion_ids[batch.mask]
            chunk = logits_chunk(device)
            return token_logps(hidden, head, targets, temperature, chunk).double().cpu()
    finally:
        policy.train(was_training)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Mean of \\|log π − log μ\\|, nats a token."""
    return float((ours - theirs).abs().mean())


@dataclass
class Watch:
    """Notices a copy that stays behind while the policy learns.

    Between two looks the trainer's log-probabilities move by Δ, the copy's by Δ' = sΔ + noise: s is
    1 where it follows and 0 where it keeps old weights. Least squares gives
    s = ⟨Δ', Δ⟩ / ⟨Δ, Δ⟩ with a standard error of √2 σ / ‖Δ‖, σ the deviation of what rounding makes
    the two differ by. While the policy has moved too little to tell, the first of the two looks
    stays where it is, so that a copy cannot stay behind unseen by small steps.
    """

    ours: Tensor
    theirs: Tensor

    def behind(self, ours: Tensor, theirs: Tensor) -> bool:
        """Whether the copy has kept old weights; a later look is taken to be the new first one."""
        moved, followed = ours - self.ours, theirs - self.theirs
        size = float(moved.square().sum())
        noise = float((self.ours - self.theirs).square().mean())
        if size == 0.0 or (2 * noise / size) ** 0.5 > _CERTAIN:
            return False
        if float(followed @ moved) / size < 0.5:
            return True
        self.ours, self.theirs = ours, theirs
        return False
