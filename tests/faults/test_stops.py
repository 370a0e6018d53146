"""What ends a run says why in one line, keeps what is finished, and the run goes on from there."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.errors import FailedReward, UserError
from pipeline.output.checkpoints import is_complete
from pipeline.ppo.upkeep.guards import reward_call
from reward_models import RewardError, calling, checked
from tests.pipeline.ppo.test_trainer import letters, make_trainer, weights

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}  # after each of 3 rollouts
Reward = Callable[[list[str], list[str]], list[float]]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Retries follow each other at once; the waits they asked for are in the list."""
    waits: list[float] = []
    monkeypatch.setattr(calling.time, "sleep", waits.append)
    return waits


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that three rollouts end with."""
    trainer, _ = make_trainer(tmp_path_factory.mktemp("undisturbed"))
    trainer.train()
    return weights(trainer)


def assert_same(trainer, expected: dict[str, torch.Tensor]) -> None:  # noqa: ANN001
    for name, value in weights(trainer).items():
        assert torch.equal(value, expected[name]), name


def faulty(fault: Callable[[int], None], result: Reward = letters) -> Reward:
    """A reward that calls ``fault`` with the number of its call (0, 1, …) first."""
    calls: list[int] = []

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        calls.append(1)
        fault(len(calls) - 1)
        return result(prompts, completions)

    return reward


def stopped(trainer, kind: type[Exception] = UserError) -> str:  # noqa: ANN001
    """The message of the error that training ends with; one line."""
    with pytest.raises(kind) as error:
        trainer.train()
    assert isinstance(error.value, UserError)  # the command line tells these without a traceback
    assert "\n" not in str(error.value)
    return str(error.value)


def saved_batch(folder: Path, step: int, message: str) -> dict[str, Any]:
    path = folder / f"failed-rollout-{step}.json"
    assert str(path) in message
    batch = json.loads(path.read_text(encoding="utf-8"))
    assert len(batch["prompts"]) == len(batch["completions"]) == 16
    return batch


def goes_on(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    """The checkpoint before the fault is whole, and without the fault the run ends as it would."""
    assert is_complete(folder / "checkpoint-4")
    again, _ = make_trainer(folder, **SAVING)
    again.train(resume_from_checkpoint=True)
    assert_same(again, expected)


# --- Rewards ------------------------------------------------------------------------------------


def test_nan_from_the_reward(tmp_path: Path, undisturbed: dict[str, torch.Tensor]) -> None:
    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        calls.append(1)
        scores = letters(prompts, completions)
        return [*scores[:3], math.nan, *scores[4:]] if len(calls) == 2 else scores

    calls: list[int] = []
    trainer, _ = make_trainer(tmp_path, reward=reward, **SAVING)
    message = stopped(trainer, RewardError)
    assert "completion 3" in message and "as nan" in message and "step 4" in message
    assert len(calls) == 2  # a wrong result is not asked for again
    batch = saved_batch(tmp_path, 4, message)
    assert batch["returned"][3] == "nan"
    assert batch["returned"][2] == letters([], [batch["completions"][2]])[0]
    goes_on(tmp_path, undisturbed)


def test_a_mistake_in_the_reward_is_not_tried_again(
    tmp_path: Path, no_waiting: list[float], undisturbed: dict[str, torch.Tensor]
) -> None:
    def fault(call: int) -> None:
        if call >= 1:
            raise KeyError("score")

    trainer, _ = make_trainer(tmp_path, reward=faulty(fault), **SAVING)
    message = stopped(trainer, RewardError)
    assert "KeyError" in message and no_waiting == []
    assert "KeyError" in saved_batch(tmp_path, 4, message)["raised"]
    goes_on(tmp_path, undisturbed)


class LibraryError(Exception):
    """As HTTP clients have."""


@pytest.mark.parametrize("error", [ConnectionError, TimeoutError, LibraryError])
def test_bad_luck_is_tried_again_and_changes_nothing(
    tmp_path: Path,
    error: type[Exception],
    no_waiting: list[float],
    undisturbed: dict[str, torch.Tensor],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fault(call: int) -> None:
        if call in (1, 2):
            raise error("the service is away")

    trainer, _ = make_trainer(tmp_path, reward=faulty(fault))
    trainer.train()
    assert no_waiting == [1.0, 2.0]
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == 2 and "the service is away" in lines[0] and "try 2 of 3" in lines[0]
    assert_same(trainer, undisturbed)


def test_a_service_that_stays_away(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor], no_waiting: list[float]
) -> None:
    calls: list[int] = []

    def fault(call: int) -> None:
        calls.append(call)
        if call >= 1:
            raise ConnectionError("refused")

    trainer, _ = make_trainer(tmp_path, reward=faulty(fault), reward_retries=3, **SAVING)
    message = stopped(trainer, RewardError)
    assert "failed 4 times" in message and "ConnectionError: refused" in message
    assert calls == [0, 1, 2, 3, 4] and no_waiting == [1.0, 2.0, 4.0]
    assert saved_batch(tmp_path, 4, message)["returned"] is None
    goes_on(tmp_path, undisturbed)


def test_a_service_behind_a_reward_of_the_pipelines(
    tmp_path: Path, no_waiting: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is one line already is passed on once, without the names of our own error classes."""

    def away(prompts: list[str], completions: list[str]) -> list[float]:
        raise ConnectionError("refused")

    inner = replace(checked(away), label="reward.source: mine.py:score", raises=FailedReward)
    trainer, _ = make_trainer(tmp_path / "plain", reward=inner)
    message = stopped(trainer, RewardError)
    assert message.startswith(
        "reward.source: mine.py:score: failed 3 times, at last with ConnectionError: refused"
    )
    nested, _ = make_trainer(tmp_path / "nested", reward=lambda p, c: inner(p, c))
    told = stopped(nested, RewardError)
    assert "failed 3 times, at last with reward.source: mine.py:score: raised Conn" in told
    for line in (message, told, *capsys.readouterr().err.splitlines()):
        assert line.count("see that what it calls answers") <= 1
        assert "UserError" not in line and "FailedReward" not in line and "RewardError" not in line
    assert message.count("see that what it calls answers (reward_timeout, reward_retries)") == 1
    assert told.count("see that what it calls answers (reward_timeout, reward_retries)") == 1
    assert no_waiting == [1.0, 2.0] * 2


