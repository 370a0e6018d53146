"""How long a sequence a model takes: its real limit, told before any work, and no token beyond."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    BloomConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MptConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    XGLMConfig,
)

from pipeline.data import toy
from pipeline.errors import UserError
from pipeline.lm import positions
from pipeline.lm.generation import sample
from pipeline.lm.models import prepare
from pipeline.lm.positions import check_prompts, cut_length, tokens_taken
from pipeline.lm.scoring import text_nll

LIMIT = 24
TOKENIZER = toy.toy_tokenizer()
V = len(TOKENIZER)
SMALL: dict[str, Any] = {"vocab_size": V, "pad_token_id": TOKENIZER.pad_token_id}
SMALL |= {"bos_token_id": TOKENIZER.eos_token_id, "eos_token_id": TOKENIZER.eos_token_id}
LIKE_GPT2: dict[str, Any] = SMALL | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LIMIT}
LIKE_LLAMA: dict[str, Any] = SMALL | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": LIMIT,
}
LIKE_ROBERTA: dict[str, Any] = LIKE_LLAMA | {"pad_token_id": 1, "is_decoder": True}
LIKE_PHI: dict[str, Any] = LIKE_LLAMA | {"max_position_embeddings": 48}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 16,
}
LEARNED: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(**LIKE_GPT2),
    "opt": OPTConfig(
        **{k: v for k, v in LIKE_LLAMA.items() if k != "intermediate_size"},
        ffn_dim=64,
        word_embed_proj_dim=32,
    ),
    "biogpt": BioGptConfig(**LIKE_LLAMA),
}
HARD = LEARNED | {
    "sines in a table": GPTJConfig(**LIKE_GPT2, rotary_dim=4),
    "slopes in a table": MptConfig(**SMALL, d_model=32, n_layers=2, n_heads=4, max_seq_len=LIMIT),
}
ENDLESS = {
    "rotary": LlamaConfig(**LIKE_LLAMA),
    "slopes": BloomConfig(**SMALL, hidden_size=32, n_layer=2, n_head=4),
    "sines that grow": XGLMConfig(
        **SMALL, d_model=32, num_layers=2, attention_heads=4, ffn_dim=64, max_position_embeddings=24
    ),
}


def model_of(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    return prepare(model, TOKENIZER).eval()


def runs(model: PreTrainedModel, length: int) -> bool:
    """Whether the plain model, all of it, takes so many tokens."""
    try:
        with torch.no_grad():
            model(input_ids=5 + torch.arange(length)[None] % (V - 5))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", HARD)
def test_a_limit_is_where_the_whole_model_fails(name: str) -> None:
    model = model_of(HARD[name])
    assert runs(model, LIMIT) and not runs(model, LIMIT + 1)
    assert tokens_taken(model, 60) == LIMIT
    assert tokens_taken(model, LIMIT) == LIMIT
    assert tokens_taken(model, 7) == 7


def test_positions_that_begin_behind_an_offset_are_not_what_the_config_says() -> None:
    model = model_of(RobertaConfig(**LIKE_ROBERTA))
    assert runs(model, LIMIT - 2) and not runs(model, LIMIT - 1)
    assert tokens_taken(model, LIMIT) == LIMIT - 2


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_without_an_end_have_none(name: str, dtype: torch.dtype) -> None:
    assert tokens_taken(model_of(ENDLESS[name]).to(dtype=dtype), 60) == 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (LlamaConfig(**LIKE_LLAMA, rope_parameters=DYNAMIC), LIMIT),
        (
            Phi3Config(
                **LIKE_PHI,
                original_max_position_embeddings=16,
                rope_parameters=LONG,
            ),
            16,
        ),
    ],
)
def test_positions_scaled_by_the_length_end_where_scaling_begins(config, limit, dtype) -> None:
    """Beyond, the first tokens' logits depend on how many follow, so scores are not."""
    model = model_of(config)
    tokens = 5 + torch.arange(limit + 8)[None] % (V - 5)
    with torch.no_grad():
        alone = model(input_ids=tokens[:, :8]).logits
        within = model(input_ids=tokens[:, :limit]).logits[:, :8]
        beyond = model(input_ids=tokens).logits[:, :8]
    torch.testing.assert_close(within, alone, atol=2e-6, rtol=0)
    assert (beyond - alone).abs().max() > 1e-5
    assert tokens_taken(model.to(dtype=dtype), limit + 8) == limit


LIMITS = {name: (config, LIMIT) for name, config in HARD.items()} | {
    "behind an offset": (RobertaConfig(**LIKE_ROBERTA), LIMIT - 2),
    "dynamic": (LlamaConfig(**LIKE_LLAMA, rope_parameters=DYNAMIC), LIMIT),
    "longrope": (
        Phi3Config(**LIKE_PHI, original_max_position_embeddings=16, rope_parameters=LONG), 16
    ),
} | {name: (config, 60) for name, config in ENDLESS.items()}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_a_long_row_s_ends_say_what_the_row_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positions, "_LONG", 4)
    config, limit = LIMITS[name]
    assert tokens_taken(model_of(config), 60) == limit


