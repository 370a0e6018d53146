"""The value head that is kept gives the values that were trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config import ModelSection, load_experiment
from pipeline.data.toy import toy_language_model, toy_tokenizer
from pipeline.errors import UserError
from pipeline.lm.generation import Completion, sample
from pipeline.lm.models import load_checkpoint, make_trainable, prepare
from pipeline.lm.saving import save_policy
from pipeline.lm.scoring import TokenBatch
from pipeline.ppo import PPOConfig
from pipeline.ppo.actor_critic import ActorCritic
from pipeline.ppo.prefix import PrefixCritic
from pipeline.ppo.value_head import load_value_head, save_value_head, values
from pipeline.stages import ppo

PROMPTS = ["the film about love", "a movie", "this sequel about school is"]


def completions() -> list[Completion]:
    model, tokenizer = toy_language_model(0), toy_tokenizer()
    policy = prepare(model, tokenizer)
    return sample(policy, tokenizer, PROMPTS, max_new_tokens=6, batch_size=4, seed=0)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("width", [1.0, 0.3])
def test_values_are_equal_after_loading(tmp_path: Path, lora: bool, width: float) -> None:
    rows, tokenizer = completions(), toy_tokenizer()
    model = prepare(toy_language_model(0), tokenizer)
    section = ModelSection(model_name_or_path="toy", use_peft=lora, lora_r=4)
    config = PPOConfig(output_dir=str(tmp_path), use_cpu=True, value_head_hidden=width)
    critic = ActorCritic(make_trainable(model, section), config)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in critic.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    batch = TokenBatch.collate(rows, 0, torch.device("cpu"))
    trained = critic.token_record(batch).values
    save_value_head(critic.value_head, tmp_path / "value_head")
    save_policy(critic.policy, tokenizer, tmp_path / "model", torch.float32)
    policy, _ = load_checkpoint(tmp_path / "model")
    given = values(load_value_head(tmp_path / "value_head"), policy, rows)
    expected = [row[mask].tolist() for row, mask in zip(trained, batch.mask, strict=True)]
    assert max(map(abs, expected[0])) > 0.01
    for ours, theirs in zip(given, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_ppo_keeps_it_beside_its_policy(tiny: Path, tmp_path: Path) -> None:
    settings = ["total_episodes=16", "num_ppo_epochs=1", "save_value_head=true", "critic=prefix"]
    given = [f"output_dir={tmp_path}", *(f"ppo.{setting}" for setting in settings)]
    experiment = load_experiment(tiny, given)
    toy_language_model(0).save_pretrained(tmp_path / "sft" / "model")
    toy_tokenizer().save_pretrained(tmp_path / "sft" / "model")
    ppo.train(experiment, reward=lambda prompts, completions: [len(c) for c in completions])
    head = load_value_head(tmp_path / "ppo" / "value_head")
    assert float(head.out.weight.abs().max()) > 0  # it starts at 0
    assert not any(parameter.requires_grad for parameter in head.parameters())
    assert '"prefix_lines": [' in (tmp_path / "ppo" / "value_head" / "config.json").read_text()


def test_lines_of_prefixes_are_kept_with_it(tmp_path: Path) -> None:
    critic = ActorCritic(toy_language_model(0), PPOConfig(output_dir=str(tmp_path), use_cpu=True))
    save_value_head(critic.value_head, tmp_path / "v", PrefixCritic(8))
    assert load_value_head(tmp_path / "v").inner.in_features > 0


def test_what_is_no_value_head_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no value head .config.json is not there"):
        load_value_head(tmp_path)
    critic = ActorCritic(toy_language_model(0), PPOConfig(output_dir=str(tmp_path), use_cpu=True))
    save_value_head(critic.value_head, tmp_path / "v")
    config = (tmp_path / "v" / "config.json").read_text()
    (tmp_path / "v" / "config.json").write_text(config.replace('"inner_size": ', '"inner_size": 1'))
    with pytest.raises(UserError, match="do not go together"):
        load_value_head(tmp_path / "v")
