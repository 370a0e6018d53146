"""Planning: golden values from the literature, and what must hold on every random MDP."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from classic_rl.envs import GridWorld
from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP, from_arrays, from_function, from_gymnasium
from classic_rl.tabular.evaluation import proper_policy
from classic_rl.tabular.planning import (
    action_values,
    finite_horizon_values,
    greedy,
    modified_policy_iteration,
    policy_evaluation,
    policy_iteration,
    value_iteration,
)
from classic_rl.tabular.textbook import example_3_5

MOVES = [(-1, 0), (0, -1), (1, 0), (0, 1)]


def uniform(mdp: MDP) -> np.ndarray:
    return np.full(mdp.rewards.shape, 1 / mdp.n_actions)


# --- golden values ---------------------------------------------------------------------------


def test_values_of_the_random_policy_on_the_gridworld_of_figure_3_2():
    figure = [
        [3.3, 8.8, 4.4, 5.3, 1.5],
        [1.5, 3.0, 2.3, 1.9, 0.5],
        [0.1, 0.7, 0.7, 0.4, -0.4],
        [-1.0, -0.4, -0.4, -0.6, -1.2],
        [-1.9, -1.3, -1.2, -1.4, -2.0],
    ]
    mdp = example_3_5()[1]
    for method in ("direct", "iterative"):
        values = policy_evaluation(mdp, uniform(mdp), method=method)
        assert np.abs(values.reshape(5, 5) - figure).max() <= 0.05 + 1e-6


def test_optimal_values_of_the_gridworld_of_figure_3_5():
    figure = [
        [22.0, 24.4, 22.0, 19.4, 17.5],
        [19.8, 22.0, 19.8, 17.8, 16.0],
        [17.8, 19.8, 17.8, 16.0, 14.4],
        [16.0, 17.8, 16.0, 14.4, 13.0],
        [14.4, 16.0, 14.4, 13.0, 11.7],
    ]
    values = value_iteration(example_3_5()[1]).values
    assert np.abs(values.reshape(5, 5) - figure).max() <= 0.05 + 1e-6


def corner_grid() -> MDP:
    """Sutton & Barto 2018, example 4.1: 4 × 4 cells, two end corners, −1 a step, γ = 1."""

    def outcomes(state: int, action: int):
        row, column = divmod(state, 4)
        row = min(max(row + MOVES[action][0], 0), 3)
        column = min(max(column + MOVES[action][1], 0), 3)
        return [(1.0, row * 4 + column, -1.0)]

    return from_function(outcomes, 16, 4, 1.0, start=5, terminal=[0, 15])


@pytest.mark.parametrize(
    ("steps", "row_0", "row_1"),
    [
        (1, [0.0, -1.0, -1.0, -1.0], [-1.0, -1.0, -1.0, -1.0]),
        (2, [0.0, -1.7, -2.0, -2.0], [-1.7, -2.0, -2.0, -2.0]),
        (3, [0.0, -2.4, -2.9, -3.0], [-2.4, -2.9, -3.0, -2.9]),
        (10, [0.0, -6.1, -8.4, -9.0], [-6.1, -7.7, -8.4, -8.4]),
    ],
)
def test_sweeps_of_policy_evaluation_in_figure_4_1(steps, row_0, row_1):
    mdp = corner_grid()
    values = finite_horizon_values(mdp, uniform(mdp), steps).reshape(4, 4)
    # The figure cuts 1.75 and 2.4375 down to one decimal in some cells and rounds others.
    assert np.abs(values[0] - row_0).max() < 0.1 and np.abs(values[1] - row_1).max() < 0.1


def test_policy_evaluation_to_the_end_in_figure_4_1():
    mdp = corner_grid()
    figure = [0, -14, -20, -22, -14, -18, -20, -20, -20, -20, -18, -14, -22, -20, -14, 0]
    for method in ("direct", "iterative"):
        assert policy_evaluation(mdp, uniform(mdp), method=method) == pytest.approx(figure)


def gamblers_problem(p_heads: float) -> MDP:
    """Sutton & Barto 2018, example 4.3: stakes up to the capital, the goal of 100 pays 1."""

    def outcomes(capital: int, action: int):
        stake = min(action + 1, capital, 100 - capital)
        won = capital + stake
        return [(p_heads, won, float(won == 100)), (1 - p_heads, capital - stake, 0.0)]

    return from_function(outcomes, 101, 50, 1.0, start=50, terminal=[0, 100])


@pytest.mark.parametrize(
    "solve",
    [value_iteration, policy_iteration, modified_policy_iteration],
    ids=lambda f: f.__name__,
)
def test_gamblers_problem_is_solved_by_bold_play(solve):
    """Betting all that helps is optimal in a subfair game (Dubins & Savage 1965), so V(k) is
    p V(2k) up to 50 and p + (1 − p) V(2k − 100) from there."""
    p = 0.4
    solution = solve(gamblers_problem(p), tolerance=1e-12)
    values = solution.values.copy()
    assert values[[25, 50, 75]] == pytest.approx([0.16, 0.4, 0.64], abs=1e-9)
    values[100] = 1.0  # from here on the chance of winning, the won game included
    low, high = np.arange(1, 51), np.arange(50, 100)
    assert values[low] == pytest.approx(p * values[2 * low], abs=1e-9)
    assert values[high] == pytest.approx(p + (1 - p) * values[2 * high - 100], abs=1e-9)
    assert solution.policy[50] == 49  # only the whole stake of 50 is optimal here


def test_best_policies_on_frozen_lake_with_a_time_limit():
    """The exact chance of reaching the goal within FrozenLake's 100 steps."""
    lake = from_gymnasium("FrozenLake-v1", 1.0)
    policy = policy_iteration(lake).policy
    assert lake.start @ finite_horizon_values(lake, policy, 100) == pytest.approx(0.7402, abs=5e-5)
    assert lake.start @ finite_horizon_values(lake, None, 100) == pytest.approx(0.7442, abs=5e-5)
    # Without a limit it is 14/17, by solving the linear system in fractions.
    assert lake.start @ policy_iteration(lake).values == pytest.approx(14 / 17)


