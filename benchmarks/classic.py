"""Deep algorithms against Stable-Baselines3 at its rl-zoo tuned settings.

    python -m venv peers && peers/bin/pip install -e ".[box2d]" stable-baselines3
    OMP_NUM_THREADS=1 peers/bin/python benchmarks/classic.py                      # an hour
    OMP_NUM_THREADS=1 peers/bin/python benchmarks/classic.py --part ppo-cartpole  # two minutes

Parts: ppo-cartpole, ppo-lunarlander, dqn-cartpole. Each side trains with its own tuned settings
(ours are in configs/classic) for the same seeds, the sides taking turns; ours also runs PPO at
SB3's settings, network and activation. All sides use one torch thread on the CPU and are judged by
the same code: every few thousand steps 20 greedy episodes in fresh environments, whose time is
taken out of the clock; solved is the first of two means in a row at or above the threshold, final
the mean of 100 episodes after training. The median of the seeds is shown.

SB3 makes its environments with ``render_mode="rgb_array"``, for which LunarLander keeps piling up
exhaust particles; it is quoted as shipped (speed only) and with ``render_mode=None``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classic_rl import ppo
from classic_rl.deep.evaluation import evaluate
from classic_rl.deep.policies import Acted, ActorCritic
from classic_rl.deep.run import RunConfig
from classic_rl.deep.settings import load_config
from classic_rl.envs import environments

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "classic"
EVALUATION_SEED = 1_000_000  # far from every training seed


@dataclass(frozen=True)
class Task:
    """An environment, when it is solved, and how often that is looked at."""

    env_id: str
    threshold: float
    check_every: int


CARTPOLE = Task("CartPole-v1", 475, 2_000)
LUNARLANDER = Task("LunarLander-v3", 200, 16_000)


@dataclass
class Race:
    """One training run under the clock; evaluations stop it."""

    task: Task
    began: float = field(default_factory=lambda: time.perf_counter())
    checked: int = 0
    passed: tuple[float, float] | None = None  # seconds and steps of the last check, if it passed
    solved: tuple[float, float] = (float("inf"), float("inf"))

    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def check(self, policy: Any, steps: int) -> None:
        """Evaluate where it is time to, until it is solved."""
        if self.solved[0] < float("inf") or steps < self.checked + self.task.check_every:
            return
        self.checked, now = steps, (self.seconds(), float(steps))
        good = score(policy, self.task, episodes=20) >= self.task.threshold
        if good and self.passed:
            self.solved = self.passed
        self.passed = now if good else None
        self.began += self.seconds() - now[0]


@dataclass(frozen=True)
class Outcome:
    """What one run came to."""

    steps_per_second: float
    solved_seconds: float
    solved_steps: float
    final: float


def score(policy: Any, task: Task, episodes: int) -> float:
    return float(evaluate(policy, task.env_id, episodes, EVALUATION_SEED).returns.mean())


class Peer:
    """An SB3 model in the form that `evaluate` plays."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.observation_space, self.action_space = model.observation_space, model.action_space

    def scale(self, observations: np.ndarray) -> np.ndarray:
        return observations

    def act(self, observations: np.ndarray, rng: None = None) -> Acted:
        actions, _ = self.model.predict(observations, deterministic=True)
        return Acted(actions, np.zeros(len(actions)), np.zeros(len(actions)))

    def for_environment(self, actions: np.ndarray) -> np.ndarray:
        return actions


