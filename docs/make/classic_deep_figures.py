"""The pictures of docs/classic-rl/deep.md, each with a name of its own.

    python docs/make/classic_deep_figures.py dqn-ablation
    python docs/make/classic_deep_figures.py clip-range --seeds 0 1 2
    python docs/make/classic_deep_figures.py dqn-ablation --resume   # after an interruption

Each trains what it shows, prints the figures behind it and writes docs/images/classic/deep-*.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from classic_rl.deep import training  # noqa: E402
from classic_rl.deep.configuration import configure, with_checkpoints  # noqa: E402
from classic_rl.deep.policies import ActorCritic  # noqa: E402
from classic_rl.deep.policy_file import load_policy  # noqa: E402
from classic_rl.errors import ProblemError  # noqa: E402
from classic_rl.folders import slug  # noqa: E402
from classic_rl.gradient_variance import ESTIMATORS, UNBIASED, GradientNoise  # noqa: E402
from classic_rl.gradient_variance import measure as measure_noise  # noqa: E402
from classic_rl.pictures import plots  # noqa: E402
from classic_rl.results import prepare_folder, write_figure  # noqa: E402

OUT = ROOT / "docs" / "images" / "classic"
RUNS = ROOT / "runs" / "classic" / "figures"
EPISODES = 20  # of each run's greedy evaluation
NO_CLIP = "cliprange=1e6"
Runs = dict[str, list[training.Trained]]


@dataclass(frozen=True)
class Job:
    """How a picture is to be made.

    Args:
        figure: its name. seeds: of every curve. out: folder of the pictures. runs: folder of the
            trainings. resume: take what is there. steps: of every training instead of its own.
    """

    figure: str
    seeds: Sequence[int]
    out: Path
    runs: Path
    resume: bool = False
    steps: int | None = None

    def train(self, variants: Mapping[str, tuple[str, str, Sequence[str]]]) -> Runs:
        """Train every variant (algorithm, environment, overrides) with every seed; print a table
        of their greedy evaluations."""
        trained: Runs = {}
        for name, (algorithm, env_id, overrides) in variants.items():
            flags = {} if self.steps is None else {"total_steps": self.steps}
            base = configure(algorithm, env_id, flags=flags, overrides=overrides)
            folder = self.runs / self.figure / slug(name)
            trained[name] = [
                training.train(
                    algorithm,
                    with_checkpoints(replace(base, seed=seed)),
                    folder / f"seed{seed}",
                    episodes=EPISODES,
                    resume=self.resume,
                )
                for seed in self.seeds
            ]
            greedy = [run.returns.mean() for run in trained[name]]
            each = " ".join(f"{value:.0f}" for value in greedy)
            print(f"{name}: greedy {np.mean(greedy):.1f} ({each})", flush=True)
        return trained

    def write(self, figure: Figure, name: str | None = None) -> None:
        """Write ``deep-<name>.png``."""
        folder = prepare_folder(self.out)
        print(write_figure(folder / f"deep-{name or self.figure}.png", figure))


def learning_curves(job: Job) -> None:
    """The four algorithms on CartPole, each with its tuned settings."""
    names = {"REINFORCE": "reinforce", "A2C": "a2c", "DQN": "dqn", "PPO": "ppo"}
    runs = job.train({name: (key, "CartPole-v1", []) for name, key in names.items()})
    figure = training.curve_figure(runs, "CartPole-v1: four algorithms", level=(475, "solved"))
    figure.axes[0].set_xlim(0, 120_000)  # beyond that all stay where they are
    job.write(figure)


def lunar_lander(job: Job) -> None:
    """PPO on LunarLander, with its tuned settings."""
    runs = job.train({"PPO": ("ppo", "LunarLander-v3", [])})
    title = "PPO learns to land"
    job.write(training.curve_figure(runs, title, level=(200, "solved"), ylim=(-300, 320)))


def dqn_ablation(job: Job) -> None:
    """DQN with and without its two stabilisers, and without its 10-step targets."""
    without = {
        "DQN": [],
        "no target network": ["target_network=false"],
        "no replay": ["replay=false"],
        "neither": ["replay=false", "target_network=false"],
        "1-step targets": ["n_step=1"],
    }
    runs = job.train({name: ("dqn", "CartPole-v1", keys) for name, keys in without.items()})
    title = "DQN without one of its parts"
    job.write(training.curve_figure(runs, title, level=(475, "solved")))


ESTIMATOR_SETTINGS = {
    "REINFORCE": ["estimator=reinforce", "baseline=none"],
    "GPOMDP": ["estimator=gpomdp", "baseline=none"],
    "GPOMDP, value baseline": ["estimator=gpomdp", "baseline=value"],
    "GAE, λ = 0.95": ["estimator=gae", "baseline=value", "lam=0.95"],
}


def estimators(job: Job) -> None:
    """The same policy gradient, estimated in four ways: returns and entropy while learning."""
    runs = _estimators(job, "CartPole-v1", (475, "solved"))
    series = {k: logged(group, "entropy") for k, group in runs.items()}
    for name, (_, y) in series.items():
        print(f"  {name}: entropy {y[:, 0].mean():.2f} to {y[:, -1].mean():.2f} nats")
    title = "CartPole: how undecided the policy is"
    entropy = plots.curves(series, title=title, xlabel="environment steps", ylabel="entropy, nats")
    training.thousands(entropy)
    job.write(entropy, "entropy")


def estimators_lunar_lander(job: Job) -> None:
    """The four estimators on LunarLander."""
    _estimators(job, "LunarLander-v3", (200, "solved"), ["total_steps=300000"])


def _estimators(job: Job, env_id: str, level: tuple[float, str], more: Sequence[str] = ()) -> Runs:
    runs = job.train(
        {k: ("reinforce", env_id, [*keys, *more]) for k, keys in ESTIMATOR_SETTINGS.items()}
    )
    title = f"{env_id.partition('-')[0]}: the estimator alone differs"
    job.write(training.curve_figure(runs, title, level=level))
    return runs


def gradient_variance(job: Job) -> None:
    """Noise and bias of the gradient estimators, for a fresh policy and one half trained."""
    early = replace(job, steps=job.steps or 10_000, seeds=job.seeds[:1])
    [trained] = early.train({"10,000 steps": ("reinforce", "CartPole-v1", [])})["10,000 steps"]
    half, _, _ = load_policy(trained.folder)
    assert isinstance(half, ActorCritic)
    fresh = ActorCritic(half.observation_space, half.action_space)
    batches = 200 if job.steps is None else 4
    measured = {
        name: measure_noise(policy, "CartPole-v1", batches=batches, seed=job.seeds[0])
        for name, policy in (("fresh policy", fresh), ("after 10k steps", half))
    }
    for name, noise in measured.items():
        fit = f"critic explains {noise.explained_variance:.2f}"
        print(f"{name}: entropy {noise.entropy:.2f}, {fit}")
        for label, variance, bias in zip(
            noise.names, noise.relative, relative_bias(noise), strict=True
        ):
            known = f", bias {bias:.3f}" if label.startswith("GAE") else ""
            print(f"  {label:18} noise {variance:8.2f}{known}")
    job.write(noise_figure(measured))


def relative_bias(noise: GradientNoise) -> np.ndarray:
    """Squared bias over the squared length of the unbiased gradient, not below 0."""
    return np.maximum(noise.squared_bias, 0) / noise.squared_norm[noise.names.index(UNBIASED)]


@plots.styled
def noise_figure(measured: Mapping[str, GradientNoise]) -> Figure:
    """Variance and squared bias of every estimator on a logarithmic axis, a panel a policy."""
    figure = Figure(figsize=(plots.WIDTH, 3.7), layout="constrained")
    all_axes = figure.subplots(1, len(measured), sharex=True, sharey=True)
    names = list(ESTIMATORS)
    places = np.arange(len(names))[::-1]
    biased = np.array([name.startswith("GAE") for name in names])  # the others have none
    for axes, (policy, noise) in zip(all_axes, measured.items(), strict=True):
        axes.plot(noise.relative, places, "o", color=plots.BLUE, ms=5.5, label="variance")
        bias = relative_bias(noise)
        axes.plot(
            bias[biased], places[biased], "D", color=plots.ORANGE, mfc="none", ms=5, label="bias²"
        )
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks([1e-3, 1e-1, 1e1])
        axes.set_title(policy, fontsize=9.5, fontweight="normal", color=plots.SOFT)
        axes.set_xlabel("÷ |gradient|²")
    all_axes[0].set_yticks(places, names)
    title = "How noisy, and how biased, each gradient is"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold", color=plots.INK)
    handles = all_axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2)
    return figure


def ppo_vs_vanilla(job: Job) -> None:
    """PPO, the plain policy gradient on the same rollouts, and PPO's epochs without its clip."""
    whole = "minibatch_size=1000000"
    runs = job.train(
        {
            "PPO": ("ppo", "CartPole-v1", []),
            "vanilla: one step a rollout": ("ppo", "CartPole-v1", ["epochs=1", whole, NO_CLIP]),
            "PPO without its clip": ("ppo", "CartPole-v1", [NO_CLIP]),
        }
    )
    title = "PPO and the vanilla policy gradient"
    job.write(training.curve_figure(runs, title, level=(475, "solved")))


