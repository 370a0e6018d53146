"""What a run does with its machine: seconds a phase, tokens a second, memory."""

from __future__ import annotations

import time

import torch

from pipeline.lm.scoring import TokenBatch
from pipeline.output.memory import peak_memory
from pipeline.ppo.upkeep.metrics import Gather

PHASES: tuple[str, ...] = ("generate", "reward", "score", "update")
"""One runs at a time, or none. ``score`` is log-probabilities, reference and values."""


class Performance:
    """Seconds, tokens and memory, gathered rollout by rollout."""

    def __init__(self, device: torch.device) -> None:
        """What ``device`` was given to do is waited for at each change of phase."""
        self._device = device
        self._running: str | None = None
        self._since = 0.0
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._tokens = 0.0
        self._places = torch.zeros(2, dtype=torch.float64, device=device)

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

    def add(self, batch: TokenBatch) -> None:
        """Take in a rollout's completions (this process's)."""
        self._tokens += float(batch.mask.sum())

    def learn(self, batch: TokenBatch, packed: bool) -> None:
        """Take in rows that are learned from at once (this process's), packed or padded."""
        real = batch.prompt_lengths.sum() + batch.mask.sum()
        places = real if packed else torch.full_like(real, batch.sequences.numel())
        self._places += torch.stack([real, places])

    def collect(self, updated_tokens: float, gather: Gather) -> dict[str, float]:
        """Metrics since the last call; resets. Seconds are the slowest process's.

        Args:
            updated_tokens: completion tokens that were learned from, all epochs and processes.
        """
        self.stop()
        on_gpu = self._device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(self._device) / 2**30 if on_gpu else peak_memory()
        own = [memory, *self._seconds.values(), self._tokens, *self._places.tolist()]
        everyone = gather(torch.tensor(own, dtype=torch.float64))
        self._seconds, self._tokens = dict.fromkeys(PHASES, 0.0), 0.0
        self._places.zero_()
        memory, *times = everyone[:, :-3].amax(0).tolist()
        tokens, real, places = everyone[:, -3:].sum(0).tolist()
        took = {phase: max(t, 1e-9) for phase, t in zip(PHASES, times, strict=True)}
        metrics = {f"time/{phase}": seconds for phase, seconds in took.items()}
        for phase, seconds in took.items():
            count = updated_tokens if phase == "update" else tokens
            metrics[f"perf/tokens_per_second_{phase}"] = count / seconds
        metrics["perf/tokens_per_second"] = tokens / sum(took.values())
        metrics["perf/padding"] = 1 - real / places if places else 0.0
        metrics["perf/memory_peak_gib"] = memory
        return metrics
