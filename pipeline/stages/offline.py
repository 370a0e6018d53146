"""DPO on the policy's own samples: what is frozen runs once, and rewards may be more than labels.

TRL's trainer runs policy and reference whole on every pair of every epoch. Here the reference's
log-probabilities are measured once, before training; each different completion of a batch runs
once, over cached activations of the frozen trunk; and the head runs on completion tokens only.
Loss, gradients and the names of metrics are TRL's (test: both trainers on the same pairs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import TrainingArguments
from trl import DPOConfig

from pipeline.config.losses import ONCE_EACH, PLAIN, REBEL
from pipeline.data.stored import Stored
from pipeline.lm.generation import Completion
from pipeline.lm.hardware import use_plain_attention
from pipeline.lm.models import base_of
from pipeline.lm.route import lm_head
from pipeline.lm.scoring import TokenBatch, logits_chunk, token_logps
from pipeline.lm.trunk_cache import CachedStates
from pipeline.output.terminal import progress
from pipeline.ppo.config import sharded
from pipeline.stages.batches import epoch_of
from pipeline.stages.trl_compat import TokenizedDPOTrainer

_SIDES = ("chosen", "rejected")
_EXTRA = ("probability", "reward_difference")
"""Columns of pairs that say more than who was chosen: P(chosen wins), r_chosen − r_rejected."""


def why_trl(arguments: DPOConfig, pairs: Dataset | Stored[Any], model: nn.Module) -> str | None:
    """Why these pairs are TRL's own to train on, as ``key: reason``; None where they are not."""
    if isinstance(pairs, Stored) or "prompt_ids" not in pairs.column_names:
        return "data.preferences_name: own pairs"
    if sharded(arguments):  # each layer then runs as FSDP sees fit
        return "accelerate: FSDP"
    if arguments.loss_type not in ONCE_EACH:
        return f"dpo.loss_type: {', '.join(arguments.loss_type)}"
    for key, off in PLAIN.items():
        if getattr(arguments, key) != off:
            return f"dpo.{key}: {getattr(arguments, key)}"
    text = base_of(model).config.get_text_config()
    if hasattr(text, "output_router_logits") and getattr(text, "router_aux_loss_coef", 0.0):
        return "model.model_name_or_path: experts with a loss of their own"
    if arguments.max_length is not None and longest(pairs) > arguments.max_length:
        return f"dpo.max_length: {arguments.max_length} tokens, which cut some pairs"
    return None


def longest(*pairs: Dataset | None) -> int:
    """Tokens of the longest sequence, prompt and completion."""
    found = [_sequences(rows) for rows in pairs if rows is not None]
    return max(len(x) + len(y) for sides in found for side in sides for x, y in side)


def autocast(arguments: TrainingArguments) -> torch.autocast:
    """The precision that the Trainer computes in."""
    dtype = torch.float16 if arguments.fp16 else torch.bfloat16
    mixed = arguments.bf16 or arguments.fp16
    return torch.autocast(arguments.device.type, dtype, enabled=mixed)


