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
# # 2. Decision processes: solving a world whose rules are known
#
# After this lesson you can
#
# - write a problem as a Markov decision process (MDP), and do three sweeps of value iteration by hand;
# - compute the value of a policy and the best policy, in two ways;
# - say how rewards, chance and discount change what is best;
# - price the distance to a reference policy: the very objective that tunes language models.
#
# *Before*: [lesson 1](01_what_is_rl.ipynb). *Takes*: half a minute.
# *Beside it*: [tables](../classic-rl/tabular.md).

# %%
import matplotlib.pyplot as plt
import numpy as np
from lesson import claim, draw, either, exercise, show

from classic_rl.envs import environments
from classic_rl.envs.gridworld import GridWorld
from classic_rl.envs.traffic import FixedCycle, LongestQueue
from classic_rl.mdp import from_arrays
from classic_rl.pictures import grid_plots
from classic_rl.pictures.grids import grid_of, grid_table
from classic_rl.tabular import evaluation, planning, soft

# %% [markdown]
# ## The process
#
# Five things: states $s$, actions $a$, the chance $P(s' \mid s, a)$ of what comes next, the reward
# $r(s, a)$, and a discount $\gamma$. *Markov* means that the chance depends on the present state
# only. A **policy** $\pi$ names an action for each state. Its **value** $V_\pi(s)$ is the return to be
# expected from $s$ on:
#
# $$V_\pi(s) = r(s, \pi(s)) + \gamma \sum_{s'} P(s' \mid s, \pi(s))\, V_\pi(s')$$
#
# This is the **Bellman equation**. It is the line $G = r + \gamma G'$ of lesson 1, with chance in it.
#
# The world: Russell & Norvig's 3×4 grid. A move goes where it should with probability 0.8 and to each
# side with 0.1; into a wall it stays. Each step costs 0.04. The two cells with a number end the
# episode.

# %%
world = GridWorld("3x4", slip=0.2, step_reward=-0.04)
grid = grid_of(world)
mdp = world.mdp(gamma=0.9, convention="state")  # the book's: paid for being in a cell
print(world.text())
print(f"{mdp.n_states} states, {mdp.rewards.shape[1]} actions: 0 left, 1 down, 2 right, 3 up")
east = world.state_of(0, 2)  # the cell left of +1
right = mdp.transitions[[east * 4 + 2]]  # one sparse row for each pair of state and action
for following, chance in zip(right.indices, right.data, strict=True):
    print(f"right from the cell left of +1: to {world.cell_of(following)} with {chance:.1f}")

# %% [markdown]
# ## Three sweeps by hand
#
# **Value iteration** begins with $V = 0$ and makes the equation an update, with the best action in
# the place of the policy's:
#
# $$V(s) \leftarrow \max_a \Big[ r(s, a) + \gamma \sum_{s'} P(s' \mid s, a)\, V(s') \Big]$$
#
# Sweep 1: nothing is known to follow, so each cell is worth its own reward. Sweep 2: the cell left of
# +1 learns of it. Going right it is $-0.04 + 0.9\,(0.8 \cdot 1 + 0.1 \cdot (-0.04) + 0.1 \cdot (-0.04))
# = 0.6728$. Sweep 3: its neighbours learn of that.

# %%
values = np.zeros(mdp.n_states)
sweeps = []
for sweep in (1, 2, 3):
    values = evaluation.action_values(mdp, values).max(axis=1)
    sweeps.append((f"sweep {sweep}", values, None))
    print(f"sweep {sweep}")
    print("\n".join(grid_table(grid, values)))
draw(grid_plots.value_strip(grid, sweeps, title="Three sweeps of value iteration"))
claim("the hand's 0.6728", abs(sweeps[1][1][east] - 0.6728) < 1e-12)

# %% [markdown]
# **Exercise 2.1.** Do the third sweep for the cell left of +1, by hand: its neighbours below and above
# (itself, as there is a wall) were worth −0.076 and 0.6728 after sweep 2. *Going right*: which chance
# has which neighbour?

# %% tags=["exercise"]
third = ...  # your number, four digits

