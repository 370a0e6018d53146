"""One training run: its curve, its checkpoints and its result, the same for every algorithm.

Environments cannot be saved in general. A run that checkpoints therefore begins new episodes after
each checkpoint, from a seed that depends only on the run's seed and the checkpoint's number; a
resumed run does the same and ends bit-equal to one that was never interrupted.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from classic_rl.deep.best import RECENT, Best
from classic_rl.deep.policies import Policy
from classic_rl.deep.policy_file import (
    POLICY_FILE,
    policy_tensors,
    restore_policy,
    save_policy,
)
from classic_rl.deep.rollout import Episodes
from classic_rl.deep.settings import check_range
from classic_rl.errors import ProblemError
from classic_rl.results import prepare_folder, versions, write_bytes, write_json

BEST_FOLDER = "best-in-training"
CHECKPOINT_FILE = "checkpoint.safetensors"
RESULT_FILE = "result.json"
OnLog = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class RunConfig:
    """What every algorithm's config has.

    Args:
        env_id: gymnasium id. env_kwargs: its arguments.
        total_steps: environment steps to train for.
        seed: of weights, environments and actions.
        checkpoint_every: environment steps between checkpoints; 0: none.
        threads: torch threads; one is fastest for small networks, and the number changes the last
            bits of sums, hence the curve.
    """

    env_id: str = "CartPole-v1"
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    total_steps: int = 100_000
    seed: int = 0
    checkpoint_every: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        check_range(self, "total_steps", low=1)
        check_range(self, "threads", low=1, high=1024)
        check_range(self, "seed", low=0, high=2**31 - 1)
        check_range(self, "checkpoint_every", low=0)


@dataclass
class Result:
    """A trained policy and how it got there.

    Args:
        policy: ready to act. config: as trained. curve: logged metrics by name, equally long lists
            with the environment steps under ``"steps"``. episodes: every training episode.
        steps: environment steps taken. seconds: wall time, of all parts of a resumed run.
        best: the best policy on the way.
    """

    policy: Policy
    config: RunConfig
    algorithm: str
    curve: dict[str, list[float]]
    episodes: Episodes
    steps: int
    seconds: float
    best: Best

    def save(self, out: str | Path) -> Path:
        """Write the policy and ``result.json`` into the folder ``out``, and into its folder
        ``best-in-training`` that policy where the run did worse afterwards."""
        folder = prepare_folder(out)
        config = self.config
        save_policy(self.policy, folder / POLICY_FILE, config.env_id, config.env_kwargs)
        if self.best.fell:
            best = copy.deepcopy(self.policy)
            restore_policy(best, self.best.tensors, BEST_FOLDER)
            place = prepare_folder(folder / BEST_FOLDER) / POLICY_FILE
            save_policy(best, place, config.env_id, config.env_kwargs)
        content = {
            "algorithm": self.algorithm,
            "config": asdict(config),
            "steps": self.steps,
            "seconds": self.seconds,
            "curve": self.curve,
            "episodes": asdict(self.episodes),
            "best": self.best.state() | {"fell": self.best.fell},
            "versions": versions() | {"torch": torch.__version__},
        }
        return write_json(folder / RESULT_FILE, content)


class Run:
    """Bookkeeping of one training.

    Args:
        algorithm: its name, kept in checkpoints. config: the run's.
        out: folder for checkpoints; None keeps nothing. resume: go on from a checkpoint in ``out``.
        on_log: called with (environment steps, metrics) at every log.
    """

    def __init__(
        self,
        algorithm: str,
        config: RunConfig,
        out: str | Path | None = None,
        *,
        resume: bool = False,
        on_log: OnLog | None = None,
    ) -> None:
        self.algorithm, self.config, self.resume, self.on_log = algorithm, config, resume, on_log
        self.path = prepare_folder(out) / CHECKPOINT_FILE if out is not None else None
        self.curve: dict[str, list[float]] = {"steps": []}
        self.best = Best()
        self.segments = 0  # checkpoints passed
        self.began = time.perf_counter()

    def segment_seed(self) -> int:
        """The seed of everything random until the next checkpoint."""
        return int(np.random.SeedSequence([self.config.seed, self.segments]).generate_state(1)[0])

    def log(self, steps: int, policy: Policy, episodes: Episodes, **metrics: float) -> None:
        """Add a point to the curve, and look whether ``policy`` is the best so far.

        Every call must name the same metrics; ``episode_return`` is added to them.

        Raises:
            ProblemError: where one is not finite; only the return has a time without a value.
        """
        metrics = {"episode_return": episodes.recent_return(), **metrics}
        for name, value in metrics.items():
            if name != "episode_return" and not math.isfinite(value):
                raise ProblemError(
                    f"after {steps} steps {name} is {value}: training diverged; lower learning_rate"
                )
        for name, value in {"steps": steps, **metrics}.items():
            self.curve.setdefault(name, []).append(value)
        self.best.look_at(steps, episodes.recent_return(RECENT), policy_tensors(policy))
        if self.on_log is not None:
            self.on_log(steps, metrics)

    def checkpoint_due(self, steps: int) -> bool:
        """Whether to checkpoint now; the caller then calls `checkpoint` and restarts everything
        random from `segment_seed`. True also without ``out``, so that curves do not depend on it.
        """
        every = self.config.checkpoint_every
        return every > 0 and steps >= every * (self.segments + 1)

    def checkpoint(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Pass a checkpoint: write ``tensors`` and the JSON-able ``state`` in one atomic file."""
        self.segments += 1
        if self.path is None:
            return
        about = {
            "algorithm": self.algorithm,
            "config": _comparable(self.config),
            "segments": self.segments,
            "seconds": time.perf_counter() - self.began,
            "curve": self.curve,
            "best": self.best.state(),
            "state": dict(state),
        }
        every = {**tensors, **with_prefix("best", self.best.tensors)}
        contiguous = {name: tensor.contiguous() for name, tensor in every.items()}
        write_bytes(self.path, safetensors.torch.save(contiguous, {"run": json.dumps(about)}))

    def restore(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and state of the last checkpoint; None without ``resume`` or a checkpoint.

        Raises:
            ProblemError: for a checkpoint of another algorithm or config.
        """
        if not self.resume or self.path is None or not self.path.exists():
            return None
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("run", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError) as error:
            raise ProblemError(f"{self.path}: not a readable checkpoint ({error})") from error
        if about is None:
            raise ProblemError(f"{self.path}: not a checkpoint of classic_rl")
        theirs = {"algorithm": about["algorithm"], **about["config"]}
        for name, value in {"algorithm": self.algorithm, **_comparable(self.config)}.items():
            if theirs.get(name) != value:
                raise ProblemError(
                    f"{self.path}: its {name} is {theirs.get(name)}, this run's is {value}; "
                    "use the same settings or another --out"
                )
        self.segments, self.curve = about["segments"], about["curve"]
        self.best = Best(**about.get("best", {}), tensors=below("best", tensors))
        self.began -= about["seconds"]
        return tensors, about["state"]

    def result(self, policy: Policy, episodes: Episodes, steps: int) -> Result:
        """The result of the finished run."""
        seconds = time.perf_counter() - self.began
        done = (self.algorithm, self.curve, episodes, steps, seconds, self.best)
        return Result(policy, self.config, *done)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` with names that begin ``prefix.``."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `with_prefix`: those tensors whose names begin ``prefix.``."""
    start = f"{prefix}."
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}


