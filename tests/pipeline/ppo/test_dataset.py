"""PPO takes prompts as scripts have them: lists, and datasets with a column of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from pipeline.data import toy
from pipeline.errors import UserError
from pipeline.ppo import PPOConfig, PPOTrainer

TEXTS = ["the film is", "the plot is", "a story about", "this movie about"]
TALKS = [[{"role": "user", "content": text}] for text in TEXTS]


def seen_in_training(dataset: Any, tmp_path: Path) -> set[str]:
    """The prompts that the reward is asked about."""
    seen: set[str] = set()

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        seen.update(prompts)
        return [0.0] * len(completions)

    arguments = PPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, disable_tqdm=True, save_strategy="no",
        report_to=[], total_episodes=8, per_device_train_batch_size=4, num_mini_batches=2,
        num_ppo_epochs=1, response_length=2,
    )  # fmt: skip
    tokenizer = toy.toy_tokenizer()
    trainer = PPOTrainer(toy.toy_language_model(0), reward, arguments, tokenizer, dataset, dataset)
    trainer.train()
    return seen


@pytest.mark.parametrize("prompts", [TEXTS, TALKS], ids=["texts", "conversations"])
def test_a_dataset_gives_what_a_list_gives(prompts: list[Any], tmp_path: Path) -> None:
    dataset = Dataset.from_dict({"prompt": prompts, "id": list(range(len(prompts)))})
    seen = seen_in_training(dataset, tmp_path)
    assert seen == seen_in_training(prompts, tmp_path) == set(TEXTS)


def test_a_dataset_without_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column 'prompt'; there are 'input_ids'"):
        seen_in_training(Dataset.from_dict({"input_ids": [[1, 2]]}), tmp_path)
