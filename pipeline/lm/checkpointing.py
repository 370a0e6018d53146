"""Gradient checkpointing where it saves something: in layers that have a gradient."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from pipeline.errors import UserError
from pipeline.lm.models import base_of, decoder_layers
from pipeline.lm.trunk import lowest_trained_layer


def spare_frozen_layers(model: nn.Module) -> int:
    """Checkpoint no layer below the lowest trained one; return how many those are.

    They keep no activations, so there is nothing to save by running them again.
    """
    base = base_of(model)
    cut = lowest_trained_layer(base)
    if cut == 0:
        return 0
    try:
        layers = decoder_layers(base)
    except UserError:
        return 0
    for layer in layers[:cut]:
        for module in layer.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False  # type: ignore[assignment]
    return cut


class SpareFrozenLayers(TrainerCallback):
    """Does so in any Trainer, which has switched checkpointing on by then."""

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Look which layers are frozen."""
        if isinstance(model, nn.Module) and hasattr(base_of(model), "get_input_embeddings"):
            spare_frozen_layers(model)
