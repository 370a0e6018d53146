"""Policy, value head and reference over one set of weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from peft import PeftModel
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.lm.checkpointing import spare_frozen_layers
from pipeline.lm.hardware import autocast
from pipeline.lm.models import base_of, decoder_layers, frozen_copy, switch_dropout_off
from pipeline.lm.packing import pack
from pipeline.lm.route import hidden_states, lm_head
from pipeline.lm.scoring import (
    TokenBatch,
    logits_chunk,
    predicting_states,
    token_logps,
    token_logps_and_entropy,
    token_logps_and_kl,
    token_statistics,
)
from pipeline.lm.trunk import SplitDecoder, lowest_trained_layer
from pipeline.ppo.config import PPOConfig, sharded

T = TypeVar("T")


class ValueHead(nn.Module):
    """V(s_t) from the policy's final hidden state, in float32; it starts at 0 everywhere."""

    def __init__(self, hidden_size: int, width: float) -> None:
        """``width`` is the hidden layer's, in multiples of ``hidden_size``."""
        super().__init__()
        inner = max(1, round(hidden_size * width))
        self.norm = nn.LayerNorm(hidden_size)
        self.inner = nn.Linear(hidden_size, inner)
        self.out = nn.Linear(inner, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: Tensor) -> Tensor:
        """``(N, d)`` hidden states to ``(N,)`` values."""
        with torch.autocast(states.device.type, enabled=False):
            return self.out(torch.tanh(self.inner(self.norm(states.float())))).squeeze(-1)


class ActorCriticOutput(NamedTuple):
    """What a training step needs of each completion token; all ``(B, T)``, zero off the mask."""

    logps: Tensor
    values: Tensor
    entropy: Tensor
    kl: Tensor


class TokenRecord(NamedTuple):
    """What a rollout records of each completion token; all ``(B, T)``, zero off the mask."""

    logps: Tensor
    values: Tensor
    entropy: Tensor
    ref_logps: Tensor
    exact_kl: Tensor


