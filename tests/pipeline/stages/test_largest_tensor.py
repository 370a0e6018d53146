"""With long rows no tensor holds all tokens times the vocabulary, nor all tokens squared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, SFTConfig, SFTTrainer

from pipeline.config import ModelSection
from pipeline.data import toy
from pipeline.lm.models import make_trainable, prepare
from pipeline.lm.scoring import logits_chunk
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.ppo.engines import Request
from pipeline.stages import dpo, trl_compat

VOCABULARY, LONGEST, ROWS, CHUNK = 4096, 520, 2, 64
LOGITS = 4 * ROWS * LONGEST * VOCABULARY  # bytes that must not be there at once
COMMON: dict[str, Any] = {
    "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no",
    "report_to": "none", "per_device_train_batch_size": ROWS,
}  # fmt: skip


class Largest(TorchDispatchMode):
    """Notes the most bytes that one tensor has."""

    bytes = 0
    shape: tuple[int, ...] = ()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() > self.bytes:
                self.bytes, self.shape = tensor.untyped_storage().nbytes(), tuple(tensor.shape)
        return output


def long_model(**section: Any) -> Any:
    """A Llama with four layers of width 16 and room for long rows."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2 * LONGEST,
        bos_token_id=None, eos_token_id=0, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = prepare(LlamaForCausalLM(config), toy.toy_tokenizer())
    return make_trainable(model, ModelSection(model_name_or_path="toy", **section))


@pytest.mark.parametrize(
    ("section", "arguments"),
    [
        ({"trainable_layers": 1}, {"kl_estimator": "exact"}),
        ({"trainable_layers": None}, {"entropy_coef": 0.01}),
    ],
    ids=["head frozen, exact KL", "head trained, entropy"],
)
def test_ppo(tmp_path: Path, section: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Sampling, scoring, update and metrics of one rollout, and the checks before it.

    Sampled is once: token by token is slow.
    """
    lengths: list[int] = []

    def given(request: Request) -> list[list[int]]:
        return [[3] * request.max_new_tokens for _ in request.prompt_ids]

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(len(text)) for text in completions]

    class Trainer(PPOTrainer):
        def on_rollout(self, rollout: Any) -> dict[str, float]:
            lengths.extend(rollout.batch.mask.sum(1).tolist())
            return super().on_rollout(rollout)

    args = PPOConfig(
        **COMMON, **arguments, output_dir=str(tmp_path), total_episodes=ROWS,
        num_ppo_epochs=1, num_mini_batches=1, response_length=LONGEST, logits_chunk=CHUNK,
    )  # fmt: skip
    with Largest() as trying:
        trainer = Trainer(
            model=long_model(**section),
            reward_function=reward,
            args=args,
            processing_class=toy.toy_tokenizer(),
            train_dataset=["the film is", "this story is quite"],
            sampler=given if "entropy_coef" in arguments else None,
        )
    with Largest() as largest:
        trainer.train()
    # A padded prompt is tried that is as long as can be: its mask is larger than its logits are.
    assert trying.bytes <= 4 * ROWS * LONGEST**2, trying.shape
    assert sum(lengths) > LONGEST  # EOS is one of 4,096 tokens
    assert largest.bytes <= 4 * CHUNK * VOCABULARY, largest.shape


def pairs(tokens: int) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()

    return [
        {"prompt_ids": some(8), "chosen_ids": some(tokens), "rejected_ids": some(tokens)}
        for _ in range(ROWS)
    ]


def test_dpo(tmp_path: Path) -> None:
    args = DPOConfig(**COMMON, output_dir=str(tmp_path), max_steps=1, max_length=None)
    with Largest() as largest:
        model = long_model(trainable_layers=1)
        dpo.make_trainer(
            model, toy.toy_tokenizer(), args, Dataset.from_list(pairs(LONGEST))
        ).train()
    chunk = logits_chunk(torch.device("cpu"))
    assert largest.bytes <= 4 * chunk * VOCABULARY, largest.shape


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_trl_s_own(tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fused head holds tiles of tokens times some of the vocabulary."""
    monkeypatch.setattr(trl_compat.trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", None)
    trl_compat.fit_tiles_to("cpu")
    tile = trl_compat.trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE
    data, given = pairs(LONGEST), {"output_dir": str(tmp_path), "max_steps": 1, **COMMON}
    rows = [{"input_ids": row["prompt_ids"] + row["chosen_ids"]} for row in data]
    tokens = ROWS * (LONGEST + 8)
    with Largest() as largest:
        model, tokenizer = long_model(trainable_layers=1), toy.toy_tokenizer()
        if stage == "sft":
            args: Any = SFTConfig(**given, max_length=None)
            SFTTrainer(
                model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
            ).train()
        else:
            args = DPOConfig(**given, max_length=None, loss_type=["hinge"])
            dpo.make_trainer(model, tokenizer, args, Dataset.from_list(data)).train()
            tokens *= 2
    assert largest.bytes <= 4 * tile * tokens < LOGITS * tokens // (ROWS * LONGEST), largest.shape
