"""Every method learns on a toy, says what it cost, and uses what others have drawn."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.files import read_json, write_json, write_text
from pipeline.config import Experiment, load_experiment
from pipeline.config.stages import METHODS
from pipeline.data import toy
from pipeline.data.splits import load_data
from pipeline.errors import UserError
from pipeline.lm.generation import Completion, sample
from pipeline.lm.models import load_checkpoint
from pipeline.output.metrics_file import read_metrics
from pipeline.stages import pair_data, samples
from pipeline.stages.kto import labelled
from pipeline.stages.pair_data import preference, token_pairs
from pipeline.stages.preferences import make_pairs
from pipeline.stages.selected import best, resampled, rows_of

CONFIG = """
beta: 0.3
data: {dataset_name: toy, demonstrations: 8, heldout: 8, train_prompts: 64, eval_prompts: 8}
model: {model_name_or_path: toy, dtype: float32}
generation: {max_new_tokens: 6, batch_size: 256}
pairs: {per_prompt: 6, max_pairs: 384, labels: hard}
tracking: {report_to: []}
"""
REWARD = """
def words(completions):
    return [float(len(set(text.split()))) for text in completions]
"""
COMMON = {
    "learning_rate": "3e-3", "logging_steps": 4, "use_cpu": "true", "bf16": "false",
    "save_strategy": "no", "lr_scheduler_type": "constant",
}  # fmt: skip
PAIRS: dict[str, Any] = {"per_device_train_batch_size": 32, "num_train_epochs": 2}
ROLLOUTS: dict[str, Any] = {
    "per_device_train_batch_size": 64, "num_generations": 8, "num_iterations": 2, "max_steps": 40,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {
        "total_episodes": 1280, "per_device_train_batch_size": 64, "num_mini_batches": 1,
        "num_ppo_epochs": 2,
    },
    "dpo": PAIRS, "kto": PAIRS, "simpo": PAIRS,
    "orpo": PAIRS | {"num_train_epochs": 6}, "cpo": PAIRS | {"num_train_epochs": 4},
    "rloo": ROLLOUTS, "grpo": ROLLOUTS,
    "rejection": PAIRS | {"n": 8, "num_train_epochs": 12},
    "reweighted": PAIRS | {"n": 8, "num_train_epochs": 4},
}  # fmt: skip


def experiment(folder: Path, *overrides: str) -> Experiment:
    """An experiment with an SFT model in place and a reward that is a function."""
    config, reward = folder / "methods.yaml", folder / "words_of_methods.py"
    for path, text in ((config, CONFIG), (reward, REWARD)):
        write_text(path, text)
    given = [f"output_dir={folder / 'run'}", f"reward.source={reward}:words", *overrides]
    made = load_experiment(config, given)
    if not made.stage_dir("sft").exists():
        for part in (toy.toy_language_model(0), toy.toy_tokenizer()):
            part.save_pretrained(made.stage_dir("sft") / "model")
    return made


def mean_reward(model: Any, made: Experiment) -> float:
    """Of 512 completions; its standard error is 0.06."""
    prompts = load_data(made).train_prompts[:64]
    drawn = sample(
        model, toy.toy_tokenizer(), prompts, samples_per_prompt=8, max_new_tokens=6,
        batch_size=512, seed=5,
    )  # fmt: skip
    return float(np.mean([len(set(c.text.split())) for c in drawn]))


def settings_of(method: str) -> list[str]:
    return [f"{method}.{key}={value}" for key, value in (COMMON | SETTINGS[method]).items()]


def test_every_method_is_tried() -> None:
    assert {method.name for method in METHODS} == SETTINGS.keys()


@pytest.mark.parametrize("method", SETTINGS)
def test_a_method_learns(method: str, tmp_path: Path) -> None:
    made = experiment(tmp_path, f"policies={{{method}: null}}", *settings_of(method)).of(method)
    importlib.import_module(f"pipeline.stages.{method}").run(made)
    folder = made.stage_dir(method)
    start, end = (
        mean_reward(load_checkpoint(made.stage_dir(stage) / "model")[0], made)
        for stage in ("sft", method)
    )
    assert end > start + 0.25, (start, end)  # the least at seeds 0 to 2: 0.39
    steps = [row["step"] for row in read_metrics(folder / "metrics.jsonl")]
    assert steps[0] in (0, 1, 2, 4) and len(steps) > 3
    cost = read_json(folder / "cost.json")
    assert cost["reward_queries"] == cost["completions"]
    expected = {"ppo": 1280, "rloo": 20 * 64, "grpo": 20 * 64}
    expected |= {"rejection": 64 * 8, "reweighted": 64 * 8}
    assert cost["completions"] == expected.get(method, 2 * 384)
    assert cost["completions"] < cost["tokens"] <= 6 * cost["completions"]


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "cpo", "simpo"])
def test_what_training_did_to_pairs_is_measured(method: str, tmp_path: Path) -> None:
    """On the pairs of held-out prompts where there are any, else on those that were learnt."""
    name = f"policies={{{method}: null}}"
    made = experiment(tmp_path, name, *settings_of(method), f"{method}.eval_strategy=epoch")
    importlib.import_module(f"pipeline.stages.{method}").run(made.of(method))
    said = read_json(made.stage_dir(method) / "preference.json")
    assert said["held_out"] and 20 < said["pairs"] < 60
    rise = {s: said[f"{s}_logp_end"] - said[f"{s}_logp_start"] for s in ("chosen", "rejected")}
    assert rise["chosen"] - rise["rejected"] == pytest.approx(said["margin"], abs=1e-4)
    rows = read_metrics(made.stage_dir(method) / "metrics.jsonl")
    assert rows[0]["step"] == 1 and {"logps/chosen", "logps/rejected"} <= rows[0].keys()
    assert ("rewards/accuracies" in rows[0]) == (method != "kto")
    assert any("eval_loss" in row for row in rows)
    train = [pair for pair in make_pairs(made.of(method), method)][:256]
    pair_data.finish(made.of(method), method, train, None)
    said = read_json(made.stage_dir(method) / "preference.json")
    assert not said["held_out"] and said["accuracy"] > 0.6 and said["margin"] > 0.1


def test_policies_with_the_same_settings_share_their_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "{dpo: null, kto: null, other: {method: kto, pairs: {max_pairs: 100}}}"
    made = experiment(tmp_path, f"policies={names}")
    for name in ("sft", "reward"):
        write_json(made.output_dir / name / "stage.json", {"inputs": {"made": name}})
    drawn: list[int] = []
    plain = samples.sample

    def counted(model: Any, tokenizer: Any, prompts: Any, **settings: Any) -> list[Completion]:
        drawn.append(len(prompts))
        return plain(model, tokenizer, prompts, **settings)

    monkeypatch.setattr(samples, "sample", counted)
    first = make_pairs(made.of("dpo"), "dpo")
    assert make_pairs(made.of("kto"), "kto") == first and drawn == [768]
    costs = [read_json(made.output_dir / name / "pairs.json") for name in ("dpo", "kto")]
    assert costs[0] == costs[1] and costs[1]["reward_queries"] == 768  # as if made alone
    assert len(make_pairs(made.of("other"), "kto")) < 101 and len(drawn) == 2
    # Another SFT model: what was drawn from the one before is none of its own.
    write_json(made.output_dir / "sft" / "stage.json", {"inputs": {"made": "again"}})
    for path in (made.output_dir / "kto").iterdir():
        path.unlink()
    make_pairs(made.of("kto"), "kto")
    assert len(drawn) == 3


def test_kl_of_ktos_reference_point_is_of_other_prompts() -> None:
    pairs = [
        {"prompt_ids": [p], "chosen_ids": [10 * p + i], "rejected_ids": [10 * p + i + 5]}
        for p in range(1, 5)
        for i in range(3)
    ]
    rows = labelled(pairs)
    assert [row["label"] for row in rows] == [True, False] * 12
    assert all(row["KL_completion_ids"][0] // 10 != row["prompt_ids"][0] for row in rows)
    used = sorted(row["KL_completion_ids"][0] for row in rows)
    assert used == sorted(row["completion_ids"][0] for row in rows)
    alone = labelled(pairs[:3])  # one prompt: the row's before
    assert [row["KL_completion_ids"] for row in alone[1:]] == [
        row["completion_ids"] for row in alone[:-1]
    ]


def test_own_pairs_become_the_tokens_that_trl_makes_of_them() -> None:
    from datasets import Dataset
    from trl import DPOConfig

    from pipeline.lm.models import frozen_copy, prepare
    from pipeline.stages.trl_compat import TokenizedDPOTrainer

    rows = [
        {"prompt": "the film was", "chosen": " funny", "rejected": " dull and messy"},
        {"prompt": "this movie", "chosen": " is moving", "rejected": " is awful"},
    ]
    tokenizer = toy.toy_tokenizer()
    model: Any = prepare(toy.toy_language_model(0), tokenizer)
    theirs = TokenizedDPOTrainer(
        model=model,
        ref_model=frozen_copy(model),  # type: ignore[arg-type]
        args=DPOConfig(use_cpu=True, bf16=False, report_to="none"),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    made = token_pairs(Dataset.from_list(rows), tokenizer, None, "kto.max_length")
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert made == [{key: row[key] for key in names} for row in theirs.train_dataset]  # type: ignore
    cut = token_pairs(Dataset.from_list(rows), tokenizer, 4, "kto.max_length")
    assert all(len(pair["prompt_ids"] + pair["rejected_ids"]) <= 4 for pair in cut)
    with pytest.raises(UserError, match=r"kto.max_length: it leaves nothing"):
        token_pairs(Dataset.from_list(rows), tokenizer, 1, "kto.max_length")


def test_own_pairs_of_one_policy_cost_no_query(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    rows = [
        {"prompt": "the film", "chosen": f" {w}", "rejected": " dull"} for w in ("warm", "funny")
    ]
    write_text(own, "".join(json.dumps(row) + "\n" for row in rows * 4))
    names = f"{{mine: {{method: orpo, preferences_name: {own}}}}}"
    made = experiment(tmp_path, f"policies={names}", *settings_of("orpo")).of("mine")
    importlib.import_module("pipeline.stages.orpo").run(made)
    folder = made.output_dir / "mine"
    assert read_json(folder / "cost.json") == {"reward_queries": 0, "completions": 0, "tokens": 0}
    assert (folder / "model" / "config.json").is_file() and not (folder / "pairs.jsonl").exists()
    assert read_json(folder / "preference.json")["chosen_logp_end"] > -30


def test_the_implicit_reward_is_the_gain_over_the_reference() -> None:
    start = np.array([[-3.0, -4.0, -5.0], [-3.0, -2.0, -1.0]])
    end = start + np.array([[1.0, -1.0, 0.0], [0.0, -3.0, 0.0]])
    said = preference(start, end)
    assert said["accuracy"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert said["margin"] == pytest.approx((1 + 2 + 0) / 3)
    assert said["chosen_logp_start"] == -4.0 and said["rejected_logp_end"] == -3.0


def test_the_best_and_the_reweighted_are_those_of_their_rewards() -> None:
    rewards = np.array([[0.0, 2.0, 1.0], [5.0, 5.0, -1.0]])
    assert best(rewards).tolist() == [[1], [0]]
    many = resampled(rewards, 0.5, 3000, seed=0)
    for row, places in zip(rewards, many, strict=True):
        weights = np.exp(row / 0.5) / np.exp(row / 0.5).sum()
        shares = np.bincount(places, minlength=3) / 3000
        assert np.abs(shares - weights).max() <= 1 / 3000
    few = np.concatenate([resampled(rewards[:1], 1.0, 1, seed=s) for s in range(2000)])
    expected = np.exp(rewards[0]) / np.exp(rewards[0]).sum()
    assert np.bincount(few[:, 0], minlength=3) / 2000 == pytest.approx(expected, abs=0.04)
    drawn = [{"prompt_ids": [1], "completion_ids": [place]} for place in range(6)]
    learnt = rows_of(drawn, best(rewards))
    assert learnt["input_ids"] == [[1, 1], [1, 3]] and learnt["labels"] == [[-100, 1], [-100, 3]]


def test_every_completion_counts_alike_whatever_it_is_batched_with(tmp_path: Path) -> None:
    """The loss is the mean over completions of their tokens' sum, in units of a mean length."""
    from datasets import Dataset
    from trl import SFTConfig

    from pipeline.lm.models import prepare
    from pipeline.lm.paths import completion_nll
    from pipeline.stages.selected import make_trainer

    tokenizer = toy.toy_tokenizer()
    model: Any = prepare(toy.toy_language_model(0), tokenizer)
    answers = [(5, 6, 7, 8, 9, 0), (5,), (6, 0), (7, 8, 9)]
    drawn = [{"prompt_ids": [3, 4], "completion_ids": list(answer)} for answer in answers]
    rows = rows_of(drawn, np.zeros((4, 1), dtype=int))
    config = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_steps=2,
        per_device_train_batch_size=1, gradient_accumulation_steps=2, logging_steps=1,
        learning_rate=0.0, gradient_checkpointing=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    nll = completion_nll(model, [Completion("", (3, 4), answer, "", True) for answer in answers])
    trainer = make_trainer(model, tokenizer, config, rows)
    assert isinstance(rows, Dataset)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert np.mean(losses) == pytest.approx(np.mean(nll) / 3, rel=1e-4)  # 12 tokens in 4
    assert torch.isfinite(next(model.parameters())).all()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["policies={a: {method: online_dpo}}"], "policies.*online_dpo is no method here: TRL's"),
        (["policies={rloo: null}", "generation.temperature=0.7"], "7 does not go with rloo"),
        (["policies={rloo: null}", "rloo.num_generations=3"], "no whole groups of 3"),
        (["policies={grpo: null}", "grpo.use_vllm=true"], "grpo.use_vllm.*own sampler"),
        (["policies={grpo: null}", "grpo.beta=0.1"], "grpo.beta.*the top-level beta"),
        (["policies={rloo: null}", "rloo.top_p=0.9"], "rloo.top_p.*own distribution"),
        (["policies={kto: null}", "kto.sync_ref_model=true"], "the reference is the SFT model"),
        (["policies={rejection: null}", "rejection.n=1"], "rejection.n"),
        (["policies={rejection: null}", "rejection.packing=true"], "rejection.packing"),
        (["policies={simpo: null}", "simpo.loss_type=ipo"], "simpo.loss_type.*the method cpo"),
        (["policies={orpo: null}", "orpo.betta=1"], "did you mean orpo.beta"),
    ],
)
def test_what_cannot_be_is_refused_when_the_config_is_read(
    overrides: list[str], line: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=line):
        experiment(tmp_path, *overrides)


