"""Steps a second of tabular Q-learning, against the bare environment loop.

    python benchmarks/tabular_learning.py

On FrozenLake 8×8, ε-greedy with ε = 0.1. Every round times every row once, so that a busy machine
slows all of them alike; the medians are printed. The bare loop replays the actions that
Q-learning chose, on the same seed, and so visits the same states and resets as often.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np

from classic_rl.mdp import from_gymnasium
from classic_rl.tabular.batched import q_learning_many
from classic_rl.tabular.control import q_learning
from classic_rl.tabular.exploration import EpsilonGreedy

ENV = "FrozenLake8x8-v1"
EXPLORE = EpsilonGreedy(0.1)
SETTINGS: dict[str, Any] = {"alpha": 0.1, "gamma": 0.99, "initial": 1.0}


class Recorder(gym.Wrapper):
    """Keeps the actions it is given."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.actions: list[int] = []

    def step(self, action):
        self.actions.append(action)
        return self.env.step(action)


def bare_loop(env: gym.Env, actions: list[int]) -> None:
    """The environment alone, with actions known beforehand."""
    env.reset(seed=0)
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()


def rows(steps: int) -> list[tuple[str, int, Callable[[], object]]]:
    """(name, steps, function) of what is timed; the first is what the others are compared with."""
    env, mdp = gym.make(ENV), from_gymnasium(ENV, 0.99)
    few = steps // 5
    settings: dict[str, Any] = {"seed": 0, **SETTINGS}
    options: dict[str, Any] = {"explore": EXPLORE, **settings}
    recorder = Recorder(env)
    q_learning(recorder, steps=few, **options)

    def plain(*row):  # not an EpsilonGreedy to look at, so it takes the loop of every explorer
        return EXPLORE(*row)

    timed: list[tuple[str, int, Callable[[], object]]] = [
        ("bare gymnasium loop", few, lambda: bare_loop(env, recorder.actions)),
        ("gymnasium, Q-learning", few, lambda: q_learning(env, steps=few, **options)),
        (
            "own table, loop of any explorer",
            few,
            lambda: q_learning(mdp, explore=plain, steps=few, **settings),
        ),
        ("own table, Q-learning", steps, lambda: q_learning(mdp, steps=steps, **options)),
    ]
    for seeds in (64, 256, 1024):
        each = max(steps * 4 // seeds, 1)

        def many(seeds: int = seeds, each: int = each) -> object:
            return q_learning_many(mdp, seeds=range(seeds), explore=EXPLORE, steps=each, **SETTINGS)

        timed.append((f"own table, {seeds} seeds at once", each * seeds, many))
    if importlib.util.find_spec("numba"):
        timed.append(
            (
                "own table, compiled by numba",
                steps * 4,
                lambda: q_learning(mdp, steps=steps * 4, compiled=True, **options),
            )
        )
    return timed


def machine() -> str:
    """The processor's name and the versions that matter."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1] for line in info.read_text().splitlines() if "model name" in line
        ]
        processor = names[0].strip() if names else processor
    return (
        f"{processor}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; Python "
        f"{platform.python_version()}, numpy {np.__version__}, gymnasium {gym.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of tabular Q-learning.")
    parser.add_argument(
        "--steps", type=int, default=500_000, help="steps of a row on the own table"
    )
    parser.add_argument("--rounds", type=int, default=5, help="times each row is measured")
    arguments = parser.parse_args()
    timed = rows(arguments.steps)
    timed[-1][2]()  # numba compiles on the first call
    rates: dict[str, list[float]] = {name: [] for name, _, _ in timed}
    for _ in range(arguments.rounds):
        for name, steps, run in timed:
            began = time.perf_counter()
            run()
            rates[name].append(steps / (time.perf_counter() - began))
    bare = next(iter(rates.values()))
    print(f"{ENV}; {machine()}")
    print(f"{'':34}{'steps/s':>12}{'fastest':>12}{'× bare':>10}")
    for name, measured in rates.items():
        ratio = statistics.median(
            mine / theirs for mine, theirs in zip(measured, bare, strict=True)
        )
        print(f"{name:34}{statistics.median(measured):12,.0f}{max(measured):12,.0f}{ratio:10.2f}")


if __name__ == "__main__":
    main()
