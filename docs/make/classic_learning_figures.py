"""The pictures of learning from experience; `classic_figures` makes them."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from classic_rl.envs import (
    LongestQueue,
    TrafficLight,
)
from classic_rl.mdp import MDP, from_gymnasium
from classic_rl.pictures.grid_plots import (
    Snapshot,
    policy_paths,
    q_animation,
    q_strip,
)
from classic_rl.pictures.grids import Grid, grid_of
from classic_rl.pictures.plots import curves, heat_map
from classic_rl.schedules import Linear
from classic_rl.tabular.control import double_q_learning, expected_sarsa, q_learning, sarsa
from classic_rl.tabular.evaluation import finite_horizon_values
from classic_rl.tabular.experience import Learned
from classic_rl.tabular.exploration import UCB, EpsilonGreedy, Explore, Softmax
from classic_rl.tabular.planning import (
    value_iteration,
)
from classic_rl.tabular.prediction import monte_carlo_prediction, n_step_td, td0, td_lambda
from classic_rl.tabular.textbook import MaximisationBias, random_walk

SEEDS = range(5)
LAKE_STEPS = 100_000
# --- prediction ---


def td_and_monte_carlo() -> Figure:
    """Example 6.2: the error of TD(0) and Monte Carlo on the walk of five states."""
    walk, truth = random_walk(5), np.arange(1, 6) / 6
    series = {}
    for name, method, alpha in (
        ("TD, α = 0.05", td0, 0.05),
        ("TD, α = 0.15", td0, 0.15),
        ("MC, α = 0.01", monte_carlo_prediction, 0.01),
        ("MC, α = 0.03", monte_carlo_prediction, 0.03),
    ):
        runs = [_walk_errors(walk, truth, method, alpha=alpha, seed=seed) for seed in range(100)]
        series[name] = (np.arange(101), np.mean(runs, axis=0))
        print(f"  {name}: {series[name][1][-1]:.3f} after 100 episodes")
    return curves(
        series, title="Random walk, mean of 100 runs", xlabel="episodes",
        ylabel="root mean square error",
    )  # fmt: skip


def n_steps() -> Figure:
    """Figure 7.2 and its λ counterpart: 19 states, error over the first ten episodes."""
    walk, truth = random_walk(19, left=-1.0), np.arange(-9, 10) / 10
    alphas = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0])
    series = {}
    cases = [(f"n = {n}", n_step_td, {"n": n}) for n in (1, 4, 16)]
    cases += [(f"λ = {lam:g}", td_lambda, {"lam": lam}) for lam in (0.8,)]
    for name, method, extra in cases:
        heights = []
        for alpha in alphas:
            if method is td_lambda and alpha > 0.5:
                heights.append(np.nan)  # accumulating traces diverge there
                continue
            runs = [
                _walk_errors(
                    walk, truth, method, alpha=float(alpha), seed=seed, episodes=10, initial=0.0,
                    **extra,
                )[1:].mean()
                for seed in range(20)
            ]  # fmt: skip
            heights.append(np.mean(runs))
        series[name] = (alphas, np.array(heights))
        print(f"  {name}: lowest {np.nanmin(heights):.2f} at α = {alphas[np.nanargmin(heights)]}")
    return curves(
        series, title="19-state walk, first 10 episodes", xlabel="step size α",
        ylabel="root mean square error", ylim=(0.2, 0.6),
    )  # fmt: skip


def _walk_errors(
    walk: MDP, truth: np.ndarray, method: Callable, *, episodes=100, initial=0.5, **options
) -> np.ndarray:
    """Root mean square error after each episode, the first before any."""
    run = method(
        walk, np.zeros(walk.n_states, dtype=int), episodes=episodes, initial=initial, record=1,
        **options,
    )  # fmt: skip
    tables = np.array([values[1:-1] for _, values in run.snapshots])
    return np.sqrt(((tables - truth) ** 2).mean(axis=1))


# --- control ---


def _cliff() -> dict[str, list[Learned]]:
    """Example 6.6: ε = 0.1, α = 0.5, γ = 1, 500 episodes."""
    cliff = from_gymnasium("CliffWalking-v1", 1.0)
    methods = {"SARSA": sarsa, "expected SARSA": expected_sarsa, "Q-learning": q_learning}
    return {
        name: [
            method(cliff, explore=EpsilonGreedy(0.1), alpha=0.5, episodes=500, seed=seed)
            for seed in range(10)
        ]
        for name, method in methods.items()
    }


def cliff_returns() -> Figure:
    """Returns while learning, smoothed over 20 episodes, band from the lowest to highest seed."""
    series = {}
    for name, runs in _cliff().items():
        returns = np.array([run.returns for run in runs])
        print(f"  {name}: {returns[:, 100:].mean():.0f} an episode from episode 100 on")
        smooth = np.array([np.convolve(row, np.ones(20) / 20, "valid") for row in returns])
        series[name] = (np.arange(20, 501), smooth)
    return curves(
        series, title="Cliff walking, 10 seeds", xlabel="episode",
        ylabel="return (mean of 20)", ylim=(-100, 0),
    )  # fmt: skip


def cliff_paths() -> Figure:
    """The greedy paths that SARSA and Q-learning end with (seed 0)."""
    board, runs = grid(gym.make("CliffWalking-v1")), _cliff()
    panels = [(name, runs[name][0].policy) for name in ("SARSA", "Q-learning")]
    return policy_paths(board, panels, 36, title="The path of the greedy policy")


def double_q() -> Figure:
    """How often A's worse action is taken, over 1,000 runs."""
    greedy = EpsilonGreedy(0.1)

    def explore(q_row, state: int, step: int, uniform: float) -> int:
        return greedy(q_row[:2] if state == 0 else q_row, state, step, uniform)

    env, series = MaximisationBias(), {}
    for name, method in (("Q-learning", q_learning), ("double Q-learning", double_q_learning)):
        left = np.zeros(300)
        for seed in range(1_000):
            run = method(env, explore=explore, alpha=0.1, gamma=1.0, episodes=300, seed=seed)
            left += run.lengths == 2
        series[name] = (np.arange(1, 301), left / 10)
        print(
            f"  {name}: at most {left.max() / 10:.0f} %, {left[-50:].mean() / 10:.0f} % at the end"
        )
    return curves(
        series, title="Lured by noise: 1,000 runs", xlabel="episode",
        ylabel="goes left (%)", ylim=(0, 100), level=(5.0, "best possible with ε = 0.1"),
    )  # fmt: skip