class ActorCritic(nn.Module):
    """The policy with its value head: one forward pass gives all that the loss needs.

    The reference is the policy as it is now: the same weights with the adapters switched off where
    those are all that is trained and begin at nothing, else a copy that shares every frozen weight.
    Where the lower layers are frozen, :meth:`trunk` gives their activations, which every later pass
    may start from.
    """

    def __init__(self, policy: nn.Module, config: PPOConfig, longest: int = 0) -> None:
        """``policy`` is a causal LM or a PEFT model around one, prepared for training.

        Args:
            longest: tokens of the longest sequence to expect, prompt and response.
        """
        super().__init__()
        switch_dropout_off(policy)
        self.policy = policy
        self.args = config
        self.packing = config.packing
        base = base_of(policy)
        size = base.config.get_text_config().hidden_size
        self.value_head = ValueHead(size, config.value_head_hidden)
        self._reference: list[nn.Module] = []  # in a list: no part of state_dict()
        if not (isinstance(policy, PeftModel) and _switches_off(policy)):
            if isinstance(policy, PeftModel) and sharded(config):
                raise UserError(
                    "PPO under FSDP: the policy's adapters are trained already, or not all that is "
                    "trained, so the reference is a copy, which FSDP would have to split twice; "
                    "merge the adapters first (merge_and_unload) and add new ones"
                )
            self._reference = [frozen_copy(policy)]
            if sharded(config):  # split like the policy, so part of what FSDP sees
                self.reference = self._reference[0]
        cut = lowest_trained_layer(base) if config.cache_trunk else 0
        self._split = SplitDecoder.build(base, cut, longest)
        # Adapters can leave the lower layers alone too; their reference has no copy to split.
        both = self._split and self._reference
        self._ref_split = (
            SplitDecoder.build(base_of(self._reference[0]), cut, longest) if both else None
        )

    @property
    def config(self):  # noqa: ANN201 - the Hugging Face config, whatever its class
        """The policy's configuration (the Trainer's callbacks read it)."""
        return base_of(self.policy).config

    def activation_checkpointing_enable(self, **arguments) -> None:  # noqa: ANN003
        """Passed on to the policy; layers without a gradient have nothing to save."""
        base = base_of(self.policy)
        base.activation_checkpointing_enable(**arguments)
        spare_frozen_layers(base)
        if self._split is not None:
            self._split.follow(base)

    def place_reference(self, device: torch.device) -> None:
        """Move the reference, which ``.to()`` does not reach, to ``device``."""
        for reference in self._reference if "reference" not in self._modules else ():
            reference.to(device)

    @property
    def _no_split_modules(self) -> list[str]:
        """Names of the decoder layers' classes: what FSDP gathers at a time."""
        return sorted({type(layer).__name__ for layer in decoder_layers(base_of(self.policy))})

    def within(self, function: Callable[[], T]) -> T:
        """Call ``function``, as part of a forward pass where FSDP counts this as one."""
        return function()

    @property
    def has_trunk(self) -> bool:
        """Whether :meth:`trunk` gives the lower layers' activations."""
        return self._split is not None

    def keep_no_trunk(self) -> None:
        """Have :meth:`trunk` give none from now on: every pass runs all layers."""
        self._split = self._ref_split = None

    def trunk(self, sequences: Tensor, batch: TokenBatch | None = None) -> Tensor | None:
        """Activations ``(B, L, d)`` below the first trained layer; ``None`` without a split.

        Args:
            batch: what the sequences are of: packed rows have no activations at padding, but 0.
        """
        if self._split is None:
            return None
        if batch is None or not self.packing:
            return self._split.lower(sequences)
        rows = pack(batch, with_last=True)
        states = self._split.lower(rows.tokens, position_ids=rows.positions)[0]
        padded = states.new_zeros(*sequences.shape, states.shape[-1])
        padded[rows.real] = states
        return padded

    def forward(
        self,
        batch: TokenBatch,
        trunk: Tensor | None = None,
        with_entropy: bool = False,
        ref_states: Tensor | None = None,
    ) -> ActorCriticOutput:
        """Log-probabilities and values of ``batch``'s tokens; entropy and KL if asked for, else 0.

        Args:
            batch: B completions. trunk: :meth:`trunk` of ``batch.sequences`` if it is at hand.
            ref_states: ``(B, T, d)`` of :meth:`record_and_states`, for the exact KL. Where that is
                charged and they are not at hand, the reference runs again.
        """
        states = self._states(batch, trunk)
        seen = states if self.args.value_backprop else states.detach()
        arguments = (lm_head(self.policy), batch.completion_ids[batch.mask])
        settings = self._logit_settings(states.device)
        entropy = kl = logps = None
        if with_entropy:
            logps, entropy = token_logps_and_entropy(states, *arguments, *settings)
        if ref_states is not None or self.args.charges_exact_kl:
            theirs = self._known_reference_states(batch, trunk, ref_states)
            heads = arguments[0], self._reference_head()
            logps, kl = token_logps_and_kl(states, theirs, *heads, arguments[1], *settings)
        if logps is None:
            logps = token_logps(states, *arguments, *settings)
        zero = torch.zeros_like(logps)
        columns = (logps, self.value_head(seen), zero if entropy is None else entropy)
        columns += (zero if kl is None else kl,)
        return ActorCriticOutput(*(_spread(x, batch.mask) for x in columns))

    @torch.no_grad()
    def token_record(self, batch: TokenBatch, trunk: Tensor | None = None) -> TokenRecord:
        """All that a rollout records, policy and reference side by side."""
        return self._record(batch, trunk)[0]

    @torch.no_grad()
    def record_and_states(
        self, batch: TokenBatch, trunk: Tensor | None = None
    ) -> tuple[TokenRecord, Tensor]:
        """:meth:`token_record` and the reference's final states ``(B, T, d)``, zero off the mask.

        They are all that its logits need, so an update has these without running the reference.
        """
        record, kept = self._record(batch, trunk)
        states = kept.new_zeros(*batch.mask.shape, kept.shape[-1])
        states[batch.mask] = kept
        return record, states

    def _record(self, batch: TokenBatch, trunk: Tensor | None) -> tuple[TokenRecord, Tensor]:
        states, ref_states = self._states(batch, trunk), self._reference_states(batch, trunk)
        targets = batch.completion_ids[batch.mask]
        settings = self._logit_settings(states.device)
        heads = lm_head(self.policy), self._reference_head()
        both = token_statistics(states, ref_states, *heads, targets, *settings)
        values = self.value_head(states)
        columns = (both.logps, values, both.entropy, both.ref_logps, both.exact_kl)
        return TokenRecord(*(_spread(x, batch.mask) for x in columns)), ref_states

    def _reference_head(self) -> Callable[[Tensor], Tensor]:
        """What makes the reference's logits of its final states."""
        if self._reference:
            return lm_head(self._reference[0])
        head = lm_head(self.policy)
        # A plain one has no adapters, and a whole model's are slow to switch for every chunk.
        return head if type(head) is nn.Linear else self._without_adapters

    def _logit_settings(self, device: torch.device) -> tuple[float, int]:
        return self.args.temperature, self.args.logits_chunk or logits_chunk(device)

    def _states(self, batch: TokenBatch, trunk: Tensor | None) -> Tensor:
        return self._final_states(self.policy, self._split, batch, trunk)

    @torch.no_grad()
    def _known_reference_states(
        self, batch: TokenBatch, trunk: Tensor | None, kept: Tensor | None
    ) -> Tensor:
        return self._reference_states(batch, trunk) if kept is None else kept[batch.mask]

    def _reference_states(self, batch: TokenBatch, trunk: Tensor | None) -> Tensor:
        if self._reference:
            return self._final_states(self._reference[0], self._ref_split, batch, trunk)
        with _adapters_off(self.policy):
            return self._final_states(self.policy, None, batch, None)

    def _final_states(
        self,
        model: nn.Module,
        split: SplitDecoder | None,
        batch: TokenBatch,
        trunk: Tensor | None,
    ) -> Tensor:
        """States ``(N, d)`` that predict the N completion tokens, from the trunk up if given."""
        if not self.packing:
            if split is not None and trunk is not None:
                hidden = split.upper(trunk)
            else:
                hidden = hidden_states(model, batch.sequences)
            return predicting_states(hidden, batch)[batch.mask]
        rows = pack(batch)
        given = {"position_ids": rows.positions}
        if split is not None and trunk is not None:
            hidden = split.upper(trunk[rows.real][None], **given)
        else:
            hidden = hidden_states(model, rows.tokens, **given)
        return hidden[0, rows.predicting]

    def _without_adapters(self, states: Tensor) -> Tensor:
        """The head's logits with its own adapters, if it has any, switched off."""
        with _adapters_off(self.policy):
            return lm_head(self.policy)(states)


