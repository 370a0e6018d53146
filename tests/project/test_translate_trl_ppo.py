"""scripts/translate_trl_ppo.py: old TRL PPO scripts, as they are found, become experiment files."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.config import Experiment, load_experiment
from tests.checkout import ROOT

# The shape of TRL's sentiment example up to 0.11.
OLD = """
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
from datasets import load_dataset
from peft import LoraConfig
from transformers import pipeline

config = PPOConfig(
    model_name="lvwerra/gpt2-imdb",
    learning_rate=1.41e-5,
    log_with="wandb",
    batch_size=128,
    mini_batch_size=16,
    gradient_accumulation_steps=2,
    ppo_epochs=3,
    init_kl_coef=0.1,
    target=4,
    horizon=5000,
    kl_penalty="kl",
    early_stopping=True,
    target_kl=0.1,
    use_score_scaling=True,
    use_score_norm=True,
    score_clip=5.0,
    optimize_cuda_cache=True,
    ratio_threshold=8.0,
)
LORA = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM")
ds = load_dataset("stanfordnlp/imdb", split="train")
sentiment_pipe = pipeline("sentiment-analysis", model="lvwerra/distilbert-imdb")
model = AutoModelForCausalLMWithValueHead.from_pretrained(config.model_name, peft_config=LORA)
generation_kwargs = {
    "min_length": -1, "top_k": 0.0, "top_p": 0.9, "do_sample": True, "max_new_tokens": 16
}
for batch in trainer.dataloader:
    response = trainer.generate(query, return_prompt=False, **generation_kwargs)
    stats = trainer.step(queries, response, rewards)
"""
# The shape of TRL 0.12 to 1.12 in a script of one's own.
NEW = """
from trl.experimental.ppo import PPOConfig, PPOTrainer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

