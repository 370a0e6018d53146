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
# # 1. What reinforcement learning is
#
# After this lesson you can
#
# - say what an agent, an environment, a reward and a return are, and compute a return;
# - run any gymnasium environment, and tell an episode that *ended* from one that was *cut off*;
# - write an environment of your own and have it checked;
# - say what separates reinforcement learning from supervised learning.
#
# *Before*: a little Python. *Takes*: half a minute. *Beside it*: [plain words](../plain-words.md).

# %%
import sys
import tempfile
from pathlib import Path

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
from gymnasium.utils.env_checker import check_env
from lesson import claim, either, exercise, show

from classic_rl.envs import environments
from classic_rl.envs.gridworld import GridWorld

# %% [markdown]
# ## Agent and environment
#
# An **environment** is in a **state** $s$. The **agent** sees an observation of it and takes an
# **action** $a$. The environment moves on to a state $s'$ and pays a **reward** $r$. That repeats
# until the **episode** ends. Nothing else happens, in a grid world or in a language model.
#
# Here is one: Russell & Norvig's 3×4 world. `@` is the agent, `+` pays 1, `-` costs 1, `#` is a wall.

# %%
world = GridWorld("3x4", slip=0.2, step_reward=-0.04)
state, _ = world.reset(seed=0)
print(world.text())
plt.figure(figsize=(4, 3))
plt.imshow(world.picture())
plt.axis("off")

# %% [markdown]
# ## The loop
#
# Two calls are all there is: `reset` begins an episode, `step(action)` takes one action. `step` gives
# five things: observation, reward, *terminated* (the episode is over), *truncated* (it was only cut
# off) and a dictionary with whatever else there is to say.


# %%
def play(env, policy, seed):
    """Play one episode; its rewards, and how it ended."""
    observation, _ = env.reset(seed=seed)
    rewards, terminated, truncated = [], False, False
    while not (terminated or truncated):
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        rewards.append(float(reward))
    return rewards, "terminated" if terminated else "truncated"


rng = np.random.default_rng(0)
rewards, ended = play(world, lambda state: int(rng.integers(4)), seed=0)
print(f"{len(rewards)} steps, {ended}; the last rewards: {rewards[-4:]}")

# %% [markdown]
# Actions are numbers here: 0 left, 1 down, 2 right, 3 up. What may be seen and done is written in two
# *spaces*. They are part of the environment, so a program can read them.

# %%
for name in ("CartPole-v1", "FrozenLake-v1", "Pendulum-v1"):
    env = gym.make(name)
    print(f"{name:14s} sees {env.observation_space}, does {env.action_space}")

# %% [markdown]
# ## Return: what the agent is after
#
# The agent wants the **return**, the sum of rewards to come. A discount $0 < \gamma \le 1$ makes later
# rewards count less:
#
# $$G_t = r_t + \gamma r_{t+1} + \gamma^2 r_{t+2} + \dots = r_t + \gamma G_{t+1}$$
#
# The second form is the important one. It says that a return is one reward and another return. Every
# algorithm of this course uses it.
#
# **Exercise 1.1.** Compute the return of a list of rewards.


# %% tags=["exercise"]
def my_return(rewards, gamma):
    # your code
    ...


# %% tags=["check"]
with exercise("1.1"):
    assert my_return([5.0], 0.5) == 5.0, "one reward is its own return: nothing is discounted yet"
    assert my_return([1, 2, 3], 1.0) == 6.0, "with γ = 1 it is the plain sum"
    assert my_return([1, 2, 3], 0.5) != 4.25, "the discounts are the wrong way round: r₀ has none"
    assert my_return([1, 2, 3], 0.5) == 2.75, "1 + 0.5 · 2 + 0.25 · 3"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_return(rewards, gamma):
#     total = 0.0
#     for reward in reversed(rewards):  # G = r + γ · G′: begin at the end
#         total = reward + gamma * total
#     return total
# ```
#
# </details>

# %% [markdown]
# The library has the same line, for a whole batch of episodes at once. This very function also makes
# the advantages of the trainer for language models in lesson 7:

# %%
from classic_rl import advantages

show(advantages.discounted_sums)

