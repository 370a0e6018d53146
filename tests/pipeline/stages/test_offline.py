"""DPO over the frozen trunk is TRL's DPO; soft labels and REBEL end where their losses say."""

from __future__ import annotations

import json
import math
import os
import socket
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig

from pipeline.config import ModelSection, load_experiment
from pipeline.config.sections import PairsSection
from pipeline.data import toy
from pipeline.errors import UserError
from pipeline.lm.models import frozen_copy, make_trainable, prepare
from pipeline.lm.scoring import TokenBatch
from pipeline.lm.trunk import SplitDecoder
from pipeline.lm.trunk_cache import CachedStates
from pipeline.stages import dpo, offline
from pipeline.stages.offline import GroupSampler, PairPolicy, PairTrainer, longest, why_trl
from pipeline.stages.trl_compat import TokenizedDPOTrainer
from tests.nursery import Nursery

ROWS = [
    {"prompt_ids": [3, 4], "chosen_ids": [9, 8, 7], "rejected_ids": [9, 6, 0]},
    {"prompt_ids": [3, 4], "chosen_ids": [9, 8, 7], "rejected_ids": [9]},
    {"prompt_ids": [3, 4], "chosen_ids": [9, 6, 0], "rejected_ids": [9]},
    {"prompt_ids": [3], "chosen_ids": [5, 0], "rejected_ids": [12, 13, 14]},
]
GROUPS = [
    {"prompt_ids": [3 + n], "chosen_ids": [9, k], "rejected_ids": [8, k]}
    for n in range(6)
    for k in range(3)
]
UPPER = ModelSection(model_name_or_path="toy", trainable_layers=2)
Logs = list[dict[str, float]]


def arguments(folder: Path, **settings: Any) -> DPOConfig:
    plain: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none",
        "per_device_train_batch_size": 2, "gradient_checkpointing": False, "save_strategy": "no",
        "disable_tqdm": True, "logging_steps": 1, "learning_rate": 3e-3, "beta": 0.5,
    }  # fmt: skip
    return DPOConfig(**plain | settings)


def policy_model(choice: ModelSection = UPPER) -> Any:
    model = prepare(toy.toy_language_model(0), toy.toy_tokenizer())
    return make_trainable(model, choice, 0, choice.policy_modules)


def pair_trainer(
    args: DPOConfig,
    rows: list[dict[str, Any]],
    model: Any = None,
    held: Any = None,
    group_rows: int | None = None,
) -> PairTrainer:
    model = policy_model() if model is None else model
    pairs = Dataset.from_list(rows)
    policy = PairPolicy(model, args, longest(pairs, held))
    train, test = policy.with_logps(pairs, held)
    args.precompute_ref_log_probs = True
    return PairTrainer(
        policy, group_rows, model=model, args=args, train_dataset=train, eval_dataset=test,
        processing_class=toy.toy_tokenizer(),
    )  # fmt: skip


def numbers(history: Logs) -> Logs:
    timed = ("runtime", "second", "total_flos")
    return [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in history]


@pytest.mark.parametrize(
    "choice",
    [
        UPPER,
        UPPER.model_copy(update={"policy_modules": ["v_proj", "o_proj"]}),
        ModelSection(model_name_or_path="toy"),
        ModelSection(model_name_or_path="toy", use_peft=True, lora_r=4),
        UPPER.model_copy(update={"use_peft": True, "lora_r": 4}),
    ],
    ids=["upper", "modules", "all", "lora", "upper-lora"],
)
def test_a_training_is_trls(choice: ModelSection, tmp_path: Path) -> None:
    """Losses, gradients' norms, all metrics and evaluations, with accumulated gradients."""
    settings = {
        "num_train_epochs": 3, "gradient_accumulation_steps": 2, "eval_strategy": "epoch",
    }  # fmt: skip
    held = Dataset.from_list(ROWS[2:])
    ours = pair_trainer(arguments(tmp_path, **settings), ROWS, policy_model(choice), held)
    assert ours._policy.states.has_trunk == (choice.trainable_layers is not None)
    ours.train()
    model = policy_model(choice)
    theirs = TokenizedDPOTrainer(
        model=model,
        ref_model=None if choice.use_peft else frozen_copy(model),  # type: ignore[arg-type]
        args=arguments(tmp_path, **settings),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=held,
        processing_class=toy.toy_tokenizer(),
    )
    theirs.train()
    logs = numbers(theirs.state.log_history)  # type: ignore[arg-type]
    assert len(logs) == 7 and "eval_rewards/margins" in logs[1]
    for own, row in zip(numbers(ours.state.log_history), logs, strict=True):  # type: ignore[arg-type]
        # Of the tokens' metrics, which TRL has of all of a step's batches, ours has the last's.
        tokens = {"entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected"}
        assert own.keys() == row.keys()
        for key in row.keys() - tokens:
            assert own[key] == pytest.approx(row[key], rel=2e-4, abs=2e-5), key
        for key in row.keys() & {f"eval_{name}" for name in tokens}:
            assert own[key] == pytest.approx(row[key], rel=2e-4, abs=2e-5), key


