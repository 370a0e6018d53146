"""Replay: the sum tree, draws in proportion, n-step returns by hand, the ring, saving."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from classic_rl.deep.replay import Replay, SumTree
from classic_rl.errors import ProblemError

SPACE = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
GAMMA = 0.5

sizes_and_changes = st.integers(1, 40).flatmap(
    lambda size: st.tuples(
        st.just(size),
        st.lists(
            st.lists(
                st.tuples(st.integers(0, size - 1), st.integers(0, 8)), min_size=1, max_size=9
            ),
            min_size=1,
            max_size=9,
        ),
    )
)


@given(sizes_and_changes)
@settings(max_examples=200, deadline=None)
def test_sum_tree_is_the_brute_force_one(case: tuple[int, list[list[tuple[int, int]]]]) -> None:
    """Whole numbers, so that sums are exact: total, leaves and every mass's index."""
    size, changes = case
    tree, plain = SumTree(size), np.zeros(size)
    for change in changes:
        indices, values = np.array(change).T
        tree.set(indices, values)
        for index, value in change:
            plain[index] = value
        assert np.array_equal(tree.leaves, plain)
        assert tree.total == plain.sum()
    masses = np.arange(0, plain.sum(), 0.5)
    assert np.array_equal(tree.find(masses), np.searchsorted(plain.cumsum(), masses, side="right"))


def test_sum_tree_keeps_no_rounding_error_and_finds_no_zero() -> None:
    """After 1,000 changes over twelve orders of magnitude; seed 0."""
    rng = np.random.default_rng(0)
    tree = SumTree(300)
    for _ in range(1000):
        tree.set(rng.integers(300, size=8), 10 ** rng.uniform(-6, 6, size=8))
    tree.set(np.arange(0, 300, 2), np.zeros(150))
    tree.set(np.arange(300), tree.leaves.copy() * (np.arange(300) % 2))
    assert tree.total == pytest.approx(tree.leaves.sum(), rel=1e-14)
    # The very edge too, where rounding could step beyond the last number.
    masses = np.append(rng.random(10_000), [0.0, 1.0]) * tree.total
    assert (tree.leaves[tree.find(masses)] > 0).all()
    tree.set(np.arange(300), np.zeros(300))
    assert tree.total == 0.0


def filled(
    episodes: list[tuple[list[float], bool]],
    *,
    n_step: int = 1,
    capacity: int = 100,
    alpha: float = 0.0,
) -> Replay:
    """One environment's episodes of these rewards, each terminated or cut off; NEXT_STEP autoreset.

    The observation at step t of episode e is 100 e + t, the action is t."""
    replay = Replay(capacity, SPACE, n_step=n_step, gamma=GAMMA, alpha=alpha)
    for e, (rewards, terminated) in enumerate(episodes):
        first = 100.0 * e
        if e:
            add(replay, first - 100 + len(episodes[e - 1][0]), -7, 0.0, False, False, False, first)
        for t, reward in enumerate(rewards):
            last = t == len(rewards) - 1
            add(replay, first + t, t, reward, last and terminated, last, True, first + t + 1)
    return replay


def add(
    replay: Replay,
    seen: float,
    action: int,
    reward: float,
    terminated: bool,
    ended: bool,
    real: bool,
    following: float,
) -> None:
    replay.add(
        np.full((1, 1), seen, np.float32),
        np.array([action]),
        np.array([reward]),
        np.array([terminated]),
        np.array([ended]),
        np.array([real]),
        np.full((1, 1), following, np.float32),
    )


