"""Stage 2: the reward that is optimised (the proxy) and the judge that never is (gold).

    rated texts ─┬─ one half ────► classifier ──► reward/proxy   r(x, y) of PPO, DPO, best-of-N
                 ├─ other half ──► classifier ──► reward/gold    tells progress from exploitation
                 └─ held out ────► reward/metrics.json

r is the classifier's logit margin on prompt and completion, log P(positive) − log P(negative): in
nats, and not rescaled, so β is in the same unit. A model trained on comparisons, an ensemble, a
checkpoint or a Python function can take the place of either.
"""

from __future__ import annotations

from common.files import write_json
from pipeline.config import PAIRWISE, Experiment
from pipeline.data.comparisons import load_comparisons
from pipeline.data.splits import load_data
from pipeline.output.console import is_main_process
from pipeline.stages import tracking
from pipeline.stages.reward_card import write_cards
from pipeline.stages.reward_quality import measure_rewards, tell
from pipeline.stages.reward_reference import estimate_scales
from pipeline.stages.reward_sources import PARTS, folders_of, is_trained, trained_source
from pipeline.stages.reward_training import Job, train


@tracking.tracked("reward")
def run(experiment: Experiment) -> None:
    """Train what is to be trained, then measure all; an interrupted run resumes in any model.

    Raises:
        UserError: The data, the encoder, or a reward that is not trained here is unusable.
    """
    data = load_data(experiment)
    pairwise = PAIRWISE in experiment.reward.sources()
    comparisons = load_comparisons(experiment, data) if pairwise else None
    for part in PARTS:
        if trained_source(experiment, part) is None:
            continue
        for folder in folders_of(experiment, part):
            if not is_trained(folder):
                train(Job(experiment, part, folder), data, comparisons)
    if is_main_process():
        estimate_scales(experiment, data.train_prompts)
        metrics = measure_rewards(experiment, data, comparisons)
        write_json(experiment.stage_dir("reward") / "metrics.json", metrics)
        write_cards(experiment, metrics)
        tell(metrics)
