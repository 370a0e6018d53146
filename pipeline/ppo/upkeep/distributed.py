"""The weights under FSDP2 and DDP: split, gathered, clipped and saved.

Under FSDP2 the policy's weights are split over the processes. Everything that reads them outside
the training forward (:data:`FORWARDS`) is registered as a forward pass of its own, and to sample,
every process gathers the whole policy first, so that none waits for another in between.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, save_fsdp_optimizer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME_BIN, SCHEDULER_NAME

from pipeline.errors import UserError
from pipeline.ppo.actor_critic import ActorCritic
from pipeline.ppo.config import sharded

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


def set_up(trainer: Trainer, args: TrainingArguments) -> None:
    """Have FSDP2 keep values and gradients float32, and let it run on processors too.

    Raises:
        UserError: a setting of FSDP would train something else, or nothing.
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


@contextmanager
def gradients_to_come(trainer: Trainer, model: nn.Module) -> Iterator[None]:
    """A backward pass within, whose gradients more will be added to before the step.

    Does nothing in a microbatch that ends no minibatch: that is the Trainer's own.
    """
    accelerator: Any = trainer.accelerator
    state = accelerator.gradient_state
    if not state.sync_gradients:
        yield
        return
    each = state.plugin_kwargs.get("sync_each_batch", False)
    state._set_sync_gradients(False)  # which the critic under FSDP2 goes by
    try:
        if each:
            yield
        else:
            with accelerator.no_sync(model):
                yield
    finally:
        state._set_sync_gradients(True)


def clipped_norm(trainer: Trainer, module: nn.Module) -> Tensor | float | None:
    """Clip ``module``'s gradients to ``max_grad_norm``; their norm before, over all parts."""
    norm = trainer.accelerator.clip_grad_norm_(module.parameters(), trainer.args.max_grad_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def save_optimizer_and_scheduler(trainer: Trainer, folder: str) -> None:
    """Under FSDP as the Trainer does it, less its second copy of the weights."""
    accelerator: Any = trainer.accelerator
    plugin = accelerator.state.fsdp_plugin
    save_fsdp_optimizer(plugin, accelerator, trainer.optimizer, trainer.model, folder)
    if trainer.args.should_save:
        scheduler: Any = trainer.lr_scheduler
        torch.save(scheduler.state_dict(), os.path.join(folder, SCHEDULER_NAME))


def filled(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The optimizer's groups that have parameters.

    torch writes the settings of a group beside each of its parameters, so those of an empty one
    (LoRA has nothing without weight decay) would be missing when the optimizer is read back.
    """
    return [group for group in groups if group["params"]]


@contextmanager
def as_saved(trainer: Trainer, checkpoint: Path) -> Iterator[None]:
    """Read the optimizer's state in the form that it was saved in: whole, or in parts.

    Either is dealt out anew, so any number of processes can go on with it.

    Raises:
        UserError: see :func:`check_saved`.
    """
    check_saved(trainer, checkpoint)
    if not trainer.is_fsdp_enabled:
        yield
        return
    whole = checkpoint / OPTIMIZER_NAME_BIN
    accelerator: Any = trainer.accelerator
    plugin = accelerator.state.fsdp_plugin
    names = ("state_dict_type", "state_dict_config", "optim_state_dict_config")
    before = {name: getattr(plugin, name) for name in names}
    _set_form(plugin, "FULL_STATE_DICT" if whole.is_file() else "SHARDED_STATE_DICT")
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(plugin, name, value)


def check_saved(trainer: Trainer, checkpoint: Path) -> None:
    """UserError where a checkpoint of FSDP's is to be resumed without it, or the other way about.

    The optimizer counts parameters there and names them here.
    """
    parts = checkpoint / f"{OPTIMIZER_NAME_BIN.partition('.')[0]}_0"
    by_fsdp = (checkpoint / OPTIMIZER_NAME_BIN).is_file() or parts.is_dir()
    if by_fsdp != trainer.is_fsdp_enabled:
        how, mend = ("under", "with") if by_fsdp else ("without", "without")
        raise UserError(
            f"{checkpoint}: was saved {how} FSDP, whose optimizer state is another; go on {mend} it"
            " (any number of processes), or remove the checkpoints to start anew"
        )


def save_in_parts(trainer: Trainer) -> None:
    """Have the Trainer's own checkpoints written in parts, a process its own, by torch's DCP.

    It writes whole ones too, but stumbles over tied weights (transformers 5.23). The optimizer's
    empty groups go, see :func:`filled`.
    """
    accelerator: Any = trainer.accelerator
    _set_form(accelerator.state.fsdp_plugin, "SHARDED_STATE_DICT")
    plain = trainer.create_optimizer

    def create(*given: Any, **named: Any) -> torch.optim.Optimizer:
        optimizer = plain(*given, **named)
        optimizer.param_groups[:] = filled(optimizer.param_groups)
        return optimizer

    trainer.create_optimizer = create  # type: ignore[method-assign]


def _set_form(plugin: Any, form: str) -> None:
    plugin.state_dict_config = plugin.optim_state_dict_config = None
    plugin.set_state_dict_type(form)


def _check(plugin: FullyShardedDataParallelPlugin) -> None:
    """UserError for FSDP settings that would train something else, or nothing."""
    if plugin.fsdp_version != 2:
        raise UserError("fsdp_config: fsdp_version is 1, which is not supported; set it to 2")
    if plugin.cpu_ram_efficient_loading:
        raise UserError(
            "fsdp_config: fsdp_cpu_ram_efficient_loading leaves every process but the first "
            "without weights to make the reference from; set it to false"
        )
