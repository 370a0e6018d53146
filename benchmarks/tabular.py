"""Planning on random sparse MDPs against quantecon, pymdptoolbox and a plain Python loop.

    python -m venv peers && peers/bin/pip install -e . quantecon pymdptoolbox numba
    OMP_NUM_THREADS=1 peers/bin/python benchmarks/tabular.py            # 10² to 10⁵ states
    OMP_NUM_THREADS=1 peers/bin/python benchmarks/tabular.py --large    # 10⁶ states too

Each state has 4 actions with 3 random successors each, γ = 0.95. All sides solve the same arrays to
the same guarantee, values within ε/2 of the optimum, by the same stopping rules: value iteration
until ‖TV − V‖∞ ≤ ε(1 − γ)/(2γ), modified policy iteration until the span of TV − V is at most
ε(1 − γ)/γ (ours measures half the span). A round of the latter has 12 sweeps of evaluation here and
20 in quantecon, the defaults. Sides take turns; the median of the runs is shown, and how much
faster than the Python loop that is. A peer that is not installed is left out, with a line that says
so. The learning half is `tabular_learning.py`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import multiprocessing
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from classic_rl.mdp import MDP, from_arrays
from classic_rl.tabular.backup import Backup
from classic_rl.tabular.planning import modified_policy_iteration, value_iteration

ACTIONS, SUCCESSORS, GAMMA, EPSILON = 4, 3, 0.95, 1e-9
VALUE_TOLERANCE = EPSILON * (1 - GAMMA) / (2 * GAMMA)
# pymdptoolbox checks its input by a comparison that makes S × S matrices dense.
TOOLBOX_STATES = 1_000
# The Python loop's time per sweep is constant: at large sizes it is taken from a few sweeps.
LOOP_STATES_IN_FULL = 1_000
LOOP = "plain Python loop"


def random_mdp(n_states: int, successors: int = SUCCESSORS, seed: int = 0) -> MDP:
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.arange(n_states * ACTIONS), successors)
    columns = rng.integers(n_states, size=rows.size)
    weights = rng.dirichlet(np.ones(successors), size=n_states * ACTIONS)
    shape = (n_states * ACTIONS, n_states)
    transitions = sp.csr_array((weights.ravel(), (rows, columns)), shape=shape)
    return from_arrays(transitions, rng.random((n_states, ACTIONS)), GAMMA)


def python_loop(table: Any, gamma: float, max_sweeps: int | None) -> tuple[np.ndarray, int]:
    """Value iteration as a course writes it, on a gymnasium table of outcomes."""
    values = [0.0] * len(table)
    sweeps, change = 0, float("inf")
    while change > VALUE_TOLERANCE and sweeps != max_sweeps:
        change, old, values = 0.0, values, []
        for actions in table:
            best = -float("inf")
            for outcomes in actions:
                q = 0.0
                for probability, following, reward in outcomes:
                    q += probability * (reward + gamma * old[following])
                best = max(best, q)
            change = max(change, abs(best - old[len(values)]))
            values.append(best)
        sweeps += 1
    return np.array(values), sweeps


Side = Callable[[], tuple[np.ndarray, int]]


def our_sides(mdp: MDP, compiled: bool) -> dict[str, Side]:
    def side(solve: Callable[..., Any], **kwargs: Any) -> Side:
        def run() -> tuple[np.ndarray, int]:
            solution = solve(mdp, **kwargs)
            return solution.values, solution.sweeps

        return run

    sides = {
        "value iteration": side(value_iteration, tolerance=VALUE_TOLERANCE),
        "  Gauss-Seidel, blocks": side(
            value_iteration, tolerance=VALUE_TOLERANCE, sweep="gauss-seidel"
        ),
    }
    if compiled:
        for name, sweep in (
            ("  compiled", "synchronous"),
            ("  compiled Gauss-Seidel", "gauss-seidel"),
        ):
            sides[name] = side(
                value_iteration, tolerance=VALUE_TOLERANCE, sweep=sweep, compiled=True
            )
    sides["modified policy it."] = side(modified_policy_iteration, tolerance=VALUE_TOLERANCE)
    return sides


def quantecon_sides(mdp: MDP, quantecon: Any) -> dict[str, Side]:
    states = np.repeat(np.arange(mdp.n_states), ACTIONS)
    actions = np.tile(np.arange(ACTIONS), mdp.n_states)
    problem = quantecon.markov.DiscreteDP(
        mdp.rewards.ravel(), sp.csr_matrix(mdp.transitions), GAMMA, states, actions
    )

    def side(method: str, **kwargs: Any) -> Side:
        def run() -> tuple[np.ndarray, int]:
            solved = problem.solve(method=method, epsilon=EPSILON, max_iter=100_000, **kwargs)
            return solved.v, solved.num_iter

        return run

    return {
        "quantecon value it.": side("value_iteration"),
        "quantecon modified": side("modified_policy_iteration"),
        "  with our 12 sweeps": side("modified_policy_iteration", k=12),
    }


def toolbox_sides(mdp: MDP, toolbox: Any) -> dict[str, Side]:
    """pymdptoolbox stops value iteration by the span alone, so its values are off by a constant."""
    chains = [sp.csr_matrix(mdp.transitions[a::ACTIONS]) for a in range(ACTIONS)]

    def side(method: str, **kwargs: Any) -> Side:
        def run() -> tuple[np.ndarray, int]:
            solver = getattr(toolbox.mdp, method)(
                chains, mdp.rewards, GAMMA, epsilon=EPSILON, max_iter=100_000, **kwargs
            )
            solver.run()
            return np.array(solver.V), solver.iter

        return run

    return {
        "pymdptoolbox value it.": side("ValueIteration"),
        "pymdptoolbox modified": side("PolicyIterationModified"),
    }


def installed(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{package} is not installed, left out: pip install {package}")
        return None


def compare(n_states: int, repeats: int, peers: dict[str, Any]) -> None:
    mdp = random_mdp(n_states)
    sides = our_sides(mdp, compiled=peers["numba"] is not None)
    if peers["quantecon"]:
        sides |= quantecon_sides(mdp, peers["quantecon"])
    if peers["pymdptoolbox"] and n_states <= TOOLBOX_STATES:
        sides |= toolbox_sides(mdp, peers["pymdptoolbox"])
    # The table of the loop is built outside the clock.
    table = [[mdp.outcomes(s, a) for a in range(ACTIONS)] for s in range(n_states)]
    few = None if n_states <= LOOP_STATES_IN_FULL else 3
    sides[LOOP] = lambda: python_loop(table, GAMMA, few)

    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, tuple[np.ndarray, int]] = {}
    for name, run in sides.items():  # compiles and warms up
        if name != LOOP:
            run()
    for _ in range(max(repeats, 2_500 // n_states)):  # short runs are the noisier ones
        for name, run in sides.items():
            begin = time.perf_counter()
            found[name] = run()
            seconds[name].append(time.perf_counter() - begin)

    exact, sweeps = found["value iteration"]
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    if few:  # as many sweeps as ours took, less the up to seven that ours overshoots
        medians[LOOP] *= (sweeps - 4) / few
    print(f"\n{n_states:,} states, {mdp.transitions.nnz:,} non-zeros")
    print(f"  {'':24}{'ms':>10}{'sweeps':>8}{'µs/sweep':>10}{'loop/this':>11}{'max |ΔV|':>11}")
    for name, median in medians.items():
        values, count = found[name]
        scaled = few is not None and name == LOOP
        count = sweeps - 4 if scaled else count
        gap = "scaled" if scaled else f"{np.abs(values - exact).max():.1e}"
        print(
            f"  {name:24}{1e3 * median:10.2f}{count:8d}{1e6 * median / count:10.1f}"
            f"{medians['plain Python loop'] / median:11.1f}{gap:>11}"
        )


def one_solution(n_states: int) -> str:
    """One line of `scaling`, in a process of its own for the sake of its peak memory."""
    mdp = random_mdp(n_states)
    begin = time.perf_counter()
    slow = value_iteration(mdp, tolerance=VALUE_TOLERANCE)
    middle = time.perf_counter()
    fast = modified_policy_iteration(mdp, tolerance=VALUE_TOLERANCE)
    end = time.perf_counter()
    gap = np.abs(slow.values - fast.values).max()
    # Linux keeps the peak of this process; getrusage would also count the parent's.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peak = next((int(line.split()[1]) / 1024 for line in lines if line[:5] == "VmHWM"), np.nan)
    entry = 1e9 * (middle - begin) / slow.sweeps / mdp.transitions.nnz
    return (
        f"  {n_states:10,}{mdp.transitions.nnz:12,}{middle - begin:9.3f}{slow.sweeps:8d}"
        f"{entry:19.2f}{end - middle:9.3f}{gap:10.1e}{peak:10,.0f}"
    )


def scaling(sizes: list[int]) -> None:
    """Time and peak memory of one solution at each size; the memory holds the problem too."""
    print("\none solution at each size")
    print(
        f"  {'states':>10}{'non-zeros':>12}{'VI s':>9}{'sweeps':>8}{'ns/non-zero/sweep':>19}"
        f"{'MPI s':>9}{'|ΔV|':>10}{'peak MiB':>10}"
    )
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as pool:
        for line in pool.map(one_solution, sizes):
            print(line, flush=True)
    print("  (a non-zero costs more where V no longer fits the processor's caches)")


def linearity(n_states: int = 100_000) -> None:
    """Time of a sweep against non-zeros, with V and so the caches' share left as they are."""
    print(f"\none sweep against non-zeros, {n_states:,} states")
    counts, costs = [], []
    for successors in (1, 2, 4, 8, 16):
        sweep = Backup(mdp := random_mdp(n_states, successors=successors)).sweep
        values, out = np.random.default_rng(0).random(n_states), np.empty(n_states)
        times = []
        for _ in range(15):
            begin = time.perf_counter()
            sweep(values, out)
            times.append(time.perf_counter() - begin)
        counts.append(mdp.transitions.nnz)
        costs.append(statistics.median(times))
        print(f"  {counts[-1]:12,} non-zeros {1e3 * costs[-1]:8.2f} ms")
    slope, constant = np.polyfit(counts, costs, 1)
    fitted = np.polyval([slope, constant], counts)
    explained = 1 - np.var(costs - fitted) / np.var(costs)
    print(
        f"  fit: {1e3 * constant:.2f} ms + {1e9 * slope:.2f} ns · non-zeros, R² = {explained:.4f}"
    )


def machine() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    versions = [f"python {platform.python_version()}"]
    for package in ("numpy", "scipy", "numba", "quantecon", "pymdptoolbox"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} –")
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    return f"{model}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}\n{', '.join(versions)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Planning on random sparse MDPs, and its peers.")
    parser.add_argument("--large", action="store_true", help="solve 10⁶ states too (about 2 GiB)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
    options = parser.parse_args()
    print(machine())
    print(f"γ {GAMMA}, ε {EPSILON:g}, {ACTIONS} actions, {SUCCESSORS} successors")
    peers = {
        "numba": installed("numba", "numba"),
        "quantecon": installed("quantecon", "quantecon"),
        "pymdptoolbox": installed("mdptoolbox", "pymdptoolbox"),
    }
    if peers["pymdptoolbox"]:
        importlib.import_module("mdptoolbox.mdp")
        print(f"pymdptoolbox takes part up to {TOOLBOX_STATES:,} states: it makes S × S dense")
        warnings.simplefilter("ignore", sp.SparseEfficiencyWarning)
    for size in options.sizes:
        compare(size, options.repeats, peers)
    linearity()
    scaling([10_000, 100_000] + ([1_000_000] if options.large else []))


if __name__ == "__main__":
    main()
