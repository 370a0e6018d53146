"""Quantised weights under LoRA adapters (QLoRA; Dettmers et al. 2023, arXiv 2305.14314).

One quantised base serves a whole experiment: D(Q(W)), the numbers that its codes stand for. SFT's
adapters are over it, and π_ref is both together, D(Q(W)) + BA. What starts from π_ref gets that
same base with SFT's adapters frozen in it (:func:`load_reference`) and new adapters that add
nothing yet. Merging SFT's adapters and quantising the sum again would round away what is smaller
than the steps between the codes: of a small update, all (there is a test). A finished policy is
merged over D(Q(W)) in float32, which is the policy that was trained.

Only weights are quantised. LLM.int8() rounds the activations too, by scales and outliers of the
batch at hand: a token's probability would then depend on the other rows.
"""

from __future__ import annotations

import importlib.util
import inspect
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from common.files import new_folder, read_json, write_json
from common.words import first_line
from pipeline.config import ModelSection
from pipeline.errors import UserError
from pipeline.lm.hardware import autocast, compute_dtype

KEY = "model.quantization"
_CHECK = "check.json"
_PROBE = 24  # tokens whose log-probabilities say whether a base is the one that SFT had
_SAME = 0.1  # nats; bfloat16 rounds otherwise on another machine, other weights differ by more
_NOT_HERE = {
    "llm_int8_threshold": "activations are not quantised here, so there are no outliers",
    "llm_int8_has_fp16_weight": "the weights are to be quantised",
    "llm_int8_enable_fp32_cpu_offload": "the trainers need the whole model on their device",
}


def quantization_config(section: ModelSection) -> BitsAndBytesConfig | None:
    """What ``from_pretrained`` is to quantise the base by; None for not at all.

    Raises:
        UserError: bitsandbytes is not there, or a key is none of its configuration.
    """
    given = section.quantization
    if given is None:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"{KEY}: needs the package bitsandbytes: pip install 'rlhf-pipeline[quantization]', "
            "or set it to null"
        )
    named = {"4bit": {"load_in_4bit": True}, "8bit": {"load_in_8bit": True}}
    settings: dict[str, Any] = dict(named[given] if isinstance(given, str) else given)
    known = inspect.signature(BitsAndBytesConfig).parameters.keys() - {"kwargs"}
    for key in settings:
        if key not in known:
            close = ", ".join(sorted(known - _NOT_HERE.keys()))
            raise UserError(f"{KEY}: {key} is none of BitsAndBytesConfig's keys: {close}")
        if key in _NOT_HERE:
            raise UserError(f"{KEY}: {key}: {_NOT_HERE[key]}; leave it out")
    if bool(settings.get("load_in_4bit")) == bool(settings.get("load_in_8bit")):
        raise UserError(f"{KEY}: set one of load_in_4bit and load_in_8bit to true")
    if settings.get("load_in_4bit"):
        settings = {
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": compute_dtype(section),
            **settings,
        }
    try:
        return BitsAndBytesConfig(**settings)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{KEY}: {first_line(error)}") from error


def is_quantized(model: nn.Module) -> bool:
    """Whether any of the weights are codes of bitsandbytes."""
    return any(_is_code(module) for module in model.modules())


def _is_code(module: nn.Module) -> bool:
    own = module._parameters.get("weight")  # an adapter's is that of the layer beneath
    return type(own).__name__ in ("Params4bit", "Int8Params")


@cache
def _weights_only() -> type[nn.Module]:
    """Linear8bitLt that quantises nothing but its weights, in training and in evaluation."""
    import bitsandbytes

    class WeightsOnly8bit(bitsandbytes.nn.Linear8bitLt):  # PEFT adapts it as what it inherits
        def forward(self, x: Tensor) -> Tensor:
            scales: Any = self.scales
            kind, mixed = x.device.type, torch.is_autocast_enabled(x.device.type)
            dtype = torch.get_autocast_dtype(kind) if mixed else x.dtype
            bias = None if self.bias is None else self.bias.to(dtype)
            return _Int8Product.apply(x.to(dtype), self.weight.data, scales, bias)  # type: ignore

    return WeightsOnly8bit


class _Int8Product(torch.autograd.Function):
    """x D(q)ᵀ + b. The backward pass makes D(q) anew: kept, they would be the whole model."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, scales)
        return F.linear(x, _from_int8(codes, scales).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore
        codes, scales = ctx.saved_tensors
        return gradient @ _from_int8(codes, scales).to(gradient.dtype), None, None, None


def _from_int8(codes: Tensor, scales: Tensor) -> Tensor:
    return codes.float() * scales[:, None]


def settle(model: PreTrainedModel) -> PreTrainedModel:
    """Make quantised layers compute the same in training, in evaluation and in any batch."""
    for module in model.modules():
        if not _is_code(module):
            continue
        if type(module.weight).__name__ == "Int8Params":
            weight, state = module.weight, module.state
            found: Any = state.SCB if weight.SCB is None else weight.SCB  # type: ignore
            module.register_buffer("scales", found.float() / 127.0, persistent=False)
            module.__class__ = _weights_only()
        else:
            # On a processor it would pack the codes at the first evaluation and round otherwise.
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model


def decoded(module: nn.Module) -> Tensor:
    """The numbers ``(out, in)``, float32, that a layer's codes stand for, SFT's part included."""
    from bitsandbytes.functional import dequantize_4bit

    weight: Any = module.weight
    if type(weight).__name__ == "Int8Params":
        whole = _from_int8(weight.data, module.scales)  # type: ignore[arg-type]
    else:
        whole = dequantize_4bit(weight.data, weight.quant_state).float()
    return whole + _frozen_part(module)


def dequantize(model: nn.Module) -> None:
    """Put plain float32 layers in place of the quantised ones, the adapters over them included."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            layer = child.get_base_layer() if isinstance(child, LoraLayer) else child
            if _is_code(layer):
                setattr(parent, name, _plain(child, layer))
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if getattr(base, "hf_quantizer", None) is not None:
        base.hf_quantizer.remove_quantization_config(base)
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(base, flag):
            setattr(base, flag, False)