# %% [markdown]
# ## Policies
#
# A **policy** $\pi(a \mid s)$ says what to do in each state. Two for CartPole: a coin, and one line of
# common sense, "push to the side to which the pole falls". CartPole pays 1 for every step that the
# pole stands.

# %%
cartpole = gym.make("CartPole-v1")
coin = np.random.default_rng(1)
policies = {
    "a coin": lambda seen: int(coin.integers(2)),
    "where it falls": lambda seen: int(seen[2] + seen[3] > 0),  # angle and angular velocity
}
episodes = either(100, 10)
returns = {
    name: [sum(play(cartpole, policy, seed)[0]) for seed in range(episodes)]
    for name, policy in policies.items()
}
figure, axes = plt.subplots(figsize=(6.4, 3))
for name, values in returns.items():
    print(f"{name:15s} mean return {np.mean(values):6.1f} over {episodes} episodes")
    axes.hist(values, bins=np.arange(0, 521, 20), alpha=0.7, label=name)
axes.set(xlabel="return of an episode", ylabel="episodes")
axes.legend()
claim(
    "common sense is better than a coin, five times at least",
    np.mean(returns["where it falls"]) > 5 * np.mean(returns["a coin"]),
)

# %% [markdown]
# *What to see.* One policy does not have one return. It has a *distribution* of returns, because
# episodes begin differently. So a policy is judged by the mean over many episodes, and a single good
# episode says little.

# %% [markdown]
# ## Ended or cut off?
#
# CartPole stops after 500 steps even if the pole still stands. That is *truncation*: nobody fell, we
# only stopped looking. What comes after such a step is worth something; what comes after a fall is
# worth nothing. Mixing the two up is the most common mistake in home-made code.
#
# **Exercise 1.2.** The value that is expected after a step is `next_value`. What is the step's
# *target* $r + \gamma V(s')$, if the episode was terminated, or truncated, by this step?


# %% tags=["exercise"]
def my_target(reward, gamma, next_value, terminated, truncated):
    # your code
    ...


# %% tags=["check"]
with exercise("1.2"):
    assert my_target(1.0, 0.9, 10.0, False, False) == 10.0, "in mid-episode: r + γV"
    assert my_target(1.0, 0.9, 10.0, True, False) == 1.0, "after a fall there is no future: r alone"
    assert my_target(1.0, 0.9, 10.0, False, True) == 10.0, (
        "cut off is not over: the future is there, it was only not watched"
    )
    assert my_target(1.0, 0.9, 10.0, True, True) == 1.0, (
        "a fall in the very last step is both: it is over, whatever the clock says"
    )

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_target(reward, gamma, next_value, terminated, truncated):
#     return reward + gamma * (0.0 if terminated else next_value)
# ```
#
# </details>

# %% [markdown]
# The library's line, in generalised advantage estimation:

# %%
show(advantages.gae, "delta =", "delta =")

# %% [markdown]
# ## Seeds
#
# `reset(seed=…)` makes an episode repeatable, as long as the agent's own chance is repeatable too. A
# result without seeds cannot be checked, and a result of one seed is an anecdote.

# %%
first, second = (play(cartpole, policies["where it falls"], seed=7)[0] for _ in range(2))
claim("the same seed, the same episode", first == second)

# %% [markdown]
# ## Wrappers, and many environments at once
#
# A *wrapper* changes what an environment shows, takes or pays, and leaves its inside alone. Here the
# time limit is set to 50. A *vector environment* plays several at once; networks like batches.

# %%
short = gym.wrappers.TimeLimit(cartpole.unwrapped, max_episode_steps=50)
rewards, ended = play(short, policies["where it falls"], seed=7)
print(f"with a limit of 50: {len(rewards)} steps, {ended}")

many = environments.make_vector("CartPole-v1", 4)
observations, _ = many.reset(seed=0)
observations, rewards, terminations, truncations, _ = many.step(np.array([0, 1, 0, 1]))
print("four at once:", observations.shape, rewards)
many.close()

# %% [markdown]
# ## An environment of your own
#
# A thermostat: the room is at some temperature, heating costs 1 a step, being 1 degree off costs 1
# too. The state is the temperature in whole degrees, 15 to 25. It needs two spaces, `reset` and
# `step`, and nothing else.


