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
# # 7. PPO for language models
#
# After this lesson you can
#
# - write text generation as a decision process: state, action, reward and episode;
# - compute the best policy $\pi^{\ast} \propto \pi_{ref}\,e^{r/\beta}$ and hold PPO against it;
# - say which estimate of the KL is biased, as a value and as a gradient, and where to charge it;
# - read what PPO sees of every token, and follow the trainer line by line.
#
# *Before*: [PPO](06_ppo.ipynb). *Takes*: about two minutes. *Beside it*: [the
# certificate](../certificate.md), [PPO's metrics](../ppo-metrics.md), [coming from
# TRL](../coming-from-trl.md).

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from lesson import claim, either, exercise, show
from transformers import PrinterCallback

from classic_rl import losses
from classic_rl.advantages import completion_gae, masked_mean
from classic_rl.deep.reference import optimality
from classic_rl.tabular.soft import soft_value_iteration
from pipeline.certify.methods import METHODS
from pipeline.certify.problem import EOS, LENGTH, TOKENS, Problem, distance, next_token_table
from pipeline.config.sections import ModelSection
from pipeline.lm.models import load_base, make_trainable
from pipeline.output import quiet
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.ppo import rollout as steps
from pipeline.ppo.actor_critic import TokenRecord

quiet.before_imports()  # the libraries' warnings and bars stay away
quiet.after_imports()

# %% [markdown]
# ## Text is an episode
#
# | | CartPole | a language model |
# | --- | --- | --- |
# | state $s_t$ | four numbers | the prompt and the tokens so far |
# | action $a_t$ | left or right | the next token |
# | transition | physics | the token is appended: nothing is left to chance |
# | reward | 1 a step | 0, and at the last token the score $r(x, y)$ of the whole text |
# | episode | until the pole falls | one completion $y$, until EOS or the length limit |
# | discount γ | 0.99 | 1: a text has an end |
# | policy | a small network | the language model itself |
#
# `TokenMDP` is that, so small that every completion can be listed. Its reference policy is a *real*
# GPT-2 with random weights, which writes at most three of five tokens.

# %%
BETA = 0.6
problem = Problem(seed=1, beta=BETA)
env = problem.env
print(f"{len(env.names)} tokens, {len(env.prefixes)} states, {len(env.sequences)} completions")

state, _ = env.reset(seed=0)
picture = env.picture()
for token in (2, 3, EOS):
    state, reward, terminated, _, _ = env.step(token)
    print(
        f"action {env.names[token]:6s} state {env.words(state):12s} reward {reward:+.2f} {terminated}"
    )
plt.figure(figsize=(5, 3))
plt.imshow(picture)
plt.axis("off")

# %% [markdown]
# *What to see.* The empty text, with what the reference would write first. Two actions earn nothing, the last earns the whole score. Which token made the text
# good? That is the credit assignment of lesson 5, with an action space of 5 here and about 49,000 in a
# real model.
#
# ## The goal, and its solution in closed form
#
# Reward alone is not the goal. A model that only seeks reward leaves the language that it was
# trained on. So every nat of distance from a **reference** $\pi_{ref}$ (the model before PPO) costs β:
#
# $$J(\pi) = E_{y \sim \pi}[r(y)] - \beta\,KL(\pi \,\|\, \pi_{ref})$$
#
# The best policy is known: $\pi^{\ast}(y) = \pi_{ref}(y)\,e^{r(y)/\beta} / Z$, with the value
# $J^{\ast} = \beta \log Z$. A real model has too many completions to compute $Z$. Here there are 85.
#
# **Exercise 7.1.** Compute $\pi^{\ast}(y)$ of every completion.


# %% tags=["exercise"]
def my_optimum(reference, rewards, beta):
    # your code: reference, rewards are arrays (N,)
    ...