def test_a_mistake_that_the_pipeline_told_is_passed_on(
    tmp_path: Path, no_waiting: list[float]
) -> None:
    def fault(call: int) -> None:
        raise UserError("there is no proxy reward; run `rlhf reward`")

    trainer, _ = make_trainer(tmp_path, reward=faulty(fault))
    message = stopped(trainer, RewardError)
    assert message.startswith("there is no proxy reward; run `rlhf reward`; step 0, ")
    assert no_waiting == []


def test_every_process_tells_of_its_own_retries(
    no_waiting: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(call: int) -> None:
        if call == 0:
            raise ConnectionError("refused")

    monkeypatch.setenv("RANK", "1")
    args: Any = SimpleNamespace(reward_timeout=None, reward_retries=1)
    assert reward_call(faulty(fault), args)(["p"], ["oo"]) == [0.4]
    assert "warning: reward reward: ConnectionError: refused" in capsys.readouterr().err


@pytest.mark.parametrize("recovers", [True, False])
def test_a_reward_that_hangs(
    tmp_path: Path, recovers: bool, undisturbed: dict[str, torch.Tensor]
) -> None:
    end = threading.Event()

    def fault(call: int) -> None:
        if call == 1 or (call > 1 and not recovers):
            end.wait(60)

    trainer, _ = make_trainer(
        tmp_path, reward=faulty(fault), reward_timeout=0.3, reward_retries=1, **SAVING
    )
    try:
        if recovers:
            trainer.train()
            assert_same(trainer, undisturbed)
        else:
            message = stopped(trainer, RewardError)
            assert "no answer in 0.3 s" in message and "failed 2 times" in message
            saved_batch(tmp_path, 4, message)
            goes_on(tmp_path, undisturbed)
    finally:
        end.set()


# --- NaN and infinity ----------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["policy", "value_head"])
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_gradient_that_is_nan_reaches_no_weight(
    tmp_path: Path, part: str, max_grad_norm: float
) -> None:
    settings: dict[str, Any] = SAVING | {"max_grad_norm": max_grad_norm}
    whole, _ = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    trainer, _ = make_trainer(tmp_path / "part", **settings)
    names = [n for n, p in trainer.actor_critic.named_parameters() if p.requires_grad]
    parameter = dict(trainer.actor_critic.named_parameters())[next(n for n in names if part in n)]
    before: dict[str, torch.Tensor] = {}

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        if trainer.state.global_step < 6:
            return gradient
        before.update(weights(trainer))
        return gradient * math.nan

    handle = parameter.register_hook(poison)
    message = stopped(trainer)
    handle.remove()
    assert "step 6" in message and "gradient norm (nan)" in message
    assert "checkpoint-4 is the last good checkpoint" in message
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())
    assert_same(trainer, before)
    assert len(saved_batch(tmp_path / "part", 6, message)["scores"]) == 16
    again, _ = make_trainer(tmp_path / "part", **settings)
    again.train(resume_from_checkpoint=True)
    assert_same(again, weights(whole))


def test_scores_too_large_for_the_arithmetic(tmp_path: Path) -> None:
    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [3e38 * (-1) ** i for i in range(len(completions))]

    trainer, _ = make_trainer(tmp_path, reward=reward)
    before = weights(trainer)
    message = stopped(trainer)
    assert "step 0" in message and "reward_clip" in message and "no checkpoint" in message
    assert_same(trainer, before)


# --- Memory -------------------------------------------------------------------------------------


