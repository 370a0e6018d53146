"""Rejection sampling: SFT on the best of n samples of π_ref for each prompt."""

from __future__ import annotations

from pipeline.config import Experiment
from pipeline.stages import tracking
from pipeline.stages.samples import scored_samples
from pipeline.stages.selected import best, learn


@tracking.tracked("rejection")
def run(experiment: Experiment) -> None:
    """Train on the best of ``rejection.n`` samples a prompt and write ``rejection/model``."""
    samples, rewards = scored_samples(experiment, "rejection", experiment.rejection.n)
    learn(experiment, "rejection", samples, best(rewards))