def test_a_method_that_trl_has_not_says_so_when_the_config_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import version

    from pipeline.config import methods

    plain = methods.importlib.util.find_spec

    def gone(name: str) -> Any:
        if name.startswith("trl.experimental"):
            raise ModuleNotFoundError(name)
        return plain(name)

    monkeypatch.setattr(methods.importlib.util, "find_spec", gone)
    experiment(tmp_path, "policies={dpo: null}")
    with pytest.raises(UserError, match=f"the method orpo needs .* TRL {version('trl')} has not"):
        experiment(tmp_path, "policies={orpo: null}")


def test_beta_of_a_method_without_a_reference_is_its_own(tmp_path: Path) -> None:
    made = experiment(tmp_path, "policies={simpo: {beta: 5.0}, kto: {beta: 0.1}}")
    assert made.of("simpo").trainer_args("simpo") == {"beta": 5.0}
    assert made.of("simpo").beta == 0.3 and made.of("kto").beta == 0.1


def test_too_few_prompts_for_a_rollout_are_refused(tmp_path: Path) -> None:
    overrides = [*settings_of("rloo"), "data.train_prompts=4", "policies={rloo: null}"]
    made = experiment(tmp_path, *overrides).of("rloo")
    with pytest.raises(UserError, match="4 prompts do not fill one rollout of 8"):
        importlib.import_module("pipeline.stages.rloo").run(made)
