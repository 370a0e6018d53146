"""One rollout, many processes: the same random numbers, minibatches and checkpoints as with one.

The processes hold equal parts of a rollout's rows, process p the p-th. What a row draws, and which
rows make a minibatch, is a function of the seed and of all rows, never of how many processes share
them: two processes train what one would, up to the order in which floats are added.

Under FSDP2 the policy's weights are split over the processes. Everything that reads them outside
the training forward (:data:`FORWARDS`) is registered as a forward pass of its own, and to sample,
every process gathers the whole policy first, so that none waits for another in between.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, save_fsdp_optimizer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer import SCHEDULER_NAME

from pipeline.data.records import Prompt
from pipeline.errors import UserError
from pipeline.lm.generation import encode_prompt
from pipeline.lm.scoring import TokenBatch
from pipeline.ppo.actor_critic import ActorCritic
from pipeline.ppo.config import PPOConfig, sharded
from pipeline.ppo.control import KLController, RunningDeviation
from pipeline.ppo.rollout import Rollout, schedule
from pipeline.ppo.upkeep.state import load_controllers, policy_weights

T = TypeVar("T")
FORWARDS = ("score", "trunk", "within")
"""ActorCritic's methods that read the policy's weights, beside ``forward``."""


# -- random numbers --------------------------------------------------------------------------------


def uniform_draws(lengths: Sequence[int], rows: Sequence[int], steps: int, seed: int) -> Tensor:
    """The numbers that choose the tokens of ``rows``, whoever draws for the others.

    A row's depend on all rows of the rollout, and on nothing of how these are divided over
    processes or batches. They are drawn on the processor, so that every device gets the same.

    Args:
        lengths: prompt tokens of every row of all processes. rows: this process's.
        steps: longest completion, in tokens.

    Returns:
        ``(len(rows), steps)`` in [0, 1), float32 on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(steps, len(lengths), generator=generator)
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    column = {row: position for position, row in enumerate(order)}
    return table[:, [column[row] for row in rows]].T


def rollout_draws(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], args: PPOConfig, seed: int
) -> Tensor:
    """:func:`uniform_draws` of this process's part of a rollout."""
    own = torch.tensor([len(encode_prompt(tokenizer, p)) for p in prompts], device=args.device)
    lengths = torch.cat(_gather(own)).tolist()
    first = args.process_index * len(prompts)
    rows = range(first, first + len(prompts))
    return uniform_draws(lengths, rows, args.response_length, seed)


