"""Rollouts one update old: drawn beside an update or before it, corrected, saved and resumed."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from pipeline.data import toy
from pipeline.data.records import Prompt
from pipeline.errors import UserError
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.ppo.engines import Drawn, Request
from pipeline.ppo.engines import server as asking
from pipeline.ppo.upkeep.overlap import Ahead, prompts_of
from pipeline.ppo.upkeep.sharing import RolloutSampler
from tests.pipeline.ppo.test_engines import TellingLoop, logged, reward, weights
from tests.pipeline.ppo.test_trainer import PROMPTS
from tests.pipeline.ppo.test_vllm import ALL, LORA, Trouble
from tests.pipeline.ppo.test_vllm import trained as through_vllm
from tests.pipeline.ppo.vllm_standin import StandIn

STEPS = 4  # of a rollout: two epochs of two minibatches


class InSequence(TellingLoop):
    """A plain sampler, which draws from the policy that is trained, as it is now."""


class Elsewhere(TellingLoop):
    """An engine with weights of its own: it draws in whatever thread it is called in."""

    beside = True

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[int] = []
        self.threads: list[str] = []
        self.fails_at: int | None = None

    def begin(self, policy: Any, tokenizer: Any, longest: int) -> None:
        """Nothing to check."""

    def load(self, policy: Any, step: int) -> None:
        self.loaded.append(step)
        self.policy = copy.deepcopy(policy)

    def __call__(self, request: Request) -> Drawn:
        self.threads.append(threading.current_thread().name)
        if request.step == self.fails_at and self.threads[-1] == "rollout":
            raise UserError("server: is gone")
        stands_in = type("", (), {"policy": self.policy})
        others, self.trainer = (
            self.trainer,
            type("", (), {"actor_critic": stands_in, "tokenizer": self.trainer.tokenizer}),
        )
        try:
            return super().__call__(request)
        finally:
            self.trainer = others


def trainer(folder: Path, sampler: Any, **settings: Any) -> PPOTrainer:
    chosen: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "disable_tqdm": True,
        "save_strategy": "no", "report_to": [], "total_episodes": 32, "overlap": True,
        "per_device_train_batch_size": 4, "num_mini_batches": 2, "num_ppo_epochs": 2,
        "response_length": 6, "learning_rate": 3e-3,
    }  # fmt: skip
    made = PPOTrainer(
        toy.toy_language_model(0), reward, PPOConfig(**(chosen | settings)), toy.toy_tokenizer(),
        PROMPTS[:20], eval_dataset=PROMPTS[:4], sampler=sampler,
    )  # fmt: skip
    sampler.trainer = made
    return made


def trained(folder: Path, sampler: Any, **settings: Any) -> PPOTrainer:
    made = trainer(folder, sampler, **settings)
    made.train()
    return made


def test_a_rollout_is_drawn_from_the_weights_before_the_update_before_it(tmp_path: Path) -> None:
    """Beside the update or before it: to the bit the same run, and another than on-policy."""
    before, beside, on_policy = InSequence(), Elsewhere(), InSequence()
    first, second = trained(tmp_path / "a", before), trained(tmp_path / "b", beside)
    other = trained(tmp_path / "c", on_policy, overlap=False)
    assert [r.step for r in before.requests] == [r.step for r in beside.requests] == [0, 0, 4, 8]
    assert [r.step for r in on_policy.requests] == [0, 4, 8, 12]
    assert beside.loaded == [0, 4, 8]
    assert beside.threads == ["MainThread", *["rollout"] * 3]
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))
    same, seeds = zip(*((r.prompt_ids, r.seed) for r in before.requests), strict=True)
    assert same == tuple(r.prompt_ids for r in on_policy.requests)
    assert seeds == tuple(r.seed for r in on_policy.requests) and len(set(seeds)) == 4
    moved = logged(first, "engine/logp_difference")
    assert moved[:1] == pytest.approx([0.0], abs=1e-5) and min(moved[1:]) > 1e-3


def test_what_is_old_is_weighted_by_truncated_ratios(tmp_path: Path) -> None:
    """π_old of the weights now over μ of those that drew: by hand, at the second rollout."""
    sampler = InSequence()
    made = trainer(tmp_path, sampler, total_episodes=16, importance_cap=1.05)
    seen: list[Any] = []
    plain = made.on_rollout

    def look(rollout: Any) -> dict[str, float]:
        tokens = [list(completion.completion_ids) for completion in rollout.completions]
        seen.append((rollout, sampler.logps(sampler.requests[-1], tokens)))
        return plain(rollout)

    made.on_rollout = look  # type: ignore[method-assign]
    made.train()
    rollout, now = seen[1]
    capped = 0
    for row, completion in enumerate(rollout.completions):
        ratio = (torch.tensor(now[row]) - torch.tensor(completion.logps)).exp()
        torch.testing.assert_close(rollout.importance[row, : len(ratio)], ratio)
        capped += int((ratio > 1.05).sum())
    whole = rollout.advantages / rollout.importance.clamp(max=1.05)
    kept = whole[rollout.batch.mask]
    assert capped > 0
    assert float(kept.mean()) == pytest.approx(0.0, abs=1e-5)  # whitened before it was weighted
    assert float(kept.std(unbiased=False)) == pytest.approx(1.0, abs=1e-3)


# What is sent, an adapter or a folder, is held by test_vllm.py.
@pytest.mark.parametrize(
    "section", [pytest.param(LORA, marks=pytest.mark.long), ALL], ids=["adapter", "folder"]
)
def test_a_vllm_server_draws_beside_and_may_start_anew_or_be_gone(
    tmp_path: Path, section: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rollouts of 8 requests; the third is drawn beside the second's update."""
    monkeypatch.setattr(asking, "time", type("Clock", (), {"sleep": lambda seconds: None}))
    settings: dict[str, Any] = {"total_episodes": 24, "overlap": True}

    def killed(server: StandIn) -> None:
        server.trouble = Trouble(server, {20: lambda: server.start_anew() or "drop"})

    def gone(server: StandIn) -> None:
        server.trouble = Trouble(server, dict.fromkeys(range(17, 400), "drop"))

    stayed, rows, server = through_vllm(tmp_path / "a", section, lambda server: None, **settings)
    again, *_ = through_vllm(tmp_path / "b", section, killed, **settings)
    assert all(torch.equal(value, again[name]) for name, value in stayed.items())
    moved = [row["engine/logp_difference"] for row in rows]
    assert moved[0] < 1e-5 and min(moved[1:]) > 1e-3
    assert len(server.completions()) == 24
    with pytest.raises(UserError, match=r"; checkpoint-8 is saved$") as caught:
        through_vllm(tmp_path / "c", section, gone, server_retries=1, **settings)
    assert "\n" not in str(caught.value) and (tmp_path / "c" / "checkpoint-8").is_dir()


