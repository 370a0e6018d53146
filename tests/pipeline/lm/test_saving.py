"""Finished LoRA policies: merged, as adapters over the SFT model, or both; moved with their run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import nn

from pipeline.compare.checkpoints import load_policy
from pipeline.config import load_experiment
from pipeline.data.toy import toy_language_model, toy_tokenizer
from pipeline.errors import UserError
from pipeline.lm.models import base_of, load_checkpoint
from pipeline.output.policies import policy_folder
from pipeline.stages.training import load_trainable_sft, save_trained

LORA = ["model.use_peft=true", "model.lora_r=4"]


class _Finished:
    """What `save_trained` asks of a trainer."""

    processing_class = toy_tokenizer()

    def is_world_process_zero(self) -> bool:
        return True


def finished(tiny: Path, out: Path, form: str) -> tuple[Path, torch.Tensor]:
    """The folder of a PPO policy as ``form`` has it, and its logits before it was saved."""
    experiment = load_experiment(tiny, [*LORA, f"output_dir={out}", f"model.save={form}"])
    toy_language_model(0).save_pretrained(out / "sft" / "model")
    toy_tokenizer().save_pretrained(out / "sft" / "model")
    policy, _ = load_trainable_sft(experiment)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    expected = logits(policy)
    save_trained(_Finished(), experiment, "ppo", policy)  # type: ignore[arg-type]
    return out / "ppo", expected


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=torch.arange(3, 15)[None]).logits


@pytest.mark.parametrize(
    ("form", "there"),
    [("merged", ["model"]), ("adapter", ["adapter"]), ("both", ["adapter", "model"])],
)
def test_each_form_gives_the_policy_back(
    tiny: Path, tmp_path: Path, form: str, there: list[str]
) -> None:
    folder, expected = finished(tiny, tmp_path, form)
    assert sorted(path.name for path in folder.iterdir()) == there
    reference = logits(load_checkpoint(tmp_path / "sft" / "model")[0])
    assert (reference - expected).abs().max() > 0.05
    for name in there:
        loaded, tokenizer = load_checkpoint(folder / name)
        assert not isinstance(loaded, PeftModel) and len(tokenizer) == len(toy_tokenizer())
        assert torch.allclose(logits(loaded), expected, atol=1e-5)
        beside, _ = load_policy(str(folder / name), "play", torch.float32)
        assert torch.allclose(logits(beside), expected, atol=1e-5)
    assert policy_folder(folder).name == there[-1]


def test_peft_alone_loads_the_adapters(tiny: Path, tmp_path: Path) -> None:
    folder, expected = finished(tiny, tmp_path, "adapter")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "sft" / "model")
    model = AutoPeftModelForCausalLM.from_pretrained(str(folder / "adapter"))
    assert torch.allclose(logits(model), expected, atol=1e-5)
    assert not (folder / "adapter" / "README.md").exists()


def test_a_trainer_s_own_reference_is_not_kept(tiny: Path, tmp_path: Path) -> None:
    """TRL's DPO puts one more adapter on the policy."""
    finished(tiny, tmp_path, "adapter")
    experiment = load_experiment(tiny, [*LORA, f"output_dir={tmp_path}", "model.save=adapter"])
    policy, _ = load_trainable_sft(experiment)
    assert isinstance(policy, PeftModel)
    policy.add_adapter("ref", policy.peft_config["default"])
    save_trained(_Finished(), experiment, "dpo", policy)  # type: ignore[arg-type]
    kept = tmp_path / "dpo" / "adapter"
    assert (kept / "adapter_model.safetensors").is_file() and not (kept / "ref").exists()


def test_adapters_over_a_rounded_base_lose_nothing(tiny: Path, tmp_path: Path) -> None:
    """Where no dtype is asked for they are merged in float32, whatever the base is kept in."""
    folder, _ = finished(tiny, tmp_path, "adapter")
    base = toy_language_model(0).to(torch.bfloat16)  # type: ignore[arg-type]
    base.save_pretrained(tmp_path / "sft" / "model")
    expected = AutoPeftModelForCausalLM.from_pretrained(
        str(folder / "adapter"), dtype=torch.float32
    )
    loaded, _ = load_checkpoint(folder / "adapter")
    assert base_of(loaded).dtype == torch.float32
    assert torch.allclose(logits(loaded), logits(expected), atol=1e-5)


def test_a_moved_run_finds_its_own_sft_model(tiny: Path, tmp_path: Path) -> None:
    folder, expected = finished(tiny, tmp_path / "here", "adapter")
    moved = shutil.move(tmp_path / "here", tmp_path / "there")
    loaded, _ = load_checkpoint(Path(moved) / "ppo" / "adapter")
    assert torch.allclose(logits(loaded), expected, atol=1e-5)
    shutil.rmtree(Path(moved) / "sft")
    with pytest.raises(UserError, match="here/sft/model") as error:
        load_checkpoint(Path(moved) / "ppo" / "adapter")
    assert "\n" not in str(error.value)
    assert not folder.exists()


def test_adapters_of_whole_weights_are_refused(tiny: Path) -> None:
    with pytest.raises(UserError, match="model.save=both: both is of LoRA adapters, and there are"):
        load_experiment(tiny, ["model.save=both"])