# %% tags=["check"]
with exercise("2.1"):
    assert isinstance(third, float), "a number, please"
    assert abs(third - (-0.04 + 0.8 * 1 + 0.1 * 0.6728 + 0.1 * -0.076)) > 1e-4, (
        "the discount 0.9 is missing"
    )
    assert abs(third - sweeps[2][1][east]) < 1e-3, (
        "−0.04 + 0.9 · (0.8 · value right + 0.1 · value above + 0.1 · value below)"
    )

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# # Above is the border: the cell itself, 0.6728.
# third = -0.04 + 0.9 * (0.8 * 1 + 0.1 * 0.6728 + 0.1 * -0.076)  # 0.7337
# ```
#
# </details>

# %% [markdown]
# ## The backup
#
# In the library a sweep is one sparse matrix product. Read it beside the equation:

# %%
show(evaluation.action_values)

# %% [markdown]
# **Exercise 2.2.** Write the optimality backup for one state with plain loops. `P[s, a, t]` is the
# chance of $t$ after $a$ in $s$, `r[s, a]` the reward.


# %% tags=["exercise"]
def my_backup(P, r, gamma, V, s):
    # your code: the new value of state s
    ...


# %% tags=["check"]
with exercise("2.2"):
    P = np.array([[[0.5, 0.5], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    r = np.array([[1.0, 0.0], [0.0, 2.0]])
    V = np.array([1.0, 10.0])
    found = [my_backup(P, r, 0.5, V, s) for s in (0, 1)]
    assert found[0] != 3.75 + 5.0, "the best action, not the sum over actions"
    assert np.allclose(found, [5.0, 7.0]), "max over a of r[s, a] + γ Σ_t P[s, a, t] V[t]"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_backup(P, r, gamma, V, s):
#     best = -float("inf")
#     for a in range(r.shape[1]):
#         following = sum(P[s, a, t] * V[t] for t in range(len(V)))
#         best = max(best, r[s, a] + gamma * following)
#     return best
# ```
#
# </details>

# %% [markdown]
# ## To the end: value iteration and policy iteration
#
# Value iteration repeats the sweep until nothing changes. **Policy iteration** takes another way: what
# is my policy worth (a linear system), then which action would be better if I go on so afterwards?
# Both end at the same place.

# %%
errors, policies = [], []  # of V after each sweep; policies on the way
optimum = planning.policy_iteration(
    mdp, on_policy=lambda k, policy, values: policies.append((k, policy.copy(), values.copy()))
)
by_sweeps = planning.value_iteration(
    mdp,
    tolerance=1e-10,
    on_sweep=lambda k, values: errors.append(np.abs(values - optimum.values).max()),
)
draw(
    grid_plots.value_strip(
        grid,
        [(f"policy {k}", values, policy) for k, policy, values in policies],
        title="Policy iteration",
    )
)
print(
    f"{len(policies)} policies; {by_sweeps.sweeps} sweeps to a residual of {by_sweeps.residual:.1e}"
)
claim("both find the same values", np.allclose(optimum.values, by_sweeps.values, atol=1e-8))

# %% [markdown]
# ## Why it works: a contraction
#
# Begin with three tables of random numbers and sweep each. How far are they from the optimum?

# %%
rng = np.random.default_rng(0)
figure, axes = plt.subplots(figsize=(6.4, 3.2))
axes.semilogy(range(1, len(errors) + 1), errors, color="black", label="from zeros")
ratios = []
for number in range(3):
    values = rng.normal(0, 10, mdp.n_states)
    distances = [np.abs(values - optimum.values).max()]
    for _ in range(60):
        values = evaluation.action_values(mdp, values).max(axis=1)
        distances.append(np.abs(values - optimum.values).max())
    ratios += [b / a for a, b in zip(distances, distances[1:], strict=False) if a > 1e-9]
    axes.semilogy(distances, label=f"from random numbers, {number + 1}")
axes.semilogy(20 * mdp.gamma ** np.arange(61), "--", color="grey", label="γ to the power of sweeps")
axes.set(xlabel="sweeps", ylabel="largest error of V", ylim=(1e-13, 100))
axes.legend(fontsize=8)
print(f"the error after a sweep ÷ before it: at most {max(ratios):.3f}")
claim("each sweep leaves at most γ times the error", max(ratios) <= mdp.gamma + 1e-9)

# %% [markdown]
# *What to see.* A sweep brings any two tables closer by at least the factor γ. That is a
# **contraction**. So there is exactly one solution, and every beginning leads to it. All lines fall
# at least as steeply as the dashed one, and the first sweeps from random numbers hardly any faster: γ
# is not only a bound, it is reached.
#
# **Exercise 2.3.** From the list `errors` compute by what factor the error falls a sweep, over
# sweeps 10 to 20 (geometric mean).

# %% tags=["exercise"]
factor = ...

# %% tags=["check"]
with exercise("2.3"):
    assert 0 < factor < 1, "the error falls, so the factor is below 1"
    assert abs(factor - (errors[19] / errors[9]) ** 0.1) < 1e-3, (
        "errors[19] / errors[9] is ten factors multiplied: take the tenth root"
    )

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# factor = (errors[19] / errors[9]) ** (1 / 10)
# ```
#
# </details>

# %% [markdown]
# ## The price of a step
#
# What is best depends on the rewards alone, and not always as one expects. Four prices, γ = 1:

# %%
panels = []
for price in (-0.01, -0.03, -0.4, -2.0):
    priced = GridWorld("3x4", slip=0.2, step_reward=price)
    solved = planning.policy_iteration(priced.mdp(1.0, "state"))
    panels.append((f"each step {price:g}", solved.values, solved.policy))
draw(
    grid_plots.value_strip(
        grid, panels, title="The best policy for four step rewards", one_scale=False
    )
)
beside_fire = world.state_of(1, 2)
arrows = [int(policy[beside_fire]) for _, _, policy in panels]
print("beside the −1:", [["left", "down", "right", "up"][arrow] for arrow in arrows])
claim(
    "beside the −1: into the wall at −0.01, up at −0.03 and −0.4, into the −1 at −2",
    arrows == [0, 3, 3, 2],
)

# %% [markdown]
# *What to see.* With nearly free steps the cell left of −1 presses against the wall until it slips
# the right way: slow and safe. At −0.03 it dares to go up, but the bottom row still takes the long
# way, on the left. At −0.4 the bottom row too takes the short way past the fire. At −2 a step costs
# so much that the −1 is the better end. A reward is a wish, and one gets what one asked for, not what
# one meant. In lesson 8 language models do the same.
#
# ## Up, stay, or around?
#
# You stand left of the −1, the fire; the goal is up and then right. Three plans: *up* anyway, with a
# slip into the fire; *stay*, pressing left against the wall until a slip takes you up; or *down* and
# the long way around. How slippery must it be for each? The answer is in three action values of the
# optimum (γ = 0.99, a step costs 0.04):

# %%
PLANS = {"go up anyway": 3, "stay (press left)": 0, "the long way (down)": 1}
by_slip = {}
for slip in (0.1, 0.5):
    fire = GridWorld("3x4", slip=slip, step_reward=-0.04)
    solved = planning.policy_iteration(fire.mdp(0.99, "state"))
    by_slip[slip] = {name: float(solved.action_values[beside_fire, a]) for name, a in PLANS.items()}
    print(f"slip {slip:.0%}:", {name: round(value, 3) for name, value in by_slip[slip].items()})
    draw(grid_plots.value_grid(grid, solved.values, solved.policy, title=f"Slip {slip:.0%}"))
best = {slip: max(plans, key=lambda name: plans[name]) for slip, plans in by_slip.items()}
print("best:", best)
claim(
    "10 %: go up anyway. 50 %: stay", list(best.values()) == ["go up anyway", "stay (press left)"]
)

# %% [markdown]
# *What to see.* At 10 % one step in twenty slips into the fire; that is worth the time it saves. At
# 50 % it is one in four, and pressing against the wall is better: it *cannot* slip to the right, and
# goes up by itself one time in four. The long way is never best: its first step passes the fire too.
#
# **Exercise 2.4.** At which slip do "up" and "stay" tie? Find it to two digits (compute; do not guess).

# %% tags=["exercise"]
tie = ...  # for example 0.33

# %% tags=["check"]
with exercise("2.4"):

    def gap(slip):
        process = GridWorld("3x4", slip=slip, step_reward=-0.04).mdp(0.99, "state")
        q = planning.policy_iteration(process).action_values[beside_fire]
        return q[3] - q[0]

    assert 0 < tie < 1, "a probability"
    assert gap(tie - 0.01) > 0 > gap(tie + 0.01), (
        f"at a slip of {tie} up − stay is {gap(tie):+.4f}: the tie is where it changes sign"
    )

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def difference(slip):
#     process = GridWorld("3x4", slip=slip, step_reward=-0.04).mdp(0.99, "state")
#     q = planning.policy_iteration(process).action_values[beside_fire]
#     return q[3] - q[0]
#
#
# tie = next(s / 100 for s in range(1, 100) if difference(s / 100) <= 0)
# ```
#
# </details>

# %% [markdown]
# ## The discount
#
# γ says how far one looks. A reward $k$ steps away counts $\gamma^k$; about $1/(1-\gamma)$ steps
# count at all. In a 4×4 world the goal pays 1 and lies six steps from the start:

# %%
big = GridWorld("4x4", slip=0.2)
figure, axes = plt.subplots(figsize=(6.4, 3))
gammas = (0.5, 0.7, 0.9, 0.99)
start_values = [planning.policy_iteration(big.mdp(g)).values[big.starts[0]] for g in gammas]
axes.bar([f"γ = {g}" for g in gammas], start_values)
axes.set(ylabel="value of the start", ylim=(0, 1))
print({g: round(float(v), 3) for g, v in zip(gammas, start_values, strict=True)})

# %% [markdown]
# The discount changes not only values but also what is best. Here is the 3×4 world again; a step
# costs 0.02:

# %%
patient = GridWorld("3x4", slip=0.2, step_reward=-0.02)
panels = []
for gamma in (0.5, 0.9, 0.99, 1.0):
    solved = planning.policy_iteration(patient.mdp(gamma, "state"))
    panels.append((f"γ = {gamma:g}", solved.values, solved.policy))
draw(grid_plots.value_strip(grid, panels, title="The best policy for four discounts"))
below_fire = patient.state_of(2, 2)
claim("at 0.9 from below the short way, up", panels[1][2][below_fire] == 3)
claim("at 0.99 the long way, left", panels[2][2][below_fire] == 0)
claim("with γ = 1 it flees from the fire into the wall", panels[3][2][beside_fire] == 0)

# %% [markdown]
# *What to see.* A small γ is impatient: what is late is worth little, so it takes the short way and
# its risk. With γ = 1 nothing is too late, and safety costs only the steps.

# %% [markdown]
# ## An older 4×4 world, exactly
#
# Sutton & Barto's example 4.1: two opposite corners end the episode, every step costs 1, all moves
# are by chance. Its values are whole numbers, and they are in the book:

# %%
n = 4
P, r = np.zeros((16, 4, 16)), -np.ones((16, 4))
for s in range(16):
    for a, (down, across) in enumerate(((0, -1), (1, 0), (0, 1), (-1, 0))):
        row, column = divmod(s, n)
        t = min(max(row + down, 0), n - 1) * n + min(max(column + across, 0), n - 1)
        P[s, a, t] = 1.0
r[[0, 15]] = 0.0
corners = from_arrays(P, r, gamma=1.0, start=5, terminal=[0, 15])
chance = np.full((16, 4), 0.25)
by_chance = evaluation.policy_evaluation(corners, chance)
print(by_chance.reshape(4, 4).round(1))
book = [0, -14, -20, -22, -14, -18, -20, -20, -20, -20, -18, -14, -22, -20, -14, 0]
claim("the book's figure 4.1", np.allclose(by_chance, book))
better = evaluation.greedy(evaluation.action_values(corners, by_chance))
print(evaluation.policy_evaluation(corners, better).reshape(4, 4))
claim(
    "one improvement of chance is already the best policy",
    np.allclose(
        evaluation.policy_evaluation(corners, better), planning.policy_iteration(corners).values
    ),
)

# %% [markdown]
# *What to see.* The second table is minus the number of steps to the nearer corner. Chance played
# badly, and yet its *values* told which way to go. That is policy iteration in one step, and the idea
# behind every algorithm that follows: judge a policy, then improve it.

# %% [markdown]
# ## Not everything is a grid
#
# A crossing with a traffic light. *State*: four queues, how long the first car of each has waited,
# who has green, whether it is yellow, since when. *Action*: keep (0), ask green for north–south (1) or
# for east–west (2), or for both (3), which is a mistake and costs. *Reward*: minus the cars' waiting.
# Two controllers that people use:

# %%
light = environments.make("classic_rl/TrafficLight-v0")  # with its limit of twenty minutes
print("sees", light.observation_space, "does", light.action_space)


def waiting(controller, seed):
    """Return of one episode: minus the vehicle-minutes of waiting."""
    seen, _ = light.reset(seed=seed)
    total, ended = 0.0, False
    while not ended:
        seen, reward, terminated, truncated, _ = light.step(controller(seen))
        total += float(reward)
        ended = terminated or truncated
    return total


hours = range(either(20, 2))
controllers = {"fixed cycle of 12": FixedCycle(12), "longest queue first": LongestQueue()}
means = {name: np.mean([waiting(c, s) for s in hours]) for name, c in controllers.items()}
print({name: round(float(mean), 1) for name, mean in means.items()})
claim("looking is better than a clock", means["longest queue first"] > means["fixed cycle of 12"])

# %% [markdown]
# Four queues and four waits, at twenty levels each, are $20^8$ states, 26 billion. No table holds
# them: such a world needs a *function* of the state, lessons 4 to 6. PPO earns −92 there, the mean
# of five seeds ([results](../classic-rl/results.md)).
#
# ## Staying near a reference
#
# One more objective. Somebody's policy $\pi_{ref}$ is good, and we want more reward *without going
# far from it*:
#
# $$J_\beta(\pi) = E_\pi\Big[\sum_t r_t\Big] - \beta \, \mathrm{KL}(\pi \Vert \pi_{ref}),
# \qquad \pi^\ast(a \mid s) = \pi_{ref}(a \mid s)\, e^{(Q(s, a) - V(s))/\beta}$$
#
# This is how language models are tuned, with the model before tuning as the reference. (With a discount,
# as below, rewards and penalties $k$ steps away count $\gamma^k$.) In a table the
# optimum is exact: replace the maximum of the backup by a soft one,
# $V(s) = \beta \log \sum_a \pi_{ref}(a \mid s)\, e^{Q(s,a)/\beta}$. The library writes it such that no
# exponential overflows: the largest $Q$ is taken out first.

# %%
show(soft.soft_maximum)
reference = np.full((mdp.n_states, 4), 0.25)
paid = world.mdp(0.9)
panels = []
for beta in (1.0, 0.1, 0.01):
    solved = soft.soft_value_iteration(paid, reference, beta)
    panels.append((f"β = {beta:g}", solved.values, solved.policy))
draw(
    grid_plots.value_strip(
        grid, panels, title="The optimum near a policy by chance", one_scale=False
    )
)
hard = planning.policy_iteration(paid)
claim("β → 0 is the plain optimum", np.abs(panels[2][1] - hard.values).max() < 0.1)

# %% [markdown]
# *What to see.* An arrow is as long as its action is probable. A large β stays with chance, a small
# one does what pays. Every language model of lessons 7 to 10 is somewhere on this way.
#
# **Exercise 2.5.** One state, two actions, rewards `r`, a reference `p`. Compute $\pi^\ast$.


# %% tags=["exercise"]
def my_optimum(p, r, beta):
    # your code: two probabilities
    ...


# %% tags=["check"]
with exercise("2.5"):
    found = np.asarray(my_optimum(np.array([0.9, 0.1]), np.array([0.0, 1.0]), 0.5), dtype=float)
    assert np.isclose(found.sum(), 1), "probabilities sum to 1: divide by the sum"
    assert not np.allclose(found, np.exp([0, 2]) / np.exp([0, 2]).sum()), (
        "the reference is missing: what it likes stays likelier"
    )
    assert np.allclose(found, [0.5491, 0.4509], atol=1e-3), "p · exp(r / β), normalised"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_optimum(p, r, beta):
#     weights = p * np.exp(r / beta)
#     return weights / weights.sum()
# ```
#
# </details>

# %% [markdown]
# ## Run it on your own

# %%
mine = GridWorld(("S..#+", ".#...", "...-."), slip=0.3, step_reward=-0.05)  # draw another
solved = planning.policy_iteration(mine.mdp(gamma=0.95))
draw(grid_plots.value_grid(grid_of(mine), solved.values, solved.policy, title="Your world"))

# %% [markdown]
# Worth trying: find the step reward at which the policy beside the fire changes; make a world in
# which the best policy goes away from the goal first; give the 3×4 world a β so large that it prefers
# to stay by chance. From the command line: `python -m classic_rl value-iteration --env GridWorld3x4`.
# Next: the same world without knowing its rules, [Q-learning](03_q_learning.ipynb).