# %% tags=["check"]
with exercise("7.1"):
    two, paid = np.array([0.75, 0.25]), np.array([0.0, np.log(3.0)])
    mine = np.asarray(my_optimum(two, paid, 1.0) * 1.0, dtype=float)
    assert mine.shape == (2,), "one probability for each completion"
    assert abs(mine.sum() - 1) < 1e-9, "probabilities sum to 1: divide by Z"
    assert not np.allclose(mine, [0.25, 0.75]), "π_ref is missing: only e^(r/β) is left"
    assert np.allclose(mine, [0.5, 0.5]), "0.75 · 1 and 0.25 · 3 are equal, so both have 1/2"
    half = np.asarray(my_optimum(two, paid, 0.5), dtype=float)
    assert half[1] > 0.5, "a smaller β lets the reward decide more: divide r by β, do not multiply"
    assert np.allclose(half, [0.25, 0.75]), "with β = 1/2 the second weighs 0.25 · 9"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_optimum(reference, rewards, beta):
#     weights = reference * np.exp(rewards / beta)
#     return weights / weights.sum()
# ```
#
# </details>

# %%
best, best_value = env.optimum(BETA)
soft = soft_value_iteration(env.mdp(), env.reference, BETA)
charged = problem.rewards - BETA * np.log(best / problem.reference)
print(f"J*: enumerated {best_value:.6f}, by soft value iteration {soft.objective:.6f}")
print(f"r(y) − β log π*/π_ref over all y: {charged.min():.6f} to {charged.max():.6f}")
claim("two ways give the same J*", abs(best_value - soft.objective) < 1e-9)
claim("at π* every completion earns the same, after KL: J*", np.ptp(charged) < 1e-9)

order = np.argsort(-best)[:12]
names = [" ".join(TOKENS[token] for token in env.sequences[y]) for y in order]
figure, axes = plt.subplots(figsize=(6.4, 3.6))
place = np.arange(len(order))
axes.barh(place - 0.2, problem.reference[order], 0.4, label="π_ref")
axes.barh(place + 0.2, best[order], 0.4, label="π*")
axes.set_yticks(
    place, [f"{n}  ({problem.rewards[y]:+.1f})" for n, y in zip(names, order, strict=True)]
)
axes.invert_yaxis()
axes.set(xlabel="probability", title=f"completions (reward), β = {BETA}")
axes.legend()

# %% [markdown]
# *What to see.* π* does not write the best completion alone. It raises what is paid well *in
# proportion to* what the reference would write. And at π* the reward less its KL is the same for all
# completions: no advantage is left, so PPO has nothing more to learn. That is how it should end.

# %% [markdown]
# ## The functions of lesson 6, on tokens
#
# PPO needs little that is new. Charge every token for its log-ratio to the reference, pay the score at
# the last, and go on as before:
#
# $$r_t = -\beta\,\big(\log\pi(a_t \mid s_t) - \log\pi_{ref}(a_t \mid s_t)\big) + [t = T - 1]\; r(x, y)$$

# %%
show(steps.token_rewards)

# %% [markdown]
# **Exercise 7.2.** Do it for one batch: `scores` is `(B,)`, the others `(B, T)`. `mask` is True on the
# tokens of each completion; completions have different lengths.


# %% tags=["exercise"]
def my_token_rewards(scores, logps, ref_logps, mask, beta):
    # your code
    ...


# %% tags=["check"]
with exercise("7.2"):
    mask = torch.tensor([[True, True, True], [True, False, False]])
    logps = torch.tensor([[-1.0, -1.0, -1.0], [-1.0, -9.0, -9.0]])
    ref_logps = torch.tensor([[-2.0, -1.0, -1.0], [-1.0, -5.0, -5.0]])
    paid = my_token_rewards(torch.tensor([5.0, 7.0]), logps, ref_logps, mask, 0.5)
    assert paid.shape == (2, 3), "one number for each token"
    assert paid[0, 0] != 0.5, "a token that π likes more than π_ref does costs: −β, not +β"
    assert paid[1, 2] == 0, "nothing is paid where there is no token"
    assert paid[1, 0] == 7, (
        "the score belongs to the last token of this completion, not of the batch"
    )
    assert paid.tolist() == [[-0.5, 0, 5], [7, 0, 0]], (
        "−β times the log-ratio, the score at the end"
    )

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_token_rewards(scores, logps, ref_logps, mask, beta):
#     paid = torch.where(mask, -beta * (logps - ref_logps), 0.0)
#     last = mask.sum(1) - 1
#     paid[torch.arange(len(paid)), last] += scores
#     return paid
# ```
#
# </details>

