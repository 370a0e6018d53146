"""From tokens to logits by a model's own parts: the decoder, then the head.

PPO scores completion tokens only, so it runs a model's decoder on whole sequences and its head on
some of the states. What the head is differs: most models have a matrix, some scale or cap what
comes out of it (Cohere, Granite, Gemma 2), some have layers in front of it. Which parts make the
model's own logits is found by trying them against the whole model, never by its name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.words import first_line
from pipeline.errors import UserError
from pipeline.lm.hardware import autocast
from pipeline.lm.models import base_of

FAILS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError)
FAILS = (*FAILS, ValueError, AssertionError, OSError)  # what running unknown code may raise
_PROBE = range(1, 9)  # token ids, as far as the vocabulary has them
# States of this size make logits large enough for a cap to show.
_LARGE = 100.0


class _Route(NamedTuple):
    """How a model's logits are made."""

    decoder: int  # which of _DECODERS
    own_head: bool  # else the matrix alone
    output: type | None  # what the decoder returns


_DECODERS: tuple[Callable[[PreTrainedModel], Any], ...] = (
    lambda model: model.get_decoder(),
    lambda model: model.base_model,
)
_ROUTES: WeakKeyDictionary[PreTrainedModel, _Route] = WeakKeyDictionary()


class _Given(nn.Module):
    """In a decoder's place: returns the states that it is given as embeddings."""

    def __init__(self, output: type) -> None:
        super().__init__()
        self._output = output

    def forward(self, *_: Any, inputs_embeds: Tensor | None = None, **__: Any) -> Any:
        return self._output(last_hidden_state=inputs_embeds)


class OwnHead(nn.Module):
    """A model's whole way from final hidden states to logits, as its own forward pass has it."""

    def __init__(self, model: PreTrainedModel, output: type) -> None:
        """``output`` is the class that the model's decoder returns."""
        super().__init__()
        shell = copy.copy(model)  # shares every weight; only its decoder is another
        shell._modules = dict(model._modules)
        shell._modules[model.base_model_prefix] = _Given(output)
        self._shell = [shell]  # in a list: no part of state_dict()

    def forward(self, hidden: Tensor) -> Tensor:
        """``(N, d)`` states to ``(N, V)`` logits."""
        shell = self._shell[0]
        # Not shell(…): hooks around the whole model have no business here.
        return type(shell).forward(shell, inputs_embeds=hidden[None]).logits[0]  # type: ignore


def decoder_of(model: nn.Module) -> nn.Module:
    """The part of a (PEFT-wrapped or plain) causal LM from tokens to final hidden states."""
    base = base_of(model)
    return _DECODERS[_route(base).decoder](base)


def hidden_states(model: nn.Module, sequences: Tensor, **given: Any) -> Tensor:
    """Final hidden states ``(B, L, d)`` of a (PEFT-wrapped or plain) policy; no LM head.

    ``given`` goes to the decoder, such as ``position_ids``.
    """
    return decoder_of(model)(input_ids=sequences, use_cache=False, **given).last_hidden_state


def lm_head(model: nn.Module) -> nn.Module:
    """What makes the model's logits ``(N, V)`` of final hidden states ``(N, d)``.

    Raises:
        UserError: no part of the model does.
    """
    base = base_of(model)
    route = _route(base)
    if route.own_head and route.output is not None:
        return OwnHead(base, route.output)
    return cast(nn.Module, base.get_output_embeddings())


def make_head_float32(model: nn.Module) -> None:
    """Compute the head's matrix product in float32 from now on, in sampling and in scoring.

    bfloat16 has 8 bits: a logit near 20 is off by up to 1/16 nat, and otherwise off in a batch of
    another shape, so a token's two log-probabilities differ (MiniMax 2025, section 3.2). Copies of
    the model, as the reference is, do so too.

    Raises:
        UserError: the head is no plain matrix.
    """
    head = base_of(model).get_output_embeddings()
    if type(head) is not nn.Linear:
        raise UserError(
            f"float32_logits: the head of {type(base_of(model)).__name__} is"
            f" {type(head).__name__}, not a plain matrix; set it to false"
        )
    head.register_forward_hook(_in_float32)


def _in_float32(head: nn.Linear, inputs: tuple[Tensor], _: Tensor) -> Tensor:
    """In place of what the head gave. A hook, as the weight stays where tying and saving see it."""
    with torch.autocast(inputs[0].device.type, enabled=False):
        bias = None if head.bias is None else head.bias.float()
        return F.linear(inputs[0].float(), head.weight.float(), bias)


def _route(base: PreTrainedModel) -> _Route:
    if base not in _ROUTES:
        with torch.no_grad(), autocast(base):
            _ROUTES[base] = _find(base)
    return _ROUTES[base]


def _find(base: PreTrainedModel) -> _Route:
    """The first parts that give the whole model's logits."""
    training = base.training
    base.eval()
    try:
        known = base.config.get_text_config().vocab_size
        tokens = torch.tensor([[token % known for token in _PROBE]], device=base.device)
        whole = base(input_ids=tokens, use_cache=False).logits[0].float()
        for number, part in enumerate(_DECODERS):
            for route, logits in _candidates(base, number, part, tokens):
                if logits.shape == whole.shape and torch.allclose(whole, logits, 1e-3, 1e-3):
                    return route
        problem = "no part of it gives its logits from its last hidden states"
    except FAILS as error:
        problem = f"it cannot be asked for logits of plain tokens ({first_line(error)})"
    finally:
        base.train(training)
    raise UserError(
        f"model.model_name_or_path: {type(base).__name__} is not supported: {problem}; use another "
        "causal language model"
    )


def _candidates(
    base: PreTrainedModel, number: int, part: Callable[..., Any], tokens: Tensor
) -> Iterator[tuple[_Route, Tensor]]:
    """Routes through decoder ``number`` that run, the cheaper first, and the logits they give."""
    try:
        output = part(base)(input_ids=tokens, use_cache=False)
        states = output.last_hidden_state[0]
    except FAILS:
        return
    matrix, own = base.get_output_embeddings(), None
    try:
        own = OwnHead(base, type(output))
        logits = own(states).float()
    except FAILS:
        own = None
    if matrix is not None:
        try:
            plain = matrix(states).float()
            large = states / states.float().std().clamp(min=1e-6) * _LARGE
            same = own is None or torch.allclose(own(large), matrix(large), 1e-3, 1e-3)
        except FAILS:
            same = False
        if same:
            yield _Route(number, False, None), plain
    if own is not None:
        yield _Route(number, True, type(output)), logits