def by_observation(replay: Replay, draws: int = 2000) -> dict[float, tuple[float, float, float]]:
    """Drawn observation → (R, d, next observation); each must come out the same every time."""
    batch = replay.sample(draws, np.random.default_rng(0))
    table: dict[float, tuple[float, float, float]] = {}
    for seen, total, discount, following in zip(
        batch.observations[:, 0],
        batch.returns,
        batch.discounts,
        batch.next_observations[:, 0],
        strict=True,
    ):
        row = (float(total), float(discount), float(following))
        assert table.setdefault(float(seen), row) == row
    return table


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_one_step_transitions_by_hand(alpha: float) -> None:
    replay = filled([([1, 2], True), ([3, 4], False), ([5, 6], False)], alpha=alpha)
    assert by_observation(replay) == {
        0: (1, GAMMA, 1),
        1: (2, 0, 2),  # terminated: nothing follows
        100: (3, GAMMA, 101),
        101: (4, GAMMA, 102),  # cut off: goes on from its own final observation, not from 200
        200: (5, GAMMA, 201),
        201: (6, GAMMA, 202),
    }  # and the resets, seen at 2 and 102, are never drawn


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_three_step_transitions_by_hand(alpha: float) -> None:
    """γ = 1/2. Windows end with their episode; those not yet whole are not drawn."""
    replay = filled([([1, 2, 4, 8], True), ([16, 32], False), ([1, 1, 1, 1]  , False)],
                    n_step=3, alpha=alpha)  # fmt: skip
    assert by_observation(replay) == {
        0: (1 + 1 + 1, 1 / 8, 3),
        1: (2 + 2 + 2, 0, 4),  # the window ends with the termination
        2: (4 + 4, 0, 4),
        3: (8, 0, 4),
        100: (16 + 16, 1 / 4, 102),  # two rewards, then V of the final observation
        101: (32, 1 / 2, 102),
        200: (1.75, 1 / 8, 203),
        201: (1.75, 1 / 8, 204),
    }


def test_latest_gives_the_newest_whole_transitions_without_resets() -> None:
    replay = filled([([1, 2], True), ([3, 4], True), ([5, 6], False)])
    assert replay.latest(4).observations[:, 0].tolist() == [100, 101, 200, 201]
    assert replay.latest(1).observations[:, 0].tolist() == [201]
    three = filled([([1, 2], True), ([3, 4, 5, 6], True)], n_step=3)
    assert three.latest(2).observations[:, 0].tolist() == [100, 101]


