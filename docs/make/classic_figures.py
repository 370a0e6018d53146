"""Every picture of docs/classic-rl/tabular.md, each from its fixed seeds.

    python docs/make/classic_figures.py                        # all of them, about a minute
    python docs/make/classic_figures.py sweep.png q-table.gif  # some
    python docs/make/classic_figures.py --list

Beside each picture it prints the numbers that the text quotes. Here are the pictures of planning;
those of learning are in `classic_learning_figures`.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import classic_learning_figures as learning
import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from classic_rl.envs import (
    GridWorld,
    TokenMDP,
    random_token_mdp,
)
from classic_rl.mdp import MDP, from_gymnasium
from classic_rl.pictures.grid_plots import (
    best_actions,
    value_strip,
)
from classic_rl.pictures.grids import Grid
from classic_rl.pictures.plots import curves
from classic_rl.results import prepare_folder, write_bytes
from classic_rl.tabular.evaluation import policy_evaluation
from classic_rl.tabular.planning import (
    modified_policy_iteration,
    policy_iteration,
    value_iteration,
)
from classic_rl.tabular.soft import soft_value_iteration
from classic_rl.tabular.textbook import example_3_5

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "images" / "classic"


def evaluation() -> Figure:
    """Values of the random and of the best policy, Sutton & Barto's figures 3.2 and 3.5."""
    grid, mdp = example_3_5()
    random = np.full(mdp.rewards.shape, 0.25)
    best = policy_iteration(mdp)
    panels = [
        ("any move, by chance", policy_evaluation(mdp, random), None),
        ("the best moves", best.values, best_actions(best.action_values)),
    ]
    return value_strip(grid, panels, title="What the cells are worth")


def improvement() -> Figure:
    """Policy iteration on the 3×4 world."""
    grid, mdp = _three_by_four(-0.04)
    panels: list[Any] = []
    policy_iteration(
        mdp, on_policy=lambda k, policy, values: panels.append((f"policy {k - 1}", values, policy))
    )
    print(f"  {len(panels)} policies, the last one best")
    return value_strip(grid, panels, title="Policy iteration")


def sweeps() -> Figure:
    """Value iteration's tables on the 3×4 world."""
    grid, mdp = _three_by_four(0.0)
    tables: list[np.ndarray] = []
    best = value_iteration(mdp, on_sweep=lambda k, values: tables.append(values))
    panels: list[Any] = [(f"sweep {k}", tables[k - 1], None) for k in range(1, 6)]
    panels.append((f"sweep {best.sweeps}", best.values, best.policy))
    return value_strip(grid, panels, title="Value iteration, γ = 0.9")


def step_rewards() -> Figure:
    """The best policy of the 3×4 world for four step rewards."""
    panels = []
    for reward in (-0.01, -0.03, -0.4, -2.0):
        grid, mdp = _three_by_four(reward, gamma=1.0)
        best = value_iteration(mdp)
        panels.append((f"{reward:g} a step".replace("-", "−"), best.values, best.policy))
    return value_strip(grid, panels, title="The best policy, γ = 1", one_scale=False)


def sweeps_needed() -> Figure:
    """How far from the optimum each planner is, sweep by sweep, on FrozenLake 8×8."""
    mdp = from_gymnasium("FrozenLake8x8-v1", 0.99)
    best = value_iteration(mdp, tolerance=1e-14).values
    series = {}
    orders: dict[str, Any] = {"synchronous": "synchronous", "Gauss–Seidel": "gauss-seidel"}
    for name, sweep in orders.items():
        errors: list[float] = [float(np.abs(best).max())]
        value_iteration(
            mdp, sweep=sweep, tolerance=1e-10,
            on_sweep=lambda k, values, errors=errors: errors.append(np.abs(values - best).max()),
        )  # fmt: skip
        series[name] = (np.arange(len(errors)), np.array(errors))
        print(f"  {name}: {len(errors) - 1} sweeps")
    print(f"  modified policy iteration: {modified_policy_iteration(mdp, tolerance=1e-10).sweeps}")
    print(f"  policy iteration: {policy_iteration(mdp, tolerance=1e-10).sweeps} policies")
    return curves(
        series, title="Distance to the optimum, FrozenLake 8×8", xlabel="sweep",
        ylabel="largest error", log_y=True,
    )  # fmt: skip


