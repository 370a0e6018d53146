"""What to change where a stage does not fit, each change with the memory that it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.plan.memory import Need, need_of
from pipeline.plan.setting import Setting

_CARDS = (2, 4, 8, 16, 32, 64)
_UPPER = 3  # of the layers, the upper third is proposed to be trained


@dataclass(frozen=True)
class Change:
    """One thing to change.

    Attributes:
        settings: as they are written after the command, or what to launch. why: what it costs.
        need: of the stage then.
    """

    settings: str
    why: str
    need: Need


def changes(stage: str, setting: Setting) -> list[Change]:
    """Changes after each of which the stage fits; where none does alone, what does together."""
    room = setting.machine.room
    found, tried = [], []
    for settings, why, changed in _candidates(stage, setting):
        change = Change(settings, why, need_of(stage, changed))
        tried.append((change, changed))
        if change.need.peak.total <= changed.machine.room:
            found.append(change)
    found = _first_of_each(found)
    return found or _together(stage, setting, room)


def _first_of_each(found: list[Change]) -> list[Change]:
    """The mildest of each kind."""
    kinds: dict[str, Change] = {}
    for change in found:
        kinds.setdefault(change.why, change)
    return list(kinds.values())


def _candidates(stage: str, setting: Setting) -> Iterator[tuple[str, str, Setting]]:
    """Settings, what they cost, and the setting with them; the mildest of a kind first."""
    yield from _smaller_batches(stage, setting)
    yield from _less_generated(stage, setting)
    yield from _recomputed(stage, setting)
    yield from _fewer_trained(setting)
    yield from _more_cards(stage, setting)


def _key(stage: str, setting: Setting, name: str) -> str:
    """Where a trainer's argument of a stage is set."""
    return f"{setting.section}.{name}" if stage == setting.section else f"policies.{stage}.{name}"


def _with(setting: Setting, section: str, **values: Any) -> Setting:
    old = getattr(setting.experiment, section)
    changed = {section: old.model_copy(update=values)}
    return setting.with_(experiment=setting.experiment.model_copy(update=changed))


def _smaller_batches(stage: str, setting: Setting) -> Iterator[tuple[str, str, Setting]]:
    if setting.section == "compare":
        return
    rows = setting.rows
    accumulated = int(setting.argument("gradient_accumulation_steps") or 1)
    size, times = "per_device_train_batch_size", "gradient_accumulation_steps"
    less = rows // 2
    while less >= 1:
        steps = accumulated * -(-rows // less)
        words = f"{_key(stage, setting, size)}={less} {_key(stage, setting, times)}={steps}"
        values = {size: less, times: steps}
        yield words, "the same result, in more passes", _with(setting, setting.section, **values)
        less //= 2


def _less_generated(stage: str, setting: Setting) -> Iterator[tuple[str, str, Setting]]:
    if setting.section in ("sft", "reward"):
        return
    less = setting.experiment.generation.batch_size // 2
    if setting.section == "ppo" and setting.argument("generation_batch_size"):
        return
    while less >= 1:
        changed = _with(setting, "generation", batch_size=less)
        yield f"generation.batch_size={less}", "fewer completions at once, slower", changed
        less //= 2


def _recomputed(stage: str, setting: Setting) -> Iterator[tuple[str, str, Setting]]:
    if setting.section in ("compare", "reward") or setting.argument("gradient_checkpointing"):
        return
    words = f"{_key(stage, setting, 'gradient_checkpointing')}=true"
    changed = _with(setting, setting.section, gradient_checkpointing=True)
    yield words, "layers run again in the backward pass: a quarter slower", changed


def _fewer_trained(setting: Setting) -> Iterator[tuple[str, str, Setting]]:
    """Upper layers, adapters, and adapters over quantised weights: other policies."""
    if setting.section in ("compare", "reward"):
        return
    model = setting.model
    upper = max(1, setting.policy.layers // _UPPER)
    if not model.use_peft and (model.trainable_layers or setting.policy.layers) > upper:
        changed = _with(setting, "model", trainable_layers=upper)
        yield f"model.trainable_layers={upper}", "trains the upper third only", changed
    lora = {"use_peft": True, "trainable_layers": None, "policy_modules": None}
    words = "model.use_peft=true"
    if model.trainable_layers is not None:
        words += " model.trainable_layers=null"
    if not model.use_peft:
        yield words, "trains LoRA adapters", _with(setting, "model", **lora)
    if model.quantization is None:
        four = _with(setting, "model", **lora, quantization="4bit")
        yield f"{words} model.quantization=4bit", "trains LoRA over 4-bit weights", four


def _more_cards(stage: str, setting: Setting) -> Iterator[tuple[str, str, Setting]]:
    """FSDP2 over more cards; beside it a generation server, for a policy too large for one."""
    machine = setting.machine
    if machine.device.is_processor or setting.section in ("compare", "reward"):
        return
    served = setting.section == "ppo"
    for count in (n for n in _CARDS if n > machine.count or not setting.split):
        split = setting.with_(machine=machine.of(count), split=True)
        launch = f"{count} cards with configs/accelerate/fsdp2.yaml"
        yield launch, "weights split over the cards", split
        if served:
            server = _with(split, "ppo", generation="vllm")
            words = f"{launch} {_key(stage, setting, 'generation')}=vllm (and its server)"
            yield words, "a generation server beside them", server


def _together(stage: str, setting: Setting, room: float) -> list[Change]:
    """The strongest of every kind on one card, one after the other until it fits."""
    changed, words, costs = setting, [], []
    for make in (_recomputed, _smaller_batches, _less_generated, _adapters):
        steps = list(make(stage, changed))
        if not steps:
            continue
        settings, why, changed = steps[-1]
        words.append(settings)
        costs.append(why)
        need = need_of(stage, changed)
        if need.peak.total <= room:
            return [Change(" ".join(words), "; ".join(costs), need)]
    return []


def _adapters(_: str, setting: Setting) -> Iterator[tuple[str, str, Setting]]:
    return _fewer_trained(setting)
