"""Checkpoints as plain transformers, PEFT and TRL write them: tiny, random, made in a moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.data.toy import toy_tokenizer
from tests.pipeline.families.tiny import tiny_model

Made = tuple[Path, nn.Module]
"""A checkpoint's folder, and the model object that its owner has: what the policy truly is."""


def lively(kind: str, seed: int = 1, **changes: Any) -> PreTrainedModel:
    """A random model whose next-token distributions are far from uniform."""
    model = tiny_model(kind, seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model


def saved(model: nn.Module, folder: Path, tokenizer: Any = None, **arguments: Any) -> Path:
    """Save a model, and a tokenizer unless it is False."""
    model.save_pretrained(folder, **arguments)  # type: ignore[operator]
    if tokenizer is not False:
        (tokenizer or toy_tokenizer()).save_pretrained(folder)
    return folder


def whole(kind: str, **arguments: Any) -> Callable[[Path], Made]:
    """A maker of a whole checkpoint."""

    def make(root: Path) -> Made:
        model = lively(kind)
        return saved(model, root / "whole", **arguments), model

    return make


def adapter(tokenizer: Any = False, **settings: Any) -> Callable[[Path], Made]:
    """A maker of an adapter with random weights over a base of its own."""

    def make(root: Path) -> Made:
        adapted = adapted_model(root, **settings)
        return saved(adapted, root / "adapter", tokenizer), adapted

    return make


def adapted_model(root: Path, **settings: Any) -> PeftModel:
    """A PEFT model over a base in ``root``, every adapter weight random."""
    saved(lively("llama", seed=2), root / "base")
    base = AutoModelForCausalLM.from_pretrained(root / "base").eval()
    config = LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM", **settings
    )
    torch.manual_seed(3)
    adapted = get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "lora_" not in name:  # e.g. modules_to_save
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return adapted  # type: ignore[return-value]


def bfloat16(root: Path) -> Made:
    """A file in bfloat16, which the comparison computes in float32."""
    model = lively("qwen3").to(torch.bfloat16)  # type: ignore[arg-type]
    return saved(model, root / "bf16"), model.float()


def tied(root: Path) -> Made:
    """A head that is the embedding, so that the file has none."""
    model = lively("gpt2")
    assert model.config.tie_word_embeddings
    return saved(model, root / "tied"), model


def resized(root: Path) -> Made:
    """Sixteen ids more than the reference has; nothing makes their logits probable."""
    model = lively("phi")
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 16)
    with torch.no_grad():
        model.lm_head.bias[size:] = -30.0  # type: ignore[index]
    return saved(model, root / "resized"), model


def trl_adapter(root: Path) -> Made:
    """What TRL's SFTTrainer saves of a LoRA after two steps."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    base = saved(lively("llama", seed=2), root / "base")
    arguments = SFTConfig(
        output_dir=str(root / "trl"), max_steps=2, per_device_train_batch_size=2, learning_rate=0.1,
        use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, max_length=32,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=str(base),
        args=arguments,
        train_dataset=Dataset.from_dict({"text": ["the film is great", "the movie is bad"] * 2}),
        processing_class=toy_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()
    assert trainer.model is not None
    return root / "trl", trainer.model.eval()


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


COMPARED: dict[str, Callable[[Path], Made]] = {
    "full": whole("llama"),
    "sharded": whole("llama", max_shard_size="60KB"),
    "LoRA": adapter(),
    "DoRA": adapter(use_dora=True),
    "rsLoRA": adapter(use_rslora=True),
    "modules_to_save": adapter(modules_to_save=["lm_head", "embed_tokens"]),
    "TRL's adapter": trl_adapter,
    "resized vocabulary": resized,
    "GPT-2": whole("gpt2"),
    "Qwen3": whole("qwen3"),
    "Gemma3": whole("gemma3_text"),
    "Mixtral": whole("mixtral"),
    "Qwen3-MoE": whole("qwen3_moe"),
    "bfloat16 file": bfloat16,
    "tied head": tied,
}
