"""What a rollout needs in floating-point operations, and what the machine can give.

The counts are floors: what the algorithm needs on tokens that exist, however it is programmed.
Padding, recomputation, merging adapters and everything that is not a matrix product (norms,
softmax, sampling, the optimizer) count nothing, so seconds · throughput / operations says how many
times its floor a phase takes.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from pipeline.lm.models import base_of, decoder_layers
from pipeline.lm.scoring import TokenBatch, lm_head
from pipeline.lm.trunk import lowest_trained_layer
from pipeline.ppo.actor_critic import ActorCritic
from pipeline.ppo.config import PPOConfig

# Seconds that measuring the machine may take, all in all.
_BUDGET = 0.4


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a dense decoder that its operations follow from.

    Take it before the model is wrapped or sharded. *Lower* layers lie below the lowest one with a
    trained weight, *upper* ones are the rest. Weights are counted where they are matrices; a
    mixture of experts is not covered.
    """

    lower_layers: int
    lower_weights: int
    upper_layers: int
    upper_weights: int  # without adapters, which can be merged where nothing is trained
    adapter_weights: int
    trained_weights: int  # of the upper layers, adapters included
    attention_width: int  # heads × head size
    head_weights: int  # vocabulary × hidden size
    head_trained: bool
    value_weights: int
    kept_trunk: bool  # whether the lower layers' activations can be kept (`ActorCritic.has_trunk`)

    @classmethod
    def of(cls, model: ActorCritic) -> ModelShape:
        """The shape of ``model``'s policy and value head."""
        base = base_of(model.policy)
        layers, cut = decoder_layers(base), lowest_trained_layer(base)
        adapters = sum(_weights(layer, adapter=True) for layer in layers)
        config = base.config.get_text_config()
        heads: int = config.num_attention_heads
        head = lm_head(model.policy)
        return cls(
            lower_layers=cut,
            lower_weights=sum(_weights(layer) for layer in layers[:cut]),
            upper_layers=len(layers) - cut,
            upper_weights=sum(_weights(layer) for layer in layers[cut:]) - adapters,
            adapter_weights=adapters,
            trained_weights=sum(_weights(layer, trained=True) for layer in layers[cut:]),
            attention_width=heads * (getattr(config, "head_dim", 0) or config.hidden_size // heads),
            head_weights=_weights(head),
            head_trained=any(p.requires_grad for p in head.parameters()),
            value_weights=_weights(model.value_head),
            kept_trunk=model.has_trunk,
        )


def _weights(module: nn.Module, adapter: bool = False, trained: bool = False) -> int:
    """Matrix entries of ``module``: all, its adapters', or those that are trained."""
    return sum(
        p.numel()
        for name, p in module.named_parameters()
        if p.ndim == 2 and (not adapter or "lora_" in name) and (not trained or p.requires_grad)
    )


@dataclass(frozen=True)
class PhaseWork:
    """Floating-point operations that the phases of one rollout need.

    Attributes:
        generate: prompt and completion once through the decoder (keys and values are kept), the
            LM head on completion tokens.
        score: the policy's log-probabilities. reference: the reference's. value: the value head.
        update: forward and backward, all epochs.
    """

    generate: float
    score: float
    reference: float
    value: float
    update: float

    @property
    def total(self) -> float:
        """The whole rollout's; the reward function's are not known."""
        return self.generate + self.scoring + self.update

    @property
    def scoring(self) -> float:
        """Everything between the reward and the update: what ``time/score`` is spent on."""
        return self.score + self.reference + self.value


def phase_work(shape: ModelShape, batch: TokenBatch, args: PPOConfig) -> PhaseWork:
    """Operations that sampling ``batch`` and learning from it need.

    A matrix with n entries takes 2n operations a token forward, 2n more for its input's gradient
    and 2n for its own if it is trained. Causal attention over L positions takes
    4 · width · L(L+1)/2 a layer forward and twice that backward. The last token of a completion
    is never fed: nothing is predicted from it. Where the trunk is kept the lower layers run once
    after sampling; else the policy, the reference and every epoch run them again.

    Args:
        batch: all completions of one rollout, from one process or from several.
    """
    new = batch.mask.sum(1).double()
    fed = batch.prompt_lengths.double() + new - 1
    pairs = float((fed * (fed + 1)).sum()) / 2
    tokens, completion = float(fed.sum()), float(new.sum())

    def decoder(weights: int, layers: int) -> float:
        return 2 * weights * tokens + 4 * layers * shape.attention_width * pairs

    lower = decoder(shape.lower_weights, shape.lower_layers)
    upper = decoder(shape.upper_weights, shape.upper_layers)
    head = 2 * shape.head_weights * completion
    value = 2 * shape.value_weights * completion
    again = 0.0 if shape.kept_trunk else lower

    adapted = decoder(shape.upper_weights + shape.adapter_weights, shape.upper_layers)
    attention = decoder(0, shape.upper_layers)
    backward = adapted + attention + 2 * shape.trained_weights * tokens
    epoch = again + adapted + backward + head * (3 if shape.head_trained else 2) + 3 * value
    return PhaseWork(
        generate=lower + upper + head,
        score=lower + upper + head,
        reference=again + upper + head,
        value=value,
        update=args.num_ppo_epochs * epoch,
    )


@cache
def measured_matmul_throughput(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product: the median of a few, under 0.5 s.

    Measured once per process, device and dtype, with the threads that torch has at that moment.
    The global random state is left alone.
    """
    on_cpu = device.type == "cpu"
    size = 1024 if on_cpu else 8192
    generator = torch.Generator(device).manual_seed(0)
    a, b = torch.rand(2, size, size, generator=generator, device=device).to(dtype).unbind()
    out = torch.empty_like(a)
    seconds: list[float] = []
    begun = time.perf_counter()
    while len(seconds) < 12:
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        if not on_cpu:
            torch.accelerator.synchronize(device)
        ended = time.perf_counter()
        seconds.append(ended - started)
        if ended - begun + seconds[-1] > _BUDGET:
            break
    # The first products set kernels and clocks up.
    return 2 * size**3 / statistics.median(seconds[2:] or seconds)