class Stop(TrainerCallback):
    """Ends training with the first checkpoint."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = True


@pytest.mark.parametrize(("kind", "rollouts"), [(InSequence, 2), (Elsewhere, 2), (InSequence, 3)])
def test_resume_equals_the_uninterrupted_run(tmp_path: Path, kind: Any, rollouts: int) -> None:
    """At an epoch's end, 20 prompts being two rollouts of 8, and within one."""
    settings: dict[str, Any] = {
        "total_episodes": 40, "save_strategy": "steps", "save_steps": rollouts * STEPS,
        "kl_target": 0.01, "kl_horizon": 100,
    }  # fmt: skip
    whole = trained(tmp_path / "whole", kind(), **settings)
    part = trainer(tmp_path / "part", kind(), **settings)
    part.add_callback(Stop())
    part.train()
    folder = tmp_path / "part" / f"checkpoint-{rollouts * STEPS}"
    assert (folder / "drawn-ahead-00000.json").is_file()
    sampler = kind()
    again = trainer(tmp_path / "part", sampler, **settings)
    again.train(resume_from_checkpoint=str(folder))
    drawn = [request.step for request in sampler.requests]  # without the one that was at hand
    assert drawn == [8, 12][rollouts - 2 :]
    assert torch.equal(weights(whole), weights(again))
    assert whole.kl_control.coefficient == again.kl_control.coefficient != 0.05


def test_an_evaluation_in_between_changes_nothing(tmp_path: Path) -> None:
    engine = Elsewhere()
    plain = trained(tmp_path / "a", Elsewhere())
    looked = trained(tmp_path / "b", engine, eval_strategy="steps", eval_steps=STEPS)
    assert torch.equal(weights(plain), weights(looked))
    assert engine.loaded == [0, 4, 8, 12, 16]
    assert len(logged(looked, "eval_scores")) == 4


