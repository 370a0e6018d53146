"""The mean and deviation of the reward's sources on π_ref's own samples, estimated once."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np

from pipeline.config import Experiment, RewardPart
from pipeline.data.records import Prompt
from pipeline.errors import UserError
from pipeline.lm.generation import Completion, sample
from pipeline.lm.models import load_checkpoint
from pipeline.lm.scored import applicable_scores
from pipeline.output.console import say
from pipeline.stages.reward_scale import fingerprint, keep_scale, known_scales
from pipeline.stages.reward_sources import PARTS, Part, source_reward, sources_of
from reward_models import RewardError
from reward_models.combined import Scale


def estimate_scales(experiment: Experiment, prompts: Sequence[Prompt]) -> None:
    """Measure every source with ``normalize: reference`` that is not measured yet, and keep it.

    Args:
        prompts: the training prompts; ``reward.normalize_samples`` completions are spread over
            them evenly.

    Raises:
        UserError: there is no reference model, a source fails, scores fewer than two completions,
            or all of them alike.
    """
    wanted = _missing(experiment)
    if not wanted:
        return
    completions = _samples(experiment, prompts)
    for part, place, source in wanted.values():
        reward = source_reward(experiment, part, place, source)
        try:
            scores = applicable_scores(reward, completions)
        except RewardError as error:
            raise UserError(str(error)) from error
        measured = moments(place, scores, Scale(source.bounds()))
        keep_scale(experiment, part, place, source, measured)
        say(
            f"reward {part} · {source.called()} on {measured['n']} samples of the reference: mean "
            f"{measured['mean']:.3f} ± {measured['standard_error']:.3f}, standard deviation "
            f"{measured['deviation']:.3f}"
        )


def _missing(experiment: Experiment) -> dict[str, tuple[Part, str, RewardPart]]:
    found: dict[str, tuple[Part, str, RewardPart]] = {}
    for part in PARTS:
        for place, source in sources_of(experiment, part).items():
            if source.normalize is not None:
                made = fingerprint(experiment, part, source)
                found.setdefault(made, (part, place, source))  # the judge's is often the proxy's
    known = known_scales(experiment)
    return {made: wanted for made, wanted in found.items() if made not in known}


def _samples(experiment: Experiment, prompts: Sequence[Prompt]) -> list[Completion]:
    """Completions of π_ref at temperature 1: of every prompt as many, give or take one."""
    model, tokenizer = load_checkpoint(
        experiment.stage_dir("sft") / "model", section=experiment.model
    )
    count = experiment.reward.normalize_samples
    rng = random.Random(f"{experiment.seed}/scale")
    order = rng.sample(range(len(prompts)), len(prompts))
    rows = [prompts[order[number % len(order)]] for number in range(count)]
    return sample(
        model,
        tokenizer,
        rows,
        max_new_tokens=experiment.generation.max_new_tokens,
        batch_size=experiment.generation.batch_size,
        seed=rng.randrange(2**31),
        label="reward: sampling the reference",
    )


def moments(place: str, scores: Sequence[float | None], scale: Scale) -> dict[str, float]:
    """Mean and standard deviation of the clipped scores, what they are of, and the mean's error.

    Args:
        place: what messages call the source. scores: None where it does not apply.
    """
    values = np.array([scale.clipped(score) for score in scores if score is not None])
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    if deviation <= 1e-6 * max(1.0, float(np.abs(values).max(initial=0.0))):
        raise UserError(
            f"{place}.normalize: the source scores {len(values)} of {len(scores)} samples of the "
            "reference model, all alike, so there is no deviation to scale by; remove normalize"
        )
    return {
        "mean": float(values.mean()),
        "deviation": deviation,
        "standard_error": deviation / math.sqrt(len(values)),
        "n": len(values),
    }
