"""What the tests of plans share: a model that is only a configuration."""

from __future__ import annotations

from pathlib import Path

from transformers import LlamaConfig

from pipeline.data.toy import toy_tokenizer

# Prime factors that no other number here has, so that no sum is right by chance.
SIZES = dict(
    hidden_size=96, intermediate_size=224, num_hidden_layers=5, num_attention_heads=6,
    num_key_value_heads=3, max_position_embeddings=512, vocab_size=307, tie_word_embeddings=True,
)  # fmt: skip


def llama(**changes: object) -> LlamaConfig:
    """A Llama of `SIZES`, changed in places."""
    return LlamaConfig(**{**SIZES, **changes}, bos_token_id=None, eos_token_id=0, pad_token_id=0)


def folder_of(path: Path, **changes: object) -> Path:
    """A model's folder without any weights."""
    config = llama(**changes)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(path)
    toy_tokenizer().save_pretrained(path)
    return path