# %% [markdown]
# Now PPO with a *table* for a policy: one row of logits and one value for each state. Everything below
# is what lessons 5 and 6 used; only `token_rewards` is the trainer's own.

# %%
children, ends = torch.from_numpy(env.children), torch.from_numpy(env.terminal)
log_reference = torch.from_numpy(env.reference).log().float()
score_of = torch.zeros(len(env.prefixes))
score_of[ends] = torch.tensor(problem.rewards, dtype=torch.float32)


@torch.no_grad()
def write(logits, count, generator):
    """States, tokens and mask ``(count, T)`` of completions, and the scores ``(count,)``."""
    state = torch.zeros(count, dtype=torch.long)
    states, tokens, mask = [], [], []
    for _ in range(LENGTH):
        token = logits[state].softmax(-1).multinomial(1, generator=generator)[:, 0]
        states.append(state)
        tokens.append(token)
        mask.append(~ends[state])
        state = children[state, token]  # a finished one stays where it is
    return torch.stack(states, 1), torch.stack(tokens, 1), torch.stack(mask, 1), score_of[state]


def table_ppo(updates, estimator="k1", count=512, seed=0):
    """PPO on a table; the optimality after each update."""
    generator = torch.Generator().manual_seed(seed)
    logits = log_reference.clone().requires_grad_()
    values = torch.zeros(len(ends), requires_grad=True)
    optimizer = torch.optim.Adam(
        [{"params": [logits], "lr": 0.03}, {"params": [values], "lr": 0.1}]
    )
    fade = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, updates)
    curve = []
    for _ in range(updates):
        states, tokens, mask, scores = write(logits, count, generator)
        at = states, tokens
        with torch.no_grad():
            logps, ref_logps = logits.log_softmax(-1)[at], log_reference[at]
            blank = torch.zeros_like(logps)
            record = TokenRecord(logps, values[states], blank, ref_logps, blank)
            rewards = steps.token_rewards(scores, record, mask, BETA, estimator)
            old = values[states]
            advantages, returns = completion_gae(rewards, old, mask, gamma=1.0, lam=1.0)
        for _ in range(4):
            log_ratio = logits.log_softmax(-1)[at] - logps
            policy = losses.clipped_surrogate(log_ratio, advantages, 0.2)
            critic = losses.value_loss(values[states], returns, old, None)
            loss = masked_mean(policy + critic, mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        fade.step()
        curve.append(optimality(env, logits.detach().double().softmax(-1).numpy(), BETA))
    return curve


curve = table_ppo(either(150, 3))
print(f"optimality after {len(curve)} updates: {curve[-1]:.4f} (0: the reference, 1: π*)")
claim("PPO on a table comes to π*", curve[-1] > 0.99)

# %% [markdown]
# ## KL: four ways to measure it
#
# $KL(\pi\|\pi_{ref})$ of a state is a sum over all tokens. With one sampled token there are three estimates
# (Schulman 2020, *Approximating KL divergence*). With $\rho = \pi_{ref}(a)/\pi(a)$:
#
# | | formula | as a value |
# | --- | --- | --- |
# | k1 | $-\log\rho$ | unbiased, may be negative |
# | k2 | $\frac12 \log^2 \rho$ | biased, never negative |
# | k3 | $\rho - 1 - \log\rho$ | unbiased, never negative |
# | exact | $\sum_a \pi(a) \log\frac{\pi(a)}{\pi_{ref}(a)}$ | no estimate of the state; needs all logits |
#
# **Exercise 7.3.** Write k3 from log-probabilities.


# %% tags=["exercise"]
def my_k3(logps, ref_logps):
    # your code
    ...


# %% tags=["check"]
with exercise("7.3"):
    one = my_k3(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())
    assert one.item() >= 0, "k3 is never negative: is −log ρ, and not +log ρ, its last term?"
    assert abs(one.item() - 0.307) > 0.01, "ρ is π_ref/π, not π/π_ref: we sample from π"
    assert abs(one.item() - 0.193) < 0.01, "ρ = 1/2: 1/2 − 1 + log 2"
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    mean = (p * my_k3(p.log(), q.log())).sum()
    assert abs(mean - (p * (p / q).log()).sum()) < 1e-5, "its mean over π is the KL"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_k3(logps, ref_logps):
#     log_rho = ref_logps - logps
#     return log_rho.exp() - 1 - log_rho
# ```
#
# </details>

# %%
show(losses.kl_estimate)

# %% [markdown]
# ### As a value
#
# We walk from π_ref to π*, and half as far again: $\log\pi_s = (1 - s)\log\pi_{ref} + s\log\pi^{\ast}$ in each
# state. At each place mean and standard deviation of each estimate, summed over a completion's tokens,
# are computed over all 85 completions. Nothing is sampled.

# %%
every = [list(y) + [EOS] * (LENGTH - len(y)) for y in env.sequences]
all_tokens = torch.tensor(every)
all_mask = torch.tensor([[t < len(y) for t in range(LENGTH)] for y in env.sequences])
all_states = torch.zeros_like(all_tokens)
for t in range(1, LENGTH):
    all_states[:, t] = children[all_states[:, t - 1], all_tokens[:, t - 1]]
log_ref = torch.from_numpy(env.reference).log()
log_best = torch.from_numpy(soft.policy).clamp(min=1e-300).log()
log_best[ends] = log_ref[ends]


def per_token(log_policy):
    """Log-probabilities of the tokens of all completions by π and π_ref, zero off the mask."""
    pick = all_states, all_tokens
    return (torch.where(all_mask, table[pick], 0.0) for table in (log_policy, log_ref))


def exact_kl(log_policy):
    """KL(π‖π_ref) of the state before each token ``(N, T)``, zero off the mask."""
    of_state = (log_policy.exp() * (log_policy - log_ref)).sum(-1)
    return torch.where(all_mask, of_state[all_states], 0.0)


def estimates(log_policy):
    """``(N, T)`` of each way to measure."""
    logps, ref_logps = per_token(log_policy)
    made = {k: losses.kl_estimate(logps, ref_logps, k) for k in ("k1", "k2", "k3")}
    return made | {"exact": exact_kl(log_policy)}


places = torch.linspace(0, 1.5, 31)
means, deviations = {}, {}
for s in places.tolist():
    log_policy = torch.log_softmax((1 - s) * log_ref + s * log_best, -1)
    logps, _ = per_token(log_policy)
    chances = logps.sum(1).exp()
    for name, tokens in estimates(log_policy).items():
        total = tokens.sum(1)
        mean = chances @ total
        means.setdefault(name, []).append(mean.item())
        deviations.setdefault(name, []).append((chances @ (total - mean) ** 2).sqrt().item())
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4))
styles = {"k1": "-", "k2": "--", "k3": "-.", "exact": ":"}
for name, style in styles.items():
    left.plot(places, means[name], style, label=name, linewidth=2.5 if name == "exact" else 1.5)
    right.plot(places, deviations[name], style, label=name)