def clip_range(job: Job) -> None:
    """PPO over clip ranges: how well it learns and how far each update goes."""
    ranges = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
    runs = job.train(
        {f"{epsilon:g}": ("ppo", "CartPole-v1", [f"cliprange={epsilon}"]) for epsilon in ranges}
    )
    # (K, E): the mean over all training episodes' curve, K seeds.
    learned = [[average_return(run) for run in group] for group in runs.values()]
    moved = [[float(np.mean(run.curve["kl"])) for run in group] for group in runs.values()]
    for epsilon, returns, nats in zip(ranges, learned, moved, strict=True):
        print(f"  {epsilon:4g}: return {np.mean(returns):.0f}, KL an update {np.mean(nats):.4f}")
    panels = {"mean return over training": (learned, False), "KL of an update, nats": (moved, True)}
    job.write(sweep_figure(ranges, panels, "PPO over clip ranges", "clip range ε"))


@plots.styled
def sweep_figure(
    values: Sequence[float],
    panels: Mapping[str, tuple[Sequence[Sequence[float]], bool]],
    title: str,
    xlabel: str,
) -> Figure:
    """What a setting does, one panel a measure: the mean of the seeds in a band of all of them.

    Args:
        values: E values of the setting. panels: by label, ``(E, K)`` for K seeds, and whether the
            axis is logarithmic.
    """
    figure = Figure(figsize=(plots.WIDTH, 0.9 + 1.7 * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), sharex=True)
    for axes, colour, (label, (rows, log)) in zip(
        all_axes, plots.SERIES, panels.items(), strict=False
    ):
        y = np.array(rows)
        axes.plot(values, y.mean(1), color=colour, marker="o", ms=4)
        axes.fill_between(values, y.min(1), y.max(1), color=colour, alpha=0.18, lw=0)
        axes.set_xscale("log")
        if log:
            axes.set_yscale("log")
        axes.minorticks_off()
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.set_title(label, fontsize=9.5, fontweight="normal", color=plots.SOFT)
    all_axes[-1].set_xlabel(xlabel)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold", color=plots.INK)
    return figure