@pytest.mark.parametrize("kind", [InSequence, Elsewhere])
def test_an_error_ahead_ends_the_run_when_its_update_is_done_and_saved(
    tmp_path: Path, kind: Any
) -> None:
    class Failing(kind):
        def __call__(self, request: Request) -> Drawn:
            if request.step == STEPS and self.breaks:
                raise UserError("server: is gone")
            return super().__call__(request)

    engine = Failing()
    engine.breaks = True
    made = trainer(tmp_path, engine)
    with pytest.raises(UserError, match=r"^server: is gone; checkpoint-8 is saved$"):
        made.train()
    folder = tmp_path / "checkpoint-8"
    assert made.state.global_step == 8 and not list(folder.glob("drawn-ahead*"))
    engine = Failing()
    engine.breaks = False
    again = trainer(tmp_path, engine)
    again.train(resume_from_checkpoint=str(folder))
    assert again.state.global_step == 16
    assert [request.step for request in engine.requests] == [8, 8]  # on-policy, then ahead


def test_target_kl_and_a_warm_up_go_with_it(tmp_path: Path) -> None:
    """While only the critic learns, the policy that draws is the policy."""
    made = trained(tmp_path, InSequence(), value_warmup_rollouts=2, target_kl=1e-6)
    moved = logged(made, "engine/logp_difference")
    assert moved[:3] == pytest.approx([0.0] * 3, abs=1e-5) and moved[3] > 1e-5
    assert logged(made, "policy/stopped_early")[-1] == 1.0


def test_what_gains_nothing_or_cannot_be_corrected_is_refused(tmp_path: Path) -> None:
    class Here(Elsewhere):
        beside = False

    class Silent(InSequence):
        def logps(self, request: Request, tokens: list[list[int]]) -> Any:
            return None

    with pytest.raises(UserError, match="ppo.overlap: Here draws in this process"):
        trainer(tmp_path, Here())
    with pytest.raises(UserError, match="does not tell the log-probabilities"):
        trained(tmp_path, Silent())
    with pytest.raises(ValueError, match="importance_cap must be a number with overlap"):
        trainer(tmp_path, InSequence(), importance_cap=None)
    arguments = PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, overlap=True)
    model, prompts = toy.toy_language_model(0), list[Prompt](PROMPTS)
    with pytest.raises(UserError, match="ppo.overlap: the trainer's own loop draws") as caught:
        PPOTrainer(model, reward, arguments, toy.toy_tokenizer(), prompts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_each_process_knows_the_prompts_that_the_loader_will_give_it(processes: int) -> None:
    """Three rollouts of 8 in an epoch, each asked for 4 times."""
    sampler = RolloutSampler(prompts=26, rollout=8, repeats=4, seed=5)
    size = 8 // processes
    for rollout in range(7):
        sampler.set_epoch(rollout // 3)
        start = rollout % 3 * 8 * 4
        loaded = list(sampler)[start : start + 8]
        found = []
        for process in range(processes):
            args: Any = type("", (), {"process_index": process, "rollout_size": size})
            found += prompts_of(sampler, rollout, args)
        assert found == loaded


def test_a_checkpoint_of_two_processes_goes_on_with_another_number(tmp_path: Path) -> None:
    rows = [(row, row + 1) for row in range(8)]

    def request(mine: list[tuple[int, int]]) -> Request:
        return Request(mine, 4, 1.0, frozenset({1}), 0, 0, torch.zeros(len(mine), 4), 0)

    for process in range(2):
        mine = rows[4 * process :][:4]
        ahead = Ahead()
        said = Drawn([[first] for first, _ in mine], [[-0.1 * first] for first, _ in mine])
        ahead.start(3, request(mine), lambda _, said=said: said, beside=True)
        ahead.save(tmp_path, process, 2)
    for processes in (1, 4):
        found = []
        for process in range(processes):
            ahead = Ahead()
            ahead.load(tmp_path, process, processes)
            size = 8 // processes
            drawn = ahead.take(3, rows[process * size :][:size])
            assert drawn is not None and drawn.logps is not None
            found += list(zip(drawn.tokens, drawn.logps, strict=True))
        assert found == [([first], [-0.1 * first]) for first, _ in rows]
    ahead = Ahead()
    ahead.load(tmp_path, 0, 1)
    with pytest.raises(UserError, match="of other prompts than those that come now"):
        ahead.take(3, rows[::-1])
    (tmp_path / "drawn-ahead-00001.json").unlink()
    with pytest.raises(UserError, match=r"drawn-ahead-00001.json is not there"):
        ahead.load(tmp_path, 0, 2)