def soft_policies() -> Figure:
    """The KL-regularised optimum on FrozenLake for three β, the reference being chance."""
    env = gym.make("FrozenLake-v1")
    mdp = from_gymnasium(env, 0.99)
    reference = np.full(mdp.rewards.shape, 0.25)
    panels = []
    for beta in (1.0, 0.1, 0.01, 0.001):
        soft = soft_value_iteration(mdp, reference, beta)
        panels.append((f"β = {beta:g}", soft.values, soft.policy))
    return value_strip(learning.grid(env), panels, title="Soft value iteration, FrozenLake")


def frontier() -> Figure:
    """Reward against KL of the optimum for β from 10 to 0.03, by both ways to it."""
    tokens = random_token_mdp(4, 4, seed=0)
    start = float(np.exp(tokens.sequence_logps(tokens.reference)) @ tokens.sequence_rewards)
    points, brute = [(0.0, start)], [(0.0, start)]
    for beta in np.geomspace(10, 0.03, 40):
        soft = soft_value_iteration(tokens.mdp(), tokens.reference, float(beta))
        logps = tokens.sequence_logps(soft.policy)
        points.append(_reward_and_kl(tokens, np.exp(logps)))
        brute.append(_reward_and_kl(tokens, tokens.optimum(float(beta))[0]))
    gap = np.abs(np.array(points) - np.array(brute)).max()
    print(f"  {len(tokens.sequences)} completions, largest difference {gap:.1e}")
    enumerated = "enumeration of π*"
    table, every = np.array(points), np.array(brute)[::3]
    return curves(
        {
            "soft value iteration": (table[:, 0], table[:, 1]),
            enumerated: (every[:, 0], every[:, 1]),
        },
        title="The most reward at each distance",
        xlabel="KL to the reference (nats)", ylabel="expected reward",
        level=(float(tokens.sequence_rewards.max()), "best completion"), dots=[enumerated],
    )  # fmt: skip


def _reward_and_kl(tokens: TokenMDP, probabilities: np.ndarray) -> tuple[float, float]:
    """(KL to the reference, expected reward) of a distribution over the completions."""
    logs = np.log(np.maximum(probabilities, 1e-300)) - tokens.sequence_logps(tokens.reference)
    return float(probabilities @ logs), float(probabilities @ tokens.sequence_rewards)


def _three_by_four(step_reward: float, gamma: float = 0.9) -> tuple[Grid, MDP]:
    env = GridWorld("3x4", slip=0.2, step_reward=step_reward)
    return learning.grid(env), env.mdp(gamma, "state")


FIGURES: dict[str, Callable[[], Figure | bytes]] = {
    "evaluation.png": evaluation,
    "improvement.png": improvement,
    "sweeps.png": sweeps,
    "step-rewards.png": step_rewards,
    "sweeps-needed.png": sweeps_needed,
    "soft-policies.png": soft_policies,
    "frontier.png": frontier,
    **learning.FIGURES,
}


def _small_png(figure: Figure) -> bytes:
    """A PNG of 128 colours, which is a third as large and looks the same."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=200)
    Image.open(full).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
        small, "png", optimize=True
    )
    return small.getvalue()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="see --list")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (docs/images/classic)")
    parser.add_argument("--list", action="store_true", help="only name the pictures")
    chosen = parser.parse_args(arguments)
    if chosen.list:
        print("\n".join(FIGURES))
        return
    unknown = [name for name in chosen.names if name not in FIGURES]
    if unknown:
        parser.error(f"{unknown[0]} is no picture: choose among {', '.join(FIGURES)}")
    folder = prepare_folder(chosen.out)
    for name in chosen.names or FIGURES:
        began = time.perf_counter()
        drawn = FIGURES[name]()
        path = folder / name
        if isinstance(drawn, bytes):
            write_bytes(path, drawn)
        else:
            write_bytes(path, _small_png(drawn))
        size = path.stat().st_size / 1024
        print(f"{name}: {size:.0f} KiB in {time.perf_counter() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
