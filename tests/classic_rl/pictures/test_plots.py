"""Pictures: arrows point where the environment goes, bands span the seeds, frames are all there."""

from __future__ import annotations

import io
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from classic_rl.envs import GridWorld, TokenMDP
from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP, from_gymnasium
from classic_rl.pictures.grid_plots import (
    best_actions,
    path_of,
    policy_paths,
    q_animation,
    q_strip,
    value_grid,
    value_strip,
)
from classic_rl.pictures.grids import Grid, grid_of, grid_table
from classic_rl.pictures.plots import VALUES, bars, curves, heat_map, short, value_norm
from classic_rl.tabular.planning import value_iteration

# Without slipping, so that a move goes where it points.
WORLDS = {
    "FrozenLake-v1": {"is_slippery": False},
    "CliffWalking-v1": {},
    "classic_rl/GridWorld3x4-v0": {"slip": 0.0},
    "classic_rl/GridWorld4x4-v0": {},
}


def world(name: str) -> tuple[Grid, MDP]:
    env = gym.make(name, **WORLDS[name])
    grid = grid_of(env)
    assert grid is not None
    return grid, from_gymnasium(env, 0.9)


def drawn(figure: Figure) -> Image.Image:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=100)
    return Image.open(out)


def arrows_of(figure: Figure) -> list[np.ndarray]:
    """The arrows' polygons, each without its closing point; the tip is number 3."""
    [collection] = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    return [np.asarray(path.vertices)[:-1] for path in collection.get_paths()]


def length(polygon: np.ndarray) -> float:
    return float(np.ptp(polygon, axis=0).max())


def direction(polygon: np.ndarray) -> tuple[int, int]:
    """(rows down, columns right) of an arrow: from the middle of its tail to its tip."""
    right, down = polygon[3] - (polygon[0] + polygon[6]) / 2
    return int(np.sign(round(down, 9))), int(np.sign(round(right, 9)))


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("action", range(4))
def test_an_arrow_points_where_its_action_leads(name: str, action: int) -> None:
    grid, mdp = world(name)
    policy = np.full(mdp.n_states, action)
    figure = value_grid(grid, np.zeros(mdp.n_states), policy)
    shapes = [shape for shape in arrows_of(figure) if length(shape) > 0]
    choices = [s for s in range(len(grid.cells)) if grid.is_choice(s)]
    assert len(shapes) == len(choices)
    moved = 0
    for state, polygon in zip(choices, shapes, strict=True):
        [(_, following, _)] = mdp.outcomes(state, action)
        row, column = grid.cells[state]
        assert np.abs(polygon - (column, row)).max() < 0.5  # inside its own cell
        step = grid.cells[following] - grid.cells[state]
        if np.abs(step).sum() == 1:  # not into a wall, and no fall back to the start
            assert direction(polygon) == tuple(step)
            moved += 1
    assert moved >= len(choices) / 3


def test_every_state_lies_in_its_cell() -> None:
    env = GridWorld("3x4")
    grid = grid_of(env)
    assert grid is not None
    assert grid.shape == (3, 4)
    assert [tuple(cell) for cell in grid.cells] == [env.cell_of(state) for state in range(11)]
    assert grid.kinds == {(1, 1): "wall", (2, 0): "start", (0, 3): "goal", (1, 3): "hole"}
    assert grid_of(TokenMDP(2, 2, lambda y: 0.0)) is None
    assert grid_of(gym.make("CartPole-v1")) is None


def test_a_likelier_action_has_a_longer_arrow_and_an_impossible_one_none() -> None:
    grid, mdp = world("FrozenLake-v1")
    policy = np.tile([0.6, 0.3, 0.1, 0.0], (mdp.n_states, 1))
    shapes = arrows_of(value_grid(grid, np.zeros(mdp.n_states), policy))[:4]
    lengths = [length(shape) for shape in shapes]
    assert lengths[0] > lengths[1] > lengths[2] > lengths[3] == 0


@pytest.mark.parametrize("name", WORLDS)
def test_every_grid_can_be_drawn(name: str) -> None:
    grid, mdp = world(name)
    best = value_iteration(mdp)
    figures = [
        value_grid(grid, best.values, best.policy, title="Values"),
        value_strip(grid, [("one", best.values, None), ("two", best.values, best.policy)]),
        q_strip(grid, [(0, np.zeros_like(best.action_values)), (10, best.action_values)]),
        policy_paths(grid, [("best", best.policy)], int(mdp.start.argmax()), title="Path"),
    ]
    for figure in figures:
        picture = drawn(figure)
        assert picture.width == 430 and picture.height > 100
        # Nothing sticks out to the left or right.
        boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_visible()]
        assert all(box.x0 >= 0 and box.x1 <= picture.width for box in boxes)


def test_triangles_of_a_q_table_face_their_action() -> None:
    grid, mdp = world("classic_rl/GridWorld3x4-v0")
    q = np.arange(44.0).reshape(11, 4)
    figure = q_strip(grid, [(5, q)])
    triangles = figure.axes[0].collections[0]
    np.testing.assert_array_equal(triangles.get_array(), q.ravel())
    for k, path in enumerate(triangles.get_paths()):
        state, action = divmod(k, 4)
        row, column = grid.cells[state]
        outer = np.asarray(path.vertices)[1:3].mean(axis=0) - (column, row)
        assert tuple(outer[::-1] * 2) == grid.moves[action]


def test_ties_share_the_arrow_and_noise_does_not_break_them() -> None:
    q = np.array([[1.0, 1.0 - 1e-9, 0.0], [0.0, 2.0, 1.9]])
    np.testing.assert_allclose(best_actions(q), [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])


