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
# # 10. Your own model and data
#
# After this lesson you can
#
# - take a CSV, a model folder and a reward function of yours from `rlhf data` to a report;
# - read the report's numbers, and choose β by them;
# - interrupt a run and resume it, train adapters in Python, and compare a checkpoint of your own;
# - reload what was trained with transformers and peft, and check what a long run needs.
#
# *Before*: [PPO for language models](07_ppo_for_language_models.ipynb). *Takes*: about a minute. *Beside
# it*: [data](../data.md), [reward models](../reward-models.md), [the report](../report.md),
# [troubleshooting](../troubleshooting.md).
#
# Everything is written into one folder, which you may look into afterwards.

# %%
import contextlib
import csv
import io
import json
import random
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from lesson import claim, either, exercise
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
)

from pipeline import cli
from pipeline.config import load_experiment
from pipeline.lm.generation import sample
from pipeline.lm.models import prepare
from pipeline.output import quiet
from pipeline.ppo import PPOConfig, PPOTrainer
from reward_models.loading import load_reward

quiet.before_imports()  # the libraries' warnings and bars stay away
quiet.after_imports()
work = Path(tempfile.mkdtemp(prefix="own-"))


def rlhf(*words, last=12):
    """The command `rlhf …` without a shell: its exit code; what it said last is printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.main([str(word) for word in words])
    lines = [line.rstrip() for line in said.getvalue().replace("\r", "\n").splitlines()]
    print("\n".join([line for line in lines if line.strip()][-last:]))
    return code


# %% [markdown]
# ## Your texts
#
# Here are reviews of hotels in a CSV with one column. They are made up from a small grammar, so that a
# tiny model can learn them in seconds. In a CSV of yours may be other columns; you name the one to read.

# %%
GOOD = ["clean", "quiet", "bright", "friendly", "warm", "lovely"]
BAD = ["dirty", "noisy", "dark", "rude", "cold", "awful"]
THINGS = ["room", "bed", "breakfast", "bar", "pool", "garden", "lobby", "staff"]
PLACES = ["rome", "oslo", "cairo", "lima", "quito", "turin", "delhi", "osaka"]
rng = random.Random(0)


def review():
    """One made-up review of 10 to 20 words."""
    side = GOOD if rng.random() < 0.5 else BAD
    words = [rng.choice(["our", "the", "this", "my"]), rng.choice(THINGS)]
    words += [rng.choice(["in", "near"]), rng.choice(PLACES)]
    words += ["was", rng.choice(["very", "rather", "quite"]), rng.choice(side)]
    for _ in range(rng.randint(1, 3)):
        other = side if rng.random() < 0.8 else rng.choice([GOOD, BAD])
        words += [rng.choice(["and", "but"]), "the", rng.choice(THINGS), "was", rng.choice(other)]
    return " ".join(words)


texts = sorted({review() for _ in range(either(1500, 300))})
table = work / "hotels.csv"
with table.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["review"])
    writer.writerows([text] for text in texts)
print(f"{len(texts)} rows; the first:", texts[0])

# %% [markdown]
# ## Your model
#
# Any causal language model that transformers can load: a folder or a hub id. Ours is a GPT-2 of two layers
# with random weights and a tokenizer of whole words, saved as any model is. (With a real one this cell
# is one line of the config: `model_name_or_path: embedded:smollm2-135m-instruct`, or your folder.)

# %%
vocabulary = ["<eos>", "<unk>", *sorted({word for text in texts for word in text.split()})]
backend = Tokenizer(
    models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
)
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>"
)
torch.manual_seed(0)
config = GPT2Config(
    vocab_size=len(vocabulary), n_positions=64, n_embd=64, n_layer=2, n_head=2,
    bos_token_id=None, eos_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
)  # fmt: skip
base = work / "model"
GPT2LMHeadModel(config).save_pretrained(base)
tokenizer.save_pretrained(base)
print(f"{len(vocabulary)} words; files: {sorted(file.name for file in base.iterdir())}")

# %% [markdown]
# ## Your reward
#
# A Python function in a file: lists of prompts and completions in, a list of numbers out. This one counts
# words of praise. Beside it stands a **judge**, which is never optimised against. It holds what we
# *really* want: praise, but not the same word twice. A run without a judge of its own cannot show that its
# reward was hacked.
#
# (`fuse` is for later: it plays a power cut, after as many calls as the file `fuse` says.)

# %%
(work / "rewards.py").write_text(
    f'''"""Rewards of hotel reviews."""
from pathlib import Path

GOOD, BAD = {GOOD!r}, {BAD!r}


def burn(fuse):
    """Interrupt the run when the fuse has burned down."""
    if fuse.exists():
        left = int(fuse.read_text())
        if not left:
            raise KeyboardInterrupt
        fuse.write_text(str(left - 1))


def praise(prompts, completions):
    """Words of praise less words of blame, of each completion."""
    burn(Path(__file__).with_name("fuse"))
    return [float(sum((w in GOOD) - (w in BAD) for w in c.split())) for c in completions]


def judge(prompts, completions):
    """Different words of praise less words of blame; a word said again costs as much."""
    scores = []
    for completion in completions:
        said = [w for w in completion.split() if w in GOOD or w in BAD]
        again = len(said) - len(set(said))
        scores.append(float(sum((w in GOOD) - (w in BAD) for w in set(said)) - again))
    return scores
''',
    encoding="utf-8",
)
praise = load_reward(f"{work}/rewards.py:praise")
print(praise(["our room"], [" in rome was very clean and the bar was clean but dark"]))

# %% [markdown]
# Other sources are a classifier, a folder or hub id, rules, a service behind an address
# (`source: https://…`, see [a reward behind an address](../reward-http.md)), or a list of these.
#
# **Exercise 10.1.** Write a reward that counts the *different* words of praise in each completion, and
# nothing that the prompt says.


# %% tags=["exercise"]
def my_reward(prompts, completions):
    # your code: GOOD is the list of words of praise
    ...


# %% tags=["check"]
with exercise("10.1"):
    said = my_reward(["a clean room", "x"], [" was warm and warm and quiet", " was dark"])
    assert isinstance(said, list), "a list of numbers, one for each completion"
    assert len(said) == 2, "as many scores as completions"
    assert said[0] != 3, "a word that comes twice counts once: that is what a policy would exploit"
    assert list(said) == [2.0, 0.0], "two different words in the first, none in the second"
    assert my_reward(["a clean room"], [" was dark"]) == [0.0], (
        "the prompt's own words are not its merit"
    )

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_reward(prompts, completions):
#     return [float(len(set(completion.split()) & set(GOOD))) for completion in completions]
# ```
#
# </details>

# %% [markdown]
# ## Your experiment
#
# One YAML file says all. Most keys have defaults; `configs/quickstart.yaml` is a longer example.

# %%
experiment_file = work / "hotels.yaml"
experiment_file.write_text(
    f"""name: hotels
