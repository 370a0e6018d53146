"""Room for what a rollout keeps for its update: on the device, in the host's memory, or none.

With completions of thousands of tokens the frozen layers' activations of a whole rollout, and the
reference's final states, take gigabytes: (B, L, d) numbers each. They save time and change nothing,
so they give way to what the run cannot do without.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch

from pipeline.lm.models import base_of
from pipeline.output.console import say
from pipeline.ppo.actor_critic import ActorCritic
from pipeline.ppo.config import PPOConfig

_DEVICE_SHARE, _HOST_SHARE = 1 / 4, 1 / 2  # of the free memory


def bytes_kept(model: ActorCritic, args: PPOConfig, longest: int) -> int:
    """What one process keeps of a rollout at most, if every row is as long as can be.

    Args:
        longest: tokens of the longest sequence to expect.
    """
    base = base_of(model.policy)
    halves = (torch.bfloat16, torch.float16)
    reduced = args.bf16 or args.fp16 or any(p.dtype in halves for p in base.parameters())
    states = longest if model.has_trunk else 0
    states += args.response_length if args.charges_exact_kl else 0
    width: int = base.config.get_text_config().hidden_size
    return args.rollout_size * states * width * (2 if reduced else 4)


def free_memory(device: torch.device, processes: int) -> float:
    """Bytes free for one of a machine's ``processes``."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return psutil.virtual_memory().available / processes


def make_room(
    model: ActorCritic,
    args: PPOConfig,
    longest: int,
    lowest: Callable[[float], float],
    free: Callable[[torch.device, int], float] = free_memory,
) -> tuple[bool, torch.device | None]:
    """Decide where the kept activations lie; the model keeps no trunk where there is no room.

    Args:
        lowest: of a number of every process. free: see :func:`free_memory`.

    Returns:
        whether they are kept at all, and on which device.
    """
    needed, device = bytes_kept(model, args, longest), args.device
    if needed <= _DEVICE_SHARE * lowest(free(device, args.world_size)):
        return True, device
    what = f"PPO: what a rollout would keep for its update takes up to {needed / 2**30:.1f} GiB"
    host = torch.device("cpu")
    # Several processes exchange rows where these are computed.
    if device != host and args.world_size == 1 and needed <= _HOST_SHARE * free(host, 1):
        say(f"{what}; it lies in the host's memory")
        return True, host
    model.keep_no_trunk()
    say(f"{what}, over a quarter of the free memory; it is computed again in every pass")
    return False, None
