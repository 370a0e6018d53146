"""A trial: one policy at one β from one seed, in an experiment's folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import Experiment
from pipeline.sweep.jobs import Job


@dataclass(frozen=True)
class Trial:
    """One policy at one β from one seed.

    Attributes:
        name: of its folder: `ppo-b0.5-s1`.
        folder: its experiment's output folder.
        policy: its name among the experiment's policies. method: what trains it.
        beta: of its training and of its comparison.
        betas: those that it counts for: all of the sweep where its training reads none.
        over: the further axes' values, by dotted key.
        shared: the folder whose SFT model and rewards it builds on.
        pool: what trials have in common whose reference samples are of one distribution.
        tree: its config file. experiment: what that says.
    """

    name: str
    folder: Path
    policy: str
    method: str
    beta: float
    betas: tuple[float, ...]
    seed: int
    over: Mapping[str, Any] = field(hash=False)
    shared: Path
    pool: tuple[str, ...]
    tree: Mapping[str, Any] = field(repr=False, hash=False, compare=False)
    experiment: Experiment = field(repr=False, hash=False, compare=False)

    @property
    def config(self) -> Path:
        """The experiment's file."""
        return self.folder / "config.yaml"

    def job(self, after: tuple[str, ...]) -> Job:
        """Train the policy and measure it."""
        return Job(self.name, self.folder, self.config, (self.policy, "compare"), after)

    def label(self) -> str:
        """The policy and the further axes' values, in words; the same for every β and seed."""
        return labelled(self.policy, self.over)


def labelled(policy: str, over: Mapping[str, Any]) -> str:
    """A policy's name with the further axes' values: ``ppo, ppo.total_episodes = 512``."""
    return ", ".join([policy, *(f"{key} = {shown(value)}" for key, value in over.items())])


def shown(value: Any) -> str:
    """A setting's value in a name or a sentence."""
    return f"{value:g}" if isinstance(value, float) else str(value)
