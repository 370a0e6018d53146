"""A training as a command shows it: a live line, files in a folder, the final evaluation."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from classic_rl.algorithms import find_algorithm
from classic_rl.deep import card, evaluation, policy_file
from classic_rl.deep.best import Best
from classic_rl.deep.configuration import write_yaml
from classic_rl.deep.run import BEST_FOLDER, CHECKPOINT_FILE, RESULT_FILE, Result, RunConfig
from classic_rl.deep.trackers import TrackerName, open_tracker
from classic_rl.pictures import plots
from classic_rl.results import prepare_folder, write_figure, write_json
from common.words import clock

CONFIG_FILE = "config.yaml"
EVALUATION_FILE = "evaluation.json"
CURVE_FILE = "learning-curve.png"
EVALUATION_SEED = 1_000_000  # episodes that no training has seen, and the same for all
REDRAW = 0.1  # seconds between two redrawings of the live line
REPORT = 60.0  # seconds between two lines where stderr is no terminal


@dataclass(frozen=True)
class Trained:
    """A finished training in its folder.

    Args:
        algorithm, config: what was trained. folder: where its files are.
        steps, seconds: environment steps and wall time that it took.
        episodes: training episodes: ``steps``, ``returns``, ``lengths``, equally long lists.
        curve: what was logged, by name; ``steps`` are environment steps.
        returns, lengths: of the evaluation's episodes, ``(episodes,)`` each.
        best: where the run lost its best policy, that one's evaluation and the steps it was at.
    """

    algorithm: str
    config: RunConfig
    folder: Path
    steps: int
    seconds: float
    episodes: Mapping[str, Sequence[float]]
    curve: Mapping[str, Sequence[float]]
    returns: np.ndarray
    lengths: np.ndarray
    best: tuple[int, np.ndarray] | None

    @property
    def training_return(self) -> float:
        """Mean of the last 100 training episodes; NaN where none ended."""
        last = self.episodes["returns"][-100:]
        return float(np.mean(last)) if last else float("nan")


def train(
    algorithm: str,
    config: RunConfig,
    folder: str | Path,
    *,
    episodes: int = 100,
    resume: bool = False,
    track: TrackerName | None = None,
) -> Trained:
    """Train in ``folder`` and evaluate greedily over ``episodes`` fresh episodes.

    With ``resume`` a finished training of the same settings is taken as it is, an interrupted one
    goes on from its last checkpoint.
    """
    folder = prepare_folder(folder)
    content = _finished(algorithm, config, folder) if resume else None
    if content is None:
        _train(algorithm, config, folder, resume, track).save(folder)
        content = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    measured = evaluate(folder, episodes)
    return Trained(
        algorithm,
        config,
        folder,
        content["steps"],
        content["seconds"],
        content["episodes"],
        content["curve"],
        measured.returns,
        measured.lengths,
        _lost(content["best"], folder, episodes, float(measured.returns.mean())),
    )


def evaluate(
    folder: str | Path, episodes: int = 100, seed: int = EVALUATION_SEED
) -> evaluation.Evaluation:
    """Play a trained policy greedily and write the folder's ``evaluation.json`` and card."""
    folder = Path(folder)
    policy, env_id, env_kwargs = policy_file.load_policy(folder)
    measured = evaluation.evaluate(policy, env_id, episodes, seed, env_kwargs=env_kwargs)
    content = {"env_id": env_id, "episodes": episodes, "seed": seed, **summary(measured.returns)}
    target = folder if folder.is_dir() else folder.parent
    write_json(target / EVALUATION_FILE, content | asdict(measured))
    best = target.name == BEST_FOLDER
    result = (target.parent if best else target) / RESULT_FILE
    if result.is_file():
        about = json.loads(result.read_text(encoding="utf-8"))
        card.write_card(target, about, content, best)
    return measured


def _lost(
    about: dict[str, Any], folder: Path, episodes: int, final: float
) -> tuple[int, np.ndarray] | None:
    """Steps and evaluation of the best policy in training, where it beats the last one by far.

    Training episodes are few and explore: what they call best is not believed untried.
    """
    if not about.pop("fell"):
        return None
    best, returns = Best(**about), evaluate(folder / BEST_FOLDER, episodes).returns
    return (best.steps, returns) if best.well_below(float(returns.mean()), final) else None