def average_return(run: training.Trained) -> float:
    """Mean of the learning curve over the environment steps: high for fast and steady learning."""
    total = run.config.total_steps
    grid = np.linspace(0, total, 101)[1:]
    return float(np.nanmean(training.learning_curve(run.episodes, grid, total / 20)))


def logged(runs: Sequence[training.Trained], name: str) -> tuple[np.ndarray, np.ndarray]:
    """A logged metric of several seeds at common steps: x ``(T,)`` and y ``(K, T)``."""
    columns = [(np.array(run.curve["steps"]), np.array(run.curve[name])) for run in runs]
    low, high = max(x[0] for x, _ in columns), min(x[-1] for x, _ in columns)
    grid = np.linspace(low, high, 100)
    return grid, np.stack([np.interp(grid, x, y) for x, y in columns])


FIGURES: dict[str, Callable[[Job], None]] = {
    "learning-curves": learning_curves,
    "dqn-ablation": dqn_ablation,
    "gradient-variance": gradient_variance,
    "estimators": estimators,
    "ppo-vs-vanilla": ppo_vs_vanilla,
    "clip-range": clip_range,
    "lunarlander": lunar_lander,
    "estimators-lunarlander": estimators_lunar_lander,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Make the pictures asked for; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", nargs="+", metavar="PICTURE", help=", ".join(FIGURES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="N")
    parser.add_argument("--steps", type=int, help="of every training instead of its own")
    parser.add_argument("--resume", action="store_true", help="take what is in --runs already")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="of the pictures")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="FOLDER", help="of the runs")
    arguments: Any = parser.parse_intermixed_args(argv)
    try:
        for name in arguments.figures:
            if name not in FIGURES:
                raise ProblemError(f"{name}: no such picture; there are {', '.join(FIGURES)}")
        for name in arguments.figures:
            places = (arguments.out, arguments.runs)
            FIGURES[name](Job(name, arguments.seeds, *places, arguments.resume, arguments.steps))
    except ProblemError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