def evaluation_part(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], args: PPOConfig
) -> tuple[list[Prompt], int, Tensor]:
    """This process's prompts, how many of them count, and their :func:`uniform_draws`.

    Every process gets equally many, or some would wait in a collective that others never reach:
    where they do not go around, prompts are repeated, and the repetitions do not count.
    """
    rows = range(args.process_index, len(prompts), args.world_size)
    share = -(-len(prompts) // args.world_size)
    padded = [*rows, *[0] * (share - len(rows))]
    lengths = [len(encode_prompt(tokenizer, p)) for p in prompts]
    draws = uniform_draws(lengths, padded, args.response_length, args.seed)
    return [prompts[row] for row in padded], len(rows), draws


# -- minibatches -----------------------------------------------------------------------------------


def share(rollout: Rollout, args: PPOConfig, seed: int) -> tuple[Rollout, list[list[Tensor]]]:
    """The rows that this process learns from, and its microbatches of them.

    The minibatches are those that one process makes of all rows. Each process takes every P-th row
    of a minibatch in order of length, and fetches the rows it lacks from the process that has them.

    Returns:
        the rollout of fetched rows (without their texts), and the row indices of every microbatch,
        minibatch by minibatch.
    """
    own = (rollout.batch.prompt_lengths + rollout.batch.mask.sum(1)).cpu()
    if args.world_size == 1:
        return rollout, schedule(own, args, seed)
    device = rollout.batch.mask.device
    lengths = torch.cat(_gather(own.to(device))).cpu()
    plans = [schedule(lengths, args, seed, rank) for rank in range(args.world_size)]
    wanted = [torch.cat([row for parts in plan for row in parts]).unique() for plan in plans]
    mine = args.process_index
    fetched = _fetch_rows(rollout, _Exchange.build(wanted, mine, len(own), device))
    place = torch.zeros(len(lengths), dtype=torch.long)  # of a row among the fetched
    place[wanted[mine]] = torch.arange(len(wanted[mine]))
    return fetched, [[place[index] for index in parts] for parts in plans[mine]]


@dataclass(frozen=True)
class _Exchange:
    """Which rows go where: every process knows all processes' needs, so nobody has to ask."""

    send: Tensor  # indices of own rows, those for process 0 first
    sent: list[int]  # how many of them for each process
    received: list[int]  # how many rows come from each

    @classmethod
    def build(cls, wanted: list[Tensor], mine: int, rows: int, device: torch.device) -> _Exchange:
        """``wanted``: ascending global rows of each process; each owns ``rows`` in a row."""
        own = [w[(w >= mine * rows) & (w < (mine + 1) * rows)] - mine * rows for w in wanted]
        owners = torch.bincount(wanted[mine] // rows, minlength=len(wanted))
        return cls(torch.cat(own).to(device), [len(w) for w in own], owners.tolist())

    def __call__(self, values: Tensor) -> Tensor:
        """``(rows, …)`` own values to the wanted rows' ``(N, …)``, in their order."""
        shape = values.shape[1:]
        out = values[self.send].contiguous().flatten(1).view(torch.uint8)
        found = out.new_empty(sum(self.received), out.shape[1])
        dist.all_to_all_single(found, out, self.received, self.sent)
        return found.view(values.dtype).view(-1, *shape)


def _fetch_rows(rollout: Rollout, exchange: _Exchange) -> Rollout:
    batch, old = rollout.batch, rollout.old
    sizes = torch.tensor([*batch.sequences.shape[1:], *batch.mask.shape[1:]])
    sizes = torch.stack(_gather(sizes.to(batch.mask.device))).amax(0)
    width, steps = int(sizes[0]), int(sizes[1])

    def tokens(values: Tensor, length: int = steps) -> Tensor:
        """``(B, T, …)`` values of own rows, as wide as every process's."""
        padding = values.new_zeros(len(values), length - values.shape[1], *values.shape[2:])
        return exchange(torch.cat([values, padding], 1))

    return replace(
        rollout,
        completions=[],
        batch=TokenBatch(
            tokens(batch.sequences, width),
            exchange(batch.prompt_lengths[:, None])[:, 0],
            tokens(batch.completion_ids),
            tokens(batch.mask),
        ),
        trunk=None if rollout.trunk is None else tokens(rollout.trunk, width),
        scores=exchange(rollout.scores[:, None])[:, 0],
        old=type(old)(*(tokens(column) for column in old)),
        token_rewards=tokens(rollout.token_rewards),
        advantages=tokens(rollout.advantages),
        returns=tokens(rollout.returns),
    )


def _gather(values: Tensor) -> list[Tensor]:
    """The equally shaped tensors of all processes, by rank."""
    if not dist.is_initialized():
        return [values]
    found = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(found, values.contiguous())
    return found


# -- sharded weights -------------------------------------------------------------------------------


def sample_whole(model: ActorCritic, function: Callable[[], T]) -> T:
    """Call ``function`` with the whole policy at hand; under FSDP2 gathered once and given back.

    Token by token every layer would be gathered again, and processes that are done would have to
    wait for the longest completion of all.
    """
    if not isinstance(model, FSDPModule):
        return function()
    return model.within(lambda: _gathered(model.policy, function))


def _gathered(policy: nn.Module, function: Callable[[], T]) -> T:
    parts = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        return function()
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


class DistributedTrainer(Trainer):
    """What the Trainer does not do by itself to train an :class:`ActorCritic` in many processes."""

    args: PPOConfig
    kl_control: KLController
    score_deviation: RunningDeviation

    def create_accelerator_and_postprocess(self) -> None:
        """Have FSDP2 keep values and gradients float32, and let it run on processors too."""
        super().create_accelerator_and_postprocess()
        state: Any = self.accelerator.state
        if sharded(self.args) and state.distributed_type == DistributedType.MULTI_CPU:
            # accelerate knows FSDP on accelerators only; torch has it for gloo as well.
            settings: dict[str, Any] = self.args.fsdp_plugin_args or {}
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**settings)
            state.distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True
        plugin = getattr(state, "fsdp_plugin", None)
        if plugin is not None:
            _check(plugin)
            if self.args.bf16:
                plugin.mixed_precision_policy = MixedPrecisionPolicy(
                    param_dtype=torch.bfloat16, reduce_dtype=torch.float32
                )
        if self.is_deepspeed_enabled:
            _check_deepspeed(self.args)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """Split the weights, and register what else than ``forward`` reads them."""
        arguments = (max_steps, train_dataloader, resume_from_checkpoint)
        model: Any = self.model
        if not self.is_fsdp_enabled or isinstance(model, FSDPModule):
            prepared = super()._prepare_for_training(*arguments)  # type: ignore[misc]
            if self.is_deepspeed_enabled and resume_from_checkpoint is not None:
                # Its engine has loaded the weights, so _load_from_checkpoint is not called.
                folder = Path(resume_from_checkpoint)
                load_controllers(folder, self.kl_control, self.score_deviation)
            return prepared
        # Small and float32 whatever the policy computes in: every process keeps the whole critic.
        state: Any = self.accelerator.state
        state.fsdp_plugin.ignored_modules = [model.value_head]
        model.value_head.to(self.args.device)
        for parameter in model.value_head.parameters():
            parameter.register_post_accumulate_grad_hook(self._average_gradient)
        prepared = super()._prepare_for_training(*arguments)  # type: ignore[misc]
        for name in FORWARDS:
            register_fsdp_forward_method(model, name)
        return prepared

    def _average_gradient(self, parameter: Tensor) -> None:
        if self.accelerator.sync_gradients:
            gradient: Any = parameter.grad
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()

    def clipped_norm(self, module: nn.Module) -> Tensor | float | None:
        """Clip ``module``'s gradients to ``max_grad_norm``; their norm before, over all parts."""
        norm = self.accelerator.clip_grad_norm_(module.parameters(), self.args.max_grad_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def policy_weights(self) -> dict[str, Tensor] | None:
        """Where weights are split over the processes, the policy's whole ones on process 0.

        Every process must call this; it is ``None`` on each where nothing is split.
        """
        model: Any = self.model
        if not self.is_deepspeed_enabled:
            return policy_weights(model)
        accelerator: Any = self.accelerator
        if accelerator.state.deepspeed_plugin.zero_stage < 3:
            return None
        found = accelerator.get_state_dict(self.model_wrapped) or {}
        return {k.removeprefix("policy."): v for k, v in found.items() if k.startswith("policy.")}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's; under FSDP2 the policy is gathered and process 0 writes it whole."""
        if not self.is_fsdp_enabled:
            return super().save_model(output_dir, _internal_call)
        weights = self.policy_weights() or {}
        self._save(output_dir, {f"policy.{name}": value for name, value in weights.items()})
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As the Trainer's, less its second copy of the weights under FSDP."""
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        accelerator: Any = self.accelerator
        plugin = accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            scheduler: Any = self.lr_scheduler
            torch.save(scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))


def _check(plugin: FullyShardedDataParallelPlugin) -> None:
    """UserError for FSDP settings that would train something else, or nothing."""
    if plugin.fsdp_version != 2:
        raise UserError("fsdp_config: fsdp_version is 1, which PPO does not support; set it to 2")
    if plugin.cpu_ram_efficient_loading:
        raise UserError(
            "fsdp_config: fsdp_cpu_ram_efficient_loading leaves every process but the first "
            "without weights to make the reference from; set it to false"
        )


def _check_deepspeed(args: PPOConfig) -> None:
    """UserError for what needs a say between gradients and step, which DeepSpeed takes in one."""
    for name, off in (("target_kl", None), ("value_warmup_rollouts", 0)):
        if getattr(args, name) != off:
            raise UserError(f"ppo.{name}: not with DeepSpeed; set it to {off}, or use FSDP2 or DDP")
