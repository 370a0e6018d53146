# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Q-learning: acting well without knowing the rules
#
# After this lesson you can
#
# - learn the value of a policy, and a good policy, from experience alone;
# - write the Q-learning update, and say how SARSA differs from it;
# - choose a learning rate, a discount and a way to explore, and see in a picture whether they fit;
# - tell a table that has learned from one that only looks as if it had.
#
# *Before*: [lesson 2](02_mdps.ipynb). *Takes*: under a minute.
# *Beside it*: [tables](../classic-rl/tabular.md#8-learning-to-act).

# %%
import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
from lesson import claim, draw, either, exercise, show

from classic_rl.mdp import from_gymnasium
from classic_rl.pictures import grid_plots
from classic_rl.pictures.grids import grid_of
from classic_rl.schedules import Linear
from classic_rl.tabular import control, evaluation, planning, prediction, textbook
from classic_rl.tabular.exploration import EpsilonGreedy

SEEDS = range(5)

# %% [markdown]
# ## The lake
#
# FrozenLake: get from the start to the goal without falling through a hole. The ice is slippery: a
# move goes where it should one time in three, and to either side one time in three each. Reaching the goal
# pays 1, everything else 0. An episode is cut off after 100 steps.

# %%
lake = gym.make("FrozenLake-v1")
grid = grid_of(lake)
mdp = from_gymnasium(lake, gamma=0.99)
best = planning.policy_iteration(mdp)
draw(
    grid_plots.value_grid(
        grid, best.values, best.policy, title="The best policy, computed from the rules"
    )
)


def success(policy):
    """The exact chance to reach the goal within 100 steps."""
    return float(mdp.start @ evaluation.finite_horizon_values(undiscounted, policy, 100))


undiscounted = from_gymnasium(lake, gamma=1.0)
print(f"the best policy reaches the goal in {success(best.policy):.1%} of the episodes")

# %% [markdown]
# Because the rules are known here, we can *judge* exactly. The agent below does not know them.
#
# ## Learning values: whole episodes, or one step
#
# **Monte Carlo** waits for the end of an episode and moves $V(s)$ towards the return $G$ that followed.
# **TD(0)** does not wait. It moves $V(s)$ towards one reward and the *present estimate* of what follows:
#
# $$V(s) \leftarrow V(s) + \alpha\,[\,r + \gamma V(s') - V(s)\,]$$
#
# It learns a guess from a guess. That is called *bootstrapping*.

# %%
walk = from_gymnasium(lake, gamma=0.99)
truth = evaluation.policy_evaluation(walk, best.policy)
steps = either(60_000, 2_000)
errors = {}
for name, learner, rate in (
    ("Monte Carlo", prediction.monte_carlo_prediction, {}),
    ("TD(0)", prediction.td0, {"alpha": Linear(0.1, 0.001, steps)}),
):
    rows = []
    for seed in SEEDS:
        found = learner(
            lake, best.policy, seed=seed, steps=steps, gamma=0.99, record=steps // 20, **rate
        )
        rows.append([np.sqrt(np.mean((values - truth) ** 2)) for _, values in found.snapshots])
    errors[name] = np.array(rows)
figure, axes = plt.subplots(figsize=(6.4, 3.2))
at = np.linspace(0, steps, errors["TD(0)"].shape[1])
for name, rows in errors.items():
    axes.plot(at, rows.mean(0), label=name)
    axes.fill_between(at, rows.min(0), rows.max(0), alpha=0.2)
    print(f"{name:12s} error at the end {rows[:, -1].mean():.3f}")
axes.set(xlabel="steps", ylabel="error of V (root mean square)", ylim=(0, None))
axes.legend()

# %% [markdown]
# **Exercise 3.1.** Write the TD(0) update of one step. `V` is a list; a terminal state's value is 0.


# %% tags=["exercise"]
def my_td(V, s, r, s2, terminated, alpha, gamma):
    # your code: change V[s]
    ...