left.set(xlabel="s: 0 is π_ref, 1 is π*", ylabel="mean, nats a completion")
right.set(xlabel="s: 0 is π_ref, 1 is π*", ylabel="standard deviation, nats")
left.legend()
figure.tight_layout()

at_best = int((places - 1).abs().argmin())
for name in styles:
    mean, deviation = means[name][at_best], deviations[name][at_best]
    print(f"{name:6s} at π*: mean {mean:.3f}, standard deviation {deviation:.3f} nats")
claim("KL(π*‖π_ref) is the problem's own", abs(means["k1"][at_best] - problem.kl) < 1e-6)
claim(
    "k1, k3 and exact have one mean",
    np.ptp([means[k][at_best] for k in ("k1", "k3", "exact")]) < 1e-6,
)
claim("k2 has another", abs(means["k2"][at_best] - problem.kl) > 0.01)
claim("exact is the least noisy", min(deviations, key=lambda k: deviations[k][at_best]) == "exact")
claim("k3 is quieter than k1 near π_ref", deviations["k3"][5] < deviations["k1"][5])
claim("and louder at π*", deviations["k3"][at_best] > deviations["k1"][at_best])

# %% [markdown]
# *What to see.* On the left three lines are one; k2 leaves them. On the right k3, often called the best of
# the sampled ones, is the quietest of them near π_ref and by far the loudest at π*: there $\rho$ is
# large for tokens that π has nearly given up. The exact KL has only the noise of which
# states are met: read that one where you can. The trainer logs `objective/kl` (k1),
# `objective/kl_k3` and `objective/kl_exact`.

