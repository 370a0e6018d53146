r"""A grid with walls, terminal cells, a reward for each step and slippery ground.

The 3×4 world is Russell & Norvig's (2021, section 16.1); the 4×4 world has its goal at the bottom
right. A move goes where it should with probability ``1 - slip`` and to each side of that with
``slip / 2``; a move into a wall or off the grid stays where it is.

**What pays.** ``R(cell)`` is the terminal's reward in a terminal cell and ``step_reward`` in any
other. The environment, like all of gymnasium, pays it on the transition that enters the cell.
Russell & Norvig pay it for being in the cell instead; `GridWorld.mdp` gives either. With V the
values of the first and U those of the second, :math:`U(s) = R(s) + \gamma V(s)` (V is 0 in a
terminal), so that both have the same optimal policies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from classic_rl.envs import drawing
from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP, Outcome, from_function

# S start, . free, # wall; + and - are terminals that pay what `rewards` says.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "3x4": ("...+", ".#.-", "S..."),
    "4x4": ("S...", "....", "....", "...+"),
}
REWARDS = {"+": 1.0, "-": -1.0}
# (row, column) steps of the actions 0 left, 1 down, 2 right, 3 up, numbered as in FrozenLake.
# Their order is a circle: the sides of action a are a - 1 and a + 1.
MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))

Cell = tuple[int, int]


class GridWorld(drawing.DrawnEnv):
    """A grid world; states are the free cells (no walls), row by row.

    Args:
        layout: ``"3x4"``, ``"4x4"``, or rows of characters from the top: ``S`` start (several:
            each as likely), ``.`` free, ``#`` wall, and the characters of ``rewards``.
        slip: probability to go sideways in total, half to each side.
        step_reward: reward of entering a cell that is not terminal, staying included.
        rewards: the reward of each terminal character.
        render_mode: ``"ansi"`` or ``"rgb_array"``.

    Attributes:
        shape: (rows, columns).
        walls: the (row, column) of each wall.
        terminals: the reward of each terminal state.
        starts: the states an episode may start in, each as likely.
        state: the present state; `cell_of` gives its cell.

    Raises:
        ProblemError: for a layout, slip or reward that cannot be used.
    """

    def __init__(
        self,
        layout: str | Sequence[str] = "3x4",
        *,
        slip: float = 0.0,
        step_reward: float = 0.0,
        rewards: Mapping[str, float] = REWARDS,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode)
        rows = _rows(layout, rewards)
        if not 0 <= slip <= 1:
            raise ProblemError(f"slip: {slip} is not a probability, between 0 and 1")
        for name, reward in (("step_reward", step_reward), *rewards.items()):
            if not math.isfinite(reward):
                raise ProblemError(f"the reward of {name} is {reward}, which is not finite")
        self.slip, self.step_reward = float(slip), float(step_reward)
        self.shape = (len(rows), len(rows[0]))
        marks = {(r, c): mark for r, row in enumerate(rows) for c, mark in enumerate(row)}
        self.walls = frozenset(cell for cell, mark in marks.items() if mark == "#")
        self._cells = [cell for cell in marks if cell not in self.walls]
        self._states = {cell: state for state, cell in enumerate(self._cells)}
        self.terminals = {
            state: float(rewards[marks[cell]])
            for state, cell in enumerate(self._cells)
            if marks[cell] in rewards
        }
        self.starts = [state for state, cell in enumerate(self._cells) if marks[cell] == "S"]
        # Where each action leads from each state, were there no slipping.
        self._next = [[self._neighbour(cell, move) for move in MOVES] for cell in self._cells]
        self._reward = [
            self.terminals.get(state, self.step_reward) for state in range(len(self._cells))
        ]
        self.observation_space = gym.spaces.Discrete(len(self._cells))
        self.action_space = gym.spaces.Discrete(len(MOVES))
        self.state = self.starts[0]
        self._running = False

    def state_of(self, row: int, col: int) -> int:
        """The state of a cell, counted from the top left at 0."""
        if (row, col) not in self._states:
            raise ProblemError(f"row {row}, column {col} is a wall or outside the grid")
        return self._states[row, col]

    def cell_of(self, state: int) -> Cell:
        """The (row, column) of a state."""
        return self._cells[state]

    def _neighbour(self, cell: Cell, move: Cell) -> int:
        beside = (cell[0] + move[0], cell[1] + move[1])
        return self._states.get(beside, self._states[cell])  # Bumping stays.

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.starts[int(self.np_random.integers(len(self.starts)))]
        self._running = True
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if not self._running:
            raise gym.error.ResetNeeded("no episode is under way: call reset() first")
        drawing.check_action(action, len(MOVES))
        chance = self.np_random.random()
        turn = -1 if chance < self.slip / 2 else 1 if chance < self.slip else 0
        self.state = self._next[self.state][(action + turn) % 4]
        terminated = self.state in self.terminals
        self._running = not terminated
        return self.state, self._reward[self.state], terminated, False, {}

    def mdp(self, gamma: float, convention: Literal["transition", "state"] = "transition") -> MDP:
        """The exact process.

        Args:
            gamma: discount in (0, 1].
            convention: ``"transition"`` pays R on entering a cell, as the environment does;
                ``"state"`` pays R for being in it (Russell & Norvig), terminals included.
        """
        if convention not in ("transition", "state"):
            raise ProblemError(f"convention: {convention!r} is unknown: use transition or state")
        of_state = convention == "state"

        def outcomes(state: int, action: int) -> list[Outcome]:
            odds = ((0, 1 - self.slip), (-1, self.slip / 2), (1, self.slip / 2))
            following = [(p, self._next[state][(action + turn) % 4]) for turn, p in odds]
            return [(p, s, self._reward[state if of_state else s]) for p, s in following]

        n_states = len(self._cells)
        start = np.zeros(n_states)
        start[self.starts] = 1 / len(self.starts)
        process = from_function(
            outcomes, n_states, len(MOVES), gamma, start=start, terminal=self.terminals
        )
        if of_state:
            for state, reward in self.terminals.items():
                process.rewards[state] = reward
        return process

    def text(self) -> str:
        marks = [["."] * self.shape[1] for _ in range(self.shape[0])]
        for row, col in self.walls:
            marks[row][col] = "#"
        for state, reward in self.terminals.items():
            row, col = self.cell_of(state)
            marks[row][col] = "+" if reward > 0 else "-"
        row, col = self.cell_of(self.state)
        marks[row][col] = "@"
        return "\n".join(" ".join(line) for line in marks) + "\n"

    def picture(self) -> np.ndarray:
        axes = drawing.canvas(self.shape[1], self.shape[0], pixels=64)
        for row, col in self.walls:
            drawing.rectangle(axes, col, row, 1, 1, color=drawing.INK)
        for state, cell in enumerate(self._cells):
            row, col = cell
            reward = self.terminals.get(state)
            colour = drawing.PAPER
            if reward is not None:
                colour = drawing.GREEN if reward > 0 else drawing.RED
            drawing.rectangle(axes, col, row, 1, 1, facecolor=colour, edgecolor=drawing.GREY)
            if reward is not None:
                drawing.label(axes, col + 0.5, row + 0.5, f"{reward:+g}", color=drawing.PAPER)
            elif state in self.starts:
                drawing.label(axes, col + 0.5, row + 0.5, "S", color="#8b969f")
        row, col = self.cell_of(self.state)
        drawing.disc(axes, col + 0.5, row + 0.5, 0.28, color=drawing.BLUE)
        return drawing.to_array(axes)


def _rows(layout: str | Sequence[str], rewards: Mapping[str, float]) -> Sequence[str]:
    """The rows of a layout, checked."""
    if isinstance(layout, str):
        if layout not in LAYOUTS:
            ready = ", ".join(LAYOUTS)
            raise ProblemError(f"layout: {layout!r} is unknown: use {ready} or a list of rows")
        layout = LAYOUTS[layout]
    if not layout or not layout[0]:
        raise ProblemError("layout: it has no cells: give rows of characters such as 'S.+'")
    for number, row in enumerate(layout):
        if len(row) != len(layout[0]):
            raise ProblemError(
                f"layout: row {number} has {len(row)} cells, row 0 has {len(layout[0])}: "
                "all rows must be as long"
            )
        for mark in row:
            if mark not in "S.#" and mark not in rewards:
                known = " ".join(["S . #", *rewards])
                raise ProblemError(f"layout: row {number} has {mark!r}, which is none of {known}")
    for mark in rewards:
        if len(mark) != 1 or mark in "S.#":
            raise ProblemError(f"rewards: {mark!r} must be one character other than S . #")
    if not any("S" in row for row in layout):
        raise ProblemError("layout: no cell to start in: mark at least one with S")
    return layout
