"""The trained value head as a folder of its own: safetensors, and JSON that says how it is read.

V(s_t) is a function of the policy's final hidden state before completion token t, after the last
norm: the head is of use with the policy that it was trained with, and with no other. What of V is
known without it, the token's own KL and with ``critic: prefix`` a line of the prefix's reward, the
head never learned (`PPOTrainer._known_values`): V is the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from common.files import new_folder, read_json, write_json
from pipeline.errors import UserError
from pipeline.lm.generation import Completion
from pipeline.lm.hardware import autocast
from pipeline.lm.route import hidden_states
from pipeline.lm.scoring import TokenBatch, predicting_states
from pipeline.ppo.actor_critic import ValueHead
from pipeline.ppo.prefix import PrefixCritic

FOLDER = "value_head"
WEIGHTS, CONFIG = "value_head.safetensors", "config.json"
_INPUT = "the policy's final hidden state before the token, after the last norm"


def save_value_head(head: ValueHead, folder: Path, prefix: PrefixCritic | None = None) -> None:
    """Write ``head`` into ``folder``, atomically.

    Args:
        prefix: the lines of prefix rewards that V has beside the head, where it has any.
    """
    hidden, inner = head.inner.in_features, head.inner.out_features
    about: dict[str, Any] = {
        "hidden_size": hidden,
        "inner_size": inner,
        "input": _INPUT,
        "prefix_lines": None if prefix is None else prefix.lines().tolist(),
    }
    weights = {name: w.detach().float().cpu().contiguous() for name, w in head.state_dict().items()}
    with new_folder(folder) as beside:
        save_file(weights, beside / WEIGHTS)
        write_json(beside / CONFIG, about)


def load_value_head(folder: str | Path) -> ValueHead:
    """Read back what :func:`save_value_head` wrote, on the processor, in float32.

    Raises:
        UserError: no value head lies there, or its files do not go together.
    """
    folder = Path(folder)
    try:
        about = read_json(folder / CONFIG)
        hidden, inner = int(about["hidden_size"]), int(about["inner_size"])
        head = ValueHead(hidden, inner / hidden)
        head.load_state_dict(load_file(folder / WEIGHTS))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: holds no value head ({Path(str(error.filename)).name} is not there); train"
            " with ppo.save_value_head=true"
        ) from error
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise UserError(f"{folder}: its {WEIGHTS} and {CONFIG} do not go together") from error
    return head.eval().requires_grad_(False)


@torch.no_grad()
def values(
    head: ValueHead, policy: PreTrainedModel, completions: Sequence[Completion]
) -> list[list[float]]:
    """What the head makes of each completion's tokens, with the policy that it was trained with."""
    batch = TokenBatch.collate(completions, 0, policy.device)
    with autocast(policy):
        states = predicting_states(hidden_states(policy, batch.sequences), batch)
    given = head.to(policy.device)(states.flatten(0, 1)).view(batch.mask.shape)
    return [row[mask].tolist() for row, mask in zip(given, batch.mask, strict=True)]