output_dir: {work}/run
seed: 0
beta: 0.5                       # what a nat of KL costs, in units of the reward
policies:
  ppo: {{}}
{either("  greedy: {method: ppo, beta: 0.02}  # another β, to see what it does", "")}
{either("  dpo: {}", "")}
model:
  model_name_or_path: {base}
  dtype: float32
data:
  dataset_name: {table}
  text_column: review
  min_words: 8
  max_words: 30
  prompt_words: 4               # a prompt is the first four words of a text
  demonstrations: {either(800, 100)}
  heldout: 32
  train_prompts: {either(128, 32)}
  validation_prompts: 16
  eval_prompts: {either(48, 8)}
generation:
  max_new_tokens: {either(16, 6)}
  batch_size: 256
sft:
  num_train_epochs: {either(8, 1)}
  per_device_train_batch_size: 32
  learning_rate: 3e-3
  save_steps: 1000
  use_cpu: true
  bf16: false
  gradient_checkpointing: false
reward:
  source: {work}/rewards.py:praise
  gold: {work}/rewards.py:judge
ppo:
  total_episodes: {either(1536, 64)}
  per_device_train_batch_size: {either(64, 16)}
  num_mini_batches: 2
  num_ppo_epochs: 2
  learning_rate: 1e-3
  save_steps: {either(8, 4)}
  use_cpu: true
pairs:
  per_prompt: {either(4, 1)}
