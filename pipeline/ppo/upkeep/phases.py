"""Where a rollout's time goes: seconds, tokens a second and share of the machine, by phase."""

from __future__ import annotations

import time
from contextlib import suppress

import torch

from pipeline.errors import UserError
from pipeline.lm.scoring import TokenBatch
from pipeline.ppo.actor_critic import ActorCritic
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.upkeep.metrics import Gather
from pipeline.ppo.upkeep.throughput import (
    ModelShape,
    PhaseWork,
    measured_matmul_throughput,
    phase_work,
)
from pipeline.provenance import peak_memory

PHASES: tuple[str, ...] = ("generate", "reward", "score", "update")


class PhaseClock:
    """Seconds spent in each of `PHASES`; one runs at a time, or none."""

    def __init__(self, device: torch.device) -> None:
        """What ``device`` was given to do is waited for at each change of phase."""
        self._device = device
        self._running: str | None = None
        self._since = 0.0
        self._seconds = dict.fromkeys(PHASES, 0.0)

    def start(self, phase: str) -> None:
        """End the phase that runs, if another does, and begin ``phase``."""
        if phase != self._running:
            self.stop()
            self._running, self._since = phase, time.perf_counter()

    def stop(self) -> None:
        """End the phase that runs, if any."""
        if self._running is None:
            return
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        self._seconds[self._running] += time.perf_counter() - self._since
        self._running = None

    def collect(self) -> dict[str, float]:
        """The seconds by phase since the last call; resets."""
        self.stop()
        found, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return found


class Performance:
    """What a run does with its machine, gathered rollout by rollout."""

    def __init__(self, model: ActorCritic, args: PPOConfig) -> None:
        """Make it before ``model`` is wrapped or sharded."""
        self._args = args
        self._dtype = torch.bfloat16 if args.bf16 else next(model.policy.parameters()).dtype
        self.clock = PhaseClock(args.device)
        self._work: list[PhaseWork] = []
        self._tokens = 0.0
        self._shape: ModelShape | None = None
        # The operations of an architecture whose layers are not known here stay unsaid.
        with suppress(UserError, AttributeError):
            self._shape = ModelShape.of(model)

    def measure_machine(self) -> None:
        """Measure the matrix throughput now, so that no phase pays for it."""
        measured_matmul_throughput(self._args.device, self._dtype)

    def add(self, batch: TokenBatch) -> None:
        """Take in a rollout's completions (this process's)."""
        self._tokens += float(batch.mask.sum())
        if self._shape is not None:
            self._work.append(phase_work(self._shape, batch, self._args))

    def collect(self, updated_tokens: float, gather: Gather) -> dict[str, float]:
        """Metrics since the last call; resets. Seconds are the slowest process's.

        Args:
            updated_tokens: completion tokens that were learned from, all epochs and processes.
        """
        device = self._args.device
        seconds = self.clock.collect()
        on_gpu = device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else peak_memory()
        work = [
            sum(w.generate for w in self._work),
            sum(w.scoring for w in self._work),
            sum(w.update for w in self._work),
        ]
        rate = measured_matmul_throughput(device, self._dtype)
        mine = [memory, *seconds.values(), self._tokens, rate, *work]
        found = gather(torch.tensor(mine, dtype=torch.float64))
        self._work, self._tokens = [], 0.0
        memory, *times = found[:, :5].amax(0).tolist()
        tokens, rate, *work = found[:, 5:].sum(0).tolist()
        took = {phase: max(t, 1e-9) for phase, t in zip(PHASES, times, strict=True)}
        total = sum(took.values())
        metrics = {f"time/{phase}": value for phase, value in took.items()}
        for phase, value in took.items():
            count = updated_tokens if phase == "update" else tokens
            metrics[f"perf/tokens_per_second_{phase}"] = count / value
        metrics["perf/tokens_per_second"] = tokens / total
        metrics["perf/memory_peak_gib"] = memory
        metrics["perf/matmul_tflops"] = rate / 1e12
        if self._shape is None:
            return metrics
        work[2] *= updated_tokens / (max(tokens, 1.0) * self._args.num_ppo_epochs)
        for phase, operations in zip(("generate", "score", "update"), work, strict=True):
            metrics[f"perf/mfu_{phase}"] = operations / took[phase] / rate
        return metrics | {"perf/mfu": sum(work) / total / rate}
