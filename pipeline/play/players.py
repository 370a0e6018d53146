"""Policies in memory, and what each makes of one prompt: completions, rewards, gold and KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.compare.alike import beyond_reference, other_tokens
from pipeline.compare.checked import check_loaded
from pipeline.compare.checkpoints import load_policy
from pipeline.data.records import Prompt
from pipeline.lm.generation import Completion, sample
from pipeline.lm.hardware import autocast
from pipeline.lm.models import base_of
from pipeline.lm.positions import check_prompts
from pipeline.lm.route import hidden_states, lm_head
from pipeline.lm.scored import score_completions
from pipeline.lm.scoring import TokenBatch, predicting_states, token_statistics
from reward_models import RewardFunction


@dataclass(frozen=True)
class Player:
    """A policy in memory under the name that it is shown by."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Settings:
    """How prompts are continued. temperature: divides both models' logits, also in KL."""

    samples: int
    max_new_tokens: int
    batch_size: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Played:
    """One completion and what is said of it.

    Attributes:
        reward, gold: of the whole completion. parts: of a reward made of several.
        kl: KL(π‖π_ref) along the path, nats; None where there is none. note: why.
        log_ratio: log π(y|x) − log π_ref(y|x), nats. tokens: the same of each token, with its text.
    """

    policy: str
    completion: Completion
    reward: float
    parts: dict[str, float | None]
    gold: float
    kl: float | None
    log_ratio: float | None
    tokens: list[tuple[str, float]]
    note: str | None

    def to_json(self) -> dict[str, Any]:
        """As one line of ``--json``."""
        return {
            "policy": self.policy,
            "prompt": self.completion.prompt,
            "completion": self.completion.text,
            "tokens": len(self.completion.completion_ids),
            "ended": self.completion.ended,
            "reward": self.reward,
            "parts": self.parts,
            "gold": self.gold,
            "kl": self.kl,
            "log_ratio": self.log_ratio,
            "log_ratios": [[text, value] for text, value in self.tokens],
            "note": self.note,
        }


def load_player(
    name: str, source: str, place: str, dtype: torch.dtype, max_new_tokens: int, trust: bool
) -> Player:
    """Load a policy once and hold it against its plain model.

    Raises:
        UserError: it cannot be loaded, or does not sample what it scores.
    """
    model, tokenizer = load_policy(source, place, dtype, trust)
    check_loaded(model, tokenizer, f"{place}: {source}", [], [], max_new_tokens)
    return Player(name, model, tokenizer)


def play(
    player: Player,
    reference: Player | None,
    prompt: Prompt,
    settings: Settings,
    proxy: RewardFunction,
    gold: RewardFunction,
) -> list[Played]:
    """The policy's completions of one prompt.

    Args:
        reference: π_ref; None leaves KL out.
        proxy, gold: score completions; the same object scores once.

    Raises:
        UserError: the prompt does not fit in the model, or a reward fails.
    """
    model, tokenizer = player.model, player.tokenizer
    check_prompts(model, tokenizer, [prompt], settings.max_new_tokens, "the")
    completions = sample(
        model,
        tokenizer,
        [prompt],
        samples_per_prompt=settings.samples,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    scores = score_completions(proxy, completions)
    judged = scores.total if gold is proxy else score_completions(gold, completions).total
    note = _why_no_kl(player, reference, prompt, completions)
    made = []
    for i, completion in enumerate(completions):
        kl, ratios = None, []
        if note is None and reference is not None:
            kl, ratios = _against(model, reference.model, completion, settings.temperature)
        texts = [tokenizer.decode([token]) for token in completion.completion_ids]
        made.append(
            Played(
                policy=player.name,
                completion=completion,
                reward=scores.total[i],
                parts={name: values[i] for name, values in scores.parts.items()},
                gold=judged[i],
                kl=kl,
                log_ratio=sum(ratios) if kl is not None else None,
                tokens=list(zip(map(str, texts), ratios, strict=bool(ratios))),
                note=note,
            )
        )
    return made


def _why_no_kl(
    player: Player,
    reference: Player | None,
    prompt: Prompt,
    completions: Sequence[Completion],
) -> str | None:
    if reference is None:
        return "there is no reference (sft/model)"
    if player.model is reference.model:
        return None
    models = (player.model, player.tokenizer, reference.model, reference.tokenizer)
    return (
        other_tokens(*models, [prompt])
        or beyond_reference(player.model, reference.model, completions)[0]
    )


@torch.no_grad()
def _against(
    policy: nn.Module, reference: nn.Module, completion: Completion, temperature: float
) -> tuple[float, list[float]]:
    """KL along the completion's path in nats, and the log-ratio of each of its tokens."""
    device = base_of(policy).device
    batch = TokenBatch.collate([completion], 0, device)

    def predicting(model: nn.Module) -> Tensor:
        with autocast(model):
            return predicting_states(hidden_states(model, batch.sequences), batch)[0]

    states, ref_states = predicting(policy), predicting(reference)
    with autocast(policy):
        told = token_statistics(
            states,
            ref_states,
            lm_head(policy),
            lm_head(reference),
            batch.completion_ids[0],
            temperature,
            len(states),
        )
    return float(told.exact_kl.double().sum()), (told.logps - told.ref_logps).tolist()
