"""Rows one behind the other: what one is laid out as, and which models do not take it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.data import toy
from pipeline.errors import UserError
from pipeline.lm.generation import Completion
from pipeline.lm.models import prepare
from pipeline.lm.packing import pack
from pipeline.lm.scoring import TokenBatch
from pipeline.ppo import PPOConfig
from pipeline.ppo.actor_critic import ActorCritic
from pipeline.ppo.packed import check_packing, tell_cost
from tests.pipeline.families.tiny import tiny_config
from tests.pipeline.ppo.test_parts import settings
from tests.pipeline.ppo.test_trainer import make_trainer


def test_rows_follow_one_another_without_their_last_tokens() -> None:
    rows = [Completion("", (7, 8), (1, 2, 3), "", True), Completion("", (9,), (4,), "", True)]
    packed = pack(TokenBatch.collate(rows, 0, torch.device("cpu")))
    assert packed.tokens.tolist() == [[7, 8, 1, 2, 9]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 0]]
    # The 8 predicts the first row's 1, the 9 the second row's 4.
    assert packed.predicting.tolist() == [1, 2, 3, 4]
    assert packed.real.sum(1).tolist() == [4, 1]
    whole = pack(TokenBatch.collate(rows, 0, torch.device("cpu")), with_last=True)
    assert whole.tokens.tolist() == [[7, 8, 1, 2, 3, 9, 4]]
    assert whole.tokens[0, whole.predicting].tolist() == [8, 1, 2, 9]


def actor_critic(kind: str, attention: str = "sdpa", **arguments: Any) -> ActorCritic:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind))
    with suppress(ValueError):  # some have only one
        model.set_attn_implementation(attention)
    with torch.no_grad():
        for parameter in model.parameters():  # initial weights are small, and so is what they see
            parameter.mul_(3.0)
    return ActorCritic(prepare(model, toy.toy_tokenizer()), settings(packing=True, **arguments))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma3_text", "qwen3_moe"])
def test_models_that_take_packed_rows(kind: str, attention: str) -> None:
    """Rotary and learned positions, sliding windows, experts."""
    model = actor_critic(kind, attention)
    check_packing(model, 64)
    assert model.packing


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("mamba", "sees the one before it"),
        ("bloom", "sees the one before it|fails on them|are others"),
        ("opt", "sees the one before it|fails on them|are others"),
    ],
)
def test_models_that_do_not_are_refused(kind: str, why: str) -> None:
    """A state that runs on, positions by distance without rows, positions of its own."""
    with pytest.raises(UserError, match=f"packing: .*({why}).* set packing to false"):
        check_packing(actor_critic(kind), 64)


def test_it_is_tried_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ActorCritic.token_record

    def mixed(self: ActorCritic, batch: TokenBatch, trunk: Any = None) -> Any:
        record = plain(self, batch, trunk)
        return record._replace(logps=record.logps + 0.1 * self.packing)

    monkeypatch.setattr(ActorCritic, "token_record", mixed)
    with pytest.raises(UserError, match="packing: LlamaForCausalLM .* others .by 0.1 nats"):
        make_trainer(tmp_path, packing=True)


def test_a_large_mask_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    model = actor_critic("llama")
    args: PPOConfig = settings(packing=True, microbatch_tokens=32768)
    tell_cost(model, args, 4200)
    assert "32,768 × 32,768 tokens (1.0 GiB)" in capsys.readouterr().err
    tell_cost(model, settings(packing=True, microbatch_tokens=4096), 4200)
    assert not capsys.readouterr().err
