"""What the environments share: the two ways to render, and a canvas that becomes an array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from classic_rl.errors import ProblemError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, PAPER, GREY = "#22303c", "#ffffff", "#d5dade"
GREEN, YELLOW, RED, BLUE = "#2e9e5b", "#e0a800", "#c8433a", "#2f6db5"


class DrawnEnv(gym.Env):
    """An environment that draws itself as text and as a picture; no display is needed."""

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}

    def __init__(self, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            modes = ", ".join(self.metadata["render_modes"])
            raise ProblemError(f"render_mode: {render_mode!r} is unknown: use one of {modes}")
        self.render_mode = render_mode

    def text(self) -> str:
        """The present state as text; every environment gives its own."""
        raise NotImplementedError

    def picture(self) -> np.ndarray:
        """The present state as uint8 ``(H, W, 3)``; every environment gives its own."""
        raise NotImplementedError

    def render(self) -> Any:
        """`text` or `picture`, as ``render_mode`` says."""
        if self.render_mode is None:
            gym.logger.warn("render() draws nothing: make the environment with a render_mode")
            return None
        return self.text() if self.render_mode == "ansi" else self.picture()


def check_action(action: Any, n_actions: int) -> None:
    """Refuse an action that is not among 0 to n_actions - 1 (a negative index would pass)."""
    if not 0 <= action < n_actions:
        raise ProblemError(f"action: {action} is not among 0 to {n_actions - 1}")


def canvas(columns: float, rows: float, pixels: int) -> Axes:
    """Empty axes over [0, columns] × [0, rows], y pointing down, ``pixels`` to a unit."""
    # Imported here: matplotlib takes longer to load than everything else together.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * pixels / 100, rows * pixels / 100), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.axis("off")
    return axes


def rectangle(axes: Axes, x: float, y: float, width: float, height: float, **style: Any) -> None:
    """A rectangle with its top left corner at (x, y)."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), width, height, **style))


def disc(axes: Axes, x: float, y: float, radius: float, **style: Any) -> None:
    """A disc around (x, y)."""
    from matplotlib.patches import Circle

    axes.add_patch(Circle((x, y), radius, **style))


def label(axes: Axes, x: float, y: float, words: str, **style: Any) -> None:
    """Text centred on (x, y)."""
    axes.text(x, y, words, **{"ha": "center", "va": "center", "color": INK, **style})


def to_array(axes: Axes) -> np.ndarray:
    """The finished picture as uint8 ``(H, W, 3)``."""
    painted: Any = axes.figure.canvas
    painted.draw()
    return np.asarray(painted.buffer_rgba())[..., :3].copy()