# %% [markdown]
# ### As a gradient
#
# A good value is not yet a good penalty. There are two places to charge it. *In the reward*, the penalty is
# taken as a number, and $\nabla\log\pi$ does the rest. *In the loss*, the estimate itself is
# differentiated. We compute what each has for its expected gradient and hold it against the true
# $\nabla KL(\pi\|\pi_{ref})$, over all completions, at the policy halfway to π*.

# %%
half = torch.log_softmax(0.5 * log_ref + 0.5 * log_best, -1)


def gradient(penalty):
    """Of a scalar function of the log-policy, by the logits of all states, as one vector."""
    logits = half.clone().requires_grad_()
    penalty(torch.log_softmax(logits, -1)).backward()
    return logits.grad[~ends].flatten()


with torch.no_grad():
    weights = next(iter(per_token(half))).sum(1, keepdim=True).exp()  # π(y), a number here
    numbers = estimates(half)


def in_reward(name, following=0):
    """E[Σ_t ∇ log π(a_t) · Σ_{t' ≥ t} k_{t'}]; with ``following`` = 1 only later tokens' k."""
    paid = numbers[name]
    to_go = paid.flip(1).cumsum(1).flip(1) - following * paid
    return gradient(lambda log_policy: (weights * next(iter(per_token(log_policy))) * to_go).sum())


def in_loss(name):
    """E[Σ_t ∇ k_t]."""
    return gradient(lambda log_policy: (weights * estimates(log_policy)[name]).sum())


def true_kl(log_policy):
    logps, ref_logps = per_token(log_policy)
    return (logps.sum(1).exp() * (logps - ref_logps).sum(1)).sum()


true = gradient(true_kl)
found = {f"{k} in the reward": in_reward(k) for k in ("k1", "k2", "k3")}
found |= {f"{k} in the loss": in_loss(k) for k in ("k1", "k2", "k3")}
found["exact, both"] = in_loss("exact") + in_reward("exact", following=1)
errors = {}
for name, vector in found.items():
    errors[name] = ((vector - true).norm() / true.norm()).item()
    cosine = torch.cosine_similarity(vector, true, dim=0).item() if vector.norm() > 1e-9 else 0.0
    size = (vector.norm() / true.norm()).item()
    print(
        f"{name:17s} length {size:5.2f} of the true one, cosine {cosine:+.2f}, error {errors[name]:.2f}"
    )
figure, axes = plt.subplots(figsize=(6.4, 3))
axes.barh(list(errors), list(errors.values()))
axes.invert_yaxis()
axes.set(xlabel="error of the expected gradient, relative to the true one")
claim("k1 in the reward is right", errors["k1 in the reward"] < 1e-6)
claim("k1 in the loss is no penalty at all", found["k1 in the loss"].norm() < 1e-6)
claim(
    "the exact KL, own in the loss and later ones in the reward, is right",
    errors["exact, both"] < 1e-6,
)
claim("all others are wrong", all(errors[k] > 0.1 for k in errors if "k2" in k or "k3" in k))

