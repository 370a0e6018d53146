"""A Bradley–Terry reward model from preference pairs: a scalar head, trained by trl.RewardTrainer.

The loss is −log σ(r(x, y⁺) − r(x, y⁻)), which is the log-likelihood of the preferences under
P(y⁺ ≻ y⁻) = σ(r⁺ − r⁻). Only differences of r within a prompt mean anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward_models.interface import RewardFunction
from reward_models.reading import APPENDS_EOS


def train_pairwise(
    model: str | Path,
    pairs: Sequence[dict[str, Any]],
    output_dir: str | Path,
    *,
    callbacks: Sequence[Any] = (),
    resume_from_checkpoint: str | None = None,
    **arguments: Any,
) -> Path:
    """Train a scalar head on ``pairs`` and return the folder that holds the reward model.

    The folder, ``output_dir/model``, is a sequence-classification checkpoint with one label, which
    `load_reward` takes.

    Args:
        model: The trunk: a folder or hub id. A new head is put on it unless it has one.
        pairs: ``prompt``, ``chosen`` and ``rejected``: all texts, or all conversations.
        output_dir: Where the checkpoints and the model go.
        callbacks: For the trainer.
        resume_from_checkpoint: A checkpoint folder to go on from.
        arguments: Fields of trl.RewardConfig.
    """
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    config = RewardConfig(output_dir=str(output_dir), **arguments)
    trainer = RewardTrainer(
        model=str(model),
        args=config,
        train_dataset=Dataset.from_list([dict(pair) for pair in pairs]),
        callbacks=list(callbacks) or None,
    )
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    # RewardTrainer ends every plain text with EOS; scoring must do the same.
    assert trainer.model is not None
    setattr(trainer.model.config, APPENDS_EOS, isinstance(pairs[0]["chosen"], str))
    folder = Path(output_dir) / "model"
    trainer.save_model(str(folder))
    return folder


def pair_accuracy(reward: RewardFunction, pairs: Sequence[dict[str, str]]) -> float:
    """Share of ``pairs`` (texts) whose chosen completion scores higher; a tie is half."""
    prompts = [pair["prompt"] for pair in pairs]
    chosen = reward(prompts, [pair["chosen"] for pair in pairs])
    rejected = reward(prompts, [pair["rejected"] for pair in pairs])
    wins = (0.5 * ((c > r) + (c >= r)) for c, r in zip(chosen, rejected, strict=True))
    return sum(wins) / len(pairs)