class PairPolicy:
    """Log-probabilities of completions under a policy in training, gradient included."""

    def __init__(self, model: nn.Module, arguments: DPOConfig, length: int) -> None:
        """``length`` is that of the longest sequence, in tokens."""
        self._arguments = arguments
        rows = 2 * arguments.per_device_train_batch_size
        use_plain_attention(base_of(model.to(arguments.device)), arguments.device, length, rows)
        self.states = CachedStates(model, length)
        self._head = lm_head(model)

    def token_logps(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``(N,)`` of the completion tokens and the states ``(N, d)`` before."""
        with autocast(self._arguments):
            states = self.states.predicting(batch)
            chunk = logits_chunk(states.device)
            targets = batch.completion_ids[batch.mask]
            return token_logps(states, self._head, targets, 1.0, chunk).float(), states

    @torch.no_grad()
    def token_diagnostics(self, states: Tensor, targets: Tensor) -> Tensor:
        """Entropy, mean logit and whether the token is the likeliest, ``(3, N)``."""
        parts = []
        chunk = logits_chunk(states.device)
        with autocast(self._arguments):
            for some, tokens in zip(states.split(chunk), targets.split(chunk), strict=True):
                logits = self._head(some).float()
                logps = logits.log_softmax(-1)
                entropy, top = -(logps.exp() * logps).sum(-1), logits.argmax(-1) == tokens
                parts.append(torch.stack([entropy, logits.mean(-1), top.float()]))
        return torch.cat(parts, 1)

    @torch.no_grad()
    def with_logps(self, *pairs: Dataset | None, label: str | None = None) -> list[Dataset | None]:
        """``pairs`` with the log-probabilities of both completions under the policy as it is now.

        That is the reference, before the first step. Several processes share the work.

        Args:
            label: shows a progress bar under this name.
        """
        found = [_sequences(rows) for rows in pairs if rows is not None]
        each = sorted({row for sides in found for side in sides for row in side}, key=_by_length)
        state, size = self._arguments.distributed_state, self._arguments.per_device_train_batch_size
        rank, count = (state.process_index, state.num_processes) if state else (0, 1)
        mine = each[rank::count]
        made: list[tuple[Any, float]] = []
        starts = range(0, len(mine), 2 * size)
        for start in progress(starts, label, len(starts)) if label else starts:
            rows = mine[start : start + 2 * size]
            batch = TokenBatch.collate(
                [Completion("", x, y, "", True) for x, y in rows], 0, self._arguments.device
            )
            logps = _row_sums(self.token_logps(batch)[0], batch.mask)
            made += zip(rows, logps.tolist(), strict=True)
        known = dict(gather_object(made))
        measured = iter(found)
        return [rows and _with(rows, known, next(measured)) for rows in pairs]


def _by_length(row: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[int, Any]:
    return len(row[0]) + len(row[1]), row


def _sequences(pairs: Dataset) -> tuple[list[Any], list[Any]]:
    """Prompt and completion tokens of the chosen, and of the rejected."""
    prompts = pairs["prompt_ids"]
    sides = (
        [(tuple(x), tuple(y)) for x, y in zip(prompts, pairs[f"{side}_ids"], strict=True)]
        for side in _SIDES
    )
    return next(sides), next(sides)


def _with(pairs: Dataset, known: dict[Any, float], sides: tuple[list[Any], list[Any]]) -> Dataset:
    for name, rows in zip(_SIDES, sides, strict=True):
        pairs = pairs.add_column(f"ref_{name}_logps", [known[row] for row in rows])  # type: ignore
    return pairs


def _row_sums(values: Tensor, mask: Tensor) -> Tensor:
    """Sums ``(B,)`` over each row's completion tokens of ``(N,)`` values."""
    return torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values).sum(1)


class _WithLabels:
    """A collator that keeps the extra columns beside what ``collate`` makes of the others."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._collate(examples)
        for name in (*_EXTRA, "ref_chosen_logps", "ref_rejected_logps"):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch


class GroupSampler(Sampler[int]):
    """Rows in random order, but those of one prompt that stand together stay together."""

    def __init__(
        self, prompts: Sequence[Any], seed: int, epoch: Callable[[], int] = lambda: 0
    ) -> None:
        """``prompts`` are each row's; ``seed`` and ``epoch``, `epoch_of`, decide the order."""
        starts = [i for i, x in enumerate(prompts) if i == 0 or x != prompts[i - 1]]
        self._groups = list(zip(starts, [*starts[1:], len(prompts)], strict=True))
        self._seed, self._count, self._epoch = seed, len(prompts), epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch())
        for group in torch.randperm(len(self._groups), generator=generator).tolist():
            yield from range(*self._groups[group])