# %% tags=["check"]
with exercise("3.1"):
    V = [2.0, 10.0]
    my_td(V, 0, 1.0, 1, False, 0.5, 0.9)
    assert V[0] != 10.0, "the step size is missing: go half of the way"
    assert V[0] not in (5.0, 7.0), "move by the difference: the old V[s] is taken off the target"
    assert V[0] == 6.0, "V[s] += α · (r + γ · V[s2] − V[s])"
    V = [2.0, 10.0]
    my_td(V, 0, 1.0, 1, True, 0.5, 0.9)
    assert V[0] == 1.5, "nothing follows a terminal state"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_td(V, s, r, s2, terminated, alpha, gamma):
#     target = r + (0.0 if terminated else gamma * V[s2])
#     V[s] += alpha * (target - V[s])
# ```
#
# </details>

# %% [markdown]
# ## Q-learning
#
# To *act* one needs a value for each action. **Q-learning** (Watkins 1989) moves $Q(s, a)$ towards the
# reward and the value of the *best* next action, whatever is done next:
#
# $$Q(s, a) \leftarrow Q(s, a) + \alpha\,[\,r + \gamma \max_{a'} Q(s', a') - Q(s, a)\,]$$

# %%
show(control.q_learning, "Q, gamma", "Q[s][a] +=")

# %% [markdown]
# It must also *try* things. **ε-greedy** takes a random action with probability ε and the best known
# one otherwise. Begin with ε = 1 and let it fall: first look, then use. Five seeds:

# %%
STEPS = either(200_000, 1_500)


def train(seed, alpha=(0.2, 0.001), epsilon=(1.0, 0.1), gamma=0.99, steps=STEPS, record=0):
    """Q-learning on the lake; both rates fall in a straight line."""
    return control.q_learning(
        lake,
        explore=EpsilonGreedy(Linear(*epsilon, steps)),
        alpha=Linear(*alpha, steps),
        gamma=gamma,
        steps=steps,
        seed=seed,
        record=record,
    )


