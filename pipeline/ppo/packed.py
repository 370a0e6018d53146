"""Holding packed rows against the same rows padded, before any work.

What keeps the rows of a pack apart is the attention's, and no class name promises it: a recurrent
layer carries its state over the border, a table of positions counts on. So two rows are tried on
the model at hand, through all that PPO asks of it: policy, reference, value head, kept trunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.words import first_line
from pipeline.errors import UserError
from pipeline.lm.generation import Completion
from pipeline.lm.hardware import autocast
from pipeline.lm.models import base_of
from pipeline.lm.route import FAILS, hidden_states, lm_head
from pipeline.lm.scoring import TokenBatch
from pipeline.output.console import say
from pipeline.ppo.actor_critic import ActorCritic
from pipeline.ppo.config import PPOConfig

_LENGTHS = (48, 16)  # tokens of the two rows, half of them the prompt's
_LOWEST, _HIGHEST = 1, 1000  # token ids that rows are made of
# In standard deviations of a token's logits, as for the plain model (pipeline/lm/check.py): what
# other shapes may change by rounding, and what another row may.
_SAME = {torch.float32: 1e-3, torch.bfloat16: 0.18}
_UNSEEN = {torch.float32: 1e-4, torch.bfloat16: 5e-3}
_LARGE_MASK = 2**28  # bytes


@torch.no_grad()
def check_packing(model: ActorCritic, longest: int) -> None:
    """Make sure that ``model`` computes packed rows as it computes them padded.

    Args:
        longest: tokens of the longest sequence to expect.

    Raises:
        UserError: it does not; the message says in what.
    """
    base = base_of(model.policy)
    problem = None
    try:
        with autocast(model.policy):
            problem = _problem(model, longest)
    except FAILS as error:
        problem = f"it fails on them ({first_line(error)})"
    finally:
        model.packing = True
    if problem is not None:
        raise UserError(
            f"packing: {type(base).__name__} does not take rows without padding between them:"
            f" {problem}; set packing to false"
        )


def _problem(model: ActorCritic, longest: int) -> str | None:
    base = base_of(model.policy)
    halves = (torch.bfloat16, torch.float16)
    mixed = any(p.dtype in halves for p in base.parameters())
    dtype = torch.bfloat16 if mixed else torch.float32
    highest = min(_HIGHEST, base.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    lengths = [max(2, min(length, longest)) for length in _LENGTHS]
    rows = [
        torch.randint(_LOWEST, highest, (length,), generator=generator).tolist()
        for length in lengths
    ]
    others = [[_LOWEST + (token - _LOWEST + 1) % (highest - _LOWEST) for token in rows[0]], rows[1]]
    batch, changed = (_batch(each, base.device) for each in (rows, others))
    states = hidden_states(model.policy, batch.sequences)[0]
    spread = float(lm_head(model.policy)(states).float().std(-1).mean())
    plain = _numbers(model, batch, packed=False)
    packed = _numbers(model, batch, packed=True)
    mask = batch.mask.expand_as(packed)
    seen = _apart(packed[:, 1:], _numbers(model, changed, packed=True)[:, 1:], mask[:, 1:])
    if seen > _UNSEEN[dtype] * spread:
        return f"a row sees the one before it (by {seen:.2g} nats)"
    apart = _apart(packed, plain, mask)
    if apart > _SAME[dtype] * spread:
        return f"their log-probabilities are others (by {apart:.2g} nats)"
    return None


def _batch(rows: Sequence[Sequence[int]], device: torch.device) -> TokenBatch:
    halves = [(row[: len(row) // 2], row[len(row) // 2 :]) for row in rows]
    completions = [Completion("", tuple(x), tuple(y), "", True) for x, y in halves]
    return TokenBatch.collate(completions, 0, device)


def _numbers(model: ActorCritic, batch: TokenBatch, packed: bool) -> Tensor:
    """Log-probabilities by policy and reference, ``(2, B, T)``."""
    model.packing = packed
    record = model.token_record(batch, model.trunk(batch.sequences, batch))
    return torch.stack([record.logps, record.ref_logps])


def _apart(first: Tensor, second: Tensor, mask: Tensor) -> float:
    return float((first - second)[mask].abs().max())


def tell_cost(model: ActorCritic, args: PPOConfig, longest: int) -> None:
    """Warn where the mask that keeps the rows apart is large: it is quadratic in the whole pack."""
    attention = str(base_of(model.policy).config._attn_implementation)
    tokens = args.microbatch_tokens or args.per_device_train_batch_size * longest
    if attention in ("sdpa", "eager") and tokens**2 > _LARGE_MASK:
        say(
            f"warning: packing: {attention} attention keeps rows apart by a mask of {tokens:,} ×"
            f" {tokens:,} tokens ({tokens**2 / 2**30:.1f} GiB) and computes all of it; take flash"
            " attention, a smaller microbatch_tokens, or set packing to false"
        )
