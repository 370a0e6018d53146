"""What a PPO checkpoint holds beside the Trainer's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
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
from pipeline.ppo.prefix import PrefixCritic
from pipeline.ppo.upkeep.gold import GoldWatch

TRAINED = "trained.safetensors"
VALUE_HEAD = "value_head.safetensors"
STATE = "ppo_state.json"


def save(
    folder: Path,
    model: ActorCritic,
    tokenizer: PreTrainedTokenizerBase,
    control: KLController,
    deviation: RunningDeviation,
    critic: PrefixCritic | None = None,
    gold: GoldWatch | None = None,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write policy (or adapter), tokenizer, critic and controllers into ``folder``.

    Weights keep the dtype they are trained in, so that a resumed run goes on bit-equal. A PEFT
    model's folder holds what others need of its adapters, and all that is trained once more under
    its own names: whatever the adapters are called and whatever is trained beside them comes back.

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
        save_file(_trained(model.policy) if policy is None else policy, folder / TRAINED)
    else:
        base_of(model.policy).save_pretrained(str(folder), state_dict=policy, max_shard_size="1TB")
    tokenizer.save_pretrained(str(folder))
    save_file(head or model.value_head.state_dict(), folder / VALUE_HEAD)
    kept = {"kl_coef": control.coefficient, "deviation": vars(deviation)}
    if critic is not None:
        kept["prefix_critic"] = critic.sums.tolist()  # JSON keeps every digit of a float64
    if gold is not None:
        kept["gold"] = vars(gold)
    write_json(folder / STATE, kept)


def load(
    folder: Path,
    model: ActorCritic,
    control: KLController,
    deviation: RunningDeviation,
    critic: PrefixCritic | None = None,
    gold: GoldWatch | None = None,
) -> None:
    """Read back what :func:`save` wrote, into the objects at hand.

    Raises:
        UserError: a trained weight is not in it, or one is that the policy does not have.
    """
    policy = model.policy
    weights = _adapters(folder) if isinstance(policy, PeftModel) else _whole(folder, policy)
    put(weights, policy, folder)
    model.value_head.load_state_dict(load_file(folder / VALUE_HEAD))
    load_controllers(folder, control, deviation, critic, gold)


def _trained(policy: nn.Module) -> dict[str, Tensor]:
    """Every trained weight, once, under its name."""
    return {n: p.detach().contiguous() for n, p in policy.named_parameters() if p.requires_grad}


def _adapters(folder: Path) -> dict[str, Tensor]:
    if not (folder / TRAINED).is_file():
        raise UserError(f"{folder}: no {TRAINED}, so it is of another version; remove it")
    return load_file(folder / TRAINED)


def _whole(folder: Path, policy: nn.Module) -> dict[str, Tensor]:
    """Every weight of a saved policy, under the names in the model.

    ``save_pretrained`` writes hub names and layouts (an expert each, say), and only
    ``from_pretrained`` turns all of them back. In float32, which holds each dtype's numbers.
    """
    plain: Any = next(c for c in type(policy).__mro__ if not issubclass(c, FSDPModule))
    loaded, told = plain.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    lost = [*told["missing_keys"], *told["mismatched_keys"]]
    if lost:
        raise UserError(f"{folder}: the checkpoint lacks the weight {lost[0]}; remove it")
    return loaded.state_dict()


@torch.no_grad()
def put(weights: dict[str, Tensor], policy: nn.Module, source: Path | str) -> None:
    """Copy ``weights`` into the policy; where it is split, each process its part.

    Args:
        weights: whole, under their names in the policy. Frozen ones may be missing.
        source: where they are from, for the message.

    Raises:
        UserError: a trained weight is missing or of another shape, or one has no place.
    """
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    own = {**dict(policy.named_parameters(remove_duplicate=False)), **_buffers(policy)}
    if unknown := weights.keys() - own.keys():
        raise UserError(f"{source}: {min(unknown)} is no weight of this policy; remove it")
    given = {id(own[name]) for name in weights}
    for name, parameter in own.items():
        stored = weights.get(name)
        if stored is None:
            if parameter.requires_grad and id(parameter) not in given:
                raise UserError(f"{source}: the trained weight {name} is missing; remove it")
            continue
        if stored.shape != parameter.shape:
            raise UserError(f"{source}: {name} has another shape; remove it")
        whole = stored.to(parameter.device, parameter.dtype)
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            part = distribute_tensor(whole, mesh, placements, src_data_rank=None)
            parameter.to_local().copy_(part.to_local())
        else:
            parameter.copy_(whole)


def _buffers(policy: nn.Module) -> dict[str, Tensor]:
    """The buffers that are saved."""
    names = policy.state_dict().keys()
    return {name: buffer for name, buffer in policy.named_buffers() if name in names}


def load_controllers(
    folder: Path,
    control: KLController,
    deviation: RunningDeviation,
    critic: PrefixCritic | None = None,
    gold: GoldWatch | None = None,
) -> None:
    """The part of :func:`load` that is not weights."""
    state = read_json(folder / STATE)
    control.coefficient = state["kl_coef"]
    vars(deviation).update(state["deviation"])
    if critic is not None and "prefix_critic" in state:
        critic.sums = torch.tensor(state["prefix_critic"], dtype=torch.float64)
    if gold is not None and "gold" in state:
        vars(gold).update(state["gold"])


def gold_has_fallen(folder: Path) -> bool:
    """Whether the judge's marks had fallen when the checkpoint was saved."""
    return bool(read_json(folder / STATE).get("gold", {}).get("fallen"))


def policy_weights(model: ActorCritic) -> dict[str, Tensor] | None:
    """The policy's whole weights, of adapters only those, on process 0 (others get nothing).

    Every process must call this. ``None`` where no weights are split.
    """
    return gathered(model.policy) if isinstance(model, FSDPModule) else None


def gathered(policy: nn.Module) -> dict[str, Tensor]:
    """The whole weights of a policy that FSDP splits, as :func:`policy_weights` gives them."""
    options = StateDictOptions(
        full_state_dict=True,
        cpu_offload=True,
        ignore_frozen_params=isinstance(policy, PeftModel),
    )
    weights: dict[str, Any] = get_model_state_dict(policy, options=options)
    for name in getattr(policy, "all_tied_weights_keys", None) or {}:
        weights.pop(name, None)  # stored once, as without FSDP
    return weights


def _under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