@contextmanager
def replaced(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """``owner.name`` wrapped for a while."""
    original = getattr(owner, name)
    setattr(owner, name, wrap(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def our_run(module: Any, network: str, config: RunConfig, task: Task) -> Outcome:
    """Train ours; the policy in training is caught where ``module`` makes it."""
    made: list[Any] = []

    def catching(cls: Any) -> Any:
        return lambda *args, **kwargs: made.append(cls(*args, **kwargs)) or made[-1]

    race = Race(task)
    with replaced(module, network, catching):
        result = module.train(config, on_log=lambda steps, _: race.check(made[0], steps))
    seconds = race.seconds()
    final = score(result.policy, task, episodes=100)
    return Outcome(result.steps / seconds, *race.solved, final)


def sb3_run(
    algorithm: str,
    task: Task,
    steps: int,
    n_envs: int,
    seed: int,
    settings: dict[str, Any],
    env_kwargs: dict[str, Any] | None,
    judged: bool = True,
) -> Outcome:
    """Train SB3's ``algorithm``; not ``judged`` takes its speed only."""
    sb3 = importlib.import_module("stable_baselines3")
    callbacks = importlib.import_module("stable_baselines3.common.callbacks")
    env_util = importlib.import_module("stable_baselines3.common.env_util")
    race = Race(task)
    envs = env_util.make_vec_env(task.env_id, n_envs=n_envs, seed=seed, env_kwargs=env_kwargs)
    model = getattr(sb3, algorithm)("MlpPolicy", envs, seed=seed, device="cpu", **settings)

    class Check(callbacks.BaseCallback):
        def _on_step(self) -> bool:
            if judged:
                race.check(Peer(model), self.num_timesteps)
            return True

    model.learn(steps, callback=Check())
    seconds = race.seconds()
    final = score(Peer(model), task, episodes=100) if judged else float("nan")
    return Outcome(model.num_timesteps / seconds, *race.solved, final)


def linear(start: float) -> Callable[[float], float]:
    return lambda left: start * left


Side = Callable[[int], Outcome]  # seed → outcome


def ppo_cartpole() -> tuple[Task, dict[str, Side]]:
    ours = load_config(ppo.PPOConfig, CONFIGS / "ppo-CartPole-v1.yaml")
    zoo = {
        "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20,
        "ent_coef": 0.0, "learning_rate": linear(1e-3), "clip_range": linear(0.2),
    }  # fmt: skip
    same = ppo.PPOConfig(
        env_id="CartPole-v1", total_steps=100_000, n_envs=8, n_steps=32, minibatch_size=256,
        lam=0.8, gamma=0.98, epochs=20, learning_rate=1e-3, anneal_cliprange=True,
    )  # fmt: skip
    return CARTPOLE, {
        "ours": our_ppo(ours, CARTPOLE),
        "ours, SB3's settings": our_ppo(same, CARTPOLE),
        "SB3": lambda seed: sb3_run("PPO", CARTPOLE, 100_000, 8, seed, zoo, None),
    }


def ppo_lunarlander() -> tuple[Task, dict[str, Side]]:
    ours = load_config(ppo.PPOConfig, CONFIGS / "ppo-LunarLander-v3.yaml")
    zoo = {
        "n_steps": 1024, "batch_size": 64, "gae_lambda": 0.98, "gamma": 0.999, "n_epochs": 4,
        "ent_coef": 0.01,
    }  # fmt: skip
    same = ppo.PPOConfig(
        env_id="LunarLander-v3", total_steps=1_000_000, n_envs=16, n_steps=1024, minibatch_size=64,
        lam=0.98, gamma=0.999, epochs=4, entropy_coef=0.01, learning_rate=3e-4, anneal=False,
    )  # fmt: skip
    quiet = {"render_mode": None}
    return LUNARLANDER, {
        "ours": our_ppo(ours, LUNARLANDER),
        "ours, SB3's settings": our_ppo(same, LUNARLANDER),
        "SB3, render_mode=None": lambda seed: sb3_run(
            "PPO", LUNARLANDER, 1_000_000, 16, seed, zoo, quiet
        ),
        "SB3 as shipped": lambda seed: sb3_run(
            "PPO", LUNARLANDER, 2 * 16_384, 16, seed, zoo, None, judged=False
        ),
    }


def dqn_cartpole() -> tuple[Task, dict[str, Side]]:
    dqn = importlib.import_module("classic_rl.dqn")
    ours = load_config(dqn.DQNConfig, CONFIGS / "dqn-CartPole-v1.yaml")
    zoo = {
        "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1000,
        "gamma": 0.99, "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128,
        "exploration_fraction": 0.16, "exploration_final_eps": 0.04,
        "policy_kwargs": {"net_arch": [256, 256]},
    }  # fmt: skip

    def our_side(seed: int) -> Outcome:
        return our_run(dqn, "QNetwork", with_seed(ours, seed), CARTPOLE)

    return CARTPOLE, {
        "ours": our_side,
        "SB3": lambda seed: sb3_run("DQN", CARTPOLE, 50_000, 1, seed, zoo, None),
    }


PARTS: dict[str, Callable[[], tuple[Task, dict[str, Side]]]] = {
    "ppo-cartpole": ppo_cartpole,
    "ppo-lunarlander": ppo_lunarlander,
    "dqn-cartpole": dqn_cartpole,
}


def with_seed(config: Any, seed: int) -> Any:
    return config.__class__(**{**vars(config), "seed": seed})


def our_ppo(config: ppo.PPOConfig, task: Task) -> Side:
    return lambda seed: our_run(ppo, "ActorCritic", with_seed(config, seed), task)


def run_part(name: str, seeds: range) -> None:
    task, sides = PARTS[name]()
    if importlib.util.find_spec("stable_baselines3") is None:
        print("stable-baselines3 is not installed: pip install stable-baselines3")
        sides = {side: run for side, run in sides.items() if not side.startswith("SB3")}
    print(f"\n## {name}: {task.env_id}, solved at {task.threshold:g}, seeds {list(seeds)}\n")
    outcomes: dict[str, list[Outcome]] = {side: [] for side in sides}
    for seed in seeds:
        for side, run in sides.items():  # taking turns
            outcomes[side].append(run(seed))
    print("| side | steps/s | solved after s | steps | final return of each seed |")
    print("| --- | --- | --- | --- | --- |")
    for side, runs in outcomes.items():
        speed, seconds, steps = (
            statistics.median(getattr(run, column) for run in runs)
            for column in ("steps_per_second", "solved_seconds", "solved_steps")
        )
        solved = "never | –" if seconds == float("inf") else f"{seconds:.1f} | {steps:,.0f}"
        finals = " ".join(f"{run.final:.0f}" for run in runs)
        if all(np.isnan(run.final) for run in runs):
            solved, finals = "– | –", "–"
        print(f"| {side} | {speed:,.0f} | {solved} | {finals} |", flush=True)


def bare_speed(env_id: str, n_envs: int, seconds: float = 1.0) -> float:
    """Environment steps a second of our vector environment with random actions, nothing else."""
    envs = environments.make_vector(env_id, n_envs)
    envs.reset(seed=0)
    actions = [envs.action_space.sample() for _ in range(64)]
    steps, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        envs.step(actions[steps % 64])
        steps += 1
    return steps * n_envs / (time.perf_counter() - began)


def print_shares(config: ppo.PPOConfig) -> None:
    """Where the time of our PPO goes."""
    spent = {"environment": 0.0, "policy": 0.0, "update": 0.0}

    def timing(part: str) -> Callable[[Any], Any]:
        def wrap(function: Any) -> Any:
            def timed(*args: Any, **kwargs: Any) -> Any:
                began = time.perf_counter()
                try:
                    return function(*args, **kwargs)
                finally:
                    spent[part] += time.perf_counter() - began

            return timed

        return wrap

    envs = environments.make_vector(config.env_id, 1)
    config = with_seed(config, 0)
    began = time.perf_counter()
    with (
        replaced(type(envs), "step", timing("environment")),
        replaced(ActorCritic, "act", timing("policy")),
        replaced(ppo, "update", timing("update")),
    ):
        result = ppo.train(config)
    seconds = time.perf_counter() - began
    spent["rest"] = seconds - sum(spent.values())
    shares = ", ".join(f"{part} {100 * value / seconds:.0f} %" for part, value in spent.items())
    floor = bare_speed(config.env_id, config.n_envs)
    print(
        f"\n{config.env_id}, ours: {result.steps / seconds:,.0f} steps/s: {shares}. "
        f"The bare environment, {config.n_envs} in step: {floor:,.0f} steps/s."
    )


def machine() -> str:
    names = ("torch", "numpy", "gymnasium", "stable-baselines3")
    installed = {dist.metadata["Name"].lower() for dist in importlib.metadata.distributions()}
    found = [f"{name} {importlib.metadata.version(name)}" for name in names if name in installed]
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    )
    model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    return f"{model or platform.machine()}, {os.cpu_count()} cores; {', '.join(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--part", choices=PARTS, action="append", help="may be given repeatedly")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (default: 3)")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error("--seeds must be at least 1")
    torch.set_num_threads(1)
    print(machine())
    # The first training of a process imports and warms what later ones find ready.
    ppo.train(ppo.PPOConfig(total_steps=2_000))
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # SB3's; imports torch's compiler
    for part in args.part or PARTS:
        run_part(part, range(args.seeds))
        if part.startswith("ppo"):
            name = PARTS[part]()[0].env_id
            print_shares(load_config(ppo.PPOConfig, CONFIGS / f"ppo-{name}.yaml"))


if __name__ == "__main__":
    main()