def lack(rows: int, limit: int) -> None:
    """What a device does that has room for ``limit`` rows."""
    if rows > limit:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("place", ["forward", "backward"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_update_that_does_not_fit(
    tmp_path: Path,
    place: str,
    accumulation: int,
    undisturbed: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """8 rows a minibatch and room for 3, from the fourth microbatch on: the same weights.

    In the backward pass the failure comes when a part of the gradients is there already.
    """
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    plain, plain_log = make_trainer(tmp_path / "plain", **settings)
    plain.train()
    trainer, log = make_trainer(tmp_path / "small", **settings)
    model, seen = trainer.actor_critic, [0, 0]
    forward = model.forward

    def counted(batch, *args, **kwargs):  # noqa: ANN001, ANN002, ANN003, ANN202
        seen[:] = [seen[0] + 1, len(batch.mask)]
        if place == "forward" and seen[0] > 3:
            lack(seen[1], 3)
        return forward(batch, *args, **kwargs)

    def in_backward(gradient: torch.Tensor) -> None:
        if place == "backward" and seen[0] > 3:
            lack(seen[1], 3)

    monkeypatch.setattr(model, "forward", counted)
    trained = [p for p in model.policy.parameters() if p.requires_grad]
    trained[0].register_hook(in_backward)
    trainer.train()
    lines = [x for x in capsys.readouterr().err.splitlines() if "out of memory" in x]
    assert len(lines) == (2 if accumulation == 1 else 1)  # 8 → 4 → 2, and never asked for again
    assert trainer.memory.limits == {"learning from": 2}
    for name, value in weights(trainer).items():
        assert torch.allclose(value, undisturbed[name], atol=1e-5), name
    for ours, theirs in zip(log.logs, plain_log.logs, strict=True):
        for name in ("policy/approxkl_avg", "val/ratio", "loss/value_avg", "objective/scores"):
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name


def test_evaluating_and_generating_that_do_not_fit(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.lm import generation

    trainer, _ = make_trainer(tmp_path, eval_strategy="steps", eval_steps=4)
    model, generate = trainer.actor_critic, generation.generate_tokens
    record = model.token_record

    def evaluating(batch, *args, **kwargs):  # noqa: ANN001, ANN002, ANN003, ANN202
        lack(len(batch.mask), 4)
        return record(batch, *args, **kwargs)

    def generating(policy, tokenizer, prompt_ids, *args, **kwargs):  # noqa: ANN001, ANN002, ANN003, ANN202
        lack(len(prompt_ids), 7)
        return generate(policy, tokenizer, prompt_ids, *args, **kwargs)

    monkeypatch.setattr(model, "token_record", evaluating)
    monkeypatch.setattr(generation, "generate_tokens", generating)
    trainer.train()
    assert trainer.memory.limits == {"evaluating": 4, "generating": 4}
    assert trainer.state.global_step == 12


def test_when_nothing_fits_and_when_others_would_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = make_trainer(tmp_path)
    monkeypatch.setattr(trainer.actor_critic, "forward", lambda batch, *_, **__: lack(1, 0))
    assert "a single completion" in stopped(trainer)
    trainer, _ = make_trainer(tmp_path)
    trainer.memory.processes = 2
    monkeypatch.setattr(trainer.actor_critic, "forward", lambda batch, *_, **__: lack(1, 0))
    message = stopped(trainer)
    assert "one of 2 processes" in message and "per_device_train_batch_size" in message
    trainer, _ = make_trainer(tmp_path)

    def other(batch: Any, *_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(trainer.actor_critic, "forward", other)
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.train()


# --- KL -----------------------------------------------------------------------------------------


def test_kl_beyond_the_warning_is_told_once(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, log = make_trainer(tmp_path, kl_warning=1e-4)
    trainer.train()
    lines = [x for x in capsys.readouterr().err.splitlines() if "kl_warning" in x]
    above = [x["step"] for x in log.logs if x.get("objective/kl_exact", 0) > 1e-4]
    assert len(above) > 1 and len(lines) == 1
    order = [lines[0].index(word) for word in ("1. ", "2. ", "exploited", "values that do not")]
    assert order == sorted(order)
    assert "learning_rate" in lines[0] and "kl_coef" in lines[0]
    assert_same(trainer, undisturbed)


def test_kl_beyond_the_stop_saves_ends_and_can_go_on(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    trainer, _ = make_trainer(tmp_path, kl_stop=1e-4)
    message = stopped(trainer)
    assert "above kl_stop=0.0001" in message and "checkpoint-8 is saved" in message
    assert trainer.state.global_step == 8
    assert is_complete(tmp_path / "checkpoint-8")
    again, _ = make_trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert_same(again, undisturbed)


# --- Checkpoints, by a library user ------------------------------------------------------------


def test_resuming_from_a_broken_checkpoint_names_the_whole_one(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    trainer, _ = make_trainer(tmp_path, **SAVING)
    trainer.train()
    head = tmp_path / "checkpoint-12" / "value_head.safetensors"
    content = bytearray(head.read_bytes())
    content[-1] ^= 1
    head.write_bytes(content)
    again, _ = make_trainer(tmp_path, **SAVING)
    with pytest.raises(UserError, match="checkpoint-12.*value_head.*checkpoint-8") as error:
        again.train(resume_from_checkpoint=True)
    again, _ = make_trainer(tmp_path, **SAVING)
    again.train(resume_from_checkpoint=str(error.value).split("'")[1])
    assert_same(again, undisturbed)