class PairTrainer(TokenizedDPOTrainer):
    """A DPOTrainer whose loss runs over a :class:`PairPolicy`.

    Pairs hold the reference's log-probabilities, and may hold ``probability``, that the chosen one
    wins (else it does), and ``reward_difference``, which the loss ``rebel`` regresses on.
    Of TRL's metrics, those that need whole logits (entropy, logits, token accuracy) are measured in
    evaluations and on the last batch before each logging.
    """

    model: Any

    def __init__(self, policy: PairPolicy, group_rows: int | None = None, **arguments: Any) -> None:
        """``group_rows`` makes batches of so many pairs, drawn by prompts' whole groups."""
        if group_rows is not None:
            arguments["args"].per_device_train_batch_size = group_rows
        super().__init__(**arguments)
        self._policy, self._whole_groups = policy, group_rows is not None
        self._rebel = self.loss_types == [REBEL]
        self.data_collator = _WithLabels(self.data_collator)
        plain = self.model.forward

        def forward(_: Any, *inputs: Any, within: Any = None, **settings: Any) -> Any:
            return plain(*inputs, **settings) if within is None else within()

        # All of a step runs within the model's own call, where DDP hooks into it.
        self.model.forward = MethodType(forward, self.model)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *_EXTRA]))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self._whole_groups:
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return GroupSampler(rows["prompt_ids"], seed, epoch_of(self))
        return super()._get_train_sampler(train_dataset)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        batch, places = _each_once(inputs)
        logps, states = model(within=lambda: self._policy.token_logps(batch))
        sides = _row_sums(logps, batch.mask)[places].chunk(2)
        reference = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        ratios = [own - ref for own, ref in zip(sides, reference, strict=True)]
        loss = self._losses(self.beta * (ratios[0] - ratios[1]), inputs).mean()
        self._note(sides, ratios, inputs)
        if not self.model.training or self._logs_next():
            targets = batch.completion_ids[batch.mask]
            self._note_tokens(self._policy.token_diagnostics(states, targets), batch, places)
        return (loss, None) if return_outputs else loss

    def _losses(self, margins: Tensor, inputs: dict[str, Any]) -> Tensor:
        """The loss ``(B,)`` of each pair, of β times the differences of its log-ratios."""
        if self._rebel:
            return (margins - inputs["reward_difference"]).square()
        if "probability" not in inputs:
            return -F.logsigmoid(margins)
        p = inputs["probability"]
        return -p * F.logsigmoid(margins) - (1 - p) * F.logsigmoid(-margins)

    def _logs_next(self) -> bool:
        by_steps = self.args.logging_strategy == "steps" and self.accelerator.sync_gradients
        every = max(1, int(self.state.logging_steps or 1))
        return by_steps and (self.state.global_step + 1) % every == 0

    def _gathered(self, values: Tensor) -> Tensor:
        """The rows of all processes."""
        return self.accelerator.gather(values)  # type: ignore[return-value]

    def _note(
        self, sides: Sequence[Tensor], ratios: Sequence[Tensor], inputs: dict[str, Any]
    ) -> None:
        """TRL's metrics of pairs, means over all processes."""
        rewards = [self.beta * ratio.detach() for ratio in ratios]
        values = {
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/accuracies": (rewards[0] > rewards[1]).float(),
            "rewards/margins": rewards[0] - rewards[1],
            "logps/chosen": sides[0].detach(),
            "logps/rejected": sides[1].detach(),
        }
        metrics = self._metrics["train" if self.model.training else "eval"]
        means = self._gathered(torch.stack(list(values.values()), 1)).mean(0).tolist()
        for name, mean in zip(values, means, strict=True):
            metrics[name].append(mean)
        if self.model.training:
            self._total_train_tokens += int(self._gathered(inputs["attention_mask"].sum()).sum())
        metrics["num_tokens"] = [self._total_train_tokens]

    def _note_tokens(self, each: Tensor, batch: TokenBatch, places: Tensor) -> None:
        """TRL's metrics of tokens: means over all completions, chosen or rejected ones."""
        sums = torch.stack([_row_sums(row, batch.mask) for row in each] + [batch.mask.sum(1)])
        totals = sums[:, places].unflatten(1, (2, -1)).sum(-1)  # (4, 2): chosen and rejected
        totals = self._gathered(totals[None]).sum(0)
        (entropy, logits, top, tokens) = totals.tolist()
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["entropy"].append(sum(entropy) / sum(tokens))
        for name, total, count in zip(_SIDES, logits, tokens, strict=True):
            metrics[f"logits/{name}"].append(total / count)
        metrics["mean_token_accuracy"].append(top[0] / tokens[0])


def _each_once(inputs: dict[str, Any]) -> tuple[TokenBatch, Tensor]:
    """The different completions of a collated batch, and where in them each of its rows is."""
    sequences, lengths = inputs["input_ids"], inputs["completion_mask"].sum(1)
    prompts = inputs["attention_mask"].sum(1) - lengths
    steps = torch.arange(int(lengths.max()), device=sequences.device)
    mask = steps < lengths[:, None]
    places = (prompts[:, None] + steps).clamp(max=sequences.shape[1] - 1)
    whole = TokenBatch(sequences, prompts, sequences.gather(1, places), mask)
    seen: dict[tuple[int, ...], int] = {}
    keys = torch.cat([prompts[:, None], lengths[:, None], sequences], 1).tolist()
    inverse = [seen.setdefault(tuple(key), len(seen)) for key in keys]
    first = [inverse.index(place) for place in range(len(seen))]
    index = torch.tensor(first, device=sequences.device)
    return whole.rows(index), torch.tensor(inverse, device=sequences.device)
