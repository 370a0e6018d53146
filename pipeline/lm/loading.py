"""What of the model section goes to ``from_pretrained``, and what of it cannot work here.

Everything that can be known without the model's weights and the data is tried before any work: the
attention on a layer of the model's own kind, with its gradient, against transformers' default.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from common.words import first_line
from pipeline.config import ModelSection
from pipeline.data import embedded, toy
from pipeline.errors import UserError
from pipeline.lm.hardware import best_device, compute_dtype
from pipeline.lm.quantization import quantization_config

EMBEDDED_MODEL = "embedded:smollm2-135m-instruct"
ATTENTION, MORE = "model.attn_implementation", "model.init_kwargs"
_LAYERS, _VOCABULARY, _TOKENS = 2, 64, 12  # of the model that attention is tried on
_SAME = {torch.float32: 1e-3}  # nats; other dtypes round, see pipeline.lm.check
_SAME_ROUNDED = 0.2
# Where the files are; the SFT model's are in its own folder.
_PLACES = frozenset(
    {
        *("subfolder", "variant", "gguf_file", "key_mapping", "use_safetensors", "weights_only"),
        *("cache_dir", "force_download", "local_files_only", "proxies"),
    }
)


def model_source(section: ModelSection) -> str:
    """The folder or hub id of what SFT starts from; not of ``toy``, which has none."""
    name = section.model_name_or_path
    return str(embedded.base_model()) if name == EMBEDDED_MODEL else name


def loading(section: ModelSection, base: bool = True) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` beside dtype, revision and trust_remote_code.

    Args:
        base: for the model that SFT starts from; else for one in a folder of ours, which is not
            quantised.

    Raises:
        UserError: it cannot be quantised as asked.
    """
    arguments = dict(section.init_kwargs or {})
    if not base:
        arguments = {key: value for key, value in arguments.items() if key not in _PLACES}
    if section.attn_implementation is not None:
        arguments["attn_implementation"] = section.attn_implementation
    quantized = quantization_config(section) if base else None
    if quantized is not None:
        arguments["quantization_config"] = quantized
    return arguments


def blamed(arguments: Mapping[str, Any]) -> str:
    """The keys that may be at fault where loading with ``arguments`` fails, for a message."""
    keys = {"attn_implementation": ATTENTION, "quantization_config": "model.quantization"}
    named = dict.fromkeys(keys.get(key, f"{MORE}.{key}") for key in arguments)
    return ", ".join(named)


def check_loading(section: ModelSection) -> None:
    """Refuse what the machine, the packages or the model's kind cannot do, before any work.

    Raises:
        UserError: one of the model section's settings cannot work here.
    """
    device = best_device().type
    if section.dtype == "float16" and device == "cpu":
        raise UserError(
            "model.dtype: float16 is for GPUs without bfloat16, and there is no GPU here; set it "
            "to null"
        )
    quantization_config(section)
    if section.attn_implementation is not None:
        _check_attention(section, section.attn_implementation)


def _check_attention(section: ModelSection, name: str) -> None:
    """Try it on two layers of the model, forward and backward, and compare with the default."""
    config = _small(section)
    try:
        expected = None if config is None else _probe(config, None, section)
    except Exception:  # whatever the model's own code raises where it is made this small
        expected = None
    if config is None or expected is None:
        return  # the whole model is tried when it is loaded
    try:
        found = _probe(config, name, section)
    # A package that is missing, a GPU, a kernel, the compiler: a dozen unrelated types.
    except Exception as error:
        device, why = best_device().type, first_line(error).rstrip(".")
        raise UserError(
            f"{ATTENTION}: {name} does not run here, on {device}, for "
            f"{section.model_name_or_path!r} ({why}); set it to null, or another"
        ) from error
    apart = float((found - expected).abs().max())
    if not apart <= _SAME.get(compute_dtype(section), _SAME_ROUNDED):
        raise UserError(
            f"{ATTENTION}: {name} gives other probabilities than transformers' default for "
            f"{section.model_name_or_path!r}, by {apart:.2g} nats; set it to null, or another"
        )


def _small(section: ModelSection) -> Any:
    """The model's configuration with few layers and tokens; None where it cannot be read."""
    if section.model_name_or_path == "toy":
        return toy.toy_language_model(0).config
    arguments = {"revision": section.model_revision} if section.model_revision else {}
    try:
        config = AutoConfig.from_pretrained(
            model_source(section), trust_remote_code=section.trust_remote_code, **arguments
        )
    except (OSError, ValueError, KeyError):  # told where it is loaded
        return None
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = min(_LAYERS, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:_LAYERS]
    text.vocab_size = min(_VOCABULARY, text.vocab_size)
    text.pad_token_id = None
    return config


def _probe(config: Any, name: str | None, section: ModelSection) -> Tensor:
    """Log-probabilities ``(L, V)`` of a random model; its gradient is computed too."""
    chosen = {} if name is None else {"attn_implementation": name}
    device, dtype = best_device(), compute_dtype(section)
    with torch.random.fork_rng(devices=[device] if device.type != "cpu" else []):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), trust_remote_code=section.trust_remote_code, **chosen
        )
    model.to(device=device, dtype=dtype).train()
    known = config.get_text_config().vocab_size
    tokens = torch.arange(1, _TOKENS + 1, device=device)[None] % known
    logps = model(input_ids=tokens, use_cache=False).logits[0].float().log_softmax(-1)
    first = next(model.get_decoder().parameters())
    torch.autograd.grad(logps.sum(), first, allow_unused=True)
    return logps.detach()
