"""A decoder cut in two: a frozen lower trunk, run once, and the upper layers, run many times."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.lm.hardware import autocast
from pipeline.lm.models import decoder_layers


def _with_layers(decoder: nn.Module, name: str, layers: list[nn.Module]) -> nn.Module:
    """``decoder`` with other ``layers``; every weight is shared, nothing is copied."""
    part = copy.copy(decoder)
    part._modules = dict(decoder._modules)
    part._modules[name] = nn.ModuleList(layers)
    return part


class SplitDecoder:
    """The two halves of a decoder whose lower layers are frozen.

    ``upper(lower(tokens))`` equals the whole decoder; :meth:`build` checks that on the model at
    hand, because some architectures treat ``inputs_embeds`` differently from the activations of
    a middle layer (learned positions, scaled embeddings). Those get no split.
    """

    def __init__(self, lower: nn.Module, upper: nn.Module) -> None:
        self._lower = lower
        self._upper = upper

    @classmethod
    def build(cls, model: PreTrainedModel, cut: int) -> SplitDecoder | None:
        """The split below layer ``cut``, or ``None`` where there is none to make."""
        if cut == 0:
            return None
        decoder, layers = model.get_decoder(), decoder_layers(model)
        name = next(n for n, module in decoder.named_children() if module is layers)
        lower = _with_layers(decoder, name, list(layers[:cut]))
        for child, module in decoder.named_children():
            if "norm" in type(module).__name__.lower():
                lower._modules[child] = nn.Identity()
        split = cls(lower, _with_layers(decoder, name, list(layers[cut:])))
        return split if split._equals(model) else None

    def _equals(self, model: PreTrainedModel) -> bool:
        tokens = torch.arange(2, 10, device=model.device)[None] % model.config.vocab_size
        try:
            with torch.no_grad(), autocast(model):
                whole = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
                parts = self.upper(self.lower(tokens))
        except (RuntimeError, TypeError, ValueError):
            return False
        return bool(torch.allclose(whole.float(), parts.float(), rtol=1e-3, atol=1e-3))

    def lower(self, tokens: Tensor) -> Tensor:
        """Activations below the first trained layer: ``(B, L)`` tokens to ``(B, L, d)``."""
        with torch.no_grad():
            return self._lower(input_ids=tokens, use_cache=False).last_hidden_state

    def upper(self, activations: Tensor) -> Tensor:
        """Final hidden states ``(B, L, d)`` from :meth:`lower`'s activations."""
        return self._upper(inputs_embeds=activations, use_cache=False).last_hidden_state


def lowest_trained_layer(model: PreTrainedModel) -> int:
    """Index of the lowest decoder layer with a trained weight; 0 if the embeddings train too."""
    if any(p.requires_grad for p in model.get_input_embeddings().parameters()):
        return 0
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in decoder_layers(model)]
    return trained.index(True) if any(trained) else 0