def test_the_ring_forgets_the_oldest_and_never_mixes_episodes() -> None:
    """Environments of other episode lengths, far past the capacity; seed 0. Every drawn 3-step
    transition is among those computed from the whole history."""
    rng = np.random.default_rng(0)
    n_envs, n_step, capacity = 3, 3, 40
    replay = Replay(capacity, SPACE, n_envs, n_step=n_step, gamma=GAMMA, alpha=0.6)
    uniform = Replay(capacity, SPACE, n_envs, n_step=n_step, gamma=GAMMA)
    now = np.arange(3, dtype=np.float32)[:, None] * 1000
    resetting = np.zeros(3, bool)
    history: list[tuple[np.ndarray, ...]] = []
    for _ in range(200):
        ended = ~resetting & (rng.random(3) < 0.3)
        terminated = ended & (rng.random(3) < 0.5)
        rewards = np.where(resetting, 0, rng.integers(1, 9, 3))
        row = (now, np.zeros(3, int), rewards, terminated, ended, ~resetting, now + 1)
        for each in (replay, uniform):
            each.add(*row)
        history.append(row)
        now, resetting = now + 1, ended
    columns = [np.stack(column) for column in zip(*history, strict=True)]
    rewards, terminated, ended, real = columns[2], columns[3], columns[4], columns[5]
    oldest = 200 - (replay.rows - 1)
    for source in (replay, uniform):
        batch = source.sample(3000, rng)
        reached = set()
        for seen, total, discount, following in zip(
            batch.observations[:, 0], batch.returns, batch.discounts,
            batch.next_observations[:, 0], strict=True,
        ):  # fmt: skip
            env, t = int(seen // 1000), int(seen % 1000)
            assert real[t, env] and oldest <= t <= 200 - n_step
            expected, k = 0.0, 0
            while k < n_step and not (k and ended[t + k - 1, env]):
                expected += GAMMA**k * rewards[t + k, env]
                k += 1
            alive = not terminated[t + k - 1, env]
            assert (total, discount, following) == (expected, GAMMA**k * alive, seen + k)
            reached.add((env, t))
        assert len(reached) == real[oldest : 200 - n_step + 1].sum()  # nothing is left out


def test_a_cut_bootstraps_like_a_time_limit() -> None:
    replay = Replay(100, SPACE, n_step=2, gamma=GAMMA)
    add(replay, 0, 0, 1.0, False, False, True, 1)
    add(replay, 1, 0, 2.0, False, False, True, 2)
    replay.cut()
    add(replay, 50, 0, 4.0, False, False, True, 51)  # restarted
    add(replay, 51, 0, 8.0, False, False, True, 52)
    assert by_observation(replay) == {0: (2, 1 / 4, 2), 1: (2, 1 / 2, 2), 50: (8, 1 / 4, 52)}


def test_draws_match_priorities() -> None:
    """P(i) = p_i^α / Σ p_j^α: chi-squared at level 0.001 over 40,000 single draws; seed 0."""
    replay = filled([([1.0] * 20, False)], alpha=0.7)
    rng = np.random.default_rng(0)
    errors = rng.exponential(size=20) * rng.choice([-1, 1], 20)
    replay.prioritize(np.arange(20), errors)
    expected = (np.abs(errors) + 1e-6) ** 0.7
    expected /= expected.sum()
    # One by one: draws of one batch are stratified, which is not what chi-squared supposes.
    indices = np.array([replay.sample(1, rng).indices[0] for _ in range(40_000)])
    counts = np.bincount(indices, minlength=20)
    assert chisquare(counts, expected * 40_000).pvalue > 1e-3
    # Stratified draws stay within one of their expectation in every cumulative share.
    batch = np.bincount(replay.sample(1000, rng).indices, minlength=20)
    assert (np.abs(batch.cumsum() - 1000 * expected.cumsum()) <= 1 + 1e-9).all()


def test_uniform_draws_are_uniform_without_resets() -> None:
    """Chi-squared at level 0.001; seed 0."""
    replay = filled([([1.0] * 3, True)] * 10)
    batch = replay.sample(30_000, np.random.default_rng(0))
    counts = np.bincount(batch.indices, minlength=len(replay))
    real = replay.real[: len(replay), 0]
    assert counts[~real].sum() == 0
    assert chisquare(counts[real]).pvalue > 1e-3
    assert (batch.weights == 1).all()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_importance_weights(beta: float) -> None:
    """w = (N P)^-β over its maximum (Schaul et al. 2016, section 3.4)."""
    replay = filled([([1.0] * 8, False)], alpha=0.5)
    errors = np.arange(1.0, 9.0)
    replay.prioritize(np.arange(8), errors)
    batch = replay.sample(64, np.random.default_rng(0), beta)
    p = np.sqrt(errors + 1e-6)
    w = (8 * p / p.sum()) ** -beta
    assert batch.weights == pytest.approx(w[batch.indices] / w[batch.indices].max(), rel=1e-6)


def test_weights_make_priorities_unbiased() -> None:
    """At β = 1 the weighted mean of anything is its plain mean; seed 0, 5 standard errors."""
    replay = filled([([float(r) for r in range(10)], False)], alpha=1.0)
    replay.prioritize(np.arange(10), np.linspace(0.5, 3, 10))
    batch = replay.sample(50_000, np.random.default_rng(0), 1.0)
    mean = np.average(batch.returns, weights=batch.weights)
    assert mean == pytest.approx(4.5, abs=0.05)
    assert batch.returns.mean() > 5.0  # without them it is another


def test_new_transitions_have_the_highest_priority() -> None:
    replay = filled([([1.0] * 5, False)], alpha=0.5)
    replay.prioritize(np.array([0]), np.array([-16.0]))
    add(replay, 5, 0, 1.0, False, False, True, 6)
    assert replay.tree is not None
    assert replay.tree.leaves[:6] == pytest.approx([4, 1, 1, 1, 1, 4], rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.6])
@pytest.mark.parametrize("length", [7, 70])
def test_restored_replay_goes_on_equal(alpha: float, length: int) -> None:
    """Half full and past its capacity; seed 1."""
    replay = filled([([1.0, 2.0], True)] * length, n_step=2, capacity=50, alpha=alpha)
    replay.prioritize(replay.sample(8, np.random.default_rng(1)).indices, np.arange(8.0))
    other = Replay(50, SPACE, n_step=2, gamma=GAMMA, alpha=alpha)
    other.restore({name: np.array(array) for name, array in replay.state().items()})
    assert len(other) == len(replay)
    for each in (replay, other):
        each.cut()
        add(each, 5, 3, 9.0, False, False, True, 6)
        add(each, 6, 3, 9.0, False, False, True, 7)
    batches = [each.sample(64, np.random.default_rng(2), 0.5) for each in (replay, other)]
    for ours, theirs in zip(*batches, strict=True):
        assert np.array_equal(ours, theirs)


def test_images_stay_as_they_are_and_vectors_become_float32() -> None:
    image = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert Replay(10, image).observations.dtype == np.uint8
    assert Replay(10, gym.spaces.Box(0, 255, (8,), np.uint8)).observations.dtype == np.float32


def test_too_small_a_memory() -> None:
    with pytest.raises(
        ProblemError, match="buffer_size: 16 is too small for 16 environments and 3"
    ):
        Replay(16, SPACE, 16, n_step=3)
