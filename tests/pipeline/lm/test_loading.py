"""The model section's way into ``from_pretrained``, and its refusals before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from pipeline.config import Experiment, ModelSection, load_experiment
from pipeline.data.toy import toy_tokenizer
from pipeline.errors import UserError
from pipeline.lm.generation import sample
from pipeline.lm.hardware import use_plain_attention
from pipeline.lm.loading import check_loading, loading
from pipeline.lm.models import load_base, load_checkpoint, make_trainable
from pipeline.lm.scoring import TokenBatch
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.stages import ahead

PROMPTS = ["the film about love", "a movie", "this sequel about school is", "the drama"]


def toy(**settings: Any) -> ModelSection:
    return ModelSection(model_name_or_path="toy", **settings)


def _weaker(*given: Any, **named: Any) -> tuple[Tensor, None]:
    output, weights = sdpa_attention_forward(*given, **named)
    return output * 0.5, weights


def _without_gradient(*given: Any, **named: Any) -> tuple[Tensor, None]:
    output, weights = sdpa_attention_forward(*given, **named)

    def refuse(_: Tensor) -> Tensor:
        raise NotImplementedError("this kernel has no backward pass\non processors.")

    if output.requires_grad:
        output.register_hook(refuse)
    return output, weights


AttentionInterface.register("test_same", sdpa_attention_forward)
AttentionMaskInterface.register("test_same", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
AttentionInterface.register("test_no_mask", sdpa_attention_forward)
AttentionInterface.register("test_weaker", _weaker)
AttentionInterface.register("test_no_gradient", _without_gradient)


def trainer_of(policy: nn.Module, folder: Path) -> PPOTrainer:
    arguments = PPOConfig(
        output_dir=str(folder), per_device_train_batch_size=4, num_mini_batches=1,
        num_ppo_epochs=1, response_length=8, max_steps=1, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(len(text) % 5) for text in completions]

    return PPOTrainer(policy, reward, arguments, toy_tokenizer(), PROMPTS)


@pytest.mark.parametrize("name", ["eager", "sdpa", "test_same"])
def test_ppo_records_the_plain_models_log_probabilities(name: str, tmp_path: Path) -> None:
    section = toy(attn_implementation=name)
    check_loading(section)
    model, tokenizer = load_base(section)
    policy = make_trainable(model, section)
    trainer = trainer_of(policy, tmp_path)
    assert model.config._attn_implementation == name  # also sdpa, where it was asked for
    made = sample(policy, tokenizer, PROMPTS, max_new_tokens=8, batch_size=4, seed=3)
    batch = TokenBatch.collate(made, 0, torch.device("cpu"))
    record = trainer.actor_critic.eval().token_record(batch)
    plain = load_base(toy())[0].eval()  # transformers' own, with its default attention
    with torch.no_grad():
        logps = plain(input_ids=batch.sequences, use_cache=False).logits.log_softmax(-1)
    steps = batch.prompt_lengths[:, None] - 1 + torch.arange(batch.mask.shape[1])
    index = steps.clamp(max=logps.shape[1] - 1)[..., None].expand(-1, -1, logps.shape[-1])
    chosen = logps.gather(1, index).gather(-1, batch.completion_ids[..., None]).squeeze(-1)
    assert torch.allclose(record.logps, chosen * batch.mask, atol=1e-5)


def test_attention_that_does_not_see_padding_is_refused_at_start(tmp_path: Path) -> None:
    model, _ = load_base(toy(attn_implementation="test_no_mask"))
    with pytest.raises(UserError, match="set model.attn_implementation=null"):
        trainer_of(make_trainable(model, toy()), tmp_path)


def test_only_a_default_attention_is_replaced_on_a_processor() -> None:
    for section, kept in ((toy(), "eager"), (toy(attn_implementation="sdpa"), "sdpa")):
        model, _ = load_base(section)
        use_plain_attention(model, torch.device("cpu"), 64)
        assert model.config._attn_implementation == kept


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flash_attention_2", "does not run here, on cpu, for 'toy'"),
        ("kernels-community/flash-attn3", "does not run here, on cpu"),
        ("nonsense", "does not run here, on cpu"),
        ("test_weaker", "gives other probabilities than transformers' default"),
        ("test_no_gradient", "no backward pass"),
    ],
)
def test_attention_that_does_not_work_here_is_refused_before_data_is_read(
    name: str, said: str
) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    model = {"model_name_or_path": "toy", "attn_implementation": name}
    data = {"dataset_name": "nowhere.jsonl"}
    experiment = Experiment.model_validate({"model": model, "data": data})
    with pytest.raises(UserError, match=said) as caught:
        ahead.check(experiment, ["sft"])
    assert "\n" not in str(caught.value) and str(caught.value).startswith("model.attn_impl")


def test_float16_is_refused_without_a_gpu() -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    with pytest.raises(UserError, match="model.dtype: float16 is for GPUs"):
        check_loading(toy(dtype="float16"))


def test_everything_reaches_from_pretrained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_base(toy())
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    given: list[dict[str, Any]] = []
    plain = AutoModelForCausalLM.from_pretrained

    def note(name: str, **named: Any) -> Any:
        given.append(named)
        return plain(name, dtype=named["dtype"])

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", note)
    section = ModelSection(
        model_name_or_path=str(tmp_path),
        attn_implementation="kernels-community/flash-attn3",
        init_kwargs={"use_kernels": True, "subfolder": "x"},
    )
    load_base(section)
    load_checkpoint(tmp_path, section=section)
    more = {"attn_implementation": "kernels-community/flash-attn3", "use_kernels": True}
    assert given[0].items() >= {**more, "subfolder": "x"}.items()
    assert given[1].items() >= more.items() and "subfolder" not in given[1]


def test_init_kwargs_change_the_model_and_wrong_ones_are_one_line() -> None:
    model, _ = load_base(toy(init_kwargs={"rms_norm_eps": 0.25}))
    assert model.config.rms_norm_eps == 0.25 and model.model.norm.variance_epsilon == 0.25
    with pytest.raises(UserError, match=r"with model.init_kwargs.no_such_thing") as caught:
        load_base(toy(init_kwargs={"no_such_thing": 1}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"init_kwargs": {"torch_dtype": "float32"}}, "has a key of its own: set model.dtype"),
        ({"init_kwargs": {"attn_implementation": "sdpa"}}, "set model.attn_implementation"),
        ({"init_kwargs": {"device_map": "auto"}}, "would place the model where the trainers"),
        ({"init_kwargs": {"state_dict": {}}}, "would load another model"),
        ({"init_kwargs": {"token": "hf_x"}}, "set the environment variable HF_TOKEN"),
        ({"quantization": "4bit"}, "set model.use_peft=true"),
        ({"quantization": "2bit"}, "expected 4bit or 8bit or a mapping or null"),
    ],
)
def test_settings_that_cannot_go_together_are_refused(
    model: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump({"model": {"model_name_or_path": "toy", **model}}))
    with pytest.raises(UserError, match=said) as caught:
        load_experiment(path)
    assert "\n" not in str(caught.value)


def test_records_of_older_runs_stay_as_they_are() -> None:
    """Keys that came later are not in what a result was made with while they are unset."""
    written = ModelSection().model_dump()
    assert not written.keys() & {"attn_implementation", "quantization", "init_kwargs"}
    assert loading(ModelSection()) == {}
