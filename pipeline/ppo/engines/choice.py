"""The engine that a configuration names."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.errors import UserError
from pipeline.output.console import is_main_process
from pipeline.ppo.config import PPOConfig, sharded
from pipeline.ppo.engines.interface import Called, Engine, Sampler

# Nats a token that the same model may differ by: seen 1e-6 in float32, 0.07 in bfloat16
# (benchmarks/engine_mismatch.py).
_EXACT, _ROUNDED = 0.02, 0.2


def engine_of(sampler: Sampler | Engine | None, args: PPOConfig) -> Engine | None:
    """What draws completions; ``None`` for the trainer's own loop.

    Raises:
        UserError: there are two, or the settings of the one that is named are none.
    """
    if sampler is None:
        return _named(args)
    if args.generation != "loop":
        raise UserError(f"generation={args.generation}: there is a sampler already; leave one out")
    return sampler if isinstance(sampler, Engine) else Called(sampler)


def _named(args: PPOConfig) -> Engine | None:
    """The engine of ``args.generation``; None for the trainer's own loop.

    Raises:
        UserError: its settings are none, or the weights are split over processes.
    """
    if args.generation == "loop":
        return None
    if sharded(args):
        raise UserError(
            f"generation={args.generation}: not where FSDP splits the weights; set it to"
            " loop, or train LoRA under DDP"
        )
    if args.generation == "continuous":
        from pipeline.ppo.engines.continuous import Continuous

        return Continuous()
    from pipeline.ppo.engines.vllm import VLLM

    remove_sent(args)  # what a run that was killed has left
    return VLLM(
        str(args.server),
        Path(args.server_folder or _own_folder(args)),
        temperature=args.temperature,
        header_env=args.server_header_env,
        timeout=args.server_timeout,
        retries=args.server_retries,
        weights=args.server_weights,
        tolerance=args.server_tolerance or (_ROUNDED if args.bf16 or args.fp16 else _EXACT),
    )


def remove_sent(args: PPOConfig) -> None:
    """Remove the last weights that a server was given, which may be a whole model's; not those in a
    ``server_folder``, where other runs' may be."""
    if is_main_process():
        shutil.rmtree(_own_folder(args), ignore_errors=True)


def _own_folder(args: PPOConfig) -> Path:
    return Path(str(args.output_dir)) / "server"
