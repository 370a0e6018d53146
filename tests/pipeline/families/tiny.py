"""A tiny random model of every causal language model that the installed transformers knows."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 144  # holds the toy tokenizer
WINDOW = 8  # tokens that a layer with a sliding window sees
POSITIONS = 64
LARGEST = 3_000_000  # parameters

# What a config calls its sizes; those that it does not have are left out.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "unpadded_vocab_size": VOCABULARY,
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "emb_dim": 32,
    "embedding_dim": 32,
    "embedding_size": 32,
    "input_embedding_size": 32,
    "output_embedding_size": 32,
    "word_embed_proj_dim": 32,
    "hidden_size_per_layer_input": 8,
    "lru_width": 32,
    "mamba_d_ssm": 32,
    "attention_hidden_size": 32,
    "n_positions": POSITIONS,
    "max_position_embeddings": POSITIONS,
    "max_target_positions": POSITIONS,
    "max_seq_len": POSITIONS,
    "context_length": POSITIONS,
    "intermediate_size": 48,
    "intermediate_size_mlp": 48,
    "dense_intermediate_size": 48,
    "shared_intermediate_size": 48,
    "feed_forward_size": 48,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    "decoder_ffn_dim": 48,
    "dff": 48,
    "dim_ff": 48,
    "d_inner": 48,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_layers": 4,
    "decoder_layers": 4,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "swa_head_dim": 8,
    "dim_head": 8,
    "kv_channels": 8,
    "attention_head_dim": 8,
    "sliding_window": WINDOW,
    "sliding_window_size": WINDOW,
    "attention_window_size": WINDOW,
    "attention_chunk_size": WINDOW,
    "window_size": WINDOW,
    "local_attention": WINDOW,
    "moe_intermediate_size": 16,
    "moe_ffn_hidden_size": 16,
    "expert_ffn_hidden_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_experts_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "zero_expert_num": 2,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "o_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_head_dim": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_dt_rank": 8,
    "mamba_chunk_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "state_size": 8,
    "time_step_rank": 8,
    "chunk_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# Where the sizes above do not go together.
_OWN: dict[str, dict[str, Any]] = {
    "codegen": {"rotary_dim": 4},
    "dots1": {"first_k_dense_replace": 1, "n_shared_experts": 1},
    "ernie4_5_moe": {"moe_k": 2},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 8, "mamba_n_heads": 8},
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 4},
    "kimi_linear": {"num_experts": 4, "num_experts_per_token": 2},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"hidden_size": 32, "num_heads": 8, "head_dim": 8},
    "zaya": {"num_experts_per_tok": 1},
}


# What transformers does not read back as it saved it, and why.
UNREADABLE = {
    "emu3": "is saved with a config that AutoModelForCausalLM does not know",
    "youtu": "its code sets the padding token's trained embedding to 0 on loading",
}


def families() -> list[str]:
    """The model types of the mapping, one for each class."""
    first: dict[str, str] = {}
    for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        if kind not in UNREADABLE:
            first.setdefault(name, kind)
    return sorted(first.values())


def tiny_config(kind: str) -> PreTrainedConfig:
    """The configuration of ``kind`` with four layers of width 32; of images or sound likewise."""
    return _tiny(CONFIG_MAPPING[kind], _OWN.get(kind, {}))


def _tiny(config_class: Any, own: dict[str, Any]) -> PreTrainedConfig:
    try:
        known = config_class(**own).to_dict()
    except ValueError:  # goes together only with the sizes
        known = config_class().to_dict()
    sizes = {key: value for key, value in _SIZES.items() if key in known}
    if "kv_lora_rank" in known:  # latent attention has no groups of heads
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    if len(kinds := list(dict.fromkeys(known.get("layer_types") or ()))) > 1:
        sizes["layer_types"] = [kinds[index % len(kinds)] for index in range(4)]
    for name in config_class.sub_configs:
        if isinstance(known.get(name), dict) and known[name].get("model_type") in CONFIG_MAPPING:
            part = CONFIG_MAPPING[known[name]["model_type"]]
            sizes[name] = _tiny(part, own.get(name, {})).to_dict()
    return config_class(**{**sizes, **own})


def tiny_model(kind: str, seed: int = 0) -> PreTrainedModel:
    """A random model of ``kind``, in evaluation mode, float32."""
    config = tiny_config(kind)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    count = sum(p.numel() for p in empty.parameters())
    if count > LARGEST:
        raise ValueError(f"{kind}: {count} parameters are not tiny")
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()
