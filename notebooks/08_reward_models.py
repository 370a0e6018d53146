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
# # 8. Reward models: from judgements to a number, and how the number is exploited
#
# After this lesson you can
#
# - fit rewards to comparisons (Bradley–Terry) and to rankings of K answers (Plackett–Luce);
# - make a reward of a sentiment classifier, and say how good it is, how honest, and in which unit;
# - measure a proxy against people as it is optimised harder, and show it being hacked;
# - let a model judge instead of people, and take its bias for a place out of the labels.
#
# *Before*: lesson [7](07_ppo_for_language_models.ipynb). *Takes*: two minutes; the first run fetches an
# encoder, a small language model and film reviews rated by people (180 MB, from the package index).
# *Beside it*: [which reward](../reward-models.md), [how it is trained](../reward-training.md),
# [is it any good](../evaluate-reward.md), [over-optimisation](../overoptimisation.md),
# [RLAIF](../rlaif.md).

# %%
from pipeline.output import quiet

quiet.before_imports()  # the libraries' warnings and bars stay away

import random
import tempfile
from itertools import permutations

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from lesson import SMALL, claim, either, exercise, show
from scipy.special import expit, logit
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from trl import RewardTrainer

from pipeline.data import embedded, toy
from pipeline.data.comparisons import of_raters
from pipeline.data.rankings import pair_rows
from pipeline.data.records import Row
from pipeline.overoptimise.curves import best_of_n_curve, mean_curve
from reward_models.calibration import fit_temperature
from reward_models.judge import Judge, Verdict, bias_of
from reward_models.measure import accuracy, auc, calibration, correlation

quiet.after_imports()
torch.set_num_threads(1)

# %% [markdown]
# ## Comparisons: Bradley–Terry
#
# Ask people for a mark from 1 to 10 and each has another scale. Ask which of two answers is better, and
# scales do not matter. Bradley & Terry (1952) suppose that each answer has a hidden reward $r$, and that
#
# $$P(i \succ j) = \sigma(r_i - r_j) = \frac{e^{r_i}}{e^{r_i} + e^{r_j}}.$$
#
# The loss is the negative log-likelihood of what was said:
# $L = -\log \sigma(r_{chosen} - r_{rejected})$.
#
# **Exercise 8.1.** Write the mean loss of a batch of pairs (two tensors of rewards). Large differences
# must not give infinity: `F.logsigmoid` knows how.


# %% tags=["exercise"]
def my_pair_loss(chosen, rejected):
    # your code
    ...


# %% tags=["check"]
with exercise("8.1"):
    level = torch.zeros(3)
    assert abs(float(my_pair_loss(level, level)) - np.log(2)) < 1e-6, (
        "no opinion costs log 2 a pair"
    )
    good = float(my_pair_loss(torch.tensor([2.0]), torch.tensor([0.0])))
    assert good < np.log(2), (
        "a chosen answer with the higher reward must cost less: check the order"
    )
    assert abs(good - np.log(1 + np.exp(-2))) < 1e-6, "−log σ(2) = log(1 + e⁻²)"
    far = float(my_pair_loss(torch.tensor([-200.0]), torch.tensor([0.0])))
    assert np.isfinite(far), "σ(−200) is 0 in float32 and its log −∞: use F.logsigmoid"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_pair_loss(chosen, rejected):
#     return -F.logsigmoid(chosen - rejected).mean()
# ```
#
# </details>

# %% [markdown]
# TRL's reward trainer has that line. This project trains its `pairwise` reward with it:

# %%
LINE = "loss = -nn.functional.logsigmoid(rewards_chosen - rewards_rejected).mean()"
show(RewardTrainer.compute_loss, LINE, LINE)

# %% [markdown]
# Six answers with known rewards, and people who compare two at a time. The rewards are parameters, and
# gradient descent on the loss finds them. Nothing else is in a reward model's head.