# %% [markdown]
# *What to see.* k3's *value* is right and its *penalty in the reward* is wrong; k1, which may be
# negative, has the right gradient there. Why: a policy gradient leaves out the penalty's own
# gradient. For k1 that is $E[\nabla\log\pi] = 0$, nothing is lost. For k2 and k3 it is not 0, so what is
# left has a bias, and for tokens below the reference even the wrong sign. In the loss, a token does not answer
# for the KL of the tokens after it: another optimum, which is GRPO's. The trainer's `kl_estimator`
# is `k1` by default; `exact` is the last line. Does it matter in the end?

# %%
ended = {name: table_ppo(either(150, 3), name)[-1] for name in ("k1", "k2", "k3")}
for name, share in ended.items():
    print(f"{name} in the reward: optimality {share:+.3f}")
claim("k2 and k3 in the reward miss the optimum", max(ended["k2"], ended["k3"]) < 0.9 < ended["k1"])

# %% [markdown]
# That is one seed and a table; [the certificate](../certificate.md) has five seeds of language models.

# %% [markdown]
# ## A real model, token by token
#
# Now the trainer. The policy is SmolLM2-135M, of which the upper four layers are trained; the reward
# is a Python function that counts words of praise. A few rollouts of 32 completions: enough to look
# inside, far too few to judge.

# %%
PRAISE = {
    "good",
    "great",
    "love",
    "loved",
    "lovely",
    "wonderful",
    "best",
    "funny",
    "beautiful",
    "fun",
    "excellent",
    "brilliant",
    "enjoy",
    "enjoyed",
    "perfect",
    "amazing",
    "warm",
    "clever",
    "charming",
    "moving",
    "pleasant",
    "nice",
    "happy",
    "fantastic",
}


def praise(prompts, completions):
    """One score for each completion: its words of praise."""
    return [
        float(sum(w.strip(".,!?\"'").lower() in PRAISE for w in c.split())) for c in completions
    ]


name, layers = either(("embedded:smollm2-135m-instruct", 4), ("toy", None))
section = ModelSection(model_name_or_path=name, trainable_layers=layers, dtype="float32")
model, tokenizer = load_base(section)
policy = make_trainable(model, section)
folder = Path(tempfile.mkdtemp())
args = PPOConfig(
    output_dir=str(folder),
    response_length=either(14, 6),
    per_device_train_batch_size=either(16, 4),
    num_mini_batches=2,
    num_ppo_epochs=2,
    total_episodes=either(4 * 32, 2 * 8),
    kl_coef=0.1,
    learning_rate=2e-4,
    value_learning_rate=1e-3,
    log_completions=8,
    save_strategy="no",
    use_cpu=True,
    bf16=False,
    disable_tqdm=True,
    seed=0,
)
prompts = ["The film is", "This movie was", "The story of", "I think the actors"] * either(8, 2)
trainer = PPOTrainer(policy, praise, args, tokenizer, prompts)
trainer.remove_callback(PrinterCallback)
trainer.train()

rollouts = [json.loads(file.read_text()) for file in sorted((folder / "rollouts").glob("*.json"))]
for made in rollouts:
    print(
        f"step {made['step']:2d}: score {made['metrics']['objective/scores']:.2f},"
        f" KL {made['metrics']['objective/kl_exact']:.2f} nats a completion"
    )

# %% [markdown]
# The trainer keeps some completions of each rollout with all that it knew of every token (`rlhf inspect`
# shows them as a page). One of the last rollout:

# %%
text = max(rollouts[-1]["completions"], key=lambda made: made["score"])
columns = {
    "log π": "logp",
    "log π_ref": "ref_logp",
    "KL, exact": "kl",
    "reward": "reward",
    "return": "return",
    "value": "value",
    "advantage": "advantage",
}
numbers_of = np.array([text[key] for key in columns.values()], dtype=float).T
figure, axes = plt.subplots(figsize=(7, 0.34 * len(numbers_of) + 1.2))
scale = np.abs(numbers_of).max(0, keepdims=True) + 1e-9
axes.imshow(numbers_of / scale, cmap="RdBu", vmin=-1.4, vmax=1.4, aspect="auto")
for row, col in np.ndindex(numbers_of.shape):
    axes.text(col, row, f"{numbers_of[row, col]:.2f}", ha="center", va="center", fontsize=9)
