"""What a completion is worth beyond the length limit that cut it off, by the critic.

A limit of the rollout is no end of the episode: it is a truncation, not a termination (Pardo et al.
2018, "Time Limits in Reinforcement Learning", arXiv 1712.00378), and V of the state in which the
text was cut off stands for the rest of its return.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.lm.scoring import TokenBatch
from pipeline.ppo.actor_critic import ActorCritic


@torch.no_grad()
def beyond_the_end(
    model: ActorCritic, batch: TokenBatch, trunk: Tensor | None, cut: Tensor, rows: int
) -> tuple[Tensor, Tensor]:
    """V by the value head, and the exact KL, in the state after the last token of rows cut off.

    They go on by a token that is never looked at: what is read is the state that predicts it.

    Args:
        trunk: the rollout's activations. cut: indices of the rows, the shortest first.
        rows: completions at once.

    Returns:
        two ``(B,)`` columns, 0 in the other rows.
    """
    values, kl = torch.zeros(2, len(batch.mask), device=batch.mask.device)
    for index in cut.split(rows):
        part = batch.rows(index)
        width = part.sequences.shape[1]
        one = torch.zeros_like(part.completion_ids[:, :1])
        text = TokenBatch(
            F.pad(part.sequences, (0, 1)),
            part.prompt_lengths + part.mask.sum(1),
            one,
            torch.ones_like(one, dtype=torch.bool),
        )
        states = None
        if trunk is not None:
            states = trunk[index.to(trunk.device), :width].to(part.mask.device)
            states = F.pad(states, (0, 0, 0, 1))
        record = model.token_record(text, states)
        values[index], kl[index] = record.values[:, 0], record.exact_kl[:, 0]
    return values, kl
