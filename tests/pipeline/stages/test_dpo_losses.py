"""Every loss that the installed TRL has for DPO trains on sampled pairs, or is refused at once."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from pipeline.config import load_experiment
from pipeline.config.losses import REBEL, TRL_LOSSES
from pipeline.data import toy
from pipeline.errors import UserError
from pipeline.lm.models import prepare
from pipeline.stages import dpo
from pipeline.stages.training import stage_arguments

ROWS = [
    {"prompt_ids": [3, 4], "chosen_ids": [9, 8, 7], "rejected_ids": [9, 6, 0]},
    {"prompt_ids": [3, 5], "chosen_ids": [9, 8, 0], "rejected_ids": [9]},
    {"prompt_ids": [6, 4], "chosen_ids": [9, 6, 0], "rejected_ids": [11, 12]},
    {"prompt_ids": [3], "chosen_ids": [5, 0], "rejected_ids": [12, 13, 14]},
]
SMOOTH = {"exo_pair": 1e-3, "robust": 0.1}


def test_the_losses_are_those_of_the_installed_trl() -> None:
    found = re.findall(r'loss_type == "(\w+)"', inspect.getsource(DPOTrainer))
    assert sorted(set(found)) == sorted(TRL_LOSSES) and REBEL not in found


@pytest.mark.parametrize("loss", [*TRL_LOSSES, REBEL])
def test_a_loss_trains_on_sampled_pairs(loss: str, tiny: Path, tmp_path: Path) -> None:
    """Through the stage's own choice of trainer; its loss falls, and weights have moved."""
    overrides = [f"dpo.loss_type={loss}", f"output_dir={tmp_path}"]
    if loss in SMOOTH:
        overrides.append(f"dpo.label_smoothing={SMOOTH[loss]}")
    experiment = load_experiment(tiny, overrides)
    settings: dict[str, Any] = {
        "output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none",
        "per_device_train_batch_size": 4, "gradient_checkpointing": False, "save_strategy": "no",
        "disable_tqdm": True, "logging_steps": 1, "learning_rate": 3e-3, "beta": 0.5,
        "max_steps": 10, "lr_scheduler_type": "constant",
    }  # fmt: skip
    arguments = DPOConfig(**settings | experiment.trainer_args("dpo") | {
        "max_steps": 10, "logging_steps": 1, "per_device_train_batch_size": 4,
        "learning_rate": 3e-3, "save_strategy": "no",
    })  # fmt: skip
    rows = [row | ({"reward_difference": 1.0} if loss == REBEL else {}) for row in ROWS]
    tokenizer = toy.toy_tokenizer()
    model = prepare(toy.toy_language_model(0), tokenizer)
    before = [p.clone() for p in model.parameters()]
    trainer = dpo.make_trainer(model, tokenizer, arguments, Dataset.from_list(rows))
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 10 and all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    assert any(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    last = [row for row in trainer.state.log_history if "loss" in row][-1]
    assert {"rewards/accuracies", "logps/chosen", "logps/rejected"} <= last.keys()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["dpo.loss_type=sigmod"], "dpo.loss_type.*did you mean sigmoid"),
        (["dpo.loss_type=exo_pair"], "dpo.loss_type=exo_pair: exo_pair needs dpo.label_smoothing"),
        (
            ["dpo.loss_type=[sigmoid,sft]", "dpo.loss_weights=[1.0]"],
            "dpo.loss_weights.*there are 1 for 2",
        ),
        (
            ["dpo.loss_type=nca_pair", "dpo.f_divergence_type=js_divergence"],
            "dpo.f_divergence_type.*js_divergence does not go with dpo.loss_type nca_pair",
        ),
        (["dpo.loss_type=aot", "dpo.use_weighting=true"], "dpo.use_weighting.*does not go with"),
    ],
)
def test_what_a_loss_does_not_go_with_is_refused_when_the_config_is_read(
    overrides: list[str], line: str, tiny: Path
) -> None:
    with pytest.raises(UserError, match=line):
        load_experiment(tiny, overrides)


def test_a_list_of_one_may_be_given_bare_by_a_policy_too(tiny: Path) -> None:
    own = ["method=dpo", "loss_type=ipo", "loss_weights=0.5"]
    experiment = load_experiment(tiny, [f"policies.half.{setting}" for setting in own])
    made = stage_arguments(experiment.of("half"), "dpo", DPOConfig)
    assert (made.loss_type, made.loss_weights) == (["ipo"], [0.5])


def test_the_trainer_pushes_nothing_itself(tiny: Path) -> None:
    pushed = ["dpo.push_to_hub=true", "dpo.hub_model_id=me/it", "dpo.hub_private_repo=true"]
    made = stage_arguments(load_experiment(tiny, pushed), "dpo", DPOConfig)
    assert not made.push_to_hub and made.hub_model_id is None and not made.hub_private_repo
