"""What a PPO checkpoint holds beside the Trainer's own files."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from pipeline.files import read_json, write_json
from pipeline.models import base_of
from pipeline.ppo.actor_critic import ActorCritic
from pipeline.ppo.control import KLController, RunningDeviation

VALUE_HEAD = "value_head.safetensors"
STATE = "ppo_state.json"


def save(
    folder: Path,
    model: ActorCritic,
    tokenizer: PreTrainedTokenizerBase,
    control: KLController,
    deviation: RunningDeviation,
) -> None:
    """Write policy (or adapter), tokenizer, value head and controllers into ``folder``.

    Weights keep the dtype they are trained in, so that a resumed run goes on bit-equal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model.policy, PeftModel):
        model.policy.save_pretrained(str(folder))
    else:
        base_of(model.policy).save_pretrained(str(folder), max_shard_size="1TB")
    tokenizer.save_pretrained(str(folder))
    save_file(model.value_head.state_dict(), folder / VALUE_HEAD)
    write_json(folder / STATE, {"kl_coef": control.coefficient, "deviation": vars(deviation)})


def load(
    folder: Path, model: ActorCritic, control: KLController, deviation: RunningDeviation
) -> None:
    """Read back what :func:`save` wrote, into the objects at hand."""
    if isinstance(model.policy, PeftModel):
        set_peft_model_state_dict(model.policy, load_peft_weights(str(folder)))
    else:
        weights = load_file(folder / "model.safetensors")
        base_of(model.policy).load_state_dict(weights, strict=False)  # tied weights are stored once
    model.value_head.load_state_dict(load_file(folder / VALUE_HEAD))
    state = read_json(folder / STATE)
    control.coefficient = state["kl_coef"]
    vars(deviation).update(state["deviation"])