def _adapters_off(policy: nn.Module) -> AbstractContextManager[Any]:
    return policy.disable_adapter() if isinstance(policy, PeftModel) else nullcontext()


@torch.no_grad()
def _switches_off(policy: PeftModel) -> bool:
    """Whether ``disable_adapter`` gives the policy as it is now, whatever is learned from here.

    It does not for adapters that were trained before, nor for weights that are trained beside them.
    """
    mark = getattr(policy.base_model, "prefix", None)
    marks = (mark, "modules_to_save") if mark else ()
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    if not marks or not all(any(mark in name for mark in marks) for name in trained):
        return False
    base = base_of(policy)
    known = base.config.get_text_config().vocab_size
    tokens = torch.arange(1, 9, device=base.device)[None] % known
    logits = []
    for context in (nullcontext(), _adapters_off(policy)):
        with context, autocast(policy):
            states = hidden_states(policy, tokens)[0]
            logits.append(lm_head(policy)(states))
    return torch.equal(*logits)


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """``(N,)`` values of masked tokens back to ``(B, T)``, zeros elsewhere, differentiable."""
    empty = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    return empty.masked_scatter(mask, values.float())


def parameter_groups(model: nn.Module, decayed: set[str], args: PPOConfig) -> list[dict[str, Any]]:
    """The optimizer's groups: actor and critic have their own learning rates.

    Args:
        model: an :class:`ActorCritic`, wrapped or not.
        decayed: the policy's parameters that weight decay is for; the value head has none.
    """
    policy: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    critic = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "value_head." in name:
            critic.append(parameter)
        else:
            policy[name in decayed].append(parameter)
    rate = args.value_learning_rate or 10 * args.learning_rate
    return [
        {"params": policy[True], "weight_decay": args.weight_decay},
        {"params": policy[False], "weight_decay": 0.0},
        {"params": critic, "weight_decay": 0.0, "lr": rate},
    ]
