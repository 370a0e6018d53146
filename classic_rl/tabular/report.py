"""What a tabular command shows: tables on the terminal, pictures and results.json."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from classic_rl.envs import TokenMDP
from classic_rl.mdp import MDP
from classic_rl.pictures import grid_plots, plots
from classic_rl.pictures.grids import grid_of, grid_table
from classic_rl.results import versions, write_bytes, write_figure, write_json
from classic_rl.tabular.curves import learning_curve, selection, snapshots_by_steps
from classic_rl.tabular.evaluation import policy_evaluation
from classic_rl.tabular.experience import Learned, Prediction
from classic_rl.tabular.rollouts import Played
from classic_rl.tabular.settings import Problem
from classic_rl.tabular.soft import SoftSolution

LISTED = 16  # completions of a TokenMDP, or states without a grid, that are printed at most
ON_POLICY = ("monte-carlo-control", "sarsa", "expected-sarsa")
FAR = 0.1  # of the largest exact value: a distance of learned ones that is worth a word
LATEST = 100  # training episodes that the table's mean is over


class Report:
    """Print the results of a run as they come, draw its pictures; `finish` writes results.json."""

    def __init__(self, arguments: argparse.Namespace, problem: Problem, folder: Path) -> None:
        self.algorithm, self.seeds = arguments.algorithm, arguments.seeds
        self.pictured = not arguments.no_pictures
        self.problem, self.folder = problem, folder
        self.grid = grid_of(problem.env)
        self.title = f"{self.algorithm}, {problem.name}"
        self.settings: dict[str, Any] = {}
        self.results: dict[str, Any] = {}
        self.pictures: list[str] = []

    def begin(self, settings: dict[str, Any]) -> None:
        """Say what runs with which settings."""
        self.settings = settings
        mdp = self.problem.mdp
        size = f"{mdp.n_states} states, {mdp.n_actions} actions" if mdp else "no exact model"
        print(f"{self.algorithm} on {self.problem.env_id}: {size}")
        words = [f"{name} {value}" for name, value in settings.items()]
        print(", ".join([*words, f"episodes end after {self.problem.limit} steps"]))

    def plan(
        self,
        values: np.ndarray,
        policy: np.ndarray,
        facts: dict[str, Any],
        sweeps: Sequence[tuple[str, np.ndarray]],
    ) -> None:
        """An exact solution: values ``(S,)``, a policy, the first sweeps' values."""
        self.results |= facts | {"values": values, "policy": policy}
        self._table("values and policy", values, policy)
        numbers = ", ".join(f"{name} {number:.3g}" for name, number in facts.items())
        print(f"\nvalue of the start {float(self.problem.model.start @ values):.6g}; {numbers}")
        if not self.grid:
            return
        grid = self.grid
        self._picture(
            "values.png",
            lambda: grid_plots.value_grid(grid, values, policy, title=self.title),
        )
        if sweeps:
            panels = [(name, v, None) for name, v in sweeps] + [("optimum", values, policy)]
            self._picture(
                "sweeps.png", lambda: grid_plots.value_strip(grid, panels, title=self.title)
            )

    def control(self, learned: Sequence[Learned], by_episodes: bool, best: float | None) -> None:
        """Finished trainings, one a seed."""
        first = learned[0]
        values = first.action_values.max(axis=1)
        self.results["learned"] = [
            {
                "seed": seed,
                "action_values": one.action_values,
                "policy": one.policy,
                "training_episodes": len(one.returns),
            }
            for seed, one in zip(self.seeds, learned, strict=True)
        ]
        self._table(f"best action values and greedy policy, seed {self.seeds[0]}", values,
                    first.policy)  # fmt: skip
        if self.grid:
            grid, title = self.grid, f"{self.title}, seed {self.seeds[0]}"
            frames = snapshots_by_steps(first, by_episodes)
            self._picture(
                "values.png",
                lambda: grid_plots.value_grid(grid, values, first.policy, title=title),
            )
            self._picture(
                "q-table.png", lambda: grid_plots.q_strip(grid, selection(frames), title=title)
            )
            self._animation("q-table.gif", frames, title)
        if all(len(one.returns) for one in learned):
            self._picture(
                "learning-curve.png",
                lambda: learning_curve(learned, by_episodes, best, title=self.title),
            )

    def distance(self, learned: Sequence[Learned], exact: np.ndarray, seen: np.ndarray) -> None:
        """How far learned values are from the exact optimal ones ``(S,)``.

        Args:
            seen: the states that can be reached.
        """
        values = np.array([one.action_values.max(axis=1) for one in learned])
        errors = np.sqrt(((values - exact)[:, seen] ** 2).mean(axis=1))
        self.results |= {"exact": exact, "rms_error": errors}
        self._table("exact optimal values", exact, None)
        words = ", ".join(
            f"seed {seed}: {error:.3g}" for seed, error in zip(self.seeds, errors, strict=True)
        )
        print(f"\nRMS distance of the learned values from the exact ones, {words}")
        if errors.max() <= FAR * np.abs(exact).max():
            return
        alpha = str(self.settings["alpha"])
        if self.algorithm in ON_POLICY:
            print("they are those of the policy that explores; what the greedy one earns is below")
        elif _is_number(alpha):
            steps = round(max(one.lengths.sum() for one in learned), -3)
            length = f":{steps}" if "episodes" in self.settings and steps else ""
            print(
                "they are far: with a constant alpha they follow the latest rewards for ever; let"
                f" it fall (--alpha {alpha}:0.01{length}). What the greedy policy earns is below"
            )

    def prediction(
        self,
        predictions: Sequence[Prediction],
        policy: np.ndarray,
        exact: np.ndarray | None,
        errors: np.ndarray | None,
        by_episodes: bool,
    ) -> None:
        """Learned values; ``errors`` ``(seeds, snapshots)``: RMS distance from ``exact``."""
        self.results["values"] = [one.values for one in predictions]
        arrows = policy if policy.ndim == 1 else None
        self._table(f"values, seed {self.seeds[0]}", predictions[0].values, arrows)
        if exact is not None and errors is not None:
            self._table("exact values", exact, arrows)
            last = errors[:, -1]
            print("\nRMS error over the states that the policy reaches:")
            for seed, error in zip(self.seeds, last, strict=True):
                print(f"  seed {seed}: {error:.4g}")
            self.results |= {"exact": exact, "rms_error": last}
            x = np.array([done for done, _ in predictions[0].snapshots])
            self._picture(
                "error.png",
                lambda: plots.curves(
                    {"RMS error": (x, errors)},
                    title=self.title,
                    xlabel="episodes" if by_episodes else "environment steps",
                    ylabel="RMS error of the values",
                    ylim=(0.0, float(errors.max()) * 1.05 or 1.0),
                ),
            )
        if self.grid:
            grid = self.grid
            panels = [(f"learned, seed {self.seeds[0]}", predictions[0].values, policy)]
            panels += [("exact", exact, policy)] if exact is not None else []
            self._picture(
                "values.png", lambda: grid_plots.value_strip(grid, panels, title=self.title)
            )

    def played(
        self,
        played: Sequence[Played],
        best: float | None,
        learned: Sequence[Learned] | None = None,
    ) -> None:
        """Evaluation by seed, beside the optimum."""
        self.results["evaluation"] = [
            {"seed": seed} | asdict(one) for seed, one in zip(self.seeds, played, strict=True)
        ]
        self.results["optimum"] = best
        limit = self.problem.limit
        print(f"\nreturn within {limit} steps (undiscounted)")
        exact = best is not None
        training = f"{'training':>10}" if learned else ""
        print(f"{'seed':>6}{training}{'sampled':>22}" + (f"{'expected':>11}" if exact else ""))
        for i, (seed, one) in enumerate(zip(self.seeds, played, strict=True)):
            line = f"{seed:>6}"
            if learned:
                latest = learned[i].returns[-LATEST:]
                line += f" {latest.mean():>9.3f}" if len(latest) else f"{'-':>10}"
            line += f" {f'{one.mean:.3f} {_pm()} {one.std:.3f}':>21}"
            print(line + (f" {one.exact:>10.4f}" if one.exact is not None else ""))
        means = np.array([one.mean for one in played])
        if len(means) > 1:
            spread = f"{means.mean():.3f} {_pm()} {means.std():.3f}, lowest {means.min():.3f}"
            print(f"mean of {len(means)} seeds {spread}")
            self.results |= {"mean": float(means.mean()), "std": float(means.std())}
        if best is not None:
            print(f"exact optimum of this return {best:.4f}")

    def sweep(
        self,
        swept: Sequence[tuple[str, Sequence[float]]],
        scores: np.ndarray,
        best: float | None,
    ) -> None:
        """Evaluation for every setting: ``scores`` ``(points, seeds)``."""
        (first, xs), (second, ys) = swept[0], swept[1] if len(swept) > 1 else ("", [0.0])
        table = scores.mean(axis=1).reshape(len(xs), len(ys))
        what = f"return within {self.problem.limit} steps"
        self.results |= {"sweep": dict(swept), "scores": scores, "optimum": best}
        print(f"\n{what}, mean of {plural(len(self.seeds), 'seed')}")
        if second:
            print(f"{second + ' →':>10}" + "".join(f"{y:>10g}" for y in ys))
        for x, row in zip(xs, table, strict=True):
            print(f"{first} {x:<g}".ljust(12) + "".join(f"{score:>10.3f}" for score in row))
        if best is not None:
            print(f"exact optimum of this return {best:.4f}")
        if second:
            self._picture(
                "sweep.png",
                lambda: plots.heat_map(
                    table, (first, [f"{x:g}" for x in xs]), (second, [f"{y:g}" for y in ys]),
                    title=f"{self.title}: return",
                ),
            )  # fmt: skip
            return
        self._picture("sweep.png", lambda: self._sweep_curve(first, xs, scores, what, best))

    def _sweep_curve(
        self, name: str, xs: Sequence[float], scores: np.ndarray, what: str, best: float | None
    ) -> Figure:
        order = np.argsort(xs)
        x = np.array(xs)[order]
        wide = x[0] > 0 and x[-1] / x[0] >= 10
        figure = plots.curves(
            {plural(len(self.seeds), "seed"): (x, scores[order].T)},
            title=self.title,
            xlabel=name,
            ylabel=what,
            level=None if best is None else (best, "optimum"),
            log_x=wide,
        )
        figure.axes[0].set_xticks(x, [f"{number:g}" for number in x])
        return figure

    def soft(self, mdp: MDP, solved: SoftSolution, reference: np.ndarray, beta: float) -> None:
        """J* and what it is made of; a TokenMDP's likeliest completions."""
        parts = {"reference": reference, "regularised": solved.policy}
        print(f"\n{'policy':<13}{'E[reward]':>12}{'KL (nats)':>12}{'objective':>12}")
        for name, policy in parts.items():
            reward = float(mdp.start @ policy_evaluation(mdp, policy))
            kl = float(mdp.start @ policy_evaluation(_kl_rewards(mdp, policy, reference), policy))
            worth = {"reward": reward, "kl": kl, "objective": reward - beta * kl}
            self.results[name] = worth
            print(f"{name:<13}" + "".join(f"{number:>12.6f}" for number in worth.values()))
        env = self.problem.env.unwrapped
        if not isinstance(env, TokenMDP) or mdp.gamma != 1:
            return
        chances, best = env.optimum(beta)
        print(f"by enumeration of {len(chances)} completions: objective {best:.6f}")
        self.results["enumerated"] = best
        before = np.exp(env.sequence_logps(env.reference))
        after = np.exp(env.sequence_logps(solved.policy))
        order = np.argsort(-after, kind="stable")[:LISTED]
        print(f"\n{'completion':<20}{'reward':>8}{'reference':>11}{'optimum':>9}")
        names = [" ".join(env.names[t] for t in env.sequences[i]) for i in order]
        for i, name in zip(order, names, strict=True):
            print(f"{name:<20}{env.sequence_rewards[i]:>8.2f}{before[i]:>11.4f}{after[i]:>9.4f}")
        few = order[:5]
        self._picture(
            "completions.png",
            lambda: plots.bars(
                {"reference": before[few], "optimum": after[few]},
                title=self.title,
                ylabel="probability",
                names=[
                    f"{name[:10]}\nr = {env.sequence_rewards[i]:.2f}"
                    for i, name in zip(few, names, strict=False)
                ],
            ),
        )

    def finish(self) -> None:
        """Write results.json and say where everything is."""
        content = {
            "algorithm": self.algorithm,
            "env_id": self.problem.env_id,
            "env_args": self.problem.env_args,
            "max_steps": self.problem.limit,
            "settings": self.settings,
            "seeds": self.seeds,
            "versions": versions(),
            "results": self.results,
            "pictures": self.pictures,
        }
        write_json(self.folder / "results.json", content)
        print(f"\nfiles in {self.folder}: {', '.join(['results.json', *self.pictures])}")

    def _table(self, caption: str, values: np.ndarray, policy: np.ndarray | None) -> None:
        """A grid as text, or the values of a few states."""
        actions = policy if policy is None or policy.ndim == 1 else None
        if self.grid:
            print(f"\n{caption}")
            print("\n".join(grid_table(self.grid, values, actions, plain=not _unicode())))
        elif len(values) <= LISTED:
            print(f"\n{caption}")
            for state, value in enumerate(values):
                action = "" if actions is None else f"  action {actions[state]}"
                print(f"{state:>6} {value:>10.4f}{action}")
        else:
            low, high = values.min(), values.max()
            print(f"\nvalues of {len(values)} states from {low:.4g} to {high:.4g}")

    def _picture(self, name: str, draw: Callable[[], Figure]) -> None:
        if self.pictured:
            write_figure(self.folder / name, draw())
            self.pictures.append(name)

    def _animation(self, name: str, frames: Sequence[grid_plots.Snapshot], title: str) -> None:
        if not self.pictured or self.grid is None:
            return
        with tempfile.TemporaryDirectory() as beside:
            made = Path(beside) / name
            grid_plots.q_animation(self.grid, frames, made, title=title)
            write_bytes(self.folder / name, made.read_bytes())
        self.pictures.append(name)


def plural(count: int, word: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{count:,} {word}" + ("s" if count != 1 else "")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _kl_rewards(mdp: MDP, policy: np.ndarray, reference: np.ndarray) -> MDP:
    """The process whose reward is KL(π(·|s) ‖ π_ref(·|s)), nothing in terminal states."""
    ratio = np.where(policy > 0, policy / np.where(reference > 0, reference, 1), 1)
    kl = (policy * np.log(ratio)).sum(axis=1)
    kl[mdp.terminal] = 0.0
    rewards = np.repeat(kl[:, None], mdp.n_actions, axis=1)
    return replace(mdp, rewards=rewards, transition_rewards=None)


def _unicode() -> bool:
    return "utf" in (sys.stdout.encoding or "").lower()


def _pm() -> str:
    return "±" if _unicode() else "+-"
