"""A decoder cut in two: a frozen lower trunk, run once, and the upper layers, run many times."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.errors import UserError
from pipeline.lm.hardware import autocast
from pipeline.lm.models import decoder_layers
from pipeline.lm.route import FAILS, decoder_of

_SHORT = 8  # tokens of the first comparison
_TOKENS = 60  # different tokens in it


class _Skipped(nn.Module):
    """In a lower layer's place in the upper half: passes the states on.

    So each layer keeps its number, by which decoders choose between sliding and full attention,
    or between rotary positions and none.
    """

    def __init__(self, layer: nn.Module, as_tuple: bool) -> None:
        super().__init__()
        self._layer = [layer]  # in a list: no child
        self._as_tuple = as_tuple

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._layer[0], name)  # e.g. attention_type

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states,) if self._as_tuple else hidden_states


def _with_layers(decoder: nn.Module, name: str, layers: list[nn.Module]) -> nn.Module:
    """``decoder`` with other ``layers``; every weight is shared, nothing is copied."""
    part = copy.copy(decoder)
    part._modules = dict(decoder._modules)
    part._modules[name] = nn.ModuleList(layers)
    return part


class SplitDecoder:
    """The two halves of a decoder whose lower layers are frozen.

    ``upper(lower(tokens))`` equals the whole decoder; :meth:`build` checks that on the model at
    hand and as far as its sequences will go, because some architectures treat ``inputs_embeds``
    differently from the activations of a middle layer (learned positions, scaled embeddings, a
    second embedding for each layer). Those get no split.
    """

    def __init__(self, lower: nn.Module, upper: nn.Module) -> None:
        self._lower = lower
        self._upper = upper

    @classmethod
    def build(cls, model: PreTrainedModel, cut: int, longest: int = 0) -> SplitDecoder | None:
        """The split below layer ``cut``, or ``None`` where there is none to make.

        Args:
            longest: tokens of the longest sequence to expect.
        """
        if cut == 0:
            return None
        decoder, layers = decoder_of(model), decoder_layers(model)
        name = next((n for n, module in decoder.named_children() if module is layers), None)
        if name is None:
            return None
        lower = _with_layers(decoder, name, list(layers[:cut]))
        for child, module in decoder.named_children():
            if "norm" in type(module).__name__.lower():
                lower._modules[child] = nn.Identity()
        for as_tuple in (False, True):
            skipped = [_Skipped(layer, as_tuple) for layer in layers[:cut]]
            split = cls(lower, _with_layers(decoder, name, [*skipped, *layers[cut:]]))
            if split._equals(model, _SHORT) and (
                longest <= _SHORT or split._equals(model, longest)
            ):
                return split
        return None

    def follow(self, model: PreTrainedModel) -> None:
        """Take over how ``model``'s decoder is checkpointed: layers are shared, it is a copy."""
        now = {k: v for k, v in vars(decoder_of(model)).items() if "gradient_checkpointing" in k}
        for half in (self._lower, self._upper):
            vars(half).update(now)

    def _equals(self, model: PreTrainedModel, length: int) -> bool:
        ids = torch.arange(length, device=model.device) % _TOKENS + 2
        tokens = ids[None] % model.config.get_text_config().vocab_size
        try:
            with torch.no_grad(), autocast(model):
                whole = decoder_of(model)(input_ids=tokens, use_cache=False).last_hidden_state
                parts = self.upper(self.lower(tokens))
        except FAILS:
            return False
        return bool(torch.allclose(whole.float(), parts.float(), rtol=1e-5, atol=1e-5))

    def lower(self, tokens: Tensor, **given: Any) -> Tensor:
        """Activations below the first trained layer: ``(B, L)`` tokens to ``(B, L, d)``.

        ``given`` goes to the decoder, such as ``position_ids``.
        """
        with torch.no_grad():
            return self._lower(input_ids=tokens, use_cache=False, **given).last_hidden_state

    def upper(self, activations: Tensor, **given: Any) -> Tensor:
        """Final hidden states ``(B, L, d)`` from :meth:`lower`'s activations."""
        return self._upper(inputs_embeds=activations, use_cache=False, **given).last_hidden_state


def lowest_trained_layer(model: PreTrainedModel) -> int:
    """Index of the lowest decoder layer with a trained weight; 0 if the embeddings train too, or
    where there is no stack of layers to cut."""
    if any(p.requires_grad for p in model.get_input_embeddings().parameters()):
        return 0
    try:
        layers = decoder_layers(model)
    except UserError:
        return 0
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    return trained.index(True) if any(trained) else 0
