"""Whether a policy and the reference speak of the same tokens: else there is no KL between them.

KL(π‖π_ref) compares two distributions over next tokens, so token i must be the same text for both,
a prompt the same tokens, and a completion must end by the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from pipeline.data.records import Prompt
from pipeline.lm.generation import Completion, encode_prompt, end_tokens
from pipeline.lm.hardware import autocast
from pipeline.lm.models import base_of
from pipeline.lm.route import hidden_states, lm_head
from pipeline.lm.scoring import TokenBatch, predicting_states

_TOLD_FROM = 5e-5  # of a token's probability
_BATCH = 64


def other_tokens(
    policy: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    reference: nn.Module,
    ref_tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
) -> str | None:
    """Say in one line why there is no KL between the two; None where there is.

    Tokens that only one of them has are no reason: see :func:`beyond_reference`.

    Args:
        prompts: those that are sampled from.
    """
    ours, theirs = _by_id(tokenizer), _by_id(ref_tokenizer)
    other = [i for i in sorted(ours.keys() & theirs.keys()) if ours[i] != theirs[i]]
    if other:
        i = other[0]
        return (
            f"its tokenizer is another than the reference's ({len(other):,} of {len(theirs):,}"
            f" tokens; token {i} is {ours[i]!r}, the reference's {theirs[i]!r})"
        )
    for row, prompt in enumerate(prompts):
        own, ref = encode_prompt(tokenizer, prompt), encode_prompt(ref_tokenizer, prompt)
        if own != ref:
            return (
                f"its tokenizer reads evaluation prompt {row} as other tokens than the reference's"
                f" does ({len(own)} and {len(ref)})"
            )
    ends, ref_ends = sorted(end_tokens(policy)), sorted(end_tokens(reference))
    if ends != ref_ends:
        named = [", ".join(repr(ours.get(i, i)) for i in some) for some in (ends, ref_ends)]
        return (
            f"its completions end by {named[0]}, the reference's by {named[1]} (eos_token_id in"
            " generation_config.json)"
        )
    return None


def same_encoding(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    ref_tokenizer: PreTrainedTokenizerBase,
    ref_texts: Sequence[str],
) -> bool:
    """True where both make the same tokens of their texts, so that perplexities can be compared.

    Args:
        texts, ref_texts: the same demonstrations, conversations as each one's template writes them.
    """
    if tokenizer.eos_token_id != ref_tokenizer.eos_token_id:
        return False
    if not texts:
        return True
    encoded = tokenizer(list(texts), verbose=False)["input_ids"]
    return encoded == ref_tokenizer(list(ref_texts), verbose=False)["input_ids"]


def _by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


def vocabulary(model: nn.Module) -> int:
    """The ids that a model gives a probability to."""
    tokens = torch.zeros((1, 1), dtype=torch.long, device=base_of(model).device)
    with torch.no_grad(), autocast(model):
        return int(lm_head(model)(hidden_states(model, tokens)[0]).shape[-1])


def beyond_reference(
    policy: nn.Module, reference: nn.Module, completions: Sequence[Completion]
) -> tuple[str | None, str | None]:
    """What a policy does with ids that the reference has not, as a resized vocabulary has them.

    Where a completion holds one, KL is infinite: the reference cannot write it. Where none does,
    KL is that of the policy given that none is drawn (`pipeline.lm.paths.completion_kl`), and the
    share of probability that this leaves out is measured along the completions.

    Returns:
        why there is no KL, or None; and what is to be told beside it, or None.
    """
    common, own = vocabulary(reference), vocabulary(policy)
    if own <= common:
        return None, None
    drawn = sum(max(c.completion_ids) >= common for c in completions)
    if drawn:
        return (
            f"{drawn:,} of its {len(completions):,} completions hold tokens that the reference has"
            f" not (ids from {common} up to {own - 1}), so KL is infinite"
        ), None
    share = mean_mass(policy, completions, common)
    return None, (
        f"its vocabulary has {own - common} ids more than the reference's; none was drawn, they"
        f" have {_percent(share)} of a token's probability, and KL is over the common ids"
    )


def _percent(share: float) -> str:
    return f"{share:.2%}" if share >= _TOLD_FROM else "less than 0.01%"


@torch.no_grad()
def mean_mass(policy: nn.Module, completions: Sequence[Completion], common: int) -> float:
    """The mean probability, a completion token, of the ids from ``common`` on."""
    device, head = base_of(policy).device, lm_head(policy)
    total, count = 0.0, 0
    for start in range(0, len(completions), _BATCH):
        batch = TokenBatch.collate(completions[start : start + _BATCH], 0, device)
        with autocast(policy):
            states = predicting_states(hidden_states(policy, batch.sequences), batch)[batch.mask]
            for part in states.split(_BATCH):
                total += float(head(part).float().softmax(-1)[:, common:].double().sum())
        count += int(batch.mask.sum())
    return total / count