def test_rounding_does_not_choose_between_equal_actions():
    q = np.array([[1.0, 1.0 + 1e-13], [1.0 + 1e-13, 1.0], [1.0, 1.0 + 1e-6]])
    assert greedy(q).tolist() == [0, 0, 1]


def test_policy_iteration_shows_its_policies_and_keeps_equal_actions():
    mdp = GridWorld("3x4", slip=0.2, step_reward=-0.04).mdp(0.9, "state")
    policies: list[np.ndarray] = []
    values: list[np.ndarray] = []

    def keep(k: int, policy: np.ndarray, worth: np.ndarray) -> None:
        assert k == len(policies) + 1
        policies.append(policy)
        values.append(worth)

    best = policy_iteration(mdp, on_policy=keep)
    assert len(policies) == best.sweeps == 6
    assert policies[-1].tolist() == best.policy.tolist()
    for policy, worth, better in zip(policies, values, policies[1:], strict=False):
        q = action_values(mdp, worth)
        changed = np.flatnonzero(policy != better)
        assert (q[changed, better[changed]] > q[changed, policy[changed]] + 1e-3).all()


def test_a_terminal_is_worth_its_own_reward():
    """Russell & Norvig's convention: R(s) in every state. 0 → 1 → 2, and 2 is worth 5."""
    transitions = np.zeros((3, 1, 3))
    transitions[[0, 1, 2], 0, [1, 2, 2]] = 1.0
    mdp = from_arrays(transitions, np.array([[-1.0], [-1.0], [5.0]]), 0.5, terminal=[2])
    expected = [-1 + 0.5 * 1.5, -1 + 0.5 * 5, 5.0]
    tables = []
    solution = value_iteration(mdp, on_sweep=lambda k, values: tables.append((k, values)))
    assert solution.values == pytest.approx(expected)
    assert policy_evaluation(mdp, np.zeros(3, int)) == pytest.approx(expected)
    assert modified_policy_iteration(mdp).values == pytest.approx(expected)
    assert [k for k, _ in tables] == list(range(1, solution.sweeps + 1))
    assert [values.tolist() for _, values in tables[:3]] == [
        [-1.0, -1.0, 5.0],
        [-1.5, 1.5, 5.0],
        [-0.25, 1.5, 5.0],
    ]