# %%
class Thermostat(gym.Env):
    """Keep a room at 20 degrees; it cools by itself, and heating costs."""

    def __init__(self, wanted=20):
        self.wanted = wanted
        self.observation_space = gym.spaces.Discrete(11)  # 15 to 25 degrees
        self.action_space = gym.spaces.Discrete(2)  # 0 off, 1 heat

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)  # makes self.np_random repeatable
        self.degrees = int(self.np_random.integers(15, 26))
        return self.degrees - 15, {}

    def step(self, action):
        change = 1 if action == 1 else -1
        if self.np_random.random() < 0.2:  # somebody opens a window
            change -= 1
        self.degrees = int(np.clip(self.degrees + change, 15, 25))
        reward = -abs(self.degrees - self.wanted) - float(action)
        return self.degrees - 15, reward, False, False, {}


check_env(Thermostat(), skip_render_check=True)
gym.register("Thermostat-v0", entry_point=Thermostat, max_episode_steps=50)
print("checked and registered")

# %% [markdown]
# It never terminates: a room has no end. Without `max_episode_steps` an episode would not stop, and
# only the limit, a truncation, ends it. Every algorithm here that learns from steps takes it now, by its name:

# %%
thermostat = environments.make("Thermostat-v0")
print("always heat  ", sum(play(thermostat, lambda seen: 1, 0)[0]))
print("below 20 heat", sum(play(thermostat, lambda seen: int(seen < 5), 0)[0]))

# %% [markdown]
# An environment that is to be used again stands in a file. `module:Env-v0` then names both: gymnasium
# imports what stands before the colon, and the module registers what stands behind it. Here is a
# corridor of five cells; its last one ends the episode.

# %%
CORRIDOR = """
import gymnasium as gym


class Corridor(gym.Env):
    observation_space = gym.spaces.Discrete(5)
    action_space = gym.spaces.Discrete(2)  # 0 left, 1 right

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = 0
        return self.cell, {}

    def step(self, action):
        self.cell = max(self.cell + (1 if action == 1 else -1), 0)
        at_the_end = self.cell == 4
        return self.cell, float(at_the_end), at_the_end, False, {}


gym.register("Corridor-v0", entry_point=Corridor, max_episode_steps=20)
"""
folder = tempfile.mkdtemp()
Path(folder, "my_rooms.py").write_text(CORRIDOR, encoding="utf-8")
sys.path.insert(0, folder)  # where Python looks for modules
corridor = gym.make("my_rooms:Corridor-v0")
for name, policy in (("always right", lambda cell: 1), ("always left", lambda cell: 0)):
    rewards, ended = play(corridor, policy, seed=0)
    print(f"{name:12s} {len(rewards):2d} steps, return {sum(rewards):g}, {ended}")

# %% [markdown]
# *What to see.* The same world ends in both ways: at its last cell, or at its limit.
#
# **Exercise 1.3.** Back to the thermostat. Write a better rule: a policy of the observation (degrees − 15) with a higher mean
# return than "heat below 20". *Hint*: the room cools by itself, so what happens in the next step?


# %% tags=["exercise"]
def my_rule(seen):
    # your code: 1 to heat, 0 not to
    ...


# %% tags=["check"]
with exercise("1.3"):
    assert my_rule(0) in (0, 1), "an action is 0 or 1"
    mine = np.mean([sum(play(thermostat, my_rule, seed)[0]) for seed in range(20)])
    simple = np.mean(
        [sum(play(thermostat, lambda seen: int(seen < 5), seed)[0]) for seed in range(20)]
    )
    assert mine > simple, (
        f"yours earns {mine:.1f} and 'heat below 20' {simple:.1f}: what would heating at exactly"
        " 20 degrees change?"
    )

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_rule(seen):
#     return int(seen <= 5)  # at 20 too: without heat it would be 19, or 18 with the window open
# ```
#
# </details>

# %% [markdown]
# You searched for that rule by hand. Lesson 2 computes the best one when the chances are known, and
# lesson 3 when they are not.

# %% [markdown]
# ## Beside supervised learning
#
# In supervised learning somebody shows the right answer. Here nobody does: there is only a number
# that says how good the answer was that we gave. Two slot machines make the difference plain. The
# supervised learner is told after each pull what *both* machines would have paid. The reinforcement
# learner sees only its own.

