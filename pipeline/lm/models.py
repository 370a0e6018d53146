"""Loading and saving of policies and tokenizers, and what of a policy is trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from common.files import new_folder
from pipeline.config import ModelSection
from pipeline.data import embedded, toy
from pipeline.errors import UserError
from pipeline.lm.hardware import best_device, compute_dtype

EMBEDDED_MODEL = "embedded:smollm2-135m-instruct"


def switch_dropout_off(model: nn.Module) -> None:
    """No dropout anywhere: with it the ratio of new to old probabilities would be noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("dropout" in name or name.endswith(("drop", "pdrop"))):
                setattr(module, name, 0.0)  # e.g. OPT's own float, given to F.dropout


def load_pretrained(
    name: str,
    dtype: torch.dtype | str,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, as they are saved.

    Args:
        name: a folder or a hub id. dtype: ``"auto"`` keeps the one it was saved in.

    Raises:
        UserError: there is no such model.
    """
    arguments: dict[str, Any] = {"revision": revision} if revision else {}
    if trust_remote_code:
        arguments["trust_remote_code"] = True
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **arguments)
        tokenizer = AutoTokenizer.from_pretrained(name, **arguments)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.model_name_or_path: {name!r} is no causal language model that can be loaded "
            f"({reason}); give a Hugging Face folder, a hub id or {EMBEDDED_MODEL!r}"
        ) from error
    return model, tokenizer


def load_base(
    section: ModelSection, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that SFT starts from, float32 where it will be trained, and its tokenizer."""
    name = section.model_name_or_path
    if name == "toy":
        model, tokenizer = toy.toy_language_model(seed), toy.toy_tokenizer()
    else:
        source = str(embedded.base_model()) if name == EMBEDDED_MODEL else name
        model, tokenizer = load_pretrained(
            source, compute_dtype(section), section.model_revision, section.trust_remote_code
        )
    return prepare(model, tokenizer), tokenizer


def load_checkpoint(
    path: Path, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A finished stage's policy in evaluation mode on the best device.

    Args:
        path: a Hugging Face folder. dtype: ``None`` keeps the one it was saved in.

    Raises:
        UserError: the folder is missing or holds no model.
    """
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: no model folder (config.json is missing); run its stage first")
    model, tokenizer = load_pretrained(str(path), dtype or "auto")
    return prepare(model, tokenizer).eval().to(best_device()), tokenizer  # type: ignore[arg-type]


def prepare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Switch dropout off, give the tokenizer a pad token and forget sampling defaults.

    A checkpoint's own top-k, top-p or repetition penalty would make sampling another distribution
    than the one trained and measured.
    """
    switch_dropout_off(model)
    for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout", "hidden_dropout"):
        if getattr(model.config, name, None):
            setattr(model.config, name, 0.0)
    if tokenizer.eos_token_id is None:
        raise UserError(
            "model.model_name_or_path: the tokenizer has no EOS token, so no completion can end"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    stop = getattr(model.generation_config, "eos_token_id", None)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id if stop is None else stop,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return model


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of decoder layers of a causal language model."""
    decoder = model.get_decoder()
    for name in ("layers", "h", "blocks"):
        layers = getattr(decoder, name, None)
        if isinstance(layers, nn.ModuleList):
            return layers
    raise UserError(
        f"model.trainable_layers: {type(model).__name__} has no list of layers known here; "
        "set it to null (all weights) or use LoRA (model.use_peft: true)"
    )


def lora_config(section: ModelSection, task: str) -> LoraConfig:
    """Adapters as configured, for PEFT's task type ``task``."""
    return LoraConfig(
        task_type=task,  # type: ignore[arg-type]
        r=section.lora_r,
        lora_alpha=section.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=section.lora_dropout,
        target_modules=section.lora_target_modules,
    )


def make_trainable(model: PreTrainedModel, section: ModelSection, seed: int = 0) -> nn.Module:
    """Choose what is trained: LoRA adapters (made with ``seed``), upper layers, or all weights.

    Trained weights become float32 (small updates vanish in bfloat16); frozen ones keep their
    dtype, so a bfloat16 trunk costs half the memory and computes at full speed.

    Returns:
        the model itself, or the PEFT model around it.
    """
    if section.use_peft:
        set_seed(seed)
        return get_peft_model(model, lora_config(section, "CAUSAL_LM"))
    count = section.trainable_layers
    if count is None:
        return model.float()
    layers = decoder_layers(model)
    if count > len(layers):
        raise UserError(
            f"model.trainable_layers: {count} is above the model's {len(layers)} layers; "
            "lower it or set null (all weights)"
        )
    model.requires_grad_(False)
    final_norms = [m for m in model.get_decoder().children() if not isinstance(m, nn.ModuleList)]
    trained: list[nn.Module] = list(layers[-count:])
    trained += [m for m in final_norms if "norm" in type(m).__name__.lower()]
    for module in trained:
        module.float().requires_grad_(True)
    return model


def frozen_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy for reference that shares every frozen weight with ``model`` and trains none.

    Trained (float32) weights are copied as ``dtype``. Wholly frozen modules are shared as modules,
    so that both see their weights wherever FSDP puts them.
    """
    shared: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    for module in model.modules():
        if all(id(p) in shared for p in module.parameters()):
            shared[id(module)] = module
    duplicate = copy.deepcopy(model, memo=shared)
    for parameter in duplicate.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(False)
    return duplicate.eval()


def base_of(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside a PEFT model, or the model itself."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def save_policy(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype
) -> None:
    """Write a finished policy as a plain Hugging Face folder, atomically; LoRA is merged in.

    Saved in the compute dtype: under autocast the trained float32 weights were rounded to it at
    every forward pass, so the saved policy is the trained one.
    """
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()  # type: ignore[operator]
    policy = cast(PreTrainedModel, model)
    with new_folder(folder) as beside:
        policy.to(dtype).save_pretrained(beside)  # type: ignore[arg-type]
        tokenizer.save_pretrained(beside)
