"""Pictures of grids: values with policy arrows, and a Q-table as it is learned.

In a Q-table's picture every cell is cut into four triangles; the one towards an action's direction
has the colour of that action's value. Orange is negative, white zero, blue positive.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from classic_rl.pictures.grids import Grid
from classic_rl.pictures.plots import (
    BLUE,
    INK,
    LINE,
    PAPER,
    SOFT,
    VALUES,
    WIDTH,
    short,
    styled,
    value_norm,
)
from classic_rl.results import write_bytes

WALL, HOLE, GOAL = "#2f3b4a", "#c3cad3", "#00876a"
# An arrow of length 1 to the right, from the origin.
ARROW = np.array(
    [(0, -0.11), (0.5, -0.11), (0.5, -0.38), (1, 0), (0.5, 0.38), (0.5, 0.11), (0, 0.11)]
)
Snapshot = tuple[int, np.ndarray]  # steps taken, action values (S, A)


@styled
def value_grid(
    grid: Grid, values: np.ndarray, policy: np.ndarray | None = None, *, title: str = ""
) -> Figure:
    """Values ``(S,)`` as colours and numbers, and a policy as arrows.

    A policy is int ``(S,)``, or float ``(S, A)`` with rows that sum to one: then every arrow is as
    long as its action is probable, and equally good actions can all be shown.
    """
    figure, [axes] = _board(grid, 1, title)
    draw_values(axes, grid, values, policy, value_norm(values[: len(grid.cells)]))
    return figure


@styled
def value_strip(
    grid: Grid,
    panels: Sequence[tuple[str, np.ndarray, np.ndarray | None]],
    *,
    title: str = "",
    one_scale: bool = True,
) -> Figure:
    """Several value pictures: (caption, values, policy or None) each.

    Args:
        one_scale: the same colour is the same value in all of them.
    """
    wide = grid.shape[1] > 8
    figure, boards = _board(grid, len(panels), title, columns=1 if wide else 2)
    norm = value_norm(np.concatenate([values[: len(grid.cells)] for _, values, _ in panels]))
    for axes, (caption, values, policy) in zip(boards, panels, strict=True):
        own = norm if one_scale else value_norm(values[: len(grid.cells)])
        draw_values(axes, grid, values, policy, own)
        axes.set_title(caption, fontsize=9, fontweight="normal")
    return figure


@styled
def q_strip(grid: Grid, snapshots: Sequence[Snapshot], *, title: str = "") -> Figure:
    """A Q-table at several moments of its learning, with one colour scale."""
    wide = grid.shape[1] > 8
    figure, boards = _board(grid, len(snapshots), title, columns=1 if wide else 3)
    norm = q_norm(grid, snapshots[-1][1])
    for axes, (steps, action_values) in zip(boards, snapshots, strict=True):
        draw_q(axes, grid, action_values, norm)
        axes.set_title(f"{steps:,} steps", fontsize=9, fontweight="normal")
    return figure


@styled
def q_animation(
    grid: Grid, snapshots: Sequence[Snapshot], path: Path, *, title: str = "", fps: int = 6
) -> None:
    """Write the Q-table's learning as an animated GIF that pauses on its last frame.

    Raises:
        ProblemError: where the file cannot be written.
    """
    figure, [axes] = _board(grid, 1, title)
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(96)
    triangles, arrows = draw_q(axes, grid, snapshots[0][1], q_norm(grid, snapshots[-1][1]))
    frames = []
    for steps, action_values in snapshots:
        triangles.set_array(action_values[: len(grid.cells)].ravel())
        arrows.set_verts(_arrow_shapes(grid, best_actions(action_values)))
        axes.set_title(f"{steps:,} steps", fontsize=9, fontweight="normal")
        canvas.draw()
        frames.append(np.array(canvas.buffer_rgba())[..., :3])
    # One palette for all frames and no dithering, so that what stands still does not flicker.
    some = Image.fromarray(np.vstack([frames[0], frames[len(frames) // 2], frames[-1]]))
    palette = some.quantize(96, dither=Image.Dither.NONE)
    images = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    pauses = [1000 // fps] * (len(frames) - 1) + [2000]  # milliseconds
    out = io.BytesIO()
    images[0].save(
        out, "gif", save_all=True, append_images=images[1:], duration=pauses, loop=0, disposal=1
    )
    write_bytes(path, out.getvalue())


@styled
def policy_paths(
    grid: Grid, panels: Sequence[tuple[str, np.ndarray]], start: int, *, title: str = ""
) -> Figure:
    """The way from ``start`` under each (name, policy int ``(S,)``), where every move succeeds."""
    figure, boards = _board(grid, len(panels), title)
    for axes, (name, policy) in zip(boards, panels, strict=True):
        for state, (row, column) in enumerate(grid.cells):
            face = HOLE if grid.kind(state) in ("cliff", "hole") else PAPER
            axes.add_patch(_square(row, column, face))
        _draw_kinds(axes, grid)
        path = path_of(grid, policy, start)
        rows, columns = np.array(path).T
        axes.plot(columns, rows, color=BLUE, linewidth=2.4, zorder=7)
        axes.plot(columns[-1], rows[-1], "o", color=BLUE, markersize=7, zorder=7)
        axes.set_title(f"{name}: {len(path) - 1} steps", fontsize=9, fontweight="normal")
    return figure


def path_of(grid: Grid, policy: np.ndarray, start: int) -> list[tuple[int, int]]:
    """The cells a policy int ``(S,)`` goes through until it ends or goes round, where every move
    succeeds; a move into a wall or off the grid stays."""
    state_of = {(int(r), int(c)): state for state, (r, c) in enumerate(grid.cells)}
    cell = (int(grid.cells[start][0]), int(grid.cells[start][1]))
    path = [cell]
    while grid.is_choice(state_of[cell]):
        down, right = grid.moves[int(policy[state_of[cell]])]
        beside = (cell[0] + down, cell[1] + right)
        if beside not in state_of or beside in path:
            break
        cell = beside
        path.append(cell)
    return path


def best_actions(action_values: np.ndarray, tolerance: float = 1e-6) -> np.ndarray:
    """``(S, A)``: probability spread evenly over the actions that are best up to ``tolerance``."""
    gap = action_values.max(axis=1, keepdims=True) - action_values
    best = (gap <= tolerance * (1.0 + np.abs(action_values).max())).astype(float)
    return best / best.sum(axis=1, keepdims=True)


def q_norm(grid: Grid, action_values: np.ndarray) -> Normalize:
    """Colours for a Q-table: the range of its states' values, so that one bad action (the fall
    off the cliff) does not wash out all the others; what lies beyond has the end's colour."""
    choices = [s for s in range(len(grid.cells)) if grid.is_choice(s)]
    return value_norm(action_values[choices].max(axis=1))