def gradients(trainer: Any, batch: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    named = trainer.model.named_parameters()
    return loss.item(), {n: p.grad.clone() for n, p in named if p.grad is not None}


def test_a_steps_loss_and_gradients_are_trls(tmp_path: Path) -> None:
    """Away from the reference, where a pair's weight in the gradient is not ½."""
    own, model = policy_model(), policy_model()
    ours = pair_trainer(arguments(tmp_path, per_device_train_batch_size=4), ROWS, own)
    theirs = TokenizedDPOTrainer(
        model=model,
        ref_model=frozen_copy(model),  # type: ignore[arg-type]
        args=arguments(tmp_path),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=toy.toy_tokenizer(),
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for one, other in zip(own.parameters(), model.parameters(), strict=True):
            if one.requires_grad:
                noise = 0.05 * torch.randn_like(one)
                one += noise
                other += noise
    batch = ours.data_collator([ours.train_dataset[i] for i in range(len(ROWS))])
    loss, slopes = gradients(ours, batch)
    plain = {k: v for k, v in batch.items() if not k.startswith("ref_")}
    expected, theirs_slopes = gradients(theirs, plain)
    assert loss == pytest.approx(expected, rel=1e-5) and abs(loss - math.log(2)) > 1e-3
    assert slopes.keys() == theirs_slopes.keys()
    for name, slope in slopes.items():
        assert torch.allclose(slope, theirs_slopes[name], rtol=1e-3, atol=1e-6), name


def test_the_trunk_runs_once_for_each_sequence_and_the_rest_once_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower: list[int] = []
    upper: list[int] = []
    plain = SplitDecoder.lower, SplitDecoder.upper

    def counted_lower(self: SplitDecoder, tokens: Tensor) -> Tensor:
        lower.append(len(tokens))
        return plain[0](self, tokens)

    def counted_upper(self: SplitDecoder, states: Tensor) -> Tensor:
        upper.append(len(states))
        return plain[1](self, states)

    args = arguments(tmp_path, num_train_epochs=3, per_device_train_batch_size=4)
    model = policy_model()
    monkeypatch.setattr(SplitDecoder, "lower", counted_lower)
    monkeypatch.setattr(SplitDecoder, "upper", counted_upper)
    monkeypatch.setattr(SplitDecoder, "_equals", lambda *_: True)
    trainer = pair_trainer(args, ROWS, model)
    assert sum(lower) == 5
    upper.clear()
    trainer.train()
    assert sum(lower) == 5 and upper == [5, 5, 5]


def test_without_room_the_states_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy_model()
    ids = torch.tensor([[3, 4, 9, 8, 7], [3, 5, 6, 0, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    batch = TokenBatch(ids, torch.tensor([2, 1]), torch.tensor([[9, 8, 7], [5, 6, 0]]), mask)
    kept, none = CachedStates(model, 5), CachedStates(model, 5, most=0)
    first = kept.predicting(batch)
    again = kept.predicting(batch)
    assert len(kept) == 2 and len(none) == 0
    assert torch.equal(first, again)
    assert torch.allclose(first, none.predicting(batch), atol=1e-6)


# -- labels and losses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "column", "value", "margin"),
    [
        ("sigmoid", "probability", 0.8, math.log(4)),
        ("sigmoid", "probability", 0.5, 0.0),
        ("rebel", "reward_difference", 1.5, 1.5),
        ("rebel", "reward_difference", -0.5, -0.5),
    ],
)
def test_a_pair_ends_where_its_label_says(
    loss: str, column: str, value: float, margin: float, tmp_path: Path
) -> None:
    """β times the difference of the log-ratios is the log-odds, or the rewards' difference."""
    args = arguments(tmp_path, max_steps=60, loss_type=[loss], learning_rate=2e-3)
    whole = policy_model(ModelSection(model_name_or_path="toy"))
    trainer = pair_trainer(args, [ROWS[0] | {column: value}], whole)
    trainer.train()
    history = [row for row in trainer.state.log_history if "rewards/margins" in row]
    assert history[-1]["rewards/margins"] == pytest.approx(margin, abs=0.02)
    first, last = history[0]["loss"], history[-1]["loss"]
    if loss == "rebel":
        assert (first, last) == pytest.approx((value**2, 0.0), abs=1e-3)
    else:
        entropy = -(value * math.log(value) + (1 - value) * math.log(1 - value))
        assert (first, last) == pytest.approx((math.log(2), entropy), abs=1e-3)


def test_a_soft_label_is_the_mean_of_sampled_ones(tmp_path: Path) -> None:
    trainer = pair_trainer(arguments(tmp_path), ROWS)
    margins, p = torch.tensor([0.3, -2.0, 40.0]), torch.tensor([0.9, 0.25, 1.0])
    soft = trainer._losses(margins, {"probability": p})
    wins, loses = trainer._losses(margins, {}), trainer._losses(-margins, {})
    assert torch.allclose(soft, p * wins + (1 - p) * loses)
    assert wins.tolist() == pytest.approx([math.log1p(math.exp(-m)) for m in (0.3, -2.0, 40.0)])


# -- batches ---------------------------------------------------------------------------------------


def test_groups_stay_together_in_another_order_each_epoch() -> None:
    prompts = [[i // 3] for i in range(30)]
    epochs, orders = iter([0, 1, 0]), []
    sampler = GroupSampler(prompts, 1, lambda: next(epochs))
    for _ in range(3):
        order = list(sampler)
        assert sorted(order) == list(range(30)) and len(sampler) == 30
        groups = [order[i : i + 3] for i in range(0, 30, 3)]
        assert all(group == list(range(group[0], group[0] + 3)) for group in groups)
        orders.append(order)
    assert orders[0] == orders[2] != orders[1]


def test_batches_hold_whole_groups(tmp_path: Path) -> None:
    args = arguments(tmp_path, per_device_train_batch_size=4)
    trainer = pair_trainer(args, GROUPS, group_rows=6)
    batches = list(trainer.get_train_dataloader())
    for batch in batches:
        prompts = batch["input_ids"][:6, 0].tolist()
        assert sorted(map(prompts.count, set(prompts))) == [3, 3]
    assert len(batches) == 3


def test_what_has_no_groups_keeps_the_batch_that_was_set(tiny: Path, tmp_path: Path) -> None:
    args = arguments(tmp_path, per_device_train_batch_size=16)
    by_length = arguments(tmp_path, train_sampling_strategy="group_by_length")
    groups = "pairs.samples_per_prompt=8"
    grouped = load_experiment(tiny, [groups])
    assert dpo.batch_of_groups(grouped, args) == 112
    assert dpo.batch_of_groups(load_experiment(tiny), args) is None
    own = "data.preferences_name=pairs.jsonl"
    assert dpo.batch_of_groups(load_experiment(tiny, [groups, own]), args) is None
    assert dpo.batch_of_groups(grouped, by_length) is None


@pytest.mark.parametrize(("samples", "rows", "pairs"), [
    (2, 16, 16), (4, 16, 48), (8, 16, 112), (16, 16, 240), (8, 1, 7), (3, 4, 8),
])  # fmt: skip
def test_a_batch_of_groups_has_the_completions_of_pairs_of_two(
    samples: int, rows: int, pairs: int
) -> None:
    section = PairsSection(samples_per_prompt=samples)
    assert section.batch(rows) == pairs
    assert pairs * samples == 2 * rows * section.of_group  # completions, of whole groups


# -- where TRL's own trainer remains ---------------------------------------------------------------


def test_what_remains_trls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = policy_model(), Dataset.from_list(ROWS)
    assert why_trl(arguments(tmp_path), pairs, model) is None
    assert why_trl(arguments(tmp_path, loss_type=["rebel"]), pairs, model) is None
    own = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    for reason, settings, rows in (
        ("data.preferences_name", {}, own),
        ("dpo.loss_type: ipo", {"loss_type": ["ipo"]}, pairs),
        ("dpo.label_smoothing: 0.1", {"label_smoothing": 0.1}, pairs),
        ("dpo.neftune_noise_alpha: 5.0", {"neftune_noise_alpha": 5.0}, pairs),
        ("dpo.max_length: 4 tokens", {"max_length": 4}, pairs),
    ):
        told = why_trl(arguments(tmp_path, **settings), rows, model)
        assert told is not None and told.startswith(reason)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    told = why_trl(arguments(tmp_path), pairs, model)
    assert told is not None and "FSDP" in told


def test_labels_that_trl_has_not_are_refused_before_sampling(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    chosen = [f"output_dir={tmp_path}", "pairs.labels=soft"]
    with pytest.raises(UserError) as error:
        dpo.run(load_experiment(tiny, chosen))
    assert str(error.value).startswith("pairs.labels: soft")
    assert "FSDP" in str(error.value) and not (tmp_path / "dpo" / "pairs.jsonl").exists()


# -- several processes -----------------------------------------------------------------------------


SHARED = {"pairs": (ROWS, 4, None), "groups": (GROUPS, 4, 6)}  # rows, batch and pairs of groups


def one_of_two(folder: str, rank: str, port: str) -> int:
    """Train on half of each batch in one of two processes; write the weights and the last log."""
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for case in SHARED:
        trainer = shared_trainer(Path(folder), case, 2)
        trainer.train()
        torch.save(trained(trainer), Path(folder) / f"{case}-{rank}.pt")
        (Path(folder) / f"{case}-{rank}.json").write_text(json.dumps(last_log(trainer)))
    return 0


def shared_trainer(folder: Path, case: str, processes: int) -> PairTrainer:
    rows, batch, grouped = SHARED[case]
    sizes = {"num_train_epochs": 2, "per_device_train_batch_size": batch // processes}
    group_rows = grouped and grouped // processes
    return pair_trainer(arguments(folder, **sizes), rows, group_rows=group_rows)


def last_log(trainer: PairTrainer) -> dict[str, float]:
    return [row for row in trainer.state.log_history if "rewards/margins" in row][-1]


def trained(trainer: PairTrainer) -> dict[str, Tensor]:
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def test_two_processes_train_what_one_would(tmp_path: Path, nursery: Nursery) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    logs = [tmp_path / f"log-{rank}" for rank in range(2)]
    started = [
        nursery.start(log, f"{__name__}:one_of_two", str(tmp_path), str(rank), port)
        for rank, log in enumerate(logs)
    ]
    alone = {case: shared_trainer(tmp_path, case, 1) for case in SHARED}
    for one in alone.values():
        one.train()
    for pid, log in zip(started, logs, strict=True):
        assert nursery.wait(pid) == 0, log.read_text()
    for (case, one), rank in product(alone.items(), range(2)):
        expected, last = trained(one), last_log(one)
        weights = torch.load(tmp_path / f"{case}-{rank}.pt")
        assert weights.keys() == expected.keys()
        for name, value in weights.items():
            assert torch.allclose(value, expected[name], atol=2e-5), (case, name)
        told = json.loads((tmp_path / f"{case}-{rank}.json").read_text())
        for key in ("loss", "rewards/margins", "logps/chosen", "entropy", "num_tokens"):
            assert told[key] == pytest.approx(last[key], rel=1e-3, abs=1e-4), (case, key)


def test_the_stage_uses_it(tiny: Path) -> None:
    """What the loss reads beside the tokens is what the config asks for."""
    pair = {
        "prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3],
        "chosen_reward": 2.0, "rejected_reward": 0.5, "probability": 0.75,
    }  # fmt: skip
    tokens = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}
    for overrides, extra in (
        ([], {}),
        (["pairs.labels=hard"], {}),
        (["pairs.labels=soft"], {"probability": 0.75}),
        (["dpo.loss_type=rebel"], {"reward_difference": 1.5}),
        (["pairs.labels=soft", "dpo.loss_type=rebel"], {"reward_difference": 1.5}),
    ):
        assert dpo.pair_row(load_experiment(tiny, overrides), pair) == tokens | extra
    assert set(offline._EXTRA) == {"probability", "reward_difference"}