@torch.no_grad()
def _plain(child: nn.Module, layer: nn.Module) -> nn.Module:
    weight = decoded(layer)
    if isinstance(child, LoraLayer):
        for adapter in child.active_adapters:
            if adapter in child.lora_A:
                weight += child.get_delta_weight(adapter).float()  # type: ignore[operator]
    bias: Any = layer.bias
    if getattr(layer, "source_cls", None) is Conv1D:  # GPT-2's, whose weights stand the other way
        made: Any = Conv1D(*weight.shape)
        weight = weight.T.contiguous()
    else:
        made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    made.weight = nn.Parameter(weight)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().float())
    return made


# --- SFT's adapters in the base ------------------------------------------------------------------


def freeze_in(adapted: PeftModel) -> PreTrainedModel:
    """The model inside, every layer of which adds what its adapters do, now part of the base."""
    for parent in list(adapted.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                setattr(parent, name, _with_frozen(child))
    base: Any = adapted.unload()  # what PEFT has written on it
    return base.requires_grad_(False)


@torch.no_grad()
def _with_frozen(child: Any) -> nn.Module:
    layer, (adapter, *others) = child.get_base_layer(), child.active_adapters
    if not isinstance(layer, nn.Linear) or others or adapter not in child.lora_A:
        layer.weight.data = layer.weight.data.float()  # what is no plain product is summed
        child.merge()
        return layer
    layer.register_buffer("frozen_a", child.lora_A[adapter].weight.detach(), persistent=False)
    layer.register_buffer("frozen_b", child.lora_B[adapter].weight.detach(), persistent=False)
    layer.frozen_scale = child.scaling[adapter]  # type: ignore[assignment]
    layer.register_forward_hook(_add_frozen)
    return layer


def _add_frozen(layer: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A hook, so that the layer stays what PEFT and bitsandbytes know."""
    low = F.linear(inputs[0].to(layer.frozen_a.dtype), layer.frozen_a)
    return output + (F.linear(low, layer.frozen_b) * layer.frozen_scale).to(output.dtype)


def _frozen_part(layer: Any) -> Tensor | float:
    if getattr(layer, "frozen_a", None) is None:
        return 0.0
    return layer.frozen_b.float() @ layer.frozen_a.float() * layer.frozen_scale


# --- The reference, kept for the stages that start from it ---------------------------------------


def keep_reference(policy: nn.Module, folder: Path, seed: int = 0) -> None:
    """Write SFT's adapters, if it has any, and some log-probabilities to know the base by.

    Args:
        seed: of the base, where that is the toy: policies may have others.
    """
    with new_folder(folder) as beside:
        if isinstance(policy, PeftModel):
            policy.save_pretrained(str(beside))
        write_json(beside / _CHECK, {"logps": _some_logps(policy), "seed": seed})


def base_seed(folder: Path) -> int:
    """The seed of the base that SFT's adapters in ``folder`` are over."""
    return read_json(folder / _CHECK)["seed"] if (folder / _CHECK).is_file() else 0


def load_reference(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """``base`` with what SFT has learnt: π_ref.

    Raises:
        UserError: SFT was not done with this quantisation, or over other weights.
    """
    if not (folder / _CHECK).is_file():
        raise UserError(
            f"{KEY}: {folder} is not there: SFT was run without it; run `rlhf sft` with this config"
        )
    made = base
    if (folder / "adapter_config.json").is_file():
        config: Any = PeftConfig.from_pretrained(str(folder))
        assert isinstance(config, LoraConfig)
        made = freeze_in(PeftModel.from_pretrained(base, str(folder), config=config))
    then, now = read_json(folder / _CHECK)["logps"], _some_logps(made)
    apart = sum(abs(x - y) for x, y in zip(then, now, strict=True)) / len(then)
    if apart > _SAME:
        raise UserError(
            f"{KEY}: the base is not the one that SFT was run with: its log-probabilities differ by"
            f" {apart:.2g} nats a token; give model.model_name_or_path and its revision as then"
        )
    return made


@torch.no_grad()
def _some_logps(model: nn.Module) -> list[float]:
    """Log-probabilities of some tokens, each after those before it."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    training = model.training
    model.eval()
    size = base.config.get_text_config().vocab_size
    tokens = (torch.arange(1, _PROBE + 2, device=base.device) * 7 % (size - 1) + 1)[None]
    with autocast(model):
        logits = model(input_ids=tokens, use_cache=False).logits[0].float()
    model.train(training)
    return logits[:-1].log_softmax(-1).gather(1, tokens[0, 1:, None]).squeeze(1).tolist()