def exploration() -> Figure:
    """Success of the greedy policy on FrozenLake 4×4 as each way of exploring learns."""
    lake = from_gymnasium("FrozenLake-v1", 0.99)
    best = _success(lake, value_iteration(lake).policy)
    rules: dict[str, Explore] = {
        "ε 1 → 0.1": EpsilonGreedy(Linear(1.0, 0.1, LAKE_STEPS)),
        "ε = 0.1": EpsilonGreedy(0.1),
        "softmax τ = 0.02": Softmax(0.02),
        "UCB c = 0.5": UCB(0.5),
    }
    series = {}
    for name, rule in rules.items():
        runs = [_lake_run(lake, rule, seed) for seed in SEEDS]
        rows = [[_success(lake, q.argmax(axis=1)) for _, q in run.snapshots] for run in runs]
        steps = np.array([step for step, _ in runs[0].snapshots])
        series[name] = (steps / 1000, np.array(rows))
        reached = np.mean([run.returns[-1000:].mean() for run in runs])
        print(f"  {name}: {[round(row[-1], 2) for row in rows]}; while exploring {reached:.2f}")
    return curves(
        series, title="The greedy policy, FrozenLake, 5 seeds", xlabel="thousand steps",
        ylabel="success", ylim=(0, 0.85), level=(best, "best possible"),
    )  # fmt: skip


