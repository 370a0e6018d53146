"""The results table of classic_rl's deep algorithms, one row at a time.

    python docs/make/classic_results.py ppo-cartpole dqn-cartpole   # these rows
    python docs/make/classic_results.py                             # all of them
    python docs/make/classic_results.py --resume                    # what an interruption left

A row trains seeds 0 to 4 as ``python -m classic_rl`` does with the settings in ``configs/classic``,
plays 100 fresh episodes greedily with each, and writes docs/classic-rl/results.json and results.md
anew when it is done; the other rows stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from classic_rl.deep import reference, training  # noqa: E402
from classic_rl.deep.configuration import configure, with_checkpoints  # noqa: E402
from classic_rl.deep.policies import ActorCritic  # noqa: E402
from classic_rl.deep.policy_file import load_policy  # noqa: E402
from classic_rl.deep.run import RunConfig  # noqa: E402
from classic_rl.envs import (  # noqa: E402
    FixedCycle,
    LongestQueue,
    environments,  # noqa: E402
)
from classic_rl.errors import ProblemError  # noqa: E402
from classic_rl.results import prepare_folder, versions, write_bytes, write_json  # noqa: E402

SEEDS = (0, 1, 2, 3, 4)
EPISODES = 100
OUT = ROOT / "docs" / "classic-rl"
RUNS = ROOT / "runs" / "classic" / "results"
GREENS = (8, 10, 12, 15, 20)  # steps of green, of which the fixed cycle gets its best


@dataclass(frozen=True)
class Row:
    """One algorithm on one environment, and what it must reach.

    Args:
        every: the least score of any seed. mean: of all seeds together.
        measured: ``"return"`` (mean of the greedy episodes) or ``"optimality"`` (of a language-like
            problem under its KL penalty, see `classic_rl.deep.reference`).
        above_controllers: every seed must also beat the traffic light's two controllers.
    """

    algorithm: str
    env_id: str
    every: float | None = None
    mean: float | None = None
    measured: str = "return"
    above_controllers: bool = False


ROWS = {
    "ppo-cartpole": Row("ppo", "CartPole-v1", every=500),
    "ppo-lunarlander": Row("ppo", "LunarLander-v3", every=200, mean=240),
    "ppo-acrobot": Row("ppo", "Acrobot-v1", every=-100),
    "ppo-pendulum": Row("ppo", "Pendulum-v1", every=-200),
    "ppo-trafficlight": Row("ppo", "classic_rl/TrafficLight-v0", above_controllers=True),
    "ppo-tokenmdp": Row("ppo", "classic_rl/TokenMDP-v0", every=0.98, measured="optimality"),
    "dqn-cartpole": Row("dqn", "CartPole-v1", every=475),
    "a2c-cartpole": Row("a2c", "CartPole-v1", every=475),
    "reinforce-cartpole": Row("reinforce", "CartPole-v1", every=475),
}


def measure(name: str, seeds: Sequence[int], episodes: int, runs: Path, resume: bool) -> dict:
    """Train a row's seeds and return it as the table's JSON has it."""
    row = ROWS[name]
    base = with_checkpoints(configure(row.algorithm, row.env_id))
    done = []
    for seed in seeds:
        config = replace(base, seed=seed)
        run = training.train(
            row.algorithm, config, runs / name / f"seed{seed}", episodes=episodes, resume=resume
        )
        score = optimality(run) if row.measured == "optimality" else float(run.returns.mean())
        print(f"{name} seed {seed}: {score:.4g} ({run.seconds:.1f} s)", file=sys.stderr)
        one = {"seed": seed, "steps": run.steps, "seconds": run.seconds, "score": score}
        done.append(one | training.summary(run.returns))
    others = controllers(base, episodes) if row.above_controllers else {}
    scores = [one["score"] for one in done]
    met = row.every is None or min(scores) >= row.every
    met = met and (row.mean is None or float(np.mean(scores)) >= row.mean)
    met = met and all(min(scores) > score for score in others.values())
    return {
        "algorithm": row.algorithm,
        "env_id": base.env_id,
        "measured": row.measured,
        "wanted": {"every": row.every, "mean": row.mean},
        "controllers": others,
        "met": met,
        "episodes": episodes,
        "seeds": done,
        "versions": versions() | {"torch": torch.__version__},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def optimality(run: training.Trained) -> float:
    """How near a policy is to the exact optimum under its KL penalty: 1 is there."""
    policy, env_id, env_kwargs = load_policy(run.folder)
    assert isinstance(policy, ActorCritic)
    env: Any = environments.make(env_id, env_kwargs).unwrapped
    return reference.optimality(env, reference.tabulate(policy), run.config.kl_coef)  # type: ignore[attr-defined]


def controllers(config: RunConfig, episodes: int) -> dict[str, float]:
    """Mean return of the traffic light's controllers over the evaluation's own episodes."""
    cycles = {f"FixedCycle({green})": play(config, FixedCycle(green), episodes) for green in GREENS}
    best = max(cycles, key=lambda name: cycles[name])
    return {best: cycles[best], "LongestQueue": play(config, LongestQueue(), episodes)}


def play(config: RunConfig, control: Callable[[np.ndarray], int], episodes: int) -> float:
    """Mean return of a controller, episode i reset as in `classic_rl.deep.evaluation`."""
    env = environments.make(config.env_id, config.env_kwargs)
    total = 0.0
    for episode in range(episodes):
        observation, _ = env.reset(seed=training.EVALUATION_SEED + episode)
        ended = False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(control(observation))
            total += float(reward)
            ended = terminated or truncated
    env.close()
    return total / episodes


def page(rows: Mapping[str, dict]) -> str:
    """The table as Markdown, of every row that was measured."""
    lines = [
        "# Results",
        "",
        "Made by `python docs/make/classic_results.py`, each row also by itself. Every seed is",
        "trained with the settings in `configs/classic`, as `python -m classic_rl` does, and then",
        f"plays {EPISODES} fresh episodes greedily; a seed's score is their mean return. The",
        "TokenMDP's score is how near the policy is to the exact optimum under its KL penalty: 0",
        "is the reference policy, 1 the best there is. Seconds are one core's, a seed.",
        "",
        "| row | environment | steps | score by seed | mean | worst | wanted | met | seconds |",
        "| --- | --- | ---: | --- | ---: | ---: | --- | :-: | ---: |",
    ]
    names = [name for name in ROWS if name in rows]
    lines += [_line(name, rows[name]) for name in names]
    lines += ["", "The same trainings by hand:", ""]
    for name in names:
        row = rows[name]
        seeds = " ".join(str(one["seed"]) for one in row["seeds"])
        short = f"python -m classic_rl {row['algorithm']} --env {row['env_id']} --seeds {seeds}"
        lines.append(f"- `{name}`: `{short}`")
    return "\n".join(lines) + "\n"


def _line(name: str, row: Mapping[str, Any]) -> str:
    digits = 3 if row["measured"] == "optimality" else 1
    scores = [one["score"] for one in row["seeds"]]
    every, mean = row["wanted"]["every"], row["wanted"]["mean"]
    wanted = [f"every ≥ {every:g}"] if every is not None else []
    wanted += [f"mean ≥ {mean:g}"] if mean is not None else []
    wanted += [f"every ≥ {other} ({score:.1f})" for other, score in row["controllers"].items()]
    steps = max(one["steps"] for one in row["seeds"])
    seconds = np.median([one["seconds"] for one in row["seeds"]])
    cells = [
        name,
        row["env_id"],
        f"{steps:,}",
        ", ".join(f"{score:.{digits}f}" for score in scores),
        f"{np.mean(scores):.{digits}f}",
        f"{min(scores):.{digits}f}",
        "; ".join(wanted),
        "yes" if row["met"] else "**no**",
        f"{seconds:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def read(path: Path) -> dict[str, dict]:
    """The rows measured so far."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))["rows"]
    except (ValueError, KeyError) as error:
        raise ProblemError(f"{path}: not a table of results; move it away") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the rows asked for; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="N")
    parser.add_argument("--episodes", type=int, default=EPISODES, metavar="N")
    parser.add_argument("--resume", action="store_true", help="take what is in --runs already")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="of the table")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="FOLDER", help="of the runs")
    arguments = parser.parse_intermixed_args(argv)
    try:
        for name in arguments.rows or ROWS:
            if name not in ROWS:
                raise ProblemError(f"{name}: no such row; there are {', '.join(ROWS)}")
        usual = (tuple(arguments.seeds), arguments.episodes) == (SEEDS, EPISODES)
        if not usual and arguments.out == OUT:
            raise ProblemError("other seeds or episodes than the table's: name a folder with --out")
        out = prepare_folder(arguments.out)
        for name in arguments.rows or ROWS:
            row = measure(
                name, arguments.seeds, arguments.episodes, arguments.runs, arguments.resume
            )
            rows = read(out / "results.json") | {name: row}
            write_json(out / "results.json", {"rows": rows})
            write_bytes(out / "results.md", page(rows).encode())
            print(_line(name, row))
    except ProblemError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