def draw_values(
    axes: Axes, grid: Grid, values: np.ndarray, policy: np.ndarray | None, norm: Normalize
) -> None:
    """Draw `value_grid` into ``axes``."""
    size = _text_size(axes, grid)
    faces: dict[tuple[int, int], Any] = {}
    for state, (row, column) in enumerate(grid.cells):
        kind, value = grid.kind(state), float(values[state])
        hidden = kind == "cliff" or (kind == "hole" and value == 0)
        face = HOLE if hidden else VALUES(norm(value))
        faces[int(row), int(column)] = face
        axes.add_patch(_square(row, column, face))
        if hidden:
            continue
        lift = 0.0 if policy is None or not grid.is_choice(state) else 0.27
        axes.text(
            column, row + lift, short(value), ha="center", va="center", fontsize=size,
            color=_ink_on(face), zorder=4,
        )  # fmt: skip
    if policy is not None:
        weights = policy
        if policy.ndim == 1:
            weights = np.eye(len(grid.moves))[policy.astype(int)]
        shapes = _arrow_shapes(grid, weights, lift=-0.14, reach=0.68)
        states = [s for s in range(len(grid.cells)) if grid.is_choice(s)]
        inks = [_ink_on(VALUES(norm(float(values[s])))) for s in states for _ in grid.moves]
        axes.add_collection(PolyCollection(shapes, facecolors=inks, zorder=5))
    _draw_kinds(axes, grid, faces)


