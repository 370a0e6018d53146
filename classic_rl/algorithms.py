"""The deep algorithms by name. A module is imported when it is used: all of them need torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from classic_rl.errors import ProblemError

if TYPE_CHECKING:
    from classic_rl.deep.run import OnLog, Result, RunConfig


class Train(Protocol):
    """What every algorithm's module has under the name ``train``."""

    def __call__(
        self,
        config: RunConfig,
        *,
        out: str | Path | None = None,
        resume: bool = False,
        on_log: OnLog | None = None,
    ) -> Result:
        """Train to the end; see `classic_rl.deep.run.Run`."""
        ...


@dataclass(frozen=True)
class Algorithm:
    """Where an algorithm is.

    Args:
        module: its module. config: name of the settings class there. about: one line of help.
    """

    module: str
    config: str
    about: str

    def config_class(self) -> type[RunConfig]:
        """The dataclass of its settings."""
        return getattr(importlib.import_module(self.module), self.config)

    def train(self) -> Train:
        """Its training function."""
        return importlib.import_module(self.module).train


ALGORITHMS = {
    "dqn": Algorithm("classic_rl.dqn", "DQNConfig", "deep Q-learning: double, dueling, n-step"),
    "reinforce": Algorithm(
        "classic_rl.reinforce", "ReinforceConfig", "policy gradient from whole episodes"
    ),
    "a2c": Algorithm("classic_rl.a2c", "A2CConfig", "advantage actor-critic"),
    "ppo": Algorithm("classic_rl.ppo", "PPOConfig", "proximal policy optimisation"),
}


def find_algorithm(name: str) -> Algorithm:
    """The algorithm called ``name``; a ProblemError names the known ones."""
    if name not in ALGORITHMS:
        raise ProblemError(f"{name}: no such algorithm; there are {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]