# %%
chances = np.array([0.4, 0.6])
pulls, runs = either(400, 40), either(500, 5)
rng = np.random.default_rng(0)
paid = (rng.random((runs, pulls, 2)) < chances).astype(float)  # of both machines, each pull


def regret(full_information, epsilon):
    """What is lost to the better machine so far, mean over the runs ``(pulls,)``."""
    lost = np.zeros((runs, pulls))
    for run in range(runs):
        count, total = np.zeros(2), np.zeros(2)
        for pull in range(pulls):
            mean = np.where(count > 0, total / np.maximum(count, 1), 0.5)
            explore = rng.random() < epsilon
            arm = int(rng.integers(2)) if explore else int(mean.argmax())
            lost[run, pull] = chances.max() - chances[arm]
            seen = [0, 1] if full_information else [arm]
            count[seen] += 1
            total[seen] += paid[run, pull, seen]
    return lost.cumsum(1).mean(0)


losses = {
    "supervised: sees both": regret(True, 0.0),
    "RL, always the best so far": regret(False, 0.0),
    "RL, one pull in ten at random": regret(False, 0.1),
}
figure, axes = plt.subplots(figsize=(6.4, 3.4))
for name, curve in losses.items():
    axes.plot(curve, label=name)
    print(f"{name:30s} {curve[-1]:5.1f} coins lost after {pulls} pulls")
axes.set(xlabel="pulls", ylabel="coins lost to the better machine")
axes.legend()
last = {name: curve[-1] for name, curve in losses.items()}
claim(
    "seeing both is best, and never exploring is worst",
    last["supervised: sees both"]
    < last["RL, one pull in ten at random"]
    < last["RL, always the best so far"],
)

# %% [markdown]
# *What to see.* The supervised learner soon stops losing. The one that never explores sometimes
# stays with the worse machine for ever: it never learns that it is wrong, as it never looks. Some
# exploring pays, and costs for ever. That is the *exploration* problem. Two more things are missing
# here that the rest has: actions change the next state, and the reward for an action may come later.
#
# | | supervised | reinforcement |
# | --- | --- | --- |
# | what is told | the right answer | how good yours was |
# | data | given | made by the agent's own actions |
# | an error | costs once | may change all that follows |
# | fine-tuning a language model | SFT: the next token of a text | PPO: a score for a whole text |

# %% [markdown]
# ## Elsewhere
#
# Several agents at once are PettingZoo's subject, physics with many joints DM Control's. Both are
# packages of their own, with a loop of their own. *Shimmy* gives DM Control's worlds gymnasium's loop:
# `import shimmy`, `gym.register_envs(shimmy)`, `gym.make("dm_control/cartpole-swingup-v0")`.

# %%
try:
    from pettingzoo.classic import tictactoe_v3  # pyright: ignore[reportMissingImports]

    game = tictactoe_v3.env()
    game.reset(seed=0)
    print("PettingZoo: the first to move is", game.agent_selection)
except ImportError:
    print("PettingZoo: pip install 'pettingzoo[classic]', then run this cell again")
try:
    from dm_control import suite  # pyright: ignore[reportMissingImports]

    swing = suite.load("cartpole", "swingup")
    print("DM Control's action:", swing.action_spec())
except (ImportError, AttributeError):  # the second: dm_control 1.0.50 beside mujoco 4
    print("DM Control: pip install 'shimmy[dm-control]' 'mujoco<4', then run this cell again")

# %% [markdown]
# ## Run it on your own
#
# Change the name; `python -m classic_rl --help` lists algorithms.

# %%
mine = "MountainCar-v0"  # any environment that gymnasium knows
env = gym.make(mine)
env.action_space.seed(0)
rewards, ended = play(env, lambda seen: env.action_space.sample(), seed=0)
print(f"{mine}: {len(rewards)} steps, return {sum(rewards):g}, {ended}")

# %% [markdown]
# Worth trying: give the thermostat a goal that ends the episode and see `terminated`; make the
# window open half of the time; let the learner with ε = 0.1 explore less and less. Next:
# [MDPs](02_mdps.ipynb).
