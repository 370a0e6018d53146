"""Finite MDPs: building them three ways, and one clear line for each mistake."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import scipy.sparse as sp

from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP, from_arrays, from_function, from_gymnasium
from classic_rl.tabular.planning import value_iteration

# Two states, two actions: action 0 stays, action 1 changes the state; state 1 pays for staying.
STAY_OR_MOVE = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
PAY = np.array([[0.0, -1.0], [1.0, 0.0]])


def table_environment(table: Any, start: list[float]) -> Any:
    """What `from_gymnasium` reads of an environment."""
    env = SimpleNamespace(P=table, initial_state_distrib=start, spec=None)
    env.unwrapped = env
    return env


def test_one_process_built_three_ways_is_the_same():
    dense = from_arrays(STAY_OR_MOVE, PAY, 0.9)
    sparse = from_arrays(sp.csr_array(STAY_OR_MOVE.reshape(4, 2)), PAY, 0.9)

    def outcomes(state: int, action: int):
        return [(1.0, (state + action) % 2, PAY[state, action])]

    by_function = from_function(outcomes, 2, 2, 0.9)
    for mdp in (dense, sparse, by_function):
        assert mdp.transitions.toarray().reshape(2, 2, 2).tolist() == STAY_OR_MOVE.tolist()
        assert mdp.rewards.tolist() == PAY.tolist()
        assert mdp.outcomes(0, 1) == [(1.0, 1, -1.0)]
        # Staying in state 1 is worth 1/(1 − γ) = 10; from state 0 one pays 1 to get there.
        assert value_iteration(mdp).values == pytest.approx([8.0, 10.0], abs=1e-6)


def test_rewards_of_single_transitions_are_averaged_and_kept_for_sampling():
    transitions = np.array([[[0.25, 0.75]], [[0.0, 1.0]]])
    rewards = np.array([[[4.0, 8.0]], [[5.0, 0.0]]])  # the 5 belongs to an impossible transition
    mdp = from_arrays(transitions, rewards, 0.5, terminal=[1])
    assert mdp.rewards.tolist() == [[7.0], [0.0]]
    assert mdp.outcomes(0, 0) == [(0.25, 0, 4.0), (0.75, 1, 8.0)]
    assert mdp.outcomes(1, 0) == []


def test_outcomes_with_one_next_state_are_merged():
    mdp = from_function(
        lambda s, a: [(0.25, 1, 0.0), (0.25, 1, 2.0), (0.5, 0, 3.0), (0.0, 0, 9.0)],
        2,
        1,
        1.0,
        terminal=[1],
    )
    assert mdp.outcomes(0, 0) == [(0.5, 0, 3.0), (0.5, 1, 1.0)]
    assert mdp.rewards[0, 0] == 2.0


@pytest.mark.parametrize("name", ["FrozenLake-v1", "CliffWalking-v1", "Taxi-v4"])
def test_a_gymnasium_table_is_taken_over_exactly(name):
    with gym.make(name) as env:
        table: Any = env.unwrapped
        mdp = from_gymnasium(env, 0.9)
        for state in range(len(table.P)):
            if mdp.terminal[state]:
                continue
            for action, listed in table.P[state].items():
                expected: dict[int, float] = {}
                for probability, following, _, _ in listed:
                    expected[following] = expected.get(following, 0.0) + probability
                got = {following: p for p, following, _ in mdp.outcomes(state, action)}
                assert got == pytest.approx(expected)
                mean = sum(probability * reward for probability, _, reward, _ in listed)
                assert mdp.rewards[state, action] == pytest.approx(mean)
        assert mdp.start[: len(table.P)].tolist() == list(table.initial_state_distrib)


def test_known_optima_of_gymnasium_environments():
    # The shortest safe way along the cliff has 13 steps of −1 (Sutton & Barto 2018, example 6.6).
    cliff = from_gymnasium("CliffWalking-v1", 1.0)
    assert float(cliff.start @ value_iteration(cliff).values) == pytest.approx(-13)
    # Six steps to the goal, the last of which pays 1.
    lake = from_gymnasium("FrozenLake-v1", 0.9, is_slippery=False)
    assert float(lake.start @ value_iteration(lake).values) == pytest.approx(0.9**5)


def test_a_state_that_is_passed_and_ended_in_gets_a_twin_that_ends():
    # Action 0 ends in state 1, action 1 passes through it, to 10 more in state 2.
    table = {
        0: {0: [(1.0, 1, 3.0, True)], 1: [(1.0, 1, 0.0, False)]},
        1: {0: [(1.0, 2, 10.0, True)], 1: [(1.0, 2, 10.0, True)]},
        2: {0: [(1.0, 2, 0.0, True)], 1: [(1.0, 2, 0.0, True)]},
    }
    mdp = from_gymnasium(table_environment(table, [1.0, 0.0, 0.0]), 1.0)
    assert mdp.n_states == 4
    assert np.flatnonzero(mdp.terminal).tolist() == [2, 3]
    assert mdp.outcomes(0, 0) == [(1.0, 3, 3.0)]
    assert value_iteration(mdp).action_values[0].tolist() == [3.0, 10.0]


def test_another_discount_leaves_the_process_alone():
    mdp = from_arrays(STAY_OR_MOVE, PAY, 0.9)
    other = mdp.with_gamma(0.5)
    assert (other.gamma, mdp.gamma) == (0.5, 0.9)
    assert other.transitions is mdp.transitions


def changed(**changes: Any) -> MDP:
    arguments = {"transitions": STAY_OR_MOVE, "rewards": PAY, "gamma": 0.9, **changes}
    return from_arrays(**arguments)


def with_entry(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"transitions": with_entry(STAY_OR_MOVE, (1, 0, 0), 0.5)},
            "the transition probabilities of state 1, action 0 sum to 1.5, not 1",
        ),
        (
            {"transitions": with_entry(STAY_OR_MOVE, (0, 1, 0), -0.25)},
            "the transitions of state 0, action 1 have the probability -0.25",
        ),
        (
            {"transitions": with_entry(STAY_OR_MOVE, (1, 1, 0), np.nan)},
            "the transitions of state 1, action 1 have the probability nan",
        ),
        ({"transitions": np.ones((2, 2))}, r"transitions: shape \(2, 2\), expected \(S, A, S\)"),
        ({"transitions": np.ones((3, 2, 2))}, r"shape \(3, 2, 2\), expected \(S, A, S\)"),
        ({"transitions": sp.eye_array(2)}, r"transitions: shape \(2, 2\).* need \(4, 2\)"),
        ({"rewards": with_entry(PAY, (1, 0), np.inf)}, "reward of state 1, action 0 is inf"),
        ({"rewards": with_entry(PAY, (0, 1), np.nan)}, "reward of state 0, action 1 is nan"),
        ({"rewards": np.zeros(2)}, r"rewards: shape \(2,\), expected \(S, A\)"),
        ({"rewards": np.zeros((2, 3))}, r"transitions: .*rewards of shape \(2, 3\) need \(6, 2\)"),
        ({"rewards": np.zeros((2, 2, 3))}, r"rewards: shape \(2, 2, 3\) does not match"),
        ({"gamma": 0.0}, r"gamma: 0.0 is outside \(0, 1\]"),
        ({"gamma": 1.01}, r"gamma: 1.01 is outside \(0, 1\]"),
        ({"gamma": float("nan")}, r"gamma: nan is outside \(0, 1\]"),
        ({"start": 2}, "start: state 2 is not among 0 to 1"),
        ({"start": np.array([0.5, 0.6])}, "start: the probabilities sum to 1.1, not 1"),
        ({"start": np.array([1.5, -0.5])}, "start: state 1 has the probability -0.5"),
        ({"start": np.ones(3) / 3}, r"start: shape \(3,\)"),
        ({"terminal": [2]}, "terminal: 2 is not a state's number, 0 to 1"),
        ({"terminal": [-1]}, "terminal: -1 is not a state's number, 0 to 1"),
        ({"terminal": [False, True]}, "terminal: False is not a state's number"),
        ({"terminal": [1]}, "rewards of terminal state 1 differ between actions"),
    ],
)
def test_a_mistake_in_the_arrays_is_named_in_one_line(changes, message):
    with pytest.raises(ProblemError, match=message) as caught:
        changed(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        ((1.0, 2, 0.0), "state 0, action 0 leads to state 2, but the states are 0 to 1"),
        ((1.0, -1, 0.0), "state 0, action 0 leads to state -1"),
        ((-1.0, 1, 0.0), "state 0, action 0: probability -1.0, reward 0.0 cannot be used"),
        ((1.0, 1, np.inf), "state 0, action 0: probability 1.0, reward inf cannot be used"),
        ((0.9, 1, 0.0), "transition probabilities of state 0, action 0 sum to 0.9, not 1"),
    ],
)
def test_a_mistake_in_a_function_is_named(outcome, message):
    with pytest.raises(ProblemError, match=message):
        from_function(lambda s, a: [outcome], 2, 1, 0.9, terminal=[1])


def test_a_terminal_may_pay_for_each_of_its_unused_transitions():
    """Their mean is its reward, equal over actions but for rounding."""
    rng = np.random.default_rng(0)
    transitions, rewards = rng.dirichlet(np.ones(3), size=(3, 4)), np.zeros((3, 4, 3))
    rewards[2] = 0.7
    mdp = from_arrays(transitions, rewards, 0.9, terminal=[2])
    assert value_iteration(mdp).values[2] == pytest.approx(0.7)


def test_a_terminal_mask_of_numbers_is_refused():
    good = from_arrays(STAY_OR_MOVE, PAY, 0.9)
    with pytest.raises(ProblemError, match="terminal: int64, expected bool"):
        MDP(good.transitions, good.rewards, 0.9, good.start, np.array([0, 1]))


def test_a_continuous_environment_has_no_exact_model():
    with pytest.raises(ProblemError, match=r"CartPole-v1: no exact model.*Box"):
        from_gymnasium("CartPole-v1", 0.9)


def test_an_unknown_environment_is_named():
    with pytest.raises(ProblemError, match="environment NoSuchLake-v0"):
        from_gymnasium("NoSuchLake-v0", 0.9)
