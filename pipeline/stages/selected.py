r"""Rejection sampling and reward-weighted resampling: SFT on those of π_ref's samples that pay.

Each training prompt gets n samples of π_ref with their rewards. Of them are learnt

* ``rejection``: the best. SFT minimises the forward KL to what it is shown, so the optimum is the
  best-of-n distribution, at a KL of at most log n − (n − 1)/n nats (Beirami et al. 2024,
  arXiv 2401.01879), whatever β is;
* ``reweighted``: draws with probabilities ∝ exp(r/β). Reward-weighted regression (Peters and
  Schaal 2007) from π_ref: as n grows, what is drawn follows π_ref exp(r/β)/Z, which is π* at β.
  With n samples its tilt is less, as no more than log n nats can come of n samples.

Completions are learnt as they were sampled: one that ran into the length limit gets no EOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.special import softmax
from torch import nn
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from common.files import write_json
from pipeline.config import Experiment
from pipeline.lm.hardware import best_device
from pipeline.lm.models import base_of
from pipeline.lm.positions import cut_length
from pipeline.output.console import is_main_process
from pipeline.stages.cost import write_cost
from pipeline.stages.samples import samples_cost
from pipeline.stages.training import fit, load_trainable_sft, save_trained, stage_arguments
from pipeline.stages.trl_compat import fit_tiles_to

Row = dict[str, Any]


def best(rewards: np.ndarray) -> np.ndarray:
    """The place ``(P, 1)`` of each row's highest of rewards ``(P, n)``; the first of equals."""
    return rewards.argmax(1)[:, None]


def resampled(rewards: np.ndarray, beta: float, draws: int, seed: int) -> np.ndarray:
    """Places ``(P, draws)`` drawn from each row of ``(P, n)`` rewards by softmax(r/β).

    One random number for a row places ``draws`` equidistant points on its cumulative weights
    (systematic resampling; Douc et al. 2005, section 2.4): each sample is drawn its weight times
    ``draws`` often, rounded up or down, and in expectation exactly so.
    """
    ends = softmax(rewards / beta, axis=1).cumsum(1)
    start = np.random.default_rng(seed).random((len(rewards), 1))
    points = (start + np.arange(draws)) / draws * ends[:, -1:]
    return (points[:, :, None] >= ends[:, None, :-1]).sum(-1)


class CompletionTrainer(SFTTrainer):
    """TRL's, with a loss that is the mean over completions of the sum over their tokens.

    TRL divides by the tokens of the batch at hand. A completion would then count the less the
    longer those are that it is batched with, and its own length with them. Here the divisor is
    that of an average batch: the same scale, and every completion counts alike.
    """

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        counted = super()._get_num_items_in_batch(batch_samples, device)
        if counted is None:
            return None
        rows = torch.tensor(sum(len(batch["labels"]) for batch in batch_samples), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            rows = self.accelerator.gather(rows).sum()  # type: ignore[union-attr]
        return rows * self._mean_length

    _mean_length: float = 1.0

    def learn_tokens(self) -> None:
        """Take the mean number of learnt tokens from the training set."""
        labels: Any = self.train_dataset["labels"]  # type: ignore[index]
        counts = [sum(token != -100 for token in row) for row in labels]
        self._mean_length = float(np.mean(counts))


def rows_of(samples: Sequence[Row], chosen: np.ndarray) -> Dataset:
    """The chosen places ``(P, k)`` of P prompts' samples as tokens with labels."""
    n = len(samples) // len(chosen)
    rows = [samples[prompt * n + place] for prompt, places in enumerate(chosen) for place in places]
    return Dataset.from_list(
        [
            {
                "input_ids": [*row["prompt_ids"], *row["completion_ids"]],
                "labels": [-100] * len(row["prompt_ids"]) + list(row["completion_ids"]),
            }
            for row in rows
        ]
    )


def make_trainer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    arguments: SFTConfig,
    rows: Dataset,
    data_collator: Any = None,
) -> CompletionTrainer:
    """A trainer on rows of :func:`rows_of`."""
    trainer = CompletionTrainer(
        model=model,  # type: ignore[arg-type]
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=data_collator,
    )
    trainer.learn_tokens()
    return trainer


def learn(experiment: Experiment, stage: str, samples: list[Row], chosen: np.ndarray) -> None:
    """Train on the chosen of ``samples`` and write ``<stage>/model``.

    ``<stage>/selection.json`` says how the chosen differ from all: mean rewards, and the share of
    the samples that are learnt at all.
    """
    arguments = stage_arguments(
        experiment, stage, SFTConfig, gradient_checkpointing=False, logging_first_step=True
    )
    model, tokenizer = load_trainable_sft(experiment)
    key = f"{stage}.max_length"
    arguments.max_length = cut_length(base_of(model), arguments.max_length, key)
    fit_tiles_to(best_device().type)
    trainer = make_trainer(model, tokenizer, arguments, rows_of(samples, chosen))
    if is_main_process():
        rewards = np.array([row["reward"] for row in samples]).reshape(len(chosen), -1)
        picked = np.take_along_axis(rewards, chosen, 1)
        different = sum(len(set(row)) for row in chosen.tolist())
        said = {
            "reward": float(rewards.mean()),
            "chosen_reward": float(picked.mean()),
            "share_learnt": different / rewards.size,
        }
        write_json(experiment.stage_dir(stage) / "selection.json", said)
    fit(trainer, experiment, stage)
    save_trained(trainer, experiment, stage, trainer.accelerator.unwrap_model(trainer.model))
    write_cost(experiment, stage, **samples_cost(experiment, stage))
