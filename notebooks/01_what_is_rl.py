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
# An agent acts, an environment answers with a state and a reward. You will …
#
# *Before*: nothing. *Takes*: under a minute.

# %%
from lesson import exercise

# %% [markdown]
# ## Exercise 1.1: the return
#
# Write $G = r_0 + \gamma r_1 + \gamma^2 r_2 + …$


# %% tags=["exercise"]
def my_return(rewards, gamma):
    # your code
    ...


# %% tags=["check"]
with exercise("1.1"):
    assert my_return([1, 2, 3], 0.5) == 2.75, "begin at the end: G = r + γ · G′"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_return(rewards, gamma):
#     total = 0.0
#     for reward in reversed(rewards):
#         total = reward + gamma * total
#     return total
# ```
#
# </details>