def summary(returns: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation, lowest and highest of episode returns ``(episodes,)``."""
    return {
        "mean": float(returns.mean()),
        "std": float(returns.std()),
        "low": float(returns.min()),
        "high": float(returns.max()),
    }


def _train(
    algorithm: str, config: RunConfig, folder: Path, resume: bool, track: TrackerName | None
) -> Result:
    train = find_algorithm(algorithm).train()
    group = f"{algorithm} {config.env_id}"
    label = f"{group} seed {config.seed}"
    tracker = None
    if track is not None:
        settings = asdict(config)
        tracker = open_tracker(
            track, folder, group=group, run=label, config=settings, resume=resume
        )
    live = LiveLine(label, config.total_steps)
    complete = begun = False
    began = time.time()

    def on_log(steps: int, metrics: Mapping[str, float]) -> None:
        nonlocal begun
        if not begun:  # not sooner: a mistake in the settings must not cost a finished run
            begun = True
            _replace(folder, began, resume)
            write_yaml(config, folder / CONFIG_FILE)
        live.show(steps, metrics)
        if tracker is not None:
            tracker.log(steps, metrics)

    try:
        result = train(config, out=folder, resume=resume, on_log=on_log)
        complete = True
        return result
    finally:
        live.clear()
        if tracker is not None:
            tracker.finish(failed=not complete)


def _replace(folder: Path, began: float, resume: bool) -> None:
    """Remove what an earlier run left in the folder, whatever is older than ``began``."""
    kept = {CHECKPOINT_FILE} if resume else set()
    policy = {EVALUATION_FILE, policy_file.POLICY_FILE, card.CARD_FILE}
    best = {f"{BEST_FOLDER}/{name}" for name in policy}
    for name in (policy | best | {RESULT_FILE, CHECKPOINT_FILE}) - kept:
        path = folder / name
        own = path.name == card.CARD_FILE and not card.is_replaceable(path)
        if path.exists() and path.stat().st_mtime < began and not own:
            path.unlink()


def _finished(algorithm: str, config: RunConfig, folder: Path) -> dict[str, Any] | None:
    """``result.json`` of a finished training of these settings."""
    try:
        content = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = json.loads(json.dumps(asdict(config)))
    same = content.get("algorithm") == algorithm and content.get("config") == wanted
    same = same and "best" in content  # an older release kept none
    return content if same and (folder / policy_file.POLICY_FILE).is_file() else None


class LiveLine:
    """How far a training is, how well it does and how long it will take.

    On a terminal one line is redrawn in place; elsewhere a line is printed once a minute.

    Args:
        label: what is trained. total: its environment steps.
    """

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total = label, total
        self.terminal = sys.stderr.isatty()
        self.every = REDRAW if self.terminal else REPORT
        self.began = self.shown = time.monotonic()
        self.first: int | None = None  # steps that a resumed run had already

    def show(self, steps: int, metrics: Mapping[str, float]) -> None:
        """Show the state after ``steps`` steps, unless the line is fresh."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.began = steps, now
        if now - self.shown < self.every:
            return
        self.shown = now
        parts = [f"{steps:,}/{self.total:,} steps"]
        if np.isfinite(value := metrics.get("episode_return", np.nan)):
            parts.append(f"return {value:.1f}")
        if steps > self.first:
            rate = (steps - self.first) / (now - self.began)
            left = max(self.total - steps, 0) / rate
            parts += [f"{rate:,.0f} steps/s", f"{clock(left)} left"]
        line = f"{self.label} · " + " · ".join(parts)
        if self.terminal:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the line away."""
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def table(trained: Sequence[Trained]) -> str:
    """A line for every training, and one for all of them."""
    head = f"{'seed':>4} {'steps':>11} {'seconds':>8} {'steps/s':>8} {'training':>9}"
    lines = [f"{head}  {'evaluation':>18} {'lowest':>8}"]
    for run in trained:
        scores = summary(run.returns)
        spread = f"{scores['mean']:.1f} ± {scores['std']:.1f}"
        lines.append(
            f"{run.config.seed:>4} {run.steps:>11,} {run.seconds:>8.1f}"
            f" {run.steps / run.seconds:>8,.0f} {run.training_return:>9.1f}"
            f"  {spread:>18} {scores['low']:>8.1f}"
        )
    if len(trained) > 1:
        means = [run.returns.mean() for run in trained]
        lines.append(f"mean of {len(means)} seeds {np.mean(means):.1f}, worst {min(means):.1f}")
    return "\n".join(lines)


def learning_curve(
    episodes: Mapping[str, Sequence[float]], grid: np.ndarray, window: float
) -> np.ndarray:
    """Mean return of the training episodes that ended in the ``window`` steps before each point.

    Args:
        episodes: ``steps`` and ``returns`` of each, in order. grid: environment steps ``(G,)``.

    Returns:
        ``(G,)``; where none ended the value before, NaN before the first.
    """
    steps, returns = (np.asarray(episodes[name], dtype=float) for name in ("steps", "returns"))
    return plots.moving_mean(steps, returns, grid, window)


def curve_figure(groups: Mapping[str, Sequence[Trained]], title: str, **more: Any) -> Figure:
    """Learning curves: the mean of each group's seeds in a band from the lowest to the highest."""
    series = {}
    for name, runs in groups.items():
        total = min(run.config.total_steps for run in runs)
        grid = np.linspace(0, total, 101)[1:]
        y = np.stack([learning_curve(run.episodes, grid, total / 20) for run in runs])
        known = np.isfinite(y).all(0)
        series[name] = (grid[known], y[:, known])
    more.setdefault("xlabel", "environment steps")
    more.setdefault("ylabel", "episode return")
    figure = plots.curves(series, title=title, **more)
    thousands(figure)
    return figure


def thousands(figure: Figure) -> None:
    """Show environment steps as ``50k``."""
    figure.axes[0].xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k" if x else "0")


def write_curve(trained: Sequence[Trained], folder: str | Path) -> Path | None:
    """Draw the learning curve of one or several seeds; None where no training episode ended."""
    if not all(run.episodes["returns"] for run in trained):
        return None
    first = trained[0]
    many = len(trained) > 1
    which = f"{len(trained)} seeds" if many else f"seed {first.config.seed}"
    title = f"{first.algorithm} {first.config.env_id}, {which}"
    return write_figure(Path(folder) / CURVE_FILE, curve_figure({title: trained}, title))