def draw_q(
    axes: Axes, grid: Grid, action_values: np.ndarray, norm: Normalize
) -> tuple[PolyCollection, PolyCollection]:
    """Draw a Q-table into ``axes``; returns its triangles and its arrows, which can be updated."""
    corners = {(-1, 0): (0, 1), (0, 1): (1, 2), (1, 0): (2, 3), (0, -1): (3, 0)}
    shapes = []
    for row, column in grid.cells:
        square = [
            (column + x, row + y) for x, y in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
        ]
        for move in grid.moves:
            first, second = corners[move]
            shapes.append([(column, row), square[first], square[second]])
    triangles = PolyCollection(
        shapes, array=action_values[: len(grid.cells)].ravel(), cmap=VALUES, norm=norm,
        edgecolors=LINE, linewidths=0.4,
    )  # fmt: skip
    arrows = PolyCollection(
        _arrow_shapes(grid, best_actions(action_values)), facecolors=INK, edgecolors=PAPER,
        linewidths=0.4, zorder=5,
    )  # fmt: skip
    axes.add_collection(triangles)
    axes.add_collection(arrows)
    for state, (row, column) in enumerate(grid.cells):
        if not grid.is_choice(state):
            axes.add_patch(_square(row, column, PAPER if grid.kind(state) == "goal" else HOLE))
    _draw_kinds(axes, grid)
    return triangles, arrows


def _arrow_shapes(
    grid: Grid, weights: np.ndarray, lift: float = 0.0, reach: float = 1.0
) -> list[np.ndarray]:
    """One polygon for every choice and action; an arrow without weight has no size.

    ``reach`` scales arrows that share a cell, ``lift`` moves all of them up.
    """
    shapes = []
    for state, (row, column) in enumerate(grid.cells):
        if not grid.is_choice(state):
            continue
        # A single arrow is centred; several start in the middle, and the likelier are longer.
        alone = weights[state].max() > 0.999
        start, scale = (-0.5, 1.0) if alone else (0.1, reach)
        for (down, right), weight in zip(grid.moves, weights[state], strict=True):
            length = 0.0 if weight < 0.02 else scale * (0.15 + 0.21 * float(weight))
            along, across = (ARROW[:, 0] + start) * length, ARROW[:, 1] * min(length, 0.28)
            x, y = along * right - across * down, along * down + across * right
            shapes.append(np.column_stack([column + x, row + lift + y]))
    return shapes


def _draw_kinds(axes: Axes, grid: Grid, faces: Mapping[tuple[int, int], Any] | None = None) -> None:
    """Walls, holes, the cliff, the start and the goal: by shape and letter, never colour alone.

    ``faces``: the cells' colours, where they have some.
    """
    faces = faces or {}
    size = _text_size(axes, grid)
    for (row, column), kind in grid.kinds.items():
        if kind == "wall":
            axes.add_patch(_square(row, column, WALL))
        elif kind == "goal":
            axes.add_patch(
                Rectangle(
                    (column - 0.44, row - 0.44), 0.88, 0.88, fill=False, edgecolor=GOAL,
                    linewidth=1.8, zorder=6,
                )
            )  # fmt: skip
        elif kind in ("hole", "cliff") and faces.get((row, column), HOLE) == HOLE:
            axes.plot(column, row, "x", color=SOFT, markersize=size * 0.8, zorder=6)
        elif kind == "start":
            axes.text(
                column - 0.45, row - 0.42, "S", ha="left", va="top", fontsize=size * 0.7,
                fontweight="bold", color=_ink_on(faces.get((row, column), PAPER)), zorder=6,
            )  # fmt: skip


def _square(row: int, column: int, face: Any) -> Rectangle:
    return Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=face, edgecolor=LINE, linewidth=0.8)


def _board(grid: Grid, panels: int, title: str, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with one empty board a panel."""
    rows = -(-panels // columns)
    cell = WIDTH / columns / grid.shape[1]
    if panels == 1:  # a small grid needs no full width
        cell = min(cell, 0.85)
    height = rows * (cell * grid.shape[0] + 0.24) + 0.3
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    boards = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in boards:
        axes.set_axis_off()
    for axes in boards[:panels]:
        axes.set_xlim(-0.52, grid.shape[1] - 0.48)
        axes.set_ylim(grid.shape[0] - 0.48, -0.52)
        axes.set_aspect("equal")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold", color=INK)
    return figure, boards[:panels]


def _text_size(axes: Axes, grid: Grid) -> float:
    """Points that fit five characters into a cell."""
    across = axes.get_gridspec().ncols if axes.get_gridspec() else 1  # type: ignore[union-attr]
    cell = 72 * min(WIDTH / across / grid.shape[1], 0.85)
    return min(11.0, cell / 3.6)


def _ink_on(face: Any) -> str:
    """Dark or light, whichever reads on the colour."""
    red, green, blue = to_rgb(face)
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else PAPER
