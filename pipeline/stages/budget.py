"""Says before a run about how long it will take here, and which smaller budget there is."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping

import torch

from common.words import clock
from pipeline.config import OVER_SFT, Experiment, ModelSection
from pipeline.config.choices import on_own_pairs
from pipeline.data.splits import load_data
from pipeline.data.tally import listening
from pipeline.data.tokenizer import load_tokenizer
from pipeline.lm.hardware import best_device, compute_dtype
from pipeline.lm.speed import Speed, classifier, measure
from pipeline.output.console import say
from pipeline.stages.encoders import new_encoder
from pipeline.stages.expected import Counter, Encoder, counts_all, trains_classifier
from pipeline.stages.expected_texts import look_at

LONG = 25 * 60.0
"""Seconds from which on a smaller budget is named."""
# What can be less, and the least that is still named.
_LEAST = {
    "ppo.total_episodes": 512,
    "pairs.max_pairs": 512,
    "compare.reference_samples": 16,
    "compare.samples_per_prompt": 4,
}
_STAGES = {"ppo": "ppo", "pairs": "dpo", "compare": "compare"}
_DRAWN_AT_ONCE = 64
_READ = (32, 24)  # texts, and tokens of each, that the classifier is timed on


def tell(experiment: Experiment, stages: Mapping[str, float]) -> None:
    """Say what ``stages`` will take, each and together; nothing where that cannot be told.

    It cannot under a launcher or on a GPU, where operations are not what takes the time, nor is it
    worth a measurement for a toy.

    Args:
        stages: those with work to do, and the seconds that each has run for already.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1 and best_device().type == "cpu"
    if not alone or not stages or experiment.model.model_name_or_path == "toy":
        return
    try:
        with torch.random.fork_rng(devices=[]):  # a run is the same with and without it
            counter = counter_of(experiment)
    # An estimate must not end a run: what is wrong the stages will say, each in its own words.
    except Exception:
        return
    if counter is None:
        return
    seconds = _left(counter, stages)
    known = {stage: each for stage, each in seconds.items() if counter.knows(stage)}
    parts = ", ".join(f"{stage} {_about(each)}" for stage, each in known.items())
    total = sum(seconds.values())
    more = "" if counts_all(experiment) else "; the reward's own time is not in it"
    unknown = [stage for stage in stages if not counter.knows(stage)]
    more += f"; nor is that of {', '.join(unknown)}" if unknown else ""
    say(f"expected on this machine: about {_about(total)} ({parts}){more}")
    if total > LONG:
        _tell_smaller(counter, stages)


def _tell_smaller(counter: Counter, stages: Mapping[str, float]) -> None:
    """Name the settings of a run of half the budget, or a quarter, where that helps."""
    for divisor in (2, 4):
        overrides = smaller(counter.experiment, stages, divisor)
        reduced = Counter(
            _with(counter.experiment, overrides), counter.texts, counter.speed, counter.encoder
        )
        total = sum(_left(reduced, stages).values())
        if total <= LONG or divisor == 4:
            break
    if overrides:
        settings = " ".join(f"{key}={value}" for key, value in overrides.items())
        say(
            f"a smaller budget takes about {_about(total)}, and ends less near to the optimum: add "
            f"{settings} (make quickstart SET='…')"
        )


def smaller(experiment: Experiment, stages: Container[str], by: int) -> dict[str, int]:
    """Overrides that make the budget of ``stages`` ``by`` times smaller, as far as there is sense.

    Returns:
        settings by dotted key.
    """
    found: dict[str, int] = {}
    todo = [stage for stage in experiment.stages() if stage.name in stages]
    draws = {stage.section for stage in todo if stage.name not in on_own_pairs(experiment)}
    for key, least in _LEAST.items():
        section, name = key.split(".")
        value = getattr(getattr(experiment, section), name, None)
        if _STAGES[section] not in draws or not isinstance(value, int):
            continue
        if name == "reference_samples":
            least = max(least, experiment.compare.best_of_n)
        if name == "max_pairs":  # of as many completions, whatever they are paired with
            pairs = experiment.pairs
            least = pairs.of_group * -(-2 * least // pairs.samples_per_prompt)
        less = max(least, value // by)
        if less < value:
            found[key] = less
    return found


def _with(experiment: Experiment, overrides: Mapping[str, int]) -> Experiment:
    for key, value in overrides.items():
        section, name = key.split(".")
        changed = getattr(experiment, section).model_copy(update={name: value})
        experiment = experiment.model_copy(update={section: changed})
    return experiment


def _left(counter: Counter, stages: Mapping[str, float]) -> dict[str, float]:
    """Seconds that each stage still takes."""
    return {stage: max(0.0, counter.seconds(stage) - before) for stage, before in stages.items()}


def _about(seconds: float) -> str:
    """Minutes, without seconds that would not be true anyway."""
    minutes = round(seconds / 60)
    return clock(60 * minutes) if minutes >= 60 else f"{minutes} min" if minutes else "< 1 min"


def counter_of(experiment: Experiment) -> Counter | None:
    """Time this processor on the experiment's model; None where that is too large for it."""
    tokenizer = load_tokenizer(experiment.model)
    with listening():
        texts = look_at(experiment, load_data(experiment), tokenizer)
    speed = measure(experiment.model, tokenizer, _DRAWN_AT_ONCE)
    if speed is None:
        return None
    return Counter(experiment, texts, speed, _encoder(experiment, speed))


def _encoder(experiment: Experiment, speed: Speed) -> Encoder | None:
    """What the classifier costs; None where the reward is another."""
    if not trains_classifier(experiment):
        return None
    if experiment.reward.encoder == OVER_SFT:
        return Encoder(speed.layers * speed.forward, speed.layers * speed.training, speed.step)
    model, _ = new_encoder(experiment, seed=0)
    mixed = compute_dtype(ModelSection()) == torch.bfloat16
    return Encoder(*classifier(model, *_READ, mixed=mixed))
