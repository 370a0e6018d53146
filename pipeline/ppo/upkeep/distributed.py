"""The weights under FSDP2, DDP and DeepSpeed: split, gathered, clipped and saved.

Under FSDP2 the policy's weights are split over the processes. Everything that reads them outside
the training forward (:data:`FORWARDS`) is registered as a forward pass of its own, and to sample,
every process gathers the whole policy first, so that none waits for another in between.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, save_fsdp_optimizer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME

from pipeline.errors import UserError
from pipeline.ppo.actor_critic import ActorCritic
from pipeline.ppo.config import PPOConfig, sharded
from pipeline.ppo.upkeep import state

T = TypeVar("T")
FORWARDS = ("token_record", "record_and_states", "trunk", "within")
"""ActorCritic's methods that read the policy's weights, beside ``forward``."""


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


def set_up(trainer: Trainer, args: PPOConfig) -> None:
    """Have FSDP2 keep values and gradients float32, and let it run on processors too.

    Raises:
        UserError: a setting of FSDP or DeepSpeed would train something else, or nothing.
    """
    accelerator: Any = trainer.accelerator.state
    if sharded(args) and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate knows FSDP on accelerators only; torch has it for gloo as well.
        settings: dict[str, Any] = args.fsdp_plugin_args or {}
        accelerator.fsdp_plugin = FullyShardedDataParallelPlugin(**settings)
        accelerator.distributed_type = DistributedType.FSDP
        trainer.is_fsdp_enabled = True
    plugin = getattr(accelerator, "fsdp_plugin", None)
    if plugin is not None:
        _check(plugin)
        if args.bf16:
            plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32
            )
    if trainer.is_deepspeed_enabled:
        _check_deepspeed(args)


def prepare(trainer: Trainer, prepare_for_training: Callable[[], T]) -> T:
    """Split the weights, and register what else than ``forward`` reads them."""
    model: Any = trainer.model
    if not trainer.is_fsdp_enabled or isinstance(model, FSDPModule):
        return prepare_for_training()

    def average_gradient(parameter: Tensor) -> None:
        if trainer.accelerator.sync_gradients:
            gradient: Any = parameter.grad
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()

    # Small and float32 whatever the policy computes in: every process keeps the whole critic.
    accelerator: Any = trainer.accelerator.state
    accelerator.fsdp_plugin.ignored_modules = [model.value_head]
    model.value_head.to(trainer.args.device)
    for parameter in model.value_head.parameters():
        parameter.register_post_accumulate_grad_hook(average_gradient)
    prepared = prepare_for_training()
    for name in FORWARDS:
        register_fsdp_forward_method(model, name)
    return prepared


def clipped_norm(trainer: Trainer, module: nn.Module) -> Tensor | float | None:
    """Clip ``module``'s gradients to ``max_grad_norm``; their norm before, over all parts."""
    norm = trainer.accelerator.clip_grad_norm_(module.parameters(), trainer.args.max_grad_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def policy_weights(trainer: Trainer) -> dict[str, Tensor] | None:
    """Where weights are split over the processes, the policy's whole ones on process 0.

    Every process must call this; it is ``None`` on each where nothing is split.
    """
    model: Any = trainer.model
    if not trainer.is_deepspeed_enabled:
        return state.policy_weights(model)
    accelerator: Any = trainer.accelerator
    if accelerator.state.deepspeed_plugin.zero_stage < 3:
        return None
    whole = accelerator.get_state_dict(trainer.model_wrapped) or {}
    return {k.removeprefix("policy."): v for k, v in whole.items() if k.startswith("policy.")}


def save_optimizer_and_scheduler(trainer: Trainer, folder: str) -> None:
    """Under FSDP as the Trainer does it, less its second copy of the weights."""
    accelerator: Any = trainer.accelerator
    plugin = accelerator.state.fsdp_plugin
    save_fsdp_optimizer(plugin, accelerator, trainer.optimizer, trainer.model, folder)
    if trainer.args.should_save:
        scheduler: Any = trainer.lr_scheduler
        torch.save(scheduler.state_dict(), os.path.join(folder, SCHEDULER_NAME))


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