axes.set_xticks(range(len(columns)), list(columns), rotation=20)
axes.set_yticks(range(len(numbers_of)), [repr(token)[1:-1] for token in text["tokens"]])
axes.xaxis.tick_top()
axes.set_title(f"after {text['prompt']!r}: score {text['score']:g}", pad=34)
print(text["prompt"] + "|" + "".join(text["tokens"]))

# %% [markdown]
# *What to see.* From top to bottom the text unfolds. *log π* is high where grammar decides. *KL* is
# largest where π has moved away from the reference. *reward* is the price of the KL at every token, and
# the score stands at the last. *return* is the sum of the rewards from there on. *value* began at 0 a
# few rollouts ago and has learned hardly more than the mean score, so *advantage* (whitened) says
# nearly the same of each token: "this text went better than most". A critic that works gives
# single tokens their share.
#
# The first return can be computed by hand from the other columns: the score less β times the sum of log-ratios.

# %%
log_ratios = np.array(text["logp"]) - np.array(text["ref_logp"])
by_hand = text["score"] - args.kl_coef * log_ratios.sum()
print(f"by hand {by_hand:.3f}, the trainer's first return {text['return'][0]:.3f}")
claim("the trainer pays what the equation says", abs(by_hand - text["return"][0]) < 0.02)

# %% [markdown]
# **Exercise 7.4.** A critic begins at 0 everywhere, and the score $r$ comes at the last of $T$ tokens (without KL).
# What is the advantage of token $t$ (counted from 0) by GAE with γ = 1 and a given λ? Then: what share
# of the score does the first of 256 tokens see with λ = 0.95?


# %% tags=["exercise"]
def my_advantage(score, t, length, lam):
    # your code
    ...


# %% tags=["check"]
with exercise("7.4"):
    assert abs(my_advantage(2.0, 9, 10, 0.9) - 1.8) > 1e-9, (
        "the last token is t = T − 1: it sees all of the score"
    )
    assert my_advantage(2.0, 9, 10, 0.9) == 2.0, (
        "δ of the last token is r − 0: nothing is discounted"
    )
    row = torch.zeros(1, 10)
    paid = row.clone()
    paid[0, -1] = 2.0
    right, _ = completion_gae(paid, row, row == 0, 1.0, 0.9)
    for t in range(10):
        assert abs(my_advantage(2.0, t, 10, 0.9) - right[0, t].item()) < 1e-6, (
            "every δ but the last is 0, and each step back multiplies by λ"
        )
    assert my_advantage(1.0, 0, 256, 0.95) < 3e-6, "two millionths: why λ is 1 by default here"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_advantage(score, t, length, lam):
#     return score * lam ** (length - 1 - t)
# ```
#
# </details>

# %% [markdown]
# ## The trainer, line by line
#
# What ran above, in the order in which it ran. The Trainer of transformers has the loop; where it asks for
# inputs, a rollout is made. First: sample, score, and record.

# %%
show(PPOTrainer._collect, "# 1. Sample", "self._record(")

# %% [markdown]
# Then pay the tokens (`_paid` shapes the score and calls `token_rewards` from above) and estimate
# advantages. `completion_gae` is lesson 5's `gae`, with every row one episode.

# %%
show(PPOTrainer._collect, "# 4. Pay", "advantages = whitened")
show(completion_gae, "following =", "lam=lam")

# %% [markdown]
# Then deal the rows into minibatches, in a fresh order in each epoch:

# %%
show(steps.schedule, "generator =", "return plan")

# %% [markdown]
# And for each, the loss. `clipped_surrogate` and `value_loss` are the functions of lesson 6.

# %%
show(PPOTrainer.compute_loss, "# 1. The ratio", "penalty = ")
show(losses.clipped_surrogate, "ratio =", "loss =")

