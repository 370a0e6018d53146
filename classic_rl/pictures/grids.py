"""Environments whose states are cells: where each state lies, and a table of it as text."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from classic_rl.envs.gridworld import MOVES, GridWorld

ARROWS = {(0, -1): "←", (1, 0): "↓", (0, 1): "→", (-1, 0): "↑"}
PLAIN_ARROWS = {(0, -1): "<", (1, 0): "v", (0, 1): ">", (-1, 0): "^"}


@dataclass(frozen=True)
class Grid:
    """Where states lie on a grid.

    Attributes:
        shape: rows and columns.
        cells: int ``(S, 2)``, the row and column of every state.
        moves: what each action is meant to do, as (rows down, columns right).
        kinds: what is special about a cell: "start", "goal", "hole", "cliff" or "wall".
    """

    shape: tuple[int, int]
    cells: np.ndarray
    moves: tuple[tuple[int, int], ...]
    kinds: dict[tuple[int, int], str] = field(default_factory=dict)

    def kind(self, state: int) -> str | None:
        """What is special about a state's cell."""
        row, column = self.cells[state]
        return self.kinds.get((int(row), int(column)))

    def is_choice(self, state: int) -> bool:
        """Whether an action is ever chosen in this state."""
        return self.kind(state) not in ("goal", "hole", "cliff", "wall")


def grid_table(
    grid: Grid, values: np.ndarray, policy: np.ndarray | None = None, *, plain: bool = False
) -> list[str]:
    """Values ``(S,)`` and a policy int ``(S,)`` as lines of text, one line a row of cells.

    Args:
        plain: only ASCII, for terminals that have no arrows.
    """
    arrows = PLAIN_ARROWS if plain else ARROWS
    texts = [
        [
            " " * 6 + ("#" if grid.kinds.get((row, column)) == "wall" else " ")
            for column in range(grid.shape[1])
        ]
        for row in range(grid.shape[0])
    ]
    for state, (row, column) in enumerate(grid.cells):
        arrow = " "
        if policy is not None and grid.is_choice(state):
            arrow = arrows[grid.moves[int(policy[state])]]
        texts[row][column] = f"{values[state]:6.2f}{arrow}"
    return [" ".join(row) for row in texts]


def grid_of(env: gym.Env) -> Grid | None:
    """The grid of FrozenLake, CliffWalking or GridWorld; None for anything else."""
    inner: Any = env.unwrapped
    name = type(inner).__name__
    if name == "FrozenLakeEnv":
        words = {b"S": "start", b"G": "goal", b"H": "hole"}
        kinds = {
            (int(r), int(c)): words[x] for (r, c), x in np.ndenumerate(inner.desc) if x != b"F"
        }
        return Grid(inner.desc.shape, _row_major(inner.desc.shape), tuple(ARROWS), kinds)
    if name == "CliffWalkingEnv":
        rows, columns = inner.shape
        kinds = {(rows - 1, column): "cliff" for column in range(1, columns - 1)}
        kinds |= {(rows - 1, 0): "start", (rows - 1, columns - 1): "goal"}
        moves = ((-1, 0), (0, 1), (1, 0), (0, -1))
        return Grid((rows, columns), _row_major((rows, columns)), moves, kinds)
    if isinstance(inner, GridWorld):
        return _grid_world(inner)
    return None


def _grid_world(world: GridWorld) -> Grid:
    kinds = dict.fromkeys(world.walls, "wall")
    kinds |= {world.cell_of(state): "start" for state in world.starts}
    for state, reward in world.terminals.items():
        kinds[world.cell_of(state)] = "goal" if reward > 0 else "hole"
    states = math.prod(world.shape) - len(world.walls)
    cells = np.array([world.cell_of(state) for state in range(states)])
    return Grid(world.shape, cells, MOVES, kinds)


def _row_major(shape: tuple[int, int]) -> np.ndarray:
    return np.array([(row, column) for row in range(shape[0]) for column in range(shape[1])])
