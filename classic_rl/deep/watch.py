"""An episode of a trained policy as pictures: an animation, and a strip for a page."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from classic_rl.deep.evaluation import check_spaces
from classic_rl.deep.policies import Policy
from classic_rl.envs import environments
from classic_rl.errors import ProblemError
from classic_rl.pictures import plots
from classic_rl.results import prepare_folder, write_bytes, write_figure

GIF_FILE, STRIP_FILE = "episode.gif", "episode.png"
GIF_FRAMES, GIF_WIDTH = 150, 320  # at most; more would be megabytes
STRIP_ROWS, STRIP_COLUMNS = 2, 3


@dataclass
class Film:
    """One greedy episode.

    Args:
        frames: uint8 ``(H, W, 3)`` by step: every ``every``-th one and those of the strip.
        steps: of the episode. fps: frames a second. episode_return: undiscounted.
    """

    env_id: str
    frames: dict[int, np.ndarray]
    every: int
    steps: int
    fps: float
    episode_return: float


def film(policy: Policy, env_id: str, env_kwargs: Mapping[str, Any], seed: int) -> Film:
    """Play one episode greedily, the first of the evaluation with the same ``seed``.

    It is played twice, because drawing takes far longer than playing: once to learn how long it
    is, once to draw the frames that will be shown.

    Raises:
        ProblemError: for an environment that draws nothing, or a missing package that it draws by.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame looks for a screen else
    env = environments.make_for_networks(env_id, {**env_kwargs, "render_mode": "rgb_array"})
    check_spaces(policy, env, env_id)
    steps = len(_play(policy, env, seed))
    every = -(-(steps + 1) // GIF_FRAMES)
    wanted = {*range(0, steps + 1, every), *_strip_moments(steps)}
    frames: dict[int, np.ndarray] = {}

    def draw(step: int) -> None:
        if step in wanted:
            frames[step] = _frame(env, env_id)

    total = sum(_play(policy, env, seed, draw))
    env.close()
    return Film(env_id, frames, every, steps, float(env.metadata.get("render_fps", 30)), total)


def _play(
    policy: Policy, env: gym.Env, seed: int, draw: Callable[[int], None] = lambda step: None
) -> list[float]:
    """The rewards of one greedy episode; ``draw`` is called with the number of steps so far."""
    observation, _ = env.reset(seed=seed)
    draw(0)
    rewards: list[float] = []
    ended = False
    while not ended:
        batch = policy.scale(np.asarray(observation)[None])
        action = policy.for_environment(policy.act(batch).actions)[0]
        observation, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
        ended = terminated or truncated
        draw(len(rewards))
    return rewards


def write_film(shown: Film, folder: str | Path) -> tuple[Path, Path]:
    """Write the animation and the strip; return where they are."""
    folder = prepare_folder(folder)
    pictures = [_small(shown.frames[step]) for step in range(0, shown.steps + 1, shown.every)]
    out = io.BytesIO()
    # Viewers do not show a frame for less than 20 ms.
    milliseconds = max(20, round(1000 * shown.every / shown.fps))
    pictures[0].save(
        out, "GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0
    )
    gif = write_bytes(folder / GIF_FILE, out.getvalue())
    return gif, write_figure(folder / STRIP_FILE, strip(shown))


def _strip_moments(steps: int) -> list[int]:
    return np.linspace(0, steps, STRIP_ROWS * STRIP_COLUMNS).round().astype(int).tolist()


@plots.styled
def strip(shown: Film) -> Figure:
    """Six moments of the episode, evenly spread."""
    moments = _strip_moments(shown.steps)
    height, width = shown.frames[0].shape[:2]
    row = plots.WIDTH / STRIP_COLUMNS * height / width + 0.22
    figure = Figure(figsize=(plots.WIDTH, 0.3 + STRIP_ROWS * row), layout="constrained")
    title = f"{shown.env_id}: return {shown.episode_return:.1f} in {shown.steps} steps"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold", color=plots.INK)
    for axes, moment in zip(figure.subplots(STRIP_ROWS, STRIP_COLUMNS).flat, moments, strict=True):
        axes.imshow(shown.frames[moment])
        axes.set_axis_off()
        axes.set_title(f"step {moment}", fontsize=8.5, fontweight="normal", color=plots.SOFT, pad=3)
    return figure


def _frame(env: gym.Env, env_id: str) -> np.ndarray:
    try:
        frame = env.render()
    except (gym.error.Error, ImportError) as error:
        raise ProblemError(f"{env_id} cannot be drawn: {' '.join(str(error).split())}") from error
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        raise ProblemError(f"{env_id} cannot be drawn: it has no pictures")
    return frame.copy()


def _small(frame: np.ndarray) -> Image.Image:
    picture = Image.fromarray(frame)
    if picture.width > GIF_WIDTH:
        size = (GIF_WIDTH, round(picture.height * GIF_WIDTH / picture.width))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture.quantize(64)