# %% [markdown]
# The same quantities elsewhere:
#
# | | here | TRL ≤ 1.12, `PPOTrainer.train` | OpenRLHF |
# | --- | --- | --- | --- |
# | prompt, completion | `prompt_ids`, `completion_ids` | `queries`, `responses` | `sequences` |
# | which tokens count | `mask`, from positions | `padding_mask`, `padding_mask_p1` | `action_mask` |
# | log π_old, log π_ref | `old.logps`, `old.ref_logps` | `logprobs`, `ref_logprobs` | `action_log_probs`, `base_action_log_probs` |
# | score of a text | `scores` | `scores` | `r` |
# | KL of a token | `kl_estimate` | `kl = -logr` (k1), k3 | `compute_approx_kl` |
# | what a token is paid | `token_rewards` | `rewards`, of it `non_score_reward` | `compute_reward` |
# | GAE | `completion_gae` | `lastgaelam`, `advantages`, `returns` | `get_advantages_and_returns` |
# | log-ratio, ratio | `log_ratio` | `logprobs_diff`, `ratio` | `ratio` |
# | policy loss | `clipped_surrogate` | `pg_losses`, `pg_losses2`, `pg_loss` | `PolicyLoss` |
# | value loss | `value_loss` | `vf_losses1`, `vf_losses2`, `vf_loss` | `ValueLoss` |
# | β, ε, λ | `kl_coef`, `cliprange`, `lam` | the same | `init_kl_coef`, `eps_clip`, `lambd` |
#
# All settings are on [coming from TRL](../coming-from-trl.md) and [coming from
# elsewhere](../coming-from.md). Two differences matter for results: the critic is a head on the policy
# here and a second model there, and TRL's λ is 0.95 where ours is 1 (exercise 7.4 says why).

# %% [markdown]
# ## Does the real trainer reach the optimum?
#
# A rising reward shows that something is learned. Here is a harder test. The same `PPOTrainer` trains
# all weights of the little GPT-2 from the beginning of this lesson, and we compare with π* itself, exactly.

# %%
method = METHODS["ppo"]
effort = either(1.0, 0.02)  # 1 is 100 rollouts of 512 completions
trainer = method.trainer(problem, Path(tempfile.mkdtemp()), effort)
trainer.train()
final = problem.measure(trainer.actor_critic.policy)
print(f"optimality {final.optimality:.3f}, total variation distance to π* {final.distance:.3f}")
print(f"KL {final.kl:.2f} nats, π* has {problem.kl:.2f}; reward {final.reward:.2f}")
claim("PPO on a language model is at π*", final.optimality >= 0.97 and final.distance <= 0.05)

# %%
trained = np.exp(env.sequence_logps(next_token_table(trainer.actor_critic.policy, env)))
assert abs(distance(trained, best) - final.distance) < 1e-9
figure, axes = plt.subplots(figsize=(6.4, 4))
axes.barh(place - 0.27, problem.reference[order], 0.27, label="π_ref: before")
axes.barh(place, trained[order], 0.27, label="PPO")
axes.barh(place + 0.27, best[order], 0.27, label="π*")
axes.set_yticks(
    place, [f"{n}  ({problem.rewards[y]:+.1f})" for n, y in zip(names, order, strict=True)]
)
axes.invert_yaxis()
axes.set(xlabel="probability", title="completions (reward)")
axes.legend()

# %% [markdown]
# *What to see.* Completion by completion, PPO's policy is where the formula says. This is one seed;
# `rlhf certify` does it for five and for every method ([the certificate](../certificate.md)).

# %% [markdown]
# ## Run it on your own
#
# Change the names; the reward is any function of texts.

# %%
MY_BETA = 0.3
MY_SEED = 2
mine = Problem(seed=MY_SEED, beta=MY_BETA)
print(f"β = {MY_BETA}: π* is {mine.kl:.2f} nats from π_ref, J* = {mine.best:.2f}")
print(f"its likeliest completion: {mine.texts[int(mine.optimal.argmax())]!r}")

# %% [markdown]
# Worth trying: set β to 0.05 and to 5 and see which π* is still like π_ref; train with
# `kl_estimator="exact"` or `lam=0.95` in `PPOConfig` and look at the table of tokens again; write a reward that
# pays for short answers, and read what the model makes of it. Next: [reward models](08_reward_models.ipynb).