def test_the_path_along_the_cliff() -> None:
    grid, mdp = world("CliffWalking-v1")
    path = path_of(grid, value_iteration(mdp).policy, 36)
    assert path == [(3, 0), *[(2, column) for column in range(12)], (3, 11)]
    assert path_of(grid, np.zeros(48, dtype=int), 36) == [(3, 0), (2, 0), (1, 0), (0, 0)]


def test_the_animation_has_a_frame_a_snapshot(tmp_path: Path) -> None:
    grid, mdp = world("FrozenLake-v1")
    best = value_iteration(mdp).action_values
    snapshots = [(step, best * step / 40) for step in (0, 10, 20, 40)]
    q_animation(grid, snapshots, tmp_path / "q.gif", fps=5)
    with Image.open(tmp_path / "q.gif") as animation:
        assert animation.n_frames == 4  # type: ignore[attr-defined]
        assert animation.info["loop"] == 0
        pauses, pictures = [], []
        for frame in range(4):
            animation.seek(frame)
            pauses.append(animation.info["duration"])
            pictures.append(np.asarray(animation.convert("L"), dtype=float).mean())
    assert pauses == [200, 200, 200, 2000]
    assert pictures[1] > pictures[2] > pictures[3]  # the values become darker
    with pytest.raises(ProblemError, match="cannot be written"):
        q_animation(grid, snapshots, tmp_path / "q.gif" / "no-folder.gif")


def test_the_table_as_text() -> None:
    grid, mdp = world("classic_rl/GridWorld3x4-v0")
    best = value_iteration(mdp)
    lines = grid_table(grid, best.values, best.policy)
    # Deterministic: each cell is 0.9 of the next on the way to the goal, which pays 1.
    assert lines[0].split() == ["0.81→", "0.90→", "1.00→", "0.00"]
    assert lines[1].split() == ["0.73↑", "#", "0.90↑", "0.00"]
    plain = grid_table(grid, best.values, best.policy, plain=True)
    assert plain[0].split() == ["0.81>", "0.90>", "1.00>", "0.00"]
    assert all(line.isascii() for line in plain)
    assert len({len(line) for line in lines}) == 1


# --- curves, sweeps, colours ---


def test_the_band_runs_from_the_lowest_to_the_highest_seed() -> None:
    x, y = np.arange(3), np.array([[0.0, 1.0, 2.0], [4.0, 0.0, 2.0], [2.0, 5.0, 5.0]])
    figure = curves({"a": (x, y), "b": (x, y[0])}, title="T", xlabel="x", ylabel="y")
    [axes] = figure.axes
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata()), y.mean(axis=0))
    [band] = axes.collections  # a single run has none
    vertices = np.asarray(band.get_paths()[0].vertices)
    for column in range(3):
        heights = vertices[vertices[:, 0] == column, 1]
        assert (heights.min(), heights.max()) == (y[:, column].min(), y[:, column].max())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    drawn(figure)


def test_curves_with_dots_a_level_and_logarithms() -> None:
    x = np.array([1.0, 10.0, 100.0])
    figure = curves(
        {"line": (x, x), "dots": (x, x)}, title="T", xlabel="x", ylabel="y", dots=["dots"],
        level=(50.0, "best"), log_x=True, log_y=True,
    )  # fmt: skip
    [axes] = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [line.get_marker() for line in axes.lines] == ["None", "o", "None"]
    drawn(figure)


def test_the_best_of_a_sweep_is_bold_and_a_missing_one_a_dash() -> None:
    table = np.array([[0.1, np.nan], [0.73, 0.5]])
    figure = heat_map(table, ("α", ["1", "2"]), ("γ", ["3", "4"]), title="T")
    texts = {text.get_text(): text.get_fontweight() for text in figure.axes[0].texts}
    assert texts == {"0.10": "normal", "–": "normal", "0.73": "bold", "0.50": "normal"}


def test_settings_that_are_equal_up_to_rounding_are_all_bold() -> None:
    table = np.array([[0.7, 0.7 + 1e-14], [0.69, 0.1]])
    figure = heat_map(table, ("α", ["1", "2"]), ("γ", ["3", "4"]), title="T")
    weights = [text.get_fontweight() for text in figure.axes[0].texts]
    assert weights == ["bold", "bold", "normal", "normal"]
    drawn(figure)


def test_bars_stand_over_their_names() -> None:
    figure = bars({"a": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])}, title="T", ylabel="y",
                  names=["left", "right"])  # fmt: skip
    [axes] = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [1.0, 2.0, 3.0, 4.0]  # type: ignore[attr-defined]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["left", "right"]
    drawn(figure)


def test_zero_is_white_negative_orange_positive_blue() -> None:
    norm = value_norm(np.array([-3.0, 1.0]))
    assert to_rgb(VALUES(norm(0.0))) == pytest.approx((1, 1, 1), abs=0.02)
    red, _, blue = to_rgb(VALUES(norm(-3.0)))
    assert red > 2 * blue
    red, _, blue = to_rgb(VALUES(norm(1.0)))
    assert blue > 2 * red
    value_norm(np.zeros(3))(0.0)  # nothing to scale is no error


def test_short_numbers() -> None:
    numbers = (0.0, 0.723, -1.5, 24.42, -134.2, np.nan)
    assert [short(x) for x in numbers] == ["0", "0.72", "−1.50", "24.4", "−134", "–"]


def test_the_style_stays_inside() -> None:
    before = dict(matplotlib.rcParams)
    curves({"a": (np.arange(2), np.arange(2))}, title="T", xlabel="x", ylabel="y")
    assert dict(matplotlib.rcParams) == before
