"""Memory of reward models: those that are asked, and the one that the reward stage trains."""

from __future__ import annotations

from functools import cache
from typing import Any

from pipeline.config import OVER_SFT, is_trained_here
from pipeline.config.rewards import RewardPart
from pipeline.config.sections import TRAINED_LENGTH, ModelSection
from pipeline.errors import UserError
from pipeline.plan import formulas
from pipeline.plan.setting import Setting
from pipeline.plan.sizes import classifier_parameters
from pipeline.stages.encoders import EMBEDDED_ENCODER
from pipeline.stages.reward_training import DEFAULTS

_ADAPTERS = 0.05  # of the SFT model's weights, about: what adapters over it add
# Bytes a token, unit of width and layer of an encoder in float32, with attention short as it is.
_ENCODER_ACTIVATIONS = 80


def loaded_rewards(setting: Setting, judge: bool = False) -> float:
    """Bytes of the models that are asked for rewards; functions, rules and services hold none here.

    Args:
        judge: the gold judge too.
    """
    experiment = setting.experiment
    section = experiment.reward
    members = section.members if is_trained_here(section.source) else 1
    total = sum(members * _weights(setting, part) for part in section.parts("source"))
    evaluated = str(experiment.trainer_args("ppo").get("eval_strategy", "no")) != "no"
    if judge or (setting.section == "ppo" and evaluated):
        gold = section.parts("gold") or section.parts("source")
        total += sum(_weights(setting, part) for part in gold)
    return total


def _weights(setting: Setting, part: RewardPart) -> float:
    """Bytes of one source's model, 0 where it is none or not known."""
    section = setting.experiment.reward
    if part.source in ("sentiment", "pairwise"):
        if section.encoder == OVER_SFT:
            return 4.0 * _ADAPTERS * setting.policy.parameters
        return 4.0 * encoder_parameters(section.encoder, setting.model)
    if part.kind() != "checkpoint":
        return 0.0
    try:
        return 4.0 * _known(part.source, setting.model.trust_remote_code)
    except UserError:
        return 0.0


def encoder_parameters(name: str, section: ModelSection) -> int:
    """Weights of the classifier's trunk and head."""
    if name == "toy":
        from pipeline.data.toy import toy_encoder

        return sum(p.numel() for p in toy_encoder(0).parameters())
    if name == EMBEDDED_ENCODER:
        from pipeline.data import embedded

        name = str(embedded.encoder())
    return _known(name, section.trust_remote_code)


@cache
def _known(source: str, trust_remote_code: bool) -> int:
    section = ModelSection(trust_remote_code=trust_remote_code)
    return classifier_parameters(source, section, "reward.source")


def trained_classifier(setting: Setting) -> dict[str, float] | None:
    """Roles of training one classifier; None where the reward stage trains nothing."""
    section = setting.experiment.reward
    if not section.trains_here():
        return None
    arguments = DEFAULTS | setting.experiment.trainer_args("reward")
    rows = int(arguments["per_device_train_batch_size"])
    length = min(setting.lengths.text, section.max_length or TRAINED_LENGTH)
    if section.encoder == OVER_SFT:
        policy = setting.policy
        trained = _ADAPTERS * policy.parameters
        kept = setting.kept(rows, length)
        return {
            "frozen weights": float(policy.parameters * setting.dtype.itemsize),
            "trained weights": 4 * trained,
            "Adam": 8 * trained,
            "activations": kept.layer * policy.layers,
        }
    parameters = encoder_parameters(section.encoder, setting.model)
    config = _encoder_config(section.encoder)
    width = int(getattr(config, "hidden_size", 384))
    layers = int(getattr(config, "num_hidden_layers", 6))
    states = formulas.states(parameters, 0.0, 0.0)
    states["activations"] = float(_ENCODER_ACTIVATIONS * rows * length * width * layers)
    return states


def _encoder_config(name: str) -> Any:
    from transformers import AutoConfig

    if name == "toy":
        from pipeline.data.toy import toy_encoder

        return toy_encoder(0).config
    if name == EMBEDDED_ENCODER:
        from pipeline.data import embedded

        name = str(embedded.encoder())
    return AutoConfig.from_pretrained(name)