learned = [train(seed, record=STEPS // 6 if seed == 0 else 0) for seed in SEEDS]
rates = [success(run.policy) for run in learned]
print(
    "reached the goal:", [f"{rate:.1%}" for rate in rates], f"possible: {success(best.policy):.1%}"
)
claim("more than 70 % on each of five seeds", min(rates) > 0.70)

# %% [markdown]
# These are exact chances of the greedy policy. By playing 1,000 episodes one sees them with noise, about
# ±1.4 points (one standard error):

# %%
from classic_rl.tabular.rollouts import evaluate

played = evaluate(lake, learned[0].policy, episodes=either(1_000, 20), seed=1_000_000)
print(f"{len(played):,} episodes of seed 0: {played.mean():.0%} reached the goal")

# %% [markdown]
# ## How the table fills

# %%
draw(grid_plots.q_strip(grid, learned[0].snapshots[:6], title="The Q-table at six moments"))

# %% [markdown]
# *What to see.* Each cell is cut into its four actions, blue where they are worth something. Nothing happens
# until the goal is hit by chance. Then value flows backwards, from the goal to the start, as in value
# iteration, but only through what was lived.
#
# ## Why an all-zero table looks trained
#
# Before any learning, every entry is 0. Which action is best? All of them, and `argmax` returns the
# first. So the untrained table *has* a policy, "always left", and a picture of it looks as sure of
# itself as any. Public code has reported its success rate as a result.

# %%
zeros = np.zeros((16, 4))
draw(
    grid_plots.value_grid(
        grid, zeros.max(1), zeros.argmax(1), title="An untrained table, drawn by argmax"
    )
)
print(f"'always left' reaches the goal in {success(zeros.argmax(1)):.1%} of the episodes")
dry = gym.make("FrozenLake-v1", is_slippery=False)
lazy = control.q_learning(
    dry, explore=EpsilonGreedy(0.0), alpha=0.5, gamma=0.95, steps=either(2_000, 500), seed=0
)
print(
    f"ties drawn by lot, ε = 0: goal reached {int(lazy.returns.sum())} times of {len(lazy.returns)}"
)

# %% [markdown]
# The last line is Q-learning on the dry lake without any exploration. It finds the goal because the library
# draws among equal actions by lot while it learns. With `argmax` there it would go left for ever.

# %% [markdown]
# **Exercise 3.2.** Write a function that tells whether a table has learned nothing in a state: all its
# actions are worth the same. Use it to count how many of the 11 cells that are not holes or goal
# (`cells` below) the table of `learned[0]` knows.

# %% tags=["exercise"]
cells = [s for s in range(16) if lake.unwrapped.desc.flat[s] not in (b"H", b"G")]


def undecided(q_row):
    # your code: True or False
    ...


known = ...  # how many of `cells` are decided in learned[0].action_values

# %% tags=["check"]
with exercise("3.2"):
    assert undecided(np.zeros(4)) is not None, "not solved yet"
    assert undecided(np.zeros(4)) and undecided(np.full(4, 0.3)), (
        "equal is undecided, at any height"
    )
    assert not undecided(np.array([0.0, 0.1, 0.0, 0.0])), "one action is better: decided"
    assert known == sum(not undecided(learned[0].action_values[s]) for s in cells), "count them"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def undecided(q_row):
#     return bool(np.ptp(q_row) == 0)
#
#
# known = sum(not undecided(learned[0].action_values[s]) for s in cells)
# ```
#
# </details>

# %% [markdown]
# ## Learning rate and discount
#
# The same algorithm, useless or nearly as good as can be, by two numbers. Constant rates here, three seeds, 30,000 steps:

# %%
alphas, gammas = (0.01, 0.05, 0.2, 0.8), (0.8, 0.95, 0.99)
short = either(30_000, 500)
table = np.array(
    [
        [
            np.mean(
                [
                    success(train(s, (a, a), (1.0, 0.1), g, short).policy)
                    for s in range(either(3, 1))
                ]
            )
            for a in alphas
        ]
        for g in gammas
    ]
)
figure, axes = plt.subplots(figsize=(6.4, 2.8))
picture = axes.imshow(table, vmin=0, vmax=0.75, cmap="Blues", aspect="auto")
axes.set(
    xticks=range(len(alphas)), xticklabels=alphas, yticks=range(len(gammas)), yticklabels=gammas
)
axes.set(xlabel="learning rate α", ylabel="discount γ")
for (row, column), value in np.ndenumerate(table):
    axes.text(column, row, f"{value:.0%}", ha="center", color="w" if value > 0.4 else "k")
figure.colorbar(picture, label="reaches the goal")
claim("the worst is under half of the best", table.min() < table.max() / 2)

# %% [markdown]
# *What to see.* Too small an α has not arrived yet. Too large a one follows the last few slips and never
# settles. A small γ makes a safe, slow way to the goal worth less than a risky, short one. Falling rates have
# the best of both: fast at first, calm at the end.

# %%
constant = [success(train(seed, (0.2, 0.2), (0.1, 0.1)).policy) for seed in SEEDS]
falling = [success(train(seed).policy) for seed in SEEDS]
print("constant α 0.2, ε 0.1:", [f"{rate:.0%}" for rate in constant])
print("falling α and ε      :", [f"{rate:.0%}" for rate in falling])
claim(
    "falling rates are better in the mean and in the worst case",
    np.mean(falling) > np.mean(constant) and min(falling) > min(constant),
)

# %% [markdown]
# **Exercise 3.3.** ε falls in a straight line from 1 to 0.1 over N steps. What share of *all* N actions is
# random in the mean, and what share at the end?

# %% tags=["exercise"]
in_the_mean, at_the_end = ..., ...

# %% tags=["check"]
with exercise("3.3"):
    assert abs(at_the_end - 0.1) < 1e-9, "at the end ε itself"
    assert abs(in_the_mean - 0.45) > 1e-9, "the mean of 1 and 0.1, not half of their difference"
    assert abs(in_the_mean - 0.55) < 1e-9, "a straight line's mean is the middle: (1 + 0.1) / 2"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# in_the_mean, at_the_end = (1 + 0.1) / 2, 0.1
# ```
#
# </details>

# %% [markdown]
# ## SARSA at the cliff
#
# **SARSA** takes the action that is *really* done next in the place of the best one. So it learns the
# value of the policy that explores, slips included; Q-learning learns the value of the best policy,
# while it explores. At a cliff one sees the difference (Sutton & Barto, example 6.6):

# %%
show(control.sarsa, "Q[s][a] +=", "Q[s][a] +=")
cliff = gym.make("CliffWalking-v1")
cliff_grid = grid_of(cliff)
episodes = either(500, 20)
runs = {}
for name, learner in (("SARSA", control.sarsa), ("Q-learning", control.q_learning)):
    runs[name] = [
        learner(
            cliff,
            explore=EpsilonGreedy(0.1),
            alpha=0.5,
            gamma=1.0,
            episodes=episodes,
            seed=seed,
            max_steps=1000,
        )
        for seed in SEEDS
    ]
figure, axes = plt.subplots(figsize=(6.4, 3))
for name, found in runs.items():
    curve = np.mean([run.returns for run in found], axis=0)
    smooth = np.convolve(curve, np.ones(20) / 20, mode="valid")
    axes.plot(smooth, label=name)
    last = np.mean([run.returns[-100:].mean() for run in found])
    print(f"{name:10s} mean return of the last 100 training episodes {last:.1f}")
axes.set(xlabel="episode", ylabel="return (mean of 20)", ylim=(-110, 0))
axes.legend()
draw(
    grid_plots.policy_paths(
        cliff_grid,
        [(name, found[0].policy) for name, found in runs.items()],
        start=36,
        title="Their greedy ways",
    )
)
claim(
    "Q-learning falls off more while it learns",
    np.mean([r.returns[-100:].mean() for r in runs["Q-learning"]])
    < np.mean([r.returns[-100:].mean() for r in runs["SARSA"]]),
)

# %% [markdown]
# *What to see.* Q-learning walks along the edge, the shortest way, and falls whenever ε pushes it. SARSA
# knows that it sometimes stumbles, and keeps away.
#
# **Exercise 3.4.** One step: $Q(s, a) = 2$, $r = -1$, γ = 1, α = 0.5. In $s'$ the actions are worth 4 and
# −100, and the agent, exploring, takes the second. What is the new $Q(s, a)$ by each rule?

# %% tags=["exercise"]
by_q_learning, by_sarsa = ..., ...

# %% tags=["check"]
with exercise("3.4"):
    assert by_q_learning != -49.5, "Q-learning looks at the best next action, not at the one taken"
    assert by_q_learning == 2.5, "Q-learning: 2 + 0.5 · (−1 + max(4, −100) − 2)"
    assert by_sarsa == -49.5, "SARSA: 2 + 0.5 · (−1 + the taken action's −100 − 2)"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# by_q_learning, by_sarsa = 2 + 0.5 * (-1 + 4 - 2), 2 + 0.5 * (-1 - 100 - 2)
# ```
#
# </details>

# %% [markdown]
# ## The maximum of noise
#
# $\max_a Q$ over noisy estimates is too large, as the luckiest one wins. From A one may stop (0), or go on
# to B, where ten actions pay −0.1 on average, ±1. Stopping is right. Q-learning is long convinced
# otherwise; **double Q-learning** has one table choose the action and another rate it.


# %%
show(textbook.MaximisationBias)
mistakes = {}
for name, learner in (("Q-learning", control.q_learning), ("double", control.double_q_learning)):
    found = [
        learner(
            textbook.MaximisationBias(),
            explore=EpsilonGreedy(0.1),
            alpha=0.1,
            gamma=1.0,
            episodes=either(300, 20),
            seed=s,
        )
        for s in range(either(200, 3))
    ]
    # Only B pays anything but exactly 0.
    mistakes[name] = np.mean([(run.returns != 0).mean() for run in found])
    print(f"{name:10s} goes to B in {mistakes[name]:.0%} of the episodes (exploration alone: 9 %)")
claim("double Q-learning goes to B less often", mistakes["double"] < mistakes["Q-learning"])

# %% [markdown]
# ## Run it on your own

# %%
mine = control.q_learning(
    gym.make(either("Taxi-v4", "CliffWalking-v1")),
    explore=EpsilonGreedy(Linear(1.0, 0.05, either(200_000, 1_000))),
    alpha=0.5,
    gamma=0.99,
    steps=either(200_000, 1_000),
    seed=0,
)
print(f"mean return of the last episodes: {mine.returns[-100:].mean():.1f}")

# %% [markdown]
# Worth trying: the dry lake (`is_slippery=False`) with another ε; a first value of 1
# in every entry (`initial=1`), and why that explores; `FrozenLake8x8-v1`. From the command line:
# `python -m classic_rl q-learning --env FrozenLake-v1 --seeds 0 1 2`. Next: when there are too many
# states for a table, [DQN](04_dqn.ipynb).
