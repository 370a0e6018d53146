"""What a backward pass keeps, counted on the architecture itself without computing anything.

A few layers of the model run on fake tensors, which have shapes and no numbers, and every tensor
that autograd saves is counted once. So attention of every kind, gates, adapters, frozen weights and
autocast's copies count as they are in the model at hand. Where code looks at numbers (experts that
are chosen, say) fake tensors have none; the published formula stands in then.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from pipeline.config import ModelSection
from pipeline.lm.models import base_of
from pipeline.lm.route import FAILS
from pipeline.plan.formulas import LAYER_ACTIVATIONS
from pipeline.plan.sizes import Policy, empty_model, trainable

_DEPTHS = (1, 2)


@dataclass(frozen=True)
class Kept:
    """Bytes that stay from the forward pass until the backward pass.

    Attributes:
        activations: of all layers, without gradient checkpointing. layer: of one of them.
        casts: bfloat16 copies of float32 weights, which autocast makes once a pass.
        measured: by a run on fake tensors; else by the published formula.
    """

    activations: float
    layer: float
    casts: float
    measured: bool


def kept(
    config: Any,
    section: ModelSection,
    policy: Policy,
    rows: int,
    length: int,
    *,
    dtype: torch.dtype,
    modules: list[str] | None = None,
    attention: str | None = None,
    split: bool = False,
) -> Kept:
    """What learning from ``rows`` sequences of ``length`` tokens keeps.

    Args:
        dtype: of matrix products. attention: the implementation, where it is not the model's own.
        split: FSDP2 hands every layer its weights in ``dtype``, so that autocast copies none.
    """
    if not (rows and length):
        return Kept(0.0, 0.0, 0.0, True)
    copies = 2.0 * policy.trained if dtype.itemsize == 2 and not policy.adapted else 0.0
    shallow = section
    if section.trainable_layers is not None:
        shallow = section.model_copy(update={"trainable_layers": _DEPTHS[-1]})
    counted = _counted(_Run(config, shallow, length, dtype, modules, attention, split))
    if counted is None:
        layer = LAYER_ACTIVATIONS * policy.width * float(rows * length)
        return Kept(policy.upper * layer, layer, 0.0 if split else copies, False)
    outside, layer = (rows * each for each in counted)
    return Kept(outside + policy.upper * layer, layer, 0.0 if split else copies, True)


@dataclass(frozen=True)
class _Run:
    """What a run on fake tensors depends on; two of the same key keep the same."""

    config: Any
    section: ModelSection
    length: int
    dtype: torch.dtype
    modules: list[str] | None
    attention: str | None
    split: bool

    def key(self) -> tuple[Any, ...]:
        """All of it, by value."""
        config, section = self.config.to_json_string(), self.section.model_dump_json()
        rest = (self.length, self.dtype, tuple(self.modules or ()), self.attention, self.split)
        return (config, section, *rest)


_RUNS: dict[tuple[Any, ...], tuple[float, float] | None] = {}


def _counted(run: _Run) -> tuple[float, float] | None:
    """Bytes that one row keeps outside the layers and in each; None where it cannot be run."""
    key = run.key()
    if key not in _RUNS:
        try:
            one, two = (_saved(run, depth) for depth in _DEPTHS)
            layer = max(two - one, 0.0)
            _RUNS[key] = (max(one - layer, 0.0), layer)
        except (*FAILS, DataDependentOutputException):
            _RUNS[key] = None
    return _RUNS[key]


def _saved(run: _Run, depth: int) -> float:
    """Bytes a row that the decoder of ``depth`` layers saves, without weights and their copies."""
    config, section = copy.deepcopy(run.config), run.section
    config.get_text_config().num_hidden_layers = depth
    if section.trainable_layers is not None:
        section = section.model_copy(update={"trainable_layers": depth})
    empty = empty_model(config, section, run.dtype, run.attention)
    policy = trainable(empty, section, run.modules)
    if run.split:  # FSDP2 gives each layer its weights in the dtype of the products
        policy = policy.to(run.dtype)
    policy.train()
    mixed = run.dtype.itemsize == 2 and not run.split  # of either kind: the sizes are the same
    with FakeTensorMode(allow_non_fake_inputs=True):
        policy.to_empty(device="cpu")  # from meta to fake: shapes only, but a processor's
        count = _Count(policy)
        rows = count.rows(run.length)
        tokens = torch.zeros(rows, run.length, dtype=torch.long)
        with (
            torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved),
            torch.autocast("cpu", torch.bfloat16, enabled=mixed),
        ):
            decoder: Any = base_of(policy).get_decoder()
            decoder(input_ids=tokens, use_cache=False)
    return count.total / rows


class _Count:
    """Counts the memory behind saved tensors, each once."""

    def __init__(self, model: torch.nn.Module) -> None:
        weights = [*model.parameters(), *model.buffers()]
        self._own = {weight.untyped_storage()._cdata for weight in weights}
        self._shapes = {tuple(sorted(p.shape)) for p in model.parameters() if p.dim() == 2}
        self._seen: dict[int, Tensor] = {}
        self.total = 0.0

    def rows(self, length: int) -> int:
        """How many of ``length`` tokens, so that no activation has the shape of a weight."""
        sizes = {size for shape in self._shapes for size in shape}
        return next((n for n in (1, 3, 5, 7, 11) if n * length not in sizes), 13)

    def __call__(self, saved: Tensor) -> Tensor:
        memory = saved.untyped_storage()
        if memory._cdata in self._own or memory._cdata in self._seen:
            return saved
        self._seen[memory._cdata] = saved  # kept alive, or another could come in its place
        if tuple(sorted(saved.shape)) not in self._shapes:  # those are autocast's copies
            self.total += memory.nbytes()
        return saved
