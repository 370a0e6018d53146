"""PPO with transformers' continuous batching: the same tokens as the trainer's own loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from pipeline.config import ModelSection
from pipeline.data import toy
from pipeline.errors import UserError
from pipeline.lm.generation import encode_prompt, sample_tokens
from pipeline.lm.hardware import autocast
from pipeline.lm.models import base_of, make_trainable, prepare
from pipeline.ppo.engines import Request, continuous
from pipeline.ppo.engines.choice import engine_of
from pipeline.ppo.engines.continuous import Continuous
from tests.pipeline.ppo.test_parts import settings
from tests.pipeline.ppo.test_trainer import PROMPTS, make_trainer, weights

STOP = frozenset({0})  # the toy tokenizer's EOS


def model(attention: str = "eager") -> PreTrainedModel:
    made = prepare(toy.toy_language_model(0), toy.toy_tokenizer())
    made.set_attn_implementation(attention)
    return made


def request(steps: int = 24, temperature: float = 1.0, rows: int = 12) -> Request:
    prompts = [encode_prompt(toy.toy_tokenizer(), PROMPTS[i])[: 2 + i % 3] for i in range(rows)]
    draws = torch.rand(rows, steps, generator=torch.Generator().manual_seed(3))
    return Request(prompts, steps, temperature, STOP, 1, 0, draws, 0)


def loop(policy: PreTrainedModel, asked: Request) -> list[list[int]]:
    """The trainer's loop's tokens, up to the first stop token."""
    rows = sample_tokens(
        policy, toy.toy_tokenizer(), asked.prompt_ids, max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature, batch_size=64, seed=0, draws=asked.draws,
    )  # fmt: skip
    ends = [next((i + 1 for i, t in enumerate(row) if t in STOP), len(row)) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


@pytest.mark.parametrize(("attention", "temperature"), [("eager", 1.0), ("sdpa", 0.7)])
def test_tokens_are_the_loop_s_and_log_probabilities_the_model_s(
    attention: str, temperature: float
) -> None:
    policy, engine = model(attention), Continuous()
    engine.begin(policy, toy.toy_tokenizer(), 30)
    asked = request(temperature=temperature)
    drawn = engine(asked)
    assert drawn.tokens == loop(policy, asked)
    assert {len(row) < asked.max_new_tokens for row in drawn.tokens} == {True, False}
    assert drawn.logps is not None
    for prompt, tokens, told in zip(asked.prompt_ids, drawn.tokens, drawn.logps, strict=True):
        with torch.no_grad():
            logits = policy(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        right = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])
        assert torch.allclose(right[:, 0], torch.tensor(told), atol=1e-5)
    assert policy.config._attn_implementation == attention


@pytest.mark.parametrize(
    "section", [{"trainable_layers": 1}, {"trainable_layers": None, "use_peft": True}]
)
def test_a_frozen_trunk_in_bfloat16_computes_as_in_the_loop(section: dict[str, Any]) -> None:
    choice = ModelSection(model_name_or_path="toy", **section)
    policy: Any = make_trainable(model("sdpa").bfloat16(), choice)
    engine = Continuous()
    engine.begin(policy, toy.toy_tokenizer(), 30)
    assert "forward" not in vars(base_of(policy))
    asked = request()
    drawn = engine(asked)
    with autocast(policy):
        expected = loop(policy, asked)
    same = sum(x == y for x, y in zip(drawn.tokens, expected, strict=True))
    assert same >= len(expected) - 3  # sums in another order may choose another token


def test_rows_are_the_same_however_they_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer at once; and so few pages that requests lose theirs and begin again."""
    policy, engine = model(), Continuous()
    engine.load(policy, 0)
    asked = request()
    whole = engine(asked)
    half = engine(replace(asked, prompt_ids=asked.prompt_ids[6:], first=6, draws=asked.draws[6:]))
    assert half.tokens == whole.tokens[6:]
    began_again = []
    of, few = continuous._settings, continuous.RequestState.create_equivalent_initial_request

    def small(*given: Any) -> Any:
        made = of(*given)
        made.page_size, made.num_blocks = 4, 30
        return made

    def noted(self: Any) -> Any:
        began_again.append(self.request_id)
        return few(self)

    monkeypatch.setattr(continuous, "_settings", small)
    monkeypatch.setattr(continuous.RequestState, "create_equivalent_initial_request", noted)
    assert engine(asked).tokens == whole.tokens
    assert began_again


@pytest.mark.parametrize(
    "section", [{"trainable_layers": 2}, {"trainable_layers": None, "use_peft": True}]
)
def test_a_run_learns_what_it_does_from_the_loop(tmp_path: Path, section: dict[str, Any]) -> None:
    ended = []
    for generation in ("loop", "continuous"):
        trainer, recorder = make_trainer(
            tmp_path / generation, section=section, generation=generation, total_episodes=32
        )
        trainer.train()
        ended.append(weights(trainer))
    (row, *_) = [row for row in recorder.logs if "loss" in row]
    assert row["engine/logp_difference"] < 1e-5
    for name, expected in ended[0].items():
        assert torch.allclose(ended[1][name], expected, atol=1e-5), name


def test_a_model_that_transformers_does_not_batch_so_is_refused_in_one_line() -> None:
    config = MambaConfig(
        vocab_size=144, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=0,
        pad_token_id=0, bos_token_id=0,
    )  # fmt: skip
    policy = prepare(MambaForCausalLM(config), toy.toy_tokenizer())
    with pytest.raises(UserError, match="generation=continuous") as error:
        Continuous().begin(policy, toy.toy_tokenizer(), 20)
    assert "\n" not in str(error.value) and "loop" in str(error.value)


def test_engines_are_refused_where_weights_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert engine_of(None, settings()) is None
    for given in ({"generation": "continuous"}, {"generation": "vllm", "server": "http://a:1"}):
        with pytest.raises(UserError, match="FSDP splits"):
            engine_of(None, settings(**given))
