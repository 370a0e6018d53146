r"""Bytes, traffic and seconds of training, as formulas of a model's sizes.

Nothing here knows a config or a library: `tables.py` prints docs/scaling.md from these formulas,
and `rlhf plan` reckons experiments with them. N are parameters, N_t of them trained; d is the
width, b·s tokens of a microbatch, V the vocabulary, P the processes. Bytes unless said otherwise.

Sources: [Z] Rajbhandari et al. 2020, ZeRO, sections 3 and 7; [K] Korthikanti et al. 2022, Reducing
Activation Recomputation, sections 4.1 and 4.3; [P] Patarasuk & Yuan 2009, Bandwidth optimal
all-reduce; [F] Zhao et al. 2023, PyTorch FSDP; [S] Pope et al. 2022, Efficiently Scaling
Transformer Inference, section 2.
"""

from __future__ import annotations

FLOAT32, BFLOAT16 = 4, 2
GRADIENT, ADAM = FLOAT32, 2 * FLOAT32
"""Of one trained weight: its gradient, and Adam's two moments, all float32 [Z]."""
LAYER_ACTIVATIONS = 34
"""Bytes a token and unit of width that a layer keeps for its backward pass, without an attention
matrix [K]. What the plan of an experiment measures instead takes its place."""
SCORED_LOGITS = 16
"""Bytes a logit of the chunk at hand: four float32 numbers, to score both models or to learn with
a trained head; 12 with a frozen one, 20 with an entropy bonus (measured)."""

# What is assumed to be reached of a device's peaks.
COMPUTE_SHARE, MEMORY_SHARE, LINK_SHARE = 0.4, 0.6, 0.7
USABLE = 0.9
"""The share of a card's memory that a plan may fill: the rest is its context and fragments."""


def states(trained: float, frozen_bytes: float, copied: float) -> dict[str, float]:
    """What FSDP2 splits over the processes and DDP repeats on each, by role.

    Args:
        frozen_bytes: of frozen weights, as they are stored. copied: weights that the reference has
            of its own: in the policy's dtype, or KL would begin above 0. None under adapters.
    """
    return {
        "frozen weights": frozen_bytes,
        "trained weights": FLOAT32 * trained,
        "gradients": GRADIENT * trained,
        "Adam": ADAM * trained,
        "reference": FLOAT32 * copied,
    }


def value_head(width: int, hidden: float = 1.0) -> int:
    """Parameters of the value head: LayerNorm, d × hidden·d, and one output."""
    inner = max(1, round(width * hidden))
    return 2 * width + width * inner + inner + inner + 1


def trained_states(parameters: float) -> float:
    """Float32 weights, their gradients and Adam's moments."""
    return (FLOAT32 + GRADIENT + ADAM) * parameters


def recomputed_activations(
    tokens: float, width: int, layers: int, whole_layer: float, stream: int = BFLOAT16
) -> float:
    """With gradient checkpointing: one input a layer, and one layer whole.

    Args:
        whole_layer: bytes a token that a layer keeps. stream: bytes of one number of its input.
    """
    return tokens * (stream * width * layers + whole_layer)


def logits(chunk: float, vocabulary: int, each: float = SCORED_LOGITS) -> float:
    """A chunk of tokens whose logits exist at once."""
    return chunk * vocabulary * each


def cache(tokens: float, token_bytes: float) -> float:
    """Keys and values of all tokens of the rows that are generated at once."""
    return tokens * token_bytes


def kv_token(layers: int, kv_width: int, size: int = BFLOAT16) -> float:
    """Keys and values of one token."""
    return 2 * size * layers * kv_width


# -- traffic: bytes that one process sends ---------------------------------------------------------


def all_reduce(trained: float, processes: int) -> float:
    """DDP, an update: reduce-scatter and all-gather in a ring [P, Z]."""
    return 2 * (processes - 1) / processes * FLOAT32 * trained


def gathers(sent: float, processes: int) -> float:
    """FSDP2, a microbatch: weights gathered in the forward and in the backward pass [F, Z]."""
    return 2 * (processes - 1) / processes * BFLOAT16 * sent


def reduce_scatter(trained: float, processes: int) -> float:
    """FSDP2, a microbatch: gradients [F]."""
    return (processes - 1) / processes * FLOAT32 * trained


# -- operations and seconds ------------------------------------------------------------------------


def flops_per_token(run: float, recomputed: float, passed: float, trained: float) -> float:
    """Of learning from one token [K]: 2 a weight for each of four kinds of pass.

    Args:
        run: weights of the forward pass. recomputed: of those run again in the backward pass.
        passed: weights that a gradient passes through. trained: weights that get one.
    """
    return 2 * (run + recomputed + passed + trained)


def decoding_step(
    weight_bytes: float, cached: float, rows: float, parameters: float, flops: float, memory: float
) -> float:
    """Seconds in which every row gets one token: weights and cache are read once [S], or the
    products take longer. ``flops`` and ``memory`` are what is reached a second."""
    return max((weight_bytes + cached) / memory, 2 * parameters * rows / flops)