class Restorable(Protocol):
    """An optimiser or running statistics, as far as checkpoints go."""

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`."""


class Collects(Protocol):
    """What gathers experience, as far as checkpoints go."""

    steps: int
    episodes: Episodes

    def restart(self, seed: int) -> None:
        """Begin anew from ``seed`` alone."""


def updates(
    run: Run, policy: Policy, learning: Mapping[str, Restorable], collector: Collects
) -> Iterator[float]:
    """The loop of an on-policy run: a turn is one update, until all steps are taken.

    It goes on from the checkpoint where ``run`` resumes, and checkpoints between two turns.

    Args:
        learning: what else a resumed run needs, such as the optimiser, by a name of each.
        collector: its ``steps`` grow in the caller's turn.

    Yields:
        the share of the run that is left: 1 at first, towards 0.
    """
    _restore_learner(run, policy, learning, collector)
    total = run.config.total_steps
    while collector.steps < total:
        if run.checkpoint_due(collector.steps):
            run.checkpoint(*_learner_state(policy, learning, collector))
            collector.restart(run.segment_seed())
        yield 1.0 - collector.steps / total


def _learner_state(
    policy: Policy, learning: Mapping[str, Restorable], collector: Collects
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state for `Run.checkpoint`."""
    tensors = with_prefix("policy", policy_tensors(policy))
    for name, part in learning.items():
        tensors |= with_prefix(name, part.state())
    return tensors, {"steps": collector.steps, "episodes": asdict(collector.episodes)}


def _restore_learner(
    run: Run, policy: Policy, learning: Mapping[str, Restorable], collector: Collects
) -> None:
    """Undo `_learner_state` where ``run`` resumes, and restart the collector for what follows."""
    restored = run.restore()
    if restored is None:
        return
    tensors, state = restored
    restore_policy(policy, below("policy", tensors), str(run.path))
    for name, part in learning.items():
        part.restore(below(name, tensors))
    collector.steps, collector.episodes = state["steps"], Episodes(**state["episodes"])
    collector.restart(run.segment_seed())


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Give torch ``number`` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _comparable(config: RunConfig) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config)))
