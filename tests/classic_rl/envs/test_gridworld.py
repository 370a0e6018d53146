"""GridWorld against Russell & Norvig's 3×4 world: tables, policies, where they change."""

from __future__ import annotations

import re

import numpy as np
import pytest

from classic_rl.envs import GridWorld
from classic_rl.errors import ProblemError
from classic_rl.tabular.planning import value_iteration

ARROWS = "←↓→↑"


def arrows(env: GridWorld, policy: np.ndarray) -> list[str]:
    """The policy as rows of arrows, as the book draws it."""
    rows = [["#"] * env.shape[1] for _ in range(env.shape[0])]
    for state, action in enumerate(policy):
        row, col = env.cell_of(state)
        reward = env.terminals.get(state)
        rows[row][col] = ARROWS[action] if reward is None else "+" if reward > 0 else "-"
    return ["".join(row) for row in rows]


def best_policy(step_reward: float) -> list[str]:
    env = GridWorld("3x4", slip=0.2, step_reward=step_reward)
    return arrows(env, value_iteration(env.mdp(1.0, "state")).policy)


# Value iteration on the 3×4 world with γ = 0.9, slip 0.2 and no step reward, after sweeps 1 to 5
# (Berkeley CS188, "Value iteration: gridworld"); the wall is None.
SWEEPS = [
    [[0, 0, 0, 1], [0, None, 0, -1], [0, 0, 0, 0]],
    [[0, 0, 0.72, 1], [0, None, 0, -1], [0, 0, 0, 0]],
    [[0, 0.52, 0.78, 1], [0, None, 0.43, -1], [0, 0, 0, 0]],
    [[0.37, 0.66, 0.83, 1], [0, None, 0.51, -1], [0, 0, 0.31, 0]],
    [[0.51, 0.72, 0.84, 1], [0.27, None, 0.55, -1], [0, 0.22, 0.37, 0.13]],
]


def test_value_iteration_gives_the_textbook_tables() -> None:
    env = GridWorld("3x4", slip=0.2)
    tables: list[np.ndarray] = []
    value_iteration(env.mdp(0.9, "state"), on_sweep=lambda k, values: tables.append(values.copy()))
    for expected, values in zip(SWEEPS, tables[:5], strict=True):
        for row, line in enumerate(expected):
            for col, value in enumerate(line):
                if value is not None:
                    assert round(float(values[env.state_of(row, col)]), 2) == value


# Berkeley CS188, "Optimal policies" of the 3×4 world, γ = 1.
@pytest.mark.parametrize(
    ("step_reward", "policy"),
    [
        (-0.01, ["→→→+", "↑#←-", "↑←←↓"]),
        (-0.03, ["→→→+", "↑#↑-", "↑←←←"]),
        (-0.4, ["→→→+", "↑#↑-", "↑→↑←"]),
        (-2.0, ["→→→+", "↑#→-", "→→→↑"]),
    ],
)
def test_the_best_policy_for_each_step_reward(step_reward: float, policy: list[str]) -> None:
    assert best_policy(step_reward) == policy


@pytest.mark.parametrize("boundary", [-1.6497, -0.7311, -0.4526, -0.0274])
def test_the_policy_changes_at_the_published_step_rewards(boundary: float) -> None:
    """The ends of the ranges in Russell & Norvig (2021), figure 16.2 (b), to four decimals."""
    assert best_policy(boundary - 1e-4) != best_policy(boundary + 1e-4)


def test_the_values_of_russell_and_norvig() -> None:
    """Step reward -0.04, γ = 1: paid in the state (2010, figure 17.3), on the way (2021, 16.3)."""
    env = GridWorld("3x4", slip=0.2, step_reward=-0.04)
    values = value_iteration(env.mdp(1.0, "state")).values
    expected = [0.812, 0.868, 0.918, 1, 0.762, 0.660, -1, 0.705, 0.655, 0.611, 0.388]
    np.testing.assert_allclose(values, expected, atol=5e-4)
    values = value_iteration(env.mdp(1.0)).values
    expected = [0.8516, 0.9078, 0.9578, 0, 0.8016, 0.7003, 0, 0.7453, 0.6953, 0.6514, 0.4279]
    np.testing.assert_allclose(values, expected, atol=5.1e-5)


@pytest.mark.parametrize("step_reward", [-0.4, -0.04, 0.0])
def test_both_conventions_have_one_optimal_policy(step_reward: float) -> None:
    """U(s) = R(s) + γ V(s), so the policies agree and the values differ as documented."""
    env, gamma = GridWorld("3x4", slip=0.2, step_reward=step_reward), 0.9
    entered = value_iteration(env.mdp(gamma, "transition"), tolerance=1e-12)
    inside = value_iteration(env.mdp(gamma, "state"), tolerance=1e-12)
    reward = [env.terminals.get(s, step_reward) for s in range(11)]
    np.testing.assert_allclose(inside.values, reward + gamma * entered.values, atol=1e-10)
    np.testing.assert_array_equal(entered.policy, inside.policy)
    assert all(entered.values[s] == 0 for s in env.terminals)


def test_the_four_by_four_world_takes_the_shortest_way() -> None:
    env = GridWorld("4x4", step_reward=-0.01)
    solution = value_iteration(env.mdp(1.0))
    # Six moves: five that cost 0.01 and one into the goal, which pays 1.
    assert solution.values[0] == pytest.approx(1 - 5 * 0.01)
    state, _ = env.reset(seed=0)
    total, steps, terminated = 0.0, 0, False
    while not terminated:
        state, reward, terminated, *_ = env.step(int(solution.policy[state]))
        total, steps = total + reward, steps + 1
    assert (steps, total) == (6, pytest.approx(0.95))


def test_cells_states_and_text() -> None:
    env = GridWorld("3x4", render_mode="ansi")
    assert env.shape == (3, 4)
    assert env.walls == {(1, 1)}
    assert env.terminals == {env.state_of(0, 3): 1.0, env.state_of(1, 3): -1.0}
    assert [env.state_of(*env.cell_of(s)) for s in range(11)] == list(range(11))
    assert env.reset(seed=0)[0] == env.state_of(2, 0)
    assert env.render() == ". . . +\n. # . -\n@ . . .\n"
    env.step(3)
    assert env.render() == ". . . +\n@ # . -\n. . . .\n"
    env.step(2)
    assert env.state == env.state_of(1, 0)  # the wall


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "5x5"}, "'5x5' is unknown: use 3x4, 4x4 or a list of rows"),
        ({"layout": []}, "no cells"),
        ({"layout": ["S.+", "."]}, "row 1 has 1 cells, row 0 has 3"),
        ({"layout": ["S?+"]}, "row 0 has '?'"),
        ({"layout": ["..+"]}, "no cell to start in"),
        ({"slip": 1.1}, "slip: 1.1 is not a probability"),
        ({"slip": float("nan")}, "slip: nan is not a probability"),
        ({"step_reward": float("inf")}, "step_reward is inf"),
        ({"rewards": {"+": 1.0, "-": float("nan")}}, "- is nan"),
        ({"layout": ["SG"], "rewards": {"G": 1.0, "##": 1.0}}, "'##' must be one character"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ProblemError, match=re.escape(message)) as error:
        GridWorld(**arguments)
    assert "\n" not in str(error.value)


def test_bad_questions() -> None:
    env = GridWorld("3x4")
    with pytest.raises(ProblemError, match="row 1, column 1 is a wall"):
        env.state_of(1, 1)
    with pytest.raises(ProblemError, match="convention: 'cell' is unknown"):
        env.mdp(0.9, "cell")  # pyright: ignore[reportArgumentType]
