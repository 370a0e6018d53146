"""Tokens a second that a stage is expected to reach: by a card's peaks, or by timing this machine.

A card's are formulas: what is reached of the peaks is assumed (`formulas.COMPUTE_SHARE` and so on).
A processor is timed for a few seconds, as a run does before it starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.plan import formulas
from pipeline.plan.setting import Setting

if TYPE_CHECKING:
    from pipeline.stages.expected import Counter


@dataclass(frozen=True)
class Pace:
    """How fast a stage is expected to be.

    Attributes:
        rate: prompt and completion tokens a second, of all processes together. seconds: of the
            whole stage, where that is known. limit: what it waits for most.
    """

    rate: float
    seconds: float | None
    limit: str


def by_probe(stage: str, counter: Counter) -> Pace | None:
    """What the probe of this processor says; None for a stage that it does not know."""
    if not counter.knows(stage):
        return None
    seconds, tokens = counter.seconds(stage), counter.tokens(stage)
    if not tokens or seconds <= 0:
        return None
    return Pace(tokens / seconds, seconds, "this processor, timed")


def by_peaks(setting: Setting) -> Pace | None:
    """What the formulas make of the device's peaks; None where a method or a peak is not known."""
    device = setting.machine.device
    if not (device.flops and device.bandwidth):
        return None
    if setting.section == "ppo":
        return _ppo(setting)
    if setting.section in ("sft", "rejection", "reweighted", "dpo", "kto", "orpo", "cpo", "simpo"):
        return _learning(setting)
    return None


def _speeds(setting: Setting) -> tuple[float, float]:
    device = setting.machine.device
    return formulas.COMPUTE_SHARE * device.flops, formulas.MEMORY_SHARE * device.bandwidth


def _flops(setting: Setting, cached: bool) -> float:
    """Of learning from one token.

    Args:
        cached: the trunk's activations are at hand, and the head runs on completion tokens only.
    """
    policy, lengths = setting.policy, setting.lengths
    upper = policy.upper * policy.layer
    head = float(policy.vocabulary * policy.width)
    run = policy.parameters
    if cached:
        head *= lengths.response / lengths.sequence_mean
        run = upper + head
    again = upper if setting.argument("gradient_checkpointing") else 0.0
    trained = 0.0 if policy.adapted else float(policy.trained)
    return formulas.flops_per_token(run, again, upper + head, trained)


def _traffic(setting: Setting, microbatches: int) -> float:
    """Seconds that the links take for one update of the weights."""
    count, policy = setting.machine.count, setting.policy
    link = setting.machine.device.link
    if count == 1 or not link:
        return 0.0
    if not setting.split:
        sent = formulas.all_reduce(policy.trained, count)
    else:
        once = formulas.gathers(policy.parameters, count)
        sent = microbatches * (once + formulas.reduce_scatter(policy.trained, count))
    return sent / (formulas.LINK_SHARE * link)


def _named(parts: dict[str, float]) -> str:
    """The part that takes longest."""
    return max(parts, key=lambda name: parts[name])


def _learning(setting: Setting) -> Pace:
    """A microbatch after the other; samples, rewards and evaluations are not in it."""
    speed, _ = _speeds(setting)
    lengths = setting.lengths
    length = lengths.text_mean if setting.section == "sft" else lengths.sequence_mean
    tokens = setting.rows * max(1.0, length)
    accumulated = int(setting.argument("gradient_accumulation_steps") or 1)
    work = accumulated * tokens * _flops(setting, cached=False) / speed
    parts = {"FLOPs": work, "links": _traffic(setting, accumulated)}
    rate = setting.machine.count * accumulated * tokens / max(parts.values())
    return Pace(rate, None, _named(parts))


def _ppo(setting: Setting) -> Pace:
    """One rollout with its updates; the reward's time is not in it."""
    speed, memory = _speeds(setting)
    policy, lengths, argument = setting.policy, setting.lengths, setting.argument
    minibatches, epochs = int(argument("num_mini_batches")), int(argument("num_ppo_epochs"))
    accumulated = int(argument("gradient_accumulation_steps") or 1)
    rows = setting.rows * accumulated * minibatches
    given = argument("generation_batch_size") or setting.experiment.generation.batch_size
    together = min(rows, int(given))
    tokens = rows * lengths.sequence_mean
    halfway = lengths.prompt_mean + lengths.response / 2
    step = formulas.decoding_step(
        2.0 * policy.parameters, together * halfway * policy.kv_token, together,
        policy.parameters, speed, memory,
    )  # fmt: skip
    read = 2 * policy.parameters * rows * lengths.prompt_mean / speed
    cached = policy.upper < policy.layers and bool(argument("cache_trunk"))
    parts = {
        "decoding": rows / together * lengths.response * step + read,
        "FLOPs": tokens * 4 * policy.parameters / speed
        + epochs * tokens * _flops(setting, cached) / speed,
    }
    moved = epochs * minibatches * _traffic(setting, accumulated)
    seconds = parts["decoding"] + max(parts["FLOPs"], moved)
    parts["links"] = moved
    rate = setting.machine.count * tokens / seconds
    episodes: Any = argument("total_episodes")
    whole = None
    if episodes:
        whole = float(episodes) * lengths.sequence_mean / rate
    return Pace(rate, whole, _named(parts))