# %%
true = np.array([-1.5, -0.8, -0.1, 0.2, 1.0, 1.2])
rng = np.random.default_rng(0)
shown = rng.integers(len(true), size=(3000, 2))
shown = shown[shown[:, 0] != shown[:, 1]]
first_wins = rng.random(len(shown)) < expit(true[shown[:, 0]] - true[shown[:, 1]])
comparisons = torch.from_numpy(np.where(first_wins[:, None], shown, shown[:, ::-1]).copy())


def fit_rewards(loss, count, steps):
    """Minimise ``loss(rewards)``; the rewards, with mean 0."""
    rewards = torch.zeros(count, requires_grad=True)
    optimizer = torch.optim.Adam([rewards], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(rewards).backward()
        optimizer.step()
    found = rewards.detach().numpy()
    return found - found.mean()


def pair_loss(rewards, pairs):
    return -F.logsigmoid(rewards[pairs[:, 0]] - rewards[pairs[:, 1]]).mean()


figure, axes = plt.subplots(figsize=(4.4, 3.4))
for count in (30, 300, len(comparisons)):
    some = comparisons[:count]
    found = fit_rewards(lambda r, some=some: pair_loss(r, some), len(true), either(400, 20))
    axes.plot(true, found, "o-", label=f"{count} comparisons")
axes.plot(true, true - true.mean(), "k--", linewidth=1, label="truth, mean 0")
axes.set(xlabel="true reward", ylabel="fitted reward")
axes.legend(frameon=False)
claim(
    "many comparisons find the rewards to 0.25",
    np.abs(found - true + true.mean()).max() < 0.25,
)

# %% [markdown]
# All fitted rewards have mean 0 because we put them there. The loss knows **differences** only: add 5 to
# every reward and nothing changes. So the zero of a pairwise reward means nothing, nor does a difference
# between two prompts.
#
# ## Rankings of K answers: D > C > A > B
#
# InstructGPT showed people K = 4 to 9 answers at once (Ouyang et al. 2022). A ranking of K answers is
# $K(K-1)/2$ pairs. The library makes them so:

# %%
row = Row("here", {"completions": ["a", "b", "c", "d"], "ranking": "D > C > A > B"})
for made in pair_rows(row):
    print(made.values["chosen"], ">", made.values["rejected"])

# %% [markdown]
# **Exercise 8.2.** Write it for a list that is best first. How many pairs does a ranking of 9 give?


# %% tags=["exercise"]
def my_pairs(best_first):
    """A list of (better, worse)."""
    # your code
    ...


pairs_of_nine = ...

# %% tags=["check"]
with exercise("8.2"):
    made = my_pairs(["D", "C", "A", "B"])
    assert len(made) != 3, "neighbours alone are 3 pairs: D > A and D > B were said too"
    assert sorted(made) == sorted(
        [("D", "C"), ("D", "A"), ("D", "B"), ("C", "A"), ("C", "B"), ("A", "B")]
    ), "every answer with every worse one, the better one first"
    assert pairs_of_nine != 72, "each pair once, not in both orders"
    assert pairs_of_nine == 36, "K(K − 1)/2"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_pairs(best_first):
#     return [(a, b) for i, a in enumerate(best_first) for b in best_first[i + 1 :]]
#
#
# pairs_of_nine = 9 * 8 // 2
# ```
#
# </details>

# %% [markdown]
# These pairs are not independent. InstructGPT's model overfitted when they were shuffled over the epoch,
# so here they stay together, in one split and one batch. The other way is to give the *whole* ranking a
# probability. Plackett & Luce: choose the best of all, then the best of the rest, and so on, each by a
# softmax:
#
# $$P(y_1 \succ y_2 \succ \dots \succ y_K) = \prod_{k=1}^{K}
#   \frac{e^{r_{y_k}}}{\sum_{j \ge k} e^{r_{y_j}}}$$
#
# **Exercise 8.3.** Write its log, for rewards that stand best first.


# %% tags=["exercise"]
def my_ranking_logp(rewards):
    """log P of the ranking; `rewards` is an array, the best-ranked answer's first."""
    # your code
    ...


# %% tags=["check"]
with exercise("8.3"):
    assert abs(my_ranking_logp(np.zeros(4)) + np.log(24)) < 1e-6, "equal rewards: 4! equal orders"
    pair = my_ranking_logp(np.array([2.0, 0.5]))
    assert abs(pair - np.log(expit(1.5))) < 1e-6, "of two answers it is Bradley–Terry"
    three = np.array([0.3, -1.0, 0.8])
    whole = sum(np.exp(my_ranking_logp(three[list(o)])) for o in permutations(range(3)))
    assert abs(whole - 1) < 1e-6, "over all orders it must sum to 1: who is placed leaves the sum"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_ranking_logp(rewards):
#     return sum(r - np.log(np.exp(rewards[k:]).sum()) for k, r in enumerate(rewards))
# ```
#
# </details>

# %% [markdown]
# Which of the two uses rankings better? People rank 4 of our six answers. We fit both ways, many times:

# %%


def draw_rankings(count, rng):
    """``(count, 4)`` answers, best first: by noise of Gumbel, which is how Plackett–Luce draws."""
    made = []
    for _ in range(count):
        four = rng.permutation(len(true))[:4]
        made.append(four[np.argsort(-(true[four] + rng.gumbel(size=4)))])
    return torch.from_numpy(np.array(made))


def ranking_loss(rewards, rankings):
    placed = rewards[rankings]
    rest = placed.flip(1).logcumsumexp(1).flip(1)  # log Σ e^r over this and all worse ones
    return (rest - placed).sum(1).mean()


errors = {"pairs": [], "whole rankings": []}
for seed in either(range(20), range(2)):
    rankings = draw_rankings(60, np.random.default_rng(seed))
    places = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    as_pairs = torch.cat([rankings[:, list(two)] for two in places])
    for name, loss in (
        ("pairs", lambda r, p=as_pairs: pair_loss(r, p)),
        ("whole rankings", lambda r, p=rankings: ranking_loss(r, p)),
    ):
        found = fit_rewards(loss, len(true), either(150, 5))
        errors[name].append(float(np.sqrt(np.mean((found - true + true.mean()) ** 2))))
for name, values in errors.items():
    print(f"{name:14s} error of the rewards {np.mean(values):.3f} (mean of {len(values)} draws)")

# %% [markdown]
# The two are close. Pairs lose little, and mix with plain comparisons in one data set. That is why the
# project reads rankings as pairs.
#
# ## A sentiment classifier as reward
#
# The other road: texts that people have *rated*. Ours are remarks on films, each rated by about 15 people
# from −4 to +4 (Hutto & Gilbert 2014). They are divided by who rated them: the proxy learns from the
# first part, a **judge** from the second, and the third is for measuring. No two parts share a group of
# raters.

# %%
if SMALL:
    every = toy.in_batches(toy.toy_texts(360, seed=0))
    encoder = tempfile.mkdtemp()
    toy.toy_encoder(0).save_pretrained(encoder)
    toy.toy_tokenizer().save_pretrained(encoder)
else:
    every = embedded.ratings("movie-reviews")
    encoder = str(embedded.encoder())
by_batch = {}
for text in every:
    by_batch.setdefault(text.batch, []).append(text)
# Dealt in the order of their mean rating, so that each part has as many good texts as the others.
batches = sorted(by_batch.values(), key=lambda texts: float(np.mean([t.rating for t in texts])))
batches = batches[:: either(3, 1)]
deal = {"proxy": (0, 1, 2), "judge": (3, 4), "test": (5, 6, 7)}
parts = {
    name: [text for n, batch in enumerate(batches) if n % 8 in places for text in batch]
    for name, places in deal.items()
}
for name, texts in parts.items():
    print(f"{name}: {len(texts)} texts; {texts[0].rating:+.1f} {texts[0].text[:60]!r}")

# %% [markdown]
# A classifier is an encoder with a *head*: one linear layer on the vector of the text. The stage
# `rlhf reward` trains all of it. We train the head alone, on vectors (the mean over a text's tokens) that
# are computed once. That is less accurate, and takes seconds.

# %%
model = AutoModel.from_pretrained(encoder).eval()
tokenizer = AutoTokenizer.from_pretrained(encoder)


@torch.no_grad()
def vectors(texts):
    """What the head sees of each text, ``(N, D)``."""
    order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
    made = torch.empty(len(texts), model.config.hidden_size)
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        inputs = tokenizer([texts[n] for n in part], padding=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        inside = inputs["attention_mask"][..., None]
        made[part] = (model(**inputs).last_hidden_state * inside).sum(1) / inside.sum(1)
    return made


seen = {name: vectors([text.text for text in texts]) for name, texts in parts.items()}
centre, spread = seen["proxy"].mean(0), seen["proxy"].std(0) + 1e-6


def train_head(x, positive, decay=0.03):
    """Logistic regression: weights ``(D,)`` and bias of log-odds on ``x`` as it is."""
    x, y = (x - centre) / spread, torch.as_tensor(positive, dtype=torch.float32)
    weights = torch.zeros(x.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=either(100, 10))

    def loss():
        optimizer.zero_grad()
        logits = x @ weights[1:] + weights[0]
        total = F.binary_cross_entropy_with_logits(logits, y) + decay * weights[1:].square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    found = weights.detach()
    slope = found[1:] / spread
    return slope, found[0] - slope @ centre


def decided(name):
    """Numbers of a part's texts that take a side (mean rating at least 0.5 from 0)."""
    return np.flatnonzero(np.abs([text.rating for text in parts[name]]) >= 0.5)


labels = {name: np.array([text.rating > 0 for text in texts]) for name, texts in parts.items()}
side = decided("proxy")
slope, bias = train_head(seen["proxy"][side], labels["proxy"][side])


def reward(prompts, completions):
    """Log-odds that prompt and completion together are positive, one a completion."""
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return (vectors(texts) @ slope + bias).tolist()


for completion in (" was wonderful.", " was fine.", " was a waste of an evening."):
    print(f"{reward(['The film'], [completion])[0]:+6.2f}  The film{completion}")

# %% [markdown]
# `reward(prompts, completions)` is all that PPO asks of a reward: write this function into a file `mine.py`,
# and `reward.source: mine.py:reward` is trained against. The score is a **log-odds**
# $\log P(+)/P(-)$ and not a probability: a probability is flat near 1, where the policy will soon be.
#
# How good is it? On texts that neither it nor its raters have seen:

# %%
test_side = decided("test")
people = np.array([text.rating for text in parts["test"]])
scores = (seen["test"] @ slope + bias).numpy()
print(f"accuracy {accuracy(scores[test_side], labels['test'][test_side]):.3f}")
print(f"AUC {auc(scores[test_side], labels['test'][test_side]):.3f}")
print(f"correlation with people's mean rating {correlation(scores, people):.3f}")
claim("it tells good from bad", auc(scores[test_side], labels["test"][test_side]) > 0.8)

# %% [markdown]
# The same vectors can learn from **comparisons**: in the same batch one person liked a text better than
# another. It is the loss of exercise 8.1 with $r = w \cdot x$, and no bias, since it cancels.

# %%
number = {text.text: n for n, text in enumerate(parts["proxy"])}
said = of_raters(parts["proxy"], either(20, 5), seed=0)
better = torch.tensor([number[c.chosen] for c in said])
worse = torch.tensor([number[c.rejected] for c in said])
difference = seen["proxy"][better] - seen["proxy"][worse]
# A pair is a text "positive" whose vector is the difference; half of them are turned round.
turned = torch.arange(len(difference)) % 2 == 0
by_pairs, _ = train_head(torch.where(turned[:, None], -difference, difference) + centre, ~turned)
pair_scores = (seen["test"] @ by_pairs).numpy()
print(f"{len(said)} comparisons: AUC {auc(pair_scores[test_side], labels['test'][test_side]):.3f},")
print(f"correlation with people's mean rating {correlation(pair_scores, people):.3f}")

# %% [markdown]
# It is the worse of the two on this measure. A person compared texts of one batch, and what a batch has in
# common, such as being about a bad film, no comparison within it can teach. Where you have both kinds of
# data, see [which to choose](../reward-models.md).
#
# ## Is it honest? Calibration
#
# If it says 90 %, is it right 9 times in 10? A reward that is too sure gives too large differences, and
# PPO pays KL for them. The cure is one number, fitted on held-out texts: the temperature $T$ in
# $P = \sigma(\text{score}/T)$ (Guo et al. 2017). Here is a head that was hardly held back in training:

# %%
weights, shift = train_head(seen["proxy"][side], labels["proxy"][side], decay=0.001)
too_sure = (seen["test"] @ weights + shift).numpy()
fit_on, look_at = test_side[::2], test_side[1::2]
temperature = fit_temperature(too_sure[fit_on].tolist(), labels["test"][fit_on].tolist())
figure, axes = plt.subplots(figsize=(4.4, 3.8))
ece = {}
for name, divided_by in (("as trained", 1.0), (f"T = {temperature:.2f}", temperature)):
    found = calibration(too_sure[look_at] / divided_by, labels["test"][look_at])
    ece[name] = found["ece"]
    bins = found["bins"]
    axes.plot([b["predicted"] for b in bins], [b["positive"] for b in bins], "o-", label=name)
axes.plot([0, 1], [0, 1], "k--", linewidth=1)
axes.set(xlabel="probability that it says", ylabel="share that is positive")
axes.legend(frameon=False)
print("calibration error:", {name: round(value, 3) for name, value in ece.items()})
claim("one number makes it more honest", list(ece.values())[1] < list(ece.values())[0])

# %% [markdown]
# A curve that is flatter than the diagonal is a model too sure of itself. The order of the texts, and so
# the AUC, stays as it is.
#
# ## In which unit?
#
# $\beta$ is reward per nat. If the reward is in other units, the same $\beta$ is another price. So
# rewards are often **normalised**: mean 0 and standard deviation 1 over the reference's own samples.
# The mean never matters: it is a constant in $E[r] - \beta KL$. The deviation does.
#
# **Exercise 8.4.** A reward has mean 2 and deviation 3 and is used with β = 0.6. After normalisation, which
# β gives the same π*? (Recall $\pi^* \propto \pi_{ref}\, e^{r/\beta}$.)

# %% tags=["exercise"]
# your code
my_beta = ...

# %% tags=["check"]
with exercise("8.4"):
    assert my_beta != 1.8, "the reward gets smaller, and so must the price"
    raw = np.array([2.0, 5.0, -1.0])
    with_raw = np.exp(raw / 0.6) / np.exp(raw / 0.6).sum()
    scaled = (raw - 2.0) / 3.0 / my_beta
    same = np.exp(scaled) / np.exp(scaled).sum()
    assert np.allclose(with_raw, same), "r/β must stay: (r/3)/β′ = r/0.6"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# my_beta = 0.6 / 3
# ```
#
# </details>

# %% [markdown]
# ## Optimise it, and ask people
#
# Now the question of the lesson. The proxy is what we optimise. **Gold** is what we want: here the mean
# rating by people, of texts that the proxy never saw. The optimiser is the simplest: best-of-n. Of n
# texts take the one that the proxy likes best, for n = 1, 2, 4, … The "policy" is people who write film
# remarks. Both are put on mean 0 and deviation 1, so both *gains* have one unit (Gao et al. 2023).


# %%
def standard(values):
    values = np.asarray(values, dtype=float)
    return (values - values.mean()) / values.std()


gold = standard(people)


def proxy_of(count, seed):
    """Scores of a head that learned from ``count`` texts, on all test texts."""
    some = np.random.default_rng(seed).permutation(side)[:count]
    weights, shift = train_head(seen["proxy"][some], labels["proxy"][some])
    return standard((seen["test"] @ weights + shift).numpy())


figure, both = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
points, missed = 9, {}  # n = 1, 2, 4, … 256
for axes, count in zip(both, either((40, len(side)), (20, 60)), strict=True):
    proxies = [proxy_of(count, seed) for seed in range(either(10, 2) if count < len(side) else 1)]
    curve = mean_curve([best_of_n_curve(proxy[None], gold[None]) for proxy in proxies])
    root_kl, claimed, real = (line[:points] for line in curve.draw())
    axes.plot(root_kl, claimed, "o-", color="C1", label="proxy")
    axes.plot(root_kl, real, "s-", color="C0", label="people")
    axes.fill_between(root_kl, real, claimed, color="C3", alpha=0.12)
    rho = np.mean([correlation(proxy, gold) for proxy in proxies])
    axes.plot(root_kl, rho * claimed, "k:", label="correlation · proxy")
    axes.set(title=f"proxy of {count} texts, ρ = {rho:.2f}", xlabel="√KL, √nats")
    missed[count] = claimed - real
    for at in (4, points - 1):
        if at < len(real):
            print(
                f"{count} texts, best of {2**at}: proxy gains {claimed[at]:.2f},"
                f" people {real[at]:.2f}"
            )
both[0].set_ylabel("gain, standard deviations")
both[0].legend(frameon=False)
small, large = missed.values()
claim("the proxy promises more than people see", min(small[4], large[4]) > 0)
claim("… and more so where it learned from few texts (best of 16)", small[4] > large[4])

# %% [markdown]
# The red area is what the proxy claims and nobody gets. It grows with the optimisation. The dotted line is
# a forecast: if proxy and gold were jointly normal, gold would gain $\rho$ times what the proxy gains,
# $\rho$ their correlation *before* any optimisation. It holds at first. Then people's line bends away
# below it: nobody likes a text by three deviations, but a proxy has no such ceiling.
#
# **Exercise 8.5.** A proxy has correlation 0.6 with people. Best-of-64 gains 2.4 deviations by the proxy.
# How much do people gain by the forecast, and how large is the gap?


# %% tags=["exercise"]
def forecast(correlation, proxy_gain):
    """(gold's gain, the gap between the two)."""
    # your code
    ...


# %% tags=["check"]
with exercise("8.5"):
    gain, gap = forecast(0.6, 2.4)
    assert abs(gain - 0.36 * 2.4) > 1e-9, "ρ² is the explained share of variance; gains go with ρ"
    assert abs(gain - 1.44) < 1e-9, "ρ times the proxy's gain"
    assert abs(gap - 0.96) < 1e-9, "what is left of 2.4"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def forecast(correlation, proxy_gain):
#     return correlation * proxy_gain, (1 - correlation) * proxy_gain
# ```
#
# </details>

# %% [markdown]
# ## When gold turns down
#
# In the pictures so far gold rises ever more slowly, and still rises. What Gao et al. saw for hard
# optimisation is worse. It depends on the proxy's **errors**. Let proxy = gold + error. Take
# errors that are normal, and errors that are mostly as small but sometimes huge, such as a model that is
# sure of itself on a text like none that it knows:

# %%
rng = np.random.default_rng(0)
samples = either(4096, 64)
truth = rng.normal(size=(either(40, 4), samples))
errors = {
    "normal errors": rng.normal(size=truth.shape),
    "rare huge errors": rng.standard_t(2, size=truth.shape),
}
figure, axes = plt.subplots(figsize=(6.4, 3.2))
for (name, error), colour in zip(errors.items(), ("C0", "C3"), strict=True):
    root_kl, claimed, real = best_of_n_curve(truth + error, truth).draw()
    axes.plot(root_kl, real, "o-", color=colour, label=f"gold, {name}")
    print(f"{name}: gold's gain peaks at {real.max():.2f} and ends at {real[-1]:.2f}")
    if name == "rare huge errors":
        turned_down = real[-1] < 0.8 * real.max()
axes.set(xlabel="√KL, √nats", ylabel="gain in gold")
axes.legend(frameon=False)
claim("with rare huge errors gold turns down", turned_down)

# %% [markdown]
# With rare huge errors, best-of-4096 finds the *errors*. What is best by the proxy is then an ordinary
# text about which the proxy is wrong. More optimisation makes it worse. That is Goodhart's law, and it is
# why a KL penalty or an early stop is no ornament.
#
# ## Hacking, in words
#
# A policy can do what no person would: write text that is like none in the data. We take a sentence and
# change one word at a time, keeping whatever the proxy likes better. That optimises far harder than
# best-of-n. The judge, which learned from other people's ratings, looks on and is never asked.

# %%
judge_side = decided("judge")
judge_head = train_head(seen["judge"][judge_side], labels["judge"][judge_side])
few_head = train_head(seen["proxy"][side[:100]], labels["proxy"][side[:100]])
words = sorted(
    {w for text in parts["proxy"][:300] for w in text.text.lower().split() if w.isalpha()}
)


def by(head, features):
    """Scores in deviations over the test texts."""
    usual = seen["test"] @ head[0] + head[1]
    return ((features @ head[0] + head[1] - usual.mean()) / usual.std()).numpy()


def attack(sentence, head, steps, seed):
    """Hill climbing on a proxy by single words; (sentence, proxy, judge) along the way."""
    rng, best = random.Random(seed), sentence.split()
    features = vectors([" ".join(best)])
    way = [(" ".join(best), by(head, features)[0], by(judge_head, features)[0])]
    for _ in range(steps):
        tries = []
        for _ in range(32):
            changed = list(best)
            changed[rng.randrange(len(best))] = rng.choice(words)
            tries.append(" ".join(changed))
        features = vectors(tries)
        scored = by(head, features)
        top = int(scored.argmax())
        if scored[top] > way[-1][1]:
            best = tries[top].split()
            way.append((tries[top], scored[top], by(judge_head, features[top : top + 1])[0]))
        else:
            way.append(way[-1])
    return way


START = "the film is about two men who work in an office and then they go home"
ways = [attack(START, few_head, either(40, 2), seed) for seed in either(range(3), range(1))]
for step in (0, len(ways[0]) // 4, len(ways[0]) - 1):
    text, claimed, judged = ways[0][step]
    print(f"step {step:2d}  proxy {claimed:+5.1f}  judge {judged:+5.1f}  {text}")

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.2))
for way in ways:
    axes.plot([w[1] for w in way], color="C1", label="proxy of 100 texts")
    axes.plot([w[2] for w in way], color="C0", label="judge")
handles, names = axes.get_legend_handles_labels()
axes.legend(handles[:2], names[:2], frameon=False)
axes.set(xlabel="steps of the attack", ylabel="score, deviations")
gap = np.mean([way[-1][1] - way[-1][2] for way in ways])
print(f"the proxy ends {gap:.1f} deviations above the judge")
claim("the proxy is hacked: it ends far above the judge", gap > 1)

# %% [markdown]
# Read the last text. No person wrote that, nor would rate it so; in the proxy's eyes it is better than any
# text that people wrote. The judge does not follow. But it is a head on the same encoder: where the
# *encoder* is wrong, both are, and **a judge made like the proxy sees only a part of the hacking**. The
# gold of the section on best-of-n was people's ratings, and people have the last word.
#
# What helps: more data for the proxy; several proxies whose mean is optimised; a price of KL; a judge of
# other make, and an end to the run when it falls (`ppo.gold_stop`). [Over-optimisation](../overoptimisation.md)
# has what each was worth.
#
# ## A model as judge: RLAIF
#
# No people? Ask a language model which of two answers is better, and train on its labels. A judge has a
# habit: it prefers a **place**, A or B, whatever stands there (Zheng et al. 2023). Model it: the log-odds
# that it says A are the answers' difference plus a constant.


# %%
def biased(quality_first, quality_second, place):
    """P(it says A) with ``quality_first`` in place A."""
    return expit(quality_first - quality_second + place)


rng = np.random.default_rng(0)
one, other = rng.normal(size=(2, 400))
for place in (0.0, 1.0, 3.0):
    as_first = biased(one, other, place)
    as_second = 1 - biased(other, one, place)  # P(`one` is better) where it stood as B
    verdicts = [Verdict((f + s) / 2, f, s, 1.0) for f, s in zip(as_first, as_second, strict=True)]
    habit = bias_of(verdicts)
    alone = np.mean((as_first > 0.5) == (one > other))
    both_orders = np.mean(
        [(v.probability > 0.5) == (a > b) for v, a, b in zip(verdicts, one, other, strict=True)]
    )
    print(
        f"habit {place:.0f}: place A gets {habit.first_place:+.2f}, {habit.flipped:4.0%} flip with the"
        f" order; right in one order {alone:.0%}, in both {both_orders:.0%}"
    )

# %% [markdown]
# **Exercise 8.6.** A judge says A with 0.9 for (x, y), that is with x in place A. It says A with 0.7 for
# (y, x). What is the label P(x is better), both orders averaged?


# %% tags=["exercise"]
def my_label(says_a_first_order, says_a_swapped):
    # your code
    ...


# %% tags=["check"]
with exercise("8.6"):
    assert abs(my_label(0.9, 0.7) - 0.8) > 1e-9, "in the swapped order A is the other answer"
    assert abs(my_label(0.9, 0.7) - 0.6) < 1e-9, "½ · [0.9 + (1 − 0.7)]"
    assert my_label(0.95, 0.95) == 0.5, "who says A to everything says nothing"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_label(says_a_first_order, says_a_swapped):
#     return 0.5 * (says_a_first_order + 1 - says_a_swapped)
# ```
#
# </details>

# %% [markdown]
# And a real one: SmolLM2 with 135 million parameters, on pairs of a remark that people liked and one that
# they did not. It is asked in both orders, and nothing is sampled.

# %%
if not SMALL:
    folder = str(embedded.base_model())
    language_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ask = Judge(
        language_model,
        AutoTokenizer.from_pretrained(folder),
        "the better answer is the one that likes the film more",
    )
    good = [text.text for text in parts["test"] if text.rating >= 2][:16]
    bad = [text.text for text in parts["test"] if text.rating <= -2][:16]
    verdicts = ask(["Write a remark about a film that you saw."] * len(good), good, bad)
    habit = bias_of(verdicts)
    print(f"{len(verdicts)} pairs; right {np.mean([v.probability > 0.5 for v in verdicts]):.0%}")
    print(f"place A gets {habit.first_place + 0.5:.2f}; {habit.flipped:.0%} flip with the order")
    pairs = [logit(np.clip(v.probability, 1e-6, 1 - 1e-6)) for v in verdicts]
    print(f"a clear case has log-odds of {np.mean(np.abs(pairs)):.2f}")

# %% [markdown]
# A judge so small says A whatever stands there. Averaged over both orders hardly an opinion is left. On
# more pairs the result is the same, see [RLAIF](../rlaif.md). So: measure a judge against people *before*
# you train on it, in just this way. And compare it with the sentiment head above, which has less than a
# fifth of its size and was shown what people think.

# %% [markdown]
# ## Run it on your own
#
# 1. Write remarks of your own into `MINE`. Find one that people would love and the reward does not. Try
#    irony, negation ("not bad at all"), another language.
# 2. Attack the head that learned from all texts (`HEAD = (slope, bias)`). Does the judge come along
#    further than with the head of 100 texts?
# 3. Optimise the *mean* of ten proxies of 40 texts in the section on people. How much of the red area is
#    left?

# %%
MINE = ["Not bad at all.", "I laughed at all the wrong moments.", "great great great great"]
HEAD = few_head
for text, score in zip(MINE, reward([""] * len(MINE), MINE), strict=True):
    print(f"{score:+6.2f}  {text}")
text, claimed, judged = attack(START, HEAD, either(10, 1), seed=1)[-1]
print(f"proxy {claimed:+.1f}, judge {judged:+.1f}: {text}")
