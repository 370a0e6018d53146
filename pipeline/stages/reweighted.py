"""Reward-weighted resampling: SFT on samples of π_ref, drawn again by exp(r/β)."""

from __future__ import annotations

from pipeline.config import Experiment
from pipeline.stages import tracking
from pipeline.stages.samples import scored_samples
from pipeline.stages.selected import learn, resampled


@tracking.tracked("reweighted")
def run(experiment: Experiment) -> None:
    """Train on ``reweighted.draws`` of ``reweighted.n`` samples a prompt, drawn by softmax(r/β)."""
    section = experiment.reweighted
    samples, rewards = scored_samples(experiment, "reweighted", section.n)
    chosen = resampled(rewards, experiment.beta, section.draws, experiment.seed)
    learn(experiment, "reweighted", samples, chosen)