ROLLOUT = 8 * 2
args = PPOConfig(
    output_dir="out", learning_rate=3e-6, per_device_train_batch_size=ROLLOUT,
    gradient_accumulation_steps=4, num_mini_batches=2, num_ppo_epochs=1, total_episodes=1000,
    kl_coef=0.03, kl_estimator="k3", missing_eos_penalty=1.0, stop_token="eos", save_steps=10,
    whiten_rewards=True, report_to="none", bf16=True, seed=3, num_sample_generations=5,
    ds3_gather_for_generation=False, not_of_trl=1, lam=lam_of_mine(),
)
policy = AutoModelForCausalLM.from_pretrained("EleutherAI/pythia-1b-deduped")
reward = AutoModelForSequenceClassification.from_pretrained("mine/reward", num_labels=1)
PPOTrainer(args=args, model=policy, reward_model=reward).train()
"""
# TRL's own example: everything by the command line.
FLAGS = """
from trl import ModelConfig, PPOConfig, ScriptArguments
parser = HfArgumentParser((ScriptArguments, PPOConfig, ModelConfig))
"""
WORDS = [
    "--dataset_name",
    "trl-internal-testing/tldr",
    "--dataset_test_split=validation",
    "--num_ppo_epochs",
    "1",
    "--num_mini_batches",
    "1",
    "--learning_rate",
    "3e-6",
    "--per_device_train_batch_size",
    "16",
    "--gradient_accumulation_steps",
    "4",
    "--total_episodes",
    "10000",
    "--sft_model_path",
    "a/sft",
    "--reward_model_path",
    "a/rm",
    "--local_rollout_forward_batch_size",
    "16",
    "--missing_eos_penalty",
    "1.0",
    "--stop_token",
    "eos",
    "--eval_strategy",
    "steps",
    "--eval_steps",
    "100",
    "--use_peft",
    "--lora_target_modules",
    "q",
    "k",
]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        return importlib.import_module("translate_trl_ppo")


def translated(script: ModuleType, folder: Path, text: str, *words: str) -> tuple[Experiment, str]:
    path = folder / "old.py"
    path.write_text(text, encoding="utf-8")
    made = script.translate(path, words)
    (folder / "new.yaml").write_text(made, encoding="utf-8")
    return load_experiment(folder / "new.yaml"), made


def remark(text: str, name: str) -> str:
    [line] = [x for x in text.splitlines() if x.startswith("#   ") and x[4:].startswith(name)]
    return line


def test_a_script_of_the_old_loop(script: ModuleType, tmp_path: Path) -> None:
    experiment, text = translated(script, tmp_path, OLD)
    ppo = experiment.trainer_args("ppo")
    assert (ppo["per_device_train_batch_size"], ppo["gradient_accumulation_steps"]) == (16, 2)
    assert (ppo["num_mini_batches"], ppo["num_ppo_epochs"]) == (4, 3)
    assert experiment.beta == 0.1 and ppo["kl_target"] == 4 and ppo["kl_horizon"] == 5000
    assert ppo["target_kl"] == pytest.approx(0.15) and ppo["kl_estimator"] == "k1"
    assert ppo["normalize_rewards"] is True and ppo["reward_clip"] == 5
    # Not in the script, and other than ours: what it trained with.
    assert ppo["lam"] == 0.95 and ppo["cliprange_value"] == 0.2
    assert experiment.model.model_name_or_path == "lvwerra/gpt2-imdb" and experiment.sft.skip
    assert experiment.model.use_peft and experiment.model.lora_r == 8
    assert experiment.reward.source == "lvwerra/distilbert-imdb"
    assert experiment.data.prompts_name == "stanfordnlp/imdb"
    assert experiment.generation.max_new_tokens == 16
    assert list(experiment.policies) == ["ppo"]
    for name in ("optimize_cuda_cache", "ratio_threshold", "top_p", "use_score_norm", "bias"):
        assert "no counterpart: " in remark(text, name)
    assert "anyway" in remark(text, "top_k")
    assert "loop is not read" in remark(text, "ppo.total_episodes")


def test_lengths_that_are_drawn_in_the_loop_are_left_to_the_user(
    script: ModuleType, tmp_path: Path
) -> None:
    drawn = OLD.replace('"max_new_tokens": 16', '"pad_token_id": tokenizer.eos_token_id')
    experiment, text = translated(script, tmp_path, drawn)
    assert "not found in the script: set it" in remark(text, "generation.max_new_tokens")
    assert "no counterpart" in remark(text, "top_p")
    assert experiment.beta == 0.1 and experiment.generation.temperature == 1


def test_a_fixed_coefficient_has_no_target(script: ModuleType, tmp_path: Path) -> None:
    call = "c = PPOConfig(adap_kl_ctrl=False, target=3.0, init_kl_coef=0.2)"
    experiment, text = translated(script, tmp_path, call)
    assert "kl_target" not in experiment.trainer_args("ppo")
    assert "fixed" in remark(text, "target=3.0")


def test_settings_from_elsewhere_are_named(script: ModuleType, tmp_path: Path) -> None:
    _, text = translated(script, tmp_path, "c = PPOConfig(kl_coef=0.2, **load('settings.json'))")
    assert "by hand" in remark(text, "**load")


def test_a_script_of_the_trainer(script: ModuleType, tmp_path: Path) -> None:
    experiment, text = translated(script, tmp_path, NEW)
    ppo = experiment.trainer_args("ppo")
    # A rollout of 16 × 4 in two minibatches: 32 rows of each, 16 at once.
    assert (ppo["per_device_train_batch_size"], ppo["gradient_accumulation_steps"]) == (16, 2)
    assert ppo["num_mini_batches"] == 2 and ppo["total_episodes"] == 1000
    assert ppo["save_steps"] == 10 * 1 * 2  # rollouts to optimizer steps
    assert experiment.beta == 0.03 and ppo["kl_estimator"] == "k3" and experiment.seed == 3
    assert (experiment.generation.max_new_tokens, experiment.generation.temperature) == (53, 0.7)
    assert experiment.tracking.report_to == []
    assert experiment.reward.source == "mine/reward"
    assert "lam" not in ppo and "not known without running" in remark(text, "lam")
    assert "not a setting" in remark(text, "not_of_trl")
    assert "generation config" in remark(text, "stop_token")


def test_flags_of_the_command_line(script: ModuleType, tmp_path: Path) -> None:
    experiment, text = translated(script, tmp_path, FLAGS, *WORDS)
    ppo = experiment.trainer_args("ppo")
    assert ppo["learning_rate"] == 3e-6 and ppo["eval_steps"] == 100
    assert experiment.model.model_name_or_path == "a/sft" and experiment.reward.source == "a/rm"
    assert experiment.model.lora_target_modules == ["q", "k"]
    assert "no counterpart" in remark(text, "dataset_test_split")


def test_every_setting_has_one_line(script: ModuleType, tmp_path: Path) -> None:
    _, text = translated(script, tmp_path, OLD)
    lines = [line for line in text.splitlines() if line.startswith("#   ")]
    said = " ".join(line.partition(": ")[0] for line in lines)
    for name in (
        "learning_rate",
        "log_with",
        "ppo_epochs",
        "target_kl",
        "score_clip",
        "lora_dropout",
    ):
        assert said.count(name) == 1, name


@pytest.mark.parametrize(
    ("text", "words", "says"),
    [
        ("print(1)", [], "no PPOConfig in it"),
        ("def f(:", [], "line 1: no Python"),
        (FLAGS, [], "come from the command line"),
        ("c = PPOConfig(ppo_epochs=1, kl_coef=0.1)", [], "leave one kind out"),
        ("c = PPOConfig(num_mini_batches=3)", [], "equal minibatches"),
        ("c = PPOConfig(batch_size=0, ppo_epochs=1)", [], "line 1: batch_size: expected a whole"),
        ("c = PPOConfig(kl_coef=-1)", [], "beta: "),
        ("c = PPOConfig(learning_rate=-1.0)", [], "line 1: learning_rate: "),
        ("c = PPOConfig(kl_coef=0.1)", ["3"], "expected --name value"),
    ],
)
def test_wrong_input_is_refused_in_a_line(
    text: str, words: list[str], says: str, script: ModuleType, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "old.py"
    path.write_text(text, encoding="utf-8")
    assert script.main([str(path), "--", *words]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and error.startswith("error: ") and says in error


def test_the_script_is_never_run(script: ModuleType, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    translated(script, tmp_path, f"open({str(mark)!r}, 'w')\n{NEW}")
    assert not mark.exists()


def test_a_missing_file(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["absent.py"]) == 2
    assert "absent.py: cannot be read" in capsys.readouterr().err
