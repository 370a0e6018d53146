"""What a PPO checkpoint holds beside the Trainer's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedTokenizerBase

from common.files import read_json, write_json
from pipeline.errors import UserError
from pipeline.lm.models import base_of
from pipeline.ppo.actor_critic import ActorCritic
from pipeline.ppo.control import KLController, RunningDeviation

WEIGHTS = "model.safetensors"
VALUE_HEAD = "value_head.safetensors"
STATE = "ppo_state.json"


def save(
    folder: Path,
    model: ActorCritic,
    tokenizer: PreTrainedTokenizerBase,
    control: KLController,
    deviation: RunningDeviation,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write policy (or adapter), tokenizer, value head and controllers into ``folder``.

    Weights keep the dtype they are trained in, so that a resumed run goes on bit-equal.

    Args:
        weights: the model's, under their names in it, where they are split over processes.
    """
    policy = head = None
    if weights is not None:
        policy = _under("policy.", weights)
        head = _under("value_head.", weights)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model.policy, PeftModel):
        model.policy.save_pretrained(str(folder), state_dict=policy)
    else:
        base_of(model.policy).save_pretrained(str(folder), state_dict=policy, max_shard_size="1TB")
    tokenizer.save_pretrained(str(folder))
    save_file(head or model.value_head.state_dict(), folder / VALUE_HEAD)
    write_json(folder / STATE, {"kl_coef": control.coefficient, "deviation": vars(deviation)})


def load(
    folder: Path, model: ActorCritic, control: KLController, deviation: RunningDeviation
) -> None:
    """Read back what :func:`save` wrote, into the objects at hand."""
    adapters = isinstance(model.policy, PeftModel)
    weights = load_peft_weights(str(folder)) if adapters else load_file(folder / WEIGHTS)
    if isinstance(model, FSDPModule):
        load_split(model.policy, weights)
    elif isinstance(model.policy, PeftModel):
        set_peft_model_state_dict(model.policy, weights)
    else:
        base_of(model.policy).load_state_dict(weights, strict=False)  # tied weights are stored once
    model.value_head.load_state_dict(load_file(folder / VALUE_HEAD))
    load_controllers(folder, control, deviation)


def load_controllers(folder: Path, control: KLController, deviation: RunningDeviation) -> None:
    """The part of :func:`load` that is not weights."""
    state = read_json(folder / STATE)
    control.coefficient = state["kl_coef"]
    vars(deviation).update(state["deviation"])


def policy_weights(model: ActorCritic) -> dict[str, Tensor] | None:
    """The policy's whole weights, of adapters only those, on process 0 (others get nothing).

    Every process must call this. ``None`` where no weights are split.
    """
    if not isinstance(model, FSDPModule):
        return None
    options = StateDictOptions(
        full_state_dict=True,
        cpu_offload=True,
        ignore_frozen_params=isinstance(model.policy, PeftModel),
    )
    weights: dict[str, Any] = get_model_state_dict(model.policy, options=options)
    for name in getattr(model.policy, "all_tied_weights_keys", None) or {}:
        weights.pop(name, None)  # stored once, as without FSDP
    return weights


@torch.no_grad()
def load_split(policy: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put ``weights`` into a policy whose parameters are split; each process reads its part."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    adapter = f".{policy.active_adapter}" if isinstance(policy, PeftModel) else None
    for name, parameter in policy.named_parameters():
        key = name.replace(adapter, "").replace(".modules_to_save.", ".") if adapter else name
        stored = weights.get(key)
        if stored is None and not parameter.requires_grad:  # frozen under adapters
            continue
        if stored is None:
            raise UserError(f"the checkpoint lacks the trained weight {key}; remove it")
        whole = stored.to(parameter.device, parameter.dtype)
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            part = distribute_tensor(whole, mesh, placements, src_data_rank=None)
            parameter.to_local().copy_(part.to_local())
        else:
            parameter.copy_(whole)


def _under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
