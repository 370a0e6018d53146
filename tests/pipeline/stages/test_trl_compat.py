"""Pins what pipeline/stages/trl_compat.py relies on in the installed TRL."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.trainer.utils as trl_utils
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from pipeline.certify.methods import collate_labelled, collate_pairs
from pipeline.config import ModelSection
from pipeline.config.losses import PLAIN, TRL_LOSSES
from pipeline.data import toy
from pipeline.lm.models import frozen_copy, make_trainable, prepare
from pipeline.stages.trl_compat import TokenizedDPOTrainer, TokenizedKTOTrainer, fit_tiles_to


@pytest.mark.parametrize("trainer", [DPOTrainer, KTOTrainer])
def test_overridden_method_has_the_expected_signature(trainer: type) -> None:
    parameters = list(inspect.signature(trainer._prepare_dataset).parameters)  # type: ignore[attr-defined]
    assert parameters == ["self", "dataset", "processing_class", "args", "dataset_name"]


def test_what_the_pair_trainer_overrides_is_there() -> None:
    for name, expected in (
        ("_compute_loss", ["self", "model", "inputs", "return_outputs"]),
        ("_precompute_ref_logps", ["self", "dataset", "name", "batch_size"]),
        ("_set_signature_columns_if_needed", ["self"]),
        ("_get_train_sampler", ["self", "train_dataset"]),
    ):
        assert list(inspect.signature(getattr(DPOTrainer, name)).parameters) == expected


def test_the_losses_known_are_trls() -> None:
    source = inspect.getsource(DPOTrainer._compute_loss)
    assert tuple(re.findall(r'if loss_type == "(\w+)"', source)) == TRL_LOSSES
    fields = {field.name: field.default for field in dataclasses.fields(DPOConfig)}
    assert {key: fields[key] for key in PLAIN} == PLAIN


def test_tile_size_is_a_module_constant_and_changes_no_result() -> None:
    tokenizer = toy.toy_tokenizer()
    losses = []
    before = trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE
    try:
        for tile in (before, 50):
            trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = tile
            model = prepare(toy.toy_language_model(0), tokenizer)
            trl_utils.add_fused_lm_head(model)
            tokens = torch.arange(3, 20)[None]
            output = model(tokens, labels=tokens, fused_lm_head=True)  # type: ignore[operator]
            output.loss.backward()
            losses.append((output.loss.item(), model.lm_head.weight.grad))
        fit_tiles_to("cpu")
        assert trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE == 1024
    finally:
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = before
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-6)
    assert torch.allclose(losses[0][1], losses[1][1], atol=1e-6)


def test_dpo_trains_on_the_sampled_tokens_without_an_added_eos(tmp_path: Path) -> None:
    tokenizer = toy.toy_tokenizer()
    rows = [
        {"prompt_ids": [3, 4], "chosen_ids": [9, 8, 7], "rejected_ids": [9, 6, 0]},
        {"prompt_ids": [3], "chosen_ids": [5, 0], "rejected_ids": [12, 13, 14]},
    ]
    choice = ModelSection(model_name_or_path="toy", trainable_layers=1)
    model = make_trainable(prepare(toy.toy_language_model(0), tokenizer), choice)
    arguments = DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_steps=1,
        per_device_train_batch_size=2, gradient_checkpointing=False, save_strategy="no",
        disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    logs: list[dict[str, Any]] = []

    class Keep(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.append(logs)

    seen = logs
    trainer = TokenizedDPOTrainer(
        model=model,  # type: ignore[arg-type]
        ref_model=frozen_copy(model),  # type: ignore[arg-type]
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Keep()],
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trained = [
        tuple(ids[mask.bool()].tolist())
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert sorted(trained) == sorted([(9, 8, 7), (5, 0), (9, 6, 0), (12, 13, 14)])
    trainer.train()
    assert logs[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # policy is reference: log 2


LABELLED = [
    {"prompt_ids": [3], "completion_ids": [9, 8, 7], "KL_completion_ids": [5, 0], "label": True},
    {"prompt_ids": [3, 4], "completion_ids": [6], "KL_completion_ids": [9, 8, 7], "label": False},
]


def test_the_certificates_collators_make_what_trls_make() -> None:
    pairs = [
        {"prompt_ids": [3, 4], "chosen_ids": [9, 8, 7], "rejected_ids": [9, 0]},
        {"prompt_ids": [3], "chosen_ids": [5, 0], "rejected_ids": [12, 13, 14]},
    ]
    for ours, theirs in (
        (collate_pairs(pairs), DataCollatorForPreference(pad_token_id=0)(pairs)),
        (collate_labelled(LABELLED), DataCollatorForUnpairedPreference(pad_token_id=0)(LABELLED)),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_kto_trains_on_the_sampled_tokens_without_an_added_eos(tmp_path: Path) -> None:
    tokenizer = toy.toy_tokenizer()
    choice = ModelSection(model_name_or_path="toy", trainable_layers=1)
    model = make_trainable(prepare(toy.toy_language_model(0), tokenizer), choice)
    trainer = TokenizedKTOTrainer(
        model=model,  # type: ignore[arg-type]
        ref_model=frozen_copy(model),  # type: ignore[arg-type]
        args=KTOConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_steps=1,
            per_device_train_batch_size=2, gradient_checkpointing=False, save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(LABELLED),
        processing_class=tokenizer,
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    trained = [
        tuple(ids[mask.bool()].tolist())
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert sorted(trained) == [(6,), (9, 8, 7)]
    assert trainer.train().training_loss == pytest.approx(0.5, abs=1e-3)  # policy is reference