# --- on random MDPs --------------------------------------------------------------------------


@st.composite
def random_mdps(draw, gammas=(0.3, 0.9, 0.99, 1.0)) -> MDP:
    """Up to 12 states, sparse rows; with γ = 1 every action may end, so every policy does."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_states, n_actions = draw(st.integers(2, 12)), draw(st.integers(1, 4))
    gamma = draw(st.sampled_from(gammas))
    ends = draw(st.booleans()) or gamma == 1
    transitions = rng.dirichlet(np.full(n_states, 0.3), size=(n_states, n_actions))
    rewards = rng.normal(size=(n_states, n_actions)) * draw(st.sampled_from([0.0, 1.0, 100.0]))
    if ends:
        transitions *= 0.8
        transitions[..., -1] += 0.2
        rewards[-1] = rewards[-1, 0]  # a terminal's own reward, not always 0
    return from_arrays(transitions, rewards, gamma, terminal=[n_states - 1] if ends else [])


def by_definition(mdp: MDP, values: np.ndarray) -> np.ndarray:
    """Q from the list of outcomes, term by term."""
    following = [
        [
            sum(p * values[next_state] for p, next_state, _ in mdp.outcomes(state, action))
            for action in range(mdp.n_actions)
        ]
        for state in range(mdp.n_states)
    ]
    return mdp.rewards + mdp.gamma * np.array(following)


def optimum_by_linear_program(mdp: MDP) -> np.ndarray:
    """min Σ V subject to V ≥ r + γPV for each action (Puterman 1994, section 6.9)."""
    chain = mdp.transitions.toarray().reshape(mdp.n_states, mdp.n_actions, mdp.n_states).copy()
    chain[mdp.terminal] = 0.0
    owner = np.repeat(np.eye(mdp.n_states), mdp.n_actions, axis=0)
    rows = mdp.gamma * chain.reshape(-1, mdp.n_states) - owner
    exact = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    solved = linprog(
        np.ones(mdp.n_states),
        A_ub=rows,
        b_ub=-mdp.rewards.ravel(),
        bounds=(None, None),
        method="highs-ds",
        options=exact,
    )
    assert solved.success, solved.message
    return solved.x


@settings(max_examples=60, deadline=None, derandomize=True)
@given(random_mdps())
def test_all_algorithms_find_the_one_optimum(mdp):
    tolerance = 1e-11
    optimum = optimum_by_linear_program(mdp)
    close = 1e-8 * max(1.0, float(np.abs(optimum).max()))
    solutions = {
        "synchronous": value_iteration(mdp, tolerance=tolerance),
        "gauss-seidel": value_iteration(mdp, tolerance=tolerance, sweep="gauss-seidel"),
        "policy iteration": policy_iteration(mdp),
        "evaluated by sweeps": policy_iteration(mdp, method="iterative", tolerance=tolerance),
        "modified": modified_policy_iteration(mdp, tolerance=tolerance),
        "modified, 3": modified_policy_iteration(mdp, tolerance=tolerance, evaluations=3),
    }
    for name, solution in solutions.items():
        assert np.abs(solution.values - optimum).max() < close, name
        q = by_definition(mdp, solution.values)
        assert np.abs(solution.action_values - q).max() < close, name
        residual = np.abs(q.max(axis=1) - solution.values).max()
        assert solution.residual == pytest.approx(residual, abs=close / 1e4), name
        reached = policy_evaluation(mdp, solution.policy, method="direct")
        assert np.abs(reached - optimum).max() < close, name


@settings(max_examples=60, deadline=None, derandomize=True)
@given(random_mdps(gammas=(0.3, 0.9, 0.99)), st.sampled_from([1e-3, 1e-6, 1e-9]))
def test_the_residual_is_below_the_tolerance(mdp, tolerance):
    scale = 1e-15 / (1 - mdp.gamma) * max(1.0, float(np.abs(mdp.rewards).max()))
    for solve in (value_iteration, policy_iteration, modified_policy_iteration):
        values = solve(mdp, tolerance=tolerance).values
        residual = np.abs(by_definition(mdp, values).max(axis=1) - values).max()
        assert residual <= tolerance + 100 * scale


@settings(max_examples=60, deadline=None, derandomize=True)
@given(random_mdps(), st.integers(0, 2**32 - 1))
def test_the_backup_is_its_definition_a_contraction_and_monotone(mdp, seed):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(2, mdp.n_states)) * 10
    backed_up = action_values(mdp, one)
    assert backed_up == pytest.approx(by_definition(mdp, one))
    distance = np.abs(backed_up.max(axis=1) - action_values(mdp, other).max(axis=1)).max()
    assert distance <= mdp.gamma * np.abs(one - other).max() + 1e-12
    higher = action_values(mdp, np.maximum(one, other)).max(axis=1)
    assert (higher >= backed_up.max(axis=1) - 1e-12).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(random_mdps(), st.integers(0, 2**32 - 1))
def test_greedy_improvement_never_lowers_a_value(mdp, seed):
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(mdp.n_actions, 0.5), size=mdp.n_states)
    values = policy_evaluation(mdp, table, method="direct")
    # The Bellman equation of the policy itself, and the same by sweeps.
    slack = 1e-8 * max(1.0, float(np.abs(values).max()))
    assert (table * by_definition(mdp, values)).sum(axis=1) == pytest.approx(values, abs=slack)
    swept = policy_evaluation(mdp, table, method="iterative", tolerance=1e-11)
    assert swept == pytest.approx(values, abs=slack)
    improved = policy_evaluation(mdp, greedy(action_values(mdp, values)), method="direct")
    assert (improved >= values - slack).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(random_mdps(), st.integers(0, 6))
def test_the_best_of_a_short_horizon_by_recursion(mdp, steps):
    def best(state: int, left: int) -> float:
        if left == 0:
            return 0.0
        return max(
            mdp.rewards[state, action]
            + mdp.gamma * sum(p * later[left - 1][s] for p, s, _ in mdp.outcomes(state, action))
            for action in range(mdp.n_actions)
        )

    later: list[list[float]] = []
    for left in range(steps + 1):
        later.append([best(state, left) for state in range(mdp.n_states)])
    assert finite_horizon_values(mdp, None, steps) == pytest.approx(later[steps])
    # No fixed policy does better than the best time-dependent one.
    fixed = finite_horizon_values(mdp, greedy(mdp.rewards), steps)
    assert (fixed <= np.array(later[steps]) + 1e-9).all()


def random_sparse_mdp(n_states: int, seed: int) -> MDP:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(3), size=(n_states, 4))
    following = rng.integers(n_states, size=(n_states, 4, 3))

    def outcomes(state: int, action: int):
        return zip(weights[state, action], following[state, action], [0.0, 1.0, 2.0], strict=True)

    return from_function(outcomes, n_states, 4, 0.95)


def gauss_seidel_by_definition(mdp: MDP, sweeps: int) -> np.ndarray:
    values = np.zeros(mdp.n_states)
    for _ in range(sweeps):
        for state in range(mdp.n_states):
            values[state] = max(
                mdp.rewards[state, a]
                + mdp.gamma * sum(p * values[s] for p, s, _ in mdp.outcomes(state, a))
                for a in range(mdp.n_actions)
            )
    return values


def tables_of(mdp: MDP, **kwargs) -> list[np.ndarray]:
    tables: list[np.ndarray] = []
    value_iteration(mdp, on_sweep=lambda k, values: tables.append(values), **kwargs)
    return tables


def test_gauss_seidel_keeps_the_order_of_states_and_needs_fewer_sweeps():
    mdp = random_sparse_mdp(64, seed=0)
    tables = tables_of(mdp, sweep="gauss-seidel")
    assert tables[2] == pytest.approx(gauss_seidel_by_definition(mdp, 3))
    assert len(tables) < 0.7 * len(tables_of(mdp))


def test_gauss_seidel_in_blocks_reaches_the_same_values():
    mdp = random_sparse_mdp(500, seed=1)
    blocks = value_iteration(mdp, sweep="gauss-seidel", tolerance=1e-11)
    assert blocks.values == pytest.approx(value_iteration(mdp, tolerance=1e-11).values, abs=1e-8)


def test_compiled_sweeps_are_the_same_sweeps():
    pytest.importorskip("numba", reason="compiled=True is an option that needs numba")
    for mdp in (random_sparse_mdp(100, seed=2), corner_grid()):
        for plain, compiled in zip(tables_of(mdp), tables_of(mdp, compiled=True), strict=True):
            assert compiled == pytest.approx(plain, abs=1e-12)
        tables = tables_of(mdp, compiled=True, sweep="gauss-seidel")
        assert tables[2] == pytest.approx(gauss_seidel_by_definition(mdp, 3))


def test_a_large_random_problem_is_evaluated_by_sweeps_and_a_large_chain_directly():
    """Factors of random transitions fill in: at this size LU would take a minute."""
    mdp = random_sparse_mdp(10_000, seed=3)
    exact = policy_iteration(mdp, tolerance=1e-10)
    swept = modified_policy_iteration(mdp, tolerance=1e-10)
    assert exact.values == pytest.approx(swept.values, abs=1e-8)

    # A fair walk between two ends leaves state s of 0..n after s (n − s) steps on average; by
    # sweeps that would take n² of them and more.
    n = 10_000
    walk = from_function(
        lambda s, a: [(0.5, s - 1, -1.0), (0.5, s + 1, -1.0)], n + 1, 1, 1.0, terminal=[0, n]
    )
    s = np.arange(n + 1)
    steps = policy_evaluation(walk, np.zeros(n + 1, int))
    assert steps == pytest.approx(-s * (n - s), rel=1e-6)


# --- γ = 1 and mistakes ----------------------------------------------------------------------


def loop_or_leave(loop_reward: float, leave_reward: float = 0.0) -> MDP:
    """State 0: action 0 stays, action 1 leaves to the terminal state 1. γ = 1."""
    return from_function(
        lambda s, a: [(1.0, 0, loop_reward)] if a == 0 else [(1.0, 1, leave_reward)],
        2,
        2,
        1.0,
        terminal=[1],
    )


def test_without_discount_policy_iteration_keeps_to_policies_that_end():
    # Staying for ever is worth 0, as good as leaving: only the latter is a proper solution.
    assert policy_iteration(loop_or_leave(0.0)).policy[0] == 1
    solution = policy_iteration(loop_or_leave(-1.0, -5.0))
    assert (solution.policy[0], solution.values[0]) == (1, -5.0)
    assert modified_policy_iteration(loop_or_leave(-1.0, -5.0)).values[0] == -5.0


def test_a_loop_that_earns_for_ever_is_an_error():
    for solve in (value_iteration, modified_policy_iteration):
        with pytest.raises(ProblemError, match=r"loop earns for ever") as caught:
            solve(loop_or_leave(1.0), max_sweeps=100)
        assert "\n" not in str(caught.value)
    with pytest.raises(ProblemError, match="from state 0 this one never reaches a terminal"):
        policy_iteration(loop_or_leave(1.0))


def test_without_discount_each_state_needs_a_way_to_an_end():
    mdp = from_function(lambda s, a: [(1.0, {0: 3, 1: 2, 2: 1}[s], -1.0)], 4, 2, 1.0, terminal=[3])
    for solve in (value_iteration, policy_iteration, modified_policy_iteration):
        with pytest.raises(ProblemError, match="gamma = 1 needs a way.* state 1 has none"):
            solve(mdp)
    endless = from_function(lambda s, a: [(1.0, s, 0.0)], 2, 1, 1.0)
    with pytest.raises(ProblemError, match="gamma = 1 needs a way.* state 0 has none"):
        value_iteration(endless)
    assert value_iteration(mdp.with_gamma(0.5)).values == pytest.approx([-1, -2, -2, 0], abs=1e-7)


def test_without_discount_a_policy_has_to_end():
    mdp = loop_or_leave(-1.0)
    for policy in (np.array([0, 0]), np.array([[1.0, 0.0], [0.5, 0.5]])):
        with pytest.raises(ProblemError, match="gamma = 1 needs a policy that ends.* state 0"):
            policy_evaluation(mdp, policy)
    assert policy_evaluation(mdp, np.array([[0.75, 0.25], [0.5, 0.5]])) == pytest.approx([-3, 0])
    assert finite_horizon_values(mdp, np.array([0, 0]), 7).tolist() == [-7.0, 0.0]


def test_a_proper_policy_steps_towards_the_nearest_end():
    policy = proper_policy(corner_grid())
    steps = policy_evaluation(corner_grid(), policy).reshape(4, 4)
    row, column = np.indices((4, 4))
    assert steps == pytest.approx(-np.minimum(row + column, 6 - row - column))


def test_large_rewards_stop_at_the_rounding_error():
    """1e-8 is far below what doubles resolve at 1e12; it stops, and tells the residual."""
    mdp = from_arrays(np.full((2, 1, 2), 0.5), np.array([[1e12], [3e12]]), 0.9)
    for solve in (value_iteration, policy_iteration, modified_policy_iteration):
        solution = solve(mdp)
        assert solution.values == pytest.approx([1.9e13, 2.1e13], rel=1e-12)
        assert solution.residual < 0.1


WRONG: Any = "lu"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: value_iteration(m, sweep=WRONG), "sweep 'lu' is not synchronous or"),
        (lambda m: value_iteration(m, tolerance=-1.0), "value_iteration: tolerance -1.0"),
        (lambda m: policy_iteration(m, max_sweeps=0), "policy_iteration: .* max_sweeps 0"),
        (lambda m: value_iteration(m, max_sweeps=3), "still change by .* after 3 sweeps"),
        (
            lambda m: policy_evaluation(m, np.zeros(25, int), method=WRONG),
            "method 'lu' is not auto",
        ),
        (lambda m: policy_evaluation(m, np.full(25, 4)), "state 0 has the action 4, .* 0 to 3"),
        (lambda m: policy_evaluation(m, np.full(25, -1)), "state 0 has the action -1"),
        (lambda m: policy_evaluation(m, np.zeros(25)), r"policy: float64 of shape \(25,\)"),
        (lambda m: policy_evaluation(m, np.zeros((25, 3))), r"policy: .*shape \(25, 3\)"),
        (lambda m: policy_evaluation(m, np.full((25, 4), 0.3)), "row of state 0 .* sums to 1.2"),
        (lambda m: policy_evaluation(m, np.full((25, 4), np.nan)), "row of state 0 .* sums to nan"),
        (lambda m: finite_horizon_values(m, None, -1), "steps -1 is negative"),
    ],
)
def test_a_mistake_is_named_in_one_line(call, message):
    with pytest.raises(ProblemError, match=message) as caught:
        call(example_3_5()[1])
    assert "\n" not in str(caught.value)


def test_without_numba_compiled_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "classic_rl.tabular.compiled", raising=False)
    with pytest.raises(ProblemError, match="pip install numba"):
        value_iteration(example_3_5()[1], compiled=True)