def _lake_run(lake: MDP, rule: Explore, seed: int, record: int = LAKE_STEPS // 25) -> Learned:
    return q_learning(
        lake, explore=rule, alpha=Linear(0.2, 0.01, LAKE_STEPS), steps=LAKE_STEPS, max_steps=100,
        seed=seed, record=record,
    )  # fmt: skip


def _lake_snapshots() -> list[Snapshot]:
    lake = from_gymnasium("FrozenLake-v1", 0.99)
    explore = EpsilonGreedy(Linear(1.0, 0.1, LAKE_STEPS))
    return _lake_run(lake, explore, 0, record=500).snapshots


def q_table() -> Figure:
    """The Q-table of FrozenLake at six moments (seed 0)."""
    snapshots = dict(_lake_snapshots())
    chosen = [(step, snapshots[step]) for step in (500, 2_000, 5_000, 10_000, 30_000, LAKE_STEPS)]
    return q_strip(grid(gym.make("FrozenLake-v1")), chosen, title="Q-learning on FrozenLake")


def q_table_moving() -> bytes:
    """The same as an animation, its first frames closer together than its last."""
    snapshots = _lake_snapshots()
    chosen = np.unique(np.geomspace(1, len(snapshots), 34).round().astype(int)) - 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q.gif"
        q_animation(
            grid(gym.make("FrozenLake-v1")), [snapshots[k] for k in chosen], path,
            title="Q-learning on FrozenLake",
        )  # fmt: skip
        return path.read_bytes()


def sweep() -> Figure:
    """Exact success on FrozenLake after 30,000 steps for each step size and discount."""
    alphas, gammas = (0.02, 0.1, 0.3, 0.6, 0.9), (0.8, 0.9, 0.95, 0.99, 0.999)
    table = np.zeros((len(alphas), len(gammas)))
    for column, gamma in enumerate(gammas):
        lake = from_gymnasium("FrozenLake-v1", gamma)
        for row, alpha in enumerate(alphas):
            options = {"explore": EpsilonGreedy(0.3), "alpha": alpha, "max_steps": 100}
            runs = [q_learning(lake, steps=30_000, seed=seed, **options) for seed in range(10)]
            table[row, column] = np.mean([_success(lake, run.policy) for run in runs])
    print(f"  best {table.max():.2f}, worst {table.min():.2f}")
    return heat_map(
        table, ("step size α", [str(alpha) for alpha in alphas]),
        ("discount γ", [str(gamma) for gamma in gammas]),
        title="Success on FrozenLake, mean of 10 seeds",
    )  # fmt: skip


def traffic() -> bytes:
    """The crossing after five minutes of its longest-queue controller (seed 0)."""
    env, controller, out = TrafficLight(render_mode="rgb_array"), LongestQueue(), io.BytesIO()
    observation, _ = env.reset(seed=0)
    for _ in range(150):
        observation, *_ = env.step(controller(observation))
    Image.fromarray(env.picture()).save(out, "png")
    return out.getvalue()


def grid(env: gym.Env) -> Grid:
    """The grid of an environment that has one."""
    cells = grid_of(env)
    assert cells is not None
    return cells


def _success(mdp: MDP, policy: np.ndarray) -> float:
    """The exact chance to reach the goal within FrozenLake's 100 steps."""
    return float(mdp.start @ finite_horizon_values(mdp.with_gamma(1.0), policy, 100))


FIGURES: dict[str, Callable[[], Figure | bytes]] = {
    "random-walk.png": td_and_monte_carlo,
    "n-steps.png": n_steps,
    "cliff-returns.png": cliff_returns,
    "cliff-paths.png": cliff_paths,
    "double-q.png": double_q,
    "exploration.png": exploration,
    "q-table.png": q_table,
    "q-table.gif": q_table_moving,
    "sweep.png": sweep,
    "traffic.png": traffic,
}