dpo:
  num_train_epochs: {either(2, 1)}
  per_device_train_batch_size: 16
  learning_rate: 2e-4
  use_cpu: true
  bf16: false
  gradient_checkpointing: false
compare:
  samples_per_prompt: {either(8, 2)}
  reference_samples: {either(256, 8)}
  best_of_n: 4
  frontier_betas: [0.1, 0.2, 0.35, 0.5, 0.7, 1, 2, 5]
  bootstrap: {either(300, 20)}
  fluency_model: null
tracking:
  report_to: []
""",
    encoding="utf-8",
)
experiment = load_experiment(experiment_file, [])
print(f"β = {experiment.beta}; policies: {', '.join(experiment.methods())}")

# %% [markdown]
# A mistake in it is one line that names key and mend, before any work:

# %%
assert rlhf("data", "--config", experiment_file, "ppo.learning_rat=1e-4") == 2
assert rlhf("data", "--config", experiment_file, "data.text_column=text") == 2

# %% [markdown]
# ## `rlhf data`: what is read
#
# On the command line this is `rlhf data --config hotels.yaml`. In Python it is `cli.main([...])`, which returns
# the exit code: 0, or 2 for a mistake of the user's.

# %%
assert rlhf("data", "--config", experiment_file, last=30) == 0

# %% [markdown]
# *What to see.* How many rows were kept and why others were not; that prompts and held-out texts share
# nothing; and three examples *as the model sees them*. `▶` stands where the answer begins. Look at
# these lines before every run: most wasted runs are wrong here.
#
# ## `rlhf plan`: will it fit, and how long

# %%
assert rlhf("plan", "--config", experiment_file, last=16) == 0

# %% [markdown]
# **Exercise 10.2.** How many optimizer steps does PPO take in all, and how many completions does it ask
# the reward for? A rollout has `per_device_train_batch_size × num_mini_batches` completions (one
# process, no accumulation).


# %% tags=["exercise"]
def my_steps(episodes, batch_size, mini_batches, epochs):
    """(optimizer steps, completions scored)."""
    # your code
    ...


# %% tags=["check"]
with exercise("10.2"):
    arguments = PPOConfig(
        output_dir=str(work / "unused"), total_episodes=1024, per_device_train_batch_size=32,
        num_mini_batches=4, num_ppo_epochs=3, use_cpu=True, bf16=False,
    )  # fmt: skip
    mine, asked = my_steps(1024, 32, 4, 3)
    assert asked == 1024, "each completion is scored once, however often it is learned from"
    assert mine != 32, "every rollout is learned from in each of the epochs"
    assert mine != 8 * 3, "an epoch has a step for each minibatch"
    assert mine == arguments.max_steps, "8 rollouts, 3 epochs of 4 minibatches each"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_steps(episodes, batch_size, mini_batches, epochs):
#     rollouts = -(-episodes // (batch_size * mini_batches))  # rounded up
#     return rollouts * epochs * mini_batches, episodes
# ```
#
# </details>

# %% [markdown]
# ## `rlhf run`, interrupted and resumed
#
# `rlhf run` does all stages: SFT, the reward, PPO, DPO, the comparison and the report. A stage alone is
# `rlhf sft`, `rlhf ppo` and so on. We do SFT first. Then PPO begins, and its power is cut in the middle,
# by the reward function, as if you had pressed Ctrl-C.

# %%
assert rlhf("sft", "--config", experiment_file, last=1) == 0
assert rlhf("reward", "--config", experiment_file, last=1) == 0

# %%
fuse = work / "fuse"
fuse.write_text(either("3", "1"))  # calls until then; a checkpoint was written before
assert rlhf("ppo", "--config", experiment_file, last=1) == 130
fuse.unlink()
print("there is:", sorted(path.name for path in (work / "run" / "ppo").rglob("checkpoint-*")))

# %% [markdown]
# Nothing special is needed to go on. Give the same command again (or the one for all stages): what is
# finished is skipped, what was interrupted goes on from its last checkpoint, and on a processor the
# result is the same to the bit as without the interruption.

# %%
assert rlhf("run", "--config", experiment_file, last=21) == 0

# %% [markdown]
# ## The report's numbers
#
# The page is `run/report/index.html`. Its numbers are in `compare/results.json`, which is the same to
# the bit for the same experiment.

# %%
results = json.loads((work / "run" / "compare" / "results.json").read_text())
methods = results["methods"]
for name, row in methods.items():
    print(
        f"{name:10s} reward {row['reward']:5.2f}  judge {row['gold']:5.2f}  KL {row['kl']:5.2f} nats"
        f"  objective {row['objective']:5.2f}  win rate by the judge {row['win_rate_gold']:.2f}"
    )
ppo = methods["ppo"]
claim(
    "the objective is the reward less β times the KL",
    abs(ppo["objective"] - (ppo["reward"] - results["beta"] * ppo["kl"])) < 1e-6,
)
claim("PPO's objective is above SFT's", ppo["objective_gain_ci"][0] > 0)

# %% [markdown]
# | number | what it says | look twice when |
# | --- | --- | --- |
# | `reward`, `gold` | means of the reward that was optimised, and of the judge | the first rises and the second does not |
# | `kl` | nats a completion from SFT | above 10 |
# | `objective` | reward − β·KL: what PPO maximises | below SFT's |
# | `optimality` | the share of what *any* policy can gain at this β | `optimality_bound` says "at most": too few samples |
# | `win_rate_gold` | how often the judge prefers it to SFT's answer | its interval reaches 0.5 |
# | `self_bleu`, `distinct_2` | how alike the answers are | variety is half of SFT's |
#
# The first sentence of the report weighs these and says which policy to ship, or why none:

# %%
report = (work / "run" / "report" / "report.md").read_text(encoding="utf-8")
print(next(line for line in report.splitlines() if line.startswith("**")).replace("*", ""))

# %% [markdown]
# Numbers are not enough. Read answers, best beside each other to the same prompt:

# %%
with (work / "run" / "compare" / "samples.jsonl").open(encoding="utf-8") as file:
    for line in list(file)[:3]:
        row = json.loads(line)
        print(row["prompt"])
        for name, text in row["completions"].items():
            print(f"   {name:10s}{text}")

# %% [markdown]
# **Exercise 10.3.** Three policies were measured at β = 0.5. Which one is the best for the objective
# *and* not hacking (its judge's mean is above SFT's)? Return its name.


# %% tags=["exercise"]
def my_choice(rows, sft_gold, beta):
    # your code: rows is {name: {"reward": …, "kl": …, "gold": …}}
    ...


# %% tags=["check"]
with exercise("10.3"):
    measured = {
        "bold": {"reward": 5.0, "kl": 8.0, "gold": 1.5},
        "calm": {"reward": 2.5, "kl": 1.0, "gold": 1.2},
        "sly": {"reward": 4.0, "kl": 2.0, "gold": 0.1},
    }
    mine = my_choice(measured, 1.0, 0.5)
    assert mine in measured, f"the name of a policy, not {mine}"
    assert mine != "bold", "the highest reward: its KL costs 0.5 · 8 = 4 of it"
    assert mine != "sly", "the highest objective, and a judge below SFT's: that is hacking"
    assert mine == "calm", "2.5 − 0.5 is the best of those that the judge confirms"
    assert my_choice(measured, 1.0, 0.05) == "bold", "with cheap KL another is best: use beta"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_choice(rows, sft_gold, beta):
#     honest = {name: row for name, row in rows.items() if row["gold"] > sft_gold}
#     return max(honest, key=lambda name: honest[name]["reward"] - beta * honest[name]["kl"])
# ```
#
# </details>

# %% [markdown]
# ## Choosing β
#
# β is a price in *your* reward's units. Before training at many β, look at the frontier: from SFT's own
# samples the comparison estimates what the best policy at each β would earn, and whether that can be
# trusted ([the frontier](../frontier.md)).

# %%
points = results["frontier"]
for point in points:
    told = "" if point["trusted"] else "   not to be trusted: more is possible"
    print(
        f"β {point['beta']:4.2f}: reward {point['reward']:5.2f} for {point['kl']:5.2f} nats{told}"
    )
figure, axes = plt.subplots(figsize=(6.4, 3.8))
axes.plot([p["kl"] for p in points], [p["reward"] for p in points], "k.:", label="best possible")
known = [p for p in points if p["trusted"]]
axes.plot([p["kl"] for p in known], [p["reward"] for p in known], "k-", label="… and trusted")
for name, row in methods.items():
    axes.plot(row["kl"], row["reward"], "o", label=f"{name}: judge {row['gold']:.2f}")
axes.set(xlabel="KL to SFT, nats a completion", ylabel="reward")
axes.legend(fontsize=8)

# %% [markdown]
# *What to see.* Each point is the best policy for one β: a small β buys much reward for many nats. No
# policy can be above the line. Where it is dotted it is a floor only: SFT's samples did not show enough of
# what a better policy would write, so more samples are needed (`compare.reference_samples`). To choose:
# pick the KL you can afford (a few nats for a model that must still be itself), take the β of that
# point, and let the **judge** confirm it. Here `greedy`, at a β of 0.02, went on where the judge no longer follows:

# %%
for name, row in methods.items():
    print(f"{name:10s} reward {row['reward']:5.2f}, judge {row['gold']:5.2f}, KL {row['kl']:5.2f}")
if "greedy" in methods:
    greedy = methods["greedy"]
    claim(
        "more reward, and the judge far below",
        greedy["reward"] > ppo["reward"] and greedy["gold"] < ppo["gold"] - 0.5,
    )

# %% [markdown]
# **Exercise 10.4.** Choose β from such points: the *smallest* β whose point is trusted and whose KL is
# within your budget.


# %% tags=["exercise"]
def my_beta(points, budget):
    # your code: points is a list of {"beta": …, "kl": …, "trusted": …}
    ...


# %% tags=["check"]
with exercise("10.4"):
    drawn = [
        {"beta": 0.1, "kl": 3.0, "trusted": False},
        {"beta": 0.2, "kl": 2.4, "trusted": True},
        {"beta": 0.5, "kl": 1.5, "trusted": True},
        {"beta": 1.0, "kl": 0.6, "trusted": True},
    ]
    mine = my_beta(drawn, 2.0)
    assert mine in (0.1, 0.2, 0.5, 1.0), f"one of the points' β, not {mine}"
    assert mine != 1.0, "within budget, but there is a cheaper price: the smallest β buys most"
    assert mine != 0.2, "2.4 nats are above the budget of 2"
    assert mine == 0.5, "the smallest β with at most 2 nats"
    assert my_beta(drawn, 5.0) == 0.2, "β = 0.1 is not trusted: its KL is known as a floor only"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_beta(points, budget):
#     return min(p["beta"] for p in points if p["trusted"] and p["kl"] <= budget)
# ```
#
# </details>

# %% [markdown]
# ## In Python: adapters of your own
#
# The commands are made of functions that you may call yourself. Here the SFT model gets LoRA adapters
# (peft), and `PPOTrainer` trains them against the same reward. Trainer and arguments are transformers'
# own kind: callbacks, schedules and resuming work as there.

# %%
sft_folder = work / "run" / "sft" / "model"
words = AutoTokenizer.from_pretrained(sft_folder)
model = prepare(AutoModelForCausalLM.from_pretrained(sft_folder), words)
torch.manual_seed(0)
lora = LoraConfig(
    task_type="CAUSAL_LM",
    r=8,
    lora_alpha=16,
    target_modules=["c_attn", "c_proj", "c_fc"],
    fan_in_fan_out=True,
)
policy = get_peft_model(model, lora)
arguments = PPOConfig(
    output_dir=str(work / "lora"), total_episodes=either(1024, 16), kl_coef=0.5,
    per_device_train_batch_size=either(64, 8), num_mini_batches=2, num_ppo_epochs=2,
    response_length=either(16, 6), learning_rate=3e-3, save_strategy="no", disable_tqdm=True,
    use_cpu=True, bf16=False, seed=0,
)  # fmt: skip
asked = [" ".join(text.split()[:4]) for text in texts[: either(128, 16)]]
trainer = PPOTrainer(policy, praise, arguments, words, asked)
trainer.remove_callback(PrinterCallback)
trainer.train()
policy.save_pretrained(work / "adapter")
words.save_pretrained(work / "adapter")
scores = [row["objective/scores"] for row in trainer.state.log_history if "objective/scores" in row]
print("mean score of each rollout:", " ".join(f"{score:.2f}" for score in scores))
size = sum(f.stat().st_size for f in (work / "adapter").glob("*.safetensors"))
print(
    f"adapters: {size / 1024:.0f} KiB, over {policy.peft_config['default'].base_model_name_or_path}"
)

# %% [markdown]
# ## A checkpoint of your own in the comparison
#
# `--policy NAME=FOLDER` measures any checkpoint beside the experiment's policies, on the same prompts,
# with the same random numbers. Only the new one is sampled.

# %%
assert (
    rlhf("compare", "--config", experiment_file, "--policy", f"lora={work / 'adapter'}", last=1)
    == 0
)
again = json.loads((work / "run" / "compare" / "results.json").read_text())["methods"]
print({name: (round(row["reward"], 2), round(row["kl"], 2)) for name, row in again.items()})
same = ("reward", "gold", "kl", "objective")
claim("the others are as they were", all(again["ppo"][k] == methods["ppo"][k] for k in same))
claim("the adapters' reward is above SFT's", again["lora"]["reward_gain_ci"][0] > 0)

# %% [markdown]
# ## Reload what was trained
#
# A policy is a folder that transformers reads, and an adapter one that peft reads. Nothing of this project is
# needed to use them. One thing matters: sample at temperature 1 *without* top-k or top-p, or it is another
# distribution than the one that was trained and measured.

# %%
trained = AutoModelForCausalLM.from_pretrained(work / "run" / "ppo" / "model").eval()
prompt = words("the room in lima", return_tensors="pt")
torch.manual_seed(1)
written = trained.generate(
    **prompt, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=16
)
print("transformers:", words.decode(written[0], skip_special_tokens=True))

adapted = AutoPeftModelForCausalLM.from_pretrained(work / "adapter").eval()
with torch.no_grad():
    before = adapted(**prompt).logits
    merged = adapted.merge_and_unload()
    after = merged(**prompt).logits
    kept = policy.eval()(**prompt).logits
merged.save_pretrained(work / "merged")
claim("reloaded adapters are the trained ones", torch.allclose(before, kept, atol=1e-5))
claim("merged in, they compute the same", torch.allclose(before, after, atol=1e-4))

# %%
for completion in sample(merged, words, ["the room in lima", "our staff near oslo"],
                         max_new_tokens=16, batch_size=2, seed=3):  # fmt: skip
    print(completion.prompt + completion.text, "| ended" if completion.ended else "| cut off")

# %% [markdown]
# To share them: `rlhf push` sends model, card and report to the hub ([sharing](../sharing.md)). To type
# prompts at them: `rlhf play`.
#
# ## Before a long run
#
# | check | with |
# | --- | --- |
# | the data are read as you think, the answer begins at `▶` | `rlhf data` |
# | it fits, and how long it takes, here or on another card | `rlhf plan`, `--gpu h100` |
# | the reward agrees with people, on texts that you know | `rlhf evaluate-reward`; read its best and worst 20 |
# | there is a judge that is not the reward | `reward.gold` |
# | all stages run to the report with few rows | the same file with small numbers and another `output_dir` |
# | the first rollouts: score varies, KL begins at 0, ratio at 1 | [PPO's metrics](../ppo-metrics.md) |
# | an interrupted run goes on | stop it once, on purpose |
# | completions are long enough to end | `val/ended`; `generation.max_new_tokens` |
# | the result is no luck of one seed | `rlhf sweep` |
#
# ## Run it on your own
#
# Change the names. With a model of your own the times are those that `rlhf plan` says.

# %%
MY_TABLE = table  # a CSV, JSON lines or parquet of yours
MY_COLUMN = "review"
MY_MODEL = base  # a folder, a hub id, or "embedded:smollm2-135m-instruct"
mine = [
    f"data.dataset_name={MY_TABLE}",
    f"data.text_column={MY_COLUMN}",
    f"model.model_name_or_path={MY_MODEL}",
    f"output_dir={work}/mine",
]
assert rlhf("data", "--config", experiment_file, *mine, last=4) == 0

# %% [markdown]
# Worth trying: let `judge` be the reward and see what the policy finds in *its* gaps; set β to 2 and
# look at the variety; put the tiny model's place to the embedded one and run it over lunch. What goes wrong
# is in [troubleshooting](../troubleshooting.md).
