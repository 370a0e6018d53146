"""Rewards that answer later, in parts, or not at all."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from reward_models import RewardError, calling, checked, waiting
from reward_models.combined import Part, combined

PROMPTS, COMPLETIONS = ["p"] * 3, ["a", "bb", "ccc"]
LENGTHS = [1.0, 2.0, 3.0]


async def lengths(prompts: list[str], completions: list[str]) -> list[float]:
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


async def length(text: str) -> float:
    await asyncio.sleep(0)
    return float(len(text))


class Later:
    async def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        return await lengths(prompts, completions)


async def each(completions: list[str], **kwargs: Any) -> list[Any]:
    return [length(text) for text in completions]


@pytest.fixture(autouse=True)
def nothing_is_never_awaited() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("timeout", [None, 5.0])
@pytest.mark.parametrize(
    "function",
    [
        lengths,
        partial(lengths),
        Later(),
        each,
        lambda prompts, completions: lengths(prompts, completions),
        lambda prompts, completions: [length(text) for text in completions],
        lambda prompts, completions: map(len, completions),
        combined([Part("a", checked(lengths)), Part("b", checked(lengths))], "mean"),
        combined([Part("a", checked(lengths), 0.5), Part("b", checked(lengths), 0.5)]),
    ],
)
def test_what_comes_later_is_waited_for(function: Any, timeout: float | None) -> None:
    reward = replace(checked(function), timeout=timeout)
    assert reward(PROMPTS, COMPLETIONS) == LENGTHS
    assert replace(reward, batch_size=2)(PROMPTS, COMPLETIONS) == LENGTHS


def test_a_caller_with_an_event_loop_of_its_own_may_ask() -> None:
    async def notebook() -> list[float]:
        return checked(lengths)(PROMPTS, COMPLETIONS)

    assert asyncio.run(notebook()) == LENGTHS


def test_a_client_may_be_kept_between_calls() -> None:
    """Locks and sessions belong to the loop that first waits for them."""
    lock, made = None, []

    async def score(prompts: list[str], completions: list[str]) -> list[float]:
        nonlocal lock
        if lock is None:
            lock = asyncio.Lock()
            await lock.acquire()
            made.append(asyncio.get_running_loop().create_task(asyncio.sleep(0.01, "answer")))
        assert await made[0] == "answer"
        return await lengths(prompts, completions)

    reward = checked(score)
    assert reward(PROMPTS, COMPLETIONS) == reward(PROMPTS, COMPLETIONS) == LENGTHS


def test_one_that_never_comes_ends_in_time_and_is_cancelled() -> None:
    cancelled = []

    async def hangs(prompts: list[str], completions: list[str]) -> list[float]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return []

    with pytest.raises(RewardError, match="raised TimeoutError: no answer in 0.05 s; see that"):
        replace(checked(hangs), timeout=0.05)(PROMPTS, COMPLETIONS)
    limit = time.monotonic() + 10
    while not cancelled and time.monotonic() < limit:
        time.sleep(0.01)
    assert cancelled


def test_an_error_on_the_way_names_the_completion() -> None:
    async def score(prompts: list[str], completions: list[str]) -> list[float]:
        await asyncio.sleep(0)
        return [1 / (len(text) - 2) for text in completions]

    def lazily(prompts: list[str], completions: list[str]) -> Iterator[float]:
        for text in completions:
            yield 1 / (len(text) - 2)

    for function in (score, lazily):
        with pytest.raises(RewardError) as error:
            checked(function)(PROMPTS, COMPLETIONS)
        message = str(error.value)
        assert "raised ZeroDivisionError" in message and "on completion 1 ('bb')" in message
        assert "(test_waiting.py, line" in message


def test_a_batch_that_fails_is_asked_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling.time, "sleep", lambda seconds: None)
    calls: list[list[str]] = []

    def flaky(prompts: list[str], completions: list[str]) -> list[float]:
        calls.append(completions)
        if len(calls) == 2:
            raise ConnectionError("503")
        return [float(len(text)) for text in completions]

    reward = replace(checked(flaky), batch_size=2, retries=1, warn=lambda line: None)
    assert reward(PROMPTS, COMPLETIONS) == LENGTHS
    assert calls == [["a", "bb"], ["ccc"], ["ccc"]]


@pytest.mark.parametrize(
    ("result", "names"),
    [([None], "completion 2 ('ccc') as None"), ([], "without its own is completion 2")],
)
def test_a_mistake_in_a_later_batch_names_the_completion(result: list[Any], names: str) -> None:
    def wrong(prompts: list[str], completions: list[str]) -> list[Any]:
        return result if completions == ["ccc"] else [0.0] * len(completions)

    with pytest.raises(RewardError) as error:
        replace(checked(wrong), batch_size=2)(PROMPTS, COMPLETIONS)
    assert names in str(error.value)


def test_threads_that_ask_at_once_share_one_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client belongs to the loop that it was made in: with a second one a call breaks."""
    monkeypatch.setattr(waiting, "_loops", {})

    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    loops = waiting.in_order([lambda: waiting.answer(loop, None) for _ in range(32)], 16)
    assert len({id(found) for found in loops}) == 1