def test_no_row_of_all_positions_that_a_config_speaks_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 131,072 of them a layer's states take gigabytes."""
    model = model_of(LlamaConfig(**{**LIKE_LLAMA, "max_position_embeddings": 131_072}))
    plain, rows = positions._through_first_layer, []

    def through(model: Any, tokens: torch.Tensor, given: Any = None) -> Any:
        rows.append(tokens.shape[1])
        return plain(model, tokens, given)

    monkeypatch.setattr(positions, "_through_first_layer", through)
    assert cut_length(model, None, "sft.max_length") is None
    assert rows and max(rows) <= 2


def test_a_prompt_that_does_not_fit_is_named_with_the_limit_and_the_mend() -> None:
    model = model_of(LEARNED["gpt2"])
    prompts = [
        "the film",
        " ".join(["the film about love"] * 4),
        "a movie",
        " ".join(["the film about love"] * 9),
    ]
    assert check_prompts(model, TOKENIZER, prompts[:3], 8, "training") == 16
    with pytest.raises(UserError) as error:
        check_prompts(model, TOKENIZER, prompts[:3], 9, "training")
    assert str(error.value) == (
        "training prompt 1 ('the film about love the film about love '…) has 16 tokens, and with 9"
        " to follow that is too long: GPT2LMHeadModel takes 24 tokens; shorten or remove those of"
        " more than 15 tokens, or lower generation.max_new_tokens (response_length), now 9"
    )
    with pytest.raises(UserError, match=r"prompt 0 .* of 4\).*; lower generation.max_new_tokens"):
        check_prompts(model, TOKENIZER, prompts, 24, "evaluation")
    with pytest.raises(
        UserError, match=r"prompt 0 .*has 36 .*remove those of more than 23 tokens$"
    ):
        check_prompts(model, TOKENIZER, prompts[3:], 1, "training")


def test_beyond_the_positions_it_was_made_for_a_rotary_model_is_warned_of(capsys) -> None:
    model = model_of(ENDLESS["rotary"])
    prompts = ["the film", " ".join(["the film about love"] * 4)]
    check_prompts(model, TOKENIZER, prompts, 8, "training")
    assert capsys.readouterr().err == ""
    check_prompts(model, TOKENIZER, prompts, 9, "training")
    line = capsys.readouterr().err
    assert "training prompt 1 has 16 tokens, with 9 to follow" in line
    assert "24 positions that LlamaForCausalLM was made for" in line


def test_texts_are_cut_where_the_model_ends_and_that_is_said(capsys) -> None:
    model = model_of(LEARNED["opt"])
    assert cut_length(model, 1024, "sft.max_length") == LIMIT
    assert "sft.max_length: OPTForCausalLM takes 24 tokens" in capsys.readouterr().err
    assert cut_length(model, None, "sft.max_length") == LIMIT
    assert cut_length(model, 20, "sft.max_length") == 20
    endless = model_of(ENDLESS["rotary"])
    capsys.readouterr()
    assert cut_length(endless, None, "sft.max_length") is None
    assert cut_length(endless, 1024, "sft.max_length") == 1024
    assert capsys.readouterr().err == ""


def test_perplexity_counts_the_tokens_that_the_model_takes() -> None:
    model = model_of(LEARNED["gpt2"])
    total, count = text_nll(model, TOKENIZER, [" ".join(["the film about love"] * 9), "a movie"])
    short, three = text_nll(model, TOKENIZER, ["a movie"])
    ids = torch.tensor([TOKENIZER(" ".join(["the film about love"] * 9))["input_ids"][:LIMIT]])
    with torch.no_grad():
        logps = model(input_ids=ids).logits.log_softmax(-1)
    long = -logps[0, :-1].gather(1, ids[0, 1:, None]).sum()
    assert count == LIMIT - 1 + three
    assert total == pytest.approx(float(long) + short, rel=1e-5)


@pytest.mark.parametrize("name", LEARNED)
def test_left_padding_moves_no_learned_position(name: str) -> None:
    """In a batch of prompts of unlike length every row is sampled, to the model's last position,
    as it is alone: each token is the one that the plain model's distribution gives."""
    model = model_of(LEARNED[name])
    prompts = ["the", "the film about love", "this sequel about school is the film about love"]
    draws = torch.rand(3, LIMIT - 9, generator=torch.Generator().manual_seed(1))
    settings: dict[str, Any] = {"max_new_tokens": LIMIT - 9, "seed": 0}
    made = sample(model, TOKENIZER, prompts, batch_size=3, draws=draws, **settings)
    assert len({len(c.prompt_ids) for c in made}) == 3
    for row, completion in enumerate(made):
        ids = torch.tensor([completion.prompt_ids + completion.completion_ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(completion.prompt_ids) - 1 : -1]
        running = logits.softmax(-1).double().cumsum(-1)
        chosen = torch.tensor(completion.completion_ids)[:, None]
        draw = draws[row, : len(chosen), None].double()
        low = running.gather(1, (chosen - 1).clamp(min=0)) * (chosen > 0)
        assert (low - 1e-5 <= draw).all() and (draw <= running.gather(1, chosen) + 1e-5).all()
